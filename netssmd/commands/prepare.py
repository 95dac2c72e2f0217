"""`netssmd prepare`: folders of captures in, a data folder for `netssmd train` out. A thin shell around
`netssmd.learn.prepare`.

Out: a progress bar and one line a problem on stderr; on stdout a table by label, or with --json one object.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netssmd.errors import UsageError

if TYPE_CHECKING:
    from netssmd.learn.prepare import Advance, Prepared

SHOWN_PROBLEMS = 20


@click.command
@click.argument("roots", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Data folder to make.")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Table of labels, splits and conditions (default: DIR/manifest.csv).",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes (default: one a CPU core).")
@click.option("--include-escaped", is_flag=True, help="Keep packets that the codec can only spell out byte by byte.")
@click.option(
    "--model", help="Reuse the vocabulary of this model (or data folder, or 'embedded') instead of fitting one."
)
@click.option("--add-labels", is_flag=True, help="With --model: labels that it lacks are added, to fine-tune it.")
@click.option("--codec", type=click.Choice(["context", "bytes"]), default="context", show_default=True,
              help="bytes: the paper's (docs/byte-codec.md), for which the options below are.")  # fmt: skip
@click.option("--packet-bytes", type=click.Choice(["94", "106", "128"]), default="94", show_default=True)
@click.option("--tcp-only", is_flag=True, help="Leave UDP out (94 bytes: it is).")
@click.option("--single-flow", is_flag=True, help="A session is a flow, not a capture.")
@click.option("--phase", type=click.Choice(["handshake", "transfer", "teardown"]), help="Only this stage of each flow.")
@click.option("--sample-tokens", type=click.IntRange(0), default=0, metavar="N",
              help="Cut sessions here; the paper has 100000. Default: nowhere.")  # fmt: skip
@click.option("--free", is_flag=True, help="Learn any token anywhere, as in the paper.")
@click.option("--conditioned", is_flag=True, help="Add label and conditions to every input, as our own models do.")
@click.option("--overwrite", is_flag=True, help="Replace an older data folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def command(
    roots: tuple[Path, ...],
    output: Path,
    manifest: Path | None,
    workers: int | None,
    include_escaped: bool,
    model: str | None,
    add_labels: bool,
    codec: str,
    packet_bytes: str,
    tcp_only: bool,
    single_flow: bool,
    phase: str | None,
    sample_tokens: int,
    free: bool,
    conditioned: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Turn folders of captures into a training set.

    One capture is one session. Its label is the name of its folder, or what manifest.csv says.
    """
    from netssmd.learn.byte_codec import ByteCodec
    from netssmd.learn.codec import ContextCodec
    from netssmd.learn.prepare import Codec, prepare, vocabulary_of
    from netssmd.model.checkpoint import folder_of

    if add_labels and model is None:
        raise UsageError("--add-labels: to what? Name a model with --model")
    vocabulary = None if model is None else vocabulary_of(folder_of(model))
    if vocabulary is not None and vocabulary.get("name") != codec:
        name = vocabulary.get("name")
        raise UsageError(f"{model}: its vocabulary is the {name} codec's; say --codec {name}")
    chosen: Codec = ContextCodec()
    if codec == "bytes":
        size = int(packet_bytes) if vocabulary is None else int(vocabulary["packet_bytes"])
        protocols = ("tcp",) if tcp_only else ()
        chosen = ByteCodec(size, protocols, not free, conditioned, single_flow, phase or "", sample_tokens)
    elif tcp_only or single_flow or phase or sample_tokens or free or conditioned:
        raise UsageError("--tcp-only, --single-flow, --phase, --sample-tokens, --free, --conditioned: of --codec bytes")
    with progress() as advance:
        prepared = prepare(
            roots,
            output,
            chosen,
            manifest=manifest,
            workers=workers,
            escapes=include_escaped,
            vocabulary=vocabulary,
            add_labels=add_labels,
            overwrite=overwrite,
            advance=advance,
        )
    for name, reason in prepared.problems[:SHOWN_PROBLEMS]:
        click.echo(f"netssmd: {name}: {reason}", err=True)
    if len(prepared.problems) > SHOWN_PROBLEMS:
        click.echo(f"netssmd: {len(prepared.problems) - SHOWN_PROBLEMS} more in {output / 'files.json'}", err=True)
    click.echo(json.dumps(summary(prepared)) if as_json else table(prepared))


@contextlib.contextmanager
def progress() -> Iterator["Advance"]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def advance(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done)

        yield advance


def summary(prepared: "Prepared") -> dict[str, Any]:
    labels: dict[str, Any] = {}
    for (split, label), tally in sorted(prepared.tallies.items()):
        labels.setdefault(label, {})[split] = {
            "sessions": tally.sessions,
            "packets": tally.packets,
            "tokens": tally.tokens,
            "escaped_packets": tally.escaped,
        }
    tallies = prepared.tallies.values()
    packets, tokens = sum(t.packets for t in tallies), sum(t.tokens for t in tallies)
    return {
        "path": str(prepared.path),
        "sessions": sum(t.sessions for t in tallies),
        "packets": packets,
        "tokens": tokens,
        "tokens_per_packet": tokens / packets,
        "escaped_packets": sum(t.escaped for t in tallies),
        "problems": [{"file": name, "reason": reason} for name, reason in prepared.problems],
        "labels": labels,
    }


def table(prepared: "Prepared") -> str:
    """By label: sessions (train, val), packets, tokens a packet, escaped packets."""
    whole = summary(prepared)
    width = max(5, *(len(label) for label in whole["labels"]))
    rows = [f"{'label':<{width}}  {'train':>7} {'val':>6} {'packets':>11} {'tokens/packet':>13} {'escaped':>8}"]
    for label, splits in whole["labels"].items():
        none = {"sessions": 0, "packets": 0, "tokens": 0, "escaped_packets": 0}
        train, val = splits.get("train", none), splits.get("val", none)
        packets, tokens, escaped = (train[key] + val[key] for key in ("packets", "tokens", "escaped_packets"))
        rows.append(
            f"{label:<{width}}  {train['sessions']:>7,} {val['sessions']:>6,} {packets:>11,} "
            f"{tokens / packets:>13.2f} {escaped:>8,}"
        )
    rows.append(
        f"{whole['path']}: {whole['sessions']:,} sessions, {whole['packets']:,} packets, {whole['tokens']:,} tokens "
        f"({whole['tokens_per_packet']:.2f} a packet), {whole['escaped_packets']:,} escaped, "
        f"{len(whole['problems']):,} problems"
    )
    return "\n".join(rows)
