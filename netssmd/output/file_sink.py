"""Packets to a ring of captures with their ledgers: `PcapRing` and `Ledger` as one sink."""

from __future__ import annotations

from collections.abc import Sequence

from netssmd.output.ledger import Ledger, SessionMeta, measure
from netssmd.output.pcap_ring import PcapRing
from netssmd.output.sink import Outgoing


class FileSink:
    """A sink over a ring that was made with `beside=ledger`."""

    def __init__(self, ring: PcapRing, ledger: Ledger) -> None:
        self.ring = ring
        self.ledger = ledger

    @property
    def packets(self) -> int:
        """Packets stored."""
        return self.ring.packets

    @property
    def dropped(self) -> int:
        return self.ring.dropped

    def write(self, batch: Sequence[Outgoing]) -> None:
        write = self.ring.write
        for packet, session, flow, direction, _, findings, planted in batch:
            ts_ns, data, orig_len = packet
            write(packet, (session, ts_ns, flow, direction, orig_len, findings, *measure(data, orig_len), planted))

    def end_session(self, session: SessionMeta) -> None:
        self.ledger.end(session)

    def flush(self, now_ns: int) -> None:
        self.ring.flush(now_ns)

    def rotate(self) -> None:
        self.ring.rotate()

    def close(self) -> None:
        self.ring.close()
