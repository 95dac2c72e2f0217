"""An application with a Redis cache: a few connections, commands in ones and in pipelines, keys of tens of bytes.

Mostly GET with a fifth of writes (Atikoglu et al. 2012, "Workload analysis of a large-scale key-value store": 30 to 1
in their largest pool, values mostly under 500 bytes); requests come in bursts as pages are served.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from tools.lab.pages import log_normal
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "database", ("redis-server",), ()
HOST = "redis.app.test"


@dataclass(frozen=True, slots=True)
class Plan:
    connections: int
    seconds: float
    pause_s: float
    keys: int
    pipeline: int


def plan(rng: random.Random, length: float) -> Plan:
    seconds, pause_s = rng.uniform(9, 34) * min(length, 4), 2 ** rng.uniform(-5, 0.5) / max(1, length / 4)
    return Plan(rng.choice([1, 1, 2, 4]), seconds, pause_s, rng.choice([20, 400]), rng.choice([1, 4, 12]))


async def serve(place: Place) -> None:
    options = ["--bind", *place.names.all(HOST), "--save", "", "--protected-mode", "no"]
    await place.start("redis-server", "--port", "6379", *options, port=6379)


def command(*words: str | bytes) -> bytes:
    """In the Redis serialization protocol."""
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


async def reply(reader: asyncio.StreamReader) -> None:
    line = await reader.readline()
    if line[:1] == b"$" and line[1:2] != b"-":
        await reader.readexactly(int(line[1:]) + 2)
    elif line[:1] == b"*":
        for _ in range(max(0, int(line[1:]))):
            await reply(reader)


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    end = asyncio.get_running_loop().time() + drawn.seconds

    async def one() -> None:
        async with place.connected(HOST, 6379) as (reader, writer):
            writer.write(command("CLIENT", "SETNAME", f"app-{rng.randrange(100)}"))
            await reply(reader)
            while asyncio.get_running_loop().time() < end:
                for _ in range(1 + int(rng.expovariate(1 / 4))):
                    batch = rng.choice([1, 1, drawn.pipeline])
                    for _ in range(batch):
                        key = f"user:{rng.randrange(drawn.keys)}:{rng.choice(['profile', 'cart', 'session'])}"
                        what = rng.random()
                        if what < 0.2:
                            value = place.filler(log_normal(rng, 200, 0.9, 20_000))
                            writer.write(command("SET", key, value, "EX", "300"))
                        elif what < 0.3:
                            writer.write(command("INCR", f"hits:{rng.randrange(9)}"))
                        elif what < 0.4:
                            writer.write(command("HGETALL", f"h:{rng.randrange(9)}"))
                        else:
                            writer.write(command("GET", key))
                    for _ in range(batch):
                        await reply(reader)
                await place.pause(rng.expovariate(1 / drawn.pause_s))
            writer.write(command("QUIT"))
            await reply(reader)

    await asyncio.gather(*(one() for _ in range(drawn.connections)))
