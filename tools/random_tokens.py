"""Draw random tokens within the ranges that the decoder announces and check every packet they make.

    python tools/random_tokens.py [--tokens N] [--seed S] [--mtu BYTES] [--vocabulary FILE]

In: nothing but a seed; the vocabulary is a model's (config.json or vocabulary.json), else a small one made up here.
Out: counts on stdout, by transport and by field; exit code 1 and the tokens of the packet at the first one that is not
well-formed. Well-formed means: every length field right, IPv4, TCP, UDP and ICMP checksums right (summed up here in
another way than the package does it), no longer than the MTU, the same headers when it is read back, and no step back
in time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

from netssmd.codec.decoder import Decoded, Decoder
from netssmd.codec.vocab import FIELD_NAMES, Stack, Vocabulary
from netssmd.packet.render import render
from netssmd.packet.wire import ARP, ICMP, IPV4, IPV6, NOT_IP, OPAQUE, TCP, UDP, Headers, parse

SESSION_TOKENS = (30, 300, 3_000, 20_000)
END_SHARE = 0.001  # a uniform draw would end a session after a handful of packets
COMPARED = (
    "link", "version", "tos", "ident", "ip_flags", "fragment_offset", "ttl", "protocol", "src", "dst", "options",
    "flow_label", "checksum_delta", "transport", "sport", "dport", "seq", "ack", "flags", "window", "urgent",
    "tcp_options", "icmp_type", "icmp_code", "rest", "udp_length_delta", "payload_len", "trailer_len",
)  # fmt: skip
TRANSPORTS = {TCP: "tcp", UDP: "udp", ICMP: "icmp", OPAQUE: "opaque"}


class Malformed(AssertionError):
    """A packet that is not well-formed: what is wrong with it."""


class RandomIdentities:
    """Fresh identities of every class, all from one generator."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def fresh(self) -> bool:
        return True

    def within(self, n: int) -> int:
        return self.rng.randrange(n)

    def residual(self) -> int:
        return 0

    def word(self, bits: int) -> int:
        return self.rng.getrandbits(bits)

    def host(self, version: int, cast: int, role: int) -> tuple[bytes, bytes]:
        rng = self.rng
        if version == IPV6:
            address = (b"\xff\x02" if cast == 1 else b"\x20\x01") + rng.randbytes(14)
        else:
            address = b"\xff" * 4 if cast == 2 else (b"\xef" if cast == 1 else b"\x0a") + rng.randbytes(3)
        return address, b"\xff" * 6 if cast == 2 else b"\x02" + rng.randbytes(5)

    def settle(self, address: bytes, port: int) -> tuple[bytes, bytes]:
        if self.rng.random() < 0.5:  # one of few, so that it often is a host of the session, even the originator
            address = address[:-1] + self.rng.randbytes(1) if port & 1 else address[:1] + bytes(len(address) - 1)
        return address, b"\x02" + self.rng.randbytes(5)

    def port(self, port_class: int) -> int:
        return self.rng.randrange((32768, 1024, 1, 1)[port_class], (61000, 32768, 65536, 1024)[port_class])

    def link(self, default: bytes) -> bytes:
        if self.rng.random() < 0.1:
            return default[:12] + b"\x81\x00\x00\x07" + default[12:]
        return default

    def blob(self, n: int) -> bytes:
        return bytes(n)


def check(decoded: Decoded, mtu: int) -> None:
    """Raise Malformed if the packet is not well-formed."""
    headers = decoded.headers
    data, orig_len = render(headers)
    if decoded.gap_ns < 0:
        raise Malformed(f"time goes back by {-decoded.gap_ns} ns")
    if headers.version == NOT_IP:
        raise Malformed("neither ARP nor IP")
    if len(data) != orig_len:
        raise Malformed(f"{len(data)} bytes rendered, {orig_len} told")
    if headers.version == ARP:
        if len(headers.body) != 28 or parse(data, orig_len).body[:28] != headers.body:
            raise Malformed("an ARP packet that cannot be read back")
        return
    if orig_len - len(headers.link) > max(mtu, 46):
        raise Malformed(f"{orig_len - len(headers.link)} bytes of IP exceed the MTU")
    back = parse(data, orig_len)
    for name in COMPARED:
        if getattr(back, name) != getattr(headers, name):
            raise Malformed(f"{name} is {getattr(headers, name)!r}, read back {getattr(back, name)!r}")
    if headers.trailer_len < 0 or headers.checksum_delta:
        raise Malformed("the IP header lies")
    if headers.udp_length_delta and not headers.ip_flags & 1:
        raise Malformed("the UDP length lies")
    check_sums(headers, data[len(headers.link) : orig_len - headers.trailer_len])


def check_sums(headers: Headers, packet: bytes) -> None:
    """Ones' complement sums over everything that a checksum covers, its own field included, are all ones (RFC 1071)."""
    header_len = (packet[0] & 15) * 4 if headers.version == IPV4 else 40 + max(0, len(headers.options) - 1)
    if headers.version == IPV4 and int.from_bytes(packet[:header_len], "big") % 0xFFFF:
        raise Malformed("IPv4 checksum")
    if headers.transport == OPAQUE:
        return
    covered = packet[header_len:]
    if headers.transport != ICMP or headers.version == IPV6:
        length = len(covered) + headers.udp_length_delta
        covered = headers.src + headers.dst + length.to_bytes(4, "big") + headers.protocol.to_bytes(4, "big") + covered
    if int.from_bytes(covered + bytes(len(covered) & 1), "big") % 0xFFFF:
        raise Malformed(f"{TRANSPORTS[headers.transport]} checksum")


def made_up_vocabulary() -> Vocabulary:
    """Dictionaries as captures give them, small ones, and some that no capture would give."""
    plain = bytes.fromhex("020405b40402080a000000000000000001030307")
    stacks = (
        Stack(plain, 64240, 64, 0, 2, False),
        Stack(bytes.fromhex("020405b401030308"), 65535, 128, 0, 2, True),
        Stack(b"", 1024, 50, 0, 0, False),
        Stack(bytes.fromhex("02040000"), 0, 255, 255, 6, True),
        Stack(b"\xff" * 40, 1, 1, 1, 4, False),
    )
    return Vocabulary(("lab",), stacks, (0, 1, 40, 517, 1440, 9000, 65535), (0, 502, 65535), (53, 80, 443))


def read_vocabulary(path: Path) -> Vocabulary:
    document = json.loads(path.read_text())
    return Vocabulary.from_json(document.get("codec", document))


def draw(vocabulary: Vocabulary, tokens: int, seed: int, mtu: int) -> tuple[Counter[str], Counter[str]]:
    """Draw at least `tokens` tokens. Return counts of what was made, and of the tokens by field."""
    rng = random.Random(seed)
    fields: Counter[int] = Counter()
    made: Counter[str] = Counter()
    drawn = 0
    while drawn < tokens:
        decoder = Decoder(vocabulary, RandomIdentities(rng), 0, mtu)
        made["sessions"] += 1
        packet: list[int] = []
        for _ in range(rng.choice(SESSION_TOKENS)):
            lo, hi = decoder.lo, decoder.hi
            if not lo < hi:
                raise Malformed("nothing may be drawn")
            token = rng.randrange(lo, hi)
            if token == vocabulary.end and rng.random() >= END_SHARE:
                token = rng.randrange(lo + 1, hi)
            decoded = decoder.feed(token)
            drawn += 1
            packet.append(token)
            fields[lo] += 1
            if decoder.ended:
                break
            if decoded is None:
                continue
            made["packets"] += 1
            made["arp" if decoded.headers.version == ARP else TRANSPORTS[decoded.headers.transport]] += 1
            try:
                check(decoded, mtu)
            except Malformed as error:
                names = vocabulary.token_names()
                raise Malformed(f"{error}: {' '.join(names[token] for token in packet)}") from None
            packet.clear()
    made["tokens"] = drawn
    return made, Counter({FIELD_NAMES[vocabulary.field_of(lo)]: n for lo, n in fields.items()})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mtu", type=int, default=1500)
    parser.add_argument("--vocabulary", type=Path, help="a model's config.json, or a data folder's vocabulary.json")
    options = parser.parse_args()
    vocabulary = read_vocabulary(options.vocabulary) if options.vocabulary else made_up_vocabulary()
    begun = time.perf_counter()
    try:
        made, fields = draw(vocabulary, options.tokens, options.seed, options.mtu)
    except Malformed as error:
        print(f"malformed: {error}", file=sys.stderr)
        return 1
    seconds = time.perf_counter() - begun
    print(
        f"{made.pop('tokens'):,} tokens, {made.pop('packets'):,} packets, "
        f"{made.pop('sessions'):,} sessions, 0 malformed"
    )
    print("packets: " + ", ".join(f"{name} {count:,}" for name, count in made.most_common()))
    print("tokens: " + ", ".join(f"{name} {count:,}" for name, count in fields.most_common()))
    print(f"{options.tokens / seconds:,.0f} tokens/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
