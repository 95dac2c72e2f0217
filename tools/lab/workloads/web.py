"""Reading web sites: pages of a dozen hosts, HTTP/1.1 or HTTP/2, with reading pauses.

One to four pages a session; think times are log-normal with a median of 8 s (dwell times fall steeply in the first ten
seconds: Liu, White, Dumais 2010), a third of sites speak HTTP/1.1 only (HTTP Archive 2022: 20 to 35 % of requests).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tools.lab import http1, http2
from tools.lab.pages import Object, load, page
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "web", (), ("h2",)


@dataclass(frozen=True, slots=True)
class Plan:
    hosts: dict[str, int]  # name: version of HTTP
    pages: list[list[Object]]
    plain: bool  # the first request goes to port 80


def plan(rng: random.Random, length: float) -> Plan:
    hosts: dict[str, int] = {}
    pages = []
    for _ in range(max(1, round(rng.choice([1, 1, 2, 3]) * length))):
        site = f"www.site{rng.randrange(40)}.test"
        roles = rng.choices(["static", "img", "cdn", "api", "fonts", "ads"], k=rng.randrange(1, 7))
        others = [f"{role}{rng.randrange(9)}.{rng.choice('abcdef')}-net.test" for role in roles]
        for name in [site, *others]:
            hosts.setdefault(name, rng.choice([1, 2, 2]))
        pages.append(page(rng, [site, *others], rng.randrange(8, 34)))
    return Plan(hosts, pages, rng.random() < 0.25)


async def serve(place: Place) -> None:
    for name, version in place.plan.hosts.items():
        await (http2.serve if version == 2 else http1.serve)(place, name)
    if place.plan.plain:
        await http1.serve(place, place.plan.pages[0][0].host, 80, tls=False, requests=1)


class Browser:
    """The version of HTTP that the host speaks."""

    def __init__(self, place: Place) -> None:
        self.place, self.one, self.two = place, http1.Http1(place), http2.Http2(place)

    async def fetch(self, name: str, size: int, *, think_ms: float = 5, up: int = 0, rate: float = 0) -> None:
        fetcher = self.two if self.place.plan.hosts[name] == 2 else self.one
        await fetcher.fetch(name, size, think_ms=think_ms, up=up, rate=rate)

    async def close(self) -> None:
        await self.one.close()
        await self.two.close()


async def run(place: Place) -> None:
    browser = Browser(place)
    if place.plan.plain:  # an old link: 301 to https
        old = http1.Http1(place, 80, tls=False)
        await old.fetch(place.plan.pages[0][0].host, 180)
    for objects in place.plan.pages:
        await load(place, browser, objects)
        await place.pause(min(40.0, 8 * place.rng.lognormvariate(0, 0.8)))
    await browser.close()
