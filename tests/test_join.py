"""Ledgers beside what an independent tool (nfstream) finds in the captures: the same flows, packets, bytes and sides,
all of them, from `generate` and from the daemon over many slices. The label of a flow is checked where something other
than the ledger knows it: the manifest of a generated folder, the daemon's own counters.

nfstream passes over ARP and over IP fragments; the ledger tells fragments as flows with ports 0.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections import Counter
from pathlib import Path

import pytest

from netssmd import cli
from netssmd.daemon.config import parse
from netssmd.daemon.service import Service
from netssmd.engine.opening import open_model
from netssmd.output.ledger_reader import Reading, connections, ledgers
from netssmd.packet.pcap import PcapWriter, read_capture
from netssmd.packet.wire import TCP, UDP

NFStreamer = pytest.importorskip("nfstream", reason="needs nfstream (extra test)").NFStreamer

End = tuple[str, int]
Key = tuple[int, End, End]
Counts = dict[End, list[int]]  # by side: packets, bytes


def found(capture: Path) -> dict[Key, Counts]:
    """nfstream's flows, without time-outs, lengths from the link header on."""
    flows: dict[Key, Counts] = {}
    never = 10**8
    for f in NFStreamer(str(capture), idle_timeout=never, active_timeout=never, n_dissections=0, n_meters=1):
        a, b = (f.src_ip, f.src_port), (f.dst_ip, f.dst_port)
        key = (f.protocol, min(a, b), max(a, b))
        assert key not in flows
        flows[key] = {a: [f.src2dst_packets, f.src2dst_bytes], b: [f.dst2src_packets, f.dst2src_bytes]}
    return flows


def told(path: Path) -> tuple[dict[Key, Counts], int, Counter[str | None]]:
    """The ledgers' flows; packets told as fragments or without a five-tuple; packets by label."""
    flows: dict[Key, Counts] = {}
    aside, labels = 0, Counter[str | None]()
    for c in connections(ledgers(path), Reading()):
        f = c.flow
        labels[c.session.label] += sum(f.packets)
        if f.proto is None or (f.proto in (TCP, UDP) and not f.sport and not f.dport):
            aside += sum(f.packets)
            continue
        a, b = (f.src, f.sport), (f.dst, f.dport)
        flow = flows.setdefault((f.proto, min(a, b), max(a, b)), {})  # two sessions may use the same five-tuple
        for end, packets, size in ((a, f.packets[0], f.bytes[0]), (b, f.packets[1], f.bytes[1])):
            flow[end] = [x + y for x, y in zip(flow.get(end, [0, 0]), (packets, size))]
    return flows, aside, labels


def merged(folder: Path, to: Path) -> Path:
    """All slices of a folder in one capture, so that nfstream sees flows whole."""
    with open(to, "wb") as out:
        writer = PcapWriter(out)
        for path in sorted(folder.glob("*.pcap")):
            for packet in read_capture(io.BytesIO(path.read_bytes())):
                writer.write(packet)
        writer.flush()
    return to


def test_generated_files_join(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    labels = ["attack-synscan", "call-webrtc", "dns", "web", "iot-mqtt"]
    arguments = [x for label in labels for x in ("--label", label)]
    assert cli.run(["generate", *arguments, "--packets", "400", "--seed", "4", "-o", f"{folder}/"]) == 0
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    assert {row["label"] for row in rows} == set(labels)
    for row in rows:
        capture = folder / row["file"]
        flows, aside, by_label = told(capture)
        theirs = found(capture)
        assert flows == theirs and flows
        assert by_label == {row["label"]: int(row["packets"])}
        assert sum(side[0] for flow in theirs.values() for side in flow.values()) + aside == int(row["packets"])


CONFIG = """
[engine]
pace = "topspeed"
[traffic]
seed = 5
concurrency = 12
sessions = 24
session_packets = 300
ramp = "1s"
[output]
directory = "{}"
slice_duration = "2s"
ring_files = 0
free_disk = "0MB"
[metrics]
port = 0
"""


def test_the_daemons_slices_join(tmp_path: Path) -> None:
    service = Service(parse(CONFIG.format(tmp_path / "out"), "test"), open_model())
    report = asyncio.run(service.run())
    assert report.files > 3
    flows, aside, by_label = told(tmp_path / "out")
    theirs = found(merged(tmp_path / "out", tmp_path / "all.pcap"))
    assert flows == theirs and len(flows) > 100
    assert by_label == service.output.counters.packets
    assert sum(by_label.values()) == report.packets
    assert sum(side[0] for flow in theirs.values() for side in flow.values()) + aside == report.packets
    slices = [connections([path], Reading()) for path in ledgers(tmp_path / "out")]
    rows = Counter((c.session.session, c.flow.five_tuple) for found in slices for c in found)
    assert max(rows.values()) > 1  # some flow goes over several slices
