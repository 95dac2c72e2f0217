"""The contexts of a session: what is known about its hosts, flows and senders, and what follows from it.

This is header compression (RFC 1144, RFC 5795, RFC 6846) turned into a language: both ends of the codec keep one
`Context`; what it predicts costs no token, what it can't predict becomes one. Everything that the encoder and the
decoder must agree on lives in this file; they differ only in whether a value is read from a packet or from a token.

::

    Context ── hosts (most recent first, per IP version)
            ├─ services (most recent first): originator, responder, protocol, port
            └─ flows (most recent first) ── Side 0, what the originator will probably send next
                                         └─ Side 1, what the responder will

Tokens of a packet, in order; [x] only if the one before announced it::

    WHO ┬ flow r, direction d ──────────────────────────────────────────────┐
        ├ NEW SERVICE [HOST] [HOST] [PORT] [PORT] [PROTOCOL] EXTENT ────────┤
        ├ FAR RANK_HIGH RANK_LOW ───────────────────────────────────────────┤
        │   ┌───────────────────────────────────────────────────────────────┘
        │   ├ TCP_SHAPE [FLAGS] [LENGTH] [ACKED] [WINDOW] [STACK] [DEVIATION [SEQUENCE] [TCP_OPTIONS] [NETWORK ..]]
        │   │   [KIND]
        │   ├ UDP_SHAPE [LENGTH] [NETWORK ..] [KIND]
        │   ├ ICMP_SHAPE [BYTE BYTE] [LENGTH] [NETWORK ..]
        │   ├ OPAQUE_SHAPE [LENGTH] [NETWORK ..]
        │   └ ARP_SHAPE
        │   └ IAT
        ├ ESCAPE BYTE (how many) BYTE*  LENGTH IAT
        └ END

Identities (addresses, MACs, ephemeral ports, initial sequence numbers, origins of counters, places inside a bin, and
whatever a capture does that no context predicts) never become tokens. They come from an `IdentitySource`: the recorded
ones give the original packets back, fresh ones give new packets of the same behaviour.

Sequence numbers are kept modulo 2^32 and compared by signed difference (RFC 9293 section 3.4). `Side.ends` lists the
segment boundaries that the peer has not acknowledged yet, so acknowledgements and retransmissions are counted in
segments and can't point at what was never sent. Timestamps follow RFC 7323 section 4.3 (TS.Recent) at 1 kHz.
"""

from __future__ import annotations

from typing import Final, Protocol

from netssmd.codec import vocab
from netssmd.codec.vocab import Stack, Vocabulary
from netssmd.packet.wire import (
    ACK,
    ARP,
    FIN,
    ICMP,
    ICMPV6,
    IPV4,
    IPV6,
    OPAQUE,
    RST,
    SYN,
    TCP,
    UDP,
    Headers,
    option_at,
    signed,
)

UNKNOWN: Final = -1
MAX_ENDS: Final = 256
MAX_HOSTS: Final = 1024
FULL_FRAME: Final = 1460
FRAGMENT_SIZE: Final = 1480

# TCP states of one side.
CLOSED: Final = 0
SYN_SENT: Final = 1
OPEN: Final = 2
FIN_SENT: Final = 3
FIN_ACKED: Final = 4
RESET: Final = 5

# Phases of a flow.
NO_PHASE: Final = 0
OPENED: Final = 1
HALF_CLOSED: Final = 2
SHUT: Final = 3

# Bits of the exception word that is recorded for each packet: which predictions, carried by no token, failed.
X_LINK: Final = 1
X_BODY: Final = 2
X_CAPTURED: Final = 4
X_TRAILER: Final = 8
X_CHECKSUM: Final = 16
X_TSVAL: Final = 32
X_TSECR: Final = 64
X_SACK: Final = 128
X_FLOW_LABEL: Final = 256
X_URGENT: Final = 512
X_ACK_FIELD: Final = 1024
X_RESERVED: Final = 2048
X_UDP_LENGTH: Final = 4096
X_FRAGMENT: Final = 8192
X_REST: Final = 16384

TIMESTAMPS: Final = b"\x01\x01\x08\x0a"
OFFERED: Final = (3, 4, 8)  # options that an answer has only if they were offered: window scale, SACK, timestamps
DEFAULT_STACK: Final = Stack(
    bytes.fromhex("020405b40402080a000000000000000001030307"), window=64240, ttl=64, tos=0, ip_flags=2, zero_id=False
)
NO_EXTENT: Final = (UNKNOWN, UNKNOWN, UNKNOWN)

LONGEST_NS: Final = 1 << 62

# How the last packets of a flow end it, where they are drawn: anyhow, as in a recording; with FINs; with a FIN, and
# then with a FIN or an RST; with an RST.
ENDS_ANYHOW: Final = 0
ENDS_CLOSED: Final = 1
ENDS_CLOSED_OR_RESET: Final = 2
ENDS_RESET: Final = 3
ENDS_CLOSED_THOUGH_RESET: Final = 4  # the peer of a side that has closed sends its FIN, even if that side resets
CLOSING: Final = 3  # packets that close a connection: FIN, FIN, ACK
CLOSING_RESET: Final = 6  # FIN, data that crosses it, RST, FIN, RST
BEHIND_RST: Final = 3  # packets of the peer, on their way or its FIN
MOST_OVERTIME: Final = 16  # packets that a flow is given beyond its extent to be closed in
ECHOES: Final = ((8, 0), (0, 0), (128, 0), (129, 0))


class IdentitySource(Protocol):
    """Where identities come from: a recording, or an address plan with a random stream."""

    def fresh(self) -> bool:
        """Are the next identities made up, not recorded? Fresh packets are held to the MTU."""

    def within(self, n: int) -> int:
        """A place inside a bin of `n` values: 0..n-1, uniform if fresh."""

    def residual(self) -> int:
        """What was left over after prediction; fresh: 0."""

    def word(self, bits: int) -> int:
        """The origin of a counter (ISN, IP-id, TSval, echo identifier, flow label): `bits` random bits if fresh."""

    def host(self, version: int, cast: int, role: int) -> tuple[bytes, bytes]:
        """Address and MAC of a host new to the session; cast 0 unicast, 1 multicast, 2 broadcast; role 0 originator."""

    def settle(self, address: bytes, port: int) -> tuple[bytes, bytes]:
        """Address and MAC of a responder new to the session, which `host` dealt before its port was known; port -1:
        a neighbour that ARP looks for. Asked of fresh identities only."""

    def port(self, port_class: int) -> int:
        """A port of `vocab.PORT_CLASSES`."""

    def link(self, default: bytes) -> bytes:
        """A sender's link header, given the one that follows from the hosts' MACs."""

    def blob(self, n: int) -> bytes:
        """`n` bytes that mean nothing to the model; fresh: zeros."""


class Host:
    """An address that has been seen in the session, and how it writes IP headers."""

    __slots__ = ("address", "id_mode", "ip_flags", "known", "mac", "pads", "stacks", "tos", "ttl", "version")

    def __init__(self, version: int, address: bytes, mac: bytes) -> None:
        self.version: int = version
        self.address: bytes = address
        self.mac: bytes = mac
        self.known: bool = False
        self.ttl: int = 64
        self.tos: int = 0
        self.ip_flags: int = 2
        self.id_mode: int = vocab.ID_NEXT
        self.pads: bool = False
        self.stacks: list[Stack] = [DEFAULT_STACK, DEFAULT_STACK]


class Side:
    """One direction of a flow: what its sender sent and will probably send next."""

    __slots__ = (
        "bytes", "direction", "echo_sequence", "ends", "flow_label", "fragment_ident", "fragment_left",
        "fragment_offset", "host", "id_mode", "ident", "ip_flags", "isn", "key", "kind_told", "last_ack", "last_end",
        "last_headers", "last_length", "last_ns", "least", "link", "max_length", "mss", "negotiated", "next", "options",
        "payload_tos", "sack", "shown_length", "spoke", "state", "timestamps", "tos", "ts_recent", "tsval", "tsval_ns",
        "ttl", "una", "window",
    )  # fmt: skip

    def __init__(self, host: Host, direction: int) -> None:
        self.host: Host = host
        self.direction: int = direction
        self.key: tuple[bytes, bytes, int, int, int] = (b"", b"", 0, 0, 0)
        self.link: bytes = b""
        self.spoke: bool = False
        self.last_ns: int = 0
        # IP header
        self.ttl: int = 64
        self.tos: int = 0
        self.payload_tos: int = 0
        self.ip_flags: int = 2
        self.id_mode: int = vocab.ID_NEXT
        self.ident: int = UNKNOWN
        self.options: bytes = b""
        self.flow_label: int = UNKNOWN
        # payload
        self.last_length: int = 0
        self.max_length: int = 0
        self.shown_length: int = 0
        self.bytes: int = 0  # of payload, sent so far
        self.kind_told: bool = False
        self.least: int = 0  # fewest payload bytes of a packet, where they are made up
        # TCP
        self.state: int = CLOSED
        self.isn: int = UNKNOWN
        self.next: int = UNKNOWN
        self.una: int = 0
        self.ends: list[int] = []
        self.last_end: int = 0
        self.last_ack: int = UNKNOWN
        self.window: int = 502
        self.mss: int = 0
        self.timestamps: int = UNKNOWN
        self.negotiated: bool = False
        self.tsval: int = UNKNOWN
        self.tsval_ns: int = 0
        self.ts_recent: int = UNKNOWN
        self.sack: list[int] = []
        # UDP fragments of the datagram under way
        self.fragment_ident: int = 0
        self.fragment_offset: int = 0
        self.fragment_left: int = 0
        # ICMP echo
        self.echo_sequence: int = UNKNOWN
        self.last_headers: Headers | None = None


class Flow:
    """A five-tuple (or what stands for it), named by its rank among the recently active ones."""

    __slots__ = (
        "burst", "burst_direction", "ending", "extent", "identifier", "last_direction", "number", "overtime", "owing",
        "packets", "phase", "ports", "protocol", "service", "sides", "transport", "version",
    )  # fmt: skip

    def __init__(self, number: int, version: int, transport: int, protocol: int, sides: list[Side]) -> None:
        self.number: int = number
        self.version: int = version
        self.transport: int = transport
        self.protocol: int = protocol
        self.sides: list[Side] = sides
        self.ports: list[int] = [0, 0]
        self.service: int = 0  # for the feature of this name
        self.identifier: int = 0
        self.packets: int = 0
        self.extent: int = UNKNOWN  # packets that it is to have
        self.owing: bool = False  # the session does not end before it has them, or is closed
        self.overtime: int = 0  # packets that it was given besides
        self.ending: int = ENDS_ANYHOW
        self.phase: int = NO_PHASE
        self.last_direction: int = 0
        self.burst_direction: int = 0
        self.burst: int = 0

    def is_over(self) -> bool:
        """It had all the packets that were told."""
        return self.packets >= self.extent != UNKNOWN

    def is_established(self) -> bool:
        """A TCP connection whose handshake is complete, whatever became of it since."""
        return self.transport == TCP and self.sides[0].state >= OPEN and self.sides[1].state >= SYN_SENT

    def may_close(self) -> bool:
        """A drawn connection that is established and to be closed, which neither side has begun to do."""
        return self.ending not in (ENDS_ANYHOW, ENDS_RESET) and self.phase == OPENED and self.is_established()

    def is_closing(self) -> bool:
        """Of such a connection: only the packets that close it are left."""
        left = CLOSING if self.ending == ENDS_CLOSED else CLOSING_RESET
        return self.may_close() and self.extent - self.packets <= left

    def is_open(self) -> bool:
        """An established connection that was not closed by both sides, nor reset, as far as that ends it."""
        ends = self.phase == SHUT
        if self.ending == ENDS_CLOSED_THOUGH_RESET:
            ends = self.sides[0].state >= FIN_SENT and self.sides[1].state >= FIN_SENT
        return not ends and self.is_established()


class Service:
    """What a new flow may resemble: the ends of an earlier one."""

    __slots__ = ("originator", "port", "port_member", "protocol", "responder", "transport", "version")

    def __init__(
        self,
        originator: Host,
        responder: Host,
        version: int,
        transport: int,
        protocol: int,
        port: int,
        port_member: int,
    ) -> None:
        self.originator: Host = originator
        self.responder: Host = responder
        self.version: int = version
        self.transport: int = transport
        self.protocol: int = protocol
        self.port: int = port
        self.port_member: int = port_member


class Context:
    """All contexts of one session. `max_flows` bounds its memory: the flow silent for longest is forgotten.

    A flow whose number of packets was told (EXTENT) is over with its last one, and cannot be named any more; a session
    does not end before its flows. `extent` is how much the session is to be: packets, nanoseconds, flows; `UNKNOWN`
    where that is not told. The model is told what is left of either.
    """

    __slots__ = (
        "extent", "flows", "flows_opened", "fragments", "hosts", "hosts4", "hosts6", "hosts_made", "last_gap_ns",
        "max_flows", "now_ns", "over", "owed", "packets", "phases", "senders", "services", "sides", "snaplen",
        "start_ns", "unfinished", "vocabulary",
    )  # fmt: skip

    def __init__(self, vocabulary: Vocabulary, max_flows: int = vocab.MAX_FLOWS) -> None:
        self.vocabulary: Vocabulary = vocabulary
        self.max_flows: int = min(max_flows, vocab.MAX_FLOWS)
        self.extent: tuple[int, int, int] = NO_EXTENT
        self.now_ns: int = 0
        self.start_ns: int = UNKNOWN
        self.last_gap_ns: int = 0
        self.packets: int = 0
        self.flows_opened: int = 0
        self.unfinished: int = 0  # flows that are to have more packets than they had
        self.owed: int = 0  # these packets
        self.phases: list[int] = [0, 0, 0, 0]  # how many flows are in each phase
        self.flows: list[Flow] = []
        self.over: list[Flow] = []  # that had all their packets: their five-tuples are remembered
        self.sides: dict[tuple[bytes, bytes, int, int, int], tuple[Flow, int]] = {}
        self.fragments: dict[tuple[bytes, bytes, int], tuple[Flow, int]] = {}
        self.hosts4: list[Host] = []
        self.hosts6: list[Host] = []
        self.hosts: dict[bytes, Host] = {}
        self.hosts_made: int = 0
        self.services: list[Service] = []
        self.senders: list[Host] = [Host(IPV4, b"", b""), Host(IPV4, b"", b"")]
        self.snaplen: int = 128

    # --- hosts and services ---------------------------------------------------------------------------------------

    def recent_hosts(self, version: int) -> list[Host]:
        """Hosts of an IP version (ARP speaks of IPv4 hosts), most recent first."""
        return self.hosts6 if version == IPV6 else self.hosts4

    def host_for(self, version: int, address: bytes, mac: bytes) -> Host:
        """The host with this address, made if it is new; it becomes the most recent one."""
        host = self.hosts.get(address)
        if host is None:
            host = Host(version, address, mac)
            self.hosts_made += 1
            self.hosts[address] = host
            recent = self.recent_hosts(version)
            recent.insert(0, host)
            if len(recent) > MAX_HOSTS:
                del self.hosts[recent.pop().address]
        else:
            self.touch_host(host)
        return host

    def rename_host(self, host: Host, address: bytes, mac: bytes) -> Host:
        """A host that nobody has named yet gets another address; if that one is taken, it is who has it."""
        known = self.hosts.get(address)
        del self.hosts[host.address]
        if known is not None:
            self.recent_hosts(host.version).remove(host)
            self.touch_host(known)
            return known
        host.address = address
        host.mac = mac
        self.hosts[address] = host
        return host

    def touch_host(self, host: Host) -> None:
        """Make a host the most recent one of its version."""
        recent = self.recent_hosts(host.version)
        if recent and recent[0] is host:
            return
        if host in recent:
            recent.remove(host)
        else:  # it was forgotten while a service still named it
            self.hosts[host.address] = host
        recent.insert(0, host)
        if len(recent) > MAX_HOSTS:
            del self.hosts[recent.pop().address]

    def candidates(self, version: int, originator: Host | None) -> list[Host]:
        """Hosts that a HOST token can name by rank; a responder is not its own originator."""
        recent = self.recent_hosts(version)
        if originator is None:
            return recent
        return [host for host in recent[: vocab.NEAR_HOSTS + 1] if host is not originator]

    def remember_service(self, service: Service) -> None:
        """Put a service first; equal ones are merged."""
        services = self.services
        for i, old in enumerate(services):
            if (
                old.originator is service.originator
                and old.responder is service.responder
                and old.transport == service.transport
                and old.protocol == service.protocol
                and old.port == service.port
            ):
                del services[i]
                break
        services.insert(0, service)
        if len(services) > vocab.MAX_SERVICES:
            services.pop()

    # --- flows ----------------------------------------------------------------------------------------------------

    def open_flow(self, service: Service, originator_port: int, identifier: int) -> Flow:
        """Begin a flow from the originator to the responder of `service`.

        `originator_port` is the originator's port; `identifier` names an ICMP flow: an echo identifier, or -1 - type.
        """
        sides = [Side(service.originator, 0), Side(service.responder, 1)]
        flow = Flow(self.flows_opened, service.version, service.transport, service.protocol, sides)
        self.flows_opened += 1
        flow.ports = [originator_port, service.port]
        flow.service = self.vocabulary.service_of(service.transport, service.port)
        flow.identifier = identifier
        for side in sides:
            pattern = side.host if side.host.known else self.senders[side.direction]
            side.ttl = pattern.ttl
            side.tos = pattern.tos
            side.payload_tos = pattern.tos
            side.ip_flags = pattern.ip_flags
            side.id_mode = pattern.id_mode
        source = service.originator.address
        target = service.responder.address
        if service.transport == TCP or service.transport == UDP:
            sides[0].key = (source, target, originator_port, service.port, service.protocol)
            sides[1].key = (target, source, service.port, originator_port, service.protocol)
        else:
            mark = -2 - service.transport if service.version != ARP else -1
            sides[0].key = (source, target, mark, identifier, service.protocol)
            sides[1].key = (target, source, mark, identifier, service.protocol)
        old = self.sides.get(sides[0].key)
        if old is not None:
            self.forget(old[0])
        self.phases[NO_PHASE] += 1
        self.sides[sides[1].key] = (flow, 1)
        self.sides[sides[0].key] = (flow, 0)
        self.flows.insert(0, flow)
        if len(self.flows) > self.max_flows:
            self.forget(self.flows[-1])
        return flow

    def expect(self, flow: Flow, packets: int, ending: int = ENDS_ANYHOW) -> None:
        """A new flow is to have so many packets, at least one, and to end in this way."""
        flow.extent = packets
        flow.ending = ending
        flow.owing = True
        self.unfinished += 1
        self.owed += packets

    def forget(self, flow: Flow) -> None:
        """Drop a flow; if it speaks again it is a new one."""
        if flow.is_over():
            self.over.remove(flow)
        else:
            self._leave(flow)
        for side in flow.sides:
            entry = self.sides.get(side.key)
            if entry is not None and entry[0] is flow:
                del self.sides[side.key]

    def _leave(self, flow: Flow) -> None:
        """A flow cannot be named any more."""
        self.flows.remove(flow)
        self.phases[flow.phase] -= 1
        self._discharge(flow)

    def _discharge(self, flow: Flow) -> None:
        if flow.owing:
            flow.owing = False
            self.unfinished -= 1
            self.owed -= flow.extent - flow.packets

    def touch_flow(self, rank: int) -> None:
        """Make the flow of this rank the most recent one."""
        if rank:
            flow = self.flows[rank]
            del self.flows[rank]
            self.flows.insert(0, flow)

    # --- which members are legal ----------------------------------------------------------------------------------

    def who_floor(self) -> int:
        """The first legal member of WHO: no END while flows are to have more packets, or more flows are to come; no new
        flow beyond those that were told."""
        if self.flows_opened < self.extent[2]:
            return vocab.WHO_NEW
        if self.unfinished:
            return vocab.WHO_FLOW if self.extent[2] != UNKNOWN else vocab.WHO_NEW
        return vocab.WHO_END

    def is_complete(self) -> bool:
        """All flows that were told have had all their packets: nothing can follow but END."""
        return self.extent[2] != UNKNOWN and self.flows_opened >= self.extent[2] and not self.flows

    def who_limit(self) -> int:
        """Number of legal members of WHO."""
        count = len(self.flows)
        if count > vocab.NEAR_FLOWS:
            return vocab.WHO_ESCAPE
        return vocab.WHO_FLOW + 2 * count

    def rank_high_limit(self) -> int:
        return max(1, (len(self.flows) - vocab.NEAR_FLOWS + 63) // 64)

    def rank_low_limit(self, high: int) -> int:
        return max(1, min(64, len(self.flows) - vocab.NEAR_FLOWS - 64 * high))

    def flag_classes(self, side: Side, peer: Side) -> int:
        """How many of `vocab.FLAG_CLASSES` a sender may use now (RFC 9293 section 3.10): a SYN comes first, its answer
        next. Where a capture has packets missing and shows otherwise, the encoder opens the flow anew.
        """
        if side.state == SYN_SENT and peer.state == CLOSED:
            return vocab.FLAGS_UNANSWERED
        if side.state == CLOSED and peer.state == SYN_SENT:
            return vocab.FLAGS_ANSWERING
        return vocab.FLAGS_OTHER

    def shape_classes(self, flow: Flow, side: Side, peer: Side) -> int:
        """The same, for the next packet of the flow: no FIN while many packets are to come."""
        count = self.flag_classes(side, peer)
        if count == vocab.FLAGS_OTHER and flow.extent - flow.packets > vocab.FIN_AHEAD:
            return vocab.FLAGS_FIN
        return count

    def drawable_shapes(self, flow: Flow, side: Side, peer: Side) -> tuple[int, int]:
        """Members of TCP_SHAPE (from, to) that may be drawn, of those that are legal: a drawn connection goes on
        without SYN and RST, a side that has sent its FIN only acknowledges, and the last packets end it."""
        legal = 36 * self.shape_classes(flow, side, peer)
        if flow.ending == ENDS_ANYHOW:
            return 0, legal
        if side.state == RESET:
            return 36 * vocab.FLAGS_RST, 36 * vocab.FLAGS_RST + 72
        if not flow.is_established():
            return 0, legal
        if side.state >= FIN_SENT and (flow.ending == ENDS_CLOSED or peer.state >= FIN_SENT):
            return 36 * vocab.FLAGS_ACK, 36 * vocab.FLAGS_ACK + 12
        left = flow.extent - flow.packets
        if flow.phase == SHUT:
            if flow.ending != ENDS_CLOSED_THOUGH_RESET:
                return 0, legal
            return 36 * (vocab.FLAGS_FIN if left <= 1 else vocab.FLAGS_ACK), legal
        if flow.phase == OPENED:
            if flow.ending == ENDS_RESET:
                first = vocab.FLAGS_RST if left <= 1 else vocab.FLAGS_ACK
                return 36 * first, 36 * first + 72
            return 36 * (vocab.FLAGS_FIN if left <= CLOSING else vocab.FLAGS_ACK), legal
        if side.state >= FIN_SENT or (flow.ending == ENDS_CLOSED_OR_RESET and flow.overtime < MOST_OVERTIME // 2):
            return 0, legal
        return 36 * (vocab.FLAGS_FIN if left <= 2 else vocab.FLAGS_ACK), legal

    def to_share(self) -> tuple[int, int]:
        """Packets of the session that no flow has had or owes, and the flows that share them: the one just opened and
        those to come."""
        return self.extent[0] - self.packets - self.owed, max(1, self.extent[2] - self.flows_opened + 1)

    def acked_limit(self, peer: Side) -> int:
        return max(1, min(vocab.MAX_ADVANCE, len(peer.ends) - 1))

    def sequence_limit(self, side: Side) -> int:
        return vocab.SEQUENCE_RESEND + min(vocab.MAX_RESEND, len(side.ends))

    # --- predictions ----------------------------------------------------------------------------------------------

    def default_link(self, flow: Flow, side: Side, peer: Side, request: bool) -> bytes:
        """Link header that follows from the hosts' MACs; an ARP request is broadcast."""
        ethertype = b"\x08\x00" if flow.version == IPV4 else b"\x86\xdd" if flow.version == IPV6 else b"\x08\x06"
        target = b"\xff" * 6 if flow.version == ARP and request else peer.host.mac
        return target + side.host.mac + ethertype

    def expected_sequence(self, side: Side, flags: int) -> int:
        """Sequence number that a segment starts with, `UNKNOWN` if it has an origin of its own."""
        if flags & SYN:
            return side.isn
        if side.next != UNKNOWN:
            return side.next
        return 0 if flags & RST else UNKNOWN

    def full_length(self, side: Side, peer: Side, options_len: int) -> int:
        """Payload bytes of a full segment, from both sides' MSS, else the longest seen."""
        mss = side.mss if peer.mss == 0 else peer.mss if side.mss == 0 else min(side.mss, peer.mss)
        if mss == 0:
            return side.max_length if side.max_length else FULL_FRAME - options_len
        return max(1, mss - options_len)

    def expected_options(self, side: Side, peer: Side, flags: int) -> int:
        """TCP_OPTIONS member expected on a packet without SYN: timestamps or nothing, never SACK."""
        if flags & RST and not flags & ACK:
            return 0
        uses = side.timestamps if side.timestamps != UNKNOWN else peer.timestamps
        return 4 if uses == 1 else 0

    def expected_window(self, side: Side, flags: int) -> int:
        return 0 if flags & RST else side.window

    def expected_tsval(self, side: Side) -> int:
        """TSval after the time that passed since the sender's last one, at 1 kHz; `UNKNOWN` before the first."""
        if side.tsval == UNKNOWN:
            return UNKNOWN
        return (side.tsval + (self.now_ns - side.tsval_ns + 500_000) // 1_000_000) & 0xFFFFFFFF

    def expected_tsecr(self, side: Side) -> int:
        return 0 if side.ts_recent == UNKNOWN else side.ts_recent

    def expected_sack(self, side: Side, peer: Side, ack: int, blocks: int) -> bytes:
        """SACK blocks (RFC 2018) that the sender would report: what lies behind the first hole, then earlier reports.

        May hold fewer blocks than asked for: what was never sent can't be reported.
        """
        first = UNKNOWN
        count = 0
        for end in peer.ends:
            if signed(end - ack) > 0:
                count += 1
                if count == 1:
                    first = end
        if count < 2:
            return b""
        old = side.sack
        left = first
        if old and signed(old[0] - ack) > 0 and signed(peer.next - old[0]) > 0:
            left = old[0]
        result = (left << 32 | peer.next).to_bytes(8, "big")
        i = 2
        while i + 1 < len(old) and len(result) < 8 * blocks:
            if signed(old[i] - ack) > 0 and signed(left - old[i + 1]) > 0:
                result += (old[i] << 32 | old[i + 1]).to_bytes(8, "big")
                left = old[i]
            i += 2
        return result

    def id_fits(self, side: Side, mode: int, ident: int) -> bool:
        """Could a sender that counts IP-ids in this mode have sent `ident` now?"""
        if mode == vocab.ID_ZERO:
            return ident == 0
        if side.ident == UNKNOWN:
            return ident != 0
        step = (ident - side.ident) & 0xFFFF
        if mode == vocab.ID_NEXT:
            return step == 1
        if mode == vocab.ID_STEP:
            return 1 <= step <= vocab.MAX_ID_STEP
        if mode == vocab.ID_CONSTANT:
            return step == 0
        return step != 1 and ident != 0

    def id_mode_for(self, side: Side, ident: int) -> int:
        """The mode that explains an IP-id which the sender's mode does not."""
        for mode in (vocab.ID_ZERO, vocab.ID_NEXT, vocab.ID_STEP, vocab.ID_CONSTANT):
            if self.id_fits(side, mode, ident):
                return mode
        return vocab.ID_RANDOM

    def expected_trailer(self, host: Host, length: int) -> int:
        """Padding of short Ethernet frames, if this host's frames were captured with it."""
        return 60 - length if host.pads and length < 60 else 0

    # --- after a packet -------------------------------------------------------------------------------------------

    def advance(self, gap_ns: int) -> None:
        """Move the session's clock to the packet that is being coded."""
        if self.start_ns == UNKNOWN:
            self.start_ns = self.now_ns
        self.now_ns += gap_ns
        self.last_gap_ns = gap_ns
        self.packets += 1

    def update(self, flow: Flow, side: Side, peer: Side, headers: Headers, frame_len: int) -> None:
        """Learn from a packet that `side` sent at `now_ns`; `frame_len` is the frame's length without padding."""
        length = headers.payload_len
        host = side.host
        side.link = headers.link
        side.spoke = True
        if frame_len < 60:
            host.pads = headers.trailer_len > 0
        if headers.version != ARP:
            self._update_network(side, headers)
        shut = flow.phase == SHUT
        closed = side.state >= FIN_SENT
        if flow.transport == TCP:
            self._update_tcp(side, peer, headers)
            self.phases[flow.phase] -= 1
            flow.phase = _phase(flow)
            self.phases[flow.phase] += 1
        elif flow.transport == UDP:
            if headers.ip_flags & 1 or headers.fragment_offset:
                self._update_fragment(flow, side, headers)
        elif flow.transport == ICMP and (headers.icmp_type, headers.icmp_code) in ECHOES:
            side.echo_sequence = headers.rest & 0xFFFF
        side.shown_length = length
        side.bytes += length
        if length:
            if headers.transport != OPAQUE or flow.transport == OPAQUE:
                side.last_length = length
            if length > side.max_length:
                side.max_length = length
            if flow.burst_direction != side.direction:
                flow.burst_direction = side.direction
                flow.burst = 0
            flow.burst += length
        side.last_ns = self.now_ns
        if not headers.fragment_offset:  # an error quotes whole datagrams (RFC 1122, section 3.2.2)
            side.last_headers = headers
        flow.packets += 1
        flow.last_direction = side.direction
        if flow.owing:
            self.owed -= 1
            if flow.phase == SHUT and not shut:
                self._conclude(flow, closed)
        if flow.packets == flow.extent and not self._prolong(flow):
            self._leave(flow)
            self.over.insert(0, flow)
            if len(self.over) > self.max_flows:
                self.forget(self.over[-1])

    def _conclude(self, flow: Flow, closed: bool) -> None:
        """A flow was closed by both sides, or reset; `closed`: by a side that had sent its FIN. A recording's session
        may end then. A drawn flow gets its last ACK, or what the peer of one that had closed still has to say."""
        if flow.ending == ENDS_ANYHOW:
            self._discharge(flow)
            return
        extent = flow.packets + 1
        if RESET in (flow.sides[0].state, flow.sides[1].state):
            extent = min(flow.extent, flow.packets + BEHIND_RST) if closed else flow.packets
        self.owed += extent - flow.extent
        flow.extent = extent

    def _prolong(self, flow: Flow) -> bool:
        """An open flow whose packets are spent is given one more to be closed in. False in a recording."""
        if flow.ending == ENDS_ANYHOW or not flow.is_open() or flow.overtime == MOST_OVERTIME:
            return False
        flow.overtime += 1
        flow.extent += 1
        self.owed += 1
        return True

    def _update_network(self, side: Side, headers: Headers) -> None:
        host = side.host
        side.ttl = headers.ttl
        if headers.payload_len:
            side.payload_tos = headers.tos
        else:
            side.tos = headers.tos
        side.options = headers.options
        if headers.version == IPV4:
            side.ip_flags = headers.ip_flags & 6
            if headers.ident:
                side.ident = headers.ident
        else:
            side.flow_label = headers.flow_label
        sender = self.senders[side.direction]
        for pattern in (host, sender):
            pattern.known = True
            pattern.ttl = side.ttl
            pattern.tos = headers.tos
            pattern.ip_flags = side.ip_flags
            pattern.id_mode = side.id_mode

    def _update_fragment(self, flow: Flow, side: Side, headers: Headers) -> None:
        if headers.transport == UDP:
            side.fragment_ident = headers.ident
            side.fragment_offset = headers.payload_len + 8
            side.fragment_left = headers.udp_length_delta
            key = (headers.src, headers.dst, headers.protocol)
            self.fragments.pop(key, None)
            self.fragments[key] = (flow, side.direction)
            if len(self.fragments) > 64:
                del self.fragments[next(iter(self.fragments))]
        else:
            side.fragment_ident = headers.ident
            side.fragment_left -= headers.payload_len
            side.fragment_offset = headers.fragment_offset + headers.payload_len
        if side.fragment_left < 0 or not headers.ip_flags & 1:
            side.fragment_left = 0

    def _update_tcp(self, side: Side, peer: Side, headers: Headers) -> None:
        flags = headers.flags
        sequence = headers.seq
        if side.next == UNKNOWN:
            side.una = sequence
            side.next = sequence
        if flags & SYN and side.isn != sequence:
            side.isn = sequence
            side.una = sequence
            side.next = sequence
            side.ends = []
        count = headers.payload_len + (1 if flags & SYN else 0) + (1 if flags & FIN else 0)
        end = (sequence + count) & 0xFFFFFFFF
        if count and not flags & RST:
            if signed(end - side.next) > 0:
                if signed(sequence - side.next) > 0:
                    side.ends.append(sequence)
                side.ends.append(end)
                side.next = end
                while len(side.ends) > MAX_ENDS:
                    side.una = side.ends.pop(0)
            side.last_end = end
        if flags & ACK:
            self._acknowledge(peer, headers.ack)
            side.last_ack = headers.ack
        if flags & RST:
            side.state = RESET
        elif flags & SYN:
            side.state = SYN_SENT
        elif flags & FIN:
            side.state = FIN_SENT
        elif side.state < OPEN:
            side.state = OPEN
        if not flags & RST:
            side.window = headers.window

    def _acknowledge(self, peer: Side, ack: int) -> None:
        """Drop what an acknowledgement covers; one beyond all that was seen tells where the peer really is."""
        if peer.next == UNKNOWN or signed(ack - peer.next) > 0:
            peer.next = ack
            peer.una = ack
            peer.ends = []
            return
        if signed(ack - peer.una) <= 0:
            return
        ends = peer.ends
        covered = 0
        while covered < len(ends) and signed(ends[covered] - ack) <= 0:
            covered += 1
        if covered:
            del ends[:covered]
        peer.una = ack
        if peer.state == FIN_SENT and ack == peer.next:
            peer.state = FIN_ACKED

    def update_timestamps(self, side: Side, peer: Side, sequence: int, tsval: int) -> None:
        """Learn a TSval, before `update` of the same packet: TS.Recent by RFC 7323 section 4.3."""
        side.tsval = tsval
        side.tsval_ns = self.now_ns
        in_order = peer.last_ack == UNKNOWN or signed(sequence - peer.last_ack) <= 0
        if peer.ts_recent == UNKNOWN or (in_order and signed(tsval - peer.ts_recent) >= 0):
            peer.ts_recent = tsval

    def learn_stack(self, side: Side, peer: Side, stack: Stack, answers: bool) -> None:
        """Learn what a SYN (or, if it `answers`, a SYN-ACK) says about its sender."""
        side.host.stacks[1 if answers else 0] = stack
        side.ttl = stack.ttl
        side.mss = 0
        side.timestamps = 0
        for kind, value in tcp_option_list(stack.options):
            if kind == 2 and len(value) == 2:
                side.mss = value[0] << 8 | value[1]
            elif kind == 8 and len(value) == 8:
                side.timestamps = 1
        if answers:
            both = 1 if side.timestamps == 1 and peer.timestamps == 1 else 0
            side.timestamps = both
            peer.timestamps = both
            side.negotiated = True
            peer.negotiated = True

    def learn_options(self, side: Side, member: int, flags: int) -> None:
        """Learn from the TCP_OPTIONS of a packet without SYN; what a handshake agreed upon stands (RFC 7323)."""
        if not side.negotiated and not flags & RST and member < vocab.OPTIONS_RAW:
            side.timestamps = 1 if member >= 4 else 0

    # --- what the model is told besides the tokens -----------------------------------------------------------------

    def who_features(self) -> list[int]:
        """Feature values before it is known who speaks, seen from the last speaker. Without the `field` feature."""
        if not self.flows:
            return self._features(None, 0)
        flow = self.flows[0]
        return self._features(flow, flow.last_direction)

    def flow_features(self, flow: Flow, direction: int) -> list[int]:
        """Feature values once it is known who speaks: embedding rows, without the `field` feature."""
        return self._features(flow, direction)

    def _features(self, flow: Flow | None, direction: int) -> list[int]:
        base = self.vocabulary.feature_base
        progress = _log2(self.packets, 15) * 16 + _log2((self.now_ns - self.start_ns) >> 23, 15)
        flows = _log2(self.flows_opened, 15) * 16
        last = _log2(self.last_gap_ns >> 10, 31)
        others = [_NO_FLOW, _NO_FLOW, _NO_FLOW]
        others_left = 0
        count = 0
        for recent in self.flows[:4]:
            if recent is not flow and count < 3:
                others[count] = _flow_state(recent, recent.last_direction)
                others_left += _left_class(recent) << 2 * count
                count += 1
        opened = _log2(self.phases[OPENED], 7) * 8 + _log2(self.phases[HALF_CLOSED], 7)
        if flow is None:
            return [base[1] + _NO_FLOW, base[2], base[3], base[4], base[5] + 31, base[6] + 31,
                    base[7] + progress, base[8] + flows, base[9] + others[0], base[10] + last,
                    base[11] + others[1], base[12] + others[2], base[13] + opened,
                    *self._left(None, others_left), base[20], base[21]]  # fmt: skip
        side = flow.sides[direction]
        peer = flow.sides[1 - direction]
        own_gap = _log2((self.now_ns - side.last_ns) >> 10, 30) if side.spoke else 31
        peer_gap = _log2((self.now_ns - peer.last_ns) >> 10, 30) if peer.spoke else 31
        burst = _log2_halves(flow.burst)
        if flow.burst_direction == direction:
            burst += 32
        return [
            base[1] + _flow_state(flow, direction),
            base[2] + _log2(len(side.ends), 7) * 8 + _log2(len(peer.ends), 7),
            base[3] + burst,
            base[4] + _log2(side.shown_length, 15) * 16 + _log2(peer.shown_length, 15),
            base[5] + own_gap,
            base[6] + peer_gap,
            base[7] + progress,
            base[8] + flows + _log2(flow.packets, 15),
            base[9] + others[0],
            base[10] + last,
            base[11] + others[1],
            base[12] + others[2],
            base[13] + opened,
            *self._left(flow, others_left),
            base[20] + flow.service,
            base[21] + _log2(side.bytes >> 6, 15) * 16 + _log2(peer.bytes >> 6, 15),
        ]

    def _left(self, flow: Flow | None, others_left: int) -> list[int]:
        """What is left of the session, of the flow, and of all flows. A session that is overdue is not told so: none
        in training was."""
        base = self.vocabulary.left_base
        packets, duration_ns, flows = self.extent
        unfinished = _log2(self.unfinished, 15) * 16 + _log2(self.owed, 15)
        rows = [base[0], base[1], base[2], base[3], base[4] + unfinished, base[5] + others_left]
        if flow is not None and flow.extent != UNKNOWN:
            rows[3] += 1 + vocab.FLOW_LEFT_BINS.find(max(0, flow.extent - flow.packets))
        if packets != UNKNOWN:
            asked = flow is not None and flow.packets == 0 and flow.extent == UNKNOWN  # how many packets it is to have
            rows[0] += vocab.left_row(0, packets - self.packets - (self.owed if asked else 0))
        if duration_ns != UNKNOWN:
            left_ns = duration_ns - min(self.now_ns - self.start_ns, LONGEST_NS)
            rows[1] += vocab.left_row(1, left_ns // vocab.MILLISECOND)
        if flows != UNKNOWN:
            rows[2] += vocab.left_row(2, flows - self.flows_opened)
        return rows


def _left_class(flow: Flow) -> int:
    if flow.extent == UNKNOWN:
        return 0
    left = flow.extent - flow.packets
    return 1 if left <= 0 else 2 if left <= 3 else 3


def _phase(flow: Flow) -> int:
    """How far a TCP flow is from its end; other transports have none."""
    if flow.transport != TCP:
        return NO_PHASE
    one = flow.sides[0].state
    other = flow.sides[1].state
    if one == RESET or other == RESET:
        return SHUT
    if one >= FIN_SENT:
        return SHUT if other >= FIN_SENT else HALF_CLOSED
    return HALF_CLOSED if other >= FIN_SENT else OPENED


_NO_FLOW: Final = 63
_TRANSPORT_CODE: Final = {UDP: 0, ICMP: 1, ICMPV6: 1, OPAQUE: 2}


def _log2(value: int, top: int) -> int:
    return min(value.bit_length(), top) if value > 0 else 0


def _log2_halves(value: int) -> int:
    """Twice the logarithm, 0..31: two steps an octave, from 1 to 64 KiB."""
    if value <= 0:
        return 0
    bits = value.bit_length()
    half = value >> (bits - 2) & 1 if bits > 1 else 0
    return min(31, 2 * bits - 1 + half)


def _flow_state(flow: Flow, direction: int) -> int:
    side = flow.sides[direction]
    peer = flow.sides[1 - direction]
    if flow.transport == TCP:
        return side.state * vocab.TCP_STATES + peer.state
    code = 36 + _TRANSPORT_CODE[flow.transport] * 4 if flow.version != ARP else 48
    return code + (2 if side.spoke else 0) + (1 if peer.spoke else 0)


def tcp_option_list(options: bytes) -> list[tuple[int, bytes]]:
    """Kinds and values of TCP options up to the first malformed one; padding left out."""
    result: list[tuple[int, bytes]] = []
    i = option_at(options, 0)
    while i >= 0:
        end = i + options[i + 1]
        result.append((options[i], options[i + 2 : end]))
        i = option_at(options, end)
    return result


def timestamps_at(options: bytes) -> int:
    """Offset of the timestamps' value (8 bytes) in TCP options, `UNKNOWN` if there are none."""
    if options[:4] == TIMESTAMPS and len(options) >= 12:
        return 4
    i = option_at(options, 0)
    while i >= 0:
        if options[i] == 8 and options[i + 1] == 10:
            return i + 2
        i = option_at(options, i + options[i + 1])
    return UNKNOWN


def sack_numbers(blocks: bytes) -> list[int]:
    """Edges of SACK blocks: left, right, left, right ..."""
    return [int.from_bytes(blocks[i : i + 4], "big") for i in range(0, len(blocks) - 3, 4)]


def expected_rest(flow: Flow, side: Side, peer: Side, icmp_type: int, echo: bool) -> int:
    """Second word of an ICMP header: an echo counts up, its reply repeats; `UNKNOWN` for the first of a sender."""
    if not echo:
        return 0
    sequence = UNKNOWN
    if icmp_type in (0, 129):
        sequence = peer.echo_sequence
    elif side.echo_sequence != UNKNOWN:
        sequence = (side.echo_sequence + 1) & 0xFFFF
    if sequence == UNKNOWN:
        return UNKNOWN
    return (flow.identifier & 0xFFFF) << 16 | sequence


def arp_body(side: Side, peer: Side, operation: int) -> bytes:
    """An ARP packet (RFC 826) between two hosts; a request does not know the target's MAC."""
    target = bytes(6) if operation == 1 else peer.host.mac
    return (
        b"\x00\x01\x08\x00\x06\x04"
        + operation.to_bytes(2, "big")
        + side.host.mac
        + side.host.address
        + target
        + peer.host.address
    )


ESCAPED_BYTES: Final = 52


def hidden_span(ethertype: int) -> tuple[int, int]:
    """Where in a frame with this ethertype the network addresses stand."""
    if ethertype == 0x0800:
        return 26, 34
    if ethertype == 0x86DD:
        return 22, 54
    return (22, 42) if ethertype == 0x0806 else (0, 0)


def split_escaped(data: bytes) -> tuple[bytes, bytes]:
    """Split an escaped frame into header bytes to tell and what stays hidden: MACs, addresses and the rest."""
    first, last = hidden_span(data[12] << 8 | data[13]) if len(data) >= 14 else (0, 0)
    end = min(len(data), 12 + ESCAPED_BYTES)
    told = data[12 : max(12, min(end, first))] + data[max(12, last) : end] if last else data[12:end]
    hidden = data[:12] + (data[first : min(last, len(data))] if last else b"") + data[max(end, last) :]
    return told, hidden


def join_escaped(told: bytes, hidden: bytes) -> bytes:
    """Put an escaped frame together again; `hidden` may be shorter than it was."""
    head = hidden[:12]
    rest = hidden[12:]
    first, last = hidden_span(told[0] << 8 | told[1]) if len(told) >= 2 else (0, 0)
    if not last or 12 + len(told) < first:
        return head + told + rest
    before = told[: first - 12]
    after = told[first - 12 :]
    return head + before + rest[: last - first] + after + rest[last - first :]
