"""A session: one generated trace of one or more flows. Tokens flow in one by one, rendered packets flow out.

    token -> decoder.feed -> Decoded -> session clock -> payload -> check -> render -> OutPacket

Pure: no clock, no path, no thread. What the model sees at each step is the sum of the embedding rows that `row()`
names: the token before (END at the start), the label, the conditions, the codec's context features. The session owns
its randomness (two counter-based streams, one for tokens and one for identities), so it is the same alone or among
hundreds.

A prompt is a list of tokens fed first ("teacher forcing"): its packets come out like any others, and its rows go to the
backend's prefill in chunks, so that a long prompt holds nobody up.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from netssmd.codec.bytes import ByteDecoder
from netssmd.codec.decoder import Decoder as ContextDecoder
from netssmd.engine.anomalies import Planter
from netssmd.engine.guide import Guide
from netssmd.engine.identities import FreshIdentities
from netssmd.engine.repetition import Repetition
from netssmd.engine.sampling import Stream
from netssmd.packet.compliance import Checker
from netssmd.packet.payload import PayloadWriter
from netssmd.packet.wire import ARP, NOT_IP, OPAQUE, Headers

Render = Callable[[Headers], tuple[bytes, int]]

# Why a session is over: by itself, at a limit, by the daemon's stop, for a state that is no longer finite, because none
# of what it says is a packet.
RUNNING, ENDED, PACKETS, DURATION, STOPPED, BROKEN = "running", "end", "packets", "duration", "stopped", "broken"
LATE = "late"  # too far behind, where what is late is dropped
GIVE_UP = 10  # how many times `late_ns` that is
ORDERED = "ordered"  # by a command
TOKENS, SILENT = "tokens", "silent"


class Decoded(Protocol):
    """What a packet did, from the codec: see codec/context.py."""

    @property
    def gap_ns(self) -> int: ...
    @property
    def headers(self) -> Headers: ...
    @property
    def flow(self) -> int: ...
    @property
    def direction(self) -> int: ...
    @property
    def new_flow(self) -> bool: ...
    @property
    def kind(self) -> int: ...


class Decoder(Protocol):
    """Tokens in, packets out; `[lo, hi)` is what may be drawn next, of a field whose tokens begin at `base`, and
    `features` the context's embedding rows for that draw."""

    @property
    def base(self) -> int: ...
    @property
    def lo(self) -> int: ...
    @property
    def hi(self) -> int: ...
    @property
    def features(self) -> list[int]: ...
    @property
    def ended(self) -> bool: ...
    def feed(self, token: int) -> Decoded | None: ...


class FiveTuple(NamedTuple):
    """A flow's name: IP protocol, then address and port of originator and responder (ports 0 where there are none)."""

    protocol: int
    originator: bytes
    originator_port: int
    responder: bytes
    responder_port: int


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What is fixed about a session before its first packet. `conditions`: rtt_ms, rate_mbit, loss_pct, as far as
    given."""

    number: int
    label: str
    conditions: dict[str, float]
    seed: int
    start_ns: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a session is cut if it has not ended by itself; 0 = nowhere."""

    packets: int = 0
    duration_ns: int = 0
    tokens: int = 0


NO_LIMITS = Limits()


class OutPacket(NamedTuple):
    """A packet on its way out: capture time, frame, true length, and whose it is (`direction` 0 = from the
    originator). `found`: the findings it raised, as bits of packet/compliance.py's table; `planted`: the defect that it
    was given, or that one left out before it had."""

    ts_ns: int
    data: bytes
    orig_len: int
    session: SessionInfo
    flow: int
    five_tuple: FiveTuple | None
    direction: int
    kind: int
    found: int = 0
    planted: str = ""


@dataclass(slots=True)
class Temperatures:
    """One temperature for all fields, and others for some: `by_lo` maps the first id of a field's token range to its
    own."""

    default: float = 1.0
    by_lo: dict[int, float] = field(default_factory=dict)

    def of(self, lo: int) -> float:
        """The temperature of the field whose range starts at `lo`."""
        return self.by_lo.get(lo, self.default)


def five_tuple(headers: Headers, direction: int) -> FiveTuple | None:
    """The flow that a packet belongs to, originator first; None for what is not IP."""
    protocol = headers.protocol
    if headers.version == NOT_IP or headers.version == ARP:
        return None
    sport, dport = (headers.sport, headers.dport) if headers.transport != OPAQUE else (0, 0)
    if direction == 0:
        return FiveTuple(protocol, headers.src, sport, headers.dst, dport)
    return FiveTuple(protocol, headers.dst, dport, headers.src, sport)


class Session:
    """One running session.

    Arguments:
        info: number, label, conditions, seed, start.
        decoder: the codec's decoder, on an identity source of this session's own.
        stream: the token stream (one uniform per free step).
        fixed_rows: embedding rows added to every input: label, then conditions.
        begin: the token that stands before the first one (END).
        render: headers to (frame bytes, original length).
        limits, temperatures: see there.
        prompt: tokens to force first, without a final END.
        identities: where the fresh hosts come from, kept for its counts.
        payload: fills the payloads; without it they are zeros.
        repetition: makes what was said lately less likely; begins with the token `begin`.

    `checker`, where one is set before the first packet, judges each packet as it is about to be rendered; `guide` then
    forbids tokens by what the checker knows. `planter` gives packets defects behind the codec's back.
    """

    __slots__ = (
        "_before", "_overheard", "_prompt_at", "begin", "checker", "clock_ns", "decoder", "deficit_ns", "fixed_rows",
        "flows", "guide", "identities", "info", "late_dropped", "late_ns", "limits", "packets", "payload", "planter",
        "prompt", "reason", "render", "repetition", "resolution_ns", "stream", "temperatures", "throttled_ns", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        info: SessionInfo,
        decoder: Decoder,
        stream: Stream,
        fixed_rows: Sequence[int],
        begin: int,
        render: Render,
        limits: Limits = NO_LIMITS,
        temperatures: Temperatures | None = None,
        prompt: Sequence[int] = (),
        identities: FreshIdentities | None = None,
        payload: PayloadWriter | None = None,
        repetition: Repetition | None = None,
    ) -> None:
        self.info = info
        self.decoder = decoder
        self.stream = stream
        self.fixed_rows = list(fixed_rows)
        self.begin = begin
        self.render = render
        self.limits = limits
        self.temperatures = temperatures or Temperatures()
        self.prompt = prompt
        self._prompt_at = 0
        self._overheard = False  # the prompt is what was said already: the model hears it, nothing comes of it
        self.identities = identities
        self.payload = payload
        self.checker: Checker | None = None
        self.repetition = repetition
        if repetition is not None:
            repetition.add(begin)
        self.guide: Guide | None = None
        self.planter: Planter | None = None
        self._before = begin
        self.resolution_ns = decoder.habits.resolution_ns if isinstance(decoder, ContextDecoder) else 1  # of times
        self.clock_ns = info.start_ns  # time of the last packet: no later one comes before it
        self.late_ns = -1  # later packets are dropped, instead of moving the clock on; -1: none is
        self.late_dropped = 0  # packets
        self.deficit_ns = 0  # how far the clock was moved because generation could not keep up
        self.throttled_ns = 0  # ... because of a cap on the rate
        self.packets = 0
        self.flows = 0
        self.tokens = 0
        self.reason = RUNNING

    @property
    def ended(self) -> bool:
        """No further step is wanted."""
        return self.reason != RUNNING

    @property
    def prompting(self) -> bool:
        """Prompt tokens are still to be forced."""
        return self._prompt_at < len(self.prompt) and self.reason == RUNNING

    def row(self) -> list[int]:
        """Embedding rows of the next input: token before, label, conditions, context features."""
        return [self._before, *self.fixed_rows, *self.decoder.features]

    def ask(
        self,
        rows: list[int],
        ranges: list[int],
        uniforms: list[float],
        temperatures: list[float],
        masks: list[bytes],
    ) -> None:
        """Append what the backend needs for the next draw: `row()`, lo and hi, one number of the stream, the
        temperature, and what changes the logits, a float32 factor for each token of [lo, hi) (sampling.adjusted), or
        nothing."""
        decoder = self.decoder
        rows.append(self._before)
        rows.extend(self.fixed_rows)
        rows.extend(decoder.features)
        lo, hi, mask = self._drawable(decoder)
        ranges.append(lo)
        ranges.append(hi)
        uniforms.append(self.stream.uniform())
        temperatures.append(self.temperatures.of(decoder.base))
        masks.append(mask)

    def _drawable(self, decoder: Decoder) -> tuple[int, int, bytes]:
        """lo, hi and factors of the next draw: the repetition penalty's, or what the guide, the services that are owed
        or the label's repertoire leave."""
        lo, hi = decoder.lo, decoder.hi
        if self.repetition is not None:
            return lo, hi, array("f", self.repetition.factors[lo:hi]).tobytes()
        if not isinstance(decoder, ContextDecoder):
            return lo, hi, b""
        if self.guide is not None and self.checker is not None:
            legal = self.guide.mask(decoder, self.checker if self.planter is None else self.planter.checker)
            if legal:
                return lo, hi, legal  # the guide counts what it takes away, and that alone
        repertoire, wanted, flow = decoder.vocabulary.repertoire(self.info.label), decoder.wanted(), decoder.flow
        if flow is not None and not wanted:
            return repertoire.of_flow(flow.service, decoder.direction).within(lo, hi)
        now = repertoire.at(decoder.context.packets)
        return now.among(wanted) if wanted else now.within(lo, hi)

    def ask_ahead(
        self,
        drafts: list[int],
        rows: list[int],
        ranges: list[int],
        uniforms: list[float],
        temperatures: list[float],
        masks: list[bytes],
    ) -> None:
        """`ask` for the next draw and for those behind it, should `drafts` be drawn. Sessions of the byte
        codec only. `answered` must follow."""
        decoder = self.decoder
        assert isinstance(decoder, ByteDecoder)
        factors = None if self.repetition is None else self.repetition.ahead(drafts)
        bounds = decoder.ranges_ahead(drafts)
        before = self._before
        for i in range(len(drafts) + 1):
            lo, hi = bounds[2 * i], bounds[2 * i + 1]
            rows.append(before)
            rows.extend(self.fixed_rows)
            ranges.append(lo)
            ranges.append(hi)
            uniforms.append(self.stream.uniform())
            temperatures.append(self.temperatures.of(lo))
            masks.append(b"" if factors is None else array("f", factors[i][lo:hi]).tobytes())
            if i < len(drafts):
                before = drafts[i]

    def answered(self, asked: int, drawn: int) -> None:
        """Of so many draws that `ask_ahead` asked for, the first `drawn` were made: the numbers of the others are for
        the next ones."""
        self.stream.counter -= asked - drawn

    @property
    def forced(self) -> int:
        """Prompt tokens fed so far."""
        return self._prompt_at

    def malformed(self) -> dict[str, int]:
        """How many packets the model wrote that are none, by reason; only the byte codec lets it."""
        return self.decoder.malformed if isinstance(self.decoder, ByteDecoder) else {}

    def clamped(self) -> int:
        """Packets that were to be longer than the MTU."""
        return self.decoder.clamped if isinstance(self.decoder, ContextDecoder) else 0

    def force(self, count: int, not_before_ns: int = 0, cap_ns: int = 0) -> tuple[list[list[int]], list[OutPacket]]:
        """Feed up to `count` prompt tokens. Returns the input rows for the backend's prefill and the packets that came
        of them."""
        rows: list[list[int]] = []
        packets: list[OutPacket] = []
        while len(rows) < count and self.prompting:
            rows.append(self.row())
            token = self.prompt[self._prompt_at]
            self._prompt_at += 1
            if self._overheard:
                self._before = token
                continue
            packet = self.advance(token, not_before_ns, cap_ns)
            if packet is not None:
                packets.append(packet)
        return rows, packets

    def advance(self, token: int, not_before_ns: int = 0, cap_ns: int = 0) -> OutPacket | None:
        """Take one token; the packet that it completes, if any.

        not_before_ns: a packet that would be earlier is too late to be sent in its time: the session's clock is moved
            up to it and the difference counted in `deficit_ns`; with `late_ns` set the clock stays, and a packet that
            is later than that is counted and not made. cap_ns: the same for a cap on the rate, counted in
            `throttled_ns`.
        """
        self.tokens += 1
        self._before = token
        if self.repetition is not None:
            self.repetition.add(token)
        decoded = self.decoder.feed(token)
        packet = None if decoded is None else self._send(decoded, not_before_ns, cap_ns)
        if self.reason == RUNNING:
            if self.decoder.ended:
                self.reason = SILENT if isinstance(self.decoder, ByteDecoder) and self.decoder.silent else ENDED
            elif self.tokens == self.limits.tokens:
                self.reason = TOKENS
        return packet

    def _send(self, decoded: Decoded, not_before_ns: int, cap_ns: int) -> OutPacket | None:
        ts_ns = self.clock_ns
        if self.packets:  # a session begins with its first packet, whatever gap was drawn before it
            ts_ns += max(0, decoded.gap_ns)
        if self.limits.duration_ns and ts_ns - self.info.start_ns > self.limits.duration_ns:
            self.reason = DURATION
            return None
        if ts_ns < cap_ns:
            self.throttled_ns += cap_ns - ts_ns
            ts_ns = cap_ns
        late = False
        sent_ns = ts_ns
        if ts_ns < not_before_ns:
            sent_ns = not_before_ns
            behind_ns = not_before_ns - ts_ns
            if self.late_ns < 0:
                self.deficit_ns += behind_ns
                ts_ns = not_before_ns
            elif behind_ns > self.late_ns * GIVE_UP:
                self.reason = LATE
                return None
            else:
                late = behind_ns > self.late_ns
        if self.resolution_ns > 1:  # what was moved, and the start, lie between two of its moments
            ts_ns += -ts_ns % self.resolution_ns
            sent_ns += -sent_ns % self.resolution_ns
        self.clock_ns = ts_ns
        self.packets += 1
        self.flows += decoded.new_flow
        if self.packets == self.limits.packets:
            self.reason = PACKETS
        headers, direction = decoded.headers, decoded.direction
        if self.payload is not None:
            self.payload.fill(headers, decoded.flow, direction, decoded.kind)
        if late:
            self.late_dropped += 1
            return None
        flow, planted, mutant = decoded.flow, "", None
        if self.planter is not None:
            headers, mutant = self.planter.plant(headers, sent_ns, flow)
            if mutant is not None and mutant.drop:
                return None
            planted = self.planter.told(flow, mutant)
        found = 0 if self.checker is None else self.checker.observe(headers, sent_ns)
        data, orig_len = self.render(headers)
        if mutant is not None and mutant.frame is not None:
            data = mutant.frame(data, headers)
        return OutPacket(
            sent_ns, data, orig_len, self.info, flow, five_tuple(headers, direction), direction, decoded.kind, found,
            planted,
        )  # fmt: skip

    def go_on(self) -> None:
        """After its end: another model takes over. It begins like this one and hears the last packet, then the session
        goes on: same flows, hosts, clock and random numbers. Sessions of the byte codec only."""
        decoder = self.decoder
        assert isinstance(decoder, ByteDecoder)
        decoder.go_on()
        self.reason = RUNNING
        self._before = self.begin
        self.prompt = decoder.last_tokens()
        self._prompt_at = 0
        self._overheard = True

    def cut(self, reason: str = STOPPED) -> None:
        """End the session here."""
        if self.reason == RUNNING:
            self.reason = reason
