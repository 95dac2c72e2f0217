"""`netssmd bench`: packets and tokens a second on this machine, and where the time goes.

In: a model. Out: a table on stdout or one JSON object, progress on stderr, a plot on request (matplotlib). What is
measured, and how, is daemon/speed.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from netssmd.errors import NetssmdError


@click.command("bench")
@click.option("--model", default="embedded", help="Checkpoint folder. Default: the embedded model.")
@click.option("--weights", type=click.Choice(["auto", "fp32", "bf16", "int8"]), default="auto", show_default=True)
@click.option("--quick", is_flag=True, help="Fewer points, under half a minute.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw it, too (matplotlib).")
def command(model: str, weights: str, quick: bool, as_json: bool, plot: Path | None) -> None:
    """Measure packets and tokens a second on this machine."""
    from netssmd.engine.opening import open_model

    figure = _figure() if plot else None
    opened = open_model(model, "cpu", weights=weights)  # type: ignore[arg-type]
    from netssmd.daemon.speed import measure

    result = measure(opened, quick, lambda what: click.echo(f"bench: {what}", err=True))
    click.echo(json.dumps(result, indent=1) if as_json else "\n".join(lines(result)))
    if plot:
        draw(figure, result, plot)


def lines(result: dict[str, Any]) -> list[str]:
    """The tables for people."""
    text = [
        f"{result['model']}: {result['parameters'] / 1e6:.1f} M parameters, {result['weights']} on {result['isa']}, "
        f"state {result['state_bytes'] / 1e6:.2f} MB a session, {result['cores']} cores",
        "",
        "backend alone, 1 thread          tokens/s   of the roofline",
    ]
    text += [
        f"  {k['slots']:4} sessions a call        {k['tokens_per_second']:10,.0f}   {k['roofline_share']:14.0%}"
        for k in result["kernel"]
    ]
    if "skipped" in result:
        text.append(f"  no comparison with eager torch: {result['skipped']}")
    else:
        paper = result["paper"]
        text += [
            f"  eager torch, 1 session       {result['eager_tokens_per_second']:10,.0f}   "
            f"the backend is {result['ratio_to_eager']:.0f} times as fast, "
            f"{result['ratio_to_eager_in_groups']:.0f} times in groups",
            "",
            f"the paper's configuration ({paper['parameters'] / 1e6:.1f} M parameters, "
            f"{paper['tokens_per_packet']} byte tokens a packet):",
            f"  eager torch {paper['eager_tokens_per_second']:.0f} tokens/s, {paper['packets_per_second']:.2f} "
            f"packets/s; on all cores {paper['eager_tokens_per_second_all_cores']:.0f} tokens/s",
        ]
        text += [
            f"  {row['weights']}, {row['threads']} thread{'s' * (row['threads'] > 1)}: "
            f"{row['tokens_per_second']:.0f} tokens/s, "
            f"{row['tokens_per_second'] / paper['eager_tokens_per_second']:.1f} times the eager loop, "
            f"{row['roofline_share']:.2f} of one core's roofline"
            for row in paper["cpu"]
        ]
    text += [
        "",
        "daemon at top speed into PCAP files              processor us a packet",
        "sessions threads  packets/s   tokens/s |  model engine output control | python     RSS",
    ]
    for run in result["runs"]:
        cpu = run["cpu_us_per_packet"]
        text.append(
            f"{run['sessions']:8} {run['threads']:7} {run['packets_per_second']:10,.0f} "
            f"{run['tokens_per_second']:10,.0f} | {cpu['model']:6.0f} {cpu['engine']:6.0f} {cpu['output']:6.0f} "
            f"{cpu['control']:7.0f} | {run['python_share']:6.0%} {run['rss_mb']:4.0f} MB"
        )
    first, cpu_seconds = result["first_packet_seconds"], result["first_packet_cpu_seconds"]
    text += ["", f"start to first packet: {first:.2f} s, {cpu_seconds:.2f} s of processor"]
    if "weights_kl" in result:
        kl = ", ".join(f"{kind} {value:.1e}" for kind, value in result["weights_kl"].items())
        sizes = ", ".join(f"{size}: {value:.1f}" for size, value in result["group_us_per_token"].items())
        text += [f"KL from fp32, nats a token: {kl}", f"processor us a token by group size: {sizes}"]
    return text


def _figure() -> Any:
    """Before anything is measured: is matplotlib there?"""
    try:
        import matplotlib
    except ImportError:
        raise NetssmdError("bench: --plot wants matplotlib: pip install 'netssmd[evaluate]'") from None
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(10, 4), layout="constrained")


def draw(figure: Any, result: dict[str, Any], path: Path) -> None:
    """Left: packets a second by sessions. Right: where the time of a packet goes."""
    left, right = figure.subplots(1, 2)
    for threads in sorted({run["threads"] for run in result["runs"]}):
        runs = [run for run in result["runs"] if run["threads"] == threads]
        left.plot([r["sessions"] for r in runs], [r["packets_per_second"] for r in runs], "o-",
                  label=f"{threads} thread{'s' * (threads > 1)}")  # fmt: skip
    if result.get("packets_per_second_paper_config"):
        paper = result["packets_per_second_paper_config"]
        left.axhline(paper, color="grey", ls="--", label="paper's model, eager torch")
    left.set(xscale="log", yscale="log", xlabel="sessions", ylabel="packets/s into PCAP files",
             title=f"{result['parameters'] / 1e6:.1f} M parameters, {result['weights']}, {result['isa']}")  # fmt: skip
    left.legend()
    bottom = [0.0] * len(result["runs"])
    names = [f"{run['sessions']}\n{run['threads']}t" for run in result["runs"]]
    for stage in result["runs"][0]["cpu_us_per_packet"]:
        heights = [run["cpu_us_per_packet"][stage] for run in result["runs"]]
        right.bar(names, heights, bottom=bottom, label=stage)
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    right.set(ylabel="processor microseconds a packet", xlabel="sessions, threads", title="where the time goes")
    right.legend()
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise NetssmdError(f"{path}: cannot be written: {error.strerror}") from None
