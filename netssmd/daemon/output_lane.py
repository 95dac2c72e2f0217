"""The output thread: takes batches, holds packets until they are due, sends them in the order of time.

    inbox --> release, by time --> moments --lead_ns before--> live sinks (TAPs)
                                      `-------when due-------> the others (files)

Files get a packet when it is due. A live sink sends at the moment itself and gets it `lead_ns` before. Session time
becomes the moment when a packet leaves, and the wall time that it carries, here. A stall that no lead covers (a stopped
process) is caught up to `Pacing.catch_up_ns`; beyond that the whole stream moves on, or what is later than
`Pacing.late_ns` is dropped; either is counted. With a steady rate (`Pacing.rate`) a metronome gives the moments.
"""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from netssmd.daemon.board import MILLISECOND, PAUSE_SECONDS, Board, Over, obey
from netssmd.daemon.clock import Clock, WallTime
from netssmd.daemon.watchdog import Pulse
from netssmd.engine.release import Release
from netssmd.engine.scheduler import FOR_EVER
from netssmd.engine.session import OutPacket, SessionInfo
from netssmd.output.ledger import SessionMeta
from netssmd.output.rate import Metronome, Rate
from netssmd.output.sink import LiveSink, Outgoing, Sink
from netssmd.packet.compliance import names_of
from netssmd.packet.pcap import Packet

LATE_NS = 10 * MILLISECOND  # a packet that leaves later than this after its time is late
METRONOME_PACKETS = 4_096  # enough for the metronome: then the engines wait


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
        on_clock_set: Callable[[int], object] | None = None,
    ) -> None:
        self.board = board
        self.describe = describe
        self.on_clock_set = on_clock_set  # told by how many ns the wall clock was set
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
        self.wall: WallTime = board.clock.wall if board.clock else WallTime()
        self._last_due_ns = 0  # of the packets so far
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
        obey(self.orders)
        timed = board.clock or self.pacing.rate
        self._flush_sinks(self.wall.of(self._monotonic_ns()) if timed else self.release.released_ns)

    def _monotonic_ns(self) -> int:
        """Real time, by the clock's own hands."""
        clock = self.board.clock
        return clock.monotonic_ns() if clock else time.monotonic_ns()

    def rotate(self) -> None:
        """Begin a new file. Any thread."""

        def order() -> None:
            for sink in self.sinks:
                sink.rotate()

        self.orders.put(order)

    def _flush_sinks(self, now_ns: int) -> None:
        """Once a second of real time; `now_ns` is on the packets' clock. The wall clock is looked at, too."""
        real_ns = time.monotonic_ns()
        if real_ns - self._flushed_ns > 1_000 * MILLISECOND:
            self._flushed_ns = real_ns
            step_ns = self.wall.follow(self._last_due_ns)
            if step_ns and self.on_clock_set:
                self.on_clock_set(step_ns)
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

    def forked(self) -> list[tuple[int, str]]:
        """Live sessions that are copies, and the names of the originals; those that have not spoken are the board's."""
        return [(number, meta.forked_from) for number, meta in self._metas.items() if meta.forked_from]

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

    def _send_due(self, now_ns: int, lead_ns: int = 0) -> None:
        """To the sinks that are not live, what is due, or will be in `lead_ns`; and news of sessions whose last packet
        that was."""
        pending = self._pending
        packets: list[OutPacket] = []
        batch: list[Outgoing] = []
        while pending and pending[0][1].due_ns <= now_ns + lead_ns:
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
        metas, batch, wall_ns = self._metas, [], self.wall.of
        self._last_due_ns = dues[-1] if dues else self._last_due_ns
        for (ts_ns, data, orig_len, info, _, flow, direction, _, found, planted), due_ns in zip(packets, dues):
            meta = metas.get(info.number)
            if meta is None:
                meta = metas[info.number] = self.describe(info)
            findings = self._found(found, meta) if found else ()
            packet = Packet(wall_ns(due_ns) if due_ns else ts_ns, data, orig_len)
            batch.append(Outgoing(packet, meta, flow, direction, due_ns, findings, planted))
            if planted:
                self.counters.planted[planted] += 1
        return batch

    def _found(self, found: int, meta: SessionMeta) -> tuple[str, ...]:
        """Names of a packet's findings; they are counted and told."""
        names = self._names.get(found)
        if names is None:
            names = self._names[found] = names_of(found)
        self.counters.findings.update(names)
        if self.on_finding:
            for name in names:
                self.on_finding(name, meta)
        return names

    def _session_over(self, session: Over) -> None:
        """Tell the sinks."""
        meta = self._metas.pop(session.info.number, None)
        self._flows.pop(session.info.number, None)
        if meta is not None:
            meta = replace(meta, interventions=session.interventions, reason=session.reason)
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
            counters.lateness_ns = max(0, now_ns - batch[0].due_ns)
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
        """Send what is due by now and what the live sinks have already, and no more; the same to all sinks."""
        self._hand_over(floor_ns, lead_ns=0)
        now_ns = self._monotonic_ns()
        for sink in self.live:
            sink.cut(now_ns + self._lead_ns)
        self._send_due(now_ns, self._lead_ns)

    def _sit_out_pauses(self) -> None:
        """Wait until no pause is left, or the daemon is stopped; orders are obeyed meanwhile."""
        while True:
            obey(self.orders)
            if not self.board.pauses or self.board.stop.wait(PAUSE_SECONDS):
                return
