"""Counts by size, written by one lane and read by the metrics thread.

In: whole numbers (nanoseconds, sessions). Out: how many were at most each bound, and their sum. Nothing is locked: a
reader may see a count without its sum, never a count twice.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """`counts[i]` values were above `bounds[i - 1]` and at most `bounds[i]`; the last count is what is above all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0

    def observe(self, value: int) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """Values counted."""
        return sum(self.counts)

    @classmethod
    def of(cls, bounds: tuple[int, ...], counts: Sequence[int], total: int) -> Histogram:
        """What another part of the daemon has counted."""
        made = cls(bounds)
        made.counts, made.sum = list(counts), total
        return made

    def __add__(self, other: Histogram) -> Histogram:
        """Both together; they have the same bounds."""
        total = Histogram(self.bounds)
        total.counts = [a + b for a, b in zip(self.counts, other.counts)]
        total.sum = self.sum + other.sum
        return total
