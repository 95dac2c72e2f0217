"""How fast captures are read and written: packets/s on one core, all in one run, so that ratios are worth comparing.

python tools/bench_captures.py [PACKETS]
"""

from __future__ import annotations

import gzip
import io
import struct
import sys
import tempfile
import time
from collections.abc import Callable

import zstandard

from netssmd.output.file_sink import FileSink
from netssmd.output.ledger import FlowKey, Ledger, SessionMeta
from netssmd.output.pcap_ring import PcapRing
from netssmd.output.sink import Outgoing
from netssmd.packet.pcap import Packet, PcapWriter, read_capture, whole_records

T0 = 1_700_000_000_000_000_000


def pcapng(packets: list[Packet]) -> bytes:
    out = [struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)]
    out.append(struct.pack("<IIHHIHHB3xHHI", 1, 32, 1, 0, 0, 9, 1, 9, 0, 0, 32))
    for ts_ns, data, orig_len in packets:
        length = 32 + len(data) + -len(data) % 4
        head = struct.pack("<IIIIIII", 6, length, 0, ts_ns >> 32, ts_ns & 0xFFFFFFFF, len(data), orig_len)
        out += [head, data, bytes(-len(data) % 4), struct.pack("<I", length)]
    return b"".join(out)


def rate(name: str, count: int, action: Callable[[], object]) -> None:
    best = 1e9
    for _ in range(3):
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    print(f"{name:<34}{count / best:>12,.0f} packets/s")


def write(packets: list[Packet]) -> bytes:
    file = io.BytesIO()
    writer = PcapWriter(file)
    writer.write_many(packets)
    writer.flush()
    return file.getvalue()


def read(data: bytes) -> None:
    for _ in read_capture(io.BytesIO(data)):
        pass


def sink(batches: list[list[Outgoing]], size: int) -> None:
    ledger = Ledger()
    with tempfile.TemporaryDirectory() as directory:
        files = FileSink(PcapRing(directory, max_bytes=32 << 20, snaplen=size, min_free_bytes=0, beside=ledger), ledger)
        for batch in batches:
            files.write(batch)
        files.close()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    packets = [Packet(T0 + i * 1000, bytes(63 + i % 3 * 30), 1400) for i in range(count)]
    full = bytes(1400)
    sessions = [SessionMeta(str(i)) for i in range(100)]
    keys: list[FlowKey] = [(6, bytes([198, 18, 0, i]), 40000 + i, b"\xc6\x12\x00\x01", 443) for i in range(100)]
    items = [
        Outgoing(Packet(T0 + i * 1000, full, 1400), sessions[i % 100], keys[i * 7 % 100], i & 1) for i in range(count)
    ]
    batches = [items[i : i + 256] for i in range(0, count, 256)]
    data = write(packets)
    rate("write PCAP", count, lambda: write(packets))
    rate("read PCAP", count, lambda: read(data))
    for name, packed in (("gzip", gzip.compress(data, 6)), ("zstd", zstandard.compress(data))):
        rate(f"read PCAP, {name}", count, lambda packed=packed: read(packed))  # type: ignore[misc]
    blocks = pcapng(packets)
    rate("read PCAPNG", count, lambda: read(blocks))
    rate("scan for whole records", count, lambda: whole_records(io.BytesIO(data)))
    rate("ring and ledger, 96 B kept", count, lambda: sink(batches, 96))
    rate("ring and ledger, 1,400 B frames", count, lambda: sink(batches, 0))


if __name__ == "__main__":
    main()
