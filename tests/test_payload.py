"""Payloads: any kind in any size, the same bytes for the same seed and when sent again; scapy and tshark read them."""

import shutil
import subprocess
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netssmd.codec.kinds import KINDS, LEAST
from netssmd.engine.identities import FreshIdentities
from netssmd.engine.names import wire_name
from netssmd.engine.plan import address_plan
from netssmd.engine.sampling import Stream
from netssmd.packet.messages import FAMILIES, WRITERS
from netssmd.packet.payload import MAX_FLOWS, MODES, PayloadWriter
from netssmd.packet.pcap import Packet, PcapWriter
from netssmd.packet.render import render
from netssmd.packet.wire import ACK, ICMP, IPV4, MORE_FRAGMENTS, PSH, SYN, TCP, UDP, Headers

CLIENT, SERVER = bytes((198, 18, 0, 1)), bytes((198, 19, 0, 1))
NUMBER = {name: i for i, name in enumerate(KINDS)} | {"smtp-banner": KINDS.index("ftp-banner")}
SIZES = (1, 2, 5, 13, 20, 33, 47, 64, 100, 131, 200, 333, 901, 1400)

# Family: the server's port, what tshark calls it. Media has no port of its own.
NAMES = {
    "tls": (443, "tls"), "dns": (53, "dns"), "ntp": (123, "ntp"), "quic": (443, "quic"), "dhcp": (67, "dhcp"),
    "snmp": (161, "snmp"), "mqtt": (1883, "mqtt"), "smb": (445, "nbss"), "http": (80, "http"), "http2": (80, "http2"),
    "ssh": (22, "ssh"), "ftp": (21, "ftp"), "smtp": (25, "smtp"), "imap": (143, "imap"), "pop": (110, "pop"),
    "sip": (5060, "sip"),
    "rsync": (873, "rsync"), "ssdp": (1900, "ssdp"), "bittorrent": (6881, "bittorrent"), "redis": (6379, "resp"),
    "rdp": (3389, "tpkt"), "media": (9000, ""), "": (9000, ""),
}  # fmt: skip
OF_A_PORT = {"smtp-banner"}  # what speaks so shows at the port: for the codec it is another kind
MEDIA = {"stun-request": "stun", "stun-response": "stun", "dtls": "dtls", "rtcp": "rtcp", "rtp": "rtp"}


class Talk:
    """A flow between two hosts, through a writer."""

    def __init__(self, writer: PayloadWriter, transport: int, port: int, flow: int = 0, sport: int = 40000) -> None:
        self.writer, self.transport, self.port, self.flow, self.sport = writer, transport, port, flow, sport
        self.seq = [1000, 0xFFFFFF00]
        self.told: set[int] = set()
        self.server = SERVER

    def packet(self, direction: int, size: int, kind: str = "unknown", flags: int = PSH | ACK) -> Headers:
        h = Headers()
        h.link = bytes.fromhex("024e00000002024e000000010800")
        h.version, h.transport, h.protocol = IPV4, self.transport, self.transport
        h.src, h.sport, h.dst, h.dport = CLIENT, self.sport, self.server, self.port
        if direction:
            h.src, h.sport, h.dst, h.dport = self.server, self.port, CLIENT, self.sport
        h.payload_len = size
        if self.transport == TCP:
            h.seq, h.ack, h.flags, h.window = self.seq[direction], self.seq[1 - direction], flags, 500
            self.seq[direction] = (h.seq + size + (1 if flags & SYN else 0)) & 0xFFFFFFFF
        number = 0 if direction in self.told else NUMBER[kind]
        if size:
            self.told.add(direction)
        self.writer.fill(h, self.flow, direction, number)
        return h

    def say(self, direction: int, size: int, kind: str = "unknown", flags: int = PSH | ACK) -> bytes:
        return self.packet(direction, size, kind, flags).body


def writer(mode: str = "protocol", seed: int = 1) -> PayloadWriter:
    return PayloadWriter(mode, Stream(seed), KINDS)


def sides(kind: str) -> tuple[str, str]:
    """What originator and responder say in a flow in which one of them says `kind`."""
    row = WRITERS.get(kind)
    if row is None or row[2] is None:
        return kind, kind
    both = FAMILIES[row[3]]
    if row[3] == "media":
        both = ("stun-request", "stun-response")
    return (kind, both[1]) if row[2] else (both[0], kind)


def transports(kind: str) -> list[int]:
    transport = WRITERS[kind][4] if kind in WRITERS else 0
    return [transport] if transport else [TCP, UDP]


def test_every_kind_has_a_row_and_every_row_a_kind() -> None:
    assert set(WRITERS) - OF_A_PORT | {"unknown", "binary"} == set(KINDS)
    assert all(row[3] in FAMILIES or not row[3] for row in WRITERS.values())
    assert {name for _, name in LEAST} <= set(KINDS)


@given(
    st.sampled_from(KINDS), st.sampled_from([TCP, UDP]), st.sampled_from([53, 80, 443, 22, 9000]),
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 1500), st.booleans()), min_size=1, max_size=12),
)  # fmt: skip
def test_any_size_of_any_kind(kind: str, transport: int, port: int, said: list[tuple[int, int, bool]]) -> None:
    talks = [Talk(writer(), transport, port) for _ in range(2)]
    for direction, size, last in said:
        first, again = (t.say(direction, size, sides(kind)[direction], PSH | ACK if last else ACK) for t in talks)
        assert len(first) == size and first == again


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport", [TCP, UDP])
def test_modes(mode: str, transport: int) -> None:
    talk = Talk(writer(mode), transport, 53)
    bodies = [talk.say(0, 600, "dns-query-a") for _ in range(3)]
    if mode == "zero":
        assert bodies == [b""] * 3
    else:
        assert all(len(body) == 600 for body in bodies) and len(set(bodies)) > 1
    if mode == "pattern":
        assert {(b - a) & 255 for a, b in pairwise(bodies[0])} == {1}
    assert (bodies == [Talk(writer(mode, 2), transport, 53).say(0, 600) for _ in range(3)]) is (mode == "zero")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if TCP in transports(kind)])
def test_bytes_sent_again_are_the_same_bytes(kind: str) -> None:
    talk = Talk(writer(), TCP, NAMES[WRITERS[kind][3] if kind in WRITERS else ""][0])
    stream, start = b"", talk.seq[0]
    for size in (60, 7, 1, 700, 500, 3, 500):
        stream += talk.say(0, size, sides(kind)[0])
        talk.say(1, 40, sides(kind)[1])
    for before, size in ((900, 60), (880, 700), (509, 20), (503, 503), (100, 10), (90, 90)):
        at = len(stream) - before
        talk.seq[0] = start + at
        assert talk.say(0, size) == stream[at : at + size]


def test_a_hole_in_the_stream_has_bytes_of_its_own() -> None:
    whole, late = Talk(writer(), TCP, 443), Talk(writer(), TCP, 443)
    for talk in (whole, late):
        talk.say(0, 300, "tls-client-hello")
    first, second = whole.say(0, 200), whole.say(0, 200)
    late.seq[0] += 200
    assert late.say(0, 200) == second
    late.seq[0] -= 400
    assert late.say(0, 200) == first


def test_memory_is_bounded_and_forgetting_is_no_error() -> None:
    w = writer()
    for flow in range(MAX_FLOWS + 50):
        assert len(Talk(w, UDP, 53, flow).say(0, 40, "dns-query-a")) == 40
    assert len(w._flows) == MAX_FLOWS
    assert len(Talk(w, UDP, 53, 0).say(1, 80)) == 80
    talk = Talk(w, TCP, 6379, 9999)
    for _ in range(500):
        talk.say(0, 900, "redis-command")
    assert sum(len(piece) for _, piece in w._flows[9999][0].written) < 10_000


def test_bodies_that_are_there_and_packets_without_payload_stay() -> None:
    h = Headers()
    h.version, h.transport, h.payload_len, h.body = IPV4, ICMP, 40, b"quoted"
    writer().fill(h, 0, 0, 0)
    assert h.body == b"quoted"
    h.body = b""
    writer().fill(h, 0, 0, 0)
    assert h.body == bytes(range(40))
    assert Talk(writer(), TCP, 80).say(0, 0) == b""


@pytest.mark.parametrize("total", [2000, 4000])
def test_a_fragmented_answer_ends_in_zeros(total: int) -> None:
    dns = pytest.importorskip("scapy.layers.dns")
    w = writer()
    Talk(w, UDP, 53).say(0, 40, "dns-query-a")
    h = Talk(w, UDP, 53).packet(1, 0)
    h.payload_len, h.udp_length_delta, h.ip_flags = 1472, total - 1472, MORE_FRAGMENTS
    w.fill(h, 0, 1, NUMBER["dns-answer-many"])
    message = dns.DNS(h.body + bytes(total - 1472))
    assert len(h.body) == 1472 and message.ancount >= 5 and message.ar is not None


ANSWERS = {
    "dns-answer-empty": (0, 0, 0), "dns-answer-1": (0, 1, 1), "dns-answer-few": (0, 2, 4),
    "dns-answer-many": (0, 5, 99), "dns-nxdomain": (3, 0, 0), "dns-error": (2, 0, 0),
}  # fmt: skip


@given(
    st.sampled_from(["dns-query-a", "dns-query-aaaa", "dns-query-other"]), st.sampled_from(sorted(ANSWERS)),
    st.integers(26, 90), st.integers(0, 900), st.booleans(),
)  # fmt: skip
def test_dns_answers_match_their_questions(query: str, answer: str, asks: int, more: int, tcp: bool) -> None:
    dns = pytest.importorskip("scapy.layers.dns")
    rcode, least, most = ANSWERS[answer]
    framing = 2 if tcp else 0
    talk = Talk(writer(), TCP if tcp else UDP, 53)
    asked = dns.DNS(talk.say(0, asks + framing, query)[framing:])
    answers = asks + 28 * least + more
    told = dns.DNS(talk.say(1, answers + framing, answer)[framing:])
    assert (told.id, told.qd[0].qname, told.qd[0].qtype) == (asked.id, asked.qd[0].qname, asked.qd[0].qtype)
    assert asked.qd[0].qtype == {"dns-query-a": 1, "dns-query-aaaa": 28, "dns-query-other": 16}[query]
    assert told.qr == 1 and told.rcode == rcode and least <= told.ancount <= most
    assert len(told.an or []) == told.ancount


def test_answers_repeat_what_was_asked() -> None:
    stun = Talk(writer(), UDP, 3478)
    assert stun.say(0, 20, "stun-request")[8:20] == stun.say(1, 44, "stun-response")[8:20]
    ntp = Talk(writer(), UDP, 123)
    assert ntp.say(0, 48, "ntp-client")[40:48] == ntp.say(1, 48, "ntp-server")[24:32]
    sip = Talk(writer(), UDP, 5060)
    request, response = sip.say(0, 400, "sip-request"), sip.say(1, 400, "sip-response")
    assert request.split(b"Call-ID: ")[1][:12] == response.split(b"Call-ID: ")[1][:12]


def test_rtp_counts_on_from_one_source() -> None:
    talk = Talk(writer(), UDP, 9000)
    packets = [talk.say(0, 200, "rtp") for _ in range(50)]
    numbers = [int.from_bytes(p[2:4], "big") for p in packets]
    stamps = [int.from_bytes(p[4:8], "big") for p in packets]
    assert {(b - a) & 0xFFFF for a, b in pairwise(numbers)} == {1}
    assert {(b - a) & 0xFFFFFFFF for a, b in pairwise(stamps)} == {960}
    assert len({p[8:12] for p in packets}) == 1 and packets[0][8:12] != talk.say(1, 200, "rtp")[8:12]


def test_a_flow_speaks_one_protocol() -> None:
    talk = Talk(writer(), TCP, 8080)
    assert talk.say(0, 200, "http-get").startswith(b"GET /")
    assert talk.say(1, 200, "ntp-server").startswith(b"HTTP/1.1 200")
    talk = Talk(writer(), UDP, 53)  # at some ports a dissector insists
    assert talk.say(0, 60, "rtp")[2:6] == b"\1\0\0\1"
    talk = Talk(writer(), UDP, 40001, sport=53)
    assert talk.say(1, 60, "unknown")[2:6] == b"\1\0\0\1"


def capture(out: PcapWriter) -> list[tuple[str, int, int]]:
    """Flows of every kind at all sizes, raised as the decoder does. Return: each packet's kind, transport and size."""
    w, rows, flow = writer(), [], 0
    for kind in KINDS:
        family = WRITERS[kind][3] if kind in WRITERS else ""
        both = sides(kind)
        for transport in transports(kind):
            for first in SIZES:
                for then in (first, 1, 40, 1000):
                    flow += 1
                    port = 9001 if kind == "rtp" else NAMES[family][0]
                    talk = Talk(w, transport, port, flow, 30000 + flow)
                    plan = [(0, 0, SYN), (1, 0, SYN | ACK), (0, 0, ACK)] if transport == TCP else []
                    order = (1, 0) if family in ("ftp", "smtp", "imap", "pop") else (0, 1)
                    for i in range(3):
                        plan += [(d, then if i else first, ACK if i == 1 else PSH | ACK) for d in order]
                    for direction, size, flags in plan:
                        size = max(size, LEAST.get((transport, both[direction]), 0)) if size else 0
                        h = talk.packet(direction, size, both[direction], flags)
                        assert len(h.body) in (0, size)
                        rows.append((both[direction], transport, size))
                        out.write(Packet(len(rows) * 1_000_000, *render(h)))
    out.flush()
    return rows


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
def test_tshark_finds_nothing_malformed_and_names_every_protocol(tmp_path: Path) -> None:
    path = tmp_path / "kinds.pcap"
    with path.open("wb") as file:
        rows = capture(PcapWriter(file))
    fields = ("frame.protocols", "ip.checksum.status", "tcp.checksum.status", "udp.checksum.status")
    command = ["tshark", "-r", str(path), "-d", "udp.port==9001,rtp", "-T", "fields"]
    command += [f"-o{p}.check_checksum:TRUE" for p in ("ip", "tcp", "udp")]
    command += [option for field in fields for option in ("-e", field)]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout.splitlines()
    assert len(lines) == len(rows)
    payloads, named = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for (kind, transport, size), line in zip(rows, lines):
        protocols, *statuses = line.split("\t")
        assert "_ws.malformed" not in protocols and "0" not in statuses, (kind, transport, size)
        family = WRITERS[kind][3] if kind in WRITERS else ""
        name = MEDIA[kind] if family == "media" else NAMES[family][1]
        if name and size and kind != "quic-short":  # which needs the long header before it
            payloads[kind, transport] += 1
            named[kind, transport] += name in protocols.split(":")
    for (kind, transport), count in payloads.items():
        # On TCP a message may need several segments; of STUN's and RTCP's sizes only multiples of 4 are theirs.
        part = 0.2 if transport == TCP or kind in MEDIA else 1.0
        assert named[kind, transport] >= part * count, kind
    assert {kind for kind, _ in payloads} >= set(WRITERS) - {"zeros", "text", "quic-short"}


def test_the_plan_names_servers_in_questions_answers_hellos_and_requests() -> None:
    """DNS before use: what is asked for, what the answer holds, where the session goes and what it calls it."""
    names = FreshIdentities(address_plan(seed=3), 0, Stream(7))
    w = PayloadWriter("protocol", Stream(1), KINDS, names)
    dns = Talk(w, UDP, 53, flow=1)
    for size in range(30, 60):
        question = dns.say(0, size, "dns-query-a")
        again = dns.say(0, size, "unknown")  # as long, before the answer: AAAA for the same name
        if not question[11]:  # without an additional record
            assert question[12:-4] == again[12:-4] and (question[-3], again[-3]) == (1, 28)
        answer = dns.say(1, size + 16, "dns-answer-1")
        dns.say(1, size, "unknown")
        wire = question[12 : question.index(b"\0", 12) + 1]
        assert answer[:2] == question[:2] and wire in answer
        names.settle(names.host(4, 0, 1)[0], 53)
        address = names.settle(names.host(4, 0, 1)[0], 443)[0]
        assert answer[12 + len(wire) + 4 :][12:16] == address
        text = names.server_name(address)
        assert wire_name(text) == wire
        for port, kind, room in ((443, "tls-client-hello", 517), (443, "tls-client-hello", 190), (80, "http-get", 120)):
            talk = Talk(w, TCP, port, flow=1000 * size + room)
            talk.server = address
            said = talk.say(0, room, kind)
            assert text in said and (kind != "http-get" or b"\r\nHost: " + text + b"\r\n" in said)


@pytest.mark.parametrize("room", range(60, 700, 7))
def test_a_hello_is_whole_in_any_room_and_name_of_any_length(room: int) -> None:
    for size in (4, 9, 15, 21, 40, 63):
        names = FreshIdentities(address_plan(names=["x" * (size - 3) + ".xy"]), 0, Stream(7))
        talk = Talk(PayloadWriter("protocol", Stream(1), KINDS, names), TCP, 443)
        hello = talk.say(0, room, "tls-client-hello")
        assert hello[:3] == b"\x16\3\1" and int.from_bytes(hello[3:5], "big") == room - 5
        assert int.from_bytes(hello[6:9], "big") == room - 9
        at = 9 + 34
        at += 1 + hello[at]
        at += 2 + int.from_bytes(hello[at : at + 2], "big")
        at += 1 + hello[at]
        assert int.from_bytes(hello[at : at + 2], "big") == room - at - 2
        at += 2
        while at < room:
            at += 4 + int.from_bytes(hello[at + 2 : at + 4], "big")
        assert at == room


def test_a_request_without_room_for_the_host_is_of_version_1_0() -> None:
    for room in range(18, 200):
        said = Talk(writer(), TCP, 80).say(0, room, "http-get")
        head, _, rest = said.partition(b"\r\n\r\n")
        assert head.startswith(b"GET /") and not rest
        assert (b"Host: " in head) == (b" HTTP/1.1" in head)
