"""`netssmd top`: a live view of a daemon, or of a fleet, in the terminal.

In: the status that `netssmd ctl status` gives, over the unix socket or an MQTT broker. Out: one table a daemon (labels,
rates, lateness, deficit, findings, sinks, broker), drawn again every `--interval`; --once prints it and ends.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netssmd.errors import NetssmdError

if TYPE_CHECKING:
    from rich.console import RenderableType

Tree = dict[str, Any]


@click.command("top")
@click.option("--socket", type=click.Path(path_type=Path), help="The daemon's socket; default: the one there is.")
@click.option("--broker", metavar="HOST[:PORT]", help="The nodes of this MQTT broker instead.")
@click.option("-c", "--config", type=click.Path(path_type=Path), help="TOML file with an [mqtt] section.")
@click.option("--user", help="For the broker; with --password-file.")
@click.option("--password-file", help="A file whose first line is the password.")
@click.option("--ca-file", help="TLS: the authority that signed the broker's certificate.")
@click.option("--interval", type=click.FloatRange(0.2, 3600), default=1.0, help="Seconds between two looks; default 1.")
@click.option("--once", is_flag=True, help="Print it once, and end.")
def command(
    socket: Path | None, broker: str | None, config: Path | None, user: str | None, password_file: str | None,
    ca_file: str | None, interval: float, once: bool,
) -> None:  # fmt: skip
    """Live view of running daemons: sessions, rates, lateness, findings, sinks."""
    if broker or config:
        from netssmd.daemon import fleet

        settings = fleet.settings(
            config, broker or "", user=user or "", password_file=password_file or "", ca_file=ca_file or ""
        )
        look: Callable[[], list[Tree]] = lambda: fleet.fleet_status(settings, 2.0)  # noqa: E731
    else:
        look = _of_socket(socket)
    from rich.console import Console, Group
    from rich.live import Live

    console = Console()
    if once:
        console.print(Group(*map(view, look())))
        return
    try:
        with Live(Group(*map(view, look())), console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                live.update(Group(*map(view, look())), refresh=True)
    except KeyboardInterrupt:
        return


def _of_socket(path: Path | None) -> Callable[[], list[Tree]]:
    from netssmd.daemon.control_client import Asker, find_socket

    asker = Asker(path or find_socket())
    return lambda: [asker.ask("status")]


def view(status: Tree) -> "RenderableType":
    """One daemon's status as a table: its labels, with the totals above and below."""
    from rich.table import Table
    from rich.text import Text

    if status["state"] == "offline":
        return Text(f"{status['node']}: offline", style="dim")
    if "labels" not in status:
        raise NetssmdError("what answers tells no status that this version knows")
    table = Table(title=Text(head(status)), caption=Text("\n".join(foot(status))), caption_justify="left", expand=True)
    table.add_column("label")
    for name in ("weight", "live", "started", "ended", "packets", "MB", "packets/s"):
        table.add_column(name, justify="right")
    for label, row in status["labels"].items():
        numbers = (row["active"], row["started"], row["ended"], row["packets"])
        table.add_row(
            Text(label), f"{row['weight']:g}", *map(str, numbers), f"{row['bytes'] / 1e6:.1f}",
            f"{row['packets_per_second']:.0f}",
        )  # fmt: skip
    return table


def head(status: Tree) -> str:
    """Who it is and how it goes."""
    traffic, sessions = status["traffic"], status["sessions"]
    name = status.get("node") or (status.get("broker") or {}).get("node") or "netssmd"
    state = status["state"] + (f" ({', '.join(status['pauses'])})" if status["pauses"] else "")
    return (
        f"{name}: {state}, up {status['uptime_seconds']:.0f} s, {sessions['active']} of {sessions['slots']} sessions, "
        f"{traffic['packets_per_second']:.0f} packets/s, {traffic['bits_per_second'] / 1e6:.2f} Mbps"
    )


def foot(status: Tree) -> list[str]:
    """Timing, findings, sinks, files, broker: a line each, as far as there are any."""
    timing, cap = status["timing"], status["traffic"]["cap_packets_per_second"]
    lines = [
        f"lateness {timing['lateness_seconds'] * 1e3:.1f} ms, worst {timing['lateness_max_seconds'] * 1e3:.0f} ms, "
        f"{timing['late_packets']} late; deficit {timing['deficit_seconds']:.1f} s, throttled "
        f"{timing['throttled_seconds']:.1f} s{f', cap {cap:g} packets/s' if cap else ''}; "
        f"{timing['held_packets']} packets held"
    ]
    compliance = status.get("compliance")
    if compliance:
        shown = ", ".join(f"{name} {count}" for name, count in sorted(compliance["findings"].items()) if count)
        lines.append(f"findings {shown or 'none'}")
    lines += [f"sink {sink['name']}: {sink['packets']} packets, {sink['dropped']} dropped" for sink in status["sinks"]]
    if status.get("slices"):
        lines.append(f"files {status['slices']['files']} complete in {status['slices']['directory']}")
    if status.get("broker"):
        broker = status["broker"]
        lines.append(f"broker {broker['host']}:{broker['port']} {broker['state']} {broker['error']}".rstrip())
    return lines
