"""What can change while the daemon runs: mix, rates, limits, addresses, how many sessions, which ones.

In: commands (see control.py), or a new configuration at HUP. A new configuration is checked as a whole first; then each
row of RUNTIME one of whose keys differs from the file before is applied, and the keys of no row are named as needing a
restart. Live sessions are left alone: what changes holds for those that start from here on, a cap on the packet rate
for what is made from here on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from netssmd.codec.vocab import PACKETS
from netssmd.daemon.addresses import plan_of
from netssmd.daemon.board import ASKED, Asked
from netssmd.daemon.config import Config
from netssmd.engine.fork import fork
from netssmd.engine.mix import TrafficMix, draw_conditions
from netssmd.engine.opening import nearest
from netssmd.engine.sampling import Stream, derive
from netssmd.engine.scheduler import Scheduler
from netssmd.engine.session import ORDERED, Limits, SessionInfo
from netssmd.errors import ConfigError, NetssmdError, UsageError

if TYPE_CHECKING:
    from netssmd.daemon.build import Model
    from netssmd.daemon.lanes import EngineLane
    from netssmd.daemon.service import Service

log = logging.getLogger("netssmd")


# --- a configuration and a model ---


def unfit(config: Config, model: Model) -> list[str]:
    """What only the model, or two sections together, can tell: every mistake, with its key and remedy."""
    engine, traffic = config.engine, config.traffic
    mistakes: list[str] = []
    if 0 < engine.slots < traffic.concurrency:
        mistakes.append(
            f"engine.slots: found {engine.slots}; write traffic.concurrency ({traffic.concurrency}) or more, or 0"
        )

    def hear(check: Callable[[], object], where: str = "") -> None:
        try:
            check()
        except NetssmdError as error:
            mistakes.append(f"{where}{error}")

    hear(lambda: plan_of(config.addresses, where="addresses"))
    for label in traffic.labels:
        hear(partial(check_labels, model, [label]), "traffic.labels: ")
    if traffic.extent != "learned":
        told = () if traffic.extent == "unknown" else traffic.labels or model.labels
        hear(partial(model.check_extent, [label for label in told if label in model.labels]), "traffic.extent: ")
    for name, value in traffic.temperatures.items():
        hear(partial(model.temperatures, 1.0, {name: value}), "traffic.temperatures: ")
    return mistakes


def require_fit(config: Config, model: Model, where: str) -> None:
    """Raises ConfigError with a line for each mistake; `where` names the file."""
    mistakes = unfit(config, model)
    if mistakes:
        raise ConfigError("\n".join(f"{where}: {mistake}" for mistake in mistakes))


def check_labels(model: Model, names: list[str]) -> None:
    """Raises UsageError for a label that the model does not know."""
    for name in names:
        if name not in model.labels:
            raise UsageError(f"unknown label {name!r}: {nearest(name, model.labels, 'the labels of this model are')}")


def mix_of(config: Config, known: Sequence[str], seed: int) -> TrafficMix:
    """The mix that a configuration asks for: all `known` labels alike if it names none."""
    labels = dict(config.traffic.labels) or dict.fromkeys(known, 1.0)
    return TrafficMix(labels, config.traffic.conditions(), seed)


def slots_of(config: Config) -> int:
    """Sessions that there are places for."""
    return config.engine.slots or max(2 * config.traffic.concurrency, 64)


# --- commands ---


def set_rate(service: Service, packets_per_second: float) -> None:
    """A new cap over all sessions; 0 = none."""
    service.cap_packets_per_second = packets_per_second
    for lane in service.lanes:
        lane.orders.put(partial(setattr, lane.scheduler, "cap", service.rate_cap(packets_per_second)))


def set_mix(service: Service, labels: Mapping[str, float]) -> None:
    """New weights; a label that is not named, or has 0, starts no more sessions. Raises UsageError."""
    _check(service, list(labels))
    if not any(labels.values()):
        raise UsageError("all weights are 0; give one label a weight above 0")
    _use_mix(service, TrafficMix(dict(labels), service.mix.conditions, service.seed))


def _check(service: Service, labels: list[str]) -> None:
    """Raises UsageError for labels that the model does not know, or cannot keep to the order of packets in force."""
    check_labels(service.model, labels)
    if service.mix.conditions.get(PACKETS, (0.0, 0.0))[1] > 0:
        service.model.check_extent(labels)


def _use_mix(service: Service, mix: TrafficMix) -> None:
    service.mix = service.board.mix = mix


def room(service: Service) -> int:
    """Sessions that may be asked for now: places less those that the mix has, or may take any time, and those asked
    for."""
    board = service.board
    with board.lock:
        of_mix = max(board.arrivals.concurrency, sum(board.live) - board.asked_live)
        return max(0, service.slots - of_mix - board.asked_live - len(board.asked))


def start_sessions(
    service: Service, label: str, count: int, conditions: Mapping[str, float], limits: Limits, seed: int = 0
) -> list[str]:
    """Ask for sessions, as many as there is room for; their names. Conditions that are not given are drawn as for the
    mix. The same `seed` gives the same sessions. Raises UsageError for a label that the model does not know."""
    _check(service, [label])
    board = service.board
    ranges = {**service.mix.conditions, **{name: (value, value) for name, value in conditions.items()}}
    started: list[str] = []
    for index in range(min(count, room(service))):
        number = board.asked_numbers
        board.asked_numbers += 1
        key = derive(seed, "asked", index) if seed else derive(service.seed, "session", number)
        drawn = draw_conditions(ranges, Stream(derive(key, "conditions")))
        info = SessionInfo(number, label, drawn, key, 0)
        with board.lock:
            board.asked.append(Asked(info, limits))
        started.append(service.session_id(info))
    return started


async def stop_sessions(service: Service, session: str = "", label: str = "") -> int:
    """End live sessions by name or label, and forget those asked for but not begun; how many. What they have made
    already still leaves."""

    def meant(info: SessionInfo) -> bool:
        return service.session_id(info) == session if session else info.label == label

    def cut(scheduler: Scheduler) -> int:
        chosen = [one for one in scheduler.sessions() if not one.ended and meant(one.info)]
        for one in chosen:
            one.cut(ORDERED)
        return len(chosen)

    board = service.board
    with board.lock:
        kept = [asked for asked in board.asked if not meant(asked.info)]
        stopped = len(board.asked) - len(kept)
        board.asked.clear()
        board.asked.extend(kept)
    for lane in service.lanes:
        stopped += await service.order(lane, partial(cut, lane.scheduler))
    return stopped


async def fork_session(service: Service, session: str, seed: int = 0) -> str:
    """A copy of a live session, which goes on beside it; its name. The same `seed` gives the same copy of the same
    moment. Raises UsageError, and SnapshotError for a session that cannot be copied."""
    board = service.board

    def copied(lane: EngineLane) -> SessionInfo | None:
        live = [place for place in lane.scheduler.places() if not place.session.ended]
        place = next((place for place in live if service.session_id(place.session.info) == session), None)
        if place is None:
            return None
        if not lane.scheduler.free or room(service) < 1:
            raise UsageError("no room: all places are taken; wait, stop some, or raise engine.slots and restart")
        with board.lock:
            number = board.asked_numbers
            board.asked_numbers += 1
        key = derive(seed, "fork") if seed else derive(service.seed, "session", number)
        info = dataclasses.replace(place.session.info, number=number, seed=key)
        copy = fork(place.session, info, service.named())
        board.forked[number] = session  # before a packet of it can leave
        lane.fork(place, copy)
        return info

    for lane in service.lanes:
        info = await service.order(lane, partial(copied, lane))
        if info is not None:
            name = service.session_id(info)
            service.events.emit("session-started", session=name, label=info.label, conditions=info.conditions)
            return name
    raise UsageError(f"no live session {session!r}; `status` with sessions lists them")


def session_name(seed: int, number: int) -> str:
    """In ledgers, events and commands: "7-30", or "7-a0" for the first one that a command asked for."""
    return f"{seed}-{number}" if number < ASKED else f"{seed}-a{number - ASKED}"


# --- HUP ---


def _mix(service: Service, config: Config) -> None:
    _use_mix(service, mix_of(config, service.model.labels, service.seed))


def _arrivals(service: Service, config: Config) -> None:
    traffic, board = config.traffic, service.board
    concurrency = min(traffic.concurrency, service.slots)
    if concurrency < traffic.concurrency:
        log.warning(
            "reload: traffic.concurrency: %d is more than the %d places there are: %d from now on, all after a restart",
            traffic.concurrency, service.slots, concurrency,
        )  # fmt: skip
    with board.lock:
        now_ns = board.clock.now_ns() if board.clock else board.floor_ns
        board.arrivals.retarget(concurrency, int(traffic.arrivals), traffic.sessions, now_ns)


def _limits(service: Service, config: Config) -> None:
    service.limits = Limits(config.traffic.session_packets, int(config.traffic.session_duration))


def _temperatures(service: Service, config: Config) -> None:
    preset = service.config.engine  # a new one waits for a restart
    temperature = replace(config, engine=preset).drawn().temperature
    service.temperatures = service.model.temperatures(temperature, config.traffic.temperatures)


def _plan(service: Service, config: Config) -> None:
    service.plan = service.plans.of(config.addresses, service.config.output.mark)


@dataclass(frozen=True, slots=True)
class Runtime:
    """Keys (or sections) that can change at run time, and how."""

    keys: frozenset[str]
    apply: Callable[[Service, Config], None]


RUNTIME: tuple[Runtime, ...] = (
    Runtime(
        frozenset({"traffic.labels", "traffic.extent", "traffic.rtt_ms", "traffic.rate_mbit", "traffic.loss_pct"}),
        _mix,
    ),
    Runtime(frozenset({"traffic.concurrency", "traffic.arrivals", "traffic.sessions"}), _arrivals),
    Runtime(
        frozenset({"traffic.packets_per_second"}),
        lambda service, config: set_rate(service, config.traffic.packets_per_second),
    ),
    Runtime(frozenset({"traffic.session_packets", "traffic.session_duration"}), _limits),
    Runtime(frozenset({"traffic.temperature", "traffic.temperatures"}), _temperatures),
    Runtime(frozenset({"addresses"}), _plan),
    Runtime(frozenset({"log.level"}), lambda service, config: log.setLevel(config.log.level.upper())),
)


def changed_keys(old: Config, new: Config) -> list[str]:
    """Dotted keys whose values differ."""
    return [
        f"{section.name}.{key.name}"
        for section in msgspec.structs.fields(Config)
        for key in msgspec.structs.fields(section.type)
        if getattr(getattr(old, section.name), key.name) != getattr(getattr(new, section.name), key.name)
    ]


def retarget(service: Service, new: Config) -> tuple[list[str], list[str]]:
    """Apply a checked configuration to a running service: (keys applied, keys that need a restart)."""
    changed = changed_keys(service.config, new)
    applied: list[str] = []
    for row in RUNTIME:
        mine = [key for key in changed if key in row.keys or key.partition(".")[0] in row.keys]
        if mine:
            row.apply(service, new)
            applied += mine
    for key in applied:  # the others keep telling how the daemon runs
        section, _, name = key.partition(".")
        part = replace(getattr(service.config, section), **{name: getattr(getattr(new, section), name)})
        service.config = replace(service.config, **{section: part})
    return applied, [key for key in changed if key not in applied]
