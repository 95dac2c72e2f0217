"""The TCP/IP checker: each finding as a short trace that has it and one that has not; it survives any bytes.

Traces are written as `traces.py` says.
"""

import importlib
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import BYE, HELLO, OPTIONS, SACKING, SCALED, STAMPED, TALK, headers

from netssmd.packet import compliance as c
from netssmd.packet.answers import named_addresses
from netssmd.packet.pcap import read_capture
from netssmd.packet.render import render
from netssmd.packet.wire import ICMP, IPV6, UDP, Headers, parse

CAPTURES = Path(os.environ.get("NETSSMD_CAPTURES", Path(__file__).parent.parent.parent / "shared" / "captures"))
def tr(*lines: str, zero: int = 0, **how) -> tuple[dict[str, int], list[c.Flow]]:
    """Findings of a trace, by packets for what packets raise and by flows for the rest, and its flows."""
    flows: list[c.Flow] = []
    checker = c.Checker(on_flow=flows.append, **how)
    for i, line in enumerate(lines):
        checker.observe(headers(line, zero=zero), i * 1_000_000)
    totals = checker.finish()
    counts = [p if f.flow is None else n for f, p, n in zip(c.FINDINGS, totals.in_packets, totals.in_flows)]
    return {f.name: count for f, count in zip(c.FINDINGS, counts) if count}, flows


TRACES = [
    # finding, how often, trace
    ("handshake", 1, HELLO),
    ("handshake", 1, ["A S 0 0", *HELLO]),  # a SYN again
    ("handshake", 1, ["A S 0 0 5", "B S. 0 6", "A . 6 1"]),  # payload in the SYN, taken
    ("handshake", 0, ["A S 0 0", "B S. 0 1"]),
    ("handshake", 0, ["A S 0 0", "A . 1 1", "B S. 0 1"]),  # wrong order
    ("handshake", 0, ["A S 0 0", "B S. 0 2", "A . 1 1"]),
    ("handshake", 0, ["A S 0 0", "B S. 0 1", "A . 2 1"]),
    ("handshake", 0, ["A S 0 0", "B S. 0 1", "A . 1 2"]),
    ("handshake", 0, ["A S 0 0", "B S. 0 1", "A R 1 0"]),  # a SYN scan
    ("ack_progress", 1, TALK),
    ("ack_progress", 0, HELLO),
    ("ack_progress", 0, [*TALK, "A . 101 500"]),
    ("seq_progress", 1, TALK),
    ("seq_progress", 1, [*TALK, "B P. 1 101 1000", "B . 1000 101"]),  # a retransmission and a keep-alive
    ("seq_progress", 0, ["A S 0 0", "B R. 0 1"]),
    ("seq_progress", 0, [*TALK, "B P. 2001 101 10"]),
    ("seq_progress", 0, [*TALK, "B P. -500 101 10"]),
    ("fin", 1, [*TALK, "B F. 1001 101"]),
    ("fin", 0, TALK),
    ("fin_ack", 1, [*TALK, "B F. 1001 101 7", "A . 101 1009"]),
    ("fin_ack", 0, [*TALK, "B F. 1001 101 7", "A . 101 1008"]),
    ("unexpected_syn", 1, [*TALK, "A S 500 0"]),
    ("unexpected_syn", 1, [*TALK, "B S. 500 1"]),
    ("unexpected_syn", 0, [*TALK, "A S 0 0", "B S. 0 1"]),  # late copies
    ("unexpected_syn", 0, [*TALK, *BYE, "A S 5000 0"]),  # the port is used again
    ("rst_in_established", 1, [*TALK, "A R 101 0"]),
    ("rst_in_established", 1, [*TALK, "A R 101 0", "A R 101 0"]),  # the flow is closed by the first
    ("rst_in_established", 1, [*TALK, "A F. 101 1001", "B R 1001 0"]),
    ("rst_in_established", 0, [*TALK, *BYE, "A R 102 0"]),
    ("rst_in_established", 0, ["A S 0 0", "B R. 0 1"]),
    ("timestamps_disappeared", 1, [*STAMPED, "A P. 1 1 5"]),
    ("timestamps_disappeared", 0, [*STAMPED, "A P. 1 1 5 ts", "B R 1 0"]),
    ("timestamps_disappeared", 0, ["A S 0 0 0 ts", "B S. 0 1", "A . 1 1"]),  # declined
    ("conflicting_flags", 4, ["A SF 0 0", "A SR 0 0", "A FR 0 0", "A 0 0 0"]),
    ("conflicting_flags", 1, ["A SFR. 0 0"]),
    ("conflicting_flags", 0, [*TALK, *BYE, "A R. 0 0", "A P 0 0"]),
    ("ack_beyond_sent", 1, [*TALK, "A . 101 1002"]),
    ("ack_beyond_sent", 0, [*TALK, *BYE]),
    ("ack_beyond_sent", 0, ["A . 1 5000"]),  # mid-stream: the other side was not seen yet
    ("mss_outside_handshake", 1, [*TALK, "A . 101 1001 0 mss"]),
    ("mss_outside_handshake", 0, STAMPED),
    ("wscale_outside_handshake", 1, [*TALK, "A . 101 1001 0 wscale"]),
    ("wscale_outside_handshake", 0, ["A S 0 0 0 wscale"]),
    ("sack_without_ok", 1, [*TALK, "A . 101 1001 0 sack"]),
    ("sack_without_ok", 1, ["A S 0 0 0 sackok", "B S. 0 1", "A . 1 1 0 sack"]),
    ("sack_without_ok", 0, [*SACKING, "A . 1 1 0 sack"]),
    ("sack_without_ok", 0, ["A . 1 1 0 sack"]),  # mid-stream: nobody knows
    ("syn_started", 1, HELLO),
    ("syn_started", 0, ["B S. 0 1", "A . 1 1"]),
    ("gap", 1, [*TALK, "B P. 2001 101 10", "B P. 2011 101 10"]),
    ("gap", 0, [*TALK, *BYE]),
    ("retransmission", 2, [*TALK, "B P. 1 101 1000", "B P. 501 101 1000"]),
    ("retransmission", 2, ["A S 0 0", "A S 0 0", "A S 0 0"]),
    ("retransmission", 0, [*TALK, "A . 100 1001", "A . 100 1001 1"]),  # keep-alives
    ("rewind", 1, [*TALK, "B P. -500 101 10"]),
    ("rewind", 0, [*TALK, "B P. 1 101 1000", "B . 1000 101"]),
    ("endless_retransmission", 2, [*TALK, *["B P. 1 101 1000"] * 17]),
    ("endless_retransmission", 0, [*TALK, *["B P. 1 101 1000"] * 15, "B P. 1001 101 10", "B P. 501 101 10"]),
    ("window_overrun", 1, ["A S 0 0 0 window=99", "B S. 0 1", "A . 1 1 0 window=99", "B P. 1 1 99", "B P. 100 1 2"]),
    ("window_overrun", 1, [*SCALED, "B P. 1 1 1281"]),  # 10 << 7
    ("window_overrun", 0, [*SCALED, "B P. 1 1 1280", "A . 1 1281 0 window=0", "B . 1281 1 1"]),  # a window's probe
    ("window_overrun", 0, [*SCALED, "A . 1 1 0 window=5", "B P. 1 1 1280"]),  # a shrunken window
    ("window_overrun", 0, ["A . 1 1 0 window=1", "B P. 1 1 1000"]),  # mid-stream: the scale is not known
    ("data_before_handshake", 2, ["A S 0 0", "A P. 1 1 10", "B S. 0 1", "B P. 1 1 10"]),
    ("data_before_handshake", 0, ["A S 0 0 5", "B S. 0 6", "A P. 6 1 10", "B P. 1 16 10"]),
    ("data_before_handshake", 0, ["A P. 1 1 10"]),  # mid-stream
    ("data_after_fin", 1, [*TALK, "A F. 101 1001", "B . 1001 102", "A P. 102 1001 5"]),
    ("data_after_fin", 0, [*TALK, "A F. 101 1001 9", "B . 1001 111", "A F. 101 1001 9"]),
    ("data_after_reset", 1, [*TALK, "A R 101 0", "A P. 101 1001 5", "B P. 1001 101 5"]),
    ("data_after_reset", 0, [*TALK, "A R 101 0", "B P. 1001 101 5"]),
    ("tsval_regression", 1, [*STAMPED, "A P. 1 1 5 ts=9", "A P. 6 1 5 ts=8"]),
    ("tsval_regression", 0, [*STAMPED, "A P. 1 1 5 ts=9", "A P. 6 1 5 ts=9", "A P. 1 1 5 ts=8"]),  # late
    ("malformed_options", 1, ["A S 0 0 0 bad"]),
    ("malformed_options", 0, [*STAMPED, *SACKING]),
]  # fmt: skip


@pytest.mark.parametrize("zero", [0, 0xFFFFFFFF - 1500, 0xFFFFFFFF - 2050], ids=["low", "A wraps", "B wraps"])
@pytest.mark.parametrize(("name", "times", "trace"), TRACES)
def test_traces(name: str, times: int, trace: list[str], zero: int) -> None:
    found, _ = tr(*trace, zero=zero)
    assert found.get(name, 0) == times, found


@pytest.mark.parametrize("finding", c.FINDINGS, ids=lambda finding: finding.name)
def test_each_row_is_whole_and_has_traces_for_and_against(finding: c.Finding) -> None:
    assert finding.definition and finding.rfc
    assert [finding.frame, finding.captured, finding.packet, finding.flow].count(None) == 3
    if finding.by_flow and finding.name != "dns_before_connect":
        assert {times > 0 for name, times, _ in TRACES if name == finding.name} == {True, False}


def test_a_whole_conversation_is_all_good_and_nothing_else() -> None:
    found, flows = tr(*TALK, *BYE)
    assert found == {finding.name: 1 for finding in c.FINDINGS if finding.good and finding.name != "dns_before_connect"}
    (flow,) = flows
    assert flow.ending() == "fin_both"
    assert (flow.syn_ns, flow.syn_ack_ns, flow.established_ns) == (0, 1_000_000, 2_000_000)
    assert (flow.originator.payload, flow.responder.payload) == (100, 1000)


@pytest.mark.parametrize(
    ("ending", "more"),
    [("fin_both", BYE), ("fin_one", BYE[:1]), ("rst", ["B R 1001 0"]), ("rst", [BYE[0], "B R 1001 0"]), ("open", [])],
)
def test_endings(ending: str, more: list[str]) -> None:
    assert [flow.ending() for flow in tr(*TALK, *more)[1]] == [ending]


def test_a_syn_with_another_number_opens_a_new_flow_unless_the_old_one_is_open() -> None:
    assert len(tr(*TALK, *BYE, "A S 5000 0")[1]) == 2
    assert len(tr("A S 0 0", "B R. 0 1", "A S 5000 0")[1]) == 2
    assert len(tr("A S 0 0", "A S 5000 0")[1]) == 2
    assert len(tr(*TALK, "A S 5000 0")[1]) == 1
    assert len(tr(*TALK, *BYE, "A S 0 0")[1]) == 1


def test_a_capture_that_begins_with_the_answer_knows_who_originated() -> None:
    (flow,) = tr("B S. 0 1", "A . 1 1")[1]
    assert flow.key[1] == 40000
    assert flow.stage == c.NO_SYN


def test_each_packet_names_what_it_raised() -> None:
    checker = c.Checker()
    assert [checker.observe(headers(line), 0) for line in HELLO] == [0, 0, 0]
    assert checker.observe(headers("A SF. 9 9"), 0) == sum(
        1 << c.INDEX[name] for name in ("unexpected_syn", "conflicting_flags", "ack_beyond_sent", "gap")
    )


def test_the_papers_reading_takes_cut_packets_for_empty_ones() -> None:
    def cut(line: str) -> Headers:
        h = headers(line)
        h.body = b""
        return h

    for captured_lengths, expected in ((False, 0), (True, 4)):
        checker = c.Checker(captured_lengths)
        for line in (*TALK, "A . 101 1001"):
            checker.observe(cut(line), 0)
        assert checker.finish().in_packets[c.INDEX["ack_beyond_sent"]] == expected


def test_frames_that_are_not_what_they_say() -> None:
    checker = c.Checker()
    good = render(headers("A S 0 0"))[0]
    checker.observe_bytes(0, good, len(good))
    checker.observe_bytes(0, good[:14] + b"\x55" + good[15:], len(good))  # version 5
    checker.observe_bytes(0, good[:24] + bytes((good[24] ^ 1,)) + good[25:], len(good))  # checksum
    checker.observe_bytes(0, good[:12] + b"\x88\xcc" + good[14:], len(good))  # LLDP: nobody says it were IP
    totals = checker.finish()
    assert [totals.in_packets[c.INDEX[name]] for name in ("unreadable_ip", "ip_checksum")] == [1, 1]
    assert (totals.packets, totals.tcp_packets) == (4, 2)


def answer(*addresses: bytes) -> bytes:
    """A DNS response to one question, each answer's name a pointer to it."""
    records = [
        b"\xc0\x0c" + (1 if len(a) == 4 else 28).to_bytes(2, "big") + bytes((0, 1, 0, 0, 0, 60, 0, len(a))) + a
        for a in addresses
    ]
    head = b"\x12\x34\x81\x80\x00\x01" + bytes((0, len(addresses), 0, 0, 0, 0))
    return head + b"\x01a\x00\x00\x01\x00\x01" + b"".join(records)


def datagram(body: bytes, sport: int = 53) -> Headers:
    h = headers("B . 0 0")
    h.transport = h.protocol = UDP
    h.sport, h.body, h.payload_len = sport, body, len(body)
    return h


def test_dns_before_connect_is_a_flow_to_an_address_that_an_answer_gave() -> None:
    def first_lookup(*before: Headers) -> bool:
        flows: list[c.Flow] = []
        checker = c.Checker(on_flow=flows.append)
        for h in [*before, *map(headers, HELLO)]:
            checker.observe(h, 0)
        checker.finish()
        return "dns_before_connect" in flows[0].found()

    server, other = bytes((198, 18, 0, 2)), bytes((198, 18, 0, 3))
    assert first_lookup(datagram(answer(other, bytes(16), server)))
    assert not first_lookup(datagram(answer(other)))
    assert not first_lookup(datagram(answer(server), sport=5353))
    assert not first_lookup(datagram(b"\x12\x34\x01" + answer(server)[3:]))  # a question
    assert not first_lookup()
    assert named_addresses(answer(server, other)) == [server, other]
    assert all(named_addresses(answer(server)[:n]) == [] for n in range(len(answer(server))))


@given(st.binary(max_size=100))
def test_names_in_any_bytes(message: bytes) -> None:
    assert all(len(address) in (4, 16) for address in named_addresses(answer()[:12] + message))


FRAMES = {
    # finding -> a frame with it: what is changed in a good one
    "tcp_checksum": ("A P. 1 1 10", 50, 1), "ip_checksum": ("A P. 1 1 10", 24, 1),
    "unreadable_ip": ("A P. 1 1 10", 14, 16),
    "udp_checksum": ("", 40, 1), "ip_length": ("A P. 1 1 10", 17, 64), "udp_length": ("", 39, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
def test_lengths_and_checksums(name: str) -> None:
    line, at, bit = FRAMES[name]
    good = render(headers(line) if line else datagram(b"some bytes", 1000))[0]
    bad = good[:at] + bytes((good[at] ^ bit,)) + good[at + 1 :]
    assert c.Checker().observe_bytes(0, good, len(good)) == 0
    assert c.Checker().observe_bytes(0, good[:-1], len(good)) == 0
    assert c.Checker().observe_bytes(0, bad, len(good)) & 1 << c.INDEX[name]
    cut = c.Checker().observe_bytes(0, bad[:-1], len(good))
    assert bool(cut) != (name in ("tcp_checksum", "udp_checksum"))  # not judged unless all is there


def test_an_icmp_checksum_and_a_udp_checksum_of_zero() -> None:
    h = datagram(b"data")
    h.transport = h.protocol = ICMP
    good = render(h)[0]
    assert c.Checker().observe_bytes(0, good, len(good)) == 0
    assert c.Checker().observe_bytes(0, good[:-1] + b"z", len(good)) == 1 << c.INDEX["icmp_checksum"]
    h = datagram(b"data", 1000)
    none = render(h)[0][:40] + b"\0\0" + render(h)[0][42:]
    assert c.Checker().observe_bytes(0, none, len(none)) == 0  # IPv4: there is none
    h.version, h.src, h.dst, h.link = IPV6, bytes(16), bytes(16), bytes(12) + b"\x86\xdd"
    none = render(h)[0][:60] + b"\0\0" + render(h)[0][62:]
    assert c.Checker().observe_bytes(0, none, len(none)) == 1 << c.INDEX["udp_checksum"]


def test_time_goes_back() -> None:
    checker = c.Checker()
    found = [checker.observe(headers("A . 1 1"), t) for t in (5, 5, 4, 5)]
    assert [bits >> c.INDEX["time_regression"] & 1 for bits in found] == [0, 0, 1, 0]


def test_options_are_counted_by_packet() -> None:
    checker = c.Checker()
    for line in [*STAMPED, "A . 1 1 0 wscale,sackok,sack", "A . 1 1 0 sack,bad"]:
        checker.observe(headers(line), 0)
    assert checker.finish().options == {2: 2, 3: 1, 4: 1, 8: 3, 5: 2}


def test_memory_is_bounded_and_the_silent_flows_go_first() -> None:
    ended: list[c.Flow] = []
    checker = c.Checker(max_flows=32, on_flow=ended.append)
    keep = headers("A . 1 1", a_port=1)
    for i in range(1000):
        checker.observe(headers("A S 0 0", a_port=1000 + i), i * 2)
        checker.observe(keep, i * 2 + 1)
        assert len(checker._flows) <= 32
    assert all(flow.key[1] != 1 for flow in ended)
    assert checker.finish().flows == 1001 == len(ended)


def test_totals_add_up() -> None:
    total = c.Totals()
    for lines in (TALK + BYE, HELLO, ["A SF 0 0"]):
        checker = c.Checker()
        for line in lines:
            checker.observe(headers(line), 0)
        total.add(checker.finish())
    assert (total.captures, total.flows, total.packets) == (3, 3, 14)
    i = c.INDEX["handshake"]
    assert (total.in_flows[i], total.in_captures[i]) == (2, 2)
    assert total.endings == {"fin_both": 1, "fin_one": 1, "rst": 0, "open": 1}


def test_udp_is_not_judged_as_tcp() -> None:
    h = headers("A . 1 1")
    h.transport = h.protocol = UDP
    checker = c.Checker()
    assert checker.observe(h, 0) == 0
    assert checker.finish().flows == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=120), st.integers(0, 2000)), max_size=30))
def test_any_bytes(frames: list[tuple[bytes, int]]) -> None:
    checker = c.Checker(max_flows=4)
    for i, (data, orig_len) in enumerate(frames):
        checker.observe_bytes(i, data, orig_len)
        checker.observe_bytes(i, bytes(12) + b"\x08\x00\x45\x00" + data, orig_len)
    assert checker.finish().packets == 2 * len(frames)


packets = st.builds(
    lambda side, flags, seq, ack, length, options: headers(
        f"{side} {''.join(flags) or '0'} {seq} {ack} {length} {','.join(options)}"
    ),
    st.sampled_from("AB"), st.sets(st.sampled_from("SFRP.")), st.integers(-2, 4), st.integers(-2, 4), st.integers(0, 2),
    st.sets(st.sampled_from(sorted(OPTIONS)), max_size=2),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(packets, max_size=40))
def test_any_packets_give_sums_that_fit(trace: list[Headers]) -> None:
    flows: list[c.Flow] = []
    checker = c.Checker(on_flow=flows.append)
    found = [checker.observe(h, i) for i, h in enumerate(trace)]
    totals = checker.finish()
    assert sum(flow.originator.packets + flow.responder.packets for flow in flows) == len(trace)
    for i, finding in enumerate(c.FINDINGS):
        if finding.packet is not None:
            assert totals.in_packets[i] == sum(bits >> i & 1 for bits in found) == sum(f.counts[i] for f in flows)
        assert totals.in_flows[i] == sum(finding.name in flow.found() for flow in flows)


@given(st.binary(max_size=40))
def test_option_kinds_of_any_bytes(options: bytes) -> None:
    assert 0 <= c.option_kinds(options) < 1 << 64


@pytest.mark.capture
@pytest.mark.skipif(not (CAPTURES / "lab").is_dir(), reason="no captures (NETSSMD_CAPTURES)")
def test_real_traffic_is_as_good_as_it_is() -> None:
    files = sorted((CAPTURES / "lab").glob("*/*.pcap.gz"))
    total, other = c.Totals(), c.Totals()
    for path in random.Random(5).sample(files, 12):
        checker, wire = c.Checker(), c.Checker()
        with path.open("rb") as file:
            for packet in read_capture(file):
                checker.observe_bytes(*packet)
                data, orig_len = render(parse(packet.data, packet.orig_len))
                wire.observe_bytes(packet.ts_ns, data, orig_len)
        total.add(checker.finish())
        other.add(wire.finish())
    assert total.flows > 0 and total.in_flows == other.in_flows and total.in_packets == other.in_packets
    for name in ("conflicting_flags", "ack_beyond_sent", "unexpected_syn", "malformed_options", "unreadable_ip"):
        assert total.in_packets[c.INDEX[name]] == 0


def test_the_document_has_the_rows_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "tools")
    findings = importlib.import_module("findings")
    text = findings.DOCUMENT.read_text()
    assert findings.document(text) == text, "run: python tools/findings.py"
