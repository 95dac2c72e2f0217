"""How fast and how punctual packets reach a TAP device, beside tcpreplay in the same run. As root.

    python tools/bench_tap.py [--pacer native|python] [--rate PPS] [--seconds S] [--size BYTES] [--realtime PRIORITY]

Everything happens in a network namespace that is made for it. Two measures:

- top speed: frames a second through the real sink into a TAP, and `tcpreplay --topspeed` of the same frames on a veth
  pair; rounds alternate, the best of each counts.
- punctuality: frames at a steady rate through the real pacer. The kernel's own time stamps (tcpdump on the TAP, a
  process of its own) against the asked times: what a sensor sees. Once alone, and once while two engine threads run the
  embedded model in the same process.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from netns import Netns, namespace

from netssmd.daemon.service import SWITCH_SECONDS
from netssmd.engine.opening import open_model
from netssmd.engine.plan import address_plan
from netssmd.engine.scheduler import Scheduler
from netssmd.engine.session import SessionInfo
from netssmd.output import pacer
from netssmd.output.ledger import SessionMeta
from netssmd.output.sink import Outgoing
from netssmd.output.tap import TapOptions, TapPort, TapSink
from netssmd.packet.pcap import Packet, PcapWriter, read_capture

SECOND = 1_000_000_000
AHEAD_NS = 50_000_000  # how long before their time the daemon hands packets over
SESSION = SessionMeta("1-0", "bench")


def frames(count: int, size: int) -> list[bytes]:
    """Numbered UDP-less Ethernet frames of one size."""
    head = bytes.fromhex("024e00000002024e0000000188b5")
    return [head + number.to_bytes(8, "big") + bytes(size - 22) for number in range(count)]


def open_sink(netns: Netns, kind: str, realtime: int = 0) -> TapSink:
    options = TapOptions(netns=netns.name, realtime=realtime)
    made = {"native": pacer.open_pacer, "python": pacer.PythonPacer}[kind](options.queue_packets, options.late_ns)
    return TapSink([TapPort("tap0", options, made)])


# --- top speed --------------------------------------------------------------------------------------------------------


def tap_rate(netns: Netns, kind: str, data: Sequence[bytes]) -> float:
    """Frames a second, from the first write to the last frame in the kernel's hands."""
    sink = open_sink(netns, kind)
    batches = [[Outgoing(Packet(0, d, len(d)), SESSION, None, 0) for d in data[i : i + 256]]
               for i in range(0, len(data), 256)]  # fmt: skip
    start_ns = time.monotonic_ns()
    for batch in batches:
        sink.write(batch)
    sink.close()
    seconds = (time.monotonic_ns() - start_ns) / SECOND
    assert (sink.packets, sink.dropped) == (len(data), 0), (sink.packets, sink.dropped)
    return len(data) / seconds


def tcpreplay_rate(netns: Netns, capture: Path, loops: int) -> float:
    command = netns.command("tcpreplay", "--topspeed", "--preload-pcap", f"--loop={loops}", "-i", "veth0", str(capture))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"Rated:.*?([0-9.]+) pps", done.stdout + done.stderr)
    assert found, done.stdout + done.stderr
    return float(found[1])


def top_speed(kind: str, size: int, count: int, rounds: int) -> None:
    with namespace() as netns, tempfile.TemporaryDirectory() as folder:
        netns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        for name in ("veth0", "veth1"):
            netns.ip("link", "set", name, "addrgenmode", "none", "up")
        data = frames(count, size)
        capture = Path(folder) / "frames.pcap"
        with open(capture, "wb") as file:
            writer = PcapWriter(file)
            writer.write_many([Packet(i * 1000, d, len(d)) for i, d in enumerate(data[:20_000])])
            writer.flush()
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(tap_rate(netns, kind, data))
            theirs.append(tcpreplay_rate(netns, capture, max(1, count // 20_000)))
    print(f"top speed, {count} frames of {size} bytes, best of {rounds} alternating rounds:")
    print(f"  netssmd sink ({kind}) to TAP     {max(ours):>10,.0f} frames/s   rounds {listed(ours)}")
    print(f"  tcpreplay --topspeed on veth  {max(theirs):>10,.0f} frames/s   rounds {listed(theirs)}")
    print(f"  ratio {max(ours) / max(theirs):.2f}")


def listed(rates: Sequence[float]) -> str:
    return " ".join(f"{rate / 1e3:.0f}k" for rate in rates)


# --- punctuality ------------------------------------------------------------------------------------------------------


def engine(stop: threading.Event) -> list[threading.Thread]:
    """Two threads that run the embedded model as hard as they can, as the daemon's engine lanes do."""
    model, plan = open_model("embedded"), address_plan()
    backend = model.backend(34)
    temperatures = model.temperatures(1.0, {})

    def work(which: int) -> None:
        scheduler = Scheduler(backend, 16, slots=range(which * 17, which * 17 + 17))
        number = which
        while not stop.is_set():
            while scheduler.free:
                info = SessionInfo(number, "web", {"rtt_ms": 20.0, "rate_mbit": 100.0, "loss_pct": 0.1}, number, 0)
                scheduler.add(model.session(info, plan, temperatures=temperatures))
                number += 2
            scheduler.step()

    return [threading.Thread(target=work, args=(which,), name=f"netssmd-engine-{which}") for which in range(2)]


def pace(sink: TapSink, count: int, gap_ns: int) -> list[int]:
    """Hand frames over AHEAD_NS before their time, as the output lane does. Returns their times."""
    data = frames(count, 512)
    start_ns = time.monotonic_ns() + 2 * AHEAD_NS
    due = [start_ns + i * gap_ns for i in range(count)]
    chunk = max(1, 5_000_000 // gap_ns)
    for at in range(0, count, chunk):
        pacer.sleep_until(due[at] - AHEAD_NS)
        sink.write(
            [Outgoing(Packet(0, data[i], 512), SESSION, None, 0, due[i]) for i in range(at, min(at + chunk, count))]
        )
    pacer.sleep_until(due[-1] + AHEAD_NS)
    return due


def punctuality(kind: str, rate: int, seconds: float, realtime: int, busy: bool) -> None:
    count, gap_ns = int(rate * seconds), SECOND // rate
    with namespace() as netns, tempfile.TemporaryDirectory() as folder:
        sink = open_sink(netns, kind, realtime)
        capture = Path(folder) / "seen.pcap"
        command = netns.command("tcpdump", "-i", "tap0", "-w", str(capture), "-s", "64", "-B", "65536",
                                "--time-stamp-precision=nano", "-Z", "root")  # fmt: skip
        tcpdump = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert tcpdump.stderr
        while "listening" not in (line := tcpdump.stderr.readline()):
            assert line, "tcpdump did not start"
        stop = threading.Event()
        threads = engine(stop) if busy else []
        sys.setswitchinterval(SWITCH_SECONDS)
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        offset_ns = time.time_ns() - time.monotonic_ns()
        due = pace(sink, count, gap_ns)
        stop.set()
        for thread in threads:
            thread.join()
        time.sleep(0.5)
        tcpdump.terminate()
        tcpdump.wait()
        sink.close()
        with open(capture, "rb") as file:
            seen = [(int.from_bytes(p.data[14:22], "big"), p.ts_ns - offset_ns) for p in read_capture(file)]
    numbers = [number for number, _ in seen]
    late = sorted(ts_ns - due[number] for number, ts_ns in seen)
    asked = SECOND / gap_ns
    got = (len(seen) - 1) / (seen[-1][1] - seen[0][1]) * SECOND
    where = "with two engine threads" if busy else "alone"
    print(f"punctuality ({kind}), {rate} packets/s for {seconds:g} s, {where}; load average {os.getloadavg()[0]:.1f}:")
    print(f"  lost {count - len(seen)}, reordered {sum(a > b for a, b in pairwise(numbers))}, "
          f"dropped by the sink {sink.dropped}, rate {got:.1f}/s (error {abs(got / asked - 1):.3%})")  # fmt: skip
    shown = {"p1": 0.01, "p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
    quantiles = {name: late[min(len(late) - 1, int(q * len(late)))] / 1e3 for name, q in shown.items()}
    print(
        "  lateness, us: " + ", ".join(f"{n} {v:.0f}" for n, v in quantiles.items()) + f", worst {late[-1] / 1e3:.0f}"
    )
    hist = sink.ports[0].pacer
    print(
        f"  as the sink counts it: {_at_most(hist, 50_000):.1%} within 50 us, "
        f"{_at_most(hist, 300_000):.1%} within 300 us"
    )


def _at_most(counts: pacer.Pacer, bound_ns: int) -> float:
    return sum(counts.lateness[: pacer.BOUNDS_NS.index(bound_ns) + 1]) / max(1, counts.sent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pacer", choices=("native", "python"), default="native")
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--realtime", type=int, default=0, help="SCHED_FIFO priority of the sending thread")
    parser.add_argument("--only", choices=("speed", "alone", "busy"))
    options = parser.parse_args()
    measures: dict[str, Callable[[], None]] = {
        "speed": lambda: top_speed(options.pacer, options.size, options.count, options.rounds),
        "alone": lambda: punctuality(options.pacer, options.rate, options.seconds, options.realtime, False),
        "busy": lambda: punctuality(options.pacer, options.rate, options.seconds, options.realtime, True),
    }
    for name, measure in measures.items():
        if options.only in (None, name):
            measure()


if __name__ == "__main__":
    main()
