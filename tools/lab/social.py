"""A social network's feed, whatever version of HTTP brings it (workloads/social_h1.py, social_h2.py)."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from tools.lab.http1 import Fetcher
from tools.lab.pages import log_normal
from tools.lab.place import Place


@dataclass(frozen=True, slots=True)
class Plan:
    feed: str
    images: tuple[str, ...]
    reports: str
    screens: int

    @property
    def hosts(self) -> tuple[str, ...]:
        return (self.feed, *self.images, self.reports)


def plan(rng: random.Random, length: float) -> Plan:
    net = f"social{rng.randrange(9)}.test"
    images = tuple(f"img{i}.{net}" for i in range(rng.randrange(1, 4)))
    return Plan(f"api.{net}", images, f"events.{net}", max(1, round(rng.randrange(2, 6) * length)))


async def scroll(place: Place, fetcher: Fetcher) -> None:
    drawn, rng = place.plan, place.rng
    for _ in range(drawn.screens):
        await fetcher.fetch(drawn.feed, log_normal(rng, 22_000, 0.6), think_ms=log_normal(rng, 60, 0.7, 900))
        sizes = [log_normal(rng, 18_000, 0.8, 600_000) for _ in range(rng.randrange(6, 15))]
        images = [(rng.choice(drawn.images), size) for size in sizes]
        await asyncio.gather(*(fetcher.fetch(host, size, think_ms=rng.expovariate(1 / 4)) for host, size in images))
        if rng.random() < 0.7:
            await fetcher.fetch(drawn.reports, 120, think_ms=5, up=log_normal(rng, 1_500, 0.7, 40_000))
        if rng.random() < 0.2:  # a video begins to play
            await fetcher.fetch(rng.choice(drawn.images), log_normal(rng, 200_000, 0.5), think_ms=8)
        await place.pause(min(30.0, 4.5 * rng.lognormvariate(0, 0.7)))
    await fetcher.close()
