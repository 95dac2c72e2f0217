"""Headers in and out: a frame's bytes become `Headers`, the meaning of one packet, and back.

In: the bytes of an Ethernet frame (possibly cut short by a snaplen) and its original length.
Out: `Headers`, or one with ``version == NOT_IP`` for a frame that is not ARP, IPv4 or IPv6, that lies about its
lengths, or that was cut inside its headers. Nothing is judged here and nothing raises: damaged input is data.

Sources: Ethernet II and IEEE 802.1Q / 802.1ad; ARP RFC 826; IPv4 RFC 791; IPv6 RFC 8200; TCP RFC 9293; UDP RFC 768;
ICMP RFC 792; ICMPv6 RFC 4443; Internet checksum RFC 1071.

::

    frame   = link | network header | transport header | payload | trailer
    link    = dst(6) src(6) [tag(4)]* ethertype(2)
    lengths = orig_len = len(link) + total_length + trailer_len          (what was on the wire)
              total_length = network header + transport header + payload_len
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

try:
    from netssmd.packet._sum16 import sum16 as _compiled_sum16  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    _compiled_sum16 = None

NOT_IP: Final = 0
ARP: Final = 1
IPV4: Final = 4
IPV6: Final = 6

OPAQUE: Final = 0  # the transport header is not interpreted: another protocol, or a fragment
ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20
ECE: Final = 0x40
CWR: Final = 0x80

MORE_FRAGMENTS: Final = 1

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_IPV6: Final = 0x86DD
_MAX_TAGS: Final = 4

_native_sum16: Final[Callable[[bytes], int] | None] = _compiled_sum16
_SHORT: Final = 48  # bytes, up to which the call costs more than the sum


class Headers:
    """The meaning of one frame. Field names are those of the RFCs; lengths are bytes, all numbers host order.

    Attributes:
        link: Link header as captured, ethertype included.
        version: `IPV4`, `IPV6`, `ARP` or `NOT_IP`.
        options: IPv4 options (multiple of 4 bytes), or for IPv6 the first next-header value followed by the
            extension header chain, empty if there is none.
        ip_flags: IPv4 reserved bit, DF and MF as a number 0..7; 0 for IPv6.
        fragment_offset: in bytes.
        checksum_delta: IPv4 header checksum as captured minus the right one, modulo 65536.
        transport: `TCP`, `UDP`, `ICMP` (also for ICMPv6) or `OPAQUE`.
        flags: TCP flags, 12 bits: reserved bits and NS above CWR ECE URG ACK PSH RST SYN FIN.
        rest: second word of an ICMP header (identifier and sequence number of an echo).
        udp_length_delta: UDP length field minus (8 + payload_len).
        body: for ARP the 28 bytes of the packet; else the captured bytes after the transport header, trailer included.
        payload_len: bytes that the IP length leaves after the transport header.
        trailer_len: bytes on the wire after the IP packet (negative if the IP length exceeds the frame).
        captured_len: bytes of the frame that were captured.
    """

    __slots__ = (
        "link", "version", "tos", "ident", "ip_flags", "fragment_offset", "ttl", "protocol", "src", "dst", "options",
        "flow_label", "checksum_delta", "transport", "sport", "dport", "seq", "ack", "flags", "window", "urgent",
        "tcp_options", "icmp_type", "icmp_code", "rest", "udp_length_delta", "checksum", "body", "payload_len",
        "trailer_len", "captured_len",
    )  # fmt: skip

    def __init__(self) -> None:
        self.link: bytes = b""
        self.version: int = NOT_IP
        self.tos: int = 0
        self.ident: int = 0
        self.ip_flags: int = 0
        self.fragment_offset: int = 0
        self.ttl: int = 64
        self.protocol: int = 0
        self.src: bytes = b""
        self.dst: bytes = b""
        self.options: bytes = b""
        self.flow_label: int = 0
        self.checksum_delta: int = 0
        self.transport: int = OPAQUE
        self.sport: int = 0
        self.dport: int = 0
        self.seq: int = 0
        self.ack: int = 0
        self.flags: int = 0
        self.window: int = 0
        self.urgent: int = 0
        self.tcp_options: bytes = b""
        self.icmp_type: int = 0
        self.icmp_code: int = 0
        self.rest: int = 0
        self.udp_length_delta: int = 0
        self.checksum: int = 0
        self.body: bytes = b""
        self.payload_len: int = 0
        self.trailer_len: int = 0
        self.captured_len: int = 0


def parse(data: bytes, orig_len: int) -> Headers:
    """Read a frame's headers.

    Arguments:
        data: captured bytes, starting at the link header.
        orig_len: length of the frame on the wire.

    Return: Headers; ``version == NOT_IP`` if the frame can't be expressed exactly by the other fields.
    """
    headers = Headers()
    captured = len(data)
    headers.captured_len = captured
    if captured < 14:
        return headers
    offset = 12
    ethertype = data[12] << 8 | data[13]
    tags = 0
    while (ethertype == 0x8100 or ethertype == 0x88A8 or ethertype == 0x9100) and tags < _MAX_TAGS:
        offset += 4
        tags += 1
        if captured < offset + 2:
            return headers
        ethertype = data[offset] << 8 | data[offset + 1]
    offset += 2
    headers.link = data[:offset]
    if ethertype == ETHERTYPE_IPV4:
        _parse_ipv4(headers, data, offset, orig_len)
    elif ethertype == ETHERTYPE_IPV6:
        _parse_ipv6(headers, data, offset, orig_len)
    elif ethertype == ETHERTYPE_ARP:
        _parse_arp(headers, data, offset, orig_len)
    return headers


def _parse_arp(headers: Headers, data: bytes, offset: int, orig_len: int) -> None:
    if len(data) < offset + 28 or data[offset : offset + 6] != b"\x00\x01\x08\x00\x06\x04":
        return
    headers.version = ARP
    headers.body = data[offset:]
    headers.src = data[offset + 14 : offset + 18]
    headers.dst = data[offset + 24 : offset + 28]
    headers.trailer_len = orig_len - offset - 28


def _parse_ipv4(headers: Headers, data: bytes, offset: int, orig_len: int) -> None:
    if len(data) < offset + 20 or data[offset] >> 4 != 4:
        return
    header_len = (data[offset] & 15) * 4
    total_length = data[offset + 2] << 8 | data[offset + 3]
    if header_len < 20 or total_length < header_len or len(data) < offset + header_len:
        return
    headers.tos = data[offset + 1]
    headers.ident = data[offset + 4] << 8 | data[offset + 5]
    headers.ip_flags = data[offset + 6] >> 5
    headers.fragment_offset = ((data[offset + 6] & 31) << 8 | data[offset + 7]) * 8
    headers.ttl = data[offset + 8]
    headers.protocol = data[offset + 9]
    headers.src = data[offset + 12 : offset + 16]
    headers.dst = data[offset + 16 : offset + 20]
    if header_len > 20:
        headers.options = data[offset + 20 : offset + header_len]
    # The right checksum makes the ones' complement sum of the whole header 0xffff; only then is the delta zero.
    captured_sum = data[offset + 10] << 8 | data[offset + 11]
    words = 0
    for i in range(offset, offset + header_len, 2):
        words += data[i] << 8 | data[i + 1]
    words -= captured_sum
    words = (words & 0xFFFF) + (words >> 16)
    words = (words & 0xFFFF) + (words >> 16)
    headers.checksum_delta = (captured_sum - (~words & 0xFFFF)) & 0xFFFF
    is_fragment = headers.fragment_offset > 0 or headers.ip_flags & MORE_FRAGMENTS != 0
    headers.trailer_len = orig_len - offset - total_length
    if _parse_transport(headers, data, offset + header_len, total_length - header_len, is_fragment):
        headers.version = IPV4


def _parse_ipv6(headers: Headers, data: bytes, offset: int, orig_len: int) -> None:
    if len(data) < offset + 40 or data[offset] >> 4 != 6:
        return
    headers.tos = (data[offset] & 15) << 4 | data[offset + 1] >> 4
    headers.flow_label = (data[offset + 1] & 15) << 16 | data[offset + 2] << 8 | data[offset + 3]
    payload_length = data[offset + 4] << 8 | data[offset + 5]
    headers.ttl = data[offset + 7]
    headers.src = data[offset + 8 : offset + 24]
    headers.dst = data[offset + 24 : offset + 40]
    first = data[offset + 6]
    protocol = first
    at = offset + 40
    end = at + payload_length
    is_fragment = False
    # Hop-by-hop, routing, destination options, mobility, HIP, shim6; fragment (44) and authentication (51) count
    # their length differently.
    while protocol in (0, 43, 60, 44, 51, 135, 139, 140) and not is_fragment:
        if len(data) < at + 8:
            return
        if protocol == 44:
            length = 8
            is_fragment = (data[at + 2] << 8 | data[at + 3]) & 0xFFF9 != 0
        elif protocol == 51:
            length = (data[at + 1] + 2) * 4
        else:
            length = (data[at + 1] + 1) * 8
        protocol = data[at]
        at += length
        if at > end or len(data) < at or at - offset - 40 > 1024:
            return
    if at > offset + 40:
        headers.options = bytes([first]) + data[offset + 40 : at]
    headers.protocol = protocol
    headers.trailer_len = orig_len - end
    # IPv6 keeps the fragment offset in its extension header, so even its first fragments stay opaque.
    headers.fragment_offset = 8 if is_fragment else 0
    if _parse_transport(headers, data, at, end - at, is_fragment):
        headers.version = IPV6
    headers.fragment_offset = 0


def _parse_transport(headers: Headers, data: bytes, offset: int, length: int, is_fragment: bool) -> bool:
    """Read the transport header at `offset`; `length` bytes are there by the IP length. Return: could it be read."""
    protocol = headers.protocol
    captured = len(data)
    if protocol == TCP and not is_fragment:
        if length < 20 or captured < offset + 20:
            return False
        header_len = (data[offset + 12] >> 4) * 4
        if header_len < 20 or header_len > length or captured < offset + header_len:
            return False
        headers.transport = TCP
        headers.seq = data[offset + 4] << 24 | data[offset + 5] << 16 | data[offset + 6] << 8 | data[offset + 7]
        headers.ack = data[offset + 8] << 24 | data[offset + 9] << 16 | data[offset + 10] << 8 | data[offset + 11]
        headers.flags = (data[offset + 12] & 15) << 8 | data[offset + 13]
        headers.window = data[offset + 14] << 8 | data[offset + 15]
        headers.checksum = data[offset + 16] << 8 | data[offset + 17]
        headers.urgent = data[offset + 18] << 8 | data[offset + 19]
        if header_len > 20:
            headers.tcp_options = data[offset + 20 : offset + header_len]
    elif protocol == UDP and (not is_fragment or headers.fragment_offset == 0):
        if length < 8 or captured < offset + 8:
            return False
        header_len = 8
        headers.transport = UDP
        headers.udp_length_delta = (data[offset + 4] << 8 | data[offset + 5]) - length
        headers.checksum = data[offset + 6] << 8 | data[offset + 7]
    elif protocol == (ICMP if len(headers.src) == 4 else ICMPV6) and not is_fragment:
        if length < 8 or captured < offset + 8:
            return False
        header_len = 8
        headers.transport = ICMP
        headers.icmp_type = data[offset]
        headers.icmp_code = data[offset + 1]
        headers.checksum = data[offset + 2] << 8 | data[offset + 3]
        headers.rest = data[offset + 4] << 24 | data[offset + 5] << 16 | data[offset + 6] << 8 | data[offset + 7]
    else:
        header_len = 0
    if headers.transport == TCP or headers.transport == UDP:
        headers.sport = data[offset] << 8 | data[offset + 1]
        headers.dport = data[offset + 2] << 8 | data[offset + 3]
    headers.body = data[offset + header_len :]
    headers.payload_len = length - header_len
    return True


END_OF_OPTIONS: Final = -1
MALFORMED_OPTIONS: Final = -2


def option_at(options: bytes, i: int) -> int:
    """Where the next TCP option from `i` on begins (RFC 9293 section 3.2), padding passed over: its kind stands there,
    its length behind. `END_OF_OPTIONS`, or `MALFORMED_OPTIONS` where a length is less than 2 or more than there is."""
    end = len(options)
    while i < end:
        kind = options[i]
        if kind == 0:
            break
        if kind != 1:
            if i + 1 >= end or options[i + 1] < 2 or i + options[i + 1] > end:
                return MALFORMED_OPTIONS
            return i
        i += 1
    return END_OF_OPTIONS


def signed(difference: int) -> int:
    """The difference of two sequence numbers as a signed number (RFC 9293 section 3.4)."""
    return ((difference + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def sum16(data: bytes) -> int:
    """Sum of the 16-bit big-endian words of `data` modulo 65535, an odd last byte padded with zero (RFC 1071).

    A whole number is congruent to its digit sum in base 65536 modulo 65535, so one division does the whole sum;
    zero is returned as 65535 unless all bytes are zero, as ones' complement addition would.
    """
    if _native_sum16 is not None and len(data) > _SHORT:
        native: int = _native_sum16(data)
        return native
    value = int.from_bytes(data, "big")
    if len(data) & 1:
        value <<= 8
    if value == 0:
        return 0
    return value % 65535 or 65535


def checksum(data: bytes) -> int:
    """Internet checksum (RFC 1071) of `data`, whose own checksum field must be zero."""
    return ~sum16(data) & 0xFFFF


def ipv4_header(headers: Headers, total_length: int) -> bytes:
    """Write an IPv4 header, checksum included (and its recorded deviation applied)."""
    head = bytes(
        (
            0x40 | (20 + len(headers.options)) >> 2, headers.tos, total_length >> 8 & 255, total_length & 255,
            headers.ident >> 8, headers.ident & 255,
            headers.ip_flags << 5 | headers.fragment_offset >> 11, headers.fragment_offset >> 3 & 255,
            headers.ttl, headers.protocol,
        )
    )  # fmt: skip
    tail = headers.src + headers.dst + headers.options
    value = (checksum(head + tail) + headers.checksum_delta) & 0xFFFF
    return head + bytes((value >> 8, value & 255)) + tail


def ipv6_header(headers: Headers, payload_length: int) -> bytes:
    """Write an IPv6 header and its extension headers; `payload_length` counts the extension headers."""
    word = 6 << 28 | headers.tos << 20 | headers.flow_label
    first = headers.options[0] if headers.options else headers.protocol
    return (
        word.to_bytes(4, "big")
        + bytes((payload_length >> 8 & 255, payload_length & 255, first, headers.ttl))
        + headers.src
        + headers.dst
        + headers.options[1:]
    )


def network_header_len(headers: Headers) -> int:
    """Bytes of the network header, IPv4 options or IPv6 extension headers included."""
    if headers.version == IPV4:
        return 20 + len(headers.options)
    if headers.version == IPV6:
        return 40 + max(0, len(headers.options) - 1)
    return 0


def transport_header_len(headers: Headers) -> int:
    """Bytes of the transport header, TCP options included."""
    if headers.transport == TCP:
        return 20 + len(headers.tcp_options)
    return 0 if headers.transport == OPAQUE else 8


def transport_header(headers: Headers) -> bytes:
    """Write the transport header with a zero checksum field; nothing for `OPAQUE`."""
    if headers.transport == TCP:
        offset_flags = (20 + len(headers.tcp_options)) >> 2 << 12 | headers.flags
        return (
            (headers.sport << 16 | headers.dport).to_bytes(4, "big")
            + (headers.seq << 32 | headers.ack).to_bytes(8, "big")
            + (offset_flags << 48 | headers.window << 32 | headers.urgent).to_bytes(8, "big")
            + headers.tcp_options
        )
    if headers.transport == UDP:
        length = (8 + headers.payload_len + headers.udp_length_delta) & 0xFFFF
        return (headers.sport << 48 | headers.dport << 32 | length << 16).to_bytes(8, "big")
    if headers.transport == ICMP:
        return (headers.icmp_type << 56 | headers.icmp_code << 48 | headers.rest).to_bytes(8, "big")
    return b""


def pseudo_header_sum(headers: Headers, length: int) -> int:
    """Sum of the pseudo header of TCP, UDP and ICMPv6 checksums; `length` counts transport header and payload."""
    return sum16(headers.src + headers.dst) + headers.protocol + length
