"""Headers in: what can stand in a frame is read as scapy reads it, and nothing that can stand there raises."""

import random
from typing import Any

import frames
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netssmd.packet import wire
from netssmd.packet.difference import Difference, first_difference
from netssmd.packet.render import render
from netssmd.packet.wire import (
    ARP,
    END_OF_OPTIONS,
    ICMP,
    IPV4,
    IPV6,
    MALFORMED_OPTIONS,
    NOT_IP,
    OPAQUE,
    TCP,
    UDP,
    option_at,
    parse,
)

A4, B4 = frames.HOSTS4[:2]
A6, B6 = frames.HOSTS6[:2]


@given(st.binary(max_size=200), st.integers(0, 70_000))
def test_arbitrary_bytes_never_raise(data: bytes, more: int) -> None:
    headers = parse(data, len(data) + more)
    assert headers.captured_len == len(data)


@given(st.integers(0, 2**32))
def test_what_is_read_is_written_again(seed: int) -> None:
    data, orig_len = frames.record(random.Random(seed))
    headers = parse(data, orig_len)
    if headers.version == NOT_IP:
        return
    again, length = render(headers)
    assert first_difference((0, data, orig_len), (0, again[: headers.captured_len], length)) is None


@given(st.integers(0, 2**32))
def test_a_frame_cut_anywhere_is_read_or_refused(seed: int) -> None:
    whole = frames.frame(random.Random(seed))
    seen = [parse(whole[:n], len(whole)).version for n in range(min(len(whole), 120))]
    assert seen == sorted(seen), "once enough is there it stays readable"
    assert set(seen) <= {NOT_IP, parse(whole, len(whole)).version}


@given(st.binary(max_size=40))
def test_tcp_options_are_walked_as_written(options: bytes) -> None:
    """Until the end, or a length that is none; whatever options are written by kind and value is found again."""
    at, found = option_at(options, 0), []
    while at >= 0:
        size = options[at + 1]
        assert options[at] > 1 and size >= 2 and at + size <= len(options)
        found.append((options[at], options[at + 2 : at + size]))
        at = option_at(options, at + size)
    written = b"".join(b"\1" + bytes((kind, len(value) + 2)) + value for kind, value in found)
    i, again = option_at(written + b"\0\7", 0), []
    while i >= 0:
        again.append((written[i], written[i + 2 : i + written[i + 1]]))
        i = option_at(written + b"\0\7", i + written[i + 1])
    assert again == found and i == END_OF_OPTIONS


def test_lengths_of_tcp_options_that_are_none() -> None:
    for options in (b"\3", b"\3\0", b"\3\1", b"\3\4\0", b"\1\1\10\12" + bytes(7)):
        assert option_at(options, 0) == MALFORMED_OPTIONS
    assert option_at(b"\1\0\3\1", 0) == option_at(b"", 0) == option_at(b"\1\1", 0) == END_OF_OPTIONS


@given(st.binary(max_size=100))
def test_the_sum_is_that_of_rfc_1071(data: bytes) -> None:
    assert wire.checksum(data) == frames.internet_checksum(data)


def test_tags() -> None:
    packet = frames.ipv4(A4, B4, 17, frames.udp(1, 2, b"abc"))
    for tags in (b"", b"\x81\x00\x00\x05", b"\x88\xa8\x00\x06\x81\x00\x00\x05", b"\x91\x00\x00\x01" * 4):
        data = frames.ethernet(A4, B4, packet, tags)
        headers = parse(data, len(data))
        assert (headers.version, headers.link, headers.body) == (IPV4, data[: 14 + len(tags)], b"abc")
    too_many = frames.ethernet(A4, B4, packet, b"\x81\x00\x00\x01" * 5)
    assert parse(too_many, len(too_many)).version == NOT_IP


@pytest.mark.parametrize(
    "packet",
    [
        frames.ipv4(A4, B4, 6, frames.tcp(1, 2, 2, 3, 4), total_length=39),
        frames.ipv4(A4, B4, 17, b"\0" * 7),
        frames.ipv4(A4, B4, 6, frames.tcp(1, 2, 2, 3, 4), total_length=0),  # left to a segmenting network card
        frames.ipv6(A6, B6, 6, b"", chain=b"\x06\x01" + bytes(6), first=60),  # extension headers beyond the packet
        b"\x46" + frames.ipv4(A4, B4, 59, b"")[1:],
        b"\x44" + frames.ipv4(A4, B4, 59, b"")[1:],
    ],
)
def test_lengths_that_lie_are_not_ip(packet: bytes) -> None:
    data = frames.ethernet(A4, B4, packet)
    assert parse(data, len(data)).version == NOT_IP


def test_icmp_of_the_other_ip_version_is_opaque() -> None:
    four = frames.ethernet(A4, B4, frames.ipv4(A4, B4, 58, bytes(8)))
    six = frames.ethernet(A6, B6, frames.ipv6(A6, B6, 1, bytes(8)))
    assert [parse(data, len(data)).transport for data in (four, six)] == [OPAQUE, OPAQUE]


# --- scapy as the oracle ----------------------------------------------------------------------------------------------


def read_by_scapy(data: bytes) -> dict[str, Any]:
    """The fields of `wire.Headers` as scapy sees them."""
    from scapy.layers.inet import ICMP as Icmp
    from scapy.layers.inet import IP
    from scapy.layers.inet import TCP as Tcp
    from scapy.layers.inet import UDP as Udp
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import ARP as Arp
    from scapy.layers.l2 import Ether

    ether = Ether(data)
    found: dict[str, Any] = {}
    if Arp in ether:
        return {"version": ARP, "src": ether[Arp].psrc, "dst": ether[Arp].pdst}
    if IP in ether:
        ip = ether[IP]
        found |= {
            "version": IPV4, "tos": ip.tos, "ident": ip.id, "ip_flags": int(ip.flags), "ttl": ip.ttl,
            "fragment_offset": ip.frag * 8, "protocol": ip.proto, "src": ip.src, "dst": ip.dst,
            "options": data[34 : 14 + ip.ihl * 4],
        }  # fmt: skip
        if ip.frag or ip.flags.MF:
            return found
    elif IPv6 in ether:
        ip = ether[IPv6]
        found |= {"version": IPV6, "tos": ip.tc, "flow_label": ip.fl, "ttl": ip.hlim}
    if Tcp in ether:
        segment = ether[Tcp]
        raw = bytes(segment)
        found |= {
            "transport": TCP, "sport": segment.sport, "dport": segment.dport, "seq": segment.seq, "ack": segment.ack,
            "flags": int(segment.flags) | segment.reserved << 9, "window": segment.window, "urgent": segment.urgptr,
            "tcp_options": raw[20 : segment.dataofs * 4], "checksum": segment.chksum,
        }  # fmt: skip
    elif Udp in ether:
        found |= {"transport": UDP, "sport": ether[Udp].sport, "dport": ether[Udp].dport, "checksum": ether[Udp].chksum}
    elif Icmp in ether:
        found |= {"transport": ICMP, "icmp_type": ether[Icmp].type, "icmp_code": ether[Icmp].code}
    return found


PLAIN = [
    frames.ethernet(A4, B4, frames.ipv4(A4, B4, 6, frames.tcp(40_000, 80, 0x12, 7, 9, options=b"\x02\x04\x05\xb4"))),
    frames.ethernet(A4, B4, frames.ipv4(A4, B4, 6, frames.tcp(1, 2, 0x1FF, 2**32 - 1, 1, options=b"\x08\xff\0\0"))),
    frames.ethernet(A4, B4, frames.ipv4(A4, B4, 6, frames.tcp(1, 2, 0xE29, 0, 0, payload=b"abc", urgent=2), tos=184)),
    frames.ethernet(A4, B4, frames.ipv4(A4, B4, 17, frames.udp(53, 5353, b"abc"), options=b"\x94\x04\0\0", ident=77)),
    frames.ethernet(A4, B4, frames.ipv4(A4, B4, 17, bytes(40), flags=1, offset=1480)),
    frames.ethernet(A4, B4, frames.ipv4(A4, B4, 1, b"\x03\x04\0\0\0\0\x05\xdc" + bytes(28), flags=6, ttl=1)),
    frames.ethernet(A6, B6, frames.ipv6(A6, B6, 6, frames.tcp(1, 2, 0x10, 5, 6), tos=0xB8, label=0xABCDE, hops=3)),
    frames.ethernet(A6, B6, frames.ipv6(A6, B6, 17, frames.udp(9, 8, b""), chain=b"\x11\0\x05\x02\0\0\1\0", first=0)),
    frames.arp(A4, B4, 2, frames.mac(A4), frames.mac(B4)),
]


@pytest.mark.parametrize("data", PLAIN)
def test_fields_are_those_that_scapy_reads(data: bytes) -> None:
    pytest.importorskip("scapy")
    headers = parse(data, len(data))
    for name, value in read_by_scapy(data).items():
        mine: Any = getattr(headers, name)
        if name in ("src", "dst"):
            mine = ".".join(map(str, mine))
        assert mine == value, name


# --- what differs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "name"),
    [(3, "link"), (15, "tos"), (18, "ident"), (20, "ip_flags"), (24, "checksum_delta"), (29, "src"), (34, "sport"),
     (40, "seq"), (47, "flags"), (54, "tcp_options"), (58, "payload")],
)  # fmt: skip
def test_a_difference_is_named(offset: int, name: str) -> None:
    data = frames.ethernet(A4, B4, frames.ipv4(A4, B4, 6, frames.tcp(1, 2, 16, 3, 4, options=bytes(4), payload=b"x")))
    other = data[:offset] + bytes([data[offset] ^ 255]) + data[offset + 1 :]
    difference = first_difference((5, data, 60), (5, other, 60))
    assert difference is not None and (difference.field, difference.offset) == (name, offset)


def test_a_transport_checksum_is_no_difference() -> None:
    data = frames.ethernet(A4, B4, frames.ipv4(A4, B4, 6, frames.tcp(1, 2, 16, 3, 4)))
    other = data[:50] + b"\xff\xff" + data[52:]
    assert first_difference((5, data, 54), (5, other, 54)) is None
    assert first_difference((5, data, 54), (6, data, 54)) == Difference("ts_ns", -1, "5", "6")
    assert str(first_difference((5, data, 54), (5, data, 55))) == "orig_len is 55, was 54"
    assert str(first_difference((5, data, 54), (5, data[:-1], 54))) == "captured_len at byte 53 is 53, was 54"


@given(data=st.binary(max_size=2000), zeros=st.booleans())
def test_the_compiled_sum_is_that_of_the_definition(data: bytes, zeros: bool) -> None:
    data = bytes(len(data)) if zeros else data
    padded = data + bytes(len(data) % 2)
    words = sum(int.from_bytes(padded[i : i + 2], "big") for i in range(0, len(padded), 2))
    while words > 0xFFFF:
        words = (words >> 16) + (words & 0xFFFF)
    assert wire.sum16(data) == words
