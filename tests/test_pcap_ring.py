"""The ring of captures: names, slices, ring count, kills, full disks. Times are the packets' own."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netssmd.errors import OutputError
from netssmd.output.ledger import Ledger, SessionMeta
from netssmd.output.pcap_ring import PcapRing
from netssmd.packet.pcap import Packet, read_capture

SECOND = 1_000_000_000
T0 = 1_769_903_940 * SECOND  # 2026-01-31 23:59:00 UTC
SESSION = SessionMeta("s1", "web")
FLOW = (6, b"\xc6\x12\x00\x01", 40000, b"\xc6\x12\x00\x02", 443)


def packet(offset_ns: int = 0, size: int = 60) -> Packet:
    return Packet(T0 + offset_ns, bytes([offset_ns & 255]) * size, max(size, 60))


def note(p: Packet) -> tuple[object, ...]:
    return (SESSION, p.ts_ns, FLOW, 0, p.orig_len)


def ring(directory: Path, **options: Any) -> PcapRing:
    return PcapRing(directory, **{"min_free_bytes": 0, **options})


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def contents(directory: Path) -> list[list[Packet]]:
    slices = []
    for path in sorted(directory.glob("*.pcap")):
        with path.open("rb") as file:
            slices.append(list(read_capture(file, str(path))))
    return slices


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------- names and slices


def test_name_says_number_and_time_of_the_first_packet(tmp_path: Path) -> None:
    r = ring(tmp_path)
    r.write(packet(59 * SECOND + 999_999_999))
    r.write(packet(61 * SECOND))
    assert names(tmp_path) == [".netssmd.lock", ".netssmd_00001_20260131235959.pcap.part"]
    r.close()
    assert names(tmp_path) == ["netssmd_00001_20260131235959.pcap"]
    assert (r.packets, r.files, r.dropped) == (2, 1, 0)
    assert r.bytes == (tmp_path / names(tmp_path)[0]).stat().st_size
    r.close()


def test_no_packets_no_file(tmp_path: Path) -> None:
    r = ring(tmp_path / "new" / "folder", beside=Ledger())
    r.flush(T0)
    r.rotate()
    r.close()
    assert names(tmp_path / "new" / "folder") == []


def test_slices_by_packets(tmp_path: Path) -> None:
    r = ring(tmp_path, max_packets=3)
    for i in range(7):
        r.write(packet(i))
    r.close()
    assert [len(s) for s in contents(tmp_path)] == [3, 3, 1]


def test_slices_by_bytes_never_exceed_the_limit(tmp_path: Path) -> None:
    r = ring(tmp_path, max_bytes=24 + 3 * 76)
    for i in range(7):
        r.write(packet(i))
    r.write(packet(7, 1000))  # larger than the limit: alone
    r.write(packet(8))
    r.close()
    assert [len(s) for s in contents(tmp_path)] == [3, 3, 1, 1, 1]


def test_slices_by_seconds_fall_on_round_times(tmp_path: Path) -> None:
    r = ring(tmp_path, max_seconds=60)
    for second in (50, 59, 60, 61, 59, 119, 120, 400):  # one goes back: it stays where it is
        r.write(packet(second * SECOND))
    r.close()
    assert [[(p.ts_ns - T0) // SECOND for p in s] for s in contents(tmp_path)] == [
        [50, 59],
        [60, 61, 59, 119],
        [120],
        [400],
    ]
    assert [name[8:28] for name in names(tmp_path)] == [
        "00001_20260131235950",
        "00002_20260201000000",
        "00003_20260201000100",
        "00004_20260201000540",
    ]


def test_an_idle_slice_is_completed_by_flush(tmp_path: Path) -> None:
    r = ring(tmp_path, max_seconds=10)
    r.write(packet(3 * SECOND))
    r.flush(T0 + 9 * SECOND)
    assert (r.files, r.packets) == (0, 1)
    r.flush(T0 + 10 * SECOND)
    assert r.files == 1
    r.flush(T0 + 30 * SECOND)
    r.close()
    assert r.files == 1


def test_rotate_on_request(tmp_path: Path) -> None:
    r = ring(tmp_path)
    r.write(packet(1))
    r.rotate()
    r.rotate()
    r.write(packet(2))
    r.close()
    assert contents(tmp_path) == [[packet(1)], [packet(2)]]


def test_numbers_go_on_after_a_restart_and_beyond_five_digits(tmp_path: Path) -> None:
    (tmp_path / "netssmd_99999_20260131235900.pcap").write_bytes(b"")
    (tmp_path / "other_00007_20260131235900.pcap").write_bytes(b"")
    for i in range(2):
        r = ring(tmp_path)
        r.write(packet(i))
        r.close()
    assert [n for n in names(tmp_path) if "_1" in n] == [f"netssmd_{n}_20260131235900.pcap" for n in (100000, 100001)]


def test_ring_count_deletes_the_oldest_with_its_ledger(tmp_path: Path) -> None:
    for _ in range(2):  # what an earlier run left counts
        r = ring(tmp_path, max_packets=1, max_files=3, beside=Ledger())
        for i in range(3):
            r.write(packet(i), note(packet(i)))
        r.close()
        assert r.files == 3
    kept = [f"netssmd_{n:05d}_20260131235900" for n in (4, 5, 6)]
    assert names(tmp_path) == sorted([k + ".pcap" for k in kept] + [k + ".jsonl" for k in kept])


def test_snaplen_and_microseconds(tmp_path: Path) -> None:
    r = ring(tmp_path, snaplen=32, nanosecond=False)
    r.write(Packet(T0 + 1_999, b"x" * 100, 1500))
    r.close()
    assert contents(tmp_path) == [[Packet(T0 + 1_000, b"x" * 32, 1500)]]


def test_writes_are_buffered(tmp_path: Path) -> None:
    r = ring(tmp_path)
    for i in range(1000):
        r.write(packet(i))
    part = tmp_path / ".netssmd_00001_20260131235900.pcap.part"
    assert part.stat().st_size == 24
    r.flush()
    assert part.stat().st_size == 24 + 76_000
    for i in range(14_000):
        r.write(packet(i))
    assert part.stat().st_size > 1 << 20
    r.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10 * SECOND), st.integers(0, 300)), max_size=40),
    st.integers(1, 9),
    st.integers(100, 2000),
    st.sampled_from([0.5, 1, 2, 7]),
    st.booleans(),
)
def test_every_packet_is_in_exactly_one_slice(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[tuple[int, int]],
    max_packets: int,
    max_bytes: int,
    max_seconds: float,
    flush: bool,
) -> None:
    directory = tmp_path_factory.mktemp("ring")
    given_packets = [packet(offset, size) for offset, size in sorted(sizes)]
    r = ring(directory, max_packets=max_packets, max_bytes=max_bytes, max_seconds=max_seconds, beside=Ledger())
    for p in given_packets:
        r.write(p, note(p))
        if flush:
            r.flush(p.ts_ns)
    r.close()
    slices = contents(directory)
    assert [p for s in slices for p in s] == given_packets
    slot = round(max_seconds * SECOND)
    for s, path in zip(slices, sorted(directory.glob("*.pcap")), strict=True):
        assert 1 <= len(s) <= max_packets
        assert len({p.ts_ns // slot for p in s}) == 1
        assert path.stat().st_size <= max_bytes or len(s) == 1
        header, session = lines(path.with_suffix(".jsonl"))
        assert header["capture"] == path.name
        assert header["packets"] == session["packets"] == len(s)
        assert (session["first_ts_ns"], session["last_ts_ns"]) == (s[0].ts_ns, s[-1].ts_ns)
    assert r.packets == len(given_packets)
    assert r.files == len(slices)
    assert not [n for n in names(directory) if n.startswith(".")]


# ------------------------------------------------------------------------------------------------------- wrong places


def test_one_ring_at_a_time(tmp_path: Path) -> None:
    r = ring(tmp_path)
    with pytest.raises(OutputError, match=r"another process writes netssmd_\* there; choose another"):
        ring(tmp_path)
    ring(tmp_path, prefix="other").close()
    r.close()
    ring(tmp_path).close()


@pytest.mark.parametrize("prefix", ["", "a/b", ".hidden"])
def test_a_prefix_that_is_no_name(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(OutputError, match="expected the beginning of a file name"):
        ring(tmp_path, prefix=prefix)


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(OutputError, match=r"directory .*file.*: cannot be written: .*; choose another"):
            ring(tmp_path / place)


def test_the_directory_disappears(tmp_path: Path) -> None:
    r = ring(tmp_path / "d", max_packets=1)
    r.write(packet(1))
    shutil.rmtree(tmp_path / "d")
    with pytest.raises(OutputError, match="No such file or directory"):
        r.write(packet(2))
    with pytest.raises(OutputError):
        r.write(packet(3))
    r.close()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield place
    gc.collect()
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_read_only_file_system(mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    with pytest.raises(OutputError, match=r"small: cannot be written: Read-only file system; choose another"):
        ring(mounted)
    with pytest.raises(OutputError, match="Read-only"):
        ring(mounted / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="Permission denied"):
        ring(tmp_path)


# --------------------------------------------------------------------------------------------------------- full disks


def fill(r: PcapRing, count: int = 2000) -> list[Packet]:
    """Write packets of 1,000 bytes until the ring objects."""
    sent = []
    for i in range(count):
        p = packet(i, 1000)
        sent.append(p)
        r.write(p, note(p))
        if i % 10 == 9:
            r.flush()
    return sent


def check_slices(directory: Path, r: PcapRing, sent: list[Packet]) -> None:
    """What lies there is whole and begins as what was sent, and the ledgers say the same."""
    stored = [p for s in contents(directory) for p in s]
    assert stored == sent[: len(stored)]
    assert r.packets == len(stored)
    for path in directory.glob("*.jsonl"):
        with path.with_suffix(".pcap").open("rb") as file:
            count = len(list(read_capture(file)))
        assert lines(path)[0]["packets"] == count


def test_a_full_disk_stops(mounted: Path) -> None:
    (mounted / "ballast").write_bytes(bytes(8 << 10))
    r = ring(mounted, max_packets=100, beside=Ledger())
    with pytest.raises(
        OutputError, match=r"small: writing netssmd_00003_\d+.pcap: No space left on device \(.*\); free some"
    ):
        fill(r)
    part = mounted / ".netssmd_00003_20260131235900.pcap.part"
    assert (part.stat().st_size - 24) % 1016 == 0
    with pytest.raises(OutputError, match="No space left"):
        r.write(packet(1))
    r.close()
    assert len(list(mounted.glob("*.pcap"))) >= 2
    stored = r.packets
    with pytest.raises(OutputError, match=r"taking over captures: No space left on device \(.*\); free some"):
        ring(mounted, beside=Ledger())
    assert part.exists()
    dropping = ring(mounted, on_full="drop", beside=Ledger())
    dropping.close()
    assert (part.exists(), dropping.recovered) == (True, [])
    (mounted / "ballast").unlink()
    ring(mounted, beside=Ledger()).close()
    slices = contents(mounted)
    assert sum(map(len, slices)) == stored
    assert [p for s in slices for p in s] == [packet(i, 1000) for i in range(stored)]


def test_a_full_disk_completes_the_slice_where_the_ledger_fits(mounted: Path) -> None:
    ballast = mounted / "ballast"
    ballast.write_bytes(bytes(100 << 10))
    r = ring(mounted, beside=Ledger())
    with pytest.raises(OutputError, match="No space left"):
        fill(r)
    ballast.unlink()
    r.close()
    assert r.files == 1
    (header, session) = lines(mounted / "netssmd_00001_20260131235900.jsonl")
    (stored,) = contents(mounted)
    assert header["packets"] == session["packets"] == len(stored) == r.packets
    assert r.dropped == 0  # what was pending found its place


def test_a_full_disk_pauses_and_resumes(mounted: Path) -> None:
    ballast = mounted / "ballast"
    ballast.write_bytes(bytes(100 << 10))
    r = ring(mounted, on_full="drop", beside=Ledger())
    fill(r, 300)
    assert r.dropped > 0
    before = r.dropped
    ballast.unlink()
    r.flush()
    late = packet(SECOND, 1000)
    r.write(late, note(late))
    r.close()
    assert r.dropped == before
    assert r.packets + r.dropped == 301
    (stored,) = contents(mounted)
    assert len(stored) == r.packets
    assert stored[-1] == late
    assert lines(mounted / "netssmd_00001_20260131235900.jsonl")[0]["packets"] == r.packets


def test_a_disk_that_stays_full_while_dropping(mounted: Path) -> None:
    (mounted / "ballast").write_bytes(bytes(100 << 10))
    r = ring(mounted, on_full="drop", beside=Ledger())
    sent = fill(r, 300)
    with pytest.raises(OutputError, match="completing netssmd_00001"):
        r.close()
    assert [n for n in names(mounted) if not n.startswith(".")] == ["ballast"]
    (mounted / "ballast").unlink()
    ring(mounted).close()
    (stored,) = contents(mounted)
    assert stored == sent[: len(stored)]
    assert r.packets == len(stored)
    assert r.packets + r.dropped == 300


def test_a_disk_without_room_for_the_first_byte(mounted: Path) -> None:
    with (mounted / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    r = ring(mounted)
    with pytest.raises(OutputError, match="No space left on device"):
        r.write(packet(1))
    r.close()
    assert names(mounted) == ["ballast"]


def test_below_the_floor_the_slice_is_completed_and_writing_stops(mounted: Path) -> None:
    r = ring(mounted, min_free_bytes=128 << 10, beside=Ledger())
    with pytest.raises(OutputError, match=r"directory .*small: 0\.1 MB free, the floor is 0\.1 MB; free some space"):
        fill(r)
    r.close()
    assert [n.split(".")[-1] for n in names(mounted)] == ["jsonl", "pcap"]
    check_slices(mounted, r, [packet(i, 1000) for i in range(2000)])
    with pytest.raises(OutputError, match="the floor is"):
        ring(mounted, min_free_bytes=200 << 10)
    assert not (mounted / ".netssmd.lock").exists()


def test_below_the_floor_dropping(mounted: Path) -> None:
    r = ring(mounted, min_free_bytes=128 << 10, on_full="drop", beside=Ledger())
    sent = fill(r)
    r.close()
    assert r.packets + r.dropped == len(sent)
    assert r.packets > 100
    assert r.dropped > 1000
    check_slices(mounted, r, sent)
    assert shutil.disk_usage(mounted).free > 100 << 10


def test_no_room_from_the_start_while_dropping(tmp_path: Path) -> None:
    r = ring(tmp_path, min_free_bytes=1 << 60, on_full="drop")
    for i in range(3000):
        r.write(packet(i))
    r.flush(T0)
    r.close()
    assert (r.packets, r.dropped) == (0, 3000)
    assert names(tmp_path) == []


def test_a_write_cut_anywhere_leaves_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes `room` bytes of what is stored, then nothing more."""
    real = os.write
    for room in range(0, 380, 7):
        directory = tmp_path / str(room)
        r = ring(directory, beside=Ledger())
        sent = [packet(i, i * 9) for i in range(8)]
        for p in sent:
            r.write(p, note(p))
        left = [room]

        def write(fd: int, data: Any, left: list[int] = left, r: PcapRing = r) -> int:
            if r._slice is not None and fd == r._slice.journal:
                return real(fd, data)
            if not left[0]:
                raise OSError(28, "No space left on device")
            taken = real(fd, bytes(data)[: min(left[0], 50)])
            left[0] -= taken
            return taken

        with monkeypatch.context() as patch:
            patch.setattr("netssmd.output.pcap_ring.os.write", write)
            with pytest.raises(OutputError):
                r.flush()
            left[0] = 0
            r.close()
        slices = contents(directory)
        stored = [p for s in slices for p in s]
        assert stored == sent[: len(stored)]
        assert r.packets == len(stored)
        assert r.dropped == 8 - len(stored)
        assert sum(16 + len(p.data) for p in stored) <= room < sum(16 + len(p.data) for p in sent[: len(stored) + 1])
        assert len(names(directory)) == (2 if stored else 0)


# -------------------------------------------------------------------------------------------------------------- kills


def test_a_part_file_is_cut_back_and_finished(tmp_path: Path) -> None:
    r = ring(tmp_path, beside=Ledger())
    for i in range(5):
        r.write(packet(i))
    r.flush()
    part = tmp_path / ".netssmd_00001_20260131235900.pcap.part"
    data = part.read_bytes()
    r.close()
    for path in tmp_path.iterdir():
        path.unlink()
    part.write_bytes(data[:-10])
    (tmp_path / ".netssmd_00001_20260131235900.jsonl.part").write_text('{"type":')
    (tmp_path / ".netssmd_00002_20260131235901.pcap.part").write_bytes(data[:24])
    (tmp_path / ".netssmd_00003_20260131235901.pcap.part").write_bytes(b"")
    (tmp_path / ".netssmd_00004_20260131235901.pcap.part").write_bytes(data[:100] + bytes(5000))
    (tmp_path / ".other_00001_20260131235901.pcap.part").write_bytes(b"")
    r = ring(tmp_path, beside=Ledger())
    assert r.recovered == ["netssmd_00001_20260131235900.pcap", "netssmd_00004_20260131235901.pcap"]
    r.write(packet(9))
    r.close()
    assert names(tmp_path) == [
        ".other_00001_20260131235901.pcap.part",
        "netssmd_00001_20260131235900.jsonl",
        "netssmd_00001_20260131235900.pcap",
        "netssmd_00004_20260131235901.jsonl",
        "netssmd_00004_20260131235901.pcap",
        "netssmd_00005_20260131235900.jsonl",
        "netssmd_00005_20260131235900.pcap",
    ]
    assert contents(tmp_path) == [[packet(i) for i in range(4)], [packet(0)], [packet(9)]]
    (header,) = lines(tmp_path / "netssmd_00001_20260131235900.jsonl")
    assert header["recovered"] is True
    assert (header["packets"], header["sessions"]) == (4, None)


def test_a_kill_between_the_two_renames_keeps_the_ledger(tmp_path: Path) -> None:
    r = ring(tmp_path, beside=Ledger())
    r.write(packet(1), note(packet(1)))
    r.close()
    final = tmp_path / "netssmd_00001_20260131235900.pcap"
    final.rename(tmp_path / f".{final.name}.part")
    ledger = final.with_suffix(".jsonl").read_bytes()
    ring(tmp_path, beside=Ledger()).close()
    assert final.with_suffix(".jsonl").read_bytes() == ledger
    assert contents(tmp_path) == [[packet(1)]]


WRITER = """
import sys
from netssmd.output.ledger import Ledger, SessionMeta
from netssmd.output.pcap_ring import PcapRing
from netssmd.packet.pcap import Packet
session = SessionMeta("s")
ring = PcapRing(sys.argv[1], max_packets=3000, min_free_bytes=0, beside=Ledger())
i = 0
while True:
    p = Packet(i * 1000, i.to_bytes(8, "big") * (8 + i % 50), 2000)
    ring.write(p, (session, p.ts_ns, None, 0, p.orig_len))
    if i % 97 == 0:
        ring.flush(p.ts_ns)
    if i == 10000:
        print("on", flush=True)
    i += 1
"""


@pytest.mark.parametrize("delay", [0.0, 0.013, 0.05])
def test_kill_9_loses_only_what_was_not_stored(tmp_path: Path, delay: float) -> None:
    root = Path(__file__).parents[1]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        cwd=root,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"on\n"
    time.sleep(delay)  # the moment of the kill is not to be chosen too well
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    before = contents(tmp_path)
    assert all(len(s) == 3000 for s in before)
    ring(tmp_path, beside=Ledger()).close()
    stored = [p for s in contents(tmp_path) for p in s]
    assert len(stored) > 10_000 - 97
    assert [int.from_bytes(p.data[:8], "big") for p in stored] == list(range(len(stored)))
    assert not [n for n in names(tmp_path) if n.startswith(".")]
    assert {p.stem for p in tmp_path.glob("*.pcap")} == {p.stem for p in tmp_path.glob("*.jsonl")}


# ------------------------------------------------------------------------------------------------------------ oracles


@pytest.mark.skipif(shutil.which("capinfos") is None, reason="capinfos is not installed")
def test_capinfos_agrees(tmp_path: Path) -> None:
    r = ring(tmp_path, max_packets=400)
    for i in range(1000):
        r.write(packet(i * 1_000_003))
    r.close()
    for path, count in zip(sorted(tmp_path.glob("*.pcap")), (400, 400, 200), strict=True):
        command = ["capinfos", "-T", "-M", "-r", "-c", "-o", "-t", str(path)]
        fields = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split("\t")
        assert fields[2:] == [str(count), "True"]
        assert fields[1] in ("nsecpcap", "nspcap") or "nanosecond" in fields[1]
