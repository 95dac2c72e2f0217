"""From a configuration and a model to the parts of a daemon: clock and pacing, sinks, snapshots, sessions.

Each function makes one part of what it is given and keeps nothing; service.py puts them together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from netssmd.codec.byte_vocab import ByteVocabulary
from netssmd.codec.vocab import Vocabulary
from netssmd.daemon.clock import Clock, WallClock
from netssmd.daemon.config import Config
from netssmd.daemon.keeper import Identity, Keeper
from netssmd.daemon.output_lane import Pacing
from netssmd.daemon.snapshots import Store
from netssmd.engine.anomalies import Planter
from netssmd.engine.guide import Guide
from netssmd.engine.plan import CLIENT, SERVER, AddressPlan
from netssmd.engine.sampling import Stream, derive
from netssmd.engine.scheduler import Backend
from netssmd.engine.session import Limits, Session, SessionInfo, Temperatures
from netssmd.output.ledger import Ledger
from netssmd.output.pcap_ring import PcapRing
from netssmd.output.rate import Rate
from netssmd.packet.compliance import Checker

if TYPE_CHECKING:
    from netssmd.output.tap import TapSink

SECOND = 1_000_000_000
MAX_FLOWS = 1024  # that a session's checker keeps in mind: as many as its codec does


class Model(Protocol):
    """What the daemon needs of engine.opening.OpenModel."""

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def vocabulary(self) -> Vocabulary | ByteVocabulary: ...
    def backend(self, slots: int) -> Backend: ...
    def check_extent(self, labels: Iterable[str]) -> None: ...
    def temperatures(self, default: float, by_field: dict[str, float]) -> Temperatures: ...
    def guide(self, label: str) -> Guide: ...
    def session(
        self, info: SessionInfo, plan: AddressPlan, limits: Limits, temperatures: Temperatures, snaplen: int,
        *, payload: str,
    ) -> Session: ...  # fmt: skip


def thread_count(wanted: int) -> int:
    """Engine threads: as many as wanted, or one for each core that this process may use."""
    return wanted or len(os.sched_getaffinity(0))


def backend_name(backend: Backend) -> str:
    """Such as "cpu avx512", for people and metrics."""
    name = type(backend).__name__.removesuffix("Backend").lower()
    isa = getattr(backend, "isa", "")
    return f"{name} {isa}" if isa else name


# --- time ---


def speed(config: Config) -> Fraction:
    """Session time by real time, at live pace."""
    return Rate.of("multiplier", config.pacing.multiplier).value


def clock(config: Config, session_ns: int) -> Clock | None:
    """Session time at live pace; at top speed, or by a metronome, it is as far as packets are made."""
    pacing = config.pacing
    if pacing.pps or pacing.mbps or config.engine.pace == "topspeed":
        return None
    return WallClock(speed=speed(config), session_ns=session_ns)


def pacing(config: Config) -> Pacing:
    """How the stream is timed."""
    asked = config.pacing
    rate = Rate.of("pps", asked.pps) if asked.pps else Rate.of("mbps", asked.mbps) if asked.mbps else None
    return Pacing(rate, late_ns(config), asked.catch_up)


def pace(config: Config) -> str:
    """The same for people: "live", "topspeed" or "live, 1000 packets/s"."""
    rates = config.pacing.rates
    if not rates:
        return config.engine.pace
    return f"live, {Rate.of(rates[0], getattr(config.pacing, rates[0]))}"  # type: ignore[arg-type]


def late_ns(config: Config) -> int:
    """Beyond which packets are dropped; -1: nowhere."""
    drops = config.pacing.deficit == "drop" and config.engine.pace == "live"
    return config.pacing.late if drops else -1


# --- sinks and snapshots ---


def taps(config: Config, plan: AddressPlan) -> TapSink | None:
    """The TAP devices, opened. Raises what opening them raises."""
    tap = config.tap
    if not tap.name:
        return None
    from netssmd.output.tap import Sides, TapOptions, open_taps

    sides = Sides(*(plan.networks(role) for role in (CLIENT, SERVER))) if tap.server_name else None
    realtime = config.pacing.realtime if config.engine.pace == "live" else 0
    wait = tap.when_down == "wait"
    options = TapOptions(tap.create, tap.mtu, tap.netns, realtime, late_ns(config), wait)
    return open_taps(tap.names, options, sides)


def ring(config: Config, ledger: Ledger, on_complete: Callable[[str, int, int], None]) -> PcapRing:
    """The captures. on_complete: told name, packets and bytes of each."""
    output = config.output
    return PcapRing(
        output.directory,
        output.basename,
        max_bytes=output.slice_size or None,
        max_seconds=output.slice_duration / SECOND or None,
        max_packets=output.slice_packets or None,
        max_files=output.ring_files or None,
        snaplen=output.snaplen,
        min_free_bytes=output.free_disk,
        on_full="wait",
        beside=ledger if output.ledger else None,
        on_complete=on_complete,
    )


def keeper(config: Config, model: Model) -> Keeper | None:
    """What takes snapshots, where there shall be some; sessions of byte models are not kept."""
    if not config.snapshot.enabled or not isinstance(model.vocabulary, Vocabulary):
        return None
    directory = config.snapshot.directory or Path(config.output.directory) / ".snapshots"
    store = Store(Path(directory), config.output.basename, config.snapshot.keep, config.snapshot.max_size)
    return Keeper(store, Identity(model.hash, config.engine.pace, config.traffic.seed))


# --- sessions ---


def session(
    config: Config, model: Model, info: SessionInfo, plan: AddressPlan, limits: Limits, temperatures: Temperatures
) -> Session:
    """A session with all that the configuration asks for: checker, guide, planter."""
    snaplen = 0 if config.tap.name else config.output.snaplen  # a wire takes whole frames; the ring cuts for itself
    made = model.session(info, plan, limits, temperatures, snaplen, payload=config.output.payload)
    made.late_ns = int(late_ns(config))
    compliance = config.compliance
    if compliance.check:
        made.checker = Checker(max_flows=MAX_FLOWS)
    if compliance.mode == "guide":
        made.guide = model.guide(info.label)
    if compliance.anomalies:
        made.planter = Planter(compliance.anomalies, Stream(derive(info.seed, "anomalies")), MAX_FLOWS)
    return made
