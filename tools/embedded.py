#!/usr/bin/env python
"""The embedded model: trained on a folder of labelled captures, judged beside them, put in its place.

    python tools/embedded.py captures/lab -o work/               from nothing: an hour on two cores, work/model
    python tools/embedded.py captures/lab -o work/ --install     and make it the embedded one, with its page
    python tools/embedded.py captures/lab -o work/ --base embedded --tokens 11_000_000       from the one there is

Stages: the captures with their round trips as handshakes see them, prepare, train, calibrate, generate, evaluate. A
stage that is complete is not done again; a training that was cut short goes on. `--install` copies the model into the
package and writes the figures of docs/embedded-model.md.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import click
from stages import Stages

from netssmd.codec.vocab import FIELD_NAMES
from netssmd.model.checkpoint import folder_of
from netssmd.model.conduct import CONDUCT

DOCUMENT = Path(__file__).parent.parent / "docs" / "embedded-model.md"
TRAIN = """data = "{data}"
base = "{base}"
seed = 1
[model]
d_state = 32
[optimizer]
learning_rate = {rate}
final_share = 0.03
[batch]
drop_left = 0.1
[length]
tokens = {tokens}
[validation]
every_steps = 1000
tokens = 120_000
[output]
path = "{path}"
name = "lab"
"""
MANIFEST = "manifest.csv"
GROUPS = ("all labels", "benign")  # rows of a report that are no label's
SHOWN = ("HEADLINES", "ROUND TRIPS", "SESSIONS", "PACKETS", "TCP FLOWS", "REFEREES")

Score = dict[str, Any]  # of a report: synthetic, floor, real


def measured(captures: Path, target: Path, factor: float) -> Path:
    """The captures (hard links where the file system has them) with `rtt_ms` times `factor` in their manifest."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(captures, target, copy_function=_link, ignore=shutil.ignore_patterns(MANIFEST))
    with open(captures / MANIFEST, newline="") as file:
        rows = list(csv.DictReader(file))
    with open(target / MANIFEST, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            told = row.get("rtt_ms", "")
            writer.writerow({**row, "rtt_ms": f"{float(told) * factor:.3f}"} if told else row)
    return target


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def with_temperature(trained: Path, model: Path, temperature: float, data: str) -> None:
    """The model of a training with a temperature for all its fields, and a card that says where it comes from."""
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(trained, model)
    conduct = json.loads((model / CONDUCT).read_text())
    conduct["temperatures"] = dict.fromkeys(FIELD_NAMES, temperature)
    (model / CONDUCT).write_text(json.dumps(conduct, separators=(",", ":")) + "\n")
    card = model / "README.md"
    before, labels, rest = card.read_text().partition("| labels |")
    card.write_text(
        f"{before}| data | {data} |\n| licence | the project's |\n| drawn at temperature | {temperature:g} |\n"
        f"{labels}{rest}"
    )


def asked(topics: dict[str, Any], bits: float) -> list[str]:
    """The table of what was asked and what was reached, from a report's topics."""
    headlines, trips = topics["headlines"], topics["round trips"]

    def score(name: str) -> tuple[float, float, float]:
        row = headlines[name]
        return row["synthetic"], row["floor"], row["real"] or 0.0

    handshake, fin, auc = (score(n) for n in ("handshake right, TCP flows of benign labels", "FIN both ways, the same",
                                              "discriminator AUC"))  # fmt: skip
    rows = [
        ("bits a packet at most 8.2, timing at 8 bins an octave", f"{bits:.2f}", bits <= 8.2),
        ("right handshakes, benign TCP flows: 99 % of the real share", f"{handshake[0]:.3f}",
         handshake[0] >= 0.99 * handshake[2]),
        ("FIN both ways within five points of real", f"{fin[0]:.3f}", abs(fin[0] - fin[2]) <= 0.05),
    ]  # fmt: skip
    for name in ("flows with conflicting flags", "flows with ACK beyond sent"):
        rows.append((f"{name}: none", f"{score(name)[0]:g}", score(name)[0] == 0))
    for name in ("gap KS", "size JS"):
        made, floor, _ = score(name)
        said = f"{made:.3f}, {made / floor:.2f} times, in the mean over benign labels"
        rows.append((f"{name} at most 1.5 times the floor", said, made <= 1.5 * floor))
        labels = {label: scores[name] for label, scores in topics["packets"].items() if label not in GROUPS}
        beyond = [label for label, of in labels.items() if of["synthetic"] > 1.5 * of["floor"]]
        said = f"{len(labels) - len(beyond)} of {len(labels)}" + (f"; not {', '.join(beyond)}" if beyond else "")
        rows.append(("the same for every label", said, not beyond))
    for name in ("label test, chosen labels", "label test, all labels"):
        made, floor, _ = score(name)
        said = f"{made:.2f} for {floor:.2f}: {made / floor:.2f}"
        rows.append((f"{name}: 0.95 of a forest trained on real sessions", said, made >= 0.95 * floor))
    rows.append(("discriminator AUC at most 0.75", f"{auc[0]:.3f} (floor {auc[1]:.3f})", auc[0] <= 0.75))
    trip = trips["benign"]["measured/condition"]["synthetic"]
    rows.append(("median handshake within 10 % of the asked round trip", f"{trip:.2f} times", abs(trip - 1) <= 0.1))
    return [
        "| asked | reached | |", "|---|---|---|",
        *(f"| {what} | {said} | {'yes' if kept else '**no**'} |" for what, said, kept in rows),
    ]  # fmt: skip


def filled(text: str, parts: dict[str, str]) -> str:
    """The document with its parts anew. Raises ValueError if it has no place for one."""
    for name, part in parts.items():
        before, place, rest = text.partition(f"<!-- {name} -->\n")
        if not place:
            raise ValueError(f"no <!-- {name} --> in the document")
        text = f"{before}<!-- {name} -->\n{part}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


def sheets(printed: str) -> str:
    """Those of a report that the page shows."""
    found = {part.lstrip().partition("\n")[0]: part.strip("\n") for part in printed.split("\n\n")}
    lines = ("\n".join(line.rstrip() for line in found[name].splitlines()) for name in SHOWN if name in found)
    return "\n\n".join(f"```\n{part}\n```" for part in lines)


def install(model: Path, report: Path, printed: Path, bits: float) -> None:
    """Make it the embedded model, and write its page."""
    place = folder_of("embedded")
    for file in model.iterdir():
        shutil.copyfile(file, place / file.name)
    topics = json.loads((report / "report.json").read_text())["topics"]
    parts = {
        "asked": "\n".join(asked(topics, bits)),
        "sheets": sheets(printed.read_text()),
    }
    DOCUMENT.write_text(filled(DOCUMENT.read_text(), parts))


@click.command(context_settings={"show_default": True})
@click.argument("captures", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for all stages.")
@click.option("--base", default="", metavar="MODEL", help="Go on from this model, at a lower learning rate.")
@click.option("--tokens", type=click.IntRange(1), default=45_000_000, help="Of training.")
@click.option("--rtt-factor", type=click.FloatRange(0, min_open=True), default=1.28,
              help="What handshakes measure by what the manifest tells: `netssmd evaluate`, ROUND TRIPS.")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(0), default=0.9, help="Of all fields; chosen on val.")
@click.option("--rounds", type=click.IntRange(1), default=4, help="Of calibration.")
@click.option("--sessions", type=click.IntRange(1), default=34, help="Of each label, to judge by: as many as are real.")
@click.option("--install", "installs", is_flag=True, help="Make it the embedded model and write its page.")
def main(
    captures: Path, output: Path, base: str, tokens: int, rtt_factor: float, temperature: float, rounds: int,
    sessions: int, installs: bool,
) -> None:  # fmt: skip
    """Train a model on CAPTURES, judge it, and install it if wanted."""
    output.mkdir(parents=True, exist_ok=True)
    data, run, model, made, report = (output / name for name in ("data", "run", "model", "generated", "report"))
    stages = Stages(output)
    told = measured(captures, output / "captures", rtt_factor)
    like = ["--model", base] if base else []
    stages.run("prepare", "prepare", str(told), "-o", str(data), "--overwrite", *like,
               given=f"round trips x {rtt_factor}")  # fmt: skip
    training = TRAIN.format(data=data, base=base, rate=8e-4 if base else 2e-3, tokens=tokens, path=run)
    (output / "train.toml").write_text(training)
    stages.run("train", "train", "-c", str(output / "train.toml"), given=training)
    with open(told / MANIFEST, newline="") as file:
        count = sum(1 for _ in csv.DictReader(file))
    said = f"{count:,} sessions of a traffic lab: real clients and servers across an emulated access link"
    given = f"temperature {temperature}"
    stages.run("calibrate", "calibrate", str(model), "--data", str(data), "--rounds", str(rounds), given=given,
               first=lambda: with_temperature(run / "model", model, temperature, said))  # fmt: skip
    stages.run("generate", "generate", "--model", str(model), "--label", "all", "--sessions", str(sessions),
               "--max-packets", "12000", "--seed", "7", "-o", f"{made}/", "--overwrite",
               given=given)  # fmt: skip
    stages.run("evaluate", "evaluate", str(captures), str(made), "-o", str(report), "--split", "val",
               "--synthetic-split", "all", "--referees", printed="evaluate.txt")  # fmt: skip
    bits = [news["bits_per_packet"] for line in (run / "log.jsonl").read_text().splitlines()
            if (news := json.loads(line))["kind"] == "val"]  # fmt: skip
    click.echo((output / "evaluate.txt").read_text().partition("\n\nSESSIONS")[0])
    if installs:
        install(model, report, output / "evaluate.txt", bits[-1])
        click.echo(f"{folder_of('embedded')}, {DOCUMENT}: written", err=True)


if __name__ == "__main__":
    main()
