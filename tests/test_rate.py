"""Rates of tcpreplay in virtual time: exact for months, slips counted."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest

from netssmd.output.rate import SECOND, Metronome, Rate, Retimer

MS = 1_000_000


@pytest.mark.parametrize("value", [0.1, 3, 1e4, 99_999.7])
def test_packets_a_second_add_up_to_no_error(value: float) -> None:
    metronome = Metronome(Rate.of("pps", value), 7)
    count = 100_000
    dues = [metronome.tick(60) for _ in range(count)]
    assert dues[0] == 7 and all(a < b for a, b in pairwise(dues))
    exact = Fraction(count - 1) * SECOND / Fraction(str(value))
    assert abs(dues[-1] - 7 - exact) < 1


@pytest.mark.parametrize("value", [0.5, 10, 9_999.9])
def test_bits_a_second_count_whole_frames(value: float) -> None:
    metronome = Metronome(Rate.of("mbps", value), 0)
    sizes = [60 + i * 37 % 1455 for i in range(50_000)]
    dues = [metronome.tick(size) for size in sizes]
    bits = sum(sizes[:-1]) * 8
    assert abs(bits * SECOND / dues[-1] / (value * 1e6) - 1) < 1e-6


def test_what_generation_cannot_keep_up_with_slips_and_is_counted() -> None:
    metronome = Metronome(Rate.of("pps", 1000), 0, catch_up_ns=5 * MS)
    assert [metronome.tick(60) for _ in range(3)] == [0, MS, 2 * MS]
    metronome.be_at(8 * MS)  # 5 ms behind: caught up
    assert metronome.tick(60) == 3 * MS and metronome.slipped_ns == 0
    metronome.be_at(10 * MS)  # 6 ms: not
    assert metronome.tick(60) == 10 * MS and metronome.slipped_ns == 6 * MS
    metronome.move_on(100 * MS)
    assert metronome.next_ns == 111 * MS and metronome.slipped_ns == 6 * MS


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [
        (Rate.of("pps", 4), [5, 5 + SECOND // 4, 5 + SECOND // 2]),
        (Rate.of("mbps", 0.008), [5, 5 + SECOND // 10, 5 + 3 * SECOND // 10]),
        (Rate.of("multiplier", 0.5), [5, 25, 105]),
        (Rate.of("multiplier", 4), [5, 7, 17]),
        (Rate.of("topspeed"), [5, 104, 283]),  # 124 and 348 bytes at 10 Gbit/s
    ],
)  # fmt: skip
def test_a_capture_is_retimed(rate: Rate, wanted: list[int]) -> None:
    retimer = Retimer(rate)
    assert [retimer.at(ts_ns, size) for ts_ns, size in ((5, 100), (15, 200), (55, 60))] == wanted


def test_rates_are_said_as_they_were_written() -> None:
    rates = Rate.of("pps", 0.1), Rate.of("mbps", 5), Rate.of("multiplier", 2), Rate.of("topspeed")
    assert [str(rate) for rate in rates] == ["0.1 packets/s", "5 Mbps", "2 times as fast", "topspeed"]
    assert Rate.of("pps", 0.1).value == Fraction(1, 10)
