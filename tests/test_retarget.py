"""What changes while the daemon runs: by HUP and a new file, or by a command; live sessions are left alone."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from live_daemon import LiveDaemon, wait_for
from test_pause import run
from test_service import FakeModel, check_files, config
from tiny_model import tiny_model

from netssmd.daemon import retarget
from netssmd.daemon.config import Config, parse
from netssmd.daemon.report import Report
from netssmd.daemon.retarget import RUNTIME, changed_keys, unfit
from netssmd.daemon.service import Service
from netssmd.engine.opening import open_model
from netssmd.engine.session import Limits
from netssmd.errors import UsageError


def test_every_runtime_key_is_a_key() -> None:
    import msgspec

    sections = {s.name: {k.name for k in msgspec.structs.fields(s.type)} for s in msgspec.structs.fields(Config)}
    for row in RUNTIME:
        for key in row.keys:
            section, _, name = key.partition(".")
            assert section in sections and (not name or name in sections[section]), key


def test_changed_keys() -> None:
    new = parse("[traffic]\nconcurrency = 3\n[output]\nsnaplen = 100\nledger = true\n", "x")
    assert changed_keys(Config(), new) == ["traffic.concurrency", "output.snaplen"]
    assert changed_keys(new, new) == []


def test_what_the_model_does_not_know_is_told_all_at_once() -> None:
    text = """
[engine]
slots = 4
[traffic.labels]
label-0 = 1
label-7 = 1
lable-1 = 2
[addresses]
mac_prefix = "zz"
"""
    mistakes = unfit(parse(text, "x"), FakeModel())
    assert [m.split(";")[0].split(":")[0] for m in mistakes] == [
        "engine.slots", "addresses", "traffic.labels", "traffic.labels",
    ]  # fmt: skip
    assert "write traffic.concurrency (32) or more" in mistakes[0] and "did you mean label-1" in mistakes[3]


def test_an_order_that_a_model_cannot_keep_to_is_a_mistake(tmp_path: Path) -> None:
    model = open_model(str(tiny_model(tmp_path / "tiny")))
    (tmp_path / "tiny" / "conduct.json").write_text("{}")
    ignorant = open_model(str(tmp_path / "tiny"))
    for extent, kept in (('"learned"', True), ('"unknown"', True), ("100", False), ("[10, 20]", False)):
        ordered = parse(f"[traffic]\nextent = {extent}\n", "x")
        mistakes = unfit(ordered, ignorant)
        assert unfit(ordered, model) == [] and (mistakes == []) is kept
    assert "traffic.extent: " in mistakes[0] and "no session of 'dns'" in mistakes[0]


SETTINGS = (
    '[engine]\nthreads = 2\nlookahead = "300ms"\nslots = 12\n[traffic]\nconcurrency = {}\nramp = "0s"\nseed = 5\n'
)


def sessions_of(folder: Path) -> dict[str, dict]:
    """Ledger rows by session, packets summed over the slices."""
    rows: dict[str, dict] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row["type"] == "session":
                before = rows.get(row["session"], {"packets": 0})["packets"]
                rows[row["session"]] = row | {"packets": row["packets"] + before}
    return rows


def test_sessions_on_request(tmp_path: Path) -> None:
    service = Service(config(tmp_path, SETTINGS.format(0)), FakeModel(endless=True))
    names: list[str] = []

    async def beside(running: asyncio.Task[Report]) -> None:
        while not hasattr(service, "board"):
            assert not running.done(), await running
            await asyncio.sleep(0.01)
        service.pause("asking")  # or the short ones are over before the others are asked for
        assert retarget.room(service) == 12
        with pytest.raises(UsageError, match="did you mean label-1"):
            retarget.start_sessions(service, "label1", 1, {}, Limits())
        few = Limits(packets=5)
        names.extend(retarget.start_sessions(service, "label-1", 2, {"rtt_ms": 40.0}, few, seed=9))
        names.extend(retarget.start_sessions(service, "label-0", 30, {}, Limits()))
        assert len(names) == 12 and retarget.room(service) == 0
        service.resume("asking")

    async def until(room: int) -> None:
        async with asyncio.timeout(30):
            while retarget.room(service) != room:
                await asyncio.sleep(0.01)

    async def scenario() -> None:
        async with asyncio.timeout(30):
            while service.counters.active() != {"label-0": 10, "label-1": 0}:
                await asyncio.sleep(0.01)
            sent = service.output.counters
            while sent.total_packets < 400 or sent.packets["label-1"] < 10:
                await asyncio.sleep(0.01)
        await until(2)
        assert await retarget.stop_sessions(service, names[5]) == 1
        assert await retarget.stop_sessions(service, "5-a99") == 0
        await until(3)
        assert await retarget.stop_sessions(service, label="label-0") == 9
        await until(12)
        assert service.board.asked_live == 0

    async def both() -> None:
        running = asyncio.create_task(service.run())
        await beside(running)
        try:
            await scenario()
        finally:
            service.stop()
        check_files(tmp_path, await running)

    asyncio.run(both())
    rows = sessions_of(tmp_path)
    assert set(rows) == set(names) == {f"5-a{i}" for i in range(12)}
    assert all(rows[name]["packets"] == 5 and rows[name]["conditions"]["rtt_ms"] == 40.0 for name in names[:2])
    assert service.counters.ended()["label-0", "ordered"] == 10


def test_the_mix_stays_what_it_is_whatever_is_asked_for(tmp_path: Path) -> None:
    """Sessions of the mix have the same numbers, labels and seeds, with and without others beside them."""
    seen = []
    for asked in (0, 4):
        folder = tmp_path / str(asked)
        folder.mkdir()
        text = SETTINGS.format(4).replace('"300ms"', '"200ms"') + "session_packets = 30\n"
        service = Service(config(folder, text), FakeModel(endless=True))

        async def scenario() -> None:
            retarget.start_sessions(service, "label-0", asked, {}, Limits(packets=30))  # noqa: B023
            while sum(service.counters.ended().values()) < 16 + asked:  # noqa: B023
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.4)  # sessions end before their last packets leave

        run(service, scenario)
        rows = sessions_of(folder)
        assert sum("-a" in name for name in rows) == asked
        seen.append({name: (row["label"], row["seed"], row["conditions"]) for name, row in rows.items()})
    for number in range(16):
        assert seen[0][f"5-{number}"] == seen[1][f"5-{number}"]


def test_mix_and_rate(tmp_path: Path) -> None:
    service = Service(config(tmp_path, SETTINGS.format(6) + "session_packets = 40\n"), FakeModel(endless=True))

    async def scenario() -> None:
        retarget.set_mix(service, {"label-1": 2.0, "label-0": 0.0})
        before = service.counters.started()["label-0"]
        ended = sum(service.counters.ended().values())
        while sum(service.counters.ended().values()) < ended + 20:
            await asyncio.sleep(0.02)
        assert service.counters.started()["label-0"] <= before + 1  # one may have been on its way
        with pytest.raises(UsageError, match="weights are 0"):
            retarget.set_mix(service, {"label-1": 0.0})
        retarget.set_rate(service, 100.0)
        await asyncio.sleep(0.6)  # what was made already leaves
        sent = service.output.counters.total_packets
        await asyncio.sleep(1.0)
        capped = service.output.counters.total_packets - sent
        assert 20 <= capped <= 220, capped  # 100 a second; uncapped it is above 500
        assert service.status().traffic.cap_packets_per_second == 100.0
        retarget.set_rate(service, 0.0)

    run(service, scenario)


def test_hup_with_a_valid_an_invalid_and_an_unchanged_file(tmp_path: Path) -> None:
    with LiveDaemon(tmp_path, "seed = 3\n") as daemon:
        daemon.hup("reload: nothing to change")
        changed = "seed = 3\nsession_packets = 12\npackets_per_second = 900.0\n[traffic.labels]\nlabel-1 = 1\n"
        lines = {"concurrency = 8": "concurrency = 3", "slice_duration": "snaplen = 70\nslice_duration"}
        daemon.write(changed, lines)
        daemon.hup("reload: changed ")
        assert (
            "reload: changed traffic.labels, traffic.concurrency, traffic.packets_per_second, traffic.session_packets"
            in daemon.log
        )
        wait_for(lambda: daemon.said("only a restart changes output.snaplen"))
        daemon.hup("only a restart changes output.snaplen")  # it still waits
        daemon.write("", {"concurrency = 8": "concurrency = -1", "port = 0": "port = 0\nprot = 1"})
        daemon.hup("reload: nothing changed: ")
        assert "metrics.prot: unknown key; did you mean port?" in daemon.log
        assert "traffic.concurrency: found -1; write 0 to 100000" in daemon.log
        daemon.write("labels = {lable-0 = 1}\n")
        daemon.hup("traffic.labels: unknown label 'lable-0': did you mean label-0")
        wait_for(lambda: daemon.said("rotating", 5))
        time.sleep(1)  # long enough for more packets than the new limit
        assert daemon.stop() == 0, daemon.log
    rows = sessions_of(tmp_path / "captures")
    assert set(rows) == {f"3-{i}" for i in range(8)}  # the live ones went on, untouched by limits, labels and number
    assert {row["label"] for row in rows.values()} == {"label-0", "label-1"}
    assert all(row["packets"] > 12 for row in rows.values())
