"""sd_notify: a datagram to the socket that systemd names, nothing otherwise."""

import os
import socket
import threading
from pathlib import Path

import pytest

from netssmd.daemon import notify as notify_module
from netssmd.daemon.notify import notify, patience, reloading, status_seconds, watchdog_seconds

PATIENCE = "netssmd-patience"


@pytest.mark.parametrize("abstract", [False, True])
def test_a_state_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@netssmd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0") if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify("READY=1") and listener.recv(100) == b"READY=1"
    assert not notify("STOPPING=1")


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")


def test_systemd_is_told_when_a_reload_begins_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with pytest.raises(RuntimeError), reloading():
            assert listener.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            raise RuntimeError
        assert listener.recv(100) == b"READY=1"
        assert status_seconds() > 0
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert status_seconds() == 0


def test_systemd_is_asked_for_time_as_long_as_something_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify_module, "EXTEND_EVERY_SECONDS", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with patience():
            assert [listener.recv(100) for _ in range(3)] == [b"EXTEND_TIMEOUT_USEC=30000000"] * 3
        ended = next(thread for thread in [*threading.enumerate(), None] if not thread or thread.name == PATIENCE)
        if ended:
            ended.join(30)
            assert not ended.is_alive()
        monkeypatch.setattr(notify_module, "PATIENCE_SECONDS", 0.02)
        listener.setblocking(False)
        while True:
            try:
                listener.recv(100)
            except BlockingIOError:
                break
        listener.setblocking(True)
        with patience():
            begun = next(thread for thread in threading.enumerate() if thread.name == PATIENCE)
            assert [listener.recv(100) for _ in range(2)] == [b"EXTEND_TIMEOUT_USEC=30000000"] * 2
            begun.join(30)
            assert not begun.is_alive(), "what hangs is systemd's to end"
    monkeypatch.delenv("NOTIFY_SOCKET")
    with patience():
        assert not [thread for thread in threading.enumerate() if thread.name == PATIENCE]


def test_the_lanes_are_looked_at_four_times_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    assert watchdog_seconds() == 2.5
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_seconds() == 0.0
    monkeypatch.delenv("WATCHDOG_PID")
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert watchdog_seconds() == 0.0
