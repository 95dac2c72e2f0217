"""One session, token by token: clock, limits, prompts, reproducibility."""

import numpy as np
from engine_fakes import FakeBackend, fake_session

from netssmd.engine.scheduler import Scheduler
from netssmd.engine.session import (
    DURATION,
    ENDED,
    LATE,
    PACKETS,
    FiveTuple,
    Limits,
    OutPacket,
    Session,
    Temperatures,
    five_tuple,
)
from netssmd.packet import wire


def run(session: Session, slots: int = 1) -> list[OutPacket]:
    scheduler = Scheduler(FakeBackend(slots))
    scheduler.add(session)
    packets: list[OutPacket] = []
    while (result := scheduler.step()) is not None:
        packets += result[0]
    return packets


def test_a_session_runs_to_its_own_end() -> None:
    session = fake_session()
    packets = run(session)
    assert session.reason == ENDED and session.packets == len(packets) >= 20
    times = [p.ts_ns for p in packets]
    assert times == sorted(times) and session.clock_ns == times[-1]
    assert session.tokens == 3 * len(packets) + 1


def test_same_seed_same_packets_other_seed_others() -> None:
    assert run(fake_session(5)) == run(fake_session(5))
    assert run(fake_session(5)) != run(fake_session(5, seed=2))


def test_a_session_begins_with_its_first_packet() -> None:
    session = fake_session(start_ns=7_000)
    assert run(session)[0].ts_ns == 7_000


def test_limits_cut() -> None:
    session = fake_session(endless=True, limits=Limits(packets=7))
    assert len(run(session)) == 7 and session.reason == PACKETS
    session = fake_session(endless=True, limits=Limits(duration_ns=100_000_000), start_ns=5_000)
    packets = run(session)
    assert session.reason == DURATION and packets[-1].ts_ns <= 100_005_000


def test_a_prompt_gives_what_a_free_run_gave() -> None:
    """Forcing a session's own first tokens, in chunks of any size, leaves model and decoder where the free run had
    them."""
    free, tokens = run(fake_session(3)), []
    again, backend = fake_session(3), FakeBackend(1)  # the same by hand, to see the tokens
    backend.reset(0)
    while not again.ended:
        drawn = backend.step(
            np.array([0], np.int32),
            np.array([again.row()], np.int32),
            np.array([(again.decoder.lo, again.decoder.hi)], np.int32),
            np.array([again.stream.uniform()], np.float32),
            np.array([1.0], np.float32),
        )
        tokens.append(int(drawn[0]))
        again.advance(tokens[-1])
    for chunk in (1, 7, 64):
        prompted = fake_session(3, prompt=tokens[:31])
        prompted.stream.counter = 31  # the draws that the prompt took the place of
        scheduler = Scheduler(FakeBackend(1), prefill_chunk=chunk)
        scheduler.add(prompted)
        packets: list[OutPacket] = []
        while (result := scheduler.step()) is not None:
            packets += result[0]
        assert packets == free


def test_a_late_packet_moves_the_clock_and_is_counted() -> None:
    session = fake_session(endless=True)
    for token in (1, 8, 30):
        packet = session.advance(token, not_before_ns=1_000)
    assert packet is not None and packet.ts_ns == session.clock_ns == 1_000 and 980 < session.deficit_ns <= 1_000
    for token in (1, 8, 30):
        packet = session.advance(token, not_before_ns=0, cap_ns=5_000)
    assert packet is not None and packet.ts_ns == 5_000 and session.throttled_ns > 3_000


def test_temperatures_belong_to_fields() -> None:
    temperatures = Temperatures(0.9, {8: 0.5})
    assert [temperatures.of(lo) for lo in (0, 8, 24)] == [0.9, 0.5, 0.9]


def test_five_tuples_name_the_originator_first() -> None:
    headers = wire.Headers()
    headers.version, headers.transport, headers.protocol = wire.IPV4, wire.TCP, wire.TCP
    headers.src, headers.dst, headers.sport, headers.dport = b"\1\2\3\4", b"\5\6\7\x08", 40000, 80
    assert five_tuple(headers, 0) == FiveTuple(6, b"\1\2\3\4", 40000, b"\5\6\7\x08", 80)
    assert five_tuple(headers, 1) == FiveTuple(6, b"\5\6\7\x08", 80, b"\1\2\3\4", 40000)


def test_what_is_late_moves_the_clock_on_or_is_dropped() -> None:
    """Stretch: the session's time slips. Drop: it stays in its time, a little late is sent now, more is left out, and
    ten times as much ends it."""
    plain = [p.ts_ns for p in run(fake_session(endless=True, limits=Limits(packets=60)))]

    def late_by(late_ns: int, not_before_ns: int) -> tuple[Session, list[int]]:
        session = fake_session(endless=True, limits=Limits(packets=60))
        session.late_ns = late_ns
        scheduler = Scheduler(FakeBackend(1))
        scheduler.add(session)
        times: list[int] = []
        while (result := scheduler.step(not_before_ns=not_before_ns)) is not None:
            times += [p.ts_ns for p in result[0]]
        return session, times

    now_ns = plain[20] + 1
    session, times = late_by(-1, now_ns)
    assert len(times) == 60 and times[0] == now_ns and session.deficit_ns == now_ns and session.late_dropped == 0
    late_ns = now_ns - plain[10]  # from the eleventh on they are late enough to be sent
    session, times = late_by(late_ns, now_ns)
    left_out = sum(now_ns - ts_ns > late_ns for ts_ns in plain)
    assert session.late_dropped == left_out > 0 and session.deficit_ns == 0 and session.reason == PACKETS
    assert times == [max(ts_ns, now_ns) for ts_ns in plain[left_out:]]
    session, times = late_by(now_ns // 11, now_ns)
    assert session.reason == LATE and times == []
