"""kill -9 for real: what is under a final name is whole, and its ledger names every packet's flow and session."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_model import tiny_model

from netssmd.output.ledger import Ledger, SessionMeta
from netssmd.output.pcap_ring import PcapRing
from netssmd.packet.pcap import Packet

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import kills


def test_killed_at_random_moments(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    directory = tmp_path / "captures"
    assert kills.kills(4, directory, tmp_path, "live", str(model)) == []
    ledgers = [json.loads(path.open().readline()) for path in directory.glob("*.jsonl")]
    assert any(header.get("recovered") for header in ledgers)


def left_behind(directory: Path, packets: int = 40) -> tuple[Path, Path]:
    """Part file and journal of a ring that is gone, a block every ten packets."""
    ring = PcapRing(directory, min_free_bytes=0, beside=(ledger := Ledger("m", "h")))
    sessions = [SessionMeta(f"1-{i}", "web", {"rtt_ms": 2.5}, i, "h", False, {"snapshot": "s"}) for i in range(3)]
    for i in range(packets):
        flow = (6, bytes(4), 1000 + i % 5, bytes(4), 80) if i % 7 else None
        ring.write(
            Packet(10**18 + i, bytes(60), 60),
            (sessions[i % 3], 10**18 + i, flow, i % 2, 60, ("gap",) * (i % 4 == 0), 46, 6, 8, ""),
        )
        if i == 25:
            ledger.end(replace(sessions[0], reason="packets", interventions={"window": 2}))
        if i % 10 == 9:
            ring.flush()
    part, journal = next(directory.glob(".*.part")), next(directory.glob(".*.journal"))
    whole = part.read_bytes(), journal.read_bytes()
    ring.close()
    for path in directory.iterdir():
        path.unlink()
    part.write_bytes(whole[0])
    journal.write_bytes(whole[1])
    return part, journal


def recovered(directory: Path) -> tuple[dict, list[dict]]:
    ring = PcapRing(directory, min_free_bytes=0, beside=Ledger("m", "h"))
    assert len(ring.recovered) == 1 and not list(directory.glob(".*.journal"))
    ring.close()
    header, *lines = map(json.loads, next(directory.glob("*.jsonl")).open())
    return header, lines


@pytest.mark.parametrize("lost", [0, 1, 75, 76, 77, 700, 1500])
def test_cut_anywhere_capture_and_ledger_agree(tmp_path: Path, lost: int) -> None:
    """The part file loses its end, or the journal does: what is left is told by both."""
    for which in (0, 1) if lost < 100 else (0,):
        folder = tmp_path / str(which)
        path = left_behind(folder)[which]
        path.write_bytes(path.read_bytes()[: path.stat().st_size - lost])
        header, lines = recovered(folder)
        assert header["recovered"] and header["packets"] == sum(line["packets"] for line in lines)
        assert header["packets"] == (next(folder.glob("*.pcap")).stat().st_size - 24) // 76
        assert header["packets"] % 10 == 0 and (lost or header["packets"] == 40)
        assert all(line["resumed"] == {"snapshot": "s"} and line["label"] == "web" for line in lines)
        if not lost:
            assert [line["complete"] for line in lines] == [True, False, False]
            assert [line.get("reason") for line in lines] == ["packets", None, None]
            assert [line.get("interventions") for line in lines] == [{"window": 2}, None, None]
            assert sum(line["findings"]["gap"] for line in lines) == 10


@pytest.mark.parametrize("damage", [lambda b: b[:3] + b"x" + b[4:], lambda b: b[:40] + b"\xff" + b[41:], lambda b: b""])
def test_without_a_usable_journal_the_packets_are_kept(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    _, journal = left_behind(tmp_path)
    journal.write_bytes(damage(journal.read_bytes()))
    header, lines = recovered(tmp_path)
    assert header["recovered"] and header["sessions"] is None and header["packets"] == 40 and not lines
