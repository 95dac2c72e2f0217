"""A pause: nothing is made, nothing is sent, and afterwards all goes on where it was, later by its length."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from pathlib import Path

import pytest
from test_service import FakeModel, captured, check_files, config

from netssmd.daemon.board import Batch, Board
from netssmd.daemon.clock import WallClock
from netssmd.daemon.output_lane import OutputLane
from netssmd.daemon.report import Report
from netssmd.daemon.service import Service
from netssmd.engine.mix import Arrivals, TrafficMix
from netssmd.engine.session import OutPacket, SessionInfo
from netssmd.errors import NetssmdError
from netssmd.output.ledger import SessionMeta
from netssmd.output.sink import NullSink, Outgoing

MS = 1_000_000


class Monotonic:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.ns = 5_000 * MS

    def __call__(self) -> int:
        return self.ns


class Keeping(NullSink):
    def __init__(self) -> None:
        super().__init__()
        self.times: list[int] = []

    def write(self, batch: list[Outgoing]) -> None:  # type: ignore[override]
        super().write(batch)
        self.times += [item.packet.ts_ns for item in batch]


def test_session_time_stands_still_in_a_pause_and_lags_afterwards() -> None:
    hands = Monotonic()
    clock = WallClock(hands, wall_ns=hands)
    begun, wall = clock.now_ns(), clock.wall_ns()
    assert begun == wall
    hands.ns += 10
    clock.pause()
    hands.ns += 100
    clock.pause()  # again: nothing new
    assert clock.now_ns() == begun + 10 and clock.lag_ns == 0 and clock.wall_ns() == wall + 110
    clock.resume()
    hands.ns += 5
    clock.resume()
    assert clock.now_ns() == begun + 15 and clock.lag_ns == 100 and clock.wall_ns() == wall + 115


def board(clock: WallClock) -> Board:
    start_ns = clock.now_ns()
    mix = TrafficMix({"web": 1.0}, {}, 1)
    return Board(mix, Arrivals(1, 0, 1, start_ns), 1, 2_000 * MS, start_ns, clock)


def test_held_packets_move_on_by_the_pause() -> None:
    hands = Monotonic()
    clock = WallClock(hands, wall_ns=hands)
    shared = board(clock)
    sink = Keeping()
    lane = OutputLane(shared, [sink], lambda info: SessionMeta("1-0", info.label, {}, 1, ""))
    start_ns = clock.now_ns()
    info = SessionInfo(0, "web", {}, 1, start_ns)
    times = [start_ns + i * 10 * MS for i in range(1, 11)]
    shared.inbox.put(Batch([OutPacket(t, bytes(60), 60, info, 0, None, 0, 0) for t in times], []))
    shared.floors[0] = start_ns + 1_000 * MS
    hands.ns += 45 * MS
    lane.turn()
    assert sink.times == times[:4]
    assert shared.pause("a") and shared.pause("b") and not shared.pause("a")
    hands.ns += 7_000 * MS
    lane.turn()
    assert shared.resume("a") and not shared.resume("a")
    lane.turn()
    assert sink.times == times[:4] and list(shared.pauses) == ["b"]
    assert shared.resume("b") and not shared.pauses
    lane.turn()
    assert sink.times == times[:4]  # 5 ms too early for the fifth, as before
    hands.ns += 5 * MS
    lane.turn()
    assert sink.times == [*times[:4], times[4] + 7_000 * MS]
    hands.ns += 1_000 * MS
    lane.turn()
    assert sink.times == [*times[:4], *[t + 7_000 * MS for t in times[4:]]]
    assert lane.counters.lateness_max_ns < 1_000 * MS


def run(service: Service, scenario) -> Report:  # type: ignore[no-untyped-def]
    """The service with a scenario beside it, which begins when packets flow."""

    async def both() -> Report:
        running = asyncio.create_task(service.run())
        while not hasattr(service, "output") or not service.output.counters.total_packets:
            assert not running.done(), await running
            await asyncio.sleep(0.01)
        try:
            await scenario()
        finally:
            service.stop()
        return await running

    return asyncio.run(both())


@pytest.mark.parametrize("pace", ["live", "topspeed"])
def test_the_daemon_pauses_and_goes_on_without_a_burst(tmp_path: Path, pace: str) -> None:
    text = f'[engine]\npace = "{pace}"\nthreads = 2\nlookahead = "300ms"\n[traffic]\nconcurrency = 5\nramp = "0s"\n'
    service = Service(config(tmp_path, text), FakeModel(endless=True))
    still: list[int] = []

    async def scenario() -> None:
        with service.events.subscribe("paused", "resumed") as events:
            await asyncio.sleep(0.4)
            service.pause("disk")
            service.pause("operator")
            await asyncio.sleep(0.2)  # what was under way is over
            still.append(service.output.counters.total_packets)
            steps = service.counters.sum("steps")
            await asyncio.sleep(0.5)
            service.resume("disk")
            await asyncio.sleep(0.1)
            still.append(service.output.counters.total_packets)
            assert service.paused and service.counters.sum("steps") == steps
            assert service.status().state == "paused" and service.status().pauses["operator"] > 0.7
            service.resume("operator")
            await asyncio.sleep(0.4)
            status = service.status()
            assert status.state == "running" and 0.8 <= status.paused_seconds < 5
            assert status.timing.lateness_max_seconds < 0.5
            service.events.close()
            told = [(event.kind, event.fields["reasons"]) async for event in events]
        assert told == [
            ("paused", ["disk"]), ("paused", ["disk", "operator"]), ("resumed", ["operator"]), ("resumed", []),
        ]  # fmt: skip

    report = run(service, scenario)
    packets = check_files(tmp_path, report)
    assert still[0] == still[1] < report.packets
    if pace == "live":
        gaps = [b.ts_ns - a.ts_ns for a, b in pairwise(packets)]
        where = gaps.index(max(gaps))
        assert max(gaps) >= 800 * MS
        # After it as many packets in 100 ms as before it, give or take; without the shift the whole pause's would come.
        resumed_ns = packets[where + 1].ts_ns
        before = sum(packets[where].ts_ns - 100 * MS < p.ts_ns for p in packets[: where + 1])
        after = sum(p.ts_ns < resumed_ns + 100 * MS for p in packets[where + 1 :])
        assert after < 3 * before + 20
        assert packets[-1].ts_ns <= time.time_ns()


def test_a_paused_daemon_stops_at_once(tmp_path: Path) -> None:
    service = Service(config(tmp_path, "[traffic]\nramp = '0s'\n"), FakeModel(endless=True))

    async def scenario() -> None:
        service.pause("operator")
        await asyncio.sleep(0.1)

    check_files(tmp_path, run(service, scenario))
    assert len(captured(tmp_path)) == service.output.counters.total_packets


def test_a_lane_does_what_is_ordered_paused_or_not(tmp_path: Path) -> None:
    service = Service(config(tmp_path, "[traffic]\nramp = '0s'\n"), FakeModel(endless=True))

    async def scenario() -> None:
        lane = service.lanes[0]
        assert await service.order(lane, lambda: lane.scheduler.live) > 0
        service.pause("operator")
        assert await service.order(service.output, lambda: 7) == 7

        def broken() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await service.order(lane, broken)
        service.stop()
        with pytest.raises(NetssmdError, match="stopping"):
            await service.order(lane, lambda: time.sleep(0.01))

    run(service, scenario)
