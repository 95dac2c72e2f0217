"""Ground truth beside a capture: which session said what, by flow, one JSON line per session.

In: one `observe` per packet that reached the file. Out: JSON lines for the slice, once, when it is complete.

The first line is a header (`type` "header": schema, capture, model, model_hash, version, linktype, snaplen, created,
totals), then one line per session that spoke or ended in this slice (`type` "session"). A flow is told from its
originator's side, its counts are pairs [from the originator, from the responder]. Packets that belong to no flow (ARP)
make a row whose `proto` is null. `findings` counts the packets that broke a rule of TCP/IP, by the names of
packet/compliance.py: in a session always, in a flow where there are any. `complete` tells whether the session ended in
this slice; a guided one then has `interventions`, by rule, over its whole life. `planted` counts the defects
that were planted (engine/anomalies.py), and tells a flow's packets that have one. docs/ledger.md and
docs/ledger.schema.json document every field; output/ledger_reader.py reads them again.

`history` is Zeek's: what a flow did, each thing told when it was first seen, in upper case from the originator. TCP: s
SYN, h SYN with ACK, d payload, f FIN, r RST, a an ACK with none of these. UDP: d for any packet. Others: empty.

Memory is bounded: flows beyond `max_session_flows` of a session or `max_flows` of the slice are summed up in
`flows_omitted` of the session, sessions beyond `max_sessions` in a last line of `type` "omitted".
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, BinaryIO, Final, TypeAlias

import msgspec

from netssmd import __version__
from netssmd.packet.pcap import LINKTYPE_ETHERNET, MAX_SNAPLEN
from netssmd.packet.wire import ACK, FIN, IPV4, IPV6, RST, SYN, TCP, UDP, parse

FlowKey: TypeAlias = tuple[int, bytes, int, bytes, int]
"""Protocol number, source address, source port, destination address, destination port; the originator is the source."""

Note: TypeAlias = tuple["SessionMeta", int, FlowKey | None, int, int, tuple[str, ...], int, int, int, str]
"""One packet, the arguments of `Ledger.observe`."""

SCHEMA: Final = 1  # raised when a field goes or means something else; a new field is no new schema


STOPPED: Final = "stopped"  # reason of a session that ended with the daemon, and not by itself or at a limit
PLANTED_TOLD: Final = 1_000  # planted packets of a flow that are told one by one

ATTACKS: Final = ("attack-*",)  # patterns of the labels that name attacks, unless an operator gives others


def is_attack(label: str, patterns: Iterable[str] = ATTACKS) -> bool:
    """Does the label name an attack? Patterns are those of the shell, and case counts."""
    return any(fnmatchcase(label, pattern) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class SessionMeta:
    """What the ledger tells of a session. `id` is unique for the life of a ring, `attack`: the label names one.
    `interventions` of the guide by rule and what ended it, `reason`, are in the meta that its end is told with."""

    id: str
    label: str | None = None
    conditions: Mapping[str, float] | None = None
    seed: int = 0
    model_hash: str = ""
    attack: bool = False
    resumed: Mapping[str, Any] | None = None  # the snapshot that it went on from: see docs/ledger.md
    interventions: Mapping[str, int] | None = None
    reason: str = ""
    forked_from: str = ""


_Observed: TypeAlias = tuple[int, int, int, int, int, tuple[str, ...], int, int, int, str]
_Ended: TypeAlias = tuple[str, str, Mapping[str, int] | None]  # session, what ended it, interventions of its guide
_Journal: TypeAlias = tuple[bool, list[SessionMeta], list[FlowKey | None], list[_Observed], list[_Ended]]

# A row of counts: packets from originator and responder, bytes, IP bytes and payload bytes likewise, first and last
# ts_ns, what was seen (a bit for each of LETTERS), and the same in order (four bits each: index of LETTERS plus 1).
_Row: TypeAlias = list[int]
_FIRST: Final = 8
_LAST: Final = 9
_SEEN: Final = 10
_ORDER: Final = 11

LETTERS: Final = "SHADFRshadfr"
_SYN, _SYN_ACK, _ACK, _DATA, _FIN, _RST = (1 << i for i in range(6))


def _doing(flags: int) -> int:
    """What a TCP segment without payload does, as bits of the first half of LETTERS."""
    did = (_SYN_ACK if flags & ACK else _SYN) if flags & SYN else 0
    did |= (_FIN if flags & FIN else 0) | (_RST if flags & RST else 0)
    return did or (_ACK if flags & ACK else 0)


_DOING: Final = tuple(_doing(flags) for flags in range(256))


def measure(data: bytes, orig_len: int) -> tuple[int, int, int]:
    """The last three arguments of `Ledger.observe` for a frame: all 0 if it is not IP."""
    headers = parse(data, orig_len)
    if headers.version != IPV4 and headers.version != IPV6:
        return 0, 0, 0
    did = 0
    if headers.transport == TCP:
        did = _DOING[headers.flags & 255]
        if headers.payload_len > 0:
            did = did & ~_ACK | _DATA
    elif headers.protocol == UDP:
        did = _DATA
    return orig_len - len(headers.link) - headers.trailer_len, headers.payload_len, did


@dataclass(slots=True)
class _Tally:
    """One session in this slice."""

    meta: SessionMeta
    flows: dict[FlowKey | None, _Row] = field(default_factory=dict)
    omitted: _Row | None = None
    findings: dict[str, int] = field(default_factory=dict)
    flow_findings: dict[FlowKey | None, dict[str, int]] = field(default_factory=dict)
    complete: bool = False
    reason: str = ""
    cut: str | None = None
    interventions: Mapping[str, int] | None = None
    planted: dict[str, int] = field(default_factory=dict)
    flow_planted: dict[FlowKey | None, list[tuple[int, str]]] = field(default_factory=dict)

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
        self._told: dict[str, int] = {}  # numbers of sessions and flows that the journal knows
        self._told_flows: dict[FlowKey | None, int] = {}
        self._ended: list[_Ended] = []  # since the journal was written last
        self._current = self._rest  # the tally of the session that spoke last
        self._flows = self._rest.flows

    def observe(
        self, session: SessionMeta, ts_ns: int, flow: FlowKey | None, direction: int, wire_bytes: int,
        findings: tuple[str, ...] = (), ip_bytes: int = 0, payload_bytes: int = 0, did: int = 0,
        planted: str = "",
    ) -> None:  # fmt: skip
        """Count a packet and the findings it raised. `direction` is 0 from the flow's originator, 1 from its
        responder; see `measure` for the three after the findings; `planted`: the defect it was given."""
        if session is not self._current.meta:
            self._current = self._tally(session)
            self._flows = self._current.flows
        row = self._flows.get(flow)
        if row is None:
            row = self._new_row(flow, ts_ns)
        row[direction] += 1
        row[2 + direction] += wire_bytes
        row[4 + direction] += ip_bytes
        row[6 + direction] += payload_bytes
        did <<= 6 * direction
        if did & ~row[_SEEN]:
            _tell(row, did)
        if ts_ns > row[_LAST]:
            row[_LAST] = ts_ns
        elif ts_ns < row[_FIRST]:
            row[_FIRST] = ts_ns
        if findings:
            self._find(row, flow, findings)
        if planted:
            self._plant(row, flow, ts_ns, planted)

    def _plant(self, row: _Row, flow: FlowKey | None, ts_ns: int, defect: str) -> None:
        tally = self._current
        tally.planted[defect] = tally.planted.get(defect, 0) + 1
        if row is not tally.omitted:
            told = tally.flow_planted.setdefault(flow, [])
            if len(told) < PLANTED_TOLD:
                told.append((ts_ns, defect))

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
        """The session has spoken its last packet; one that `STOPPED` with the daemon would have gone on."""
        self._end(self._tally(session), session.reason, session.interventions)
        self._ended.append((session.id, session.reason, session.interventions))

    @staticmethod
    def _end(tally: _Tally, reason: str, interventions: Mapping[str, int] | None) -> None:
        tally.complete = reason != STOPPED
        tally.reason = reason
        tally.interventions = interventions

    def journal(self, notes: Sequence[Note]) -> bytes:
        """These packets as bytes from which `replay` makes the tally again, in the order in which they were made.
        Sessions and flows are told once a slice."""
        metas, flows, rows = [], [], []
        anew = len(self._told_flows) > self._max_flows  # forget rather than grow
        if anew:
            self._told, self._told_flows = {}, {}
        for session, ts_ns, flow, *rest in notes:
            number = self._told.get(session.id)
            if number is None:
                number = self._told[session.id] = len(self._told)
                metas.append(session)
            flow_number = self._told_flows.get(flow)
            if flow_number is None:
                flow_number = self._told_flows[flow] = len(self._told_flows)
                flows.append(flow)
            rows.append((number, ts_ns, flow_number, *rest))
        ended, self._ended = self._ended, []
        return msgspec.msgpack.encode((anew, metas, flows, rows, ended))

    def replay(self, blocks: Iterable[bytes]) -> None:
        """Tally what a journal tells. Raises ValueError for what is none."""
        metas: list[SessionMeta] = []
        flows: list[FlowKey | None] = []
        for block in blocks:
            anew, new_metas, new_flows, rows, ended = msgspec.msgpack.decode(block, type=_Journal)
            if anew:
                metas, flows = [], []
            metas += new_metas
            flows += new_flows
            for number, ts_ns, flow_number, *rest in rows:
                self.observe(metas[number], ts_ns, flows[flow_number], *rest)
            for session, reason, interventions in ended:
                if session in self._tallies:
                    self._end(self._tallies[session], reason, interventions)

    def cut(self, session: SessionMeta, snapshot: str) -> None:
        """The daemon stops: the session goes on from this snapshot at the next start."""
        if session.id in self._tallies:
            self._tallies[session.id].cut = snapshot

    def _tally(self, session: SessionMeta) -> _Tally:
        tally = self._tallies.get(session.id)
        if tally is None:
            if len(self._tallies) >= self._max_sessions:
                return self._rest
            tally = self._tallies[session.id] = _Tally(session)
        return tally

    def _new_row(self, flow: FlowKey | None, ts_ns: int) -> _Row:
        tally = self._current
        row = [0, 0, 0, 0, 0, 0, 0, 0, ts_ns, ts_ns, 0, 0]
        if tally is self._rest or len(tally.flows) >= self._max_session_flows or self._flow_count >= self._max_flows:
            if tally.omitted is None:
                tally.omitted = row
            return tally.omitted
        self._flow_count += 1
        tally.flows[flow] = row
        return row

    def write(self, file: BinaryIO, capture: str, recovered: bool = False) -> None:
        """Write the lines of this slice, whose capture file is called `capture`, to an open binary file. recovered:
        from the journal of a writer that was killed."""
        tallies = self._tallies.values()
        rows = [row for tally in [*tallies, self._rest] for row in tally.rows()]
        told = {"recovered": True} if recovered else {}
        file.write(_line(self._header(capture) | told | {"sessions": len(tallies)} | _totals(rows)))
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
            "schema": SCHEMA,
            "capture": capture,
            "model": self._model,
            "model_hash": self._model_hash,
            "version": __version__,
            "linktype": LINKTYPE_ETHERNET,
            "snaplen": self._snaplen,
            "created": f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03d}Z",
        }


def _tell(row: _Row, did: int) -> None:
    """Add to a row's history what is new."""
    for i in range(len(LETTERS)):
        if did & ~row[_SEEN] & 1 << i:
            row[_ORDER] = row[_ORDER] << 4 | i + 1
    row[_SEEN] |= did


def _history(row: _Row) -> str:
    letters, order = "", row[_ORDER]
    while order:
        letters = LETTERS[(order & 15) - 1] + letters
        order >>= 4
    return letters


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
        **({"reason": tally.reason} if tally.reason else {}),
        **({"cut": tally.cut} if tally.cut else {}),
        **({"resumed": dict(meta.resumed)} if meta.resumed else {}),
        **({"forked_from": meta.forked_from} if meta.forked_from else {}),
        "findings": tally.findings,
        **({"planted": tally.planted} if tally.planted else {}),
        **({} if tally.interventions is None else {"interventions": dict(tally.interventions)}),
        "flows_omitted": _counts(tally.omitted) if tally.omitted else None,
    }
    yield _json(session)[:-1] + b',"flows":['
    separator = b""
    flows = iter(tally.flows.items())
    while some := [
        _flow(flow, row, tally.flow_findings.get(flow), tally.flow_planted.get(flow))
        for flow, row in islice(flows, _FLOWS_AT_ONCE)
    ]:
        yield separator + _json(some)[1:-1]
        separator = b","
    yield b"]}\n"


def _flow(
    flow: FlowKey | None, row: _Row, findings: dict[str, int] | None, planted: list[tuple[int, str]] | None
) -> dict[str, Any]:
    """A flow's object; `findings` and `planted` stand in it only where there are some."""
    told = _five_tuple(flow) | _counts(row)
    if flow is not None:
        told["history"] = _history(row)
    if findings:
        told["findings"] = findings
    if planted:
        told["planted"] = planted
    return told


def _counts(row: _Row) -> dict[str, Any]:
    return {
        "packets": row[0:2],
        "bytes": row[2:4],
        "ip_bytes": row[4:6],
        "payload_bytes": row[6:8],
        "first_ts_ns": row[_FIRST],
        "last_ts_ns": row[_LAST],
    }


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
