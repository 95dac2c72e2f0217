"""What a classifier makes of generated sessions: can it learn the labels from them, can it tell them from real ones,
and are they copies?

In: sessions. Out: accuracies, an AUC, shares. The features of a session are statistics of its first packets: sizes,
gaps, directions, flags, transports, flows, coarse port classes; no address, no port, no sequence number, no TTL.

- **label test**: a random forest trained on synthetic sessions names real held-out ones; beside it the one trained on
  real sessions, the most there is to reach.
- **discriminator**: gradient boosting that tells real from synthetic, AUC over five folds, ideal 0.5; beside it real
  from real. Both sets give the same number of sessions of each label.
- **copies**: the share of sessions whose first 50 packets have the sizes and directions of a training session's; beside
  it the share of held-out real ones, since short and regular sessions repeat themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netssmd.errors import UsageError
from netssmd.learn.evaluate.bootstrap import Interval, of_score
from netssmd.learn.evaluate.sessions import PORT_CLASSES, TRANSPORTS, Session, by_label
from netssmd.packet.wire import ACK, FIN, PSH, RST, SYN

TEN_LABELS = (
    "video-dash", "call-webrtc", "web", "social-h2", "dns", "ssh", "iot-mqtt", "download", "voip-sip", "attack-synscan",
)  # fmt: skip
COPY_PREFIX = 50
FOLDS = 5
_QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)


def _statistics(values: Any) -> list[float]:
    if not len(values):
        return [-1.0] * (len(_QUANTILES) + 2)
    return [*np.quantile(values, _QUANTILES), float(values.mean()), float(values.std())]


def _gap_logs(session: Session, chosen: Any) -> Any:
    gaps = np.diff(session.times_ns[: len(chosen)][chosen])
    return np.log10(np.maximum(gaps, 1000))  # a microsecond is the finest that captures tell


def features(session: Session, first: int) -> list[float]:
    """Statistics of the first packets of a session."""
    n = min(session.packets, first)
    sizes, up = session.sizes[:n].astype(float), session.up[:n]
    flags, transport = session.flags[:n], session.transport[:n]
    tcp = max(int(np.count_nonzero(transport == 0)), 1)
    seconds = float(session.times_ns[n - 1] - session.times_ns[0]) / 1e9
    row = [float(n), seconds, n / max(seconds, 1e-3)]
    everyone = np.ones(n, dtype=bool)
    for chosen in (everyone, up, ~up):
        row += _statistics(sizes[chosen])
        row += _statistics(_gap_logs(session, chosen))
    row += [float(up.mean()), float(sizes[up].sum() / sizes.sum()), float(np.mean(up[1:] != up[:-1])) if n > 1 else 0.0]
    row += [float(np.count_nonzero(flags & flag)) / tcp for flag in (SYN, FIN, RST, PSH, ACK)]
    row += [float(np.mean(transport == i)) for i in range(len(TRANSPORTS))]
    row += [float(np.mean(session.port_class[:n] == i)) for i in range(len(PORT_CLASSES))]
    per_flow = np.bincount(session.flow[:n])
    per_flow = per_flow[per_flow > 0]
    switches = float(np.mean(session.flow[1:n] != session.flow[: n - 1])) if n > 1 else 0.0
    row += [float(len(per_flow)), len(per_flow) / n, float(per_flow.max() / n), float(np.median(per_flow)), switches]
    return row


@dataclass(frozen=True, slots=True)
class Samples:
    """Sessions as a classifier sees them: label [n] and features [n, F]."""

    labels: Any
    rows: Any

    def of(self, labels: Sequence[str]) -> Samples:
        return self.at(np.isin(self.labels, labels))

    def at(self, chosen: Any) -> Samples:
        return Samples(self.labels[chosen], self.rows[chosen])


def samples(sessions: Sequence[Session], first: int) -> Samples:
    rows = np.array([features(session, first) for session in sessions], dtype=float)
    return Samples(np.array([session.label for session in sessions]), np.nan_to_num(rows))


def forest(trees: int, seed: int) -> Any:
    """A random forest at scikit-learn's defaults. Raises UsageError that names the extra if it is missing."""
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError:
        raise UsageError("scikit-learn is not installed; pip install 'netssmd[evaluate]'") from None
    return RandomForestClassifier(n_estimators=trees, random_state=seed, n_jobs=1)


@dataclass(frozen=True, slots=True)
class LabelTest:
    """A forest trained on one set of sessions and tested on another."""

    labels: tuple[str, ...]
    trained: int
    tested: int
    accuracy: float
    recall: dict[str, float]
    mistaken: dict[str, str]
    """Label -> the label that its sessions were most often taken for, if not itself."""
    interval: Interval | None = None

    @property
    def chance(self) -> float:
        return 1 / len(self.labels)


def label_test(
    train: Samples, test: Samples, labels: Sequence[str], trees: int = 300, seed: int = 0
) -> LabelTest | None:
    """Train and test on the labels that both sets have; None if those are fewer than two."""
    used = tuple(label for label in labels if label in train.labels and label in test.labels)
    if len(used) < 2:
        return None
    train, test = train.of(used), test.of(used)
    truth = test.labels
    named = forest(trees, seed).fit(train.rows, train.labels).predict(test.rows)
    recall = {label: float(np.mean(named[truth == label] == label)) for label in used}
    mistaken = {}
    for label in used:
        names, counts = np.unique(named[truth == label], return_counts=True)
        if (most := str(names[counts.argmax()])) != label:
            mistaken[label] = most
    right = named == truth
    found = of_score(lambda chosen: float(right[chosen].mean()), len(right), seed)
    return LabelTest(used, len(train.labels), len(truth), float(right.mean()), recall, mistaken, found)


@dataclass(frozen=True, slots=True)
class Discriminator:
    """How well two sets are told apart, `each` sessions of either: AUC 0.5 is not at all."""

    each: int
    auc: float
    interval: Interval | None


def discriminate(real: Samples, other: Samples, seed: int = 0) -> Discriminator | None:
    """AUC over folds, on equally many sessions of each label; None with fewer than ten of each set."""
    random = np.random.default_rng(seed)
    pairs = []
    for label in np.unique(real.labels):
        groups = [random.permutation(np.flatnonzero(some.labels == label)) for some in (real, other)]
        n = min(map(len, groups))
        pairs.append([group[:n] for group in groups])
    a, b = (some.rows[np.concatenate(chosen)] for some, chosen in zip((real, other), zip(*pairs)))
    if len(a) < 2 * FOLDS:
        return None
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    truth = np.array([0] * len(a) + [1] * len(b))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    model = GradientBoostingClassifier(random_state=seed)
    chances = cross_val_predict(model, np.concatenate((a, b)), truth, cv=folds, method="predict_proba")[:, 1]

    def auc(chosen: Any) -> float | None:
        both = 0 < truth[chosen].sum() < len(chosen)
        return float(roc_auc_score(truth[chosen], chances[chosen])) if both else None

    return Discriminator(len(a), float(roc_auc_score(truth, chances)), of_score(auc, len(truth), seed, 200))


def copied(sessions: Sequence[Session], train: Sequence[Session], prefix: int = COPY_PREFIX) -> dict[str, float]:
    """By label: the share of sessions that begin (sizes and directions of `prefix` packets) like one of `train`."""
    known = {_opening(session, prefix) for session in train}
    return {
        label: sum(_opening(session, prefix) in known for session in group) / len(group)
        for label, group in by_label(sessions).items()
    }


def _opening(session: Session, prefix: int) -> bytes:
    signed = np.where(session.up[:prefix], session.sizes[:prefix], -session.sizes[:prefix])
    return bytes(signed.astype(np.int32).tobytes())
