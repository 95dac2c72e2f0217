"""Provenance: a mark in each frame that says "made by a generator", and its removal.

In: `Headers` about to be rendered, or a frame. Out: the same, marked or cleared, the header checksum right. Two marks::

    reserved-bit   bit 0 of the IPv4 flags, which RFC 791 keeps zero and RFC 3514 lends to a purpose like this
    oui            all MACs of clients and router begin with 06:4e:53, locally administered (IEEE 802)

IPv6 has no such bit and ARP no such header: under `reserved-bit` their frames carry no mark, under `oui` all do.
Checksums of TCP, UDP and ICMP do not cover the bit. An ICMP error quotes marked packets with their bit; clearing it
there too leaves the sum of the quoted header, and with it the ICMP checksum, what it was (RFC 1624).
"""

from __future__ import annotations

from typing import Final

from netssmd.packet.fragment import link_len
from netssmd.packet.render import render
from netssmd.packet.wire import IPV4, Headers

OUI: Final = b"\x06\x4e\x53"
CLEARED_OUI: Final = b"\x02\x4e\x53"
_RESERVED_FLAG: Final = 4
_RESERVED: Final = 0x80
_ERRORS: Final = (3, 4, 5, 11, 12)


def render_marked(headers: Headers, snaplen: int = 0) -> tuple[bytes, int]:
    """`render` with the reserved bit set."""
    if headers.version == IPV4:
        headers.ip_flags |= _RESERVED_FLAG
    return render(headers, snaplen)


def clear(frame: bytes) -> bytes:
    """The frame without marks; the very same object if it has none."""
    start = link_len(frame)
    kind = frame[start - 2 : start]
    if frame[:3] == OUI or frame[6:9] == OUI:
        frame = _without_oui(frame[:6]) + _without_oui(frame[6:12]) + frame[12:]
    if kind == b"\x08\x00":
        return _clear_ipv4(frame, start)
    if kind == b"\x08\x06" and len(frame) >= start + 28:  # the MACs that ARP tells of
        for at in (start + 8, start + 18):
            if frame[at : at + 3] == OUI:
                frame = frame[:at] + CLEARED_OUI + frame[at + 3 :]
    return frame


def _without_oui(mac: bytes) -> bytes:
    return CLEARED_OUI + mac[3:] if mac[:3] == OUI else mac


def _clear_ipv4(frame: bytes, start: int) -> bytes:
    frame = _clear_header(frame, start)
    if len(frame) > start + 20 and frame[start + 9] == 1:
        at = start + (frame[start] & 15) * 4
        if len(frame) > at and frame[at] in _ERRORS:
            frame = _clear_header(frame, at + 8)
    return frame


def _clear_header(frame: bytes, at: int) -> bytes:
    """Clear the bit of the IPv4 header at `at`, if one is there, and bring its checksum up to date (RFC 1624)."""
    if len(frame) < at + 12 or frame[at] >> 4 != 4 or not frame[at + 6] & _RESERVED:
        return frame
    total = (~(frame[at + 10] << 8 | frame[at + 11]) & 0xFFFF) + 0x7FFF  # ~m + m', where m' is m without the bit
    value = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    flags = bytes((frame[at + 6] & ~_RESERVED,))
    checksum = bytes((value >> 8, value & 255))
    return frame[: at + 6] + flags + frame[at + 7 : at + 10] + checksum + frame[at + 12 :]
