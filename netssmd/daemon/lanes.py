"""The threads that packets go through: engine lanes make them, one output lane sends them out in order.

    engine lane 0 (scheduler, backend)  --batches-->  bounded inbox  -->  output lane  --by time, when due--> sinks
    engine lane 1 ...                   --floor: nothing earlier still comes from here-->   --before--> live sinks

The control thread only starts and stops lanes and reads their counters; every counter has one writer. A lane that fails
calls `on_death` and ends. Two paces:

- live: a packet's time is wall-clock time, or runs so many times as fast. A session starts `LEAD_NS` ahead, so that
  its first packet can be made in time; what is made late is moved to now (the session's clock slips, counted as
  deficit), so the order never breaks and nothing bunches up.
- topspeed: session time runs as fast as packets are made, the earliest session always next; the lowest floor is the
  clock. A session that takes an ended one's place begins at that one's end: if all began at the floor, short sessions
  would hold it where it is. With a steady rate (`Pacing.rate`) a metronome gives the packets new moments, and
  engines wait while it has enough.

All lanes live in *session time* (see clock.py). The output lane makes of it the moment when a packet leaves and the
wall time that it carries.

Files get a packet when it is due. A live sink (a TAP) sends at the moment itself and gets it `lead_ns` before; what is
made late is then moved `READY_NS` beyond now, so that it can still be on time there. A stall that no lead covers (a
stopped process) is caught up to `Pacing.catch_up_ns`; beyond that the whole stream moves on, or what is later than
`Pacing.late_ns` is dropped; either is counted.

What the control thread wants of a lane it puts into the lane's `orders`; the lane does it between two steps.
"""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from netssmd.daemon.clock import Clock, WallClock
from netssmd.daemon.histogram import Histogram
from netssmd.daemon.watchdog import Pulse
from netssmd.engine.guide import Guide
from netssmd.engine.mix import Arrivals, TrafficMix
from netssmd.engine.release import Release
from netssmd.engine.scheduler import FOR_EVER, Scheduler
from netssmd.engine.session import STOPPED, Limits, OutPacket, Session, SessionInfo
from netssmd.errors import SnapshotError
from netssmd.output.ledger import SessionMeta
from netssmd.output.rate import Metronome, Rate
from netssmd.output.sink import LiveSink, Outgoing, Sink
from netssmd.packet.compliance import FINDINGS
from netssmd.packet.pcap import Packet

MILLISECOND = 1_000_000
STEP_BOUNDS_NS = tuple(n * 100_000 for n in (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000))
BATCH_BOUNDS = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)
LEAD_NS = 100 * MILLISECOND  # from the decision to start a session to its first moment
READY_NS = 30 * MILLISECOND  # for a live sink: from the making of a packet that is late to its new moment
LATE_NS = 10 * MILLISECOND  # a packet that leaves later than this after its time is late
FLUSH_PACKETS = 64
FLUSH_NS = 5 * MILLISECOND
IDLE_SECONDS = 0.005
PAUSE_SECONDS = 0.02  # between two looks whether a pause is over
INBOX_BATCHES = 64
METRONOME_PACKETS = 4_096  # enough for the metronome: then the engines wait
ASKED = 1 << 40  # numbers of sessions that a command asked for begin here: those of the mix stay what they are

__all__ = [
    "Board", "EngineCounters", "EngineLane", "OutputCounters", "OutputLane", "Pacing", "WallClock", "start_thread",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pacing:
    """How the stream is timed.

    rate: a steady one, pps or mbps, for the whole stream. late_ns: packets that would be later are dropped, and
    sessions ten times as far behind ended; -1: they are moved on instead. catch_up_ns: lateness that sending faster
    makes up for.
    """

    rate: Rate | None = None
    late_ns: int = -1
    catch_up_ns: int = 100 * MILLISECOND

    @property
    def drops(self) -> bool:
        return self.late_ns >= 0


LIVE_AS_IT_COMES = Pacing()


@dataclass(slots=True)
class EngineCounters:
    """Written by one engine lane."""

    started: Counter[str] = field(default_factory=Counter)
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)  # (label, reason)
    active: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    steps: int = 0
    step_times: Histogram = field(default_factory=lambda: Histogram(STEP_BOUNDS_NS))  # inside scheduler.step
    batches: Histogram = field(default_factory=lambda: Histogram(BATCH_BOUNDS))  # sessions a step
    ahead_ns: int = 0  # live: how far its session that is furthest behind is ahead of the clock
    deficit_ns: int = 0  # of ended sessions and live ones
    throttled_ns: int = 0  # likewise
    late_dropped: int = 0  # likewise: packets not made for being too late
    reused: int = 0  # addresses dealt twice
    flows: Counter[str] = field(default_factory=Counter)  # TCP flows concluded, by ending
    flow_findings: Counter[str] = field(default_factory=Counter)  # those of them that have a finding
    malformed: Counter[str] = field(default_factory=Counter)  # packets of ended sessions that were none, by reason
    guide: Guide = field(default_factory=lambda: Guide(False))  # counts of ended sessions and live ones


@dataclass(slots=True)
class OutputCounters:
    """Written by the output lane."""

    packets: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    flows: Counter[str] = field(default_factory=Counter)  # opened
    findings: Counter[str] = field(default_factory=Counter)  # packets that raised one
    planted: Counter[str] = field(default_factory=Counter)  # defects planted, by name
    late: int = 0
    lateness_ns: int = 0  # of the last packet
    lateness_max_ns: int = 0
    late_dropped: int = 0  # made, but too late to be sent
    slipped_ns: int = 0  # how far the whole stream was moved because it could not be sent in time
    cut: int = 0  # made, but not yet due when the daemon stopped
    first_ns: int = 0  # session time of the first and the last packet sent
    last_ns: int = 0
    held: int = 0  # packets waiting for their time or for a slower session

    @property
    def total_packets(self) -> int:
        return sum(self.packets.values())

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes.values())


class Over(NamedTuple):
    """A session that has ended, while packets of it may still be held."""

    info: SessionInfo
    clock_ns: int
    reason: str
    interventions: dict[str, int] | None = None  # of its guide, by rule


class LastMoment(Protocol):
    """What keeps the sessions of a daemon that stops (see snapshots.py)."""

    def stand(self, lane: EngineLane) -> bool:
        """In an engine lane that ends: whether its sessions are kept, not cut."""

    @property
    def complete(self) -> bool:
        """Every lane's sessions are kept."""

    def finish(self) -> None:
        """In the output lane, at its end: keep what is held."""

    def cut(self, sessions: Sequence[SessionMeta]) -> None:
        """Sessions that have spoken and are not over."""


@dataclass(slots=True)
class _Batch:
    packets: list[OutPacket]
    ended: list[Session]


@dataclass(frozen=True, slots=True)
class Asked:
    """A session that a command asked for; `start_ns` 0 in `info`: when a lane takes it."""

    info: SessionInfo
    limits: Limits


class Board:
    """What the lanes share: floors, live counts, arrivals, the inbox, pauses. The lock guards what decides on new
    sessions, and pauses."""

    def __init__(
        self,
        mix: TrafficMix,
        arrivals: Arrivals,
        threads: int,
        lookahead_ns: int,
        start_ns: int,
        clock: Clock | None,
        end_ns: int = FOR_EVER,
        queue_packets: int = 65_536,
        ready_ns: int = 0,
    ) -> None:
        self.mix = mix
        self.arrivals = arrivals
        span_ns = clock.span_ns if clock else int
        self.lookahead_ns, self.lead_ns, self.ready_ns = span_ns(lookahead_ns), span_ns(LEAD_NS), span_ns(ready_ns)
        self.clock = clock  # None: topspeed
        self.start_ns = start_ns
        self.end_ns = end_ns
        self.queue_packets = queue_packets
        self.lock = threading.Lock()
        self.floors = [start_ns] * threads
        self.live = [0] * threads
        self.numbers = 0
        self.asked: deque[Asked] = deque()  # not started yet
        self.asked_live = 0  # of the live ones
        self.asked_numbers = ASKED
        self.asked_limits: dict[int, Limits] = {}  # of those started, until their session is made
        self.held = 0
        self.enough = False  # the metronome has more than it can send
        self.inbox: queue.Queue[_Batch | None] = queue.Queue(INBOX_BATCHES)
        self.stop = threading.Event()  # finish what is begun
        self.broken = threading.Event()  # a lane died: nobody may wait for another any more
        self.last_moment: LastMoment | None = None  # set before `stop` where sessions shall be kept
        self.pauses: dict[str, int] = {}  # reason -> monotonic ns since when; paused while there is any
        self.paused_ns = 0  # of the pauses that are over

    def pause(self, reason: str) -> bool:
        """Make and send nothing until every reason is gone. Any thread; False if this reason was there already."""
        with self.lock:
            if reason in self.pauses:
                return False
            if not self.pauses and self.clock:
                self.clock.pause()
            self.pauses = self.pauses | {reason: time.monotonic_ns()}  # a new one: others read without the lock
            return True

    def resume(self, reason: str) -> bool:
        """Take a reason away. Any thread; False if it was not there."""
        with self.lock:
            if reason not in self.pauses:
                return False
            left = {name: since_ns for name, since_ns in self.pauses.items() if name != reason}
            if not left:
                self.paused_ns += time.monotonic_ns() - min(self.pauses.values())
                if self.clock:
                    self.clock.resume()
            self.pauses = left
            return True

    @property
    def floor_ns(self) -> int:
        """No packet earlier than this still comes."""
        return min(self.floors)

    @property
    def done(self) -> bool:
        """All sessions that there shall be have run, or time is up."""
        return (self.arrivals.exhausted and not any(self.live) and not self.asked) or self.floor_ns >= self.end_ns

    def admit(self, lane: int, now_ns: int, start_ns: int) -> SessionInfo | None:
        """The next session, if one is due and this lane is the one to take it (the one with fewest sessions)."""
        with self.lock:
            if self.live[lane] > min(self.live) or start_ns >= self.end_ns:
                return None
            if self.asked:
                asked = self.asked.popleft()
                self.live[lane] += 1
                self.asked_live += 1
                self.asked_limits[asked.info.number] = asked.limits
                return replace(asked.info, start_ns=start_ns)
            if not self.arrivals.take(now_ns, sum(self.live) - self.asked_live):
                return None
            number = self.numbers
            self.numbers += 1
            self.live[lane] += 1
        return self.mix.session(number, start_ns)


class EngineLane:
    """One engine thread: a scheduler on a backend of its own, fed by the board."""

    def __init__(
        self,
        index: int,
        board: Board,
        scheduler: Scheduler,
        open_session: Callable[[SessionInfo], Session],
        on_end: Callable[[Session], None] | None = None,
    ) -> None:
        self.index = index
        self.board = board
        self.scheduler = scheduler
        self.open_session = open_session
        self.on_end = on_end
        self.counters = EngineCounters()
        self.orders: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._packets: list[OutPacket] = []
        self._ended: list[Session] = []
        self._flushed_ns = 0
        self._lost_ns = (0, 0)  # deficit and throttling of ended sessions
        self._late_dropped = 0  # packets of ended sessions
        self._guide = Guide(False)  # counts of ended sessions
        self._places_ns: list[int] = []  # topspeed: when the sessions ended whose places are free, a heap
        self._reached_ns = board.start_ns  # what this lane could promise after its last turn
        self._now_ns = 0  # session time as this lane has last seen it: a slip of the clock does not turn it back
        self._turns = 0
        self._due = False  # the last turn made no step, though a session was due
        self._over = False

    def run(self) -> None:
        """Until the board says stop or there is nothing more to make."""
        while not self.board.stop.is_set() and not self.board.done:
            self.turn()
            self._turns += 1
        last = self.board.last_moment
        if last is None or not last.stand(self):
            for session in self.scheduler.close():
                session.cut()
                self._end(session)
            self._flush(FOR_EVER)
        self._over = True

    def pulse(self) -> Pulse:
        """For the watchdog; from any thread."""
        return Pulse(f"engine lane {self.index}", self._turns, self.counters.steps, self._due, self._over)

    def turn(self) -> None:
        """Do what was ordered; unless paused, admit, step once, hand over."""
        board, scheduler = self.board, self.scheduler
        _obey(self.orders)
        if board.pauses:
            self._flush(board.floors[self.index])
            board.stop.wait(PAUSE_SECONDS)
            return
        now_ns = self._now_ns = max(self._now_ns, board.clock.now_ns()) if board.clock else 0
        self._admit(now_ns)
        horizon_ns = self._horizon_ns(now_ns)
        before = time.monotonic_ns()
        result = scheduler.step(horizon_ns, now_ns + board.ready_ns)
        after = time.monotonic_ns()
        if result is not None:
            self.counters.step_times.observe(after - before)
            self.counters.batches.observe(scheduler.tokens - self.counters.tokens)
            self.counters.steps = scheduler.steps
            self.counters.tokens = scheduler.tokens
            self._packets += result[0]
            for session in result[1]:
                self._end(session)
        self._due = result is None and self._owes(now_ns)
        self._reached_ns = self._floor(now_ns)
        full = len(self._packets) >= FLUSH_PACKETS or self._ended
        if result is None or full or after - self._flushed_ns > FLUSH_NS:
            self._flush(self._reached_ns)
            self._flushed_ns = after
        if result is None:
            board.stop.wait(IDLE_SECONDS if board.clock or board.enough else IDLE_SECONDS / 10)

    def hand_over(self) -> None:
        """Flush all that was made, between two steps."""
        self._flush(self.board.floors[self.index] if self.board.pauses else self._reached_ns)

    def kept(self) -> dict[str, Any]:
        """What this lane knows besides its sessions, between two steps, as plain values."""
        cap = self.scheduler.cap
        return {
            "reached_ns": self._reached_ns,
            "places_ns": list(self._places_ns),
            "lost_ns": list(self._lost_ns),
            "cap": [cap.gap_ns, cap.at_ns],
        }

    def go_on(self, kept: dict[str, Any]) -> None:
        """Before the first turn: be where `kept` was told."""
        self._reached_ns = int(kept["reached_ns"])
        self._places_ns = [int(place_ns) for place_ns in kept["places_ns"]]
        self._lost_ns = (int(kept["lost_ns"][0]), int(kept["lost_ns"][1]))
        gap_ns, at_ns = kept["cap"]
        if gap_ns == self.scheduler.cap.gap_ns:
            self.scheduler.cap.at_ns = int(at_ns)

    def take_back(self, session: Session, state: bytes, left: int, active: bool) -> None:
        """Before the first turn: a session that goes on. Raises SnapshotError for a state that is not the model's."""
        try:
            self.scheduler.resume(session, state, left, active)
        except ValueError as error:
            raise SnapshotError(f"session {session.info.number}: {error}") from None
        self.counters.active[session.info.label] += 1
        self.board.live[self.index] += 1
        self.board.asked_live += session.info.number >= ASKED

    def _horizon_ns(self, now_ns: int) -> int:
        """How far sessions may go. At top speed as far as they like, since the earliest is always next, until too many
        packets wait for a slower lane; then only those go on that others wait for."""
        board = self.board
        full = board.held > board.queue_packets
        if board.clock:
            return min(now_ns if full else now_ns + board.lookahead_ns, board.end_ns)
        if board.enough:
            return -1
        return min(self._reached_ns, self._others_ns()) if full else board.end_ns

    def _owes(self, now_ns: int) -> bool:
        """Whether a session here should go on now, whatever else waits: live when its time has come, at top speed when
        it is the one that is furthest behind."""
        clock_ns = self.scheduler.clock_ns
        if self.board.enough:
            return False
        return clock_ns < self.board.end_ns and clock_ns <= (now_ns if self.board.clock else self._others_ns())

    def _admit(self, now_ns: int) -> None:
        board = self.board
        while self.scheduler.free:
            at_ns = now_ns if board.clock else self._reached_ns
            start_ns = max(at_ns, self._places_ns[0] if self._places_ns else 0)
            if board.clock:
                start_ns = at_ns + board.lead_ns
            info = board.admit(self.index, at_ns, start_ns)
            if info is None:
                return
            if self._places_ns and info.number < ASKED:
                heapq.heappop(self._places_ns)
            session = self.open_session(info)
            self.scheduler.add(session)
            self.counters.started[info.label] += 1
            self.counters.active[info.label] += 1

    def _floor(self, now_ns: int) -> int:
        """What this lane can promise: no session of its own, nor one that it may still admit, sends earlier."""
        board, clock_ns = self.board, self.scheduler.clock_ns
        if board.clock:
            self.counters.ahead_ns = clock_ns - now_ns if clock_ns < FOR_EVER else 0
            return min(max(clock_ns, now_ns + board.ready_ns), now_ns + board.lead_ns)
        next_ns = board.arrivals.next_ns(sum(board.live) - board.asked_live)
        if next_ns is not None and next_ns > self._reached_ns:  # one that is due already starts where the floor is then
            clock_ns = min(clock_ns, next_ns)
        if clock_ns == FOR_EVER:  # nothing here: as far as the others are
            clock_ns = self._others_ns()
        return max(clock_ns, self._reached_ns) if clock_ns < FOR_EVER else self._reached_ns

    def _others_ns(self) -> int:
        """How far the other lanes that have sessions are; FOR_EVER if there are none."""
        board = self.board
        others = [f for i, f in enumerate(board.floors) if i != self.index and board.live[i]]
        return min(others, default=FOR_EVER)

    def _end(self, session: Session) -> None:
        label = session.info.label
        counters = self.counters
        counters.ended[label, session.reason] += 1
        counters.active[label] -= 1
        self._lost_ns = (self._lost_ns[0] + session.deficit_ns, self._lost_ns[1] + session.throttled_ns)
        self._late_dropped += session.late_dropped
        if self.board.clock is None and not self.board.arrivals.mean_gap_ns and session.info.number < ASKED:
            heapq.heappush(self._places_ns, session.clock_ns)
            if len(self._places_ns) > self.board.arrivals.concurrency:  # another lane took the place
                heapq.heappop(self._places_ns)
        if session.guide is not None:
            self._guide.add(session.guide)
        counters.reused += session.identities.reused if session.identities else 0
        if session.checker is not None:
            totals = session.checker.finish()
            counters.flows.update(totals.endings)
            for finding, count in zip(FINDINGS, totals.in_flows):
                counters.flow_findings[finding.name] += count
        counters.malformed.update(session.malformed())
        self._ended.append(session)
        if self.on_end:
            self.on_end(session)

    def _flush(self, floor_ns: int) -> None:
        """Hand over what was made, then (and only then) promise the floor, then give ended sessions' places free."""
        packets, ended = self._packets, self._ended
        live = self.scheduler.sessions()
        self.counters.deficit_ns = self._lost_ns[0] + sum(session.deficit_ns for session in live)
        self.counters.late_dropped = self._late_dropped + sum(session.late_dropped for session in live)
        self.counters.throttled_ns = self._lost_ns[1] + sum(session.throttled_ns for session in live)
        guide = Guide(False)
        for counted in (self._guide, *(session.guide for session in live)):
            if counted is not None:
                guide.add(counted)
        self.counters.guide = guide
        if packets or ended:
            self._packets, self._ended = [], []
            self._put(_Batch(packets, ended))
        self.board.floors[self.index] = floor_ns
        if ended:
            with self.board.lock:
                self.board.live[self.index] -= len(ended)
                self.board.asked_live -= sum(session.info.number >= ASKED for session in ended)

    def _put(self, batch: _Batch) -> None:
        """Wait for room; the output lane always empties its inbox, unless it is dead."""
        while True:
            try:
                return self.board.inbox.put(batch, timeout=0.5)
            except queue.Full:
                if self.board.broken.is_set():
                    return None


class OutputLane:
    """The output thread: takes batches, sends packets in time order when they are due, tells sinks which sessions are
    over."""

    def __init__(
        self,
        board: Board,
        sinks: Sequence[Sink],
        describe: Callable[[SessionInfo], SessionMeta],
        on_finding: Callable[[str, SessionMeta], object] | None = None,
        live: Sequence[LiveSink] = (),
        pacing: Pacing = LIVE_AS_IT_COMES,
    ) -> None:
        self.board = board
        self.describe = describe
        self.on_finding = on_finding  # told of each packet that raised one
        self.pacing = pacing
        self.live, self.others = list(live), list(sinks)
        self._lead_ns = max((sink.lead_ns for sink in live), default=0)
        self._metronome: Metronome | None = None  # made with the first packet
        self._gap_ns = MILLISECOND  # between two packets of the metronome, lately
        self._paused_ns = 0  # of the pauses that the metronome knows
        self._pending: deque[tuple[OutPacket, Outgoing]] = deque()  # with the live sinks already, not due yet
        self._names: dict[int, tuple[str, ...]] = {0: ()}  # of findings, by their bits
        self._metas: dict[int, SessionMeta] = {}  # of sessions that have spoken and are not over
        self._flows: dict[int, int] = {}  # their flows opened so far
        self._flushed_ns = 0
        self._wall_offset_ns = board.clock.wall_offset_ns if board.clock else time.time_ns() - time.monotonic_ns()
        self.counters = OutputCounters()
        self.release = Release()
        self.orders: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._ended: list[Over] = []
        self._stored: tuple[int, int] | None = None  # see `skip`
        self._over = False  # no more batches come
        self._turns = 0
        self._closed = False

    def run(self) -> None:
        """Until every engine lane is over (`finish` was called); then sends what is due, and closes the sinks."""
        try:
            while not self._over and not self.board.broken.is_set():
                self.turn()
                self._turns += 1
            self._last()
        finally:
            for sink in self.sinks:
                sink.close()
            self._closed = True

    @property
    def sinks(self) -> list[Sink]:
        """All of them."""
        return [*self.live, *self.others]

    def pulse(self) -> Pulse:
        """For the watchdog; from any thread. A turn takes at most 50 ms unless a sink blocks."""
        return Pulse("output lane", self._turns, self._turns, over=self._closed)

    def finish(self) -> None:
        """No more batches come (called once, after the engine lanes have ended)."""
        while not self.board.broken.is_set():
            try:
                return self.board.inbox.put(None, timeout=0.5)
            except queue.Full:
                pass
        return None

    def turn(self) -> None:
        """One round: wait for a batch or for the next packet's time, take all batches there are, send what is due."""
        board = self.board
        self._take(self._wait_seconds())
        floor_ns = board.floor_ns  # read before the inbox is emptied: all that it promises is then here
        while self._take(0):
            pass
        if not board.pauses:
            self._hand_over(min(floor_ns, board.end_ns))
        self._send_due(self._monotonic_ns())
        board.held = self.counters.held = len(self.release)
        _obey(self.orders)
        timed = board.clock or self.pacing.rate
        self._flush_sinks(self._monotonic_ns() + self._wall_offset_ns if timed else self.release.released_ns)

    def _monotonic_ns(self) -> int:
        """Real time, by the clock's own hands."""
        clock = self.board.clock
        return clock.wall_ns() - self._wall_offset_ns if clock else time.monotonic_ns()

    def rotate(self) -> None:
        """Begin a new file. Any thread."""

        def order() -> None:
            for sink in self.sinks:
                sink.rotate()

        self.orders.put(order)

    def _flush_sinks(self, now_ns: int) -> None:
        """Once a second of real time; `now_ns` is on the packets' clock."""
        real_ns = time.monotonic_ns()
        if real_ns - self._flushed_ns > 1_000 * MILLISECOND:
            self._flushed_ns = real_ns
            for sink in self.sinks:
                sink.flush(now_ns)

    def _wait_seconds(self) -> float:
        """To the next packet's moment; a live sink's lead allows for more at once."""
        board, now_ns, next_ns = self.board, self._monotonic_ns(), self.release.next_ns
        wait_ns = 50 * MILLISECOND
        if self._pending:
            wait_ns = min(wait_ns, self._pending[0][1].due_ns - now_ns)
        if board.pauses:
            wait_ns = min(wait_ns, int(PAUSE_SECONDS * 1e9))
        elif next_ns is not None and board.clock:
            wait_ns = min(wait_ns, board.clock.due_ns(next_ns) - self._lead_ns - now_ns)
        elif next_ns is not None and self._metronome:
            wait_ns = min(wait_ns, self._metronome.next_ns - self._lead_ns - now_ns)
        return max(wait_ns, MILLISECOND // 2, self._lead_ns // 10) / 1e9

    def _take(self, timeout: float) -> bool:
        try:
            batch = self.board.inbox.get(timeout=timeout) if timeout else self.board.inbox.get_nowait()
        except queue.Empty:
            return False
        if batch is None:
            self._over = True
            return False
        self.release.add(batch.packets)
        for session in batch.ended:
            done = session.guide.interventions_by_rule() if session.guide is not None else None
            self._ended.append(Over(session.info, session.clock_ns, session.reason, done))
        return True

    def take_all(self) -> None:
        """Take every batch there is."""
        while self._take(0):
            pass

    def held(self) -> list[OutPacket]:
        """Packets that are not sent yet; with live sinks some may be on their way."""
        return [packet for packet, _ in self._pending] + self.release.held()

    @property
    def reached_ns(self) -> int:
        """All earlier packets are sent."""
        return self._pending[0][0].ts_ns if self._pending else self.release.released_ns

    def ended(self) -> list[Over]:
        """Sessions that are over, of which packets are still held."""
        return list(self._ended)

    def go_on(self, released_ns: int, packets: list[OutPacket], over: list[Over]) -> None:
        """Before the first turn: hold what was held."""
        self.release.released_ns = released_ns
        self.release.add(packets)
        self._ended = list(over)

    def skip(self, ts_ns: int, count: int) -> None:
        """Before the first turn, at top speed: the sinks hold all before `ts_ns` already, and `count` packets of that
        time."""
        self._stored = (ts_ns, count)

    def _not_stored(self, packets: list[OutPacket]) -> list[OutPacket]:
        ts_ns, count = self._stored or (0, 0)
        new = []
        for packet in packets:
            if packet.ts_ns > ts_ns:
                new.append(packet)
            elif packet.ts_ns == ts_ns:
                if count:
                    count -= 1
                else:
                    new.append(packet)
        self._stored = (ts_ns, count) if not new else None
        return new

    def _hand_over(self, floor_ns: int, lead_ns: int | None = None) -> None:
        """Give the packets before `floor_ns` their moments, those that come within the lead; live sinks get them."""
        lead_ns = self._lead_ns if lead_ns is None else lead_ns
        clock, next_ns = self.board.clock, self.release.next_ns
        if next_ns is None or next_ns >= floor_ns:
            self.release.up_to(floor_ns, clock.now_ns() + clock.span_ns(lead_ns) if clock else None)
        elif clock:
            self._hand_over_live(clock, next_ns, floor_ns, lead_ns)
        elif self.pacing.rate:
            self._hand_over_steady(self.pacing.rate, floor_ns, lead_ns)
        else:
            packets = self.release.up_to(floor_ns)
            self._give(packets, [0] * len(packets))

    def _hand_over_live(self, clock: Clock, next_ns: int, floor_ns: int, lead_ns: int) -> None:
        if self.live and not self.pacing.drops:
            late_ns = self._monotonic_ns() - clock.due_ns(next_ns)
            if late_ns > self.pacing.catch_up_ns:
                with self.board.lock:
                    clock.slip(late_ns)
                self.counters.slipped_ns += late_ns
        packets = self.release.up_to(floor_ns, clock.now_ns() + clock.span_ns(lead_ns))
        dues = [clock.due_ns(packet.ts_ns) for packet in packets]
        if self.live and self.pacing.drops:
            first = self._monotonic_ns() - self.pacing.late_ns
            late = sum(due_ns < first for due_ns in dues)
            self.counters.late_dropped += late
            packets, dues = packets[late:], dues[late:]
        self._give(packets, dues)

    def _hand_over_steady(self, rate: Rate, floor_ns: int, lead_ns: int) -> None:
        """By the metronome, a few at a time: those that come within the lead."""
        now_ns, board = self._monotonic_ns(), self.board
        if self._metronome is None:
            self._metronome = Metronome(rate, now_ns + lead_ns, self.pacing.catch_up_ns)
            self._paused_ns = board.paused_ns
        metronome = self._metronome
        if board.paused_ns != self._paused_ns:
            metronome.move_on(board.paused_ns - self._paused_ns)
            self._paused_ns = board.paused_ns
        metronome.be_at(now_ns)
        self.counters.slipped_ns = metronome.slipped_ns
        while (ahead_ns := now_ns + lead_ns - metronome.next_ns) >= 0:
            packets = self.release.up_to(floor_ns, None, min(ahead_ns // self._gap_ns + 1, 64))
            if not packets:
                break
            self._give(packets, [metronome.tick(packet.orig_len) for packet in packets])
            self._gap_ns = max(1, (metronome.next_ns - now_ns - lead_ns + ahead_ns) // len(packets))
        board.enough = len(self.release) >= METRONOME_PACKETS and (self.release.next_ns or 0) < floor_ns

    def _give(self, packets: list[OutPacket], dues: list[int]) -> None:
        """Packets with their moments: to the live sinks now, to the others when they are due."""
        if self._stored is not None and packets:
            packets = self._not_stored(packets)
            dues = dues[len(dues) - len(packets) :]
        batch = self._outgoing(packets, dues)
        for sink in self.live:
            sink.write(batch)
        self._pending.extend(zip(packets, batch))

    def _send_due(self, now_ns: int) -> None:
        """To the sinks that are not live, what is due; and news of sessions whose last packet that was."""
        pending = self._pending
        packets: list[OutPacket] = []
        batch: list[Outgoing] = []
        while pending and pending[0][1].due_ns <= now_ns:
            packet, outgoing = pending.popleft()
            packets.append(packet)
            batch.append(outgoing)
        if batch:
            for sink in self.others:
                sink.write(batch)
            self._count(packets, batch, now_ns)
        if self._ended:
            reached = self.reached_ns
            over = [session for session in self._ended if session.clock_ns < reached]
            if over:
                self._ended = [session for session in self._ended if session.clock_ns >= reached]
                for session in over:
                    self._session_over(session)

    def _outgoing(self, packets: list[OutPacket], dues: list[int]) -> list[Outgoing]:
        metas, batch, offset_ns = self._metas, [], self._wall_offset_ns
        for (ts_ns, data, orig_len, info, _, flow, direction, _, found, planted), due_ns in zip(packets, dues):
            meta = metas.get(info.number)
            if meta is None:
                meta = metas[info.number] = self.describe(info)
            findings = self._found(found, meta) if found else ()
            packet = Packet(due_ns + offset_ns if due_ns else ts_ns, data, orig_len)
            batch.append(Outgoing(packet, meta, flow, direction, due_ns, findings, planted))
            if planted:
                self.counters.planted[planted] += 1
        return batch

    def _found(self, found: int, meta: SessionMeta) -> tuple[str, ...]:
        """Names of a packet's findings; they are counted and told."""
        names = self._names.get(found)
        if names is None:
            names = self._names[found] = tuple(f.name for i, f in enumerate(FINDINGS) if found >> i & 1)
        self.counters.findings.update(names)
        if self.on_finding:
            for name in names:
                self.on_finding(name, meta)
        return names

    def _session_over(self, session: Over) -> None:
        """Tell the sinks, unless it was cut by the daemon's stop: then it did not end."""
        meta = self._metas.pop(session.info.number, None)
        self._flows.pop(session.info.number, None)
        if meta is not None and session.reason != STOPPED:
            if session.interventions is not None:
                meta = replace(meta, interventions=session.interventions)
            for sink in self.sinks:
                sink.end_session(meta)

    def _count(self, packets: list[OutPacket], batch: list[Outgoing], now_ns: int) -> None:
        counters = self.counters
        for packet, outgoing in zip(packets, batch):
            label = packet.session.label
            counters.packets[label] += 1
            counters.bytes[label] += packet.orig_len
            if packet.five_tuple is not None and packet.flow >= self._flows.get(packet.session.number, 0):
                self._flows[packet.session.number] = packet.flow + 1  # a session's flows are numbered as they open
                counters.flows[label] += 1
            if outgoing.due_ns and now_ns - outgoing.due_ns > LATE_NS:
                counters.late += 1
        counters.first_ns = counters.first_ns or packets[0].ts_ns
        counters.last_ns = packets[-1].ts_ns
        if batch[0].due_ns:
            counters.lateness_ns = now_ns - batch[0].due_ns
            counters.lateness_max_ns = max(counters.lateness_max_ns, counters.lateness_ns)

    def _last(self) -> None:
        """At the end, if sessions are kept: what is due goes out, the rest is kept with them. Otherwise, topspeed: all
        there is goes out. Timed: what is still to come is waited for if the daemon ended by itself; if it was stopped,
        what lies in the future did not happen."""
        board, timed, last = self.board, self.board.clock or self.pacing.rate, self.board.last_moment
        self._sit_out_pauses()
        if last is not None and last.complete:
            self._stop(min(board.floor_ns, board.end_ns))
            last.finish()
            last.cut(list(self._metas.values()))
            return
        while not (board.stop.is_set() and timed) and not board.broken.is_set():
            self._hand_over(board.end_ns)
            self._send_due(self._monotonic_ns())
            if not self._pending and (self.release.next_ns or FOR_EVER) >= board.end_ns:
                break
            board.stop.wait(self._wait_seconds())
            self._sit_out_pauses()
            self._turns += 1
        self._stop(board.end_ns)
        self.counters.cut = len(self.release) + len(self._pending)
        for session in self._ended:
            self._session_over(session)

    def _stop(self, floor_ns: int) -> None:
        """Send what is due by now, and no more; the same to all sinks."""
        self._hand_over(floor_ns, lead_ns=0)
        cut_ns = self._monotonic_ns()
        for sink in self.live:
            sink.cut(cut_ns)
        self._send_due(cut_ns)

    def _sit_out_pauses(self) -> None:
        """Wait until no pause is left, or the daemon is stopped; orders are obeyed meanwhile."""
        while True:
            _obey(self.orders)
            if not self.board.pauses or self.board.stop.wait(PAUSE_SECONDS):
                return


def _obey(orders: queue.SimpleQueue[Callable[[], object]]) -> None:
    """Do all that is in there."""
    while True:
        try:
            order = orders.get_nowait()
        except queue.Empty:
            return
        order()


def start_thread(name: str, work: Callable[[], None], on_death: Callable[[BaseException], None]) -> threading.Thread:
    """Run `work` in a thread; what it raises goes to `on_death`."""

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            on_death(error)

    thread = threading.Thread(target=guarded, name=name, daemon=True)
    thread.start()
    return thread
