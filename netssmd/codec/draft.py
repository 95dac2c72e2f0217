"""What a byte model will write next, guessed from what it wrote before: drafts for exact speculation.

In: the tokens of a session of the byte codec, as they come. Out: at any moment the bytes with which the packet under
way will most likely go on, its delimiter behind them. A guess costs nothing when it is wrong (engine/ahead.py), so this
knows the usual case of TCP and UDP only:

    who speaks      the direction that followed last time on the one that has just spoken, if it is new the other side,
                    else the latest ones; those that the bytes known so far contradict come last
    its packet      that direction's last one; of a direction that has not spoken, or only said SYN, the last packet
                    that came in the same situation in any flow: flags of its last one, of the other side's last one
    with            id       + the step between its last two                                       RFC 6864
                    seq      + payload, SYN and FIN of its last one                                RFC 9293 3.4
                    ack      the other side's next seq
                    TSecr    the other side's last TSval                                           RFC 7323 3
                    DNS id   the other side's
                    lengths, IP checksum, and the TCP checksum where there is no payload           RFC 1071

A packet that is no plain IPv4 or IPv6 packet with a TCP or UDP header is guessed to be followed by its like.
"""

from __future__ import annotations

from typing import Final

from netssmd.codec.byte_vocab import END, PKT, ByteVocabulary
from netssmd.packet.wire import ACK, FIN, SYN, TCP, UDP, checksum

MAX_VOICES: Final = 256
TRIED: Final = 6  # candidates for who speaks


class Shape:
    """Where a block's parts lie: the IP header begins behind 14 bytes of Ethernet; `transport` 0: it is not plain."""

    __slots__ = ("addresses", "protocol", "stamps", "transport", "version")

    def __init__(self, data: bytes | bytearray) -> None:
        self.version: int = 0
        self.protocol: int = 0
        self.addresses: int = 0
        self.transport: int = 0
        self.stamps: int = 0  # where TSval begins, 0 without
        ethertype = data[12] << 8 | data[13]
        if ethertype == 0x0800 and data[14] == 0x45:
            self.version, self.protocol, self.addresses, self.transport = 4, data[23], 26, 34
        elif ethertype == 0x86DD and data[14] >> 4 == 6:
            self.version, self.protocol, self.addresses, self.transport = 6, data[20], 22, 54
        if self.protocol == TCP and self.transport + 20 <= len(data):
            self.stamps = _stamps(data, self.transport)
        elif self.protocol != UDP or self.transport + 8 > len(data):
            self.transport = 0


def _stamps(data: bytes | bytearray, transport: int) -> int:
    """Where the timestamps option's TSval lies, 0 without (RFC 7323 section 3)."""
    at = transport + 20
    end = min(transport + (data[transport + 12] >> 4) * 4, len(data) - 9)
    while at < end:
        kind = data[at]
        if kind == 8:
            return at + 2
        if kind == 0 or (kind > 1 and data[at + 1] < 2):
            return 0
        at += 1 if kind == 1 else data[at + 1]
    return 0


class Voice:
    """One direction of a flow: its last packet, and what the next one of it counts from."""

    __slots__ = ("block", "flags", "id_step", "next_seq", "shape", "turn")

    def __init__(self, block: bytes, shape: Shape) -> None:
        self.block: bytes = block
        self.shape: Shape = shape
        self.id_step: int = 0
        self.next_seq: int = 0
        self.flags: int = 0
        self.turn: int = 0  # the packet's number in the session


class Drafter:
    """One session's. `known`: bytes of the packet under way."""

    __slots__ = ("_follows", "_guess", "_last", "_situations", "_sure", "_turn", "_voices", "known", "vocabulary")

    def __init__(self, vocabulary: ByteVocabulary) -> None:
        self.vocabulary: ByteVocabulary = vocabulary
        self.known: bytearray = bytearray()
        self._voices: dict[bytes, Voice] = {}  # the one silent for longest first
        self._follows: dict[bytes, bytes] = {}  # who spoke after whom, last time
        self._situations: dict[int, bytes] = {}  # the last packet that came in each
        self._last: bytes = b""  # who spoke last
        self._turn: int = 0
        self._guess: bytearray = bytearray()  # the packet under way; none before it is asked for
        self._sure: bool = True  # what is known of it came as guessed

    def take(self, token: int) -> None:
        """The next token of the session."""
        meaning = self.vocabulary.byte_of[token]
        if meaning < PKT:
            at = len(self.known)
            if at <= self.vocabulary.layout.packet_bytes:
                self.known.append(meaning)
            if at < len(self._guess) and self._guess[at] != meaning:
                self._sure = False
        elif meaning == PKT or meaning == END:
            if len(self.known) == self.vocabulary.layout.packet_bytes:
                self._learn(bytes(self.known))
            self.known = bytearray()
            self._guess = bytearray()
            self._sure = True

    def draft(self, most: int) -> list[int]:
        """The next tokens, up to the end of the packet under way; none where nothing can be said."""
        whole = self.vocabulary.layout.packet_bytes
        at = len(self.known)
        if at > whole or not self._voices:
            return []
        if not self._guess:
            self._guess = self._best()
        elif not self._sure:
            self._mend()
        self._sure = True
        ids = self.vocabulary.byte_ids
        tokens = [ids[self._guess[i]] for i in range(at, min(whole, at + most))]
        if len(tokens) < most:
            tokens.append(self.vocabulary.pkt)
        return tokens

    # --- what was said ------------------------------------------------------------------------------------------------

    def _learn(self, block: bytes) -> None:
        shape = Shape(block)
        at = shape.transport
        self._turn += 1
        name = block[:14] if not at else block[shape.addresses : at] + block[at : at + 4]
        voice = Voice(block, shape)
        voice.turn = self._turn
        before = self._voices.pop(name, None)
        if at and before is not None and shape.version == 4:
            step = (_number(block, 18, 2) - _number(before.block, 18, 2)) & 0xFFFF
            voice.id_step = step if step < 256 else 0
        if shape.protocol == TCP and at:
            voice.flags = block[at + 13]
            spoken = _payload_len(block, shape) + (voice.flags & SYN > 0) + (voice.flags & FIN > 0)
            voice.next_seq = (_number(block, at + 4, 4) + max(0, spoken)) & 0xFFFFFFFF
        if at:
            self._situations[_situation(before, self._voices.get(_turned(name)))] = block
        if len(self._voices) >= MAX_VOICES:
            del self._voices[next(iter(self._voices))]
        self._voices[name] = voice
        if len(self._follows) >= MAX_VOICES:
            del self._follows[next(iter(self._follows))]
        self._follows[self._last] = name
        self._last = name

    # --- what comes next ----------------------------------------------------------------------------------------------

    def _mend(self) -> None:
        """The guess after a byte that came otherwise: another flow's packet if that byte is of a flow's name, else the
        same one with what follows from the byte."""
        at = len(self.known)
        shape = Shape(self._guess)
        last = shape.transport + 4 if shape.transport else 14
        if at <= 14 or shape.addresses < at <= last:
            self._guess = self._best()
            return
        self._guess[:at] = self.known
        if shape.transport:
            _complete(self._guess, shape, at)
            self._guess[:at] = self.known

    def _best(self) -> bytearray:
        """The whole packet, what is known of it in its place."""
        best = bytearray()
        most = -1
        for name in self._candidates():
            guess = self._of_voice(name)
            if not guess:
                continue
            agreed = self._agreed(guess)
            if agreed > most:
                best, most = guess, agreed
                if agreed == 1000:
                    break
        at = len(self.known)
        best[:at] = self.known
        shape = Shape(best)
        if shape.transport:
            _complete(best, shape, at)
            best[:at] = self.known
        return best

    def _candidates(self) -> list[bytes]:
        """Who may speak, the likeliest first."""
        names = []
        expected = self._follows.get(self._last) or _turned(self._last)
        if expected and (expected in self._voices or _turned(expected) in self._voices):
            names.append(expected)
        for name in reversed(self._voices):
            if len(names) >= TRIED:
                break
            if name not in names:
                names.append(name)
            other = _turned(name)
            if other and other not in names:
                names.append(other)
        names.append(b"")  # a new flow
        return names

    def _agreed(self, guess: bytearray) -> int:
        """How many of the bytes that name a flow agree before the first that does not; 1000: all that are known."""
        known = self.known
        if not known:
            return 1000
        shape = Shape(guess)
        count = 0
        for first, last in ((0, 14), (shape.addresses, shape.transport + 4 if shape.transport else 0)):
            for i in range(first, min(last, len(known))):
                if guess[i] != known[i]:
                    return count
                count += 1
        return 1000

    def _of_voice(self, name: bytes) -> bytearray:
        """The packet that this direction would send now."""
        own = self._voices.get(name)
        other_name = _turned(name)
        other = self._voices.get(other_name) if other_name else None
        if own is not None and not own.flags & SYN:
            guess = bytearray(own.block)
        else:
            guess = self._in_situation(own, other)
        if own is None and other is None:
            return guess
        shape = Shape(guess)
        at = shape.transport
        if not at or at != (own or other).shape.transport:  # type: ignore[union-attr]
            return bytearray((own or other).block)  # type: ignore[union-attr]
        _name_ends(guess, shape, own, other)
        if own is not None and shape.version == 4:
            _put(guess, 18, 2, _number(own.block, 18, 2) + own.id_step)
        if shape.protocol == UDP:
            if other is not None and (own is None or other.turn > own.turn):
                guess[at + 8 : at + 10] = other.block[at + 8 : at + 10]
            return guess
        if own is not None:
            _put(guess, at + 4, 4, own.next_seq)
        if other is not None and guess[at + 13] & ACK:
            _put(guess, at + 8, 4, other.next_seq)
            if shape.stamps and other.shape.stamps:
                stamp = other.shape.stamps
                guess[shape.stamps + 4 : shape.stamps + 8] = other.block[stamp : stamp + 4]
        if own is not None and shape.stamps and own.shape.stamps:
            guess[shape.stamps : shape.stamps + 4] = own.block[own.shape.stamps : own.shape.stamps + 4]
        return guess

    def _in_situation(self, own: Voice | None, other: Voice | None) -> bytearray:
        """The last packet that came where this one would come; else this side's last, or the other's."""
        found = self._situations.get(_situation(own, other))
        if found is None:
            found = own.block if own is not None else other.block if other is not None else b""
        return bytearray(found)


def _situation(own: Voice | None, other: Voice | None) -> int:
    """Flags of a direction's last packet and of the other's, and which was the later one."""
    a = 256 if own is None else own.flags
    b = 256 if other is None else other.flags
    protocol = own.shape.protocol if own is not None else other.shape.protocol if other is not None else 0
    later = own is not None and other is not None and own.turn > other.turn
    return (a << 9 | b) << 9 | protocol << 1 | later


def _turned(name: bytes) -> bytes:
    """The other direction of a flow; nothing for what is none."""
    half = (len(name) - 4) // 2
    if half != 4 and half != 16:
        return b""
    return name[half : 2 * half] + name[:half] + name[2 * half + 2 :] + name[2 * half : 2 * half + 2]


def _name_ends(guess: bytearray, shape: Shape, own: Voice | None, other: Voice | None) -> None:
    """Put a direction's MACs, addresses, TTL and ports into the guess, from its own last packet or the other's."""
    at = shape.transport
    half = (at - shape.addresses) // 2
    if own is not None:
        guess[:14] = own.block[:14]
        guess[shape.addresses : at + 4] = own.block[shape.addresses : at + 4]
        hops = 22 if shape.version == 4 else 21
        guess[hops] = own.block[hops]
    elif other is not None:
        block = other.block
        guess[:12] = block[6:12] + block[:6]
        guess[shape.addresses : at] = block[at - half : at] + block[shape.addresses : at - half]
        guess[at : at + 4] = block[at + 2 : at + 4] + block[at : at + 2]


def _complete(guess: bytearray, shape: Shape, known: int) -> None:
    """Lengths and checksums that follow from the rest, where they are not known yet."""
    at = shape.transport
    if shape.protocol == UDP:
        if known < at + 6:
            end = _number(guess, 16, 2) + 14 if shape.version == 4 else _number(guess, 18, 2) + 54
            _put(guess, at + 4, 2, max(8, end - at))
    elif known < at + 18 and _payload_len(guess, shape) == 0:
        size = (guess[at + 12] >> 4) * 4
        guess[at + 16 : at + 18] = b"\0\0"
        pseudo = bytes(guess[shape.addresses : at]) + bytes((0, TCP, size >> 8, size & 255))
        _put(guess, at + 16, 2, checksum(pseudo + bytes(guess[at : at + size])))
    if shape.version == 4 and known < 26:
        guess[24:26] = b"\0\0"
        _put(guess, 24, 2, checksum(bytes(guess[14:34])))


def _payload_len(block: bytes | bytearray, shape: Shape) -> int:
    """Bytes behind the TCP header by the IP length."""
    at = shape.transport
    end = _number(block, 16, 2) + 14 if shape.version == 4 else _number(block, 18, 2) + 54
    return end - at - (block[at + 12] >> 4) * 4


def _number(data: bytes | bytearray, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _put(data: bytearray, at: int, size: int, value: int) -> None:
    data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "big")
