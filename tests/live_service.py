"""A daemon on a fake model, running in a thread of this process, with its port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from engine_fakes import FakeBackend, fake_session

from netssmd.daemon.config import parse
from netssmd.daemon.service import Service
from netssmd.engine.plan import AddressPlan
from netssmd.engine.session import Limits, Session, SessionInfo, Temperatures

MINUTE = 60_000_000_000


class EndlessModel:
    """Sessions that never end, of the labels given."""

    name, hash = "fake", "0" * 64

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels

    def backend(self, slots: int) -> FakeBackend:
        return FakeBackend(slots)

    def temperatures(self, default: float, by_field: dict[str, float]) -> Temperatures:
        return Temperatures(default)

    def session(
        self, info: SessionInfo, plan: AddressPlan, limits: Limits, temperatures: Temperatures, snaplen: int,
        *, payload: str,
    ) -> Session:  # fmt: skip
        session = fake_session(info.number, info.start_ns, info.seed, limits, endless=True)
        session.info = info
        return session


CONFIG = """
[engine]
threads = 1
lookahead = "300ms"
[traffic]
seed = 7
concurrency = 3
ramp = "0s"
packets_per_second = 300.0
[output]
directory = "{}"
slice_duration = "1s"
free_disk = "1MB"
[snapshot]
enabled = false
[metrics]
port = {}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def running(folder: Path, labels: tuple[str, ...] = ("ssh", "web"), more: str = "") -> Iterator[tuple[Service, str]]:
    """The service and its address, once it is up."""
    port = free_port()
    service = Service(parse(CONFIG.format(folder, port) + more, "test"), EndlessModel(labels))
    up = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(service.run(MINUTE, on_ready=lambda s: up.set())))
    thread.start()
    try:
        assert up.wait(20)
        yield service, f"http://127.0.0.1:{port}"
    finally:
        service._tell(service.stop)
        thread.join(20)
        assert not thread.is_alive()
