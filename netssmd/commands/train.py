"""`netssmd train`: a data folder in, a checkpoint out. A thin shell around `netssmd.learn.train`.

Out: a progress bar on stderr (plain lines where stderr is no terminal), log.jsonl in the output folder, and at the end
one line (or one JSON object) on stdout. TERM and INT let the running step finish, save, and exit; the same command goes
on from there. A second INT ends at once.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from netssmd.errors import UsageError

if TYPE_CHECKING:
    from netssmd.learn.train import Progress, Report, Trained, Validation


@click.command
@click.option("-c", "--config", "file", type=click.Path(path_type=Path), help="Training file; see config/train.toml.")
@click.option("--data", help="Data folder; instead of the file's.")
@click.option("-o", "--output", help="Output folder; instead of the file's output.path.")
@click.option("--base", help="Fine-tune this model, instead of beginning anew; instead of the file's.")
@click.option(
    "--hours", type=click.FloatRange(min=0, min_open=True), help="Train this long; instead of the file's [length]."
)
@click.option("--phases", multiple=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Byte codec: fine-tune --base into three models, of the handshakes, transfers and teardowns of the "
              "flows in these captures. Repeatable.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Begin anew although the output folder holds a training to go on with.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout at the end.")
def command(
    file: Path | None, data: str | None, output: str | None, base: str | None, hours: float | None,
    phases: tuple[Path, ...], fresh: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train a model on a prepared training set."""
    try:
        from netssmd.learn.train import train
    except ImportError as error:
        raise UsageError(f"training needs {error.name}; install it with `pip install 'netssmd[train]'`") from None
    from netssmd.learn.codec import codec_of
    from netssmd.learn.config import TrainConfig, check, load_train_config
    from netssmd.learn.prepare import vocabulary_of

    config = TrainConfig() if file is None else load_train_config(file)
    config.data = data or config.data
    config.base = base or config.base
    config.output.path = output or config.output.path
    if hours is not None:
        config.length.hours, config.length.tokens, config.length.epochs = hours, 0, 0.0
    if phases and not config.base:
        raise UsageError("--phases: fine-tunes a byte model; give its folder as --base")
    if phases and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--phases: in one process; for several, `netssmd prepare --phase` and train each")
    folder = Path(config.output.path)
    with interruptible() as stop, reporting() as report:
        for phase in prepared_phases(phases, folder, config.base) if phases else [""]:
            if phase:
                config.data, config.output.path = str(folder / phase / "data"), str(folder / phase)
            check(config, str(file or "training"))
            codec = codec_of(vocabulary_of(Path(config.data)))
            trained = train(config, codec, report=report, stop=stop, fresh=fresh)
            if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one speaks
                click.echo(json.dumps(summary(trained)) if as_json else told(trained))
            if not trained.finished:
                return
    if phases and not as_json:
        first, *others = [folder / phase / "model" for phase in PHASES]
        then = " ".join(f"--then {model}" for model in others)
        click.echo(f"netssmd generate --model {first} {then} --label LABEL -o OUT.pcap")


PHASES = ("handshake", "transfer", "teardown")


def prepared_phases(roots: tuple[Path, ...], folder: Path, base: str) -> Iterator[str]:
    """Each phase, its data folder made of the captures, unless an earlier run made it. Raises UsageError."""
    from netssmd.commands.prepare import progress
    from netssmd.learn.byte_codec import ByteCodec
    from netssmd.learn.prepare import prepare, vocabulary_of

    vocabulary = vocabulary_of(Path(base))
    if vocabulary.get("name") != "bytes":
        raise UsageError(f"--phases: {base} is a model of the {vocabulary.get('name')} codec; it takes a byte model")
    for phase in PHASES:
        data = folder / phase / "data"
        if not (data / "vocabulary.json").exists():
            with progress() as advance:
                codec = ByteCodec(int(vocabulary["packet_bytes"]), phase=phase)
                prepare(roots, data, codec, vocabulary=vocabulary, overwrite=True, advance=advance)
        yield phase


class Stop:
    """Becomes true at the first TERM or INT; the next one is no longer caught."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        for caught in (signal.SIGTERM, signal.SIGINT):
            signal.signal(caught, signal.SIG_DFL if caught is signal.SIGTERM else signal.default_int_handler)
        print("netssmd: finishing the step and saving; once more to end at once", file=sys.stderr)


@contextlib.contextmanager
def interruptible() -> Iterator[Stop]:
    stop = Stop()
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def reporting() -> Iterator["Report"]:
    """A bar on a terminal, a line an interval elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from netssmd.learn.train import Validation

    console = Console(stderr=True)
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.percentage:>4.1f} %"),
        TextColumn("{task.fields[text]}"),
    )
    with Bar(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("training", total=1.0, text="")

        def report(news: "Progress | Validation") -> None:
            if isinstance(news, Validation):
                console.print(validation_line(news), highlight=False, soft_wrap=True)
            elif console.is_terminal:
                bar.update(task, completed=news.share, text=progress_line(news))
            else:
                print(f"{news.share:6.1%}  {progress_line(news)}", file=sys.stderr, flush=True)

        yield report


def progress_line(news: "Progress") -> str:
    left = int(news.left_seconds) if news.share else 0
    return (
        f"step {news.step}  {news.bits_per_packet:.2f} bits/packet  {news.packets_per_second:,.0f} packets/s  "
        f"{news.tokens_per_second:,.0f} tokens/s  {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
    )


def validation_line(news: "Validation") -> str:
    worst = sorted(news.by_field.items(), key=lambda item: -item[1])[:4]
    fields = ", ".join(f"{name} {bits:.2f}" for name, bits in worst)
    judged = f"{news.bits_per_packet:.2f} bits/packet, label gap {news.label_gap:.2f}"
    return f"validation at step {news.step}: {judged} ({fields})"


def summary(trained: "Trained") -> dict[str, object]:
    validation = trained.validation
    return {
        "finished": trained.finished,
        "step": trained.step,
        "tokens": trained.tokens,
        "model": str(trained.model) if trained.model else None,
        "bits_per_packet": validation.bits_per_packet if validation else None,
        "label_gap": validation.label_gap if validation else None,
        "by_label": validation.by_label if validation else None,
        "by_field": validation.by_field if validation else None,
    }


def told(trained: "Trained") -> str:
    if not trained.finished:
        return f"stopped at step {trained.step:,} and saved; the same command goes on from there"
    judged = f", {trained.validation.bits_per_packet:.2f} bits/packet on validation" if trained.validation else ""
    return f"{trained.model}: {trained.step:,} steps, {trained.tokens:,} tokens{judged}"
