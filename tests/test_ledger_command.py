"""`netssmd ledger`: ledgers to tables. Flows over slices are one row, bad input one line, memory bounded."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from pathlib import Path

import msgspec
import pytest
from frames import ethernet, ipv4, tcp

from netssmd import cli
from netssmd.errors import LedgerError
from netssmd.output.flow_tables import CONN_LOG, conn_state
from netssmd.output.ledger import Ledger, SessionMeta, measure
from netssmd.output.ledger_reader import Connection, Reading, connections
from netssmd.output.ledger_schema import Line

ROOT = Path(__file__).parent.parent
WEB, SCAN = SessionMeta("7-0", "web", {"rtt_ms": 20.0}, 9, "ab"), SessionMeta("7-1", "attack-synscan", attack=True)
A, B = bytes([198, 18, 0, 1]), bytes([198, 19, 0, 2])
TCP, UDP, PING = (6, A, 40000, B, 443), (17, A, 50000, B, 53), (1, A, 0, B, 0)
SYN, SYN_ACK, ACK, DATA, FIN, RST = (1 << i for i in range(6))
SECOND = 1_000_000_000
T0 = 1_769_903_940 * SECOND


def slices(folder: Path) -> Path:
    """Three slices: a TLS flow over all of them, a refused SYN, a lookup without an answer, a ping, an ARP request."""
    book = Ledger("embedded", "ab", clock=lambda: T0)
    says = [
        [(WEB, 0, TCP, 0, 74, 60, 0, SYN), (WEB, 1, TCP, 1, 74, 60, 0, SYN_ACK), (WEB, 2, TCP, 0, 66, 52, 0, ACK),
         (WEB, 3, None, 0, 42), (SCAN, 4, (6, A, 1, B, 2), 0, 54, 40, 0, SYN),
         (SCAN, 5, (6, A, 1, B, 2), 1, 54, 40, 0, RST)],
        [(WEB, 10, TCP, 0, 583, 569, 517, DATA), (WEB, 11, TCP, 1, 1514, 1500, 1448, DATA),
         (SCAN, 12, UDP, 0, 70, 56, 28, DATA)],
        [(WEB, 20, TCP, 1, 66, 52, 0, FIN), (WEB, 21, TCP, 0, 66, 52, 0, FIN), (SCAN, 22, PING, 0, 98, 84, 56, 0)],
    ]  # fmt: skip
    for number, packets in enumerate(says, 1):
        book.clear()
        for session, second, flow, direction, *sizes in packets:
            found = ("retransmission",) if second in (0, 10, 21) else ()
            book.observe(session, T0 + second * SECOND + 1234, flow, direction, sizes[0], found, *sizes[1:])
        if number == 3:
            book.end(WEB)
        with open(folder / f"netssmd_{number:05d}_20260131235900.jsonl", "wb") as file:
            book.write(file, "x.pcap")
    return folder


def run(*arguments: object) -> int:
    return cli.run(["ledger", *map(str, arguments)])


def test_csv_has_one_row_for_a_flow_over_several_slices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(slices(tmp_path)) == 0
    out, said = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(r["session"], r["proto"], r["conn_state"]) for r in rows] == [
        ("7-0", "6", "SF"), ("7-0", "", "OTH"), ("7-1", "6", "REJ"), ("7-1", "17", "S0"), ("7-1", "1", "OTH"),
    ]  # fmt: skip
    assert rows[0] == {
        "session": "7-0", "label": "web", "attack": "0", "proto": "6", "src": "198.18.0.1", "sport": "40000",
        "dst": "198.19.0.2", "dport": "443", "first_ts_ns": str(T0 + 1234), "last_ts_ns": str(T0 + 21 * SECOND + 1234),
        "orig_packets": "4", "resp_packets": "3", "orig_bytes": "789", "resp_bytes": "1654", "orig_ip_bytes": "733",
        "resp_ip_bytes": "1612",
        "orig_payload_bytes": "517", "resp_payload_bytes": "1448", "history": "ShADdfF", "conn_state": "SF",
        "findings": "3", "planted": "0", "session_complete": "1", "rtt_ms": "20.0", "rate_mbit": "",
        "loss_pct": "", "seed": "9", "model_hash": "ab",
    }  # fmt: skip
    assert rows[2]["session_complete"] == "0" and said == "5 flows of 3 ledgers\n"


def test_conn_log_is_read_by_its_header(tmp_path: Path) -> None:
    out = tmp_path / "conn.log"
    assert run(slices(tmp_path), "--to", "conn.log", "-o", out) == 0
    lines = out.read_text().splitlines()
    assert lines[0] == "#separator \\x09"
    names = next(line for line in lines if line.startswith("#fields")).split("\t")[1:]
    types = next(line for line in lines if line.startswith("#types")).split("\t")[1:]
    assert names[:12] == [
        "ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto", "service", "duration", "orig_bytes",
        "resp_bytes", "conn_state",
    ]  # fmt: skip
    assert len(names) == len(types) == len(CONN_LOG)
    rows = [dict(zip(names, line.split("\t"), strict=True)) for line in lines if not line.startswith("#")]
    assert [(r["proto"], r["conn_state"], r["label"], r["attack"]) for r in rows] == [
        ("tcp", "SF", "web", "F"), ("tcp", "REJ", "attack-synscan", "T"), ("udp", "S0", "attack-synscan", "T"),
        ("icmp", "OTH", "attack-synscan", "T"),
    ]  # fmt: skip
    assert rows[0]["ts"] == "1769903940.000001" and rows[0]["duration"] == "21.000000"
    assert (rows[0]["orig_bytes"], rows[0]["orig_pkts"], rows[0]["resp_ip_bytes"]) == ("517", "4", "1612")
    assert all(len(r["uid"]) == 18 for r in rows) and len({r["uid"] for r in rows}) == 4
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl") == ["conn.log"]


def test_cicflow_has_its_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(slices(tmp_path), "--to", "cicflow") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 4
    first = rows[0]
    assert first["Flow ID"] == "198.18.0.1-198.19.0.2-40000-443-6"
    assert (first["Label"], first["Traffic"]) == ("BENIGN", "web")
    assert (first["Timestamp"], first["Flow Duration"]) == ("31/01/2026 23:59:00", "21000000")
    assert (first["Total Fwd Packets"], first["Total Length of Bwd Packets"]) == ("4", "1448")
    assert float(first["Flow Packets/s"]) == pytest.approx(7 / 21)
    assert rows[3]["Flow Bytes/s"] == "Infinity" and rows[3]["Label"] == "attack-synscan"


@pytest.mark.parametrize(
    ("history", "state"),
    [
        ("S", "S0"), ("Sh", "S1"), ("ShADad", "S1"), ("ShADadFf", "SF"), ("ShADadfF", "SF"), ("ShADadF", "S2"),
        ("ShADadf", "S3"), ("Sr", "REJ"), ("ShADadR", "RSTO"), ("ShADadr", "RSTR"), ("ShADadfR", "RSTO"),
        ("SR", "RSTOS0"), ("hr", "RSTRH"), ("SF", "SH"), ("hf", "SHR"), ("Dd", "OTH"), ("ADad", "OTH"), ("", "OTH"),
        ("ShR", "RSTO"), ("ShAr", "RSTR"),
    ],
)  # fmt: skip
def test_conn_state_of_tcp(history: str, state: str) -> None:
    assert conn_state(history, 6) == state


def test_conn_state_of_others() -> None:
    assert [conn_state(h, 17) for h in ("Dd", "D", "d", "")] == ["SF", "S0", "SHR", "OTH"]
    assert conn_state("", 1) == conn_state("", None) == "OTH"


def test_gzip_and_the_name_of_the_capture_do_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = slices(tmp_path) / "netssmd_00001_20260131235900.jsonl"
    run(whole)
    plain = capsys.readouterr().out
    packed = tmp_path / "other" / "x.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(whole.read_bytes()))
    run(packed.parent)
    assert capsys.readouterr().out == plain
    run(whole.with_suffix(".pcap"))
    assert capsys.readouterr().out == plain


def pieces(files: list[Path], most_flows: int) -> list[Connection]:
    return list(connections(files, Reading(), most_flows))


def test_memory_is_bounded_and_no_packet_is_lost(tmp_path: Path) -> None:
    book = Ledger(clock=lambda: T0)
    files = []
    for number in range(6):
        book.clear()
        for session in range(number, number + 5):
            meta = SessionMeta(str(session))
            for flow in range(4):
                book.observe(meta, T0 + number, (6, A, flow, B, session), 0, 60)
        files.append(tmp_path / f"{number}.jsonl")
        with open(files[-1], "wb") as file:
            book.write(file, "x.pcap")
    whole, cut = pieces(files, 1000), pieces(files, 8)
    assert len(whole) == 40 < len(cut)
    for found in (whole, cut):
        assert sum(c.flow.packets[0] for c in found) == 6 * 5 * 4
        assert sum(c.flow.bytes[0] for c in found) == 6 * 5 * 4 * 60


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("hello\n", "line 1: JSON is malformed"),
        ('{"type":"session"}\n', "line 1: Object missing required field"),
        ('{"type":"header","schema":1}\n', "missing required field"),
        ('{"type":"other"}\n', "line 1: Invalid value 'other'"),
        ("\xff\xfe", "line 1:"),
        (None, "cannot be read: No such file"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, says: str) -> None:
    path = tmp_path / "x.jsonl"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    assert run(path) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"netssmd: {path}: ") and says in error and error.count("\n") == 1


def test_a_later_schema_and_damaged_gzip_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = slices(tmp_path) / "netssmd_00001_20260131235900.jsonl"
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes() * 50)[:-40])
    assert run(packed) == 1 and "netssmd: " in capsys.readouterr().err
    path.write_bytes(path.read_bytes().replace(b'"schema":1', b'"schema":2'))
    assert run(path) == 1 and "schema 2: this version reads schema 1" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty") == 1 and "holds no ledgers" in capsys.readouterr().err


def test_lines_of_a_later_version_are_read(tmp_path: Path) -> None:
    path = slices(tmp_path) / "netssmd_00003_20260131235900.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"history"', b'"moon":"full","history"'))
    with pytest.raises(LedgerError):
        pieces([path.with_name("none.jsonl")], 9)
    assert len(pieces([path], 9)) == 2


def test_documents_are_those_of_the_schema() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import ledger as tool
    finally:
        sys.path.pop(0)
    again = "run `python tools/ledger.py` and look at the difference"
    assert tool.DOCUMENT.read_text() == tool.document(tool.DOCUMENT.read_text()), again
    assert tool.SCHEMA.read_text() == tool.schema(), again


def undocumented(line: dict[str, object]) -> set[str]:
    """Fields of a line that the schema does not tell of."""
    schema = msgspec.json.schema(Line)["$defs"]
    kind = {"header": "Header", "session": "SessionLine", "omitted": "Omitted"}[str(line["type"])]
    unknown = set(line) - set(schema[kind]["properties"])
    for flow in line.get("flows", []):  # type: ignore[attr-defined]
        unknown |= set(flow) - set(schema["FlowRow"]["properties"])
    return unknown | set(line.get("flows_omitted") or {}) - set(schema["Counts"]["properties"])  # type: ignore[call-overload]


def test_every_field_of_real_output_is_documented(tmp_path: Path) -> None:
    output = str(tmp_path / "x.pcap")
    assert cli.run(["generate", "--label", "dns", "--label", "web", "--packets", "40", "-o", output]) == 0
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and lines[1]["flows"]
    for line in lines:
        assert not undocumented(line)
        msgspec.convert(line, Line)
    assert undocumented({"type": "omitted", "moon": 1}) == {"moon"}


def test_what_a_frame_did() -> None:
    def frame(flags: int, payload: int) -> bytes:
        return ethernet(A, B, ipv4(A, B, 6, tcp(1, 2, flags, 3, 4, payload=bytes(payload))))

    for flags, payload, did in (
        (2, 0, SYN), (18, 0, SYN_ACK), (16, 0, ACK), (24, 5, DATA), (17, 5, DATA | FIN), (4, 0, RST),
    ):  # fmt: skip
        data = frame(flags, payload)
        assert measure(data, len(data)) == (40 + payload, payload, did)
    assert measure(b"\0" * 60, 60) == (0, 0, 0)
