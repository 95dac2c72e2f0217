"""kill -9, again and again, and what is found after each: a real `netssmd run` that always starts again.

python tools/kills.py [--kills 100] [--topspeed] [--model embedded] [--seed 1] [--dir DIR]

After each kill: every capture under a final name is read to its end, its ledger counts its packets, and each packet
belongs to a flow and session that the ledger names. After the last: one run that is stopped, which leaves no part files
and no journals. Prints one line a kill and a verdict; exit 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from netssmd.output.ledger import _address  # noqa: E402
from netssmd.packet import wire  # noqa: E402
from netssmd.packet.pcap import read_capture  # noqa: E402

CONFIG = """
[engine]
model = "{model}"
pace = "{pace}"
threads = 1
lookahead = "500ms"
[traffic]
concurrency = 8
ramp = "0s"
[output]
directory = "{directory}"
slice_duration = "2s"
slice_packets = 4000
ring_files = 0
free_disk = "0MB"
[snapshot]
interval = "500ms"
[metrics]
port = 0
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--topspeed", action="store_true")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--seed", type=int, default=1, help="of the moments at which it is killed")
    parser.add_argument("--dir", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = arguments.dir or Path(temporary) / "captures"
        pace = "topspeed" if arguments.topspeed else "live"
        wrong = kills(arguments.kills, directory, Path(temporary), pace, arguments.model, arguments.seed)
    print("verdict: " + (f"{len(wrong)} WRONG: {wrong[0]}" if wrong else "whole and consistent after every kill"))
    return 1 if wrong else 0


def kills(count: int, directory: Path, work: Path, pace: str, model: str, seed: int = 1) -> list[str]:
    """Start and kill; then start and stop. Return: what was wrong."""
    path = work / "kills.toml"
    path.write_text(CONFIG.format(model=model, pace=pace, directory=directory))
    draw, wrong, seen = random.Random(seed), [], set[str]()
    for number in range(count + 1):
        last = number == count
        process = start(path)
        until_it_stores(process, directory)
        time.sleep(draw.uniform(0.0, 1.5))
        process.send_signal(signal.SIGTERM if last else signal.SIGKILL)
        error = process.communicate(timeout=60)[1]
        if process.returncode != (0 if last else -signal.SIGKILL):
            wrong.append(f"run {number} ended with {process.returncode}: {error[-300:]}")
        packets = 0
        for capture in sorted(directory.glob("*.pcap")):
            if capture.name not in seen:
                seen.add(capture.name)
                found, what = check(capture)
                packets += found
                wrong += what
        print(
            f"{number + 1:4d} {'TERM' if last else 'KILL'}  {len(seen):4d} captures, {packets:6d} packets more",
            flush=True,
        )
    left = [path.name for pattern in (".*.part", ".*.journal") for path in directory.glob(pattern)]
    if left:
        wrong.append(f"left behind: {', '.join(left)}")
    return wrong


def start(path: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "netssmd", "run", "-c", str(path)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def until_it_stores(process: subprocess.Popen[str], directory: Path) -> None:
    """Wait for the first part file of this run."""
    deadline = time.monotonic() + 60
    before = set(directory.glob(".*.part"))
    while process.poll() is None and not set(directory.glob(".*.part")) - before and time.monotonic() < deadline:
        time.sleep(0.02)


def check(capture: Path) -> tuple[int, list[str]]:
    """Packets of a capture, and what is wrong with it and its ledger."""
    ledger = capture.with_suffix(".jsonl")
    if not ledger.exists():
        return 0, [f"{capture.name}: no ledger"]
    header, *lines = map(json.loads, ledger.open())
    rows: Counter[tuple[Any, ...]] = Counter()
    for line in lines:
        for flow in line.get("flows", ()):
            key = (flow["proto"], flow.get("src"), flow.get("dst"), flow.get("sport"), flow.get("dport"))
            rows[ends(key) if flow["proto"] is not None else (None,)] += sum(flow["packets"])
    found: Counter[tuple[Any, ...]] = Counter()
    times = []
    with capture.open("rb") as file:
        for packet in read_capture(file, capture.name):  # raises CaptureError for one that is cut short
            h = wire.parse(packet.data, packet.orig_len)
            times.append(packet.ts_ns)
            if h.version not in (wire.IPV4, wire.IPV6):
                found[None,] += 1
            else:
                ports = (h.sport, h.dport) if h.transport != wire.OPAQUE else (0, 0)
                found[ends((h.protocol, _address(h.src), _address(h.dst), *ports))] += 1
    wrong = []
    if header["packets"] != len(times):
        wrong.append(f"{capture.name}: {len(times)} packets, its ledger says {header['packets']}")
    if times != sorted(times):
        wrong.append(f"{capture.name}: times go back")
    if header["sessions"] is None or found != rows:
        wrong.append(f"{capture.name}: {sum((found - rows).values())} packets of flows that its ledger does not count")
    return len(times), wrong


def ends(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """A flow's key, whichever end comes first."""
    proto, src, dst, sport, dport = key
    return (proto, *sorted([(src, sport), (dst, dport)]))


if __name__ == "__main__":
    sys.exit(main())
