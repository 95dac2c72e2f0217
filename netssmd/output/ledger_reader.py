"""Ledgers read again: files in, whole flows out.

A flow that goes over several slices is a row in each slice's ledger; here the rows of one session and five-tuple are
one `Connection`, given out when its session is complete or at the end of the last file. Memory holds the flows of
sessions that are not complete, at most `most_flows` of them: beyond that the session that was silent longest is given
out as it is, and what comes of it later makes connections of its own.

In: JSON Lines as output/ledger.py writes them, plain or gzip, oldest first. Raises LedgerError: file, line, what was
found and what would be right. Fields that this version does not know are passed over.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from netssmd.errors import LedgerError
from netssmd.output.ledger import SCHEMA
from netssmd.output.ledger_schema import FlowRow, Header, Line, Omitted, Pair, SessionLine

MOST_FLOWS: Final = 1_000_000
MOST_NS: Final = 1 << 63


_DECODER: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


@dataclass(slots=True)
class Connection:
    """A flow over all slices, with its session's first line about it."""

    session: SessionLine
    flow: FlowRow
    complete: bool = False

    def add(self, row: FlowRow) -> None:
        """The same flow in a later slice."""
        flow = self.flow
        flow.packets = _sum(flow.packets, row.packets)
        flow.bytes = _sum(flow.bytes, row.bytes)
        flow.ip_bytes = _sum(flow.ip_bytes, row.ip_bytes)
        flow.payload_bytes = _sum(flow.payload_bytes, row.payload_bytes)
        flow.first_ts_ns = min(flow.first_ts_ns, row.first_ts_ns)
        flow.last_ts_ns = max(flow.last_ts_ns, row.last_ts_ns)
        flow.history += "".join(letter for letter in row.history if letter not in flow.history)
        flow.findings = dict(Counter(flow.findings) + Counter(row.findings))
        flow.planted = flow.planted + row.planted


def _sum(a: Pair, b: Pair) -> Pair:
    return a[0] + b[0], a[1] + b[1]


@dataclass(slots=True)
class Reading:
    """What was read, and what no connection tells of."""

    connections: int = 0
    omitted_packets: int = 0  # of flows and sessions beyond what a ledger tells one by one
    recovered: list[str] = field(default_factory=list)  # captures whose writer was killed


_Flows: TypeAlias = dict[tuple[int | None, str, int, str, int], Connection]


def connections(files: Sequence[Path], reading: Reading, most_flows: int = MOST_FLOWS) -> Iterator[Connection]:
    """All flows of ledgers given in order of time. `reading` is filled on the way."""
    sessions: dict[str, _Flows] = {}  # not complete; silent longest first
    held = 0
    for path in files:
        for line in _lines(path):
            if isinstance(line, Omitted):
                reading.omitted_packets += line.packets
            elif isinstance(line, Header):
                if line.recovered:
                    reading.recovered.append(line.capture)
            else:
                flows = sessions.pop(line.session, {})
                before = len(flows)
                _merge(flows, line, reading)
                if line.complete:
                    held -= before
                    yield from _given(flows, reading, complete=True)
                else:
                    sessions[line.session] = flows
                    held += len(flows) - before
            while held > most_flows:
                oldest = next(iter(sessions))
                held -= len(sessions[oldest])
                yield from _given(sessions.pop(oldest), reading, complete=False)
    for flows in sessions.values():
        yield from _given(flows, reading, complete=False)


def _merge(flows: _Flows, line: SessionLine, reading: Reading) -> None:
    rows, line.flows = line.flows, []  # the connections keep the line
    for row in rows:
        connection = flows.get(row.five_tuple)
        if connection is None:
            flows[row.five_tuple] = Connection(line, row)
        else:
            connection.add(row)
    if line.flows_omitted:
        reading.omitted_packets += sum(line.flows_omitted.packets)


def _given(flows: _Flows, reading: Reading, complete: bool) -> Iterator[Connection]:
    reading.connections += len(flows)
    for connection in flows.values():
        connection.complete = complete
        yield connection


def _lines(path: Path) -> Iterator[Line]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, text in enumerate(file, 1):
                line = _parsed(text, path, number)
                if (number == 1) != isinstance(line, Header):
                    raise LedgerError(f"{path}: line {number}: a ledger is one header, then sessions")
                if isinstance(line, Header) and line.schema != SCHEMA:
                    raise LedgerError(f"{path}: schema {line.schema}: this version reads schema {SCHEMA}")
                if isinstance(line, SessionLine):
                    for row in line.flows:
                        if not 0 <= row.first_ts_ns <= row.last_ts_ns < MOST_NS:
                            raise LedgerError(
                                f"{path}: line {number}: a flow from {row.first_ts_ns} to {row.last_ts_ns} ns; times "
                                "lie in order between 1970 and 2262"
                            )
                yield line
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LedgerError(f"{path}: line {number + 1}: cannot be read: {reason}") from None
    if not number:
        raise LedgerError(f"{path}: is empty; give a ledger that netssmd wrote beside a capture (.jsonl)")


def _parsed(text: bytes, path: Path, number: int) -> Line:
    try:
        return _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # ValidationError is a DecodeError
        raise LedgerError(
            f"{path}: line {number}: {error}; give a ledger that netssmd wrote beside a capture (.jsonl, .jsonl.gz)"
        ) from None


def ledgers(path: Path) -> list[Path]:
    """A ledger, or those of a folder in order of their names (which is that of their time). Raises LedgerError."""
    if not path.is_dir():
        if path.suffix == ".pcap" and path.with_suffix(".jsonl").exists():
            return [path.with_suffix(".jsonl")]
        return [path]
    found = sorted(p for p in path.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz")) and not p.name.startswith("."))
    if not found:
        raise LedgerError(f"{path}: holds no ledgers (*.jsonl); give a folder that `run` or `generate` wrote")
    return found
