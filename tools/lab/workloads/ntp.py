"""Clocks that are set: a burst to each of four servers of a pool, then polls.

Four servers and a burst of four are what chrony's and ntpd's distributions configure; poll intervals are shortened to
seconds as after start (iburst and minpoll).
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from tools.lab.ntp import NtpServer, ask
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "infra", (), ()


@dataclass(frozen=True, slots=True)
class Plan:
    servers: tuple[str, ...]
    rounds: int
    every_s: float


def plan(rng: random.Random, length: float) -> Plan:
    servers = tuple(f"{i}.pool.ntp.test" for i in range(rng.choice([3, 4, 4, 4])))
    return Plan(servers, round(rng.randrange(14, 26) * length), rng.uniform(0.8, 2.2))


async def serve(place: Place) -> None:
    for name in place.plan.servers:
        await place.listen_udp(name, 123, lambda: NtpServer(place))


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    for name in drawn.servers:
        await place.resolve(name)
    for at in range(drawn.rounds):
        for name in drawn.servers:
            await ask(place, name)
            await place.pause(rng.uniform(0.05, 0.2))
        await asyncio.sleep(drawn.every_s * (0.5 if at < 4 else rng.uniform(0.8, 1.2)))
