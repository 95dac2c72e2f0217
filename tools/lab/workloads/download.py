"""Downloads: a page, then one to four files by HTTPS, one after the other or side by side.

File sizes are log-normal with a median of 700 kB, cut at 6 MB (25 MB in long sessions): bodies of documents and
packages rather than of disk images, which would fill any capture with one burst.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from tools.lab import http1
from tools.lab.pages import log_normal
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "bulk", (), ()


@dataclass(frozen=True, slots=True)
class Plan:
    site: str
    mirror: str
    sizes: tuple[int, ...]
    together: bool


def plan(rng: random.Random, length: float) -> Plan:
    number = rng.randrange(20)
    most = 6e6 if length <= 1 else 25e6
    sizes = tuple(log_normal(rng, 600_000 * min(length, 8), 1.0, most) for _ in range(rng.choice([1, 1, 2, 3, 4])))
    return Plan(f"www.vendor{number}.test", f"dl.mirror{number}.test", sizes, rng.random() < 0.3)


async def serve(place: Place) -> None:
    await http1.serve(place, place.plan.site)
    await http1.serve(place, place.plan.mirror)


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    browser = http1.Http1(place)
    await browser.fetch(drawn.site, log_normal(rng, 20_000, 0.7), think_ms=30)
    await place.pause(rng.uniform(0.3, 3))
    if drawn.together:
        await asyncio.gather(*(browser.fetch(drawn.mirror, size) for size in drawn.sizes))
    else:
        for size in drawn.sizes:
            one = browser if rng.random() < 0.5 else http1.Http1(place)
            await one.fetch(drawn.mirror, size)
            await place.pause(rng.expovariate(1 / 1.0))
            if one is not browser:
                await one.close()
    await browser.close()
