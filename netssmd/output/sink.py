"""Where packets go: the contract of all sinks, and the one that goes nowhere.

In: batches of packets on their way out, in the order of their time, from one thread. A sink may block that thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from netssmd.output.ledger import FlowKey, SessionMeta
from netssmd.packet.pcap import Packet


class Outgoing(NamedTuple):
    """A packet with what is known of it. `flow` is None for what has no five-tuple (ARP).

    `direction` is 0 from the flow's originator, 1 from its responder. `due_ns` is the monotonic time at which a live
    sink sends it; files do not look at it. `findings` are the names of those it raised, `planted` is
    the defect that it was given.
    """

    packet: Packet
    session: SessionMeta
    flow: FlowKey | None
    direction: int
    due_ns: int = 0
    findings: tuple[str, ...] = ()
    planted: str = ""


class Sink(Protocol):
    """Raises OutputError where packets cannot go on; `close` is still to be called then."""

    @property
    def packets(self) -> int:
        """Packets that arrived where they were to go."""

    @property
    def dropped(self) -> int:
        """Packets that did not."""

    def write(self, batch: Sequence[Outgoing]) -> None: ...

    def end_session(self, session: SessionMeta) -> None:
        """The session's last packet was written."""

    def flush(self, now_ns: int) -> None:
        """Hold nothing back. `now_ns` is on the packets' clock; called every second or so, busy or idle."""

    def rotate(self) -> None:
        """Begin a new file, where there are files."""

    def close(self) -> None:
        """Finish cleanly. May be called again."""


class LiveSink(Sink, Protocol):
    """A sink that sends each packet at its `due_ns`, and so wants it before."""

    @property
    def lead_ns(self) -> int:
        """How long before."""

    def cut(self, due_ns: int) -> None:
        """What is due later than this is not sent: the daemon stops. Called once, before `close`."""


class NullSink:
    """Counts packets and bytes on the wire, and forgets them."""

    def __init__(self) -> None:
        self.packets = 0
        self.bytes = 0
        self.dropped = 0

    def write(self, batch: Sequence[Outgoing]) -> None:
        self.packets += len(batch)
        self.bytes += sum(item.packet.orig_len for item in batch)

    def end_session(self, session: SessionMeta) -> None:
        pass

    def flush(self, now_ns: int) -> None:
        pass

    def rotate(self) -> None:
        pass

    def close(self) -> None:
        pass
