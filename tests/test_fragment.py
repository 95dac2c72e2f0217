"""IPv4 fragments: put together again they are the packet, each fits, and scapy agrees about headers and checksums."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, IPOption_RR, IPOption_Security, defragment
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from netssmd.packet.fragment import fragments, link_len

LINK = Ether(src="02:4e:00:00:00:01", dst="02:4e:00:00:00:02")


@given(st.integers(1, 9000), st.integers(68, 1500))
def test_the_pieces_are_the_packet(size: int, mtu: int) -> None:
    whole = bytes(LINK / IP(src="198.18.0.1", dst="198.19.0.1", id=77) / UDP() / (bytes(range(256)) * 36)[:size])
    pieces = fragments(whole, mtu)
    assert all(len(piece) - 14 <= mtu and piece[:14] == whole[:14] for piece in pieces)
    for piece in pieces:
        ip = IP(piece[14:])
        right = ip.chksum
        del ip.chksum
        assert IP(bytes(ip)).chksum == right and ip.len == len(piece) - 14
    (again,) = defragment([Ether(piece) for piece in pieces])
    assert bytes(again)[34:] == whole[34:]


def test_of_a_fragment_and_with_a_tag() -> None:
    ip = IP(src="1.2.3.4", dst="1.2.3.5", id=7, flags="MF", frag=100, proto=17)
    middle = bytes(LINK / Dot1Q(vlan=5) / ip / Raw(bytes(1400)))
    pieces = fragments(middle, 600)
    places = [(IP(piece[18:]).frag, int(IP(piece[18:]).flags), len(piece) - 38) for piece in pieces]
    assert places == [(100, 1, 576), (172, 1, 576), (244, 1, 248)] and link_len(middle) == 18


def test_options_that_are_copied() -> None:
    options = [IPOption_RR(length=7, pointer=4, routers=["0.0.0.0"]), IPOption_Security()]
    whole = bytes(LINK / IP(src="1.2.3.4", dst="1.2.3.5", options=options) / UDP() / Raw(bytes(1000)))
    first, *later = (IP(piece[14:]) for piece in fragments(whole, 500))
    assert [type(o) for o in first.options[:2]] == [IPOption_RR, IPOption_Security]
    assert later and all([type(o) for o in ip.options[:1]] == [IPOption_Security] and ip.ihl == 8 for ip in later)


@pytest.mark.parametrize(
    "frame",
    [
        bytes(LINK / IP(flags="DF") / UDP() / Raw(bytes(2000))),
        bytes(LINK / IPv6() / UDP() / Raw(bytes(2000))),
        bytes(LINK) + bytes(2000),
        bytes(LINK / IP(len=3000) / UDP() / Raw(bytes(2000))),
    ],
)
def test_what_cannot_be_carried(frame: bytes) -> None:
    assert fragments(frame, 1500) == [] and fragments(frame, 3000) == [frame]


def test_what_is_only_padded_loses_the_padding() -> None:
    whole = bytes(LINK / IP(id=1) / UDP() / Raw(bytes(100)))
    assert fragments(whole + bytes(2000), 1500) == [whole]
