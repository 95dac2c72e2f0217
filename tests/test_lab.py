"""tools/lab: the link in virtual time, names, the plan and its folder; and, as root, sessions recorded end to end."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import click.testing
import pytest
from netns import needs_netns

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from netssmd.learn.prepare import find_sources  # noqa: E402
from netssmd.packet.pcap import read_capture  # noqa: E402
from netssmd.packet.wire import parse  # noqa: E402
from tools.lab import __main__ as command  # noqa: E402
from tools.lab import http1, names, ntp, place, recorder, session  # noqa: E402
from tools.lab.link import DOWN, UP, Conditions, Lateness, Link, stays_local  # noqa: E402

MS = 1_000_000
GATEWAY = bytes([192, 168, 7, 1])
PROGRAMS = [program for program in recorder.ALWAYS if shutil.which(program) is None]
needs_programs = pytest.mark.skipif(bool(PROGRAMS), reason=f"no {', '.join(PROGRAMS)}")


# ---- the link, in virtual time


def ipv4(source: bytes, target: bytes, length: int = 1514, mark: int = 0) -> bytes:
    head = bytes(12) + b"\x08\x00" + bytes(12) + source + target
    return head + mark.to_bytes(4, "big") + bytes(length - len(head) - 4)


FAR, NEAR = bytes([198, 18, 3, 4]), bytes([192, 168, 7, 20])


def through(link: Link, offers: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """All frames offered at their times; (due_ns, way, frame) as they leave."""
    out = []
    for at_ns, way, frame in offers:
        while (item := link.due(at_ns)) is not None:
            out.append(item)
        link.offer(at_ns, way, frame)
    while (item := link.due(1 << 62)) is not None:
        out.append(item)
    return out


def link(seed: int = 1, **conditions: float) -> Link:
    drawn = Conditions(**{"rate_mbit": 1000.0, "rtt_ms": 40.0} | conditions)
    return Link(drawn, random.Random(seed), frozenset({GATEWAY}))


def test_a_frame_takes_half_the_round_trip_and_its_own_length() -> None:
    ((due, way, _),) = through(link(rate_mbit=8.0), [(5 * MS, UP, ipv4(NEAR, FAR, 1476))])
    assert way == UP
    assert due == 5 * MS + 20 * MS + (1476 + 24) * 8 * 125  # nanoseconds a bit at 8 Mbit/s


def test_a_burst_leaves_at_the_rate() -> None:
    frames = [(0, DOWN, ipv4(FAR, NEAR, 1226, n)) for n in range(80)]
    left = [due for due, _, _ in through(link(rate_mbit=10.0, queue_ms=500), frames)]
    gaps = {late - early for early, late in pairwise(left)}
    assert gaps == {1_000_000}  # 1,250 bytes on the wire at 10 Mbit/s: a millisecond
    other_way = through(link(rate_mbit=10.0), [(0, UP, ipv4(NEAR, FAR, 1226)), (0, DOWN, ipv4(FAR, NEAR, 1226))])
    assert other_way[0][0] == other_way[1][0], "each way has a rate of its own"


def test_a_full_queue_drops_its_tail() -> None:
    tight = link(rate_mbit=8.0, queue_ms=50.0)  # 50,000 bytes
    left = through(tight, [(0, UP, ipv4(NEAR, FAR, 976, n)) for n in range(200)])
    assert 50 <= len(left) <= 52
    assert [int.from_bytes(frame[34:38], "big") for _, _, frame in left] == list(range(len(left)))
    assert tight.counts[UP].dropped == 200 - len(left)
    tight.offer(10**9, UP, ipv4(NEAR, FAR, 976))
    assert tight.counts[UP].dropped == 200 - len(left), "a second later the queue is empty"


def test_jitter_moves_frames_but_not_past_each_other() -> None:
    frames = [(n * 100_000, UP, ipv4(NEAR, FAR, 100, n)) for n in range(2000)]
    left = through(link(jitter_ms=5.0), frames)
    assert [int.from_bytes(frame[34:38], "big") for _, _, frame in left] == list(range(2000))
    single = [through(link(seed, jitter_ms=5.0), [(0, UP, ipv4(NEAR, FAR, 100))])[0][0] for seed in range(400)]
    assert min(single) >= 15 * MS
    assert max(single) <= 25.1 * MS
    assert abs(sum(single) / 400 - 20 * MS) < 1 * MS


def test_frames_overtake_only_if_asked() -> None:
    frames = [(n * MS, UP, ipv4(NEAR, FAR, 100, n)) for n in range(1000)]
    order = [int.from_bytes(frame[34:38], "big") for _, _, frame in through(link(reorder_pct=5.0), frames)]
    assert sorted(order) == list(range(1000))
    assert 20 <= sum(late < early for early, late in pairwise(order)) <= 90


def test_loss_is_the_share_that_was_asked_for() -> None:
    lossy = link(loss_pct=2.0)
    through(lossy, [(n * MS, n % 2, ipv4(NEAR, FAR, 100)) for n in range(40_000)])
    for way in (UP, DOWN):
        counts = lossy.counts[way]
        assert 300 < counts.lost < 500  # 400, five deviations of 20
        assert counts.offered == counts.lost + counts.delivered == 20_000


def test_what_stays_at_home_is_neither_lost_nor_late() -> None:
    lossy = link(loss_pct=100.0, rtt_ms=100.0)
    at_home = [ipv4(NEAR, GATEWAY), ipv4(GATEWAY, NEAR), bytes(12) + b"\x08\x06" + bytes(46)]
    left = through(lossy, [(0, UP, frame) for frame in at_home])
    assert len(left) == 3
    assert max(due for due, _, _ in left) < 10 * MS
    assert not through(lossy, [(0, UP, ipv4(NEAR, FAR))])
    neighbour = bytes(12) + b"\x86\xdd" + bytes(6) + bytes([58, 255]) + bytes(32) + bytes([135, 0]) + bytes(22)
    assert stays_local(neighbour, frozenset())
    echo = neighbour[:54] + bytes([128]) + neighbour[55:]
    assert not stays_local(echo, frozenset())


def test_lateness_is_told_in_octaves() -> None:
    late = Lateness()
    for microseconds in [3] * 98 + [900] * 2:
        late.add(microseconds * 1000)
    assert (late.quantile_us(0.5), late.quantile_us(0.99)) == (4, 1024)


# ---- names


def test_both_sides_know_an_address_and_dns_says_the_same() -> None:
    known = names.Names("salt", v6=True)
    query = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + names.encode_name("www.site3.test") + b"\0\1\0\1"
    answer = names.answer(known, query)
    assert answer[:2] == b"\x12\x34"
    assert bytes(map(int, known.v4("www.site3.test").split("."))) in answer
    assert known.v4("www.site3.test") != names.Names("other").v4("www.site3.test")
    assert known.v4("www.site3.test").startswith(("198.18.", "198.19."))
    assert known.v6_of("www.site3.test").startswith("2001:2:0:1:")
    assert names.answer(known, query.replace(b"\x03www", b"\x03nx1"))[3] & 15 == names.NXDOMAIN
    for damaged in (b"", query[:11], query[:20], query[:12] + b"\xff" * 9):
        assert names.answer(known, damaged) == b""


# ---- workloads and their plan


WORKLOADS = recorder.load_workloads()


@pytest.mark.parametrize("label", WORKLOADS)
def test_a_workload_says_what_it_is_and_plans_by_its_seed(label: str) -> None:
    workload = WORKLOADS[label]
    first = workload.__doc__.splitlines()[0]
    assert first.endswith(".")
    assert workload.CATEGORY
    for length in (1.0, 10.0):
        plans = [workload.plan(random.Random(5), length) for _ in range(2)]
        assert plans[0] == plans[1]
    assert callable(workload.serve) and callable(workload.run)


def wanted(out: Path, **given: object) -> recorder.Wanted:
    usual = {"labels": ["dns", "web", "chat"], "seed": 1, "sessions": 0, "minutes": 0.0, "jobs": 1, "long_share": 0.0,
             "packets": 20_000, "seconds": 60.0, "snaplen": 128, "free_bytes": 0}  # fmt: skip
    return recorder.Wanted(out, **(usual | given))  # type: ignore[arg-type]


def test_labels_take_turns_and_numbers_go_on() -> None:
    asked = wanted(Path("none"), sessions=9, long_share=0.3)
    rows = list(recorder.plan(asked, {"web": 4}))
    assert sorted(label for label, *_ in rows) == ["chat"] * 3 + ["dns"] * 3 + ["web"] * 3
    assert sorted(number for label, number, *_ in rows if label == "web") == [4, 5, 6]
    assert rows == list(recorder.plan(asked, {"web": 4}))
    assert len({seed for _, _, seed, _ in rows}) == 9
    assert all(length == 1.0 or 6 <= length <= 16 for *_, length in rows)


def test_what_a_dead_recorder_left_is_removed(tmp_path: Path) -> None:
    dead, living = "4194399", str(os.getppid())  # beyond the largest process id
    for pid in (dead, living):
        (tmp_path / f".lab-{pid}" / "web-1").mkdir(parents=True)
        (tmp_path / "web").mkdir(exist_ok=True)
        (tmp_path / "web" / f".{pid}.1.part").write_bytes(b"half")
    (tmp_path / "web" / "0.pcap.gz").write_bytes(b"whole")
    recorder.sweep(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"web", f".lab-{living}", f".lab-{living}/web-1", f"web/.{living}.1.part", "web/0.pcap.gz"}
    (tmp_path / "manifest.csv").write_text(",".join(recorder.COLUMNS) + "\n")
    with pytest.raises(recorder.UsageError, match=f"another recorder writes here .process {living}."):
        recorder.open_folder(wanted(tmp_path))


def test_a_workload_that_lacks_something_is_skipped_with_the_reason() -> None:
    lacking = SimpleNamespace(PROGRAMS=("no-such-program",), MODULES=())
    assert "no-such-program" in recorder.missing(lacking)
    lacking = SimpleNamespace(PROGRAMS=(), MODULES=("no_such_package",))
    if not PROGRAMS:
        assert "no_such_package" in recorder.missing(lacking)
        assert recorder.missing(SimpleNamespace(PROGRAMS=(), MODULES=())) == ""


def lab(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(command.main, arguments)


def test_the_command_lists_plans_and_refuses_in_one_line(tmp_path: Path) -> None:
    listed = lab("record", "--list").stdout
    assert all(re.search(rf"^ *{label} ", listed, re.MULTILINE) for label in WORKLOADS)
    asked = ["record", str(tmp_path / "out"), "--label", "dns", "--sessions", "3", "--dry-run"]
    if not PROGRAMS:
        planned = lab(*asked)
        assert planned.stdout.count("dns/") == 3
        assert planned.stdout == lab(*asked).stdout
    assert not (tmp_path / "out").exists()
    for arguments, word in ((["--label", "nothing"], "--list"), ([], "--minutes")):
        refused = lab("record", str(tmp_path / "out"), *arguments, *(["--sessions", "1"] if arguments else []))
        assert refused.exit_code == 2
        assert refused.stderr.count("\n") == 1 and word in refused.stderr
    (tmp_path / "manifest.csv").write_text("file,label\n")
    with pytest.raises(recorder.UsageError, match="not a manifest of this lab"):
        recorder.open_folder(wanted(tmp_path))


# ---- recorded, as root


def scene(**given: float) -> Callable[[random.Random], Conditions]:
    return lambda rng: Conditions(**{"rate_mbit": 6.0, "rtt_ms": 60.0, "queue_ms": 200.0} | given)


async def serve(here: place.Place) -> None:
    await http1.serve(here, "files.site.test")


async def run(here: place.Place) -> None:
    client = http1.Http1(here)
    for size in here.plan:
        await client.fetch("files.site.test", size, up=900)
        await client.close()


TRANSFER = SimpleNamespace(CATEGORY="bulk", PROGRAMS=(), MODULES=(), serve=serve, run=run,
                           plan=lambda rng, length: (100_000, 200_000, 40_000))  # fmt: skip


def record(out: Path, workload: object, **given: object) -> list[dict[str, str]]:
    """One session of the workload; the manifest."""
    asked = wanted(out, labels=["test"], sessions=1, **given)
    tally = recorder.Recorder(asked, {"test": workload}, lambda tally, jobs: None).run()
    assert tally.failures == []
    with open(out / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


def findings(*captures: Path) -> tuple[dict[str, int], dict[str, object]]:
    argv = [sys.executable, "-m", "netssmd", "check", "--json", *map(str, captures)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
    total = json.loads(done.stdout)["total"]
    return {name: found["packets"] for name, found in total["findings"].items() if "packets" in found}, total


@needs_netns
@needs_programs
def test_a_session_has_the_conditions_that_its_manifest_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "draw_conditions", scene())
    monkeypatch.setattr(place, "RESETS", 0.0)
    (row,) = record(tmp_path, TRANSFER)
    capture = tmp_path / row["file"]
    assert float(row["rtt_ms"]) == 60 and float(row["rate_mbit"]) == 6
    assert 60 <= float(row["handshake_ms"]) < 60 + 30 + float(row["late_us_p99"]) / 500
    assert float(row["duration_s"]) > 340_000 * 8 / 6e6, "nothing is faster than the link"
    assert int(row["lost"]) == 0
    assert 0 <= float(row["waited_pct"]) <= 200
    found, total = findings(capture)
    recovering = {"retransmission", "gap"} if int(row["queue_drops"]) else {"retransmission"}  # a late machine's
    assert {name for name, packets in found.items() if packets} <= recovering
    assert total["flows"] == total["findings"]["handshake"]["flows"] == 3  # type: ignore[index]
    assert total["packets"] == int(row["packets"]) > 250
    assert total["endings"]["fin_both"] == 3, "the last packets are there"  # type: ignore[index]
    (source,), problems = find_sources([tmp_path])
    assert not problems
    assert (source.label, source.split) == ("test", row["split"])
    assert source.conditions == {"rtt_ms": 60.0, "rate_mbit": 6.0, "loss_pct": 0.0}
    assert not source.capped
    assert {path.name for path in tmp_path.iterdir()} == {"test", "manifest.csv"}


@needs_netns
@needs_programs
def test_lost_frames_are_sent_again_and_a_folder_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "draw_conditions", scene(loss_pct=5.0, rtt_ms=10.0, rate_mbit=50.0))
    (row,) = record(tmp_path, TRANSFER)
    found, _ = findings(tmp_path / row["file"])
    assert int(row["lost"]) > 0
    assert found["retransmission"] + found["gap"] > 0
    monkeypatch.setattr(session, "draw_conditions", scene(rate_mbit=100.0))
    first, second = record(tmp_path, TRANSFER, packets=100)
    assert first == row
    assert (second["file"], second["packets"], second["capped"]) == ("test/1.pcap.gz", "100", "1")


@needs_netns
@needs_programs
def test_the_workload_that_the_guide_shows_can_be_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "draw_conditions", scene(rtt_ms=5.0))
    text = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "lab.md").read_text(), re.DOTALL)
    assert text
    shown: dict[str, object] = {}
    exec(text[1], shown)
    assert len(shown["plan"](random.Random(1), 1.0)) == 20  # type: ignore[operator]
    shorter = SimpleNamespace(**{**shown, "plan": lambda rng, length: [300, 5_000, 20]})
    (row,) = record(tmp_path, shorter)
    assert row["category"] == "database"
    assert int(row["packets"]) > 15


@needs_netns
@needs_programs
def test_ipv6_neighbours_find_each_other_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Datagrams do not tell the kernel that a neighbour is there: it asks again after a while, and is answered."""
    usual = session.draw_scene
    link = Conditions(rate_mbit=50.0, rtt_ms=5.0)

    def scene_of(rng: random.Random) -> session.Scene:
        return replace(usual(rng), v6=True, server_stack="linux", conditions=link)

    monkeypatch.setattr(session, "draw_scene", scene_of)
    timers = {"base_reachable_time_ms": 200, "delay_first_probe_time": 1, "retrans_time_ms": 200}
    impatient = {f"ipv6.neigh.eth0.{name}": value for name, value in timers.items()}
    monkeypatch.setitem(session.STACKS, "linux", impatient)

    async def polls(here: place.Place) -> None:
        for _ in range(12):
            await ntp.ask(here, "time.test")
            await here.pause(0.25)

    async def clock(here: place.Place) -> None:
        await here.listen_udp("time.test", 123, lambda: ntp.NtpServer(here))

    (row,) = record(tmp_path, SimpleNamespace(**{**vars(TRANSFER), "serve": clock, "run": polls}))
    with open(tmp_path / row["file"], "rb") as file:
        frames = [parse(packet.data, packet.orig_len) for packet in read_capture(file)]
    ports = [(headers.sport, headers.dport) for headers in frames if headers.version == 6]
    asked, told = (sum(pair[end] == 123 for pair in ports) for end in (1, 0))
    assert asked == told == 12, "every question was answered"


@needs_netns
@needs_programs
def test_a_session_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    async def broken(here: place.Place) -> None:
        raise ValueError("no such thing")

    failing = SimpleNamespace(**{**vars(TRANSFER), "run": broken})
    tally = recorder.Recorder(wanted(tmp_path, labels=["test"], sessions=1), {"test": failing}, lambda *_: None).run()
    ((name, why),) = tally.failures
    assert name == "test/0.pcap.gz" and "no such thing" in why
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["manifest.csv"]


@needs_netns
@needs_programs
def test_what_always_fails_is_not_tried_for_ever(tmp_path: Path) -> None:
    hopeless = SimpleNamespace(**{**vars(TRANSFER), "plan": lambda rng, length: 1 // 0})
    asked = wanted(tmp_path, labels=["test"], minutes=60.0, jobs=3)
    with pytest.raises(recorder.OutputError, match=r"8 sessions failed .* ZeroDivisionError"):
        recorder.Recorder(asked, {"test": hopeless}, lambda *_: None).run()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["manifest.csv"]


def processes(mark: str) -> list[int]:
    """Those whose command line names the folder."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_until(true: Callable[[], object], what: str) -> None:
    for _ in range(6000):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError(f"never: {what}")


@needs_netns
@needs_programs
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_or_interrupted_it_leaves_no_process_behind(number: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "tools.lab", "record", str(out), "--minutes", "5", "--jobs", "2", "--label", "chat"]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    try:
        wait_until(lambda: len([p for p in processes(str(out)) if b"tcpdump" in read(p)]) == 2, "two captures run")
        process.send_signal(number)
        process.wait()
        wait_until(lambda: not processes(str(out)), "all its processes are gone")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    if number == signal.SIGKILL:
        assert list(out.glob(".lab-*"))
    recorder.open_folder(wanted(out))
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["manifest.csv"]
    assert not list(out.glob(".lab-*"))


def read(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
