"""Rates as tcpreplay names them: packets get new moments, whatever the model drew.

In: a stream of packets in order, each with its time and its bytes on the wire. Out: the moment of each, in integer
nanoseconds from exact fractions, so that no error adds up in months. `pps` and `mbps` (10^6 bits a second, frames
without their checksum, as tcpreplay counts) give a steady rate, `multiplier` keeps the gaps in proportion, `topspeed`
leaves none.

Live, a steady rate that generation cannot keep up with slips: the moments of all that follows move on, and `slipped_ns`
counts how far. Up to `catch_up_ns` is caught up instead, by sending faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

SECOND: Final = 1_000_000_000
LINE_BITS_PER_SECOND: Final = 10 * SECOND  # topspeed in a file: back to back on a link of 10 Gbit/s
LINE_OVERHEAD_BYTES: Final = 24  # preamble, frame check sequence and gap of IEEE 802.3

Kind = Literal["pps", "mbps", "multiplier", "topspeed"]


@dataclass(frozen=True, slots=True)
class Rate:
    """What was asked for. `value` is a number of its kind, above 0; of no meaning for topspeed."""

    kind: Kind
    value: Fraction = Fraction(1)

    @staticmethod
    def of(kind: Kind, value: float = 1) -> Rate:
        """The number as it was written: 0.1 is a tenth."""
        return Rate(kind, Fraction(str(value)))

    def __str__(self) -> str:
        units = {"pps": " packets/s", "mbps": " Mbps", "multiplier": " times as fast", "topspeed": ""}
        return self.kind if self.kind == "topspeed" else f"{float(self.value):g}{units[self.kind]}"


class Metronome:
    """The moments of a steady rate, pps or mbps.

    rate: what is asked. start_ns: the first packet's moment.
    """

    def __init__(self, rate: Rate, start_ns: int, catch_up_ns: int = 0) -> None:
        per_second = rate.value if rate.kind == "pps" else rate.value * 1_000_000
        self._by_bits = rate.kind == "mbps"
        self._num, self._den = SECOND * per_second.denominator, per_second.numerator  # nanoseconds a packet, or a bit
        self._start_ns = start_ns
        self._units = 0  # packets, or bits, so far
        self._catch_up_ns = catch_up_ns
        self.slipped_ns = 0

    @property
    def next_ns(self) -> int:
        """The next packet's moment."""
        return self._start_ns + self._units * self._num // self._den

    def tick(self, wire_bytes: int) -> int:
        """The moment of the next packet, which has so many bytes."""
        due_ns = self.next_ns
        self._units += wire_bytes * 8 if self._by_bits else 1
        return due_ns

    def be_at(self, now_ns: int) -> None:
        """It is this time: if the next moment has long gone, all moments move on."""
        late_ns = now_ns - self.next_ns
        if late_ns > self._catch_up_ns:
            self.slipped_ns += late_ns
            self._start_ns += late_ns

    def move_on(self, by_ns: int) -> None:
        """All moments are later by so much: a pause is over."""
        self._start_ns += by_ns


class Retimer:
    """New times for the packets of a capture, beginning where it begins."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._first_ns = -1
        self._metronome: Metronome | None = None
        self._line_bits = 0

    def at(self, ts_ns: int, wire_bytes: int) -> int:
        """The time of the next packet. Packets come in order."""
        if self._first_ns < 0:
            self._first_ns = ts_ns
            if self._rate.kind in ("pps", "mbps"):
                self._metronome = Metronome(self._rate, ts_ns)
        if self._metronome is not None:
            return self._metronome.tick(wire_bytes)
        if self._rate.kind == "topspeed":
            at_ns = self._first_ns + self._line_bits * SECOND // LINE_BITS_PER_SECOND
            self._line_bits += (wire_bytes + LINE_OVERHEAD_BYTES) * 8
            return at_ns
        value = self._rate.value
        return self._first_ns + (ts_ns - self._first_ns) * value.denominator // value.numerator


def actual_lines(packets: int, size: int, seconds: float) -> list[str]:
    """What came of it, as tcpreplay prints it (Mbps = 10^6 bits a second)."""
    rate = size / max(seconds, 1e-9)
    return [
        f"Actual: {packets} packets ({size} bytes) sent in {seconds:.2f} seconds",
        f"Rated: {rate:.1f} Bps, {rate * 8 / 1e6:.2f} Mbps, {packets / max(seconds, 1e-9):.2f} pps",
    ]
