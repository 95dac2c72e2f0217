"""Storage that refuses: a full file system, a folder that is deleted. The daemon waits, says so, and goes on."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_service import FakeModel, config

from netssmd.daemon.service import Service
from netssmd.packet.pcap import read_capture

FAST = "[engine]\nthreads = 1\nlookahead = '300ms'\n[traffic]\nconcurrency = 4\nramp = '0s'\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "netssmd-test", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def packets(folder: Path) -> int:
    return sum(1 for path in folder.glob("*.pcap") for _ in read_capture(io.BytesIO(path.read_bytes())))


async def until(what: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_a_full_disk_is_waited_for(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(250_000))
    out = small_disk / "captures"
    service = Service(config(out, FAST), FakeModel(endless=True))

    async def scenario() -> None:
        running = asyncio.create_task(service.run())
        await until(lambda: hasattr(service, "board") and "storage" in service.board.pauses)
        assert "No space left" in caplog.text
        sent = service.output.counters.total_packets
        await asyncio.sleep(1.5)
        assert service.output.counters.total_packets == sent and not running.done()
        ballast.unlink()
        await until(lambda: not service.paused)
        await until(lambda: service.output.counters.total_packets > sent + 20)
        service.stop()
        await running

    asyncio.run(scenario())
    assert service.ring and service.ring.dropped == 0
    assert packets(out) == service.output.counters.total_packets  # none lost, none twice
    assert service.output.sinks[0].waits >= 1  # type: ignore[attr-defined]


def test_a_deleted_folder_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "captures"
    service = Service(config(out, FAST), FakeModel(endless=True))

    async def scenario() -> None:
        running = asyncio.create_task(service.run())
        await until(lambda: hasattr(service, "ring") and service.ring is not None and service.ring.packets > 0)
        shutil.rmtree(out)
        await until(lambda: "was deleted from outside" in caplog.text)
        before = service.output.counters.total_packets
        await until(lambda: service.output.counters.total_packets > before + 20)
        service.stop()
        await running

    asyncio.run(scenario())
    assert service.ring and service.ring.dropped > 0
    assert packets(out) == service.ring.packets == service.output.counters.total_packets - service.ring.dropped
    assert not list(out.glob(".*"))


def test_a_folder_that_cannot_be_made_again_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its place is taken by a file, as a mount point that went away."""
    out = tmp_path / "captures"
    service = Service(config(out, FAST), FakeModel(endless=True))

    async def scenario() -> None:
        running = asyncio.create_task(service.run())
        await until(lambda: hasattr(service, "ring") and service.ring is not None and service.ring.packets > 0)
        shutil.rmtree(out)
        out.write_text("in the way")
        await until(lambda: service.paused)
        os.unlink(out)
        await until(lambda: not service.paused)
        service.stop()
        await running

    asyncio.run(scenario())
    assert "waiting" in caplog.text and not list(out.glob(".*"))
