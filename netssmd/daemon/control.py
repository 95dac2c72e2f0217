"""What an operator can ask of a running daemon: one table of commands, over whatever carries them.

A request is a JSON object, `{"command": "rate", "arguments": {"packets_per_second": 500}}`, a reply is
`{"ok": true, "result": {...}}` or `{"ok": false, "error": "..."}`. Two adapters carry them: a unix socket
(control_socket.py) and MQTT (mqtt.py). A row of COMMANDS is one command: name, help, arguments with their kinds,
handler. `netssmd ctl` makes its options and docs/control.md its table of the same rows.

No argument is a path or names an interface: whoever may command a daemon can start, stop and steer traffic, and
nothing else. Handlers run on the control thread and hand work to the lanes by flags and orders.

This file is read by `netssmd ctl` too, and imports nothing heavy.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netssmd.daemon.events import EVENTS
from netssmd.errors import NetssmdError, UsageError
from netssmd.units import parse_duration_ns

if TYPE_CHECKING:
    from netssmd.daemon.service import Service

MOST_BYTES = 64 << 10  # of a request, whatever carries it
MOST_SESSIONS = 10_000  # that one request may start
MOST_LABELS = 1_000
LISTED = 1_000  # sessions that `status` lists
OPERATOR = "operator"  # the reason of pauses by command

Arguments = dict[str, Any]
Result = dict[str, Any]
Reply = dict[str, Any]


# --- kinds of arguments ---


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is written, and what reads it. `read` raises UsageError saying what would be right."""

    shown: str  # in help and docs
    read: Callable[[Any], Any]
    example: str


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 200 or not value.isprintable():
        raise UsageError("write text of 1 to 200 characters")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError("write true or false")
    return value


def _number(low: float, high: float, what: str) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UsageError(f"write {what} from {low:g} to {high:g}")
        return float(value)

    return read


def _count(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UsageError(f"write a whole number from {low} to {high}")
        return value

    return read


def _duration(value: Any) -> int:
    if not isinstance(value, str) or len(value) > 40:
        raise UsageError('write a time with its unit, such as "30s"')
    try:
        return parse_duration_ns(value)
    except UsageError as error:
        raise UsageError(str(error)) from None


def _weights(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not 0 < len(value) <= MOST_LABELS:
        raise UsageError('write labels with weights, such as {"web": 3, "dns": 1}')
    for label, weight in value.items():
        _text(label)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1e9:
            raise UsageError(f"{label}: write a weight of 0 or more, up to 1e9")
    return {label: float(weight) for label, weight in value.items()}


def _events(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(kind, str) for kind in value):
        raise UsageError('write a list of events, such as ["session-ended"]')
    for kind in value:
        if kind not in EVENTS:
            raise UsageError(f"{kind[:40]!r} is no event; the events are {', '.join(EVENTS)}")
    return list(value)


TEXT = Kind("text", _text, "web")
FLAG = Kind("flag", _flag, "true")
COUNT = Kind("count", _count(1, MOST_SESSIONS), "10")
PACKETS = Kind("packets", _count(0, 1 << 40), "1000")
SEED = Kind("number", _count(0, (1 << 63) - 1), "7")
RATE = Kind("packets/s", _number(0, 1e9, "packets a second"), "500")
DURATION = Kind("time", _duration, "30s")
MILLISECONDS = Kind("ms", _number(0, 1e6, "milliseconds"), "40")
MEGABITS = Kind("Mbit/s", _number(0, 1e6, "megabits a second"), "100")
PERCENT = Kind("percent", _number(0, 100, "percent"), "1")
WEIGHTS = Kind("label=weight", _weights, "web=3 dns=1")
KINDS = Kind("events", _events, "session-ended")


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a command. `positional`: `netssmd ctl` takes it without an option's name."""

    name: str
    kind: Kind
    help: str
    default: Any = None
    required: bool = False
    positional: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `streams`: after the reply come events until the caller has had enough."""

    name: str
    help: str
    arguments: tuple[Argument, ...]
    handler: Callable[[Service, Arguments], Awaitable[Result]]
    streams: bool = False


# --- handlers ---


async def _status(service: Service, arguments: Arguments) -> Result:
    status = service.status().json()
    if arguments["sessions"]:
        live = [session for lane in service.lanes for session in lane.scheduler.sessions()]
        status["live"] = [
            {"session": service.session_id(s.info), "label": s.info.label, "conditions": s.info.conditions,
             "packets": s.packets, "flows": s.flows}
            for s in live[:LISTED]
        ]  # fmt: skip
    return status


async def _start(service: Service, arguments: Arguments) -> Result:
    from netssmd.daemon.retarget import room, start_sessions
    from netssmd.engine.session import Limits

    conditions = {name: arguments[name] for name in ("rtt_ms", "rate_mbit", "loss_pct") if arguments[name] is not None}
    packets, duration = arguments["packets"], arguments["duration"]
    limits = Limits(
        service.limits.packets if packets is None else packets,
        service.limits.duration_ns if duration is None else duration,
    )
    names = start_sessions(
        service, arguments["label"], arguments["count"], conditions, limits, arguments["seed"]
    )  # fmt: skip
    left = arguments["count"] - len(names)
    if not names:
        raise UsageError(
            f"no room: all {service.slots} places are taken; wait, stop some, or raise engine.slots and restart"
        )
    return {"started": len(names), "left": left, "sessions": names[:LISTED], "room": room(service)}


async def _fork(service: Service, arguments: Arguments) -> Result:
    from netssmd.daemon.retarget import fork_session

    name = await fork_session(service, arguments["session"], arguments["seed"])
    return {"session": name, "forked_from": arguments["session"]}


async def _stop(service: Service, arguments: Arguments) -> Result:
    from netssmd.daemon.retarget import check_labels, stop_sessions

    session, label, daemon = arguments["session"], arguments["label"], arguments["daemon"]
    if sum(map(bool, (session, label, daemon))) != 1:
        raise UsageError("say what to stop: one of session, label, daemon")
    if daemon:
        service.stop()
        return {"stopping": True}
    if label:
        check_labels(service.model, [label])
    stopped = await stop_sessions(service, session or "", label or "")
    if session and not stopped:
        raise UsageError(f"no live session {session!r}; `status` with sessions lists them")
    return {"stopped": stopped}


async def _pause(service: Service, arguments: Arguments) -> Result:
    service.pause(OPERATOR)
    return {"pauses": list(service.board.pauses)}


async def _resume(service: Service, arguments: Arguments) -> Result:
    service.resume(OPERATOR)
    return {"pauses": list(service.board.pauses)}


async def _rate(service: Service, arguments: Arguments) -> Result:
    from netssmd.daemon.retarget import set_rate

    set_rate(service, arguments["packets_per_second"])
    return {"packets_per_second": service.cap_packets_per_second}


async def _mix(service: Service, arguments: Arguments) -> Result:
    from netssmd.daemon.retarget import set_mix

    set_mix(service, arguments["labels"])
    return {"labels": dict(service.mix.labels)}


async def _rotate(service: Service, arguments: Arguments) -> Result:
    service.rotate()
    await service.order(service.output, lambda: None)  # orders are done one after the other: the rotation is over
    return {"files": service.counters.files_written()}


async def _snapshot(service: Service, arguments: Arguments) -> Result:
    written = await service.snapshot()
    return {"snapshot": written.id, "sessions": written.sessions, "bytes": written.bytes}


async def _watch(service: Service, arguments: Arguments) -> Result:
    return {"events": arguments["events"] or list(EVENTS)}


COMMANDS: tuple[Command, ...] = (
    Command(
        "status", "How it goes.",
        (Argument("sessions", FLAG, f"List live sessions too, at most {LISTED}.", False),), _status,
    ),
    Command(
        "start", "Start sessions of a label now, as many as there is room for.",
        (
            Argument("label", TEXT, "The sessions' label.", required=True, positional=True),
            Argument("count", COUNT, "How many sessions.", 1),
            Argument("rtt_ms", MILLISECONDS, "Round-trip time told to the model; left out: as in the mix."),
            Argument("rate_mbit", MEGABITS, "Link rate told to the model."),
            Argument("loss_pct", PERCENT, "Loss told to the model."),
            Argument("packets", PACKETS, "Cut each after so many packets; 0 = not; left out: as configured."),
            Argument("duration", DURATION, "Cut each after this time."),
            Argument("seed", SEED, "The same seed gives the same sessions; 0 = new ones.", 0),
        ), _start,
    ),
    Command(
        "fork", "Copy a live session: it goes on from the same state to another future, with other hosts.",
        (
            Argument("session", TEXT, "A session's name, such as 7-30.", required=True, positional=True),
            Argument("seed", SEED, "The same seed gives the same copy of the same moment; 0 = a new one.", 0),
        ), _fork,
    ),
    Command(
        "stop", "End a session, all of a label, or the daemon; what they have made already still leaves.",
        (
            Argument("session", TEXT, "A session's name, such as 7-30.", positional=True),
            Argument("label", TEXT, "All live sessions of this label."),
            Argument("daemon", FLAG, "The daemon itself, cleanly.", False),
        ), _stop,
    ),
    Command("pause", "Make and send nothing until `resume`.", (), _pause),
    Command("resume", "Go on where `pause` held; other reasons for a pause stay.", (), _resume),
    Command(
        "rate", "Cap the packets a second over all sessions.",
        (Argument("packets_per_second", RATE, "The cap; 0 = none.", required=True, positional=True),), _rate,
    ),
    Command(
        "mix", "New label weights for sessions that start from now on.",
        (Argument("labels", WEIGHTS, "Labels and weights; one not named starts no more.", required=True,
                  positional=True),), _mix,
    ),
    Command("rotate", "Complete the open capture and begin a new one.", (), _rotate),
    Command("snapshot", "Save all live sessions now, as the daemon does every `snapshot.interval`.", (), _snapshot),
    Command(
        "watch", "Tell events as they happen.",
        (Argument("events", KINDS, "Only these; left out: all.", positional=True),), _watch, streams=True,
    ),
)  # fmt: skip
BY_NAME: dict[str, Command] = {command.name: command for command in COMMANDS}


# --- requests ---


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request; `arguments` has every argument of the command, defaults where nothing was said."""

    command: Command
    arguments: Arguments
    id: Any = None


def parse_request(data: bytes | str) -> Request:
    """A request of at most MOST_BYTES. Raises UsageError for whatever is wrong with it."""
    if len(data) > MOST_BYTES:
        raise UsageError(f"a request is at most {MOST_BYTES} bytes")
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON: {str(error)[:100]}") from None
    if not isinstance(tree, dict):
        raise UsageError('write an object such as {"command": "status"}')
    unknown = set(tree) - {"command", "arguments", "id"}
    if unknown:
        raise UsageError(f"unknown key {min(unknown)[:40]!r}; a request has command, arguments and id")
    name, arguments = tree.get("command"), tree.get("arguments", {})
    if not isinstance(name, str) or name not in BY_NAME:
        raise UsageError(f"unknown command {str(name)[:40]!r}: {_nearest(str(name), list(BY_NAME))}")
    if not isinstance(arguments, dict):
        raise UsageError("arguments: write an object of names and values")
    return Request(BY_NAME[name], check_arguments(BY_NAME[name], arguments), _identity(tree.get("id")))


def _identity(value: Any) -> Any:
    """What a caller calls its request by comes back in the reply, so it is something that can stand there."""
    if value is None or (type(value) is int and abs(value) < 1 << 53):
        return value
    if isinstance(value, str) and len(value) <= 100 and value.isprintable():
        return value
    raise UsageError("id: write a whole number or text of up to 100 characters")


def check_arguments(command: Command, given: Arguments) -> Arguments:
    """Every argument with its value. Raises UsageError naming command and argument."""
    known = {argument.name: argument for argument in command.arguments}
    for name in given:
        if name not in known:
            remedy = _nearest(name, list(known)) if known else "it takes none"
            raise UsageError(f"{command.name}: unknown argument {name[:40]!r}: {remedy}")
    checked: Arguments = {}
    for name, argument in known.items():
        if given.get(name) is None:
            if argument.required:
                raise UsageError(f"{command.name}: {name} is missing; write one such as {argument.kind.example}")
            checked[name] = argument.default
            continue
        try:
            checked[name] = argument.kind.read(given[name])
        except UsageError as error:
            raise UsageError(f"{command.name}: {name}: {error}") from None
    return checked


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


async def obey(service: Service, request: Request) -> Reply:
    """Do what a request asks."""
    try:
        result = await request.command.handler(service, request.arguments)
    except NetssmdError as error:
        return failure(error, request.id)
    return ({"id": request.id} if request.id is not None else {}) | {"ok": True, "result": result}


def failure(error: object, identity: Any = None) -> Reply:
    """The reply to what cannot be done."""
    return ({"id": identity} if identity is not None else {}) | {"ok": False, "error": str(error)}
