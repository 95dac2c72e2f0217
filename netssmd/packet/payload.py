"""What fills a packet behind its headers, for one session: zeros, noise, a pattern, or what the protocol would say.

In: the headers of each packet in the session's order, its flow and direction and, with a side's first payload, its
kind. Out: ``headers.body``, as long as ``headers.payload_len`` (or empty for zeros, which rendering adds by itself).

On UDP every datagram is a message of its side's kind. On TCP a side's bytes are a stream::

    stream    | message         | message    | message                          end
    written   [head]            [head]       [head]          what a dissector reads: short byte strings, by position
    between          ~~~~~~~~~~        ~~~~~       ~~~~~~~~  noise or letters, a function of the position alone
    segments  |  .  |  .  |  .  |   .  |  .  |  .  |

so a retransmission, even in other pieces, carries the same bytes again, and a message begins wherever the one before
ended, be that inside a segment. Memory is bounded: `MAX_FLOWS` flows, and of each
side the last pieces that `MAX_WRITTEN` bytes hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from netssmd.packet.messages import ANY, FAMILIES, LETTERS, POOL, WRITERS, Names, Speaker, filler
from netssmd.packet.wire import ARP, ICMP, MORE_FRAGMENTS, NOT_IP, OPAQUE, PSH, SYN, TCP, UDP, Headers

MAX_FLOWS: Final = 512
MAX_WRITTEN: Final = 4096
_PIECE: Final = 128  # bytes of memory that a piece takes besides its own
_FAR: Final = 1 << 20

_PATTERN: Final = bytes(range(256)) * 512

ZERO: Final = 0
NOISE: Final = 1
PATTERN: Final = 2
MESSAGES: Final = 3
MODES: Final = {"zero": ZERO, "random": NOISE, "pattern": PATTERN, "protocol": MESSAGES}

# What is spoken at a port: the kinds of who asks and who answers. They stand in for a side whose own kind was not told
# or says nothing, and for one of another family where the third column names the only ones that dissectors bear.
_PORTS: Final[dict[tuple[int, int], tuple[str, str, str]]] = {
    (UDP, 53): ("dns-query-a", "dns-answer-1", "dns"),
    (UDP, 5353): ("dns-query-other", "dns-answer-1", "dns"),
    (UDP, 5355): ("dns-query-a", "dns-answer-1", "dns"),
    (UDP, 67): ("dhcp", "dhcp", "dhcp"),
    (UDP, 68): ("dhcp", "dhcp", "dhcp"),
    (UDP, 123): ("ntp-client", "ntp-server", "ntp"),
    (UDP, 161): ("snmp", "snmp", "snmp"),
    (UDP, 162): ("snmp", "snmp", "snmp"),
    (UDP, 443): ("quic-short", "quic-short", ""),
    (UDP, 1900): ("ssdp", "ssdp", ""),
    (UDP, 3478): ("stun-request", "stun-response", ""),
    (UDP, 5060): ("sip-request", "sip-response", "sip"),
    (TCP, 21): ("ftp-user", "ftp-banner", ""),
    (TCP, 22): ("ssh-banner", "ssh-banner", "ssh"),
    (TCP, 25): ("smtp-hello", "smtp-banner", "smtp"),
    (TCP, 53): ("dns-query-a", "dns-answer-1", "dns"),
    (TCP, 80): ("http-get", "http-2xx", "http http2"),
    (TCP, 110): ("pop-greeting", "pop-greeting", ""),
    (TCP, 123): ("ntp-client", "ntp-server", "ntp"),
    (TCP, 143): ("imap-greeting", "imap-greeting", ""),
    (TCP, 427): ("text", "text", "text"),  # SLP's dissector bears letters, not records
    (TCP, 443): ("tls-client-hello", "tls-server-hello", ""),
    (TCP, 445): ("smb", "smb", "smb"),
    (TCP, 587): ("smtp-hello", "smtp-banner", "smtp"),
    (TCP, 853): ("tls-client-hello", "tls-server-hello", ""),
    (TCP, 873): ("rsync-banner", "rsync-banner", ""),
    (TCP, 993): ("tls-client-hello", "tls-server-hello", ""),
    (TCP, 995): ("tls-client-hello", "tls-server-hello", ""),
    (TCP, 1883): ("mqtt-connect", "mqtt-connack", "mqtt"),
    (TCP, 3389): ("rdp", "rdp", ""),
    (TCP, 5060): ("sip-request", "sip-response", ""),
    (TCP, 6379): ("redis-command", "redis-reply", ""),
    (TCP, 8443): ("tls-client-hello", "tls-server-hello", ""),
    (TCP, 8883): ("tls-client-hello", "tls-server-hello", ""),
}


class Random(Protocol):
    """A session's own random numbers."""

    def u64(self) -> int:
        """The next 64 bits."""


class PayloadWriter:
    """Fills the payloads of one session.

    Arguments:
        mode: a row of `MODES`. stream: draws once a flow.
        kinds: names of the kinds by number, as the session's vocabulary has them.
        names: what the session's hosts are called; without it each message makes names up.
    """

    __slots__ = ("_flows", "_kinds", "_last", "_last_flow", "_mode", "_names", "_stream")

    def __init__(self, mode: str, stream: Random, kinds: Sequence[str], names: Names | None = None) -> None:
        self._mode: int = MODES[mode]
        self._stream: Random = stream
        self._kinds: Sequence[str] = kinds
        self._names: Names | None = names
        self._flows: dict[int, list[Speaker]] = {}
        self._last_flow: int = -1
        self._last: list[Speaker] = []

    def draw_from(self, stream: Random) -> None:
        """Another stream, for flows that begin from here on."""
        self._stream = stream

    def fill(self, headers: Headers, flow: int, direction: int, kind: int) -> None:
        """Set ``headers.body``.

        Arguments:
            headers: of the session's next packet; a body that it already has is kept.
            flow, direction: its number in the session, and 0 if its originator speaks.
            kind: number of the kind of the side's first payload, 0 with the payloads after it.
        """
        length = headers.payload_len
        transport = headers.transport
        if length <= 0 or self._mode == ZERO or headers.body or headers.version == NOT_IP or headers.version == ARP:
            return
        if transport == OPAQUE:  # zeros, on which checksums of fragmented datagrams count
            return
        if transport == ICMP:
            headers.body = (POOL if self._mode == NOISE else _PATTERN)[:length]
            return
        if flow == self._last_flow:
            speakers = self._last
        else:
            found = self._flows.get(flow)
            speakers = self._open(flow, headers, direction) if found is None else found
            self._last_flow = flow
            self._last = speakers
        speaker = speakers[direction]
        if kind:
            self._tell(speaker, speakers[1 - direction], headers, kind)
        if transport == UDP:
            headers.body = self._datagram(speaker, headers, length)
        else:
            headers.body = self._segment(speaker, headers, length)

    # --- flows ----------------------------------------------------------------------------------------------------

    def _open(self, flow: int, headers: Headers, direction: int) -> list[Speaker]:
        tcp = headers.transport == TCP
        row = _known(headers)
        asks = True  # the originator does, unless the known port is its own
        if row is not None:
            known = (headers.transport, min(headers.sport, headers.dport))
            at = known[1] if known in _PORTS else max(headers.sport, headers.dport)
            asks = at == (headers.dport if direction == 0 else headers.sport)
        word = self._stream.u64()
        asked: list[bytes] = []
        server = headers.dst if asks == (direction == 0) else headers.src
        names = self._names
        speakers = [
            Speaker(filler, 0, tcp, asks, word & 0xFFFF, asked, names, server),
            Speaker(filler, 0, tcp, not asks, word >> 16 & 0xFFFF, asked, names, server),
        ]
        if self._mode == MESSAGES and row is not None:
            for speaker in speakers:
                _assign(speaker, row[0] if speaker.client else row[1])
        if len(self._flows) >= MAX_FLOWS:
            del self._flows[next(iter(self._flows))]
        self._flows[flow] = speakers
        return speakers

    def _tell(self, speaker: Speaker, peer: Speaker, headers: Headers, kind: int) -> None:
        """The kind of a side's first payload is known. Dissectors expect one protocol of a flow: the port's or the
        other side's goes before a kind that says nothing, is not of this transport or contradicts them."""
        if self._mode != MESSAGES:
            return
        name = self._kinds[kind] if kind < len(self._kinds) else "unknown"
        row = WRITERS.get(name)
        family = ""
        if row is not None and (row[4] == ANY or row[4] == headers.transport):
            family = row[3]
        known = _known(headers)
        if known is not None and (not family or (known[2] and family not in known[2])):
            name = known[0] if speaker.client else known[1]
            family = WRITERS[name][3]
        if peer.family and family != peer.family:
            both = FAMILIES[peer.family]
            name = both[1] if peer.client else both[0]
            family = peer.family
        elif not family and name != "text" and name != "zeros":
            name = "unknown"
        speaker.family = family
        _assign(speaker, name)

    # --- bytes ----------------------------------------------------------------------------------------------------

    def _between(self, speaker: Speaker, at: int, length: int) -> bytes:
        """What stands between messages: a function of the position."""
        at = (speaker.place + at) & 0xFFFF
        if self._mode == PATTERN:
            return _PATTERN[at & 255 : (at & 255) + length]
        if speaker.plain:
            return LETTERS[at : at + length]
        return POOL[at : at + length]

    def _datagram(self, speaker: Speaker, headers: Headers, length: int) -> bytes:
        if headers.ip_flags & MORE_FRAGMENTS:  # the checksum counts on zeros in the fragments to come
            if self._mode != MESSAGES:
                return b""
            message = speaker.writer(speaker, length + headers.udp_length_delta)
            speaker.count += 1
            return b"" if message[length:].strip(b"\0") else message[:length]
        if self._mode != MESSAGES:
            speaker.count += 1
            return self._between(speaker, speaker.count * 1531, length)
        message = speaker.writer(speaker, length)
        speaker.count += 1
        written = len(message)
        if written < length:
            return message + self._between(speaker, speaker.count * 1531, length - written)
        return message[:length]

    def _segment(self, speaker: Speaker, headers: Headers, length: int) -> bytes:
        start = (headers.seq + 1) & 0xFFFFFFFF if headers.flags & SYN else headers.seq
        if self._mode != MESSAGES:
            return self._between(speaker, start, length)
        if speaker.end < 0:
            speaker.end = start
            speaker.next = start
        ahead = signed(start - speaker.next)
        if not -_FAR < ahead < _FAR:
            speaker.end = start
            speaker.next = start
            speaker.written.clear()
            speaker.kept = 0
            ahead = 0
        if ahead + length > 0:
            speaker.last = headers.flags & PSH != 0
            if ahead > 0:  # what is missing may still come: it has its own messages
                _write_on(speaker, start)
            _write_on(speaker, (start + length) & 0xFFFFFFFF)
        body = self._between(speaker, start, length)
        for at, piece in speaker.written:
            offset = signed(at - start)
            size = len(piece)
            if offset == 0 and size >= length:
                return piece[:length]
            if offset >= length or offset + size <= 0:
                continue
            if offset < 0:
                piece = piece[-offset:]
                offset = 0
            piece = piece[: length - offset]
            body = body[:offset] + piece + body[offset + len(piece) :]
        return body


def signed(difference: int) -> int:
    """The difference of two sequence numbers as a signed number (RFC 9293 section 3.4)."""
    return ((difference + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def _known(headers: Headers) -> tuple[str, str, str] | None:
    """The row of the ports; the lower one counts first, as it does for Wireshark."""
    low = min(headers.sport, headers.dport)
    row = _PORTS.get((headers.transport, low))
    return _PORTS.get((headers.transport, headers.sport + headers.dport - low)) if row is None else row


def _assign(speaker: Speaker, name: str) -> None:
    """Have a side speak as a kind."""
    row = WRITERS.get(name)
    speaker.plain = row is None
    if row is None:
        speaker.writer = filler
        return
    speaker.writer = row[0]
    speaker.code = row[1]
    if row[2] is not None:
        speaker.client = row[2]


def _write_on(speaker: Speaker, stop: int) -> None:
    """Add messages up to the sequence number `stop`."""
    speaker.next = stop
    end = speaker.end
    room = signed(stop - end)
    while room > 0:
        speaker.total = room
        message = speaker.writer(speaker, room)
        speaker.count += 1
        if message:
            written = speaker.written
            written.append((end, message))
            speaker.kept += len(message) + _PIECE
            while speaker.kept > MAX_WRITTEN and len(written) > 1:
                speaker.kept -= len(written[0][1]) + _PIECE
                del written[0]
        end = (end + speaker.total) & 0xFFFFFFFF
        room -= speaker.total
    speaker.end = end
