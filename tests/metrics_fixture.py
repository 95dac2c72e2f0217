"""A service that has not begun, with counters that are the same each time: what the golden exposition shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine_fakes import FakeBackend
from prometheus_client import generate_latest

from netssmd.daemon.config import parse
from netssmd.daemon.metrics import registry
from netssmd.daemon.service import Service
from netssmd.engine.session import Session, Temperatures


class IdleModel:
    """A model that makes no session."""

    name, hash, labels = "fake", "0" * 64, ("ssh", "web")

    def backend(self, slots: int) -> FakeBackend:
        return FakeBackend(slots)

    def temperatures(self, default: float, by_field: dict[str, float]) -> Temperatures:
        return Temperatures(default)

    def session(self, *arguments: Any, **options: Any) -> Session:
        raise AssertionError("never asked for")


CONFIG = """
[engine]
threads = 2
[traffic]
seed = 7
concurrency = 4
[output]
directory = "{}"
free_disk = "0MB"
[snapshot]
enabled = false
[metrics]
port = 0
"""


def fixed_service(folder: Path) -> Service:
    """Two engine lanes and an output lane, not started."""
    service = Service(parse(CONFIG.format(folder), "fixture"), IdleModel())
    service._build(0)
    assert service.ring
    service.ring.close()
    for index, lane in enumerate(service.lanes):
        counters = lane.counters
        for label, started, active in (("web", 4, 2), ("ssh", 3, index)):
            counters.started[label] = started
            counters.active[label] = active
            counters.ended[label, "end"] = started - active
        counters.tokens, counters.steps, counters.ahead_ns = 1000, 2, (index + 1) * 250_000_000
        for step_ns, sessions in ((2_500_000, 16), (70_000_000, 3)):
            counters.step_times.observe(step_ns)
            counters.batches.observe(sessions)
        counters.malformed["cut"] = 1 + index
        counters.flows["fin_both"], counters.flow_findings["handshake"] = 5, 4 + index
        counters.guide.interventions[2], counters.guide.removed[2] = 3, 2.5
        counters.deficit_ns, counters.throttled_ns, counters.reused = 1_500_000_000, 2_000_000, index
    output = service.output.counters
    for label, packets, size in (("web", 1234, 1_000_000), ("ssh", 99, 12_345)):
        output.packets[label], output.bytes[label], output.flows[label] = packets, size, packets // 50
    output.findings["gap"], output.findings["retransmission"] = 3, 12
    output.late, output.lateness_ns, output.lateness_max_ns, output.held = 3, 1_500_000, 20_000_000, 17
    return service


def exposition(service: Service) -> str:
    """In Prometheus' text format; the process's own metrics and the disk's free space are left out."""
    text = generate_latest(registry(service, process=False)).decode()
    return "".join(line for line in text.splitlines(True) if not line.startswith("netssmd_disk_free_bytes "))
