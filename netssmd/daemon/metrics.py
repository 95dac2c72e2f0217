"""What Prometheus sees: the lanes' counters in, the exposition out.

One row of METRICS is one metric: name, kind, help, labels, and where its values come from. Label values are traffic
labels and reasons only, so the number of series is bounded by the model, whatever the daemon does. Seconds and bytes
are base units; counters end in `_total` (the exposition adds it).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from netssmd.errors import OutputError

if TYPE_CHECKING:
    from netssmd.daemon.service import Service

Values = Iterable[tuple[tuple[str, ...], float]]


@dataclass(frozen=True, slots=True)
class Row:
    """One metric. `values` gives (label values, value) pairs."""

    name: str
    kind: str  # counter | gauge
    help: str
    labels: tuple[str, ...]
    values: Callable[[Service], Values]


def _one(value: float) -> Values:
    return [((), value)]


def _by_label(counts: dict[str, int]) -> Values:
    return [((label,), value) for label, value in sorted(counts.items())]


METRICS: tuple[Row, ...] = (
    Row(
        "netssmd_packets",
        "counter",
        "Packets sent to the sinks.",
        ("label",),
        lambda s: _by_label(s.output.counters.packets),
    ),
    Row(
        "netssmd_bytes",
        "counter",
        "Bytes of these packets on the wire.",
        ("label",),
        lambda s: _by_label(s.output.counters.bytes),
    ),
    Row("netssmd_sessions_active", "gauge", "Sessions that hold a slot.", ("label",), lambda s: _by_label(s.active())),
    Row("netssmd_sessions_started", "counter", "Sessions started.", ("label",), lambda s: _by_label(s.started())),
    Row(
        "netssmd_sessions_ended",
        "counter",
        "Sessions ended, by what ended them.",
        ("label", "reason"),
        lambda s: [(key, value) for key, value in sorted(s.ended().items())],
    ),
    Row(
        "netssmd_arrivals_deferred",
        "counter",
        "Arrivals that waited for a free place.",
        (),
        lambda s: _one(s.board.arrivals.deferred),
    ),
    Row("netssmd_tokens", "counter", "Tokens drawn or forced.", (), lambda s: _one(s.sum("tokens"))),
    Row(
        "netssmd_steps",
        "counter",
        "Backend steps; tokens by steps is the mean batch.",
        (),
        lambda s: _one(s.sum("steps")),
    ),
    Row(
        "netssmd_step_seconds",
        "counter",
        "Time in steps, codec and rendering included, over all threads.",
        (),
        lambda s: _one(s.sum("step_ns") / 1e9),
    ),
    Row(
        "netssmd_deficit_seconds",
        "counter",
        "How far session clocks were moved because generation could not keep up.",
        (),
        lambda s: _one(s.sum("deficit_ns") / 1e9),
    ),
    Row(
        "netssmd_throttled_seconds",
        "counter",
        "How far session clocks were moved by the cap on the packet rate.",
        (),
        lambda s: _one(s.sum("throttled_ns") / 1e9),
    ),
    Row(
        "netssmd_lateness_seconds",
        "gauge",
        "How long after its time the last packet left.",
        (),
        lambda s: _one(s.output.counters.lateness_ns / 1e9),
    ),
    Row(
        "netssmd_lateness_max_seconds",
        "gauge",
        "The same, worst since the start.",
        (),
        lambda s: _one(s.output.counters.lateness_max_ns / 1e9),
    ),
    Row(
        "netssmd_late_packets",
        "counter",
        "Packets that left more than 10 ms after their time.",
        (),
        lambda s: _one(s.output.counters.late),
    ),
    Row(
        "netssmd_held_packets", "gauge", "Packets that wait for their time.", (), lambda s: _one(s.output.counters.held)
    ),
    Row(
        "netssmd_inbox_batches",
        "gauge",
        "Batches between engine and output threads.",
        (),
        lambda s: _one(s.board.inbox.qsize()),
    ),
    Row("netssmd_files_written", "counter", "Capture files completed.", (), lambda s: _one(s.files_written())),
    Row(
        "netssmd_packets_dropped",
        "counter",
        "Packets that the file sink could not write.",
        (),
        lambda s: _one(s.packets_dropped()),
    ),
    Row(
        "netssmd_addresses_reused",
        "counter",
        "Addresses dealt again because a pool was used up.",
        (),
        lambda s: _one(s.sum("reused")),
    ),
    Row(
        "netssmd_build_info",
        "gauge",
        "Always 1; version, model and backend as labels.",
        ("version", "model", "backend"),
        lambda s: [(s.build_info(), 1)],
    ),
)


class ServiceCollector(Collector):
    """Reads the counters at the moment of the scrape."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        for row in METRICS:
            kind: Any = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            family = kind(row.name, row.help, labels=row.labels)
            for labels, value in row.values(self._service):
                family.add_metric(list(labels), value)
            yield family


@dataclass(slots=True)
class MetricsServer:
    """A running HTTP server; `close` stops it."""

    url: str
    _server: Any
    _thread: threading.Thread

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2)


def serve(service: Service, address: str, port: int) -> MetricsServer:
    """Serve /metrics on its own thread. Raises OutputError if the port is taken."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service))
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise OutputError(
            f"metrics: {address}:{port} cannot be opened: {error.strerror}; "
            "set metrics.port to a free port, or to 0 for none"
        ) from None
    return MetricsServer(f"http://{address}:{server.server_port}/metrics", server, thread)
