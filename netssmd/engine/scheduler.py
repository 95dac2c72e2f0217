"""One engine thread's work: many sessions, one model, ragged continuous batching.

In: sessions, a backend, and a horizon in session time. Out: packets, one backend call at a time. Pure: it never reads a
clock.

    waiting (a heap by session clock)  --earliest first, as long as clock <= horizon-->  group (up to `group` sessions)
    group: rows, ranges, uniforms -> backend.step -> tokens -> session.advance -> packets
    group  --ended: slot freed | beyond the horizon or its quantum used up-->  waiting

The group is large enough to share one pass over the weights and small enough that its recurrent states stay in the
cache behind the core's own; a session stays in it for a quantum of steps, so that its state is not fetched from memory
for every token. Sessions join and leave at any token:
nothing is padded. The one that is furthest behind is always next, so nobody starves, and a session beyond the horizon
(the live clock plus the look-ahead) gets no step, which is what keeps memory flat. A prompt is prefilled
`prefill_chunk` tokens at a time, between two steps of the others.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from netssmd.codec.bytes import ByteDecoder
from netssmd.engine.ahead import Ahead
from netssmd.engine.guide import Guide
from netssmd.engine.mix import RateCap
from netssmd.engine.session import BROKEN, OutPacket, Session
from netssmd.model.backend import MOST_AHEAD, NonFiniteState

Ints: TypeAlias = npt.NDArray[np.int32]
Floats: TypeAlias = npt.NDArray[np.float32]
FOR_EVER = 1 << 63  # later than any packet


class Backend(Protocol):
    """The part of model/backend.py's Backend that the engine calls."""

    @property
    def slots(self) -> int: ...
    @property
    def call_rows(self) -> float: ...
    def reset(self, slot: int) -> None: ...
    def prefill(self, slot: int, rows: Ints) -> None: ...
    def step(
        self, slots: Ints, rows: Ints, ranges: Ints, uniforms: Floats, temperatures: Floats,
        factors: Floats | None = None, factors_at: Ints | None = None, removed: Floats | None = None,
    ) -> Ints: ...  # fmt: skip
    def verify(
        self, slots: Ints, counts: Ints, rows: Ints, drafts: Ints, ranges: Ints, uniforms: Floats, temperatures: Floats,
        factors: Floats | None = None, factors_at: Ints | None = None,
    ) -> tuple[Ints, Ints]: ...  # fmt: skip
    def save_state(self, slot: int) -> bytes: ...
    def load_state(self, slot: int, state: bytes) -> None: ...


class Place(NamedTuple):
    """Where a live session stands: its slot, the steps left of its quantum, whether it is in the group."""

    session: Session
    slot: int
    left: int
    active: bool


class _Seat:
    """A session and its slot; `left` tokens remain of its quantum; `ahead` drafts what it will say."""

    __slots__ = ("ahead", "left", "session", "slot")

    def __init__(self, session: Session, slot: int, ahead: Ahead | None) -> None:
        self.session = session
        self.slot = slot
        self.left = 0
        self.ahead = ahead

    def __lt__(self, other: _Seat) -> bool:
        a, b = self.session, other.session
        return (a.clock_ns, a.info.number) < (b.clock_ns, b.info.number)


def _ints(numbers: list[int]) -> Ints:
    """An int32 array; several times faster by way of `array` than `np.array` of a list."""
    return np.frombuffer(array("i", numbers), np.int32)


def _floats(numbers: list[float]) -> Floats:
    return np.frombuffer(array("f", numbers), np.float32)


def _joined(factors: list[bytes]) -> tuple[Floats, Ints]:
    """All factors of a call, and where those of each draw begin; -1 for none."""
    at: list[int] = []
    size = 0
    for own in factors:
        at.append(size if own else -1)
        size += len(own) // 4
    return np.frombuffer(b"".join(factors), np.float32), _ints(at)


class _Factors:
    """What changes the logits of one draw: each session's penalties or its guide's mask."""

    __slots__ = ("at", "guided", "removed", "values")

    def __init__(self, seats: list[_Seat], factors: list[bytes]) -> None:
        values, at = _joined(factors)
        self.values: Floats = values
        self.at: Ints = at
        self.guided: list[tuple[int, Guide]] = []  # position in the call, guide, where there is a mask
        for i, (seat, own) in enumerate(zip(seats, factors)):
            guide = seat.session.guide
            if own and guide is not None:
                self.guided.append((i, guide))
        self.removed: Floats | None = np.zeros((len(seats), 2), np.float32) if self.guided else None

    def count(self) -> None:
        """Tell the guides what the backend says that their masks did."""
        if self.removed is None:
            return
        taken: list[list[float]] = self.removed.tolist()
        for i, guide in self.guided:
            guide.count(taken[i][0], taken[i][1] > 0)


class Scheduler:
    """Slots and groups of one backend.

    group: sessions per backend call. cap: of the packet rate. slots: those of the backend that are this scheduler's
        (None: all); others may step the rest from other threads. quantum: steps before a session yields to an earlier
        one. prefill_chunk: prompt tokens per turn. speculate: sessions of the byte codec draft ahead where that is
        cheaper than steps (engine/ahead.py).
    """

    def __init__(
        self,
        backend: Backend,
        group: int = 16,
        cap: RateCap | None = None,
        slots: Sequence[int] | None = None,
        quantum: int = 64,
        prefill_chunk: int = 64,
        speculate: bool = False,
    ) -> None:
        self.backend = backend
        self.cap = cap or RateCap(0)
        self.free = list(reversed(range(backend.slots) if slots is None else slots))
        self.group = max(1, min(group, len(self.free)))
        self.quantum = quantum
        self.prefill_chunk = prefill_chunk
        self.speculate = speculate
        self.waiting: list[_Seat] = []  # heap
        self.active: list[_Seat] = []
        self.steps = 0
        self.advanced = 0  # sessions, by the last step
        self.tokens = 0
        self.draws = 0  # of a session by a call, with or without drafts
        self.drafted = 0  # tokens
        self.accepted = 0

    @property
    def live(self) -> int:
        """Sessions that hold a slot."""
        return len(self.waiting) + len(self.active)

    @property
    def clock_ns(self) -> int:
        """No packet still to come is earlier than this; FOR_EVER if no session is live."""
        clock = self.waiting[0].session.clock_ns if self.waiting else FOR_EVER
        for seat in self.active:
            if seat.session.clock_ns < clock:
                clock = seat.session.clock_ns
        return clock

    def add(self, session: Session) -> None:
        """Give the session a slot. Raises IndexError if none is free."""
        slot = self.free.pop()
        self.backend.reset(slot)
        heapq.heappush(self.waiting, _Seat(session, slot, self._ahead(session)))

    def resume(self, session: Session, state: bytes, left: int = 0, active: bool = False) -> None:
        """Give a session a slot in the state that `places` and the backend's save_state told. Raises IndexError if none
        is free, ValueError for a state that is not the model's."""
        slot = self.free.pop()
        try:
            self.backend.load_state(slot, state)
        except ValueError:
            self.free.append(slot)
            raise
        seat = _Seat(session, slot, self._ahead(session))
        seat.left = left
        if active:
            self.active.append(seat)
        else:
            heapq.heappush(self.waiting, seat)

    def _ahead(self, session: Session) -> Ahead | None:
        """What drafts for a session; None for one that takes step by step."""
        decoder = session.decoder
        if not self.speculate or not isinstance(decoder, ByteDecoder) or self.backend.call_rows <= 0:
            return None
        return Ahead(decoder.vocabulary)

    def places(self) -> list[Place]:
        """All live sessions: the group in its order, then those that wait."""
        seats = [(seat, True) for seat in self.active] + [(seat, False) for seat in self.waiting]
        return [Place(seat.session, seat.slot, seat.left, active) for seat, active in seats]

    def sessions(self) -> list[Session]:
        """All live ones."""
        return [seat.session for seat in (*self.active, *self.waiting)]

    def close(self) -> list[Session]:
        """Take all live ones out."""
        sessions = self.sessions()
        self.active, self.waiting = [], []
        return sessions

    def step(self, horizon_ns: int = FOR_EVER, not_before_ns: int = 0) -> tuple[list[OutPacket], list[Session]] | None:
        """One backend call for every session of the group; None if no session is due a step.

        horizon_ns: sessions whose clock is later wait. not_before_ns: packets get no earlier time than this (see
            Session.advance). Returns the packets, in no order across sessions, and the sessions that ended with this
            step.
        """
        self._gather(horizon_ns)
        if not self.active:
            return None
        self.advanced = len(self.active)
        packets: list[OutPacket] = []
        free: list[_Seat] = []
        for seat in self.active:
            if seat.session.prompting:
                packets += self._prefill(seat, not_before_ns)
            elif not seat.session.ended:  # one that was stopped from outside only leaves
                free.append(seat)
        self.draws += len(free)
        plan = self._plan(free)
        if plan:
            self._advance_ahead(free, plan, packets, not_before_ns)
        elif free:
            self._advance(free, packets, not_before_ns)
        return packets, self._dismiss(horizon_ns)

    def _gather(self, horizon_ns: int) -> None:
        """Fill the group with the earliest sessions."""
        waiting, active = self.waiting, self.active
        while len(active) < self.group and waiting and waiting[0].session.clock_ns <= horizon_ns:
            seat = heapq.heappop(waiting)
            seat.left = self.quantum
            active.append(seat)

    def _prefill(self, seat: _Seat, not_before_ns: int) -> list[OutPacket]:
        before = seat.session.forced
        rows, packets = seat.session.force(self.prefill_chunk, not_before_ns, self.cap.not_before_ns)
        try:
            self.backend.prefill(seat.slot, np.array(rows, dtype=np.int32))
        except NonFiniteState:
            seat.session.cut(BROKEN)
        self.tokens += len(rows)
        if seat.ahead is not None:
            for token in seat.session.prompt[before : before + len(rows)]:
                seat.ahead.take(token)
        for packet in packets:
            self.cap.sent(packet.ts_ns)
        seat.left = 0  # a long prompt takes turns
        return packets

    def _advance(self, seats: list[_Seat], packets: list[OutPacket], not_before_ns: int) -> None:
        slots: list[int] = []
        rows: list[int] = []
        ranges: list[int] = []
        uniforms: list[float] = []
        temperatures: list[float] = []
        masks: list[bytes] = []
        for seat in seats:
            slots.append(seat.slot)
            seat.session.ask(rows, ranges, uniforms, temperatures, masks)
        adjusted = _Factors(seats, masks) if any(masks) else None
        tokens = self._draw(
            seats,
            _ints(slots),
            _ints(rows).reshape(len(seats), -1),
            _ints(ranges).reshape(-1, 2),
            _floats(uniforms),
            _floats(temperatures),
            adjusted,
        )
        if adjusted is not None:
            adjusted.count()
        if len(tokens) < len(seats):
            seats = [seat for seat in seats if not seat.session.ended]
        self.steps += 1
        self.tokens += len(seats)
        cap = self.cap
        cap_ns = cap.not_before_ns
        for seat, token in zip(seats, tokens):
            seat.left -= 1
            if seat.ahead is not None:
                seat.ahead.drawn([token], 0)
                if seat.ahead.hopeless(self.backend.call_rows):
                    seat.ahead = None
            packet = seat.session.advance(token, not_before_ns, cap_ns)
            if packet is not None:
                cap.sent(packet.ts_ns)
                cap_ns = cap.not_before_ns
                packets.append(packet)

    def _plan(self, seats: list[_Seat]) -> list[list[int]]:
        """The drafts of each; nothing where none has any."""
        if not self.speculate:
            return []
        most = MOST_AHEAD // max(1, len(seats)) - 1  # all of a call in one pass over the weights
        plan: list[list[int]] = []
        some = False
        for seat in seats:
            drafts = [] if seat.ahead is None else seat.ahead.drafts(self.backend.call_rows / len(seats), most)
            some = some or bool(drafts)
            plan.append(drafts)
        return plan if some else []

    def _advance_ahead(
        self, seats: list[_Seat], plan: list[list[int]], packets: list[OutPacket], not_before_ns: int
    ) -> None:
        """`_advance`, several tokens a session where its drafts come true. What each session says is the same."""
        slots: list[int] = []
        counts: list[int] = []
        drafts: list[int] = []
        rows: list[int] = []
        ranges: list[int] = []
        uniforms: list[float] = []
        temperatures: list[float] = []
        masks: list[bytes] = []
        for seat, own in zip(seats, plan):
            slots.append(seat.slot)
            counts.append(len(own) + 1)
            drafts += own
            drafts.append(-1)
            seat.session.ask_ahead(own, rows, ranges, uniforms, temperatures, masks)
        factors: Floats | None = None
        at: Ints | None = None
        if any(masks):
            factors, at = _joined(masks)
        drawn, taken = self.backend.verify(
            _ints(slots),
            _ints(counts),
            _ints(rows).reshape(len(drafts), -1),
            _ints(drafts),
            _ints(ranges).reshape(-1, 2),
            _floats(uniforms),
            _floats(temperatures),
            factors,
            at,
        )
        tokens: list[int] = drawn.tolist()
        stood: list[int] = taken.tolist()
        self.steps += 1
        cap = self.cap
        first = 0
        for seat, asked, count in zip(seats, counts, stood):
            session = seat.session
            session.answered(asked, count)
            if not count:
                session.cut(BROKEN)
            elif seat.ahead is not None:
                seat.ahead.drawn(tokens[first : first + count], asked - 1)
                self.drafted += asked - 1
                self.accepted += count - 1
            seat.left -= count
            self.tokens += count
            for token in tokens[first : first + count]:
                packet = session.advance(token, not_before_ns, cap.not_before_ns)
                if packet is not None:
                    cap.sent(packet.ts_ns)
                    packets.append(packet)
                if session.ended:
                    break
            first += asked

    def _draw(
        self, seats: list[_Seat], slots: Ints, rows: Ints, ranges: Ints, uniforms: Floats, temperatures: Floats,
        factors: _Factors | None,
    ) -> list[int]:  # fmt: skip
        """One token for each seat. A session whose state is no longer finite is cut, its token left out."""
        try:
            if factors is None:
                tokens: list[int] = self.backend.step(slots, rows, ranges, uniforms, temperatures).tolist()
            elif factors.removed is None:
                tokens = self.backend.step(
                    slots, rows, ranges, uniforms, temperatures, factors.values, factors.at
                ).tolist()
            else:
                tokens = self.backend.step(
                    slots, rows, ranges, uniforms, temperatures, factors.values, factors.at, factors.removed
                ).tolist()
            return tokens
        except NonFiniteState as error:
            broken = set(error.slots)
            for seat in seats:
                if seat.slot in broken:
                    seat.session.cut(BROKEN)
            drawn: list[int] = error.tokens.tolist()
            return [token for token, seat in zip(drawn, seats) if seat.slot not in broken]

    def _dismiss(self, horizon_ns: int) -> list[Session]:
        """Take out of the group who ended, is too far ahead, or has had its quantum while an earlier one waits."""
        ended: list[Session] = []
        staying: list[_Seat] = []
        for seat in self.active:
            session = seat.session
            if session.ended:
                ended.append(session)
                self.free.append(seat.slot)
            elif session.clock_ns > horizon_ns or (seat.left <= 0 and self.waiting and self.waiting[0] < seat):
                heapq.heappush(self.waiting, seat)
            else:
                staying.append(seat)
        self.active = staying
        return ended
