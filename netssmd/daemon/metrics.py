"""What Prometheus sees: one row a metric, read from the lanes' counters at the moment of the scrape.

    METRICS: topic -> rows        Row: name, kind, labels, help, read(service)        LABELS: label -> its values

The exposition, docs/metrics.md and the tests read the rows; a new metric is one row (then `python tools/metrics.py`,
which writes the document and the golden exposition). What `read` returns follows from the row:

    counter, gauge without labels     a number
    counter, gauge with labels        a dict: label value, or a tuple of them, to number
    histogram                         a `Histogram`, or a dict of them

Names are in base units: what is counted in nanoseconds says `per=SECOND`. A counter's `_total` is added by the
exposition. Label values come from the sets that LABELS names, never from sessions or addresses, so the number of series
is bounded whatever the daemon does. Each counter has one writer, a lane; reading takes no lock, so a scrape holds no
packet up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from netssmd.daemon.events import EVENTS
from netssmd.daemon.histogram import Histogram
from netssmd.daemon.status import sink_name

if TYPE_CHECKING:
    from netssmd.daemon.service import Service

SECOND = 1_000_000_000

Number: TypeAlias = int | float
Values: TypeAlias = "Number | Histogram | Mapping[Any, Number] | Mapping[Any, Histogram]"


@dataclass(frozen=True, slots=True)
class Row:
    """One metric. `read` gives its values in units of which `per` make one of the name's."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    read: Callable[[Service], Values]
    per: int = 1

    @property
    def exposed(self) -> str:
        """The name as queries write it."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


LABELS: dict[str, str] = {
    "label": "traffic labels of the model",
    "reason": "`end` by itself, cut at `packets`, `tokens` or `duration`, `stopped` with the daemon, `broken` "
    "state, `silent`: wrote no packet, too `late`",
    "defect": "what kept bytes from being a packet: a row of REASONS in codec/bytes.py",
    "sink": "`file`, `tap`",
    "kind": f"{', '.join(f'`{kind}`' for kind in EVENTS)}",
    "finding": "rows of [compliance.md](compliance.md)",
    "ending": "`fin_both`, `fin_one`, `rst`, or `open` when the session ended",
    "tap": "`tap.name` and `tap.server_name` of the configuration",
    "drop": "device `down` or `gone`; too `late`; kernel `busy`; frame `refused` by it; `cut` at the end; `oversize`",
    "mutant": "names of the anomaly dial: [compliance.md](compliance.md)",
    "rule": "of the guide: [compliance.md](compliance.md)",
    "version": "of netssmd",
    "model": "name and the first digits of its hash",
    "backend": "`cpu`, `torch` or `cuda`, with the instruction set",
}
"""Where the values of each label come from: all that may stand in a row's `labels`."""

METRICS: dict[str, tuple[Row, ...]] = {
    "Traffic": (
        Row("netssmd_packets", "counter", ("label",), "Packets sent to the sinks.",
            lambda s: s.output.counters.packets),
        Row("netssmd_bytes", "counter", ("label",), "Bytes of these packets on the wire.",
            lambda s: s.output.counters.bytes),
        Row("netssmd_flows_opened", "counter", ("label",), "Flows opened; a five-tuple used again counts again.",
            lambda s: s.output.counters.flows),
        Row("netssmd_sink_packets", "counter", ("sink",), "Packets that arrived where they were to go.",
            lambda s: {sink_name(sink): sink.packets for sink in s.output.sinks}),
        Row("netssmd_sink_packets_dropped", "counter", ("sink",), "Packets that did not.",
            lambda s: {sink_name(sink): sink.dropped for sink in s.output.sinks}),
    ),
    "Sessions": (
        Row("netssmd_sessions_active", "gauge", ("label",), "Sessions that hold a slot.",
            lambda s: s.counters.active()),
        Row("netssmd_sessions_started", "counter", ("label",), "Sessions started.", lambda s: s.counters.started()),
        Row("netssmd_sessions_ended", "counter", ("label", "reason"), "Sessions ended, by what ended them.",
            lambda s: s.counters.ended()),
        Row("netssmd_arrivals_deferred", "counter", (), "Arrivals that waited for a free place.",
            lambda s: s.board.arrivals.deferred),
        Row("netssmd_addresses_reused", "counter", (), "Addresses dealt again because a pool was used up.",
            lambda s: s.counters.sum("reused")),
    ),
    "Model": (
        Row("netssmd_tokens", "counter", (), "Tokens drawn or forced.", lambda s: s.counters.sum("tokens")),
        Row("netssmd_drafted_tokens", "counter", (), "Tokens guessed ahead for models of the byte codec.",
            lambda s: s.counters.sum("drafted")),
        Row("netssmd_accepted_tokens", "counter", (), "Guessed tokens that the model drew.",
            lambda s: s.counters.sum("accepted")),
        Row("netssmd_mtu_clamped_packets", "counter", (), "Packets that were to be longer than the MTU.",
            lambda s: s.counters.sum("clamped")),
        Row("netssmd_malformed_packets", "counter", ("defect",),
            "Packets of ended sessions that a byte model wrote and that were none, so were not sent.",
            lambda s: s.counters.malformed()),
        Row("netssmd_step_seconds", "histogram", (), "Time of a step, codec and rendering included.",
            lambda s: s.counters.total("step_times"), per=SECOND),
        Row("netssmd_batch_sessions", "histogram", (), "Sessions that a step advanced.",
            lambda s: s.counters.total("batches")),
    ),
    "Snapshots": (
        Row("netssmd_snapshots_written", "counter", (), "Snapshots of the sessions written.",
            lambda s: s.keeper.written if s.keeper else 0),
        Row("netssmd_snapshots_failed", "counter", (), "Snapshots that could not be taken or written.",
            lambda s: s.keeper.failed if s.keeper else 0),
        Row("netssmd_snapshots_refused", "counter", (), "Snapshots of earlier runs that were set aside.",
            lambda s: s.keeper.refused if s.keeper else 0),
        Row("netssmd_snapshot_timestamp_seconds", "gauge", (),
            "When the newest snapshot of this run was written, seconds since 1970; missing before the first.",
            lambda s: {(): s.keeper.wall_ns} if s.keeper and s.keeper.wall_ns else {}, per=SECOND),
        Row("netssmd_snapshot_bytes", "gauge", (), "Size of the newest snapshot.",
            lambda s: s.keeper.newest.bytes if s.keeper and s.keeper.newest else 0),
        Row("netssmd_snapshot_stall_seconds", "gauge", (), "How long the engine threads stood for the newest snapshot.",
            lambda s: s.keeper.newest.stood_ns if s.keeper and s.keeper.newest else 0, per=SECOND),
        Row("netssmd_sessions_resumed", "gauge", (), "Sessions of an earlier run that this run went on with.",
            lambda s: len(s.keeper.resumed.sessions) if s.keeper and s.keeper.resumed else 0),
    ),
    "Timing": (
        Row("netssmd_lookahead_seconds", "gauge", (),
            "How far the session that is furthest behind is ahead of the clock; live pace only.",
            lambda s: min((lane.counters.ahead_ns for lane in s.lanes), default=0), per=SECOND),
        Row("netssmd_deficit_seconds", "counter", (),
            "How far session clocks were moved because generation could not keep up.",
            lambda s: s.counters.sum("deficit_ns"), per=SECOND),
        Row("netssmd_slipped_seconds", "counter", (),
            "How far the whole stream was moved because it could not be sent in time.",
            lambda s: s.output.counters.slipped_ns, per=SECOND),
        Row("netssmd_late_dropped_packets", "counter", (), "Packets not sent for being later than pacing.late.",
            lambda s: s.counters.late_dropped()),
        Row("netssmd_throttled_seconds", "counter", (),
            "How far session clocks were moved by the cap on the packet rate.",
            lambda s: s.counters.sum("throttled_ns"), per=SECOND),
        Row("netssmd_lateness_seconds", "gauge", (), "How long after its time the last packet left.",
            lambda s: s.output.counters.lateness_ns, per=SECOND),
        Row("netssmd_lateness_max_seconds", "gauge", (), "The same, worst since the start.",
            lambda s: s.output.counters.lateness_max_ns, per=SECOND),
        Row("netssmd_late_packets", "counter", (), "Packets that left more than 10 ms after their time.",
            lambda s: s.output.counters.late),
        Row("netssmd_held_packets", "gauge", (), "Packets that wait for their time.", lambda s: s.output.counters.held),
        Row("netssmd_inbox_batches", "gauge", (), "Batches between engine and output threads.",
            lambda s: s.board.inbox.qsize()),
        Row("netssmd_clock_steps", "counter", (), "Times that the wall clock was found to be set.",
            lambda s: s.output.wall.steps),
        Row("netssmd_paused", "gauge", (), "1 while the daemon is paused.", lambda s: int(s.paused)),
    ),
    "Compliance": (
        Row("netssmd_findings", "counter", ("finding",), "Packets sent that broke a rule of TCP/IP.",
            lambda s: s.output.counters.findings),
        Row("netssmd_tcp_flows_ended", "counter", ("ending",), "TCP flows concluded, by how they ended.",
            lambda s: s.counters.flows()),
        Row("netssmd_tcp_flow_findings", "counter", ("finding",),
            "TCP flows concluded that have the finding: `handshake` are those with a complete one.",
            lambda s: s.counters.flow_findings()),
        Row("netssmd_planted", "counter", ("mutant",), "Packets that were given a defect on purpose.",
            lambda s: s.output.counters.planted),
        Row("netssmd_guide_interventions", "counter", ("rule",), "Draws that the guide turned away from a finding.",
            lambda s: s.counters.guide().interventions_by_rule()),
        Row("netssmd_guide_removed_probability", "counter", ("rule",),
            "Probability of tokens that the guide forbade, summed over draws.",
            lambda s: s.counters.guide().removed_by_rule()),
    ),
    "Wire": (
        Row("netssmd_tap_frames", "counter", ("tap",), "Frames that the TAP device took.",
            lambda s: s.counters.by_tap(lambda port: port.pacer.sent)),
        Row("netssmd_tap_bytes", "counter", ("tap",), "Bytes of these frames.",
            lambda s: s.counters.by_tap(lambda port: port.pacer.sent_bytes)),
        Row("netssmd_tap_dropped", "counter", ("tap", "drop"), "Frames that it did not get.",
            lambda s: s.counters.taps_dropped()),
        Row("netssmd_tap_fragmented", "counter", ("tap",), "Packets sent in fragments, for want of MTU.",
            lambda s: s.counters.by_tap(lambda port: port.fragmented)),
        Row("netssmd_tap_retries", "counter", ("tap",), "Writes tried again because the kernel had no room.",
            lambda s: s.counters.by_tap(lambda port: port.pacer.retries)),
        Row("netssmd_tap_outages", "counter", ("tap",), "Times that the device went down or away.",
            lambda s: s.counters.by_tap(lambda port: port.outages)),
        Row("netssmd_tap_up", "gauge", ("tap",), "1 while the device is there and up.",
            lambda s: s.counters.by_tap(lambda port: int(port.up))),
        Row("netssmd_tap_queued_frames", "gauge", ("tap",), "Frames that wait for their moment in the sending thread.",
            lambda s: s.counters.by_tap(lambda port: port.pacer.queued)),
        Row("netssmd_tap_lateness_seconds", "histogram", ("tap",), "How long after its time a frame was written.",
            lambda s: s.counters.taps_lateness(), per=SECOND),
    ),
    "Files": (
        Row("netssmd_files_written", "counter", (), "Capture files completed.", lambda s: s.counters.files_written()),
        Row("netssmd_file_bytes", "counter", (), "Bytes of capture stored.", lambda s: s.ring.bytes if s.ring else 0),
        Row("netssmd_disk_free_bytes", "gauge", (), "Free space where captures go.",
            lambda s: {(): disk_free_bytes(s.config.output.directory)} if s.ring else {}),
        Row("netssmd_disk_floor_bytes", "gauge", (), "Free space that is left alone: `output.free_disk`.",
            lambda s: {(): s.config.output.free_disk} if s.ring else {}),
    ),
    "Broker": (
        Row("netssmd_broker_connected", "gauge", (), "1 while the MQTT broker is connected; missing without one.",
            lambda s: {(): int(s.node.state.state == "connected")} if s.node else {}),
        Row("netssmd_broker_connections", "counter", (), "Times that it was connected to.",
            lambda s: {(): s.node.state.connections} if s.node else {}),
        Row("netssmd_broker_published", "counter", (), "Messages published.",
            lambda s: {(): s.node.state.published} if s.node else {}),
        Row("netssmd_broker_requests", "counter", (), "Requests answered.",
            lambda s: {(): s.node.state.requests} if s.node else {}),
    ),
    "Process": (
        Row("netssmd_events", "counter", ("kind",), "Events told.", lambda s: s.events.emitted),
        Row("netssmd_build_info", "gauge", ("version", "model", "backend"), "Always 1.", lambda s: {s.build_info(): 1}),
    ),
}  # fmt: skip


def disk_free_bytes(directory: str) -> float:
    """What an unprivileged process may still write there; NaN where nobody can tell."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return math.nan
    return status.f_bavail * status.f_frsize


class ServiceCollector(Collector):
    """Reads the rows at the moment of the scrape."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        for rows in METRICS.values():
            for row in rows:
                yield _family(row, row.read(self._service))


FAMILIES: dict[str, Any] = {
    "counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily,
}  # fmt: skip


def _family(row: Row, values: Values) -> Metric:
    family = FAMILIES[row.kind](row.name, row.help, labels=row.labels, unit=_unit(row.name))
    by_labels: dict[Any, Any] = dict(values) if isinstance(values, Mapping) else {(): values}  # a copy: lanes add keys
    for key, value in sorted(by_labels.items()):
        labels = [key] if isinstance(key, str) else list(key)
        if isinstance(value, Histogram):
            family.add_metric(labels, _cumulative(value, row.per), value.sum / row.per)
        else:
            family.add_metric(labels, value / row.per)
    metric: Metric = family
    return metric


def _unit(name: str) -> str:
    """OpenMetrics' unit: the end of the name, if that is one."""
    end = name.rpartition("_")[2]
    return end if end in ("seconds", "bytes") else ""


def _cumulative(histogram: Histogram, per: int) -> list[tuple[str, float]]:
    """Prometheus' buckets: (upper bound, values up to it)."""
    counts, below, buckets = list(histogram.counts), 0, []
    for bound, count in zip([*(f"{bound / per:g}" for bound in histogram.bounds), "+Inf"], counts):
        below += count
        buckets.append((bound, float(below)))
    return buckets


def registry(service: Service, process: bool = True) -> CollectorRegistry:
    """The service's own registry; `process` adds memory, processor time and open files of this process."""
    made = CollectorRegistry(auto_describe=False)
    made.register(ServiceCollector(service))
    if process:
        ProcessCollector(registry=made)
    return made


def document() -> str:
    """docs/metrics.md."""
    lines = [INTRODUCTION]
    for topic, rows in METRICS.items():
        lines += [f"## {topic}", "", "| metric | kind; labels | |", "|---|---|---|"]
        for row in rows:
            labels = f"; {', '.join(row.labels)}" if row.labels else ""
            lines.append(f"| `{row.exposed}` | {row.kind}{labels} | {row.help} |")
        lines.append("")
    lines += ["## Labels", "", "| label | values |", "|---|---|"]
    lines += [f"| `{label}` | {values} |" for label, values in LABELS.items()]
    return "\n".join(lines) + "\n"


INTRODUCTION = """\
# Metrics

Written by `python tools/metrics.py` from `METRICS` in `netssmd/daemon/metrics.py`; a test holds the two equal.

`http://127.0.0.1:9464/metrics` gives them in Prometheus' text format, or in OpenMetrics to a scraper that accepts it.
Units are base units: seconds, bytes. The values of labels come from the sets below, never from sessions or addresses,
so the number of series is bounded. `process_resident_memory_bytes`, `process_cpu_seconds_total`, `process_open_fds` and
their like tell of the daemon's process.
"""
