"""IPv4 fragmentation (RFC 791 section 3.2): a frame that is longer than a link takes becomes several that fit.

In: a whole Ethernet frame and the link's MTU. Out: frames in order, or none where that cannot be: what is not IPv4,
what says "don't fragment", what is damaged. The MTU counts from the IP header on, VLAN tags are part of the link
header.
"""

from __future__ import annotations

from typing import Final

from netssmd.packet.wire import checksum

_TAGS: Final = (b"\x81\x00", b"\x88\xa8", b"\x91\x00")
_DONT_FRAGMENT: Final = 0x4000
_MORE_FRAGMENTS: Final = 0x2000
_COPIED: Final = 0x80  # option goes into every fragment
_END, _NO_OPERATION = 0, 1


def link_len(frame: bytes) -> int:
    """Bytes of the link header: addresses, VLAN tags, ethertype."""
    at = 12
    while frame[at : at + 2] in _TAGS:
        at += 4
    return at + 2


def fragments(frame: bytes, mtu: int) -> list[bytes]:
    """The frames that carry `frame` over a link of this MTU; empty if it cannot be carried."""
    start = link_len(frame)
    if len(frame) - start <= mtu:
        return [frame]
    if frame[start - 2 : start] != b"\x08\x00" or len(frame) < start + 20:
        return []
    header_len = (frame[start] & 15) * 4
    total_length = int.from_bytes(frame[start + 2 : start + 4], "big")
    word = int.from_bytes(frame[start + 6 : start + 8], "big")
    if header_len < 20 or not header_len <= total_length <= len(frame) - start or word & _DONT_FRAGMENT:
        return []
    step = (mtu - header_len) // 8 * 8
    if step <= 0:
        return []
    if total_length <= mtu:  # only what stands behind the packet is too long
        return [frame[: start + total_length]]
    first = frame[start : start + header_len]
    later = first[:20] + _copied_options(first[20:])
    payload = frame[start + header_len : start + total_length]
    offset, more_behind = word & 0x1FFF, word & _MORE_FRAGMENTS
    out = []
    for at in range(0, len(payload), step):
        piece = payload[at : at + step]
        more = _MORE_FRAGMENTS if at + step < len(payload) else more_behind
        place = word & 0x8000 | more | offset + at // 8
        out.append(frame[:start] + _header(first if at == 0 else later, len(piece), place) + piece)
    return out


def _header(header: bytes, payload_len: int, place: int) -> bytes:
    """The header with its lengths, flags, offset and checksum set."""
    size = len(header)
    head = (
        bytes((0x40 | size >> 2, header[1])) + (size + payload_len).to_bytes(2, "big") + header[4:6]
        + place.to_bytes(2, "big") + header[8:10]
    )  # fmt: skip
    tail = header[12:]
    return head + checksum(head + tail).to_bytes(2, "big") + tail


def _copied_options(options: bytes) -> bytes:
    """Those whose copied flag is set, filled up to a multiple of four bytes."""
    kept, at = b"", 0
    while at < len(options) and options[at] != _END:
        size = 1 if options[at] == _NO_OPERATION or at + 1 >= len(options) else max(2, options[at + 1])
        if options[at] & _COPIED:
            kept += options[at : at + size]
        at += size
    return kept + bytes(-len(kept) % 4)
