"""The threads that packets go through: engine lanes (here) make them, one output lane (output_lane.py) sends them out.

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

All lanes live in *session time* (see clock.py); what they share is the board (board.py).

A live sink (a TAP) sends at the moment itself; for it, what is made late is moved `READY_NS` beyond now, so that it can
still be on time there.

What the control thread wants of a lane it puts into the lane's `orders`; the lane does it between two steps.
"""

from __future__ import annotations

import heapq
import queue
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from netssmd.daemon.board import ASKED, MILLISECOND, PAUSE_SECONDS, Batch, Board, obey
from netssmd.daemon.histogram import Histogram
from netssmd.daemon.watchdog import Pulse
from netssmd.engine.guide import Guide
from netssmd.engine.scheduler import FOR_EVER, Place, Scheduler
from netssmd.engine.session import OutPacket, Session, SessionInfo
from netssmd.errors import SnapshotError
from netssmd.packet.compliance import FINDINGS

STEP_BOUNDS_NS = tuple(n * 100_000 for n in (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000))
BATCH_BOUNDS = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)
READY_NS = 30 * MILLISECOND  # for a live sink: from the making of a packet that is late to its new moment
FLUSH_PACKETS = 64
FLUSH_NS = 5 * MILLISECOND
FLUSH_TOPSPEED_NS = 20 * MILLISECOND
COUNT_NS = 100 * MILLISECOND  # between two sums over all live sessions
IDLE_SECONDS = 0.005


@dataclass(slots=True)
class EngineCounters:
    """Written by one engine lane."""

    started: Counter[str] = field(default_factory=Counter)
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)  # (label, reason)
    active: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    drafted: int = 0  # tokens, by speculation
    accepted: int = 0  # those of them that were drawn
    steps: int = 0
    step_times: Histogram = field(default_factory=lambda: Histogram(STEP_BOUNDS_NS))  # inside scheduler.step
    batches: Histogram = field(default_factory=lambda: Histogram(BATCH_BOUNDS))  # sessions a step
    ahead_ns: int = 0  # live: how far its session that is furthest behind is ahead of the clock
    deficit_ns: int = 0  # of ended sessions and live ones
    throttled_ns: int = 0  # likewise
    late_dropped: int = 0  # likewise: packets not made for being too late
    clamped: int = 0  # likewise: packets that were to be longer than the MTU
    reused: int = 0  # addresses dealt twice
    flows: Counter[str] = field(default_factory=Counter)  # TCP flows concluded, by ending
    flow_findings: Counter[str] = field(default_factory=Counter)  # those of them that have a finding
    malformed: Counter[str] = field(default_factory=Counter)  # packets of ended sessions that were none, by reason
    guide: Guide = field(default_factory=lambda: Guide(False))  # counts of ended sessions and live ones


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
        self._counted_ns = 0
        self._lost_ns = (0, 0)  # deficit and throttling of ended sessions
        self._late_dropped = 0  # packets of ended sessions
        self._clamped = 0  # likewise
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
        self._count()
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
        obey(self.orders)
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
            self.counters.batches.observe(scheduler.advanced)
            self.counters.steps = scheduler.steps
            self.counters.tokens = scheduler.tokens
            self.counters.drafted = scheduler.drafted
            self.counters.accepted = scheduler.accepted
            self._packets += result[0]
            for session in result[1]:
                self._end(session)
        self._due = result is None and self._owes(now_ns)
        self._reached_ns = self._floor(now_ns)
        full = len(self._packets) >= FLUSH_PACKETS or self._ended
        if result is None or full or after - self._flushed_ns > (FLUSH_NS if board.clock else FLUSH_TOPSPEED_NS):
            self._flush(self._reached_ns)
            self._flushed_ns = after
        if after - self._counted_ns > COUNT_NS:
            self._count()
            self._counted_ns = after
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

    def fork(self, place: Place, copy: Session) -> None:
        """In this lane's thread, between two steps: a session that goes on where the one at `place` stands. No promise
        is broken, since its clock is that one's. Raises IndexError if no slot is free."""
        self.scheduler.resume(copy, self.scheduler.backend.save_state(place.slot))
        label = copy.info.label
        self.counters.started[label] += 1
        self.counters.active[label] += 1
        with self.board.lock:
            self.board.live[self.index] += 1
            self.board.asked_live += copy.info.number >= ASKED

    def _horizon_ns(self, now_ns: int) -> int:
        """How far sessions may go. At top speed as far as they like, since the earliest is always next, until half of
        the queue's packets wait for who is behind. Then a lane goes no further than the others are, and one alone no
        further than its floor. Once the queue is full, only those go on that others wait for."""
        board = self.board
        full = board.held > board.queue_packets
        if board.clock:
            return min(now_ns if full else now_ns + board.lookahead_ns, board.end_ns)
        if board.enough:
            return -1
        if board.held <= board.queue_packets // 2:
            return board.end_ns
        others_ns = self._others_ns()
        return min(self._reached_ns, others_ns) if full or others_ns == FOR_EVER else min(others_ns, board.end_ns)

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
        self._clamped += session.clamped()
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
        if packets or ended:
            self._packets, self._ended = [], []
            self._put(Batch(packets, ended))
        self.board.floors[self.index] = floor_ns
        if ended:
            with self.board.lock:
                self.board.live[self.index] -= len(ended)
                self.board.asked_live -= sum(session.info.number >= ASKED for session in ended)

    def _count(self) -> None:
        """What ended sessions and live ones have in sum."""
        live = self.scheduler.sessions()
        counters = self.counters
        counters.deficit_ns = self._lost_ns[0] + sum(session.deficit_ns for session in live)
        counters.throttled_ns = self._lost_ns[1] + sum(session.throttled_ns for session in live)
        counters.late_dropped = self._late_dropped + sum(session.late_dropped for session in live)
        counters.clamped = self._clamped + sum(session.clamped() for session in live)
        guide = Guide(False)
        for counted in (self._guide, *(session.guide for session in live)):
            if counted is not None:
                guide.add(counted)
        counters.guide = guide

    def _put(self, batch: Batch) -> None:
        """Wait for room; the output lane always empties its inbox, unless it is dead."""
        while True:
            try:
                return self.board.inbox.put(batch, timeout=0.5)
            except queue.Full:
                if self.board.broken.is_set():
                    return None
