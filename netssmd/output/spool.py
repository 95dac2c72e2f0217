"""Sessions on their way into one capture: each is spooled to a file of its own while it is generated, then all are
merged by time.

In: packets of one session, in order. Out: the same packets of all sessions, in order of (time, session). Memory holds
one packet of each session, whatever their length; the merge runs in rounds, so that thousands of sessions need few open
files.

    record = ts_ns(8) orig_len(4) caplen(4) found(8) planted(1) direction(1) flow length(1) | flow | data
    flow   = protocol(1) address length(1) source sport(2) destination dport(2)        empty: no five-tuple

Little-endian; `planted` is a place in the table of mutants, counted from 1.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from netssmd.output.ledger import FlowKey
from netssmd.packet.mutants import MUTANTS

_RECORD: Final = struct.Struct("<qIIQBBB")
_FLOW: Final = struct.Struct("<BB")
_PORT: Final = struct.Struct("<H")
_ORDER: Final = struct.Struct("<I")
_PLANTED: Final = ("", *(mutant.name for mutant in MUTANTS))
_PLACE: Final = {name: place for place, name in enumerate(_PLANTED)}
MAX_OPEN: Final = 200


class Spooled(NamedTuple):
    """One packet; `order` is the number of its session's file among those that are merged. `found` and `planted`: see
    engine.session.OutPacket."""

    ts_ns: int
    order: int
    data: bytes
    orig_len: int
    flow: FlowKey | None
    direction: int
    found: int = 0
    planted: str = ""


class SpoolWriter:
    """Writes one session to an open binary file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._flow: FlowKey | None = None
        self._packed = b""

    def write(
        self, ts_ns: int, data: bytes, orig_len: int, flow: FlowKey | None, direction: int, found: int = 0,
        planted: str = "",
    ) -> None:  # fmt: skip
        """One packet, not earlier than the one before."""
        if flow != self._flow:
            self._flow, self._packed = flow, _pack_flow(flow)
        head = _RECORD.pack(ts_ns, orig_len, len(data), found, _PLACE[planted], direction, len(self._packed))
        self._file.write(head + self._packed + data)


def _pack_flow(flow: FlowKey | None) -> bytes:
    if flow is None:
        return b""
    protocol, source, sport, target, dport = flow
    return _FLOW.pack(protocol, len(source)) + source + _PORT.pack(sport) + target + _PORT.pack(dport)


def _unpack_flow(packed: bytes) -> FlowKey:
    protocol, size = _FLOW.unpack_from(packed)
    at = _FLOW.size + size
    (sport,), (dport,) = _PORT.unpack_from(packed, at), _PORT.unpack_from(packed, at + 2 + size)
    return protocol, packed[_FLOW.size : at], sport, packed[at + 2 : at + 2 + size], dport


def read_spool(file: BinaryIO, order: int) -> Iterator[Spooled]:
    """The packets of one spool file."""
    flows: dict[bytes, FlowKey] = {}
    while head := file.read(_RECORD.size):
        ts_ns, orig_len, caplen, found, planted, direction, flow_len = _RECORD.unpack(head)
        packed = file.read(flow_len)
        flow = None
        if packed:
            flow = flows.get(packed)
            if flow is None:
                if len(flows) > 10_000:  # a scan: forget rather than grow
                    flows.clear()
                flow = flows[packed] = _unpack_flow(packed)
        yield Spooled(ts_ns, order, file.read(caplen), orig_len, flow, direction, found, _PLANTED[planted])


def merge(paths: Sequence[Path], work: Path) -> Iterator[Spooled]:
    """All packets in order of (time, place in `paths`, place in the file). `work`: a folder for what the rounds before
    the last write."""
    if len(paths) > MAX_OPEN * MAX_OPEN:
        raise ValueError(f"{len(paths)} sessions are more than {MAX_OPEN * MAX_OPEN}, the most that are merged")
    if len(paths) <= MAX_OPEN:
        yield from _merge(list(enumerate(paths)))
        return
    pieces: list[tuple[Path, Path]] = []
    for first in range(0, len(paths), MAX_OPEN):
        piece = work / f"piece-{first}", work / f"piece-{first}.orders"
        with open(piece[0], "wb") as out, open(piece[1], "wb") as orders:
            writer = SpoolWriter(out)
            for packet in _merge(list(enumerate(paths[first : first + MAX_OPEN], first))):
                ts_ns, order, data, orig_len, flow, direction, found, planted = packet
                writer.write(ts_ns, data, orig_len, flow, direction, found, planted)
                orders.write(_ORDER.pack(order))
        pieces.append(piece)
    with ExitStack() as stack:
        streams = [
            _ordered(stack.enter_context(open(piece, "rb")), stack.enter_context(open(orders, "rb")))
            for piece, orders in pieces
        ]
        yield from heapq.merge(*streams, key=_time_then_order)


def _merge(files: list[tuple[int, Path]]) -> Iterator[Spooled]:
    with ExitStack() as stack:
        streams = [read_spool(stack.enter_context(open(path, "rb")), order) for order, path in files]
        yield from heapq.merge(*streams, key=_time_then_order)


def _ordered(piece: BinaryIO, orders: BinaryIO) -> Iterator[Spooled]:
    """The packets of a merged piece, each with the order that it had."""
    for packet in read_spool(piece, 0):
        yield packet._replace(order=_ORDER.unpack(orders.read(_ORDER.size))[0])


def _time_then_order(packet: Spooled) -> tuple[int, int]:
    return packet.ts_ns, packet.order
