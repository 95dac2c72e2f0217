"""The output lane on a clock that the test turns: live sinks get packets before their moment, files at it; steady
rates, speeds, stalls and the end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from netssmd.daemon import output_lane
from netssmd.daemon.board import LEAD_NS, Batch, Board
from netssmd.daemon.clock import WallClock
from netssmd.daemon.output_lane import LIVE_AS_IT_COMES, OutputLane, Pacing
from netssmd.engine.mix import Arrivals, TrafficMix
from netssmd.engine.session import OutPacket, SessionInfo
from netssmd.output.ledger import SessionMeta
from netssmd.output.rate import Rate
from netssmd.output.sink import NullSink, Outgoing

MS = 1_000_000
SECOND = 1_000 * MS


class Hands:
    """Monotonic time that the test turns."""

    def __init__(self) -> None:
        self.ns = 5 * SECOND

    def __call__(self) -> int:
        return self.ns


class Keeping(NullSink):
    def __init__(self) -> None:
        super().__init__()
        self.items: list[Outgoing] = []

    def write(self, batch: Sequence[Outgoing]) -> None:
        super().write(batch)
        self.items += batch

    @property
    def dues(self) -> list[int]:
        return [item.due_ns for item in self.items]


class Live(Keeping):
    lead_ns = 50 * MS
    cut_ns = -1

    def cut(self, due_ns: int) -> None:
        self.cut_ns = due_ns


class Setting:
    """A lane with a live sink and another one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pacing: Pacing = LIVE_AS_IT_COMES, speed: float = 1,
                 live: bool = True) -> None:  # fmt: skip
        self.hands = Hands()
        monkeypatch.setattr(output_lane.time, "monotonic_ns", self.hands)
        self.wall_offset_ns = 1_700_000_000 * SECOND
        clock = None if pacing.rate else WallClock(self.hands, speed, wall_ns=self.wall_ns)
        self.start_ns = clock.now_ns() if clock else 1_000 * SECOND
        mix = TrafficMix({"web": 1.0}, {}, 1)
        self.board = Board(mix, Arrivals(1, 0, 1, self.start_ns), 1, 2 * SECOND, self.start_ns, clock)
        self.live, self.file = Live(), Keeping()
        describe = lambda info: SessionMeta("1-0", info.label, {}, 1, "")  # noqa: E731
        self.lane = OutputLane(self.board, [self.file], describe, None, [self.live] if live else [], pacing)

    def wall_ns(self) -> int:
        return self.hands.ns + self.wall_offset_ns

    def feed(self, times: Sequence[int], size: int = 100) -> None:
        """Packets at these session times, counted from the start, and the promise that nothing earlier comes."""
        info = SessionInfo(0, "web", {}, 1, self.start_ns)
        packets = [OutPacket(self.start_ns + t, bytes(size), size, info, 0, None, 0, 0) for t in times]
        self.board.inbox.put(Batch(packets, []))
        self.board.floors[0] = self.start_ns + times[-1] + 1

    def turn(self, by_ns: int = 0) -> None:
        self.hands.ns += by_ns
        self.board.inbox.put(Batch([], []))  # so that it does not wait
        self.lane.turn()


def test_a_live_sink_gets_packets_before_their_moment_files_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    at = Setting(monkeypatch)
    begun_ns = at.hands.ns
    at.feed([i * 10 * MS for i in range(1, 21)])
    at.turn()
    assert at.live.dues == [begun_ns + i * 10 * MS for i in range(1, 6)] and at.file.dues == []
    at.turn(35 * MS)
    assert len(at.live.dues) == 8 and at.file.dues == at.live.dues[:3]
    assert at.lane.counters.total_packets == 3 and at.lane.counters.lateness_max_ns == 25 * MS
    assert all(item.packet.ts_ns == item.due_ns + at.wall_offset_ns for item in at.live.items)
    at.board.stop.set()
    at.turn(5 * MS)
    at.lane._last()
    assert at.live.cut_ns == at.hands.ns + at.live.lead_ns and at.file.dues == at.live.dues
    assert len(at.live.dues) == 9 and at.lane.counters.cut == 11, "what lies in the future did not happen"
    assert at.lane.counters.lateness_ns == 0 and at.lane.counters.lateness_max_ns == 25 * MS, "nor was it late"


def test_a_wall_clock_that_is_set_changes_what_packets_carry_and_not_when_they_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = Setting(monkeypatch, live=False)
    begun_ns, steps = at.hands.ns, []
    at.lane.on_clock_set = steps.append
    at.feed([i * 100 * MS for i in range(1, 101)])
    for second, step_ns in enumerate([0, 3600 * SECOND, -7200 * SECOND, 0, 0, 0, 0, 0, 0, 0]):
        at.wall_offset_ns += step_ns
        for _ in range(20):
            at.turn(50 * MS)
        assert len(at.file.items) == 10 * (second + 1)
    assert at.file.dues == [begun_ns + i * 100 * MS for i in range(1, 101)]
    assert steps == [3600 * SECOND, -7200 * SECOND] and at.lane.wall.steps == 2
    times = [item.packet.ts_ns for item in at.file.items]
    gaps = [b - a for a, b in pairwise(times)]
    assert sum(gap > SECOND for gap in gaps) == 1 and sum(gap == 100 * MS for gap in gaps) > 10
    assert sum(gap == 100 * MS - 100 * MS // 2000 for gap in gaps) > 50, "running slow after the clock was set back"


@pytest.mark.parametrize("speed", [0.5, 4])
def test_a_speed(monkeypatch: pytest.MonkeyPatch, speed: float) -> None:
    at = Setting(monkeypatch, speed=speed, live=False)
    begun_ns = at.hands.ns
    at.feed([i * 10 * MS for i in range(1, 101)])
    for _ in range(400):
        at.turn(5 * MS)
    assert at.file.dues == [begun_ns + int(i * 10 * MS / speed) for i in range(1, 101)]
    assert at.board.lead_ns == int(LEAD_NS * speed)


@pytest.mark.parametrize("kind", ["pps", "mbps"])
def test_a_steady_rate(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Whatever the packets' own times are: within 1 % (here: exactly) of the asked."""
    value = 500 if kind == "pps" else 0.4  # 100 bytes at 0.4 Mbps: 500 a second too
    at = Setting(monkeypatch, Pacing(Rate.of(kind, value)))  # type: ignore[arg-type]
    at.feed([i * i * 1000 for i in range(6_000)])
    at.turn()
    assert at.board.enough, "engines wait while the metronome has plenty"
    for _ in range(4_000):
        at.turn(MS)
    assert {b - a for a, b in pairwise(at.live.dues)} == {2 * MS}
    assert len(at.file.dues) == 1_976 and at.lane.counters.slipped_ns == 0
    assert not at.board.enough
    at.board.pause("a")
    at.turn(SECOND)
    at.board.resume("a")
    sent = len(at.live.dues)
    at.turn(MS)
    assert len(at.live.dues) - sent <= 30 and at.lane.counters.slipped_ns == 0, "a pause is no deficit"


def test_a_steady_rate_that_generation_cannot_keep_up_with(monkeypatch: pytest.MonkeyPatch) -> None:
    at = Setting(monkeypatch, Pacing(Rate.of("pps", 1000), catch_up_ns=100 * MS))
    at.feed(list(range(50)))
    at.turn()
    at.turn(80 * MS)
    at.feed(list(range(100, 150)))
    at.turn(50 * MS)  # 80 ms behind: made up for
    assert at.lane.counters.slipped_ns == 0
    for _ in range(40):
        at.turn(5 * MS)
    at.feed(list(range(200, 210)))
    at.turn(SECOND)
    assert SECOND < at.lane.counters.slipped_ns < 1.2 * SECOND and len(at.live.dues) == 110
    assert all(a < b for a, b in pairwise(at.live.dues))


def test_after_a_stall_the_whole_stream_moves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped for ten seconds sends no ten seconds at once."""
    at = Setting(monkeypatch)
    at.feed([i * 10 * MS for i in range(1, 101)])
    at.turn()
    at.turn(10 * SECOND)
    assert at.lane.counters.slipped_ns == 10 * SECOND - 60 * MS
    assert at.live.dues[5] == at.hands.ns and len(at.live.dues) == 11
    for _ in range(400):
        at.turn(5 * MS)
    assert {b - a for a, b in pairwise(at.live.dues[5:])} == {10 * MS} and len(at.file.dues) == 100


def test_after_a_stall_what_is_late_is_dropped_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    at = Setting(monkeypatch, Pacing(late_ns=200 * MS))
    at.feed([i * 10 * MS for i in range(1, 101)])
    at.turn()
    at.turn(500 * MS)
    assert at.lane.counters.late_dropped == 24 and at.lane.counters.slipped_ns == 0
    for _ in range(200):
        at.turn(5 * MS)
    assert len(at.live.dues) == 76 == len(at.file.dues)


def test_files_alone_keep_their_times_after_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    at = Setting(monkeypatch, live=False)
    begun_ns = at.hands.ns
    at.feed([i * 10 * MS for i in range(1, 101)])
    at.turn(10 * SECOND)
    assert at.file.dues == [begun_ns + i * 10 * MS for i in range(1, 101)] and at.lane.counters.slipped_ns == 0
