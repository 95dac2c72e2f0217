"""The daemon goes on where it was: after TERM and after kill -9, at top speed and live; what does not fit is set
aside."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from netssmd.daemon.addresses import Plans
from netssmd.daemon.config import Config, parse
from netssmd.daemon.keeper import Identity, Keeper
from netssmd.daemon.retarget import fork_session, retarget
from netssmd.daemon.service import Service
from netssmd.daemon.snapshots import Store
from netssmd.engine.opening import OpenModel, open_model
from netssmd.engine.scheduler import Scheduler
from netssmd.engine.session import Session
from netssmd.errors import SnapshotError
from netssmd.packet.pcap import Packet, read_capture

ROOT = Path(__file__).parent.parent
START_NS = 1_770_000_000 * 10**9
SECOND = 10**9


@pytest.fixture(scope="module")
def model() -> OpenModel:
    return open_model()


def settings(directory: Path, text: str = "") -> str:
    return f"""
[engine]
threads = 1
lookahead = "500ms"
[output]
directory = "{directory}"
slice_duration = "0s"
free_disk = "0MB"
[metrics]
port = 0
{text}"""


TOP = """
[snapshot]
interval = "200ms"
[traffic]
seed = 5
concurrency = 6
ramp = "3s"
sessions = 14
session_packets = 250
"""


def top_speed(directory: Path) -> Config:
    return parse(settings(directory, TOP).replace("[engine]", "[engine]\npace = 'topspeed'"), "test")


def captured(directory: Path) -> list[Packet]:
    return [p for path in sorted(directory.glob("*.pcap")) for p in read_capture(io.BytesIO(path.read_bytes()))]


def ledgers(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in sorted(directory.glob("*.jsonl")) for line in path.open()]


async def until(service: Service, packets: int) -> None:
    """Run, and stop as TERM does when so many packets were sent."""
    running = asyncio.create_task(service.run())
    while not running.done() and not (hasattr(service, "output") and service.output.counters.total_packets >= packets):
        await asyncio.sleep(0.005)
    if not running.done():
        service.stop()
    await running


@pytest.fixture(scope="module")
def whole(model: OpenModel, tmp_path_factory: pytest.TempPathFactory) -> list[Packet]:
    """The packets of a run that nobody disturbs."""
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: START_NS)
        asyncio.run(Service(top_speed(directory), model).run())
    packets = captured(directory)
    assert len(packets) > 1000 and not (directory / ".snapshots").exists()
    return packets


def test_stopped_and_started_again_at_top_speed(
    model: OpenModel, whole: list[Packet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TERM, again and again: all slices together are the undisturbed run, byte for byte, and the ledger says so."""
    monkeypatch.setattr(time, "time_ns", lambda: START_NS)
    runs = 0
    while runs == 0 or list((tmp_path / ".snapshots").glob("*.snapshot")):
        asyncio.run(until(Service(top_speed(tmp_path), model), 200))
        runs += 1
        assert runs < 40
    assert runs > 3 and captured(tmp_path) == whole
    assert not list(tmp_path.glob(".*.part"))
    lines = [line for line in ledgers(tmp_path) if line["type"] == "session"]
    cut, resumed = [line for line in lines if "cut" in line], [line for line in lines if "resumed" in line]
    assert cut and {line["cut"] for line in cut} >= {line["resumed"]["snapshot"] for line in resumed}  # type: ignore
    assert all(line["resumed"]["clean"] and line["resumed"]["shift_ns"] == 0 for line in resumed)  # type: ignore
    ended = [line["session"] for line in lines if line["complete"]]
    assert len(ended) == len(set(ended)) == 14


def test_stopped_as_the_last_session_ends(
    model: OpenModel, whole: list[Packet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No session goes on, but packets wait for their turn: they are kept, and sent at the next start."""
    monkeypatch.setattr(time, "time_ns", lambda: START_NS)
    service, ended = Service(top_speed(tmp_path), model), 0

    def stop_at_the_last(session: Session) -> None:
        nonlocal ended
        ended += 1
        if ended == 14:
            assert service.keeper and not service.board.done
            service.keeper.last_moment()
            service.board.stop.set()

    monkeypatch.setattr(service, "_session_ended", stop_at_the_last)
    asyncio.run(service.run())
    assert service.board.done and len(captured(tmp_path)) < len(whole) and (tmp_path / ".snapshots").exists()
    second = Service(top_speed(tmp_path), model)
    asyncio.run(second.run())
    assert sum(second.counters.started().values()) == 0
    assert captured(tmp_path) == whole and not (tmp_path / ".snapshots").exists()


def test_killed_and_started_again_at_top_speed(model: OpenModel, whole: list[Packet], tmp_path: Path) -> None:
    """kill -9, again and again: the captures still hold the undisturbed run, each packet once. A run that is complete
    has no snapshot any more; who was killed on the way out after that is not started again."""
    path = tmp_path / "netssmd.toml"
    out = tmp_path / "out"
    path.write_text(settings(out, TOP))
    draw, kills = random.Random(3), 0
    while True:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "daemon_child.py"), str(START_NS), "-c", str(path), "--topspeed"],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        newest, deadline = newest_snapshot(out), time.monotonic() + 60
        while process.poll() is None and (kills == 5 or newest_snapshot(out) == newest):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        error = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), error
        if process.returncode == 0 or not newest_snapshot(out):
            break
        kills += 1
    assert kills >= 1 and captured(out) == whole


def newest_snapshot(out: Path) -> str:
    return max((path.name for path in (out / ".snapshots").glob("*.snapshot")), default="")


def test_live_sessions_go_on(model: OpenModel, tmp_path: Path) -> None:
    """At live pace the sessions of two runs are those of one, later by the time between them."""
    text = "[traffic]\nseed = 6\nconcurrency = 5\nramp = '0s'\n"
    config = parse(settings(tmp_path, text), "test")
    first = Service(config, model)
    asyncio.run(until(first, 300))
    lag_ns = time.monotonic_ns()
    time.sleep(0.7)
    second = Service(config, model)
    assert second.keeper and second.keeper.resumed and len(second.keeper.resumed.sessions) == 5
    asyncio.run(until(second, 300))
    times = [packet.ts_ns for packet in captured(tmp_path)]
    assert times == sorted(times) and lag_ns
    frames_of: dict[int, list[bytes]] = defaultdict(list)
    shifts = set()
    for capture in sorted(tmp_path.glob("*.pcap")):
        owner = {}
        for line in map(json.loads, capture.with_suffix(".jsonl").open()):
            if line["type"] == "session":
                number = int(line["session"].split("-")[1])
                shifts.add(line.get("resumed", {}).get("shift_ns", 0))
                for flow in line["flows"]:
                    owner[flow.get("src"), flow.get("dst"), flow.get("sport"), flow.get("dport")] = number
        for packet in read_capture(io.BytesIO(capture.read_bytes())):
            number = whose(packet.data, owner)
            if number is not None:
                frames_of[number].append(packet.data)
    assert max(shifts) > SECOND // 2
    compared = 0
    for number, seen in frames_of.items():
        alone = Scheduler(model.backend(1))
        info = second.mix.session(number, 0)
        alone.add(model.session(info, second.plan, second.limits, second.temperatures))
        made: list[bytes] = []
        while len(made) < 3 * len(seen) + 50 and (result := alone.step()) is not None:
            made += [p.data for p in result[0] if p.five_tuple is not None]
        assert seen == made[: len(seen)]
        compared += len(seen)
    assert compared > 400


@pytest.mark.parametrize("spoken", [False, True])
def test_a_copy_is_told_as_one_after_a_restart(model: OpenModel, tmp_path: Path, spoken: bool) -> None:
    traffic = "[traffic]\nseed = 6\nconcurrency = 3\nramp = '0s'\nlabels = {call-webrtc = 1}\n"
    config = parse(settings(tmp_path, traffic), "test")

    async def forked(service: Service) -> str:
        running = asyncio.create_task(service.run())
        while not (hasattr(service, "output") and service.output.counters.total_packets >= 20):
            assert not running.done()
            await asyncio.sleep(0.005)
        name = await fork_session(service, "6-0")
        while spoken and service.board.forked:
            assert not running.done()
            await asyncio.sleep(0.005)
        service.stop()
        await running
        return name

    async def heard(service: Service, name: str) -> None:
        assert service.keeper and service.keeper.resumed
        kept = [session.info for _, session, *_ in service.keeper.resumed.sessions]
        number = next(info.number for info in kept if service.session_id(info) == name)
        running = asyncio.create_task(service.run())
        while not (hasattr(service, "output") and number in service.output._metas):
            assert not running.done()
            await asyncio.sleep(0.005)
        service.stop()
        await running

    name = asyncio.run(forked(Service(config, model)))
    asyncio.run(heard(Service(config, model), name))
    lines = [line for line in ledgers(tmp_path) if line.get("session") == name]
    assert lines and all(line["forked_from"] == "6-0" for line in lines)
    assert lines[-1]["resumed"]


def whose(frame: bytes, owner: dict[tuple[object, ...], int]) -> int | None:
    """The session of a frame, by the flows of its ledger."""
    from netssmd.output.ledger import _address
    from netssmd.packet import wire

    h = wire.parse(frame, len(frame))
    if h.version not in (4, 6):
        return None
    src, dst = _address(h.src), _address(h.dst)
    ports = (h.sport, h.dport) if h.transport != wire.OPAQUE else (0, 0)
    return owner.get((src, dst, *ports), owner.get((dst, src, ports[1], ports[0])))


# --- what does not fit ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(model: OpenModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a stopped run left."""
    directory = tmp_path_factory.mktemp("stopped")
    asyncio.run(until(Service(top_speed(directory), model), 150))
    assert len(list((directory / ".snapshots").glob("*.snapshot"))) >= 1
    return directory


def again(stopped: Path, folder: Path) -> Path:
    """A copy of its newest snapshot. Return: the copy."""
    (folder / ".snapshots").mkdir()
    newest = max((stopped / ".snapshots").glob("*.snapshot"))
    copy = folder / ".snapshots" / newest.name
    copy.write_bytes(newest.read_bytes())
    return copy


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b[:-1] + bytes((b[-1] ^ 1,)), "damaged: its checksum is wrong"),
        (lambda b: b[: len(b) // 2], "checksum"),
        (lambda b: b"", "not a snapshot"),
        (lambda b: b"PK" + b, "not a snapshot"),
        (lambda b: b[:8] + b"\x09" + b[9:], "format 9"),
    ],
)
def test_a_damaged_snapshot_is_set_aside(
    model: OpenModel, stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, change, says: str
) -> None:
    copy = again(stopped, tmp_path)
    copy.write_bytes(change(copy.read_bytes()))
    service = Service(top_speed(tmp_path), model)
    assert service.keeper and service.keeper.resumed is None and service.keeper.refused == 1
    assert says in caplog.text and [p.name for p in copy.parent.iterdir()] == [copy.name + ".refused"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (("seed = 5", "seed = 6"), "made with seed 5; this run has 6"),
        (("pace = 'topspeed'", "pace = 'live'"), "made with pace topspeed; this run has live"),
    ],
)
def test_a_snapshot_of_another_run_is_set_aside(
    model: OpenModel, stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: tuple[str, str], says: str
) -> None:
    again(stopped, tmp_path)
    whole = settings(tmp_path, TOP).replace("[engine]", "[engine]\npace = 'topspeed'")
    service = Service(parse(whole.replace(*text), "test"), model)
    assert service.keeper and service.keeper.resumed is None and says in caplog.text


def test_another_model_is_refused_and_an_older_snapshot_taken(model: OpenModel, stopped: Path, tmp_path: Path) -> None:
    older = again(stopped, tmp_path)
    newer = older.with_name(older.name.replace("_0000", "_9000"))
    content = bytearray(older.read_bytes())
    newer.write_bytes(content)
    store = Store(older.parent, "netssmd", 2, 10**9)
    saved = store.read(older)
    assert saved.head["model_hash"] == model.hash
    keeper = Keeper(store, Identity("f" * 64, "topspeed", 5))
    assert keeper.find(lambda seed, plans: {}) is None and keeper.refused == 2
    for path in older.parent.glob("*.refused"):
        path.rename(path.with_suffix(""))
    newer.write_bytes(b"broken")
    service = Service(top_speed(tmp_path), model)
    assert service.keeper and service.keeper.resumed and service.keeper.resumed.saved.path == older


def test_fresh_begins_anew(model: OpenModel, stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    again(stopped, tmp_path)
    service = Service(top_speed(tmp_path), model, fresh=True)
    assert service.keeper and service.keeper.resumed is None and "begins anew" in caplog.text


def test_sessions_keep_the_address_plan_that_they_began_with(model: OpenModel, tmp_path: Path) -> None:
    """Over a reload that changes [addresses], a restart, and another one."""
    traffic = "[traffic]\nseed = 6\nconcurrency = {}\nramp = '0s'\n"
    old = parse(settings(tmp_path, traffic.format(8)).replace("[output]", "[output]\nmark = 'oui'"), "test")
    new = msgspec.structs.replace(
        old,
        traffic=msgspec.structs.replace(old.traffic, concurrency=12),
        addresses=msgspec.structs.replace(old.addresses, clients=("10.7.0.0/16", "2001:db8:7::/64")),
    )
    first = Service(old, model)

    async def reloaded_and_stopped() -> None:
        running = asyncio.create_task(first.run())
        while not (hasattr(first, "output") and first.output.counters.total_packets >= 20):
            await asyncio.sleep(0.005)
        assert retarget(first, new) == (["traffic.concurrency", "addresses.clients"], [])
        while len(plans(lane.scheduler.sessions() for lane in first.lanes)) < 2:
            assert not running.done()
            await asyncio.sleep(0.001)
        first.stop()
        await running

    def plans(lanes: Iterable[list[Session]]) -> set[str]:
        return {str(one.identities.plan.pools[0, 4].networks[0]) for lane in lanes for one in lane if one.identities}

    asyncio.run(reloaded_and_stopped())
    for _ in range(2):
        service = Service(new, model)
        assert service.keeper and service.keeper.resumed
        kept = [session for _, session, *_ in service.keeper.resumed.sessions]
        assert plans([kept]) == {"198.18.0.0/16", "10.7.0.0/16"}
        both = list(service.plans.by_key().values())
        for session in kept:
            plan = session.identities.plan  # type: ignore[union-attr]
            assert any(plan is one for one in both) and plan.mark == "oui"
        asyncio.run(until(service, 1))


def test_plans_of_a_snapshot_that_are_none_are_refused(model: OpenModel) -> None:
    for told in ({"k": 1}, {"k": [{"clients": 3}, "none"]}, {"k": [{"clients": ["x"]}, "none"]}, [1]):
        with pytest.raises(SnapshotError, match="no plan now"):
            Plans(1).take(told, "")  # type: ignore[arg-type]


def test_a_snapshot_is_bounded(model: OpenModel, stopped: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "some", "netssmd", 2, 1000)
    with pytest.raises(SnapshotError, match="max_size"):
        store.write(iter([bytes(600), bytes(600)]))
    assert list((tmp_path / "some").iterdir()) == []
    copy = again(stopped, tmp_path)
    with pytest.raises(SnapshotError, match="max_size"):
        Store(copy.parent, "netssmd", 2, 1000).read(copy)


def test_a_snapshot_that_cannot_be_written_ends_nothing(
    model: OpenModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = parse(settings(tmp_path, TOP).replace("[engine]", "[engine]\npace = 'topspeed'").replace(
        'interval = "200ms"', 'interval = "0s"\ndirectory = "/proc/nothing"'), "test")  # fmt: skip
    service = Service(config, model)
    with caplog.at_level(logging.INFO):
        asyncio.run(until(service, 100))
    assert service.keeper and service.keeper.failed == 1 and "cannot be written" in caplog.text
    assert captured(tmp_path)


def test_snapshots_of_a_busy_daemon(model: OpenModel, tmp_path: Path) -> None:
    """By command, from two threads' lanes: each is whole, only the newest stay, and the run goes on."""
    config = parse(settings(tmp_path, TOP).replace("threads = 1", "threads = 2\npace = 'topspeed'")
                   .replace("sessions = 14", "").replace('"200ms"', '"0s"'), "test")  # fmt: skip
    service = Service(config, model)

    async def scenario() -> list[int]:
        running = asyncio.create_task(service.run())
        while not (hasattr(service, "output") and service.output.counters.total_packets > 50):
            await asyncio.sleep(0.005)
        sessions = [(await service.snapshot()).sessions for _ in range(4)]
        before = service.output.counters.total_packets
        while service.output.counters.total_packets < before + 50:
            await asyncio.sleep(0.005)
        service.stop()
        await running
        return sessions

    assert all(0 < sessions <= 6 for sessions in asyncio.run(scenario()))
    assert service.keeper and service.keeper.written == 5
    paths = sorted((tmp_path / ".snapshots").iterdir())
    assert [path.name for path in paths] == ["netssmd_00000004.snapshot", "netssmd_00000005.snapshot"]
    for path in paths:
        assert Store(path.parent, "netssmd", 2, 10**9).read(path).sessions
    again = Service(config, model)
    assert again.keeper and again.keeper.resumed


def test_a_run_that_dies_of_its_snapshot_does_not_take_it_again(
    model: OpenModel, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = again(stopped, tmp_path)
    service = Service(top_speed(tmp_path), model)
    assert service.keeper and service.keeper.resumed

    def broken(*arguments: object) -> None:
        raise RuntimeError("a session that was damaged before it was saved")

    monkeypatch.setattr(service, "_describe", broken)
    with pytest.raises(RuntimeError):
        asyncio.run(service.run())
    assert not copy.exists() and copy.with_name(copy.name + ".refused").exists()
