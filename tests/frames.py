"""Frames for the tests of packet/ and codec/: written byte by byte, without the package, so that they can be wrong.

`session(rng, n)` gives records as captures hold them, hostile ones among them: few hosts and ports, so that flows meet
again; sequence numbers near each other; lengths that lie; frames cut anywhere; clocks that step back.
"""

import importlib.util
import os
import random
import sys
from pathlib import Path
from types import ModuleType

from hypothesis import settings

from netssmd.codec import vocab as v
from netssmd.codec.context import NO_EXTENT
from netssmd.codec.decoder import Decoder, Recorded
from netssmd.codec.encoder import Encoded, Encoder
from netssmd.codec.vocab import Vocabulary
from netssmd.learn.codec import what_is_left
from netssmd.packet.difference import first_difference
from netssmd.packet.render import render

settings.register_profile("unhurried", deadline=None)  # machines are shared: a slow example is no failure
settings.load_profile("unhurried")

ROOT = Path(__file__).parents[1]
CAPTURES = Path(os.environ.get("NETSSMD_CAPTURES", ROOT.parent / "shared" / "captures"))

Record = tuple[int, bytes, int]

HOSTS4 = [bytes([10, 0, 0, i]) for i in (1, 2, 3)] + [b"\xe0\x00\x00\xfb", b"\xff" * 4]
HOSTS6 = [b"\x20\x01" + bytes(13) + bytes([i]) for i in (1, 2)] + [b"\xff\x02" + bytes(13) + b"\x01"]


def random_tokens() -> ModuleType:
    """tools/random_tokens.py, whose checks the tests use too."""
    name = "random_tokens"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / "random_tokens.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def word(value: int) -> bytes:
    return (value & 0xFFFF).to_bytes(2, "big")


def mac(address: bytes) -> bytes:
    return b"\x02\x00" + address[-4:]


def internet_checksum(data: bytes) -> int:
    """RFC 1071, as its section 4.1 writes it."""
    total = sum(int.from_bytes(data[i : i + 2].ljust(2, b"\0"), "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(
    src: bytes, dst: bytes, protocol: int, payload: bytes, *, ident: int = 1, flags: int = 2, offset: int = 0,
    options: bytes = b"", ttl: int = 64, tos: int = 0, total_length: int | None = None, checksum: int | None = None,
) -> bytes:  # fmt: skip
    header_len = 20 + len(options)
    total = header_len + len(payload) if total_length is None else total_length
    head = bytes([0x40 | header_len // 4, tos]) + word(total) + word(ident)
    head += word(flags << 13 | offset >> 3) + bytes([ttl, protocol])
    right = internet_checksum(head + src + dst + options)
    return head + word(right if checksum is None else checksum) + src + dst + options + payload


def ipv6(
    src: bytes, dst: bytes, protocol: int, payload: bytes, *, tos: int = 0, label: int = 0, hops: int = 64,
    chain: bytes = b"", first: int | None = None, payload_length: int | None = None,
) -> bytes:  # fmt: skip
    length = len(chain) + len(payload) if payload_length is None else payload_length
    head = (6 << 28 | tos << 20 | label).to_bytes(4, "big") + word(length)
    return head + bytes([protocol if first is None else first, hops]) + src + dst + chain + payload


def tcp(
    sport: int, dport: int, flags: int, seq: int, ack: int, *, window: int = 502, options: bytes = b"",
    payload: bytes = b"", urgent: int = 0,
) -> bytes:  # fmt: skip
    head = word(sport) + word(dport) + seq.to_bytes(4, "big") + ack.to_bytes(4, "big")
    head += word((20 + len(options)) // 4 << 12 | flags) + word(window) + word(0x1234) + word(urgent)
    return head + options + payload


def udp(sport: int, dport: int, payload: bytes, length: int | None = None) -> bytes:
    return word(sport) + word(dport) + word(8 + len(payload) if length is None else length) + word(0xBEEF) + payload


def ethernet(src: bytes, dst: bytes, packet: bytes, tags: bytes = b"") -> bytes:
    ethertype = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
    return mac(dst) + mac(src) + tags + ethertype + packet


def arp(src: bytes, dst: bytes, operation: int, sender: bytes, target: bytes) -> bytes:
    body = b"\x00\x01\x08\x00\x06\x04" + word(operation) + sender + src + target + dst
    return (b"\xff" * 6 if operation == 1 else mac(dst)) + mac(src) + b"\x08\x06" + body


# --- at random --------------------------------------------------------------------------------------------------------


def _tcp_options(rng: random.Random) -> bytes:
    number = rng.choice([0, 1000, 1001, rng.getrandbits(32)]).to_bytes(4, "big")
    blocks = rng.randrange(1, 4)
    edges = b"".join(rng.choice([1000, 2460, 3920, rng.getrandbits(32)]).to_bytes(4, "big") for _ in range(2 * blocks))
    return rng.choice([
        b"", b"", b"",
        b"\x01\x01\x08\x0a" + number + b"\0\0\x03\xe8",
        b"\x01\x01\x08\x0a" + number + bytes(4),
        bytes.fromhex("020405b40402080a") + number + bytes(4) + bytes.fromhex("01030307"),
        b"\x01\x01\x05" + bytes([2 + 8 * blocks]) + edges,
        rng.randbytes(4 * rng.randrange(11)),
        bytes.fromhex("020405b4"),
    ])  # fmt: skip


def _payload(rng: random.Random, most: int) -> bytes:
    length = rng.choice([0, 0, 0, 1, 5, 12, 100, 1440, 1448, 1460, 1472, 2920, 4380, rng.randrange(3000)])
    if rng.random() < 0.02:
        length = rng.randrange(66_000)
    length = min(length, most)
    return bytes(length) if rng.random() < 0.5 else rng.randbytes(length)


def _tcp_segment(rng: random.Random) -> bytes:
    flags = rng.choice([2, 2, 0x12, 0x12, 0x10, 0x10, 0x10, 0x18, 0x11, 4, 0x14, 0xC2, rng.getrandbits(12)])
    numbers = [0, 1000, 1001, 1002, 1012, 2460, 2461, 2462, 3920, 3921, 3922, rng.getrandbits(32)]
    ack = rng.choice(numbers) if flags & 16 or rng.random() < 0.1 else 0
    ports = rng.choice([(40_000, 80), (80, 40_000), (40_000, 443), (443, 443), (1234, 40_000)])
    options = _tcp_options(rng)
    window, urgent = rng.choice([64_240, 502, 0, rng.getrandbits(16)]), rng.choice([0, 0, 0, 7])
    payload = _payload(rng, 65_400 - len(options))
    return tcp(*ports, flags, rng.choice(numbers), ack, window=window, options=options, payload=payload, urgent=urgent)


def _udp_datagram(rng: random.Random) -> bytes:
    payload = _payload(rng, 65_000)
    length = 8 + len(payload)
    if rng.random() < 0.3:
        length = rng.choice([length + rng.randrange(3000), rng.getrandbits(16), 2 * 1480 + 48, 65_535, 65_520])
    return udp(rng.choice([53, 5000, 1]), rng.choice([53, 5000, 1]), payload, length)


def _icmp_message(rng: random.Random) -> bytes:
    kinds = [(8, 0), (0, 0), (3, 3), (3, 1), (11, 0), (128, 0), (129, 0), (135, 0), (1, 4), (5, 1)]
    code = rng.choice([*kinds, (rng.getrandbits(8), rng.getrandbits(8))])
    rest = rng.choice([0, 0x10001, 0x10002, 0x10003, rng.getrandbits(32)]).to_bytes(4, "big")
    return bytes(code) + rng.randbytes(2) + rest + _payload(rng, 65_000)


def frame(rng: random.Random) -> bytes:
    """One whole frame."""
    which = rng.random()
    if which < 0.05:
        src, dst = rng.choice(HOSTS4), rng.choice(HOSTS4)
        sender = rng.choice([mac(src), mac(src), rng.randbytes(6)])
        target = rng.choice([bytes(6), mac(dst), rng.randbytes(6)])
        return arp(src, dst, rng.choice([1, 1, 2, 2, 3, 4, 5, 8, 0]), sender, target) + bytes(rng.choice([0, 18]))
    is6 = rng.random() < 0.25
    hosts = HOSTS6 if is6 else HOSTS4
    src, dst = rng.choice(hosts), rng.choice(hosts)
    flags, offset = rng.choice([2, 2, 0, 4, 6]), 0
    if which < 0.5:
        protocol, payload = 6, _tcp_segment(rng)
    elif which < 0.75:
        protocol, payload = 17, _udp_datagram(rng)
        if rng.random() < 0.3:
            flags = rng.choice([1, 1, 1, 3, 5])
        if rng.random() < 0.3:
            flags, offset = rng.choice([0, 1, 2]), rng.choice([1480, 2960, 8, 4440, 65_528])
    elif which < 0.9:
        protocol, payload = 58 if is6 != (rng.random() < 0.05) else 1, _icmp_message(rng)
        flags = 1 if rng.random() < 0.1 else flags
    else:
        protocol = rng.choice([2, 47, 50, 6, 17, 1, 132, 58, rng.getrandbits(8)])
        payload = rng.randbytes(rng.randrange(50)) if rng.random() < 0.7 else bytes(rng.randrange(50))
        if rng.random() < 0.3:
            flags, offset = rng.choice([0, 1]), rng.choice([8, 1480])
    lie = rng.getrandbits(16) if rng.random() < 0.03 else None
    if is6:
        chain, first = b"", None
        if rng.random() < 0.2:
            chain, first = bytes([protocol]) + bytes(7), rng.choice([0, 60, 43])
        elif rng.random() < 0.1:
            chain, first = bytes([protocol, 0]) + word(rng.choice([0, 1, 8, 9])) + rng.randbytes(4), 44
        packet = ipv6(src, dst, protocol, payload, tos=rng.choice([0, 0, 0x20]), hops=rng.choice([64, 255]),
                      label=rng.choice([0, 0, 5, rng.getrandbits(20)]), chain=chain, first=first,
                      payload_length=lie)  # fmt: skip
    else:
        options = b"" if rng.random() < 0.9 else rng.randbytes(4 * rng.randrange(1, 11))
        payload = payload[: 65_535 - 20 - len(options)]
        packet = ipv4(src, dst, protocol, payload, ident=rng.choice([0, 1, 2, rng.getrandbits(16)]), flags=flags,
                      offset=offset, options=options, ttl=rng.choice([64, 64, 128]), tos=rng.choice([0, 0, 0, 2, 16]),
                      total_length=lie, checksum=rng.getrandbits(16) if rng.random() < 0.05 else None)  # fmt: skip
    tags = rng.choice([b"\x81\x00\x00\x05", b"\x88\xa8\x00\x06\x81\x00\x00\x05"]) if rng.random() < 0.06 else b""
    data = ethernet(src, dst, packet, tags)
    padding = max(0, 60 - len(data)) if rng.random() < 0.4 else 0
    return data + (bytes(padding) if rng.random() < 0.8 else rng.randbytes(padding))


def record(rng: random.Random, snaplen: int = 128) -> tuple[bytes, int]:
    """One frame as it was captured: whole, cut at the snaplen or anywhere, with a flipped byte, or noise."""
    data = frame(rng) if rng.random() < 0.98 else rng.randbytes(rng.randrange(80))
    if rng.random() < 0.03 and data:
        at = rng.randrange(min(len(data), 60))
        data = data[:at] + rng.randbytes(1) + data[at + 1 :]
    orig_len = len(data) + (rng.randrange(100) if rng.random() < 0.03 else 0)
    cut = rng.random()
    data = data[:snaplen] if cut < 0.4 else data[: rng.randrange(100)] if cut < 0.5 else data
    return data, orig_len


def session(rng: random.Random, packets: int, snaplen: int = 128) -> list[Record]:
    now_ns = rng.randrange(10**18)
    out: list[Record] = []
    for _ in range(packets):
        now_ns += rng.choice([0, 1, 511, 512, 1000, rng.randrange(10**6), rng.randrange(10**10), -5, -3000])
        if rng.random() < 0.01:
            now_ns += rng.randrange(1 << 46)
        out.append((now_ns, *record(rng, snaplen)))
    return out


# --- there and back ---------------------------------------------------------------------------------------------------


def encode(
    packets: list[Record], vocabulary: Vocabulary, max_flows: int = v.MAX_FLOWS, known: Encoded | None = None
) -> Encoded:
    encoder = Encoder(vocabulary, None, max_flows, known)
    for packet in packets:
        encoder.packet(*packet)
    encoder.end()
    return encoder.encoded


def check_exact(packets: list[Record], vocabulary: Vocabulary, max_flows: int = v.MAX_FLOWS) -> Encoded:
    """Encode and decode, and hold the decoder against the encoder at every token: field, limit, features, packet; also
    where it is told how much the session and its flows are to be."""
    check_told(packets, vocabulary, max_flows)
    return check_encoded(packets, encode(packets, vocabulary, max_flows), vocabulary, max_flows)


def check_told(packets: list[Record], vocabulary: Vocabulary, max_flows: int = v.MAX_FLOWS) -> Encoded:
    """Likewise, with the flows' extents in tokens, and what is left of the session in the features."""
    encoded = encode(packets, vocabulary, max_flows, encode(packets, vocabulary, max_flows))
    total, duration_ns, flows = encoded.progress[-3:]
    left = what_is_left(encoded, vocabulary).tolist()
    width, at = v.STAGE_FEATURES, v.LEFT - 1
    for stage, rows in enumerate(left):
        encoded.features[stage * width + at : stage * width + at + len(rows)] = rows
    return check_encoded(packets, encoded, vocabulary, max_flows, (total, max(0, duration_ns), flows))


def check_encoded(
    packets: list[Record],
    encoded: Encoded,
    vocabulary: Vocabulary,
    max_flows: int,
    extent: tuple[int, int, int] = NO_EXTENT,
) -> Encoded:
    source = Recorded(encoded.identities)
    decoder = Decoder(vocabulary, source, encoded.start_ns, max_flows=max_flows, extent=extent)
    width = v.STAGE_FEATURES
    now_ns, at = encoded.start_ns, 0
    for token, limit, stage in zip(encoded.tokens, encoded.limits, encoded.stages, strict=True):
        number = vocabulary.field_of(token)
        entry = vocabulary.fields[number]
        tail = entry.lo + entry.size - entry.tail
        floor, most = entry.lo + (decoder.context.who_floor() if number == v.WHO else 0), min(limit, tail)
        if number == v.WHO and decoder.context.is_complete():
            most = entry.lo + 1
        assert decoder.lo == floor <= token, f"packet {at}: {entry.name} where the decoder asks for another field"
        assert decoder.hi == most, f"packet {at}: limits of {entry.name} differ"
        assert token < most or token >= tail, f"packet {at}: {entry.name}:{token - entry.lo} was not legal"
        expected = vocabulary.feature_rows(number, encoded.features[stage * width : (stage + 1) * width])
        assert decoder.features == expected, f"packet {at}: features differ"
        decoded = decoder.feed(token)
        if decoded is not None:
            now_ns += decoded.gap_ns
            data, orig_len = render(decoded.headers)
            back = (now_ns, data[: decoded.headers.captured_len], orig_len)
            assert first_difference(packets[at], back) is None, f"packet {at}: {first_difference(packets[at], back)}"
            at += 1
    assert at == len(packets) and decoder.ended
    try:
        source.residual()
    except IndexError:
        return encoded
    raise AssertionError("identities were left over")
