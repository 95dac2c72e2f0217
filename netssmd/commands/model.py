"""`netssmd model`: what models there are, what one is, and models of others made ours.

In: a checkpoint folder, or a folder that holds some. Out: sizes, labels, vocabulary, hash and card on stdout, or one
JSON object. Nothing is computed, and torch is imported by `import` only, to read weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netssmd.errors import CheckpointError

if TYPE_CHECKING:
    from netssmd.codec.byte_vocab import ByteVocabulary
    from netssmd.codec.timing import Timing
    from netssmd.codec.vocab import Vocabulary

EMBEDDED = "embedded"


@click.group("model")
def command() -> None:
    """Show, list and import models."""


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


@command.command("import")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Model folder to make.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json, or its folder, if not in DIR.")
@click.option("--packet-bytes", type=click.Choice(["94", "106", "128"]), default="128", show_default=True,
              help="Bytes of a packet that it was trained on; no file in DIR tells.")  # fmt: skip
@click.option("--tcp-only", is_flag=True, help="It was trained on TCP only (as all of 94 bytes are).")
@click.option("--ends", is_flag=True, help="Its training wrote <|endoftext|> behind sessions; the authors' does not.")
@click.option("--timing", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Fit the gaps between packets to this capture; LABEL=FILE for one label. Repeatable.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def import_folder(
    folder: Path, output: Path, tokenizer: Path | None, packet_bytes: str, tcp_only: bool, ends: bool,
    timing: tuple[Path, ...], as_json: bool,
) -> None:  # fmt: skip
    """Make a model of a Hugging Face folder of mamba_ssm or of the paper's authors: byte models of Mamba-2."""
    from netssmd.codec.byte_vocab import LAYOUTS
    from netssmd.model.importer import import_model

    size = int(packet_bytes)
    protocols = ("tcp",) if tcp_only else LAYOUTS[size].protocols
    imported = import_model(folder, output, size, protocols, fit_timing(timing), tokenizer, ends)
    if not imported.vocabulary.timing.counts:
        click.echo("no timing is known: gaps will be exponential (10 ms); give --timing, here or to generate", err=True)
    if as_json:
        click.echo(json.dumps(describe(str(output)), indent=1))
        return
    labels = ", ".join(imported.vocabulary.labels)
    click.echo(
        f"{output}: {imported.config.parameters / 1e6:.1f} M parameters, {size} bytes a packet, labels {labels}; "
        f"{imported.masked} of {imported.config.vocab_size} token ids mean no byte and are never drawn"
    )


def fit_timing(captures: tuple[Path, ...]) -> Timing:
    """Gaps of captures by label, direction and size; of all labels where none is named. Raises CaptureError."""
    from netssmd.codec.bytes import observe_timing
    from netssmd.codec.timing import EVERY_LABEL, Timing
    from netssmd.errors import CaptureError
    from netssmd.packet.pcap import read_capture

    timing = Timing()
    for written in captures:
        label, _, name = str(written).rpartition("=") if not written.exists() else (EVERY_LABEL, "", str(written))
        try:
            with open(name, "rb") as file:
                observe_timing(timing, label, read_capture(file, name))
        except OSError as error:
            raise CaptureError(f"{name}: cannot be read: {error.strerror}") from None
    return timing


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
    from netssmd.codec.byte_vocab import ByteVocabulary
    from netssmd.engine.opening import open_model
    from netssmd.model.checkpoint import load_config, read_card

    opened = open_model(name)
    config, vocabulary = load_config(opened.folder), opened.vocabulary
    return {
        "name": name,
        "folder": str(opened.folder),
        "hash": opened.hash,
        "parameters": config.parameters,
        "state_bytes": config.state_bytes,
        "config": config.to_json(),
        "codec": "bytes" if isinstance(vocabulary, ByteVocabulary) else "context",
        "vocabulary": {
            "tokens": vocabulary.size,
            "embedding_rows": vocabulary.rows,
            "rows_per_input": vocabulary.width,
            "fields": {field.name: field.size for field in vocabulary.fields},
            **_details(vocabulary),
        },
        "conditions": [condition.name for condition in vocabulary.conditions],
        "labels": list(vocabulary.labels),
        "card": read_card(opened.folder),
    }


def _details(vocabulary: Vocabulary | ByteVocabulary) -> dict[str, Any]:
    """What only one codec's vocabulary has."""
    from netssmd.codec.byte_vocab import ByteVocabulary

    if isinstance(vocabulary, ByteVocabulary):
        return {
            "packet_bytes": vocabulary.layout.packet_bytes,
            "protocols": list(vocabulary.protocols),
            "framed": vocabulary.framed,
            "conditioned": vocabulary.conditioned,
            "timing": sorted(vocabulary.timing.counts),
        }
    return {
        "tcp_stacks": len(vocabulary.stacks),
        "lengths": len(vocabulary.lengths),
        "windows": len(vocabulary.windows),
        "ports": len(vocabulary.ports),
    }


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items() if not isinstance(inner, dict))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
