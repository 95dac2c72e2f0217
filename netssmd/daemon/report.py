"""What a run came to: its totals, and the lines that close it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from netssmd.codec.bytes import malformed_text
from netssmd.engine.guide import Guide
from netssmd.output.rate import actual_lines

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to."""

    packets: int
    bytes: int
    seconds: float
    files: int
    dropped: int
    sessions: int
    taps: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # frames dropped, by device and reason
    malformed: dict[str, int] = field(default_factory=dict)
    deficit_ns: int = 0  # how far session clocks were moved, summed
    slipped_ns: int = 0  # how far the whole stream was
    late_dropped: int = 0
    guide: Guide | None = None

    def lines(self) -> list[str]:
        """The closing lines, in tcpreplay's style (Mbps = 10^6 bits a second)."""
        lines = [*actual_lines(self.packets, self.bytes, self.seconds), *self._deficits()]
        if self.guide is not None:
            lines.append(self.guide.line(self.packets))
        if self.malformed:
            lines.append(f"Malformed: {malformed_text(self.malformed)}")
        return lines

    def _deficits(self) -> list[str]:
        """What generation or this machine was too slow for."""
        parts = []
        if self.deficit_ns > SECOND // 10:
            parts.append(f"sessions moved on by {self.deficit_ns / 1e9:.1f} s in sum")
        if self.slipped_ns:
            parts.append(f"the stream by {self.slipped_ns / 1e9:.2f} s")
        if self.late_dropped:
            parts.append(f"{self.late_dropped} packets dropped as too late")
        return [f"Deficit: {', '.join(parts)}"] if parts else []
