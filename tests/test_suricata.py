"""What Suricata says of captures: read right, and able to complain."""

import json
from pathlib import Path

import pytest
from traces import HELLO, headers

from netssmd.learn.evaluate import suricata
from netssmd.packet.pcap import Packet, PcapWriter
from netssmd.packet.render import render
from netssmd.packet.wire import SYN

needs_suricata = pytest.mark.skipif(not suricata.installed(), reason="suricata is not installed (apt: backports)")


def capture(path: Path, lines: list[str]) -> Path:
    with path.open("wb") as file:
        writer = PcapWriter(file)
        for i, line in enumerate(lines):
            packet = headers(line)
            if packet.flags == SYN:
                packet.ack = 0
            if packet.payload_len:
                packet.body = b"GET /a HTTP/1.1\r\nHost: www.example.net\r\n\r\n".ljust(packet.payload_len, b"\n")
                packet.body = packet.body[: packet.payload_len]
            writer.write(Packet(10**18 + i * 10**7, *render(packet)))
        writer.flush()
    return path


@needs_suricata
def test_a_clean_capture_has_no_complaint_and_its_protocol_is_named(tmp_path: Path) -> None:
    seen = suricata.watch_file(capture(tmp_path / "a.pcap", [*HELLO, "A P. 1 101 100", "B . 101 101 0"]), tmp_path)
    assert seen.protocols == {("TCP", "http"): 1} and seen.names == [("198.18.0.2", "www.example.net")]
    assert not seen.events_of("decoder") and not seen.events_of("stream")
    assert seen.stats["pkts"] == 5 and seen.invalid_checksums == 0


@needs_suricata
def test_bad_checksums_cut_headers_and_impossible_streams_are_told(tmp_path: Path) -> None:
    path = capture(tmp_path / "a.pcap", [*HELLO, "A P. 1 101 100", "B . 101 999999 0"])
    assert suricata.watch_file(path, tmp_path).events_of("stream")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of the last TCP header
    path.write_bytes(data)
    assert suricata.watch_file(path, tmp_path).invalid_checksums == 1
    data[-40 + 3] += 200  # the IP length exceeds the frame
    path.write_bytes(data)
    assert suricata.watch_file(path, tmp_path).events_of("decoder") == {"decoder.ipv4.trunc_pkt": 1}


def test_events_are_read_without_a_last_line_that_is_cut(tmp_path: Path) -> None:
    events = [
        {"event_type": "anomaly", "anomaly": {"type": "decode", "event": "decoder.udp.hlen_trunc"}},
        {"event_type": "anomaly", "app_proto": "http", "anomaly": {"type": "applayer", "event": "NO_HOST"}},
        {"event_type": "flow", "proto": "UDP"},
        {"event_type": "tls", "dest_ip": "198.19.0.1", "tls": {"sni": "a.example.net"}},
        {"event_type": "stats", "stats": {"decoder": {"pkts": 3}, "tcp": {"invalid_checksum": 2}}},
        {
            "event_type": "dns",
            "dns": {"type": "answer", "rrname": "a", "answers": [{"rrtype": "A", "rdata": "198.19.0.1"}, {}]},
        },
    ]
    path = tmp_path / "eve.json"
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event_type": "fl')
    seen = suricata.read_eve(path)
    assert seen.events == {"decoder.udp.hlen_trunc": 1, "applayer.http.no_host": 1}
    assert seen.protocols == {("UDP", ""): 1} and seen.names == [("198.19.0.1", "a.example.net")]
    assert seen.stats == {"pkts": 3, "tcp.invalid_checksum": 2} and seen.invalid_checksums == 2
    assert seen.answers == [("198.19.0.1", "a")]
