"""Session time: what the lanes live in, and how it becomes wall time and monotonic time.

    session time  --due_ns-->  monotonic time, when a packet leaves  --WallTime.of-->  wall time, what it carries

At speed 1 session time is wall time, read once and then carried on by the monotonic clock, so a stepped clock neither
stops nor bunches the stream; at speed 2 it runs twice as fast. While the daemon is paused it stands still, and
afterwards it lags by the length of the pause: every live session and every held packet has moved on, and nothing
bunches up. A `slip` is the same for a moment that was missed. A machine that sleeps stops the monotonic clock too.

What packets carry follows the wall clock when that is set, or has gone on while the machine slept: forward at once,
which keeps their order; backward by running a little slow until the wall clock has come up, so that no packet is ever
earlier than the one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from typing import Final, Protocol

SECOND: Final = 1_000_000_000
STEP_NS: Final = SECOND  # the wall clock was set if it is off by more; NTP's own corrections reach both clocks alike
SLOWER: Final = 2_000  # running slow, wall time loses one part in so many: 0.05 %


class WallTime:
    """Wall time of monotonic moments. One thread uses it, and asks about moments in their order.

    Attributes:
        steps: how often the wall clock was found to be set.
    """

    def __init__(
        self, wall_ns: Callable[[], int] = time.time_ns, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._true_ns = wall_ns() - monotonic_ns()  # wall time less monotonic time, as last taken over
        # What it is taken for until a moment, how far that is too much, and the moment from when on that is lost again.
        self._state = (self._true_ns, 0, 0)
        self.steps = 0

    def of(self, due_ns: int) -> int:
        """The wall time of a monotonic moment."""
        offset_ns, ahead_ns, from_ns = self._state
        return due_ns + offset_ns - (min(ahead_ns, max(0, due_ns - from_ns) // SLOWER) if ahead_ns else 0)

    def follow(self, last_ns: int) -> int:
        """Look at the wall clock, now and then. `last_ns`: the latest moment that `of` was asked about. Return: by how
        much it was set, in ns, negative for backward; 0 if it was not."""
        true_ns = self._wall_ns() - self._monotonic_ns()
        step_ns = true_ns - self._true_ns
        if abs(step_ns) <= STEP_NS:
            return 0
        offset_ns = max(self.of(last_ns) - last_ns, true_ns)
        self._state = (offset_ns, offset_ns - true_ns, last_ns)
        self._true_ns = true_ns
        self.steps += 1
        return step_ns


class Clock(Protocol):
    """Session time at live pace, or a stand-in."""

    wall: WallTime

    def now_ns(self) -> int: ...

    def monotonic_ns(self) -> int:
        """Real time, by this clock's own hands."""

    @property
    def lag_ns(self) -> int:
        """What session time is behind wall time, at speed 1: the sum of pauses and slips that are over."""

    def due_ns(self, session_ns: int) -> int:
        """The monotonic time of a moment in session time."""

    def span_ns(self, real_ns: int) -> int:
        """How long a length of real time is in session time."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def slip(self, real_ns: int) -> None: ...


class WallClock:
    """The clock of a daemon at live pace.

    `pause`, `resume` and `slip` are called by one thread at a time; all may read.
    """

    def __init__(
        self,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        speed: Fraction | float | int = 1,
        session_ns: int = 0,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`session_ns`: where it goes on; 0: at wall time."""
        self._monotonic_ns = monotonic_ns
        self.wall = WallTime(wall_ns, monotonic_ns)
        ratio = Fraction(speed).limit_denominator(1_000_000)
        self._num, self._den = ratio.numerator, ratio.denominator  # session time by monotonic time
        now_ns = monotonic_ns()
        # A moment in session time, the monotonic time it has, and whether the clock stands still there.
        self._state = (session_ns or self.wall.of(now_ns), now_ns, False)

    def now_ns(self) -> int:
        session_ns, at_ns, still = self._state
        return session_ns if still else session_ns + (self._monotonic_ns() - at_ns) * self._num // self._den

    def monotonic_ns(self) -> int:
        """Real time, by this clock's own hands."""
        return self._monotonic_ns()

    def wall_ns(self) -> int:
        """Wall time, pauses or not: what packets that leave now carry."""
        return self.wall.of(self._monotonic_ns())

    @property
    def lag_ns(self) -> int:
        session_ns, at_ns, _ = self._state
        return self.wall.of(at_ns) - session_ns

    def due_ns(self, session_ns: int) -> int:
        from_ns, at_ns, _ = self._state
        return at_ns + (session_ns - from_ns) * self._den // self._num

    def span_ns(self, real_ns: int) -> int:
        return real_ns * self._num // self._den

    def pause(self) -> None:
        """Stand still."""
        if not self._state[2]:
            monotonic_ns, now_ns = self._monotonic_ns(), self.now_ns()
            self._state = (now_ns, monotonic_ns, True)

    def resume(self) -> None:
        """Go on from there."""
        session_ns, _, still = self._state
        if still:
            self._state = (session_ns, self._monotonic_ns(), False)

    def slip(self, real_ns: int) -> None:
        """All that is still to come is later by so much."""
        session_ns, at_ns, still = self._state
        self._state = (session_ns, at_ns + real_ns, still)
