"""Packets of many sessions into one stream in time order: a queue for each session, and how far each engine thread has
come.

Every engine says from time to time "all that I still send is at `floor` or later" (its floor: the earliest clock of its
sessions). What lies before the lowest floor can go out in order, for good. Ties go by session number, then by the order
in which a session sent them, so the merged stream of the same sessions is the same whatever the threads did.
"""

from __future__ import annotations

import heapq
from collections import deque

from netssmd.engine.session import OutPacket


class Release:
    """The ordered merge. Not thread-safe: one output thread owns it."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[OutPacket]] = {}  # by session number; none is empty
        self._heads: list[tuple[int, int]] = []  # a heap: time of a queue's first packet, session number
        self._held = 0
        self.released_ns = 0  # nothing earlier than this may still arrive

    def __len__(self) -> int:
        return self._held

    def add(self, packets: list[OutPacket]) -> None:
        """Take packets in any order across sessions, in order within each. Raises ValueError for one that comes after
        its time has gone, or after a later one of its session."""
        queues = self._queues
        for packet in packets:
            ts_ns, number = packet.ts_ns, packet.session.number
            queue = queues.get(number)
            last_ns = self.released_ns if queue is None else queue[-1].ts_ns
            if ts_ns < last_ns:
                before = "what was released already" if queue is None else "its last one"
                raise ValueError(f"packet of session {number} is {last_ns - ts_ns} ns before {before}")
            if queue is None:
                queues[number] = deque((packet,))
                heapq.heappush(self._heads, (ts_ns, number))
            else:
                queue.append(packet)
            self._held += 1

    def held(self) -> list[OutPacket]:
        """The packets held, in the order in which they will go out; they stay."""
        packets = [packet for _, queue in sorted(self._queues.items()) for packet in queue]
        packets.sort(key=lambda packet: packet.ts_ns)  # stable
        return packets

    @property
    def next_ns(self) -> int | None:
        """Time of the earliest packet held."""
        return self._heads[0][0] if self._heads else None

    def up_to(self, floor_ns: int, now_ns: int | None = None, limit: int = 0) -> list[OutPacket]:
        """The packets before `floor_ns` (the lowest floor of all engines) that are due at `now_ns` (None: at once), in
        order; at most `limit` of them (0: all)."""
        out: list[OutPacket] = []
        heads, queues = self._heads, self._queues
        reached = floor_ns if now_ns is None else min(floor_ns, now_ns + 1)
        while heads and heads[0][0] < reached and (not limit or len(out) < limit):
            number = heads[0][1]
            queue = queues[number]
            out.append(queue.popleft())
            if queue:
                heapq.heapreplace(heads, (queue[0].ts_ns, number))
            else:
                heapq.heappop(heads)
                del queues[number]
        self._held -= len(out)
        if heads:
            reached = min(reached, heads[0][0])
        self.released_ns = max(self.released_ns, reached)
        return out

    def rest(self) -> list[OutPacket]:
        """All that is held, in order: when no engine sends any more."""
        return self.up_to(1 << 64)
