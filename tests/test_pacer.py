"""Both pacers by the same rules, on a socket pair instead of a device: order, moments, and the fate of every frame."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from netssmd.output.pacer import (
    BOUNDS_NS,
    BUSY_NS,
    CLOSED,
    REASONS,
    RETRY,
    Pacer,
    PythonPacer,
    be_punctual,
    open_pacer,
    sleep_until,
)

MS = 1_000_000
Make = Callable[..., Pacer]


@pytest.fixture(params=["python", "native"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "native" and isinstance(open_pacer(), PythonPacer):
        pytest.skip("the native pacer is not compiled")
    return PythonPacer if request.param == "python" else open_pacer


class Wire:
    """A pair of datagram sockets: frames in at `fd`, out again with their boundaries. Holds about `room` frames."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.fd = self.ours.fileno()

    def read(self) -> list[bytes]:
        got = []
        while True:
            try:
                got.append(self.theirs.recv(70_000))
            except BlockingIOError:
                return got


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.ours.close()
    made.theirs.close()


class Running:
    """`run` in a thread; `code` is what it came back with."""

    def __init__(self, pacer: Pacer, fd: int, until_ns: int = 0) -> None:
        self.code = -99
        self._thread = threading.Thread(target=self._run, args=(pacer, fd, until_ns), daemon=True)
        self._thread.start()

    def _run(self, pacer: Pacer, fd: int, until_ns: int) -> None:
        self.code = pacer.run(fd, until_ns)

    def join(self) -> int:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.code


def data(number: int, size: int = 60) -> bytes:
    return number.to_bytes(4, "big").ljust(size, b".")


def dropped(pacer: Pacer) -> dict[str, int]:
    return {reason: count for reason, count in zip(REASONS, pacer.dropped, strict=True) if count}


def test_all_in_order_each_at_its_moment(make: Make, wire: Wire) -> None:
    pacer = make()
    start_ns = time.monotonic_ns() + 20 * MS
    frames = [(start_ns + i * MS, data(i, 60 + i % 500)) for i in range(100)]
    running = Running(pacer, wire.fd)
    pacer.push(frames[:1])
    pacer.push(frames[1:])
    seen: list[bytes] = []
    while len(seen) < 100:
        sleep_until(time.monotonic_ns() + MS // 4)
        seen += wire.read()
        now_ns = time.monotonic_ns()  # behind the read: what is due in between may have been read
        assert all(frames[i][0] <= now_ns for i in range(len(seen)))
    pacer.close(time.monotonic_ns())
    assert running.join() == CLOSED and seen == [frame for _, frame in frames]
    assert (pacer.sent, pacer.sent_bytes, pacer.queued, dropped(pacer)) == (100, sum(map(len, seen)), 0, {})
    assert sum(pacer.lateness) == 100 and len(pacer.lateness) == len(BOUNDS_NS) + 1 and pacer.lateness_sum_ns > 0


def test_at_once_and_a_queue_that_is_full(make: Make, wire: Wire) -> None:
    """More than fit into the queue: who pushes waits, nothing is lost, sizes up to the largest frame go round."""
    pacer = make(16)
    wire.ours.setblocking(True)  # its room is not what is tested
    sizes = [60 + i * 7919 % 9000 for i in range(3000)]
    seen: list[bytes] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set() or (got := wire.read()):
            seen.extend(got if stop.is_set() else wire.read())
            time.sleep(0)

    reader = threading.Thread(target=read)
    reader.start()
    running = Running(pacer, wire.fd)
    for at in range(0, len(sizes), 50):
        pacer.push([(0, data(i, sizes[i])) for i in range(at, at + 50)])
        assert pacer.queued <= 16 + 50
    pacer.close(time.monotonic_ns())
    assert running.join() == CLOSED
    stop.set()
    reader.join()
    assert seen == [data(i, size) for i, size in enumerate(sizes)] and dropped(pacer) == {}
    assert pacer.lateness[0] == 3000, "what is to leave at once is never late"


def test_what_is_not_due_at_the_close_is_cut(make: Make, wire: Wire) -> None:
    pacer = make()
    now_ns = time.monotonic_ns()
    pacer.push([(now_ns - MS, data(0)), (now_ns + 10**13, data(1)), (now_ns + 10**13, data(2))])
    running = Running(pacer, wire.fd)
    time.sleep(0.05)  # it sleeps for the second
    pacer.close(time.monotonic_ns())
    assert running.join() == CLOSED and wire.read() == [data(0)] and dropped(pacer) == {"cut": 2}


def test_nothing_behind_the_cut_leaves_however_late_the_thread_wakes(make: Make, wire: Wire) -> None:
    pacer = make()
    now_ns = time.monotonic_ns()
    pacer.push([(now_ns - 3 * MS, data(0)), (now_ns - MS, data(1))])
    pacer.close(now_ns - 2 * MS)
    assert pacer.run(wire.fd) == CLOSED and wire.read() == [data(0)] and dropped(pacer) == {"cut": 1}


def test_too_late_is_dropped_if_asked(make: Make, wire: Wire) -> None:
    now_ns = time.monotonic_ns()
    frames = [(now_ns - 500 * MS, data(0)), (now_ns + 10 * MS, data(1)), (0, data(2))]
    for late_ns, kept in ((-1, [data(0), data(1), data(2)]), (200 * MS, [data(1), data(2)])):
        pacer = make(late_ns=late_ns)
        pacer.push(frames)
        running = Running(pacer, wire.fd)
        sleep_until(now_ns + 50 * MS)
        pacer.close(time.monotonic_ns())
        assert running.join() == CLOSED and wire.read() == kept
        assert dropped(pacer) == ({} if late_ns < 0 else {"late": 1})


def test_without_a_descriptor_what_falls_due_is_dropped(make: Make, wire: Wire) -> None:
    pacer = make()
    now_ns = time.monotonic_ns()
    pacer.push([(now_ns, data(0)), (now_ns + 10 * MS, data(1)), (now_ns + 10**13, data(2))])
    assert pacer.run(-1, now_ns + 50 * MS) == RETRY and time.monotonic_ns() >= now_ns + 50 * MS
    assert dropped(pacer) == {"gone": 2} and pacer.queued == 1
    pacer.close(time.monotonic_ns())
    assert pacer.run(-1, time.monotonic_ns() + 10**13) == CLOSED and dropped(pacer) == {"gone": 2, "cut": 1}


def test_a_descriptor_that_is_lost_keeps_the_frame(make: Make, wire: Wire) -> None:
    pacer = make()
    pacer.push([(0, data(0))])
    gone = os.dup(wire.fd)
    os.close(gone)
    assert pacer.run(gone) == errno.EBADF and pacer.queued == 1
    running = Running(pacer, wire.fd)
    pacer.close(time.monotonic_ns())
    assert running.join() == CLOSED and wire.read() == [data(0)]


def test_no_room_is_tried_again_and_given_up(make: Make, wire: Wire) -> None:
    pacer = make()
    pacer.push([(0, data(i)) for i in range(300)])
    running = Running(pacer, wire.fd)
    while not sum(pacer.dropped):  # nobody reads: the pair's room is used up
        time.sleep(BUSY_NS / 1e9)
    assert pacer.retries > 0 and set(dropped(pacer)) == {"busy"}
    seen: list[bytes] = []
    while pacer.queued:
        seen += wire.read()
        time.sleep(0.001)
    pacer.close(time.monotonic_ns())
    assert running.join() == CLOSED
    seen += wire.read()
    assert seen == sorted(seen) and len(seen) == pacer.sent == 300 - sum(pacer.dropped)


def test_what_the_kernel_refuses_is_counted(make: Make, wire: Wire) -> None:
    pacer = make()
    wire.theirs.close()
    pacer.push([(0, data(0)), (0, data(1))])
    pacer.close(time.monotonic_ns())
    assert pacer.run(wire.fd) == CLOSED and dropped(pacer) == {"refused": 2}


def test_punctuality_is_asked_for() -> None:
    """Timer slack, and a priority where the kernel allows it; otherwise it says what it takes."""

    def ask() -> None:
        said.append(be_punctual(1))
        said.append(str(ctypes.CDLL(None).prctl(30, 0, 0, 0, 0)))  # PR_GET_TIMERSLACK; real-time threads have none
        said.append(str(os.sched_getscheduler(0) == os.SCHED_FIFO))

    said: list[str] = []
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert said in (["", "0", "True"], ["", "1", "True"]) or (said[0].startswith("no SCHED_FIFO") and said[1] == "1")
