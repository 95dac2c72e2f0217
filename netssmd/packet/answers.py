"""What a DNS answer names: the addresses in a message, and nothing else of it.

In: the bytes of a UDP payload. Out: the addresses of its A and AAAA answers. Any bytes are data: where a message stops
making sense, what was read so far is the answer. Source: RFC 1035 section 4, RFC 3596.
"""

from __future__ import annotations

from typing import Final

DNS_PORT: Final = 53
_A: Final = 1
_AAAA: Final = 28
_MAX_RECORDS: Final = 64


def named_addresses(message: bytes) -> list[bytes]:
    """Addresses that a DNS response gives, 4 or 16 bytes each."""
    if len(message) < 12 or not message[2] & 0x80:
        return []
    questions = message[4] << 8 | message[5]
    answers = message[6] << 8 | message[7]
    at = 12
    if questions > _MAX_RECORDS or answers > _MAX_RECORDS:
        return []
    for _ in range(questions):
        at = _after_name(message, at) + 4
    found: list[bytes] = []
    for _ in range(answers):
        at = _after_name(message, at)
        if at + 10 > len(message):
            break
        kind = message[at] << 8 | message[at + 1]
        length = message[at + 8] << 8 | message[at + 9]
        value = message[at + 10 : at + 10 + length]
        if (kind == _A and len(value) == 4) or (kind == _AAAA and len(value) == 16):
            found.append(value)
        at += 10 + length
    return found


def _after_name(message: bytes, at: int) -> int:
    """Where a name ends: behind its zero label or its pointer (RFC 1035 section 4.1.4)."""
    while at < len(message):
        length = message[at]
        if length >= 0xC0:
            return at + 2
        at += 1 + length
        if length == 0:
            break
    return at
