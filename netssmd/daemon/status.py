"""How the daemon is doing, in one object: counters of the lanes in, a frozen `Status` out.

`netssmd ctl status`, `netssmd top`, the retained status on MQTT and the status page read this and nothing else; its
JSON is its fields as they stand here. Times in seconds, rates per second over the last few seconds. A part of the
daemon that has something to tell adds a field here and fills it in `status_of`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from netssmd import __version__
from netssmd.daemon import build
from netssmd.daemon.retarget import room

if TYPE_CHECKING:
    from netssmd.daemon.mqtt import BrokerState
    from netssmd.daemon.service import Service
    from netssmd.output.tap import TapPort

WINDOW = 6  # samples that a rate goes back over, one a second
RUNNING, PAUSED, STOPPING = "running", "paused", "stopping"


@dataclass(frozen=True, slots=True)
class Label:
    """One traffic label. `weight` is its share in the mix, 0 if it is not in it."""

    weight: float
    active: int
    started: int
    ended: int
    packets: int
    bytes: int
    packets_per_second: float


@dataclass(frozen=True, slots=True)
class Sessions:
    """`slots`: most that may live at once; `room`: how many of them `start` may take now; `ended` by reason."""

    active: int
    slots: int
    room: int
    concurrency: int
    started: int
    ended: dict[str, int]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What has left; `cap_packets_per_second` 0 = no cap."""

    packets: int
    bytes: int
    packets_per_second: float
    bits_per_second: float
    cap_packets_per_second: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Lateness is of packets; deficit and throttling are how far session clocks were moved, summed; slipped is how far
    the whole stream was."""

    lateness_seconds: float
    lateness_max_seconds: float
    late_packets: int
    deficit_seconds: float
    throttled_seconds: float
    slipped_seconds: float
    late_dropped_packets: int
    held_packets: int
    inbox_batches: int


@dataclass(frozen=True, slots=True)
class Compliance:
    """Rules of TCP/IP: `findings` are packets sent that broke one; `flows` are TCP flows concluded, by ending, of which
    `handshakes` had a complete one. `check`: is anyone looking? `interventions` of the guide by rule, in its mode."""

    check: bool
    findings: dict[str, int]
    flows: dict[str, int]
    handshakes: int
    mode: str
    interventions: dict[str, int]


@dataclass(frozen=True, slots=True)
class SinkState:
    """One sink."""

    name: str
    packets: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Tap:
    """One TAP device. `dropped` by reason, those that happened; `lateness_seconds` is the mean."""

    name: str
    up: bool
    frames: int
    bytes: int
    dropped: dict[str, int]
    fragmented: int
    queued: int
    lateness_seconds: float


@dataclass(frozen=True, slots=True)
class Slices:
    """Captures completed in this run."""

    directory: str
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Of this run; `resumed`: sessions that it went on with. Path, size and age of the newest, "" and 0 before it."""

    written: int
    failed: int
    refused: int
    resumed: int
    path: str
    bytes: int
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Status:
    """All of it. `pauses`: seconds so far by reason; `ts_ns` is wall-clock time."""

    version: str
    model: str
    model_hash: str
    backend: str
    threads: int
    pace: str
    seed: int
    ts_ns: int
    state: str
    pauses: dict[str, float]
    uptime_seconds: float
    paused_seconds: float
    sessions: Sessions
    labels: dict[str, Label]
    traffic: Traffic
    timing: Timing
    compliance: Compliance
    malformed: dict[str, int]  # packets of ended sessions that a byte model wrote and that were none, by reason
    sinks: list[SinkState]
    taps: list[Tap]
    slices: Slices | None
    snapshots: Snapshots | None
    broker: BrokerState | None
    events: dict[str, int]  # told so far, by kind

    def json(self) -> dict[str, Any]:
        """Plain dictionaries, as every adapter sends them."""
        return asdict(self)


class Rates:
    """Packets and bytes a second over the last few samples. The control loop takes one a second."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, dict[str, int], int]] = deque(maxlen=WINDOW)

    def sample(self, now_ns: int, packets: dict[str, int], size: int) -> None:
        """The totals at this monotonic time."""
        self._samples.append((now_ns, packets, size))

    def since_ns(self, now_ns: int) -> int:
        """How far back the rates go."""
        return now_ns - self._samples[0][0] if self._samples else 0

    def packets_per_second(self, now_ns: int, packets: dict[str, int]) -> dict[str, float]:
        """By label, from the oldest sample to these totals."""
        span_ns = self.since_ns(now_ns)
        if span_ns <= 0:
            return dict.fromkeys(packets, 0.0)
        then = self._samples[0][1]
        return {label: round((count - then.get(label, 0)) * 1e9 / span_ns, 1) for label, count in packets.items()}

    def bytes_per_second(self, now_ns: int, size: int) -> float:
        """The same for bytes, over all labels."""
        span_ns = self.since_ns(now_ns)
        return (size - self._samples[0][2]) * 1e9 / span_ns if span_ns > 0 else 0.0


def status_of(service: Service) -> Status:
    """Read the counters. On the control thread, at any time once the lanes are built."""
    now_ns = time.monotonic_ns()
    board, sums, counters = service.board, service.counters, service.output.counters
    packets, sizes = counters.packets.copy(), counters.bytes.copy()
    total = sum(sizes.values())
    rates = service.rates.packets_per_second(now_ns, packets)
    ended: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for (label, reason), count in sums.ended().items():
        ended[label] += count
        reasons[reason] += count
    active, started, weights = sums.active(), sums.started(), service.mix.labels
    labels = {
        label: Label(
            weights.get(label, 0.0), active.get(label, 0), started.get(label, 0), ended[label], packets[label],
            sizes[label], rates.get(label, 0.0),
        )
        for label in sorted({*(name for name, weight in weights.items() if weight), *started})
    }  # fmt: skip
    pauses = {reason: (now_ns - since_ns) / 1e9 for reason, since_ns in board.pauses.items()}
    ring = service.ring
    return Status(
        version=__version__,
        model=service.model.name,
        model_hash=service.model.hash,
        backend=service.backend_name,
        threads=service.threads,
        pace=build.pace(service.config),
        seed=service.seed,
        ts_ns=time.time_ns(),
        state=STOPPING if board.stop.is_set() else PAUSED if pauses else RUNNING,
        pauses=pauses,
        uptime_seconds=service.uptime_seconds,
        paused_seconds=board.paused_ns / 1e9 + max(pauses.values(), default=0.0),
        sessions=Sessions(
            sum(active.values()), service.slots, room(service), board.arrivals.concurrency, sum(started.values()),
            dict(reasons),
        ),
        labels=labels,
        traffic=Traffic(
            sum(packets.values()), total, round(sum(rates.values()), 1),
            round(service.rates.bytes_per_second(now_ns, total) * 8, 1), service.cap_packets_per_second,
        ),
        timing=Timing(
            counters.lateness_ns / 1e9, counters.lateness_max_ns / 1e9, counters.late, sums.sum("deficit_ns") / 1e9,
            sums.sum("throttled_ns") / 1e9, counters.slipped_ns / 1e9, sums.late_dropped(), counters.held,
            board.inbox.qsize(),
        ),
        compliance=Compliance(
            service.config.compliance.check, dict(counters.findings), sums.flows(),
            sums.flow_findings().get("handshake", 0), service.config.compliance.mode,
            sums.guide().interventions_by_rule(),
        ),
        malformed=sums.malformed(),
        sinks=[SinkState(sink_name(sink), sink.packets, sink.dropped) for sink in service.output.sinks],
        taps=[_tap(port) for port in service.tap.ports] if service.tap else [],
        snapshots=_snapshots(service),
        broker=replace(service.node.state) if service.node else None,
        slices=Slices(service.config.output.directory, ring.files, ring.bytes) if ring else None,
        events=dict(service.events.emitted),
    )  # fmt: skip


def _tap(port: TapPort) -> Tap:
    pacer = port.pacer
    dropped = {reason: count for reason, count in port.dropped.items() if count}
    mean_seconds = pacer.lateness_sum_ns / max(pacer.sent, 1) / 1e9
    return Tap(
        port.name, port.up, pacer.sent, pacer.sent_bytes, dropped, port.fragmented, pacer.queued, round(mean_seconds, 9)
    )


def _snapshots(service: Service) -> Snapshots | None:
    keeper = service.keeper
    if keeper is None:
        return None
    newest, resumed = keeper.newest, keeper.resumed
    return Snapshots(
        keeper.written, keeper.failed, keeper.refused, len(resumed.sessions) if resumed else 0,
        str(newest.path) if newest else "", newest.bytes if newest else 0, keeper.age_seconds,
    )  # fmt: skip


def sink_name(sink: object) -> str:
    """Such as "file" for FileSink."""
    return type(sink).__name__.removesuffix("Sink").lower()


def line(status: Status) -> str:
    """One line for a terminal or a log: how it goes, over the whole run."""
    seconds, traffic, timing = max(status.uptime_seconds, 1e-9), status.traffic, status.timing
    parts = [
        f"{seconds:.0f} s",
        f"{status.sessions.active} sessions",
        f"{traffic.packets} packets",
        f"{traffic.bytes / 1e6:.1f} MB",
        f"{traffic.packets / seconds:.0f} packets/s",
        f"{traffic.bytes * 8 / seconds / 1e6:.2f} Mbps",
        f"{status.slices.files if status.slices else 0} files",
    ]
    for tap in status.taps:
        if not tap.up:
            parts.append(f"TAP {tap.name} is down")
        if tap.dropped:
            parts.append(f"TAP {tap.name} dropped {sum(tap.dropped.values())}")
    if status.pauses:
        parts.insert(1, f"paused ({', '.join(status.pauses)})")
    if timing.late_packets:
        parts.append(f"{timing.late_packets} late (worst {timing.lateness_max_seconds * 1e3:.0f} ms)")
    if timing.deficit_seconds > 0.1:
        parts.append(f"deficit {timing.deficit_seconds:.1f} s")
    if timing.slipped_seconds:
        parts.append(f"slipped {timing.slipped_seconds:.2f} s")
    if status.malformed:
        parts.append(f"{sum(status.malformed.values())} malformed")
    if timing.late_dropped_packets:
        parts.append(f"{timing.late_dropped_packets} dropped as late")
    return ", ".join(parts)
