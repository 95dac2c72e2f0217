"""Guide mode: tokens that the state of a TCP flow forbids cannot be drawn, and what that took away is counted.

In: the decoder (which token is asked for), the session's checker (what its flows have done so far). Out: a mask, one
factor for each token of the range, 0 for what would be a finding and 1 for the rest; empty where nothing is forbidden.
After the draw: how much probability the mask took away, and whether the draw would have been a forbidden token.

Since the checker that counts findings is the one that says where a flow stands, what the mask lets through is no
finding by the checker's own definition::

    rule         asked for     what the flow has done          what is forbidden                 findings prevented
    handshake    TCP_SHAPE     nothing; SYN; SYN+ACK           all but the handshake's next      data_before_handshake
    established  TCP_SHAPE     handshake complete              SYN; RST, unless the label does   unexpected_syn,
                                                               that                              rst_in_established
    closing      TCP_SHAPE     own FIN                         payload, SYN, FIN, RST            data_after_fin
    reset        TCP_SHAPE     own RST                         all but RST                       data_after_reset
    window       .., LENGTH    the peer's window is nearly     more payload than is left         window_overrun
                               used up
    sequence     SEQUENCE,     any                             beyond the next expected number,  gap, rewind,
                 DEVIATION,                                    before the first, a segment for   endless_retransmission
                 TCP_SHAPE                                     the 16th time
    options      TCP_OPTIONS   SYNs with or without            what they did not agree on        timestamps_disappeared,
                                                                                                 sack_without_ok
    end          WHO           SYN+ACK in the last second      to end the session                -

A flow whose beginning was not seen (a prompt's) is left alone where the checker does not judge it either.
"""

from __future__ import annotations

from array import array
from typing import Final

from netssmd.codec import context as cx
from netssmd.codec import vocab as v
from netssmd.codec.decoder import Decoder
from netssmd.packet import compliance as c
from netssmd.packet.compliance import Checker
from netssmd.packet.wire import FIN, RST, SYN, TCP, signed

RULES: Final = ("handshake", "established", "closing", "reset", "window", "sequence", "options", "end")
_HANDSHAKE: Final = 0
_ESTABLISHED: Final = 1
_CLOSING: Final = 2
_RESET: Final = 3
_WINDOW: Final = 4
_SEQUENCE: Final = 5
_OPTIONS: Final = 6
_END: Final = 7
_NONE: Final = -1

GUARDED: Final = (
    "unexpected_syn", "rst_in_established", "timestamps_disappeared", "sack_without_ok", "gap", "rewind",
    "endless_retransmission", "window_overrun", "data_before_handshake", "data_after_fin", "data_after_reset",
)  # fmt: skip
"""Findings that a guided session does not make (RST in the labels that are known for it aside)."""

# What a TCP_SHAPE may be, as bits of a mask's key: flag classes, then payload, then how its sequence number is.
_SYNS: Final = 1
_RSTS: Final = 2
_SYN_ACKS: Final = 4
_ACKS: Final = 8
_FINS: Final = 16
_FULL: Final = 32
_TOLD: Final = 64
_DEVIATES: Final = 128
_ALL: Final = 255
_DATA: Final = _FULL | _TOLD
_CLASS_BITS: Final = (_SYNS, _SYNS, _RSTS, _RSTS, _SYN_ACKS, _SYN_ACKS, _ACKS, _ACKS, _FINS, _FINS)

_HANDSHAKE_NS: Final = 1_000_000_000
_RECENT_FLOWS: Final = 16
_MOST_ROOM: Final = 1 << 17  # beyond it no token can be too long

_shapes: dict[int, bytes] = {}  # masks of TCP_SHAPE by what is allowed and which members there are


class Guide:
    """One session's masks and their counts. Plain data.

    resets: the label resets established connections, so that an RST there is not forbidden.
    interventions: for each of RULES, draws that would have been a forbidden token. removed: the probability that the
        masks took away, summed over all draws (so its expectation is the interventions').
    """

    __slots__ = ("_rule", "interventions", "removed", "resets")

    def __init__(self, resets: bool) -> None:
        self.resets: bool = resets
        self.interventions: list[int] = [0] * len(RULES)
        self.removed: list[float] = [0.0] * len(RULES)
        self._rule: int = _NONE

    def mask(self, decoder: Decoder, checker: Checker) -> bytes:
        """Factors (float32) for the tokens ``decoder.lo .. decoder.hi - 1``; empty: nothing is forbidden."""
        mask = self._mask(decoder, checker)
        if not mask:
            self._rule = _NONE
        return mask

    def _mask(self, decoder: Decoder, checker: Checker) -> bytes:
        field = decoder.field
        if field == v.WHO:
            return self._who(decoder)
        flow = decoder.flow
        if flow is None or flow.transport != TCP:
            return b""
        if decoder.new_flow:
            if field != v.TCP_SHAPE:
                return b""
            self._rule = _HANDSHAKE
            return _shape_mask(_SYNS | _DEVIATES, decoder.lo - decoder.base, decoder.hi - decoder.base)
        if field != v.TCP_SHAPE and field != v.LENGTH and not v.DEVIATION <= field <= v.TCP_OPTIONS:
            return b""
        one, other = flow.sides[decoder.direction], flow.sides[1 - decoder.direction]
        port, peer_port = flow.ports[decoder.direction], flow.ports[1 - decoder.direction]
        found = checker.find(one.host.address, port, other.host.address, peer_port)
        if found is None:
            return b""
        own = found.originator if found.key[0] == one.host.address and found.key[1] == port else found.responder
        peer = found.responder if own is found.originator else found.originator
        if field == v.TCP_SHAPE:
            return self._shape(decoder, found, own, peer, one, other)
        if field == v.LENGTH:
            return self._length(decoder, own, peer, one, other)
        if field == v.DEVIATION:
            return self._deviation(decoder)
        if field == v.SEQUENCE:
            return self._sequence(decoder, own)
        return self._options(decoder, own, peer)

    def count(self, removed: float, intervened: bool) -> None:
        """What the mask given last has done, if one was given."""
        if self._rule == _NONE:
            return
        self.removed[self._rule] += removed
        if intervened:
            self.interventions[self._rule] += 1

    def add(self, other: Guide) -> None:
        """Add another's counts to these."""
        for i in range(len(RULES)):
            self.interventions[i] += other.interventions[i]
            self.removed[i] += other.removed[i]

    def interventions_by_rule(self) -> dict[str, int]:
        return dict(zip(RULES, self.interventions))

    def removed_by_rule(self) -> dict[str, float]:
        return dict(zip(RULES, self.removed))

    def line(self, packets: int) -> str:
        """The closing report's line."""
        done = sum(self.interventions)
        by_rule = ", ".join(f"{rule} {n}" for rule, n in zip(RULES, self.interventions) if n)
        rate = 100 * done / max(packets, 1)
        return (
            f"Guide: {done} interventions, {rate:.3f} per 100 packets ({by_rule or 'none'}); "
            f"probability removed {sum(self.removed):.1f}"
        )

    def _who(self, decoder: Decoder) -> bytes:
        """No end while a handshake is under way."""
        context = decoder.context
        if context.who_floor() != v.WHO_END:
            return b""
        for flow in context.flows[:_RECENT_FLOWS]:
            one, other = flow.sides
            half_open = flow.transport == TCP and one.state == cx.SYN_SENT and other.state == cx.SYN_SENT
            if half_open and context.now_ns - other.last_ns < _HANDSHAKE_NS:
                self._rule = _END
                return _factors(decoder.hi - decoder.lo, [v.WHO_END])
        return b""

    def _shape(self, decoder: Decoder, flow: c.Flow, own: c.Side, peer: c.Side, one: cx.Side, other: cx.Side) -> bytes:
        allowed = _ALL
        if own.reset:
            self._rule = _RESET
            allowed = _RSTS | _DEVIATES
        elif own.fin_end != c.UNKNOWN:
            self._rule = _CLOSING
            allowed = _ACKS | _DEVIATES | (_RSTS if flow.closed() or self.resets else 0)
        elif flow.stage == c.ESTABLISHED:
            self._rule = _ESTABLISHED
            allowed = _ALL & ~(_SYNS | _SYN_ACKS)
            if not flow.closed() and not self.resets:
                allowed &= ~_RSTS
        elif flow.stage == c.SYN_ACK_SEEN:
            self._rule = _HANDSHAKE
            originates = own is flow.originator
            allowed = _SYNS | _RSTS | _ACKS | _FINS | _DATA if originates else _RSTS | _SYN_ACKS | _DATA | _DEVIATES
        elif flow.stage == c.SYN_SEEN:
            self._rule = _HANDSHAKE
            allowed = (_SYNS if own is flow.originator else _SYN_ACKS) | _RSTS | _DATA | _DEVIATES
        else:
            return b""
        if own.repeats >= c.MAX_REPEATS and own.repeated == own.isn and allowed & (_SYNS | _SYN_ACKS):
            self._rule = _SEQUENCE
            allowed &= ~(_SYNS | _SYN_ACKS)
        if allowed & _DATA:
            room = _room(own, peer)
            if room < _MOST_ROOM:
                full = decoder.context.full_length(one, other, 0)
                if room < full:
                    self._rule = _WINDOW
                    allowed &= ~_FULL if room >= max(2, one.least) else ~_DATA
        return _shape_mask(allowed, decoder.lo - decoder.base, decoder.hi - decoder.base)

    def _length(self, decoder: Decoder, own: c.Side, peer: c.Side, one: cx.Side, other: cx.Side) -> bytes:
        room = _room(own, peer)
        if room >= _MOST_ROOM:
            return b""
        lengths = decoder.vocabulary.lengths
        full = decoder.context.full_length(one, other, 0)
        most = [one.last_length]
        most.extend([full * k for k in range(2, v.MAX_MULTIPLE + 1)])
        most.extend(lengths)
        most.extend([edge - 1 for edge in v.LENGTH_BINS.edges[1:]])
        forbidden = [i for i, length in enumerate(most) if length and max(length, one.least) > room]
        if not forbidden or len(forbidden) >= decoder.hi - decoder.lo:
            return b""
        self._rule = _WINDOW
        return _factors(decoder.hi - decoder.lo, forbidden)

    def _deviation(self, decoder: Decoder) -> bytes:
        """A SYN sent again has its first sequence number."""
        if not decoder.flags & SYN:
            return b""
        self._rule = _SEQUENCE
        odd = [bits - 1 for bits in range(1, 8) if bits & v.DEVIATES_SEQUENCE]
        return _factors(decoder.hi - decoder.lo, odd)

    def _sequence(self, decoder: Decoder, own: c.Side) -> bytes:
        if decoder.flags & RST or own.next == c.UNKNOWN:
            return b""
        forbidden: list[int] = []
        empty = decoder.empty and not decoder.flags & FIN
        for member in range(decoder.hi - decoder.lo):
            start = decoder.sequence_of(member)
            ahead = 1 if start == cx.UNKNOWN else signed(start - own.next)
            outside = ahead > 0 or signed(start - own.first) < 0 or (empty and ahead < -1)
            endless = own.repeats >= c.MAX_REPEATS and start == own.repeated
            if outside or endless:
                forbidden.append(member)
        if not forbidden or len(forbidden) == decoder.hi - decoder.lo:
            return b""
        self._rule = _SEQUENCE
        return _factors(decoder.hi - decoder.lo, forbidden)

    def _options(self, decoder: Decoder, own: c.Side, peer: c.Side) -> bytes:
        """Timestamps if both SYNs have them and else none; SACK blocks only if both SYNs permit them."""
        if decoder.flags & RST or own.isn == c.UNKNOWN or peer.isn == c.UNKNOWN:
            return b""
        both = own.syn_options & peer.syn_options
        forbidden = [
            member
            for member in range(decoder.hi - decoder.lo)
            if (member >= 4) != (both & c.TIMESTAMPS != 0) or (member & 3 and not both & c.SACK_PERMITTED)
        ]
        if not forbidden:
            return b""
        self._rule = _OPTIONS
        return _factors(decoder.hi - decoder.lo, forbidden)


def _room(own: c.Side, peer: c.Side) -> int:
    """Bytes that the peer's window still takes; `_MOST_ROOM` if that is not known or more than any token can say."""
    if peer.edge == c.UNKNOWN or own.next == c.UNKNOWN:
        return _MOST_ROOM
    return min(max(0, signed(peer.edge - own.next)), _MOST_ROOM)


def _factors(count: int, forbidden: list[int]) -> bytes:
    values = array("f", [1.0]) * count
    for member in forbidden:
        values[member] = 0.0
    return values.tobytes()


def _shape_mask(allowed: int, first: int, count: int) -> bytes:
    """A mask of TCP_SHAPE's members ``first .. count - 1``: ((flag class * 3 + length) * 3 + ack) * 4 + 2 * window +
    deviates. Only ACKs and FINs may be forbidden to deviate."""
    key = (allowed << 16 | first) << 16 | count
    mask = _shapes.get(key)
    if mask is None:
        forbidden: list[int] = []
        for member in range(first, count):
            class_bit = _CLASS_BITS[member // 36]
            length = member // 12 % 3
            fits = allowed & class_bit != 0
            fits = fits and (length == v.LENGTH_ZERO or allowed & (_FULL if length == v.LENGTH_FULL else _TOLD) != 0)
            if class_bit >= _ACKS and member & 1:
                fits = fits and allowed & _DEVIATES != 0
            if not fits:
                forbidden.append(member - first)
        mask = _factors(count - first, forbidden) if len(forbidden) < count - first else b""
        _shapes[key] = mask
    return mask
