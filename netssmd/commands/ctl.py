"""`netssmd ctl COMMAND ...`: ask a running daemon over its unix socket, or a fleet over an MQTT broker.

In: a command of daemon/control.py's table, whose rows make the sub-commands and their options here. Out: the result on
stdout, as lines or with --json as one object (over a broker: a list of replies); exit 1 where nobody answers, 2 for
what the daemon refuses. `netssmd ctl --broker HOST` alone shows the fleet.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from netssmd.daemon.control import COMMANDS, FLAG, KINDS, WEIGHTS, Argument, Command
from netssmd.errors import NetssmdError, UsageError

WHERE = (
    click.Option(["--socket"], type=click.Path(path_type=Path), help="The daemon's socket; default: the one there is."),
    click.Option(["--broker"], metavar="HOST[:PORT]", help="Over this MQTT broker instead."),
    click.Option(["-c", "--config", "config"], type=click.Path(path_type=Path),
                 help="TOML file with an [mqtt] section: broker, TLS, user, password file."),
    click.Option(["--user"], help="For the broker; with --password-file."),
    click.Option(["--password-file"], help="A file whose first line is the password."),
    click.Option(["--ca-file"], help="TLS: the authority that signed the broker's certificate."),
    click.Option(["--node"], help="Over a broker: this node."),
    click.Option(["--group"], help="Over a broker: the nodes of this group."),
    click.Option(["--all", "everyone"], is_flag=True, help="Over a broker: all nodes."),
    click.Option(["--timeout"], type=click.FloatRange(0.1, 3600), help="Seconds to wait for replies; default 5."),
    click.Option(["--json", "as_json"], is_flag=True, help="One object on stdout."),
)  # fmt: skip
NAMES = [str(option.name) for option in WHERE]


def _options(argument: Argument) -> click.Parameter:
    """The click parameter of one argument."""
    name, kind = argument.name, argument.kind
    if argument.positional:
        many = kind in (WEIGHTS, KINDS)
        return click.Argument([name], nargs=-1 if many else 1, required=argument.required, metavar=kind.shown.upper())
    option = f"--{name.replace('_', '-')}"
    if kind is FLAG:
        return click.Option([option, name], is_flag=True, help=argument.help)
    return click.Option([option, name], metavar=kind.shown.upper(), help=argument.help, required=argument.required)


def read(argument: Argument, value: Any) -> Any:
    """A value of the command line, as JSON carries it."""
    kind = argument.kind
    if kind is WEIGHTS:
        pairs = [one.partition("=") for one in value]
        try:
            return {label: float(weight or 1) for label, _, weight in pairs}
        except ValueError:
            raise UsageError(f"{argument.name}: write labels with weights, such as {kind.example}") from None
    if kind is KINDS:
        return list(value) or None
    if isinstance(value, str) and kind.shown not in ("text", "time"):
        try:
            return int(value) if value.lstrip("-").isdigit() else float(value)
        except ValueError:
            raise UsageError(f"{argument.name}: {value!r} is no number; write one such as {kind.example}") from None
    return value


def _command(row: Command) -> click.Command:
    def call(**given: Any) -> None:
        context = click.get_current_context()
        outer = context.parent.params if context.parent else {}
        where = {name: given.pop(name) or outer.get(name) for name in NAMES}
        arguments = {a.name: read(a, given[a.name]) for a in row.arguments if given[a.name] is not None}
        arguments = {name: value for name, value in arguments.items() if value is not None and value is not False}
        ask(row, arguments, where)

    parameters = [_options(argument) for argument in row.arguments]
    return click.Command(row.name, params=[*parameters, *WHERE], callback=call, help=row.help)


@click.group("ctl", invoke_without_command=True, params=list(WHERE))
@click.pass_context
def command(context: click.Context, /, **where: Any) -> None:
    """Ask a running daemon, or a fleet: status, start, stop, pause, rate, mix, watch ..."""
    if context.invoked_subcommand is None:
        if not (where["broker"] or where["config"]):
            raise click.exceptions.NoArgsIsHelpError(context)
        from netssmd.daemon.fleet import fleet_status

        show_fleet(fleet_status(_settings(where), where["timeout"] or 2.0), where["as_json"])


for _row in COMMANDS:
    command.add_command(_command(_row))


def ask(row: Command, arguments: dict[str, Any], where: dict[str, Any]) -> None:
    """Over the socket or the broker, and show what comes back."""
    if where["broker"] or where["config"]:
        _ask_fleet(row, arguments, where)
        return
    if where["node"] or where["group"] or where["everyone"]:
        raise UsageError("--node, --group and --all need --broker, or --config with an [mqtt] section")
    from netssmd.daemon.control_client import Asker, find_socket

    asker = Asker(where["socket"] or find_socket(), where["timeout"] or 10.0)
    try:
        result = asker.ask(row.name, arguments)
        if not row.streams:
            show(row.name, result, where["as_json"])
            return
        for event in asker.events():
            click.echo(json.dumps(event) if where["as_json"] else event_line(event))
    except KeyboardInterrupt:
        pass
    finally:
        asker.close()


def _ask_fleet(row: Command, arguments: dict[str, Any], where: dict[str, Any]) -> None:
    from netssmd.daemon import fleet

    settings = _settings(where)
    if row.streams:
        try:
            for event in fleet.watch(settings, arguments.get("events", []), where["node"] or ""):
                click.echo(json.dumps(event) if where["as_json"] else event_line(event))
        except KeyboardInterrupt:
            pass
        return
    to = fleet.address(row.name, where["node"] or "", where["group"] or "", bool(where["everyone"]))
    replies = fleet.ask(settings, to, row.name, arguments, where["timeout"] or 5.0)
    if where["as_json"]:
        click.echo(json.dumps(replies))
    for reply in replies if not where["as_json"] else []:
        if reply.get("ok"):
            click.echo(f"{reply.get('node')}:")
            show(row.name, reply["result"], False, "  ")
    refused = [f"{reply.get('node')}: {reply.get('error')}" for reply in replies if not reply.get("ok")]
    if not replies:
        raise NetssmdError(f"no node answered on {to.shown}; `netssmd ctl --broker {settings.host}` shows the fleet")
    if refused:
        raise UsageError("\n".join(refused))
    if row.name == "start":
        missing = arguments.get("count", 1) - sum(reply["result"]["started"] for reply in replies)
        if missing > 0:
            raise NetssmdError(f"{missing} sessions found no node with room")


def _settings(where: dict[str, Any]) -> Any:
    from netssmd.daemon.fleet import settings

    return settings(
        where["config"], where["broker"] or "", user=where["user"] or "", password_file=where["password_file"] or "",
        ca_file=where["ca_file"] or "",
    )  # fmt: skip


# --- showing ---


def show(name: str, result: dict[str, Any], as_json: bool, indent: str = "") -> None:
    """A result as JSON, or as lines."""
    if as_json:
        click.echo(json.dumps(result))
        return
    lines = status_lines(result) if name == "status" else plain_lines(result)
    for line in lines:
        click.echo(indent + line)


def plain_lines(result: dict[str, Any]) -> list[str]:
    """`key: value`, lists by commas."""
    shown: Callable[[Any], str] = lambda v: (  # noqa: E731
        ", ".join(map(str, v)) if isinstance(v, list)
        else " ".join(f"{k}={x:g}" for k, x in v.items()) if isinstance(v, dict) else str(v)
    )  # fmt: skip
    return [f"{key.replace('_', ' ')}: {shown(value)}" for key, value in result.items()]


def status_lines(status: dict[str, Any]) -> list[str]:
    """The status for people: a few lines, then the labels."""
    traffic, timing, sessions = status["traffic"], status["timing"], status["sessions"]
    state = status["state"] + (f" ({', '.join(status['pauses'])})" if status["pauses"] else "")
    cap = traffic["cap_packets_per_second"]
    lines = [
        f"netssmd {status['version']}, model {status['model']}, backend {status['backend']}, seed {status['seed']}",
        f"{state}, up {status['uptime_seconds']:.0f} s",
        f"sessions: {sessions['active']} live of {sessions['slots']} places, room for {sessions.get('room', 0)}, "
        f"{sessions['started']} started",
        f"traffic:  {traffic['packets']} packets, {traffic['bytes'] / 1e6:.1f} MB, now "
        f"{traffic['packets_per_second']:.0f} packets/s, {traffic['bits_per_second'] / 1e6:.2f} Mbps"
        f"{f', cap {cap:g} packets/s' if cap else ''}",
        f"timing:   {timing['late_packets']} late, worst {timing['lateness_max_seconds'] * 1e3:.0f} ms, "
        f"deficit {timing['deficit_seconds']:.1f} s, {timing['held_packets']} packets held",
    ]
    lines += [f"sink:     {s['name']}: {s['packets']} packets, {s['dropped']} dropped" for s in status["sinks"]]
    if status.get("slices"):
        lines.append(f"files:    {status['slices']['files']} complete in {status['slices']['directory']}")
    if status.get("broker"):
        broker = status["broker"]
        lines.append(f"broker:   {broker['host']}:{broker['port']} {broker['state']} as {broker['node']}")
    width = max(map(len, status["labels"]), default=0)
    lines += [
        f"  {label:{width}}  weight {row['weight']:g}, {row['active']} live, {row['packets']} packets, "
        f"{row['packets_per_second']:.0f}/s"
        for label, row in status["labels"].items()
    ]
    lines += [f"  {one['session']}  {one['label']}  {one['packets']} packets" for one in status.get("live", [])]
    return lines


def event_line(event: dict[str, Any]) -> str:
    """An event for people."""
    rest = " ".join(f"{key}={value}" for key, value in event.items() if key not in ("event", "ts_ns"))
    return f"{event.get('ts_ns', 0) / 1e9:.3f} {event.get('event')} {rest}"


def show_fleet(nodes: list[dict[str, Any]], as_json: bool) -> None:
    """A line for each node."""
    if as_json:
        click.echo(json.dumps(nodes))
        return
    if not nodes:
        print("netssmd: no node has left its status with this broker", file=sys.stderr)
    for node in nodes:
        if node["state"] == "offline":
            click.echo(f"{node['node']:16} offline")
            continue
        traffic, sessions = node["traffic"], node["sessions"]
        click.echo(
            f"{node['node']:16} {node['state']:8} {sessions['active']:6} sessions, room {sessions['room']:5}, "
            f"{traffic['packets_per_second']:9.0f} packets/s, {traffic['bits_per_second'] / 1e6:9.2f} Mbps, "
            f"group {node['group'] or '-'}"
        )
