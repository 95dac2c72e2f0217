"""Faults of the table in docs/operating.md that no other test brings about: the wall clock, read-only storage, a
session that is no longer finite, TERM under full load, the end of PCAP's time."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_fakes import FakeBackend
from live_daemon import LiveDaemon, wait_for
from test_service import FakeModel, captured, config
from test_storage import FAST, packets, until

from netssmd.daemon.metrics import METRICS
from netssmd.daemon.service import Report, Service, serve
from netssmd.errors import OutputError
from netssmd.model.backend import NonFiniteState
from netssmd.packet.pcap import read_capture

SECOND = 10**9
HOUR = 3600 * SECOND


def ledgers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def metric(service: Service, name: str) -> Any:
    return next(row for rows in METRICS.values() for row in rows if row.exposed == name).read(service)


def test_a_clock_that_is_set_is_followed_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Service(config(tmp_path, FAST), FakeModel(endless=True))

    async def scenario() -> None:
        running = asyncio.create_task(service.run())
        await until(lambda: hasattr(service, "output") and service.output.counters.total_packets > 20)
        wall = service.output.wall
        for steps, set_by_ns in ((1, HOUR), (2, -HOUR)):
            wall._wall_ns = lambda by_ns=set_by_ns: time.time_ns() + by_ns  # type: ignore[misc]
            await until(lambda steps=steps: wall.steps == steps)  # type: ignore[misc]
            before = service.output.counters.total_packets
            await until(lambda before=before: service.output.counters.total_packets > before + 20)  # type: ignore[misc]
        assert metric(service, "netssmd_clock_steps_total") == 2
        service.stop()
        await running

    asyncio.run(scenario())
    assert caplog.text.count("the wall clock was set by") == 2 and service.events.emitted["fault"] == 2
    assert "set by +3600.0 s: the times of packets follow" in caplog.text and "set by -7200.0 s" in caplog.text
    times = [packet.ts_ns for packet in captured(tmp_path)]
    gaps = [b - a for a, b in pairwise(times)]
    assert min(gaps) >= 0 and sum(gap > HOUR - SECOND for gap in gaps) == 1
    assert service.output.counters.lateness_max_ns < HOUR, "deadlines know nothing of it"


def test_storage_that_turns_read_only_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A read-only mount of the folder comes over it and goes again, as a remount does where no file is open. It is made
    beside, where nobody writes, and then put in place in one step."""
    out, beside = tmp_path / "captures", tmp_path / "beside"
    beside.mkdir()
    base = config(out, FAST)
    small = msgspec.structs.replace(base.output, slice_packets=40)
    service = Service(msgspec.structs.replace(base, output=small), FakeModel(endless=True))

    def mount(*arguments: str) -> None:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")

    async def scenario() -> None:
        running = asyncio.create_task(service.run())
        await until(lambda: service.ring is not None and service.ring.packets > 0)
        mount("--bind", str(out), str(beside))
        try:
            mount("-o", "remount,bind,ro", str(beside))
            mount("--bind", str(beside), str(out))
        finally:
            subprocess.run(["umount", "-l", str(beside)], check=True)
        try:
            await until(lambda: "storage" in service.board.pauses)
            assert "Read-only file system" in caplog.text
            sent = service.output.counters.total_packets
            await asyncio.sleep(1.2)
            assert service.output.counters.total_packets == sent and not running.done()
        finally:
            subprocess.run(["umount", "-l", str(out)], check=True)
        await until(lambda: not service.paused)
        await until(lambda: service.output.counters.total_packets > sent + 20)
        service.stop()
        await running

    asyncio.run(scenario())
    assert service.ring and service.ring.dropped == 0
    assert packets(out) == service.output.counters.total_packets, "none lost, none twice"
    assert not list(out.glob(".*"))


class BreakingBackend(FakeBackend):
    """The state in slot 1 breaks at its twentieth token, once."""

    tokens = 0

    def step(self, slots, rows, ranges, uniforms, temperatures):  # type: ignore[no-untyped-def]
        drawn = super().step(slots, rows, ranges, uniforms, temperatures)
        self.tokens += 1 in slots.tolist()
        if self.tokens == 20 and 1 in slots.tolist():
            raise NonFiniteState([1], drawn)
        return drawn


class BreakingModel(FakeModel):
    def backend(self, slots: int) -> FakeBackend:
        self.backends.append(BreakingBackend(slots))
        return self.backends[-1]


def test_a_session_that_is_no_longer_finite_is_ended_and_the_others_go_on(tmp_path: Path) -> None:
    settings = '[engine]\npace = "topspeed"\nthreads = 1\n[traffic]\nseed = 7\nsessions = 12\nconcurrency = 4\n'
    service = Service(config(tmp_path, settings), BreakingModel())

    async def scenario() -> tuple[Report, list[str]]:
        with service.events.subscribe("session-ended") as subscription:
            report = await service.run()
            return report, [event.fields["reason"] async for event in subscription]

    report, told = asyncio.run(scenario())
    assert sorted(told) == ["broken"] + ["end"] * 11
    ended = metric(service, "netssmd_sessions_ended_total")
    assert sum(count for (_, reason), count in ended.items() if reason == "broken") == 1
    assert sum(count for (_, reason), count in ended.items() if reason == "end") == 11 and report.sessions == 12
    lines = [line for line in ledgers(tmp_path) if line["type"] == "session"]
    assert sorted(line["reason"] for line in lines) == ["broken"] + ["end"] * 11
    assert sum(line["packets"] for line in lines) == report.packets == len(captured(tmp_path))


def test_term_under_full_load_closes_everything(tmp_path: Path) -> None:
    top = {
        'lookahead = "300ms"': 'lookahead = "300ms"\npace = "topspeed"',
        'slice_duration = "0s"': 'slice_size = "2MB"',
    }
    with LiveDaemon(tmp_path, replaced=top) as daemon:
        captures = tmp_path / "captures"
        wait_for(lambda: len(list(captures.glob("*.pcap"))) > 1)
        assert daemon.stop() == 0, daemon.log
    assert not [path for path in captures.iterdir() if path.name.startswith(".")]
    pcaps, lines = sorted(captures.glob("*.pcap")), ledgers(captures)
    assert len(pcaps) > 1 and [path.stem for path in pcaps] == [path.stem for path in sorted(captures.glob("*.jsonl"))]
    whole = {path.name: sum(1 for _ in read_capture(io.BytesIO(path.read_bytes()))) for path in pcaps}
    assert {line["capture"]: line["packets"] for line in lines if line["type"] == "header"} == whole
    assert sum(line["packets"] for line in lines if line["type"] == "session") == sum(whole.values())


def test_session_time_beyond_what_pcap_holds_is_an_error_and_no_wrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_ns = 2**32 * SECOND
    monkeypatch.setattr(time, "time_ns", lambda: end_ns - 2 * SECOND)
    settings = '[engine]\npace = "topspeed"\nthreads = 1\n[traffic]\nseed = 7\nconcurrency = 4\nramp = "0s"\n'
    with pytest.raises(OutputError, match="PCAP holds times of 1970 to 2106"):
        serve(config(tmp_path, settings), FakeModel(endless=True))
    times = [packet.ts_ns for packet in captured(tmp_path)]
    assert times == sorted(times) and end_ns - 2 * SECOND <= times[0] and times[-1] < end_ns
    assert not list(tmp_path.glob(".*.part"))
