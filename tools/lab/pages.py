"""Pages of web sites: which objects from which hosts, in which order, and how a browser gets them.

A page is a document, then what it links (styles, scripts, fonts, images) from the site and from content networks, then
what those ask for. Sizes are log-normal by kind, counts and medians after the HTTP Archive's page weight reports (2022,
mobile and desktop: a page has 70 requests and 2 MB in the median; the sites here are of the lighter half so that a
session holds several pages).
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from tools.lab.http1 import Fetcher
from tools.lab.place import Place

# kind: (weight, median bytes, sigma of the logarithm)
KINDS = {"script": (30, 9_000, 1.3), "style": (10, 5_000, 1.2), "image": (45, 14_000, 1.4), "font": (5, 24_000, 0.5),
         "api": (10, 1_500, 1.1)}  # fmt: skip
THINK_MS = (4, 1.0)  # median and sigma: a cache's answer; documents take several times that


@dataclass(frozen=True, slots=True)
class Object:
    host: str
    size: int
    think_ms: float
    wave: int  # 1: found in the document, 2: found in what came then


def log_normal(rng: random.Random, median: float, sigma: float, most: float = 4e6) -> int:
    return int(min(most, median * rng.lognormvariate(0, sigma)))


def page(rng: random.Random, hosts: list[str], objects: int) -> list[Object]:
    """The document first. `hosts`: the site's own, then those of others; the site serves half of what there is."""
    out = [Object(hosts[0], log_normal(rng, 18_000, 0.8), log_normal(rng, 40, 0.8, 900), 0)]
    kinds = rng.choices(list(KINDS), [weight for weight, _, _ in KINDS.values()], k=objects)
    for kind in kinds:
        host = hosts[0] if len(hosts) == 1 or rng.random() < 0.45 else rng.choice(hosts[1:])
        _, median, sigma = KINDS[kind]
        think_ms = log_normal(rng, *THINK_MS, 500)
        out.append(Object(host, log_normal(rng, median, sigma), think_ms, rng.choice([1, 1, 1, 2])))
    return out


async def load(place: Place, fetcher: Fetcher, objects: list[Object]) -> None:
    """Document, then wave by wave; the browser parses in between (tens of milliseconds)."""
    for wave in range(3):
        part = [thing for thing in objects if thing.wave == wave]
        await asyncio.gather(*(fetcher.fetch(thing.host, thing.size, think_ms=thing.think_ms) for thing in part))
        await place.pause(place.rng.expovariate(1 / 0.03))
