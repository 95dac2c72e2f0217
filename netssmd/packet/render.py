"""Behaviour to frames: `Headers` become the bytes of a whole frame, lengths and checksums right.

In: `wire.Headers` and how to fill the payload. Out: ``(data, orig_len)``, the frame's bytes (cut to `snaplen` if asked)
and its true length on the wire. Sources: RFC 1071 (checksums), RFC 768 (a UDP checksum of zero is sent as 0xffff).
"""

from __future__ import annotations

from typing import Final

from netssmd.packet.wire import (
    ARP,
    ICMP,
    IPV4,
    MORE_FRAGMENTS,
    NOT_IP,
    OPAQUE,
    TCP,
    UDP,
    Headers,
    ipv4_header,
    ipv6_header,
    network_header_len,
    pseudo_header_sum,
    sum16,
    transport_header,
)

_CHECKSUM_AT: Final = {TCP: 16, UDP: 6, ICMP: 2}
_ZEROS: Final = bytes(65536)


def render(headers: Headers, snaplen: int = 0) -> tuple[bytes, int]:
    """Write one frame.

    Arguments:
        headers: meaning of the frame; ``headers.body`` holds the first payload bytes (possibly none), the rest up to
            ``payload_len`` and ``trailer_len`` is filled with zeros.
        snaplen: keep at most so many bytes, 0 for all.

    Return: the frame's bytes and ``orig_len``.
    """
    if headers.version == NOT_IP:
        data = headers.link + headers.body
        orig_len = len(data) + headers.trailer_len
    elif headers.version == ARP:
        orig_len = len(headers.link) + 28 + headers.trailer_len
        data = headers.link + _filled(headers.body, orig_len - len(headers.link))
    else:
        data, orig_len = _render_ip(headers)
    if 0 < snaplen < len(data):
        data = data[:snaplen]
    return data, orig_len


def _filled(body: bytes, length: int) -> bytes:
    """`body` followed by zeros up to `length` bytes; never cut."""
    missing = length - len(body)
    return body + _ZEROS[:missing] if missing > 0 else body


def _render_ip(headers: Headers) -> tuple[bytes, int]:
    transport = transport_header(headers)
    length = len(transport) + headers.payload_len
    wanted = headers.payload_len + headers.trailer_len
    body = _filled(headers.body, wanted if wanted > 0 else 0)
    if headers.transport != OPAQUE:
        at = _CHECKSUM_AT[headers.transport]
        value = _transport_checksum(headers, transport, length)
        transport = transport[:at] + bytes((value >> 8, value & 255)) + transport[at + 2 :]
    if headers.version == IPV4:
        network = ipv4_header(headers, network_header_len(headers) + length)
    else:
        network = ipv6_header(headers, network_header_len(headers) - 40 + length)
    orig_len = len(headers.link) + len(network) + length + headers.trailer_len
    return headers.link + network + transport + body, orig_len


def _transport_checksum(headers: Headers, transport: bytes, length: int) -> int:
    """Checksum over pseudo header, transport header and payload, whose zeros behind ``headers.body`` add nothing.

    The first fragment of a UDP datagram carries the sum of the whole datagram, whose later fragments are zeros here.
    """
    payload = headers.body if len(headers.body) <= headers.payload_len else headers.body[: headers.payload_len]
    total = sum16(transport) + sum16(payload)
    if headers.transport != ICMP or headers.version != IPV4:
        if headers.transport == UDP and headers.ip_flags & MORE_FRAGMENTS:
            length += headers.udp_length_delta
        total += pseudo_header_sum(headers, length)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    value = ~total & 0xFFFF
    return 0xFFFF if value == 0 and headers.transport == UDP else value
