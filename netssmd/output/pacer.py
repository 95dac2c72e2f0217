"""Frames out of a descriptor, each at its moment: a queue of (due_ns, frame), and the loop that empties it.

In: frames in the order of their time, from one thread (`push`, which waits a little while the queue is full). Out: one
write(2) a frame, from the thread that calls `run`, at absolute deadlines on CLOCK_MONOTONIC in integer nanoseconds: an
error never adds up, a stepped wall clock is not noticed, and `due_ns` 0 means at once. Nothing is reordered, and what
is not sent is counted under its reason (REASONS).

`run` comes back with an errno when the descriptor is of no more use, and is called again with another one; with -1 it
drops what falls due, until a time. A frame stays in the queue until its fate is known.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol, TypeAlias

Frame: TypeAlias = tuple[int, bytes]  # due_ns (monotonic; 0 = at once), the bytes

CLOSED: Final = 0  # run(): all was sent, and no more comes
RETRY: Final = -1  # run(-1): it is time to look for the device again

REASONS: Final = ("down", "gone", "late", "busy", "refused", "cut")
"""Why a frame was not sent: the device was down, or not there; it would have left too late; the kernel had no room for
too long; the kernel did not take it; the sink was closed before its time."""

BOUNDS_NS: Final = tuple(
    1000 * us for us in (10, 20, 50, 100, 200, 300, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 200_000, 1_000_000)
)
"""Upper bounds of the lateness histogram; what is above the last one counts behind it."""

CAPACITY: Final = 8192  # frames that may wait: 50 ms of 160,000 a second
PATIENCE_SECONDS: Final = 0.1
BUSY_NS: Final = 10_000_000  # a frame that the kernel has no room for is tried again for so long
_PAUSE_NS: Final = 100_000  # between two of these tries
_NAP_NS: Final = 20_000_000  # the longest sleep in one piece
_LOST: Final = (errno.EBADFD, errno.EBADF, errno.ENODEV, errno.ENXIO)
_PR_SET_TIMERSLACK: Final = 29


class Pacer(Protocol):
    """The queue and its counters, all of which have one writer: the thread in `run`."""

    @property
    def sent(self) -> int: ...
    @property
    def sent_bytes(self) -> int: ...
    @property
    def dropped(self) -> Sequence[int]:
        """Frames by reason, in the order of REASONS."""

    @property
    def retries(self) -> int:
        """Writes tried again because the kernel had no room."""

    @property
    def lateness(self) -> Sequence[int]:
        """Frames sent by lateness: at most BOUNDS_NS[i], and above all."""

    @property
    def lateness_sum_ns(self) -> int: ...
    @property
    def queued(self) -> int: ...
    def push(self, frames: Sequence[Frame]) -> int:
        """Take frames; waits a little (PATIENCE_SECONDS) while there is no room. Returns how many it took."""

    def run(self, fd: int, until_ns: int = 0) -> int: ...
    def close(self, cut_ns: int) -> None:
        """No more frames come. What is due by `cut_ns` is still sent, the rest is dropped; `run` then ends."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_libc = ctypes.CDLL(None, use_errno=True)


def sleep_until(deadline_ns: int) -> None:
    """Sleep to an absolute time on CLOCK_MONOTONIC; a signal may end it early."""
    moment = _Timespec(*divmod(deadline_ns, 1_000_000_000))
    _libc.clock_nanosleep(time.CLOCK_MONOTONIC, 1, ctypes.byref(moment), None)


def be_punctual(realtime_priority: int = 0) -> str:
    """Make the calling thread's sleeps exact (timer slack 1 ns instead of 50 us), and its priority SCHED_FIFO if one is
    given. Returns why it could not get that, or nothing."""
    _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    if realtime_priority:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(realtime_priority))
        except OSError as error:
            return f"no SCHED_FIFO: {error.strerror}; it takes CAP_SYS_NICE or drop-ins/realtime.conf"
    return ""


class PythonPacer:
    """In Python, for where nothing was compiled: as exact as the interpreter's other threads let it be.

    capacity: frames that may wait. late_ns: frames that would leave later than this are dropped; -1 = none is.
    wait_when_down: `run` comes back with EIO while the device is down, instead of dropping.
    """

    def __init__(self, capacity: int = CAPACITY, late_ns: int = -1, wait_when_down: bool = False) -> None:
        self.capacity = capacity
        self.late_ns = late_ns
        self.wait_when_down = wait_when_down
        self.sent = 0
        self.sent_bytes = 0
        self.retries = 0
        self.dropped = [0] * len(REASONS)
        self.lateness = [0] * (len(BOUNDS_NS) + 1)
        self.lateness_sum_ns = 0
        self._frames: deque[Frame] = deque()
        self._filled = threading.Event()
        self._room = threading.Event()
        self._cut_ns = -1

    @property
    def queued(self) -> int:
        return len(self._frames)

    def push(self, frames: Sequence[Frame]) -> int:
        give_up_ns = time.monotonic_ns() + int(PATIENCE_SECONDS * 1e9)
        taken = 0
        while True:
            room = max(0, self.capacity - len(self._frames))
            self._frames.extend(frames[taken : taken + room])
            taken += min(room, len(frames) - taken)
            self._filled.set()
            if taken == len(frames) or self._cut_ns >= 0 or time.monotonic_ns() >= give_up_ns:
                return taken
            self._room.clear()
            if len(self._frames) >= self.capacity:
                self._room.wait(PATIENCE_SECONDS)

    def close(self, cut_ns: int) -> None:
        self._cut_ns = cut_ns
        self._filled.set()
        self._room.set()

    def run(self, fd: int, until_ns: int = 0) -> int:
        frames = self._frames
        while True:
            now_ns = time.monotonic_ns()
            if fd < 0 and now_ns >= until_ns:
                return RETRY
            if not frames:
                if self._cut_ns >= 0:
                    return CLOSED
                self._filled.clear()
                if not frames:
                    self._filled.wait(0.05)
                continue
            due_ns, data = frames[0]
            if 0 <= self._cut_ns < due_ns:
                self._drop("cut")
            elif due_ns > now_ns:
                sleep_until(min(due_ns, now_ns + _NAP_NS, until_ns or due_ns))
            elif code := self._send(fd, data, due_ns, now_ns):
                return code

    def _send(self, fd: int, data: bytes, due_ns: int, now_ns: int) -> int:
        """The first frame's fate; an errno if it stays the first, because the descriptor is of no use."""
        late_ns = now_ns - due_ns if due_ns else 0
        if 0 <= self.late_ns < late_ns:
            self._drop("late")
        elif fd < 0:
            self._drop("gone")
        else:
            code = self._write(fd, data)
            if code in _LOST or (code == errno.EIO and self.wait_when_down):
                return code
            if code:
                self._drop({errno.EIO: "down", errno.EAGAIN: "busy", errno.ENOBUFS: "busy"}.get(code, "refused"))
            else:
                self._frames.popleft()
                self.sent += 1
                self.sent_bytes += len(data)
                self.lateness[bisect_left(BOUNDS_NS, late_ns)] += 1
                self.lateness_sum_ns += late_ns
                self._room.set()
        return 0

    def _write(self, fd: int, data: bytes) -> int:
        """One write; while the kernel has no room again and again for BUSY_NS. Returns the errno, or 0."""
        give_up_ns = 0
        while True:
            try:
                return 0 if os.write(fd, data) == len(data) else errno.EMSGSIZE
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    return error.errno or errno.EIO
                now_ns = time.monotonic_ns()
                give_up_ns = give_up_ns or now_ns + BUSY_NS
                if now_ns >= give_up_ns or self._cut_ns >= 0:
                    return errno.EAGAIN
                self.retries += 1
                sleep_until(now_ns + _PAUSE_NS)

    def _drop(self, reason: str) -> None:
        self._frames.popleft()
        self.dropped[REASONS.index(reason)] += 1
        self._room.set()


def open_pacer(capacity: int = CAPACITY, late_ns: int = -1, wait_when_down: bool = False) -> Pacer:
    """The compiled pacer where there is one, or else the Python one."""
    try:
        from netssmd.output._pacer import Pacer as NativePacer  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return PythonPacer(capacity, late_ns, wait_when_down)
    made: Pacer = NativePacer(capacity, late_ns, wait_when_down, list(BOUNDS_NS), BUSY_NS)
    return made
