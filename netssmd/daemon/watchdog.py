"""Whether the lanes make progress: what decides that systemd's watchdog is fed.

In: a `Pulse` of each lane, taken when the watchdog was last fed, and one taken now. Out: the lanes that are stuck, with
what is wrong; none means WATCHDOG=1 may go out. Pure: no clock, no socket.

A timer that feeds the watchdog only proves that the timer runs. A lane makes progress if

- its rounds are counted on: a lane that hangs in a model step, in a write or in a lock makes no round, and
- it stepped, where a session of its own was due in both looks. A lane is rightly idle, and may turn without a step,
  when nothing is due within the look-ahead, while the daemon is paused, and when it is over.

How long a lane may take for one round is the interval between two feedings, which the unit's WatchdogSec sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a lane shows of itself.

    turns: rounds so far. steps: rounds that did something. due: a session could go on now, so it should. over: the lane
    has ended and does nothing any more.
    """

    lane: str
    turns: int
    steps: int
    due: bool = False
    over: bool = False


def stuck(before: Sequence[Pulse], now: Sequence[Pulse], paused: bool = False) -> list[str]:
    """The lanes that made no progress between two looks, each with why. before: empty at the first look."""
    return [f"{b.lane}: {why}" for a, b in zip(before, now) if (why := _why(a, b, paused))]


def _why(before: Pulse, now: Pulse, paused: bool) -> str:
    if now.over:
        return ""
    if now.turns == before.turns:
        return "hangs in its round"
    if before.due and now.due and now.steps == before.steps and not paused:
        return "goes round without a step, though a session is due"
    return ""
