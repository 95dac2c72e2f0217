"""What the lanes share: the board that decides on new sessions and on pauses, and what they hand each other.

    engine lanes  --admit, floors, batches-->  Board  --batches, floor-->  output lane
    control thread  --pause, resume, asked, stop-->  Board

See lanes.py for the lanes' story. Times are in session time (see clock.py).
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from netssmd.daemon.clock import Clock
from netssmd.engine.mix import Arrivals, TrafficMix
from netssmd.engine.scheduler import FOR_EVER
from netssmd.engine.session import Limits, OutPacket, Session, SessionInfo
from netssmd.output.ledger import SessionMeta

if TYPE_CHECKING:
    from netssmd.daemon.lanes import EngineLane

MILLISECOND: Final = 1_000_000
LEAD_NS: Final = 100 * MILLISECOND  # from the decision to start a session to its first moment
PAUSE_SECONDS: Final = 0.02  # between two looks whether a pause is over
INBOX_BATCHES: Final = 64
ASKED: Final = 1 << 40  # numbers of sessions that a command asked for begin here: those of the mix stay what they are


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
class Batch:
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
        self.forked: dict[int, str] = {}  # copies that have not spoken yet, by number: the name of the original
        self.held = 0
        self.enough = False  # the metronome has more than it can send
        self.inbox: queue.Queue[Batch | None] = queue.Queue(INBOX_BATCHES)
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


def obey(orders: queue.SimpleQueue[Callable[[], object]]) -> None:
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
