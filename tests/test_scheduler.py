"""Many sessions on one backend: same packets as alone, nobody starves, nobody runs ahead, memory stays flat."""

import tracemalloc

import pytest
from engine_fakes import FakeBackend, fake_session

from netssmd.engine.mix import RateCap
from netssmd.engine.release import Release
from netssmd.engine.scheduler import FOR_EVER, Scheduler
from netssmd.engine.session import BROKEN, ENDED, Limits, OutPacket, Session, SessionInfo
from netssmd.model.backend import NonFiniteState


def drain(scheduler: Scheduler, sessions: list[Session]) -> dict[int, list[OutPacket]]:
    """Run all sessions, joining as slots get free."""
    packets: dict[int, list[OutPacket]] = {s.info.number: [] for s in sessions}
    todo = list(sessions)
    while True:
        while todo and scheduler.free:
            scheduler.add(todo.pop(0))
        result = scheduler.step()
        if result is None:
            return packets
        for packet in result[0]:
            packets[packet.session.number].append(packet)


def test_packets_do_not_depend_on_batch_mates_slots_or_group_size() -> None:
    alone = {n: drain(Scheduler(FakeBackend(1)), [fake_session(n)])[n] for n in range(12)}
    for slots, group in ((12, 8), (12, 3), (4, 4), (2, 1)):
        backend = FakeBackend(slots)
        together = drain(Scheduler(backend, group, quantum=5), [fake_session(n) for n in range(12)])
        assert together == alone
        assert max(backend.calls) <= group


def test_a_long_prompt_stalls_nobody() -> None:
    prompt = [1, 8, 24] * 400
    backend = FakeBackend(4)
    scheduler = Scheduler(backend, prefill_chunk=50)
    scheduler.add(fake_session(0, prompt=prompt, endless=True))
    for n in (1, 2, 3):
        scheduler.add(fake_session(n, endless=True))
    for _ in range(30):
        scheduler.step()
    assert max(backend.prefilled) == 50
    assert all(s.packets > 5 for s in scheduler.sessions())


def test_a_session_beyond_the_horizon_gets_no_step() -> None:
    scheduler = Scheduler(FakeBackend(4))
    for n in range(4):
        scheduler.add(fake_session(n, endless=True))
    while (result := scheduler.step(horizon_ns=100_000_000)) is not None:
        assert all(p.ts_ns <= 100_000_000 + 20_000_100 for p in result[0])
    assert scheduler.clock_ns > 100_000_000
    assert scheduler.step(horizon_ns=200_000_000) is not None


def test_the_one_furthest_behind_is_next() -> None:
    """More sessions than the group holds: none gets further ahead of another than a quantum takes it."""
    scheduler = Scheduler(FakeBackend(16), group=4, quantum=9)
    for n in range(16):
        scheduler.add(fake_session(n, endless=True))
    for _ in range(3000):
        scheduler.step()
    clocks = [s.clock_ns for s in scheduler.sessions()]
    assert max(clocks) - min(clocks) < 500_000_000 < min(clocks)


def test_a_stopped_session_leaves_and_its_slot_is_free() -> None:
    scheduler = Scheduler(FakeBackend(2))
    session = fake_session(0, endless=True)
    scheduler.add(session)
    scheduler.step()
    session.cut()
    result = scheduler.step()
    assert result is not None and result[1] == [session] and scheduler.live == 0 and len(scheduler.free) == 2
    assert scheduler.clock_ns == FOR_EVER and scheduler.step() is None


class BreakingBackend(FakeBackend):
    """Slot 1 is no longer finite at the fifth call."""

    def step(self, slots, rows, ranges, uniforms, temperatures):  # type: ignore[no-untyped-def]
        tokens = super().step(slots, rows, ranges, uniforms, temperatures)
        if len(self.calls) == 5:
            raise NonFiniteState([1], tokens)
        return tokens


def test_a_session_whose_state_is_not_finite_is_cut_and_the_others_go_on() -> None:
    alone = {n: drain(Scheduler(FakeBackend(1)), [fake_session(n)])[n] for n in range(3)}
    sessions = [fake_session(n) for n in range(3)]
    together = drain(Scheduler(BreakingBackend(3)), sessions)
    assert [s.reason for s in sessions] == [ENDED, BROKEN, ENDED]
    assert together[0] == alone[0] and together[2] == alone[2] and together[1] == alone[1][: len(together[1])]


def test_a_rate_cap_slows_the_sessions_down() -> None:
    scheduler = Scheduler(FakeBackend(8), cap=RateCap(100))
    sessions = [fake_session(n, endless=True) for n in range(8)]
    for session in sessions:
        scheduler.add(session)
    times: list[int] = []
    while (result := scheduler.step(horizon_ns=10_000_000_000)) is not None:
        times += [p.ts_ns for p in result[0]]
    assert 950 <= sum(t < 10_000_000_000 for t in times) <= 1030
    assert sum(s.throttled_ns for s in sessions) > 0 and sum(s.deficit_ns for s in sessions) == 0


def test_release_gives_time_order_whatever_the_interleaving() -> None:
    def merged(slots: int, group: int) -> list[OutPacket]:
        scheduler, release = Scheduler(FakeBackend(slots), group), Release()
        for n in range(slots):
            scheduler.add(fake_session(n, start_ns=n * 1_000_000))
        out: list[OutPacket] = []
        while (result := scheduler.step()) is not None:
            release.add(result[0])
            out += release.up_to(scheduler.clock_ns)
        return out + release.rest()

    first = merged(8, 8)
    assert [p.ts_ns for p in first] == sorted(p.ts_ns for p in first)
    assert first == merged(8, 3) == merged(8, 1)


def test_release_holds_sessions_apart_and_merges_them_by_time_number_and_order() -> None:
    infos = [SessionInfo(n, "x", {}, 1, 0) for n in range(3)]

    def packets(number: int, *times: int) -> list[OutPacket]:
        return [OutPacket(t, bytes([i]), 1, infos[number], 0, None, 0, 0) for i, t in enumerate(times)]

    release = Release()
    release.add(packets(2, 5, 5, 20) + packets(0, 9) + packets(1, 5, 9, 9))
    order = [(5, 1, 0), (5, 2, 0), (5, 2, 1), (9, 0, 0), (9, 1, 1), (9, 1, 2), (20, 2, 2)]

    def told(out: list[OutPacket]) -> list[tuple[int, int, int]]:
        return [(p.ts_ns, p.session.number, p.data[0]) for p in out]

    assert told(release.held()) == order and len(release) == 7 and release.next_ns == 5
    assert told(release.up_to(9, limit=2)) == order[:2] and release.released_ns == 5
    assert told(release.up_to(9)) == order[2:3] and release.released_ns == 9
    with pytest.raises(ValueError, match="session 0 is 1 ns before its last one"):
        release.add(packets(0, 8))
    assert told(release.up_to(30, now_ns=9)) == order[3:6] and release.released_ns == 10
    with pytest.raises(ValueError, match="session 0 is 2 ns before what was released already"):
        release.add(packets(0, 8))
    assert told(release.rest()) == order[6:] and len(release) == 0 and release.next_ns is None


def test_release_waits_for_due_time() -> None:
    scheduler, release = Scheduler(FakeBackend(1)), Release()
    scheduler.add(fake_session(0, limits=Limits(packets=50), endless=True))
    while (result := scheduler.step()) is not None:
        release.add(result[0])
    due = release.up_to(FOR_EVER, now_ns=30_000_000)
    assert due and all(p.ts_ns <= 30_000_000 for p in due)
    assert release.next_ns is not None and release.next_ns > 30_000_000


def test_memory_is_flat() -> None:
    """Twenty thousand packets of eight sessions with look-ahead and release: what is held does not grow."""
    scheduler, release = Scheduler(FakeBackend(8)), Release()
    for n in range(8):
        scheduler.add(fake_session(n, endless=True))
    released, marks = 0, []
    tracemalloc.start()
    while len(marks) < 2:
        horizon = scheduler.clock_ns + 50_000_000
        result = scheduler.step(horizon)
        assert result is not None
        scheduler.backend.calls.clear()  # type: ignore[attr-defined]
        release.add(result[0])
        released += len(release.up_to(scheduler.clock_ns))
        if released >= 4_000 * (1 + 4 * len(marks)):
            marks.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert marks[1] - marks[0] < 60_000, marks
