"""Thirty days in half an hour: a real `netssmd run` at top speed, watched from outside until it ends by itself.

python tools/soak.py [--days 30] [--packets 10_000_000] [--sessions 64] [--threads 2] [--sample 20] [--dir DIR]

The cap on the packet rate stretches session time: so many packets over so many days, with many sessions live all the
while, into a ring of captures with ledgers, with metrics and snapshots on. Every `--sample` seconds one row: packets,
session time, resident memory, file descriptors, threads, packets per second of processor time (a machine that others
use too does not blur that), the oldest session's age in session time, and bytes on disk. A row that begins the second
quarter is compared with the last: the verdict says what grew. Exit 0 if nothing did and the run came to its end.

The tool needs nothing but the standard library; it works on Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
DAY_NS = 86_400 * 10**9
CONFIG = """
[engine]
pace = "topspeed"
threads = {threads}
model = "{model}"
[traffic]
seed = 2026
concurrency = {sessions}
packets_per_second = {rate}
session_duration = "{days}d"
[output]
directory = "{directory}"
slice_duration = "0s"
slice_size = "64MB"
slice_packets = {slice_packets}
ring_files = 8
free_disk = "100MB"
[metrics]
port = {port}
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one moment."""

    seconds: float
    packets: int
    days: float  # of session time, of the newest complete slice
    rss_mb: float
    fds: int
    threads: int
    per_cpu_second: float  # packets per second of processor time since the sample before
    started: int
    disk_mb: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=float, default=30)
    parser.add_argument("--packets", type=int, default=10_000_000)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="embedded", help="folder of a model; a small one soaks faster")
    parser.add_argument("--sample", type=float, default=20.0, help="seconds between two rows")
    parser.add_argument("--dir", type=Path, help="folder for the captures (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = arguments.dir or Path(temporary) / "captures"
        samples, status, closing = soak(arguments, directory, Path(temporary) / "soak.toml")
        problems = [*judge(samples, arguments), *captures(directory)]
    if status:
        problems.append(f"the daemon ended with {status}")
    for text in closing:
        print(text)
    print("verdict: " + ("flat" if not problems else "NOT FLAT: " + "; ".join(problems)))
    return 1 if problems else 0


def soak(arguments: argparse.Namespace, directory: Path, path: Path) -> tuple[list[Sample], int, list[str]]:
    """Run the daemon to its end. Return: samples, exit status, its closing lines."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    rate = arguments.packets / arguments.days / 86_400
    path.write_text(
        CONFIG.format(
            threads=arguments.threads, sessions=arguments.sessions, rate=rate, days=round(arguments.days) + 1,
            directory=directory, port=port, model=arguments.model, slice_packets=max(arguments.packets // 500, 1000),
        )
    )  # fmt: skip
    command = [sys.executable, "-m", "netssmd", "run", "-c", str(path), "--duration", f"{arguments.days}d"]
    samples: list[Sample] = []
    begun = time.monotonic()
    print(" seconds    packets   days  RSS MB  fds  threads  packets/CPU s  sessions  disk MB")
    log = path.with_suffix(".log")
    with log.open("wb") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        try:
            before = (0, 0.0)
            while process.poll() is None:
                time.sleep(arguments.sample)
                sample, before = look(process.pid, port, directory, time.monotonic() - begun, before, samples)
                if sample is not None:
                    samples.append(sample)
                    print(row(sample), flush=True)
        finally:
            if process.poll() is None:
                process.terminate()
    lines = log.read_text().splitlines()
    closing = [line for line in lines if line.startswith(("Actual", "Rated", "netssmd:"))] or lines[-5:]
    return samples, process.returncode, closing


def look(
    pid: int, port: int, directory: Path, seconds: float, before: tuple[int, float], samples: list[Sample]
) -> tuple[Sample | None, tuple[int, float]]:
    """One sample; None if the daemon is not there (yet, or any more)."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        status = Path(f"/proc/{pid}/status").read_text()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        fds = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None, before
    cpu = (int(fields[11]) + int(fields[12])) / TICKS
    packets = total(text, "netssmd_packets_total")
    files = list(directory.iterdir())
    sample = Sample(
        seconds, packets, newest_ns(directory) / DAY_NS, int(value(status, "VmRSS")) / 1024, fds,
        int(value(status, "Threads")), (packets - before[0]) / max(cpu - before[1], 1e-3),
        total(text, "netssmd_sessions_started_total"), sum(size(file) for file in files) / 1e6,
    )  # fmt: skip
    return sample, (packets, cpu)


def total(text: str, name: str) -> int:
    """A metric summed over its labels."""
    return round(sum(float(v) for v in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M)))


def value(status: str, name: str) -> str:
    found = re.search(rf"^{name}:\s+(\d+)", status, re.M)
    return found[1] if found else "0"


def size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


_first_ns: list[int] = []


def newest_ns(directory: Path) -> int:
    """Session time since the first packet, up to the newest complete slice."""
    ledgers = sorted(directory.glob("*.jsonl"))
    if not ledgers:
        return 0
    try:
        headers = [json.loads(ledger.open().readline()) for ledger in (ledgers[0], ledgers[-1])]
    except (OSError, ValueError):
        return 0
    if not _first_ns:
        _first_ns.append(headers[0]["first_ts_ns"])
    return headers[1]["last_ts_ns"] - _first_ns[0]


def row(sample: Sample) -> str:
    return (
        f"{sample.seconds:8.0f} {sample.packets:10d} {sample.days:6.2f} {sample.rss_mb:7.1f} {sample.fds:4d} "
        f"{sample.threads:8d} {sample.per_cpu_second:14.0f} {sample.started:9d} {sample.disk_mb:8.1f}"
    )


def judge(samples: list[Sample], arguments: argparse.Namespace) -> list[str]:
    """What is not flat between the second quarter and the last."""
    if len(samples) < 8:
        return [f"only {len(samples)} samples: too few to judge"]
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    problems = []
    rss = [max(s.rss_mb for s in part) for part in (early, late)]
    print(f"RSS, most in the second and in the last quarter: {rss[0]:.1f} MB, {rss[1]:.1f} MB")
    if rss[1] > rss[0] * 1.05 + 5:
        problems.append(f"memory grew from {rss[0]:.1f} to {rss[1]:.1f} MB")
    for name in ("fds", "threads"):
        most = [max(getattr(s, name) for s in part) for part in (early, late)]
        print(f"{name}: {most[0]}, {most[1]}")
        if most[1] > most[0] + 1:  # a scrape that ends while another begins
            problems.append(f"{name} grew from {most[0]} to {most[1]}")
    speed = [sum(s.per_cpu_second for s in part) / quarter for part in (early, late)]
    print(f"packets per CPU second: {speed[0]:.0f}, {speed[1]:.0f} (x{speed[1] / speed[0]:.3f})")
    if speed[1] < 0.85 * speed[0]:
        problems.append(f"speed fell to {speed[1] / speed[0]:.2f} of the second quarter's")
    pace = [(part[-1].days - part[0].days) / max(part[-1].packets - part[0].packets, 1) * 1e6 for part in (early, late)]
    print(f"days of session time a million packets: {pace[0]:.4f}, {pace[1]:.4f}")
    if abs(pace[1] / pace[0] - 1) > 0.05:
        problems.append("session time drifted against the cap on the packet rate")
    if any(b.packets < a.packets for a, b in pairwise(samples)):
        problems.append("a counter went back")
    if samples[-1].packets < 0.9 * arguments.packets or samples[-1].days < 0.9 * arguments.days:
        problems.append(f"only {samples[-1].packets} packets over {samples[-1].days:.1f} days")
    return problems


def captures(directory: Path) -> list[str]:
    """What is wrong with the files that are left: the ring's length, part files, ledgers, times that go back."""
    names = sorted(path.name for path in directory.glob("*.pcap"))
    problems = []
    if len(names) > 8:
        problems.append(f"{len(names)} captures in a ring of 8")
    if list(directory.glob(".*.part")):
        problems.append("part files are left")
    last_ns = 0
    for name in names:
        header = json.loads((directory / name).with_suffix(".jsonl").open().readline())
        if header["first_ts_ns"] < last_ns:
            problems.append(f"{name} begins before the capture ahead of it ended")
        last_ns = header["last_ts_ns"]
    return problems


if __name__ == "__main__":
    sys.exit(main())
