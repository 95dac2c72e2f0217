"""The context codec: what goes in comes out, and what may be drawn is well-formed.

`frames.check_exact` holds the decoder against the encoder token by token: the field, the legal range, the context
features, the packet. Most tests here only choose the packets.
"""

import hashlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import frames
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netssmd import freshness
from netssmd.codec import vocab as v
from netssmd.codec.decoder import Decoded, Decoder, Recorded, decode
from netssmd.codec.encoder import Encoded, Encoder, encode
from netssmd.codec.vocab import Statistics, Vocabulary
from netssmd.packet.difference import first_difference
from netssmd.packet.pcap import Packet, read_capture
from netssmd.packet.render import render
from netssmd.packet.wire import ARP, parse

made = frames.random_tokens()
EMPTY = Statistics().fit(())
MADE_UP: Vocabulary = made.made_up_vocabulary()
A4, B4, C4 = frames.HOSTS4[:3]
A6, B6 = frames.HOSTS6[:2]
T0 = 1_700_000_000_000_000_000

Record = tuple[int, bytes, int]


def at_intervals(*frames_: bytes, gap_ns: int = 1000) -> list[Record]:
    return [(T0 + i * gap_ns, data, len(data)) for i, data in enumerate(frames_)]


def between(a: bytes, b: bytes, payload: bytes, protocol: int = 6, **fields: int) -> bytes:
    packet = frames.ipv4(a, b, protocol, payload, **fields) if len(a) == 4 else frames.ipv6(a, b, protocol, payload)
    return frames.ethernet(a, b, packet)


def names(encoded: Encoded, vocabulary: Vocabulary) -> list[str]:
    """Token names, one string a packet."""
    all_names = vocabulary.token_names()
    lines: list[list[str]] = [[]]
    for token in encoded.tokens:
        lines[-1].append(all_names[token])
        if all_names[token].startswith("iat:"):
            lines.append([])
    return [" ".join(line) for line in lines]


# --- there and back ---------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3, 8, v.MAX_FLOWS]), st.sampled_from([64, 96, 128, 65_535]))
def test_any_frames_come_back_exactly(seed: int, max_flows: int, snaplen: int) -> None:
    """Escapes, lies, cuts, padding, steps back in time; flows forgotten and opened again where few may be kept."""
    rng = random.Random(seed)
    packets = frames.session(rng, rng.choice([1, 3, 10, 40]), snaplen)
    frames.check_exact(packets, rng.choice([EMPTY, MADE_UP]), max_flows)


@given(
    st.lists(st.tuples(st.integers(0, 2**63), st.binary(max_size=150), st.integers(0, 70_000)), min_size=1, max_size=6)
)
def test_any_bytes_come_back_exactly(records: list[Record]) -> None:
    packets = [(ts_ns, data, len(data) + more) for ts_ns, data, more in records]
    frames.check_exact(packets, EMPTY)


def test_nothing_is_a_session_too() -> None:
    encoded = encode([], EMPTY)
    assert encoded.tokens == [EMPTY.end] and list(decode(encoded, EMPTY)) == []
    assert encode([], EMPTY, ended=False).tokens == []


@pytest.mark.parametrize("snaplen", [54, 60, 64, 96, 128, 200])
def test_the_snaplen_is_learned(snaplen: int) -> None:
    """It is an identity once, not with each packet."""
    data = between(A4, B4, frames.tcp(1, 2, 16, 3, 4, payload=bytes(1400)))
    packets = [(T0 + i, data[:snaplen], len(data)) for i in range(5)]
    encoded = frames.check_exact(packets, EMPTY)
    longer = frames.check_exact(packets + [(T0 + 6, data[:snaplen], len(data))], EMPTY)
    assert len(longer.identities) - len(encoded.identities) == 2  # exceptions and the place of the gap in its bin


def test_frames_larger_than_any_mtu() -> None:
    """What a capture on a segmenting host shows: 64 KiB at once, over either IP version."""
    most = 65_535 - 20 - 20
    four = [between(A4, B4, frames.tcp(1, 2, 16, 3 + i * most, 4, payload=bytes(most))) for i in range(3)]
    six = [between(A6, B6, frames.tcp(1, 2, 16, 3, 4, payload=bytes(65_515)))]
    frames.check_exact([(t, data[:128], n) for t, data, n in at_intervals(*four, *six)], EMPTY)


def test_a_syn_that_carries_data() -> None:
    options = bytes.fromhex("020405b40402080a000000010000000001030307")
    for length in (1, 1440, 1460, 2880):
        syn = between(A4, B4, frames.tcp(1, 2, 2, 3, 0, options=options, payload=bytes(length)))
        frames.check_exact(at_intervals(syn, syn), EMPTY)


@pytest.mark.parametrize("seq", [0, 999, 1000, 1001, 1011, 1012, 2472, 5000])
def test_a_handshake_answered_twice_with_other_numbers(seq: int) -> None:
    frames.check_exact(
        at_intervals(
            between(A4, B4, frames.tcp(1, 2, 2, 7, 0)),
            between(B4, A4, frames.tcp(2, 1, 0x12, 1000, 8)),
            between(B4, A4, frames.tcp(2, 1, 0x18, 1001, 8, payload=bytes(11))),
            between(B4, A4, frames.tcp(2, 1, 0x12, seq, 8)),
            between(A4, B4, frames.tcp(1, 2, 0x10, 8, seq)),
        ),
        EMPTY,
    )


def test_a_reset_with_sequence_number_zero_from_a_side_that_was_silent() -> None:
    packets = at_intervals(between(A4, B4, frames.tcp(1, 2, 16, 7, 900)), between(B4, A4, frames.tcp(2, 1, 0x14, 0, 7)))
    frames.check_exact(packets, EMPTY)


def test_an_error_that_quotes_zeros() -> None:
    """The quotation is made up only where identities are fresh."""
    error = between(B4, A4, b"\x03\x03\0\0\0\0\0\0" + bytes(28), 1)
    frames.check_exact(at_intervals(between(A4, B4, frames.udp(1, 2, b"x"), 17), error), EMPTY)


def test_a_datagram_in_fragments() -> None:
    first = between(A4, B4, frames.udp(1, 2, bytes(1472), 8 + 3000), 17, flags=1, ident=9)
    second = between(A4, B4, bytes(1480), 17, flags=1, offset=1480, ident=9)
    third = between(A4, B4, bytes(48), 17, flags=0, offset=2960, ident=9)
    encoded = frames.check_exact(at_intervals(first, second, third), EMPTY)
    assert encoded.escaped == 0
    assert [line.split()[1] for line in names(encoded, EMPTY)[1:3]] == ["udp_shape:8", "udp_shape:8"]
    frames.check_exact(at_intervals(third, second, first, third), EMPTY)


def test_a_first_fragment_without_a_byte_of_payload() -> None:
    frames.check_exact(at_intervals(between(A4, B4, frames.udp(1, 2, b"", 100), 17, flags=1)), EMPTY)


def test_an_arp_operation_beyond_the_usual() -> None:
    frames.check_exact(at_intervals(frames.arp(A4, B4, 8, frames.mac(A4), frames.mac(B4))), EMPTY)


def test_a_step_back_in_time_and_a_long_silence() -> None:
    data = between(A4, B4, frames.udp(1, 2, b"x"), 17)
    packets = [(T0 + at, data, len(data)) for at in (0, -5, -5, 1 << 50, (1 << 50) - (1 << 49), 7)]
    encoded = frames.check_exact(packets, EMPTY)
    members = [token - EMPTY.lo[v.IAT] for token in encoded.tokens if EMPTY.field_of(token) == v.IAT]
    assert members == [0, v.IAT_BACK, 0, v.IAT_FAR, v.IAT_BACK, v.IAT_BACK]


def test_what_is_not_ip_is_escaped_without_its_addresses() -> None:
    lldp = b"\x01\x80\xc2\0\0\x0e" + b"\x02\0\0\0\0\1" + b"\x88\xcc" + bytes(range(40))
    broken = between(A4, B4, frames.tcp(1, 2, 16, 3, 4), total_length=0)
    encoded = frames.check_exact(at_intervals(lldp, broken), EMPTY)
    assert encoded.escaped == encoded.packets == 2
    told = bytes(t - EMPTY.lo[v.BYTE] for t in encoded.tokens if EMPTY.field_of(t) == v.BYTE)
    assert bytes(range(40)) in told
    assert A4 + B4 not in told and lldp[:12] not in told


# --- addresses stay out of the tokens ---------------------------------------------------------------------------------


@given(st.integers(0, 2**32))
def test_tokens_do_not_depend_on_who_the_hosts_are(seed: int) -> None:
    rng = random.Random(seed)
    strangers = {a: bytes([20, 9, 8, i]) for i, a in enumerate((A4, B4, C4))}

    def talk(of: dict[bytes, bytes]) -> list[Record]:
        out, dice = [], random.Random(seed)
        for _ in range(10):
            a, b = dice.sample([A4, B4, C4], 2)
            numbers = dice.randrange(4000), dice.randrange(4000)
            segment = frames.tcp(80, 40_000, 16, *numbers, payload=bytes(dice.randrange(3)))
            out.append(between(of[a], of[b], segment))
        return at_intervals(*out)

    same = {a: a for a in strangers}
    assert encode(talk(same), EMPTY).tokens == encode(talk(strangers), EMPTY).tokens
    assert rng


# --- bounded memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_flows", [1, 2, 7])
def test_a_forgotten_flow_is_opened_again(max_flows: int) -> None:
    rng = random.Random(max_flows)
    packets = []
    for i in range(300):
        port = 40_000 + rng.randrange(3 * max_flows)
        segment = frames.tcp(port, 80, 16, 1000 + i, 5, payload=b"x")
        packets.append((T0 + i, between(A4, B4, segment), 55))
    frames.check_exact(packets, EMPTY, max_flows)
    encoder = Encoder(EMPTY, None, max_flows)
    for packet in packets:
        encoder.packet(*packet)
        assert len(encoder.context.flows) <= max_flows
        assert len(encoder.context.sides) <= 2 * max_flows


def test_far_flows_and_forgotten_hosts() -> None:
    """More flows than WHO names by itself, more hosts than are kept: both ends forget the same."""
    packets, rng = [], random.Random(1)
    for i in range(2600):
        host = bytes([10, 1, *divmod(i if i < 1300 else rng.randrange(1300), 256)])
        packets.append((T0 + i, between(host, B4, frames.udp(40_000, 53, b"x"), 17), 43))
    encoded = frames.check_exact(packets, EMPTY)
    assert any(EMPTY.field_of(token) == v.RANK_HIGH for token in encoded.tokens)
    encoder = Encoder(EMPTY)
    for packet in packets:
        encoder.packet(*packet)
    assert len(encoder.context.hosts4) == len(encoder.context.hosts) == 1024
    assert len(encoder.context.services) <= v.MAX_SERVICES


# --- what may be drawn ------------------------------------------------------------------------------------------------


def drawn(decoder: Decoder, choose: random.Random, tokens: int, end: int) -> Iterator[Decoded]:
    """Packets of `tokens` tokens, each drawn from the announced range; END passed over."""
    for _ in range(tokens):
        assert 0 <= decoder.lo < decoder.hi <= decoder.vocabulary.size
        token = choose.randrange(decoder.lo, decoder.hi)
        decoded = decoder.feed(choose.randrange(decoder.lo + 1, decoder.hi) if token == end else token)
        if decoded is not None:
            yield decoded


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([576, 1280, 1500, 9000]), st.sampled_from([1, 3, v.MAX_FLOWS]))
def test_whatever_is_drawn_is_well_formed(seed: int, mtu: int, max_flows: int) -> None:
    """Lengths, checksums, MTU, time: see tools/random_tokens.py, which draws millions."""
    rng = random.Random(seed)
    vocabulary = rng.choice([EMPTY, MADE_UP])
    decoder = Decoder(vocabulary, made.RandomIdentities(rng), 0, mtu, max_flows)
    for decoded in drawn(decoder, rng, 400, vocabulary.end):
        made.check(decoded, mtu)
        assert len(decoder.context.flows) <= max_flows


@settings(max_examples=40)
@given(st.data())
def test_whatever_hypothesis_chooses_is_well_formed(data: st.DataObject) -> None:
    decoder = Decoder(MADE_UP, made.RandomIdentities(random.Random(0)), 0, 1500)
    for _ in range(60):
        token = data.draw(st.integers(decoder.lo, decoder.hi - 1))
        decoded = decoder.feed(token)
        if decoded is not None:
            made.check(decoded, 1500)
        if decoder.ended:
            break


def test_fresh_arp_is_between_ipv4_hosts() -> None:
    seen = []

    class Plan(made.RandomIdentities):
        def host(self, version: int, cast: int, role: int) -> tuple[bytes, bytes]:
            seen.append(version)
            return super().host(version, cast, role)

    decoder = Decoder(EMPTY, Plan(random.Random(1)), 0, 1500)
    said = (v.WHO, v.WHO_NEW), (v.SERVICE, 8), (v.HOST, 0), (v.HOST, 0), (v.EXTENT, 2), (v.ARP_SHAPE, 0), (v.IAT, 3)
    for field, member in said:
        decoded = decoder.feed(EMPTY.lo[field] + member)
    assert seen == [4, 4] and decoded is not None
    assert decoded.headers.version == ARP and len(decoded.headers.body) == 28


def test_what_the_mtu_cuts_is_counted() -> None:
    datagram = frames.udp(40_000, 9, bytes(1400))
    segment = frames.tcp(40_000, 443, 0x10, 1, 1, payload=bytes(1400))
    small = frames.udp(40_001, 9, bytes(100))
    packets = at_intervals(*(between(A4, B4, part, 17) for part in (datagram, small)), between(A4, B4, segment))
    encoded = encode(packets, MADE_UP)
    for mtu, clamped in ((1000, 2), (1500, 0)):
        decoder = Decoder(MADE_UP, made.RandomIdentities(random.Random(1)), 0, mtu)
        headers = [decoded.headers for token in encoded.tokens if (decoded := decoder.feed(token))]
        assert decoder.clamped == clamped and len(headers) == 3
    recorded = Decoder(MADE_UP, Recorded(encoded.identities), encoded.start_ns, 1000)
    assert [d for token in encoded.tokens if (d := recorded.feed(token))] and recorded.clamped == 0


def test_a_tcp_five_tuple_that_was_used_is_not_opened_again_but_where_a_recording_does() -> None:
    known = MADE_UP.ports[0]
    syns = [frames.tcp(known, 443, 2, isn, 0) for isn in (1, 1 << 20, 1 << 30)]
    packets = at_intervals(*(between(A4, B4, syn) for syn in syns))
    encoded = encode(packets, MADE_UP)
    assert [line.split()[0] for line in names(encoded, MADE_UP)[:3]] == ["who:1"] * 3  # a new flow
    assert [first_difference(*pair) for pair in zip(packets, decode(encoded, MADE_UP), strict=True)] == [None] * 3
    decoder = Decoder(MADE_UP, made.RandomIdentities(random.Random(1)), 0, 1500)
    keys = [decoded.flow_key for token in encoded.tokens if (decoded := decoder.feed(token))]
    assert [key[2] for key in keys] == [known, known + 1, known + 2]
    assert len({(key[0], key[1], key[3]) for key in keys}) == 1


def test_the_port_after_the_last_is_the_first() -> None:
    class Plan(made.RandomIdentities):
        def port(self, port_class: int) -> int:
            return 65535

    syns = [between(A4, B4, frames.tcp(40_000, 443, 2, isn, 0)) for isn in (1, 2, 3)]
    decoder = Decoder(MADE_UP, Plan(random.Random(1)), 0, 1500)
    tokens = encode(at_intervals(*syns), MADE_UP).tokens
    assert [d.headers.sport for token in tokens if (d := decoder.feed(token))] == [65535, 1, 2]


def test_a_fresh_error_quotes_the_packet_that_it_answers() -> None:
    packets = at_intervals(
        between(A4, B4, frames.udp(40_000, 7, b"abc"), 17), between(B4, A4, b"\x03\x03\0\0\0\0\0\0E" + bytes(30), 1)
    )
    encoded = encode(packets, EMPTY)
    decoder = Decoder(EMPTY, made.RandomIdentities(random.Random(1)), 0, 1500)
    asked, error = [decoded for token in encoded.tokens if (decoded := decoder.feed(token))]
    quoted = error.headers.body[: 20 + 8 + 3]
    assert quoted == render(asked.headers)[0][14:45]


@pytest.mark.parametrize("told", [11, 41])
@pytest.mark.parametrize("payload", [b"a", bytes(30)])
def test_a_fresh_error_quotes_as_much_as_was_told(payload: bytes, told: int) -> None:
    """Eight bytes of the transport header at least, no more than there is; and a probe, where its receiver has sent
    nothing."""
    error = between(B4, A4, b"\x03\x03\0\0\0\0\0\0E" + bytes(told - 1), 1)
    for packets in ([between(A4, B4, frames.udp(40_000, 7, payload), 17), error], [error]):
        encoded = encode(at_intervals(*packets), EMPTY)
        decoder = Decoder(EMPTY, made.RandomIdentities(random.Random(1)), 0, 1500)
        *_, headers = [decoded.headers for token in encoded.tokens if (decoded := decoder.feed(token))]
        there_is = 28 + (len(payload) if len(packets) == 2 else 32)
        assert headers.payload_len == len(headers.body) == min(there_is, max(28, told))
        quoted = parse(bytes(12) + b"\x08\0" + headers.body, 14 + int.from_bytes(headers.body[2:4], "big"))
        assert (quoted.src, quoted.dst, quoted.transport) == (headers.dst, headers.src, 17)


def test_a_fresh_error_quotes_what_was_sent_to_its_sender_and_the_beginning_of_a_datagram() -> None:
    """The address's latest packet went to somebody else, and its datagram came in two fragments."""
    datagram = frames.udp(40_000, 7, bytes(1592))
    to_b = [
        between(A4, B4, datagram[:1480], 17, flags=1, ident=9),
        between(A4, B4, datagram[1480:], 17, flags=0, offset=1480, ident=9),
    ]
    to_c = between(A4, C4, frames.udp(40_001, 7, b"else"), 17)
    error = between(B4, A4, b"\x03\x03\0\0\0\0\0\0E" + bytes(99), 1)
    encoded = encode(at_intervals(*to_b, to_c, error), EMPTY)
    decoder = Decoder(EMPTY, made.RandomIdentities(random.Random(1)), 0, 1500)
    first, _, other, answer = [decoded for token in encoded.tokens if (decoded := decoder.feed(token))]
    length = answer.headers.payload_len
    assert length > 90 and answer.headers.body == render(first.headers)[0][14 : 14 + length]
    assert other.headers.dst != first.headers.dst == answer.headers.src


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        ("", "020405b4"),
        ("020405b4", "020405b4"),
        ("020405b401010402", "020405b404020101"),
        ("020405b40101040201030306", "020405b40402010101030307"),
        ("020405b40402080a000000010000000001030306", "020405b40402080a........0000000101030307"),
    ],
)
def test_a_fresh_answer_has_the_options_that_were_offered(offered: str, agreed: str) -> None:
    """A recorded one has what it had."""
    full = bytes.fromhex("020405b40402080a000000070000000101030307")
    syn = frames.tcp(40_000, 443, 2, 1, 0, options=bytes.fromhex(offered))
    answer = frames.tcp(443, 40_000, 0x12, 5, 2, options=full)
    packets = at_intervals(between(A4, B4, syn), between(B4, A4, answer))
    encoded = encode(packets, EMPTY)
    decoder = Decoder(EMPTY, made.RandomIdentities(random.Random(1)), 0, 1500)
    _, fresh = [decoded for token in encoded.tokens if (decoded := decoder.feed(token))]
    assert re.fullmatch(agreed[:24], fresh.headers.tcp_options.hex()[:24])
    assert len(fresh.headers.tcp_options) == len(agreed) // 2
    assert [first_difference(*pair) for pair in zip(packets, decode(encoded, EMPTY), strict=True)] == [None] * 2


def test_later_payloads_need_less_than_the_first_of_their_kind() -> None:
    def sent(sport: int, dport: int, payload: bytes) -> bytes:
        return between(A4, B4, frames.udp(sport, dport, payload), 17)

    def answer(count: int, length: int) -> bytes:
        head = b"\x12\x34\x81\x80\0\1\0" + bytes((count, 0, 0, 0, 0))
        return sent(53, 40_001, head + b"\4host\0\0\1\0\1" + bytes(length - 22))

    initial = b"\xc3\0\0\0\1" + bytes(40)
    short = [sent(40_000, 443, b"\x41" + bytes(more)) for more in (32, 9)]
    packets = [sent(40_000, 443, initial), *short, answer(1, 34), answer(0, 28)]
    vocabulary = Vocabulary((), (), (28, 33), (), ())
    encoded = encode(at_intervals(*packets), vocabulary)
    decoder = Decoder(vocabulary, made.RandomIdentities(random.Random(1)), 0, 1500)
    headers = [decoded.headers for token in encoded.tokens if (decoded := decoder.feed(token))]
    assert [h.payload_len for h in headers] == [48, 33, 21, 35, 28]


def test_fresh_payloads_are_as_long_as_their_kind_needs_and_recorded_ones_as_they_were() -> None:
    query = frames.udp(40_000, 53, b"\x12\x34\1\0\0\1\0\0\0\0\0\0\1a")  # cut inside its name
    banner = frames.tcp(40_001, 22, 0x18, 100, 1, payload=b"SSH-")
    more = frames.tcp(40_001, 22, 0x18, 104, 1, payload=b"x")
    again = frames.tcp(40_001, 22, 0x18, 104, 1, payload=b"x")
    packets = at_intervals(between(A4, B4, query, 17), *(between(A4, B4, t) for t in (banner, more, again)))
    encoded = encode(packets, EMPTY)
    for mtu, told in ((1500, [26, 16, 16, 16]), (0, [14, 4, 1, 1])):
        decoder = Decoder(EMPTY, made.RandomIdentities(random.Random(1)), 0, mtu)
        headers = [decoded.headers for token in encoded.tokens if (decoded := decoder.feed(token))]
        assert [h.payload_len for h in headers] == told
    decoder = Decoder(EMPTY, Recorded(list(encoded.identities), made.RandomIdentities(random.Random(1))), 0, 1500)
    headers = [decoded.headers for token in encoded.tokens if (decoded := decoder.feed(token))]
    assert [h.payload_len for h in headers] == [14, 4, 1, 1]


def test_a_token_of_another_field_is_refused() -> None:
    decoder = Decoder(EMPTY, made.RandomIdentities(random.Random(1)))
    for token in (-1, EMPTY.size, EMPTY.lo[v.IAT], EMPTY.lo[v.WHO] + v.WHO_FLOW):
        with pytest.raises(ValueError):
            Decoder(EMPTY, made.RandomIdentities(random.Random(1))).feed(token)
    decoder.feed(EMPTY.lo[v.WHO] + v.WHO_NEW)
    for member in (v.SERVICE_LIKE, v.SERVICE_LIKE + 3):
        with pytest.raises(ValueError, match="service rank"):
            Decoder.feed(decoder, EMPTY.lo[v.SERVICE] + member)
    decoder.feed(EMPTY.lo[v.SERVICE])
    with pytest.raises(ValueError, match="host rank"):
        decoder.feed(EMPTY.lo[v.HOST] + v.HOST_RANK)


def test_nothing_follows_the_end() -> None:
    decoder = Decoder(EMPTY, made.RandomIdentities(random.Random(1)))
    assert decoder.feed(EMPTY.end) is None and decoder.ended
    with pytest.raises(ValueError):
        decoder.feed(EMPTY.end)


# --- a recording that goes on with fresh identities -------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_a_prompt_goes_on(seed: int) -> None:
    """The first packets are the recorded ones, to the byte; what is drawn after them is well-formed."""
    rng = random.Random(seed)
    packets = [p for p in frames.session(rng, 12) if parse(p[1], p[2]).version and p[2] < 1400]
    if not packets:
        return
    encoded = encode(packets, MADE_UP, ended=False)
    decoder = Decoder(MADE_UP, Recorded(encoded.identities, made.RandomIdentities(rng)), encoded.start_ns)
    now_ns, back = encoded.start_ns, []
    for token in encoded.tokens:
        decoded = decoder.feed(token)
        if decoded is not None:
            now_ns += decoded.gap_ns
            data, orig_len = render(decoded.headers)
            back.append((now_ns, data[: decoded.headers.captured_len], orig_len))
    assert all(first_difference(was, now) is None for was, now in zip(packets, back, strict=True))
    for decoded in drawn(decoder, rng, 100, MADE_UP.end):
        assert decoded.gap_ns >= 0
        data, orig_len = render(decoded.headers)
        assert parse(data, orig_len).version == decoded.headers.version


def test_a_prompt_may_hold_a_host_that_calls_itself() -> None:
    """Drawn, it would get another originator; recorded, it is what it was."""
    flood = [between(A4, B4, frames.tcp(9, 80, 2, 5, 0)), between(B4, B4, frames.tcp(9, 80, 2, 5, 0))]
    packets = at_intervals(*flood, between(A4, C4, frames.tcp(9, 80, 2, 5, 0)))
    encoded = encode(packets, EMPTY, ended=False)
    decoder = Decoder(EMPTY, Recorded(encoded.identities, made.RandomIdentities(random.Random(1))), T0, 1500)
    decoded = [packet for token in encoded.tokens if (packet := decoder.feed(token))]
    assert [(d.headers.src, d.headers.dst) for d in decoded] == [(A4, B4), (B4, B4), (A4, C4)]


# --- the language -----------------------------------------------------------------------------------------------------

SYN_OPTIONS = bytes.fromhex("020405b40402080a000000070000000001030307")


def stamps(value: int, echo: int) -> bytes:
    return b"\x01\x01\x08\x0a" + value.to_bytes(4, "big") + echo.to_bytes(4, "big")


def test_a_small_conversation_in_tokens() -> None:
    """ARP, a DNS question, and a TCP connection from handshake to FIN: the whole grammar of everyday traffic."""
    query = bytes.fromhex("12340100000100000000000003777777016100 00010001")
    answer = bytes.fromhex("12348180000100010000000003777777016100 00010001") + bytes(16)
    up, down = (40_000, 80), (80, 40_000)
    get = b"GET / HTTP/1.1\r\n\r\n"
    said = [
        (0, frames.arp(A4, B4, 1, frames.mac(A4), bytes(6))),
        (400_000, frames.arp(B4, A4, 2, frames.mac(B4), frames.mac(A4))),
        (10_000, between(A4, B4, frames.udp(40_001, 53, query), 17, ident=1)),
        (20_000_000, between(B4, A4, frames.udp(53, 40_001, answer), 17, ident=1)),
        (100_000, between(A4, B4, frames.tcp(*up, 2, 100, 0, window=64_240, options=SYN_OPTIONS), ident=5)),
        (20_000_000, between(B4, A4, frames.tcp(*down, 0x12, 900, 101, window=65_160, options=SYN_OPTIONS), ident=0)),
        (50_000, between(A4, B4, frames.tcp(*up, 0x10, 101, 901, options=stamps(27, 7)), ident=6)),
        (50_000, between(A4, B4, frames.tcp(*up, 0x18, 101, 901, options=stamps(27, 7), payload=get), ident=7)),
        (21_000_000, between(B4, A4, frames.tcp(*down, 0x10, 901, 119, options=stamps(28, 27)), ident=1)),
        (1_000, between(B4, A4, frames.tcp(*down, 16, 901, 119, options=stamps(28, 27), payload=bytes(1448)), ident=2)),
        (1_000, between(B4, A4, frames.tcp(*down, 0x19, 2349, 119, options=stamps(28, 27), payload=b"x"), ident=3)),
        (20_000_000, between(A4, B4, frames.tcp(*up, 0x11, 119, 2351, options=stamps(68, 28)), ident=8)),
        (20_000_000, between(B4, A4, frames.tcp(*down, 0x10, 2351, 120, options=stamps(68, 68)), ident=4)),
    ]  # fmt: skip
    now_ns, packets = T0, []
    for gap_ns, data in said:
        now_ns += gap_ns
        packets.append((now_ns, data, len(data)))
    assert names(frames.check_told(packets, MADE_UP), MADE_UP) == GOLDEN


GOLDEN = [
    "who:1 service:8 host:0 host:0 extent:1 arp_shape:0 iat:0",
    "who:3 arp_shape:1 iat:78",
    "who:1 service:1 host:3 host:3 port:5 port:0 extent:1 udp_shape:2 length:22 kind:6 iat:36",
    "who:3 udp_shape:2 length:38 kind:10 iat:124",
    "who:1 service:0 host:3 host:3 port:6 port:0 extent:8 tcp_shape:0 stack:0 iat:62",
    "who:3 tcp_shape:148 stack:6 byte:64 byte:0 byte:5 window:113 byte:20 byte:2 byte:4 byte:5 byte:180 "
    "byte:4 byte:2 byte:8 byte:10 byte:0 byte:0 byte:0 byte:0 byte:0 byte:0 byte:0 byte:0 byte:1 byte:3 "
    "byte:3 byte:7 iat:124",
    "who:2 tcp_shape:222 window:1 iat:54",
    "who:2 tcp_shape:276 length:68 kind:33 iat:54",
    "who:3 tcp_shape:222 window:1 iat:124",
    "who:3 tcp_shape:228 kind:1 iat:9",
    "who:3 tcp_shape:348 length:46 iat:9",
    "who:2 tcp_shape:292 iat:124",
    "who:3 tcp_shape:220 iat:124",
    "<|endoftext|>",
]  # fmt: skip


# --- captures ---------------------------------------------------------------------------------------------------------


def sample(which: str, per_label: int = 1, most_bytes: int = 60_000) -> list[list[Packet]]:
    """The smallest captures of each label that say something."""
    captures = []
    for folder in sorted((frames.CAPTURES / which).iterdir()):
        files = sorted(
            (p for p in folder.glob("*.gz") if p.stat().st_size < most_bytes), key=lambda p: -p.stat().st_size
        )
        for path in files[:per_label]:
            with open(path, "rb") as file:
                captures.append(list(read_capture(file, path.name))[:1500])
    return captures


@pytest.mark.capture
@pytest.mark.slow
@pytest.mark.parametrize(("which", "tokens_per_packet"), [("lab", 5.0), ("real", 7.0)])
def test_captures_come_back_exactly_and_are_short(which: str, tokens_per_packet: float) -> None:
    if not (frames.CAPTURES / which).is_dir():
        pytest.skip("no captures here: NETSSMD_CAPTURES names their folder")
    captures = sample(which, most_bytes=60_000 if which == "lab" else 12_000)
    whole = Statistics()
    for packets in captures:
        one = Statistics()
        encoder = Encoder(EMPTY, one)
        for packet in packets:
            encoder.packet(*packet)
        whole.merge(one)
    vocabulary = whole.fit(())
    tokens = count = 0
    for packets in captures:
        encoded = encode(packets, vocabulary)
        for was, now in zip(packets, decode(encoded, vocabulary), strict=True):
            assert first_difference(tuple(was), now) is None
        tokens += len(encoded.tokens)
        count += len(packets)
    assert tokens / count <= tokens_per_packet


# --- compiled and interpreted -----------------------------------------------------------------------------------------

HASH = """
import hashlib, random, sys
sys.path[:0] = [{tests!r}]
import frames
from netssmd.codec.kinds import KINDS
from netssmd.codec.vocab import Statistics
vocabulary = frames.random_tokens().made_up_vocabulary()
digest = hashlib.sha256()
for seed in range(30):
    encoded = frames.check_exact(frames.session(random.Random(seed), 30), vocabulary)
    for part in (encoded.tokens, encoded.limits, encoded.stages, encoded.features, encoded.identities):
        digest.update(repr(part).encode())
print(digest.hexdigest())
"""


def test_compiled_and_interpreted_modules_say_the_same() -> None:
    if "netssmd.codec.encoder" not in freshness.built_from():
        pytest.skip("nothing is compiled here")
    said = []
    for interpreted in ("", "1"):
        env = {**os.environ, "NETSSMD_INTERPRETED": interpreted}
        script = HASH.format(tests=str(Path(__file__).parent))
        result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
        said.append(result.stdout)
    assert said[0] == said[1] and len(said[0]) == 2 * hashlib.sha256().digest_size + 1
