"""The ledger and the file sink: every packet is told once, by session and flow."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from netssmd import __version__
from netssmd.output.file_sink import FileSink
from netssmd.output.ledger import FlowKey, Ledger, SessionMeta, is_attack
from netssmd.output.pcap_ring import PcapRing
from netssmd.output.sink import NullSink, Outgoing, Sink
from netssmd.packet.pcap import Packet

WEB = SessionMeta("s1", "web", {"rtt_ms": 20.0, "loss_pct": 0.0}, 7, "abc")
CALL = SessionMeta("s2", "call-webrtc")
TCP4: FlowKey = (6, bytes([198, 18, 0, 1]), 40000, bytes([198, 18, 0, 2]), 443)
UDP6: FlowKey = (17, b"\x20\x01\x00\x02" + bytes(11) + b"\x01", 50000, b"\x20\x01\x00\x02" + bytes(11) + b"\x02", 3478)


def written(ledger: Ledger) -> list[dict[str, Any]]:
    file = io.BytesIO()
    ledger.write(file, "x.pcap")
    return [json.loads(line) for line in file.getvalue().splitlines()]


def ledger(**options: Any) -> Ledger:
    return Ledger("embedded", "abc", clock=lambda: 1_769_903_940_123_456_789, **options)


def test_lines_as_they_are_read() -> None:
    book = ledger(snaplen=96)
    book.observe(WEB, 100, TCP4, 0, 74, (), 60, 0, 1)
    book.observe(CALL, 110, UDP6, 1, 200, (), 186, 138, 8)
    book.observe(WEB, 120, TCP4, 1, 1514, ("unexpected_syn", "gap"), 1500, 1448, 8 + 16)
    book.observe(WEB, 115, None, 0, 42, ("ip_length",))
    book.end(WEB)
    assert written(book) == [
        {
            "type": "header",
            "schema": 1,
            "capture": "x.pcap",
            "model": "embedded",
            "model_hash": "abc",
            "version": __version__,
            "linktype": 1,
            "snaplen": 96,
            "created": "2026-01-31T23:59:00.123Z",
            "sessions": 2,
            "first_ts_ns": 100,
            "last_ts_ns": 120,
            "packets": 4,
            "bytes": 1830,
        },
        {
            "type": "session",
            "session": "s1",
            "label": "web",
            "attack": False,
            "conditions": {"rtt_ms": 20.0, "loss_pct": 0.0},
            "seed": 7,
            "model_hash": "abc",
            "first_ts_ns": 100,
            "last_ts_ns": 120,
            "packets": 3,
            "bytes": 1630,
            "complete": True,
            "findings": {"unexpected_syn": 1, "gap": 1, "ip_length": 1},
            "flows": [
                {
                    "proto": 6,
                    "src": "198.18.0.1",
                    "sport": 40000,
                    "dst": "198.18.0.2",
                    "dport": 443,
                    "packets": [1, 1],
                    "bytes": [74, 1514],
                    "ip_bytes": [60, 1500],
                    "payload_bytes": [0, 1448],
                    "first_ts_ns": 100,
                    "last_ts_ns": 120,
                    "history": "Sdf",
                    "findings": {"unexpected_syn": 1, "gap": 1},
                },
                {
                    "proto": None,
                    "packets": [1, 0],
                    "bytes": [42, 0],
                    "ip_bytes": [0, 0],
                    "payload_bytes": [0, 0],
                    "first_ts_ns": 115,
                    "last_ts_ns": 115,
                    "findings": {"ip_length": 1},
                },
            ],
            "flows_omitted": None,
        },
        {
            "type": "session",
            "session": "s2",
            "label": "call-webrtc",
            "attack": False,
            "conditions": {},
            "seed": 0,
            "model_hash": "",
            "first_ts_ns": 110,
            "last_ts_ns": 110,
            "packets": 1,
            "bytes": 200,
            "complete": False,
            "findings": {},
            "flows": [
                {
                    "proto": 17,
                    "src": "2001:2::1",
                    "sport": 50000,
                    "dst": "2001:2::2",
                    "dport": 3478,
                    "packets": [0, 1],
                    "bytes": [0, 200],
                    "ip_bytes": [0, 186],
                    "payload_bytes": [0, 138],
                    "first_ts_ns": 110,
                    "last_ts_ns": 110,
                    "history": "d",
                }
            ],
            "flows_omitted": None,
        },
    ]


def test_the_next_slice_starts_empty_and_tells_of_an_end() -> None:
    book = ledger()
    book.observe(WEB, 1, TCP4, 0, 60)
    book.clear()
    book.end(WEB)
    header, session = written(book)
    assert (header["packets"], header["first_ts_ns"]) == (0, None)
    assert (session["packets"], session["complete"], session["flows"]) == (0, True, [])
    book.clear()
    book.observe(WEB, 2, TCP4, 0, 60)
    assert written(book)[1]["complete"] is False


def flow(i: int) -> FlowKey:
    return (6, bytes([198, 18, 0, 1]), i & 0xFFFF, (i >> 16).to_bytes(4, "big"), 80)


def test_many_flows_are_one_line() -> None:
    for count in (255, 256, 257, 1000):
        book = ledger()
        for i in range(count):
            book.observe(WEB, i, flow(i), 0, 60)
        session = written(book)[1]
        assert [f["sport"] for f in session["flows"]] == list(range(count))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 1), st.integers(0, 99)), max_size=80))
def test_limits_omit_flows_and_sessions_but_no_packets(said: list[tuple[int, int, int, int]]) -> None:
    book = ledger(max_session_flows=3, max_flows=7, max_sessions=3)
    sessions = [SessionMeta(str(i)) for i in range(5)]
    for ts, (session, number, direction, size) in enumerate(said):
        book.observe(sessions[session], ts, flow(number), direction, size)
    header, *rest = written(book)
    told = [line for line in rest if line["type"] == "session"]
    assert header["packets"] == len(said) == sum(line["packets"] for line in rest)
    assert header["bytes"] == sum(s[3] for s in said) == sum(line["bytes"] for line in rest)
    counts = Counter(str(s[0]) for s in said)
    assert len(told) == header["sessions"] == min(3, len(counts))
    for line in told:
        assert line["packets"] == counts[line["session"]]
        assert len(line["flows"]) <= 3
        rows = [*line["flows"], *([line["flows_omitted"]] if line["flows_omitted"] else [])]
        assert sum(sum(row["packets"]) for row in rows) == line["packets"]
        assert min(row["first_ts_ns"] for row in rows) == line["first_ts_ns"]
    assert sum(len(line["flows"]) for line in told) <= 7
    assert [line["type"] for line in rest[len(told) :]] == (["omitted"] if len(counts) > 3 else [])


def test_memory_is_bounded() -> None:
    book = ledger(max_session_flows=1000, max_flows=2000, max_sessions=100)
    sessions = [SessionMeta(str(i)) for i in range(1000)]
    tracemalloc.start()
    peaks = []
    for turn in range(2):
        for i in range(20_000):
            book.observe(sessions[i % 1000], i, flow(turn * 20_000 + i), 0, 60)
            if i % 1000 == 999:
                book.end(sessions[(i // 1000) % 1000])
        peaks.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.2 + 10_000


def test_file_sink(tmp_path: Path) -> None:
    book = Ledger()
    sink: Sink = FileSink(PcapRing(tmp_path, max_seconds=10, min_free_bytes=0, beside=book), book)
    t0 = 1_769_903_940_000_000_000
    batch = [Outgoing(Packet(t0 + i * 10**9, bytes(60), 1000), WEB if i % 2 else CALL, TCP4, i % 2) for i in range(15)]
    sink.write(batch[:9])
    sink.write(batch[9:])
    sink.end_session(WEB)
    sink.flush(t0 + 15 * 10**9)
    assert (sink.packets, sink.dropped) == (15, 0)
    sink.rotate()
    sink.close()
    sink.close()
    ledgers = [[json.loads(line) for line in path.open()] for path in sorted(tmp_path.glob("*.jsonl"))]
    assert [[(line["session"], line["packets"], line["complete"]) for line in book[1:]] for book in ledgers] == [
        [("s2", 5, False), ("s1", 5, False)],
        [("s1", 2, True), ("s2", 3, False)],
    ]
    assert len(list(tmp_path.iterdir())) == 4


def test_null_sink() -> None:
    sink = NullSink()
    checked: Sink = sink
    checked.write([Outgoing(Packet(1, b"", 100), WEB, None, 0)] * 3)
    checked.end_session(WEB)
    checked.flush(1)
    checked.rotate()
    checked.close()
    assert (sink.packets, sink.bytes, sink.dropped) == (3, 300, 0)


def test_attacks_are_told_apart() -> None:
    assert is_attack("attack-synscan") and not is_attack("web") and not is_attack("Attack-x")
    assert is_attack("scan", ["scan", "attack-*"]) and not is_attack("attack-synscan", ())
    book = ledger()
    book.observe(SessionMeta("s", "attack-synscan", attack=True), 1, TCP4, 0, 60)
    assert written(book)[1]["attack"] is True
