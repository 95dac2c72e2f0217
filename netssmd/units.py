"""Quantities as people write them, to integers: `10MB`, `5mbit`, `2s`.

In: text from the command line or a config file. Out: bytes, bits per second, nanoseconds. One table a quantity; a
number may have a fraction, a space may stand before the unit, case does not matter. Sizes follow IEC 80000-13 (`kB`
is 1000, `KiB` 1024), rates are written as `tc` writes them (`kbit`, `mbit`, bytes with `bps` as in `kbps` are not
taken: they are read both ways). Anything else raises UsageError with what was found and what would be right.
"""

import re
from fractions import Fraction
from typing import Final

from netssmd.errors import UsageError

SIZE_UNITS: Final = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    "k": 10**3, "m": 10**6, "g": 10**9,
}  # fmt: skip

RATE_UNITS: Final = {
    "bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9,
    "bit/s": 1, "kbit/s": 10**3, "mbit/s": 10**6, "gbit/s": 10**9,
}  # fmt: skip

DURATION_UNITS: Final = {
    "ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9,
    "min": 60 * 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9,
}  # fmt: skip

_MOST_CHARACTERS: Final = 64
_QUANTITY: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zµ/]*)\s*", re.IGNORECASE)


def parse_size_bytes(text: str) -> int:
    """`10MB` -> 10_000_000, `64KiB` -> 65_536, `1500` -> 1500 (bytes)."""
    return _parse(text, SIZE_UNITS, "a size", "10MB, 64KiB or 1500")


def parse_rate_bits_per_second(text: str) -> int:
    """`5mbit` -> 5_000_000, `1.5gbit/s` -> 1_500_000_000. A unit is required."""
    return _parse(text, RATE_UNITS, "a rate", "5mbit or 200kbit/s")


def parse_duration_ns(text: str) -> int:
    """`2s` -> 2_000_000_000, `150ms`, `1h`. A unit is required, so that nobody has to guess."""
    return _parse(text, DURATION_UNITS, "a duration", "2s, 150ms or 1h")


def _parse(text: str, units: dict[str, int], what: str, examples: str) -> int:
    """The number times its unit, rounded to an integer without passing through a float."""
    match = _QUANTITY.fullmatch(text) if len(text) <= _MOST_CHARACTERS else None
    scale = units.get(match[2].lower()) if match else None
    if match is None or scale is None:
        raise UsageError(f"{text[:_MOST_CHARACTERS]!r} is not {what}: write it like {examples}")
    number = match[1].removesuffix(".") if not match[1].startswith(".") else "0" + match[1]
    return round(Fraction(number) * scale)
