"""`netssmd model`: what models there are and what one is.

In: a checkpoint folder, or a folder that holds some. Out: sizes, labels, vocabulary, hash and card on stdout, or one
JSON object. Nothing is computed and torch is not imported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from netssmd.errors import CheckpointError

EMBEDDED = "embedded"


@click.group("model")
def command() -> None:
    """Show and list models."""


@command.command("show")
@click.argument("name", default=EMBEDDED, metavar="[DIR]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str, as_json: bool) -> None:
    """What a model is: sizes, labels, vocabulary, hash, card. Without DIR: the embedded one."""
    report = describe(name)
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    card = report.pop("card").strip()
    for key, value in report.items():
        click.echo(f"{key:<12} {_text(value)}")
    click.echo(f"\n{card}")


@command.command("list")
@click.argument("folder", default=".", type=click.Path(path_type=Path), metavar="[DIR]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_models(folder: Path, as_json: bool) -> None:
    """The embedded model and those in the folders of DIR. Without DIR: of this folder."""
    found = [describe(name) for name in names_in(folder)]
    rows = [{key: value for key, value in report.items() if key != "card"} for report in found]
    if as_json:
        click.echo(json.dumps({"models": rows}, indent=1))
        return
    for row in rows:
        sizes = f"{row['parameters'] / 1e6:.1f} M, {len(row['labels'])} labels"
        click.echo(f"{row['name']:<24} {sizes:<20} {row['hash'][:12]}  {row['folder']}")
    if not rows:
        click.echo(f"no model in {folder}, and none embedded", err=True)


def names_in(folder: Path) -> list[str]:
    """The embedded model, if this installation has one, and the checkpoints in `folder`. Raises CheckpointError."""
    from netssmd.model.checkpoint import embedded_model_path

    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; name one that holds model folders")
    names = [EMBEDDED] if (Path(embedded_model_path()) / "config.json").is_file() else []
    return names + sorted(str(path.parent) for path in folder.glob("*/model.safetensors"))


def describe(name: str) -> dict[str, Any]:
    """Everything that `model show` tells. `name`: "embedded" or a folder. Raises CheckpointError."""
    from netssmd.engine.opening import open_model
    from netssmd.model.checkpoint import load_config

    opened = open_model(name)
    config, vocabulary = load_config(opened.folder), opened.vocabulary
    card = opened.folder / "README.md"
    return {
        "name": name,
        "folder": str(opened.folder),
        "hash": opened.hash,
        "parameters": config.parameters,
        "state_bytes": config.state_bytes,
        "config": config.to_json(),
        "codec": "context",
        "vocabulary": {
            "tokens": vocabulary.size,
            "embedding_rows": vocabulary.rows,
            "rows_per_input": vocabulary.width,
            "fields": {field.name: field.size for field in vocabulary.fields},
            "tcp_stacks": len(vocabulary.stacks),
            "lengths": len(vocabulary.lengths),
            "windows": len(vocabulary.windows),
            "ports": len(vocabulary.ports),
        },
        "conditions": [condition.name for condition in vocabulary.conditions],
        "labels": list(vocabulary.labels),
        "card": card.read_text() if card.is_file() else "",
    }


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items() if not isinstance(inner, dict))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
