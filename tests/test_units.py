"""Quantities with units, as written on the command line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netssmd.errors import UsageError
from netssmd.units import DURATION_UNITS, parse_duration_ns, parse_rate_bits_per_second, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10MB", 10_000_000),
        ("64KiB", 65_536),
        ("1500", 1500),
        ("1.5 gb", 1_500_000_000),
        ("0", 0),
        (".5kb", 500),
        ("2m", 2_000_000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "rate"), [("5mbit", 5_000_000), ("200kbit/s", 200_000), ("1.5Gbit", 1_500_000_000), ("9bit", 9)]
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate_bits_per_second(text) == rate


@pytest.mark.parametrize(
    ("text", "duration_ns"),
    [
        ("2s", 2 * 10**9),
        ("150ms", 150 * 10**6),
        ("1h", 3600 * 10**9),
        ("0.1us", 100),
        ("3min", 180 * 10**9),
        ("1d", 86400 * 10**9),
    ],
)
def test_durations(text: str, duration_ns: int) -> None:
    assert parse_duration_ns(text) == duration_ns


@pytest.mark.parametrize("text", ["", "s", "2", "-1s", "1e3s", "2 fortnights", "1s2", "1,5s", "inf", "٣s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_duration_ns(text)
    assert str(caught.value) == f"{text!r} is not a duration: write it like 2s, 150ms or 1h"


@pytest.mark.parametrize("text", ["5", "5mb", "5mbps"])
def test_a_rate_needs_an_unambiguous_unit(text: str) -> None:
    with pytest.raises(UsageError, match="is not a rate"):
        parse_rate_bits_per_second(text)


@given(st.integers(0, 10**18), st.sampled_from(sorted(DURATION_UNITS)))
def test_whole_numbers_are_exact(number: int, unit: str) -> None:
    assert parse_duration_ns(f"{number}{unit}") == number * DURATION_UNITS[unit]
