"""What a round trip gave back otherwise than it was: the first differing field of two records of the same packet.

In: a captured record and the one that came back, each ``(ts_ns, data, orig_len)``. Out: None if they are the same but
for the TCP, UDP or ICMP checksum (which is rendered, not carried), else a `Difference`. Field names are those of
`wire.Headers`, widths those of the RFCs named there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from netssmd.packet.wire import ARP, ICMP, IPV4, NOT_IP, TCP, UDP, Headers, network_header_len, parse

Record = tuple[int, bytes, int]

# Fields of each header in the order in which they stand on the wire, with their bytes.
_IPV4: Final = (
    ("version", 1), ("tos", 1), ("total_length", 2), ("ident", 2), ("ip_flags", 2), ("ttl", 1), ("protocol", 1),
    ("checksum_delta", 2), ("src", 4), ("dst", 4),
)  # fmt: skip
_IPV6: Final = (("flow_label", 4), ("payload_length", 2), ("protocol", 1), ("ttl", 1), ("src", 16), ("dst", 16))
_TRANSPORTS: Final = {
    TCP: (
        ("sport", 2), ("dport", 2), ("seq", 4), ("ack", 4), ("flags", 2), ("window", 2), ("checksum", 2), ("urgent", 2),
    ),
    UDP: (("sport", 2), ("dport", 2), ("udp_length", 2), ("checksum", 2)),
    ICMP: (("icmp_type", 1), ("icmp_code", 1), ("checksum", 2), ("rest", 4)),
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """Where two records differ: the field, the byte offset in the frame (-1: beside the frame), and both values."""

    field: str
    offset: int
    expected: str
    found: str

    def __str__(self) -> str:
        where = "" if self.offset < 0 else f" at byte {self.offset}"
        return f"{self.field}{where} is {self.found}, was {self.expected}"


def first_difference(was: Record, now: Record) -> Difference | None:
    """Compare a captured record with the one that came back."""
    if now[0] != was[0]:
        return Difference("ts_ns", -1, str(was[0]), str(now[0]))
    if now[2] != was[2]:
        return Difference("orig_len", -1, str(was[2]), str(now[2]))
    if now[1] == was[1]:
        return None
    headers = parse(was[1], was[2])
    passed_over = checksum_span(headers)
    for offset, (expected, found) in enumerate(zip(was[1], now[1], strict=False)):
        if expected != found and offset not in passed_over:
            return Difference(field_at(headers, offset), offset, f"0x{expected:02x}", f"0x{found:02x}")
    if len(now[1]) != len(was[1]):
        return Difference("captured_len", min(len(was[1]), len(now[1])), str(len(was[1])), str(len(now[1])))
    return None


def checksum_span(headers: Headers) -> range:
    """Offsets of the TCP, UDP or ICMP checksum in the frame; none for other frames."""
    at = {TCP: 16, UDP: 6, ICMP: 2}.get(headers.transport)
    if headers.version == NOT_IP or at is None:
        return range(0)
    start = len(headers.link) + network_header_len(headers) + at
    return range(start, start + 2)


def field_at(headers: Headers, offset: int) -> str:
    """Name of the field to which a frame's byte belongs."""
    if headers.version == NOT_IP:
        return "frame"
    if offset < len(headers.link):
        return "link"
    offset -= len(headers.link)
    if headers.version == ARP:
        return "arp" if offset < 28 else "trailer"
    network_len = network_header_len(headers)
    if offset < network_len:
        return _named(_IPV4 if headers.version == IPV4 else _IPV6, offset, "options")
    offset -= network_len
    rows = _TRANSPORTS.get(headers.transport, ())
    header_len = sum(size for _, size in rows) + len(headers.tcp_options)
    if offset < header_len:
        return _named(rows, offset, "tcp_options")
    return "payload" if offset < header_len + headers.payload_len else "trailer"


def _named(rows: tuple[tuple[str, int], ...], offset: int, rest: str) -> str:
    for name, size in rows:
        if offset < size:
            return name
        offset -= size
    return rest
