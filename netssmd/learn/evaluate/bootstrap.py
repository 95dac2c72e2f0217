"""How sure a score is: bootstrap intervals (Efron, 1979), by resampling whole sessions within their labels.

Packets of a session hang together, so sessions are what is drawn again. An interval is that of the 2.5th to the 97.5th
percentile over the replicates. A distance between two samples grows a little when values are drawn twice, so its
interval may lie above it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np

T = TypeVar("T")
Interval: TypeAlias = tuple[float, float]
PERCENTILES = (2.5, 97.5)


def resample(groups: dict[str, list[T]], random: np.random.Generator) -> dict[str, list[T]]:
    """As many of each group, drawn with putting back."""
    return {name: [some[i] for i in random.integers(len(some), size=len(some))] for name, some in groups.items()}


def interval(values: Sequence[float | None]) -> Interval | None:
    """Of the replicates' values; None if fewer than two are known."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    low, high = np.percentile(known, PERCENTILES)
    return float(low), float(high)


def of_score(score: Callable[[Any], float | None], n: int, seed: int = 0, replicates: int = 500) -> Interval | None:
    """Of a score of n cases: `score` is asked about arrays of indices."""
    random = np.random.default_rng(seed)
    return interval([score(random.integers(n, size=n)) for _ in range(replicates)]) if n else None
