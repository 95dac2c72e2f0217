"""What applications say: the first bytes of a message in exactly the size that it shall have, one writer a protocol.

In: a `Speaker` (one side of a flow, what it said before, what the other asked) and the bytes there are. Out: the
message's bytes. They may be fewer (the rest of the message is filler, as ciphertext is) or, on TCP, more (the message
goes on in the next segment); ``speaker.total`` is the message's length, `room` unless the writer changes it. A kind is
one row of `WRITERS`; its names are those of the codec's kinds. Nothing is drawn at random here: what looks random is
cut from a fixed pool at a place of the speaker's own.

Sources: DNS RFC 1035, EDNS(0) RFC 6891, padding RFC 7830; TLS RFC 8446, DTLS RFC 6347; HTTP RFC 9112, 9113; SSH RFC
4253; NTP RFC 5905; SIP RFC 3261; STUN RFC 8489; QUIC RFC 9000; RTP RFC 3550; MQTT 3.1.1; DHCP RFC 2131; SNMP RFC 3416;
SMB2 [MS-SMB2]; TPKT RFC 1006; BitTorrent BEP 3; RESP (Redis).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, Protocol

from netssmd.packet.wire import TCP, UDP

ANY: Final = 0  # transport of what is spoken on TCP and on UDP
MAX_ASKED: Final = 8


def _pool() -> bytes:
    """64 KiB of noise, twice, so that a slice of up to 64 KiB can begin anywhere in the first half."""
    return hashlib.shake_128(b"netssmd payload").digest(65536) * 2


def _letters(pool: bytes) -> bytes:
    table = bytes(b"abcdefghijklmnopqrstuvwxyz"[value % 26] for value in range(256))
    return pool.translate(table)


POOL: Final = _pool()
LETTERS: Final = _letters(POOL)


class Names(Protocol):
    """What the hosts of a session are called; addresses are packed, names in questions are in DNS's wire form."""

    def question(self, room: int, qtype: int) -> bytes:
        """A name to ask for in `room` bytes, or in as many as leave 11 or at least 15 of them; empty if none fits."""

    def answers(self, name: bytes, version: int, count: int) -> list[bytes]:
        """`count` addresses of what a question named; the first is where the session goes on to."""

    def server_name(self, address: bytes) -> bytes:
        """The name of a host, as text."""


class Speaker:
    """One side of a conversation.

    Attributes:
        code: the kind's number in its family, from the table. writer: writes its messages.
        tcp, client: how it speaks; the client is who asks.
        place: where in the pool its noise begins. count: messages written so far.
        last: nothing of the message under way follows the segment. plain: letters stand between messages, not noise.
        total: length of the message under way, an answer of the writer.
        asked: what waits for an answer (DNS questions, STUN transactions ...), shared by both sides, oldest first.
        next: sequence number after the last byte sent. end: where the next message begins.
        written: where in the stream which bytes stand; between them is filler. kept: how many these are.
        family: of the kind that was told, empty before.
        names: of the session's hosts, if they have any. server: address of who is asked.
    """

    __slots__ = (
        "asked", "client", "code", "count", "end", "family", "kept", "last", "names", "next", "place", "plain",
        "server", "tcp", "total", "writer", "written",
    )  # fmt: skip

    def __init__(
        self,
        writer: Writer,
        code: int,
        tcp: bool,
        client: bool,
        place: int,
        asked: list[bytes],
        names: Names | None = None,
        server: bytes = b"",
    ) -> None:
        self.writer: Writer = writer
        self.code: int = code
        self.tcp: bool = tcp
        self.client: bool = client
        self.place: int = place
        self.asked: list[bytes] = asked
        self.count: int = 0
        self.last: bool = True
        self.plain: bool = False
        self.total: int = 0
        self.next: int = -1
        self.end: int = -1
        self.written: list[tuple[int, bytes]] = []
        self.kept: int = 0
        self.family: str = ""
        self.names: Names | None = names
        self.server: bytes = server

    def at(self, salt: int) -> int:
        """A place in the pool for this message."""
        return (self.place + self.count * 977 + salt) & 0xFFFF

    def noise(self, n: int, salt: int = 0) -> bytes:
        """`n` random bytes of this message."""
        at = (self.place + self.count * 977 + salt) & 0xFFFF
        return POOL[at : at + n]

    def letters(self, n: int, salt: int = 0) -> bytes:
        """`n` random letters of this message."""
        at = (self.place + self.count * 977 + salt) & 0xFFFF
        return LETTERS[at : at + n]

    def ask(self, request: bytes) -> None:
        """Remember what the other side will answer."""
        self.asked.append(request)
        if len(self.asked) > MAX_ASKED:
            del self.asked[0]

    def answer(self) -> bytes:
        """The oldest request without an answer, empty if there is none."""
        return self.asked.pop(0) if self.asked else b""


Writer = Callable[[Speaker, int], bytes]


def _u16(value: int) -> bytes:
    return bytes((value >> 8 & 255, value & 255))


def _sized(digits_before: int, room: int) -> int:
    """n such that `digits_before` + the digits of n + n bytes make `room`; -1 if there is none."""
    for digits in range(1, 6):
        n = room - digits_before - digits
        if n >= 0 and len(str(n)) == digits:
            return n
    return -1


def filler(s: Speaker, room: int) -> bytes:
    """Nothing that a dissector would know: letters on TCP, zeros in datagrams (heuristics see RTCP in noise)."""
    return b"" if s.tcp else bytes(room)


def zeros(s: Speaker, room: int) -> bytes:
    return bytes(room)


def text(s: Speaker, room: int) -> bytes:
    """Lines of letters."""
    line = s.letters(70, 3)
    lines = (line + b"\r\n") * (room // 72 + 1)
    return lines[: room - 2] + b"\r\n" if room > 2 else b"ok\n"[:room]


# --- DNS --------------------------------------------------------------------------------------------------------------

_DNS_LONGEST: Final = 80
_DNS_RECORDS_MAX: Final = 1100  # later fragments of a datagram are zeros, so records end in the first
_QTYPES: Final = (1, 28, 16)


def _labels(s: Speaker, n: int, salt: int) -> bytes:
    """Labels in `n` bytes (2 or more)."""
    result = b""
    while n:
        take = min(n, 25)
        if n - take == 1:
            take -= 1
        result += bytes((take - 1,)) + s.letters(take - 1, salt + n)
        n -= take
    return result


def _name(s: Speaker, n: int) -> bytes:
    """A name in wire form, `n` bytes long (1, 3 or more)."""
    if n < 3:
        return b"\0"
    tail = b""
    head = b""
    left = n - 1
    if left >= 8:
        tail = b"\4test"  # RFC 6761: nobody's
        left -= len(tail)
    if left >= 10:
        head = b"\3www" if s.at(2) & 1 else b"\3api"
        left -= 4
    return head + _labels(s, left, 5) + tail + b"\0"


def _opt(room: int) -> bytes:
    """An EDNS(0) record of `room` bytes (11, 15 or more), padded with zeros."""
    fixed = b"\0\0\x29\x04\xd0\0\0\0\0"
    if room < 15:
        return fixed + b"\0\0"
    return fixed + _u16(room - 11) + b"\0\x0c" + _u16(room - 15) + bytes(room - 15)


def _dns_question(s: Speaker, room: int, qtype: int) -> tuple[bytes, bytes]:
    """The question, and an additional record that fills the rest of a message of `room` bytes."""
    n = room - 16
    if n > _DNS_LONGEST:
        n = 24 + s.at(4) % 16
    name = b""
    if s.names is not None:
        name = s.names.question(n, qtype)
    if not name:
        name = _name(s, n)
    spare = room - 16 - len(name)
    return name + _u16(qtype) + b"\0\1", _opt(spare) if spare else b""


def dns_query(s: Speaker, room: int) -> bytes:
    """A question, its name as long as the message asks for; code: 0 A, 1 AAAA, 2 another type."""
    least = 26 if s.tcp else 19  # such as abc.test
    prefix = b""
    if s.tcp:
        room = room - 2 if room >= least + 2 else 30
        prefix = _u16(room)
        s.total = room + 2
    code = s.code
    if code == 0 and s.asked:  # right after a question that is not answered yet, another as long: AAAA follows A
        last = s.asked[-1]
        if len(last) + 10 == room and last[-3] == 1:
            code = 1
    question, extra = _dns_question(s, max(room, least), _QTYPES[code])
    ident = s.noise(2)
    s.ask(ident + question)
    return prefix + ident + b"\1\0\0\1\0\0\0\0\0" + (b"\1" if extra else b"\0") + question + extra


def _cname(s: Speaker, room: int) -> bytes:
    """An alias below the name that was asked for, in `room` bytes (16 or more)."""
    return b"\xc0\x0c\0\5\0\1\0\0\1\x2c" + _u16(room - 12) + _labels(s, room - 14, 7) + b"\xc0\x0c"


def _record(s: Speaker, owner: int, qtype: int, i: int, addresses: list[bytes]) -> bytes:
    data = s.noise(16, 40 * i)
    head = _u16(0xC000 | owner) + _u16(qtype) + b"\0\1\0\0\1\x2c"
    if i < len(addresses):
        return head + _u16(len(addresses[i])) + addresses[i]
    if qtype == 28:
        return head + b"\0\x10\x20\x01\0\2" + data[4:]
    if qtype == 1:
        return head + b"\0\4\xc6\x13" + data[:2]
    return head + b"\0\4" + (b"\1" + data[:1] + b"\xc0\x0c" if qtype in (2, 5, 12) else b"\3" + s.letters(3, i))


def _addresses(s: Speaker, name: bytes, qtype: int, count: int) -> list[bytes]:
    if s.names is None or (qtype != 1 and qtype != 28):
        return []
    return s.names.answers(name, 4 if qtype == 1 else 6, count)


def _answers(s: Speaker, name: bytes, qtype: int, room: int, least: int, most: int) -> tuple[int, bytes]:
    """`least` to `most` records, as near to `room` bytes as can be; fewer if they do not fit. Return: how many."""
    size = 28 if qtype == 28 else 16
    room = min(room, _DNS_RECORDS_MAX)
    for spare in (0, 11):  # nothing else, or an additional record
        count = (room - spare) // size
        if (room - spare) % size == 0 and max(1, least) <= count <= most:
            addresses = _addresses(s, name, qtype, count)
            return count, b"".join([_record(s, 12, qtype, i, addresses) for i in range(count)])
    if most == 1 and room >= size + 15:  # an address and padding say more than an alias alone
        return 1, _record(s, 12, qtype, 0, _addresses(s, name, qtype, 1))
    count = min(most, 1 + (room - 16) // size) if room >= 16 else 0
    if count <= 0:
        return 0, b""
    alias = room - (count - 1) * size
    if alias > 100:
        alias = 16 + s.at(6) % 32
    owner = 12 + len(name) + 4 + 12
    addresses = _addresses(s, name, qtype, count - 1)
    return count, _cname(s, alias) + b"".join([_record(s, owner, qtype, i, addresses) for i in range(count - 1)])


_DNS_CODES: Final = ((0, 0, 0), (0, 1, 1), (0, 2, 4), (0, 5, 99), (3, 0, 0), (2, 0, 0))


def dns_answer(s: Speaker, room: int) -> bytes:
    """An answer to the oldest question; code: row of response code, fewest and most answers."""
    rcode, least, most = _DNS_CODES[s.code]
    prefix = b""
    if s.tcp:
        room = room - 2 if room >= 33 else 62
        prefix = _u16(room)
        s.total = room + 2
    asked = s.answer()
    if not asked:
        n = max(1, min(room - 12 - 4 - 16 * least, 24))
        if s.names is not None and n < 14:  # a name comes before answers
            n = min(14, max(1, room - 16))
        name = s.names.question(n, 1) if s.names is not None else b""
        asked = s.noise(2) + (name or _name(s, n)) + b"\0\1\0\1"
    ident = asked[:2]
    question = asked[2:]
    asks = b"\1"
    if 12 + len(question) > room:
        question = b""
        asks = b"\0"
        most = 0
    left = room - 12 - len(question)
    qtype = question[-4] << 8 | question[-3] if question else 1
    count = 0
    records = b""
    if most:
        count, records = _answers(s, question[:-4], qtype, left, least, most)
        left -= len(records)
    authority = b"\0"
    if not most and question and left >= 38:
        mailbox = min(left - 34, 40)
        authority = b"\1"
        records = (
            b"\xc0\x0c\0\6\0\1\0\0\1\x2c" + _u16(22 + mailbox) + b"\xc0\x0c" + _labels(s, mailbox - 2, 9) + b"\xc0\x0c"
        )
        records += b"\x78\xa4\x0b\x01\0\0\x1c\x20\0\0\x0e\x10\0\x09\x3a\x80\0\0\x01\x2c"
        left -= len(records)
    additional = b"\0"
    if left == 11 or left >= 15:
        additional = b"\1"
        records += _opt(left)
    head = ident + b"\x81" + bytes((0x80 | rcode,)) + b"\0" + asks + _u16(count) + b"\0" + authority + b"\0"
    return prefix + head + additional + question + records


# --- TLS and DTLS -----------------------------------------------------------------------------------------------------

_SUITES: Final = bytes.fromhex("13011302c02bc02fc02cc030cca9cca8")
_TLS_EXTENSIONS: Final = bytes.fromhex(
    "000a 0006 0004 001d 0017"  # groups: x25519, secp256r1
    "000b 0002 0100"  # uncompressed points
    "000d 000a 0008 0403 0804 0401 0503"  # signatures
    "0010 000e 000c 02 6832 08 687474702f312e31"  # ALPN: h2, http/1.1
    "002b 0005 04 0304 0303"  # versions: 1.3, 1.2
)
_TLS_POINTS: Final = bytes.fromhex("000b00020100")
_TLS_DATA: Final = b"\x17\3\3"


def _extension(kind: int, value: bytes) -> bytes:
    return _u16(kind) + _u16(len(value)) + value


def _hello_client(s: Speaker, room: int, version: bytes, cookie: bytes, name: bytes) -> bytes:
    """Body of a ClientHello of `room` bytes (43 + cookie or more); `name` of the server is left out if it does not
    fit."""
    named = _extension(0, _u16(len(name) + 3) + b"\0" + _u16(len(name)) + name) if name else b""
    if room >= 135 + len(cookie) + len(_SUITES) + len(named):
        head = version + s.noise(32) + b"\x20" + s.noise(32, 50) + cookie + _u16(len(_SUITES)) + _SUITES + b"\1\0"
        extensions = named + _TLS_EXTENSIONS
        spare = room - len(head) - 2 - len(extensions)
        if spare >= 44:
            extensions += _extension(51, b"\0\x24\0\x1d\0\x20" + s.noise(32, 90))
            spare -= 42
        if 0 < spare < 4:  # too little for padding: without the formats of points there is enough
            extensions = extensions.replace(_TLS_POINTS, b"", 1)
            spare += len(_TLS_POINTS)
    else:
        head = version + s.noise(32) + b"\0" + cookie + b"\0\2\x13\1\1\0"
        spare = room - len(head) - 2
        if spare < 0:
            return head
        extensions = named if len(named) <= spare else b""
        spare -= len(extensions)
        if 0 < spare < 4:  # a session id takes it
            head = head[:34] + bytes((spare,)) + s.noise(spare, 50) + head[35:]
            spare = 0
    if spare:
        extensions += _extension(21, bytes(spare - 4))
    return head + _u16(len(extensions)) + extensions


def server_name(s: Speaker) -> bytes:
    """What the server of this conversation is called."""
    if s.names is not None:
        return s.names.server_name(s.server)
    return b"www." + s.letters(8, 11) + b".test"


def _handshake(kind: int, body: bytes) -> bytes:
    return bytes((kind,)) + len(body).to_bytes(3, "big") + body


def tls_client(s: Speaker, room: int) -> bytes:
    """A ClientHello that fills the segment, then application data."""
    if s.count:
        return tls_data(s, room)
    if room < 9 + 41 + 2:
        room = 9 + 41 + 2 + 15
    room = min(room, 16384)
    s.total = room
    hello = _handshake(1, _hello_client(s, room - 9, b"\3\3", b"", server_name(s)))
    return b"\x16\3\1" + _u16(len(hello)) + hello


def tls_server(s: Speaker, room: int) -> bytes:
    """A ServerHello, then change-cipher-spec and encrypted records."""
    if s.count:
        return tls_data(s, room)
    shared = _extension(43, b"\3\4") + _extension(51, b"\0\x1d\0\x20" + s.noise(32, 60))
    long = room >= 127 + 6 + 6
    if long:
        body = b"\3\3" + s.noise(32) + b"\x20" + s.noise(32, 40) + b"\x13\1\0" + _u16(len(shared)) + shared
    else:
        session = max(0, min(32, room - 47))
        body = b"\3\3" + s.noise(32) + bytes((session,)) + s.noise(session, 40) + b"\xc0\x2f\0"
    hello = _handshake(2, body)
    result = b"\x16\3\3" + _u16(len(hello)) + hello + (b"\x14\3\3\0\1\1" if long else b"")
    s.total = len(result)
    return result


def tls_data(s: Speaker, room: int) -> bytes:
    """One record of ciphertext."""
    if room < 24:  # too little for a record with its tag: it goes on in the next segment
        room = 5 + 24
    elif room > 5 + 16384:
        room = 5 + 16384
    s.total = room
    return _TLS_DATA + bytes((room - 5 >> 8, room - 5 & 255))


def tls_other(s: Speaker, room: int) -> bytes:
    """Change-cipher-spec, then ciphertext."""
    if s.count:
        return tls_data(s, room)
    s.total = 6
    return b"\x14\3\3\0\1\1"


def dtls(s: Speaker, room: int) -> bytes:
    """Hellos, then ciphertext; epoch and sequence number count on."""
    number = s.count.to_bytes(6, "big")
    least = 13 + 12 + 42
    if s.count == 0 and room >= least:
        room_left = room - 25
        if s.client:
            body = _hello_client(s, room_left, b"\xfe\xfd", b"\0", b"")
        else:
            body = b"\xfe\xfd" + s.noise(32) + b"\0\xc0\x2b\0"
            if room_left >= len(body) + 6:
                body += _u16(room_left - len(body) - 2) + _extension(21, bytes(room_left - len(body) - 6))
        size = len(body).to_bytes(3, "big")
        hello = (b"\1" if s.client else b"\2") + size + b"\0\0\0\0\0" + size + body
        return b"\x16\xfe\xfd\0\0" + number + _u16(len(hello)) + hello
    return b"\x17\xfe\xfd\0\1" + number + _u16(max(0, room - 13))


# --- HTTP and what resembles it ---------------------------------------------------------------------------------------

_METHODS: Final = (b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS")
_STATUS: Final = (b"200 OK", b"302 Found", b"404 Not Found", b"503 Service Unavailable", b"101 Switching Protocols")
_AGENT: Final = b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"


def _lines(s: Speaker, room: int, first: bytes, after: bytes, headers: tuple[bytes, ...], pad: bytes) -> bytes:
    """A head of exactly `room` bytes: as many of `headers` as fit, the rest letters in the first line or a header.

    The first line is `first`, letters, `after`; `pad` begins the header for longer rests. Too little room is ignored.
    """
    left = room - len(first) - len(after) - 4
    head = b"\r\n"
    for header in headers:
        if len(header) <= left:
            head += header
            left -= len(header)
    target = b""
    if left > len(pad) + 20:
        head += pad + s.letters(left - len(pad) - 2, 13) + b"\r\n"
    elif left > 0:
        target = s.letters(left, 13)
    return first + target + after + head + b"\r\n"


def http_request(s: Speaker, room: int) -> bytes:
    """A request head that fills the segment; POST and PUT have a body, which may go on. Code: the method."""
    method = _METHODS[s.code]
    body = -1
    head = room
    if s.code in (1, 3):
        if not s.last:
            head = min(room, 240)
            body = 1 << 20
        else:
            body = max(0, room - 200)
            head = room - body
    least = len(method) + 15
    headers: tuple[bytes, ...] = ()
    if body >= 0:
        headers = (b"Content-Length: %d\r\n" % body,)
        least += len(headers[0])
    head = max(head, least)
    s.total = head + max(0, body)
    host = b"Host: " + server_name(s) + b"\r\n"
    version = b" HTTP/1.1"
    if head < least + len(host):  # no room for the host's name, which 1.1 asks for
        version = b" HTTP/1.0"
    headers += (host, b"Accept: */*\r\n", _AGENT)
    return _lines(s, head, method + b" /", version, headers, b"Cookie: id=")


def http_response(s: Speaker, room: int) -> bytes:
    """A response head and a body that fills the segment or, if that is full, goes on. Code: the status."""
    status = _STATUS[s.code]
    body = max(0, room - 240) if s.last else 1 << 20
    least = len(status) + 13
    if s.code == 4:
        body = 0
        headers: tuple[bytes, ...] = (b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\n")
    else:
        length = b"Content-Length: %d\r\n" % body
        least += len(length)
        headers = (length, b"Server: nginx\r\n", b"Content-Type: application/octet-stream\r\n",
                   b"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n")  # fmt: skip
    head = max(least, room - body if s.last else min(room, 240))
    s.total = head + body
    return _lines(s, head, b"HTTP/1.1 " + status, b"", headers, b"ETag: ")


def http2(s: Speaker, room: int) -> bytes:
    """The client's preface, SETTINGS, then DATA frames."""
    if s.count == 0:
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if s.client else b""
        s.total = len(preface) + 9
        return preface + b"\0\0\0\4\0\0\0\0\0"
    if room < 9:
        room = 9
    s.total = room
    return (room - 9).to_bytes(3, "big") + b"\0\0\0\0\0\1"


def ssdp(s: Speaker, room: int) -> bytes:
    """A search for devices."""
    headers = (b"HOST: 239.255.255.250:1900\r\n", b'MAN: "ssdp:discover"\r\n', b"MX: 2\r\n", b"ST: ssdp:all\r\n")
    return _lines(s, room, b"M-SEARCH * HTTP/1.1", b"", headers, b"USER-AGENT: ")


def sip_request(s: Speaker, room: int) -> bytes:
    """OPTIONS or REGISTER with the headers that RFC 3261 wants, as far as they fit."""
    branch = s.letters(12, 17)
    s.ask(branch)
    return _sip(s, room, b"REGISTER sip:", b"example.com SIP/2.0", branch)


def sip_response(s: Speaker, room: int) -> bytes:
    """200 OK to the oldest request."""
    return _sip(s, room, b"SIP/2.0 200 OK", b"", s.answer() or s.letters(12, 17))


def _sip(s: Speaker, room: int, first: bytes, after: bytes, branch: bytes) -> bytes:
    headers = (
        b"Via: SIP/2.0/UDP a.example.com;branch=z9hG4bK" + branch + b"\r\n",
        b"Call-ID: " + branch + b"\r\n",
        b"CSeq: 1 REGISTER\r\n",
        b"From: <sip:a@example.com>;tag=" + branch[:6] + b"\r\n",
        b"To: <sip:b@example.com>\r\n",
        b"Max-Forwards: 70\r\n",
        b"Content-Length: 0\r\n",
        b"Contact: <sip:a@a.example.com>\r\n",
    )
    return _lines(s, room, first, after, headers, b"User-Agent: ")


# --- lines ------------------------------------------------------------------------------------------------------------


def _line(s: Speaker, room: int, start: bytes, ending: bytes = b"\r\n") -> bytes:
    """A line of `room` bytes, or as short as can be."""
    missing = room - len(start) - len(ending)
    if missing < 0:
        s.total = len(start) + len(ending)
        missing = 0
    return start + s.letters(missing, 19) + ending


def _many_lines(s: Speaker, room: int, start: bytes, final: bytes) -> bytes:
    """Lines that begin with `start`, the last one with `final`; together `room` bytes."""
    if room <= 80:
        return _line(s, room, final)
    s.total = 64 if room >= 90 else 40
    return _line(s, s.total, start)


def ssh(s: Speaker, room: int) -> bytes:
    """The banner, key exchange in the clear up to NEWKEYS, then ciphertext."""
    if s.count == 0:
        room = min(room, 240) if room >= 14 else 21
        s.total = room
        start = b"SSH-2.0-OpenSSH_9.2p1 "
        return _line(s, room, start if room > len(start) + 2 else b"SSH-2.0-a")
    if s.count == 1:
        return _ssh_kexinit(s, room)
    if s.count > 3:
        return b""
    if s.count == 2:  # the client has NEWKEYS wait for the server's reply: its packet is padded to the segment's end
        result = _ssh_packet(_ssh_key(s), min(room, 284) if s.client else 0)
    else:  # what is left of the segment must hold a packet
        result = _ssh_packet(b"\x15", room if room < 64 else 0)
    s.total = len(result)
    return result


def _ssh_key(s: Speaker) -> bytes:
    """SSH_MSG_KEX_ECDH_INIT, or the REPLY with host key and signature (RFC 5656 section 4, RFC 8709)."""
    key = b"\0\0\0\x20" + s.noise(32, 60)
    if s.client:
        return b"\x1e" + key
    name = b"\0\0\0\x0bssh-ed25519"
    host_key = b"\0\0\0\x33" + name + b"\0\0\0\x20" + s.noise(32, 90)
    return b"\x1f" + host_key + key + b"\0\0\0\x53" + name + b"\0\0\0\x40" + s.noise(64, 120)


def _ssh_packet(payload: bytes, room: int) -> bytes:
    padding = 4 + (-(len(payload) + 9)) % 8
    if room > len(payload) + 5 + padding:
        padding = room - len(payload) - 5
    return (len(payload) + padding + 1).to_bytes(4, "big") + bytes((padding,)) + payload + POOL[:padding]


_SSH_LISTS: Final = (
    b"curve25519-sha256", b"ssh-ed25519", b"aes128-ctr", b"aes128-ctr", b"umac-64@openssh.com", b"umac-64@openssh.com",
    b"none", b"none", b"", b"",
)  # fmt: skip


def _ssh_kexinit(s: Speaker, room: int) -> bytes:
    names = b""
    for listed in _SSH_LISTS:
        names += len(listed).to_bytes(4, "big") + listed
    payload = b"\x14" + s.noise(16) + names + bytes(5)
    more = room - len(payload) - 5 - 255
    if more > 0:  # a longer list of key exchange methods
        first = len(_SSH_LISTS[0])
        longer = (first + 1 + more).to_bytes(4, "big") + _SSH_LISTS[0] + b"," + s.letters(more, 23)
        payload = payload[:17] + longer + payload[17 + 4 + first :]
    result = _ssh_packet(payload, room)
    s.total = len(result)
    return result


def ftp_server(s: Speaker, room: int) -> bytes:
    """Its greeting, then positive answers."""
    if s.count == 0 and room >= 20:
        return _line(s, min(room, 80), b"220 (vsFTPd 3.0.3", b")\r\n")
    return _many_lines(s, room, b"250-" if s.count else b"220-", b"250 " if s.count else b"220 ")


def smtp_server(s: Speaker, room: int) -> bytes:
    """Its greeting, then positive answers."""
    if s.count == 0 and room >= 20:
        return _line(s, min(room, 80), b"220 mail ESMTP ")
    return _many_lines(s, room, b"250-" if s.count else b"220-", b"250 " if s.count else b"220 ")


def ftp_user(s: Speaker, room: int) -> bytes:
    """An FTP client: USER, then commands."""
    return _line(s, min(room, 200), (b"USER ", b"PASS ", b"CWD ", b"RETR ")[min(s.count, 3)])


def smtp_hello(s: Speaker, room: int) -> bytes:
    """An SMTP client: EHLO, then commands without effect."""
    return _line(s, min(room, 200), b"NOOP " if s.count else b"EHLO ")


def imap(s: Speaker, room: int) -> bytes:
    return _line(s, min(room, 200), b"* OK ") if not s.client else _line(s, min(room, 200), b"a1 NOOP")


def pop(s: Speaker, room: int) -> bytes:
    return _line(s, min(room, 200), b"+OK ") if not s.client else _line(s, min(room, 200), b"NOOP")


def rsync(s: Speaker, room: int) -> bytes:
    """The version, then data."""
    return b"" if s.count else _line(s, min(room, 40), b"@RSYNCD: 31.0" if room < 20 else b"@RSYNCD: 31.0 ", b"\n")


def redis_command(s: Speaker, room: int) -> bytes:
    """ECHO with an argument of the right length."""
    start = b"*2\r\n$4\r\nECHO\r\n"
    n = _sized(len(start) + 5, room)
    if n < 0:
        start = b"*2\r\n$3\r\nGET\r\n"
        n = _sized(len(start) + 5, room)
    if n < 0:
        n = 4
    result = start + b"$%d\r\n" % n + s.letters(n, 29) + b"\r\n"
    s.total = len(result)
    return result


def redis_reply(s: Speaker, room: int) -> bytes:
    """A simple string, or a bulk string if it is long."""
    n = _sized(5, room) if room > 64 else -1
    if n < 0:
        return _line(s, min(room, 63), b"+")
    return b"$%d\r\n" % n + s.letters(n, 29) + b"\r\n"


# --- binary protocols on TCP ------------------------------------------------------------------------------------------


def _varint(n: int) -> bytes:
    """MQTT's remaining length."""
    result = b""
    while n > 127:
        result += bytes((n & 127 | 128,))
        n >>= 7
    return result + bytes((n,))


def mqtt(s: Speaker, room: int) -> bytes:
    """CONNECT or CONNACK, then PUBLISH and pings. Code: 0 connect, 1 connack, 2 neither."""
    if s.count == 0 and s.code == 1:
        s.total = 4
        return b"\x20\2\0\0"
    connect = s.count == 0 and s.code == 0
    least = 15 if connect else 7
    if room < least and not connect:
        s.total = 2
        return b"\xc0\0" if s.client else b"\xd0\0"
    room = max(room, least)
    rest = room - 2 if room < 130 else room - 3 if room < 16387 else 16383
    if room == 130:
        rest = 127
    head = (b"\x10" if connect else b"\x30") + _varint(rest)
    if connect:
        head += b"\0\4MQTT\4\2\0\x3c" + _u16(rest - 12) + s.letters(rest - 12, 31)
    else:
        topic = min(rest - 2, 12)
        head += _u16(topic) + s.letters(topic, 31)
        head += s.letters(rest - 2 - topic, 37)
    s.total = len(head)
    return head


def bittorrent(s: Speaker, room: int) -> bytes:
    """The handshake, then pieces."""
    if s.count == 0:
        s.total = 68
        return b"\x13BitTorrent protocol" + bytes(8) + s.noise(20) + b"-TR4050-" + s.letters(12)
    if room < 13:
        s.total = 4
        return bytes(4)
    return (room - 4).to_bytes(4, "big") + b"\7" + bytes(8)


def smb2(s: Speaker, room: int) -> bytes:
    """An SMB2 ECHO; keep-alives where there is less room."""
    if room < 72:
        keep_alive = b"\x85\0\0\0" * max(1, room // 4)
        s.total = len(keep_alive)
        return keep_alive
    s.total = 72
    flags = b"\0\0\0\0" if s.client else b"\1\0\0\0"
    header = b"\xfeSMB\x40\0\1\0" + bytes(4) + b"\x0d\0\1\0" + flags + bytes(4) + s.count.to_bytes(8, "little")
    return b"\0\0\0\x44" + header + bytes(32) + b"\4\0\0\0"


def rdp(s: Speaker, room: int) -> bytes:
    """A connection request or confirm of X.224, then data."""
    if s.count == 0:
        s.total = 11
        return b"\3\0\0\x0b\6" + (b"\xe0" if s.client else b"\xd0") + bytes(5)
    s.total = max(8, room)
    return b"\3\0" + _u16(s.total) + b"\2\xf0\x80" + bytes(s.total - 7)


# --- binary protocols on UDP ------------------------------------------------------------------------------------------


def ntp(s: Speaker, room: int) -> bytes:
    """Mode 3 or 4, the answer repeating the question's transmit time. Code: 0 client, 1 server."""
    now = b"\xed" + s.noise(7)
    s.total = max(room, 48)
    if s.code == 0:
        s.ask(now)
        head = b"\x23\2\6\xe8" + bytes(8) + b"\0\0\0\0" + bytes(24) + now
    else:
        head = b"\x24\2\6\xe8\0\0\x01\x20\0\0\x02\x40\xc6\x13\0\1" + now + (s.answer() or now) + now + now
    left = room - len(head)
    if left > 20:  # an extension field (RFC 7822): unique identifier, padded
        size = left & ~3
        head += b"\1\4" + _u16(size) + s.noise(size - 4, 70)
    elif left == 20:
        head += b"\0\0\0\1" + s.noise(16, 70)
    return head


def stun(s: Speaker, room: int) -> bytes:
    """A binding request or response; what is too long for one is media. Code: 0 request, 1 response."""
    if room > 548 or room & 3 or room < 20:
        return rtp(s, room)
    if s.code == 0:
        transaction = s.noise(12)
        s.ask(transaction)
    else:
        transaction = s.answer() or s.noise(12)
    left = room - 20
    attributes = b""
    if s.code and left >= 12:
        attributes = b"\0\x20\0\x08\0\1" + s.noise(6, 80)
        left -= 12
    if left >= 4:
        attributes += b"\x80\x22" + _u16(left - 4) + s.letters(left - 4, 41)
    return (b"\1\1" if s.code else b"\0\1") + _u16(room - 20) + b"\x21\x12\xa4\x42" + transaction + attributes


def rtp(s: Speaker, room: int) -> bytes:
    """Sequence number and timestamp count on, one source a direction."""
    number = s.place + s.count
    stamp = (s.place << 8) + 960 * s.count & 0xFFFFFFFF
    at = s.place & 0xFFFF
    return b"\x80\x60" + bytes((number >> 8 & 255, number & 255)) + stamp.to_bytes(4, "big") + POOL[at : at + 4]


def rtcp(s: Speaker, room: int) -> bytes:
    """A sender report with profile-specific extensions, or an empty receiver report."""
    at = s.place & 0xFFFF
    source = POOL[at : at + 4]
    words = room // 4 - 1
    if room < 28:
        return b"\x80\xc9" + _u16(max(1, words)) + source + bytes(max(0, room - 8))
    counts = (s.count * 50).to_bytes(4, "big") + (s.count * 8000 & 0xFFFFFFFF).to_bytes(4, "big")
    return b"\x80\xc8" + _u16(words) + source + b"\xed" + s.noise(11) + counts + bytes(room - 28)


def quic(s: Speaker, room: int) -> bytes:
    """Initial packets, a handshake packet, then short headers. Code: 0 initial, 1 handshake, 2 short."""
    own = POOL[s.place & 0xFFFF : (s.place & 0xFFFF) + 8]
    other = s.asked[0] if s.asked and s.asked[0] != own else own
    if not s.asked:
        s.asked.append(own)
    kind = s.code if s.count == 0 else 2
    if s.code == 0 and s.count in (1, 2) and room >= 200:
        kind = 1
    if kind == 2 or room < 48:
        return bytes((0x40 | POOL[s.at(1)] & 0x3F,)) + other
    head = (b"\xe3" if kind else b"\xc3") + b"\0\0\0\1\x08" + other + b"\x08" + own
    if not kind:
        head += b"\0"
    left = room - len(head) - 2
    return head + bytes((0x40 | left >> 8 & 0x3F, left & 255))


def dhcp(s: Speaker, room: int) -> bytes:
    """DISCOVER or OFFER, its options padded with zeros."""
    ask = s.client
    transaction = s.noise(4)
    if ask:
        s.ask(transaction)
    else:
        transaction = s.answer() or transaction
    mine = b"\0\0\0\0" if ask else b"\xc6\x12\1\2"
    head = (b"\1" if ask else b"\2") + b"\1\6\0" + transaction + bytes(8) + mine + bytes(8) + b"\2\x4e"
    head += s.noise(4, 90) + bytes(10 + 192) + b"\x63\x82\x53\x63\x35\1" + (b"\1" if ask else b"\2") + b"\xff"
    return head + bytes(max(0, room - len(head)))


def snmp(s: Speaker, room: int) -> bytes:
    """A get request or response of version 2c, all lengths in four bytes so that any size fits."""
    if s.client:
        ident = s.noise(2)
        s.ask(ident)
    else:
        ident = s.answer() or s.noise(2)
    n = max(0, room - 55)
    value = b"\4\x82" + _u16(n) + s.letters(n, 43)
    binding = b"\6\x08\x2b\6\1\2\1\1\1\0" + value
    bindings = b"\x30\x82" + _u16(len(binding)) + binding
    body = b"\2\2\x0f" + ident[1:] + b"\2\1\0\2\1\0" + b"\x30\x82" + _u16(len(bindings)) + bindings
    pdu = (b"\xa0" if s.client else b"\xa2") + b"\x82" + _u16(len(body)) + body
    whole = b"\2\1\1\4\6public" + pdu
    return b"\x30\x82" + _u16(len(whole)) + whole


# --- the table --------------------------------------------------------------------------------------------------------

# Kind: its writer, the writer's code, whether who speaks so asks (None: whoever opened the flow), its family, the
# transport it speaks on. A kind that is not here is filler.
WRITERS: Final[dict[str, tuple[Writer, int, bool | None, str, int]]] = {
    "zeros": (zeros, 0, None, "", ANY),
    "text": (text, 0, None, "", ANY),
    "tls-client-hello": (tls_client, 0, True, "tls", TCP),
    "tls-server-hello": (tls_server, 0, False, "tls", TCP),
    "tls-other": (tls_other, 0, None, "tls", TCP),
    "tls-data": (tls_data, 0, None, "tls", TCP),
    "dns-query-a": (dns_query, 0, True, "dns", ANY),
    "dns-query-aaaa": (dns_query, 1, True, "dns", ANY),
    "dns-query-other": (dns_query, 2, True, "dns", ANY),
    "dns-answer-empty": (dns_answer, 0, False, "dns", ANY),
    "dns-answer-1": (dns_answer, 1, False, "dns", ANY),
    "dns-answer-few": (dns_answer, 2, False, "dns", ANY),
    "dns-answer-many": (dns_answer, 3, False, "dns", ANY),
    "dns-nxdomain": (dns_answer, 4, False, "dns", ANY),
    "dns-error": (dns_answer, 5, False, "dns", ANY),
    "ntp-client": (ntp, 0, True, "ntp", ANY),
    "ntp-server": (ntp, 1, False, "ntp", ANY),
    "stun-request": (stun, 0, True, "media", UDP),
    "stun-response": (stun, 1, False, "media", UDP),
    "quic-initial": (quic, 0, None, "quic", UDP),
    "quic-handshake": (quic, 1, None, "quic", UDP),
    "quic-short": (quic, 2, None, "quic", UDP),
    "dtls": (dtls, 0, None, "media", UDP),
    "rtp": (rtp, 0, None, "media", UDP),
    "rtcp": (rtcp, 0, None, "media", UDP),
    "dhcp": (dhcp, 0, None, "dhcp", UDP),
    "snmp": (snmp, 0, None, "snmp", UDP),
    "mqtt-connect": (mqtt, 0, True, "mqtt", TCP),
    "mqtt-connack": (mqtt, 1, False, "mqtt", TCP),
    "mqtt-other": (mqtt, 2, None, "mqtt", TCP),
    "smb": (smb2, 0, None, "smb", TCP),
    "http-get": (http_request, 0, True, "http", TCP),
    "http-post": (http_request, 1, True, "http", TCP),
    "http-head": (http_request, 2, True, "http", TCP),
    "http-put": (http_request, 3, True, "http", TCP),
    "http-other": (http_request, 4, True, "http", TCP),
    "http-2xx": (http_response, 0, False, "http", TCP),
    "http-3xx": (http_response, 1, False, "http", TCP),
    "http-4xx": (http_response, 2, False, "http", TCP),
    "http-5xx": (http_response, 3, False, "http", TCP),
    "http-response": (http_response, 4, False, "http", TCP),
    "http2-preface": (http2, 0, None, "http2", TCP),
    "ssh-banner": (ssh, 0, None, "ssh", TCP),
    "ftp-banner": (ftp_server, 0, False, "ftp", TCP),
    "ftp-user": (ftp_user, 0, True, "ftp", TCP),
    "smtp-banner": (smtp_server, 0, False, "smtp", TCP),
    "smtp-hello": (smtp_hello, 0, True, "smtp", TCP),
    "imap-greeting": (imap, 0, False, "imap", TCP),
    "pop-greeting": (pop, 0, False, "pop", TCP),
    "sip-request": (sip_request, 0, True, "sip", ANY),
    "sip-response": (sip_response, 0, False, "sip", ANY),
    "rsync-banner": (rsync, 0, None, "rsync", TCP),
    "ssdp": (ssdp, 0, None, "ssdp", UDP),
    "bittorrent": (bittorrent, 0, None, "bittorrent", TCP),
    "redis-command": (redis_command, 0, True, "redis", TCP),
    "redis-reply": (redis_reply, 0, False, "redis", TCP),
    "rdp": (rdp, 0, None, "rdp", TCP),
}

# What the two sides say in a conversation of a family: who asks, who answers.
FAMILIES: Final[dict[str, tuple[str, str]]] = {
    "tls": ("tls-client-hello", "tls-server-hello"),
    "dns": ("dns-query-a", "dns-answer-1"),
    "ntp": ("ntp-client", "ntp-server"),
    "media": ("rtp", "rtp"),
    "quic": ("quic-initial", "quic-initial"),
    "dhcp": ("dhcp", "dhcp"),
    "snmp": ("snmp", "snmp"),
    "mqtt": ("mqtt-connect", "mqtt-connack"),
    "smb": ("smb", "smb"),
    "http": ("http-get", "http-2xx"),
    "http2": ("http2-preface", "http2-preface"),
    "ssh": ("ssh-banner", "ssh-banner"),
    "ftp": ("ftp-user", "ftp-banner"),
    "smtp": ("smtp-hello", "smtp-banner"),
    "imap": ("imap-greeting", "imap-greeting"),
    "pop": ("pop-greeting", "pop-greeting"),
    "sip": ("sip-request", "sip-response"),
    "rsync": ("rsync-banner", "rsync-banner"),
    "ssdp": ("ssdp", "ssdp"),
    "bittorrent": ("bittorrent", "bittorrent"),
    "redis": ("redis-command", "redis-reply"),
    "rdp": ("rdp", "rdp"),
}
