"""Reflected and amplified DNS, seen from the victim: large answers that nobody asked for, and what its kernel says.

Answers of 400 to 3,900 bytes (TXT and ANY of zones made for it), so that many come in fragments; the reflectors are
open resolvers, four to forty of them; the forged port is 443, 53 or a high one.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from dataclasses import dataclass

from tools.lab.names import TXT, encode_name
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "attack", (), ()
START_S = 0.6


@dataclass(frozen=True, slots=True)
class Plan:
    reflectors: int
    zones: tuple[int, ...]  # bytes of an answer
    answers: int
    rate: float  # a second
    port: int


def plan(rng: random.Random, length: float) -> Plan:
    zones = tuple(rng.randrange(400, 3_900) for _ in range(rng.randrange(1, 4)))
    return Plan(rng.randrange(4, 40), zones, round(rng.randrange(200, 500) * length), 20 * 12 ** rng.random(),
                rng.choice([443, 443, 80, rng.randrange(1024, 65000)]))  # fmt: skip


def answer(rng: random.Random, size: int, zone: int) -> bytes:
    """A response full of TXT records (RFC 1035)."""
    name = encode_name(f"any.zone{zone}.test")
    body, count = b"", 0
    while len(body) + len(name) + 16 < size:
        text = rng.randbytes(min(250, size - len(body)))
        body += b"\xc0\x0c" + struct.pack("!HHIH", TXT, 1, 3600, len(text) + 1) + bytes([len(text)]) + text
        count += 1
    return rng.randbytes(2) + struct.pack("!5H", 0x8580, 1, count, 0, 0) + name + struct.pack("!HH", 255, 1) + body


async def serve(place: Place) -> None:
    sockets = []
    for number in range(place.plan.reflectors):
        reflector = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        reflector.bind((place.names.v4(f"resolver{number}.open.test"), 53))
        sockets.append(reflector)

    async def flood() -> None:
        drawn, rng = place.plan, place.rng
        await place.pause(START_S)
        zones = [answer(rng, size, number) for number, size in enumerate(drawn.zones)]
        for _ in range(drawn.answers):
            data = rng.choice(zones)
            rng.choice(sockets).sendto(rng.randbytes(2) + data[2:], (place.client_address, drawn.port))
            await place.pause(rng.expovariate(drawn.rate))

    place.keep(asyncio.create_task(flood()))


async def run(place: Place) -> None:
    await place.pause(START_S + place.plan.answers / place.plan.rate * 1.15 + 1)
