"""Marks are in every frame that can hold one and nowhere else; cleared, a capture is what it was without them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import headers

from netssmd import cli
from netssmd.commands.untaint import untaint
from netssmd.errors import CaptureError, OutputError
from netssmd.packet.mark import CLEARED_OUI, OUI, clear, render_marked
from netssmd.packet.pcap import Packet, PcapWriter, read_capture
from netssmd.packet.render import render
from netssmd.packet.wire import IPV6, checksum, parse

ARP_BODY = bytes.fromhex("0001080006040001") + OUI + bytes(3) + bytes(4) + OUI + bytes(7)


@given(st.integers(0, 65535), st.integers(0, 3), st.integers(0, 255), st.sampled_from([0, 64, 200]))
def test_a_cleared_frame_is_the_one_without_a_mark(ident: int, flags: int, ttl: int, snaplen: int) -> None:
    def packet() -> object:
        h = headers("A P. 1 1 100")
        h.ident, h.ip_flags, h.ttl = ident, flags, ttl
        return h

    plain, marked = render(packet(), snaplen), render_marked(packet(), snaplen)  # type: ignore[arg-type]
    assert marked[0] != plain[0] and marked[0][20] & 0x80 and marked[1] == plain[1]
    assert checksum(marked[0][14:24] + bytes(2) + marked[0][26:34]) == marked[0][24] << 8 | marked[0][25]
    assert clear(marked[0]) == plain[0]
    assert clear(plain[0]) is plain[0]


def test_what_has_no_such_bit_is_left_alone() -> None:
    six = headers("A S 0 0")
    six.version, six.src, six.dst = IPV6, bytes(16), bytes(15) + b"\1"
    six.link = bytes(12) + b"\x86\xdd"
    frame = render_marked(six)[0]
    assert frame == render(six)[0] and clear(frame) is frame
    for data in (b"", bytes(13), bytes(14), bytes(12) + b"\x08\0" + b"\x45", bytes(12) + b"\x81\0" * 3):
        assert clear(data) is data


def test_marked_macs_are_cleared_in_tags_and_in_arp_too() -> None:
    for tag in (b"", b"\x81\0\0\x05"):
        frame = OUI + b"abc" + OUI + b"def" + tag + b"\x08\x06" + ARP_BODY
        cleared = clear(frame)
        assert cleared == frame.replace(OUI, CLEARED_OUI) and cleared.count(CLEARED_OUI) == 4
    assert OUI[0] & 3 == CLEARED_OUI[0] & 3 == 2  # locally administered, unicast


def test_an_error_quotes_a_marked_packet_and_keeps_its_checksum() -> None:
    quoted = render_marked(headers("A P. 1 1 30"))[0][14:]
    body = b"\3\3\0\0\0\0\0\0" + quoted
    value = checksum(body)
    body = body[:2] + value.to_bytes(2, "big") + body[4:]
    head = bytes.fromhex("45000000000000004001") + bytes(10)
    frame = bytes(12) + b"\x08\0" + head + body
    cleared = clear(frame)
    assert cleared[34 + 8 + 6] & 0x80 == 0 and frame[34 + 8 + 6] & 0x80
    message = cleared[34:]
    assert checksum(message[:2] + bytes(2) + message[4:]) == value


def write(path: Path, frames: list[tuple[bytes, int]]) -> Path:
    with path.open("wb") as file:
        writer = PcapWriter(file)
        writer.write_many(Packet(10**18 + i, *frame) for i, frame in enumerate(frames))
        writer.flush()
    return path


LINES = ("A S 0 0", "B S. 0 1", "A . 1 1", "A P. 1 1 100")


def test_a_capture_is_cleared_packet_for_packet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.pcap", [render_marked(headers(line)) for line in LINES])
    plain = write(tmp_path / "b.pcap", [render(headers(line)) for line in LINES])
    assert cli.run(["untaint", str(source), "--json"]) == 0
    target = tmp_path / "a-untainted.pcap"
    assert json.loads(capsys.readouterr().out) == {"file": str(target), "packets": 4, "marked": 4}
    assert target.read_bytes() == plain.read_bytes()
    assert untaint(source, source) == (4, 4) and source.read_bytes() == plain.read_bytes()  # in place
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-untainted.pcap", "a.pcap", "b.pcap"]


@pytest.mark.skipif(shutil.which("editcap") is None, reason="needs editcap (wireshark-common)")
def test_pcapng_is_read_too(tmp_path: Path) -> None:
    source = write(tmp_path / "a.pcap", [render_marked(headers(line)) for line in LINES])
    subprocess.run(["editcap", "-F", "pcapng", str(source), str(tmp_path / "a.pcapng")], check=True)
    assert untaint(tmp_path / "a.pcapng", tmp_path / "out.pcap") == (4, 4)
    with (tmp_path / "out.pcap").open("rb") as file:
        assert all(parse(p.data, p.orig_len).ip_flags & 4 == 0 for p in read_capture(file))


def test_what_is_not_marked_or_cannot_be_is_refused_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "a.pcap", [render(headers(line)) for line in LINES])
    assert cli.run(["untaint", str(source)]) == 1
    error = capsys.readouterr().err
    assert error == (f"netssmd: {source}: no packet carries a mark of netssmd (reserved IP bit, MACs 06:4e:53); "
                     "nothing to clear\n")  # fmt: skip
    marked = write(tmp_path / "c.pcap", [render_marked(headers(LINES[0]))])
    marked.write_bytes(marked.read_bytes()[:-3])
    with pytest.raises(CaptureError, match="c\\.pcap: "):
        untaint(marked, tmp_path / "out.pcap")
    with pytest.raises(CaptureError, match="cannot be read"):
        untaint(tmp_path / "none.pcap", tmp_path / "out.pcap")
    with pytest.raises(OutputError, match="cannot be written"):
        untaint(source, tmp_path / "none" / "out.pcap")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pcap", "c.pcap"]


def test_generated_traffic_differs_by_its_mark_only(tmp_path: Path) -> None:
    for mark in ("none", "reserved-bit"):
        arguments = ["--label", "web", "--sessions", "3", "--packets", "60", "--seed", "5", "--mark", mark]
        assert cli.run(["generate", *arguments, "-o", str(tmp_path / f"{mark}.pcap")]) == 0
    packets, marked = untaint(tmp_path / "reserved-bit.pcap", tmp_path / "cleared.pcap")
    assert packets == marked > 100  # IPv4 alone
    assert (tmp_path / "cleared.pcap").read_bytes() == (tmp_path / "none.pcap").read_bytes()
