"""The ledger's fields: each line of a ledger is one of these, and this is where a field is told.

Reader (ledger_reader.py), docs/ledger.md and docs/ledger.schema.json are made from these classes (`python
tools/ledger.py` writes the documents); the writer is ledger.py, and a test holds real output against them. A new field
is a line here with its description; it has a default, so that ledgers written before it are read too. When a field
goes, or means something else, SCHEMA is raised.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

Pair: TypeAlias = tuple[int, int]
"""[from the originator, from the responder]"""


def told(description: str) -> Meta:
    """A field's description."""
    return Meta(description=description)


class FlowRow(msgspec.Struct):
    """A flow of a session in one slice. Counts are pairs: [from the originator, from the responder]."""

    packets: Annotated[Pair, told("packets")]
    bytes: Annotated[Pair, told("bytes on the wire, from the link header on")]
    ip_bytes: Annotated[Pair, told("bytes from the IP header on; 0 where there is none")]
    payload_bytes: Annotated[Pair, told("bytes behind the transport header, by the IP length")]
    first_ts_ns: Annotated[int, told("time of the first packet, nanoseconds since 1970")]
    last_ts_ns: Annotated[int, told("time of the last packet")]
    proto: Annotated[int | None, told("IP protocol number; null for packets without a five-tuple (ARP)")] = None
    src: Annotated[str, told("originator's address; missing where `proto` is null, as are the next three")] = ""
    sport: Annotated[int, told("its port; 0 where there are none")] = 0
    dst: Annotated[str, told("responder's address")] = ""
    dport: Annotated[int, told("its port")] = 0
    history: Annotated[
        str,
        told(
            "what was done, each thing when first seen in this slice, in upper case by the originator, as Zeek writes "
            "it. TCP: s SYN, h SYN with ACK, d payload, f FIN, r RST, a an ACK with none of these. UDP: d. Others: none"
        ),
    ] = ""
    findings: Annotated[
        dict[str, int], told("packets that broke a rule of TCP/IP, by finding; missing if none did")
    ] = msgspec.field(default_factory=dict)
    planted: Annotated[
        list[tuple[int, str]],
        told("time and defect of each packet that was given one, the first 1,000; missing if none was"),
    ] = msgspec.field(default_factory=list)

    @property
    def five_tuple(self) -> tuple[int | None, str, int, str, int]:
        """What names a flow in its session."""
        return self.proto, self.src, self.sport, self.dst, self.dport


class Counts(msgspec.Struct):
    """Sums of flows that are not told one by one."""

    packets: Annotated[Pair, told("packets")]
    bytes: Annotated[Pair, told("bytes on the wire")]
    ip_bytes: Annotated[Pair, told("bytes from the IP header on")]
    payload_bytes: Annotated[Pair, told("bytes behind the transport header")]
    first_ts_ns: Annotated[int, told("time of the first packet")]
    last_ts_ns: Annotated[int, told("time of the last packet")]


class Header(msgspec.Struct, tag="header", tag_field="type", kw_only=True):
    """The first line: about the capture."""

    schema: Annotated[int, told("version of this format: 1")]
    capture: Annotated[str, told("file name of the capture that this ledger stands beside")]
    model: Annotated[str, told("name of the model, as it was asked for")]
    model_hash: Annotated[str, told("SHA-256 of its weights and configuration")]
    version: Annotated[str, told("of netssmd")]
    linktype: Annotated[int, told("of the capture: 1 is Ethernet")]
    snaplen: Annotated[int, told("bytes kept of a packet at most")]
    created: Annotated[str, told("when the slice was completed, UTC")]
    sessions: Annotated[int | None, told("session lines that follow; null if a killed writer left no journal")]
    packets: Annotated[int, told("packets in the capture")]
    first_ts_ns: Annotated[int | None, told("time of the first packet, nanoseconds since 1970")] = None
    last_ts_ns: Annotated[int | None, told("time of the last packet")] = None
    bytes: Annotated[int | None, told("bytes on the wire")] = None
    recovered: Annotated[
        bool,
        told("the writer was killed, and this ledger made from its journal; missing otherwise"),
    ] = False


class Resumed(msgspec.Struct):
    """A session that began in an earlier run of the daemon and went on from a snapshot of it."""

    snapshot: Annotated[str, told("name of the snapshot; `cut` of the earlier run's ledger, if that was stopped")]
    ts_ns: Annotated[int, told("time of the earlier run at which the snapshot was taken")]
    shift_ns: Annotated[int, told("how much later the session's packets are than they were to be")]
    clean: Annotated[
        bool,
        told(
            "the earlier run was stopped: nothing is lost or repeated. Otherwise it was killed, and at live pace what "
            "it sent after `ts_ns` is made again, later"
        ),
    ]


class SessionLine(msgspec.Struct, tag="session", tag_field="type", kw_only=True):
    """A session that spoke or ended in this slice."""

    session: Annotated[str, told("the daemon's seed and the session's number; unique in a run")]
    label: Annotated[str | None, told("what the traffic is")]
    attack: Annotated[
        bool, told("the label matches a pattern of `traffic.attacks` (`attack-*`): all flows are an attack's")
    ] = False
    conditions: Annotated[
        dict[str, float],
        told(
            '`rtt_ms`, `rate_mbit`, `loss_pct` that the model was told; one that is "unknown" is missing. `packets`: '
            "how long the session was ordered to be (`extent`; 0: it was not to be told)"
        ),
    ]
    seed: Annotated[int, told("of the session's random streams")]
    model_hash: Annotated[str, told("SHA-256 of the model that spoke")]
    first_ts_ns: Annotated[int | None, told("time of its first packet in this slice")]
    last_ts_ns: Annotated[int | None, told("time of its last packet in this slice")]
    packets: Annotated[int, told("its packets in this slice")]
    bytes: Annotated[int, told("their bytes on the wire")]
    complete: Annotated[bool, told("it ended in this slice")]
    reason: Annotated[
        str,
        told(
            "what ended it: `end` by itself, `packets`, `tokens`, `duration`, `silent`, `late`, by a command "
            "(`ordered`), or its state was no longer finite (`broken`); `stopped`: it would have gone on, but the "
            "daemon ended and kept it in no snapshot; missing until then"
        ),
    ] = ""
    cut: Annotated[
        str | None, told("the daemon stopped in this slice, and kept the session in this snapshot; missing otherwise")
    ] = None
    resumed: Annotated[
        Resumed | None, told("where the session went on from, if it began in an earlier run; missing otherwise")
    ] = None
    forked_from: Annotated[
        str, told("session that it is a copy of, from the moment of the copy on; missing otherwise")
    ] = ""
    findings: Annotated[dict[str, int], told("packets that broke a rule of TCP/IP, by finding (compliance.md)")]
    planted: Annotated[
        dict[str, int], told("packets given a defect on purpose, by defect (compliance.md); missing if none was")
    ] = msgspec.field(default_factory=dict)
    interventions: Annotated[
        dict[str, int] | None,
        told("draws that the guide turned away, by rule (compliance.md), once it has ended; missing without a guide"),
    ] = None
    flows: Annotated[list[FlowRow], told("its flows in this slice")]
    flows_omitted: Annotated[
        Counts | None, told("sums of its flows beyond 100,000 of a session or of a slice; null if none")
    ] = None


class Omitted(msgspec.Struct, tag="omitted", tag_field="type", kw_only=True):
    """A last line, if there were more than 100,000 sessions: their sums."""

    first_ts_ns: Annotated[int | None, told("time of the first packet")]
    last_ts_ns: Annotated[int | None, told("time of the last packet")]
    packets: Annotated[int, told("packets")]
    bytes: Annotated[int, told("bytes on the wire")]


Line: TypeAlias = Header | SessionLine | Omitted

TITLES: dict[str, type[msgspec.Struct]] = {
    '`type` "header"': Header,
    '`type` "session"': SessionLine,
    "`resumed`": Resumed,
    "`flows[]`": FlowRow,
    "`flows_omitted`": Counts,
    '`type` "omitted"': Omitted,
}


def tables() -> str:
    """The fields, as docs/ledger.md shows them."""
    lines = []
    for title, kind in TITLES.items():
        lines += [f"### {title}", "", f"{kind.__doc__}", "", "| field | |", "|---|---|"]
        properties = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
        lines += [f"| `{name}` | {p['description']} |" for name, p in properties.items() if name != "type"]
        lines.append("")
    return "\n".join(lines)
