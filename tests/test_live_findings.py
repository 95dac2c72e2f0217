"""Findings while the daemon runs: what it counts is what `check` finds in its captures afterwards.

The model is the embedded one at a temperature that is too high, so that there is something to find.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from netssmd.daemon.config import parse
from netssmd.daemon.events import Event
from netssmd.daemon.service import Service
from netssmd.daemon.status import status_of
from netssmd.engine.opening import open_model
from netssmd.packet.compliance import ENDINGS, FINDINGS, INDEX, Checker, Totals
from netssmd.packet.pcap import read_capture

CONFIG = """
[engine]
pace = "topspeed"
threads = 2
[traffic]
seed = 5
concurrency = 4
sessions = 8
session_packets = 600
temperature = 1.4
labels = {{ web = 1, ssh = 1, redis = 1 }}
[output]
directory = "{}"
free_disk = "0MB"
slice_packets = 1000
[metrics]
port = 0
"""


def run(folder: Path, more: str = "") -> tuple[Service, list[Event]]:
    service = Service(parse(CONFIG.format(folder) + more, "test"), open_model())
    heard: list[Event] = []

    async def listen() -> None:
        with service.events.subscribe("finding") as events:
            async for event in events:
                heard.append(event)

    async def both() -> None:
        listener = asyncio.create_task(listen())
        await asyncio.sleep(0)
        await service.run()
        await listener

    asyncio.run(both())
    return service, heard


def checked(folder: Path) -> Totals:
    checker = Checker()
    for path in sorted(folder.glob("*.pcap")):
        for packet in read_capture(io.BytesIO(path.read_bytes())):
            checker.observe_bytes(*packet)
    return checker.finish()


def ledger_sessions(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return [line for line in lines if line["type"] == "session"]


def test_metrics_ledger_and_events_say_what_check_says(tmp_path: Path) -> None:
    planted = "".join(f"{name} = 0.01\n" for name in ("syn_in_established", "lost_segment", "far_ack", "beyond_window"))
    service, heard = run(tmp_path, f"[compliance.anomalies]\n{planted}")
    totals = checked(tmp_path)
    by_packet = {f.name: n for f, n in zip(FINDINGS, totals.in_packets) if n}
    assert len(by_packet) > 3
    assert dict(service.output.counters.findings) == by_packet

    flows = service.counters.flow_findings()
    # Another session's DNS answer may name a flow's responder in the capture.
    of_one_session = [f for f in FINDINGS if f.by_flow and f.name != "dns_before_connect"]
    assert {f.name: totals.in_flows[INDEX[f.name]] for f in of_one_session} == {
        f.name: flows[f.name] for f in of_one_session
    }
    assert service.counters.flows() == totals.endings and set(service.counters.flows()) == set(ENDINGS)

    sessions = ledger_sessions(tmp_path)
    in_sessions: Counter[str] = Counter()
    in_flows: Counter[str] = Counter()
    for session in sessions:
        in_sessions.update(session["findings"])
        for flow in session["flows"]:
            in_flows.update(flow.get("findings", {}))
    assert in_sessions == by_packet == in_flows
    assert len(list(tmp_path.glob("*.pcap"))) > 1  # each slice has its own

    assert service.events.emitted["finding"] == sum(by_packet.values()) >= len(heard) > 0
    assert {event.fields["finding"] for event in heard} <= set(by_packet)
    assert {event.fields["session"] for event in heard} <= {session["session"] for session in sessions}

    status = status_of(service).compliance
    assert (status.check, status.findings, status.flows) == (True, by_packet, totals.endings)
    assert status.handshakes == flows["handshake"]


def test_without_the_checker_nothing_is_counted_and_the_packets_are_the_same(tmp_path: Path) -> None:
    for name in ("with", "without"):
        service, _ = run(tmp_path / name, f"[compliance]\ncheck = {str(name == 'with').lower()}\n")
    assert not service.output.counters.findings and not service.counters.flows()
    assert not service.events.emitted["finding"]
    assert not any(session["findings"] for session in ledger_sessions(tmp_path / "without"))
    with_it, without = checked(tmp_path / "with"), checked(tmp_path / "without")
    assert with_it.in_packets == without.in_packets and with_it.packets == without.packets > 0
