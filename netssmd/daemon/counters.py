"""The counters of a daemon, summed over its lanes and sinks.

Each counter has one writer, a lane or a sink's thread; reading takes no lock, at any time once the lanes are built.
What metrics, status and the report tell is read here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from netssmd.daemon.histogram import Histogram
from netssmd.daemon.lanes import EngineCounters, EngineLane
from netssmd.daemon.output_lane import OutputLane
from netssmd.engine.guide import Guide
from netssmd.output.pacer import BOUNDS_NS
from netssmd.output.pcap_ring import PcapRing

if TYPE_CHECKING:
    from netssmd.output.tap import TapPort, TapSink

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums over the lanes, and what the sinks count."""

    lanes: Sequence[EngineLane]
    output: OutputLane
    ring: PcapRing | None
    tap: TapSink | None

    def sum(self, name: str) -> int:
        """Sum of an engine counter over the lanes."""
        return sum(int(getattr(lane.counters, name)) for lane in self.lanes)

    def total(self, name: str) -> Histogram:
        """Sum of an engine histogram over the lanes."""
        first: Histogram
        first, *others = (getattr(lane.counters, name) for lane in self.lanes)
        return sum(others, first)

    def _merged(self, of: Callable[[EngineCounters], dict[str, int]]) -> dict[str, int]:
        total: Counter[str] = Counter()
        for lane in self.lanes:
            total.update(of(lane.counters).copy())
        return dict(total)

    def active(self) -> dict[str, int]:
        """Live sessions by label."""
        return self._merged(lambda c: c.active)

    def started(self) -> dict[str, int]:
        """Sessions started by label."""
        return self._merged(lambda c: c.started)

    def ended(self) -> dict[tuple[str, str], int]:
        """Sessions ended by (label, reason)."""
        total: Counter[tuple[str, str]] = Counter()
        for lane in self.lanes:
            total.update(lane.counters.ended.copy())
        return dict(total)

    def flows(self) -> dict[str, int]:
        """TCP flows concluded, by ending."""
        return self._merged(lambda c: c.flows)

    def flow_findings(self) -> dict[str, int]:
        """TCP flows concluded that have a finding, by its name."""
        return self._merged(lambda c: c.flow_findings)

    def malformed(self) -> dict[str, int]:
        """Packets of ended sessions that were none, by reason."""
        return self._merged(lambda c: c.malformed)

    def late_dropped(self) -> int:
        """Packets not sent because they would have been later than pacing.late."""
        return self.sum("late_dropped") + self.output.counters.late_dropped

    def guide(self) -> Guide:
        """What the guide did, over all sessions."""
        total = Guide(False)
        for lane in self.lanes:
            total.add(lane.counters.guide)
        return total

    def files_written(self) -> int:
        """Captures completed."""
        return self.ring.files if self.ring else 0

    def packets_dropped(self) -> int:
        """Packets that the ring could not store."""
        return self.ring.dropped if self.ring else 0

    def by_tap(self, of: Callable[[TapPort], V]) -> dict[str, V]:
        """A figure of each TAP device, by its name."""
        return {port.name: of(port) for port in self.tap.ports} if self.tap else {}

    def taps_dropped(self) -> dict[tuple[str, str], int]:
        """Frames that TAP devices did not get, by (device, reason)."""
        drops = self.by_tap(lambda port: port.dropped)
        return {(name, reason): count for name, its in drops.items() for reason, count in its.items()}

    def taps_lateness(self) -> dict[str, Histogram]:
        """How late frames reached TAP devices."""
        return self.by_tap(lambda port: Histogram.of(BOUNDS_NS, port.pacer.lateness, port.pacer.lateness_sum_ns))
