"""Who has which address, and the DNS server that says so.

A name's address follows from the name and the session's salt, so that both sides know it without a word: 198.18.0.0/15
and 2001:2::/48, the ranges for benchmarking (RFC 2544, RFC 5180). Every name under `test.` exists but those that begin
with `nx`. A share of the names are aliases of a content network's. Answers come at once where a cache would have them,
else after what a recursive resolver takes.

Sources: RFC 1035 (messages), RFC 3596 (AAAA), RFC 6891 (EDNS), RFC 2308 (no such name, no such data).
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import struct
from dataclasses import dataclass

A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, OPT, HTTPS = 1, 2, 5, 6, 12, 15, 16, 28, 33, 41, 65
NXDOMAIN = 3
V4, V6 = int(ipaddress.IPv4Address("198.18.0.0")), int(ipaddress.IPv6Address("2001:2::"))
V4_SPAN = (1 << 17) - 512  # the last two /24 are the provider's own
PROVIDER_DNS = {4: "198.19.255.53", 6: "2001:2:0:ffff::53"}
ALIASES, UNCACHED = 0.35, 0.3  # shares of names: site operators use content networks; what a home's cache misses


@dataclass(frozen=True, slots=True)
class Names:
    """The addresses of a session. `v6`: do names have an AAAA, too?"""

    salt: str
    v6: bool = False

    def hash(self, name: str, what: str = "") -> int:
        return int.from_bytes(hashlib.blake2b(f"{self.salt}/{what}/{name}".encode(), digest_size=8).digest(), "big")

    def share(self, name: str, what: str) -> float:
        """A number in [0, 1) that belongs to the name."""
        return self.hash(name, what) / 2**64

    def v4(self, name: str) -> str:
        return str(ipaddress.IPv4Address(V4 + 256 + self.hash(name) % (V4_SPAN - 256)))

    def v6_of(self, name: str) -> str:
        return str(ipaddress.IPv6Address(V6 + (1 << 64) + self.hash(name) % (1 << 62)))

    def all(self, name: str) -> list[str]:
        return [self.v4(name), *([self.v6_of(name)] if self.v6 else [])]

    def alias(self, name: str) -> str | None:
        """The name that this one stands for."""
        if self.share(name, "alias") >= ALIASES or name.count(".") < 2:
            return None
        return f"{name.split('.')[0]}-{self.hash(name, 'cdn') % 100}.edge{self.hash(name, 'edge') % 9}.cdn-net.test"


def encode_name(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.rstrip(".").split(".") if part) + b"\0"


def question(query: bytes) -> tuple[str, int, int]:
    """(name, type, offset behind it) of a query's question. Raises IndexError or ValueError for what is none."""
    parts, at = [], 12
    while length := query[at]:
        if length > 63:
            raise ValueError("a compressed question")
        parts.append(query[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    kind, _ = struct.unpack_from("!HH", query, at + 1)
    return ".".join(parts).lower(), kind, at + 5


def records(names: Names, name: str, kind: int) -> tuple[list[tuple[str, int, int, bytes]], int]:
    """((owner, type, TTL in seconds, data) of the answer, response code)."""
    if name.endswith("in-addr.arpa"):
        return [(name, PTR, 3600, encode_name(f"host{names.hash(name) % 997}.corp.test"))] if kind == PTR else [], 0
    if not name.endswith(".test") or name.startswith("nx"):
        return [], NXDOMAIN
    out: list[tuple[str, int, int, bytes]] = []
    ttl = (20, 60, 300, 3600)[names.hash(name, "ttl") % 4]
    alias = names.alias(name)
    owner = name
    if alias and kind in (A, AAAA, CNAME, HTTPS):
        out.append((name, CNAME, ttl, encode_name(alias)))
        owner = alias
    if kind == A:
        out.append((owner, A, ttl, ipaddress.IPv4Address(names.v4(name)).packed))
        if names.share(name, "two") < 0.15:
            out.append((owner, A, ttl, ipaddress.IPv4Address(names.v4(name)).packed))
    elif kind == AAAA and names.v6:
        out.append((owner, AAAA, ttl, ipaddress.IPv6Address(names.v6_of(name)).packed))
    elif kind == TXT:
        text = b"v=spf1 include:_spf.mail.test ~all"
        out += [(name, TXT, ttl, bytes([len(text)]) + text)] * (1 + names.hash(name, "txt") % 4)
    elif kind == MX:
        out += [(name, MX, ttl, struct.pack("!H", 10 * i) + encode_name(f"mx{i}.mail.test")) for i in (1, 2)]
    elif kind == SRV and names.share(name, "srv") < 0.5:
        out.append((name, SRV, ttl, struct.pack("!HHH", 10, 50, 5060) + encode_name(f"srv1.{name.split('.', 1)[-1]}")))
    return out, 0


def answer(names: Names, query: bytes, room: int = 1232) -> bytes:
    """The response to a query (RFC 1035 4.1); b"" for what is no query. `room`: bytes, beyond which it is truncated."""
    try:
        name, kind, end = question(query)
        number, flags, _, _, _, extra = struct.unpack_from("!6H", query)
    except (IndexError, ValueError, struct.error):
        return b""
    found, code = records(names, name, kind)
    edns = extra and query[end : end + 3] == b"\0\0\x29"
    body = b""
    for owner, of, ttl, data in found:
        pointer = b"\xc0\x0c" if owner == name else encode_name(owner)
        body += pointer + struct.pack("!HHIH", of, 1, ttl, len(data)) + data
    authority = 0
    if not found and names.hash("soa", "style") % 2:
        zone = encode_name("test")
        data = encode_name("ns1.test") + encode_name("hostmaster.test") + struct.pack("!5I", 2026, 7200, 900, 86400, 60)
        body, authority = zone + struct.pack("!HHIH", SOA, 1, 60, len(data)) + data, 1
    tail = b"\0" + struct.pack("!HHIH", OPT, 1232, 0, 0) if edns else b""
    truncated = end + len(body) + len(tail) > (room if edns else min(room, 512))
    if truncated:
        body, found, authority = b"", [], 0
    flags = 0x8080 | (flags & 0x0100) | (0x0200 if truncated else 0) | code
    header = struct.pack("!6H", number, flags, 1, len(found), authority, bool(edns))
    return header + query[12:end] + body + tail


class DnsServer(asyncio.DatagramProtocol):
    """Answers on UDP, each query in its own time."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.asked: set[bytes] = set()  # questions that are in the cache by now

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if not (reply := answer(self.names, data)):
            return
        key = data[12:]
        loop, seconds = asyncio.get_running_loop(), self.seconds(key)
        self.asked.add(key)
        loop.call_later(seconds, self.transport.sendto, reply, address)  # type: ignore[attr-defined]

    def seconds(self, key: bytes) -> float:
        """A cache answers within a millisecond; a resolver that has to ask takes some round trips."""
        text = key.hex()
        if key in self.asked or self.names.share(text, "miss") >= UNCACHED:
            return 0.0002 + 0.001 * self.names.share(text, "hit")
        return 0.005 + 0.08 * self.names.share(text, "slow") ** 3


async def serve_stream(names: Names, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """DNS over TCP (RFC 7766), for answers that were truncated."""
    try:
        while True:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            reply = answer(names, await reader.readexactly(length), room=65_000)
            writer.write(struct.pack("!H", len(reply)) + reply)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
