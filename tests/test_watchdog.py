"""The watchdog is fed while the lanes make progress, or are rightly idle: the rule by itself, then a daemon whose model
or disk hangs."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_fakes import FakeBackend
from test_service import FakeModel, config

from netssmd.daemon.service import Service, serve
from netssmd.daemon.watchdog import Pulse, stuck
from netssmd.output.file_sink import FileSink

RULE = {
    "the first look": ([], [Pulse("a", 0, 0, due=True)], []),
    "steps": ([Pulse("a", 5, 5)], [Pulse("a", 6, 6)], []),
    "rightly idle: nothing is due": ([Pulse("a", 5, 5)], [Pulse("a", 9, 5)], []),
    "came due just now": ([Pulse("a", 5, 5)], [Pulse("a", 9, 5, due=True)], []),
    "stepped since it came due": ([Pulse("a", 5, 5, due=True)], [Pulse("a", 9, 6, due=True)], []),
    "over": ([Pulse("a", 5, 5)], [Pulse("a", 5, 5, over=True)], []),
    "hangs": ([Pulse("a", 5, 5)], [Pulse("a", 5, 5)], ["a: hangs in its round"]),
    "due, and nothing is done": (
        [Pulse("a", 5, 5, due=True)],
        [Pulse("a", 9, 5, due=True)],
        ["a: goes round without a step, though a session is due"],
    ),
    "one of two hangs": (
        [Pulse("a", 5, 5), Pulse("b", 7, 7)], [Pulse("a", 6, 6), Pulse("b", 7, 7)], ["b: hangs in its round"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RULE)
def test_the_rule(case: str) -> None:
    before, now, wrong = RULE[case]
    assert stuck(before, now) == wrong


def test_a_pause_is_no_reason_to_step_but_no_excuse_for_hanging() -> None:
    waiting = [Pulse("a", 5, 5, due=True)]
    assert stuck(waiting, [Pulse("a", 9, 5, due=True)], paused=True) == []
    assert stuck(waiting, waiting, paused=True) == ["a: hangs in its round"]


class Listener:
    """systemd's end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(0.05)
        self.states: list[str] = []

    def feedings(self, seconds: float) -> int:
        """How often the watchdog is fed in this time."""
        end, fed = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            try:
                self.states.append(self.socket.recv(4096).decode())
            except TimeoutError:
                continue
            fed += self.states[-1] == "WATCHDOG=1"
        return fed

    def until_fed(self) -> None:
        """Waits for the next feeding."""
        assert any(self.feedings(0.2) for _ in range(100)), f"never fed; heard {self.states}"


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    heard = Listener(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "800000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    yield heard
    heard.socket.close()


class Gate:
    """Calls go through while it is open."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()


class GatedBackend(FakeBackend):
    gate: Gate

    def step(self, slots, rows, ranges, uniforms, temperatures):  # type: ignore[no-untyped-def]
        self.gate.open.wait(30)
        return super().step(slots, rows, ranges, uniforms, temperatures)


def running(settings: str, folder: Path, model: FakeModel) -> tuple[threading.Thread, Callable[[], None]]:
    """A daemon in a thread, and what stops it."""
    started: list[Service] = []
    thread = threading.Thread(target=serve, args=(config(folder, settings), model, 0, started.append))
    thread.start()
    while not started:
        time.sleep(0.01)
    service = started[0]
    return thread, lambda: service._tell(service.stop)


@pytest.mark.parametrize("what", ["model", "disk"])
def test_a_lane_that_hangs_is_not_fed_for(
    what: str, tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate, model = Gate(), FakeModel(endless=True)
    if what == "model":
        GatedBackend.gate = gate
        monkeypatch.setattr(model, "backend", lambda slots: GatedBackend(slots))
    else:
        write = FileSink.write

        def gated(self: FileSink, batch: object) -> None:
            gate.open.wait(30)
            write(self, batch)  # type: ignore[arg-type]

        monkeypatch.setattr(FileSink, "write", gated)
    thread, stop = running('[engine]\nthreads = 2\n[traffic]\nramp = "0s"\n', tmp_path / "out", model)
    try:
        listener.until_fed()
        gate.open.clear()
        with caplog.at_level(logging.ERROR, "netssmd"):
            while "the watchdog is not fed" not in caplog.text:  # the look before may still have seen a step
                listener.feedings(0.1)
            assert listener.feedings(1.0) == 0
        assert ("engine lane" if what == "model" else "output lane: hangs") in caplog.text
        gate.open.set()
        listener.until_fed()
    finally:
        gate.open.set()
        stop()
        thread.join()
    listener.feedings(0.1)  # all that lies in the socket by now
    assert "STOPPING=1" in listener.states


IDLE = {
    "live, and the next session is an hour away": '[traffic]\narrivals = "1/h"\nseed = 3\nconcurrency = 2\n',
    "top speed, and lanes wait for each other": (
        '[engine]\npace = "topspeed"\nthreads = 2\nqueue_packets = 64\n[traffic]\nseed = 3\nconcurrency = 4\n'
    ),
}


@pytest.mark.parametrize("case", IDLE)
def test_a_daemon_that_is_rightly_idle_is_fed(case: str, tmp_path: Path, listener: Listener) -> None:
    thread, stop = running(IDLE[case], tmp_path / "out", FakeModel(endless=True))
    try:
        assert listener.feedings(1.5) >= 4
    finally:
        stop()
        thread.join()
