"""nPrint, bit by bit against hand-made packets, and the distances of Table 2."""

import numpy as np
import pytest

from netssmd.learn.evaluate import fidelity, nprint
from netssmd.packet.wire import parse

ETHERNET = bytes.fromhex("02000000000b02000000000a0800")
IP = bytes.fromhex("45000030 1234 4000 40 06 abcd c6120001 c6130002".replace(" ", ""))
TCP = bytes.fromhex("9c40 01bb 00000001 80000000 7012 2000 beef 0000 020405b4 01030307".replace(" ", ""))
UDP = bytes.fromhex("0035 d431 0010 ffff".replace(" ", ""))


def bits_of(frame: bytes) -> dict[str, str]:
    """A string of 0, 1 and - for each field of nPrint."""
    printer = nprint.Printer()
    printer.add(frame, parse(frame, len(frame)))
    row = ["01-"[bit] for bit in printer.prints().bits()[0]]
    found: dict[str, str] = {}
    for name, bit in zip(nprint.names(), row):
        field = name.rsplit("_", 1)[0]
        found[field] = found.get(field, "") + bit
    return found


def test_the_layout_has_the_widths_of_nprint() -> None:
    widths = {region.name: sum(width for _, width in region.fields) for region in nprint.REGIONS}
    assert widths == {"ipv4": 480, "ipv6": 320, "tcp": 480, "udp": 64, "icmp": 64}
    assert len(nprint.names()) == 8 * nprint.WIDTH == len(set(nprint.names()))


def test_a_tcp_packet_bit_by_bit() -> None:
    found = bits_of(ETHERNET + IP + TCP)
    assert found["ipv4_ver"] == "0100" and found["ipv4_hl"] == "0101" and found["ipv4_tl"] == f"{48:016b}"
    assert found["ipv4_dfbit"] == "1" and found["ipv4_mfbit"] == found["ipv4_rbit"] == "0"
    assert found["ipv4_src"] == f"{0xC6120001:032b}" and found["ipv4_cksum"] == f"{0xABCD:016b}"
    assert found["ipv4_opt"] == "-" * 320
    assert found["tcp_sprt"] == f"{40000:016b}" and found["tcp_dprt"] == f"{443:016b}"
    assert found["tcp_seq"] == f"{1:032b}" and found["tcp_ackn"] == "1" + 31 * "0"
    assert found["tcp_doff"] == "0111" and found["tcp_syn"] == found["tcp_ackf"] == "1"
    assert found["tcp_fin"] == found["tcp_psh"] == found["tcp_ns"] == "0" and found["tcp_res"] == "000"
    assert found["tcp_wsize"] == f"{0x2000:016b}"
    assert found["tcp_opt"] == f"{0x020405B401030307:064b}" + "-" * 256
    for field, bits in found.items():
        if field.startswith(("ipv6", "udp", "icmp")):
            assert set(bits) == {"-"}, field


def test_udp_over_ipv6_and_what_is_no_ip() -> None:
    ipv6 = bytes.fromhex("60012345 0010 11 40".replace(" ", "")) + bytes(15) + b"\x01" + bytes(15) + b"\x02"
    found = bits_of(ETHERNET[:12] + b"\x86\xdd" + ipv6 + UDP + bytes(8))
    assert found["ipv6_ver"] == "0110" and found["ipv6_fl"] == f"{0x12345:020b}"
    assert found["ipv6_dst"] == "0" * 126 + "10" and found["udp_sport"] == f"{53:016b}"
    assert found["udp_cksum"] == "1" * 16 and set(found["tcp_syn"]) == {"-"} == set(found["ipv4_ver"])
    assert set("".join(bits_of(ETHERNET[:12] + b"\x88\xcc" + bytes(50)).values())) == {"-"}


def test_a_header_cut_short_is_absent_from_there_on() -> None:
    frame = (ETHERNET + IP + TCP)[: 14 + 20 + 10]
    printer = nprint.Printer()
    printer.add(frame, parse(frame, 62))
    there = dict(zip(nprint.REGION, printer.prints().there[0].tolist()))
    assert there["ipv4"] in (0, 20) and there["tcp"] in (0, 10)


def test_columns_without_volatile_fields_leave_whole_fields_out() -> None:
    names = np.array(nprint.names())
    left = {name.rsplit("_", 1)[0] for name in names[nprint.columns(("tcp",), volatile=False)]}
    assert {"tcp_syn", "tcp_wsize", "tcp_opt", "tcp_doff"} <= left
    assert not left & {"tcp_seq", "tcp_ackn", "tcp_cksum", "tcp_sprt", "tcp_dprt"}
    assert len(nprint.columns(("tcp",))) == 480


def test_tallies_count_each_value_and_bits_follow_from_bytes() -> None:
    printer = nprint.Printer()
    for flags in (b"\x70\x02", b"\x70\x12", b"\x70\x12"):
        frame = ETHERNET + IP + TCP[:12] + flags + TCP[14:]
        printer.add(frame, parse(frame, len(frame)))
    udp = ETHERNET + IP[:9] + b"\x11" + IP[10:] + UDP + bytes(20)
    printer.add(udp, parse(udp, len(udp)))
    prints = printer.prints()
    by_byte = nprint.byte_shares([nprint.Tally.of(prints)])
    assert by_byte.sum(axis=1) == pytest.approx(np.ones(nprint.WIDTH))
    flags_at = nprint.REGION["tcp"].first + 13
    assert by_byte[flags_at, [0x02, 0x12, 256]].tolist() == [0.25, 0.5, 0.25]
    by_bit = nprint.bit_shares(by_byte)
    bits = prints.bits()
    for value, column in ((0, 0), (1, 1), (-1, 2)):
        assert by_bit[:, column] == pytest.approx((bits == value).mean(axis=0))


def test_distances_are_those_of_scipy_and_know_their_bounds() -> None:
    spatial = pytest.importorskip("scipy.spatial.distance")
    rng = np.random.default_rng(3)
    p, q = (x / x.sum(axis=1, keepdims=True) for x in (rng.random((7, 9)), rng.random((7, 9))))
    js, bits, variation, hellinger = fidelity.distances(p, q)
    assert js == pytest.approx(np.mean([spatial.jensenshannon(a, b) for a, b in zip(p, q)]))
    assert bits == pytest.approx(np.mean([spatial.jensenshannon(a, b, 2) ** 2 for a, b in zip(p, q)]))
    assert variation == pytest.approx(np.abs(p - q).sum(axis=1).mean() / 2)
    expected = np.mean([np.linalg.norm(np.sqrt(a) - np.sqrt(b)) / np.sqrt(2) for a, b in zip(p, q)])
    assert hellinger == pytest.approx(expected)
    apart = fidelity.distances(np.eye(4), np.roll(np.eye(4), 1, axis=0))
    assert apart == pytest.approx([np.sqrt(np.log(2)), 1, 1, 1])
    assert fidelity.distances(p, p) == pytest.approx([0, 0, 0, 0], abs=1e-7)


def test_uniform_bytes_beside_a_constant_one_give_the_papers_random_baseline() -> None:
    constant = np.zeros((1, 257))
    constant[0, 80] = 1
    uniform = fidelity.Reading().random(constant)
    js, _, variation, hellinger = fidelity.distances(constant, uniform)
    assert (round(js, 2), round(variation, 2)) == (0.82, 1.0) and 0.95 < hellinger < 0.98
