"""Defects to plant: what each does to a good packet, and which finding it is.

In: a packet's headers and its flow as the checker knows it. Out: changed headers, or changed bytes of the rendered
frame, or no packet at all. One table, two uses: the mutant corpus (tools/mutants.py plants each a known number of times
into a clean capture and asks every referee) and the daemon's anomaly dial (engine/anomalies.py).

::

    fits      may this packet have it?           (headers, flow, side, peer) -> bool; flow is None for what is not TCP
    change    what it does to the headers        (headers, flow, side, peer), on a copy
    frame     what it does to the frame's bytes  (frame, headers) -> frame
    drop, copies, back_ns                        left out; sent so many times more; so much earlier

A defect may have others in its wake (after a planted RST the flow goes on: data after reset).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Final, NamedTuple

from netssmd.packet.compliance import (
    ESTABLISHED,
    SACK_PERMITTED,
    SYN_ACK_SEEN,
    SYN_SEEN,
    TIMESTAMPS,
    UNKNOWN,
    Flow,
    Side,
)
from netssmd.packet.wire import ACK, FIN, ICMP, IPV4, PSH, RST, SYN, TCP, UDP, Headers, network_header_len

_FAR: Final = 100_000  # beyond what is in flight, within 2^31
_FIELDS: Final[tuple[str, ...]] = tuple(getattr(Headers, "__mypyc_attrs__", ()) or Headers.__slots__)

Fits = Callable[[Headers, Flow | None, Side, Side], bool]
Change = Callable[[Headers, Flow | None, Side, Side], None]


class Mutant(NamedTuple):
    """A row: its name, the finding that it is, what is done, where, and how. `live`: the daemon can plant it."""

    name: str
    finding: str
    definition: str
    fits: Fits
    change: Change | None = None
    frame: Callable[[bytes, Headers], bytes] | None = None
    drop: bool = False
    copies: int = 0
    back_ns: int = 0

    @property
    def live(self) -> bool:
        """One packet in, one or none out, at its own time."""
        return not self.copies and not self.back_ns


def copy_of(headers: Headers) -> Headers:
    """The same headers, to be changed."""
    copy = Headers()
    for field in _FIELDS:
        setattr(copy, field, getattr(headers, field))
    return copy


# --- which packets can have it ----------------------------------------------------------------------------------------


def _empty_ack(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> bool:
    """A pure acknowledgement in the middle of a conversation."""
    if flow is None or flow.stage != ESTABLISHED or flow.closed() or side.fin_end != UNKNOWN:
        return False
    return headers.flags == ACK and headers.payload_len == 0 and peer.fin_end == UNKNOWN and side.payload > 0


def _data(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> bool:
    """A segment with payload in the middle of a conversation, the next expected one."""
    if flow is None or flow.stage != ESTABLISHED or flow.closed():
        return False
    return headers.payload_len > 0 and headers.flags & (SYN | FIN | RST) == 0 and headers.seq == side.next


def _stamped(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> bool:
    return _empty_ack(headers, flow, side, peer) and side.syn_options & peer.syn_options & TIMESTAMPS != 0


def _stamped_data(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> bool:
    return _data(headers, flow, side, peer) and len(headers.tcp_options) == 12 and side.tsval > 0


def _without_sack(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> bool:
    return _empty_ack(headers, flow, side, peer) and side.syn_options & SACK_PERMITTED == 0


def _after_own_fin(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> bool:
    return side.fin_end != UNKNOWN and headers.flags == ACK and headers.payload_len == 0 and not side.reset


def _last_of_handshake(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> bool:
    """The ACK that completes it, where the responder is the one who will speak first (the tool's base has such)."""
    if flow is None or flow.stage != SYN_ACK_SEEN or side is not flow.originator:
        return False
    return headers.flags == ACK and headers.payload_len == 0 and headers.dport in (21, 22, 25)


def _second_of_handshake(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> bool:
    return flow is not None and flow.stage == SYN_SEEN and headers.flags & (SYN | ACK) == SYN | ACK


def _ipv4(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> bool:
    return headers.version == IPV4 and headers.payload_len > 0


def _tcp(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> bool:
    return headers.transport == TCP and headers.payload_len > 0


def _udp(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> bool:
    return headers.transport == UDP and headers.payload_len > 8 and headers.ip_flags & 1 == 0


def _icmp(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> bool:
    return headers.transport == ICMP


# --- what is done to it -----------------------------------------------------------------------------------------------


def _set(**fields: int) -> Change:
    """These fields get these values."""

    def change(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> None:
        for name, value in fields.items():
            setattr(headers, name, value)

    return change


def _syn(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> None:
    headers.flags, headers.seq, headers.ack, headers.tcp_options = SYN, (headers.seq + _FAR) & 0xFFFFFFFF, 0, b""


def _far_ack(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> None:
    headers.ack = (peer.next + _FAR) & 0xFFFFFFFF


def _old_seq(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> None:
    headers.seq = (side.first - 5000) & 0xFFFFFFFF


def _at_the_edge(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> None:
    headers.seq = peer.edge


def _no_options(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> None:
    headers.tcp_options = b""


def _options(more: bytes) -> Change:
    def change(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> None:
        headers.tcp_options = (headers.tcp_options + more)[-40:]

    return change


def _old_stamp(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> None:
    options = headers.tcp_options
    headers.tcp_options = options[:4] + ((side.tsval - _FAR) & 0xFFFFFFFF).to_bytes(4, "big") + options[8:]


def _more_data(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> None:
    headers.flags, headers.payload_len, headers.body = PSH | ACK, 20, bytes(20)


def _longer_than_the_frame(headers: Headers, flow: Flow | None, side: Side, peer: Side) -> None:
    headers.payload_len, headers.trailer_len = headers.payload_len + 100, headers.trailer_len - 100


def _flip(at: Callable[[Headers], int], bits: int) -> Callable[[bytes, Headers], bytes]:
    """Turn bits of the byte at this place."""

    def frame(data: bytes, headers: Headers) -> bytes:
        i = at(headers)
        return data[:i] + bytes((data[i] ^ bits,)) + data[i + 1 :] if i < len(data) else data

    return frame


def _network(headers: Headers) -> int:
    return len(headers.link)


def _transport(offset: int) -> Callable[[Headers], int]:
    return lambda headers: len(headers.link) + network_header_len(headers) + offset


MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant("lost_segment", "gap", "a segment with payload is left out", _data, drop=True),
    Mutant("lost_syn_ack", "handshake", "the SYN+ACK is left out: no handshake", _second_of_handshake, drop=True),
    Mutant("lost_last_ack", "data_before_handshake", "the handshake's ACK is left out and the responder speaks first",
           _last_of_handshake, drop=True),
    Mutant("syn_in_established", "unexpected_syn", "an ACK becomes a SYN far ahead", _empty_ack, _syn),
    Mutant("rst_in_established", "rst_in_established", "an ACK becomes an RST", _empty_ack, _set(flags=RST)),
    Mutant("rst_and_on", "data_after_reset", "the same; its sender goes on sending", _empty_ack, _set(flags=RST)),
    Mutant("null_flags", "conflicting_flags", "an ACK loses all flags", _empty_ack, _set(flags=0)),
    Mutant("syn_fin", "conflicting_flags", "an ACK becomes SYN+FIN", _empty_ack, _set(flags=SYN | FIN)),
    Mutant("far_ack", "ack_beyond_sent", "an ACK acknowledges 100,000 bytes never sent", _empty_ack, _far_ack),
    Mutant("old_sequence", "rewind", "an ACK from 5,000 before its sender's first number", _empty_ack, _old_seq),
    Mutant("beyond_window", "window_overrun", "a segment starts where the peer's window ends", _data, _at_the_edge),
    Mutant("late_data", "data_after_fin", "an ACK behind its sender's FIN gets 20 bytes of payload", _after_own_fin,
           _more_data),
    Mutant("resent", "retransmission", "a segment is sent twice", _data, copies=1),
    Mutant("resent_for_ever", "endless_retransmission", "a segment is sent 20 times more", _data, copies=20),
    Mutant("stamps_gone", "timestamps_disappeared", "an ACK loses its timestamps", _stamped, _no_options),
    Mutant("stamp_back", "tsval_regression", "a timestamp 100,000 lower than the last", _stamped_data, _old_stamp),
    Mutant("mss_outside", "mss_outside_handshake", "an ACK gets an MSS option", _empty_ack, _options(b"\2\4\5\xb4")),
    Mutant("wscale_outside", "wscale_outside_handshake", "an ACK gets a window scale option", _empty_ack,
           _options(b"\3\3\7\1")),
    Mutant("sack_unasked", "sack_without_ok", "an ACK gets a SACK block that nobody permitted", _without_sack,
           _options(b"\1\1\5\12" + bytes(8))),
    Mutant("option_length_zero", "malformed_options", "an ACK gets an option of length 0", _empty_ack,
           _options(b"\x1e\0\0\0")),
    Mutant("ip_version", "unreadable_ip", "IP version 5", _ipv4, frame=_flip(_network, 0x10)),
    Mutant("ip_checksum", "ip_checksum", "an IP checksum that is 1 too high", _ipv4, _set(checksum_delta=1)),
    Mutant("ip_length", "ip_length", "an IP length 100 more than the frame holds", _tcp, _longer_than_the_frame),
    Mutant("tcp_checksum", "tcp_checksum", "a bit of the TCP checksum turned", _tcp, frame=_flip(_transport(16), 1)),
    Mutant("udp_checksum", "udp_checksum", "a bit of the UDP checksum turned", _udp, frame=_flip(_transport(6), 1)),
    Mutant("icmp_checksum", "icmp_checksum", "a bit of the ICMP checksum turned", _icmp, frame=_flip(_transport(2), 1)),
    Mutant("udp_length", "udp_length", "a UDP length 8 less than the IP length leaves", _udp,
           _set(udp_length_delta=-8)),
    Mutant("time_back", "time_regression", "a packet 1 s earlier", _data, back_ns=1_000_000_000),
)  # fmt: skip

BY_NAME: Final = {mutant.name: mutant for mutant in MUTANTS}
LIVE: Final = tuple(mutant.name for mutant in MUTANTS if mutant.live)
"""Names that the anomaly dial knows."""


def no_such_defect(name: str) -> str:
    """What to say to a name that is none of `LIVE`."""
    near = difflib.get_close_matches(name, LIVE, 1)
    guess = f"did you mean {near[0]}? " if near else ""
    return f"no such defect; {guess}there are {', '.join(LIVE)}"
