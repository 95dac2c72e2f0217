"""The byte codec: what is kept of a packet, packets back from tokens, and what a model may write that is no packet."""

from __future__ import annotations

import random

import frames
import pytest
from byte_models import LABELS, talk
from hypothesis import given, settings
from hypothesis import strategies as st

from netssmd.codec.byte_vocab import LAYOUTS, ByteVocabulary
from netssmd.codec.bytes import (
    REASONS,
    ByteDecoder,
    ByteEncoder,
    block,
    from_text,
    malformed_text,
    observe_timing,
    to_text,
)
from netssmd.codec.kinds import KINDS
from netssmd.codec.timing import SampledGaps, Timing
from netssmd.engine.identities import FreshIdentities
from netssmd.engine.plan import address_plan
from netssmd.engine.sampling import Stream
from netssmd.packet.pcap import Packet
from netssmd.packet.render import render
from netssmd.packet.wire import parse

A, B = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
SIX = bytes.fromhex("20010db8000000000000000000000001"), bytes.fromhex("20010db8000000000000000000000002")
DNS = bytes.fromhex("123401000001000000000000") + b"\x07example\x03com\0\0\x01\0\x01"


def gaps() -> SampledGaps:
    return SampledGaps(Timing([1_000]), Stream(1))


def encoder(packets, packet_bytes: int = 94, framed: bool = True, protocols: tuple[str, ...] = ()) -> ByteEncoder:
    found = ByteEncoder(ByteVocabulary.make(LABELS, packet_bytes, protocols, framed))
    for packet in packets:
        found.packet(*packet)
    return found


def frame(packet: bytes, a: bytes = A, b: bytes = B) -> Packet:
    data = frames.ethernet(a, b, packet)
    return Packet(0, data, len(data))


def udp(payload: bytes = DNS, sport: int = 40000, dport: int = 53) -> Packet:
    return frame(frames.ipv4(A, B, 17, frames.udp(sport, dport, payload)))


def tcp(payload: bytes = b"", options: bytes = b"", **ip) -> Packet:
    return frame(frames.ipv4(A, B, 6, frames.tcp(1, 2, 16, 3, 4, options=options, payload=payload), **ip))


def feed(decoder: ByteDecoder, tokens) -> list:
    out = []
    for token in tokens:
        assert decoder.lo <= token < decoder.hi and not decoder.ended
        decoded = decoder.feed(token)
        if decoded is not None:
            out.append(decoded)
    return out


# ---- layouts -------------------------------------------------------------------------------------------------------


def test_headers_are_kept_payload_is_not() -> None:
    packet = tcp(b"secret" * 20, options=bytes(40))
    for size, layout in LAYOUTS.items():
        data, reason = block(packet.data, packet.orig_len, layout, ("tcp",))
        assert (len(data), reason) == (size, "")
        assert data.rstrip(b"\0") == packet.data[: 14 + 20 + 60].rstrip(b"\0")
    query = udp()
    for size, kept in ((106, 12), (128, 12)):
        data, _ = block(query.data, query.orig_len, LAYOUTS[size], ("udp",))
        assert data == query.data[: 42 + kept].ljust(size, b"\0")
    data, _ = block(query.data, query.orig_len, LAYOUTS[94], ("udp",))
    assert data == query.data[:42].ljust(94, b"\0")
    for length in (0, 1, 11, 13):  # short payloads too
        short = udp(DNS[:length])
        data, _ = block(short.data, short.orig_len, LAYOUTS[106], ("udp",))
        assert data == short.data[: 42 + min(12, length)].ljust(106, b"\0")


def test_what_a_layout_has_no_place_for_is_counted() -> None:
    six = frame(frames.ipv6(*SIX, 6, frames.tcp(1, 2, 16, 3, 4)), *SIX)
    arp = frames.arp(A, B, 1, frames.mac(A), bytes(6))
    packets = [tcp(), udp(), six, Packet(0, arp, len(arp)), frame(frames.ipv4(A, B, 1, bytes(8)))]
    assert encoder(packets).skipped == {"protocol": 2, "version": 2}
    assert encoder(packets, 106).skipped == {"version": 2, "protocol": 1}
    assert encoder(packets, 106, protocols=("udp",)).packets == 1
    assert encoder(packets, 128).skipped == {"version": 1, "protocol": 1}
    long = frames.ipv4(A, B, 6, frames.tcp(1, 2, 16, 3, 4, options=bytes(40)), options=bytes(4))
    assert encoder([frame(long)]).skipped == {"does-not-fit": 1}


def test_the_token_layout() -> None:
    found = encoder(talk())
    found.end()
    v = found.vocabulary
    n = found.packets
    assert len(found.tokens) == n * 95
    assert [i for i, t in enumerate(found.tokens) if t >= 256] == [95 * i + 94 for i in range(n)]
    assert found.tokens[-1] == v.end and found.tokens.count(v.pkt) == n - 1
    assert found.gaps_ns == [0] + [1_000_000] * (n - 1)


# ---- there and back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("size", [94, 106, 128])
def test_packets_come_back(size: int, framed: bool) -> None:
    packets = [*talk(), udp()] if size > 94 else talk()
    found = encoder(packets, size, framed)
    found.end()
    decoder = ByteDecoder(found.vocabulary, gaps(), keep_body=True)
    decoded = feed(decoder, found.tokens)
    assert decoder.ended and not decoder.malformed and len(decoded) == len(packets)
    for one, packet in zip(decoded, packets):
        data, orig_len = render(one.headers)
        assert orig_len == packet.orig_len == len(data)
        right, back = parse(packet.data, packet.orig_len), parse(data, orig_len)
        for name in ("src", "dst", "sport", "dport", "seq", "ack", "flags", "window", "tcp_options", "payload_len",
                     "ttl", "ident", "ip_flags", "tos", "link"):  # fmt: skip
            assert getattr(back, name) == getattr(right, name), name
        assert back.checksum_delta == 0
    if size > 94:
        assert decoded[-1].headers.body == DNS[:12]
        assert KINDS[decoded[-1].kind].startswith("dns-query")
        assert (decoded[-1].flow, decoded[-1].direction, decoded[-1].new_flow) == (1, 0, True)
    assert [d.direction for d in decoded[:4]] == [0, 1, 0, 0]
    assert decoded[1].flow_key == decoded[0].flow_key


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_any_capture_comes_back_or_is_counted(seed: int) -> None:
    rng = random.Random(seed)
    found = ByteEncoder(ByteVocabulary.make((), 128))
    kept = []
    for record in frames.session(rng, 20, snaplen=65535):
        if found.packet(*record):
            kept.append(record)
    decoder = ByteDecoder(found.vocabulary, gaps(), mtu=0)
    decoded = feed(decoder, [*found.tokens, found.vocabulary.pkt] if kept else [])
    assert len(kept) + sum(found.skipped.values()) == 20
    assert len(decoded) + sum(decoder.malformed.values()) == len(kept)
    assert set(decoder.malformed) <= {"address", "fragment"}
    for one in decoded:
        render(one.headers)


def test_addresses_are_the_models_own_or_the_plans() -> None:
    found = encoder(talk())
    tokens = [*found.tokens, found.vocabulary.pkt]
    own = feed(ByteDecoder(found.vocabulary, gaps()), tokens)
    assert {d.headers.src for d in own} == {bytes((198, 18, 0, 1)), bytes((198, 18, 0, 2))}
    plan = address_plan(("192.0.2.0/24", "2001:db8::/64"), ("203.0.113.0/24", "2001:db8:1::/64"))
    dealt = feed(ByteDecoder(found.vocabulary, gaps(), FreshIdentities(plan, 0, Stream(5))), tokens)
    for one in dealt:
        client, server = (one.headers.src, one.headers.dst)[:: 1 if one.direction == 0 else -1]
        assert client[:3] == bytes((192, 0, 2)) and server[:3] == bytes((203, 0, 113))
        assert one.headers.link[:2] == one.headers.link[6:8] == bytes.fromhex("024e")
    assert len({d.headers.src for d in dealt}) == 2
    assert [d.headers.seq for d in dealt] == [d.headers.seq for d in own]


def test_raw_bytes_are_as_generated() -> None:
    packet = talk()[0]
    stale = bytearray(packet.data)
    stale[24] ^= 0x55  # the IP checksum
    v = ByteVocabulary.make((), 94)
    decoder = ByteDecoder(v, gaps(), raw=True)
    one = feed(decoder, [*stale.ljust(94, b"\0"), v.pkt])[0]
    assert decoder.as_generated(one.headers) == (bytes(stale), len(stale))
    assert decoder.stale == 1
    junk = bytes(range(94))
    one = feed(decoder, [*junk, v.pkt])[0]
    assert decoder.as_generated(one.headers) == (junk, 94)
    assert decoder.malformed == {"not-ip": 1}


def test_a_packet_is_held_to_the_mtu() -> None:
    big = bytearray(tcp(bytes(1000)).data)
    big[16:18] = (9000).to_bytes(2, "big")
    v = ByteVocabulary.make((), 94)
    for mtu, length in ((1500, 1460), (0, 8960)):
        one = feed(ByteDecoder(v, gaps(), mtu=mtu), [*big[:94], v.pkt])[0]
        assert one.headers.payload_len == length


# ---- what is none --------------------------------------------------------------------------------------------------


def spoiled(at: int, value: int, packet: Packet | None = None, length: int = 94) -> bytes:
    data = bytearray((packet or tcp()).data.ljust(94, b"\0")[:length])
    data[at] = value
    return bytes(data)


MALFORMED = {
    "not-ip": spoiled(12, 0x99),
    "version": spoiled(14, 0x55),
    "header-length": spoiled(14, 0x44),
    "ip-length": spoiled(17, 30),
    "data-offset": spoiled(46, 0x40),
    "protocol": spoiled(23, 1),
    "fragment": spoiled(20, 0x20),
    "address": spoiled(26, 224),
    "cut": spoiled(0, 2, length=40),
    "empty": b"",
}


@pytest.mark.parametrize("reason", sorted(MALFORMED))
def test_a_malformed_packet_is_counted_by_its_reason(reason: str) -> None:
    v = ByteVocabulary.make((), 94, framed=False)
    decoder = ByteDecoder(v, gaps())
    good = tcp().data.ljust(94, b"\0")
    decoded = feed(decoder, [*good, v.pkt, *MALFORMED[reason], v.pkt, *good, v.pkt])
    assert len(decoded) == 2 and decoder.malformed == {reason: 1}
    assert reason in REASONS


def test_other_malformed_packets() -> None:
    v = ByteVocabulary.make(("x",), 128, framed=False)
    decoder = ByteDecoder(v, gaps())
    six = bytearray(frame(frames.ipv6(*SIX, 6, frames.tcp(1, 2, 16, 3, 4)), *SIX).data)
    assert len(feed(decoder, [v.pkt, *six, v.pkt])) == 1 and not decoder.malformed  # a delimiter first does no harm
    six[14] = 0x45
    feed(decoder, [*six, v.pkt])
    assert decoder.malformed == {"version": 1}
    feed(decoder, [*tcp().data[:30], v.begin("x"), *tcp().data[30:], v.pkt])
    feed(decoder, [*tcp(options=bytes(8)).data[:50], v.pkt])
    feed(decoder, [7] * 5000 + [v.pkt])
    assert decoder.malformed == {"version": 1, "no-byte": 1, "cut": 1, "too-long": 1}
    assert set(decoder.malformed) <= set(REASONS)
    assert malformed_text({"cut": 1, "empty": 3}) == "4 packets (empty 3, cut 1)"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.booleans())
def test_noise_never_raises_and_comes_to_an_end(seed: int, framed: bool, raw: bool) -> None:
    rng = random.Random(seed)
    v = ByteVocabulary.make(LABELS, 94, framed=framed)
    plan = FreshIdentities(address_plan(), 0, Stream(seed))
    decoder = ByteDecoder(v, gaps(), None if raw else plan, raw=raw)
    base = [packet.data.ljust(94, b"\0") for packet in talk()]
    tokens = 0
    while not decoder.ended and tokens < 60_000:
        if rng.random() < 0.3 and (not framed or decoder.lo == 0):
            data = bytearray(rng.choice(base))
            for _ in range(rng.randrange(3)):
                data[rng.randrange(94)] = rng.randrange(256)
            line = [*data, v.pkt]
        else:
            line = [rng.randrange(v.size)]
        for token in line:
            if decoder.ended:
                break
            token = min(max(token, decoder.lo), decoder.hi - 1)
            decoded = decoder.feed(token)
            tokens += 1
            if decoded is not None and not raw:
                render(decoded.headers)
    assert len(decoder._hosts) <= 4096


def test_a_model_that_writes_no_packet_is_stopped() -> None:
    v = ByteVocabulary.make((), 94)
    decoder = ByteDecoder(v, gaps())
    while not decoder.ended:
        assert decoder.feed(255 if decoder.lo == 0 else v.pkt) is None
    assert decoder.ended and decoder.silent
    assert 200 < decoder.malformed["not-ip"] < 300


# ---- the string form -----------------------------------------------------------------------------------------------


def test_the_string_form_in_and_out() -> None:
    found = encoder(talk()[:2])
    v = found.vocabulary
    text = to_text(v, "amazon", found.tokens)
    words = text.split()
    assert words[0] == "<|amazon|>" and words[95] == "<|pkt|>" and words[1:4] == ["2", "0", "0"] and len(words) == 190
    assert from_text(v, text) == ("amazon", [*found.tokens, v.pkt])
    assert from_text(v, " ".join(words[1:])) == (None, [*found.tokens, v.pkt])
    assert from_text(v, "<|netflix|>") == ("netflix", [])
    assert from_text(v, text + " <|pkt|>") == ("amazon", [*found.tokens, v.pkt])
    half = " ".join(words[:120])
    assert from_text(v, half, partial=True) == ("amazon", found.tokens[:119])


def test_bad_string_forms_are_named() -> None:
    v = ByteVocabulary.make(LABELS, 94)
    text = to_text(v, "amazon", encoder(talk()[:2]).tokens)
    for wrong, message in (
        (" ".join(text.split()[:120]), "packet 2 has 24 bytes; the model's packets have 94"),
        (text.replace("<|pkt|>", "9 <|pkt|>"), "packet 1 has 95 bytes"),
        ("<|twitch|> 1 2", r"label <\|twitch\|> is none of the model's: amazon, netflix"),
        ("<|amazon|> 1 256 2", "word 2 is '256'; bytes 0 to 255"),
        ("<|amazon|> 1 x", "word 2 is 'x'"),
        ("<|amazon|> 1 <|netflix|>", "word 2 is"),
    ):
        with pytest.raises(ValueError, match=message):
            from_text(v, wrong)
    with pytest.raises(ValueError, match="packet 1 has 95 bytes"):
        from_text(v, " ".join(["7"] * 95), partial=True)


def test_timing_is_observed_by_direction_and_size() -> None:
    timing = Timing()
    observe_timing(timing, "amazon", talk())
    counts = [sum(bins.values()) for bins in timing.counts["amazon"]]
    assert sum(counts) == len(talk()) - 1
    assert counts[1] == 1 and counts[7] == 1  # one request of 100 bytes, one answer of 1,000
