"""Guessing paths of a web server: a list is worked through on several connections, hardly anything is found.

Tools of this kind open 10 to 40 threads by default; an answer that nothing is there has 150 to 1,500 bytes.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from tools.lab import http1
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "attack", (), ()
HOST = "www.victim.test"


@dataclass(frozen=True, slots=True)
class Plan:
    threads: int
    requests: int
    pause_s: float
    not_found: int  # bytes of that page
    kept: int  # requests a connection
    tls: bool


def plan(rng: random.Random, length: float) -> Plan:
    threads = rng.choice([2, 5, 10, 10, 20])
    requests, pause_s = round(rng.randrange(60, 200) * length), rng.choice([0, 0.02, 0.2, 0.5])
    return Plan(threads, requests, pause_s, rng.randrange(150, 1_500),
                rng.choice([1, 20, 100, 100, 1000]), rng.random() < 0.3)  # fmt: skip


async def serve(place: Place) -> None:
    await http1.serve(place, HOST, 443 if place.plan.tls else 80, tls=place.plan.tls, requests=place.plan.kept)


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    left = iter(range(drawn.requests))

    async def thread() -> None:
        client = http1.Http1(place, 443 if drawn.tls else 80, tls=drawn.tls, connections=1)
        for _ in left:
            size = rng.randrange(600, 20_000) if rng.random() < 0.04 else drawn.not_found
            await client.fetch(HOST, size, think_ms=rng.expovariate(1 / 2))
            await place.pause(rng.expovariate(1 / drawn.pause_s) if drawn.pause_s else 0)
        await client.close()

    await asyncio.gather(*(thread() for _ in range(drawn.threads)))
