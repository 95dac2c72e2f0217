"""Nobody starves: a sink that sleeps, a prompt without end, a worker that hangs hold up their own work only."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from engine_fakes import FakeBackend, fake_session
from test_service import FakeModel, config

from netssmd.daemon import lanes
from netssmd.daemon.board import Board
from netssmd.daemon.lanes import EngineLane
from netssmd.daemon.output_lane import OutputLane
from netssmd.daemon.service import Service
from netssmd.engine.batch import Batch, run_batch
from netssmd.engine.mix import Arrivals, TrafficMix
from netssmd.engine.plan import address_plan
from netssmd.engine.scheduler import Scheduler
from netssmd.engine.session import Limits, OutPacket, Session, SessionInfo, Temperatures
from netssmd.output.sink import NullSink, Outgoing


class SlowSink(NullSink):
    """Takes its time over every batch."""

    writing = False

    def write(self, batch: list[Outgoing]) -> None:  # type: ignore[override]
        self.writing = True
        time.sleep(0.02)
        self.writing = False
        super().write(batch)


def test_a_slow_sink_bounds_the_queue_and_leaves_control_alone(tmp_path: Path) -> None:
    """Top speed into a sink that takes 20 ms a batch: what is held stays bounded, the loop beats meanwhile, the end is
    clean."""
    text = "[engine]\npace = 'topspeed'\nqueue_packets = 500\n[traffic]\nconcurrency = 8\nramp = '0s'\n"
    service = Service(config(tmp_path, text), FakeModel(endless=True))
    beats = 0  # of the loop, while the sink is at it
    held: list[int] = []

    async def scenario() -> int:
        nonlocal beats
        running = asyncio.create_task(service.run())
        while not hasattr(service, "output"):
            await asyncio.sleep(0.001)
        sink = SlowSink()
        service.output.others = [sink]
        while beats < 50 or sink.packets < 500:
            beats += sink.writing
            held.append(service.output.counters.held)
            await asyncio.sleep(0.01)
        service.stop()
        await running
        return sink.packets

    sent = asyncio.run(scenario())
    assert sent > 0 and all(lane.counters.tokens > 100 for lane in service.lanes)
    inbox = 64 * 200  # batches that may wait, and what one of them may hold
    assert max(held) < 500 + inbox


def test_at_top_speed_a_lane_waits_for_one_that_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else would keep them together before the queue is full: packets of the one that is ahead pile up."""
    monkeypatch.setattr(lanes, "IDLE_SECONDS", 0)
    mix = TrafficMix({"label-0": 1.0}, {}, 1)
    board = Board(mix, Arrivals(8, 0, 1, 0), 2, 0, 0, None, queue_packets=800)

    def open_session(info: SessionInfo) -> Session:
        return FakeModel(endless=True).session(info, address_plan(), Limits(), Temperatures(), 0, payload="protocol")

    ahead, behind = (EngineLane(i, board, Scheduler(FakeBackend(8)), open_session) for i in range(2))

    def turn(lane: EngineLane, times: int) -> None:
        for _ in range(times):
            lane.turn()
            while not board.inbox.empty():
                batch = board.inbox.get()
                assert batch is not None
                board.held += len(batch.packets)  # as the output lane would: none can leave before all floors are there

    for lane in (ahead, behind) * 20:
        turn(lane, 1)
    turn(ahead, 2000)
    held = board.held
    assert 400 < held < 600 and ahead.counters.steps < 1000
    assert ahead.scheduler.clock_ns > board.floors[1] == board.floor_ns
    assert not ahead.pulse().due, "it waits, rightly"
    while behind.scheduler.clock_ns <= ahead.scheduler.clock_ns:
        turn(behind, 1)
    turn(behind, 2)  # now it waits, and says how far it is
    assert max(behind.counters.batches.counts[2:]) > 0, "who is behind catches up with full groups"
    board.held = held
    steps = ahead.counters.steps
    turn(ahead, 5)
    assert ahead.counters.steps > steps


def test_a_lane_alone_stays_at_its_floor_while_half_of_the_queue_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets pile up behind one session that is slow in session time just the same without another lane."""
    monkeypatch.setattr(lanes, "IDLE_SECONDS", 0)
    board = Board(TrafficMix({"label-0": 1.0}, {}, 1), Arrivals(8, 0, 1, 0), 1, 0, 0, None, queue_packets=800)

    def open_session(info: SessionInfo) -> Session:
        return FakeModel(endless=True).session(info, address_plan(), Limits(), Temperatures(), 0, payload="protocol")

    lane = EngineLane(0, board, Scheduler(FakeBackend(8)), open_session)
    for _ in range(50):
        lane.turn()
    assert lane.scheduler.advanced == 8
    board.held = 401
    for _ in range(20):
        floor_ns = lane.scheduler.clock_ns
        lane.turn()
        assert all(place.session.clock_ns == floor_ns for place in lane.scheduler.places() if place.active)
    assert lane.scheduler.advanced < 8
    board.held = 400
    lane.turn()
    assert lane.scheduler.advanced == 8
    while not board.inbox.empty():
        board.inbox.get()


def test_a_long_prompt_takes_turns_with_the_free_sessions() -> None:
    """Between any two chunks of the prompt, every other session of the group gets a step."""
    backend = FakeBackend(4)
    scheduler = Scheduler(backend, prefill_chunk=10)
    scheduler.add(fake_session(0, prompt=[1, 8, 24] * 500, endless=True))
    others = [fake_session(n, endless=True) for n in (1, 2, 3)]
    for session in others:
        scheduler.add(session)
    while len(backend.prefilled) < 100:
        before = [s.tokens for s in others]
        chunks = len(backend.prefilled)
        scheduler.step()
        if len(backend.prefilled) > chunks:
            assert len(backend.prefilled) == chunks + 1
            assert sum(s.tokens > b for s, b in zip(others, before)) >= 2


def test_a_prompted_session_that_is_behind_does_not_keep_the_others_back_for_ever() -> None:
    """More sessions than seats, and several prompts at once: all sessions make packets long before a prompt is over."""
    scheduler = Scheduler(FakeBackend(12), group=4, quantum=8, prefill_chunk=16)
    prompted = [fake_session(n, prompt=[1, 15, 24] * 2000, endless=True) for n in range(3)]
    free = [fake_session(n, endless=True) for n in range(3, 12)]
    for session in (*prompted, *free):
        scheduler.add(session)
    for _ in range(1500):
        scheduler.step()
    assert all(s.packets > 20 for s in free) and any(s.prompting for s in prompted)


class ShortModel(FakeModel):
    """Sessions of two packets: in nearly every turn one ends and another begins."""

    def session(self, info, plan, limits, temperatures, snaplen, *, payload):  # type: ignore[no-untyped-def]
        session = fake_session(info.number, info.start_ns, info.seed, Limits(packets=2))
        session.info = info
        return session


def test_sessions_that_end_all_the_time_do_not_keep_time_from_passing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At top speed the floor goes on although a new session is always about to begin: packets get out, none pile up."""
    text = "[engine]\npace = 'topspeed'\nthreads = 1\n[traffic]\nconcurrency = 64\nramp = '0s'\nsessions = 1500\n"
    service = Service(config(tmp_path, text), ShortModel())
    held: list[int] = []
    hand_over = OutputLane._hand_over

    def watched(lane: OutputLane, floor_ns: int, lead_ns: int | None = None) -> None:
        hand_over(lane, floor_ns, lead_ns)
        held.append(len(lane.release))

    monkeypatch.setattr(OutputLane, "_hand_over", watched)
    report = asyncio.run(service.run())
    assert report.packets > 2500 and max(held) < 1200


class _Sink:
    """A session's sink; the first session's waits for `go`."""

    def __init__(self, number: int, go: threading.Event) -> None:
        self.number, self.go, self.packets = number, go, 0

    def write(self, packet: OutPacket) -> None:
        if self.number == 0:
            assert self.go.wait(20)
        self.packets += 1

    def end(self, session: Session) -> None:
        pass


def test_a_sink_that_hangs_holds_up_its_own_worker_only() -> None:
    """Two workers; the first session's sink waits until the other worker has done all other sessions but one."""
    go = threading.Event()
    sinks: list[_Sink] = []

    def begin(number: int) -> _Sink:
        sinks.append(_Sink(number, go))
        return sinks[-1]

    batch = Batch(FakeBackend(2), 12, lambda n: fake_session(n), begin, threads=2, group=1)

    def watch() -> None:
        if batch.done >= 11:
            go.set()

    run_batch(batch, watch, 0.01)
    assert batch.done == 12 and all(sink.packets >= 20 for sink in sinks)
