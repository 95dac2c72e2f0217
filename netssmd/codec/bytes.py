"""The paper's codec: a packet is its header bytes, a byte is a token (sections 4.1, 5.1 and 5.3).

::

    <|label|>  b b b ... b  <|pkt|>  b b b ... b  <|pkt|>  ...  b b b ... b  <|endoftext|>
               '-- 94, 106 or 128 --'

    94    Ethernet 14 | IPv4 20 | TCP 20 to 60 | zeros
    106   the same, and behind a UDP header its first 12 bytes of payload (a DNS header)
    128   the same, and IPv6

`ByteEncoder` takes frames and gives tokens; `ByteDecoder` takes tokens one by one, is asked by the engine in between
what may come next, and gives a packet when its delimiter has come. The label stands before the first byte and is the
session's business. A session that ends by itself ends with `<|endoftext|>`, which the authors never write.

What a model writes may be anything. A packet whose bytes are no IPv4 or IPv6 packet with a TCP or UDP header is
dropped and counted by the reason, a row of `REASONS`. What is left has headers as generated, with three exceptions, so
that a sensor takes it for a packet: lengths follow from the IP length, checksums from the bytes, and payload is filled
in. Addresses are the model's own (that is to say, the training set's), unless `identities` deals out others: one for
each that appears, in order. `as_generated` gives the bytes untouched instead.

The string form of section 4.3, `<|amazon|> 188 34 203 ... <|pkt|> ...`, is what `to_text` writes and `from_text` reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from netssmd.codec.byte_vocab import END, PKT, PROTOCOLS, ByteVocabulary, Layout
from netssmd.codec.context import IdentitySource
from netssmd.codec.decoder import Decoded
from netssmd.codec.flows import MAX_FLOWS, FlowTable, flow_key
from netssmd.codec.kinds import kind_of
from netssmd.codec.timing import Gaps, Timing
from netssmd.packet.wire import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4,
    NOT_IP,
    OPAQUE,
    TCP,
    UDP,
    Headers,
    network_header_len,
    parse,
    transport_header_len,
)

MAX_HOSTS: Final = 4096
MAX_PACKET: Final = 4096  # bytes of one packet without a delimiter that are kept
SILENCE: Final = 256  # packets' worth of tokens without a packet, after which a session is ended

# Why a generated packet is none.
REASONS: Final = {
    "empty": "two delimiters in a row",
    "no-byte": "a token among its bytes that means none",
    "too-long": "no delimiter within 4,096 bytes",
    "not-ip": "an Ethernet type other than IPv4 and IPv6, or less than an Ethernet header",
    "cut": "it ends inside its headers",
    "version": "the IP version is not that of the Ethernet type",
    "header-length": "an IPv4 header shorter than 20 bytes",
    "ip-length": "the IP length ends inside its headers",
    "data-offset": "a TCP header shorter than 20 bytes",
    "fragment": "a fragment, whose payload has no header",
    "protocol": "neither TCP nor UDP",
    "address": "from a group, from nobody, or to itself",
}


# ---- encoding ------------------------------------------------------------------------------------------------------


def headers_of(data: bytes, orig_len: int) -> Headers:
    """`wire.parse` of a frame or of a block, whose padding beyond the IP length is no trailer here."""
    headers = parse(data, orig_len)
    headers.trailer_len = 0
    return headers


def block(data: bytes, orig_len: int, layout: Layout, protocols: Sequence[str]) -> tuple[bytes, str]:
    """A frame's bytes as the model sees them, padded with zeros; or none, and why the layout has no place for it."""
    headers = parse(data, orig_len)
    if headers.version not in layout.versions:
        return b"", "version" if headers.version != NOT_IP else "not-ip"
    if headers.transport == OPAQUE or headers.protocol not in [PROTOCOLS[name] for name in protocols]:
        return b"", "protocol"
    kept = len(headers.link) + network_header_len(headers) + transport_header_len(headers)
    if headers.transport == UDP:
        kept += min(layout.udp_payload, max(0, headers.payload_len))
    if kept > layout.packet_bytes:
        return b"", "does-not-fit"
    return data[:kept].ljust(layout.packet_bytes, b"\0"), ""


class ByteEncoder:
    """Encodes one session. `skipped` counts the packets that the layout has no place for, by reason."""

    def __init__(self, vocabulary: ByteVocabulary) -> None:
        self.vocabulary: ByteVocabulary = vocabulary
        self.tokens: list[int] = []
        self.gaps_ns: list[int] = []
        self.skipped: dict[str, int] = {}
        self.packets: int = 0
        self.start_ns: int = 0
        self._last_ns: int = 0

    def packet(self, ts_ns: int, data: bytes, orig_len: int) -> bool:
        """Append a packet, the delimiter before it. Return: did it fit."""
        vocabulary = self.vocabulary
        found, reason = block(data, orig_len, vocabulary.layout, vocabulary.protocols)
        if reason:
            self.skipped[reason] = self.skipped.get(reason, 0) + 1
            return False
        if self.packets:
            self.tokens.append(vocabulary.pkt)
        else:
            self.start_ns = self._last_ns = ts_ns
        ids = vocabulary.byte_ids
        self.tokens.extend([ids[byte] for byte in found])
        self.gaps_ns.append(max(0, ts_ns - self._last_ns))
        self._last_ns = ts_ns
        self.packets += 1
        return True

    def end(self) -> None:
        """The session is over."""
        self.tokens.append(self.vocabulary.end)


def observe_timing(timing: Timing, label: str, packets: Iterable[tuple[int, bytes, int]]) -> None:
    """Count the gaps of a capture, by direction and size of the packet behind each."""
    flows = FlowTable()
    last_ns = -1
    for ts_ns, data, orig_len in packets:
        headers = parse(data, orig_len)
        key = flow_key(headers)
        if key is None:
            continue
        _, direction, _ = flows.find(headers, key)
        if last_ns >= 0:
            timing.observe(label, direction, max(0, headers.payload_len), ts_ns - last_ns)
        last_ns = ts_ns


# ---- decoding ------------------------------------------------------------------------------------------------------


class ByteDecoder:
    """Decodes one session.

    Arguments:
        gaps: the time before each packet.
        identities: deals out addresses and MACs in place of the model's own; None keeps those.
        mtu: a packet longer than this from its IP header on loses the end of its payload.
        keep_body: a UDP payload's first bytes stay as generated; else they only tell its kind, and whoever fills
            payloads writes all of it.
        raw: give what cannot be read as a packet too, for `as_generated`.

    Attributes: lo, hi, features, ended: see engine.session.Decoder. malformed: packets dropped, by reason. stale:
    packets that were generated with a wrong IP checksum. silent: ended because no packet came for too long.
    """

    __slots__ = (
        "_bytes", "_flows", "_frame", "_frame_len", "_hosts", "_patience", "_since", "_told", "_wrong", "ended",
        "features", "gaps", "hi", "identities", "keep_body", "lo", "malformed", "mtu", "packets", "raw", "silent",
        "stale", "vocabulary",
    )  # fmt: skip

    def __init__(
        self,
        vocabulary: ByteVocabulary,
        gaps: Gaps,
        identities: IdentitySource | None = None,
        mtu: int = 1500,
        keep_body: bool = False,
        raw: bool = False,
        max_flows: int = MAX_FLOWS,
    ) -> None:
        self.vocabulary: ByteVocabulary = vocabulary
        self.gaps: Gaps = gaps
        self.identities: IdentitySource | None = identities
        self.mtu: int = mtu
        self.keep_body: bool = keep_body
        self.raw: bool = raw
        lo, hi = vocabulary.range_behind(0)
        self.lo: int = lo
        self.hi: int = hi
        self.features: list[int] = []
        self.ended: bool = False
        self.silent: bool = False
        self.packets: int = 0
        self.stale: int = 0
        self.malformed: dict[str, int] = {}
        self._bytes: list[int] = []
        self._wrong: bool = False  # a token among the bytes means none
        self._since: int = 0  # tokens since the last packet
        self._patience: int = SILENCE * (vocabulary.layout.packet_bytes + 1)
        self._frame: bytes = b""
        self._frame_len: int = 0
        self._flows: FlowTable = FlowTable(max_flows)
        self._told: dict[int, int] = {}  # flow number: bit 1, 2 for a side whose kind has been told
        self._hosts: dict[bytes, tuple[bytes, bytes]] = {}

    @property
    def base(self) -> int:
        """As `lo`: its one field is what may follow."""
        return self.lo

    def feed(self, token: int) -> Decoded | None:
        """Take one token; the packet that it completes, if it is one."""
        meaning = self.vocabulary.byte_of[token]
        self._since += 1
        if meaning < PKT:
            if len(self._bytes) < MAX_PACKET:
                self._bytes.append(meaning)
            if len(self._bytes) == self.vocabulary.layout.packet_bytes:
                self.lo, self.hi = self.vocabulary.range_behind(len(self._bytes))
        elif meaning == PKT or meaning == END:
            return self._close(meaning == END)
        else:
            self._wrong = True
        if self._since > self._patience:
            self.silent = self.ended = True
        return None

    def last_tokens(self) -> list[int]:
        """The last packet as it was generated, and the delimiter behind it."""
        whole = self._frame[: self.vocabulary.layout.packet_bytes].ljust(self.vocabulary.layout.packet_bytes, b"\0")
        return [*[self.vocabulary.byte_ids[byte] for byte in whole], self.vocabulary.pkt]

    def go_on(self) -> None:
        """Take more tokens after the end, from the beginning of a packet."""
        self.ended = False

    def ranges_ahead(self, tokens: list[int]) -> list[int]:
        """`lo, hi` as they are, then as each of these tokens (bytes and delimiters) would leave them."""
        bounds = [self.lo, self.hi]
        known = len(self._bytes)
        for token in tokens:
            known = known + 1 if self.vocabulary.byte_of[token] < PKT else 0
            bounds += self.vocabulary.range_behind(known)
        return bounds

    def _close(self, last: bool) -> Decoded | None:
        """The packet is complete."""
        data = bytes(self._bytes)
        wrong = self._wrong
        self._bytes = []
        self._wrong = False
        self.ended = last
        self.lo, self.hi = self.vocabulary.range_behind(0)
        if not data and not wrong and (last or not self.packets):
            return None  # nothing before the end, or a delimiter before the first packet: no harm
        decoded = self._packet(data, wrong)
        if decoded is None and self._since > self._patience:
            self.silent = self.ended = True
        return decoded

    def _packet(self, data: bytes, wrong: bool) -> Decoded | None:
        orig_len = ip_end(data)
        headers = headers_of(data[:orig_len] if 0 < orig_len < len(data) else data, orig_len)
        reason = "no-byte" if wrong else reason_of(data, headers)
        if reason:
            self.malformed[reason] = self.malformed.get(reason, 0) + 1
            if not self.raw or len(data) < 14:
                return None
            headers.version = NOT_IP
            orig_len = len(data)
        self._since = 0
        self.packets += 1
        self._frame, self._frame_len = data[:orig_len], orig_len
        key = flow_key(headers)
        if key is None:
            return Decoded(self.gaps.gap_ns(0, 0), headers, 0, 0, False, 0, (b"", b"", 0, 0, 0))
        return self._flow_packet(headers, key)

    def _flow_packet(self, headers: Headers, key: tuple[int, bytes, int, bytes, int]) -> Decoded:
        number, direction, new = self._flows.find(headers, key)
        if headers.checksum_delta:
            self.stale += 1
        headers.checksum_delta = 0
        headers.udp_length_delta = 0
        self._hold_to_mtu(headers)
        gap_ns = self.gaps.gap_ns(direction, headers.payload_len)
        kind = self._kind(headers, number, direction)
        kept = self.vocabulary.layout.udp_payload if headers.transport == UDP and self.keep_body else 0
        headers.body = headers.body[: min(kept, headers.payload_len)]
        if self.identities is not None:
            self._dress(headers, direction)
        turned = direction != 0
        flow = (
            headers.dst if turned else headers.src,
            headers.src if turned else headers.dst,
            headers.dport if turned else headers.sport,
            headers.sport if turned else headers.dport,
            headers.protocol,
        )
        return Decoded(gap_ns, headers, number, direction, new, kind, flow)

    def _hold_to_mtu(self, headers: Headers) -> None:
        if self.mtu:
            room = self.mtu - network_header_len(headers) - transport_header_len(headers)
            headers.payload_len = max(0, min(headers.payload_len, room))

    def _kind(self, headers: Headers, number: int, direction: int) -> int:
        """The kind of a side's first payload, as far as its bytes were generated."""
        if headers.transport != UDP or not headers.body or headers.payload_len <= 0:
            return 0
        told = self._told.get(number, 0)
        if told & (1 << direction):
            return 0
        if number not in self._told and len(self._told) >= MAX_FLOWS:
            del self._told[next(iter(self._told))]
        self._told[number] = told | 1 << direction
        return kind_of(headers.body, headers.protocol, headers.sport, headers.dport)

    # --- identities ---------------------------------------------------------------------------------------------------

    def _dress(self, headers: Headers, direction: int) -> None:
        """Put the dealt addresses in place of the generated ones."""
        assert self.identities is not None
        port = headers.dport if direction == 0 else headers.sport
        source = self._host(headers.version, headers.src, 0, direction, port)
        target = self._host(headers.version, headers.dst, cast_of(headers), 1 - direction, port)
        headers.src, headers.dst = source[0], target[0]
        ethertype = b"\x08\x00" if headers.version == IPV4 else b"\x86\xdd"
        headers.link = self.identities.link(target[1] + source[1] + ethertype)

    def _host(self, version: int, address: bytes, cast: int, role: int, port: int) -> tuple[bytes, bytes]:
        """Who stands for a generated address; `port` is the flow's responder's."""
        found = self._hosts.pop(address, None)
        if found is None:
            assert self.identities is not None
            found = self.identities.host(version, cast, role)
            if cast == 0 and role == 1:
                found = self.identities.settle(found[0], port)
            if len(self._hosts) >= MAX_HOSTS:
                del self._hosts[next(iter(self._hosts))]
        self._hosts[address] = found
        return found

    def as_generated(self, headers: Headers) -> tuple[bytes, int]:
        """The last packet's bytes, untouched but for padding beyond its IP length, and its length on the wire: to be
        used in place of `packet.render.render`."""
        return self._frame, max(self._frame_len, len(self._frame))


def cast_of(headers: Headers) -> int:
    """What a packet's destination is: 0 one host, 1 a group, 2 everybody."""
    if headers.dst == b"\xff\xff\xff\xff" or headers.link[:6] == b"\xff\xff\xff\xff\xff\xff":
        return 2
    if headers.version == IPV4:
        return int(headers.dst[0] >> 4 == 14)
    return int(headers.dst[0] == 0xFF)


def ip_end(data: bytes) -> int:
    """Length of the frame by its IP length, without a trailer; that of `data` where there is none."""
    if len(data) < 20:
        return len(data)
    at = 12
    ethertype = data[12] << 8 | data[13]
    while ethertype in (0x8100, 0x88A8, 0x9100) and at + 12 < len(data):
        at += 4
        ethertype = data[at] << 8 | data[at + 1]
    at += 2
    if ethertype == ETHERTYPE_IPV4 and at + 4 <= len(data):
        return at + (data[at + 2] << 8 | data[at + 3])
    if ethertype == ETHERTYPE_IPV6 and at + 6 <= len(data):
        return at + 40 + (data[at + 4] << 8 | data[at + 5])
    return len(data)


def reason_of(data: bytes, headers: Headers) -> str:
    """Why these bytes are no packet that can be sent, a key of `REASONS`; nothing if they are one."""
    if headers.version == NOT_IP:
        return _unread(data, headers)
    if headers.version != IPV4 and len(headers.src) != 16:
        return "not-ip"  # ARP
    if headers.transport == OPAQUE:
        return "fragment" if headers.protocol in (TCP, UDP) else "protocol"
    if headers.transport != TCP and headers.transport != UDP:
        return "protocol"
    if headers.transport == UDP and headers.ip_flags & 1:
        return "fragment"
    group = headers.src[0] >> 4 >= 14 if headers.version == IPV4 else headers.src[0] == 0xFF
    return "address" if group or headers.src == headers.dst or not any(headers.src) else ""


def _unread(data: bytes, headers: Headers) -> str:
    """What kept `wire.parse` from reading the frame."""
    if not data:
        return "empty"
    if len(data) >= MAX_PACKET:
        return "too-long"
    at = len(headers.link)
    ethertype = data[at - 2] << 8 | data[at - 1] if at else 0
    if ethertype != ETHERTYPE_IPV4 and ethertype != ETHERTYPE_IPV6:
        return "not-ip"
    room = len(data) - at
    if room < 1:
        return "cut"
    if data[at] >> 4 != (4 if ethertype == ETHERTYPE_IPV4 else 6):
        return "version"
    if ethertype == ETHERTYPE_IPV6:
        return "ip-length" if headers.protocol and room >= 40 and ip_end(data) - at - 40 < 8 else "cut"
    if room < 20:
        return "cut"
    size = (data[at] & 15) * 4
    total = data[at + 2] << 8 | data[at + 3]
    if size < 20:
        return "header-length"
    least = 20 if data[at + 9] == TCP else 8
    if total < size + least:
        return "ip-length"
    if room < size + least:
        return "cut"
    if data[at + 9] == TCP:
        offset = (data[at + size + 12] >> 4) * 4
        if offset < 20:
            return "data-offset"
        if total < size + offset:
            return "ip-length"
    return "cut"


def malformed_text(malformed: dict[str, int]) -> str:
    """Packets that a byte model wrote and that were none, by reason, the most frequent first."""
    ranked = sorted(malformed.items(), key=lambda item: (-item[1], item[0]))
    return f"{sum(malformed.values())} packets ({', '.join(f'{reason} {count}' for reason, count in ranked)})"


# ---- the string form -----------------------------------------------------------------------------------------------


def to_text(vocabulary: ByteVocabulary, label: str, tokens: Sequence[int]) -> str:
    """Tokens behind a label, as in section 4.3."""
    names = vocabulary.names
    return " ".join([f"<|{label}|>"] + [names[token] for token in tokens])


def from_text(vocabulary: ByteVocabulary, text: str, partial: bool = False) -> tuple[str | None, list[int]]:
    """The label (None where there is none) and the tokens of a string form.

    partial: the last packet may lack bytes, so that a model goes on inside it. Raises ValueError naming the word that
    is no byte, no label of the model or out of place, or the packet that is not whole.
    """
    words = text.split()
    label: str | None = None
    known = {f"<|{name}|>": name for name in vocabulary.labels}
    ids = {str(b): vocabulary.byte_ids[b] for b in range(256)}
    if words and words[0].startswith("<|") and words[0] not in ("<|pkt|>", "<|endoftext|>"):
        if words[0] not in known:
            raise ValueError(f"label {words[0]} is none of the model's: {', '.join(vocabulary.labels)}")
        label = known[words[0]]
        del words[0]
    if words and words[0] == "<|pkt|>":
        del words[0]
    tokens: list[int] = []
    whole = vocabulary.layout.packet_bytes
    packet = length = 0
    for at, word in enumerate(words):
        if word in ids:
            tokens.append(ids[word])
            length += 1
        elif word == "<|pkt|>":
            _check_whole(packet, length, whole)
            tokens.append(vocabulary.pkt)
            packet += 1
            length = 0
        elif word == "<|endoftext|>" and at == len(words) - 1:
            break
        else:
            raise ValueError(f"word {at + 1} is {word[:40]!r}; bytes 0 to 255 and <|pkt|> are known")
    if length and not partial:
        _check_whole(packet, length, whole)
        tokens.append(vocabulary.pkt)
    elif length > whole:
        _check_whole(packet, length, whole)
    elif length == whole:
        tokens.append(vocabulary.pkt)
    return label, tokens


def _check_whole(packet: int, length: int, whole: int) -> None:
    if length != whole:
        raise ValueError(f"packet {packet + 1} has {length} bytes; the model's packets have {whole}")
