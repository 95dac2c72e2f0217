"""Drafts know what follows from what a flow said before, and are never at a loss for bytes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from traces import HELLO, headers

from netssmd.codec.byte_vocab import ByteVocabulary
from netssmd.codec.bytes import ByteDecoder, ByteEncoder
from netssmd.codec.draft import MAX_VOICES, Drafter
from netssmd.codec.timing import FittedGaps, Timing
from netssmd.engine.ahead import PATIENCE, Ahead
from netssmd.engine.sampling import Stream
from netssmd.packet.pcap import Packet
from netssmd.packet.render import render
from netssmd.packet.wire import IPV6, UDP

LINK = {"A": bytes.fromhex("020000000002020000000001"), "B": bytes.fromhex("020000000001020000000002")}
FLAGS, WINDOW, SUM = range(46, 48), range(48, 50), range(50, 52)


def frame(line: str, at: int = 0, port: int = 40000, zero: int = 0, **fields) -> Packet:
    """A packet of traces.py between hosts that have MACs, its IP id counted up."""
    h = headers(line, port, zero)
    h.body = b""
    h.link = LINK[line[0]] + b"\x08\x00"
    h.ident = 700 + at
    for name, value in fields.items():
        setattr(h, name, value)
    return Packet(1_000_000 * at, *render(h))


def tokens_of(vocabulary: ByteVocabulary, packets: list[Packet]) -> list[int]:
    encoder = ByteEncoder(vocabulary)
    for packet in packets:
        assert encoder.packet(packet.ts_ns, packet.data, packet.orig_len)
    return [*encoder.tokens, vocabulary.pkt]


def wrong_places(drafter: Drafter, tokens: list[int]) -> list[int]:
    """Takes a packet, drafted anew at each token; the places at which the next token was not the drafted one."""
    wrong = []
    for place, token in enumerate(tokens):
        draft = drafter.draft(999)
        assert not draft or len(draft) == len(tokens) - place
        if draft[:1] != [token]:
            wrong.append(place)
        drafter.take(token)
    return wrong


def played(packets: list[Packet], packet_bytes: int = 94) -> list[list[int]]:
    vocabulary = ByteVocabulary.make(("x",), packet_bytes)
    drafter = Drafter(vocabulary)
    tokens = tokens_of(vocabulary, packets)
    size = packet_bytes + 1
    return [wrong_places(drafter, tokens[i : i + size]) for i in range(0, len(tokens), size)]


def test_numbers_of_tcp_follow() -> None:
    """seq, ack, id and checksums of acknowledgements and their data; what no rule says is drafted wrong, once."""
    lines = ["A P. 1 1 100", "B . 1 101", "A P. 101 1 100", "B . 1 201", "A P. 201 1 100", "B . 1 301"]
    packets = [frame(line, i) for i, line in enumerate([*HELLO, *lines])]
    places = played(packets)
    assert places[0] == list(range(95))  # nothing is known yet
    assert set(places[7]) <= set(SUM) and places[8] == []  # data: its checksum is of its payload; an ack: all


def test_timestamps_are_echoed() -> None:
    def stamped(line: str, at: int, value: int, echo: int) -> Packet:
        options = bytes((1, 1, 8, 10)) + value.to_bytes(4, "big") + echo.to_bytes(4, "big")
        return frame(line, at, tcp_options=options)

    packets = [frame("A S 0 0", 0), frame("B S. 0 1", 1)]
    clock = [0x01020304 + 500 * i for i in range(9)]
    packets += [stamped(f"{'AB'[i % 2]} . 1 1", 2 + i, clock[i + 1], clock[i]) for i in range(8)]
    last = played(packets)[-1]
    assert set(last) <= {*SUM, 58, 59, 60, 61}  # not the echo at 62


def test_a_new_flow_is_opened_like_the_one_before() -> None:
    first = [frame(line, i) for i, line in enumerate(HELLO)]
    second = [frame(line, 10 + i, 40100, 5_000_000) for i, line in enumerate(HELLO)]
    for places in played(first + second)[4:]:  # the answers: addresses turned, numbers from the SYN
        assert len(places) <= 9 and not set(places) & {*range(12), *range(26, 38), *FLAGS, *WINDOW}


def test_udp_answers_to_the_question() -> None:
    """A DNS id comes back, lengths follow from the IP length, in IPv6 too."""
    for version in (4, IPV6):
        packets = []
        for i in range(6):
            h = headers("AB"[i % 2] + " 0 0 0")
            h.version, h.transport, h.protocol = version, UDP, UDP
            h.dport, h.sport = (53, 40000) if i % 2 == 0 else (40000, 53)
            h.link = LINK["AB"[i % 2]] + (b"\x08\x00" if version == 4 else b"\x86\xdd")
            if version == IPV6:
                h.src, h.dst = h.src.rjust(16, b"\x20"), h.dst.rjust(16, b"\x20")
            h.body, h.payload_len = (9000 + i // 2).to_bytes(2, "big") + bytes(10), 30
            packets.append(Packet(i, *render(h)))
        at = 34 if version == 4 else 54
        places = played(packets, 128)
        assert set(places[-1]) <= {at + 6, at + 7} and set(places[-2]) <= {at + 6, at + 7, at + 8, at + 9}


@given(st.lists(st.one_of(st.integers(0, 259), st.binary(min_size=94, max_size=94)), max_size=40), st.booleans())
@settings(max_examples=80, deadline=None)
def test_any_tokens_at_all(parts: list[int | bytes], free: bool) -> None:
    """Whatever comes: as many drafts as the packet has room for, ranges that a decoder then has, no error."""
    vocabulary = ByteVocabulary.make(("x",), 94, framed=False)
    ahead, drafter = Ahead(vocabulary), Drafter(vocabulary)
    decoder = ByteDecoder(vocabulary, FittedGaps(Timing(), "", Stream(0)))
    for part in parts:
        for token in [part] if isinstance(part, int) else [*part, vocabulary.pkt]:
            draft = drafter.draft(999)
            assert not draft or (len(draft) == 95 - len(drafter.known) and draft[-1] == vocabulary.pkt)
            own = ahead.drafts(10.0, 63 if free else 3)
            assert own == draft[: len(own)] and len(own) <= (63 if free else 3)
            assert len(decoder.ranges_ahead(own)) == 2 * len(own) + 2
            ahead.drawn([token], len(own))
            drafter.take(token)


def test_frames_ahead_are_those_that_come() -> None:
    vocabulary = ByteVocabulary.make(("x",), 94)
    decoder = ByteDecoder(vocabulary, FittedGaps(Timing(), "", Stream(0)))
    tokens = tokens_of(vocabulary, [frame(line, i) for i, line in enumerate(HELLO)])
    bounds = decoder.ranges_ahead(tokens)
    for i, token in enumerate(tokens):
        assert bounds[2 * i : 2 * i + 2] == [decoder.lo, decoder.hi]
        assert decoder.ranges_ahead(tokens[i : i + 30]) == bounds[2 * i : 2 * i + 2 * len(tokens[i : i + 30]) + 2]
        decoder.feed(token)


def test_memory_is_bounded() -> None:
    vocabulary = ByteVocabulary.make(("x",), 94)
    drafter = Drafter(vocabulary)
    for i in range(2 * MAX_VOICES):
        for token in tokens_of(vocabulary, [frame("A S 0 0", i, 1000 + i)]):
            drafter.take(token)
    assert len(drafter._voices) == MAX_VOICES and len(drafter._follows) <= MAX_VOICES


def test_guessing_that_comes_to_nothing_is_given_up() -> None:
    noise, zeros = (Ahead(ByteVocabulary.make(("x",), 94)) for _ in range(2))
    for i in range(PATIENCE):
        for ahead, token in ((noise, i * 7919 % 256), (zeros, 257 if i % 95 == 94 else 0)):
            assert not ahead.hopeless(0.5)
            own = ahead.drafts(12.0, 63)
            ahead.drawn(own[:1] if own[:1] == [token] else [token], len(own))
            ahead.accepted += own[:1] == [token]
    assert noise.hopeless(12.0) and not zeros.hopeless(0.5)


def test_drafts_grow_with_what_comes_true_and_with_the_cost_of_a_call() -> None:
    """Places that always come true are drafted, a place that never does ends the draft; a dearer call drafts more."""
    vocabulary = ByteVocabulary.make(("x",), 94)
    ahead = Ahead(vocabulary)
    packets = [frame(f"A P. {1 + 100 * i} 1 100", i, ident=(i * 7919) % 65536) for i in range(30)]
    lengths = []
    for token in tokens_of(vocabulary, packets):
        lengths.append(len(ahead.drafts(12.0, 63)))
        ahead.drawn([token], 0)
    assert max(lengths[:95]) == 0 and lengths[-95] == 18  # up to the IP id, which jumps
    assert len(Ahead(vocabulary).drafts(0.0, 63)) == 0
    rest = len(ahead.drafts(12.0, 63))
    assert len(ahead.drafts(0.5, 63)) <= rest <= len(ahead.drafts(1000.0, 63)) <= 63
    assert len(ahead.drafts(1000.0, 4)) <= 4
