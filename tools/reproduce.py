#!/usr/bin/env python
"""The paper's experiment again: both codecs trained on the same captures with the same budget, judged side by side.

    python tools/reproduce.py captures/lab -o work/            the whole of it: an hour of training for each codec
    python tools/reproduce.py captures/lab -o work/ --quick    the same way in minutes, to see that all of it works

Stages, for each codec: prepare, train, generate, evaluate; then a page with the paper's figures, the byte codec and the
context codec in columns. A stage that is complete is not done again; a training that was cut short goes on. `--page`
names the page, which says at its top by which command it was made (docs/codecs.md, too).
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from stages import Stages

CODECS = {"context": "context codec", "bytes": "byte codec"}  # the first one's report gives the floors
# About as many parameters for each: most of the context codec's rows are tokens and features, the byte codec has few.
SIZES = {"context": {"d_model": 192, "n_layer": 6}, "bytes": {"d_model": 256, "n_layer": 6}}
TRAIN = """data = "{data}"
seed = 1
[model]
d_model = {d_model}
n_layer = {n_layer}
d_state = 64
headdim = 32
[batch]
streams = {streams}
segment = {segment}
window = {window}
balance = 0.5
[optimizer]
learning_rate = 2.0e-3
[length]
tokens = 0
hours = {hours}
[validation]
every_steps = 1000
tokens = 100000
final_tokens = {final_tokens}
[output]
path = "{path}"
name = "{name}"
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is spent."""

    captures: tuple[Path, ...]
    out: Path
    hours: float
    sessions: int
    packets: int
    labels: tuple[str, ...]
    evaluate: tuple[str, ...]


def codec(plan: Plan, stages: Stages, name: str) -> None:
    """All stages of one codec."""
    stages.begin()
    folder = plan.out / name
    folder.mkdir(parents=True, exist_ok=True)
    data, run, made, report = (str(folder / part) for part in ("data", "run", "generated", "report"))
    more = ["--codec", "bytes", "--conditioned"] if name == "bytes" else []
    roots = [str(root) for root in plan.captures]
    stages.run(f"{name}-prepare", "prepare", *roots, "-o", data, "--overwrite", *more)
    config = folder / "train.toml"
    # Byte packets are long, and what is constant in a session is to be found in the state: many short pieces.
    segment, window = (512, 0) if name == "context" else (384, 1920)
    quick = plan.hours < 0.1
    training = TRAIN.format(
        data=data, path=run, name=f"reproduce-{name}", hours=plan.hours, streams=16,
        segment=segment, window=window, final_tokens=100_000 if quick else 1_000_000, **SIZES[name],
    )  # fmt: skip
    config.write_text(training)
    stages.run(f"{name}-train", "train", "-c", str(config), given=training)
    labels = [word for label in plan.labels or ("all",) for word in ("--label", label)]
    stages.run(
        f"{name}-generate", "generate", "--model", f"{run}/model", *labels, "--sessions", str(plan.sessions),
        "--max-packets", str(plan.packets), "--seed", "7", "-o", made + "/",
    )  # fmt: skip
    only = [word for label in plan.labels for word in ("--only", label)]
    stages.run(f"{name}-evaluate", "evaluate", str(plan.captures[0]), made, "-o", report, *only, *plan.evaluate)


def read(plan: Plan, stages: Stages, name: str) -> dict[str, Any]:
    """A codec's report, with the size of its model, the bits of its last validation and its costs under `model`."""
    folder = plan.out / name
    report: dict[str, Any] = json.loads((folder / "report" / "report.json").read_text())
    shown = subprocess.run(
        [sys.executable, "-m", "netssmd", "model", "show", str(folder / "run" / "model"), "--json"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    report["model"] = json.loads(shown.stdout) if shown.returncode == 0 else {}
    for line in (folder / "run" / "log.jsonl").read_text().splitlines():
        news = json.loads(line)
        if news["kind"] == "val":
            report["model"]["bits_per_packet"] = news["bits_per_packet"]
    files = json.loads((folder / "data" / "files.json").read_text())["files"]
    report["model"]["tokens_per_packet"] = sum(f["tokens"] for f in files) / sum(f["packets"] for f in files)
    with open(folder / "generated" / "manifest.csv", newline="") as file:
        made = sum(int(row["packets"]) for row in csv.DictReader(file))
    report["model"]["packets_per_second_generated"] = made / stages.seconds[f"{name}-generate"]
    return report


def page(plan: Plan, stages: Stages, reports: dict[str, dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = [
        "# Both codecs, side by side",
        "",
        f"Both codecs trained on the same captures, {plan.hours:g} h of training each, models of about the same size; "
        f"{plan.sessions} sessions of each label, cut at {plan.packets:,} packets; beside held-out real captures. Made",
        "by",
        "",
        f"    python tools/reproduce.py {' '.join(p.name for p in plan.captures)} -o work/ --hours {plan.hours:g} "
        f"--sessions {plan.sessions} --max-packets {plan.packets}",
        "",
        "The floor is real against real: the train split beside the held-out one. Bits a packet do not count the same",
        "things: the byte codec spells out addresses and sequence numbers and has no timing, the context codec tells",
        "the timing and leaves identities out.",
        "",
        "## Headlines",
        "",
        *table(("", *(CODECS[name] for name in reports), "floor"), headlines(reports)),
        "",
        "## Time",
        "",
        *table(
            ("stage, minutes", *(CODECS[name] for name in reports)),
            [(stage, *(f"{stages.seconds.get(f'{name}-{stage}', 0) / 60:.1f}" for name in reports))
             for stage in ("prepare", "train", "generate", "evaluate")],
        ),
    ]  # fmt: skip
    first = next(iter(reports.values()))
    for title in first["topics"]:
        if title.startswith("table 2"):
            lines += ["", f"## {title}", "", *table2(title, reports)]
    curves = figure2(reports)
    if curves:
        lines += ["", "## Figure 2: accuracy on real sessions by share of synthetic ones in the training set", ""]
        lines += table(("", *(f"{share} %" for share in range(0, 101, 10))), curves)
    lines += ["", "## Table 5: downloaded segments", "", *table5(reports)]
    return "\n".join(lines) + "\n"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    rule = "|---|" + "---:|" * (len(head) - 1)
    return ["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)]


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"


def headlines(reports: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    scores = {name: report["topics"]["headlines"] for name, report in reports.items()}
    first = next(iter(scores.values()))
    rows = [
        (what, *(number(of[what]["synthetic"]) for of in scores.values()), number(score["floor"]))
        for what, score in first.items()
    ]
    cards = {name: report["model"] for name, report in reports.items()}
    for key in ("parameters", "packets_per_second_generated", "tokens_per_packet", "bits_per_packet"):
        if all(key in card for card in cards.values()):
            rows.insert(0, (key.replace("_", " "), *(number(card[key]) for card in cards.values()), "-"))
    for what in ("IPv4 addresses", "MAC addresses", "initial sequence numbers"):
        found = [report["topics"]["remembered"][what] for report in reports.values()]
        rows.append((f"{what} of the training set", *(of(f["synthetic"]) for f in found), of(found[0]["floor"])))
    return rows


def of(counts: list[int]) -> str:
    """How many of how many."""
    return f"{counts[1]:,} of {counts[0]:,}"


def table2(title: str, reports: dict[str, dict[str, Any]]) -> list[str]:
    rows = []
    for name, report in reports.items():
        for row, values in report["topics"].get(title, {}).items():
            if row == "n" or (not row.startswith("synthetic") and name != next(iter(reports))):
                continue
            shown = f"{CODECS[name]}{row.removeprefix('synthetic')}" if row.startswith("synthetic") else row
            rows.append((shown, *(number(value) for value in values or [None] * 4)))
    return table(("", "JS distance", "JS divergence, bits", "TVD", "HD"), rows)


def figure2(reports: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, report in reports.items():
        for curve in report["topics"].get("figures 2, 5, 6: mixing real and synthetic", []):
            if curve["test"] == "real":
                what = f"{CODECS[name]}, {curve['level']}, {curve['model']}, {curve['variant']}"
                rows.append((what, *(f"{accuracy:.2f}" for accuracy in curve["accuracies"])))
    return rows


def table5(reports: dict[str, dict[str, Any]]) -> list[str]:
    columns = ("KS", "AD", "KL nats", "EMD", "median delta")
    rows = []
    for name, report in reports.items():
        for kind, lines in report["topics"]["table 5: downloaded segments"].items():
            for who, values in lines.items():
                if who == "synthetic" or name == next(iter(reports)):
                    shown = CODECS[name] if who == "synthetic" else who
                    rows.append((f"{kind}: {shown}", *(number(values[column]) for column in columns)))
    return table(("", *columns), sorted(rows))


@click.command(context_settings={"show_default": True})
@click.argument("captures", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for all stages.")
@click.option("--page", "results", type=click.Path(path_type=Path), help="The page.  [default: OUTPUT/codecs.md]")
@click.option("--hours", type=click.FloatRange(0, min_open=True), default=1.0, help="Training of each codec.")
@click.option("--sessions", type=click.IntRange(1), default=10, help="Of each label.")
@click.option("--max-packets", type=click.IntRange(1), default=12_000, help="Where a session is cut.")
@click.option("--label", "labels", multiple=True, metavar="LABEL", help="Generate and judge these only; repeatable.")
@click.option("--codec", "codecs", multiple=True, type=click.Choice(list(CODECS)), help="One of them.  [default: both]")
@click.option("--quick", is_flag=True, help="Two minutes of training, three sessions of 300 packets, no SVM.")
def main(
    captures: tuple[Path, ...], output: Path, results: Path | None, hours: float, sessions: int, max_packets: int,
    labels: tuple[str, ...], codecs: tuple[str, ...], quick: bool,
) -> None:  # fmt: skip
    """Train both codecs on CAPTURES, generate, judge, and write the results side by side. The first folder is also what
    is judged by."""
    more: tuple[str, ...] = ()
    if quick:
        hours, sessions, max_packets = 2 / 60, 3, 300
        more = ("--bootstrap", "5", "--mixing", "forest", "--trees", "50")
    plan = Plan(captures, output, hours, sessions, max_packets, labels, more)
    stages = Stages(output)
    names = codecs or tuple(CODECS)
    for name in names:
        codec(plan, stages, name)
    text = page(plan, stages, {name: read(plan, stages, name) for name in names})
    target = results or output / "codecs.md"
    target.write_text(text)
    click.echo(f"{target}: written", err=True)


if __name__ == "__main__":
    main()
