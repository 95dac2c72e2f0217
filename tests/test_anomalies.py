"""Planted defects: each is caught by the checker as often as it was planted, referees catch what the matrix says, and
the daemon's dial plants what its ledger tells."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from netssmd.daemon.config import parse
from netssmd.daemon.service import Service
from netssmd.engine.opening import open_model
from netssmd.errors import ConfigError
from netssmd.packet.compliance import FINDINGS, INDEX, Checker
from netssmd.packet.mutants import BY_NAME, LIVE, MUTANTS
from netssmd.packet.pcap import read_capture

# What each referee catches, as `python tools/mutants.py` printed it (tshark 4.0.17, Suricata 7.0.10).
CAUGHT = {
    "tshark": {
        "lost_segment", "syn_in_established", "rst_in_established", "rst_and_on", "null_flags", "syn_fin", "far_ack",
        "beyond_window", "late_data", "resent", "resent_for_ever", "mss_outside", "sack_unasked", "option_length_zero",
        "ip_version", "ip_checksum", "ip_length", "tcp_checksum", "udp_checksum", "icmp_checksum", "udp_length",
    },
    "complete": {"lost_syn_ack"},
    "suricata": {
        "lost_segment", "lost_syn_ack", "syn_in_established", "rst_in_established", "rst_and_on", "null_flags",
        "syn_fin", "far_ack", "old_sequence", "beyond_window", "stamp_back", "option_length_zero", "ip_version",
        "ip_length", "tcp_checksum",
    },
    "capinfos": {"time_back"},
}  # fmt: skip
NEEDS = {"tshark": "tshark", "complete": "tshark", "capinfos": "capinfos", "suricata": "suricata"}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent.parent / "tools")
        return importlib.import_module("mutants")


def test_every_mutant_is_caught_as_often_as_it_was_planted(tool: ModuleType, tmp_path: Path) -> None:
    packets = tool.base()
    tool.write(tmp_path / "base.pcap", packets)
    clean = tool.findings(tmp_path / "base.pcap")
    assert not [name for name, count in clean.items() if count and not FINDINGS[INDEX[name]].good]
    for mutant in MUTANTS:
        assert tool.write(tmp_path / "m.pcap", packets, mutant, 8) == 8, mutant.name
        gained = tool.findings(tmp_path / "m.pcap")[mutant.finding] - clean[mutant.finding]
        assert (-gained if mutant.finding == "handshake" else gained) >= 8, mutant.name


@pytest.mark.parametrize("who", CAUGHT)
def test_referees_catch_what_the_matrix_says(who: str, tool: ModuleType, tmp_path: Path) -> None:
    program = NEEDS[who]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    packets = tool.base(15)
    ask = {
        "tshark": lambda path: tool.tshark(path)[0],
        "complete": lambda path: tool.Counter({"incomplete": -tool.tshark(path)[1]}),
        "suricata": tool.suricata_says,
        "capinfos": tool.out_of_order,
    }[who]
    tool.write(tmp_path / "base.pcap", packets)
    clean = ask(tmp_path / "base.pcap")
    assert not any(count > 0 for count in clean.values()), clean
    some = [m.name for m in MUTANTS if m.name in CAUGHT[who]]
    others = [m.name for m in MUTANTS if m.name not in CAUGHT[who]]
    if who == "suricata":  # it takes a second to start
        some, others = some[::4], others[:2]
    elif who != "capinfos":
        some, others = some[::2], others[::3]
    for name in (*some, *others):
        tool.write(tmp_path / "m.pcap", packets, BY_NAME[name], 4)
        assert bool(tool.more(ask(tmp_path / "m.pcap"), clean)) == (name in CAUGHT[who]), name


CONFIG = """
[engine]
pace = "topspeed"
threads = 1
[traffic]
seed = 5
concurrency = 4
sessions = 6
session_packets = 400
labels = {{ redis = 1, ssh = 1 }}
[output]
directory = "{}"
free_disk = "0MB"
slice_duration = "0s"
[metrics]
port = 0
[compliance]
mode = "guide"
[compliance.anomalies]
syn_in_established = 0.05
lost_segment = 0.03
tcp_checksum = 0.02
"""


def test_the_dial_plants_what_the_ledger_tells(tmp_path: Path) -> None:
    service = Service(parse(CONFIG.format(tmp_path), "test"), open_model())
    asyncio.run(service.run())
    (path,) = tmp_path.glob("*.pcap")
    checker, raised = Checker(), {}
    for packet in read_capture(io.BytesIO(path.read_bytes())):
        raised.setdefault(packet.ts_ns, []).append(checker.observe_bytes(*packet))
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    sessions = [line for line in lines if line["type"] == "session"]
    told = [entry for session in sessions for flow in session["flows"] for entry in flow.get("planted", [])]
    counts = {name: sum(session.get("planted", {}).get(name, 0) for session in sessions) for name in BY_NAME}
    assert {name: count for name, count in counts.items() if count} == dict(service.output.counters.planted)
    assert all(counts[name] > 0 for name in ("syn_in_established", "lost_segment", "tcp_checksum"))
    assert len(told) == sum(counts.values())
    for ts_ns, name in told:
        if name != "lost_segment":  # a gap shows when the same side speaks again
            bit = 1 << INDEX[BY_NAME[name].finding]
            assert any(found & bit for found in raised[ts_ns]), (name, ts_ns)
    totals = checker.finish()
    assert totals.in_packets[INDEX["unexpected_syn"]] >= counts["syn_in_established"]
    assert totals.in_packets[INDEX["tcp_checksum"]] == counts["tcp_checksum"]
    assert totals.in_packets[INDEX["gap"]] > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [("syn_in_establishd = 0.1", "did you mean syn_in_established?"),
     ("far_ack = 2", "anomalies.far_ack: found 2; write 0"),
     ("time_back = 0.1", "no such defect")],
)  # fmt: skip
def test_mistakes_on_the_dial(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(f"[compliance.anomalies]\n{text}\n", "test")
    assert message in str(error.value)


def test_live_mutants_are_those_of_one_packet() -> None:
    assert set(BY_NAME) - set(LIVE) == {"resent", "resent_for_ever", "time_back"}
    assert len({mutant.finding for mutant in MUTANTS}) > 24
