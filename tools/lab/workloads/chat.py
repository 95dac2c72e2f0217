"""Messengers: long-lived TLS connections with small messages both ways, heart-beats, now and then a picture.

Messages are 60 to 400 bytes; within a conversation they come every few seconds, log-normal, in turns; typing notices
before them. Pictures come from a content network's HTTPS host. Port 5223 is what phones use, 443 the rest.
"""

from __future__ import annotations

import asyncio
import random
import struct
from dataclasses import dataclass

from tools.lab import http1
from tools.lab.pages import log_normal
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "social", (), ()


@dataclass(frozen=True, slots=True)
class Plan:
    hubs: tuple[tuple[str, int], ...]  # name, port
    media: str
    seconds: float
    busy_s: float  # mean time between messages


def plan(rng: random.Random, length: float) -> Plan:
    hubs = tuple((f"hub{i}.chat{rng.randrange(9)}.test", rng.choice([5223, 443])) for i in range(rng.choice([1, 1, 2])))
    seconds, busy_s = rng.uniform(22, 60) * min(length, 4), rng.uniform(1.2, 5) / max(1, length / 4)
    return Plan(hubs, f"media{rng.randrange(9)}.chat.test", seconds, busy_s)


async def serve(place: Place) -> None:
    await http1.serve(place, place.plan.media)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pushing = asyncio.create_task(push(writer))
        try:
            while True:
                (size,) = struct.unpack("!H", await reader.readexactly(2))
                await reader.readexactly(size)
                if size > 20:  # everything but notices is acknowledged
                    await place.pause(place.rng.expovariate(1 / 0.012))
                    send(place, writer, place.rng.randrange(24, 60))
        finally:
            pushing.cancel()

    async def push(writer: asyncio.StreamWriter) -> None:
        await place.pause(0.3)
        send(place, writer, log_normal(place.rng, 1_200, 0.8, 30_000))  # what was missed
        while True:
            await place.pause(place.plan.busy_s * place.rng.lognormvariate(0, 1.0))
            send(place, writer, log_normal(place.rng, 150, 0.7, 2_000))

    for name, port in place.plan.hubs:
        await place.listen(name, port, handle, tls=True)


def send(place: Place, writer: asyncio.StreamWriter, size: int) -> None:
    writer.write(struct.pack("!H", size) + place.filler(size))


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    end = asyncio.get_running_loop().time() + drawn.seconds
    web = http1.Http1(place)

    async def talk(name: str, port: int) -> None:
        async with place.connected(name, port, tls=True) as (reader, writer):
            hearing = asyncio.create_task(http1.skip(reader, 1 << 40))
            send(place, writer, log_normal(rng, 500, 0.4))  # who I am
            while asyncio.get_running_loop().time() < end:
                await place.pause(drawn.busy_s * rng.lognormvariate(0, 0.9))
                if rng.random() < 0.5:
                    send(place, writer, rng.randrange(8, 20))  # typing
                    await place.pause(rng.uniform(0.5, 3))
                send(place, writer, log_normal(rng, 170, 0.7, 2_000))
                if rng.random() < 0.06:
                    await web.fetch(drawn.media, log_normal(rng, 70_000, 0.7, 800_000), think_ms=15)
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    await asyncio.gather(*(talk(name, port) for name, port in drawn.hubs))
    await web.close()
