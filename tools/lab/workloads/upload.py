"""Uploads to a cloud drive: files in parts of up to 1 MB on one or two connections, each acknowledged.

Photos and documents: log-normal, median 500 kB, in parts, as resumable uploads do; a short answer follows each part.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from tools.lab import http1
from tools.lab.pages import log_normal
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "bulk", (), ()
PART = 1 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    api: str
    store: str
    files: tuple[int, ...]
    lanes: int


def plan(rng: random.Random, length: float) -> Plan:
    files = tuple(log_normal(rng, 450_000, 0.9, 4e6) for _ in range(max(1, round(rng.choice([1, 2, 3, 4]) * length))))
    return Plan(f"drive{rng.randrange(9)}.test", f"up{rng.randrange(9)}.store.test", files, rng.choice([1, 2, 2, 3]))


async def serve(place: Place) -> None:
    await http1.serve(place, place.plan.api)
    await http1.serve(place, place.plan.store)


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    client = http1.Http1(place, connections=drawn.lanes)
    await client.fetch(drawn.api, log_normal(rng, 3_000, 0.6), think_ms=40)

    async def send(size: int) -> None:
        await client.fetch(drawn.api, 400, think_ms=20, up=300)  # where to?
        while size > 0:
            await client.fetch(drawn.store, 250, think_ms=log_normal(rng, 15, 0.6, 300), up=min(PART, size))
            size -= PART

    waiting = list(drawn.files)

    async def lane() -> None:
        while waiting:
            await send(waiting.pop())
            await place.pause(rng.expovariate(1 / 0.6))

    await asyncio.gather(*(lane() for _ in range(drawn.lanes)))
    await client.close()
