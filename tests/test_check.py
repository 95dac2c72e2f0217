"""`netssmd check`: what it prints for good, bad, damaged and missing captures."""

import json
from pathlib import Path

import pytest
from traces import BYE, TALK, headers

from netssmd import cli
from netssmd.packet.pcap import Packet, PcapWriter
from netssmd.packet.render import render


def write(path: Path, lines: list[str]) -> str:
    with path.open("wb") as file:
        writer = PcapWriter(file)
        for i, line in enumerate(lines):
            writer.write(Packet(10**18 + i * 1_000_000, *render(headers(line))))
        writer.flush()
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    bad = [*TALK, "A SF 200 0", "A . 101 5000"]
    return [write(tmp_path / "good.pcap", TALK + BYE), write(tmp_path / "bad.pcap", bad)]


def test_table(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check", *files]) == 0
    out = capsys.readouterr().out
    assert "good.pcap: 10 packets, 1/1 handshakes, no defect" in out
    assert "bad.pcap: 9 packets, 1/1 handshakes, unexpected_syn 1, conflicting_flags 1, ack_beyond_sent 1, gap 1" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("  ")}
    assert rows["handshake"] == ["2", "100.0%", "2", "100.0%"]
    assert rows["conflicting_flags"] == ["1", "1", "50.0%", "1", "50.0%"]


def test_json(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check", "--json", "--flows", *files]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["total"]["findings"]["ack_beyond_sent"] == {"packets": 1, "flows": 1, "captures": 1}
    assert report["captures"][0]["endings"] == {"fin_both": 1, "fin_one": 0, "rst": 0, "open": 0}
    assert report["captures"][1]["flow_list"][0].startswith("198.18.0.1:40000 > 198.18.0.2:80  6/3 packets  fin_one")


def test_the_papers_tables(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check", "--paper", *files]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    cells = {row[1]: [cell.strip() for cell in row[2:] if cell.strip()] for row in rows}
    assert cells["Correct IPv4 version"] == ["100.0%"]
    assert cells["Conflicting flags"] == ["50.0%", "50.0%"]
    assert list(cells)[-5:] == ["MSS", "WScale", "SACKOK", "Timestamp", "SACK"]


def test_damage_is_told_and_the_rest_is_counted(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    whole = Path(files[0]).read_bytes()
    Path(files[0]).write_bytes(whole[:-10])
    assert cli.run(["check", *files, "nowhere.pcap"]) == 1
    captured = capsys.readouterr()
    assert "good.pcap: 9 packets" in captured.out
    assert "2 captures, 18 packets" in captured.out
    assert len(captured.err.splitlines()) == 2 and "nowhere.pcap" in captured.err
