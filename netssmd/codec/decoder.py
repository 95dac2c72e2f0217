"""Tokens to packets: asks for one token after another and gives back a packet's headers when its last token came.

In: tokens, each from the range ``[lo, hi)`` that the decoder names, and an `IdentitySource`. Out: `Decoded`. With
recorded identities the original headers come back exactly; with fresh ones any sequence drawn within the named ranges
is a well-formed packet stream, by construction. See `codec.context` for the grammar. `_assemble` asks for identities
in the order in which `codec.encoder` records them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from netssmd.codec import context as cx
from netssmd.codec import vocab as v
from netssmd.codec.context import Context, Flow, Host, IdentitySource, Service, Side
from netssmd.codec.encoder import Encoded
from netssmd.codec.extents import drawable_extents, extent_bounds, extent_member, kept_to
from netssmd.codec.kinds import KINDS, least_length
from netssmd.codec.vocab import IAT_BINS, LENGTH_BINS, WINDOW_BINS, Stack, Vocabulary
from netssmd.packet.render import render
from netssmd.packet.wire import (
    ACK,
    ARP,
    ICMP,
    ICMPV6,
    IPV4,
    IPV6,
    NOT_IP,
    OPAQUE,
    SYN,
    TCP,
    UDP,
    Headers,
    network_header_len,
    option_at,
    transport_header_len,
)

_ERRORS4: Final = (3, 4, 5, 11, 12)
_OPENING: Final = 0
_FIELDS: Final = 1
_KIND: Final = 2
_GAP: Final = 3
_ESCAPE: Final = 4


class Decoded:
    """One packet's behaviour, clothed with identities.

    Attributes:
        gap_ns: time since the session's previous packet. headers: its meaning, see `packet.wire`.
        flow, direction: which flow spoke (a number, stable within the session) and which way (0: the originator).
        new_flow: this is the flow's first packet. kind: number of its first payload's kind, 0 if none was told.
        flow_key: source, destination, their ports, protocol, as seen from the originator.
    """

    def __init__(
        self,
        gap_ns: int,
        headers: Headers,
        flow: int,
        direction: int,
        new_flow: bool,
        kind: int,
        flow_key: tuple[bytes, bytes, int, int, int],
    ) -> None:
        self.gap_ns: int = gap_ns
        self.headers: Headers = headers
        self.flow: int = flow
        self.direction: int = direction
        self.new_flow: bool = new_flow
        self.kind: int = kind
        self.flow_key: tuple[bytes, bytes, int, int, int] = flow_key


class Recorded:
    """The identities that an encoder recorded, in order; afterwards those of another source, if one is given."""

    __slots__ = ("_after", "_at", "_identities")

    def __init__(self, identities: list[Any], after: IdentitySource | None = None) -> None:
        self._identities: list[Any] = identities
        self._at: int = 0
        self._after: IdentitySource | None = after

    def _next(self) -> Any:
        value = self._identities[self._at]
        self._at += 1
        return value

    def _spent(self) -> bool:
        return self._after is not None and self._at >= len(self._identities)

    def fresh(self) -> bool:
        return self._spent()

    def within(self, n: int) -> int:
        if self._after is not None and self._spent():
            return self._after.within(n)
        value: int = self._next()
        return value

    def residual(self) -> int:
        if self._after is not None and self._spent():
            return self._after.residual()
        value: int = self._next()
        return value

    def word(self, bits: int) -> int:
        if self._after is not None and self._spent():
            return self._after.word(bits)
        value: int = self._next()
        return value

    def host(self, version: int, cast: int, role: int) -> tuple[bytes, bytes]:
        if self._after is not None and self._spent():
            return self._after.host(version, cast, role)
        value: tuple[bytes, bytes] = self._next()
        return value

    def settle(self, address: bytes, port: int) -> tuple[bytes, bytes]:
        assert self._after is not None  # recorded hosts are who they are
        return self._after.settle(address, port)

    def port(self, port_class: int) -> int:
        if self._after is not None and self._spent():
            return self._after.port(port_class)
        value: int = self._next()
        return value

    def link(self, default: bytes) -> bytes:
        if self._after is not None and self._spent():
            return self._after.link(default)
        value: bytes = self._next()
        return value

    def blob(self, n: int) -> bytes:
        if self._after is not None and self._spent():
            return self._after.blob(n)
        value: bytes = self._next()
        return value


@dataclass(frozen=True, slots=True)
class Habits:
    """What the drawn sessions of a label keep to; see model/conduct.py.

    Attributes:
        reset_share: of the TCP flows, those that are reset before a side has closed; `UNKNOWN`: they end as it comes.
        may_reset: half-closed ones may be reset, too.
        fin_behind_rst: of those that are reset by the side that has closed, the share that the other one closes yet.
        shortest: packets that a TCP flow has at least.
        untold: flows do not tell how many packets they will have.
        resolution_ns: of times: gaps are multiples of it, where their bin holds one.
        closes_from: share of the session's packets before which no TCP flow is closed, while others have more to say.
    """

    reset_share: float = cx.UNKNOWN
    may_reset: bool = True
    shortest: int = 0
    untold: bool = False
    resolution_ns: int = 1
    closes_from: float = 0.0
    fin_behind_rst: float = 0.0


NO_HABITS: Final = Habits()


class Decoder:
    """Decodes one session.

    Attributes:
        lo, hi: the next token must lie in ``[lo, hi)``.
        features: embedding rows that describe the context to the model for that token.
        ended: the session came to its own end; nothing more may be fed.
        clamped: packets of which the tokens said more than the MTU takes, and which were made as long as it is.
        owed: packets of flows to come, by service; none: whichever come.
    """

    __slots__ = (
        "_acked", "_base", "_bytes", "_bytes_wanted", "_deviation", "_direction", "_field", "_flags", "_flow",
        "_id_mode", "_ip_flags", "_kind", "_length", "_limited", "_made_up", "_network", "_new", "_nobody_yet",
        "_options", "_originator", "_phase", "_port", "_port_member", "_protocol", "_rank_high", "_responder",
        "_sequence", "_service", "_shape", "_stack", "_stage", "_todo", "_transport", "_version", "_window",
        "clamped", "context", "ended", "features", "habits", "hi", "lo", "mtu", "owed", "source", "vocabulary",
    )  # fmt: skip

    def __init__(
        self,
        vocabulary: Vocabulary,
        source: IdentitySource,
        start_ns: int = 0,
        mtu: int = 0,
        max_flows: int = v.MAX_FLOWS,
        extent: tuple[int, int, int] = cx.NO_EXTENT,
        habits: Habits = NO_HABITS,
        owed: dict[int, list[int]] | None = None,
    ) -> None:
        """`mtu` bounds the packets made of fresh identities; 0: what length fields can say, for recordings. `extent`:
        see `Context`. `habits`: what is drawn keeps to them. `owed`: flows that the session is to open, by member of
        the feature `service`: how many packets each; None: whichever come."""
        self.vocabulary: Vocabulary = vocabulary
        self.source: IdentitySource = source
        self.context: Context = Context(vocabulary, max_flows)
        self.context.now_ns = start_ns
        self.context.start_ns = start_ns
        self.context.extent = extent
        self.mtu: int = mtu
        self.habits: Habits = habits
        self.owed: dict[int, list[int]] = {service: list(flows) for service, flows in owed.items()} if owed else {}
        self.ended: bool = False
        self.clamped: int = 0
        self.lo: int = 0
        self.hi: int = 0
        self.features: list[int] = []
        self._made_up: bool = False  # the packet under way is not a recorded one
        self._limited: bool = False  # and it is held to the MTU
        self._field: int = v.WHO
        self._base: int = 0
        self._stage: list[int] = []
        self._phase: int = _OPENING
        self._todo: list[int] = []
        self._flow: Flow | None = None
        self._direction: int = 0
        self._new: bool = False
        self._service: Service | None = None
        self._originator: Host | None = None
        self._responder: Host | None = None
        self._nobody_yet: bool = False  # the responder was dealt for this flow, before its port is known
        self._version: int = IPV4
        self._transport: int = TCP
        self._protocol: int = 0
        self._port: int = 0
        self._port_member: int = -1
        self._rank_high: int = 0
        self._shape: int = 0
        self._flags: int = 0
        self._length: int = -1
        self._acked: int = -1
        self._window: int = -1
        self._stack: int = -1
        self._sequence: int = -1
        self._options: int = -1
        self._deviation: int = 0
        self._network: int = 0
        self._id_mode: int = -1
        self._ip_flags: int = -1
        self._bytes: list[int] = []
        self._bytes_wanted: int = 0
        self._kind: int = 0
        self._begin()

    # What is asked for, for who wants to forbid some of it (engine/guide.py).

    @property
    def field(self) -> int:
        """Number of the field of the next token."""
        return self._field

    @property
    def base(self) -> int:
        """The field's first token."""
        return self._base

    @property
    def flow(self) -> Flow | None:
        """Whose packet is under way, once it is known."""
        return self._flow

    @property
    def direction(self) -> int:
        return self._direction

    @property
    def new_flow(self) -> bool:
        """The packet under way is the flow's first."""
        return self._new

    @property
    def flags(self) -> int:
        """TCP flags of the packet under way, once they are told."""
        return self._flags

    @property
    def empty(self) -> bool:
        """The TCP segment under way carries no payload."""
        length_class = self._shape // 12 % 3
        if length_class != v.LENGTH_TOLD:
            return length_class == v.LENGTH_ZERO
        flow = self._flow
        assert flow is not None
        return not self._some_length(flow.sides[self._direction])

    def sequence_of(self, member: int) -> int:
        """Where a segment starts of which SEQUENCE says `member`; `UNKNOWN` for an origin of its own."""
        flow = self._flow
        assert flow is not None
        side = flow.sides[self._direction]
        peer = flow.sides[1 - self._direction]
        if member == v.SEQUENCE_ORIGIN or self.context.expected_sequence(side, self._flags) == cx.UNKNOWN:
            return cx.UNKNOWN
        told = self._sequence
        self._sequence = member
        syn = self._flags & SYN != 0
        full = self.context.full_length(side, peer, self._options_len(side, peer, syn, self._flags))
        start = self._tcp_sequence(side, peer, self._flags, full)
        self._sequence = told
        return start

    def feed(self, token: int) -> Decoded | None:
        """Take the next token. Return the packet that it completes, if it does.

        Raises ValueError if the token is not one of the field that was asked for.
        """
        member = token - self._base
        field = self._field
        if member < 0 or member >= self.vocabulary.fields[field].size or self.ended:
            raise ValueError(f"token {token} is not a member of field {self.vocabulary.fields[field].name!r}")
        if self._phase == _OPENING:
            self._opening(field, member)
        elif self._phase == _FIELDS:
            self._packet_field(field, member)
        elif self._phase == _KIND:
            self._kind = member
            self._needs(member, later=False)
        elif self._phase == _ESCAPE:
            return self._escape_field(field, member)
        else:
            return self._assemble(member)
        if not self.ended:
            self._continue()
        return None

    # --- what comes next ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Ask who speaks."""
        self._made_up = self.source.fresh()
        self._limited = self._made_up and self.mtu > 0
        self._phase = _OPENING
        self._flow = None
        self._new = False
        self._todo = []
        self._stage = self.context.who_features()
        self._ask(v.WHO)

    def _ask(self, field: int) -> None:
        vocabulary = self.vocabulary
        context = self.context
        entry = vocabulary.fields[field]
        floor = 0
        count = entry.size - entry.tail
        if field == v.WHO:
            floor = context.who_floor()
            count = v.WHO_NEW if context.is_complete() else context.who_limit()
        elif field == v.SERVICE:
            count = v.SERVICE_LIKE + 3 * len(context.services)
        elif field == v.HOST:
            count = v.HOST_RANK + min(v.NEAR_HOSTS, len(context.candidates(self._version, self._originator)))
        elif field == v.RANK_HIGH:
            count = context.rank_high_limit()
        elif field == v.RANK_LOW:
            count = context.rank_low_limit(self._rank_high)
        elif field == v.EXTENT:
            if self._made_up:
                floor, count = self._drawable_extents()
        elif self._flow is not None:
            side = self._flow.sides[self._direction]
            if field == v.TCP_SHAPE:
                floor, count = context.drawable_shapes(self._flow, side, self._flow.sides[1 - self._direction])
                if self._stays_open() and self._flow.may_close() and not self._flow.is_closing():
                    count = min(count, 36 * v.FLAGS_FIN)
            elif field == v.ACKED:
                count = context.acked_limit(self._flow.sides[1 - self._direction])
            elif field == v.SEQUENCE:
                count = context.sequence_limit(side)
            elif field == v.UDP_SHAPE:
                count = 12 if side.fragment_left > 0 else 8
        self._field = field
        self._base = entry.lo
        self.lo = entry.lo + floor
        self.hi = entry.lo + count
        self.features = vocabulary.feature_rows(field, self._stage)

    def _continue(self) -> None:
        """Ask for the next token of the packet under way."""
        if self._todo:
            self._ask(self._todo.pop(0))
            return
        if self._phase == _OPENING:
            if self._flow is None:
                flow = self._open()
                self._stage = self.context.flow_features(flow, 0)
                self._ask(v.EXTENT)
                return
            self._shape_wanted()
            return
        if self._phase == _FIELDS and self._kind_wanted():
            self._phase = _KIND
            self._ask(v.KIND)
            return
        self._phase = _GAP
        self._ask(v.IAT)

    def wanted(self) -> list[int]:
        """Of the tokens that may be drawn, those that keep to what the session is to be like, in order; empty: all of
        them do."""
        if self._field == v.WHO:
            return self._awake() if self._stays_open() else []
        if self.owed:
            if self._field == v.SERVICE:
                return self._owed_services()
            if self._field == v.PORT and self._port < 0:
                return self._owed_ports()
            if self._field == v.EXTENT:
                return self._owed_extents()
        return []

    def _stays_open(self) -> bool:
        """It is too early to close connections."""
        return self.context.packets < self.habits.closes_from * self.context.extent[0]

    def _awake(self) -> list[int]:
        """Who may speak while flows that have only to be closed wait for the others."""
        flows = self.context.flows
        waiting, busy = 0, self.context.flows_opened < self.context.extent[2]
        for flow in flows:
            if flow.is_closing():
                waiting += 1
            elif flow.owing:
                busy = True
        if not waiting or not busy:
            return []
        base, lo, hi = self._base, self.lo, self.hi
        first = base + v.WHO_FLOW
        tokens = list(range(lo, min(first, hi)))
        for token in range(max(lo, first), hi):
            rank = (token - first) >> 1
            if rank >= v.NEAR_FLOWS or not flows[rank].is_closing():
                tokens.append(token)
        return tokens

    def _owed_services(self) -> list[int]:
        owed = {TCP: 0, UDP: 0, OPAQUE: 0}  # services
        for service in self.owed:
            owed[self.vocabulary.transport_of(service)] += 1
        tokens = []
        for member, (_, transport) in enumerate(v.FRESH_KINDS):
            if owed.get(transport, owed[OPAQUE]):
                tokens.append(self._base + member)
        for rank, like in enumerate(self.context.services):
            token = self._base + v.SERVICE_LIKE + 3 * rank
            service = self.vocabulary.service_of(like.transport, like.port)
            same = service in self.owed
            if same:
                tokens.append(token)
            if service and owed[like.transport] > same:
                tokens.append(token + 1)  # another port
            if same:
                tokens.append(token + 2)
        return tokens

    def _owed_ports(self) -> list[int]:
        services = self.vocabulary.services_of_ports(self._transport)
        return [self._base + member for member, service in enumerate(services) if service in self.owed]

    def _owed_extents(self) -> list[int]:
        flow = self._flow
        assert flow is not None
        left, flows = self.context.to_share()
        tokens: list[int] = []
        for packets in self.owed.get(flow.service, []):
            token = self._base + extent_member(min(packets, left), left, flows)
            if token not in tokens and self.lo <= token < self.hi:
                tokens.append(token)
        tokens.sort()
        return tokens

    def _opening(self, field: int, member: int) -> None:
        if field == v.WHO:
            self._originator = None
            self._responder = None
            self._nobody_yet = False
            self._service = None
            self._port_member = -1
            if member == v.WHO_END:
                self.ended = True
            elif member == v.WHO_NEW:
                self._todo = [v.SERVICE]
            elif member == v.WHO_ESCAPE:
                self._phase = _ESCAPE
                self._bytes = []
                self._bytes_wanted = -1
                self._todo = [v.BYTE]
            elif member >= v.WHO_FAR:
                self._direction = member - v.WHO_FAR
                self._todo = [v.RANK_HIGH]
            else:
                self._direction = (member - v.WHO_FLOW) & 1
                self._choose((member - v.WHO_FLOW) >> 1)
        elif field == v.RANK_HIGH:
            self._rank_high = member
            self._todo = [v.RANK_LOW]
        elif field == v.RANK_LOW:
            self._choose(v.NEAR_FLOWS + 64 * self._rank_high + member)
        elif field == v.SERVICE:
            self._choose_service(member)
        elif field == v.HOST:
            self._choose_host(member)
        elif field == v.PORT:
            if self._port < 0:
                self._port = self._responder_port(member)
                self._settle(self._port)
            else:
                self._port_member = member
        elif field == v.EXTENT:
            self._expect(member)
        else:
            self._protocol = v.PROTOCOLS[member]

    def _drawable_extents(self) -> tuple[int, int]:
        """Members of EXTENT (from, to): a session that is not told its packets and flows cannot share them out."""
        context, flow = self.context, self._flow
        assert flow is not None
        if self.habits.untold or context.extent[0] == cx.UNKNOWN or context.extent[2] == cx.UNKNOWN:
            return v.EXTENT_UNTOLD, v.EXTENT_UNTOLD + 1
        left, flows = context.to_share()
        return drawable_extents(left, flows, self._shortest(flow))

    def _shortest(self, flow: Flow) -> int:
        return self.habits.shortest if flow.transport == TCP else 1

    def _expect(self, member: int) -> None:
        """How many packets the new flow is to have."""
        flow = self._flow
        assert flow is not None
        if member == v.EXTENT_UNTOLD:
            return
        left, flows = self.context.to_share()
        owed = self.owed.get(flow.service, [])
        like = [packets for packets in owed if extent_member(min(packets, left), left, flows) == member]
        if like and self._made_up:
            packets = like[self.source.within(len(like))]
        else:
            least, end = extent_bounds(member, left, flows)
            packets = least + self.source.within(end - least)
        if owed:
            self._pay(flow.service, packets)
        if self._made_up:
            packets = kept_to(packets, left, flows, self._shortest(flow))
        self.context.expect(flow, packets, self._ending(flow))

    def _pay(self, service: int, packets: int) -> None:
        """Of the flows that are owed, the one of about so many packets is there."""
        owed = self.owed[service]
        nearest = 0
        for i in range(1, len(owed)):
            if abs(owed[i] - packets) < abs(owed[nearest] - packets):
                nearest = i
        del owed[nearest]
        if not owed:
            del self.owed[service]

    def _ending(self, flow: Flow) -> int:
        habits = self.habits
        if habits.reset_share < 0 or flow.transport != TCP:
            return cx.ENDS_ANYHOW
        if self.source.within(1 << 16) < habits.reset_share * (1 << 16):
            return cx.ENDS_RESET
        if not habits.may_reset:
            return cx.ENDS_CLOSED
        though = self.source.within(1 << 16) < habits.fin_behind_rst * (1 << 16)
        return cx.ENDS_CLOSED_THOUGH_RESET if though else cx.ENDS_CLOSED_OR_RESET

    def _choose(self, rank: int) -> None:
        flows = self.context.flows
        if rank >= len(flows):
            raise ValueError(f"flow rank {rank} of {len(flows)} flows")
        self._flow = flows[rank]
        self.context.touch_flow(rank)

    def _choose_service(self, member: int) -> None:
        services = self.context.services
        if member >= v.SERVICE_LIKE:
            like = (member - v.SERVICE_LIKE) // 3
            variant = (member - v.SERVICE_LIKE) % 3
            if like >= len(services):
                raise ValueError(f"service rank {like} of {len(services)} services")
            service = services[like]
            self._version = service.version
            self._transport = service.transport
            self._protocol = service.protocol
            self._port = service.port
            self._port_member = service.port_member
            self._originator = service.originator
            self._responder = service.responder
            self._service = service
            if variant == 1 and (self._transport == TCP or self._transport == UDP):
                self._port = -1
                self._todo = [v.PORT]
            elif variant == 2:
                self._originator = None
                self._todo = [v.HOST]
            return
        self._port = 0
        self._version, self._transport = v.FRESH_KINDS[member]
        self._protocol = 0 if self._version == ARP else self._transport
        if self._transport == ICMP and self._version == IPV6:
            self._protocol = ICMPV6
        self._todo = [v.HOST, v.HOST]
        if self._transport == TCP or self._transport == UDP:
            self._port = -1
            self._todo.extend([v.PORT, v.PORT])
        elif self._transport == OPAQUE and self._version != ARP:
            self._todo.append(v.PROTOCOL)

    def _choose_host(self, member: int) -> None:
        context = self.context
        role = 0 if self._originator is None else 1
        version = IPV6 if self._version == IPV6 else IPV4  # ARP speaks of IPv4 hosts
        if member >= v.HOST_RANK:
            candidates = context.candidates(version, self._originator)
            rank = member - v.HOST_RANK
            if self._limited:  # a prompt's hosts may have become fewer when the plan gave them new addresses
                rank = min(rank, len(candidates) - 1)
            if not 0 <= rank < len(candidates):
                raise ValueError(f"host rank {rank} of {len(candidates)} hosts")
            host = candidates[rank]
            if host is self._responder and self._limited:  # nobody calls himself
                address, mac = self.source.host(version, 0, role)
                host = context.host_for(version, address, mac)
            context.touch_host(host)
        else:
            count = context.hosts_made
            host = self._new_host(version, member, role)
            if self._made_up and role == 1 and member == 0 and context.hosts_made > count:
                self._nobody_yet = True
        if role == 0:
            self._originator = host
        else:
            self._responder = host
            if self._version == ARP:
                self._settle(-1)

    def _new_host(self, version: int, cast: int, role: int) -> Host:
        """A host that the source deals; in a small address plan it may be one that the session has, but nobody calls
        himself."""
        address, mac = self.source.host(version, cast, role)
        host = self.context.host_for(version, address, mac)
        tries = 0
        while host is self._originator and self._made_up and tries < 8:
            tries += 1
            address, mac = self.source.host(version, cast, role if tries < 4 else 0)
            host = self.context.host_for(version, address, mac)
        return host

    def _settle(self, port: int) -> None:
        """The port of a new responder is known: its place in the address plan may depend on it."""
        host = self._responder
        if not self._nobody_yet or host is None:
            return
        self._nobody_yet = False
        address, mac = self.source.settle(host.address, port)
        originator = self._originator
        if address != host.address and (originator is None or originator.address != address):
            self._responder = self.context.rename_host(host, address, mac)

    def _responder_port(self, member: int) -> int:
        if member >= v.PORT_KNOWN:
            return self.vocabulary.ports[member - v.PORT_KNOWN]
        return self.source.port(member if member < v.PORT_SAME else 0)

    def _open(self) -> Flow:
        """All that names the new flow is known: open it."""
        context = self.context
        originator = self._originator
        responder = self._responder
        assert originator is not None and responder is not None
        context.touch_host(responder)
        context.touch_host(originator)
        port = 0
        identifier = 0
        if self._transport == TCP or self._transport == UDP:
            member = self._port_member
            if member < v.PORT_SAME:
                port = self.source.port(member)
            else:
                port = self._port if member == v.PORT_SAME else self.vocabulary.ports[member - v.PORT_KNOWN]
            if self._made_up and self._transport == TCP:
                port = self._unused_port(port)
        else:
            self._port = 0
            if self._transport == ICMP:
                identifier = self.source.word(16)
        service = Service(
            originator, responder, self._version, self._transport, self._protocol, self._port, self._port_member
        )
        context.remember_service(service)
        flow = context.open_flow(service, port, identifier)
        self._flow = flow
        self._direction = 0
        self._new = True
        return flow

    def _unused_port(self, port: int) -> int:
        """The first port from `port` on that makes a TCP flow of which nothing is remembered, live or closed: a SYN of
        an unrelated sequence number in the middle of a connection is what no host sends. A UDP flow told again goes on
        as the one it was (a service that speaks from its own port has no other)."""
        originator = self._originator
        responder = self._responder
        assert originator is not None and responder is not None
        sides = self.context.sides
        while (originator.address, responder.address, port, self._port, self._protocol) in sides:
            port = port % 65535 + 1
        return port

    def _shape_wanted(self) -> None:
        """It is known who speaks: ask for the packet's shape."""
        flow = self._flow
        assert flow is not None
        self._phase = _FIELDS
        self._stage = self.context.flow_features(flow, self._direction)
        self._length = -1
        self._acked = -1
        self._window = -1
        self._stack = -1
        self._sequence = -1
        self._options = -1
        self._deviation = 0
        self._network = 0
        self._id_mode = -1
        self._ip_flags = -1
        self._flags = -1
        self._bytes = []
        self._kind = 0
        if flow.version == ARP:
            self._ask(v.ARP_SHAPE)
        elif flow.transport == TCP:
            self._ask(v.TCP_SHAPE)
        elif flow.transport == UDP:
            self._ask(v.UDP_SHAPE)
        else:
            self._ask(v.ICMP_SHAPE if flow.transport == ICMP else v.OPAQUE_SHAPE)

    def _packet_field(self, field: int, member: int) -> None:
        if v.TCP_SHAPE <= field <= v.ARP_SHAPE:
            self._shape = member
            if field == v.TCP_SHAPE:
                self._plan_tcp(member)
            elif field == v.ICMP_SHAPE:
                if member >> 2 == v.ICMP_OTHER:
                    self._todo = [v.BYTE, v.BYTE]
                self._plan_plain(member)
            elif field != v.ARP_SHAPE:
                self._plan_plain(member)
        elif field == v.FLAGS:
            self._flags = member
            self._todo = self._tcp_fields()
        elif field == v.LENGTH:
            self._length = member
        elif field == v.ACKED:
            self._acked = member
        elif field == v.WINDOW:
            self._window = member
            if self._stack > 0 and self._stack == v.STACK_KNOWN + len(self.vocabulary.stacks):
                self._todo.insert(0, v.BYTE)  # how many bytes of options follow
        elif field == v.STACK:
            self._stack = member
            if member == v.STACK_KNOWN + len(self.vocabulary.stacks):
                self._todo[0:0] = [v.BYTE, v.BYTE, v.BYTE, v.WINDOW]
        elif field == v.DEVIATION:
            self._deviation = member + 1
            self._plan_deviation()
        elif field == v.SEQUENCE:
            self._sequence = member
        elif field == v.TCP_OPTIONS:
            self._options = member
        elif field == v.NETWORK:
            self._plan_network(member + 1)
        elif field == v.IP_ID:
            self._id_mode = member
        elif field == v.IP_FLAGS:
            self._ip_flags = member
        elif field == v.BYTE:
            self._bytes.append(member)
            if self._stack == v.STACK_KNOWN + len(self.vocabulary.stacks) and len(self._bytes) == 4:
                self._todo[0:0] = [v.BYTE] * min(member, 40)

    def _plan_tcp(self, shape: int) -> None:
        flag_class = shape // 36
        if flag_class == v.FLAGS_OTHER:
            self._todo = [v.FLAGS]
        else:
            self._flags = v.FLAG_CLASSES[flag_class]
            self._todo = self._tcp_fields()

    def _tcp_fields(self) -> list[int]:
        """Fields after the flags are known."""
        shape = self._shape
        syn = self._flags & SYN != 0
        todo: list[int] = []
        if shape // 12 % 3 == v.LENGTH_TOLD:
            todo.append(v.LENGTH)
        if shape // 4 % 3 == v.ACK_TOLD and self._flags & ACK:
            todo.append(v.ACKED)
        if shape & 2 and not syn:
            todo.append(v.WINDOW)
        if syn:
            todo.append(v.STACK)
        if shape & 1:
            todo.append(v.DEVIATION)
        return todo

    def _plan_deviation(self) -> None:
        bits = self._deviation
        if bits & v.DEVIATES_SEQUENCE:
            self._todo.append(v.SEQUENCE)
        if bits & v.DEVIATES_OPTIONS and not self._flags & SYN:
            self._todo.append(v.TCP_OPTIONS)
        if bits & v.DEVIATES_NETWORK:
            self._todo.append(v.NETWORK)

    def _plan_plain(self, shape: int) -> None:
        if shape & 2:
            self._todo.append(v.LENGTH)
        if shape & 1:
            self._todo.append(v.NETWORK)

    def _plan_network(self, bits: int) -> None:
        self._network = bits
        flow = self._flow
        assert flow is not None
        if bits & v.NETWORK_TOS:
            self._todo.append(v.BYTE)
        if bits & v.NETWORK_TTL:
            self._todo.append(v.BYTE)
        if bits & v.NETWORK_ID:
            self._todo.append(v.IP_ID)
        if bits & v.NETWORK_FLAGS:
            self._todo.append(v.IP_FLAGS)
        if bits & v.NETWORK_OPTIONS:
            self._todo.append(v.BYTE)

    def _kind_wanted(self) -> bool:
        flow = self._flow
        assert flow is not None
        if flow.version == ARP or (flow.transport != TCP and flow.transport != UDP):
            return False
        side = flow.sides[self._direction]
        if side.kind_told:
            return False
        shape = self._shape
        if flow.transport == UDP and shape >> 2 == v.FRAGMENT_NEXT:
            return False
        if flow.transport == TCP:
            length_class = shape // 12 % 3
            if length_class != v.LENGTH_TOLD:
                some = length_class == v.LENGTH_FULL
            else:
                some = self._some_length(side)
        else:
            some = self._some_length(side) if shape & 2 else side.last_length > 0
        if some:
            side.kind_told = True
        return some

    def _some_length(self, side: Side) -> bool:
        """Does the LENGTH token mean more than nothing?"""
        member = self._length
        if member == v.LENGTH_SAME:
            return side.last_length > 0
        if member < v.LENGTH_KNOWN:
            return True
        member -= v.LENGTH_KNOWN
        lengths = self.vocabulary.lengths
        return lengths[member] > 0 if member < len(lengths) else member > len(lengths)

    # --- the packet -----------------------------------------------------------------------------------------------

    def gap(self, member: int) -> int:
        """Nanoseconds that a member of IAT says; where it leaves a choice, one that the source makes."""
        source = self.source
        if member >= IAT_BINS.count:
            return source.residual()
        lo, hi = IAT_BINS.edges[member], IAT_BINS.edges[member + 1]
        unit = self.habits.resolution_ns
        first = -(-lo // unit) * unit
        if unit == 1 or first >= hi or not self._made_up:
            return lo + source.within(hi - lo)
        return first + unit * source.within((hi - 1 - first) // unit + 1)

    def _told_length(self, side: Side, unit: int) -> int:
        member = self._length
        if member == v.LENGTH_SAME:
            return side.last_length
        if member < v.LENGTH_KNOWN:
            return unit * (member - v.LENGTH_MULTIPLE + 2)
        member -= v.LENGTH_KNOWN
        if member < len(self.vocabulary.lengths):
            return self.vocabulary.lengths[member]
        return self._in_bin(LENGTH_BINS, member - len(self.vocabulary.lengths))

    def _told_window(self) -> int:
        member = self._window
        if member < len(self.vocabulary.windows):
            return self.vocabulary.windows[member]
        return self._in_bin(WINDOW_BINS, member - len(self.vocabulary.windows))

    def _in_bin(self, bins: v.LogBins, member: int) -> int:
        lo = bins.edges[member]
        return lo + self.source.within(bins.edges[member + 1] - lo)

    def _assemble(self, gap_member: int) -> Decoded:
        """All tokens of the packet came: ask for its identities, write its headers, learn from it."""
        context = self.context
        flow = self._flow
        assert flow is not None
        direction = self._direction
        side = flow.sides[direction]
        peer = flow.sides[1 - direction]
        source = self.source
        exceptions = source.residual()
        gap = self.gap(gap_member)
        context.advance(gap)
        headers = Headers()
        headers.version = flow.version
        headers.transport = flow.transport
        headers.protocol = flow.protocol
        headers.src = side.host.address
        headers.dst = peer.host.address
        headers.sport = flow.ports[direction]
        headers.dport = flow.ports[1 - direction]
        if not side.spoke:
            request = flow.version == ARP and self._shape == 0
            headers.link = source.link(context.default_link(flow, side, peer, request))
        else:
            headers.link = source.blob(14) if exceptions & cx.X_LINK else side.link
        if flow.version == ARP:
            self._arp(headers, side, peer, exceptions)
        elif flow.transport == TCP:
            self._tcp(headers, side, peer, exceptions)
        elif flow.transport == UDP:
            self._udp(headers, side, exceptions)
        elif flow.transport == ICMP:
            self._icmp(headers, flow, side, peer, exceptions)
        else:
            self._opaque(headers, side, exceptions)
        if flow.version == ARP:
            frame_len = len(headers.link) + 28
        else:
            frame_len = len(headers.link) + network_header_len(headers) + transport_header_len(headers)
            frame_len += headers.payload_len
        expected = context.expected_trailer(side.host, frame_len)
        headers.trailer_len = source.residual() if exceptions & cx.X_TRAILER else expected
        orig_len = frame_len + headers.trailer_len
        if exceptions & cx.X_CAPTURED:
            headers.captured_len = source.residual()
            if headers.captured_len < orig_len:
                context.snaplen = headers.captured_len
        else:
            headers.captured_len = min(orig_len, context.snaplen)
        if exceptions & cx.X_BODY:
            headers.body += source.blob(0)
        new = self._new
        kind = self._kind
        context.update(flow, side, peer, headers, frame_len)
        if kind:
            self._needs(kind, later=True)
        self._begin()
        return Decoded(gap, headers, flow.number, direction, new, kind, flow.sides[0].key)

    def _needs(self, kind: int, later: bool) -> None:
        """Remember how short the payloads of a side that has begun with this kind may be; later: than its first."""
        flow = self._flow
        assert flow is not None
        ports = flow.ports
        flow.sides[self._direction].least = least_length(KINDS[kind], flow.protocol, ports[0], ports[1], later)

    def _room(self, headers: Headers) -> int:
        """Payload bytes that fit into the MTU, once options are known."""
        mtu = self.mtu
        if not self._limited:
            mtu = 65535 if headers.version == IPV4 else 65575  # IPv6 does not count its header
        return max(0, mtu - network_header_len(headers) - transport_header_len(headers))

    def _fitting(self, length: int, headers: Headers) -> int:
        """As many payload bytes as were told, or as there is room for."""
        room = self._room(headers)
        if length <= room:
            return length
        if self._limited:
            self.clamped += 1
        return room

    def _tcp(self, headers: Headers, side: Side, peer: Side, exceptions: int) -> None:
        context = self.context
        source = self.source
        flags = self._flags
        shape = self._shape
        headers.flags = flags
        if exceptions & cx.X_RESERVED:
            headers.flags |= source.residual() << 8
        syn = flags & SYN != 0
        length_class = shape // 12 % 3
        # A multiple of a full segment needs the options' length, which identities do not change; bins ask for a place.
        options_len = self._options_len(side, peer, syn, flags)
        full = context.full_length(side, peer, options_len)
        length = 0
        if length_class == v.LENGTH_FULL:
            length = full
        elif length_class == v.LENGTH_TOLD:
            length = self._told_length(side, full)
        if 0 < length < side.least and self._sequence < 0 and self._limited:
            length = side.least  # new bytes only: a keep-alive stays one
        headers.seq = self._tcp_sequence(side, peer, flags, full)
        if flags & ACK:
            headers.ack = self._tcp_ack(side, peer, shape // 4 % 3)
        elif exceptions & cx.X_ACK_FIELD:
            headers.ack = source.residual()
        headers.window = context.expected_window(side, flags)
        if self._window >= 0 and not syn:
            headers.window = self._told_window()
        answers = flags & ACK != 0
        stack: Stack | None = None
        if syn:
            stack = self._told_stack(side, answers)
            if answers and self._made_up:
                stack = _agreed(stack, peer)
            headers.window = stack.window
            headers.tcp_options = stack.options
            side.ttl = stack.ttl
            side.tos = stack.tos
            side.payload_tos = stack.tos
            side.ip_flags = stack.ip_flags & 6
            at = cx.timestamps_at(stack.options)
            if at != cx.UNKNOWN:
                stamps = self._timestamps(side, exceptions)
                headers.tcp_options = stack.options[:at] + stamps + stack.options[at + 8 :]
        else:
            at = self._tcp_options(headers, side, peer, exceptions)
        if exceptions & cx.X_URGENT:
            headers.urgent = source.residual()
        zero_id = stack is not None and stack.zero_id and headers.version == IPV4
        self._network_header(headers, side, exceptions, zero_id, length > 0)
        headers.payload_len = self._fitting(length, headers)
        if stack is not None:
            context.learn_stack(side, peer, stack, answers)
        if at != cx.UNKNOWN:
            tsval = int.from_bytes(headers.tcp_options[at : at + 4], "big")
            context.update_timestamps(side, peer, headers.seq, tsval)

    def _options_len(self, side: Side, peer: Side, syn: bool, flags: int) -> int:
        if syn:
            return self._stack_options_len(side, flags & ACK != 0)
        member = self._options if self._options >= 0 else self.context.expected_options(side, peer, flags)
        if member >= v.OPTIONS_RAW:
            return 4 * (member - v.OPTIONS_RAW)
        blocks = member & 3
        return (12 if member >= 4 else 0) + (4 + 8 * blocks if blocks else 0)

    def _stack_options_len(self, side: Side, answers: bool) -> int:
        """Bytes of a SYN's options, before `_told_stack` asks for its identities."""
        member = self._stack
        if member == v.STACK_KNOWN + len(self.vocabulary.stacks):
            return min(40, self._bytes[3])
        stack = side.host.stacks[1 if answers else 0]
        if member != v.STACK_SAME:
            stack = self.vocabulary.stacks[member - v.STACK_KNOWN]
        return len(stack.options)

    def _tcp_sequence(self, side: Side, peer: Side, flags: int, full: int) -> int:
        source = self.source
        expected = self.context.expected_sequence(side, flags)
        member = self._sequence
        if expected == cx.UNKNOWN:
            return source.word(32)
        if member < 0:
            return expected
        if member == v.SEQUENCE_ORIGIN:
            return source.word(32)
        onward = side.next if side.next != cx.UNKNOWN else expected  # a SYN sent again is expected at its ISN
        if member >= v.SEQUENCE_BEHIND:
            return (side.next + source.residual()) & 0xFFFFFFFF
        if member >= v.SEQUENCE_RESEND:
            index = member - v.SEQUENCE_RESEND
            return side.una if index == 0 or index > len(side.ends) else side.ends[index - 1]
        if member >= v.SEQUENCE_GAP:
            return (onward + full * (member - v.SEQUENCE_GAP + 1)) & 0xFFFFFFFF
        if member == v.SEQUENCE_KEEPALIVE:
            return (onward - 1) & 0xFFFFFFFF
        if member == v.SEQUENCE_PEER_ACK:
            return peer.last_ack if peer.last_ack != cx.UNKNOWN else expected
        return side.last_end if side.next != cx.UNKNOWN else expected

    def _tcp_ack(self, side: Side, peer: Side, ack_class: int) -> int:
        source = self.source
        if ack_class == v.ACK_SAME and side.last_ack != cx.UNKNOWN:
            return side.last_ack
        if peer.next == cx.UNKNOWN:
            return source.word(32)
        if ack_class != v.ACK_TOLD:
            return peer.next
        if self._acked >= v.MAX_ADVANCE:
            return source.residual()
        return peer.ends[self._acked] if self._acked < len(peer.ends) else peer.next

    def _told_stack(self, side: Side, answers: bool) -> Stack:
        member = self._stack
        if member == v.STACK_SAME:
            return side.host.stacks[1 if answers else 0]
        stacks = self.vocabulary.stacks
        if member < v.STACK_KNOWN + len(stacks):
            return stacks[member - v.STACK_KNOWN]
        told = self._bytes
        options = bytes(told[4 : 4 + told[3]])
        return Stack(options, self._told_window(), told[0], told[1], told[2] >> 1 & 7, told[2] & 1 != 0)

    def _tcp_options(self, headers: Headers, side: Side, peer: Side, exceptions: int) -> int:
        """Write the options of a packet without SYN. Return: offset of the timestamps' value in them."""
        context = self.context
        member = self._options
        if member < 0:
            member = context.expected_options(side, peer, headers.flags)
        if member >= v.OPTIONS_RAW:
            headers.tcp_options = self.source.blob(4 * (member - v.OPTIONS_RAW))
            return cx.UNKNOWN
        options = b""
        if member >= 4:
            options = cx.TIMESTAMPS + self._timestamps(side, exceptions)
        blocks = member & 3
        if blocks:
            report = context.expected_sack(side, peer, headers.ack, blocks)
            if exceptions & cx.X_SACK:
                report = self.source.blob(8 * blocks)
            if report:
                options += b"\x01\x01\x05" + bytes((2 + len(report),)) + report
            side.sack = cx.sack_numbers(report)
        headers.tcp_options = options
        context.learn_options(side, member, headers.flags)
        return 4 if member >= 4 else cx.UNKNOWN

    def _timestamps(self, side: Side, exceptions: int) -> bytes:
        source = self.source
        tsval = self.context.expected_tsval(side)
        if tsval == cx.UNKNOWN:
            tsval = source.word(32)
        elif exceptions & cx.X_TSVAL:
            tsval = (tsval + source.residual()) & 0xFFFFFFFF
        tsecr = self.context.expected_tsecr(side)
        if exceptions & cx.X_TSECR:
            tsecr = (tsecr + source.residual()) & 0xFFFFFFFF
        return (tsval << 32 | tsecr).to_bytes(8, "big")

    def _udp(self, headers: Headers, side: Side, exceptions: int) -> None:
        source = self.source
        fragment = self._shape >> 2
        if fragment == v.FRAGMENT_NEXT:
            headers.transport = OPAQUE
            headers.sport = 0
            headers.dport = 0
            if exceptions & cx.X_FRAGMENT:
                headers.ident = source.residual()
                headers.fragment_offset = source.residual()
                headers.ip_flags = source.residual()
                headers.payload_len = source.residual()
            else:
                headers.ident = side.fragment_ident
                headers.fragment_offset = side.fragment_offset
                headers.ip_flags = 1 if side.fragment_left > cx.FRAGMENT_SIZE else 0
                headers.payload_len = min(side.fragment_left, cx.FRAGMENT_SIZE)
            self._network_header_plain(headers, side, exceptions, headers.payload_len > 0)
            self._fit_fragment(headers)
            return
        length = self._told_length(side, max(1, side.last_length)) if self._shape & 2 else side.last_length
        if 0 < length < side.least and self._limited:
            length = side.least
        more = 0
        payload = length > 0
        if fragment == v.FRAGMENT_FIRST and headers.version == IPV4:
            if exceptions & cx.X_FRAGMENT:
                headers.payload_len = source.residual()
                headers.udp_length_delta = length - headers.payload_len
                payload = headers.payload_len > 0
                more = 1
            elif length > cx.FRAGMENT_SIZE - 8:
                if self._limited:
                    length = min(length, 65507)
                headers.payload_len = cx.FRAGMENT_SIZE - 8
                headers.udp_length_delta = length - headers.payload_len
                more = 1
        if exceptions & cx.X_UDP_LENGTH:
            headers.udp_length_delta = source.residual()
        self._network_header(headers, side, exceptions, False, payload)
        if more:
            headers.ip_flags |= 1
            total = headers.payload_len + headers.udp_length_delta
            self._fit_fragment(headers)
            headers.udp_length_delta = total - headers.payload_len
        else:
            headers.payload_len = self._fitting(length, headers)

    def _fit_fragment(self, headers: Headers) -> None:
        """Cut a fragment that IP options make too long for the MTU to a multiple of 8 bytes; more must follow."""
        if not self._limited:
            return
        transport_len = transport_header_len(headers)
        room = (max(0, self.mtu - network_header_len(headers)) & ~7) - transport_len
        if headers.payload_len > room:
            self.clamped += 1
            headers.payload_len = max(0, room)
            headers.ip_flags |= 1

    def _icmp(self, headers: Headers, flow: Flow, side: Side, peer: Side, exceptions: int) -> None:
        source = self.source
        shape = self._shape >> 2
        if shape == v.ICMP_OTHER:
            headers.icmp_type = self._bytes[0]
            headers.icmp_code = self._bytes[1]
            del self._bytes[:2]
        else:
            headers.icmp_type, headers.icmp_code = v.ICMP_CODES[shape]
        length = self._told_length(side, max(1, side.last_length)) if self._shape & 2 else side.last_length
        echo = (headers.icmp_type, headers.icmp_code) in cx.ECHOES
        expected = cx.expected_rest(flow, side, peer, headers.icmp_type, echo)
        if expected == cx.UNKNOWN:
            expected = (flow.identifier & 0xFFFF) << 16 | source.word(16)
        headers.rest = source.residual() if exceptions & cx.X_REST else expected
        quotation = b""
        if self._made_up:
            quotation = self._quotation(headers, length)
            if quotation and self._limited:
                length = min(len(quotation), max(length, _least_quoted(quotation)))
        self._network_header(headers, side, exceptions, False, length > 0)
        headers.payload_len = self._fitting(length, headers)
        headers.body = quotation[: headers.payload_len]

    def _opaque(self, headers: Headers, side: Side, exceptions: int) -> None:
        length = self._told_length(side, max(1, side.last_length)) if self._shape & 2 else side.last_length
        more = 0
        if exceptions & cx.X_FRAGMENT:
            headers.fragment_offset = self.source.residual()
            more = self.source.residual()
        self._network_header(headers, side, exceptions, False, length > 0)
        headers.ip_flags |= more
        if not exceptions & cx.X_FRAGMENT:
            self._stay_fragment(headers)
        headers.payload_len = self._fitting(length, headers)

    def _stay_fragment(self, headers: Headers) -> None:
        """What has a header of its own is opaque in later fragments only: a prompt can begin a flow of them."""
        if headers.version == IPV4:
            if headers.protocol in (ICMP, TCP, UDP):
                headers.fragment_offset = cx.FRAGMENT_SIZE
        elif headers.protocol in (ICMPV6, TCP, UDP) and not headers.options:
            place = cx.FRAGMENT_SIZE.to_bytes(2, "big")
            headers.options = b"\x2c" + bytes((headers.protocol, 0)) + place + bytes(4)

    def _arp(self, headers: Headers, side: Side, peer: Side, exceptions: int) -> None:
        headers.transport = OPAQUE
        if exceptions & cx.X_REST:
            headers.body = self.source.blob(28)
        else:
            headers.body = cx.arp_body(side, peer, self._shape + 1)

    def _network_header_plain(self, headers: Headers, side: Side, exceptions: int, payload: bool) -> None:
        """TOS, TTL and options: as the sender wrote them last, or as told."""
        bits = self._network
        told = self._bytes
        at = 0
        if self._stack == v.STACK_KNOWN + len(self.vocabulary.stacks):
            at = 4 + min(40, told[3])
        headers.tos = side.payload_tos if payload else side.tos
        headers.ttl = side.ttl
        headers.options = side.options
        if bits & v.NETWORK_TOS:
            headers.tos = told[at]
            at += 1
        if bits & v.NETWORK_TTL:
            headers.ttl = told[at]
            at += 1
        if bits & v.NETWORK_OPTIONS:
            options = self.source.blob(told[at])
            if headers.version == IPV4:
                options = options[: min(40, len(options)) & ~3]
            elif not any(options):
                options = b""  # zeros are no chain of extension headers
            headers.options = options
        if exceptions & cx.X_CHECKSUM:
            headers.checksum_delta = self.source.residual()

    def _network_header(self, headers: Headers, side: Side, exceptions: int, zero_id: bool, payload: bool) -> None:
        source = self.source
        self._network_header_plain(headers, side, exceptions, payload)
        if headers.version == IPV6:
            if side.flow_label == cx.UNKNOWN:
                headers.flow_label = source.word(20)
            else:
                headers.flow_label = source.residual() if exceptions & cx.X_FLOW_LABEL else side.flow_label
            return
        headers.ip_flags = side.ip_flags
        if self._ip_flags >= 0:
            headers.ip_flags = self._ip_flags & 6
        if zero_id:
            return
        if self._id_mode >= 0:
            side.id_mode = self._id_mode
        mode = side.id_mode
        if mode == v.ID_ZERO:
            return
        if mode == v.ID_RANDOM or side.ident == cx.UNKNOWN:
            headers.ident = source.word(16)
        elif mode == v.ID_NEXT:
            headers.ident = (side.ident + 1) & 0xFFFF
        elif mode == v.ID_STEP:
            headers.ident = (side.ident + 1 + source.within(v.MAX_ID_STEP)) & 0xFFFF
        else:
            headers.ident = side.ident

    def _quotation(self, headers: Headers, length: int) -> bytes:
        """What an ICMP error quotes (RFC 792, RFC 4443): the last packet that its receiver sent to its sender, or else
        to anybody, empty if it is none.

        A receiver that has sent nothing is quoted with a traceroute's probe, long enough for `length` bytes of it.
        """
        icmp_type = headers.icmp_type
        if headers.version == IPV4:
            if icmp_type not in _ERRORS4:
                return b""
        elif icmp_type >= 128:
            return b""
        quoted = self._last_sent(headers)
        if quoted is None:
            quoted = Headers()
            quoted.version = headers.version
            quoted.transport = UDP
            quoted.protocol = UDP
            quoted.ttl = 1
            quoted.src = headers.dst
            quoted.dst = headers.src
            quoted.sport = 33434
            quoted.dport = 33434
            quoted.payload_len = max(32, length - network_header_len(quoted) - 8)
        data, orig_len = render(quoted)
        data = data[len(quoted.link) : orig_len - max(0, quoted.trailer_len)]
        return data[: _least_quoted(data)] if quoted.transport == TCP and quoted.payload_len else data

    def _last_sent(self, headers: Headers) -> Headers | None:
        """The last packet that the receiver of these headers sent to their sender, or else to anybody."""
        found: Headers | None = None
        for flow in [*self.context.flows[:64], *self.context.over[:16]]:
            if flow.transport != TCP and flow.transport != UDP:
                continue
            for sender in flow.sides:
                sent = sender.last_headers
                if sent is None or sender.host.address != headers.dst or sent.version != headers.version:
                    continue
                if sent.dst == headers.src:
                    return sent
                if found is None:
                    found = sent
        return found

    # --- escapes --------------------------------------------------------------------------------------------------

    def _escape_field(self, field: int, member: int) -> Decoded | None:
        if field == v.BYTE:
            if self._bytes_wanted < 0:
                self._bytes_wanted = min(member, cx.ESCAPED_BYTES)
            else:
                self._bytes.append(member)
            self._ask(v.BYTE if len(self._bytes) < self._bytes_wanted else v.LENGTH)
            return None
        if field == v.LENGTH:
            self._length = member
            self._ask(v.IAT)
            return None
        context = self.context
        source = self.source
        source.residual()  # the exceptions, of which an escape has none
        gap = self.gap(member)
        context.advance(gap)
        bin_member = self._length - v.LENGTH_KNOWN - len(self.vocabulary.lengths)
        orig_len = self._in_bin(LENGTH_BINS, max(0, min(bin_member, LENGTH_BINS.count - 1)))
        headers = Headers()
        headers.version = NOT_IP
        headers.captured_len = source.residual()
        headers.body = cx.join_escaped(bytes(self._bytes), source.blob(12))
        headers.trailer_len = orig_len - len(headers.body)
        self._begin()
        return Decoded(gap, headers, -1, 0, False, 0, (b"", b"", 0, 0, 0))


def _agreed(stack: Stack, peer: Side) -> Stack:
    """A SYN+ACK's stack without the options that its peer's SYN has not offered (RFC 7323, RFC 2018): NOPs stand in
    their place, as far as they share four bytes with others."""
    asked = peer.last_headers
    if asked is None or not asked.flags & SYN:
        return stack
    offered = [kind for kind, _ in cx.tcp_option_list(asked.tcp_options)]
    options = bytearray(stack.options)
    at = option_at(stack.options, 0)
    while at >= 0:
        end = at + options[at + 1]
        if options[at] in cx.OFFERED and options[at] not in offered:
            options[at:end] = b"\1" * (end - at)
        at = option_at(stack.options, end)
    if options == stack.options:
        return stack
    words = [bytes(options[i : i + 4]) for i in range(0, len(options), 4)]
    left = b"".join([word for word in words if word != b"\1\1\1\1"])
    return Stack(left, stack.window, stack.ttl, stack.tos, stack.ip_flags, stack.zero_id)


def _least_quoted(packet: bytes) -> int:
    """What an ICMP error quotes of a packet at the least: up to 8 bytes of the transport header."""
    return (packet[0] & 15) * 4 + 8 if packet[0] >> 4 == 4 else 48


def decode(encoded: Encoded, vocabulary: Vocabulary) -> Iterator[tuple[int, bytes, int]]:
    """Give a session's packets back: ``(ts_ns, data, orig_len)``, exact but for TCP, UDP and ICMP checksums."""
    extent = encoded.packets, cx.UNKNOWN, len(encoded.flow_packets)
    decoder = Decoder(vocabulary, Recorded(encoded.identities), encoded.start_ns, extent=extent)
    now_ns = encoded.start_ns
    for token in encoded.tokens:
        decoded = decoder.feed(token)
        if decoded is not None:
            now_ns += decoded.gap_ns
            data, orig_len = render(decoded.headers)
            yield now_ns, data[: decoded.headers.captured_len], orig_len
