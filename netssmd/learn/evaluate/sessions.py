"""A session as arrays: what `compare` and `classify` measure.

In: a folder of captures shaped like a training set (`learn.prepare` finds them: labels, splits and conditions from the
manifest or the folders' names). Out: for each capture one `Session`: times, sizes, directions and flows of its packets,
what `packet.compliance` found, and its headers as nPrint has them. Addresses serve to tell flows and senders apart, and
to find out whether a training set's come back; a port is only ever a class.

Direction is that of the flow: up is from its originator, the sender of the SYN, or of the flow's first packet.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netssmd.errors import CaptureError, UsageError
from netssmd.learn.evaluate.nprint import Printer, Prints, Tally
from netssmd.learn.prepare import Salvage, Source, find_sources, read_packets, reason
from netssmd.packet.compliance import Checker, Flow, Totals
from netssmd.packet.wire import ACK, ICMP, IPV4, IPV6, NOT_IP, OPAQUE, SYN, TCP, UDP, Headers, parse

TRANSPORTS = (TCP, UDP, ICMP, OPAQUE)
PORT_CLASSES = ("system", "registered", "ephemeral", "none")  # of the responder: < 1024, < 32768, above, no port
CAPTURE_NAME = re.compile(r"\.(pcap|pcapng|cap|dmp)(\.gz|\.zst)?$")
SECOND = 1_000_000_000
PRINTED = 1024  # packets of a capture that nPrint looks at: as many as the paper's
OPENING = 16  # packets whose bits are kept, for classifiers


@dataclass(frozen=True, slots=True)
class Session:
    """One capture.

    Attributes:
        times_ns: int64 [n], from the first packet. sizes: int32 [n], bytes on the wire. up: bool [n].
        flow: int32 [n], number of the packet's flow (five-tuple; address pair and protocol where there are no ports).
        transport: uint8 [n], index into TRANSPORTS. flags: uint16 [n], TCP flags. port_class: uint8 [n].
        payload: int32 [n], bytes of transport payload by the IP length.
        servers: int32 [flows], number of the responder's address.
        tcp: findings and endings of its TCP flows. rtts_ns: SYN to the ACK of SYN+ACK, of each right handshake.
        opening: nPrint of its first packets. tally: what nPrint has of the first PRINTED, by byte and value.
        identifiers: unicast addresses, MACs and initial sequence numbers, each after a letter for its kind.
    """

    path: Path
    name: str
    label: str
    conditions: dict[str, float]
    capped: bool
    times_ns: Any
    sizes: Any
    up: Any
    flow: Any
    transport: Any
    flags: Any
    port_class: Any
    payload: Any
    servers: Any
    tcp: Totals
    rtts_ns: tuple[int, ...]
    opening: Prints
    tally: Tally
    identifiers: frozenset[bytes]

    @property
    def gaps_ns(self) -> Any:
        return np.diff(self.times_ns)

    @property
    def packets(self) -> int:
        return len(self.sizes)

    @property
    def duration_seconds(self) -> float:
        return float(self.times_ns[-1] - self.times_ns[0]) / SECOND if len(self.times_ns) else 0.0


def packets_by_flow(session: Session) -> Iterator[Any]:
    """Indices of each flow's packets, in their order."""
    order = np.argsort(session.flow, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(session.flow[order])) + 1) if len(order) else ()


class Flows:
    """Numbers the flows of a capture and tells each packet's direction. `servers`: of each flow, the number of its
    responder's address."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, int, bytes, int, int], int] = {}
        self._addresses: dict[bytes, int] = {}
        self.servers: list[int] = []

    def place(self, headers: Headers) -> tuple[int, bool]:
        """Return: the number of the packet's flow, and is it from the originator."""
        here, there = (headers.src, headers.sport), (headers.dst, headers.dport)
        protocol = headers.protocol if headers.version != NOT_IP else -1
        forward, backward = (*here, *there, protocol), (*there, *here, protocol)
        if forward in self._known:
            return self._known[forward], True
        if backward in self._known:
            return self._known[backward], False
        answers = headers.transport == TCP and headers.flags & (SYN | ACK) == SYN | ACK
        number = len(self._known)
        self._known[backward if answers else forward] = number
        responder = headers.src if answers else headers.dst
        self.servers.append(self._addresses.setdefault(responder, len(self._addresses)))
        return number, not answers


def port_class(headers: Headers, up: bool) -> int:
    if headers.transport not in (TCP, UDP):
        return 3
    port = headers.dport if up else headers.sport
    return 0 if port < 1024 else 1 if port < 32768 else 2


def measure(packets: Iterable[Any], source: Source) -> Session:
    """One pass over the packets of a capture."""
    rtts: list[int] = []

    def ended(flow: Flow) -> None:
        if flow.established_ns:
            rtts.append(flow.established_ns - flow.syn_ns)

    checker, flows = Checker(on_flow=ended), Flows()
    printer, identifiers = Printer(PRINTED), Identifiers()
    index = {transport: i for i, transport in enumerate(TRANSPORTS)}
    rows = []
    for ts_ns, data, orig_len in packets:
        headers = parse(data, orig_len)
        checker.observe(headers, ts_ns)
        flow, up = flows.place(headers)
        flags = headers.flags if headers.transport == TCP else 0
        place = index[headers.transport], flags, port_class(headers, up), headers.payload_len
        rows.append((ts_ns, orig_len, up, flow, *place))
        printer.add(data, headers)
        identifiers.add(headers)
    totals = checker.finish()
    table = np.array(rows, dtype=np.int64).reshape(-1, 8)
    times, sizes, ups, flow_numbers, transports, flag_bits, classes, payload = table.T
    prints = printer.prints()
    return Session(
        source.path, source.name, source.label, source.conditions, source.capped,
        times - times[0] if len(times) else times, sizes.astype(np.int32), ups.astype(bool),
        flow_numbers.astype(np.int32), transports.astype(np.uint8), flag_bits.astype(np.uint16),
        classes.astype(np.uint8), payload.astype(np.int32), np.array(flows.servers, dtype=np.int32),
        totals, tuple(rtts),
        Prints(prints.data[:OPENING].copy(), prints.there[:OPENING].copy()), Tally.of(prints), identifiers.found(),
    )  # fmt: skip


class Identifiers:
    """Who the hosts of a capture are: what must not be learned."""

    def __init__(self) -> None:
        self._found: set[bytes] = set()

    def add(self, headers: Headers) -> None:
        for mac in (headers.link[:6], headers.link[6:12]):
            if len(mac) == 6 and not mac[0] & 1 and any(mac):
                self._found.add(b"m" + mac)
        if headers.version in (IPV4, IPV6):
            for address in (headers.src, headers.dst):
                if len(address) == 4 and 0 < address[0] < 224:
                    self._found.add(b"4" + address)
                elif len(address) == 16 and address[0] != 0xFF and any(address):
                    self._found.add(b"6" + address)
            if headers.transport == TCP and headers.flags & SYN and headers.seq:
                self._found.add(b"s" + headers.seq.to_bytes(4, "big"))

    def found(self) -> frozenset[bytes]:
        return frozenset(self._found)


def find(
    root: Path, split: str | None = None, labels: Sequence[str] = (), per_label: int | None = None
) -> list[Source]:
    """The captures of a folder: of one split (all without), of the labels named (all without), so many of each label.

    Raises:
        UsageError: There are none; it says which labels and splits there are.
    """
    sources = [source for source in find_sources([root])[0] if CAPTURE_NAME.search(source.path.name)]
    wanted = [s for s in sources if split in (None, s.split) and (not labels or s.label in labels)]
    if not wanted:
        there = ", ".join(sorted({f"{s.label} ({s.split})" for s in sources})) or "no captures at all"
        asked = ", ".join([*labels, *([f"split {split}"] if split else [])]) or "any capture"
        raise UsageError(f"{root}: looked for {asked}, found {there}; name a folder with <label>/*.pcap or a manifest")
    seen: Counter[str] = Counter()
    chosen = []
    for source in sorted(wanted, key=lambda s: (s.label, _natural(s.name))):
        seen[source.label] += 1
        if per_label is None or seen[source.label] <= per_label:
            chosen.append(source)
    return chosen


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts 10 after 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def load(
    sources: Sequence[Source], advance: Callable[[], None], complain: Callable[[str], None] = lambda text: None
) -> list[Session]:
    """Measure captures one by one. What cannot be read is told to `complain`; what comes before damage counts."""
    sessions = []
    for source in sources:
        salvage = Salvage(source.path, read_packets)
        try:
            session = measure(salvage, source)
        except (CaptureError, OSError) as error:
            complain(f"{source.path}: {reason(error, source.path)}")
        else:
            if salvage.damage:
                complain(f"{source.path}: {salvage.damage}")
            if session.packets:
                sessions.append(session)
        advance()
    return sessions


def by_label(sessions: Iterable[Session]) -> dict[str, list[Session]]:
    groups: dict[str, list[Session]] = {}
    for session in sessions:
        groups.setdefault(session.label, []).append(session)
    return dict(sorted(groups.items()))
