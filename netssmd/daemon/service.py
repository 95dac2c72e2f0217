"""The daemon: a configuration and a model in, lanes, signals and metrics around them, a report out.

The asyncio loop (uvloop where installed) is the control thread. It starts the engine lanes and the output lane (see
lanes.py), serves metrics, answers signals and tells systemd; it never touches a packet. HUP reads the configuration
again (see retarget.py) and begins a new file, USR1 logs the counters, TERM and INT finish cleanly: what was due is
written, files are closed and renamed; a second INT does not wait. A lane that dies takes the daemon down. Pauses have
reasons, and last while there is any (see lanes.py).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from netssmd import __version__
from netssmd.codec.byte_vocab import ByteVocabulary
from netssmd.codec.bytes import malformed_text
from netssmd.codec.vocab import Vocabulary
from netssmd.daemon import broker, retarget
from netssmd.daemon.addresses import plan_of
from netssmd.daemon.clock import Clock, WallClock
from netssmd.daemon.config import Config
from netssmd.daemon.control_socket import ControlSocket
from netssmd.daemon.events import Events
from netssmd.daemon.histogram import Histogram
from netssmd.daemon.keeper import Identity, Keeper, Written
from netssmd.daemon.lanes import READY_NS, Board, EngineCounters, EngineLane, OutputLane, Pacing, start_thread
from netssmd.daemon.notify import notify, reloading, status_seconds, watchdog_seconds
from netssmd.daemon.snapshots import Store
from netssmd.daemon.status import Rates, Status, line, status_of
from netssmd.daemon.watchdog import Pulse, stuck
from netssmd.engine import snapshot
from netssmd.engine.anomalies import Planter
from netssmd.engine.guide import Guide
from netssmd.engine.mix import Arrivals, RateCap
from netssmd.engine.plan import CLIENT, SERVER, AddressPlan
from netssmd.engine.sampling import Stream, derive
from netssmd.engine.scheduler import FOR_EVER, Backend, Scheduler
from netssmd.engine.session import Limits, Session, SessionInfo, Temperatures
from netssmd.errors import ConfigError, NetssmdError, SnapshotError
from netssmd.output.file_sink import FileSink
from netssmd.output.ledger import Ledger, SessionMeta, is_attack
from netssmd.output.pacer import BOUNDS_NS
from netssmd.output.pcap_ring import PcapRing
from netssmd.output.rate import Rate, actual_lines
from netssmd.output.sink import Sink
from netssmd.packet.compliance import Checker

if TYPE_CHECKING:
    from netssmd.daemon.mqtt import Node
    from netssmd.daemon.web import MetricsServer
    from netssmd.output.tap import TapPort, TapSink

T = TypeVar("T")
V = TypeVar("V")
SECOND = 1_000_000_000
MAX_FLOWS = 1024  # that a session's checker keeps in mind: as many as its codec does
SWITCH_SECONDS = 0.0005  # the interpreter's turn between engine threads: a step is shorter than Python's usual 5 ms
FORCED = 130
FAREWELL_SECONDS = 3.5
STORAGE = "storage"  # the reason of pauses while captures cannot be written

log = logging.getLogger("netssmd")


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
    def temperatures(self, default: float, by_field: dict[str, float]) -> Temperatures: ...
    def guide(self, label: str) -> Guide: ...
    def session(
        self, info: SessionInfo, plan: AddressPlan, limits: Limits, temperatures: Temperatures, snaplen: int,
        *, payload: str,
    ) -> Session: ...  # fmt: skip


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to."""

    packets: int
    bytes: int
    seconds: float
    files: int
    dropped: int
    sessions: int
    taps: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # frames dropped, by device and reason
    malformed: dict[str, int] = field(default_factory=dict)
    deficit_ns: int = 0  # how far session clocks were moved, summed
    slipped_ns: int = 0  # how far the whole stream was
    late_dropped: int = 0
    guide: Guide | None = None

    def lines(self) -> list[str]:
        """The closing lines, in tcpreplay's style (Mbps = 10^6 bits a second)."""
        lines = [*actual_lines(self.packets, self.bytes, self.seconds), *self._deficits()]
        if self.guide is not None:
            lines.append(self.guide.line(self.packets))
        if self.malformed:
            lines.append(f"Malformed: {malformed_text(self.malformed)}")
        return lines

    def _deficits(self) -> list[str]:
        """What generation or this machine was too slow for."""
        parts = []
        if self.deficit_ns > SECOND // 10:
            parts.append(f"sessions moved on by {self.deficit_ns / 1e9:.1f} s in sum")
        if self.slipped_ns:
            parts.append(f"the stream by {self.slipped_ns / 1e9:.2f} s")
        if self.late_dropped:
            parts.append(f"{self.late_dropped} packets dropped as too late")
        return [f"Deficit: {', '.join(parts)}"] if parts else []


def thread_count(wanted: int) -> int:
    """Engine threads: as many as wanted, or one for each core that this process may use."""
    return wanted or len(os.sched_getaffinity(0))


def backend_name(backend: Backend) -> str:
    """Such as "cpu avx512", for people and metrics."""
    name = type(backend).__name__.removesuffix("Backend").lower()
    isa = getattr(backend, "isa", "")
    return f"{name} {isa}" if isa else name


class Service:
    """One run of the daemon. `run` may be called once."""

    def __init__(
        self, config: Config, model: Model, load: Callable[[], Config] | None = None, fresh: bool = False
    ) -> None:
        """`load`: reads the configuration again, checked, at HUP. fresh: do not go on from a snapshot."""
        traffic, engine = config.traffic, config.engine
        self.config: Config = config
        self.model = model
        self.load = load
        self.backend_name: str = engine.backend
        kept = config.snapshot.enabled and isinstance(model.vocabulary, Vocabulary)  # sessions of byte models are not
        self.keeper: Keeper | None = self._open_keeper() if kept else None
        resumed = self.keeper.find(self._named, fresh) if self.keeper else None
        self.seed = resumed.seed if resumed else traffic.seed or secrets.randbits(32) + 1
        self.mix = retarget.mix_of(config, model.labels, self.seed)
        self.slots = retarget.slots_of(config)
        self.threads = min(thread_count(engine.threads), traffic.concurrency or self.slots)
        self.plan = plan_of(config.addresses, self.seed, mark=config.output.mark)
        self.limits = Limits(traffic.session_packets, int(traffic.session_duration))
        self.temperatures = model.temperatures(traffic.temperature, traffic.temperatures)
        self.cap_packets_per_second = traffic.packets_per_second
        self.events: Events = Events()
        self.rates = Rates()
        self._resumed: dict[int, dict[str, Any]] = {}  # what the ledger says of sessions of an earlier run
        self.lanes: list[EngineLane] = []
        self.output: OutputLane
        self.board: Board
        self.ring: PcapRing | None = None
        self.tap: TapSink | None = None
        self.metrics: MetricsServer | None = None
        self.socket: ControlSocket | None = None
        self.node: Node | None = None
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event
        self._death: BaseException | None = None
        self._interrupts = 0
        self._begun = 0.0
        self._pulses: list[Pulse] = []  # when the watchdog was last fed

    def _named(self, seed: int) -> snapshot.Named:
        assert isinstance(self.model.vocabulary, Vocabulary)
        return snapshot.named_things(self.model.vocabulary, plan_of(self.config.addresses, seed))

    def _open_keeper(self) -> Keeper:
        config = self.config
        directory = config.snapshot.directory or Path(config.output.directory) / ".snapshots"
        store = Store(Path(directory), config.output.basename, config.snapshot.keep, config.snapshot.max_size)
        return Keeper(store, Identity(self.model.hash, config.engine.pace, config.traffic.seed))

    # --- building
    # ------------------------------------------------------------------------------------------------------

    def _build(self, duration_ns: int) -> None:
        config = self.config
        resumed = self.keeper.resumed if self.keeper else None
        self.slots = max(self.slots, len(resumed.sessions) if resumed else 0)
        share = -(-self.slots // self.threads) + 1  # slots of each engine thread
        backend = self.model.backend(share * self.threads)
        self.backend_name = backend_name(backend)
        sinks = self._open_sinks()
        clock = self._open_clock(resumed.session_ns if resumed else 0)
        start_ns = clock.now_ns() if clock else resumed.session_ns if resumed else time.time_ns()
        traffic = config.traffic
        arrivals = Arrivals(
            traffic.concurrency, int(traffic.arrivals), self.seed, start_ns, int(traffic.ramp), traffic.sessions
        )
        if resumed:
            resumed.arrivals.concurrency, resumed.arrivals.total = traffic.concurrency, traffic.sessions
            if resumed.arrivals.mean_gap_ns == traffic.arrivals:
                arrivals = resumed.arrivals
        self.board = Board(
            self.mix, arrivals, self.threads, config.engine.lookahead, start_ns, clock,
            self._end_ns(start_ns, duration_ns, clock), config.engine.queue_packets, READY_NS if self.tap else 0,
        )  # fmt: skip
        if self.tap and config.tap.when_down == "wait":
            self.tap.watch(self._tap_outage)
        for index in range(self.threads):
            cap = self.rate_cap(self.cap_packets_per_second)
            slots = range(index * share, (index + 1) * share)
            scheduler = Scheduler(backend, config.engine.group, cap, slots)
            self.lanes.append(EngineLane(index, self.board, scheduler, self._open_session, self._session_ended))
        live = [self.tap] if self.tap else []
        self.output = OutputLane(self.board, sinks, self._describe, self._found, live, self._pacing())
        if self.keeper:
            self._begin_keeping(self.keeper)

    def _begin_keeping(self, keeper: Keeper) -> None:
        keeper.identity = replace(keeper.identity, seed=self.seed)
        keeper.put_back(self.board, self.lanes, self.output)
        clock = self.board.clock
        self._resumed = keeper.told(clock.lag_ns if clock else 0)
        topspeed = clock is None and not self.output.pacing.rate
        stored = self.ring.last_stored() if keeper.resumed and topspeed and self.ring is not None else None
        if stored is not None and stored[0] >= self.output.release.released_ns:
            self.output.skip(*stored)
        keeper.begin(self._named(self.seed), self.board, self.lanes, self.output, self._cut)

    def _cut(self, sessions: Sequence[SessionMeta], snapshot_id: str) -> None:
        if self.ring is not None:
            for session in sessions:
                self._ledger.cut(session, snapshot_id)

    def _open_clock(self, session_ns: int) -> Clock | None:
        """Session time at live pace; at top speed, or by a metronome, it is as far as packets are made."""
        pacing = self.config.pacing
        if pacing.pps or pacing.mbps or self.config.engine.pace == "topspeed":
            return None
        return WallClock(speed=self.speed, session_ns=session_ns)

    @property
    def speed(self) -> Fraction:
        """Session time by real time, at live pace."""
        return Rate.of("multiplier", self.config.pacing.multiplier).value

    def _pacing(self) -> Pacing:
        pacing = self.config.pacing
        rate = Rate.of("pps", pacing.pps) if pacing.pps else Rate.of("mbps", pacing.mbps) if pacing.mbps else None
        return Pacing(rate, self._late_ns, pacing.catch_up)

    @property
    def _late_ns(self) -> int:
        """Beyond which packets are dropped; -1: nowhere."""
        drops = self.config.pacing.deficit == "drop" and self.config.engine.pace == "live"
        return self.config.pacing.late if drops else -1

    def _end_ns(self, start_ns: int, duration_ns: int, clock: Clock | None) -> int:
        """In session time; by a metronome the duration is real time, and a timer ends it."""
        if not duration_ns:
            return FOR_EVER
        if self._pacing().rate:
            self._loop.call_later(duration_ns / SECOND, self.stop)
            return FOR_EVER
        return start_ns + (clock.span_ns(duration_ns) if clock else duration_ns)

    def rate_cap(self, packets_per_second: float) -> RateCap:
        """One engine's share of a cap over all sessions, which is in real time."""
        return RateCap(packets_per_second / self.threads / float(self.speed))

    def _open_sinks(self) -> list[Sink]:
        """The sinks that are not live, and `tap`."""
        sinks: list[Sink] = []
        tap, pacing = self.config.tap, self.config.pacing
        if tap.name:
            from netssmd.output.tap import Sides, TapOptions, open_taps

            sides = Sides(*(self.plan.networks(role) for role in (CLIENT, SERVER))) if tap.server_name else None
            realtime = pacing.realtime if self.config.engine.pace == "live" else 0
            wait = tap.when_down == "wait"
            options = TapOptions(tap.create, tap.mtu, tap.netns, realtime, self._late_ns, wait)
            self.tap = open_taps(tap.names, options, sides)
        if self.config.output.files:
            self.ring = self._open_ring()
            sinks.append(FileSink(self.ring, self._ledger, self._storage_waits, self._lost_files))
        return sinks

    def _tap_outage(self, name: str, is_down: bool) -> None:
        (self.pause if is_down else self.resume)(f"TAP {name}")

    def _open_ring(self) -> PcapRing:
        output = self.config.output
        self._ledger = Ledger(self.model.name, self.model.hash, output.snaplen)
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
            beside=self._ledger if output.ledger else None,
            on_complete=lambda name, packets, size: self.events.emit(
                "slice-closed", capture=name, packets=packets, bytes=size
            ),
        )

    def _storage_waits(self, why: str) -> None:
        """The captures cannot be written: nothing is made until they can."""
        if why:
            log.warning("%s; waiting", why)
            self.events.emit("fault", fault="storage", text=why)
            self.pause(STORAGE)
        else:
            self.resume(STORAGE)

    def _lost_files(self, what: str) -> None:
        log.warning("%s", what)
        self.events.emit("fault", fault="storage", text=what)

    def _open_session(self, info: SessionInfo) -> Session:
        log.debug("session %d starts: %s %s", info.number, info.label, info.conditions)
        self.events.emit("session-started", session=self.session_id(info), label=info.label, conditions=info.conditions)
        output = self.config.output
        snaplen = 0 if self.tap else output.snaplen  # a wire takes whole frames; the ring cuts for itself
        limits = self.board.asked_limits.pop(info.number, self.limits)
        session = self.model.session(info, self.plan, limits, self.temperatures, snaplen, payload=output.payload)
        if self.config.compliance.check:
            session.checker = Checker(max_flows=MAX_FLOWS)
        session.late_ns = int(self._late_ns)
        if self.config.compliance.mode == "guide":
            session.guide = self.model.guide(info.label)
        if self.config.compliance.anomalies:
            stream = Stream(derive(info.seed, "anomalies"))
            session.planter = Planter(self.config.compliance.anomalies, stream, MAX_FLOWS)
        return session

    def _found(self, finding: str, meta: SessionMeta) -> None:
        self.events.emit("finding", finding=finding, session=meta.id, label=meta.label)

    def _session_ended(self, session: Session) -> None:
        info = session.info
        self.events.emit(
            "session-ended", session=self.session_id(info), label=info.label, reason=session.reason,
            packets=session.packets,
        )  # fmt: skip

    def session_id(self, info: SessionInfo) -> str:
        """A session's name in ledgers, events and commands; unique in a run."""
        return retarget.session_name(self.seed, info.number)

    def _describe(self, info: SessionInfo) -> SessionMeta:
        attack = is_attack(info.label, self.config.traffic.attacks)
        return SessionMeta(
            self.session_id(info), info.label, info.conditions, info.seed, self.model.hash, attack,
            self._resumed.get(info.number),
        )  # fmt: skip

    # --- running
    # -------------------------------------------------------------------------------------------------------

    async def run(
        self,
        duration_ns: int = 0,
        on_ready: Callable[[Service], None] | None = None,
        on_status: Callable[[Service], None] | None = None,
    ) -> Report:
        """Run until time is up, all sessions have run, or a signal comes. Raises what a lane died of."""
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._begun = time.monotonic()
        try:
            self._build(duration_ns)
            sys.setswitchinterval(SWITCH_SECONDS)
            self._serve_metrics()
            self.socket = ControlSocket(self, self.config.control.socket, self.config.control.group)
            await self.socket.start()
            if self.config.mqtt.host:
                self.node = self._join_fleet()
            self._catch_signals()
            self._begun = time.monotonic()
            await self._supervise(self._start(), on_ready, on_status)
        finally:
            if self.metrics:
                self.metrics.close()
            if self.socket:
                await self.socket.close()
            for sink in (self.ring, self.tap):  # closed by their lane, unless that was never started
                if sink:
                    sink.close()
        if self.keeper:
            await asyncio.to_thread(self.keeper.conclude, self._death)
        if self._death is not None:
            raise self._death
        return self.report()

    async def _supervise(
        self,
        threads: list[threading.Thread],
        on_ready: Callable[[Service], None] | None,
        on_status: Callable[[Service], None] | None,
    ) -> None:
        """Until the lanes are over; whatever is raised here, they are stopped and waited for."""
        try:
            if on_ready:
                on_ready(self)
            notify("READY=1")
            async with asyncio.TaskGroup() as group:
                interval = self.config.log.status_interval / SECOND if on_status else 0.0
                helpers = [
                    group.create_task(self._every(interval, lambda: on_status and on_status(self))),
                    group.create_task(self._every(status_seconds(), lambda: notify(f"STATUS={line(self.status())}"))),
                    group.create_task(self._every(watchdog_seconds(), self._feed_watchdog)),
                    group.create_task(self._every(1.0, self._sample_rates)),
                    group.create_task(self._keep()),
                ]
                fleet = group.create_task(self.node.run()) if self.node else None
                await self._over.wait()
                for helper in helpers:
                    helper.cancel()
                if fleet:  # it takes its leave of the broker
                    await asyncio.wait((fleet,), timeout=FAREWELL_SECONDS)
                    fleet.cancel()
            notify("STOPPING=1")
        finally:
            await asyncio.to_thread(self._join, threads)
            self.events.close()

    async def _keep(self) -> None:
        """A snapshot every interval."""
        while self.keeper and self.config.snapshot.interval:
            await asyncio.sleep(self.config.snapshot.interval / SECOND)
            await asyncio.to_thread(self.keeper.take_or_tell)

    async def snapshot(self) -> Written:
        """A snapshot now. Raises SnapshotError."""
        if self.keeper is None:
            raise SnapshotError("snapshot: snapshot.enabled is false")
        return await asyncio.to_thread(self.keeper.take)

    def _join_fleet(self) -> Node:
        try:
            from netssmd.daemon.mqtt import Node
        except ImportError:
            raise ConfigError(f"mqtt.host is set; {broker.MISSING}") from None
        return Node(self, self.config.mqtt)

    def _serve_metrics(self) -> None:
        if self.config.metrics.port:
            from netssmd.daemon.web import serve

            self.metrics = serve(self, self.config.metrics.address, self.config.metrics.port)

    def _start(self) -> list[threading.Thread]:
        """Engine lanes, the output lane, and one thread that waits for the engine lanes to end."""
        output = start_thread("netssmd-output", self.output.run, self._died)
        engines = [start_thread(f"netssmd-engine-{lane.index}", lane.run, self._died) for lane in self.lanes]

        def shepherd() -> None:
            for thread in engines:
                thread.join()
            self.output.finish()
            output.join()
            self._tell(self._over.set)

        return [start_thread("netssmd-shepherd", shepherd, self._died)]

    def _join(self, threads: list[threading.Thread]) -> None:
        self.board.stop.set()
        for thread in threads:
            thread.join()

    def _died(self, error: BaseException) -> None:
        """A lane failed: remember why, stop the others, wake the control thread."""
        if self._death is None:
            self._death = error
        self.board.broken.set()
        self.board.stop.set()
        self._tell(self._over.set)

    def _tell(self, what: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(what)

    def ask(self, work: Callable[[], T], seconds: float) -> T:
        """Have the control thread do `work` and wait for its result; from another thread. Raises TimeoutError."""
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def answer() -> None:
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)

        self._tell(answer)
        return done.result(seconds)

    async def _every(self, seconds: float, work: Callable[[], object]) -> None:
        while seconds:
            await asyncio.sleep(seconds)
            work()

    async def over(self) -> None:
        """Until the daemon is told to end, or does."""
        await self._over.wait()

    async def order(self, lane: EngineLane | OutputLane, work: Callable[[], T]) -> T:
        """Have a lane's thread do `work` between two steps, and wait for its result. Raises what `work` raises, and
        NetssmdError when the daemon ends first."""
        done: asyncio.Future[T] = self._loop.create_future()

        def settle(how: Callable[[], object]) -> None:
            if not done.done():
                how()

        def ordered() -> None:
            try:
                result = work()
            except BaseException as error:
                caught = error
                self._tell(lambda: settle(lambda: done.set_exception(caught)))
            else:
                self._tell(lambda: settle(lambda: done.set_result(result)))

        lane.orders.put(ordered)
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait((done, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
        if not done.done():
            done.cancel()
            raise NetssmdError("the daemon is stopping")
        return done.result()

    # --- pausing
    # -------------------------------------------------------------------------------------------------------

    def pause(self, reason: str) -> None:
        """Make and send nothing as long as this reason, or another one, stands. Any thread."""
        if self.board.pause(reason):
            log.info("paused: %s", reason)
            self.events.emit("paused", reason=reason, reasons=list(self.board.pauses))

    def resume(self, reason: str) -> None:
        """Take the reason away; with the last one, all goes on where it was, later by the length of the pause. Any
        thread."""
        if self.board.resume(reason):
            left = list(self.board.pauses)
            log.info("resumed: %s%s", reason, f"; still paused: {', '.join(left)}" if left else "")
            self.events.emit("resumed", reason=reason, reasons=left)

    @property
    def paused(self) -> bool:
        """Whether any reason stands."""
        return bool(self.board.pauses)

    def _feed_watchdog(self) -> None:
        """WATCHDOG=1, if every lane has made progress since the last one."""
        pulses = [*(lane.pulse() for lane in self.lanes), self.output.pulse()]
        wrong = stuck(self._pulses, pulses, self.paused)
        if wrong:
            log.error("no progress, so the watchdog is not fed: %s", "; ".join(wrong))
        else:
            self._pulses = pulses
            notify("WATCHDOG=1")

    # --- signals
    # -------------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGINT: self._interrupt,
            signal.SIGTERM: self.stop,
            signal.SIGHUP: self._hang_up,
            signal.SIGUSR1: self._log_counters,
        }
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                self._loop.add_signal_handler(number, handler)

    def _interrupt(self) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            log.error("interrupted twice: leaving at once; the open slice keeps its part name")
            os._exit(FORCED)
        self.stop()

    def stop(self) -> None:
        """Finish cleanly."""
        self.events.emit("stopping")
        if self.keeper:
            self.keeper.last_moment()
        self.board.stop.set()
        self._over.set()

    def _hang_up(self) -> None:
        with reloading():
            self.reload()
            self.rotate()

    def rotate(self) -> None:
        """Begin a new file."""
        self.output.rotate()
        log.info("rotating")

    def reload(self) -> None:
        """Read the configuration again and apply what can change at run time. One that is not valid changes
        nothing."""
        if self.load is None:
            return
        try:
            config = self.load()
        except NetssmdError as error:
            for text in str(error).splitlines():
                log.error("reload: nothing changed: %s", text)
            self.events.emit("fault", fault="configuration", text=str(error))
            return
        applied, waiting = retarget.retarget(self, config)
        log.info("reload: %s", f"changed {', '.join(applied)}" if applied else "nothing to change")
        if waiting:
            log.warning("reload: only a restart changes %s", ", ".join(waiting))
        self.events.emit("reloaded", changed=applied, restart=waiting)

    def _log_counters(self) -> None:
        log.info(line(self.status()))

    # --- reading the counters
    # ------------------------------------------------------------------------------------------

    def sum(self, name: str) -> int:
        """Sum of an engine counter over the lanes."""
        return sum(int(getattr(lane.counters, name)) for lane in self.lanes)

    def total(self, name: str) -> Histogram:
        """Sum of an engine histogram over the lanes."""
        first: Histogram
        first, *others = (getattr(lane.counters, name) for lane in self.lanes)
        return sum(others, first)

    def _merged(self, of: Callable[[EngineCounters], dict[str, int]]) -> dict[str, int]:
        total: Counter[str] = Counter()
        for lane in self.lanes:
            total.update(of(lane.counters).copy())
        return dict(total)

    def active(self) -> dict[str, int]:
        """Live sessions by label."""
        return self._merged(lambda c: c.active)

    def started(self) -> dict[str, int]:
        """Sessions started by label."""
        return self._merged(lambda c: c.started)

    def ended(self) -> dict[tuple[str, str], int]:
        """Sessions ended by (label, reason)."""
        total: Counter[tuple[str, str]] = Counter()
        for lane in self.lanes:
            total.update(lane.counters.ended.copy())
        return dict(total)

    def flows(self) -> dict[str, int]:
        """TCP flows concluded, by ending."""
        return self._merged(lambda c: c.flows)

    def flow_findings(self) -> dict[str, int]:
        """TCP flows concluded that have a finding, by its name."""
        return self._merged(lambda c: c.flow_findings)

    def malformed(self) -> dict[str, int]:
        """Packets of ended sessions that were none, by reason."""
        return self._merged(lambda c: c.malformed)

    def late_dropped(self) -> int:
        """Packets not sent because they would have been later than pacing.late."""
        return self.sum("late_dropped") + self.output.counters.late_dropped

    def guide(self) -> Guide:
        """What the guide did, over all sessions."""
        total = Guide(False)
        for lane in self.lanes:
            total.add(lane.counters.guide)
        return total

    def files_written(self) -> int:
        """Captures completed."""
        return self.ring.files if self.ring else 0

    def packets_dropped(self) -> int:
        """Packets that the ring could not store."""
        return self.ring.dropped if self.ring else 0

    def by_tap(self, of: Callable[[TapPort], V]) -> dict[str, V]:
        """A figure of each TAP device, by its name."""
        return {port.name: of(port) for port in self.tap.ports} if self.tap else {}

    def taps_dropped(self) -> dict[tuple[str, str], int]:
        """Frames that TAP devices did not get, by (device, reason)."""
        drops = self.by_tap(lambda port: port.dropped)
        return {(name, reason): count for name, its in drops.items() for reason, count in its.items()}

    def taps_lateness(self) -> dict[str, Histogram]:
        """How late frames reached TAP devices."""
        return self.by_tap(lambda port: Histogram.of(BOUNDS_NS, port.pacer.lateness, port.pacer.lateness_sum_ns))

    def build_info(self) -> tuple[str, str, str]:
        """Version, model, backend."""
        return __version__, f"{self.model.name}-{self.model.hash[:12]}", self.backend_name

    def _sample_rates(self) -> None:
        counters = self.output.counters
        self.rates.sample(time.monotonic_ns(), counters.packets.copy(), counters.total_bytes)

    @property
    def uptime_seconds(self) -> float:
        """Since the lanes were started."""
        return time.monotonic() - self._begun

    def status(self) -> Status:
        """How it goes, all of it; see status.py."""
        return status_of(self)

    def report(self) -> Report:
        """The totals."""
        counters = self.output.counters
        return Report(
            counters.total_packets, counters.total_bytes, self.uptime_seconds, self.files_written(),
            self.packets_dropped(), sum(self.started().values()),
            self.by_tap(lambda port: {reason: count for reason, count in port.dropped.items() if count}),
            self.malformed(),
            self.sum("deficit_ns"), counters.slipped_ns, self.late_dropped(),
            self.guide() if self.config.compliance.mode == "guide" else None,
        )  # fmt: skip


def serve(
    config: Config,
    model: Model,
    duration_ns: int = 0,
    on_ready: Callable[[Service], None] | None = None,
    on_status: Callable[[Service], None] | None = None,
    load: Callable[[], Config] | None = None,
    fresh: bool = False,
) -> Report:
    """Run a service on an event loop of its own; the hooks are called with it, on the control thread."""
    service = Service(config, model, load, fresh)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(service.run(duration_ns, on_ready, on_status))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
