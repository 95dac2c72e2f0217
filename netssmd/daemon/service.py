"""The daemon: a configuration and a model in, lanes, signals and metrics around them, a report out.

The asyncio loop (uvloop where installed) is the control thread. It starts the engine lanes and the output lane (see
lanes.py), serves metrics, answers signals and tells systemd; it never touches a packet. HUP reads the configuration
again (see retarget.py) and begins a new file, USR1 logs the counters, TERM and INT finish cleanly: what was due is
written, files are closed and renamed; a second INT does not wait. A lane that dies takes the daemon down. Pauses have
reasons, and last while there is any (see board.py). What the daemon consists of is made in build.py, its counters are
read in counters.py.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from netssmd import __version__
from netssmd.codec.vocab import Vocabulary
from netssmd.daemon import broker, build, retarget
from netssmd.daemon.addresses import Plans
from netssmd.daemon.board import Board, start_thread
from netssmd.daemon.build import Model
from netssmd.daemon.clock import Clock
from netssmd.daemon.config import Config
from netssmd.daemon.control_socket import ControlSocket
from netssmd.daemon.counters import Counters
from netssmd.daemon.events import Events
from netssmd.daemon.keeper import Keeper, Written
from netssmd.daemon.lanes import READY_NS, EngineLane
from netssmd.daemon.notify import notify, patience, reloading, status_seconds, watchdog_seconds
from netssmd.daemon.output_lane import OutputLane
from netssmd.daemon.report import Report
from netssmd.daemon.status import Rates, Status, line, status_of
from netssmd.daemon.watchdog import Pulse, stuck
from netssmd.engine import snapshot
from netssmd.engine.mix import Arrivals, RateCap
from netssmd.engine.plan import AddressPlan
from netssmd.engine.scheduler import FOR_EVER, Scheduler
from netssmd.engine.session import Limits, Session, SessionInfo
from netssmd.errors import ConfigError, NetssmdError, SnapshotError
from netssmd.model.backend import lend_threads
from netssmd.output.file_sink import FileSink
from netssmd.output.ledger import Ledger, SessionMeta, is_attack
from netssmd.output.pcap_ring import PcapRing
from netssmd.output.sink import Sink

if TYPE_CHECKING:
    from netssmd.daemon.mqtt import Node
    from netssmd.daemon.web import MetricsServer
    from netssmd.output.tap import TapSink

T = TypeVar("T")
SECOND = 1_000_000_000
SWITCH_SECONDS = 0.0005  # the interpreter's turn between engine threads: a step is shorter than Python's usual 5 ms
GC_OBJECTS = 20_000  # more of them than before: then the cycle collector looks; sessions and packets form no cycles
FORCED = 130
FAREWELL_SECONDS = 3.5
STORAGE = "storage"  # the reason of pauses while captures cannot be written

log = logging.getLogger("netssmd")


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
        self.plans: Plans
        self.plan: AddressPlan
        self.keeper: Keeper | None = build.keeper(config, model)
        resumed = self.keeper.find(self._named_before, fresh) if self.keeper else None
        self.seed = resumed.seed if resumed else traffic.seed or secrets.randbits(32) + 1
        self.mix = retarget.mix_of(config, model.labels, self.seed)
        self.slots = retarget.slots_of(config)
        self.threads = min(build.thread_count(engine.threads), traffic.concurrency or self.slots)
        if resumed is None:
            self.plans = Plans(self.seed)
        self.plan = self.plans.of(config.addresses, config.output.mark)
        self.limits = Limits(traffic.session_packets, int(traffic.session_duration))
        self.temperatures = model.temperatures(config.drawn().temperature, traffic.temperatures)
        self.cap_packets_per_second = traffic.packets_per_second
        self.events: Events = Events()
        self.rates = Rates()
        self._resumed: dict[int, dict[str, Any]] = {}  # what the ledger says of sessions of an earlier run
        self.lanes: list[EngineLane] = []
        self.output: OutputLane
        self.counters: Counters
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
        self._ending = contextlib.ExitStack()
        self._pulses: list[Pulse] = []  # when the watchdog was last fed

    def _named_before(self, seed: int, plans: Mapping[str, Any]) -> snapshot.Named:
        """What the sessions of a snapshot refer to."""
        self.plans = Plans(seed)
        self.plans.take(plans, self.config.addresses.names)
        self.plan = self.plans.of(self.config.addresses, self.config.output.mark)
        return self.named()

    def named(self) -> snapshot.Named:
        """What live sessions refer to, those that began under earlier address plans too."""
        assert isinstance(self.model.vocabulary, Vocabulary)
        return snapshot.named_things(self.model.vocabulary, self.plan, self.plans.by_key())

    # --- building
    # ------------------------------------------------------------------------------------------------------

    def _build(self, duration_ns: int) -> None:
        config = self.config
        resumed = self.keeper.resumed if self.keeper else None
        self.slots = max(self.slots, len(resumed.sessions) if resumed else 0)
        share = -(-self.slots // self.threads) + 1  # slots of each engine thread
        backend = self.model.backend(share * self.threads)
        lend_threads(backend, build.thread_count(config.engine.threads))
        self.backend_name = build.backend_name(backend)
        sinks = self._open_sinks()
        clock = build.clock(config, resumed.session_ns if resumed else 0)
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
            scheduler = Scheduler(backend, config.engine.group, cap, slots, speculate=config.bytes.speculate)
            self.lanes.append(EngineLane(index, self.board, scheduler, self._open_session, self._session_ended))
        live = [self.tap] if self.tap else []
        pacing = build.pacing(config)
        self.output = OutputLane(self.board, sinks, self._describe, self._found, live, pacing, self._clock_set)
        self.counters = Counters(self.lanes, self.output, self.ring, self.tap)
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
        keeper.begin(self.named, self.plans.told, self.board, self.lanes, self.output, self._cut)

    def _cut(self, sessions: Sequence[SessionMeta], snapshot_id: str) -> None:
        if self.ring is not None:
            for session in sessions:
                self._ledger.cut(session, snapshot_id)

    def _end_ns(self, start_ns: int, duration_ns: int, clock: Clock | None) -> int:
        """In session time; by a metronome the duration is real time, and a timer ends it."""
        if not duration_ns:
            return FOR_EVER
        if build.pacing(self.config).rate:
            self._loop.call_later(duration_ns / SECOND, self.stop)
            return FOR_EVER
        return start_ns + (clock.span_ns(duration_ns) if clock else duration_ns)

    def rate_cap(self, packets_per_second: float) -> RateCap:
        """One engine's share of a cap over all sessions, which is in real time."""
        return RateCap(packets_per_second / self.threads / float(build.speed(self.config)))

    def _open_sinks(self) -> list[Sink]:
        """The sinks that are not live, and `tap`."""
        self.tap = build.taps(self.config, self.plan)
        if not self.config.output.files:
            return []
        self._ledger = Ledger(self.model.name, self.model.hash, self.config.output.snaplen)
        self.ring = build.ring(self.config, self._ledger, self._slice_closed)
        return [FileSink(self.ring, self._ledger, self._storage_waits, self._lost_files)]

    def _slice_closed(self, name: str, packets: int, size: int) -> None:
        self.events.emit("slice-closed", capture=name, packets=packets, bytes=size)

    def _tap_outage(self, name: str, is_down: bool) -> None:
        (self.pause if is_down else self.resume)(f"TAP {name}")

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

    def _clock_set(self, step_ns: int) -> None:
        how = "follow" if step_ns > 0 else "run 0.05 % slow until it has come up"
        text = f"the wall clock was set by {step_ns / SECOND:+.1f} s: the times of packets {how}"
        log.warning("%s", text)
        self.events.emit("fault", fault="clock", text=text)

    def _open_session(self, info: SessionInfo) -> Session:
        log.debug("session %d starts: %s %s", info.number, info.label, info.conditions)
        self.events.emit("session-started", session=self.session_id(info), label=info.label, conditions=info.conditions)
        limits = self.board.asked_limits.pop(info.number, self.limits)
        return build.session(self.config, self.model, info, self.plan, limits, self.temperatures)

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
            self._resumed.get(info.number), forked_from=self.board.forked.pop(info.number, ""),
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
            gc.set_threshold(GC_OBJECTS, 10, 10)
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
        with self._ending:
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
            self._ending.enter_context(patience())
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
        sums, counters = self.counters, self.output.counters
        return Report(
            counters.total_packets, counters.total_bytes, self.uptime_seconds, sums.files_written(),
            sums.packets_dropped(), sum(sums.started().values()),
            sums.by_tap(lambda port: {reason: count for reason, count in port.dropped.items() if count}),
            sums.malformed(),
            sums.sum("deficit_ns"), counters.slipped_ns, sums.late_dropped(),
            sums.guide() if self.config.compliance.mode == "guide" else None,
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
