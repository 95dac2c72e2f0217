"""`netssmd evaluate`: generated captures beside real ones. A thin shell around `netssmd.learn.evaluate`.

In: two folders shaped like the training sets, the second perhaps written by `netssmd generate`. Out: a table a topic on
stdout; report.html, report.json and report.md in DIR; a progress bar, and one line for each capture that cannot be
read, on stderr.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netssmd.errors import OutputError

if TYPE_CHECKING:
    from netssmd.learn.evaluate.verdict import Steps

FOLDER = click.Path(path_type=Path)


@click.command("evaluate", context_settings={"show_default": True})
@click.argument("real", type=FOLDER)
@click.argument("synthetic", type=FOLDER)
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder for report.html, .json and .md.")
@click.option("--split", default="val", help="Split of REAL to judge by ('all' for every capture).")
@click.option("--synthetic-split", default="all", help="Split of SYNTHETIC to judge.")
@click.option("--floor", type=FOLDER, help="Second real set.  [default: the floor's split of REAL]")
@click.option("--floor-split", default="train", help="Split of the second real set.")
@click.option("--only", multiple=True, metavar="LABEL", help="Judge these labels only; repeatable.")
@click.option("--per-label", type=click.IntRange(1), help="At most so many sessions of each label and set.")
@click.option("--labels", help="Labels of the label test, comma-separated.  [default: ten of the lab's]")
@click.option("--first", type=click.IntRange(2), default=300, help="Packets of a session that classifiers see.")
@click.option("--trees", type=click.IntRange(1), default=300, help="Trees of the random forests.")
@click.option("--seed", type=int, default=0, help="Seed of the random forests.")
@click.option("--bootstrap", type=click.IntRange(0), default=40, help="Replicates for the intervals; 0: none.")
@click.option("--mixing", type=click.Choice(["all", "forest", "none"]), default="all", help="Classifiers of Figure 2.")
@click.option("--referees", is_flag=True, help="Ask capinfos, tshark and Suricata too.")
@click.option("--referee-sessions", type=click.IntRange(1), default=3, help="Sessions of each label for them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, the same as report.json.")
def command(
    real: Path, synthetic: Path, output: Path, split: str, synthetic_split: str, floor: Path | None, floor_split: str,
    only: tuple[str, ...], per_label: int | None, labels: str | None, first: int, trees: int, seed: int,
    bootstrap: int, mixing: str, referees: bool, referee_sessions: int, as_json: bool,
) -> None:  # fmt: skip
    """Judge generated captures beside real ones."""
    from netssmd.learn.evaluate import page, report
    from netssmd.learn.evaluate.classify import TEN_LABELS
    from netssmd.learn.evaluate.mixing import MODELS
    from netssmd.learn.evaluate.verdict import How, Sets, judge

    def part(name: str) -> str | None:
        return None if name == "all" else name

    sets = Sets(real, synthetic, floor, part(split), part(synthetic_split), part(floor_split), only, per_label)
    chosen = tuple(label.strip() for label in labels.split(",")) if labels else TEN_LABELS
    models = MODELS[: {"all": len(MODELS), "forest": 1, "none": 0}[mixing]]
    how = How(chosen, first, trees, seed, bootstrap, models, referees, referee_sessions)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: {error.strerror}; name a folder that can be made") from None
    with progress() as steps:
        verdict = judge(sets, how, steps, lambda text: click.echo(f"netssmd: {text}", err=True))
    whole = json.dumps(report.as_object(verdict.about, verdict.sheets), indent=1)
    counted = verdict.about["sets"].items()
    sizes = ", ".join(f"{name}: {some['sessions']:,} sessions, {some['packets']:,} packets" for name, some in counted)
    try:
        (output / "report.json").write_text(whole + "\n")
        title = f"{synthetic.name} beside {real.name}"
        (output / "report.md").write_text(report.markdown(title, [sizes], verdict.sheets))
        (output / "report.html").write_text(page.page(title, [sizes], verdict.sheets, verdict.pictures))
    except OSError as error:
        raise OutputError(f"{output}: {error.strerror}; the report could not be written") from None
    click.echo(whole if as_json else f"{sizes}\n\n{report.text(verdict.sheets)}")


@contextlib.contextmanager
def progress() -> "Iterator[Steps]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def begin(stage: str, steps: int) -> Callable[[], None]:
            task = bar.add_task(stage, total=steps)
            return lambda: bar.advance(task)

        yield begin
