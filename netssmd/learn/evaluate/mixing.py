"""The paper's Figures 2, 5 and 6: classifiers trained on mixtures of real and synthetic sessions.

In: real sessions to train on, real ones held out, synthetic ones. For each share of synthetic sessions from 0 to 100 %,
that share of the real training sessions of each label is replaced by synthetic ones; a random forest, a decision tree
and a support vector machine (scikit-learn's defaults) are trained on the nPrint bits of the first packets and tested on
real sessions held out and on synthetic ones held out. Whole captures are held out, never packets of one.

Variants: with all columns; without the first packet, which the paper's generator gets from a real trace; and without
addresses, ports, sequence numbers, checksums and TTL, by which a classifier could tell captures rather than traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netssmd.learn.evaluate import nprint
from netssmd.learn.evaluate.sessions import Session, by_label

SHARES = tuple(range(0, 101, 10))  # percent
PACKETS = 8  # of a session, whose bits a classifier sees
LEAST = 4  # sessions of a label in each set, or the label is left out
MODELS = ("random forest", "decision tree", "SVM")
VARIANTS: dict[str, tuple[int, bool]] = {  # name -> (first packet, volatile columns too)
    "all columns": (0, True),
    "without the first packet": (1, True),
    "without volatile columns": (0, False),
}


def classifier(name: str, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    if name == "SVM":
        return SVC(random_state=seed)
    return (RandomForestClassifier if name == "random forest" else DecisionTreeClassifier)(random_state=seed)


def features(sessions: Sequence[Session], first: int, volatile: bool) -> Any:
    """int8 [n, PACKETS * columns]: nPrint bits of packets first, first + 1 ...; -1 throughout where there is none."""
    chosen = nprint.columns(volatile=volatile)
    table = np.full((len(sessions), PACKETS, len(chosen)), -1, np.int8)
    for row, session in zip(table, sessions):
        bits = session.opening.bits()[first : first + PACKETS, chosen]
        row[: len(bits)] = bits
    return table.reshape(len(sessions), -1)


@dataclass(frozen=True, slots=True)
class Parts:
    """Indices of one label's sessions in three sets: real to train on, synthetic to train on, synthetic to test on."""

    real: Any
    synthetic: Any
    held: Any


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracies by share of synthetic sessions. `tested`: how many sessions; `chance`: of naming them at random."""

    level: str
    variant: str
    model: str
    test: str
    tested: int
    chance: float
    accuracies: tuple[float, ...]


def split(train: Sequence[Session], synthetic: Sequence[Session], seed: int) -> dict[str, Parts]:
    """By label: who is in which part. Half of the synthetic sessions are held out."""
    random = np.random.default_rng(seed)
    places = []
    for some in (train, synthetic):
        at: dict[str, list[int]] = {}
        for i, session in enumerate(some):
            at.setdefault(session.label, []).append(i)
        places.append({label: random.permutation(indices) for label, indices in at.items()})
    real, made = places
    return {
        label: Parts(real[label], made[label][len(made[label]) // 2 :], made[label][: len(made[label]) // 2])
        for label in sorted(real)
        if label in made and min(len(real[label]), len(made[label]) // 2) >= LEAST
    }


def mixture(parts: Parts, percent: int) -> tuple[Any, Any]:
    """Indices of real and synthetic sessions: as many in all as there are real ones; synthetic ones are taken again
    when there are too few."""
    total = len(parts.real)
    made = round(total * percent / 100)
    return parts.real[made:], np.resize(parts.synthetic, made)


def curves(
    train: Sequence[Session], held: Sequence[Session], synthetic: Sequence[Session], seed: int = 0,
    advance: Callable[[], None] = lambda: None, models: Sequence[str] = MODELS,
) -> list[Curve]:  # fmt: skip
    """All curves. The label level names the label, the category level its category; `advance` is called once for each
    variant and level."""
    parts = split(train, synthetic, seed)
    labels = sorted(set(parts) & set(by_label(held)))
    if len(labels) < 2:
        return []
    tests = {
        "real": [session for session in held if session.label in labels],
        "synthetic": [synthetic[i] for label in labels for i in parts[label].held],
    }
    found = []
    for variant, (first, volatile) in VARIANTS.items():
        tables = {"train": features(train, first, volatile), "made": features(synthetic, first, volatile)}
        tested = {name: features(some, first, volatile) for name, some in tests.items()}
        varying = np.flatnonzero((np.ptp(tables["train"], axis=0) > 0) | (np.ptp(tables["made"], axis=0) > 0))
        tables = {name: table[:, varying] for name, table in tables.items()}
        tested = {name: table[:, varying] for name, table in tested.items()}
        for level in ("label", "category"):
            classes = {label: label if level == "label" else category(label) for label in labels}
            for model in models if variant == "all columns" else models[:1]:
                scores: dict[str, list[float]] = {name: [] for name in tests}
                for percent in SHARES:
                    chosen = {label: mixture(parts[label], percent) for label in labels}
                    rows = np.concatenate([
                        *(tables["train"][real] for real, _ in chosen.values()),
                        *(tables["made"][made] for _, made in chosen.values()),
                    ])  # fmt: skip
                    truth = np.concatenate([
                        *(np.full(len(real), classes[label]) for label, (real, _) in chosen.items()),
                        *(np.full(len(made), classes[label]) for label, (_, made) in chosen.items()),
                    ])  # fmt: skip
                    fitted = classifier(model, seed).fit(rows, truth)
                    for name, some in tests.items():
                        right = fitted.predict(tested[name]) == np.array([classes[session.label] for session in some])
                        scores[name].append(float(right.mean()))
                chance = 1 / len(set(classes.values()))
                found += [
                    Curve(level, variant, model, name, len(tests[name]), chance, tuple(scores[name])) for name in tests
                ]
            advance()
    return found


def category(label: str) -> str:
    """The kind of service that a label's name begins with: `video` of `video-dash`."""
    return label.split("-", 1)[0]
