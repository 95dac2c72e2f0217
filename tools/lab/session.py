"""One session from its seed to its capture: draw conditions and hosts, build the two namespaces, run, write.

`record` runs in a process that the recorder forked. It makes a PID and a mount namespace and forks their init, which
forks everything else: when init ends, or the recorder is killed, the kernel ends all of it, and the network namespaces
and their TAPs with them. The order: devices, link, capture, servers, client; then the link falls quiet, the capture is
complete by the device's own counters, and the file is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ipaddress
import json
import os
import random
import select
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from netssmd.codec.flows import flow_key
from netssmd.packet.pcap import read_capture
from netssmd.packet.wire import ACK, SYN, TCP, parse
from tools.lab import kernel
from tools.lab.capture import Capture
from tools.lab.link import Conditions, Link, forward
from tools.lab.names import PROVIDER_DNS, DnsServer, Names, serve_stream
from tools.lab.place import Place, Tls

DEVICE = "eth0"
HOME_V6 = "2001:2:0:fffe::"
GATEWAY_V6 = HOME_V6 + "1"
READY_SECONDS, SETTLE_SECONDS = 90.0, 4.0
FOLDER_BYTES = 512 << 20  # of a session's own file system, in memory

# What access links are sold as, Mbit/s (gross rates a little less or more), from a weak cell to fibre.
RATES = (8, 17, 24, 33, 49, 78, 96, 190, 285, 480, 940)
VENDORS = ("b8:27:eb", "00:1b:21", "dc:a6:32", "3c:22:fb", "f4:f5:d8", "ac:bc:32", "00:0c:29", "e4:5f:01", "14:91:82")
# ip-sysctl.rst; what sets hosts apart on the wire: TTL, window scale (by the largest buffer), timestamps, SACK, ECN.
STACKS: dict[str, dict[str, object]] = {
    "linux": {},
    "linux-large": {"ipv4.tcp_rmem": "4096 131072 33554432", "ipv4.tcp_wmem": "4096 65536 16777216"},
    "windows": {"ipv4.ip_default_ttl": 128, "ipv6.conf.all.hop_limit": 128, "ipv4.tcp_timestamps": 0,
                "ipv4.tcp_rmem": "4096 65536 16777216", "ipv4.ip_local_port_range": "49152 65535"},
    "apple": {"ipv4.tcp_rmem": "4096 131072 4194304", "ipv4.ip_local_port_range": "49152 65535", "ipv4.tcp_ecn": 1},
    "plain": {"ipv4.tcp_timestamps": 0, "ipv4.tcp_sack": 0, "ipv4.tcp_rmem": "4096 32768 262144"},
}  # fmt: skip
CLIENT_STACKS = {"linux": 40, "windows": 30, "apple": 18, "linux-large": 8, "plain": 4}
SERVER_STACKS = {"linux": 65, "linux-large": 25, "windows": 8, "plain": 2}
MTUS = {1500: 80, 1492: 12, 1420: 5, 1400: 3}  # Ethernet, PPPoE, tunnels
CONGESTION = {"cubic": 60, "bbr": 30, "reno": 10}


@dataclass(frozen=True, slots=True)
class Spec:
    """What the recorder asks for."""

    label: str
    number: int
    seed: str
    length: float
    packets: int  # most frames in the capture
    seconds: float  # longest time that the workload may take
    snaplen: int
    folder: Path  # a folder that is the session's own
    file: Path  # the capture, gzip, complete when `record` says so
    tls: Tls
    reorder_pct: float = 0.0
    debug: bool = False  # what the two sides write goes to the terminal, not to the session's log


@dataclass(frozen=True, slots=True)
class Scene:
    """What is drawn for a session besides its workload's plan."""

    conditions: Conditions
    v6: bool
    client: str
    client_v6: str
    gateway: str
    client_mac: str
    gateway_mac: str
    client_stack: str
    server_stack: str
    mtu: int
    congestion: str
    first_window: int
    resolver: str


def pick(rng: random.Random, weights: dict[Any, int]) -> Any:
    return rng.choices(list(weights), list(weights.values()))[0]


def draw_conditions(rng: random.Random) -> Conditions:
    """An access link: the RTT log-uniform from 5 to 120 ms, loss in four links of ten, a queue of 20 to 400 ms."""
    rtt = 5 * 24 ** rng.random()
    loss = pick(rng, {0: 58, 1: 27, 2: 15})
    return Conditions(
        rate_mbit=round(rng.choice(RATES) * rng.uniform(0.97, 1.04), 1),
        rtt_ms=round(rtt, 1),
        jitter_ms=round(rtt * 0.2 * rng.random() ** 3, 2),
        loss_pct=(0.0, round(rng.uniform(0.05, 0.3), 3), round(rng.uniform(0.5, 2.0), 3))[loss],
        queue_ms=round(20 * 20 ** rng.random()),
    )


def draw_scene(rng: random.Random) -> Scene:
    net = rng.choice(
        [f"192.168.{rng.choice([0, 1, 2, 8, 10, 50, 86, 100, 178, rng.randrange(256)])}"]
        + [f"10.{rng.randrange(256)}.{rng.randrange(256)}", f"172.{rng.randrange(16, 32)}.{rng.randrange(256)}"]
    )
    gateway = f"{net}.{rng.choice([1, 1, 1, 254])}"
    v6 = rng.random() < 0.3
    resolver = gateway if rng.random() < 0.6 else PROVIDER_DNS[6 if v6 and rng.random() < 0.5 else 4]
    return Scene(
        conditions=draw_conditions(rng), v6=v6, client=f"{net}.{rng.randrange(2, 253)}", gateway=gateway,
        client_v6=f"{HOME_V6}{rng.randrange(2, 1 << 16):x}", client_mac=mac(rng), gateway_mac=mac(rng),
        client_stack=pick(rng, CLIENT_STACKS), server_stack=pick(rng, SERVER_STACKS), mtu=pick(rng, MTUS),
        congestion=pick(rng, CONGESTION), first_window=pick(rng, {10: 80, 32: 15, 4: 5}), resolver=resolver,
    )  # fmt: skip


def mac(rng: random.Random) -> str:
    return rng.choice(VENDORS) + "".join(f":{rng.randrange(256):02x}" for _ in range(3))


# ---- the process that the recorder forks


def record(spec: Spec, workload: Any, report: int) -> NoReturn:
    """Run the session; write its manifest row, or {"error": ...}, as JSON to the descriptor `report`; exit."""
    kernel.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the recorder decides; a terminal tells the whole group
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        kernel.unshare(kernel.NEWPID | kernel.NEWNS | kernel.NEWUTS | kernel.NEWIPC)
        if (init := os.fork()) == 0:
            as_init(spec, workload, report)
        os.waitpid(init, 0)
    except OSError as error:
        say(report, {"error": f"{error.strerror or error}: the lab takes root and CAP_SYS_ADMIN"})
    os._exit(0)


def as_init(spec: Spec, workload: Any, report: int) -> NoReturn:
    kernel.die_with_parent()
    try:
        row = run(spec, workload)
    except Exception as error:
        if spec.debug:
            traceback.print_exc()
        row = {"error": f"{error}" if type(error) is RuntimeError else f"{type(error).__name__}: {error}"}
    say(report, row)
    os._exit(0)


def say(report: int, row: dict[str, Any]) -> None:
    os.write(report, json.dumps(row).encode() + b"\n")


def run(spec: Spec, workload: Any) -> dict[str, Any]:
    """The session, as init of its PID namespace; the manifest's row."""
    rng = random.Random(spec.seed)
    scene = draw_scene(rng)
    if scene.congestion not in kernel.congestion_controls():
        scene = replace(scene, congestion=kernel.congestion_controls()[0])
    if spec.reorder_pct:
        scene = replace(scene, conditions=replace(scene.conditions, reorder_pct=spec.reorder_pct))
    plan = workload.plan(random.Random(f"{spec.seed}/plan"), spec.length)
    names = Names(spec.seed, scene.v6)
    private_files(spec, scene)
    client_net, client_tap = client_side(scene)
    server_net, server_tap = server_side(scene)

    local = frozenset({ipaddress.ip_address(scene.gateway).packed, ipaddress.ip_address(GATEWAY_V6).packed})
    link = Link(scene.conditions, random.Random(f"{spec.seed}/link"), local)
    link_said, link_says = os.pipe()
    link_pid = fork(lambda: be_link(client_net, (client_tap, server_tap), link, link_says))
    os.close(link_says)

    def counted() -> tuple[int, int]:
        return kernel.device_counts(link_pid, DEVICE)

    raw = spec.folder / "session.pcap"
    capture = Capture(raw, DEVICE, partial(kernel.enter, client_net), snaplen=spec.snaplen, limit=spec.packets)
    before = sum(counted())

    def place(side: str) -> Place:
        return Place(
            names, scene.conditions, random.Random(f"{spec.seed}/{side}"), spec.folder, spec.tls, plan, spec.length,
            scene.client, scene.gateway, spec.seed,
        )  # fmt: skip

    ready, readies = os.pipe()
    server_pid = fork(lambda: be_server(server_net, scene, names, place("server"), workload, readies, spec))
    os.close(readies)
    await_ready(ready, spec)
    client_pid = fork(lambda: be_client(client_net, place("client"), workload, spec))
    began = time.monotonic()
    ended, waited = await_client(client_pid, capture, spec)
    waited_pct = 100 * (waited + kernel.waited_seconds(server_pid)) / (time.monotonic() - began)
    settle(scene, capture, counted)
    missing = capture.finish(lambda: sum(counted()) - before)
    os.kill(link_pid, signal.SIGTERM)
    os.kill(server_pid, signal.SIGKILL)
    counts = json.loads(os.read(link_said, 65536) or b"{}")
    if missing:
        raise RuntimeError(f"tcpdump lacks {missing} frames that the device counted")
    if counts.get("up", {}).get("refused") or counts.get("down", {}).get("refused"):
        raise RuntimeError(f"a TAP refused frames: {counts}")
    return {
        **write(raw, spec.file),
        "capped": int(ended == "capped"),
        "rate_mbit": scene.conditions.rate_mbit,
        "rtt_ms": scene.conditions.rtt_ms,
        "loss_pct": scene.conditions.loss_pct,
        "jitter_ms": scene.conditions.jitter_ms,
        "queue_ms": scene.conditions.queue_ms,
        "reorder_pct": scene.conditions.reorder_pct,
        "lost": counts["up"]["lost"] + counts["down"]["lost"],
        "queue_drops": counts["up"]["dropped"] + counts["down"]["dropped"],
        "late_us_p50": counts["late_us_p50"],
        "late_us_p99": counts["late_us_p99"],
        "waited_pct": round(waited_pct, 2),
        "congestion": scene.congestion,
        "stack": scene.client_stack,
        "ipv6": int(scene.v6),
        "mtu": scene.mtu,
        "length": spec.length,
        "seed": spec.seed,
    }


# ---- what the two sides stand on


def private_files(spec: Spec, scene: Scene) -> None:
    """A /proc, a /run, a folder in memory and a resolver of the session's own, in its mount namespace."""
    kernel.private_mounts()
    kernel.mount("proc", "/proc", "proc")
    kernel.mount("tmpfs", "/run", "tmpfs", "size=16m,mode=755")
    kernel.mount("tmpfs", str(spec.folder), "tmpfs", f"size={FOLDER_BYTES},mode=755")
    (spec.folder / "resolv.conf").write_text(f"nameserver {scene.resolver}\noptions timeout:3 attempts:3\n")
    kernel.bind(str(spec.folder / "resolv.conf"), "/etc/resolv.conf")
    os.chdir(spec.folder)
    os.environ.update(TMPDIR=str(spec.folder), HOME=str(spec.folder), LC_ALL="C.UTF-8")
    log = os.open(spec.folder / "session.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if not spec.debug:
        os.dup2(log, 1)
        os.dup2(log, 2)
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def client_side(scene: Scene) -> tuple[int, int]:
    """The client's network namespace and its TAP, up and with a default route."""
    kernel.unshare(kernel.NEWNET)
    tap = kernel.tap(DEVICE)
    ways = f"congctl {scene.congestion} initcwnd 10"
    lines = [
        "link set lo up",
        f"link set {DEVICE} address {scene.client_mac} addrgenmode none",
        f"link set {DEVICE} mtu {scene.mtu} txqueuelen 20000 up",
        f"addr add {scene.client}/24 dev {DEVICE}",
        f"route add default via {scene.gateway} {ways}",
    ]
    if scene.v6:
        lines += [
            f"addr add fe80::{scene.client_v6.removeprefix(HOME_V6)}/64 dev {DEVICE} nodad",
            f"addr add {scene.client_v6}/64 dev {DEVICE} nodad",
            f"route add default via {GATEWAY_V6} {ways}",
        ]
    kernel.sysctl({"ipv4.tcp_no_metrics_save": 1, **STACKS[scene.client_stack]})
    kernel.ip(lines)
    return kernel.namespace(), tap


def server_side(scene: Scene) -> tuple[int, int]:
    """The namespace of all servers and the gateway: every address of the two ranges is its own."""
    kernel.unshare(kernel.NEWNET)
    tap = kernel.tap(DEVICE)
    ways = f"congctl {scene.congestion} initcwnd {scene.first_window}"
    net = ipaddress.ip_network(f"{scene.client}/24", strict=False)
    lines = [
        "link set lo up",
        f"link set {DEVICE} address {scene.gateway_mac} addrgenmode none",
        f"link set {DEVICE} mtu 1500 txqueuelen 20000 up",
        f"addr add {scene.gateway}/24 dev {DEVICE} noprefixroute",
        f"route add {net} dev {DEVICE} src {scene.gateway} {ways}",
        "route add local 198.18.0.0/15 dev lo",
    ]
    if scene.v6:
        lines += [
            f"addr add fe80::1/64 dev {DEVICE} nodad",  # without one the kernel asks for no neighbour
            f"addr add {GATEWAY_V6}/64 dev {DEVICE} nodad noprefixroute",
            f"route add {HOME_V6}/64 dev {DEVICE} {ways}",
            "route add local 2001:2:0:1::/64 dev lo",
            "route add local 2001:2:0:ffff::/64 dev lo",
        ]
    kernel.sysctl({"ipv4.tcp_no_metrics_save": 1, "ipv6.ip_nonlocal_bind": 1, **STACKS[scene.server_stack]})
    kernel.ip(lines)
    return kernel.namespace(), tap


# ---- the processes


def fork(work: Callable[[], object]) -> int:
    """`work` in a child, which ends with it."""
    if (pid := os.fork()) != 0:
        return pid
    status = 1
    try:
        kernel.die_with_parent()
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(status)


def be_link(net: int, taps: tuple[int, int], link: Link, report: int) -> None:
    kernel.enter(net)  # so that the device's counters can be read by this process's id
    forward(*taps, link, report)


def be_server(net: int, scene: Scene, names: Names, place: Place, workload: Any, ready: int, spec: Spec) -> None:
    kernel.enter(net)

    async def main() -> None:
        quiet_loop()
        loop = asyncio.get_running_loop()
        for address in {scene.gateway, PROVIDER_DNS[4], *([PROVIDER_DNS[6], GATEWAY_V6] if scene.v6 else [])}:
            await loop.create_datagram_endpoint(lambda: DnsServer(names), local_addr=(address, 53))
            await asyncio.start_server(lambda r, w: serve_stream(names, r, w), address, 53)
        await workload.serve(place)
        os.write(ready, b"1")
        await asyncio.sleep(spec.seconds + 60)

    asyncio.run(main())


def be_client(net: int, place: Place, workload: Any, spec: Spec) -> None:
    kernel.enter(net)

    async def main() -> None:
        quiet_loop()
        await workload.run(place)

    asyncio.run(main())


def quiet_loop() -> None:
    """A connection that breaks is what a lossy link is for, not news."""

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), OSError):
            print("note:", context.get("message"), context.get("exception"), file=sys.stderr)

    asyncio.get_running_loop().set_exception_handler(handle)


def last_words(spec: Spec) -> str:
    with contextlib.suppress(OSError):
        lines = (spec.folder / "session.log").read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-2:]) if lines else "not a word"
    return "not a word"


def await_ready(ready: int, spec: Spec) -> None:
    readable, _, _ = select.select([ready], [], [], READY_SECONDS)
    if not readable or os.read(ready, 1) != b"1":
        raise RuntimeError(f"the servers did not start: {last_words(spec)}")


def await_client(pid: int, capture: Capture, spec: Spec) -> tuple[str, float]:
    """Wait for the client, the packet limit or the deadline: "whole" or "capped", and for how many seconds others had
    the processors that it could have used. Raises when the client failed."""
    client, tcpdump = os.pidfd_open(pid), os.pidfd_open(capture.process.pid)
    readable, _, _ = select.select([client, tcpdump], [], [], spec.seconds)
    waited = kernel.waited_seconds(pid)
    if client in readable:
        _, status = os.waitpid(pid, 0)
        if status and tcpdump not in readable:
            raise RuntimeError(f"the client failed: {last_words(spec)}")
        return "capped" if capture.over else "whole", waited
    os.kill(pid, signal.SIGKILL)
    return "capped", waited


def settle(scene: Scene, capture: Capture, counted: Callable[[], tuple[int, int]]) -> None:
    """Wait until the device has been quiet for some round trips: last acknowledgements, closing of connections."""
    quiet, until = max(0.3, 4 * scene.conditions.rtt_ms / 1000), time.monotonic() + SETTLE_SECONDS
    seen, since = (-1, -1), time.monotonic()
    while not capture.over and time.monotonic() < until and time.monotonic() - since < quiet:
        counts = counted()
        if counts != seen:
            seen, since = counts, time.monotonic()
        time.sleep(0.05)


# ---- the file


def write(raw: Path, file: Path) -> dict[str, Any]:
    """Compress the capture; what the manifest says of it."""
    flows: set[Any] = set()
    asked: dict[Any, int] = {}
    handshakes: list[int] = []
    packets, first_ns, last_ns = 0, 0, 0
    with open(raw, "rb") as source:
        for packet in read_capture(source, str(raw)):
            first_ns, last_ns = first_ns or packet.ts_ns, packet.ts_ns
            packets += 1
            headers = parse(packet.data, packet.orig_len)
            key = flow_key(headers)
            if key is None:
                continue
            flows.add(key)
            if headers.transport == TCP and headers.flags & SYN:
                if not headers.flags & ACK:
                    asked[key] = -1 if key in asked else packet.ts_ns  # sent twice: which one was answered?
                elif asked.get(key, -1) > 0:
                    handshakes.append(packet.ts_ns - asked.pop(key))
    if not packets:
        raise RuntimeError("nothing was captured")
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as target, gzip.GzipFile("", "wb", 6, target, mtime=0) as packed:
        packed.write(raw.read_bytes())
    return {
        "packets": packets,
        "flows": len(flows),
        "duration_s": round((last_ns - first_ns) / 1e9, 3),
        "handshake_ms": round(statistics.median(handshakes) / 1e6, 2) if handshakes else "",
    }
