"""An access link in user space: frames of two TAPs go to each other late, spaced, and not all of them.

In: frames of either end and the time. Out: frames for the other end, when due. `Link` is pure (time and generator come
in); `forward` is the loop around it that a process of its own runs. Kernels without sch_netem are many, TAPs are
everywhere, and a TAP has no offloads, so what is captured there has the sizes of the wire.

Each way is a token bucket with a finite queue (tail drop), then a constant delay of half the RTT with jitter, then
random loss. The bucket is kept as the time at which the queue will be empty, so a frame costs no timer. Jitter moves a
frame against its neighbours but never past them, unless `reorder_pct` asks for it. ARP, neighbour discovery and what
the gateway itself says or hears (its DNS) stay on the LAN: a fraction of a millisecond, no loss.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import random
import select
import signal
import time
from dataclasses import asdict, dataclass, field

UP, DOWN = 0, 1  # from the client, to the client
FRAME_BYTES = 2048  # more than any frame of an MTU of 1500
SECOND_NS = 10**9
LAN_NS = 150_000  # one way; an exponential of the same size is added
WIRE_BYTES = 24  # preamble, FCS and gap that a frame takes on an Ethernet besides its own length
LEAST_QUEUE_BYTES = 15_000  # ten full frames


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the link does to a frame, the same both ways. The RTT is of an empty queue."""

    rate_mbit: float
    rtt_ms: float
    jitter_ms: float = 0.0  # half the width of a uniform distribution around half the RTT, each way
    loss_pct: float = 0.0  # of the frames of each way, independently
    queue_ms: float = 100.0  # time that a full queue takes to drain
    reorder_pct: float = 0.0  # frames that overtake: their delay is half of the others'

    @property
    def queue_bytes(self) -> int:
        return max(LEAST_QUEUE_BYTES, int(self.queue_ms * self.rate_mbit * 125))


@dataclass(slots=True)
class Counts:
    """What became of the frames of one way."""

    offered: int = 0
    delivered: int = 0
    lost: int = 0  # by chance
    dropped: int = 0  # the queue was full
    refused: int = 0  # the device did not take them


@dataclass(slots=True)
class Link:
    """Takes frames by `offer`, gives them back by `due`."""

    conditions: Conditions
    rng: random.Random
    local: frozenset[bytes] = frozenset()  # addresses of the gateway, 4 or 16 bytes
    counts: tuple[Counts, Counts] = field(default_factory=lambda: (Counts(), Counts()))
    _free_ns: list[int] = field(default_factory=lambda: [0, 0])  # when each way's queue will be empty
    _last_ns: list[int] = field(default_factory=lambda: [0, 0])  # the latest time at which a frame of it is due
    _heap: list[tuple[int, int, int, bytes]] = field(default_factory=list)  # due_ns, number, way, frame
    _number: int = 0

    def offer(self, now_ns: int, way: int, frame: bytes) -> None:
        """A frame of one end, at the time `now_ns` (any origin)."""
        counts, conditions, rng = self.counts[way], self.conditions, self.rng
        counts.offered += 1
        if stays_local(frame, self.local):
            self._push(now_ns + LAN_NS + int(rng.expovariate(1 / LAN_NS)), way, frame)
            return
        if conditions.loss_pct and rng.random() * 100 < conditions.loss_pct:
            counts.lost += 1
            return
        waiting_ns = max(0, self._free_ns[way] - now_ns)
        if waiting_ns * conditions.rate_mbit / 8000 > conditions.queue_bytes:  # Mbit/s is bits a microsecond
            counts.dropped += 1
            return
        took_ns = int((len(frame) + WIRE_BYTES) * 8000 / conditions.rate_mbit)
        self._free_ns[way] = now_ns + waiting_ns + took_ns
        delay_ns = int((conditions.rtt_ms / 2 + conditions.jitter_ms * (2 * rng.random() - 1)) * 1e6)
        due_ns = self._free_ns[way] + max(0, delay_ns)
        if conditions.reorder_pct and rng.random() * 100 < conditions.reorder_pct:
            self._push(self._free_ns[way] + max(0, delay_ns) // 2, way, frame)
            return
        self._last_ns[way] = due_ns = max(due_ns, self._last_ns[way])
        self._push(due_ns, way, frame)

    def _push(self, due_ns: int, way: int, frame: bytes) -> None:
        self._number += 1
        heapq.heappush(self._heap, (due_ns, self._number, way, frame))

    def due(self, now_ns: int) -> tuple[int, int, bytes] | None:
        """The next frame that is due at `now_ns`: (due_ns, way, frame), counted as delivered; None: none yet."""
        if not self._heap or self._heap[0][0] > now_ns:
            return None
        due_ns, _, way, frame = heapq.heappop(self._heap)
        self.counts[way].delivered += 1
        return due_ns, way, frame

    @property
    def next_ns(self) -> int | None:
        """When the next frame is due; None: nothing is under way."""
        return self._heap[0][0] if self._heap else None


def stays_local(frame: bytes, local: frozenset[bytes]) -> bool:
    """Is it between the client and its gateway?"""
    kind = frame[12:14]
    if kind == b"\x08\x00":
        return frame[26:30] in local or frame[30:34] in local
    if kind == b"\x86\xdd":
        if frame[20] == 0 or (frame[20] == 58 and 133 <= frame[54] <= 137):  # multicast listeners, neighbours
            return True
        return frame[22:38] in local or frame[38:54] in local
    return True


@dataclass(slots=True)
class Lateness:
    """How much later than due frames left, in octaves of microseconds: a busy machine is no slower link, and whoever
    reads the manifest should see that one was."""

    octaves: list[int] = field(default_factory=lambda: [0] * 24)

    def add(self, late_ns: int) -> None:
        self.octaves[min(23, (late_ns // 1000).bit_length())] += 1

    def quantile_us(self, share: float) -> int:
        """The upper edge of the octave in which this share of the frames ends."""
        left = share * sum(self.octaves)
        for octave, count in enumerate(self.octaves):
            left -= count
            if left <= 0:
                return 1 << octave
        return 1 << len(self.octaves)


def forward(client: int, server: int, link: Link, report: int) -> None:
    """Move frames between the two TAPs (open, non-blocking) until SIGTERM, then write the counts to the descriptor
    `report` as JSON. Uses little, but at once: asks for real-time priority, and does without where it gets none."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    lateness, clock, ways = Lateness(), time.monotonic_ns, {client: UP, server: DOWN}
    targets = (server, client)
    while not stopped:
        now_ns = clock()
        while (item := link.due(now_ns)) is not None:
            due_ns, way, frame = item
            try:
                os.write(targets[way], frame)
            except OSError:
                link.counts[way].refused += 1
            lateness.add(now_ns - due_ns)
            now_ns = clock()
        wait = 0.2 if link.next_ns is None else min(0.2, max(0, link.next_ns - now_ns) / SECOND_NS)
        readable, _, _ = select.select([client, server], [], [], wait)
        for fd in readable:
            for _ in range(32):  # then look whether something is due
                try:
                    frame = os.read(fd, FRAME_BYTES)
                except BlockingIOError:
                    break
                link.offer(clock(), ways[fd], frame)
    summary = {
        "up": asdict(link.counts[UP]),
        "down": asdict(link.counts[DOWN]),
        "late_us_p50": lateness.quantile_us(0.5),
        "late_us_p99": lateness.quantile_us(0.99),
    }
    os.write(report, json.dumps(summary).encode())
