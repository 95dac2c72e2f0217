"""The mutant corpus: each defect of packet/mutants.py planted a known number of times into a clean capture, and who
catches it.

python tools/mutants.py [-o FOLDER] [--times 8] [--json]

The base is made here: conversations over TCP (HTTP, SSH-like and FTP-like banners first, with and without timestamps
and SACK), DNS and echoes, rendered in full. Nobody complains of it. For each mutant the same capture is written with
the defect at `times` places; a referee catches it when it complains more than of the base:

    netssmd    the finding that the mutant names, at least as often as planted (in a flow each: as many flows)
    tshark     expert info of warning and above, tcp.analysis.*, checksum status
    complete   tshark's tcp.completeness: fewer flows with a complete handshake
    suricata   events of its decoder, stream engine and parsers, and counters of invalid packets
    capinfos   -o: packets out of the order of time
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from netssmd.learn.evaluate import suricata  # noqa: E402
from netssmd.packet.compliance import INDEX, Checker, Flow, Side  # noqa: E402
from netssmd.packet.mutants import MUTANTS, Mutant, copy_of  # noqa: E402
from netssmd.packet.pcap import Packet, PcapWriter, read_capture  # noqa: E402
from netssmd.packet.render import render  # noqa: E402
from netssmd.packet.wire import ACK, FIN, ICMP, IPV4, PSH, SYN, TCP, UDP, Headers  # noqa: E402

START_NS = 1_767_225_600_000_000_000
STEP_NS = 2_000_000
REFEREES = ("netssmd", "tshark", "complete", "suricata", "capinfos")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"a" * 2000
HTTP = (b"GET / HTTP/1.1\r\nHost: www.example\r\n\r\n", ANSWER)
SSH = (b"SSH-2.0-OpenSSH_9.2\r\n", b"SSH-2.0-OpenSSH_9.2\r\n")


# ------------------------------------------------------------------------------------------------------------ the base


class Conversation:
    """One TCP flow, written segment by segment."""

    def __init__(self, number: int, port: int, stamps: bool, sack: bool) -> None:
        self.ends = (bytes((198, 18, number >> 8, number & 255)), bytes((198, 19, 0, port & 255)))
        self.ports = (40_000 + number, port)
        self.seq = [1000 + number * 77, 5_000_000 + number * 33]
        self.stamps, self.sack, self.clock = stamps, sack, 1000

    def segment(self, side: int, flags: int, payload: bytes = b"") -> Headers:
        h = Headers()
        h.link = bytes((2, 0x4E, 0, 0, 0, 2 - side, 2, 0x4E, 0, 0, 0, 1 + side, 8, 0))
        h.version, h.transport, h.protocol, h.ip_flags = IPV4, TCP, TCP, 2
        h.src, h.dst = self.ends[side], self.ends[1 - side]
        h.sport, h.dport = self.ports[side], self.ports[1 - side]
        h.flags, h.seq, h.ack = flags, self.seq[side], self.seq[1 - side] if flags & ACK else 0
        h.window = 64240 if flags & SYN else 502
        self.clock += 1
        now, before = ((self.clock - i) * 1000 for i in (0, 1))
        stamp = b"\x01\x01\x08\x0a" + now.to_bytes(4, "big") + before.to_bytes(4, "big")
        if flags & SYN:
            h.tcp_options = b"\x02\x04\x05\xb4" + (b"\x01\x01\x04\x02" if self.sack else b"") + b"\x01\x03\x03\x07"
            stamp = stamp[:8] + bytes(4) if not flags & ACK else stamp
        h.tcp_options += stamp if self.stamps else b""
        h.body, h.payload_len = payload, len(payload)
        self.seq[side] += len(payload) + bool(flags & (SYN | FIN))
        return h

    def say(self, side: int, message: bytes) -> Iterator[Headers]:
        """A message in segments of 1,000 bytes, every one acknowledged."""
        for i in range(0, len(message), 1000):
            yield self.segment(side, PSH | ACK, message[i : i + 1000])
            yield self.segment(1 - side, ACK)

    def talk(self, first: int, rounds: int, said: tuple[bytes, bytes]) -> Iterator[Headers]:
        yield self.segment(0, SYN)
        yield self.segment(1, SYN | ACK)
        yield self.segment(0, ACK)
        for _ in range(rounds):
            yield from self.say(first, said[0])
            yield from self.say(1 - first, said[1])
        yield self.segment(0, FIN | ACK)
        yield self.segment(1, FIN | ACK)
        yield self.segment(0, ACK)


def datagram(number: int, side: int, protocol: int, body: bytes) -> Headers:
    h = Headers()
    h.link = bytes((2, 0x4E, 0, 0, 0, 2 - side, 2, 0x4E, 0, 0, 0, 1 + side, 8, 0))
    h.version, h.protocol, h.transport = IPV4, protocol, protocol
    ends = (bytes((198, 18, number >> 8, number & 255)), bytes((198, 19, 0, 53)))
    h.src, h.dst = ends[side], ends[1 - side]
    if protocol == UDP:
        h.sport, h.dport = ((30_000 + number, 53), (53, 30_000 + number))[side]
    else:
        h.icmp_type, h.rest = (0 if side else 8), number << 16 | 1
    h.body, h.payload_len = body, len(body)
    return h


def dns(number: int, answer: bool) -> bytes:
    question = b"\x03www\x07example\x00\x00\x01\x00\x01"
    head = number.to_bytes(2, "big") + (b"\x81\x80" if answer else b"\x01\x00") + bytes((0, 1, 0, answer, 0, 0, 0, 0))
    return head + question + (b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc6\x13\x00\x50" if answer else b"")


def base(flows: int = 30) -> list[Headers]:
    """A clean capture's packets, flow after flow."""
    packets: list[Headers] = []
    for i in range(flows):
        packets += [datagram(i, 0, UDP, dns(i, False)), datagram(i, 1, UDP, dns(i, True))]
        packets += [datagram(i, side, ICMP, b"abcdefgh" * 4) for side in (0, 1)]
        if i % 3 == 0:
            packets += Conversation(i, 22, True, True).talk(1, 1, SSH)
        else:
            packets += Conversation(i, 80, i % 3 == 1, i % 2 == 0).talk(0, 3, HTTP)
    return packets


# --------------------------------------------------------------------------------------------------------- the mutants


def write(path: Path, packets: list[Headers], mutant: Mutant | None = None, times: int = 0) -> int:
    """Write the capture, the mutant at up to `times` places: at most one a flow. Return: how many were planted."""
    checker, planted, last = Checker(), 0, None
    nobody = Side()
    with path.open("wb") as file:
        writer = PcapWriter(file)
        for i, original in enumerate(packets):
            flow: Flow | None = None
            side = peer = nobody
            if original.transport == TCP:
                flow = checker.find(original.src, original.sport, original.dst, original.dport)
            if flow is not None:
                mine = original.src == flow.key[0] and original.sport == flow.key[1]
                side, peer = (flow.originator, flow.responder) if mine else (flow.responder, flow.originator)
            where = flow or (original.src, original.dst, original.protocol)
            ts_ns, headers, copies, frame = START_NS + i * STEP_NS, original, 1, None
            if mutant and planted < times and where != last and mutant.fits(original, flow, side, peer):
                planted, last, frame = planted + 1, where, mutant.frame
                headers, copies = copy_of(original), 0 if mutant.drop else 1 + mutant.copies
                ts_ns -= mutant.back_ns
                if mutant.change:
                    mutant.change(headers, flow, side, peer)
            checker.observe(original, ts_ns)
            data, orig_len = render(headers)
            data = frame(data, headers) if frame else data
            for copy in range(copies):
                writer.write(Packet(ts_ns + copy * 1000, data, orig_len))
        writer.flush()
    return planted


# -------------------------------------------------------------------------------------------------------- the referees


def findings(path: Path) -> Counter[str]:
    """By name: packets that raise it, or flows that have it."""
    checker = Checker()
    with path.open("rb") as file:
        for packet in read_capture(file):
            checker.observe_bytes(*packet)
    totals = checker.finish()
    return Counter({name: max(totals.in_packets[i], totals.in_flows[i]) for name, i in INDEX.items()})


def tshark(path: Path) -> tuple[Counter[str], int]:
    """Complaints by their text without numbers, and flows whose handshake is complete."""
    command = ["tshark", "-n", "-r", str(path), "-T", "fields"]
    for name in ("ip", "tcp", "udp"):
        command += ["-o", f"{name}.check_checksum:TRUE"]
    fields = ("_ws.expert.message", "_ws.expert.severity", "tcp.stream", "tcp.completeness", "icmp.checksum.status")
    for field in fields:
        command += ["-e", field]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    complaints: Counter[str] = Counter()
    complete: dict[str, int] = {}
    for line in out.splitlines():
        messages, severities, stream, completeness, icmp = (line.split("\t") + [""] * 5)[:5]
        for severity in severities.split(","):
            normal = "Connection finish" in messages  # a note, of every FIN
            if severity and int(severity, 0) >= 4_194_304 and not normal:  # PI_NOTE: retransmissions are notes
                complaints[f"{severity}:{''.join(c for c in messages if not c.isdigit())}"] += 1
        complaints["icmp checksum"] += icmp == "0"
        if stream and completeness:
            complete[stream] = int(completeness.split(",")[0])
    return complaints, sum(value & 7 == 7 for value in complete.values())


def suricata_says(path: Path) -> Counter[str]:
    with tempfile.TemporaryDirectory() as folder:
        seen = suricata.watch_file(path, Path(folder))
    bad = {k: n for k, n in seen.stats.items() if "invalid" in k and not k.startswith("app_layer")}
    return seen.events + Counter(bad)


def out_of_order(path: Path) -> Counter[str]:
    out = subprocess.run(["capinfos", "-T", "-r", "-o", str(path)], capture_output=True, text=True, check=True).stdout
    return Counter({"out of order": int(not out.strip().endswith("True"))})


def verdicts(path: Path) -> dict[str, Counter[str]]:
    """What each referee that is installed counts."""
    result = {"netssmd": findings(path)}
    if shutil.which("tshark"):
        result["tshark"], complete = tshark(path)
        result["complete"] = Counter({"incomplete": -complete})
    if suricata.installed():
        result["suricata"] = suricata_says(path)
    if shutil.which("capinfos"):
        result["capinfos"] = out_of_order(path)
    return result


def more(now: Counter[str], before: Counter[str]) -> dict[str, int]:
    return {name: now[name] - before[name] for name in now if now[name] > before[name]}


def matrix(folder: Path, times: int, names: list[str] | None = None) -> dict[str, dict[str, object]]:
    """For each mutant: how often it was planted, what our checker counted, and which referees caught it."""
    packets = base()
    write(folder / "base.pcap", packets)
    clean = verdicts(folder / "base.pcap")
    rows: dict[str, dict[str, object]] = {}
    for mutant in MUTANTS:
        if names and mutant.name not in names:
            continue
        path = folder / f"{mutant.name}.pcap"
        planted = write(path, packets, mutant, times)
        said = verdicts(path)
        i = mutant.finding
        gained = said["netssmd"][i] - clean["netssmd"][i]
        caught = {who: bool(more(said[who], clean[who])) for who in said if who != "netssmd"}
        counted = -gained if mutant.finding == "handshake" else gained
        ours = {"planted": planted, "found": counted, "netssmd": counted >= planted}
        rows[mutant.name] = {"finding": i, **ours, **caught}
    rows["(base)"] = {"finding": "", "planted": 0, "found": 0, **dict.fromkeys(clean, False)}
    complaints = {who: {k: n for k, n in said.items() if n > 0} for who, said in clean.items()}
    rows["(base)"]["complaints"] = {who: said for who, said in complaints.items() if said and who != "netssmd"}
    return rows


def table(rows: dict[str, dict[str, object]]) -> str:
    lines = ["| mutant | finding | planted | found | " + " | ".join(REFEREES[1:]) + " |", "|---" * 8 + "|"]
    for name, row in rows.items():
        if name != "(base)":
            marks = ["yes" if row.get(who) else "-" if who in row else "?" for who in REFEREES[1:]]
            lines.append(f"| `{name}` | `{row['finding']}` | {row['planted']} | {row['found']} | {' | '.join(marks)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The mutant corpus, and who catches what.")
    parser.add_argument("-o", "--output", type=Path, help="keep the captures in this folder")
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = matrix(folder, options.times)
    print(json.dumps(rows) if options.json else table(rows))
    if not options.json:
        print(f"\nbase: {rows['(base)']['complaints'] or 'no complaint from any'}")


if __name__ == "__main__":
    main()
