"""`python -m tools.lab record OUT`: see docs/lab.md."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from netssmd.errors import NetssmdError, UsageError
from netssmd.units import parse_size_bytes
from tools.lab import recorder, session

LONG_SHARE, PACKETS, SECONDS, SNAPLEN = 0.06, 30_000, 90.0, 128


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Record labelled sessions of real clients and servers across an emulated access link."""


@main.command()
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--minutes", type=click.FloatRange(0), default=0.0, help="Start sessions for so long.")
@click.option("--sessions", type=click.IntRange(0), default=0, help="Record so many, the labels taking turns.")
@click.option("--seed", default=1, show_default=True, help="Conditions, hosts and workloads follow from it.")
@click.option("--label", "labels", multiple=True, help="Only this label; may be repeated. Without it: all.")
@click.option("--jobs", type=click.IntRange(1, 256), default=4, show_default=True, help="Sessions at once.")
@click.option(
    "--long",
    "long_share",
    type=click.FloatRange(0, 1),
    default=LONG_SHARE,
    show_default=True,
    help="Share that is 6 to 16 times longer.",
)
@click.option(
    "--packets", type=click.IntRange(1), default=PACKETS, show_default=True, help="Cut a capture after so many."
)
@click.option(
    "--seconds",
    type=click.FloatRange(1),
    default=SECONDS,
    show_default=True,
    help="Cut a session after so many (more for long ones).",
)
@click.option(
    "--snaplen", type=click.IntRange(64, 65535), default=SNAPLEN, show_default=True, help="Bytes kept of a packet."
)
@click.option("--free-disk", default="1GB", show_default=True, help="Stop when less is free.")
@click.option(
    "--reorder",
    "reorder_pct",
    type=click.FloatRange(0, 100),
    default=0.0,
    help="Percentage of frames that overtake others.",
)
@click.option("--debug", is_flag=True, help="Show what the two sides write.")
@click.option("--list", "list_them", is_flag=True, help="Say which workloads there are and what they lack here.")
@click.option("--dry-run", is_flag=True, help="Say what would be recorded, up to --sessions or 20.")
def record(out: Path | None, minutes: float, sessions: int, seed: int, labels: tuple[str, ...], jobs: int,
           long_share: float, packets: int, seconds: float, snaplen: int, free_disk: str, reorder_pct: float,
           debug: bool, list_them: bool, dry_run: bool) -> None:  # fmt: skip
    """Record into the folder OUT: OUT/<label>/<n>.pcap.gz and OUT/manifest.csv, for `netssmd prepare`.

    A folder that has sessions is gone on with.
    """
    try:
        known = recorder.load_workloads()
        if list_them:
            show_list(known)
            return
        if out is None:
            raise UsageError("name a folder for the captures: python -m tools.lab record OUT --minutes 10")
        if not dry_run and not minutes and not sessions:
            raise UsageError("say how much: --minutes or --sessions")
        chosen = choose(known, labels)
        wanted = recorder.Wanted(
            out, chosen, seed, sessions or (20 if dry_run else 0), minutes, jobs, long_share, packets, seconds,
            snaplen, parse_size_bytes(free_disk), reorder_pct, debug,
        )  # fmt: skip
        if dry_run:
            show_plan(wanted)
            return
        sys.exit(run(wanted, known))
    except NetssmdError as error:
        click.echo(f"lab: {error}", err=True)
        sys.exit(error.exit_code)


def choose(known: dict[str, object], labels: tuple[str, ...]) -> list[str]:
    """The labels asked for, or all that can run here; those that cannot are named. Raises UsageError."""
    for label in labels:
        if label not in known:
            raise UsageError(f"no workload {label!r}; --list names them")
    chosen = []
    for label in labels or known:
        if why := recorder.missing(known[label]):
            click.echo(f"lab: skipped {label}: {why}", err=True)
        else:
            chosen.append(label)
    if not chosen:
        raise UsageError("no workload can run here; --list says what each lacks")
    return chosen


def show_list(known: dict[str, object]) -> None:
    table = Table("label", "category", "what it does", "lacks here", box=None)
    for label, workload in known.items():
        story = (workload.__doc__ or "").strip().splitlines()[0]
        table.add_row(label, workload.CATEGORY, story, recorder.missing(workload))  # type: ignore[attr-defined]
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def show_plan(wanted: recorder.Wanted) -> None:
    table = Table("file", "length", "Mbit/s", "RTT ms", "loss %", "IP", "congestion", "client", box=None)
    for label, number, seed, length in recorder.plan(wanted, {}):
        scene = session.draw_scene(random.Random(seed))
        link = scene.conditions
        table.add_row(
            f"{label}/{number}.pcap.gz", f"{length:g}", f"{link.rate_mbit:g}", f"{link.rtt_ms:g}", f"{link.loss_pct:g}",
            "4 and 6" if scene.v6 else "4", scene.congestion, scene.client_stack,
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def run(wanted: recorder.Wanted, known: dict[str, object]) -> int:
    """Record, with a progress bar where there is a terminal. 1 if nothing was recorded."""
    console = Console(stderr=True)
    start = time.monotonic()
    # No thread of its own: the recorder forks.
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal) as progress:
        total = wanted.minutes * 60 if wanted.minutes else wanted.sessions
        task = progress.add_task("recording", total=total, now="")
        shown = 0.0

        def news(tally: recorder.Tally, jobs: list[recorder.Job]) -> None:
            nonlocal shown
            if progress.disable or time.monotonic() - shown < 0.25:
                return
            shown = time.monotonic()
            labels = " ".join(sorted({job.spec.label for job in jobs}))
            failed = f", {len(tally.failures)} failed" if tally.failures else ""
            now = f"{tally.sessions:,} sessions, {tally.packets:,} packets{failed}; now {labels}"
            done = min(time.monotonic() - start, total) if wanted.minutes else tally.sessions + len(tally.failures)
            progress.update(task, completed=done, now=now[: max(20, console.width - 60)])
            progress.refresh()

        tally = recorder.Recorder(wanted, known, news).run()
    minutes = (time.monotonic() - start) / 60
    for name, why in tally.failures:
        click.echo(f"lab: {name}: {why}", err=True)
    click.echo(
        f"{wanted.out}: {tally.sessions:,} sessions, {tally.packets:,} packets, {tally.bytes / 1e6:,.1f} MB in "
        f"{minutes:.1f} minutes: {tally.sessions / minutes:.1f} sessions and {tally.packets / minutes:,.0f} packets a "
        f"minute; {len(tally.failures)} failed"
    )
    return 0 if tally.sessions else 1


if __name__ == "__main__":
    main()
