"""Session time: what the lanes live in, and how it becomes wall time and monotonic time.

    session time  --due_ns-->  monotonic time, when a packet leaves  --+ wall_offset_ns-->  wall time, what it carries

At speed 1 session time is wall time, read once and then carried on by the monotonic clock, so a stepped clock neither
stops nor bunches the stream; at speed 2 it runs twice as fast. While the daemon is paused it stands still, and
afterwards it lags by the length of the pause: every live session and every held packet has moved on, and nothing
bunches up. A `slip` is the same for a moment that was missed. A machine that sleeps stops the monotonic clock too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from typing import Protocol


class Clock(Protocol):
    """Session time at live pace, or a stand-in."""

    def now_ns(self) -> int: ...

    def wall_ns(self) -> int: ...

    @property
    def wall_offset_ns(self) -> int:
        """Wall time less monotonic time."""

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
    ) -> None:
        """`session_ns`: where it goes on; 0: at wall time."""
        self._monotonic_ns = monotonic_ns
        ratio = Fraction(speed).limit_denominator(1_000_000)
        self._num, self._den = ratio.numerator, ratio.denominator  # session time by monotonic time
        now_ns = monotonic_ns()
        self.wall_offset_ns = time.time_ns() - now_ns
        # A moment in session time, the monotonic time it has, and whether the clock stands still there.
        self._state = (session_ns or now_ns + self.wall_offset_ns, now_ns, False)

    def now_ns(self) -> int:
        session_ns, at_ns, still = self._state
        return session_ns if still else session_ns + (self._monotonic_ns() - at_ns) * self._num // self._den

    def wall_ns(self) -> int:
        """Wall time, pauses or not: what packets that leave now carry."""
        return self._monotonic_ns() + self.wall_offset_ns

    @property
    def lag_ns(self) -> int:
        session_ns, at_ns, _ = self._state
        return at_ns + self.wall_offset_ns - session_ns

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
