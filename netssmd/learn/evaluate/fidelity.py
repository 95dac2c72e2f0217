"""Table 2 of the paper: how far header values and flow statistics of generated captures are from real ones.

In: sessions with their nPrint tallies. Out: for each pair of sets the mean over columns of four distances between the
distributions of a column's values:

    JS distance     sqrt of the divergence in nats (scipy's `jensenshannon`); what the paper calls JSD: only so can 0.82
                    stand beside a total variation distance of 0.99
    JS divergence   in bits
    TVD             half the sum of absolute differences
    HD              Hellinger distance

Columns are the bytes of a header (256 values and "absent") or its bits (0, 1, "absent"). The paper's baseline of random
packets (0.82, 0.99, 0.95) is what uniform bytes give beside headers that hardly vary, so bytes are its reading. Each
score is a mean over labels, so that every label counts the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from netssmd.learn.evaluate import nprint
from netssmd.learn.evaluate.sessions import Session, by_label

MEASURES = ("JS distance", "JS divergence, bits", "TVD", "HD")
PUBLISHED = {
    "Random generation (flow statistics), published": (0.67, None, 0.80, 0.76),
    "Random generation (raw packets), published": (0.82, None, 0.99, 0.95),
    "NetShare, published": (0.16, None, 0.16, 0.18),
    "NetDiffusion, published (corrected afterwards)": (0.04, None, 0.04, 0.05),
    "TrafficGPT, published": (0.16, None, None, None),
    "NetSSM (base), published": (0.02, None, 0.02, 0.02),
    "NetSSM (fine-tuned), published": (0.02, None, 0.01, 0.02),
}
FLOW_BINS = 50


def distances(p: Any, q: Any) -> Any:
    """float [4]: means of MEASURES over columns; p and q [columns, values], each line a distribution."""
    mean = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.where(x > 0, x * np.log(x / mean), 0).sum(axis=1) for x in (p, q)]
    divergence = np.clip((parts[0] + parts[1]) / 2, 0, None)
    hellinger = np.sqrt(np.clip(1 - np.sqrt(p * q).sum(axis=1), 0, None))
    variation = np.abs(p - q).sum(axis=1) / 2
    return np.array([np.sqrt(divergence).mean(), divergence.mean() / np.log(2), variation.mean(), hellinger.mean()])


class Columns(Protocol):
    """What is compared, under a name: distributions of a group of sessions, and what chance gives beside them."""

    @property
    def name(self) -> str: ...
    def shares(self, group: Sequence[Session]) -> Any: ...
    def random(self, mine: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """Which columns are compared: of which headers, as bytes or bits, with the volatile fields or without."""

    regions: tuple[str, ...] = ("tcp",)
    unit: str = "byte"
    volatile: bool = True

    @property
    def name(self) -> str:
        regions = "TCP" if self.regions == ("tcp",) else "all headers"
        return f"table 2: {regions} by {self.unit}{'' if self.volatile else ', without volatile fields'}"

    def chosen(self) -> Any:
        """Indices of the columns; a byte is chosen if all of its bits are."""
        bits = nprint.columns(self.regions, self.volatile)
        if self.unit == "bit":
            return bits
        whole = np.bincount(bits // 8, minlength=nprint.WIDTH) == 8
        return np.flatnonzero(whole)

    def shares(self, group: Sequence[Session]) -> Any:
        """[columns, values] of a group of sessions."""
        table = nprint.byte_shares([session.tally for session in group])
        return (table if self.unit == "byte" else nprint.bit_shares(table))[self.chosen()]

    def random(self, mine: Any) -> Any:
        """The same of packets whose every bit is thrown, in headers of full length."""
        table = np.full(mine.shape, 1 / (mine.shape[1] - 1))
        table[:, -1] = 0
        return table


READINGS = tuple(
    Reading(regions, unit, volatile)
    for regions in (("tcp",), tuple(nprint.REGION))
    for unit in ("byte", "bit")
    for volatile in (True, False)
)


def compared(
    shares: Callable[[Sequence[Session]], Any],
    real: Sequence[Session],
    other: Sequence[Session] | None,
    random: Callable[[Any], Any] | None = None,
    together: bool = False,
) -> Any:
    """Mean over labels of `distances`; `together`: of all sessions as one. `other` None: to `random` of what the real
    ones are. Return [4], or None."""
    groups = (lambda some: {"": some}) if together else by_label
    theirs = groups(other) if other else {}
    found = []
    for label, group in groups(real).items():
        mine = shares(group)
        if random is not None:
            found.append(distances(mine, random(mine)))
        elif label in theirs:
            found.append(distances(mine, shares(theirs[label])))
    return np.mean(found, axis=0) if found else None


# ---- flow statistics

FLOW_STATISTICS = ("packets up", "packets down", "bytes up", "bytes down", "seconds", "mean gap")


def flow_statistics(group: Sequence[Session]) -> Any:
    """float [flows, statistics]: what NetShare-like generators make: a line for each flow."""
    lines = []
    for session in group:
        n = int(session.flow.max()) + 1 if session.packets else 0
        if not n:
            continue
        up, down = session.up, ~session.up
        first, last = np.full(n, np.iinfo(np.int64).max), np.zeros(n, np.int64)
        np.minimum.at(first, session.flow, session.times_ns)
        np.maximum.at(last, session.flow, session.times_ns)
        seconds = np.maximum(last - first, 0) / 1e9
        count = np.bincount(session.flow, minlength=n)
        lines.append(np.stack((
            np.bincount(session.flow[up], minlength=n), np.bincount(session.flow[down], minlength=n),
            np.bincount(session.flow[up], session.sizes[up], n),
            np.bincount(session.flow[down], session.sizes[down], n), seconds, seconds / np.maximum(count - 1, 1),
        ), axis=1))  # fmt: skip
    return np.concatenate(lines) if lines else np.zeros((0, len(FLOW_STATISTICS)))


class FlowReading:
    """Histograms of flow statistics on bins between the least and the greatest real value, and one for beyond."""

    name = "table 2: flow statistics"

    def __init__(self, real: Sequence[Session]) -> None:
        self._ranges = {
            label: [(float(v.min()), float(v.max())) for v in flow_statistics(group).T]
            for label, group in by_label(real).items()
        }

    def shares(self, group: Sequence[Session]) -> Any:
        lines = []
        for values, (low, high) in zip(flow_statistics(group).T, self._ranges[group[0].label]):
            inside = (values >= low) & (values <= high)
            histogram = np.histogram(values[inside], FLOW_BINS, (low, max(high, low + 1e-9)))[0]
            line = np.append(histogram, np.count_nonzero(~inside)).astype(float)
            lines.append(line / max(line.sum(), 1))
        return np.array(lines)

    def random(self, mine: Any) -> Any:
        """Statistics thrown uniformly between the least and the greatest real value."""
        table = np.full(mine.shape, 1 / FLOW_BINS)
        table[:, -1] = 0
        return table
