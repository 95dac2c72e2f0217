"""Weights for tokens that are drawn more or less often than training says them.

In: the sessions of training and drawn ones, as tokens. Out: factors for the odds of tokens, by label and stage of the
session, and by the side that speaks in a flow to a service, for `conduct.json`.

A model that hears only itself drifts: what its sessions say adds up to other sizes and gaps than those of its label's,
though each draw is right on average where it hears real ones. `Tally` counts who says what; `Weights.adjust` brings
the counts of drawn sessions nearer to those of training, a round of drawing at a time (raking: Deming and Stephan,
1940). Sessions are few and differ, so a ratio counts as far as it is beyond what their differences make of it (the
positive part of James and Stein's estimator, by the delta method's variance of a ratio of sums over sessions).
"""

from __future__ import annotations

import threading
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from netssmd.codec import vocab as v
from netssmd.codec.vocab import FLOW_SERVICE, Vocabulary
from netssmd.learn.conduct import FLOWS, labelled, speakers
from netssmd.learn.dataset import Shard

FIELDS: Final = (
    v.WHO, v.TCP_SHAPE, v.UDP_SHAPE, v.ICMP_SHAPE, v.OPAQUE_SHAPE, v.ARP_SHAPE, v.STACK, v.LENGTH, v.WINDOW, v.KIND,
    v.IAT,
)  # fmt: skip
"""What is weighed. How many flows there are, to which service and how long is held to by other means (engine/mix.py),
though not when they are opened; between whom is not to be weighed (docs/experiments.md); the rest says of a packet
what is unusual."""
FEWEST: Final = 100  # tokens of a field, in training and drawn, for a word on it
NONE_YET: Final = 0.5  # added to counts
STEP: Final = 0.7  # of a ratio, a round
MOST: Final = 2.5  # of a weight's logarithm
LEAST: Final = 0.03  # the same: what is less is left out

Floats = npt.NDArray[np.float64]
Key = tuple[int, int]  # label, speaker (learn/conduct.py)


class _Sums:
    """Over sessions s, for each token: of c (how often it is said), n (how often its field is), c^2, cn, n^2."""

    def __init__(self, size: int) -> None:
        self.c, self.n, self.cc, self.cn, self.nn = np.zeros((5, size))

    def add(self, counts: Floats, fields: npt.NDArray[np.int_]) -> None:
        told = np.bincount(fields, counts)[fields]
        self.c += counts
        self.n += told
        self.cc += counts * counts
        self.cn += counts * told
        self.nn += told * told

    def share(self) -> Floats:
        """[size], of each token in its field."""
        share: Floats = (self.c + NONE_YET) / (self.n + NONE_YET)
        return share

    def variance(self) -> Floats:
        """[size], of the share's logarithm."""
        share = self.c / np.maximum(self.n, 1)
        between = np.maximum(self.cc - 2 * share * self.cn + share * share * self.nn, 0) / (self.c + NONE_YET) ** 2
        variance: Floats = between + 1 / (self.c + NONE_YET)
        return variance


class Tally:
    """How often each token is said, by label and speaker. `hear` may be called by several threads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.fields = np.zeros(vocabulary.size, np.int_)  # [size], the field of each token
        for number, field in enumerate(vocabulary.fields):
            self.fields[field.lo : field.lo + field.size] = number
        self.weighed = np.isin(self.fields, FIELDS)
        self.weighed[vocabulary.end] = False  # comes when all packets are had
        self.sums: dict[Key, _Sums] = {}
        self._lock = threading.Lock()

    def hear(self, label: int, tokens: npt.NDArray[Any], services: npt.NDArray[Any]) -> None:
        """A session. Arguments: tokens [n]; services [n], member of the feature `service` with which each is drawn."""
        spoken = speakers(tokens, services, self.vocabulary)
        with self._lock:
            for speaker in np.unique(spoken):
                counts = np.bincount(tokens[spoken == speaker], minlength=self.vocabulary.size) * self.weighed
                sums = self.sums.setdefault((label, int(speaker)), _Sums(self.vocabulary.size))
                sums.add(counts.astype(np.float64), self.fields)

    def distances(self, other: Tally) -> dict[str, float]:
        """Total variation of what is said, by the field's name: the mean over who speaks, by how often."""
        found: dict[str, float] = {}
        for number in FIELDS:
            at = self.fields == number
            parts = []
            for key in self.sums.keys() & other.sums.keys():
                mine, theirs = self.sums[key].c[at], other.sums[key].c[at]
                if min(mine.sum(), theirs.sum()) >= FEWEST:
                    parts.append((mine.sum(), np.abs(mine / mine.sum() - theirs / theirs.sum()).sum() / 2))
            if parts:
                weights, values = np.array(parts).T
                found[self.vocabulary.fields[number].name] = float(np.average(values, weights=weights))
        return found


def tally(shard: Shard, vocabulary: Vocabulary) -> Tally:
    """Of the sessions of a split whose label is known."""
    heard = Tally(vocabulary)
    for record, tokens, (services,) in labelled(shard, vocabulary, FLOW_SERVICE):
        heard.hear(int(record["label"]), tokens, services)
    return heard


class Weights:
    """Their logarithms [size], by label and speaker; zeros at first."""

    def __init__(self) -> None:
        self.logs: dict[Key, Floats] = {}

    def adjust(self, training: Tally, drawn: Tally) -> None:
        """Take a step from what was drawn with these weights towards training."""
        for key in training.sums.keys() & drawn.sums.keys():
            real, made = training.sums[key], drawn.sums[key]
            known = (real.n >= FEWEST) & (made.n >= FEWEST) & (real.c + made.c > 0)
            ratio = np.log(real.share() / made.share())
            chance = real.variance() + made.variance()
            step = STEP * ratio * np.maximum(0, 1 - chance / np.maximum(ratio * ratio, 1e-12))
            before = self.logs.get(key, np.zeros(len(step)))
            self.logs[key] = np.where(known, np.clip(before + step, -MOST, MOST), before)

    def document(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """The keys `weights` and `flow_weights` of conduct.json."""
        weights: dict[str, list[Any]] = {}
        flows: dict[str, dict[str, list[Any]]] = {}
        names = vocabulary.service_names()
        for (label, speaker), logs in sorted(self.logs.items()):
            told = [[int(t), float(f"{np.exp(logs[t]):.3g}")] for t in np.flatnonzero(np.abs(logs) > LEAST)]
            if not told:
                continue
            if speaker < FLOWS:
                weights.setdefault(vocabulary.labels[label], [[] for _ in range(FLOWS)])[speaker] = told
                continue
            service, side = divmod(speaker - FLOWS, 2)
            flows.setdefault(vocabulary.labels[label], {}).setdefault(names[service], [[], []])[side] = told
        return {"weights": weights, "flow_weights": flows}
