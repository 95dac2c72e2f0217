"""A SYN flood by hping3 at one port, seen from the attacker; its kernel answers SYN-ACKs with RST.

Rates of 100 to 900 a second: a small bot's share of a flood.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "attack", ("hping3",), ()


@dataclass(frozen=True, slots=True)
class Plan:
    host: str
    port: int
    is_open: bool
    frames: int
    every_us: int


def plan(rng: random.Random, length: float) -> Plan:
    every_us = round(1_000_000 / (100 * 9 ** rng.random()))
    return Plan(f"www{rng.randrange(30)}.victim.test", rng.choice([80, 443, 22, 25]), rng.random() < 0.85,
                round(rng.randrange(200, 600) * length), every_us)  # fmt: skip


async def serve(place: Place) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    if place.plan.is_open:
        await place.listen(place.plan.host, place.plan.port, hold)


async def run(place: Place) -> None:
    drawn = place.plan
    options = ["-S", "-q", "-n", "-p", str(drawn.port), "-i", f"u{drawn.every_us}", "-c", str(drawn.frames)]
    if place.rng.random() < 0.3:
        options += ["-w", str(place.rng.choice([64, 1024, 5840, 65535])), "-s", str(place.rng.randrange(1024, 60000))]
    await place.call("hping3", *options, place.names.v4(drawn.host))
