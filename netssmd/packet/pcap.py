"""Capture files: records in and out.

In: an open binary file holding PCAP or PCAPNG, plain, gzip or zstd (told apart by their first bytes).
Out: `Packet` records, always Ethernet frames with integer nanoseconds; and back, PCAP written to an open binary file.

Other link types get a synthesized Ethernet header in place of their own. Its addresses follow from the IP addresses
inside, so that a host keeps one locally administered address in both directions; `orig_len` is adjusted to it.

Damage ends a capture, it never hides what came before: every whole record before it is yielded, then `CaptureError`
names the byte offset (counted in the decompressed stream). No length field is believed before it was checked, and
memory is taken only for bytes that are there.

Sources: draft-ietf-opsawg-pcap (magic numbers, records), draft-ietf-opsawg-pcapng (blocks, if_tsresol, if_tsoffset),
the LINKTYPE_ registry of tcpdump.org, RFC 1112 and RFC 2464 (multicast MAC addresses).

::

    PCAP     magic(4) major(2) minor(2) zone(4) sigfigs(4) snaplen(4) linktype(4) | record*
    record   seconds(4) fraction(4) incl_len(4) orig_len(4) data(incl_len)
    PCAPNG   block*;  block = type(4) length(4) body(length - 12) length(4);  a section header block sets the byte order
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

from netssmd.errors import CaptureError, OutputError

MAX_SNAPLEN: Final = 262_144
"""Most bytes of a packet that anybody captures (libpcap's MAXIMUM_SNAPLEN)."""

LINKTYPE_ETHERNET: Final = 1
RECORD_HEADER_BYTES: Final = 16
FILE_HEADER_BYTES: Final = 24

_MAX_CAPLEN: Final = MAX_SNAPLEN + 1024  # room for a pseudo header on top of the largest snaplen
_MAX_BLOCK: Final = 16 << 20  # what Wireshark accepts as one PCAPNG block
_CHUNK: Final = 256 << 10
_SECOND: Final = 1_000_000_000
_CUT: Final = "copy the file again, or use what is before it"


class Packet(NamedTuple):
    """One captured or rendered frame: capture time in nanoseconds, the bytes kept, and the length on the wire."""

    ts_ns: int
    data: bytes
    orig_len: int


# ---------------------------------------------------------------------------------------------------------------- links

_ETHERNET_BYTES: Final = 14
_IPV4: Final = b"\x08\x00"
_IPV6: Final = b"\x86\xdd"
_NO_ETHERTYPE: Final = b"\xff\xff"  # reserved (RFC 1701): a payload that says of itself neither IPv4 nor IPv6
_BROADCAST: Final = b"\xff" * 6
_HERE: Final = b"\x02\x00\x00\x00\x00\x01"
_THERE: Final = b"\x02\x00\x00\x00\x00\x02"
_COOKED_BROADCAST: Final = 1  # packet types of Linux cooked captures
_COOKED_MULTICAST: Final = 2


def _mac_of(address: bytes) -> bytes:
    """A MAC address for an IP address: the mapped one for multicast, a locally administered one otherwise."""
    if len(address) == 4:
        if address[0] >> 4 == 14:
            return bytes((0x01, 0x00, 0x5E, address[1] & 0x7F)) + address[2:]
        return _BROADCAST if address == b"\xff\xff\xff\xff" else b"\x02\x00" + address
    if address[0] == 0xFF:
        return b"\x33\x33" + address[12:]
    return b"\x02\x06" + zlib.crc32(address).to_bytes(4, "big")


def _ethernet(ethertype: bytes, body: bytes, source: bytes = _HERE, packet_type: int = 0) -> bytes:
    """An Ethernet header (14 bytes) for `body`, whose own link header told its type and perhaps its sender."""
    if ethertype == _IPV4 and len(body) >= 20:
        target = _BROADCAST if packet_type == _COOKED_BROADCAST else _mac_of(body[16:20])
        return target + _mac_of(body[12:16]) + ethertype
    if ethertype == _IPV6 and len(body) >= 40:
        return _mac_of(body[24:40]) + _mac_of(body[8:24]) + ethertype
    if packet_type in (_COOKED_BROADCAST, _COOKED_MULTICAST):
        return _BROADCAST + source + ethertype
    return _THERE + source + ethertype


def _from_raw(data: bytes) -> bytes:
    version = data[0] >> 4 if data else 0
    return _ethernet(_IPV4 if version == 4 else _IPV6 if version == 6 else _NO_ETHERTYPE, data)


def _from_ipv4(data: bytes) -> bytes:
    return _ethernet(_IPV4, data)


def _from_ipv6(data: bytes) -> bytes:
    return _ethernet(_IPV6, data)


_INET6_FAMILIES: Final = (10, 24, 28, 30)  # Linux, NetBSD and OpenBSD, FreeBSD, macOS


def _from_loopback(data: bytes) -> bytes:
    """The address family is in the byte order of the capturing host; families are small numbers, so either is told."""
    family = int.from_bytes(data[:4], "little")
    if family > 0xFFFF:
        family = int.from_bytes(data[:4], "big")
    ethertype = _IPV4 if family == 2 else _IPV6 if family in _INET6_FAMILIES else _NO_ETHERTYPE
    return _ethernet(ethertype, data[4:])


def _cooked(protocol: bytes, address: bytes, address_len: int, packet_type: int, body: bytes) -> bytes:
    if protocol < b"\x06\x00":  # not an ethertype: 802.3 or 802.2 frames, whose Ethernet header holds a length
        protocol = min(len(body), 1500).to_bytes(2, "big")
    return _ethernet(protocol, body, address[:6] if address_len == 6 else _HERE, packet_type)


def _from_sll(data: bytes) -> bytes:
    return _cooked(data[14:16], data[6:14], data[5], data[1], data[16:])


def _from_sll2(data: bytes) -> bytes:
    return _cooked(data[0:2], data[12:20], data[11], data[10], data[20:])


class _Link(NamedTuple):
    """How one link type becomes Ethernet: `header_bytes` are replaced by what `ethernet(data)` returns (14 bytes)."""

    name: str
    header_bytes: int
    ethernet: Callable[[bytes], bytes] | None


_LINKS: Final[dict[int, _Link]] = {
    LINKTYPE_ETHERNET: _Link("EN10MB", 14, None),
    0: _Link("NULL", 4, _from_loopback),
    108: _Link("LOOP", 4, _from_loopback),
    12: _Link("RAW", 0, _from_raw),
    14: _Link("RAW", 0, _from_raw),
    101: _Link("RAW", 0, _from_raw),
    113: _Link("LINUX_SLL", 16, _from_sll),
    228: _Link("IPV4", 0, _from_ipv4),
    229: _Link("IPV6", 0, _from_ipv6),
    276: _Link("LINUX_SLL2", 20, _from_sll2),
}


def _as_ethernet(link: _Link, ts_ns: int, data: bytes, orig_len: int) -> Packet:
    orig_len = max(orig_len - link.header_bytes, 0) + _ETHERNET_BYTES
    if link.ethernet is None or len(data) < link.header_bytes:  # cut inside its link header: nothing of it is known
        return Packet(ts_ns, b"", orig_len)
    frame = link.ethernet(data) + data[link.header_bytes :]
    return Packet(ts_ns, frame, max(orig_len, len(frame)))


# --------------------------------------------------------------------------------------------------------------- stream


class _Reader(Protocol):
    def read(self) -> bytes:
        """Some more bytes, b"" at the end; CaptureError where the stream is damaged."""


class _Plain:
    """The file itself; `head` was read already."""

    def __init__(self, file: BinaryIO, name: str, head: bytes = b"") -> None:
        self._file = file
        self._name = name
        self._head = head

    def read(self) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            return head
        try:
            return self._file.read(_CHUNK)
        except OSError as error:
            raise CaptureError(f"{self._name}: cannot be read: {error.strerror or error}") from error


class _Gzip:
    """gzip (RFC 1952), any number of members. What was intact before a damage is handed out first."""

    def __init__(self, source: _Reader, name: str) -> None:
        self._source = source
        self._name = name
        self._inflate: Any = None  # the member being read; None between members
        self._input = b""
        self._error = ""

    def read(self) -> bytes:
        while not self._error:
            if not self._input:
                self._input = self._source.read()
                if not self._input:
                    if self._inflate is None:
                        return b""
                    self._error = "the gzip stream is cut short"
                    break
            output = self._step()
            if output:
                return output
        raise CaptureError(f"{self._name}: {self._error}; copy the file again")

    def _step(self) -> bytes:
        if self._inflate is None:
            self._input = self._input.lstrip(b"\0")  # padding between members
            if not self._input:
                return b""
            self._inflate = zlib.decompressobj(wbits=31)
        before = self._inflate.copy()
        try:
            output: bytes = self._inflate.decompress(self._input, _CHUNK)
        except zlib.error as error:
            self._error = f"the gzip stream is damaged ({error})"
            return _before_damage(before, self._input)
        self._input = self._inflate.unconsumed_tail
        if self._inflate.eof:
            self._input = self._inflate.unused_data
            self._inflate = None
        return output


def _before_damage(inflate: Any, data: bytes) -> bytes:
    """What a decompressor gives for `data` before it fails, found byte by byte."""
    parts = []
    try:
        for i in range(len(data)):
            parts.append(inflate.decompress(data[i : i + 1]))
    except zlib.error:
        pass
    return b"".join(parts)


class _Zstd:
    """zstd (RFC 8878), any number of frames. Fed in small pieces: a few bytes of it can stand for megabytes."""

    _PIECE: Final = 512

    def __init__(self, source: _Reader, name: str) -> None:
        try:
            import zstandard
        except ImportError:
            raise CaptureError(f"{name}: zstd-compressed; install the Python package zstandard") from None
        self._source = source
        self._name = name
        self._decompressor = zstandard.ZstdDecompressor()
        self._failure: type[Exception] = zstandard.ZstdError
        self._frame: Any = None
        self._input = b""
        self._pos = 0

    def read(self) -> bytes:
        while True:
            if self._pos >= len(self._input):
                self._input, self._pos = self._source.read(), 0
                if not self._input:
                    if self._frame is None:
                        return b""
                    raise CaptureError(f"{self._name}: the zstd stream is cut short; copy the file again")
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            piece = self._input[self._pos : self._pos + self._PIECE]
            self._pos += len(piece)
            try:
                output: bytes = self._frame.decompress(piece)
            except self._failure as error:
                raise CaptureError(f"{self._name}: the zstd stream is damaged ({error}); copy it again") from error
            if self._frame.eof:
                self._pos -= len(self._frame.unused_data)
                self._frame = None
            if output:
                return output


class _Stream:
    """Bytes of a capture with their offset. The parsers hold the current block and their place in it as locals."""

    def __init__(self, reader: _Reader, name: str) -> None:
        self._reader = reader
        self.name = name
        self.base = 0  # offset of the first byte of the block handed out last

    def refill(self, block: bytes, pos: int, need: int) -> bytes:
        """The block from `pos` on with more behind it: at least `need` bytes, fewer only where the capture ends."""
        self.base += pos
        parts = [block[pos:]]
        have = len(parts[0])
        while have < need:
            more = self._reader.read()
            if not more:
                break
            parts.append(more)
            have += len(more)
        return b"".join(parts)

    def skip(self, block: bytes, pos: int, size: int) -> bytes:
        """The block behind the next `size` bytes, which are read but never held. CaptureError if they are not there."""
        start = self.base + pos
        while len(block) - pos < size:
            size -= len(block) - pos
            self.base += len(block)
            block, pos = self._reader.read(), 0
            if not block:
                raise self.error(start, f"a block is cut short, {size} bytes of it are missing", _CUT)
        self.base += pos + size
        return block[pos + size :]

    def error(self, offset: int, found: str, remedy: str = "the file is damaged from there on") -> CaptureError:
        return CaptureError(f"{self.name}: at byte {offset}: {found}; {remedy}")


# ---------------------------------------------------------------------------------------------------------------- read

_SECTION: Final = 0x0A0D_0D0A  # the same in both byte orders

# magic -> byte order, nanoseconds per unit of the fraction
_MAGICS: Final[dict[bytes, tuple[str, int]]] = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}


def read_capture(file: BinaryIO, name: str = "<capture>") -> Iterator[Packet]:
    """Read a capture as a stream of Ethernet frames.

    Arguments:
        file: Open binary file; need not be seekable. It is not closed.
        name: What to call it in errors.
    Raises:
        CaptureError: Not a capture, damaged, cut short, or of a link type we do not read. Everything before is yielded.
    """
    plain = _Plain(file, name)
    head = b""
    while len(head) < 4 and (more := plain.read()):
        head += more
    reader: _Reader = _Plain(file, name, head)
    if head[:2] == b"\x1f\x8b":
        reader = _Gzip(reader, name)
    elif head[:4] == b"\x28\xb5\x2f\xfd":
        reader = _Zstd(reader, name)
    stream = _Stream(reader, name)
    block = stream.refill(b"", 0, 4)
    magic = block[:4]
    if magic == _SECTION.to_bytes(4, "big"):
        return (yield from _read_pcapng(stream, block))
    if magic in _MAGICS:
        return (yield from _read_pcap(stream, block))
    if not block:
        raise CaptureError(f"{name}: empty file; expected a PCAP or PCAPNG capture")
    raise CaptureError(
        f"{name}: not a capture: it begins with {magic.hex(' ')}; expected PCAP or PCAPNG, plain or in gzip or zstd"
    )


def _link(stream: _Stream, number: int, offset: int) -> _Link:
    link = _LINKS.get(number)
    if link is None:
        known = ", ".join(f"{row.name} {key}" for key, row in _LINKS.items())
        raise stream.error(offset, f"link type {number} is not read", f"readable are {known}")
    return link


def _too_long(stream: _Stream, offset: int, caplen: int) -> CaptureError:
    return stream.error(offset, f"a packet of {caplen} bytes is claimed, more than {_MAX_CAPLEN}")


def _read_pcap(stream: _Stream, block: bytes) -> Iterator[Packet]:
    block = stream.refill(block, 0, FILE_HEADER_BYTES)
    if len(block) < FILE_HEADER_BYTES:
        raise stream.error(0, f"the file header is cut short at byte {len(block)}", _CUT)
    order, scale = _MAGICS[block[:4]]
    major, minor, _, _, _, linktype = struct.unpack_from(order + "HHIIII", block, 4)
    if major != 2:
        raise stream.error(4, f"PCAP version {major}.{minor}", "version 2 is read")
    link = _link(stream, linktype & 0x03FF_FFFF, 20)  # the high bits tell the length of a frame check sequence
    plain = link.ethernet is None
    unpack = struct.Struct(order + "IIII").unpack_from
    pos = FILE_HEADER_BYTES
    size = len(block)
    while True:
        start = pos + RECORD_HEADER_BYTES
        if start > size:
            block = stream.refill(block, pos, RECORD_HEADER_BYTES)
            pos, start, size = 0, RECORD_HEADER_BYTES, len(block)
            if size < start:
                break
        seconds, fraction, caplen, orig_len = unpack(block, pos)
        stop = start + caplen
        if stop > size:
            if caplen > _MAX_CAPLEN:
                raise _too_long(stream, stream.base + pos, caplen)
            block = stream.refill(block, pos, RECORD_HEADER_BYTES + caplen)
            pos, start, stop, size = 0, RECORD_HEADER_BYTES, RECORD_HEADER_BYTES + caplen, len(block)
            if stop > size:
                break
        elif caplen > _MAX_CAPLEN:
            raise _too_long(stream, stream.base + pos, caplen)
        ts_ns = seconds * _SECOND + fraction * scale
        if orig_len < caplen:
            orig_len = caplen
        if plain:
            yield Packet(ts_ns, block[start:stop], orig_len)
        else:
            yield _as_ethernet(link, ts_ns, block[start:stop], orig_len)
        pos = stop
    if size:
        raise stream.error(stream.base, f"the last record is cut short, {size} bytes are left of it", _CUT)


_BLOCK_INTERFACE: Final = 1
_BLOCK_OLD_PACKET: Final = 2
_BLOCK_SIMPLE_PACKET: Final = 3
_BLOCK_PACKET: Final = 6
_OPTION_END: Final = 0
_OPTION_TSRESOL: Final = 9
_OPTION_TSOFFSET: Final = 14
_READ_BLOCKS: Final = (_BLOCK_PACKET, _BLOCK_SIMPLE_PACKET, _BLOCK_OLD_PACKET, _BLOCK_INTERFACE, _SECTION)


class _Interface(NamedTuple):
    linktype: int
    snaplen: int
    multiplier: int  # ts_ns = units * multiplier // divisor + offset_ns
    divisor: int
    offset_ns: int


class _Order(NamedTuple):
    """The structures of a section in its byte order."""

    words: Callable[..., tuple[Any, ...]]  # type, length
    packet: Callable[..., tuple[Any, ...]]  # interface, time high, time low, incl_len, orig_len
    old_packet: Callable[..., tuple[Any, ...]]  # interface, drops, time high, time low, incl_len, orig_len
    interface: Callable[..., tuple[Any, ...]]  # linktype, reserved, snaplen
    option: Callable[..., tuple[Any, ...]]  # code, length
    signed: Callable[..., tuple[Any, ...]]


def _in_order(order: str) -> _Order:
    formats = ("II", "IIIII", "HHIIII", "HHI", "HH", "q")
    return _Order(*(struct.Struct(order + text).unpack_from for text in formats))


_ORDERS: Final = {b"\x4d\x3c\x2b\x1a": _in_order("<"), b"\x1a\x2b\x3c\x4d": _in_order(">")}


def _read_pcapng(stream: _Stream, block: bytes) -> Iterator[Packet]:
    order = _ORDERS[b"\x4d\x3c\x2b\x1a"]
    words = order.words
    interfaces: list[_Interface] = []
    ts_ns = 0
    pos = 0
    while True:
        if len(block) - pos < 12:
            block, pos = stream.refill(block, pos, 12), 0
            if len(block) < 12:
                break
        offset = stream.base + pos
        kind, length = words(block, pos)
        least = 12
        if kind == _SECTION:
            order = _section_order(stream, block, pos)
            words = order.words
            kind, length = words(block, pos)
            least = 28
            interfaces = []
            ts_ns = 0
        if length < least or length % 4:
            raise stream.error(offset, f"a block of {length} bytes is claimed")
        if kind not in _READ_BLOCKS:
            block, pos = stream.skip(block, pos, length), 0
            continue
        if length > _MAX_BLOCK:
            raise stream.error(offset, f"a block of {length} bytes is claimed, more than {_MAX_BLOCK}")
        if len(block) - pos < length:
            block, pos = stream.refill(block, pos, length), 0
            if len(block) < length:
                break
        end = pos + length - 4
        if block[end : end + 4] != block[pos + 4 : pos + 8]:
            raise stream.error(offset, "the two lengths of a block differ")
        if kind in (_BLOCK_PACKET, _BLOCK_OLD_PACKET):
            if length < 32:
                raise stream.error(offset, f"a packet block of {length} bytes", "32 are the least")
            if kind == _BLOCK_PACKET:
                number, high, low, caplen, orig_len = order.packet(block, pos + 8)
            else:
                number, _, high, low, caplen, orig_len = order.old_packet(block, pos + 8)
            if number >= len(interfaces):
                raise stream.error(offset, f"interface {number} of {len(interfaces)}")
            interface = interfaces[number]
            units = high << 32 | low
            ts_ns = units * interface.multiplier // interface.divisor + interface.offset_ns
            start = pos + 28
        elif kind == _BLOCK_SIMPLE_PACKET:
            if length < 16 or not interfaces:
                raise stream.error(offset, "a simple packet block without length or interface")
            interface = interfaces[0]
            orig_len = order.words(block, pos + 4)[1]
            caplen = min(orig_len, interface.snaplen or orig_len, length - 16)
            start = pos + 12
        else:
            if kind == _BLOCK_INTERFACE:
                interfaces.append(_read_interface(stream, order, block, pos, end))
            pos = end + 4
            continue
        if caplen > _MAX_CAPLEN:
            raise _too_long(stream, offset, caplen)
        if start + caplen > end:
            raise stream.error(offset, f"a packet of {caplen} bytes in a block of {length}")
        data = block[start : start + caplen]
        pos = end + 4
        if orig_len < caplen:
            orig_len = caplen
        if interface.linktype == LINKTYPE_ETHERNET:
            yield Packet(ts_ns, data, orig_len)
        else:
            yield _as_ethernet(_link(stream, interface.linktype, offset), ts_ns, data, orig_len)
    if block:
        raise stream.error(stream.base, f"the last block is cut short, {len(block)} bytes are left of it", _CUT)


def _section_order(stream: _Stream, block: bytes, pos: int) -> _Order:
    order = _ORDERS.get(block[pos + 8 : pos + 12])
    if order is None:
        found = block[pos + 8 : pos + 12].hex(" ")
        raise stream.error(stream.base + pos + 8, f"byte-order magic {found}", "expected 1a 2b 3c 4d, either way round")
    return order


def _read_interface(stream: _Stream, order: _Order, block: bytes, pos: int, end: int) -> _Interface:
    """An interface description block: its link type and what its timestamps mean (default: microseconds)."""
    offset = stream.base + pos
    if end - pos < 16:
        raise stream.error(offset, "an interface block without its fields")
    linktype, _, snaplen = order.interface(block, pos + 8)
    multiplier, divisor, offset_ns = 1000, 1, 0
    pos += 16
    while pos + 4 <= end:
        code, length = order.option(block, pos)
        value = pos + 4
        if code == _OPTION_END:
            break
        if value + length > end:
            raise stream.error(offset, f"option {code} of an interface overruns its block")
        if code == _OPTION_TSRESOL and length >= 1:
            exponent = block[value] & 0x7F
            if block[value] & 0x80:
                multiplier, divisor = _SECOND, 1 << exponent
            else:
                multiplier, divisor = 10 ** max(9 - exponent, 0), 10 ** max(exponent - 9, 0)
        elif code == _OPTION_TSOFFSET and length >= 8:
            offset_ns = order.signed(block, value)[0] * _SECOND
        pos = value + (length + 3 & ~3)
    return _Interface(linktype, snaplen, multiplier, divisor, offset_ns)


# --------------------------------------------------------------------------------------------------------------- write

_RECORD: Final = struct.Struct("<IIII")
_LAST_SECOND: Final = 0xFFFF_FFFF


def file_header(snaplen: int = MAX_SNAPLEN, nanosecond: bool = True) -> bytes:
    """The 24 bytes before the first record: Ethernet, little endian."""
    magic = 0xA1B2_3C4D if nanosecond else 0xA1B2_C3D4
    return struct.pack("<IHHIIII", magic, 2, 4, 0, 0, snaplen or MAX_SNAPLEN, LINKTYPE_ETHERNET)


def record(packet: Packet, snaplen: int = MAX_SNAPLEN, unit_ns: int = 1) -> bytes:
    """A packet as a record: at most `snaplen` bytes of it (0: the most a reader accepts), time in units of `unit_ns`.

    Raises:
        OutputError: The time is outside of what the format holds (1970 to 2106).
    """
    ts_ns, data, orig_len = packet
    seconds, fraction = divmod(ts_ns, _SECOND)
    if len(data) > (snaplen or MAX_SNAPLEN):
        data = data[: snaplen or MAX_SNAPLEN]
    try:
        return _RECORD.pack(seconds, fraction // unit_ns, len(data), orig_len) + data
    except struct.error:
        raise _unwritable(packet) from None


def _unwritable(packet: Packet) -> OutputError:
    return OutputError(
        f"packet at {packet.ts_ns} ns, length {packet.orig_len}: PCAP holds times of 1970 to 2106, lengths below 4 GiB"
    )


class PcapWriter:
    """PCAP records to an open binary file, joined into large writes. `flush` before the file is closed; it stays open.

    Arguments:
        file: Open binary file, buffered or not.
        snaplen: Most bytes kept of a packet; `orig_len` stays true.
        nanosecond: Nanosecond timestamps (magic 0xa1b23c4d); otherwise microseconds, rounded down.
    """

    JOIN: Final = 1024

    def __init__(self, file: BinaryIO, snaplen: int = MAX_SNAPLEN, nanosecond: bool = True) -> None:
        self._file = file
        self._snaplen = snaplen or MAX_SNAPLEN
        self._unit_ns = 1 if nanosecond else 1000
        self._pending = [file_header(snaplen, nanosecond)]
        self.packets = 0

    def write(self, packet: Packet) -> None:
        self._pending.append(record(packet, self._snaplen, self._unit_ns))
        self.packets += 1
        if len(self._pending) >= self.JOIN:
            self.flush()

    def write_many(self, packets: Iterable[Packet]) -> None:
        pending, snaplen, unit_ns, join = self._pending, self._snaplen, self._unit_ns, self.JOIN
        for packet in packets:
            pending.append(record(packet, snaplen, unit_ns))
            self.packets += 1
            if len(pending) >= join:
                self.flush()

    def flush(self) -> None:
        """Hand everything to the file."""
        left = memoryview(b"".join(self._pending))
        self._pending.clear()
        while left:  # an unbuffered file may take a part only
            left = left[self._file.write(left) :]


# -------------------------------------------------------------------------------------------------------------- repair


def whole_records(file: BinaryIO) -> tuple[int, int]:
    """How much of a PCAP that was cut off while being written is whole.

    Sixteen zero bytes end it too: a file system that lost power leaves zeros where data had not arrived.

    Return: bytes up to the end of the last whole record, and their number; (0, 0) if not even the file header is.
    """
    stream = _Stream(_Plain(file, ""), "")
    block = stream.refill(b"", 0, FILE_HEADER_BYTES)
    if len(block) < FILE_HEADER_BYTES or block[:4] not in _MAGICS:
        return 0, 0
    unpack = struct.Struct(_MAGICS[block[:4]][0] + "IIII").unpack_from
    nothing = bytes(RECORD_HEADER_BYTES)
    pos = FILE_HEADER_BYTES
    packets = 0
    while True:
        if pos + RECORD_HEADER_BYTES > len(block):
            block, pos = stream.refill(block, pos, RECORD_HEADER_BYTES), 0
            if len(block) < RECORD_HEADER_BYTES:
                break
        caplen = unpack(block, pos)[2]
        need = RECORD_HEADER_BYTES + caplen
        if caplen > _MAX_CAPLEN or (caplen == 0 and block[pos : pos + RECORD_HEADER_BYTES] == nothing):
            break
        if pos + need > len(block):
            block, pos = stream.refill(block, pos, need), 0
            if len(block) < need:
                break
        pos += need
        packets += 1
    return stream.base + pos, packets
