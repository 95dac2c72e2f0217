"""Downloaded segments: sizes and counts by sender, the paper's Table 5 and Figures 3, 4 and 7 to 10.

A segment is what answers one request (Bronzino et al., "Inferring streaming video quality from encrypted traffic",
2019). Within a flow, a packet from the originator with payload (TCP: any; others: more than 100 bytes) closes the
running segment if that had downstream payload, and opens the next; the size of a segment is its downstream payload. A
sender is a responder's address.

In: sessions. Out: for each pair of a real and another session of the same label, the paper's measures; their medians
over the pairs. The random baseline is the paper's: values between the real trace's least and greatest, skewed to the
right.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netssmd.learn.evaluate.sessions import Session, by_label, packets_by_flow

UDP_REQUEST_BYTES = 100
KL_BINS = 20  # between the least and the greatest value of both, on a logarithmic scale, one added to each count
PERMUTATIONS = 99
LEAST = 2  # values of a sample, or the pair is left out
MOST = 5_000  # values of a sample that the tests look at,
MOST_ANDERSON = 200  # and the permutation test, which is slow
KINDS = ("average size, kB", "raw size, kB", "segments")
COLUMNS = ("mean delta", "median delta", "std delta", "KS", "KS p", "AD", "AD p", "KL nats", "EMD")


@dataclass(frozen=True, slots=True)
class Segments:
    """Of one session: sizes in kB of all segments, mean size and number of segments of each sender."""

    sizes: Any
    averages: Any
    counts: Any

    def of(self, kind: str) -> Any:
        return {KINDS[0]: self.averages, KINDS[1]: self.sizes, KINDS[2]: self.counts}[kind]


def segments(session: Session) -> Segments:
    sizes: list[float] = []
    senders: list[int] = []
    for chosen in packets_by_flow(session):
        payload, up = session.payload[chosen], session.up[chosen]
        least = 0 if session.transport[chosen[0]] == 0 else UDP_REQUEST_BYTES
        requests = np.flatnonzero(up & (payload > least))
        down = np.where(up, 0, payload)
        edges = np.concatenate(([0], requests, [len(chosen)]))
        totals = np.add.reduceat(np.append(down, 0), edges[:-1]) if len(chosen) else np.zeros(0)
        totals = np.where(np.diff(edges) > 0, totals, 0)
        got = totals[totals > 0] / 1000
        sizes.extend(got)
        senders.extend([int(session.servers[session.flow[chosen[0]]])] * len(got))
    all_sizes, names = np.array(sizes), np.array(senders, dtype=np.int64)
    counts = np.bincount(names)
    totals = np.bincount(names, all_sizes) if len(names) else np.zeros(0)
    there = counts > 0
    return Segments(all_sizes, totals[there] / counts[there], counts[there].astype(float))


def skewed(real: Any, random: np.random.Generator) -> Any:
    """As many values between the least and the greatest real one, most of them small."""
    return real.min() + (real.max() - real.min()) * random.beta(1, 5, len(real))


def measured(real: Any, other: Any, seed: int = 0) -> Any:
    """float [9], COLUMNS, of two samples."""
    from scipy import stats

    random = np.random.default_rng(seed)
    a, b = (random.choice(x, MOST, replace=False) if len(x) > MOST else x for x in (real, other))
    ks = stats.ks_2samp(a, b)
    return np.array([
        abs(real.mean() - other.mean()), abs(np.median(real) - np.median(other)), abs(real.std() - other.std()),
        ks.statistic, ks.pvalue, *anderson(a, b, seed), kl(a, b), stats.wasserstein_distance(a, b),
    ])  # fmt: skip


def anderson(a: Any, b: Any, seed: int) -> tuple[float, float]:
    """Anderson-Darling statistic and p-value of two samples, by permutation: scipy's default p ends at 0.25."""
    from scipy import stats

    if len(np.unique(np.concatenate((a, b)))) == 1:
        return 0.0, 1.0
    random = np.random.default_rng(seed)
    a, b = (random.choice(x, MOST_ANDERSON, replace=False) if len(x) > MOST_ANDERSON else x for x in (a, b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # releases differ in how the midrank variant is asked for; it is the default
        found = stats.anderson_ksamp([a, b], method=stats.PermutationMethod(PERMUTATIONS, rng=random))
    return float(found.statistic), float(found.pvalue)


def kl(real: Any, other: Any) -> float:
    """Nats of the real distribution from the other's on KL_BINS logarithmic bins, one added to each count."""
    both = np.maximum(np.concatenate((real, other)), 1e-3)
    edges = np.geomspace(both.min(), max(both.max(), both.min() * 1.0001), KL_BINS + 1)
    p, q = (np.histogram(np.clip(x, edges[0], edges[-1]), edges)[0] + 1.0 for x in (real, other))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def pairs(
    real: Sequence[Session], other: Sequence[Session], seed: int, per_label: int = 4
) -> list[tuple[Session, Session]]:
    """Each real session (of a label at most so many) with one of the other set, of the same label."""
    random = np.random.default_rng(seed)
    theirs = by_label(other)
    chosen = []
    for label, group in by_label(real).items():
        if label in theirs:
            mine = [group[i] for i in random.permutation(len(group))[:per_label]]
            drawn = random.permutation(len(theirs[label]))
            chosen += [(session, theirs[label][drawn[i % len(drawn)]]) for i, session in enumerate(mine)]
    return chosen


def table(real: Sequence[Session], other: Sequence[Session] | None, seed: int = 0) -> dict[str, tuple[int, Any]]:
    """By kind: how many pairs could be compared, and the medians of COLUMNS over them. `other` None: the random
    baseline. A pair is left out where
    a side has fewer than LEAST values."""
    random = np.random.default_rng(seed)
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for mine, theirs in pairs(real, other if other is not None else real, seed):
        a = segments(mine)
        b = segments(theirs) if other is not None else None
        for kind in KINDS:
            x = a.of(kind)
            if len(x) < LEAST:
                continue
            y = b.of(kind) if b is not None else skewed(x, random)
            if len(y) >= LEAST:
                found[kind].append(measured(x, y, seed))
    return {kind: (len(rows), np.median(rows, axis=0)) for kind, rows in found.items() if rows}
