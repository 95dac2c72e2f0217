"""Ground truth beside a capture: which session said what, by flow, one JSON line per session.

In: one `observe` per packet that reached the file. Out: JSON lines for the slice, once, when it is complete.

The first line is a header (`type` "header": capture, model, model_hash, version, linktype, snaplen, created, totals),
then one line per session that spoke or ended in this slice (`type` "session"). A flow is told from its originator's
side, its counts are pairs [from the originator, from the responder], `bytes` are lengths on the wire. Packets that
belong to no flow (ARP) make a row whose `proto` is null. `findings` counts the packets that broke a rule of TCP/IP, by
the names of packet/compliance.py: in a session always, in a flow where there are any. `complete` tells whether the
session ended in this slice.

Memory is bounded: flows beyond `max_session_flows` of a session or `max_flows` of the slice are summed up in
`flows_omitted` of the session, sessions beyond `max_sessions` in a last line of `type` "omitted".
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, BinaryIO, Final, TypeAlias

from netssmd import __version__
from netssmd.packet.pcap import LINKTYPE_ETHERNET, MAX_SNAPLEN

FlowKey: TypeAlias = tuple[int, bytes, int, bytes, int]
"""Protocol number, source address, source port, destination address, destination port; the originator is the source."""

Note: TypeAlias = tuple["SessionMeta", int, FlowKey | None, int, int, tuple[str, ...]]
"""One packet, the arguments of `Ledger.observe`: session, ts_ns, flow, direction, wire_bytes, findings."""


ATTACKS: Final = ("attack-*",)  # patterns of the labels that name attacks, unless an operator gives others


def is_attack(label: str, patterns: Iterable[str] = ATTACKS) -> bool:
    """Does the label name an attack? Patterns are those of the shell, and case counts."""
    return any(fnmatchcase(label, pattern) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class SessionMeta:
    """What the ledger tells of a session. `id` is unique for the life of a ring, `attack`: the label names one."""

    id: str
    label: str | None = None
    conditions: Mapping[str, float] | None = None
    seed: int = 0
    model_hash: str = ""
    attack: bool = False


# A row of counts: packets from originator and responder, bytes likewise, first and last ts_ns.
_Row: TypeAlias = list[int]
_FIRST: Final = 4
_LAST: Final = 5


@dataclass(slots=True)
class _Tally:
    """One session in this slice."""

    meta: SessionMeta
    flows: dict[FlowKey | None, _Row] = field(default_factory=dict)
    omitted: _Row | None = None
    findings: dict[str, int] = field(default_factory=dict)
    flow_findings: dict[FlowKey | None, dict[str, int]] = field(default_factory=dict)
    complete: bool = False

    def rows(self) -> list[_Row]:
        return [*self.flows.values(), *([self.omitted] if self.omitted else [])]


class Ledger:
    """The tally of the slice being written. One thread only.

    Arguments:
        model, model_hash: Name and hash of the model that speaks.
        snaplen: Bytes kept of a packet, 0 for whole packets.
        clock: Wall-clock nanoseconds, for `created`.
    """

    suffix: Final = ".jsonl"

    def __init__(
        self,
        model: str = "",
        model_hash: str = "",
        snaplen: int = 0,
        max_session_flows: int = 100_000,
        max_flows: int = 100_000,
        max_sessions: int = 100_000,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._model = model
        self._model_hash = model_hash
        self._snaplen = snaplen or MAX_SNAPLEN
        self._max_session_flows = max_session_flows
        self._max_flows = max_flows
        self._max_sessions = max_sessions
        self._clock = clock
        self.clear()

    def clear(self) -> None:
        """Begin the next slice."""
        self._tallies: dict[str, _Tally] = {}
        self._rest = _Tally(SessionMeta(""))
        self._flow_count = 0
        self._current = self._rest  # the tally of the session that spoke last
        self._flows = self._rest.flows

    def observe(
        self,
        session: SessionMeta,
        ts_ns: int,
        flow: FlowKey | None,
        direction: int,
        wire_bytes: int,
        findings: tuple[str, ...] = (),
    ) -> None:
        """Count a packet and the findings it raised. `direction` is 0 from the flow's originator, 1 from its
        responder."""
        if session is not self._current.meta:
            self._current = self._tally(session)
            self._flows = self._current.flows
        row = self._flows.get(flow)
        if row is None:
            row = self._new_row(flow, ts_ns)
        row[direction] += 1
        row[2 + direction] += wire_bytes
        if ts_ns > row[_LAST]:
            row[_LAST] = ts_ns
        elif ts_ns < row[_FIRST]:
            row[_FIRST] = ts_ns
        if findings:
            self._find(row, flow, findings)

    def _find(self, row: _Row, flow: FlowKey | None, findings: tuple[str, ...]) -> None:
        """Count findings of a packet of the session that spoke last; by flow too, if the flow has a row of its own."""
        tally = self._current
        counts = [tally.findings]
        if row is not tally.omitted:
            counts.append(tally.flow_findings.setdefault(flow, {}))
        for name in findings:
            for count in counts:
                count[name] = count.get(name, 0) + 1

    def end(self, session: SessionMeta) -> None:
        """The session has spoken its last packet."""
        self._tally(session).complete = True

    def _tally(self, session: SessionMeta) -> _Tally:
        tally = self._tallies.get(session.id)
        if tally is None:
            if len(self._tallies) >= self._max_sessions:
                return self._rest
            tally = self._tallies[session.id] = _Tally(session)
        return tally

    def _new_row(self, flow: FlowKey | None, ts_ns: int) -> _Row:
        tally = self._current
        row = [0, 0, 0, 0, ts_ns, ts_ns]
        if tally is self._rest or len(tally.flows) >= self._max_session_flows or self._flow_count >= self._max_flows:
            if tally.omitted is None:
                tally.omitted = row
            return tally.omitted
        self._flow_count += 1
        tally.flows[flow] = row
        return row

    def write(self, file: BinaryIO, capture: str) -> None:
        """Write the lines of this slice, whose capture file is called `capture`, to an open binary file."""
        tallies = self._tallies.values()
        rows = [row for tally in [*tallies, self._rest] for row in tally.rows()]
        file.write(_line(self._header(capture) | {"sessions": len(tallies)} | _totals(rows)))
        for tally in tallies:
            file.writelines(_session_line(tally))
        if self._rest.omitted:
            file.write(_line({"type": "omitted", **_totals(self._rest.rows())}))

    def write_recovered(self, file: BinaryIO, capture: str, packets: int) -> None:
        """Write the ledger of a capture whose writer was killed: its packets are known, its sessions are not."""
        file.write(_line(self._header(capture) | {"recovered": True, "sessions": None, "packets": packets}))

    def _header(self, capture: str) -> dict[str, Any]:
        seconds, rest = divmod(self._clock(), 1_000_000_000)
        return {
            "type": "header",
            "capture": capture,
            "model": self._model,
            "model_hash": self._model_hash,
            "version": __version__,
            "linktype": LINKTYPE_ETHERNET,
            "snaplen": self._snaplen,
            "created": f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03d}Z",
        }


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _line(value: dict[str, Any]) -> bytes:
    return _json(value) + b"\n"


def _totals(rows: list[_Row]) -> dict[str, Any]:
    return {
        "first_ts_ns": min((row[_FIRST] for row in rows), default=None),
        "last_ts_ns": max((row[_LAST] for row in rows), default=None),
        "packets": sum(row[0] + row[1] for row in rows),
        "bytes": sum(row[2] + row[3] for row in rows),
    }


_FLOWS_AT_ONCE: Final = 256


def _session_line(tally: _Tally) -> Iterator[bytes]:
    """The line of a session, in pieces: one call into json for 100,000 flows would hold up every other thread."""
    meta = tally.meta
    session = {
        "type": "session",
        "session": meta.id,
        "label": meta.label,
        "attack": meta.attack,
        "conditions": dict(meta.conditions or {}),
        "seed": meta.seed,
        "model_hash": meta.model_hash,
        **_totals(tally.rows()),
        "complete": tally.complete,
        "findings": tally.findings,
        "flows_omitted": _counts(tally.omitted) if tally.omitted else None,
    }
    yield _json(session)[:-1] + b',"flows":['
    separator = b""
    flows = iter(tally.flows.items())
    while some := [_flow(flow, row, tally.flow_findings.get(flow)) for flow, row in islice(flows, _FLOWS_AT_ONCE)]:
        yield separator + _json(some)[1:-1]
        separator = b","
    yield b"]}\n"


def _flow(flow: FlowKey | None, row: _Row, findings: dict[str, int] | None) -> dict[str, Any]:
    """A flow's object; `findings` stand in it only where there are some."""
    return _five_tuple(flow) | _counts(row) | ({"findings": findings} if findings else {})


def _counts(row: _Row) -> dict[str, Any]:
    return {"packets": row[0:2], "bytes": row[2:4], "first_ts_ns": row[_FIRST], "last_ts_ns": row[_LAST]}


def _five_tuple(flow: FlowKey | None) -> dict[str, Any]:
    if flow is None:
        return {"proto": None}
    proto, source, sport, target, dport = flow
    return {"proto": proto, "src": _address(source), "sport": sport, "dst": _address(target), "dport": dport}


def _address(address: bytes) -> str:
    if len(address) == 4:
        return socket.inet_ntop(socket.AF_INET, address)
    if len(address) == 16:
        return socket.inet_ntop(socket.AF_INET6, address)
    return address.hex(":")
