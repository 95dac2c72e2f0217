"""Many sessions, each to its own end, as fast as they can be made: what `generate` runs.

In: what sessions there are (a list of numbered jobs) and a backend. Out: each session's packets to the sink that
`begin` gives for it, in order; nothing is merged here, so no session waits for another. Worker threads take the next
job when they have a free slot. A session's packets do not depend on which worker had it, nor on its batch mates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from netssmd.engine.scheduler import Backend, Scheduler
from netssmd.engine.session import OutPacket, Session


class SessionSink(Protocol):
    """Takes one session's packets; called by one thread at a time."""

    def write(self, packet: OutPacket) -> None: ...
    def end(self, session: Session) -> None: ...


class Batch:
    """A run over `sessions` jobs.

    open_session, begin: make session and sink of job i. `packets` and `done` count, for a progress bar; `stop` ends the
        workers early.
    """

    def __init__(
        self,
        backend: Backend,
        sessions: int,
        open_session: Callable[[int], Session],
        begin: Callable[[int], SessionSink],
        threads: int = 1,
        group: int = 16,
        speculate: bool = True,
    ) -> None:
        self.sessions = sessions
        self.packets = 0
        self.done = 0
        self.stop = threading.Event()
        self.over = threading.Event()  # all workers have ended
        self.death: BaseException | None = None
        self._open_session = open_session
        self._begin = begin
        self._next = 0
        self._working = threads
        self._lock = threading.Lock()
        share = backend.slots // threads
        self._schedulers = [
            Scheduler(backend, group, slots=range(i * share, (i + 1) * share), speculate=speculate)
            for i in range(threads)
        ]

    def threads(self) -> list[threading.Thread]:
        """The workers, not started."""
        return [
            threading.Thread(target=self._guarded, args=(scheduler,), name=f"netssmd-engine-{i}", daemon=True)
            for i, scheduler in enumerate(self._schedulers)
        ]

    def speculation(self) -> tuple[int, int, int]:
        """Tokens drafted, accepted, and how often a call drew for a session."""
        every = self._schedulers
        return sum(one.drafted for one in every), sum(one.accepted for one in every), sum(one.draws for one in every)

    def _guarded(self, scheduler: Scheduler) -> None:
        try:
            self._work(scheduler)
        except BaseException as error:
            self.death = self.death or error
            self.stop.set()
        with self._lock:
            self._working -= 1
            if not self._working:
                self.over.set()

    def _take(self) -> int | None:
        with self._lock:
            if self._next == self.sessions:
                return None
            self._next += 1
            return self._next - 1

    def _work(self, scheduler: Scheduler) -> None:
        sinks: dict[int, SessionSink] = {}  # by session number
        while not self.stop.is_set():
            while scheduler.free and (job := self._take()) is not None:
                session = self._open_session(job)
                sinks[session.info.number] = self._begin(job)
                scheduler.add(session)
            result = scheduler.step()
            if result is None:
                return
            packets, ended = result
            for packet in packets:
                sinks[packet.session.number].write(packet)
            for session in ended:
                sinks.pop(session.info.number).end(session)
            with self._lock:
                self.packets += len(packets)
                self.done += len(ended)


def run_batch(batch: Batch, watch: Callable[[], None], every_seconds: float = 0.1) -> None:
    """Run to the end; `watch` is called now and then, and at the end. Raises what a worker died of. An exception
    in between (Ctrl-C) stops the workers first."""
    threads: Sequence[threading.Thread] = batch.threads()
    try:
        for thread in threads:
            thread.start()
        while not batch.over.wait(every_seconds):
            watch()
    finally:
        # Not before: Python 3.11 takes a thread for ended when a signal interrupts its join, and a process that exits
        # while a thread is in the backend aborts.
        batch.stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    watch()
    if batch.death is not None:
        raise batch.death
