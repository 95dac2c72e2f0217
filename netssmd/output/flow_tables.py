"""Connections as tables: a format is a list of columns, a column is a name and what it says of a connection.

    csv       all that the ledger knows, a row a flow
    conn.log  Zeek's log of connections (TSV), with label, attack and session as columns more
    cicflow   the flow columns of CICFlowMeter's CSV that follow from counts and times, with its `Label`:
              BENIGN or the attack

`conn_state` follows from the history as Zeek defines it (documentation of base/protocols/conn); where the history was
begun in the middle, or is cut, it says what can be said: OTH. `service`, `local_orig` and what else only a payload or a
site's configuration tells is unset.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TextIO

from netssmd.output.ledger_reader import Connection
from netssmd.packet.wire import ICMP, ICMPV6, TCP, UDP

SECOND: Final = 1_000_000_000
PROTOCOLS: Final = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMPV6: "icmp"}


@dataclass(frozen=True, slots=True)
class Column:
    """`type` is Zeek's."""

    name: str
    value: Callable[[Connection], object]
    type: str = "string"


# --- what a column says -----------------------------------------------------------------------------------------------


def conn_state(history: str, proto: int | None) -> str:
    """Zeek's conn_state.

    SF normal end; S0 no answer; S1 open; S2, S3 closed by originator, responder only; REJ refused; RSTO, RSTR reset by
    originator, responder; RSTOS0 SYN then RST without an answer; RSTRH the responder answered a SYN never seen and
    reset; SH, SHR SYN then FIN without the other side; OTH anything else.
    """
    if proto == UDP:
        return {(True, True): "SF", (True, False): "S0", (False, True): "SHR"}.get(
            ("D" in history, "d" in history), "OTH"
        )
    if proto != TCP:
        return "OTH"
    asked, answered = "S" in history, "h" in history
    opened = asked and answered
    if "r" in history and history.find("R") < history.find("r"):  # the responder's came last, or alone
        if asked and not answered and not set(history) & set("DdFf"):
            return "REJ"
        return "RSTR" if asked or set(history) & set("ADF") else "RSTRH"
    if "R" in history:
        if not answered and not set(history) & set("adf"):
            return "RSTOS0" if re.fullmatch(r"S[^HAFD]*R.*", history) else "OTH"
        return "RSTO"
    closes = "F" in history, "f" in history
    if closes == (True, True):
        return "SF" if opened else "OTH"
    if closes == (True, False):
        return "S2" if opened else "SH" if asked and not answered else "OTH"
    if closes == (False, True):
        return "S3" if opened else "SHR" if answered else "OTH"
    if opened:
        return "S1"
    return "S0" if asked and not set(history) & set("hadfr") else "OTH"


def uid(c: Connection) -> str:
    """Like Zeek's: C and 17 letters or digits, the same for the same flow of the same session."""
    number = int.from_bytes(hashlib.sha256(repr((c.session.session, c.flow.five_tuple)).encode()).digest())
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    letters = []
    for _ in range(17):
        number, digit = divmod(number, len(digits))
        letters.append(digits[digit])
    return "C" + "".join(letters)


def _seconds(ns: int) -> str:
    return f"{ns // SECOND}.{ns % SECOND // 1000:06d}"


def _duration_ns(c: Connection) -> int:
    return c.flow.last_ts_ns - c.flow.first_ts_ns


def _per_second(count: int, c: Connection) -> str:
    """CICFlowMeter writes Infinity for a flow of one moment."""
    duration_ns = _duration_ns(c)
    return f"{count * SECOND / duration_ns:.6f}" if duration_ns else "Infinity"


def _flow_id(c: Connection) -> str:
    f = c.flow
    return f"{f.src}-{f.dst}-{f.sport}-{f.dport}-{f.proto}"


def _condition(name: str) -> Callable[[Connection], object]:
    return lambda c: c.session.conditions.get(name)


# --- the tables -------------------------------------------------------------------------------------------------------

CSV: Final = (
    Column("session", lambda c: c.session.session),
    Column("label", lambda c: c.session.label),
    Column("attack", lambda c: int(c.session.attack)),
    Column("proto", lambda c: c.flow.proto),
    Column("src", lambda c: c.flow.src),
    Column("sport", lambda c: c.flow.sport),
    Column("dst", lambda c: c.flow.dst),
    Column("dport", lambda c: c.flow.dport),
    Column("first_ts_ns", lambda c: c.flow.first_ts_ns),
    Column("last_ts_ns", lambda c: c.flow.last_ts_ns),
    Column("orig_packets", lambda c: c.flow.packets[0]),
    Column("resp_packets", lambda c: c.flow.packets[1]),
    Column("orig_bytes", lambda c: c.flow.bytes[0]),
    Column("resp_bytes", lambda c: c.flow.bytes[1]),
    Column("orig_ip_bytes", lambda c: c.flow.ip_bytes[0]),
    Column("resp_ip_bytes", lambda c: c.flow.ip_bytes[1]),
    Column("orig_payload_bytes", lambda c: c.flow.payload_bytes[0]),
    Column("resp_payload_bytes", lambda c: c.flow.payload_bytes[1]),
    Column("history", lambda c: c.flow.history),
    Column("conn_state", lambda c: conn_state(c.flow.history, c.flow.proto)),
    Column("findings", lambda c: sum(c.flow.findings.values())),
    Column("planted", lambda c: len(c.flow.planted)),
    Column("session_complete", lambda c: int(c.complete)),
    Column("rtt_ms", _condition("rtt_ms")),
    Column("rate_mbit", _condition("rate_mbit")),
    Column("loss_pct", _condition("loss_pct")),
    Column("seed", lambda c: c.session.seed),
    Column("model_hash", lambda c: c.session.model_hash),
)

CONN_LOG: Final = (
    Column("ts", lambda c: _seconds(c.flow.first_ts_ns), "time"),
    Column("uid", uid),
    Column("id.orig_h", lambda c: c.flow.src, "addr"),
    Column("id.orig_p", lambda c: c.flow.sport, "port"),
    Column("id.resp_h", lambda c: c.flow.dst, "addr"),
    Column("id.resp_p", lambda c: c.flow.dport, "port"),
    Column("proto", lambda c: PROTOCOLS.get(c.flow.proto or 0, "unknown_transport"), "enum"),
    Column("service", lambda c: None),
    Column("duration", lambda c: _seconds(_duration_ns(c)), "interval"),
    Column("orig_bytes", lambda c: c.flow.payload_bytes[0], "count"),
    Column("resp_bytes", lambda c: c.flow.payload_bytes[1], "count"),
    Column("conn_state", lambda c: conn_state(c.flow.history, c.flow.proto)),
    Column("local_orig", lambda c: None, "bool"),
    Column("local_resp", lambda c: None, "bool"),
    Column("missed_bytes", lambda c: 0, "count"),
    Column("history", lambda c: c.flow.history or None),
    Column("orig_pkts", lambda c: c.flow.packets[0], "count"),
    Column("orig_ip_bytes", lambda c: c.flow.ip_bytes[0], "count"),
    Column("resp_pkts", lambda c: c.flow.packets[1], "count"),
    Column("resp_ip_bytes", lambda c: c.flow.ip_bytes[1], "count"),
    Column("tunnel_parents", lambda c: None, "set[string]"),
    Column("label", lambda c: c.session.label),
    Column("attack", lambda c: "T" if c.session.attack else "F", "bool"),
    Column("session", lambda c: c.session.session),
)

CICFLOW: Final = (
    Column("Flow ID", _flow_id),
    Column("Source IP", lambda c: c.flow.src),
    Column("Source Port", lambda c: c.flow.sport),
    Column("Destination IP", lambda c: c.flow.dst),
    Column("Destination Port", lambda c: c.flow.dport),
    Column("Protocol", lambda c: c.flow.proto),
    Column("Timestamp", lambda c: f"{datetime.fromtimestamp(c.flow.first_ts_ns // SECOND, UTC):%d/%m/%Y %H:%M:%S}"),
    Column("Flow Duration", lambda c: _duration_ns(c) // 1000),
    Column("Total Fwd Packets", lambda c: c.flow.packets[0]),
    Column("Total Backward Packets", lambda c: c.flow.packets[1]),
    Column("Total Length of Fwd Packets", lambda c: c.flow.payload_bytes[0]),
    Column("Total Length of Bwd Packets", lambda c: c.flow.payload_bytes[1]),
    Column("Flow Bytes/s", lambda c: _per_second(sum(c.flow.payload_bytes), c)),
    Column("Flow Packets/s", lambda c: _per_second(sum(c.flow.packets), c)),
    Column("Fwd Packets/s", lambda c: _per_second(c.flow.packets[0], c)),
    Column("Bwd Packets/s", lambda c: _per_second(c.flow.packets[1], c)),
    Column("Label", lambda c: c.session.label if c.session.attack else "BENIGN"),
    Column("Traffic", lambda c: c.session.label),
)


# --- writing ----------------------------------------------------------------------------------------------------------


def write_csv(found: Iterable[Connection], out: TextIO) -> None:
    """All connections, those without a five-tuple too."""
    _write_csv(CSV, found, out)


def write_cicflow(found: Iterable[Connection], out: TextIO) -> None:
    """Connections with a five-tuple."""
    _write_csv(CICFLOW, _named(found), out)


def _named(found: Iterable[Connection]) -> Iterable[Connection]:
    return (c for c in found if c.flow.proto is not None)


def _write_csv(columns: tuple[Column, ...], found: Iterable[Connection], out: TextIO) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    writer.writerows([column.value(connection) for column in columns] for connection in found)


def write_conn_log(found: Iterable[Connection], out: TextIO) -> None:
    """Zeek's ASCII log: connections with a five-tuple."""
    columns = CONN_LOG
    out.write("#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n")
    out.write("\t".join(["#fields", *(column.name for column in columns)]) + "\n")
    out.write("\t".join(["#types", *(column.type for column in columns)]) + "\n")
    for connection in _named(found):
        out.write("\t".join(_zeek(column.value(connection)) for column in columns) + "\n")


_ESCAPED: Final = re.compile(r"[\x00-\x1f\\]|^-$")


def _zeek(value: object) -> str:
    """A value in Zeek's ASCII form: unset is a dash, what would break the line is escaped."""
    if value is None:
        return "-"
    return _ESCAPED.sub(lambda match: f"\\x{ord(match[0]):02x}", str(value))


FORMATS: Final = {"csv": write_csv, "conn.log": write_conn_log, "cicflow": write_cicflow}
