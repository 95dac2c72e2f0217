"""What sessions there shall be: a traffic mix, a seed and a session number in, the session's label, conditions and seed
out.

`TrafficMix.session(n)` is a pure function, so the same daemon seed gives the same sessions, whenever and wherever they
run. `Arrivals` says when the next one may start: either so that a number of them is always live (`concurrency`), or as
a Poisson process (`mean_gap_ns`) with a cap on how many live at once.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, NamedTuple

from netssmd.codec.context import NO_EXTENT, UNKNOWN
from netssmd.codec.extents import FEW
from netssmd.codec.vocab import FLOWS_LEFT, MILLISECOND, PACKETS, PACKETS_LEFT, TIME_LEFT, LogBins
from netssmd.engine.sampling import Stream, derive
from netssmd.engine.session import NO_LIMITS, Limits, SessionInfo
from netssmd.model.conduct import Extent

SECOND = 1_000_000_000

# The conditions of the lab captures: name -> (from, to, whether drawn on a logarithmic scale).
CONDITIONS: dict[str, tuple[float, float, bool]] = {
    "rtt_ms": (5.0, 120.0, True),
    "rate_mbit": (18.0, 1000.0, True),
    "loss_pct": (0.0, 2.0, False),
}


@dataclass(frozen=True, slots=True)
class TrafficMix:
    """Labels with weights, conditions with ranges (low == high: fixed; name absent: not told to the model), limits of a
    session."""

    labels: Mapping[str, float]
    conditions: Mapping[str, tuple[float, float]]
    seed: int
    limits: Limits = NO_LIMITS
    _names: tuple[str, ...] = field(init=False)
    _cumulative: list[float] = field(init=False)

    def __post_init__(self) -> None:
        names = tuple(sorted(name for name, weight in self.labels.items() if weight > 0))
        object.__setattr__(self, "_names", names)
        object.__setattr__(self, "_cumulative", list(accumulate(self.labels[name] for name in names)))

    @property
    def names(self) -> tuple[str, ...]:
        """Labels that can be drawn."""
        return self._names

    def session(self, number: int, start_ns: int) -> SessionInfo:
        """Session `number` of this mix: the same whenever it starts."""
        seed = derive(self.seed, "session", number)
        stream = Stream(derive(seed, "mix"))
        label = self._names[stream.choice(self._cumulative)]
        return SessionInfo(number, label, draw_conditions(self.conditions, stream), seed, start_ns)


def draw_conditions(ranges: Mapping[str, tuple[float, float]], stream: Stream) -> dict[str, float]:
    """One value for each range, by name in a fixed order."""
    drawn: dict[str, float] = {}
    for name in sorted(ranges):
        low, high = ranges[name]
        if low == high:
            drawn[name] = low
        elif low > 0 and (name == PACKETS or CONDITIONS.get(name, (0.0, 0.0, False))[2]):
            drawn[name] = round(stream.log_between(low, high), 3)
        else:
            drawn[name] = round(stream.between(low, high), 3)
    return drawn


NEAREST: Final = 5  # sessions of a label, to be like in the number of flows


class Measure(NamedTuple):
    """How much a session is to be. extent: packets, ns, flows, for `Context.extent`. owed: packets of its flows by
    service, for the decoder."""

    extent: tuple[int, int, int]
    owed: dict[int, list[int]]


def draw_extent(
    info: SessionInfo, extents: Mapping[str, Sequence[Extent]], prompted: tuple[int, int] = (0, 0), shortest: int = 1
) -> Measure:
    """As many packets as were ordered (0: not told), or else like one of its label's sessions in `extents` that is more
    than the packets and flows of its prompt. Each number is drawn anew within the bin that the model sees, so that none
    is told exactly; its flows are to that session's services, and share the packets as they did. `shortest`: packets
    that the label's TCP flows have at least."""
    of_label, ordered = extents.get(info.label, ()), info.conditions.get(PACKETS)
    stream = Stream(derive(info.seed, "extent"))
    if ordered is not None:
        return _ordered(round(ordered), shared_out(of_label), prompted[1], shortest, stream)
    known = [
        one
        for one in of_label
        if (one.packets == UNKNOWN or one.packets > prompted[0]) and (one.flows == UNKNOWN or one.flows > prompted[1])
    ]
    if not known:
        return Measure(NO_EXTENT, {})
    like = known[stream.below(len(known))]
    packets = _nearby(PACKETS_LEFT, like.packets, stream)
    milliseconds = _nearby(TIME_LEFT, like.milliseconds, stream)
    flows = _nearby(FLOWS_LEFT, like.flows, stream)
    duration_ns = milliseconds * MILLISECOND if milliseconds != UNKNOWN else UNKNOWN
    flows = flows if packets == UNKNOWN else min(flows, packets)
    return Measure((packets, duration_ns, flows), shares(like.services, packets, flows))


def _ordered(packets: int, known: list[Extent], prompted_flows: int, shortest: int, stream: Stream) -> Measure:
    """Among how many flows a session of so many packets shares them: like a session of about that length, more or fewer
    as the label's have with their length. `UNKNOWN` where no session tells."""
    if packets < 1:
        return Measure(NO_EXTENT, {})
    if not known:
        return Measure((packets, UNKNOWN, UNKNOWN), {})
    near = sorted(known, key=lambda one: abs(math.log(one.packets / packets)))[:NEAREST]
    like = near[stream.below(len(near))]
    grown = _nearby(FLOWS_LEFT, like.flows, stream) * (packets / like.packets) ** _growth(known)
    flows = max(1, min(round(grown), packets // max(1, shortest)), prompted_flows)
    return Measure((packets, UNKNOWN, flows), shares(like.services, packets, flows))


def _growth(known: list[Extent]) -> float:
    """Flows go with the packets of a session to this power, 0 to 1, by least squares."""
    points = [(math.log(one.packets), math.log(max(1, one.flows))) for one in known]
    x, y = (sum(point[axis] for point in points) / len(points) for axis in (0, 1))
    spread = sum((point[0] - x) ** 2 for point in points)
    return min(1.0, max(0.0, sum((p[0] - x) * (p[1] - y) for p in points) / spread)) if spread > 0.0 else 0.0


def shares(services: Mapping[int, Sequence[tuple[int, int]]], packets: int, flows: int) -> dict[int, list[int]]:
    """Packets of flows by service for a session of so many packets and flows that is like one with `services`. Flows of
    a handful of packets stay what they are, the others share the rest."""
    totals = {service: sum(count for _, count in known) for service, known in services.items()}
    owed: dict[int, list[int]] = {}
    for service, count in in_proportion(totals, flows).items():
        known, total = services[service], totals[service]
        ends = list(accumulate(flows for _, flows in known))
        owed[service] = [known[bisect_right(ends, (2 * i + 1) * total // (2 * count))][0] for i in range(count)]
    few = sum(length for lengths in owed.values() for length in lengths if length <= FEW)
    rest = sum(length for lengths in owed.values() for length in lengths if length > FEW)
    if packets <= few or rest == 0:
        return owed
    scale = (packets - few) / rest
    for lengths in owed.values():
        lengths[:] = [max(1, round(length * scale)) if length > FEW else length for length in lengths]
    return owed


def in_proportion(services: Mapping[int, int], flows: int) -> dict[int, int]:
    """So many flows in all to the same services, each with one at least as far as they go."""
    total, places = sum(services.values()), max(0, flows)
    often = sorted(services, key=lambda service: (-services[service], service))[:places]
    owed = {service: max(1, services[service] * flows // total) for service in often}
    while sum(owed.values()) > places:
        owed[max(often, key=lambda service: owed[service])] -= 1
    if often:
        owed[often[0]] += places - sum(owed.values())
    return owed


def shared_out(extents: Sequence[Extent]) -> list[Extent]:
    """Those that tell how many packets a session had, and how many flows."""
    return [one for one in extents if one.packets > 0 and one.flows != UNKNOWN]


def _nearby(bins: LogBins, number: int, stream: Stream) -> int:
    """A number of the same bin."""
    if number == UNKNOWN:
        return UNKNOWN
    member = bins.find(number)
    return bins.edges[member] + stream.below(bins.edges[member + 1] - bins.edges[member])


class Arrivals:
    """When sessions start. `take` is asked for one start at a time; `next_ns` is the earliest time it may name (None:
    not before one ends).

    concurrency: most sessions live at once; with mean_gap_ns == 0 also the number to be kept live, the first ones
        starting spread evenly over `ramp_ns`.
    mean_gap_ns: of the Poisson process; an arrival that meets the cap starts when another ends, counted in `deferred`.
    """

    __slots__ = (
        "_at_ns", "_full", "_ramp_gap_ns", "_ramp_ns", "_ramp_until", "_stream", "concurrency", "deferred",
        "mean_gap_ns", "started", "total",
    )  # fmt: skip

    def __init__(
        self, concurrency: int, mean_gap_ns: int, seed: int, start_ns: int, ramp_ns: int = 0, total: int = 0
    ) -> None:
        self.concurrency = concurrency
        self.mean_gap_ns = mean_gap_ns
        self.total = total  # sessions to start in all; 0 = for ever
        self.started = 0
        self.deferred = 0
        self._stream = Stream(derive(seed, "arrivals"))
        self._at_ns = start_ns
        self._ramp_ns = ramp_ns
        self._ramp_gap_ns = ramp_ns // concurrency if mean_gap_ns == 0 and concurrency else 0
        self._ramp_until = concurrency  # sessions started when the ramp is over
        self._full = False

    def retarget(self, concurrency: int, mean_gap_ns: int, total: int, now_ns: int) -> None:
        """From here on other numbers. Places that are new are filled over the ramp's time; a new process begins now."""
        added = concurrency - self.concurrency
        if mean_gap_ns == 0 and added > 0:
            self._ramp_until = self.started + added
            self._ramp_gap_ns = self._ramp_ns // added
            self._at_ns = now_ns
        elif mean_gap_ns != self.mean_gap_ns:
            self._at_ns = now_ns
            if mean_gap_ns:
                self._at_ns += round(self._stream.exponential(mean_gap_ns))
        self.concurrency = concurrency
        self.mean_gap_ns = mean_gap_ns
        self.total = total
        self._full = False

    @property
    def exhausted(self) -> bool:
        """No session will start any more."""
        return self.total > 0 and self.started >= self.total

    def next_ns(self, live: int) -> int | None:
        """Earliest time of the next start while `live` sessions run."""
        if self.exhausted or live >= self.concurrency:
            return None
        return self._at_ns

    def take(self, now_ns: int, live: int) -> bool:
        """Whether a session starts now; if so it is counted and the next one planned."""
        if self.exhausted or self._at_ns > now_ns:
            return False
        if live >= self.concurrency:
            if self.mean_gap_ns and not self._full:
                self.deferred += 1
            self._full = True
            return False
        self._full = False
        self.started += 1
        if self.mean_gap_ns:
            # An arrival that was held back by the cap, or by a clock that stood still, does not bring a burst after it.
            self._at_ns = max(self._at_ns, now_ns - SECOND) + round(self._stream.exponential(self.mean_gap_ns))
        elif self.started < self._ramp_until:
            self._at_ns += self._ramp_gap_ns
        return True


class RateCap:
    """A cap on packets a second over the sessions of one engine: the generic cell rate algorithm (ITU-T I.371) in
    session time.

    A packet above the rate is moved later, and its session's clock with it, as a slower link would do. `per_second` 0 =
    no cap.
    """

    __slots__ = ("_burst_ns", "at_ns", "gap_ns")

    def __init__(self, per_second: float, burst_ns: int = SECOND // 10) -> None:
        self.gap_ns = round(SECOND / per_second) if per_second else 0
        self._burst_ns = burst_ns
        self.at_ns = 0

    @property
    def not_before_ns(self) -> int:
        """Earliest time of the next packet."""
        return self.at_ns - self._burst_ns

    def sent(self, ts_ns: int) -> None:
        """A packet was given the time `ts_ns`."""
        if self.gap_ns:
            self.at_ns = max(self.at_ns, ts_ns) + self.gap_ns


def default_mix(labels: Sequence[str], seed: int) -> TrafficMix:
    """Every label alike, conditions over the ranges of the lab captures."""
    return TrafficMix(
        dict.fromkeys(labels, 1.0), {name: (low, high) for name, (low, high, _) in CONDITIONS.items()}, seed
    )
