"""The daemon with a fake model: live and at top speed, files and ledgers complete, signals, metrics, death of a
lane."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from engine_fakes import FakeBackend, fake_session

from netssmd.daemon import notify
from netssmd.daemon.config import Config, parse
from netssmd.daemon.report import Report
from netssmd.daemon.service import Service, serve
from netssmd.engine.plan import AddressPlan
from netssmd.engine.session import Limits, Session, SessionInfo, Temperatures
from netssmd.errors import ConfigError, OutputError
from netssmd.output.file_sink import FileSink
from netssmd.packet.pcap import Packet, read_capture


class FakeModel:
    name, hash, labels = "fake", "0" * 64, ("label-0", "label-1")

    def __init__(self, endless: bool = False, fail_at: int = -1) -> None:
        self.endless = endless
        self.fail_at = fail_at
        self.backends: list[FakeBackend] = []

    def backend(self, slots: int) -> FakeBackend:
        self.backends.append(FakeBackend(slots))
        return self.backends[-1]

    def temperatures(self, default: float, by_field: dict[str, float]) -> Temperatures:
        return Temperatures(default)

    def session(
        self, info: SessionInfo, plan: AddressPlan, limits: Limits, temperatures: Temperatures, snaplen: int,
        *, payload: str,
    ) -> Session:  # fmt: skip
        assert payload == "protocol"
        if info.number == self.fail_at:
            raise RuntimeError("the model broke")
        session = fake_session(info.number, info.start_ns, info.seed, limits, endless=self.endless)
        session.info = info
        return session


def config(directory: Path, text: str = "") -> Config:
    base = f"""
[output]
directory = "{directory}"
slice_duration = "0s"
free_disk = "0MB"
[snapshot]
enabled = false
[metrics]
port = 0
"""
    return parse(base + text, "test")


def captured(directory: Path) -> list[Packet]:
    return [p for path in sorted(directory.glob("*.pcap")) for p in read_capture(io.BytesIO(path.read_bytes()))]


def check_files(directory: Path, report: Report) -> list[Packet]:
    """Everything under a final name, in order, and the ledger tells the same counts."""
    assert not list(directory.glob(".*.part")) and not list(directory.glob("*.part"))
    packets = captured(directory)
    assert len(packets) == report.packets > 0
    assert [p.ts_ns for p in packets] == sorted(p.ts_ns for p in packets)
    ledgers = [json.loads(line) for f in sorted(directory.glob("*.jsonl")) for line in f.read_text().splitlines()]
    assert sum(line["packets"] for line in ledgers if line["type"] == "session") == report.packets
    assert {line["label"] for line in ledgers if line["type"] == "session"} <= {"label-0", "label-1"}
    return packets


@pytest.mark.parametrize("threads", [1, 2])
def test_top_speed_runs_all_sessions(tmp_path: Path, threads: int) -> None:
    settings = (
        f'[engine]\npace = "topspeed"\nthreads = {threads}\n[traffic]\nseed = 7\nsessions = 40\nconcurrency = 6\n'
    )
    report = serve(config(tmp_path, settings), FakeModel())
    check_files(tmp_path, report)
    assert report.sessions == 40 and report.files == 1 and report.dropped == 0


def test_top_speed_with_poisson_arrivals_and_a_duration(tmp_path: Path) -> None:
    settings = '[engine]\npace = "topspeed"\nthreads = 2\n[traffic]\nseed = 7\narrivals = "20/s"\nconcurrency = 100\n'
    packets = check_files(
        tmp_path, serve(config(tmp_path, settings), FakeModel(endless=True), duration_ns=3_000_000_000)
    )
    assert 2e9 < packets[-1].ts_ns - packets[0].ts_ns <= 3e9


def test_same_seed_same_packets_at_top_speed_on_one_thread(tmp_path: Path) -> None:
    settings = '[engine]\npace = "topspeed"\nthreads = 1\n[traffic]\nseed = 7\nsessions = 10\nconcurrency = 3\n'
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        serve(config(tmp_path / name, settings), FakeModel())
        packets = captured(tmp_path / name)
        runs.append([(p.ts_ns - packets[0].ts_ns, p.data) for p in packets])
    assert runs[0] == runs[1]


def test_live_packets_carry_their_wall_clock_time(tmp_path: Path) -> None:
    before = time.time_ns()
    settings = '[engine]\nthreads = 2\nlookahead = "300ms"\n[traffic]\nconcurrency = 5\nramp = "0s"\n'
    report = serve(config(tmp_path, settings), FakeModel(endless=True), duration_ns=800_000_000)
    packets = check_files(tmp_path, report)
    assert before < packets[0].ts_ns and packets[-1].ts_ns <= time.time_ns()
    assert 0 < packets[-1].ts_ns - packets[0].ts_ns <= 800_000_000
    assert report.seconds > 0.7


class SlowBackend(FakeBackend):
    def step(self, slots, rows, ranges, uniforms, temperatures):  # type: ignore[no-untyped-def]
        time.sleep(0.02)
        return super().step(slots, rows, ranges, uniforms, temperatures)


def test_a_model_too_slow_stretches_the_sessions_and_counts_it(tmp_path: Path) -> None:
    model = FakeModel(endless=True)
    model.backend = lambda slots: SlowBackend(slots)  # type: ignore[method-assign]
    service = Service(config(tmp_path, '[traffic]\nconcurrency = 4\nramp = "0s"\n'), model)
    report = asyncio.run(service.run(700_000_000))
    check_files(tmp_path, report)
    assert service.counters.sum("deficit_ns") > 100_000_000


def test_a_lane_that_dies_takes_the_daemon_down(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the model broke"):
        serve(config(tmp_path, '[traffic]\nramp = "0s"\n'), FakeModel(endless=True, fail_at=3))
    assert not [t for t in threading.enumerate() if t.name.startswith("netssmd-engine")]
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("", "live"),
        ("[pacing]\npps = 1000", "live, 1000 packets/s"),
        ("[pacing]\nmultiplier = 2", "live, 2 times as fast"),
        ("[engine]\npace = 'topspeed'", "topspeed"),
    ],
)
def test_the_pace_is_told_as_it_is(tmp_path: Path, settings: str, told: str) -> None:
    service = Service(config(tmp_path, settings + "\n[traffic]\nsessions = 1\nconcurrency = 1\n"), FakeModel())
    paces: list[str] = []
    asyncio.run(service.run(on_ready=lambda service: paces.append(service.status().pace)))
    assert paces == [told]


def test_sessions_that_end_with_the_daemon_are_told_as_such(tmp_path: Path) -> None:
    """No snapshot keeps them: they are not complete, and the ledger says why. A slow end asks systemd for time."""
    service = Service(config(tmp_path, "[traffic]\nconcurrency = 3\nramp = '0s'\n"), FakeModel(endless=True))

    async def scenario() -> None:
        running = asyncio.create_task(service.run())
        while not (hasattr(service, "output") and len(service.output._metas) == 3):
            assert not running.done()
            await asyncio.sleep(0.005)
        service.stop()
        await running

    asyncio.run(scenario())
    lines = [json.loads(line) for path in sorted(tmp_path.glob("*.jsonl")) for line in path.open()]
    sessions = [line for line in lines if line["type"] == "session"]
    assert [(line["complete"], line["reason"]) for line in sessions] == [(False, "stopped")] * 3


def test_a_slow_end_asks_systemd_for_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "EXTEND_EVERY_SECONDS", 0.01)
    service = Service(config(tmp_path, "[traffic]\nconcurrency = 1\n"), FakeModel(endless=True))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        join = service._join

        def slow(threads: list[threading.Thread]) -> None:
            while not systemd.recv(4096).startswith(b"EXTEND_TIMEOUT_USEC="):
                pass
            join(threads)

        monkeypatch.setattr(service, "_join", slow)

        async def scenario() -> None:
            running = asyncio.create_task(service.run())
            while not (hasattr(service, "output") and service.output.counters.total_packets):
                assert not running.done()
                await asyncio.sleep(0.005)
            service.stop()
            await running

        asyncio.run(scenario())


def test_storage_that_fails_takes_the_daemon_down_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: FileSink, batch: object) -> None:
        raise OutputError("captures: the disk is full")

    monkeypatch.setattr(FileSink, "write", full)
    with pytest.raises(OutputError, match="the disk is full"):
        serve(config(tmp_path, "[traffic]\nramp = '0s'\n"), FakeModel(endless=True))


def test_what_fails_before_the_first_packet_leaves_nothing_behind(tmp_path: Path) -> None:
    def gone(service: Service) -> None:
        raise OSError("the terminal went away")

    with pytest.raises(OSError, match="the terminal went away"):
        serve(config(tmp_path), FakeModel(endless=True), on_ready=gone)
    assert not [t for t in threading.enumerate() if t.name.startswith("netssmd-")]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        base = config(tmp_path)
        base = msgspec.structs.replace(base, metrics=msgspec.structs.replace(base.metrics, port=port))
        with pytest.raises(OutputError, match="cannot be opened"):
            serve(base, FakeModel())
    assert not list(tmp_path.glob(".*"))


def test_metrics_are_served_and_bounded(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = msgspec.structs.replace(config(tmp_path, "[traffic]\nconcurrency = 4\nramp = '0s'\n"))
    base = msgspec.structs.replace(base, metrics=msgspec.structs.replace(base.metrics, port=port))
    texts: list[str] = []

    def scrape() -> None:
        for _ in range(100):
            with contextlib.suppress(OSError):
                text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
                if 'netssmd_packets_total{label="label-0"}' in text:
                    texts.append(text)
                    return
            time.sleep(0.1)

    thread = threading.Thread(target=scrape)
    thread.start()
    serve(base, FakeModel(), duration_ns=2_000_000_000)
    thread.join()
    names = {line.split("{")[0].split(" ")[0] for line in texts[0].splitlines() if not line.startswith("#")}
    assert {
        "netssmd_packets_total",
        "netssmd_sessions_active",
        "netssmd_build_info",
        "netssmd_files_written_total",
    } <= names
    assert 'netssmd_packets_total{label="label-0"}' in texts[0]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        base = msgspec.structs.replace(base, metrics=msgspec.structs.replace(base.metrics, port=taken.getsockname()[1]))
        with pytest.raises(OutputError, match=r"set metrics\.port to a free port"):
            serve(base, FakeModel())


SCRIPT = """
import logging, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_service import FakeModel, config
from netssmd.daemon.service import serve
logging.basicConfig(stream=sys.stderr, level=logging.INFO)
settings = config(Path({out!r}), "[traffic]\\nconcurrency = 4\\nramp = '0s'\\n")
report = serve(settings, FakeModel(endless=True), on_ready=lambda service: print("ready", flush=True))
print(report.packets)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(tmp_path: Path, number: signal.Signals) -> None:
    here = Path(__file__).parent
    script = SCRIPT.format(paths=[str(here), str(here.parent)], out=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    time.sleep(0.6)
    os.kill(process.pid, signal.SIGHUP)
    time.sleep(0.6)
    os.kill(process.pid, signal.SIGUSR1)
    time.sleep(0.2)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "rotating" in err and "packets/s" in err
    assert len(list(tmp_path.glob("*.pcap"))) >= 2 and not list(tmp_path.glob(".*.part"))
    assert len(captured(tmp_path)) == int(out)


def test_a_model_too_slow_drops_what_is_late_if_asked_and_tells_it(tmp_path: Path) -> None:
    model = FakeModel(endless=True)
    model.backend = lambda slots: SlowBackend(slots)  # type: ignore[method-assign]
    text = '[traffic]\nconcurrency = 4\nramp = "0s"\n[pacing]\ndeficit = "drop"\nlate = "50ms"\n'
    service = Service(config(tmp_path, text), model)
    report = asyncio.run(service.run(1_500_000_000))
    check_files(tmp_path, report)
    assert service.counters.sum("deficit_ns") == 0 and report.late_dropped == service.counters.late_dropped() > 0
    assert sum(n for (_, reason), n in service.counters.ended().items() if reason == "late") > 0
    assert f"Deficit: {report.late_dropped} packets dropped as too late" in report.lines()


def test_a_steady_rate_and_a_speed_into_files(tmp_path: Path) -> None:
    for name, text, gap in (("a", "pps = 400", {2_500_000}), ("b", "multiplier = 4", None)):
        settings = config(tmp_path / name, f"[traffic]\nconcurrency = 5\nramp = '0s'\n[pacing]\n{text}\n")
        report = serve(settings, FakeModel(endless=True), duration_ns=800_000_000)
        packets = check_files(tmp_path / name, report)
        assert packets[-1].ts_ns - packets[0].ts_ns <= 800_000_000 and len(packets) > 100
        assert gap is None or {b.ts_ns - a.ts_ns for a, b in pairwise(packets)} == gap or report.slipped_ns


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[pacing]\npps = 5\nmbps = 1", "pps and mbps are set; keep one of pps, mbps and multiplier"),
        ("[engine]\npace = 'topspeed'\n[pacing]\npps = 5", 'engine.pace: found "topspeed" and pacing.pps set'),
        ("[pacing]\nmultiplier = 0", "pacing.multiplier: found 0; write 0.001 to 1000"),
        ("[tap]\nname = 'a/b'", "tap.name: found 'a/b'; write the name of a TAP device"),
        ("[tap]\nname = 'sixteen-letters-'", "write the name of a TAP device: up to 15"),
        ("[tap]\nserver_name = 'b'", "server_name stands without name"),
        ("[tap]\nname = 'b'\nserver_name = 'b'", "tap.server_name: found 'b' like name; write"),
        ("[output]\nfiles = false", "output.files: found false and tap.name empty"),
    ],
)
def test_mistakes_about_wires_and_rates(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse(text, "test")
