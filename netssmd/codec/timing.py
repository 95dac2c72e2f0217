"""Gaps between packets for a codec that has no token for them.

Two ways. The paper's: gaps drawn, each by itself, from those of a given capture (`SampledGaps`). Ours: distributions
fitted by label, direction and payload size of the packet that ends the gap, kept with the model (`Timing`) and drawn
from by `FittedGaps`. Bins are those of the context codec's IAT token, about 9 % wide, and a gap is uniform in its bin.
A distribution that saw fewer than `LEAST` gaps is replaced by the label's of all sizes, then by that of all labels; a
model that knows no timing at all gets exponential gaps.

::

    captures -> observe(label, direction, size, gap_ns) -> Timing -> to_json, in the model's codec section
    prompt's own gaps (RecordedGaps) -> then SampledGaps | FittedGaps -> gap_ns of each packet
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final, Protocol

from netssmd.codec.vocab import IAT_BINS

SIZE_EDGES: Final = (1, 128, 1000)  # payload bytes: none, small, middle, full
CLASSES: Final = 2 * (len(SIZE_EDGES) + 1)
EVERY_LABEL: Final = ""
LEAST: Final = 32
DEFAULT_MEAN_NS: Final = 10_000_000


class Random(Protocol):
    """A session's own random numbers."""

    def choice(self, cumulative: list[float]) -> int: ...
    def below(self, n: int) -> int: ...
    def uniform(self) -> float: ...


class Gaps(Protocol):
    """Where gaps come from."""

    def gap_ns(self, direction: int, size: int) -> int:
        """The time before a packet of `size` payload bytes, direction 0 from its flow's originator."""


def class_of(direction: int, size: int) -> int:
    """0 .. CLASSES - 1."""
    return direction * (len(SIZE_EDGES) + 1) + bisect_right(SIZE_EDGES, size)


class Timing:
    """Counts of gaps by label, class and bin. `counts[label][class]` is {bin: count}. `sampled_ns`: the gaps of a
    capture, where one was given to draw from; they are not stored."""

    def __init__(self, sampled_ns: Sequence[int] = ()) -> None:
        self.sampled_ns: Sequence[int] = sampled_ns
        self.counts: dict[str, list[dict[int, int]]] = {}

    def observe(self, label: str, direction: int, size: int, gap_ns: int) -> None:
        """Count one gap. A clock that stepped back counts as none."""
        table = self.counts.get(label)
        if table is None:
            table = [{} for _ in range(CLASSES)]
            self.counts[label] = table
        where = table[class_of(direction, size)]
        member = IAT_BINS.find(gap_ns) if gap_ns > 0 else 0
        where[member] = where.get(member, 0) + 1

    def merge(self, other: Timing) -> None:
        """Add what another one counted."""
        for label, table in other.counts.items():
            mine = self.counts.setdefault(label, [{} for _ in range(CLASSES)])
            for at, bins in enumerate(table):
                for member, count in bins.items():
                    mine[at][member] = mine[at].get(member, 0) + count

    def bins(self, label: str, which: int) -> dict[int, int]:
        """The counts to draw from for this label and class, with the fall-backs."""
        table = self.counts.get(label, [])
        for found in ([table[which]] if table else [], table, [own[which] for own in self.counts.values()]):
            total = _added(found)
            if sum(total.values()) >= LEAST:
                return total
        total = {}
        for own in self.counts.values():
            total = _added([total, *own])
        return total

    def to_json(self) -> dict[str, Any]:
        """Counts as lists of [bin, count, bin, count ...]."""
        return {
            label: [[n for member in sorted(bins) for n in (member, bins[member])] for bins in table]
            for label, table in sorted(self.counts.items())
        }

    @staticmethod
    def from_json(value: object) -> Timing:
        """What `to_json` wrote. Raises ValueError for anything else."""
        timing = Timing()
        if not isinstance(value, dict):
            raise ValueError("the codec's timing is no table")
        for label, table in value.items():
            if not isinstance(table, list) or len(table) != CLASSES:
                raise ValueError(f"the codec's timing of {label!r} has not {CLASSES} classes")
            read: list[dict[int, int]] = []
            for flat in table:
                good = isinstance(flat, list) and len(flat) % 2 == 0 and all(type(n) is int and n >= 0 for n in flat)
                if not good or any(member >= IAT_BINS.count for member in flat[::2]):
                    raise ValueError(f"the codec's timing of {label!r} is damaged")
                read.append(dict(zip(flat[::2], flat[1::2], strict=True)))
            timing.counts[str(label)] = read
        return timing


def _added(tables: Sequence[dict[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for bins in tables:
        for member, count in bins.items():
            total[member] = total.get(member, 0) + count
    return total


class FittedGaps:
    """Draws from a `Timing`, for one session's label."""

    __slots__ = ("_label", "_members", "_running", "_stream", "_timing")

    def __init__(self, timing: Timing, label: str, stream: Random) -> None:
        self._timing: Timing = timing
        self._label: str = label
        self._stream: Random = stream
        self._members: list[list[int]] = []  # by class; made when first asked for
        self._running: list[list[float]] = []

    def _add_up(self) -> None:
        for which in range(CLASSES):
            bins = self._timing.bins(self._label, which)
            members = sorted(bins)
            running: list[float] = []
            total = 0
            for member in members:
                total += bins[member]
                running.append(float(total))
            self._members.append(members)
            self._running.append(running)

    def gap_ns(self, direction: int, size: int) -> int:
        if not self._members:
            self._add_up()
        which = class_of(direction, size)
        members = self._members[which]
        if not members:
            return int(-DEFAULT_MEAN_NS * math.log(1.0 - self._stream.uniform()))
        member = members[self._stream.choice(self._running[which])]
        low = IAT_BINS.edges[member]
        return low + self._stream.below(IAT_BINS.edges[member + 1] - low)


class SampledGaps:
    """The paper's way: any gap of a capture, each time anew, whatever the packet."""

    __slots__ = ("_stream", "_timing")

    def __init__(self, timing: Timing, stream: Random) -> None:
        self._timing: Timing = timing
        self._stream: Random = stream

    def gap_ns(self, direction: int, size: int) -> int:
        gaps_ns = self._timing.sampled_ns
        return gaps_ns[self._stream.below(len(gaps_ns))]


class RecordedGaps:
    """A prompt's own gaps, in order, then those of another source."""

    __slots__ = ("_after", "_at", "_gaps_ns")

    def __init__(self, gaps_ns: Sequence[int], after: Gaps) -> None:
        self._gaps_ns: Sequence[int] = gaps_ns
        self._at: int = 0
        self._after: Gaps = after

    def gap_ns(self, direction: int, size: int) -> int:
        if self._at < len(self._gaps_ns):
            self._at += 1
            return self._gaps_ns[self._at - 1]
        return self._after.gap_ns(direction, size)
