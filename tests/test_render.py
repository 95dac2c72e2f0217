"""Headers out: frames byte for byte as scapy builds them, and nothing in them that tshark objects to."""

import io
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import frames
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netssmd.codec.decoder import Decoder
from netssmd.packet.pcap import Packet, PcapWriter
from netssmd.packet.render import render
from netssmd.packet.wire import ICMP, IPV4, NOT_IP, UDP, Headers, parse

scapy = pytest.importorskip("scapy.all")

ETHER = scapy.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4 = scapy.IP(src="10.0.0.1", dst="10.0.0.2", id=7)
V6 = scapy.IPv6(src="2001:2::1", dst="2001:2::2")
QUOTED = scapy.IP(src="10.0.0.2", dst="10.0.0.1") / scapy.UDP(sport=50001, dport=50002) / bytes(20)
ROUTER_ALERT = scapy.IPOption_Router_Alert()
TIMESTAMPS = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
STACK = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (9, 0)), ("NOP", None), ("WScale", 7)]


def tcp(**fields: Any) -> Any:
    return scapy.TCP(**{"sport": 50001, "dport": 50002, "flags": "A", **fields})


def udp(**fields: Any) -> Any:
    return scapy.UDP(**{"sport": 50001, "dport": 50002, **fields})


def with_tcp_options(raw: bytes) -> Any:
    """Options as they are, malformed or not, which scapy would not write."""
    return V4 / scapy.TCP(frames.tcp(50001, 50002, 0x10, 1, 2, options=raw)[:16] + bytes(4) + raw)


FRAMES: dict[str, Callable[[], Any]] = {
    "arp request": lambda: scapy.Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff") / scapy.ARP(psrc="10.0.0.1"),
    "arp reply": lambda: ETHER / scapy.ARP(op=2, psrc="10.0.0.1", pdst="10.0.0.2"),
    "tcp syn": lambda: ETHER / V4 / tcp(flags="S", options=STACK),
    "tcp syn with data": lambda: ETHER / V4 / tcp(flags="S", options=STACK) / bytes(1440),
    "tcp data": lambda: ETHER / V4 / tcp(flags="PA", seq=2**32 - 1, options=TIMESTAMPS) / b"odd",
    "tcp sack": lambda: ETHER / V4 / tcp(options=[("NOP", None), ("NOP", None), ("SAck", (1, 2, 5, 9))]),
    "tcp urgent ece cwr": lambda: ETHER / V4 / tcp(flags="UECA", urgptr=3, window=0) / b"abcd",
    "tcp reserved bits": lambda: ETHER / V4 / tcp(reserved=7, flags=0x1FF),
    "tcp longest options": lambda: ETHER / V4 / tcp(options=[("NOP", None)] * 40),
    "tcp segmented later": lambda: ETHER / V4 / tcp() / bytes(65_000),
    "udp": lambda: ETHER / V4 / udp() / b"hello",
    "udp empty": lambda: ETHER / V4 / udp(),
    "udp whose sum is zero": lambda: ETHER / V4 / udp() / b"\x3a\x1d",
    "ip options": lambda: ETHER / scapy.IP(src="10.0.0.1", dst="10.0.0.2", options=[ROUTER_ALERT]) / udp(),
    "ip reserved flag": lambda: ETHER / scapy.IP(src="10.0.0.1", dst="10.0.0.2", flags="evil", tos=0xB8, ttl=1) / udp(),
    "later fragment": lambda: ETHER / scapy.IP(src="10.0.0.1", dst="10.0.0.2", frag=185, proto=17, id=9) / bytes(99),
    "first tcp fragment": lambda: ETHER / scapy.IP(src="10.0.0.1", dst="10.0.0.2", flags="MF", proto=6) / bytes(16),
    "another protocol": lambda: ETHER / scapy.IP(src="10.0.0.1", dst="10.0.0.2", proto=253) / b"experimental",
    "icmp echo": lambda: ETHER / V4 / scapy.ICMP(id=1, seq=2) / b"abcdefg",
    "icmp error": lambda: ETHER / V4 / scapy.ICMP(type=3, code=3) / QUOTED,
    "vlan": lambda: ETHER / scapy.Dot1Q(vlan=5) / V4 / tcp(),
    "qinq": lambda: ETHER / scapy.Dot1AD(vlan=6) / scapy.Dot1Q(vlan=5) / V4 / tcp(),
    "ipv6 tcp": lambda: ETHER / V6 / tcp(flags="S", options=STACK),
    "ipv6 udp": lambda: ETHER / scapy.IPv6(src="2001:2::1", dst="2001:2::2", tc=2, fl=77, hlim=1) / udp() / b"x",
    "ipv6 hop by hop": lambda: ETHER / V6 / scapy.IPv6ExtHdrHopByHop(options=scapy.RouterAlert()) / udp() / b"abc",
    "ipv6 two headers": lambda: ETHER / V6 / scapy.IPv6ExtHdrHopByHop() / scapy.IPv6ExtHdrDestOpt() / tcp() / b"x",
    "ipv6 fragment": lambda: ETHER / V6 / scapy.IPv6ExtHdrFragment(offset=10, m=1, nh=17) / bytes(64),
    "icmpv6 echo": lambda: ETHER / V6 / scapy.ICMPv6EchoRequest(id=1, seq=2) / b"abc",
    "icmpv6 error": lambda: ETHER / V6 / scapy.ICMPv6DestUnreach(code=4) / V6 / udp() / bytes(9),
    "neighbour solicitation": lambda: ETHER / V6 / scapy.ICMPv6ND_NS(tgt="2001:2::2"),
}  # fmt: skip


def built(name: str) -> bytes:
    return bytes(FRAMES[name]())


@pytest.mark.parametrize("name", FRAMES)
def test_frames_are_those_that_scapy_builds(name: str) -> None:
    """Byte for byte: each length and each checksum."""
    data = built(name)
    headers = parse(data, len(data))
    assert headers.version != NOT_IP
    assert render(headers) == (data, len(data))


def test_a_udp_sum_of_zero_is_sent_as_all_ones() -> None:
    for number in range(65536):  # one of them makes the sum zero
        data = bytes(40) + frames.word(number)
        headers = parse(
            frames.ethernet(*frames.HOSTS4[:2], frames.ipv4(*frames.HOSTS4[:2], 17, frames.udp(0, 0, data))), 84
        )
        if parse(render(headers)[0], 84).checksum == 0xFFFF:
            return
    raise AssertionError("the sum was never all ones")


@pytest.mark.parametrize(
    "raw", [b"\x08\xff\0\0", b"\x05\0\0\0", b"\x02\x04\x05", b"\xff" * 40, b"\0" * 4, b"\x08\x0a\1\2\3\4\5\6"]
)
def test_malformed_tcp_options_are_kept(raw: bytes) -> None:
    raw += bytes(-len(raw) % 4)
    data = frames.ethernet(
        *frames.HOSTS4[:2], frames.ipv4(*frames.HOSTS4[:2], 6, frames.tcp(1, 2, 16, 3, 4, options=raw))
    )
    headers = parse(data, len(data))
    assert headers.tcp_options == raw
    again, _ = render(headers)
    assert again[:50] + again[52:] == data[:50] + data[52:]


def test_a_wrong_ip_checksum_is_kept() -> None:
    packet = frames.ipv4(*frames.HOSTS4[:2], 17, frames.udp(1, 2, b"ab"), checksum=0x1234)
    data = frames.ethernet(*frames.HOSTS4[:2], packet)
    again, _ = render(parse(data, len(data)))
    assert again[24:26] == b"\x12\x34"


def test_padding_and_a_frame_check_sequence_are_trailers() -> None:
    data = built("udp") + bytes(10) + b"\xde\xad\xbe\xef"
    headers = parse(data, len(data))
    assert headers.trailer_len == 14
    assert render(headers) == (data, len(data))


def test_snaplen_cuts_the_bytes_and_not_the_truth() -> None:
    headers = parse(built("tcp syn with data"), len(built("tcp syn with data")))
    whole, orig_len = render(headers)
    assert render(headers, 96) == (whole[:96], orig_len)
    assert render(headers, 10**6) == (whole, orig_len)


@given(st.integers(0, 2**32))
def test_what_was_not_captured_is_filled_up(seed: int) -> None:
    rng = random.Random(seed)
    whole = frames.frame(rng)
    headers = parse(whole[: rng.randrange(len(whole) + 1)], len(whole))
    if headers.version != NOT_IP:
        data, orig_len = render(headers)
        assert len(data) == orig_len == len(whole)


# --- tshark -----------------------------------------------------------------------------------------------------------

CHECKSUMS = ("ip.checksum.status", "tcp.checksum.status", "udp.checksum.status", "icmp.checksum.status",
             "icmpv6.checksum.status")  # fmt: skip
BAD = "0"


def tshark(frames: list[bytes], tmp_path: Path, *fields: str) -> list[list[str]]:
    """Each frame's values of tshark's fields, all checksums looked at."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    file = io.BytesIO()
    writer = PcapWriter(file)
    writer.write_many(Packet(10**18 + i * 1000, data, len(data)) for i, data in enumerate(frames))
    writer.flush()
    path = tmp_path / "rendered.pcap"
    path.write_bytes(file.getvalue())
    command = ["tshark", "-r", str(path), "-T", "fields", "-E", "separator=,", "-E", "occurrence=f"]
    for protocol in ("ip", "tcp", "udp", "icmp"):
        command += ["-o", f"{protocol}.check_checksum:TRUE"] if protocol != "icmp" else []
    for name in fields:
        command += ["-e", name]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [line.split(",") for line in result.stdout.splitlines()]


def test_tshark_finds_nothing_malformed(tmp_path: Path) -> None:
    """Headers with everything else zero, through parse and render, on ports that mean nothing to tshark."""
    rendered = [render(parse(data, len(data)))[0] for data in map(built, FRAMES)]
    rows = tshark(rendered, tmp_path, "_ws.malformed", *CHECKSUMS)
    assert len(rows) == len(FRAMES)
    for name, (malformed, *statuses) in zip(FRAMES, rows, strict=True):
        assert not malformed, name
        assert BAD not in statuses, name


def cut_quotation(headers: Headers) -> bool:
    """An ICMP error too short for the packet that it quotes: tshark sums up what is there and calls the sum bad."""
    body, is4 = headers.body, headers.version == IPV4
    if headers.transport != ICMP or len(body) < 6:
        return False
    return int.from_bytes(body[2:4] if is4 else body[4:6], "big") + (0 if is4 else 40) > headers.payload_len


def test_tshark_finds_no_bad_checksum_in_what_may_be_drawn(tmp_path: Path) -> None:
    """Random legal tokens. Reassembly would look at sums of datagrams whose fragments come in any order: left out."""
    made = frames.random_tokens()
    rng = random.Random(3)
    vocabulary = made.made_up_vocabulary()
    rendered = []
    while len(rendered) < 1500:
        decoder = Decoder(vocabulary, made.RandomIdentities(rng), 0, 1500)
        for _ in range(300):
            token = rng.randrange(decoder.lo, decoder.hi)
            decoded = decoder.feed(token) if token != vocabulary.end else None
            if decoded is None or decoded.headers.ip_flags & 1 or decoded.headers.fragment_offset:
                continue
            if not cut_quotation(decoded.headers):
                rendered.append(render(decoded.headers)[0])
    rows = tshark(rendered, tmp_path, *CHECKSUMS)
    assert [i for i, statuses in enumerate(rows) if BAD in statuses] == []
    assert sum(parse(data, len(data)).transport == UDP for data in rendered) > 50
