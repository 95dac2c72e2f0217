"""nPrint: a packet's headers as columns of bits, each 0, 1 or absent (-1), most significant bit first.

    ipv4 480 | ipv6 320 | tcp 480 | udp 64 | icmp 64        bits; as long as the header can be

The layout is that of Holland et al., "New directions in automated traffic analysis" (CCS 2021), with IPv6 between. A
header that the packet does not have, and option bytes beyond its end, are absent. In: frames and what
`packet.wire.parse` says of them. Out: `Prints`, rows of bytes and how much of each region is there; `bits` makes
columns of them. A `Tally` is what Table 2 of the paper needs of a capture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from netssmd.packet.wire import ICMP, IPV4, IPV6, TCP, UDP, Headers


class Region(NamedTuple):
    """A header's place in a row: name, its fields as (name, bits) in order, first byte, bytes."""

    name: str
    fields: tuple[tuple[str, int], ...]
    first: int
    size: int


_LAYOUT: dict[str, str] = {
    "ipv4": "ver4 hl4 tos8 tl16 id16 rbit1 dfbit1 mfbit1 foff13 ttl8 proto8 cksum16 src32 dst32 opt320",
    "ipv6": "ver4 tc8 fl20 len16 nh8 hl8 src128 dst128",
    "tcp": "sprt16 dprt16 seq32 ackn32 doff4 res3 ns1 cwr1 ece1 urg1 ackf1 psh1 rst1 syn1 fin1 wsize16 cksum16 urp16 "
    "opt320",
    "udp": "sport16 dport16 len16 cksum16",
    "icmp": "type8 code8 cksum16 roh32",
}  # fmt: skip


def _regions() -> tuple[Region, ...]:
    regions, first = [], 0
    for name, text in _LAYOUT.items():
        fields = []
        for word in text.split():
            digits = len(word) - len(word.rstrip("0123456789"))
            fields.append((word[:-digits], int(word[-digits:])))
        size = sum(width for _, width in fields) // 8
        regions.append(Region(name, tuple(fields), first, size))
        first += size
    return tuple(regions)


REGIONS = _regions()
REGION = {region.name: region for region in REGIONS}
WIDTH = sum(region.size for region in REGIONS)  # bytes of a row

# What is different in any two captures whatever they do: addresses, ports, numbers that start at random, checksums, and
# the distance that TTL counts. Scores come with and without these columns.
VOLATILE = {
    "ipv4": ("id", "ttl", "cksum", "src", "dst"),
    "ipv6": ("fl", "hl", "src", "dst"),
    "tcp": ("sprt", "dprt", "seq", "ackn", "cksum"),
    "udp": ("sport", "dport", "cksum"),
    "icmp": ("cksum", "roh"),
}


def columns(regions: Sequence[str] = tuple(_LAYOUT), volatile: bool = True) -> Any:
    """Indices of the bit columns of some regions, with or without the volatile fields."""
    chosen: list[int] = []
    for name in regions:
        region = REGION[name]
        at = 8 * region.first
        for field, width in region.fields:
            if volatile or field not in VOLATILE[name]:
                chosen.extend(range(at, at + width))
            at += width
    return np.array(chosen, dtype=np.int64)


def names() -> list[str]:
    """Such as tcp_syn_0 or ipv4_src_31, one for each bit column."""
    return [f"{r.name}_{field}_{bit}" for r in REGIONS for field, width in r.fields for bit in range(width)]


@dataclass(frozen=True, slots=True)
class Prints:
    """Packets as rows: `data` uint8 [n, WIDTH], zero where absent; `there` uint8 [n, regions], bytes present."""

    data: Any
    there: Any

    def present(self) -> Any:
        """bool [n, WIDTH]: is the byte there?"""
        parts = [np.arange(region.size)[None, :] < self.there[:, i, None] for i, region in enumerate(REGIONS)]
        return np.concatenate(parts, axis=1)

    def bits(self) -> Any:
        """int8 [n, 8 * WIDTH]: 0, 1, or -1 where absent."""
        values = np.unpackbits(self.data, axis=1).astype(np.int8)
        values[~np.repeat(self.present(), 8, axis=1)] = -1
        return values


_TRANSPORT = {TCP: "tcp", UDP: "udp", ICMP: "icmp"}
_INDEX = {region.name: i for i, region in enumerate(REGIONS)}


class Printer:
    """Collects packets one by one, at most `limit` (None: all)."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._rows: list[bytes] = []
        self._there: list[bytes] = []

    def add(self, data: bytes, headers: Headers) -> None:
        """A frame as captured; its headers as parsed. What was cut off is absent."""
        if self._limit is not None and len(self._rows) >= self._limit:
            return
        row, there = bytearray(WIDTH), bytearray(len(REGIONS))
        if headers.version in (IPV4, IPV6):
            start = len(headers.link)
            if headers.version == IPV4:
                end = start + 20 + len(headers.options)
                self._put(row, there, "ipv4", data[start:end])
            else:
                end = start + 40 + max(0, len(headers.options) - 1)
                self._put(row, there, "ipv6", data[start : start + 40])
            name = _TRANSPORT.get(headers.transport)
            if name:
                size = 20 + len(headers.tcp_options) if name == "tcp" else 8
                self._put(row, there, name, data[end : end + size])
        self._rows.append(bytes(row))
        self._there.append(bytes(there))

    def _put(self, row: bytearray, there: bytearray, name: str, header: bytes) -> None:
        region = REGION[name]
        header = header[: region.size]
        row[region.first : region.first + len(header)] = header
        there[_INDEX[name]] = len(header)

    def prints(self) -> Prints:
        n = len(self._rows)
        data = np.frombuffer(b"".join(self._rows), np.uint8).reshape(n, WIDTH)
        return Prints(data, np.frombuffer(b"".join(self._there), np.uint8).reshape(n, len(REGIONS)))


@dataclass(frozen=True, slots=True)
class Tally:
    """How often each byte of the row had each value, for the pairs that occur: keys int32, 257 * byte + value (256:
    absent), and counts int32."""

    keys: Any
    counts: Any

    @classmethod
    def of(cls, prints: Prints) -> Tally:
        values = np.where(prints.present(), prints.data, np.int32(256)) + 257 * np.arange(WIDTH, dtype=np.int32)
        keys, counts = np.unique(values, return_counts=True)
        return cls(keys.astype(np.int32), counts.astype(np.int32))


def byte_shares(tallies: Sequence[Tally]) -> Any:
    """float [WIDTH, 257]: shares of the values of each byte over the packets of all, the last for absent."""
    keys, counts = (np.concatenate([getattr(t, name) for t in tallies]) for name in ("keys", "counts"))
    table = np.bincount(keys, counts, 257 * WIDTH).reshape(WIDTH, 257)
    return table / table.sum(axis=1, keepdims=True)


_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(float)  # [value, bit]


def bit_shares(by_byte: Any) -> Any:
    """float [8 * WIDTH, 3]: shares of 0, 1 and absent in each bit column, from those of the bytes."""
    ones = (by_byte[:, :256] @ _ONES).ravel()
    absent = np.repeat(by_byte[:, 256], 8)
    return np.stack((np.clip(1 - ones - absent, 0, 1), ones, absent), axis=1)
