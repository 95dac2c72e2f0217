"""Packets to tokens: one session's packets in, tokens and identities out, packet by packet.

In: ``(ts_ns, data, orig_len)`` in capture order. Out: `Encoded`. Memory is bounded by the context's caps; nothing looks
ahead. See `codec.context` for the grammar and for what the contexts predict. `_late` collects a packet's identities in
the order in which `codec.decoder` asks for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from netssmd.codec import context as cx
from netssmd.codec import vocab as v
from netssmd.codec.context import Context, Flow, Host, Service, Side
from netssmd.codec.extents import extent_bounds, extent_member
from netssmd.codec.kinds import kind_of
from netssmd.codec.vocab import IAT_BINS, LENGTH_BINS, WINDOW_BINS, Stack, Statistics, Vocabulary
from netssmd.packet.wire import (
    ACK,
    ARP,
    ICMP,
    IPV4,
    IPV6,
    NOT_IP,
    OPAQUE,
    SYN,
    TCP,
    UDP,
    Headers,
    parse,
    signed,
)

_FLAG_CLASS: Final = {flags: i for i, flags in enumerate(v.FLAG_CLASSES)}
_ICMP_CLASS: Final = {code: i for i, code in enumerate(v.ICMP_CODES)}
_ZERO_TIMESTAMPS: Final = bytes(8)

Key = tuple[bytes, bytes, int, int, int]


class Encoded:
    """A session as tokens.

    Attributes:
        tokens: ids. limits: for each, the exclusive end of the members that were legal. stages: for each, the index of
            its feature vector in `features`, a flat list of vectors of `STAGE_FEATURES` embedding rows.
        progress: for each feature vector, packets so far, nanoseconds since the first, flows so far; flat.
        flow_packets: packets of each flow, by number.
        identities: numbers and byte strings, as the decoder asks for them. start_ns: time of the first packet.
        packets, escaped: how many were coded, how many of them as an escape.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.limits: list[int] = []
        self.stages: list[int] = []
        self.features: list[int] = []
        self.progress: list[int] = []
        self.flow_packets: list[int] = []
        self.identities: list[Any] = []
        self.start_ns: int = 0
        self.packets: int = 0
        self.escaped: int = 0


class Encoder:
    """Encodes one session. Call `packet` for each packet, then `end` if the session came to its own end.

    `known`: the same session, encoded before; it tells how many packets there will be, and of each flow.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        statistics: Statistics | None = None,
        max_flows: int = v.MAX_FLOWS,
        known: Encoded | None = None,
    ) -> None:
        self._extents: list[int] = [] if known is None else known.flow_packets
        self._packets: int = 0 if known is None else known.packets
        self.vocabulary: Vocabulary = vocabulary
        self.context: Context = Context(vocabulary, max_flows)
        self.encoded: Encoded = Encoded()
        self._statistics: Statistics | None = statistics
        self._lo: list[int] = vocabulary.lo
        self._size: list[int] = [f.size for f in vocabulary.fields]
        self._stage: int = -1
        self._late: list[Any] = []
        self._exceptions: int = 0

    def packet(self, ts_ns: int, data: bytes, orig_len: int) -> None:
        """Encode one packet: `data` as captured, `orig_len` its length on the wire."""
        context = self.context
        encoded = self.encoded
        if encoded.packets == 0:
            encoded.start_ns = ts_ns
            context.now_ns = ts_ns
            context.start_ns = ts_ns
        encoded.packets += 1
        self._late = []
        self._exceptions = 0
        self._see(context.who_features())
        headers = parse(data, orig_len)
        if headers.version == NOT_IP or (
            headers.transport == UDP
            and headers.udp_length_delta < 0
            and (headers.ip_flags & 1 or headers.payload_len + headers.udp_length_delta < 0)
        ):
            self._escape(ts_ns, data, orig_len)
            return
        entry = self._find(headers)
        if entry is None:
            flow = self._new_flow(headers)
            direction = 0
        else:
            flow, direction = entry
            self._known_flow(flow, direction)
        side = flow.sides[direction]
        peer = flow.sides[1 - direction]
        self._see(context.flow_features(flow, direction))
        # Identities: the gap, the link header, the transport's, the network header's, the frame's.
        gap = ts_ns - context.now_ns
        gap_member = self._gap_member(gap)
        context.advance(gap)
        self._link(headers, flow, side, peer)
        if flow.transport == TCP:
            self._tcp(headers, flow, side, peer)
        elif flow.transport == UDP:
            self._udp(headers, side)
        elif flow.transport == ICMP:
            self._icmp(headers, flow, side, peer)
        elif headers.version == ARP:
            self._arp(headers, side, peer)
        else:
            self._opaque(headers, side)
        frame_len = self._frame(headers, side, data, orig_len)
        self._put(v.IAT, gap_member)
        encoded.identities.append(self._exceptions)
        encoded.identities.extend(self._late)
        context.update(flow, side, peer, headers, frame_len)
        encoded.flow_packets[flow.number] += 1

    def end(self) -> None:
        """The session came to its own end: write the END token."""
        self._see(self.context.who_features())
        self._put_limited(v.WHO, v.WHO_END, self.context.who_limit())

    # --- writing --------------------------------------------------------------------------------------------------

    def _see(self, features: list[int], owed: int = 0) -> None:
        """The tokens that follow are predicted with these context features; `owed`: packets that are not to be counted
        among those to come."""
        self._stage += 1
        self.encoded.features.extend(features)
        context = self.context
        time_ns = max(-cx.LONGEST_NS, min(context.now_ns - context.start_ns, cx.LONGEST_NS))
        self.encoded.progress.extend((context.packets + owed, time_ns, context.flows_opened))

    def _put(self, field: int, member: int) -> None:
        lo = self._lo[field]
        self.encoded.tokens.append(lo + member)
        self.encoded.limits.append(lo + self._size[field])
        self.encoded.stages.append(self._stage)

    def _put_limited(self, field: int, member: int, limit: int) -> None:
        lo = self._lo[field]
        self.encoded.tokens.append(lo + member)
        self.encoded.limits.append(lo + limit)
        self.encoded.stages.append(self._stage)

    def _gap_member(self, gap: int) -> int:
        if gap < 0:
            self._late.append(gap)
            return v.IAT_BACK
        if gap >= IAT_BINS.edges[IAT_BINS.count]:
            self._late.append(gap)
            return v.IAT_FAR
        member = IAT_BINS.find(gap)
        self._late.append(gap - IAT_BINS.edges[member])
        return member

    # --- who ------------------------------------------------------------------------------------------------------

    def _key(self, headers: Headers) -> Key:
        transport = headers.transport
        if transport == TCP or transport == UDP:
            return (headers.src, headers.dst, headers.sport, headers.dport, headers.protocol)
        if headers.version == ARP:
            return (headers.src, headers.dst, -1, 0, 0)
        if transport == ICMP:
            return (headers.src, headers.dst, -2 - ICMP, _identifier(headers), headers.protocol)
        return (headers.src, headers.dst, -2 - OPAQUE, 0, headers.protocol)

    def _find(self, headers: Headers) -> tuple[Flow, int] | None:
        """The flow and direction that a packet belongs to; None if it begins a flow."""
        context = self.context
        if headers.fragment_offset and headers.protocol == UDP:
            entry = context.fragments.get((headers.src, headers.dst, headers.protocol))
            if entry is not None and entry[0].sides[entry[1]].fragment_left > 0:
                known = context.sides.get(entry[0].sides[entry[1]].key)
                if known is not None and known[0] is entry[0] and not entry[0].is_over():
                    return entry
        entry = context.sides.get(self._key(headers))
        if entry is None or entry[0].version != headers.version or entry[0].is_over():
            return None
        if headers.transport == TCP:
            side = entry[0].sides[entry[1]]
            if headers.flags & SYN and not headers.flags & ACK and side.isn != cx.UNKNOWN and side.isn != headers.seq:
                return None  # the five-tuple is used again
            flag_class = _FLAG_CLASS.get(headers.flags & 0xFF, v.FLAGS_OTHER)
            if context.flag_classes(side, entry[0].sides[1 - entry[1]]) <= flag_class < v.FLAGS_OTHER:
                return None  # packets are missing before this one
        return entry

    def _known_flow(self, flow: Flow, direction: int) -> None:
        context = self.context
        rank = context.flows.index(flow)
        limit = context.who_limit()
        if rank < v.NEAR_FLOWS:
            self._put_limited(v.WHO, v.WHO_FLOW + 2 * rank + direction, limit)
        else:
            high = (rank - v.NEAR_FLOWS) >> 6
            self._put_limited(v.WHO, v.WHO_FAR + direction, limit)
            self._put_limited(v.RANK_HIGH, high, context.rank_high_limit())
            self._put_limited(v.RANK_LOW, (rank - v.NEAR_FLOWS) & 63, context.rank_low_limit(high))
        context.touch_flow(rank)

    def _new_flow(self, headers: Headers) -> Flow:
        context = self.context
        identities = self.encoded.identities
        self._put_limited(v.WHO, v.WHO_NEW, context.who_limit())
        transport = headers.transport
        originator = context.hosts.get(headers.src)
        responder = context.hosts.get(headers.dst)
        # The responder's port decides the service; the originator's is usually ephemeral.
        port_member = self._port_member(headers.sport, headers.dport)
        self._count_ports(headers)
        limit = v.SERVICE_LIKE + 3 * len(context.services)
        like = -1
        variant = 0
        for rank, service in enumerate(context.services):
            if (
                service.transport != transport
                or service.version != headers.version
                or service.protocol != headers.protocol
                or service.port_member != port_member
            ):
                continue
            same_originator = service.originator is originator and originator is not None
            same_responder = service.responder is responder and responder is not None
            if same_originator and same_responder:
                if service.port == headers.dport:
                    like = rank
                    variant = 0
                    break
                if (transport == TCP or transport == UDP) and like < 0:
                    like = rank
                    variant = 1
            elif same_responder and service.port == headers.dport and like < 0:
                like = rank
                variant = 2
        if like >= 0:
            service = context.services[like]
            self._put_limited(v.SERVICE, v.SERVICE_LIKE + 3 * like + variant, limit)
            if variant == 1:
                self._put_port(headers.dport, -1)
            elif variant == 2:
                originator = self._put_host(headers, None)
        else:
            self._put_limited(v.SERVICE, v.FRESH_KINDS.index((headers.version, transport)), limit)
            originator = self._put_host(headers, None)
            responder = self._put_host(headers, originator)
            if transport == TCP or transport == UDP:
                self._put_port(headers.dport, -1)
                self._put(v.PORT, port_member)
            elif transport == OPAQUE and headers.version != ARP:
                self._put(v.PROTOCOL, v.PROTOCOL_INDEX[headers.protocol])
        assert originator is not None and responder is not None
        context.touch_host(responder)
        context.touch_host(originator)
        if (transport == TCP or transport == UDP) and port_member < v.PORT_SAME:
            identities.append(headers.sport)
        identifier = 0
        if transport == ICMP:
            identifier = _identifier(headers)
            identities.append(identifier)
        service = Service(
            originator, responder, headers.version, transport, headers.protocol, headers.dport, port_member
        )
        context.remember_service(service)
        flow = context.open_flow(service, headers.sport, identifier)
        self._see(context.flow_features(flow, 0), context.owed)
        self._put_extent(flow)
        return flow

    def _put_extent(self, flow: Flow) -> None:
        """Tell how many packets a new flow will have, if that is known."""
        self.encoded.flow_packets.append(0)
        if flow.number >= len(self._extents):
            self._put(v.EXTENT, v.EXTENT_UNTOLD)
            return
        packets = self._extents[flow.number]
        context = self.context
        left, flows = self._packets - context.packets - context.owed, len(self._extents) - flow.number
        member = extent_member(packets, left, flows)
        self._put(v.EXTENT, member)
        self.encoded.identities.append(packets - extent_bounds(member, left, flows)[0])
        context.expect(flow, packets)

    def _put_host(self, headers: Headers, originator: Host | None) -> Host:
        """Tell a host: the source if `originator` is None, else the destination."""
        context = self.context
        address = headers.src if originator is None else headers.dst
        candidates = context.candidates(headers.version, originator)
        limit = v.HOST_RANK + min(v.NEAR_HOSTS, len(candidates))
        host = context.hosts.get(address)
        if host is not None:
            for rank in range(limit - v.HOST_RANK):
                if candidates[rank] is host:
                    self._put_limited(v.HOST, v.HOST_RANK + rank, limit)
                    context.touch_host(host)
                    return host
        mac = headers.link[6:12] if originator is None else headers.link[0:6]
        self._put_limited(v.HOST, _cast(headers.version, address, mac), limit)
        self.encoded.identities.append((address, mac))
        return context.host_for(headers.version, address, mac)

    def _port_member(self, port: int, other: int) -> int:
        """PORT member of a port, given the other side's number (or -1)."""
        if port == other:
            return v.PORT_SAME
        index = self.vocabulary.port_index.get(port)
        if index is not None:
            return v.PORT_KNOWN + index
        if port >= 32768:
            return 0 if port < 61000 else 2
        return 1 if port >= 1024 else 3

    def _put_port(self, port: int, other: int) -> None:
        member = self._port_member(port, other)
        self._put(v.PORT, member)
        if member < v.PORT_SAME:
            self.encoded.identities.append(port)

    def _count_ports(self, headers: Headers) -> None:
        if self._statistics is not None and (headers.transport == TCP or headers.transport == UDP):
            ports = self._statistics.ports
            for port in (headers.sport, headers.dport):
                if port < 32768:
                    ports[port] += 1

    # --- transports -----------------------------------------------------------------------------------------------

    def _tcp(self, headers: Headers, flow: Flow, side: Side, peer: Side) -> None:
        context = self.context
        flags = headers.flags & 0xFF
        syn = flags & SYN != 0
        late = self._late
        if headers.flags >> 8:
            self._exceptions |= cx.X_RESERVED
            late.append(headers.flags >> 8)
        full = context.full_length(side, peer, len(headers.tcp_options))
        length = headers.payload_len
        length_class = v.LENGTH_ZERO if length == 0 else v.LENGTH_FULL if length == full else v.LENGTH_TOLD
        # Order of identities from here on: length, sequence number, acknowledgement, window, options, urgent pointer.
        length_member = self._length_member(side, length, full) if length_class == v.LENGTH_TOLD else 0
        deviation = 0
        expected = context.expected_sequence(side, flags)
        sequence_member = -1
        if expected == cx.UNKNOWN:
            late.append(headers.seq)
        elif headers.seq != expected:
            deviation |= v.DEVIATES_SEQUENCE
            sequence_member = self._sequence_member(headers, side, peer, expected, full)
        ack_class = v.ACK_SAME
        acked_member = 0
        if flags & ACK:
            if side.last_ack == headers.ack and side.last_ack != cx.UNKNOWN:
                ack_class = v.ACK_SAME
            elif peer.next == cx.UNKNOWN:
                ack_class = v.ACK_ALL
                late.append(headers.ack)
            elif headers.ack == peer.next:
                ack_class = v.ACK_ALL
            else:
                ack_class = v.ACK_TOLD
                acked_member = self._acked_member(headers.ack, peer)
        elif headers.ack:
            self._exceptions |= cx.X_ACK_FIELD
            late.append(headers.ack)
        window_told = not syn and headers.window != context.expected_window(side, flags)
        window_member = self._window_member(headers.window) if window_told else 0
        options = -1
        stack_tokens: list[tuple[int, int]] = []
        answers = flags & ACK != 0
        zero_id = False
        if syn:
            stack = _stack_of(headers)
            zero_id = stack.zero_id
            stack_tokens = self._stack_tokens(stack, side.host.stacks[1 if answers else 0])
            side.ttl = stack.ttl
            side.tos = stack.tos
            side.payload_tos = stack.tos
            side.ip_flags = stack.ip_flags & 6
            self._timestamps(headers, side, peer, cx.timestamps_at(headers.tcp_options))
        else:
            options = _options_member(headers.tcp_options)
            if options != context.expected_options(side, peer, flags):
                deviation |= v.DEVIATES_OPTIONS
            if options >= v.OPTIONS_RAW:
                late.append(headers.tcp_options)
            else:
                self._option_identities(headers, side, peer, options)
        if headers.urgent:
            self._exceptions |= cx.X_URGENT
            late.append(headers.urgent)
        network = self._network_bits(headers, side, zero_id)
        if network:
            deviation |= v.DEVIATES_NETWORK
        classes = context.shape_classes(flow, side, peer)
        flag_class = _FLAG_CLASS.get(flags, v.FLAGS_OTHER)
        if classes == v.FLAGS_FIN <= flag_class:
            flag_class = v.FLAGS_OTHER
        shape = ((flag_class * 3 + length_class) * 3 + ack_class) * 4
        shape += (2 if window_told else 0) + (1 if deviation else 0)
        self._put_limited(v.TCP_SHAPE, shape, 36 * classes)
        if flag_class == v.FLAGS_OTHER:
            self._put(v.FLAGS, flags)
        if length_class == v.LENGTH_TOLD:
            self._put(v.LENGTH, length_member)
        if ack_class == v.ACK_TOLD:
            self._put_limited(v.ACKED, acked_member, context.acked_limit(peer))
        if window_told:
            self._put(v.WINDOW, window_member)
        for field, member in stack_tokens:
            self._put(field, member)
        if deviation:
            self._put(v.DEVIATION, deviation - 1)
            if deviation & v.DEVIATES_SEQUENCE:
                self._put_limited(v.SEQUENCE, sequence_member, context.sequence_limit(side))
            if deviation & v.DEVIATES_OPTIONS:
                self._put(v.TCP_OPTIONS, options)
            if deviation & v.DEVIATES_NETWORK:
                self._put_network(headers, side, network)
        self._put_kind(headers, side, headers.payload_len)
        # What is learned before the general update.
        if syn:
            context.learn_stack(side, peer, _stack_of(headers), answers)
            at = cx.timestamps_at(headers.tcp_options)
        else:
            if options < v.OPTIONS_RAW:
                context.learn_options(side, options, flags)
            at = 4 if 4 <= options < v.OPTIONS_RAW else cx.UNKNOWN
        if at != cx.UNKNOWN:
            tsval = int.from_bytes(headers.tcp_options[at : at + 4], "big")
            context.update_timestamps(side, peer, headers.seq, tsval)

    def _length_member(self, side: Side, length: int, unit: int) -> int:
        """LENGTH member; appends the place in the bin."""
        if length == side.last_length and length:
            return v.LENGTH_SAME
        if length % unit == 0 and 2 <= length // unit <= v.MAX_MULTIPLE:
            return v.LENGTH_MULTIPLE + length // unit - 2
        if self._statistics is not None:
            self._statistics.lengths[length] += 1
        index = self.vocabulary.length_index.get(length)
        if index is not None:
            return v.LENGTH_KNOWN + index
        member = LENGTH_BINS.find(length)
        self._late.append(length - LENGTH_BINS.edges[member])
        return v.LENGTH_KNOWN + len(self.vocabulary.lengths) + member

    def _window_member(self, window: int) -> int:
        if self._statistics is not None:
            self._statistics.windows[window] += 1
        index = self.vocabulary.window_index.get(window)
        if index is not None:
            return index
        member = WINDOW_BINS.find(window)
        self._late.append(window - WINDOW_BINS.edges[member])
        return len(self.vocabulary.windows) + member

    def _sequence_member(self, headers: Headers, side: Side, peer: Side, expected: int, full: int) -> int:
        """SEQUENCE member of a segment that does not start where expected; appends what it leaves open."""
        sequence = headers.seq
        if sequence == side.una and side.ends:
            return v.SEQUENCE_RESEND
        for i, end in enumerate(side.ends[: v.MAX_RESEND - 1]):
            if end == sequence and i + 1 < len(side.ends):
                return v.SEQUENCE_RESEND + i + 1
        ahead = signed(sequence - side.next) if side.next != cx.UNKNOWN else 0
        if side.next != cx.UNKNOWN:
            if sequence == side.last_end:
                return v.SEQUENCE_AFTER_LAST
            if ahead == -1:
                return v.SEQUENCE_KEEPALIVE
            if ahead > 0 and ahead % full == 0 and ahead // full <= v.MAX_GAP:
                return v.SEQUENCE_GAP + ahead // full - 1
        if sequence == peer.last_ack:
            return v.SEQUENCE_PEER_ACK
        if side.next == cx.UNKNOWN or abs(ahead) > 1 << 26:
            self._late.append(sequence)
            return v.SEQUENCE_ORIGIN
        self._late.append(ahead)
        return v.SEQUENCE_BEHIND if ahead < 0 else v.SEQUENCE_AHEAD

    def _acked_member(self, ack: int, peer: Side) -> int:
        for i, end in enumerate(peer.ends[: v.MAX_ADVANCE]):
            if end == ack and i + 1 < len(peer.ends):
                return i
        self._late.append(ack)
        if signed(ack - peer.next) > 0:
            return v.ACKED_BEYOND
        return v.ACKED_BELOW if signed(ack - peer.una) <= 0 else v.ACKED_INSIDE

    def _stack_tokens(self, stack: Stack, last: Stack) -> list[tuple[int, int]]:
        """Tokens that tell a SYN's stack: the sender's last one, a known one, or each part."""
        if self._statistics is not None:
            self._statistics.stacks[stack] += 1
        if stack == last:
            return [(v.STACK, v.STACK_SAME)]
        index = self.vocabulary.stack_index.get(stack)
        if index is not None:
            return [(v.STACK, v.STACK_KNOWN + index)]
        tokens: list[tuple[int, int]] = [
            (v.STACK, v.STACK_KNOWN + len(self.vocabulary.stacks)),
            (v.BYTE, stack.ttl),
            (v.BYTE, stack.tos),
            (v.BYTE, stack.ip_flags << 1 | (1 if stack.zero_id else 0)),
            (v.WINDOW, self._window_member(stack.window)),
            (v.BYTE, len(stack.options)),
        ]
        for byte in stack.options:
            tokens.append((v.BYTE, byte))
        return tokens

    def _option_identities(self, headers: Headers, side: Side, peer: Side, options: int) -> None:
        data = headers.tcp_options
        at = 0
        if options >= 4:
            self._timestamps(headers, side, peer, 4)
            at = 12
        blocks = options & 3
        if blocks:
            expected = self.context.expected_sack(side, peer, headers.ack, blocks)
            actual = data[at + 4 :]
            if actual != expected:
                self._exceptions |= cx.X_SACK
                self._late.append(actual)
            side.sack = cx.sack_numbers(actual)

    def _timestamps(self, headers: Headers, side: Side, peer: Side, at: int) -> None:
        if at == cx.UNKNOWN:
            return
        tsval = int.from_bytes(headers.tcp_options[at : at + 4], "big")
        tsecr = int.from_bytes(headers.tcp_options[at + 4 : at + 8], "big")
        expected = self.context.expected_tsval(side)
        if expected == cx.UNKNOWN:
            self._late.append(tsval)
        elif tsval != expected:
            self._exceptions |= cx.X_TSVAL
            self._late.append((tsval - expected) & 0xFFFFFFFF)
        expected = self.context.expected_tsecr(side)
        if tsecr != expected:
            self._exceptions |= cx.X_TSECR
            self._late.append((tsecr - expected) & 0xFFFFFFFF)

    def _udp(self, headers: Headers, side: Side) -> None:
        late = self._late
        fragment = v.FRAGMENT_NONE
        told = False
        length_member = 0
        network = 0
        if headers.transport == OPAQUE:
            fragment = v.FRAGMENT_NEXT
            length = min(side.fragment_left, cx.FRAGMENT_SIZE)
            more = 1 if side.fragment_left > cx.FRAGMENT_SIZE else 0
            if (
                headers.ident != side.fragment_ident
                or headers.fragment_offset != side.fragment_offset
                or headers.ip_flags != more
                or headers.payload_len != length
            ):
                self._exceptions |= cx.X_FRAGMENT
                late.extend([headers.ident, headers.fragment_offset, headers.ip_flags, headers.payload_len])
            network = self._network_bits_plain(headers, side)
        else:
            length = headers.payload_len
            if headers.ip_flags & 1:
                fragment = v.FRAGMENT_FIRST
                length += headers.udp_length_delta
                if headers.payload_len != cx.FRAGMENT_SIZE - 8 or length <= cx.FRAGMENT_SIZE - 8:
                    self._exceptions |= cx.X_FRAGMENT
            elif headers.udp_length_delta:
                self._exceptions |= cx.X_UDP_LENGTH
            told = length != side.last_length
            if told:
                length_member = self._length_member(side, length, max(1, side.last_length))
            if self._exceptions & cx.X_FRAGMENT:
                late.append(headers.payload_len)
            if self._exceptions & cx.X_UDP_LENGTH:
                late.append(headers.udp_length_delta)
            network = self._network_bits(headers, side, False)
        shape = fragment * 4 + (2 if told else 0) + (1 if network else 0)
        self._put_limited(v.UDP_SHAPE, shape, 12 if side.fragment_left > 0 else 8)
        if told:
            self._put(v.LENGTH, length_member)
        if network:
            self._put_network(headers, side, network)
        if fragment != v.FRAGMENT_NEXT:
            self._put_kind(headers, side, length)

    def _icmp(self, headers: Headers, flow: Flow, side: Side, peer: Side) -> None:
        late = self._late
        code = (headers.icmp_type, headers.icmp_code)
        shape = _ICMP_CLASS.get(code, v.ICMP_OTHER)
        told = headers.payload_len != side.last_length
        member = self._length_member(side, headers.payload_len, max(1, side.last_length)) if told else 0
        expected = cx.expected_rest(flow, side, peer, headers.icmp_type, code in cx.ECHOES)
        if expected == cx.UNKNOWN:
            late.append(headers.rest & 0xFFFF)
            expected = flow.identifier << 16 | (headers.rest & 0xFFFF)
        if headers.rest != expected:
            self._exceptions |= cx.X_REST
            late.append(headers.rest)
        network = self._network_bits(headers, side, False)
        self._put(v.ICMP_SHAPE, (shape * 2 + (1 if told else 0)) * 2 + (1 if network else 0))
        if shape == v.ICMP_OTHER:
            self._put(v.BYTE, headers.icmp_type)
            self._put(v.BYTE, headers.icmp_code)
        if told:
            self._put(v.LENGTH, member)
        if network:
            self._put_network(headers, side, network)

    def _opaque(self, headers: Headers, side: Side) -> None:
        told = headers.payload_len != side.last_length
        member = self._length_member(side, headers.payload_len, max(1, side.last_length)) if told else 0
        if headers.fragment_offset or headers.ip_flags & 1:
            self._exceptions |= cx.X_FRAGMENT
            self._late.extend([headers.fragment_offset, headers.ip_flags & 1])
        network = self._network_bits(headers, side, False)
        self._put(v.OPAQUE_SHAPE, (2 if told else 0) + (1 if network else 0))
        if told:
            self._put(v.LENGTH, member)
        if network:
            self._put_network(headers, side, network)

    def _arp(self, headers: Headers, side: Side, peer: Side) -> None:
        operation = headers.body[6] << 8 | headers.body[7]
        self._put(v.ARP_SHAPE, operation - 1 if 1 <= operation < v.ARP_OPERATIONS else v.ARP_OPERATIONS - 1)
        if operation not in range(1, v.ARP_OPERATIONS) or headers.body[:28] != cx.arp_body(side, peer, operation):
            self._exceptions |= cx.X_REST
            self._late.append(headers.body[:28])

    def _put_kind(self, headers: Headers, side: Side, length: int) -> None:
        if not side.kind_told and length:
            side.kind_told = True
            self._put(v.KIND, kind_of(headers.body, headers.protocol, headers.sport, headers.dport))

    # --- network and link -----------------------------------------------------------------------------------------

    def _network_bits_plain(self, headers: Headers, side: Side) -> int:
        """Which of TOS, TTL and options differ from what the sender wrote last."""
        bits = 0
        if headers.tos != (side.payload_tos if headers.payload_len else side.tos):
            bits |= v.NETWORK_TOS
        if headers.ttl != side.ttl:
            bits |= v.NETWORK_TTL
        if headers.options != side.options:
            bits |= v.NETWORK_OPTIONS
            self._late.append(headers.options)
        if headers.checksum_delta:
            self._exceptions |= cx.X_CHECKSUM
            self._late.append(headers.checksum_delta)
        return bits

    def _network_bits(self, headers: Headers, side: Side, zero_id: bool) -> int:
        """Like `_network_bits_plain`, with flags and IP-id, whose mode may have to change; appends their identities."""
        context = self.context
        late = self._late
        bits = self._network_bits_plain(headers, side)
        if headers.version == IPV6:
            if side.flow_label == cx.UNKNOWN:
                late.append(headers.flow_label)
            elif side.flow_label != headers.flow_label:
                self._exceptions |= cx.X_FLOW_LABEL
                late.append(headers.flow_label)
            return bits
        if headers.ip_flags & 6 != side.ip_flags:
            bits |= v.NETWORK_FLAGS
        if zero_id:
            return bits
        if not context.id_fits(side, side.id_mode, headers.ident):
            bits |= v.NETWORK_ID
            side.id_mode = context.id_mode_for(side, headers.ident)
        if side.id_mode == v.ID_STEP and side.ident != cx.UNKNOWN:
            late.append(((headers.ident - side.ident) & 0xFFFF) - 1)
        elif side.id_mode == v.ID_RANDOM or (side.id_mode != v.ID_ZERO and side.ident == cx.UNKNOWN):
            late.append(headers.ident)
        return bits

    def _put_network(self, headers: Headers, side: Side, bits: int) -> None:
        self._put(v.NETWORK, bits - 1)
        if bits & v.NETWORK_TOS:
            self._put(v.BYTE, headers.tos)
        if bits & v.NETWORK_TTL:
            self._put(v.BYTE, headers.ttl)
        if bits & v.NETWORK_ID:
            self._put(v.IP_ID, side.id_mode)
        if bits & v.NETWORK_FLAGS:
            self._put(v.IP_FLAGS, headers.ip_flags & 6)
        if bits & v.NETWORK_OPTIONS:
            self._put(v.BYTE, min(255, len(headers.options)))

    def _link(self, headers: Headers, flow: Flow, side: Side, peer: Side) -> None:
        if not side.spoke:
            self._late.append(headers.link)
        elif headers.link != side.link:
            self._exceptions |= cx.X_LINK
            self._late.append(headers.link)

    def _frame(self, headers: Headers, side: Side, data: bytes, orig_len: int) -> int:
        """Identities of the frame: padding, captured length, payload. Return: the frame's length without padding."""
        late = self._late
        context = self.context
        frame_len = orig_len - headers.trailer_len
        if headers.trailer_len != context.expected_trailer(side.host, frame_len):
            self._exceptions |= cx.X_TRAILER
            late.append(headers.trailer_len)
        captured = len(data)
        if captured < orig_len and captured != context.snaplen:
            self._exceptions |= cx.X_CAPTURED
            late.append(captured)
            context.snaplen = captured
        elif captured > orig_len or (captured == orig_len and captured > context.snaplen):
            self._exceptions |= cx.X_CAPTURED
            late.append(captured)
        body = headers.body[28:] if headers.version == ARP else headers.body
        if body and any(body):
            self._exceptions |= cx.X_BODY
            late.append(body)
        return frame_len

    def _escape(self, ts_ns: int, data: bytes, orig_len: int) -> None:
        """A frame that is not ARP or IP, or that lies: its header bytes as tokens, addresses left out."""
        context = self.context
        encoded = self.encoded
        encoded.escaped += 1
        told, hidden = cx.split_escaped(data)
        gap = ts_ns - context.now_ns
        member = self._gap_member(gap)
        context.advance(gap)
        self._put_limited(v.WHO, v.WHO_ESCAPE, context.who_limit())
        self._put(v.BYTE, len(told))
        for byte in told:
            self._put(v.BYTE, byte)
        index = LENGTH_BINS.find(orig_len)
        self._put(v.LENGTH, v.LENGTH_KNOWN + len(self.vocabulary.lengths) + index)
        self._put(v.IAT, member)
        encoded.identities.append(self._exceptions)
        encoded.identities.extend(self._late)
        encoded.identities.append(orig_len - LENGTH_BINS.edges[index])
        encoded.identities.append(len(data))
        encoded.identities.append(hidden)


def encode(packets: Iterable[tuple[int, bytes, int]], vocabulary: Vocabulary, ended: bool = True) -> Encoded:
    """Encode one session: ``(ts_ns, data, orig_len)`` in capture order; `ended` if it came to its own end."""
    encoder = Encoder(vocabulary)
    for ts_ns, data, orig_len in packets:
        encoder.packet(ts_ns, data, orig_len)
    if ended:
        encoder.end()
    return encoder.encoded


def _identifier(headers: Headers) -> int:
    """What names an ICMP flow besides its hosts: the echo identifier, else the type (out of an identifier's range)."""
    if (headers.icmp_type, headers.icmp_code) in cx.ECHOES:
        return headers.rest >> 16
    return 0x10000 + headers.icmp_type


def _cast(version: int, address: bytes, mac: bytes) -> int:
    """HOST class of a new host: unicast, multicast or broadcast."""
    if mac == b"\xff\xff\xff\xff\xff\xff" and version == IPV4:
        return 2
    if version == IPV6:
        return 1 if address[0] == 0xFF else 0
    return 1 if 224 <= address[0] < 240 else 2 if address == b"\xff\xff\xff\xff" else 0


def _stack_of(headers: Headers) -> Stack:
    options = headers.tcp_options
    at = cx.timestamps_at(options)
    if at != cx.UNKNOWN:
        options = options[:at] + _ZERO_TIMESTAMPS + options[at + 8 :]
    zero_id = headers.version == IPV4 and headers.ident == 0
    return Stack(options, headers.window, headers.ttl, headers.tos, headers.ip_flags, zero_id)


def _options_member(options: bytes) -> int:
    """TCP_OPTIONS member of a packet without SYN."""
    if not options:
        return 0
    rest = options
    timestamps = 0
    if options[:4] == cx.TIMESTAMPS and len(options) >= 12:
        if len(options) == 12:
            return 4
        timestamps = 4
        rest = options[12:]
    if rest[:3] == b"\x01\x01\x05" and len(rest) >= 12:
        blocks = (len(rest) - 4) >> 3
        if blocks <= 3 and len(rest) == 4 + 8 * blocks and rest[3] == 2 + 8 * blocks:
            return timestamps + blocks
    return v.OPTIONS_RAW + (len(options) >> 2)
