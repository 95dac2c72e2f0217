"""Everything that is asked of generated captures, put together: folders in, sheets of a report out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from netssmd.errors import UsageError
from netssmd.learn.evaluate import classify, compare, referees, report
from netssmd.learn.evaluate.classify import Samples
from netssmd.learn.evaluate.report import Sheet
from netssmd.learn.evaluate.sessions import Session, find, load
from netssmd.learn.prepare import Source


class Steps(Protocol):
    """Progress: `begin` a stage of so many steps, and the function that it returns once for each of them."""

    def __call__(self, stage: str, steps: int) -> Callable[[], None]: ...


@dataclass(frozen=True, slots=True)
class Sets:
    """The three folders, and which part of each. `floor` None: the floor's split of `real`, if it has one."""

    real: Path
    synthetic: Path
    floor: Path | None = None
    split: str | None = "val"
    synthetic_split: str | None = None
    floor_split: str | None = "train"
    only: tuple[str, ...] = ()
    per_label: int | None = None


@dataclass(frozen=True, slots=True)
class How:
    """`labels`: those of the label test. `first`: packets of a session that classifiers see."""

    labels: tuple[str, ...] = classify.TEN_LABELS
    first: int = 300
    trees: int = 300
    seed: int = 0
    referees: bool = False
    referee_sessions: int = 3


def floor_sources(sets: Sets) -> list[Source]:
    """Captures of the floor; none if REAL has no such split and no other folder was named."""
    if sets.floor is None and sets.floor_split == sets.split:
        return []
    try:
        return find(sets.floor or sets.real, sets.floor_split, sets.only, sets.per_label)
    except UsageError:
        if sets.floor is not None:
            raise
        return []


def judge(sets: Sets, how: How, steps: Steps, complain: Callable[[str], None]) -> tuple[dict[str, Any], list[Sheet]]:
    """Measure, compare, classify, and ask the referees if wanted. Return: what was judged, and the sheets."""
    classify.forest(how.trees, how.seed)  # fails now, not after the reading, where scikit-learn is missing
    sources = {
        "real": find(sets.real, sets.split, sets.only, sets.per_label),
        "synthetic": find(sets.synthetic, sets.synthetic_split, sets.only, sets.per_label),
        "floor": floor_sources(sets),
    }
    read = {name: load(some, steps(name, len(some)), complain) for name, some in sources.items()}
    real, synthetic, floor = read["real"], read["synthetic"], read["floor"]
    common = {session.label for session in real} & {session.label for session in synthetic}
    if not common:
        raise UsageError(
            f"{sets.synthetic}: its labels ({', '.join(sorted({s.label for s in synthetic}))}) are not in {sets.real}"
        )
    if absent := sorted({session.label for session in real} - common):
        complain(f"no synthetic sessions, so not judged: {', '.join(absent)}")
    advance = steps("compare", 5)
    sheets = [report.of_table(table) for table in compare.compare(real, synthetic, floor)]
    advance()
    samples = {name: classify.samples(some, how.first) for name, some in read.items() if some}
    advance()
    sheets += label_sheets(samples, sorted(common), how)
    advance()
    sheets.append(discriminator_sheet(samples, how))
    advance()
    sheets.append(copy_sheet(real, synthetic, floor))
    advance()
    if how.referees:
        sheets.append(referee_sheet(real, synthetic, sorted(common), how, steps))
    sheets.insert(0, headline_sheet(sheets))
    about = {
        "sets": {
            name: {"sessions": len(sessions), "packets": sum(session.packets for session in sessions)}
            for name, sessions in read.items()
        },
        "folders": {name: str(value) for name, value in asdict(sets).items() if value},
        "how": asdict(how),
    }
    return about, sheets


SIDES = ("synthetic", "floor")
HEADLINES = (
    # what, the topic's data -> (synthetic, floor or real), form
    ("handshake right, TCP flows of benign labels", "TCP flows", lambda d: _of(d, "handshake"), "{:.3f}"),
    ("FIN both ways, the same", "TCP flows", lambda d: _of(d, "FIN both"), "{:.3f}"),
    ("flows with conflicting flags", "TCP flows", lambda d: _of(d, "conflicting flags"), "{:.4f}"),
    ("flows with ACK beyond sent", "TCP flows", lambda d: _of(d, "ACK beyond sent"), "{:.4f}"),
    ("retransmissions in 1,000 TCP packets", "TCP flows", lambda d: _of(d, "retransmissions"), "{:.1f}"),
    ("packets a session", "sessions", lambda d: _of(d, "packets"), "{:,.0f}"),
    ("down/up bytes", "sessions", lambda d: _of(d, "down/up bytes"), "{:,.2f}"),
    ("gap KS", "packets", lambda d: _of(d, "gap KS"), "{:.3f}"),
    ("size JS", "packets", lambda d: _of(d, "size JS"), "{:.3f}"),
    ("label test, chosen labels", "label test", lambda d: _accuracy(d, "chosen labels"), "{:.2f}"),
    ("label test, all labels", "label test", lambda d: _accuracy(d, "all labels"), "{:.2f}"),
    ("discriminator AUC", "discriminator", lambda d: tuple((x or {}).get("auc") for x in d.values()), "{:.3f}"),
    ("copies of training sessions", "copies", lambda d: tuple(d["all labels"].get(k) for k in SIDES), "{:.3f}"),
)


def _of(data: dict[str, Any], column: str) -> tuple[float | None, ...]:
    """A column's value for benign labels (of all if that is the same), of synthetic sessions and of the floor's."""
    cell = (data.get(compare.BENIGN) or data.get(compare.OVERALL) or next(iter(data.values())))[column]
    return cell["synthetic"], cell["floor"], cell.get("real")


def _accuracy(data: dict[str, Any], labels: str) -> tuple[float | None, ...]:
    return tuple((data[labels].get(trained) or {}).get("accuracy") for trained in ("synthetic", "real"))


def headline_sheet(sheets: Sequence[Sheet]) -> Sheet:
    """The few figures to look at first, all taken from the sheets below."""
    data = {sheet.title: sheet.data for sheet in sheets}
    rows: list[tuple[str, ...]] = []
    for name, topic, values, form in HEADLINES:
        synthetic, floor, *real = values(data[topic])
        rows.append((name, number(synthetic, form), number(floor, form), *(number(v, form) for v in real or [None])))
    note = "means over benign labels, or over all where there is nothing else; the floor is real against real"
    return Sheet("headlines", note, ("", "synthetic", "floor", "real"), rows)


def number(value: float | None, form: str = "{:.2f}") -> str:
    return "-" if value is None else form.format(value)


def label_sheets(samples: dict[str, Samples], common: Sequence[str], how: How) -> list[Sheet]:
    """The label test on the chosen labels and on all; then label by label."""
    rows: list[tuple[str, ...]] = []
    data: dict[str, Any] = {}
    chosen = [label for label in how.labels if label in common]
    for name, labels in (("chosen labels", chosen), ("all labels", common)):
        tests = {
            trained: classify.label_test(samples[some], samples["real"], labels, how.trees, how.seed)
            for trained, some in (("synthetic", "synthetic"), ("real", "floor"))
            if some in samples
        }
        data[name] = {trained: test and asdict(test) for trained, test in tests.items()}
        for trained, test in tests.items():
            if test is None:
                rows.append((f"{name}, trained on {trained}", "-", "-", "-", "-", "-"))
                continue
            counts = (str(len(test.labels)), str(test.trained), str(test.tested))
            rows.append((f"{name}, trained on {trained}", *counts, number(test.accuracy), number(test.chance)))
    note = (
        f"a random forest (n_estimators {how.trees}) on statistics of the first {how.first} packets, "
        "tested on held-out real sessions"
    )
    head = ("", "labels", "trained on", "tested on", "accuracy", "chance")
    sheets = [Sheet("label test", note, head, rows, data)]
    ours, theirs = data["all labels"].get("synthetic"), data["all labels"].get("real") or {"recall": {}}
    if ours:
        lines: list[tuple[str, ...]] = [
            (label, number(share), number(theirs["recall"].get(label)), ours["mistaken"].get(label, ""))
            for label, share in ours["recall"].items()
        ]
        columns = ("label", "trained on synthetic", "trained on real", "mostly taken for")
        sheets.append(Sheet("recall", "share of real sessions named rightly among all labels", columns, lines))
    return sheets


def discriminator_sheet(samples: dict[str, Samples], how: How) -> Sheet:
    rows: list[tuple[str, ...]] = []
    data: dict[str, Any] = {}
    for name, other in (("real, synthetic", "synthetic"), ("real, real (floor)", "floor")):
        known = other in samples
        found = classify.discriminate(samples["real"], samples[other], how.trees, how.seed) if known else None
        data[name] = found and asdict(found)
        rows.append((name, str(found.each) if found else "-", number(found.auc if found else None, "{:.3f}")))
    note = f"AUC of a random forest telling two sets apart by the first {how.first} packets, five folds; ideal 0.5"
    return Sheet("discriminator", note, ("sets", "sessions each", "AUC"), rows, data)


def copy_sheet(real: Sequence[Session], synthetic: Sequence[Session], floor: Sequence[Session]) -> Sheet:
    """Copies are looked for among the floor's sessions: by default the training split."""
    shares = {"synthetic": classify.copied(synthetic, floor), "floor": classify.copied(real, floor)} if floor else {}
    rows: list[tuple[str, ...]] = []
    data: dict[str, Any] = {}
    labels = sorted(set(shares.get("synthetic", {})) & set(shares.get("floor", {})))
    overall = {name: float(np.mean([share[label] for label in labels])) for name, share in shares.items() if labels}
    for name, pair in {"all labels": overall, **{x: {k: v[x] for k, v in shares.items()} for x in labels}}.items():
        data[name] = pair
        rows.append((name, number(pair.get("synthetic")), number(pair.get("floor"))))
    note = (
        f"share of sessions whose first {classify.COPY_PREFIX} packets (sizes, directions; all if fewer) are those of "
        "a training session"
    )
    return Sheet("copies", note, ("label", "synthetic", "real (floor)"), rows, data)


def referee_sheet(
    real: Sequence[Session], synthetic: Sequence[Session], common: Sequence[str], how: How, steps: Steps
) -> Sheet:
    """Complaints in 1,000 packets, of the same number of sessions of each label."""
    chosen = {
        name: referees.sample([session for session in some if session.label in common], how.referee_sessions)
        for name, some in (("synthetic", synthetic), ("real", real))
    }
    advance = steps("referees", sum(map(len, chosen.values())))
    verdicts = {name: referees.referee(some, name == "synthetic", advance) for name, some in chosen.items()}
    rows: list[tuple[str, ...]] = [("captures", *(str(verdict.captures) for verdict in verdicts.values()), "")]
    rows.append(("packets", *(f"{verdict.packets:,}" for verdict in verdicts.values()), ""))
    order = [number(v.in_order and float(v.in_order), "{:.0f}") for v in verdicts.values()]
    rows.append(("captures with time in order", *order, ""))
    data: dict[str, Any] = {name: verdict.as_object() for name, verdict in verdicts.items()}
    for complaint in referees.COMPLAINTS:
        ours, theirs = (verdicts[name].per_1000(complaint.name) for name in ("synthetic", "real"))
        ratio = ours / theirs if ours is not None and theirs else None
        rows.append((complaint.name, number(ours, "{:.3f}"), number(theirs, "{:.3f}"), number(ratio)))
    skipped = verdicts["synthetic"].skipped
    note = "; ".join(["in 1,000 packets; real captures rendered alike: full frames, zero payload", *skipped])
    return Sheet("referees", note, ("", "synthetic", "real", "ratio"), rows, data)
