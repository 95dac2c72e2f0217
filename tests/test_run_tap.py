"""`netssmd run` with a TAP, as a user starts it, in a namespace: what is on the wire is what is in the file."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from netns import Netns, Sniffer, namespace, needs_netns
from tiny_model import tiny_model

from netssmd.output import tap_device
from netssmd.packet.pcap import Packet, read_capture

pytestmark = needs_netns
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def netns() -> Iterator[Netns]:
    with namespace() as made:
        yield made


class Daemon:
    """A running daemon and what it says."""

    def __init__(self, folder: Path, model: str, netns: Netns, tap: str, *arguments: object, text: str = "") -> None:
        path = folder / "netssmd.toml"
        path.write_text(
            f'[engine]\nmodel = "{model}"\nlookahead = "500ms"\n[metrics]\nport = 0\n[control]\nsocket = "{folder}/s"\n'
            f'[snapshot]\nenabled = false\n[traffic]\nseed = 3\nramp = "0s"\n[output]\ndirectory = "{folder}/out"\n'
            f'free_disk = "0MB"\n[tap]\nnetns = "{netns.name}"\n{tap}\n{text}'
        )
        command = [sys.executable, "-m", "netssmd", "run", "-c", str(path), *map(str, arguments)]
        self.out = folder / "out"
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        self.said = ""
        assert self.process.stderr
        while not (line := self.process.stderr.readline()).startswith("pace:"):
            self.said += line
            assert line, self.said

    def end(self, number: signal.Signals | None = None) -> str:
        if number:
            self.process.send_signal(number)
        self.said += self.process.communicate(timeout=60)[1]
        assert self.process.returncode == 0, self.said
        return self.said

    def stored(self) -> list[Packet]:
        return [p for f in sorted(self.out.glob("*.pcap")) for p in read_capture(io.BytesIO(f.read_bytes()))]


def test_the_wire_carries_what_the_file_holds(model: str, netns: Netns, tmp_path: Path) -> None:
    tap_device.create("tap0", os.getuid(), netns=netns.name)
    sniffer = Sniffer(netns, "tap0")
    daemon = Daemon(tmp_path, model, netns, 'name = "tap0"')
    time.sleep(3)
    said = daemon.end(signal.SIGTERM)
    time.sleep(0.2)
    stored = daemon.stored()
    assert sniffer.stop() == [p.data for p in stored] and len(stored) > 20, said
    assert f"Actual: {len(stored)} packets (" in said and "TAP:      tap0" in said
    assert "Dropped at TAP" not in said or "cut)" in said
    offset_ns = time.time_ns() - time.monotonic_ns()
    late = sorted(seen + offset_ns - p.ts_ns for seen, p in zip(sniffer.times_ns, stored))
    assert late[0] > -1_000_000, "nothing leaves before its time"


def test_two_sides_and_a_steady_rate(model: str, netns: Netns, tmp_path: Path) -> None:
    """Made for the run in a bridge's stead: each packet once, on one side; the rate is the asked one."""
    tap = 'name = "cli0"\nserver_name = "srv0"'
    daemon = Daemon(tmp_path, model, netns, tap, "--pps", 200, text="[log]\nlevel = 'info'\n")
    assert "TAP:      cli0 (clients' side), made for this run" in daemon.said and "srv0 (servers' side)" in daemon.said
    sniffers = [Sniffer(netns, name) for name in ("cli0", "srv0")]
    end = time.monotonic() + 60
    while any(len(sniffer.frames) < 50 for sniffer in sniffers):
        assert time.monotonic() < end, "both sides see traffic"
        time.sleep(0.1)
    said = daemon.end(signal.SIGINT)
    assert "tap" not in netns.ip("-oneline", "link") and "cli0" not in netns.ip("link")
    frames = [sniffer.stop() for sniffer in sniffers]
    stored = daemon.stored()
    gaps = {b.ts_ns - a.ts_ns for a, b in pairwise(stored)}
    assert gaps == {5_000_000} or "Deficit" in said
    sent = [packet.data for packet in stored]
    wire = {data for side in frames for data in side}
    listened = len(sent) - min(sent[::-1].index(side[0]) for side in frames)  # from here on both sniffers were there
    assert wire <= set(sent) and set(sent[listened:]) <= wire


def test_a_device_in_the_way_is_an_error_of_one_line(model: str, netns: Netns, tmp_path: Path) -> None:
    netns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    path = tmp_path / "netssmd.toml"
    path.write_text(
        f'[tap]\nname = "veth0"\nnetns = "{netns.name}"\n[engine]\nmodel = "{model}"\n[metrics]\nport = 0\n'
        f'[output]\nfiles = false\ndirectory = "{tmp_path}/out"\n[control]\nsocket = "{tmp_path}/s"\n'
    )
    command = [sys.executable, "-m", "netssmd", "run", "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 1 and "netssmd: veth0: is no TAP device (driver veth)" in done.stderr.splitlines()[-1]
