"""Packets to a ring of captures with their ledgers: `PcapRing` and `Ledger` as one sink.

Where the storage refuses (full, read-only, gone), a ring that waits keeps what it has, and the sink what comes
after; `on_wait` is told why, and again with "" when it went on. `flush` tries again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from netssmd.output.ledger import Ledger, SessionMeta, measure
from netssmd.output.pcap_ring import PcapRing, StorageWaits
from netssmd.output.sink import Outgoing


class FileSink:
    """A sink over a ring that was made with `beside=ledger`."""

    def __init__(
        self,
        ring: PcapRing,
        ledger: Ledger,
        on_wait: Callable[[str], object] | None = None,
        on_loss: Callable[[str], object] | None = None,
    ) -> None:
        self.ring = ring
        self.ledger = ledger
        self.waits = 0  # how often the storage refused
        self._on_wait = on_wait
        self._on_loss = on_loss
        self._waiting: list[Outgoing] = []  # not taken by the ring yet
        self._stuck = False

    @property
    def packets(self) -> int:
        """Packets stored."""
        return self.ring.packets

    @property
    def dropped(self) -> int:
        return self.ring.dropped

    def write(self, batch: Sequence[Outgoing]) -> None:
        if self._stuck:
            self._waiting += batch
            return
        write = self.ring.write
        for number, (packet, session, flow, direction, _, findings, planted) in enumerate(batch):
            ts_ns, data, orig_len = packet
            note = (session, ts_ns, flow, direction, orig_len, findings, *measure(data, orig_len), planted)
            try:
                write(packet, note)
            except StorageWaits as error:
                self._waiting = list(batch[number:])
                self._wait(error)
                return

    def _wait(self, error: StorageWaits) -> None:
        if not self._stuck:
            self._stuck = True
            self.waits += 1
            if self._on_wait:
                self._on_wait(str(error))

    def _go_on(self) -> None:
        """The storage takes packets again: those that waited first."""
        waiting, self._waiting, self._stuck = self._waiting, [], False
        self.write(waiting)
        if not self._stuck and self._on_wait:
            self._on_wait("")

    def end_session(self, session: SessionMeta) -> None:
        self.ledger.end(session)

    def flush(self, now_ns: int) -> None:
        try:
            lost = self.ring.look()
            if lost and self._on_loss:
                self._on_loss(lost)
            self.ring.flush(now_ns)
        except StorageWaits as error:
            self._wait(error)
        else:
            if self._stuck:
                self._go_on()

    def rotate(self) -> None:
        with contextlib.suppress(StorageWaits):  # the next slice will end it
            self.ring.rotate()

    def close(self) -> None:
        self.ring.dropped += len(self._waiting)
        self._waiting = []
        self.ring.close()
