"""Flows by five-tuple: who opened one, which way a packet goes, and captures split into single flows.

A flow's two ends are one however they are turned. Its originator is who sent a SYN without ACK; of a flow that is met
in the middle, whoever answers from a port below 1024 is the responder, else the first speaker is the originator.
Memory is bounded: beyond `max_flows` the flow silent for longest is forgotten, and is a new one when it speaks again.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from netssmd.packet.wire import ACK, ARP, NOT_IP, OPAQUE, SYN, TCP, Headers

MAX_FLOWS: Final = 1024
Item = TypeVar("Item")
FlowKey = tuple[int, bytes, int, bytes, int]


def flow_key(headers: Headers) -> FlowKey | None:
    """The five-tuple with its ends in order; None for what has no ports."""
    if headers.version == NOT_IP or headers.version == ARP or headers.transport == OPAQUE:
        return None
    near, far = (headers.src, headers.sport), (headers.dst, headers.dport)
    if far < near:
        near, far = far, near
    return headers.protocol, near[0], near[1], far[0], far[1]


class FlowTable:
    """Numbers flows as they appear."""

    __slots__ = ("_flows", "max_flows", "opened")

    def __init__(self, max_flows: int = MAX_FLOWS) -> None:
        self.max_flows: int = max_flows
        self.opened: int = 0
        self._flows: dict[FlowKey, list[int]] = {}  # [number, 1 if the key's first end is the originator]

    def find(self, headers: Headers, key: FlowKey) -> tuple[int, int, bool]:
        """The packet's flow number, its direction (0 from the originator), and whether the flow is new."""
        entry = self._flows.pop(key, None)
        new = entry is None
        first_speaks = (headers.src, headers.sport) == (key[1], key[2])
        if entry is None:
            if len(self._flows) >= self.max_flows:
                del self._flows[next(iter(self._flows))]
            entry = [self.opened, int(first_speaks == _opens(headers))]
            self.opened += 1
        self._flows[key] = entry
        return entry[0], int(first_speaks != bool(entry[1])), new


def _opens(headers: Headers) -> bool:
    """Is the sender of a flow's first known packet its originator?"""
    if headers.transport == TCP and headers.flags & SYN:
        return not headers.flags & ACK
    return not headers.sport < 1024 <= headers.dport


class FlowSplitter(Generic[Item]):
    """Packets of one capture in, the packets of its flows out, each flow when it is over or there is no room for it.

    Arguments: max_flows: flows held at once. max_held: packets held at once, over all flows. A flow that had to go is
    given out as far as it came, and begins anew if it speaks again.
    """

    def __init__(self, max_flows: int = MAX_FLOWS, max_held: int = 1 << 20) -> None:
        self.max_flows: int = max_flows
        self.max_held: int = max_held
        self.held: int = 0
        self._flows: dict[FlowKey, list[Item]] = {}  # the one silent for longest first

    def add(self, key: FlowKey, item: Item) -> list[list[Item]]:
        """Take a packet; the flows that had to go for it."""
        out: list[list[Item]] = []
        flow = self._flows.pop(key, None)
        while self._flows and (self.held >= self.max_held or (flow is None and len(self._flows) >= self.max_flows)):
            gone = self._flows.pop(next(iter(self._flows)))
            self.held -= len(gone)
            out.append(gone)
        if flow is not None and self.held >= self.max_held:  # it alone fills the room
            self.held -= len(flow)
            out.append(flow)
            flow = None
        if flow is None:
            flow = []
        flow.append(item)
        self.held += 1
        self._flows[key] = flow
        return out

    def rest(self) -> list[list[Item]]:
        """The flows still held, at the end of the capture."""
        out = list(self._flows.values())
        self._flows = {}
        self.held = 0
        return out
