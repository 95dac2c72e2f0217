"""How fast the checker is: beside tshark on the same file, and as a part of the daemon. Runs alternate; compared is the
processor time, so that a busy machine changes little.

python tools/bench_check.py FILE.pcap [--rounds 3]     netssmd check FILE against
    tshark -n -r FILE -T fields -e frame.number -e _ws.expert.message -e tcp.analysis.flags, checksums verified
python tools/bench_check.py --daemon [--rounds 3]      netssmd run at top speed, the same sessions with and without
    [compliance] check, and with mode = "guide"
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

NETSSMD = [str(Path(sys.executable).with_name("netssmd"))]  # the installed one: a checkout on the path runs interpreted
TSHARK = ["tshark", "-n", "-T", "fields", "-e", "frame.number", "-e", "_ws.expert.message", "-e", "tcp.analysis.flags"]
CONFIG = """
[engine]
pace = "topspeed"
[traffic]
seed = 3
concurrency = 16
sessions = 48
session_packets = 800
[output]
directory = "{}"
ledger = true
[metrics]
port = 0
[log]
status_interval = "0s"
[compliance]
check = {}
mode = "{}"
"""


def cpu_seconds(command: list[str]) -> float:
    """Processor time of a command and what it starts."""
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def against_tshark(path: Path, rounds: int) -> None:
    checks = [word for name in ("ip", "tcp", "udp") for word in ("-o", f"{name}.check_checksum:TRUE")]
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(cpu_seconds([*NETSSMD, "check", str(path)]))
        theirs.append(cpu_seconds([*TSHARK, *checks, "-r", str(path)]))
    mine, other = statistics.median(ours), statistics.median(theirs)
    print(f"netssmd check {mine:.2f} s, tshark {other:.2f} s of processor time: {other / mine:.1f} times as fast")


def in_the_daemon(rounds: int) -> None:
    ways = {"without": ("false", "observe"), "with": ("true", "observe"), "guide": ("true", "guide")}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (check, mode) in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                config = Path(folder) / "netssmd.toml"
                config.write_text(CONFIG.format(f"{folder}/out", check, mode))
                taken[way].append(cpu_seconds([*NETSSMD, "run", "-c", str(config)]))
    base = statistics.median(taken["without"])
    for way, seconds in taken.items():
        median = statistics.median(seconds)
        print(f"{way:<8} {median:6.2f} s of processor time, {100 * (median / base - 1):+.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast the checker is.")
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--daemon", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.daemon:
        in_the_daemon(options.rounds)
    elif options.file:
        against_tshark(options.file, options.rounds)
    else:
        parser.error("name a capture, or --daemon")


if __name__ == "__main__":
    main()
