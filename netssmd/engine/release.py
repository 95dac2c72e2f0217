"""Packets of many sessions into one stream in time order: a heap, and how far each engine thread has come.

Every engine says from time to time "all that I still send is at `floor` or later" (its floor: the earliest clock of its
sessions). What lies before the lowest floor can go out in order, for good. Ties go by session number, then by the order
in which a session sent them, so the merged stream of the same sessions is the same whatever the threads did.
"""

from __future__ import annotations

import heapq

from netssmd.engine.session import OutPacket

Item = tuple[int, int, int, OutPacket]  # ts_ns, session number, order within the session's arrivals, packet


class Release:
    """The ordered merge. Not thread-safe: one output thread owns it."""

    def __init__(self) -> None:
        self._heap: list[Item] = []
        self._arrivals = 0
        self.released_ns = 0  # nothing earlier than this may still arrive

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, packets: list[OutPacket]) -> None:
        """Take packets in any order across sessions, in order within each. Raises ValueError for one that comes after
        its time has gone."""
        for packet in packets:
            if packet.ts_ns < self.released_ns:
                late = self.released_ns - packet.ts_ns
                raise ValueError(
                    f"packet of session {packet.session.number} is {late} ns before what was released already"
                )
            self._arrivals += 1
            heapq.heappush(self._heap, (packet.ts_ns, packet.session.number, self._arrivals, packet))

    def held(self) -> list[OutPacket]:
        """The packets held, in the order in which they will go out; they stay."""
        return [item[3] for item in sorted(self._heap)]

    @property
    def next_ns(self) -> int | None:
        """Time of the earliest packet held."""
        return self._heap[0][0] if self._heap else None

    def up_to(self, floor_ns: int, now_ns: int | None = None, limit: int = 0) -> list[OutPacket]:
        """The packets before `floor_ns` (the lowest floor of all engines) that are due at `now_ns` (None: at once), in
        order; at most `limit` of them (0: all)."""
        out: list[OutPacket] = []
        heap = self._heap
        while heap and heap[0][0] < floor_ns and (now_ns is None or heap[0][0] <= now_ns):
            if limit and len(out) >= limit:
                break
            out.append(heapq.heappop(heap)[3])
        reached = floor_ns if now_ns is None else min(floor_ns, now_ns + 1)
        if heap:
            reached = min(reached, heap[0][0])
        self.released_ns = max(self.released_ns, reached)
        return out

    def rest(self) -> list[OutPacket]:
        """All that is held, in order: when no engine sends any more."""
        return self.up_to(1 << 64)
