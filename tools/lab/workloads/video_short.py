"""Short videos, one swipe after another: the next ones are fetched ahead in ranges while one is watched.

Clips are log-normal, median 260 kB (10 s at 200 kbit/s); a clip is watched for some seconds, some are
skipped at once.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from tools.lab import http
from tools.lab.pages import log_normal
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "social", (), ("h2",)
FIRST = 80_000  # bytes fetched before a clip is chosen


@dataclass(frozen=True, slots=True)
class Plan:
    api: str
    cdn: str
    reports: str
    clips: int
    version: int


def plan(rng: random.Random, length: float) -> Plan:
    net = f"clips{rng.randrange(9)}.video.test"
    clips = max(1, round(rng.randrange(3, 8) * length))
    return Plan(f"api.{net}", f"v{rng.randrange(30)}.{net}", f"mon.{net}", clips, rng.choice([1, 2, 2]))


async def serve(place: Place) -> None:
    await http.serve(place, (place.plan.api, place.plan.cdn, place.plan.reports), place.plan.version)


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    client = http.client(place, drawn.version)
    await client.fetch(drawn.api, log_normal(rng, 30_000, 0.5), think_ms=90, up=600)
    for clip in range(drawn.clips):
        if clip and clip % 5 == 0:
            await client.fetch(drawn.api, log_normal(rng, 24_000, 0.5), think_ms=70, up=500)
        size = log_normal(rng, 260_000, 0.6, 3e6)
        await client.fetch(drawn.cdn, min(size, FIRST))
        ahead = [min(FIRST, log_normal(rng, 260_000, 0.6)) for _ in range(rng.randrange(0, 3))]
        rest = client.fetch(drawn.cdn, max(0, size - FIRST)) if size > FIRST and rng.random() < 0.75 else place.pause(0)
        await asyncio.gather(rest, *(client.fetch(drawn.cdn, part) for part in ahead))
        await client.fetch(drawn.reports, 50, up=log_normal(rng, 1_200, 0.5))
        await place.pause(min(12.0, rng.expovariate(1 / 2.5)))
    await client.close()
