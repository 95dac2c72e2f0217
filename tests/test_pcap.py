"""Capture files: every format that we read gives the same packets, and damage gives what came before it."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netssmd.errors import CaptureError, OutputError
from netssmd.packet.pcap import Packet, PcapWriter, read_capture, whole_records

zstandard = pytest.importorskip("zstandard")

CAPTURES = Path(os.environ.get("NETSSMD_CAPTURES", Path(__file__).parents[2] / "shared" / "captures"))
T0 = 1_700_000_000_000_000_000

packets_strategy = st.lists(
    st.builds(
        lambda ts_ns, data, more: Packet(ts_ns, data, len(data) + more),
        st.integers(0, 2**32 * 10**9 - 1),
        st.binary(max_size=200),
        st.integers(0, 70_000),
    ),
    max_size=12,
)


def written(packets: list[Packet], **options: object) -> bytes:
    file = io.BytesIO()
    writer = PcapWriter(file, **options)  # type: ignore[arg-type]
    writer.write_many(packets)
    writer.flush()
    return file.getvalue()


def pcap(packets: list[Packet], order: str = "<", nanosecond: bool = True, linktype: int = 1) -> bytes:
    magic, unit = (0xA1B23C4D, 1) if nanosecond else (0xA1B2C3D4, 1000)
    out = [struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, 262144, linktype)]
    for ts_ns, data, orig_len in packets:
        seconds, rest = divmod(ts_ns, 10**9)
        out.append(struct.pack(order + "IIII", seconds, rest // unit, len(data), orig_len) + data)
    return b"".join(out)


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def section(order: str = "<") -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str = "<", linktype: int = 1, snaplen: int = 0, options: bytes = b"") -> bytes:
    return block(order, 1, struct.pack(order + "HHI", linktype, 0, snaplen) + options)


def packet_block(packet: Packet, units: int, order: str = "<", number: int = 0, options: bytes = b"") -> bytes:
    data = packet.data
    fields = struct.pack(order + "IIIII", number, units >> 32, units & 0xFFFFFFFF, len(data), packet.orig_len)
    return block(order, 6, fields + data + bytes(-len(data) % 4) + options)


def pcapng(packets: list[Packet], order: str = "<") -> bytes:
    nanoseconds = option(order, 9, b"\x09")
    return (
        section(order)
        + interface(order, 1, 0, nanoseconds)
        + b"".join(packet_block(p, p.ts_ns, order) for p in packets)
    )


def read(data: bytes, name: str = "x.pcap") -> list[Packet]:
    return list(read_capture(io.BytesIO(data), name))


def read_until_error(data: bytes) -> tuple[list[Packet], str]:
    """The packets before the damage, and the error ("" if there is none)."""
    packets = []
    try:
        for packet in read_capture(io.BytesIO(data), "x.pcap"):
            packets.append(packet)
    except CaptureError as error:
        return packets, str(error)
    return packets, ""


class Trickle(io.RawIOBase):
    """A file that gives a few bytes at a time, as a pipe may."""

    def __init__(self, data: bytes, size: int) -> None:
        self._file = io.BytesIO(data)
        self._size = size

    def read(self, size: int = -1) -> bytes:
        return self._file.read(self._size)


THREE = [
    Packet(T0, bytes(range(60)), 60),
    Packet(T0 + 1_000_001_000, b"\x55" * 128, 1514),
    Packet(T0 + 5_999_999_000, b"", 0),
]


# ---------------------------------------------------------------------------------------------------------- round trips


@given(packets_strategy)
def test_written_packets_are_read_back(packets: list[Packet]) -> None:
    assert read(written(packets)) == packets


@given(packets_strategy, st.sampled_from("<>"), st.sampled_from([pcap, pcapng]))
def test_every_format_gives_the_same_packets(packets: list[Packet], order: str, form: object) -> None:
    assert read(form(packets, order)) == packets  # type: ignore[operator]


@pytest.mark.parametrize("order", "<>")
def test_microseconds(order: str) -> None:
    assert read(pcap(THREE, order, nanosecond=False)) == THREE
    assert read(written(THREE, nanosecond=False)) == THREE


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize("form", [pcap, pcapng])
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_read_in_pieces_gives_the_same(pack: object, form: object, size: int) -> None:
    data = pack(form(THREE * 20))  # type: ignore[operator]
    assert list(read_capture(Trickle(data, size))) == THREE * 20  # type: ignore[arg-type]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_concatenated_members(pack: object) -> None:
    data = pcap(THREE * 10)
    assert read(pack(data[:100]) + pack(b"") + pack(data[100:])) == THREE * 10  # type: ignore[operator]


def test_records_across_the_chunks_of_reading() -> None:
    packets = [Packet(T0 + i, bytes([i & 255]) * (i * 37 % 3000), 3000) for i in range(2000)]
    assert read(pcap(packets)) == read(pcapng(packets)) == packets


def test_the_largest_packet() -> None:
    packets = [Packet(T0, os.urandom(262_144), 262_144)] * 3
    assert read(pcap(packets)) == read(pcapng(packets)) == packets


def test_zero_packets_is_a_capture() -> None:
    assert read(pcap([])) == read(pcapng([])) == read(section()) == []


def test_original_length_is_never_below_the_captured() -> None:
    assert read(pcap([Packet(T0, b"abcd", 2)])) == [Packet(T0, b"abcd", 4)]


# --------------------------------------------------------------------------------------------------------------- writer


def test_writer_cuts_at_snaplen_and_keeps_the_original_length() -> None:
    data = written(THREE, snaplen=50)
    assert struct.unpack_from("<I", data, 16) == (50,)
    assert [(len(p.data), p.orig_len) for p in read(data)] == [(50, 60), (50, 1514), (0, 0)]


def test_writer_without_limit_still_cuts_at_what_readers_accept() -> None:
    data = written([Packet(T0, bytes(300_000), 300_000)], snaplen=0)
    assert [(len(p.data), p.orig_len) for p in read(data)] == [(262_144, 300_000)]


def test_writer_joins_writes_and_leaves_the_file_open() -> None:
    class Counting(io.BytesIO):
        calls = 0

        def write(self, data: object) -> int:
            self.calls += 1
            return super().write(data)  # type: ignore[arg-type]

    file = Counting()
    writer = PcapWriter(file)
    for i in range(5000):
        writer.write(Packet(T0 + i, b"x" * 60, 60))
    writer.flush()
    assert file.calls <= 6
    assert not file.closed
    assert writer.packets == len(read(file.getvalue())) == 5000


def test_writer_on_a_file_that_takes_parts() -> None:
    class Stubborn(io.BytesIO):
        def write(self, data: object) -> int:
            return super().write(bytes(data)[:13])  # type: ignore[call-overload]

    file = Stubborn()
    writer = PcapWriter(file)
    writer.write_many(THREE)
    writer.flush()
    assert read(file.getvalue()) == THREE


@pytest.mark.parametrize("packet", [Packet(-1, b"", 0), Packet(2**32 * 10**9, b"", 0), Packet(T0, b"", 2**32)])
def test_writer_refuses_what_the_format_does_not_hold(packet: Packet) -> None:
    with pytest.raises(OutputError, match="1970 to 2106"):
        PcapWriter(io.BytesIO()).write(packet)


# --------------------------------------------------------------------------------------------------------------- pcapng


@pytest.mark.parametrize(
    ("resolution", "units", "ns"),
    [
        (b"\x06", 1_500_000, 1_500_000_000),
        (b"\x00", 3, 3_000_000_000),
        (b"\x09", 1_234_567_891, 1_234_567_891),
        (b"\x0c", 1_234_567_891_999, 1_234_567_891),
        (b"\x8a", 1025, 1_000_976_562),  # 2^-10 s
        (b"\x80", 2, 2_000_000_000),
        (b"\xff", 2**64 - 1, 0),
        (b"\x7f", 2**64 - 1, 0),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_timestamp_resolution(resolution: bytes, units: int, ns: int, order: str) -> None:
    data = section(order) + interface(order, 1, 0, option(order, 9, resolution))
    assert read(data + packet_block(THREE[0], units, order)) == [THREE[0]._replace(ts_ns=ns)]


def test_timestamp_offset_and_default_resolution() -> None:
    options = option("<", 2, b"eth0") + option("<", 14, struct.pack("<q", -100)) + option("<", 0, b"")
    data = section() + interface(options=options) + packet_block(THREE[0], 100_000_007)
    assert read(data) == [THREE[0]._replace(ts_ns=7_000)]


def test_sections_of_both_byte_orders_and_unknown_blocks() -> None:
    other = block("<", 0x0BAD, b"\xff" * 1000) + block("<", 5, b"\x00" * 16) + block("<", 4, b"")
    one = pcapng(THREE, "<")
    two = pcapng(THREE, ">")
    assert read(one + other + two + block(">", 0x80000001, bytes(8)) + one) == THREE * 3


def test_two_interfaces_with_their_own_clocks() -> None:
    data = section() + interface(options=option("<", 9, b"\x03")) + interface(options=option("<", 9, b"\x09"))
    data += packet_block(THREE[0], 5, number=1, options=option("<", 1, b"a comment")) + packet_block(THREE[0], 5)
    assert [p.ts_ns for p in read(data)] == [5, 5_000_000]


def test_simple_packets_have_the_last_time() -> None:
    data = section() + interface(snaplen=8)
    simple = block("<", 3, struct.pack("<I", 100) + b"12345678")
    data += simple + packet_block(THREE[0], 9) + simple + block("<", 3, struct.pack("<I", 3) + b"123")
    assert read(data) == [
        Packet(0, b"12345678", 100),
        Packet(9_000, THREE[0].data, 60),
        Packet(9_000, b"12345678", 100),
        Packet(9_000, b"123", 3),
    ]


def test_obsolete_packet_block() -> None:
    body = struct.pack("<HHIIII", 0, 65535, 0, 8, 3, 60) + b"abc"
    assert read(section() + interface() + block("<", 2, body)) == [Packet(8000, b"abc", 60)]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (struct.pack("<II", 6, 8) + bytes(8), "a block of 8 bytes"),
        (struct.pack("<II", 6, 33) + bytes(40), "a block of 33 bytes"),
        (struct.pack("<II", 6, 0xFFFFFFFC) + bytes(40), "a block of 4294967292 bytes is claimed, more than 16777216"),
        (struct.pack("<II", 0x0BAD, 0xFFFFFFFC) + bytes(40), "missing"),
        (struct.pack("<II", 6, 32) + bytes(20) + struct.pack("<I", 36), "two lengths"),
        (packet_block(THREE[0], 0, number=3), "interface 3 of 1"),
        (block("<", 6, struct.pack("<IIIII", 0, 0, 0, 400, 400)), "a packet of 400 bytes in a block of 32"),
        (block("<", 6, struct.pack("<IIIII", 0, 0, 0, 300_000, 1)), "a packet of 300000 bytes is claimed"),
        (block("<", 6, b""), "a packet block of 12 bytes"),
        (block("<", 1, b""), "interface block without"),
        (interface(options=struct.pack("<HH", 9, 500)), "option 9"),
        (block("<", 0x0A0D0D0A, bytes(16)), "byte-order magic 00 00 00 00"),
        (
            interface(linktype=147) + packet_block(THREE[0], 0, number=1),
            "link type 147 is not read; readable are EN10MB 1",
        ),
        (b"\x06\0\0\0", "cut short, 4 bytes"),
        (packet_block(THREE[0], 0)[:-3], "cut short"),
    ],
)
def test_damaged_pcapng(damage: bytes, found: str) -> None:
    good = pcapng(THREE)
    packets, error = read_until_error(good + damage)
    assert packets == THREE
    assert error.startswith("x.pcap: at byte ")
    assert found in error
    assert int(error.split()[3].rstrip(":")) >= len(good)


# ----------------------------------------------------------------------------------------------------------- link types

IPV4 = bytes.fromhex("4500001400000000400600000a010203c6120001")
IPV6 = bytes.fromhex("6000000000003a40") + bytes(15) + b"\x01" + bytes.fromhex("ff02") + bytes(13) + b"\xfb"
V4_LINK = bytes.fromhex("0200c612000102000a0102030800")
SLL = bytes.fromhex("000400010006aabbccddeeff0000")


@pytest.mark.parametrize(
    ("linktype", "header", "payload", "link"),
    [
        (101, b"", IPV4, V4_LINK),
        (12, b"", IPV4, V4_LINK),
        (14, b"", IPV4, V4_LINK),
        (228, b"", IPV4, V4_LINK),
        (
            229,
            b"",
            IPV6,
            bytes.fromhex("3333000000fb") + b"\x02\x06" + zlib.crc32(IPV6[8:24]).to_bytes(4, "big") + b"\x86\xdd",
        ),
        (101, b"", b"\x00" * 20, bytes.fromhex("020000000002020000000001ffff")),
        (0, b"\x02\0\0\0", IPV4, V4_LINK),
        (0, b"\0\0\0\x02", IPV4, V4_LINK),
        (108, b"\0\0\0\x02", IPV4, V4_LINK),
        (0, b"\x1e\0\0\0", b"\x60", bytes.fromhex("02000000000202000000000186dd")),
        (0, b"\x07\0\0\0", b"\x60", bytes.fromhex("020000000002020000000001ffff")),
        (113, SLL + b"\x08\x00", IPV4, V4_LINK),
        (113, SLL + b"\x08\x06", b"arp", bytes.fromhex("020000000002aabbccddeeff0806")),
        (113, b"\0\x01" + SLL[2:] + b"\x08\x06", b"arp", bytes.fromhex("ffffffffffffaabbccddeeff0806")),
        (113, SLL + b"\x00\x04", b"llc", bytes.fromhex("020000000002aabbccddeeff0003")),
        (276, b"\x08\x00" + bytes(6) + b"\0\x01\x04\x06" + SLL[6:], IPV4, V4_LINK),
    ],
)
def test_other_link_types_become_ethernet(linktype: int, header: bytes, payload: bytes, link: bytes) -> None:
    raw = Packet(T0, header + payload, len(header) + 1000)
    expected = [Packet(T0, link + payload, 1014)]
    assert read(pcap([raw], linktype=linktype)) == expected
    assert read(section() + interface(linktype=linktype) + packet_block(raw, T0 // 1000)) == expected


def test_a_host_keeps_its_address_in_both_directions() -> None:
    back = IPV4[:12] + IPV4[16:20] + IPV4[12:16]
    one, two = read(pcap([Packet(T0, IPV4, 20), Packet(T0, back, 20)], linktype=101))
    assert one.data[:6] == two.data[6:12]
    assert one.data[6:12] == two.data[:6]


def test_multicast_and_broadcast_addresses() -> None:
    multicast = IPV4[:16] + bytes([239, 255, 1, 2])
    broadcast = IPV4[:16] + b"\xff" * 4
    one, two = read(pcap([Packet(T0, multicast, 20), Packet(T0, broadcast, 20)], linktype=101))
    assert one.data[:6] == bytes.fromhex("01005e7f0102")
    assert two.data[:6] == b"\xff" * 6


@pytest.mark.parametrize("linktype", [0, 12, 14, 101, 108, 113, 228, 229, 276])
@given(data=st.binary(max_size=64))
@settings(max_examples=50)
def test_any_bytes_of_any_link_type(linktype: int, data: bytes) -> None:
    (packet,) = read(pcap([Packet(T0, data, len(data))], linktype=linktype))
    assert packet.data == b"" or len(packet.data) >= 14
    assert packet.orig_len >= max(14, len(packet.data))


def test_frame_check_sequence_bits_beside_the_link_type() -> None:
    assert read(pcap(THREE, linktype=1 | 0x2400_0000)) == THREE


# --------------------------------------------------------------------------------------------------------------- damage


def test_truncated_anywhere() -> None:
    """Cut at every byte: the packets before the cut come, then the error names where the cut record begins."""
    data = pcap(THREE)
    starts = [24, 24 + 76, 24 + 76 + 144, 24 + 76 + 144 + 16]
    for cut in range(len(data)):
        packets, error = read_until_error(data[:cut])
        if cut in starts:
            assert error == ""
        elif cut > 24:
            begun = max(start for start in starts if start <= cut)
            assert f"at byte {begun}: the last record is cut short, {cut - begun} bytes are left of it" in error
        else:
            assert error.startswith("x.pcap: ")
        assert packets == THREE[: sum(start <= cut for start in starts[1:])]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "x.pcap: empty file"),
        (b"\xd4\xc3", "not a capture: it begins with d4 c3"),
        (b"GET / HTTP/1.1\r\n", "not a capture: it begins with 47 45 54 20; expected PCAP or PCAPNG"),
        (pcap([])[:11], "at byte 0: the file header is cut short at byte 11"),
        (pcap([], linktype=195), "at byte 20: link type 195 is not read"),
        (b"\xd4\xc3\xb2\xa1\x01\x00" + bytes(18), "PCAP version 1.0"),
        (gzip.compress(b"no capture", mtime=0), "not a capture"),
        (gzip.compress(b"", mtime=0), "empty file"),
        (zstandard.compress(b""), "empty file"),
        (b"\x1f\x8b", "gzip stream is cut short"),
        (b"\x1f\x8bxxxxxxxxxxxxx", "gzip stream is damaged"),
        (b"\x28\xb5\x2f\xfd", "zstd stream is cut short"),
    ],
)
def test_what_is_no_capture(data: bytes, found: str) -> None:
    packets, error = read_until_error(data)
    assert packets == []
    assert found in error
    assert "\n" not in error


def test_an_absurd_length_allocates_nothing() -> None:
    import tracemalloc

    data = pcap(THREE) + struct.pack("<IIII", 1, 1, 0xFFFF_FFF0, 60)
    tracemalloc.start()
    packets, error = read_until_error(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert packets == THREE
    assert f"at byte {len(pcap(THREE))}: a packet of 4294967280 bytes is claimed, more than 263168" in error
    assert peak < 1 << 20


def test_a_compressed_bomb_is_read_in_bounded_memory() -> None:
    import tracemalloc

    good = pcap(THREE)
    for bomb in (gzip.compress(good + bytes(200 << 20), 9), zstandard.compress(pcapng(THREE) + bytes(200 << 20))):
        tracemalloc.start()
        count = 0
        try:
            for _ in read_capture(io.BytesIO(bomb)):
                count += 1
                if count > 100_000:  # sixteen zero bytes are a record without bytes
                    break
        except CaptureError:
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count >= 3
        assert peak < 48 << 20


def test_damaged_gzip_gives_everything_before_the_damage() -> None:
    packets = [Packet(T0 + i, os.urandom(100), 100) for i in range(1000)]  # incompressible: offsets correspond
    whole = gzip.compress(pcap(packets))
    half = len(whole) // 2
    got, error = read_until_error(whole[:half])
    assert "gzip stream is cut short" in error
    assert 490 <= len(got) <= 500
    assert got == packets[: len(got)]
    wrong_checksum = whole[:-8] + bytes(8)
    got, error = read_until_error(wrong_checksum)
    assert got == packets
    assert "damaged" in error


def test_truncated_zstd() -> None:
    packets = [Packet(T0 + i, os.urandom(1000), 1000) for i in range(1000)]
    whole = zstandard.compress(pcap(packets))
    got, error = read_until_error(whole[: len(whole) // 2])
    assert "zstd stream is cut short" in error
    assert len(got) > 300
    assert got == packets[: len(got)]


def test_zstd_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    assert "install the Python package zstandard" in read_until_error(zstandard.compress(pcap(THREE)))[1]


def test_an_unreadable_file_is_a_capture_error(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(CaptureError, match=r"x.pcap: cannot be read: Input/output error"):
        list(read_capture(Broken(), "x.pcap"))


SEEDS = [
    pcap(THREE),
    pcap(THREE, ">", False),
    pcap([Packet(T0, SLL + b"\x08\x00" + IPV4, 36)] * 3, linktype=113),
    pcapng(THREE),
    pcapng(THREE, ">") + pcapng(THREE, "<"),
    section() + interface(snaplen=8) + block("<", 3, struct.pack("<I", 100) + b"12345678"),
    gzip.compress(pcap(THREE), mtime=0),
    zstandard.compress(pcapng(THREE)),
]


def survives(data: bytes) -> None:
    packets, error = read_until_error(data)
    assert "\n" not in error
    for packet in packets:
        assert isinstance(packet, Packet)
        assert packet.orig_len >= len(packet.data)
    whole_records(io.BytesIO(data))


@given(st.binary(max_size=300), st.sampled_from([b"", *(seed[:28] for seed in SEEDS)]))
@settings(max_examples=500)
def test_random_bytes_give_packets_or_a_capture_error(data: bytes, head: bytes) -> None:
    survives(head + data)


@given(st.data())
@settings(max_examples=1000)
def test_mutated_captures_give_packets_or_a_capture_error(data: st.DataObject) -> None:
    mutant = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(mutant) - 1))
        match data.draw(st.integers(0, 3)):
            case 0:
                mutant[at] = data.draw(st.integers(0, 255))
            case 1:
                mutant[at : at + 4] = data.draw(st.sampled_from([b"\xff" * 4, bytes(4), b"\0\0\0\x80", b"\x01\0\0\0"]))
            case 2:
                del mutant[at : at + data.draw(st.integers(1, 8))]
            case 3:
                mutant[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        if not mutant:
            break
    survives(bytes(mutant))


# --------------------------------------------------------------------------------------------------------------- repair


def test_whole_records_of_a_cut_file() -> None:
    data = written(THREE[:2])
    ends = [24, 100, 244]
    for cut in range(len(data) + 1):
        kept = max((end for end in ends if end <= cut), default=0)
        assert whole_records(io.BytesIO(data[:cut])) == (kept, max(ends.index(kept), 0) if kept else 0)


def test_whole_records_end_at_zeros_and_at_absurd_lengths() -> None:
    data = written(THREE[:2])
    assert whole_records(io.BytesIO(data + bytes(4096))) == (244, 2)
    assert whole_records(io.BytesIO(data + b"\xff" * 40)) == (244, 2)
    assert whole_records(io.BytesIO(b"")) == (0, 0)
    assert whole_records(io.BytesIO(bytes(100))) == (0, 0)


def test_whole_records_of_a_large_file() -> None:
    packets = [Packet(T0 + i, bytes(i * 37 % 3000), 3000) for i in range(2000)]
    data = written(packets)
    assert whole_records(io.BytesIO(data)) == (len(data), 2000)
    assert whole_records(io.BytesIO(data[:-1])) == (len(data) - 16 - len(packets[-1].data), 1999)


# -------------------------------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("form", [pcap, pcapng])
def test_scapy_reads_the_same(form: object, tmp_path: Path) -> None:
    utils = pytest.importorskip("scapy.utils")
    path = tmp_path / "x.pcap"
    path.write_bytes(form(THREE))  # type: ignore[operator]
    with utils.RawPcapReader(str(path)) as reader:
        theirs = [(data, meta) for data, meta in reader]
    assert [data for data, _ in theirs] == [packet.data for packet in THREE]
    if form is pcap:
        assert [meta.sec * 10**9 + meta.usec for _, meta in theirs] == [packet.ts_ns for packet in THREE]
        assert [meta.wirelen for _, meta in theirs] == [packet.orig_len for packet in THREE]


def test_we_read_what_scapy_writes(tmp_path: Path) -> None:
    utils = pytest.importorskip("scapy.utils")
    layers = pytest.importorskip("scapy.layers.inet")
    frame = layers.Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / layers.IP() / layers.TCP()
    frame.time = 1_700_000_000.25
    variants: list[dict[str, Any]] = [{}, {"nano": True}, {"endianness": ">"}, {"gz": True}]
    for number, options in enumerate(variants):
        path = tmp_path / f"{number}.pcap"
        utils.wrpcap(str(path), [frame, frame], **options)
        assert read(path.read_bytes()) == [Packet(1_700_000_000_250_000_000, bytes(frame), len(frame))] * 2
    utils.wrpcapng(str(tmp_path / "x.pcapng"), [frame])
    assert read((tmp_path / "x.pcapng").read_bytes()) == [Packet(1_700_000_000_250_000_000, bytes(frame), len(frame))]


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
@pytest.mark.parametrize("nanosecond", [True, False])
def test_tshark_reads_what_we_write(tmp_path: Path, nanosecond: bool) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(written(THREE[:2], nanosecond=nanosecond))
    command = [
        "tshark",
        "-r",
        str(path),
        "-T",
        "fields",
        "-e",
        "frame.time_epoch",
        "-e",
        "frame.len",
        "-e",
        "frame.cap_len",
    ]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert [line.split("\t")[1:] for line in lines[:2]] == [["60", "60"], ["1514", "128"]]
    assert [int(line.split("\t")[0].replace(".", "")) for line in lines[:2]] == [p.ts_ns for p in THREE[:2]]


@pytest.mark.skipif(shutil.which("editcap") is None, reason="editcap is not installed")
@pytest.mark.parametrize("form", ["pcap", "nsecpcap", "pcapng"])
def test_we_read_what_editcap_writes(tmp_path: Path, form: str) -> None:
    (tmp_path / "x.pcap").write_bytes(written(THREE))
    subprocess.run(["editcap", "-F", form, tmp_path / "x.pcap", tmp_path / "y"], check=True, capture_output=True)
    assert read((tmp_path / "y").read_bytes()) == THREE


def some_captures(step: int) -> Iterator[BinaryIO]:
    for path in sorted(CAPTURES.glob("*/*/*.pcap.gz"))[::step]:
        with path.open("rb") as file:
            yield file


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures (NETSSMD_CAPTURES)")
def test_captures_are_rewritten_byte_for_byte() -> None:
    count = 0
    for file in some_captures(50):
        packets = list(read_capture(file, file.name))
        file.seek(0)
        original = gzip.decompress(file.read())
        assert original[24:] == written(packets, nanosecond=False)[24:]
        count += 1
    assert count > 20
