"""Everything that is asked of generated captures, put together: folders in, sheets of a report out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from netssmd.errors import UsageError
from netssmd.learn.evaluate import classify, compare, figures, mixing, paper, referees, report
from netssmd.learn.evaluate.bootstrap import Interval
from netssmd.learn.evaluate.classify import Samples
from netssmd.learn.evaluate.report import Sheet, number
from netssmd.learn.evaluate.sessions import Session, by_label, find, load
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
    """`labels`: those of the label test. `first`: packets of a session that classifiers see. `replicates`: of the
    bootstrap. `models`: what the mixtures train; none, no mixtures."""

    labels: tuple[str, ...] = classify.TEN_LABELS
    first: int = 300
    trees: int = 300
    seed: int = 0
    replicates: int = 40
    models: tuple[str, ...] = mixing.MODELS
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was judged, the tables, and the pictures as (title, SVG)."""

    about: dict[str, Any]
    sheets: list[Sheet]
    pictures: list[tuple[str, str]]


def judge(sets: Sets, how: How, steps: Steps, complain: Callable[[str], None]) -> Verdict:
    """Measure, compare, classify, and ask the referees if wanted."""
    classify.forest(how.trees, how.seed)  # fails now, not after the reading, where scikit-learn is missing
    sources = {
        "real": find(sets.real, sets.split, sets.only, sets.per_label),
        "synthetic": find(sets.synthetic, sets.synthetic_split, sets.only, sets.per_label),
        "floor": floor_sources(sets),
    }
    read = {name: load(some, steps(name, len(some)), complain) for name, some in sources.items()}
    common = {session.label for session in read["real"]} & {session.label for session in read["synthetic"]}
    if not common:
        raise UsageError(
            f"{sets.synthetic}: its labels ({', '.join(sorted({s.label for s in read['synthetic']}))}) are not in "
            f"{sets.real}"
        )
    if absent := sorted({session.label for session in read["real"]} - common):
        complain(f"no synthetic sessions, so not judged: {', '.join(absent)}")
    if not read["floor"]:
        read["real"], read["floor"] = halves(read["real"])
        complain(
            f"{sets.real}: no second set of real captures, so half of each label's is the floor of the other half; "
            "name one with --floor or --floor-split"
        )
    sheets, pictures = _judged({n: [s for s in some if s.label in common] for n, some in read.items()}, how, steps)
    about = {
        "sets": {
            name: {"sessions": len(sessions), "packets": sum(session.packets for session in sessions)}
            for name, sessions in read.items()
        },
        "folders": {name: str(value) for name, value in asdict(sets).items() if value},
        "how": asdict(how),
    }
    return Verdict(about, sheets, pictures)


def halves(sessions: Sequence[Session]) -> tuple[list[Session], list[Session]]:
    """The sessions of each label in two halves; one that is alone stays in the first."""
    groups = by_label(sessions).values()
    return [s for group in groups for s in group[::2]], [s for group in groups for s in group[1::2]]


def _judged(read: dict[str, list[Session]], how: How, steps: Steps) -> tuple[list[Sheet], list[tuple[str, str]]]:
    real, synthetic, floor = read["real"], read["synthetic"], read["floor"]
    common = sorted({session.label for session in real})
    advance = steps("bootstrap", how.replicates)
    sheets = [report.of_table(t) for t in compare.compare(real, synthetic, floor, how.replicates, how.seed, advance)]
    advance = steps("paper", 4)
    sheets += paper.table2(real, synthetic, floor)
    advance()
    sheets += [paper.table3(real, synthetic, floor), paper.table4(real, synthetic, floor)]
    advance()
    sheets.append(paper.table5(real, synthetic, floor, how.seed))
    advance()
    sheets.append(paper.memory_sheet(real, synthetic, floor))
    advance()
    curves: list[mixing.Curve] = []
    if how.models:
        advance = steps("mixing", 2 * len(mixing.VARIANTS))
        sheet, curves = paper.figure2(real, synthetic, floor, how.seed, advance, how.models)
        sheets.append(sheet)
    advance = steps("classify", 3)
    samples = {name: classify.samples(some, how.first) for name, some in read.items() if some}
    advance()
    sheets += label_sheets(samples, common, how)
    advance()
    sheets += [discriminator_sheet(samples, how), copy_sheet(real, synthetic, floor)]
    advance()
    if how.referees:
        sheets.append(referee_sheet(real, synthetic, common, how, steps))
    sheets.insert(0, headline_sheet(sheets, len(synthetic)))
    advance = steps("pictures", 1)
    pictures = list(figures.draw(real, synthetic, floor, sheets, curves))
    advance()
    return sheets, pictures


SIDES = ("synthetic", "floor")


@dataclass(frozen=True, slots=True)
class Headline:
    """A score with what stands beside it."""

    synthetic: float | None
    floor: float | None
    real: float | None = None
    interval: Interval | None = None


def _of(data: dict[str, Any], column: str) -> Headline:
    """A column's value for benign labels (of all if that is the same)."""
    cell = (data.get(compare.BENIGN) or data.get(compare.OVERALL) or next(iter(data.values())))[column]
    return Headline(cell["synthetic"], cell["floor"], cell.get("real"), cell["interval"])


def _table2(data: dict[str, Any]) -> Headline:
    ours, floor = data["synthetic"], data["real against real (floor)"]
    return Headline(ours and ours[0], floor and floor[0])


def _accuracy(data: dict[str, Any], labels: str) -> Headline:
    ours, floor = (data[labels].get(trained) or {} for trained in ("synthetic", "real"))
    return Headline(ours.get("accuracy"), floor.get("accuracy"), None, ours.get("interval"))


def _auc(data: dict[str, Any]) -> Headline:
    ours, floor = (found or {} for found in data.values())
    return Headline(ours.get("auc"), floor.get("auc"), None, ours.get("interval"))


def _copies(data: dict[str, Any]) -> Headline:
    return Headline(*(data["all labels"].get(side) for side in SIDES))


def _shared(data: dict[str, Any], kind: str) -> Headline:
    return Headline(*(data[kind][side][1] for side in SIDES))


HEADLINES: tuple[tuple[str, str, Callable[[dict[str, Any]], Headline], str], ...] = (
    # what, the sheet, its data -> the score, form
    ("handshake right, TCP flows of benign labels", "TCP flows", lambda d: _of(d, "handshake"), "{:.3f}"),
    ("FIN both ways, the same", "TCP flows", lambda d: _of(d, "FIN both"), "{:.3f}"),
    ("flows with conflicting flags", "TCP flows", lambda d: _of(d, "conflicting flags"), "{:.4f}"),
    ("flows with ACK beyond sent", "TCP flows", lambda d: _of(d, "ACK beyond sent"), "{:.4f}"),
    ("retransmissions in 1,000 TCP packets", "TCP flows", lambda d: _of(d, "retransmissions"), "{:.1f}"),
    ("packets a session", "sessions", lambda d: _of(d, "packets"), "{:,.0f}"),
    ("down/up bytes", "sessions", lambda d: _of(d, "down/up bytes"), "{:,.2f}"),
    ("gap KS", "packets", lambda d: _of(d, "gap KS"), "{:.3f}"),
    ("size JS", "packets", lambda d: _of(d, "size JS"), "{:.3f}"),
    ("header values, JS distance (Table 2: TCP by byte)", "table 2: TCP by byte", _table2, "{:.3f}"),
    (
        "the same without volatile fields",
        "table 2: TCP by byte, without volatile fields",
        _table2,
        "{:.3f}",
    ),
    ("label test, chosen labels", "label test", lambda d: _accuracy(d, "chosen labels"), "{:.2f}"),
    ("label test, all labels", "label test", lambda d: _accuracy(d, "all labels"), "{:.2f}"),
    ("discriminator AUC", "discriminator", _auc, "{:.3f}"),
    ("copies of training sessions", "copies", _copies, "{:.3f}"),
    ("flows found word for word in training", "remembered", lambda d: _shared(d, "flows"), "{:.3f}"),
)


def headline_sheet(sheets: Sequence[Sheet], n: int) -> Sheet:
    """The few figures to look at first, all taken from the sheets below."""
    data = {sheet.title: sheet.data for sheet in sheets}
    rows: list[tuple[str, ...]] = []
    scores = {}
    for name, title, score, form in HEADLINES:
        found = scores[name] = score(data[title])
        between = "-" if found.interval is None else " to ".join(form.format(x) for x in found.interval)
        shown = (number(value, form) for value in (found.floor, found.real))
        rows.append((name, number(found.synthetic, form), between, *shown))
    note = (
        f"{n:,} synthetic sessions; means over benign labels, or over all where there is nothing else; the interval is "
        "that of 95 % of bootstrap replicates, the floor is real against real"
    )
    head = ("", "synthetic", "interval", "floor", "real")
    return Sheet("headlines", note, head, rows, {name: asdict(found) for name, found in scores.items()})


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
        found = classify.discriminate(samples["real"], samples[other], how.seed) if known else None
        data[name] = found and asdict(found)
        between = " to ".join(f"{x:.3f}" for x in found.interval) if found and found.interval else "-"
        rows.append((name, str(found.each) if found else "-", number(found.auc if found else None, "{:.3f}"), between))
    note = f"AUC of gradient boosting telling two sets apart by the first {how.first} packets, five folds; ideal 0.5"
    return Sheet("discriminator", note, ("sets", "sessions each", "AUC", "interval"), rows, data)


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
    complete = [v.counts[referees.COMPLETE] / (v.counts[referees.STREAMS] or 1) for v in verdicts.values()]
    if any(v.counts[referees.STREAMS] for v in verdicts.values()):
        rows.append(("TCP streams with a complete handshake", *(number(share, "{:.3f}") for share in complete), ""))
    for name in dict.fromkeys(name for verdict in verdicts.values() for name in verdict.rows()):
        ours, theirs = (verdict.per_1000(name) for verdict in verdicts.values())
        ratio = ours / theirs if ours is not None and theirs else None
        rows.append((name, number(ours, "{:.3f}"), number(theirs, "{:.3f}"), number(ratio)))
    skipped = verdicts["synthetic"].skipped
    note = "; ".join(["in 1,000 packets; real captures rendered alike: full frames, zero payload", *skipped])
    return Sheet("referees", note, ("", "synthetic", "real", "ratio"), rows, data)
