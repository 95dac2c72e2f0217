"""What happens in the daemon, told to whoever listens: a bounded fan-out.

Any thread emits, the control loop's subscribers read. Nobody waits: a subscriber that is slow loses the oldest events
and is told how many (`lost`). An event is a kind of the table EVENTS, the wall-clock time, and fields that JSON can
carry.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

QUEUED = 1_000  # events that one subscriber may be behind

# kind -> what its fields are
EVENTS: dict[str, str] = {
    "session-started": "session, label, conditions",
    "session-ended": "session, label, reason, packets",
    "finding": "finding, session, label",
    "slice-closed": "capture, packets, bytes",
    "paused": "reason, reasons (all that hold)",
    "resumed": "reason, reasons (those that are left)",
    "fault": "fault, text",
    "reloaded": "changed (keys), restart (keys that only a restart changes)",
    "stopping": "",
}


@dataclass(frozen=True, slots=True)
class Event:
    """`ts_ns` is wall-clock time."""

    kind: str
    ts_ns: int
    fields: dict[str, Any]

    def json(self) -> dict[str, Any]:
        """The fields, with `event` and `ts_ns` first."""
        return {"event": self.kind, "ts_ns": self.ts_ns, **self.fields}


class Subscription:
    """One listener's queue; `async for` gives its events until the daemon stops. `lost` counts what it was too slow
    for."""

    def __init__(self, kinds: frozenset[str]) -> None:
        self.kinds = kinds
        self.lost = 0
        self._queue: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, event: Event) -> None:
        """From any thread; the reader is woken by the loop."""
        if event.kind in self.kinds:
            if len(self._queue) >= QUEUED:
                with contextlib.suppress(IndexError):  # the reader was faster
                    self._queue.popleft()
                    self.lost += 1
            self._queue.append(event)

    def wake(self, closed: bool = False) -> None:
        """On the loop: there may be something to read."""
        self._closed |= closed
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while True:
            self._wake.clear()
            with contextlib.suppress(IndexError):
                return self._queue.popleft()
            if self._closed:
                raise StopAsyncIteration
            await self._wake.wait()


class Events:
    """The fan-out. `emitted` counts events by kind, whether anyone listened or not."""

    def __init__(self) -> None:
        self.emitted: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscriptions: tuple[Subscription, ...] = ()
        self._waking = False

    @property
    def lost(self) -> int:
        """What present subscribers were too slow for."""
        return sum(subscription.lost for subscription in self._subscriptions)

    def listened(self, kind: str) -> bool:
        """Whether anyone wants this kind: ask where the fields are costly to make."""
        return any(kind in subscription.kinds for subscription in self._subscriptions)

    def emit(self, kind: str, **fields: Any) -> None:
        """Tell those who listen. Any thread; never blocks."""
        if kind not in EVENTS:
            raise ValueError(f"event {kind!r} is not in the table EVENTS")
        self.emitted[kind] += 1
        if not self.listened(kind) or self._loop is None:
            return
        event = Event(kind, time.time_ns(), fields)
        for subscription in self._subscriptions:
            subscription.put(event)
        if not self._waking:
            self._waking = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._waking = False
        for subscription in self._subscriptions:
            subscription.wake()

    @contextlib.contextmanager
    def subscribe(self, *kinds: str) -> Iterator[Subscription]:
        """Listen to these kinds (none named: to all) from here on. On the control loop."""
        self._loop = asyncio.get_running_loop()
        subscription = Subscription(frozenset(kinds or EVENTS))
        self._subscriptions = (*self._subscriptions, subscription)
        try:
            yield subscription
        finally:
            self._subscriptions = tuple(other for other in self._subscriptions if other is not subscription)

    def close(self) -> None:
        """On the loop: subscribers read what there is, and end."""
        for subscription in self._subscriptions:
            subscription.wake(closed=True)
