"""The context codec's vocabulary: which tokens exist, what each means, and which embedding rows stand beside them.

Every token belongs to one **field**, and a field's members have contiguous ids, so the decoder can name the range in
which the next token must lie. Members come in three parts::

    lo          lo + limit                lo + size - tail        lo + size
    |  legal now    |  not legal just now     |  tail: encode only    |
                                                (escapes; never drawn)

``limit`` depends on the context (how many flows, hosts, unacknowledged segments there are), which is why special
members stand first and counted ones behind them. The rows of the embedding table go on after the tokens: labels,
condition bins and context features are added to every input (they are never drawn)::

    tokens 0..size-1 | labels, unknown label last | conditions, each: bins.., unknown | features, each: values..

Dictionaries (SYN stacks, lengths, windows, ports) are fitted to captures by `Statistics.fit`; the rest is fixed.
Log bins: 8 an octave, 9 % wide; see `LogBins`.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from netssmd.codec import extents
from netssmd.codec.kinds import KINDS
from netssmd.packet.wire import ARP, ICMP, IPV4, IPV6, OPAQUE, TCP, UDP

FORMAT: Final = 3

# Fields, in the order in which a packet's tokens can come. `Vocabulary.fields[WHO]` and so on.
WHO: Final = 0
RANK_HIGH: Final = 1
RANK_LOW: Final = 2
SERVICE: Final = 3
HOST: Final = 4
PORT: Final = 5
PROTOCOL: Final = 6
TCP_SHAPE: Final = 7
UDP_SHAPE: Final = 8
ICMP_SHAPE: Final = 9
OPAQUE_SHAPE: Final = 10
ARP_SHAPE: Final = 11
FLAGS: Final = 12
STACK: Final = 13
LENGTH: Final = 14
ACKED: Final = 15
WINDOW: Final = 16
DEVIATION: Final = 17
SEQUENCE: Final = 18
TCP_OPTIONS: Final = 19
NETWORK: Final = 20
IP_ID: Final = 21
IP_FLAGS: Final = 22
BYTE: Final = 23
KIND: Final = 24
IAT: Final = 25
EXTENT: Final = 26
FIELD_COUNT: Final = 27

FIELD_NAMES: Final = (
    "who", "rank_high", "rank_low", "service", "host", "port", "protocol", "tcp_shape", "udp_shape", "icmp_shape",
    "opaque_shape", "arp_shape", "flags", "stack", "length", "acked", "window", "deviation", "sequence", "tcp_options",
    "network", "ip_id", "ip_flags", "byte", "kind", "iat", "extent",
)  # fmt: skip

# WHO: who speaks. The member of flow rank r, direction d is WHO_FLOW + 2 r + d; farther flows take two rank tokens.
WHO_END: Final = 0
WHO_NEW: Final = 1
WHO_FLOW: Final = 2
NEAR_FLOWS: Final = 64
WHO_FAR: Final = WHO_FLOW + 2 * NEAR_FLOWS
WHO_ESCAPE: Final = WHO_FAR + 2
MAX_FLOWS: Final = NEAR_FLOWS + 64 * 63

# SERVICE: what a new flow is like. Nine fresh kinds, then for each recent service k: the same again, another port of
# its responder, another originator.
FRESH_KINDS: Final = (
    (IPV4, TCP), (IPV4, UDP), (IPV4, ICMP), (IPV4, OPAQUE), (IPV6, TCP), (IPV6, UDP), (IPV6, ICMP), (IPV6, OPAQUE),
    (ARP, OPAQUE),
)  # fmt: skip
SERVICE_LIKE: Final = len(FRESH_KINDS)
MAX_SERVICES: Final = 24

# HOST: by rank among the recently active ones of the same IP version.
HOST_CLASSES: Final = ("unicast", "multicast", "broadcast")
HOST_RANK: Final = len(HOST_CLASSES)
NEAR_HOSTS: Final = 61

# PORT: a class, whose number is an identity; the other side's number; or a known service.
PORT_CLASSES: Final = ("ephemeral", "registered", "any", "system")
PORT_SAME: Final = len(PORT_CLASSES)
PORT_KNOWN: Final = PORT_SAME + 1

# PROTOCOL of an opaque flow. Those that have a header of their own stand in the tail: opaque they are fragments.
_INTERPRETED: Final = (0, 1, 6, 17, 43, 44, 51, 58, 59, 60, 135, 139, 140)
PROTOCOLS: Final = tuple(p for p in range(256) if p not in _INTERPRETED) + _INTERPRETED
PROTOCOL_INDEX: Final = {p: i for i, p in enumerate(PROTOCOLS)}

# TCP_SHAPE = ((flag class * 3 + length class) * 3 + ack class) * 4 + 2 * window changed + something else deviates.
# What a sender may say whose SYN has no answer yet stands first, then what may answer a SYN, then the rest.
FLAG_CLASSES: Final = (0x02, 0xC2, 0x04, 0x14, 0x12, 0x52, 0x10, 0x18, 0x11, 0x19)
FLAGS_UNANSWERED: Final = 3
FLAGS_ANSWERING: Final = 6
FLAGS_RST: Final = 2  # and the next one
FLAGS_SYN_ACK: Final = 4  # and the next one
FLAGS_ACK: Final = 6
FLAGS_FIN: Final = 8
FLAGS_OTHER: Final = len(FLAG_CLASSES)
FIN_AHEAD: Final = 32  # packets that a flow may have behind its first FIN; the few that have more spell their flags out
LENGTH_ZERO: Final = 0
LENGTH_FULL: Final = 1
LENGTH_TOLD: Final = 2
ACK_SAME: Final = 0
ACK_ALL: Final = 1
ACK_TOLD: Final = 2

# UDP_SHAPE = (fragment class * 2 + length told) * 2 + deviates; ICMP_SHAPE = (type and code * 2 + length told) * 2 +
# deviates; OPAQUE_SHAPE = length told * 2 + deviates.
FRAGMENT_NONE: Final = 0
FRAGMENT_FIRST: Final = 1
FRAGMENT_NEXT: Final = 2
ICMP_CODES: Final = (
    (8, 0), (0, 0), (3, 3), (3, 1), (3, 0), (3, 4), (3, 13), (3, 10), (11, 0), (11, 1), (5, 1),
    (128, 0), (129, 0), (1, 4), (1, 0), (2, 0), (3, 0), (133, 0), (134, 0), (135, 0), (136, 0), (143, 0),
)  # fmt: skip
ICMP_OTHER: Final = len(ICMP_CODES)
ARP_OPERATIONS: Final = 5

# LENGTH: the last one again, a multiple of a full segment, the dictionary, log bins.
LENGTH_SAME: Final = 0
LENGTH_MULTIPLE: Final = 1
MAX_MULTIPLE: Final = 45
LENGTH_KNOWN: Final = LENGTH_MULTIPLE + MAX_MULTIPLE - 1

# ACKED: the k-th segment boundary beyond the last acknowledgement; tail: below it, between boundaries, beyond all.
MAX_ADVANCE: Final = 64
ACKED_BELOW: Final = MAX_ADVANCE
ACKED_INSIDE: Final = MAX_ADVANCE + 1
ACKED_BEYOND: Final = MAX_ADVANCE + 2

# DEVIATION: a non-zero bit set, minus one.
DEVIATES_SEQUENCE: Final = 1
DEVIATES_OPTIONS: Final = 2
DEVIATES_NETWORK: Final = 4

# SEQUENCE: where a segment starts that does not start where expected.
SEQUENCE_AFTER_LAST: Final = 0
SEQUENCE_KEEPALIVE: Final = 1
SEQUENCE_PEER_ACK: Final = 2
SEQUENCE_ORIGIN: Final = 3
SEQUENCE_GAP: Final = 4
MAX_GAP: Final = 4
SEQUENCE_RESEND: Final = SEQUENCE_GAP + MAX_GAP
MAX_RESEND: Final = 48
SEQUENCE_BEHIND: Final = SEQUENCE_RESEND + MAX_RESEND
SEQUENCE_AHEAD: Final = SEQUENCE_BEHIND + 1

# TCP_OPTIONS on packets without SYN: 4 * timestamps + number of SACK blocks; tail: raw, by length in words.
OPTIONS_RAW: Final = 8

# NETWORK: a non-zero bit set of what changed in the IP header, minus one.
NETWORK_TOS: Final = 1
NETWORK_TTL: Final = 2
NETWORK_ID: Final = 4
NETWORK_FLAGS: Final = 8
NETWORK_OPTIONS: Final = 16

# IP_ID: how a sender counts.
ID_ZERO: Final = 0
ID_NEXT: Final = 1
ID_STEP: Final = 2
ID_CONSTANT: Final = 3
ID_RANDOM: Final = 4
MAX_ID_STEP: Final = 32

_PORTS: Final = 128
_STACKS: Final = 192
_LENGTHS: Final = 256
_WINDOWS: Final = 96
STACK_SAME: Final = 0
STACK_KNOWN: Final = 1


class LogBins:
    """Numbers 0..top-1 in bins that are exact while small and then `per_octave` to a doubling.

    Member 0 is the number 0. Bins that would be empty among small integers are left out, so every member is in use.
    """

    def __init__(self, first: int, top: int, per_octave: int) -> None:
        edges = [0, 1]
        step = 0
        while edges[-1] < top:
            edge = min(top, round(first * 2.0 ** (step / per_octave)))
            step += 1
            if edge > edges[-1]:
                edges.append(edge)
        self.edges: list[int] = edges
        self.count: int = len(edges) - 1

    def find(self, value: int) -> int:
        """Return the member whose bin holds `value` (the last one if it is too large)."""
        return min(bisect_right(self.edges, value) - 1, self.count - 1)


IAT_BINS: Final = LogBins(512, 1 << 44, 8)  # nanoseconds: 0, 1..511, then 512 ns to 4.9 hours
LENGTH_BINS: Final = LogBins(1, 65536, 8)
WINDOW_BINS: Final = LogBins(1, 65536, 8)

# What is left of a flow's extent and of its session's, for the model to see their end from afar.
FLOW_LEFT_BINS: Final = LogBins(1, 1 << 20, 4)
EXTENT_UNTOLD: Final = extents.UNTOLD
PACKETS_LEFT: Final = LogBins(1, 1 << 20, 4)
TIME_LEFT: Final = LogBins(1, 1 << 22, 2)  # milliseconds: to an hour
FLOWS_LEFT: Final = LogBins(1, 1 << 14, 4)

# Tail members of IAT: the clock stepped back, or more than 4.9 hours passed.
IAT_BACK: Final = IAT_BINS.count
IAT_FAR: Final = IAT_BINS.count + 1

SERVICE_RANGES: Final = ("32768-65535", "1024-32767", "0-1023")  # of ports that are not known by themselves
SERVICE_PORTS: Final = _PORTS + len(SERVICE_RANGES)

# Context features: what the codec knows and tells the model at every step. Each is a row of the embedding table.
FEATURES: Final = (
    ("field", FIELD_COUNT),  # what the next token must be
    ("flow_state", 64),  # TCP: both sides' states; others: who has spoken
    ("outstanding", 64),  # unacknowledged segments, own and peer's, log2
    ("burst", 64),  # payload bytes in the running burst, log2 halves; is it the speaker's own
    ("lengths", 256),  # last payload length, own and peer's, log2
    ("own_gap", 32),  # time since the speaker's last packet in this flow, log2
    ("peer_gap", 32),  # time since the other side's last packet in this flow, log2
    ("progress", 256),  # packets and time since the session began, log2
    ("flows", 256),  # flows so far, log2; packets of this flow, log2
    ("next_flow_state", 64),  # `flow_state` of the second most recent flow
    ("last_iat", 32),  # gap before the previous packet of the session, log2
    ("third_flow_state", 64),  # `flow_state` of the third most recent flow
    ("fourth_flow_state", 64),  # and of the fourth
    ("open_flows", 64),  # TCP flows that are open, log2; and half closed, log2
    ("packets_left", 1 + PACKETS_LEFT.count),  # until the session has its extent, without those that flows owe where a
    # new flow's are asked for; the first row: not told
    ("time_left", 1 + TIME_LEFT.count),  # milliseconds, likewise
    ("flows_left", 1 + FLOWS_LEFT.count),  # flows to come, likewise
    ("flow_left", 1 + FLOW_LEFT_BINS.count),  # packets of this flow, likewise
    ("unfinished", 256),  # flows that are to have more packets, log2; these packets, log2
    ("others_left", 64),  # of the three other most recent flows: not told, nothing, one to three packets, more
    ("service", 2 * SERVICE_PORTS + 1),  # the responder's port, if it is known, else its class; TCP and UDP apart
    ("flow_bytes", 256),  # payload sent by the speaker, log2; by its peer, log2
    ("field_state", 64 * FIELD_COUNT),  # `field` and `flow_state` together: what may be said now
)
FEATURE_COUNT: Final = len(FEATURES)
FLOW_STATE: Final = 1  # of TCP: the speaker's state * TCP_STATES + its peer's
TCP_STATES: Final = 6
LEFT: Final = 14  # the first of the features that say what is left: `packets_left` to `others_left`
LEFT_COUNT: Final = 6
FLOW_LEFT: Final = LEFT + 3
FLOW_SERVICE: Final = LEFT + LEFT_COUNT  # 0: neither TCP nor UDP
LEFT_BINS: Final = (PACKETS_LEFT, TIME_LEFT, FLOWS_LEFT)
MILLISECOND: Final = 1_000_000  # ns
STAGE_FEATURES: Final = FEATURE_COUNT - 2  # all but the first and the last, which change from token to token


def left_row(which: int, left: int) -> int:
    """Which row of a feature says that so much is left, as `LEFT_BINS[which]` counts it. 0: not told, nor is what is
    overdue."""
    return 1 + LEFT_BINS[which].find(left) if left >= 0 else 0


@dataclass(frozen=True)
class Field:
    """One kind of token: ids ``lo .. lo + size - 1``, of which the last `tail` are never drawn."""

    name: str
    lo: int
    size: int
    tail: int


@dataclass(frozen=True)
class Condition:
    """A number known about a session, in log bins with the given ascending edges; one more row means unknown."""

    name: str
    edges: tuple[float, ...]
    row: int

    @property
    def unknown_row(self) -> int:
        return self.row + len(self.edges) + 1


def _log_edges(lo: float, hi: float, per_octave: int) -> tuple[float, ...]:
    steps = round(math.log2(hi / lo) * per_octave)
    return tuple(round(lo * 2.0 ** (i / per_octave), 6) for i in range(steps + 1))


# Condition columns of a manifest: name, first and last edge, bins an octave.
CONDITIONS: Final = (("rtt_ms", 1.0, 1024.0, 2), ("rate_mbit", 0.5, 16384.0, 1), ("loss_pct", 0.02, 20.48, 1))
PACKETS: Final = "packets"  # beside them: how long a session was ordered to be; 0: the model is not told
# The most that a condition may be: far beyond what the model tells apart, and still a link that could exist.
MOST: Final = {"rtt_ms": 60_000.0, "rate_mbit": 1_000_000.0, "loss_pct": 100.0}


def conditions_from(row: int) -> tuple[Condition, ...]:
    """All conditions, their embedding rows one after another from `row` on."""
    conditions: list[Condition] = []
    for name, first, last, per_octave in CONDITIONS:
        condition = Condition(name, _log_edges(first, last, per_octave), row)
        conditions.append(condition)
        row = condition.unknown_row + 1
    return tuple(conditions)


def condition_rows(conditions: tuple[Condition, ...], values: dict[str, float] | None) -> list[int]:
    """The row of each condition's bin, the unknown one where `values` lacks it."""
    rows: list[int] = []
    for condition in conditions:
        value = None if values is None else values.get(condition.name)
        if value is None:
            rows.append(condition.unknown_row)
        else:
            rows.append(condition.row + bisect_right(condition.edges, value))
    return rows


STAGES: Final = (16, 64, 256, 1024)  # packets of a session with which another stage of it begins


class Repertoire:
    """The tokens that a label ever uses, and how likely each is to be made; in a stage of its sessions, by `at`, or of
    one side of its flows to a service, by `of_flow`.

    Arguments: size, of the vocabulary. runs: of token ids, from and to (exclusive). weights: by which the odds of these
    tokens are multiplied. whole: the label's, of which it is a part.
    """

    def __init__(
        self,
        size: int,
        runs: Iterable[tuple[int, int]],
        weights: Iterable[tuple[int, float]] = (),
        whole: Repertoire | None = None,
    ) -> None:
        self._size: int = size
        self._whole: Repertoire | None = whole
        self._flows: dict[int, Repertoire] = {}
        self._stages: list[Repertoire] = []
        self._used = bytearray(size)  # 1 for a token that is
        for first, end in runs:
            self._used[first:end] = b"\1" * (end - first)
        self._weights: dict[int, float] = dict(weights)
        self._draws: dict[int, tuple[int, int, bytes]] = {}  # `within` by what it was asked for: some hundred ranges

    def add_flow(
        self, service: int, direction: int, runs: Iterable[tuple[int, int]], weights: Iterable[tuple[int, float]] = ()
    ) -> None:
        """What the originator (direction 0) or the responder (1) says in flows to a service."""
        self._flows[2 * service + direction] = Repertoire(self._size, runs, weights, self)

    def add_stage(self, weights: Iterable[tuple[int, float]]) -> None:
        """How likely tokens are in the next stage of a session."""
        stage = Repertoire(self._size, (), weights, self)
        stage._used = self._used
        self._stages.append(stage)

    def at(self, packets: int) -> Repertoire:
        """What is said after so many packets of a session, where that is known."""
        return self._stages[bisect_right(STAGES, packets)] if self._stages else self

    def of_flow(self, service: int, direction: int) -> Repertoire:
        """The same, where it is known; the label's otherwise."""
        return self._flows.get(2 * service + direction, self)

    def knows(self, lo: int, hi: int) -> bool:
        """Whether any of the tokens ``lo .. hi - 1`` is used."""
        return self._used.find(1, lo, hi) >= 0

    def within(self, lo: int, hi: int) -> tuple[int, int, bytes]:
        """What is to be drawn where one of the tokens ``lo .. hi - 1`` may be: from the first that is used to the last
        (exclusive), and a factor (float32) for each of these, 0 for those that are not used; no factors where all are
        1. All of ``lo .. hi - 1`` where none is used, or what the label uses of them."""
        key = lo * (self._size + 1) + hi
        draw = self._draws.get(key)
        if draw is None:
            first = self._used.find(1, lo, hi)
            if first >= 0:
                draw = self._factors(first, [t for t in range(first, hi) if self._used[t]])
            else:
                draw = (lo, hi, b"") if self._whole is None else self._whole.within(lo, hi)
            self._draws[key] = draw
        return draw

    def among(self, tokens: list[int]) -> tuple[int, int, bytes]:
        """The same where one of these tokens may be, which are in order: those that are used, or all if none is."""
        used = [token for token in tokens if self._used[token]] or tokens
        return self._factors(used[0], used)

    def _factors(self, first: int, tokens: list[int]) -> tuple[int, int, bytes]:
        weights = self._weights
        factors = array("f", bytes(4 * (tokens[-1] + 1 - first)))
        plain = len(tokens) == len(factors)
        for token in tokens:
            weight = weights.get(token, 1.0)
            factors[token - first] = weight
            plain = plain and weight == 1.0
        return first, tokens[-1] + 1, b"" if plain else factors.tobytes()


@dataclass(frozen=True)
class Stack:
    """What a TCP stack puts into its SYN (role 0) or SYN-ACK: options with zeroed timestamps, window, IP header."""

    options: bytes
    window: int
    ttl: int
    tos: int
    ip_flags: int
    zero_id: bool

    def __reduce__(self) -> tuple[Any, ...]:
        """For travel between processes: pickle's own way sets attributes, which a frozen compiled class refuses."""
        return Stack, (self.options, self.window, self.ttl, self.tos, self.ip_flags, self.zero_id)


class Vocabulary:
    """All tokens and rows. Two vocabularies with the same dictionaries and labels are the same.

    Attributes:
        fields: `Field` by field number.
        size: number of tokens. rows: number of embedding rows. width: rows that make one input.
        end: token that ends a session; it also stands before the first token.
    """

    def __init__(
        self,
        labels: tuple[str, ...],
        stacks: tuple[Stack, ...],
        lengths: tuple[int, ...],
        windows: tuple[int, ...],
        ports: tuple[int, ...],
    ) -> None:
        self.labels: tuple[str, ...] = labels
        self.stacks: tuple[Stack, ...] = stacks
        self.lengths: tuple[int, ...] = lengths
        self.windows: tuple[int, ...] = windows
        self.ports: tuple[int, ...] = ports
        self.stack_index: dict[Stack, int] = {s: i for i, s in enumerate(stacks)}
        self.length_index: dict[int, int] = {n: i for i, n in enumerate(lengths)}
        self.window_index: dict[int, int] = {n: i for i, n in enumerate(windows)}
        self.port_index: dict[int, int] = {n: i for i, n in enumerate(ports)}
        sizes: dict[int, tuple[int, int]] = {
            WHO: (WHO_ESCAPE + 1, 1),
            RANK_HIGH: (64, 0),
            RANK_LOW: (64, 0),
            SERVICE: (SERVICE_LIKE + 3 * MAX_SERVICES, 0),
            HOST: (HOST_RANK + NEAR_HOSTS, 0),
            PORT: (PORT_KNOWN + len(ports), 0),
            PROTOCOL: (256, len(_INTERPRETED)),
            TCP_SHAPE: ((FLAGS_OTHER + 1) * 36, 36),
            UDP_SHAPE: (12, 0),
            ICMP_SHAPE: ((ICMP_OTHER + 1) * 4, 4),
            OPAQUE_SHAPE: (4, 0),
            ARP_SHAPE: (ARP_OPERATIONS, ARP_OPERATIONS - 2),
            FLAGS: (256, 0),
            STACK: (STACK_KNOWN + len(stacks) + 1, 1),
            LENGTH: (LENGTH_KNOWN + len(lengths) + LENGTH_BINS.count, 0),
            ACKED: (MAX_ADVANCE + 3, 3),
            WINDOW: (len(windows) + WINDOW_BINS.count, 0),
            DEVIATION: (7, 0),
            SEQUENCE: (SEQUENCE_AHEAD + 1, 2),
            TCP_OPTIONS: (OPTIONS_RAW + 11, 11),
            NETWORK: (31, 0),
            IP_ID: (5, 0),
            IP_FLAGS: (8, 0),
            BYTE: (256, 0),
            KIND: (len(KINDS), 0),
            IAT: (IAT_BINS.count + 2, 2),
            EXTENT: (extents.COUNT, 1),
        }
        fields: list[Field] = []
        lo = 0
        for number, name in enumerate(FIELD_NAMES):
            size, tail = sizes[number]
            fields.append(Field(name, lo, size, tail))
            lo += size
        self.fields: tuple[Field, ...] = tuple(fields)
        self.lo: list[int] = [f.lo for f in fields]
        self.size: int = lo
        self.end: int = fields[WHO].lo + WHO_END
        self.label_base: int = lo
        lo += len(labels) + 1
        self.conditions: tuple[Condition, ...] = conditions_from(lo)
        lo = self.conditions[-1].unknown_row + 1
        self.feature_base: list[int] = []
        for _, count in FEATURES:
            self.feature_base.append(lo)
            lo += count
        self.rows: int = lo
        self.width: int = 2 + len(self.conditions) + FEATURE_COUNT
        self.left_base: list[int] = self.feature_base[LEFT : LEFT + LEFT_COUNT]
        self.conditioned: bool = True
        self.repertoires: dict[str, Repertoire] = {}  # by label, where it is known (model/conduct.py)
        self._everything: Repertoire = Repertoire(self.size, [(0, self.size)])

    def repertoire(self, label: str) -> Repertoire:
        """What a label may say, for all that is known."""
        return self.repertoires.get(label, self._everything)

    def tells_extents(self, label: str) -> bool:
        """Whether flows of a label ever told how many packets they would have, for all that is known."""
        lo = self.fields[EXTENT].lo
        return self.repertoire(label).knows(lo, lo + EXTENT_UNTOLD)

    def service_of(self, transport: int, port: int) -> int:
        """Member of the feature `service` of a flow to this port of its responder."""
        if transport != TCP and transport != UDP:
            return 0
        member = self.port_index.get(port, -1)
        if member < 0:
            member = SERVICE_PORTS - (1 if port < 1024 else 2 if port < 32_768 else 3)
        return 1 + member + (SERVICE_PORTS if transport == UDP else 0)

    def services_of_ports(self, transport: int) -> list[int]:
        """The same for each member of PORT, -1 for one that says no port; ports of the class "any" are taken for high
        ones."""
        first = 1 + (SERVICE_PORTS if transport == UDP else 0) + _PORTS
        classes = [first, first + 1, first, first + 2]  # as SERVICE_RANGES
        return [*classes, -1, *(self.service_of(transport, port) for port in self.ports)]

    def transport_of(self, service: int) -> int:
        """TCP or UDP, OPAQUE for whatever else a member of the feature `service` stands for."""
        return OPAQUE if service == 0 else TCP if service <= SERVICE_PORTS else UDP

    def service_names(self) -> list[str]:
        """Of the members of the feature `service`, as 443/tcp or 1024-32767/udp; members that nothing has are empty."""
        ports = [str(port) for port in self.ports] + [""] * (_PORTS - len(self.ports)) + list(SERVICE_RANGES)
        return ["other", *(f"{name}/{what}" if name else "" for what in ("tcp", "udp") for name in ports)]

    def begin(self, label: str | None) -> int:
        """The token before a session's first: END, whatever the label."""
        return self.end

    def label_row(self, label: str | None) -> int:
        """Embedding row of a label; None is the unknown label. Raises KeyError for one that is not known."""
        if label is None:
            return self.label_base + len(self.labels)
        try:
            return self.label_base + self.labels.index(label)
        except ValueError:
            raise KeyError(label) from None

    def condition_rows(self, values: dict[str, float] | None) -> list[int]:
        """Embedding rows of a session's conditions, the unknown row where `values` lacks one."""
        return condition_rows(self.conditions, values)

    def feature_rows(self, field: int, stage: list[int]) -> list[int]:
        """Embedding rows of all features for a token of `field`, given the rows of its stage (flow state first)."""
        base = self.feature_base
        rows = [base[0] + field]
        rows.extend(stage)
        rows.append(base[FEATURE_COUNT - 1] + 64 * field + stage[0] - base[1])
        return rows

    def field_of(self, token: int) -> int:
        """Number of the field to which a token belongs."""
        return bisect_right(self.lo, token) - 1

    def token_names(self) -> list[str]:
        """A readable, unique name for every token, by id."""
        names = [f"{f.name}:{m}" for f in self.fields for m in range(f.size)]
        names[self.end] = "<|endoftext|>"
        return names

    def to_json(self) -> dict[str, Any]:
        """Everything from which `from_json` makes the same vocabulary again."""
        return {
            "name": "context",
            "format": FORMAT,
            "labels": list(self.labels),
            "stacks": [[s.options.hex(), s.window, s.ttl, s.tos, s.ip_flags, int(s.zero_id)] for s in self.stacks],
            "lengths": list(self.lengths),
            "windows": list(self.windows),
            "ports": list(self.ports),
            "kinds": list(KINDS),
            "conditions": [c.name for c in self.conditions],
            "features": [name for name, _ in FEATURES],
            "size": self.size,
            "rows": self.rows,
        }

    @staticmethod
    def from_json(value: Any) -> Vocabulary:
        """Make a vocabulary from `to_json`'s result. Raises ValueError if it was made for another codec or format."""
        if not isinstance(value, dict):
            raise ValueError("the codec's section is damaged: it is no table")
        if value.get("name") != "context" or value.get("format") != FORMAT:
            raise ValueError(
                f"codec {value.get('name')!r} format {value.get('format')!r}, expected 'context' format {FORMAT}"
            )
        unknown = [key for key in value if key not in _JSON_KEYS]
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(_JSON_KEYS)}")
        if value.get("kinds") != list(KINDS):
            raise ValueError("its kinds of payload are not those of this version; train it again or use its version")
        for key, known in (
            ("conditions", [name for name, _, _, _ in CONDITIONS]),
            ("features", [name for name, _ in FEATURES]),
        ):
            if value.get(key) != known:
                raise ValueError(f"its {key} are not those of this version; train it again or use its version")
        vocabulary = Vocabulary(
            _labels_of(value.get("labels")),
            _stacks_of(value.get("stacks")),
            _numbers_of("lengths", value.get("lengths")),
            _numbers_of("windows", value.get("windows")),
            _numbers_of("ports", value.get("ports")),
        )
        if value.get("size") != vocabulary.size or value.get("rows") != vocabulary.rows:
            raise ValueError(
                f"{value.get('size')} tokens and {value.get('rows')} rows, "
                f"expected {vocabulary.size} and {vocabulary.rows}"
            )
        return vocabulary


# What `from_json` believes: entries of a list, characters of a label, octets of the options in a SYN.
_MOST_ENTRIES: Final = 4096
_MOST_CHARACTERS: Final = 255
_MOST_OPTIONS: Final = 40
_JSON_KEYS: Final = (
    "name", "format", "labels", "stacks", "lengths", "windows", "ports", "kinds", "conditions", "features", "size",
    "rows",
)  # fmt: skip


def _list_of(key: str, value: object) -> list[object]:
    if not isinstance(value, list) or len(value) > _MOST_ENTRIES:
        raise ValueError(f"the codec's section is damaged: {key} is no list of at most {_MOST_ENTRIES}")
    return value


def _labels_of(value: object) -> tuple[str, ...]:
    """Different names that can stand in a line."""
    labels: list[str] = []
    for entry in _list_of("labels", value):
        if not isinstance(entry, str) or not 0 < len(entry) <= _MOST_CHARACTERS or not entry.isprintable():
            raise ValueError(f"the codec's section is damaged: a label is no name of up to {_MOST_CHARACTERS} letters")
        labels.append(entry)
    if len(set(labels)) < len(labels):
        raise ValueError("the codec's section is damaged: labels holds an entry twice")
    return tuple(labels)


def _number_of(key: str, value: object, most: int = 65_535) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"the codec's section is damaged: {key} holds something else than numbers up to {most}")
    return value


def _numbers_of(key: str, value: object) -> tuple[int, ...]:
    """Different numbers of two octets."""
    numbers = [_number_of(key, entry) for entry in _list_of(key, value)]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"the codec's section is damaged: {key} holds an entry twice")
    return tuple(numbers)


def _stacks_of(value: object) -> tuple[Stack, ...]:
    """Entries as `to_json` writes them: options in hex, window, TTL, TOS, IP flags, whether the IP id is zero."""
    stacks: list[Stack] = []
    for entry in _list_of("stacks", value):
        if not isinstance(entry, list) or len(entry) != 6 or not isinstance(entry[0], str):
            raise ValueError("the codec's section is damaged: an entry of stacks is no list of six")
        options = bytes.fromhex(entry[0])
        if len(options) > _MOST_OPTIONS or len(options) % 4:
            raise ValueError(f"the codec's section is damaged: TCP options of {len(options)} octets")
        window, ttl = _number_of("stacks", entry[1]), _number_of("stacks", entry[2], 255)
        tos, ip_flags = _number_of("stacks", entry[3], 255), _number_of("stacks", entry[4], 7)
        stacks.append(Stack(options, window, ttl, tos, ip_flags, _number_of("stacks", entry[5], 1) == 1))
    return tuple(stacks)


class Statistics:
    """What the encoder would have liked to find in its dictionaries: counts by value, and by capture for each."""

    def __init__(self) -> None:
        self.stacks: Counter[Stack] = Counter()
        self.lengths: Counter[int] = Counter()
        self.windows: Counter[int] = Counter()
        self.ports: Counter[int] = Counter()

    def merge(self, other: Statistics) -> None:
        """Add what another capture counted, each capture's say limited so that one long one does not rule."""
        for mine, theirs in (
            (self.lengths, other.lengths),
            (self.windows, other.windows),
            (self.ports, other.ports),
        ):
            for value, count in theirs.items():
                mine[value] += min(count, 64)
        for stack, count in other.stacks.items():
            self.stacks[stack] += min(count, 64)

    def fit(self, labels: tuple[str, ...], min_count: int = 4) -> Vocabulary:
        """Choose the dictionaries: the most frequent values, each seen at least `min_count` times."""

        def top(counter: Counter[int], n: int) -> tuple[int, ...]:
            ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
            return tuple(value for value, count in ranked[:n] if count >= min_count)

        stacks = sorted(self.stacks.items(), key=lambda item: (-item[1], item[0].options, item[0].window, item[0].ttl))
        return Vocabulary(
            labels,
            tuple(stack for stack, count in stacks[:_STACKS] if count >= min_count),
            top(self.lengths, _LENGTHS),
            top(self.windows, _WINDOWS),
            top(self.ports, _PORTS),
        )
