"""Independent referees: what capinfos, tshark and Suricata say of captures, real ones rendered like the generated.

In: sessions (their files). Out: counts by kind of complaint. Real captures are rendered first, headers as they are,
payload zero up to the IP length, checksums computed, since a sensor's verdict hangs on the rendering more than on the
traffic. (The header codec is exact, so this is what encoding and decoding with the recorded identities gives.)

A referee is judged by comparison only: what it says of real traffic is the floor. tshark verifies no checksum unless
told to; only `capinfos -o` sees time going backwards; Suricata counts a wrong checksum and looks no further.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from netssmd.learn.evaluate.sessions import Session, by_label
from netssmd.learn.evaluate.suricata import watch_file
from netssmd.learn.prepare import Salvage, read_packets
from netssmd.packet.pcap import Packet, PcapWriter
from netssmd.packet.render import render
from netssmd.packet.wire import NOT_IP, TCP, UDP, parse

TIMEOUT_SECONDS = 300


class Complaint(NamedTuple):
    """A row: its name, tshark's field, the value that counts ("" for any), and is it an error (or only a rate)?"""

    name: str
    field: str
    value: str
    error: bool


COMPLAINTS = (
    Complaint("malformed", "_ws.malformed", "", True),
    Complaint("bad IP checksum", "ip.checksum.status", "0", True),
    Complaint("bad TCP checksum", "tcp.checksum.status", "0", True),
    Complaint("bad UDP checksum", "udp.checksum.status", "0", True),
    Complaint("retransmission", "tcp.analysis.retransmission", "", False),
    Complaint("lost_segment", "tcp.analysis.lost_segment", "", False),
    Complaint("ack_lost_segment", "tcp.analysis.ack_lost_segment", "", False),
    Complaint("duplicate_ack", "tcp.analysis.duplicate_ack", "", False),
    Complaint("out_of_order", "tcp.analysis.out_of_order", "", False),
    Complaint("zero_window", "tcp.analysis.zero_window", "", False),
    Complaint("expert: warning", "_ws.expert.severity", "6291456", False),
    Complaint("expert: error", "_ws.expert.severity", "8388608", True),
)
STREAMS, COMPLETE = "TCP streams", "with a complete handshake"  # tshark's tcp.completeness
_HANDSHAKE = 1 | 2 | 4  # SYN, SYN-ACK, ACK
SURICATA = "suricata: "
ENGINES = ("decoder", "stream", "applayer")
CHECKSUMS = SURICATA + "invalid checksums"
_CHECKSUMS = ("ip", "tcp", "udp")


@dataclass(slots=True)
class Verdict:
    """What the referees found in some captures: packets by complaint, events of Suricata (by engine and by name), TCP
    streams. `skipped` says who is missing."""

    captures: int = 0
    packets: int = 0
    in_order: int | None = None
    counts: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)

    def as_object(self) -> dict[str, Any]:
        return {
            "captures": self.captures, "packets": self.packets, "in_order": self.in_order, "counts": dict(self.counts),
            "skipped": self.skipped,
        }  # fmt: skip

    def rows(self) -> list[str]:
        """Names of what is counted in packets, Suricata's events last."""
        own = [complaint.name for complaint in COMPLAINTS]
        theirs = [CHECKSUMS, *(f"{SURICATA}{engine} events" for engine in ENGINES)]
        named = sorted(name for name in self.counts if name.startswith(SURICATA) and name not in theirs)
        return [name for name in [*own, *theirs, *named] if name in self.counts]

    def per_1000(self, name: str) -> float | None:
        return 1000 * self.counts[name] / self.packets if self.packets and name in self.counts else None


def render_like_generated(session: Session, target: Path) -> None:
    """Write a capture again with full frames: headers as they are, payload zero."""
    with target.open("wb") as file:
        writer = PcapWriter(file)
        for ts_ns, data, orig_len in Salvage(session.path, read_packets):
            headers = parse(data, orig_len)
            if headers.version != NOT_IP:
                if headers.protocol in (TCP, UDP):  # later fragments too, or their datagram's checksum is wrong
                    headers.body = b""
                data, orig_len = render(headers)
            writer.write(Packet(ts_ns, data, orig_len))
        writer.flush()


def sample(sessions: Sequence[Session], per_label: int) -> list[Session]:
    return [session for group in by_label(sessions).values() for session in group[:per_label]]


def referee(sessions: Sequence[Session], rendered: bool, advance: Callable[[], None]) -> Verdict:
    """Ask every referee about every session; `rendered`: as they are (else real ones are rendered alike first)."""
    verdict = Verdict()
    capinfos, tshark, suricata = (shutil.which(name) for name in ("capinfos", "tshark", "suricata"))
    verdict.skipped = [
        f"{name}: not installed (apt-get install {package})"
        for name, path, package in (
            ("capinfos", capinfos, "wireshark-common"),
            ("tshark", tshark, "tshark"),
            ("suricata", suricata, "suricata"),
        )
        if path is None
    ]
    if tshark:
        verdict.counts.update(dict.fromkeys((complaint.name for complaint in COMPLAINTS), 0))
    if suricata:
        verdict.counts.update(dict.fromkeys((CHECKSUMS, *(f"{SURICATA}{engine} events" for engine in ENGINES)), 0))
    if capinfos:
        verdict.in_order = 0
    with tempfile.TemporaryDirectory(prefix="netssmd-referees-") as folder:
        for session in sessions:
            path = session.path
            if not rendered:
                path = Path(folder) / "session.pcap"
                render_like_generated(session, path)
            verdict.captures += 1
            verdict.packets += session.packets
            if capinfos and verdict.in_order is not None:
                verdict.in_order += _run(capinfos, "-T", "-r", "-o", str(path)).strip().endswith("True")
            if tshark:
                verdict.counts.update(ask_tshark(tshark, path))
            if suricata:
                verdict.counts.update(ask_suricata(path, Path(folder)))
            advance()
    return verdict


def ask_tshark(tshark: str, path: Path) -> Counter[str]:
    options = [word for name in _CHECKSUMS for word in ("-o", f"{name}.check_checksum:TRUE")]
    fields = [word for complaint in COMPLAINTS for word in ("-e", complaint.field)]
    wanted = " || ".join(["tcp", *(f"{c.field} == {c.value}" if c.value else c.field for c in COMPLAINTS)])
    more = ("-e", "tcp.stream", "-e", "tcp.completeness")
    counts: Counter[str] = Counter()
    complete: dict[str, int] = {}  # stream -> what is known of it by its last packet
    told = _run(tshark, "-n", "-r", str(path), *options, "-Y", wanted, "-T", "fields", *fields, *more)
    for line in told.splitlines():
        *texts, stream, seen = line.split("\t")
        for complaint, text in zip(COMPLAINTS, texts):
            values = [value for value in text.split(",") if value]
            if complaint.value in values if complaint.value else values:
                counts[complaint.name] += 1
        if stream:
            complete[stream.split(",")[0]] = int(seen.split(",")[0] or 0)
    counts[STREAMS] = len(complete)
    counts[COMPLETE] = sum(seen & _HANDSHAKE == _HANDSHAKE for seen in complete.values())
    return counts


def ask_suricata(path: Path, folder: Path) -> Counter[str]:
    """Its events by engine and by name, and wrong checksums. What it could not read has none."""
    work = Path(tempfile.mkdtemp(dir=folder))
    try:
        seen = watch_file(path, work)
    except (RuntimeError, subprocess.TimeoutExpired):
        return Counter()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    counts = Counter({f"{SURICATA}{name}": count for name, count in seen.events.items()})
    for engine in ENGINES:
        counts[f"{SURICATA}{engine} events"] = sum(seen.events_of(engine).values())
    counts[CHECKSUMS] = seen.invalid_checksums
    return counts


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    return result.stdout
