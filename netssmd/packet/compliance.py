"""Does the traffic keep the rules of TCP/IP? One packet at a time, in memory bounded by the number of flows.

In: `wire.Headers` with their time, in capture order. Out: for each packet the findings it raised (a bit each), for each
flow and each capture how often. Nothing raises on any bytes: damaged input is data.

Everything that the checker judges is a row of FINDINGS; everything that it must remember for that is `Flow` and `Side`,
kept up to date by `Checker._update`. A row says where it is tested:

::

    frame     each packet that looks odd, whatever it is      (headers, step_ns) -> bool
    captured  each packet of which all bytes are there        (headers, data) -> bool
    packet    each TCP packet, before it updates its flow     (flow, side, peer, headers) -> bool
              `on` names the packets that can raise it at all, so that ordinary ones pass with one test
    flow      each TCP flow, when it is concluded             (flow) -> bool

A finding with `good` is something to have, the others are defects. Adding one is one row here and its test.

What counts as a flow: a five-tuple, its originator the sender of the SYN (of the first packet where there is none). A
SYN with another initial sequence number opens a new flow, except after a completed handshake and before both FINs or
RST: there it is a finding. Sequence numbers are compared by signed difference modulo 2^32 (RFC 9293 section 3.4).

Payload lengths come from the IP length, never from what was captured; `captured_lengths` is the paper's reading, which
takes a packet without its payload for an empty one (and so finds acknowledgements of data never sent in nearly all real
traces).

The daemon checks what it is about to render (`observe`), `netssmd check` what it reads (`observe_bytes`), where the
checksums of TCP, UDP and ICMP are judged too. A checker is plain data: it can be saved and goes on where it was.

Sources: the paper's section 5.3.2, Tables 3 and 4; RFC 9293 (TCP), RFC 7323 (window scale, timestamps), RFC 2018
(SACK), RFC 1122 sections 4.2.3.5 (R2) and 4.2.3.6 (keep-alives), RFC 1071 (checksums).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from netssmd.packet.answers import DNS_PORT, named_addresses
from netssmd.packet.wire import (
    ACK,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    FIN,
    ICMP,
    IPV4,
    IPV6,
    MALFORMED_OPTIONS,
    MORE_FRAGMENTS,
    NOT_IP,
    OPAQUE,
    RST,
    SYN,
    TCP,
    UDP,
    Headers,
    network_header_len,
    option_at,
    parse,
    pseudo_header_sum,
    signed,
    sum16,
    transport_header_len,
)

UNKNOWN: Final = -1
MAX_FLOWS: Final = 65_536

# Progress of the three-way handshake.
NO_SYN: Final = 0
SYN_SEEN: Final = 1
SYN_ACK_SEEN: Final = 2
ESTABLISHED: Final = 3

# Bits of `Finding.on`. SEQUENCE: not the next expected number. CONTROL: SYN, FIN or RST, or no ACK. OPTIONS: any option
# but timestamps. DATA: payload. STAMPS: the flow's timestamps are missing, or went back.
SEQUENCE: Final = 1
CONTROL: Final = 2
OPTIONS: Final = 4
DATA: Final = 8
STAMPS: Final = 16
ANY: Final = 32

MAX_REPEATS: Final = 15
"""Times that a segment may be sent again in a row: Linux gives up after tcp_retries2 = 15 (RFC 1122's R2)."""

# TCP option kinds, as bits 1 << kind. Bit 0 stands for options that cannot be read to their end.
BAD_OPTIONS: Final = 1 << 0
MSS: Final = 1 << 2
WINDOW_SCALE: Final = 1 << 3
SACK_PERMITTED: Final = 1 << 4
SACK: Final = 1 << 5
TIMESTAMPS: Final = 1 << 8

OPTION_KINDS: Final = {2: "MSS", 3: "WScale", 4: "SACKOK", 8: "Timestamp", 5: "SACK"}
"""The paper's Table 4: option kind -> its name there, in its order."""

_USUAL_OPTIONS: Final = b"\x01\x01\x08\x0a"


class Side:
    """What one end of a flow has sent.

    Attributes:
        isn: initial sequence number, `UNKNOWN` before a SYN. syn_options: kinds in its SYN, as bits.
        first, next: lowest and next expected sequence number, `UNKNOWN` before the first packet.
        fin_end: number after its FIN, `UNKNOWN` without one. fin_acked: the peer acknowledged it.
        ack_first, ack_last: first and latest acknowledgement it sent. ack_fell: one was lower than that before it.
        gaps, rewinds, retransmissions: segments that were not the next expected one. progressed: some were.
        segments: packets that occupy sequence space (payload, SYN or FIN). payload: bytes of payload, repeats included.
        repeated, repeats: the segment it sent again last, and how often in a row.
        shift: its window scale, 0 if not both sides have one, `UNKNOWN` until both SYNs were seen.
        edge: what it may be sent at most: highest acknowledgement plus window so far, `UNKNOWN` while `shift` is.
        tsval: its latest timestamp, `UNKNOWN` before one. reset: it sent an RST.
    """

    __slots__ = (
        "isn", "syn_options", "first", "next", "fin_end", "fin_acked", "ack_first", "ack_last", "ack_fell", "gaps",
        "rewinds", "retransmissions", "progressed", "packets", "segments", "payload", "repeated", "repeats", "shift",
        "edge", "tsval", "reset",
    )  # fmt: skip

    def __init__(self) -> None:
        self.isn: int = UNKNOWN
        self.syn_options: int = 0
        self.first: int = UNKNOWN
        self.next: int = UNKNOWN
        self.fin_end: int = UNKNOWN
        self.fin_acked: bool = False
        self.ack_first: int = UNKNOWN
        self.ack_last: int = UNKNOWN
        self.ack_fell: bool = False
        self.gaps: int = 0
        self.rewinds: int = 0
        self.retransmissions: int = 0
        self.progressed: bool = False
        self.packets: int = 0
        self.segments: int = 0
        self.payload: int = 0
        self.repeated: int = UNKNOWN
        self.repeats: int = 0
        self.shift: int = UNKNOWN
        self.edge: int = UNKNOWN
        self.tsval: int = UNKNOWN
        self.reset: bool = False


class Flow:
    """A TCP flow: both sides, how far the handshake came, and the facts of the packet in hand that the tests read.

    Attributes:
        key: originator's address and port, responder's address and port.
        started_by_syn: its first packet was a SYN. stage: `NO_SYN` .. `ESTABLISHED`. reset: an RST was seen.
        syn_ns, syn_ack_ns, established_ns: times of the latest SYN before its answer, of that answer, of the ACK that
            completed the handshake; 0 if not seen. Established minus SYN is one round trip, wherever it was captured.
        counts: for each row of FINDINGS, packets that raised it (1 or 0 for a finding about the flow, once concluded).
        named: a DNS answer had named its responder before it began.
        length, ahead, kinds: of the packet in hand: payload length, distance from the next expected sequence number
            (0 if there is none yet, and for RST), option kinds as bits. tsval: its timestamp, `UNKNOWN` without.
    """

    __slots__ = (
        "key", "originator", "responder", "started_by_syn", "stage", "reset", "first_ns", "last_ns", "syn_ns",
        "syn_ack_ns", "established_ns", "counts", "named", "length", "ahead", "kinds", "tsval",
    )  # fmt: skip

    def __init__(
        self, key: tuple[bytes, int, bytes, int], ts_ns: int, started_by_syn: bool, named: bool, findings: int
    ) -> None:
        self.key: tuple[bytes, int, bytes, int] = key
        self.originator: Side = Side()
        self.responder: Side = Side()
        self.started_by_syn: bool = started_by_syn
        self.stage: int = NO_SYN
        self.reset: bool = False
        self.first_ns: int = ts_ns
        self.last_ns: int = ts_ns
        self.syn_ns: int = 0
        self.syn_ack_ns: int = 0
        self.established_ns: int = 0
        self.counts: list[int] = [0] * findings
        self.named: bool = named
        self.length: int = 0
        self.ahead: int = 0
        self.kinds: int = 0
        self.tsval: int = UNKNOWN

    def closed(self) -> bool:
        return self.reset or (self.originator.fin_end != UNKNOWN and self.responder.fin_end != UNKNOWN)

    def ending(self) -> str:
        """How the flow ended: one of ENDINGS."""
        fins = (self.originator.fin_end != UNKNOWN) + (self.responder.fin_end != UNKNOWN)
        if fins == 2:
            return "fin_both"
        if self.reset:
            return "rst"
        return "fin_one" if fins else "open"

    def found(self) -> list[str]:
        """Names of the findings of a concluded flow."""
        return [finding.name for finding, count in zip(FINDINGS, self.counts) if count]


ENDINGS: Final = ("fin_both", "fin_one", "rst", "open")


def option_kinds(options: bytes) -> int:
    """Kinds of the TCP options as bits, padding left out; `BAD_OPTIONS` if a length is wrong. Bit 63: any above."""
    if len(options) == 12 and options[:4] == _USUAL_OPTIONS:
        return TIMESTAMPS
    kinds = 0
    i = option_at(options, 0)
    while i >= 0:
        kind = options[i]
        kinds |= 1 << (kind if kind < 63 else 63)
        i = option_at(options, i + options[i + 1])
    return kinds | BAD_OPTIONS if i == MALFORMED_OPTIONS else kinds


def option_value(options: bytes, wanted: int) -> bytes:
    """What follows kind and length of the first option of this kind; empty if there is none."""
    i = option_at(options, 0)
    while i >= 0:
        end = i + options[i + 1]
        if options[i] == wanted:
            return options[i + 2 : end]
        i = option_at(options, end)
    return b""


# ------------------------------------------------------------------------------------------------------------- findings

FrameTest = Callable[[Headers, int], bool]
CapturedTest = Callable[[Headers, bytes], bool]
PacketTest = Callable[[Flow, Side, Side, Headers], bool]
FlowTest = Callable[[Flow], bool]


class Finding(NamedTuple):
    """A row: its name, the paper's row in Table 3 (if any), whether it is good, what defines it, and its test.

    `rfc` is where the rule stands; `known_as` is what Wireshark or Zeek call it.
    """

    name: str
    paper: str
    good: bool
    definition: str
    rfc: str
    known_as: str = ""
    frame: FrameTest | None = None
    captured: CapturedTest | None = None
    on: int = ANY
    packet: PacketTest | None = None
    flow: FlowTest | None = None


    @property
    def by_flow(self) -> bool:
        """It is judged by flow (once a flow is concluded), or a packet that raises it belongs to one."""
        return self.packet is not None or self.flow is not None


def _unreadable(headers: Headers) -> bool:
    if headers.version != NOT_IP or len(headers.link) < 14:
        return False
    ethertype = headers.link[-2] << 8 | headers.link[-1]
    return ethertype == ETHERTYPE_IPV4 or ethertype == ETHERTYPE_IPV6


def _conflicting(headers: Headers) -> bool:
    flags = headers.flags & (SYN | FIN | RST)
    return flags & (flags - 1) != 0 or headers.flags & 0x3F == 0


def _keep_alive(flow: Flow, headers: Headers) -> bool:
    return flow.ahead == -1 and flow.length <= 1 and headers.flags & (SYN | FIN | RST) == 0


def _repeats(flow: Flow, side: Side, headers: Headers) -> bool:
    """Does the segment repeat (or deliver late) sequence numbers between the first and the next expected one?"""
    if flow.ahead >= 0 or signed(headers.seq - side.first) < 0 or _keep_alive(flow, headers):
        return False
    return flow.length > 0 or headers.flags & (SYN | FIN) != 0


def _rewinds(flow: Flow, side: Side, headers: Headers) -> bool:
    return flow.ahead < 0 and not _repeats(flow, side, headers) and not _keep_alive(flow, headers)


def _early_data(flow: Flow, side: Side, headers: Headers) -> bool:
    """Payload before the three-way handshake is through; the originator's ACK may carry the first."""
    if not flow.started_by_syn or flow.stage == ESTABLISHED or headers.flags & (SYN | RST) != 0:
        return False
    return flow.stage != SYN_ACK_SEEN or side is not flow.originator


def _late_data(flow: Flow, side: Side, headers: Headers) -> bool:
    return side.fin_end != UNKNOWN and signed(headers.seq + flow.length - side.fin_end + 1) > 0


def _overruns(flow: Flow, peer: Side, headers: Headers) -> bool:
    """More than the window's edge; one byte may probe a closed window (RFC 9293 section 3.8.6.1)."""
    return flow.length > 1 and peer.edge != UNKNOWN and signed(headers.seq + flow.length - peer.edge) > 0


def _wrong_checksum(headers: Headers, data: bytes) -> bool:
    """Is the checksum of TCP, UDP or ICMP wrong? Not judged where the datagram is in fragments or was cut."""
    if headers.ip_flags & MORE_FRAGMENTS:
        return False
    if headers.transport == UDP and headers.checksum == 0:
        return headers.version == IPV6  # over IPv4 zero says that there is none (RFC 768)
    length = transport_header_len(headers) + headers.payload_len
    if headers.transport == UDP and headers.udp_length_delta:
        length += headers.udp_length_delta
    offset = len(headers.link) + network_header_len(headers)
    if offset + length > len(data):
        return False
    total = sum16(data[offset : offset + length])
    if headers.transport != ICMP or headers.version != IPV4:
        total += pseudo_header_sum(headers, length)
    return total % 65535 != 0


def _sack_unasked(flow: Flow) -> bool:
    sides = [side for side in (flow.originator, flow.responder) if side.isn != UNKNOWN]
    return any(side.syn_options & SACK_PERMITTED == 0 for side in sides)


def _sequence_progress(flow: Flow) -> bool:
    sides = (flow.originator, flow.responder)
    return any(side.progressed for side in sides) and all(side.gaps == 0 and side.rewinds == 0 for side in sides)


def _ack_progress(flow: Flow) -> bool:
    sides = [side for side in (flow.originator, flow.responder) if side.ack_first != UNKNOWN]
    risen = any(signed(side.ack_last - side.ack_first) > 0 for side in sides)
    return risen and not any(side.ack_fell for side in sides)


FINDINGS: Final[tuple[Finding, ...]] = (
    # The paper's Table 3 (a): behaviour to have.
    Finding(
        "handshake", "Correct handshakes found", True,
        "SYN(x), SYN+ACK(y, ack x+1) from the other side, ACK(seq x+1, ack y+1), in this order",
        "RFC 9293 3.5", "tcp.completeness 1+2+4",
        flow=lambda flow: flow.stage == ESTABLISHED,
    ),
    Finding(
        "unreadable_ip", "Correct IPv4 version", False,
        "the ethertype says IP, but version, header length or total length is wrong, or a header is incomplete",
        "RFC 791 3.1, RFC 8200 3", "ip.version, ip.bogus_header_length",
        frame=lambda headers, step_ns: _unreadable(headers),
    ),
    Finding(
        "ack_progress", "ACK progress", True,
        "acknowledgements never fall in either direction, and in one of them the last is higher than the first",
        "RFC 9293 3.4",
        flow=_ack_progress,
    ),
    Finding(
        "seq_progress", "SEQ progress", True,
        "in one direction a packet is beyond the first, in neither one is beyond the next expected number or before "
        "it, retransmissions and keep-alives aside",
        "RFC 9293 3.4",
        flow=_sequence_progress,
    ),
    Finding(
        "fin", "FIN seen", True, "a FIN in either direction", "RFC 9293 3.6", "tcp.completeness.fin",
        flow=lambda flow: flow.originator.fin_end != UNKNOWN or flow.responder.fin_end != UNKNOWN,
    ),
    Finding(
        "fin_ack", "FIN-ACK observed", True, "a FIN at s with payload l, acknowledged later by at least s+l+1",
        "RFC 9293 3.6",
        flow=lambda flow: flow.originator.fin_acked or flow.responder.fin_acked,
    ),
    # Table 3 (b): deviations.
    Finding(
        "unexpected_syn", "Unexpected SYN after estab.", False,
        "a SYN after a completed handshake, before both FINs or RST, with another sequence number than the first SYN's",
        "RFC 9293 3.10.7.4", "Zeek: SYN_inside_connection", on=CONTROL,
        packet=lambda flow, side, peer, headers: headers.flags & SYN != 0
        and flow.stage == ESTABLISHED and not flow.closed() and headers.seq != side.isn,
    ),
    Finding(
        "rst_in_established", "RST in established state", False, "an RST after a completed handshake, before both FINs",
        "RFC 9293 3.5.2", "tcp.connection.rst", on=CONTROL,
        packet=lambda flow, side, peer, headers: headers.flags & RST != 0
        and flow.stage == ESTABLISHED and not flow.closed(),
    ),
    Finding(
        "timestamps_disappeared", "Timestamps disappeared", False,
        "both SYNs carry the timestamps option, a later packet (RST aside) does not", "RFC 7323 3.2", on=STAMPS,
        packet=lambda flow, side, peer, headers: flow.kinds & TIMESTAMPS == 0 and headers.flags & (SYN | RST) == 0
        and side.syn_options & peer.syn_options & TIMESTAMPS != 0,
    ),
    Finding(
        "conflicting_flags", "Conflicting flags", False, "SYN+FIN, SYN+RST, FIN+RST, or no flag at all", "RFC 9293 3.5",
        "Zeek: bad_TCP_header / null scan, tcp.flags", on=CONTROL,
        packet=lambda flow, side, peer, headers: _conflicting(headers),
    ),
    Finding(
        "ack_beyond_sent", "ACK beyond sent data", False,
        "an acknowledgement higher than all that its receiver was seen to send (payload by the IP length, SYN and FIN "
        "one each)",
        "RFC 9293 3.10.7.4", "tcp.analysis.ack_lost_segment",
        packet=lambda flow, side, peer, headers: headers.flags & ACK != 0 and peer.next != UNKNOWN
        and signed(headers.ack - peer.next) > 0,
    ),
    Finding(
        "mss_outside_handshake", "MSS outside handshake", False, "option 2 in a packet without SYN", "RFC 9293 3.7.1",
        "tcp.options.mss_absent", on=OPTIONS,
        packet=lambda flow, side, peer, headers: flow.kinds & MSS != 0 and headers.flags & SYN == 0,
    ),
    Finding(
        "wscale_outside_handshake", "WScale outside handshake", False, "option 3 in a packet without SYN",
        "RFC 7323 2.2", on=OPTIONS,
        packet=lambda flow, side, peer, headers: flow.kinds & WINDOW_SCALE != 0 and headers.flags & SYN == 0,
    ),
    Finding(
        "sack_without_ok", "SACK used w/o OK", False, "option 5 in a flow of which a SYN was seen without option 4",
        "RFC 2018 2", on=OPTIONS,
        packet=lambda flow, side, peer, headers: flow.kinds & SACK != 0 and _sack_unasked(flow),
    ),
    # Beyond the paper.
    Finding(
        "syn_started", "", True, "the first packet of the flow is a SYN without ACK", "RFC 9293 3.5",
        flow=lambda flow: flow.started_by_syn,
    ),
    Finding(
        "dns_before_connect", "", True, "a DNS answer had named the responder's address before the first packet",
        "RFC 1034 5.3.1", "Zeek: dns.log before conn.log",
        flow=lambda flow: flow.named,
    ),
    Finding(
        "gap", "", False, "a segment beyond the next expected sequence number: one before it was lost, or not captured",
        "RFC 9293 3.4", "tcp.analysis.lost_segment, Zeek: content_gap", on=SEQUENCE,
        packet=lambda flow, side, peer, headers: flow.ahead > 0,
    ),
    Finding(
        "rewind", "", False,
        "a segment before the first sequence number that its sender was seen to use, or an empty one before the next "
        "expected (keep-alives aside)",
        "RFC 9293 3.4", "tcp.analysis.out_of_order", on=SEQUENCE,
        packet=lambda flow, side, peer, headers: _rewinds(flow, side, headers),
    ),
    Finding(
        "retransmission", "", False,
        "a segment with payload, SYN or FIN that begins before the next expected sequence number, out of order or not",
        "RFC 9293 3.8.1", "tcp.analysis.retransmission, tcp.analysis.out_of_order", on=SEQUENCE,
        packet=lambda flow, side, peer, headers: _repeats(flow, side, headers),
    ),
    Finding(
        "endless_retransmission", "", False, "the same segment sent again more than 15 times in a row",
        "RFC 1122 4.2.3.5", "tcp.analysis.retransmission", on=SEQUENCE,
        packet=lambda flow, side, peer, headers: side.repeats >= MAX_REPEATS and headers.seq == side.repeated
        and _repeats(flow, side, headers),
    ),
    Finding(
        "window_overrun", "", False,
        "more than one byte of payload beyond the highest window edge that the peer offered",
        "RFC 9293 3.8.6", "tcp.analysis.window_full, Suricata: stream.est_packet_out_of_window", on=DATA,
        packet=lambda flow, side, peer, headers: _overruns(flow, peer, headers),
    ),
    Finding(
        "data_before_handshake", "", False,
        "payload in a flow that began with a SYN, before its handshake is complete; SYN and the ACK that completes it "
        "may carry some",
        "RFC 9293 3.5", "Zeek: data_before_established", on=DATA,
        packet=lambda flow, side, peer, headers: _early_data(flow, side, headers),
    ),
    Finding(
        "data_after_fin", "", False, "payload beyond the sender's own FIN", "RFC 9293 3.6",
        "Zeek: FIN_advanced_last_seq", on=DATA,
        packet=lambda flow, side, peer, headers: _late_data(flow, side, headers),
    ),
    Finding(
        "data_after_reset", "", False, "payload from a side that has sent an RST", "RFC 9293 3.5.2",
        "Zeek: data_after_reset", on=DATA,
        packet=lambda flow, side, peer, headers: side.reset,
    ),
    Finding(
        "tsval_regression", "", False,
        "a timestamp lower than its sender's last one, in a segment that is neither late nor a repetition",
        "RFC 7323 5.3", "Suricata: stream.pkt_invalid_timestamp", on=STAMPS,
        packet=lambda flow, side, peer, headers: flow.tsval != UNKNOWN and flow.ahead >= 0
        and side.tsval != UNKNOWN and signed(flow.tsval - side.tsval) < 0,
    ),
    Finding(
        "malformed_options", "", False, "a TCP option whose length is below 2 or beyond the header", "RFC 9293 3.1",
        "tcp.option.len.invalid", on=OPTIONS,
        packet=lambda flow, side, peer, headers: flow.kinds & BAD_OPTIONS != 0,
    ),
    Finding(
        "tcp_checksum", "", False, "a TCP checksum that is not right, of a segment captured whole", "RFC 9293 3.1",
        "tcp.checksum.status, Zeek: bad_TCP_checksum",
        captured=lambda headers, data: headers.transport == TCP and _wrong_checksum(headers, data),
    ),
    Finding(
        "udp_checksum", "", False, "a UDP checksum that is not right, of a datagram captured whole; 0 over IPv6",
        "RFC 768, RFC 8200 8.1", "udp.checksum.status, Zeek: bad_UDP_checksum",
        captured=lambda headers, data: headers.transport == UDP and _wrong_checksum(headers, data),
    ),
    Finding(
        "icmp_checksum", "", False, "an ICMP checksum that is not right, of a message captured whole",
        "RFC 792, RFC 4443 2.3", "icmp.checksum.status, Zeek: bad_ICMP_checksum",
        captured=lambda headers, data: headers.transport == ICMP and _wrong_checksum(headers, data),
    ),
    Finding(
        "ip_checksum", "", False, "an IPv4 header checksum that is not right", "RFC 791 3.1",
        "ip.checksum.status, Zeek: bad_IP_checksum",
        frame=lambda headers, step_ns: headers.version == IPV4 and headers.checksum_delta != 0,
    ),
    Finding(
        "ip_length", "", False, "the IP length is more than the frame holds", "RFC 791 3.1, RFC 8200 3",
        "ip.bogus_ip_length, Suricata: decoder.ipv4.trunc_pkt",
        frame=lambda headers, step_ns: (headers.version == IPV4 or headers.version == IPV6) and headers.trailer_len < 0,
    ),
    Finding(
        "udp_length", "", False, "the UDP length is not what the IP length leaves (fragments aside)", "RFC 768",
        "udp.length.bad, Suricata: decoder.udp.len_invalid",
        frame=lambda headers, step_ns: headers.transport == UDP and headers.udp_length_delta != 0
        and headers.ip_flags & MORE_FRAGMENTS == 0,
    ),
    Finding(
        "time_regression", "", False, "a packet earlier than the one before it in the capture", "pcap, section 5",
        "capinfos -o",
        frame=lambda headers, step_ns: step_ns < 0,
    ),
)  # fmt: skip

INDEX: Final = {finding.name: i for i, finding in enumerate(FINDINGS)}


def names_of(found: int) -> tuple[str, ...]:
    """The findings that `Checker.observe` gave as bits."""
    return tuple([finding.name for i, finding in enumerate(FINDINGS) if found >> i & 1])


_FRAME_TESTS: Final = [(i, finding.frame) for i, finding in enumerate(FINDINGS) if finding.frame is not None]
_CAPTURED_TESTS: Final = [(i, finding.captured) for i, finding in enumerate(FINDINGS) if finding.captured is not None]
_FLOW_TESTS: Final = [(i, finding.flow) for i, finding in enumerate(FINDINGS) if finding.flow is not None]
_PACKET_TESTS: Final[list[list[tuple[int, PacketTest]]]] = [
    [(i, f.packet) for i, f in enumerate(FINDINGS) if f.packet is not None and f.on & (sort | ANY)]
    for sort in range(ANY)
]
"""By what a packet is (bits of `Finding.on`), the tests it has to pass."""


# -------------------------------------------------------------------------------------------------------------- results


class Totals:
    """Counts over a capture, or over many.

    Attributes:
        captures: how many were added up. packets, tcp_packets, flows: in them (flows: TCP).
        in_packets, in_flows, in_captures: for each row of FINDINGS, how many raised it, have it, have it in any flow.
        options: for each of OPTION_KINDS, packets that carry it. endings: flows by `Flow.ending`.
    """

    __slots__ = (
        "captures", "endings", "flows", "in_captures", "in_flows", "in_packets", "options", "packets",
        "tcp_packets",
    )  # fmt: skip

    def __init__(self) -> None:
        self.captures: int = 0
        self.packets: int = 0
        self.tcp_packets: int = 0
        self.flows: int = 0
        self.in_packets: list[int] = [0] * len(FINDINGS)
        self.in_flows: list[int] = [0] * len(FINDINGS)
        self.in_captures: list[int] = [0] * len(FINDINGS)
        self.options: dict[int, int] = dict.fromkeys(OPTION_KINDS, 0)
        self.endings: dict[str, int] = dict.fromkeys(ENDINGS, 0)

    def add_flow(self, flow: Flow) -> None:
        """Count a concluded flow. Packets were counted as they came."""
        self.flows += 1
        self.endings[flow.ending()] += 1
        for i, count in enumerate(flow.counts):
            if count:
                self.in_flows[i] += 1

    def add(self, other: Totals) -> None:
        """Add another's counts to these."""
        self.captures += other.captures
        self.packets += other.packets
        self.tcp_packets += other.tcp_packets
        self.flows += other.flows
        for i in range(len(FINDINGS)):
            self.in_packets[i] += other.in_packets[i]
            self.in_flows[i] += other.in_flows[i]
            self.in_captures[i] += other.in_captures[i]
        for kind, count in other.options.items():
            self.options[kind] += count
        for ending, count in other.endings.items():
            self.endings[ending] += count


class Checker:
    """Checks one capture, or one live stream, packet by packet.

    Arguments:
        captured_lengths: take the captured bytes for the payload, as the paper did, not what the IP length says.
        max_flows: most flows in memory. Above it the sixteenth that was silent longest is concluded; one that speaks
            again begins anew, mid-stream.
        on_flow: called with each flow when it is concluded.
    """

    __slots__ = ("_captured_lengths", "_flows", "_last_ns", "_max_flows", "_named", "_on_flow", "totals")

    def __init__(
        self,
        captured_lengths: bool = False,
        max_flows: int = MAX_FLOWS,
        on_flow: Callable[[Flow], None] | None = None,
    ) -> None:
        self.totals: Totals = Totals()
        self.totals.captures = 1
        self._captured_lengths: bool = captured_lengths
        self._max_flows: int = max(max_flows, 1)
        self._on_flow: Callable[[Flow], None] | None = on_flow
        self._flows: dict[tuple[bytes, int, bytes, int], Flow] = {}
        self._named: dict[bytes, bool] = {}  # addresses that DNS answers gave, in the order of their first time
        self._last_ns: int = UNKNOWN

    def observe_bytes(self, ts_ns: int, data: bytes, orig_len: int) -> int:
        """Check a frame as captured. Return: as `observe`."""
        headers = parse(data, orig_len)
        found = self.observe(headers, ts_ns)
        if headers.transport != OPAQUE and headers.version != NOT_IP and _wrong_checksum(headers, data):
            for i, test in _CAPTURED_TESTS:
                if test(headers, data):
                    found |= 1 << i
                    self._count(i)
        return found

    def observe(self, headers: Headers, ts_ns: int) -> int:
        """Check one packet.

        Return: the findings it raised, bit i for row i of FINDINGS.
        """
        totals = self.totals
        totals.packets += 1
        found = 0
        step_ns = ts_ns - self._last_ns if self._last_ns != UNKNOWN else 0
        self._last_ns = ts_ns
        if (
            headers.version == NOT_IP or step_ns < 0 or headers.trailer_len < 0 or headers.checksum_delta != 0
            or headers.udp_length_delta != 0
        ):  # fmt: skip
            for i, test in _FRAME_TESTS:
                if test(headers, step_ns):
                    found |= 1 << i
                    self._count(i)
        if headers.transport != TCP or headers.version == NOT_IP:
            if headers.transport == UDP and headers.sport == DNS_PORT:
                self._learn_names(headers)
            return found
        totals.tcp_packets += 1
        flow = self._flow_of(headers, ts_ns)
        if headers.src == flow.key[0] and headers.sport == flow.key[1]:
            side, peer = flow.originator, flow.responder
        else:
            side, peer = flow.responder, flow.originator
        sort = self._look(flow, side, headers)
        for i, packet_test in _PACKET_TESTS[sort]:
            if packet_test(flow, side, peer, headers):
                found |= 1 << i
                flow.counts[i] += 1
                self._count(i)
        self._update(flow, side, peer, headers, ts_ns)
        return found

    def find(self, src: bytes, sport: int, dst: bytes, dport: int) -> Flow | None:
        """The flow of this five-tuple, seen from either end."""
        flow = self._flows.get((src, sport, dst, dport))
        return flow if flow is not None else self._flows.get((dst, dport, src, sport))

    def finish(self) -> Totals:
        """Conclude every flow. Return: the counts of the whole capture."""
        for flow in self._flows.values():
            self._conclude(flow)
        self._flows.clear()
        return self.totals

    def _count(self, i: int) -> None:
        self.totals.in_packets[i] += 1
        self.totals.in_captures[i] = 1

    def _learn_names(self, headers: Headers) -> None:
        """Remember the addresses that a DNS answer gives, as many as flows."""
        for address in named_addresses(headers.body):
            self._named[address] = True
            if len(self._named) > self._max_flows:
                del self._named[next(iter(self._named))]

    def _flow_of(self, headers: Headers, ts_ns: int) -> Flow:
        """The flow that the packet belongs to, opened if it is new."""
        forward = (headers.src, headers.sport, headers.dst, headers.dport)
        backward = (headers.dst, headers.dport, headers.src, headers.sport)
        flow = self._flows.get(forward)
        if flow is None:
            flow = self._flows.get(backward)
        syn = headers.flags & (SYN | ACK) == SYN
        if flow is not None:
            if not syn or not self._reopens(flow, headers):
                return flow
            del self._flows[flow.key]
            self._conclude(flow)
        if len(self._flows) >= self._max_flows:
            self._evict()
        key = backward if headers.flags & (SYN | ACK) == SYN | ACK else forward
        flow = Flow(key, ts_ns, syn, key[2] in self._named, len(FINDINGS))
        self._flows[key] = flow
        return flow

    def _reopens(self, flow: Flow, headers: Headers) -> bool:
        """Does this SYN open a new flow on the five-tuple of an old one?"""
        originates = headers.src == flow.key[0] and headers.sport == flow.key[1]
        side = flow.originator if originates else flow.responder
        if side.packets == 0 or headers.seq == side.isn:
            return False
        return flow.stage != ESTABLISHED or flow.closed()

    def _look(self, flow: Flow, side: Side, headers: Headers) -> int:
        """Take down the facts of the packet in hand. Return: what it is, as bits of `Finding.on`."""
        length = headers.payload_len
        if self._captured_lengths and len(headers.body) < length:
            length = len(headers.body)
        flow.length = length
        flow.kinds = option_kinds(headers.tcp_options) if headers.tcp_options else 0
        if flow.kinds & ~TIMESTAMPS:
            for kind in OPTION_KINDS:
                if flow.kinds >> kind & 1:
                    self.totals.options[kind] += 1
        elif flow.kinds:
            self.totals.options[8] += 1
        flow.tsval = UNKNOWN
        if flow.kinds & TIMESTAMPS:
            options = headers.tcp_options
            stamps = options[4:8] if options[:4] == _USUAL_OPTIONS else option_value(options, 8)[:4]
            flow.tsval = int.from_bytes(stamps, "big") if len(stamps) == 4 else UNKNOWN
        flow.ahead = 0
        if side.next != UNKNOWN and headers.flags & RST == 0:
            flow.ahead = signed(headers.seq - side.next)
        sort = SEQUENCE if flow.ahead != 0 else 0
        if headers.flags & (SYN | FIN | RST | ACK) != ACK:
            sort |= CONTROL
        if flow.kinds & ~TIMESTAMPS:
            sort |= OPTIONS
        if length:
            sort |= DATA
        if flow.tsval == UNKNOWN:
            if side.syn_options & TIMESTAMPS:
                sort |= STAMPS
        elif side.tsval != UNKNOWN and signed(flow.tsval - side.tsval) < 0:
            sort |= STAMPS
        return sort

    def _update(self, flow: Flow, side: Side, peer: Side, headers: Headers, ts_ns: int) -> None:
        """Take the packet into the flow's state."""
        flags = headers.flags
        flow.last_ns = ts_ns
        side.packets += 1
        side.payload += flow.length
        if flags & SYN:
            self._handshake_syn(flow, side, peer, headers, ts_ns)
        elif (
            flow.stage == SYN_ACK_SEEN and side is flow.originator and flags & (ACK | RST) == ACK
            and flow.ahead == 0 and headers.ack == (peer.isn + 1) & 0xFFFF_FFFF
        ):  # fmt: skip
            flow.stage = ESTABLISHED
            flow.established_ns = ts_ns
        if flags & RST:
            flow.reset = True
            side.reset = True
        else:
            self._advance(flow, side, headers)
            if flow.tsval != UNKNOWN and (side.tsval == UNKNOWN or signed(flow.tsval - side.tsval) > 0):
                side.tsval = flow.tsval
        if flags & ACK:
            self._acknowledge(side, peer, headers)

    def _handshake_syn(self, flow: Flow, side: Side, peer: Side, headers: Headers, ts_ns: int) -> None:
        if flow.stage == ESTABLISHED:
            return
        side.syn_options = flow.kinds
        side.isn = headers.seq
        if flow.kinds & WINDOW_SCALE and flow.stage < SYN_ACK_SEEN:
            scale = option_value(headers.tcp_options, 3)
            side.shift = min(scale[0], 14) if scale else 0  # RFC 7323 section 2.3
        if headers.flags & (ACK | FIN | RST) == 0:
            if side is flow.originator and flow.stage <= SYN_SEEN:
                flow.stage = SYN_SEEN
                flow.syn_ns = ts_ns
        elif (
            flow.stage == SYN_SEEN and side is flow.responder and headers.flags & (FIN | RST) == 0
            and (headers.ack == peer.next or headers.ack == (peer.isn + 1) & 0xFFFF_FFFF)
        ):  # fmt: skip
            # Payload in the SYN (RFC 7413) may be acknowledged with it or not.
            flow.stage = SYN_ACK_SEEN
            flow.syn_ack_ns = ts_ns
            scaled = side.syn_options & peer.syn_options & WINDOW_SCALE != 0
            side.shift = side.shift if scaled else 0
            peer.shift = peer.shift if scaled else 0

    def _advance(self, flow: Flow, side: Side, headers: Headers) -> None:
        """Move the sequence numbers of a side on."""
        flags = headers.flags
        taken = flow.length + (1 if flags & SYN else 0) + (1 if flags & FIN else 0)
        end = (headers.seq + taken) & 0xFFFF_FFFF
        if taken:
            side.segments += 1
        if flags & FIN and side.fin_end == UNKNOWN:
            side.fin_end = end
        if side.next == UNKNOWN:
            side.first = headers.seq
            side.next = end
            return
        if flow.ahead > 0:
            side.gaps += 1
        elif flow.ahead < 0:
            if _repeats(flow, side, headers):
                side.retransmissions += 1
                side.repeats = side.repeats + 1 if headers.seq == side.repeated else 1
                side.repeated = headers.seq
            elif not _keep_alive(flow, headers):
                side.rewinds += 1
        if signed(headers.seq - side.first) > 0:
            side.progressed = True
        if signed(end - side.next) > 0:
            side.next = end

    def _acknowledge(self, side: Side, peer: Side, headers: Headers) -> None:
        ack = headers.ack
        if peer.fin_end != UNKNOWN and signed(ack - peer.fin_end) >= 0:
            peer.fin_acked = True
        if headers.flags & RST:
            return
        if side.ack_first == UNKNOWN:
            side.ack_first = ack
        elif signed(ack - side.ack_last) < 0:
            side.ack_fell = True
        side.ack_last = ack
        if side.shift != UNKNOWN and peer.shift != UNKNOWN:
            edge = (ack + (headers.window if headers.flags & SYN else headers.window << side.shift)) & 0xFFFFFFFF
            if side.edge == UNKNOWN or signed(edge - side.edge) > 0:
                side.edge = edge

    def _conclude(self, flow: Flow) -> None:
        for i, test in _FLOW_TESTS:
            if test(flow):
                flow.counts[i] = 1
                self.totals.in_captures[i] = 1
        self.totals.add_flow(flow)
        if self._on_flow is not None:
            self._on_flow(flow)

    def _evict(self) -> None:
        """Conclude the sixteenth of the flows that was silent longest."""
        oldest = sorted(self._flows.values(), key=lambda flow: flow.last_ns)
        for flow in oldest[: len(oldest) // 16 + 1]:
            del self._flows[flow.key]
            self._conclude(flow)
