"""A conference by way of a forwarding server: one stream up, those of the others down, all on one UDP port.

Signalling is a TLS connection with messages of hundreds of bytes. One to three others, whose video the server forwards
at the size they are shown at: one large, the rest as thumbnails, and the speaker changes every 8 to 30 s. A fifth of
the calls have a time of screen sharing: few frames, large ones. Rates after measurements of conferencing clients
(Michel et al. 2022, MacMillan et al. 2021: 0.6 to 1.5 Mbit/s for the speaker), a third of them.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tools.lab import rtp
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "conferencing", (), ()
SIGNAL, SFU, PORT = "sig.conf.test", "sfu.conf.test", 8801
OTHER_S = 20.0


@dataclass(frozen=True, slots=True)
class Plan:
    seconds: float
    up_kbit: float
    others_kbit: tuple[float, ...]
    fps: float
    shares_at: float | None


def plan(rng: random.Random, length: float) -> Plan:
    others = tuple(rng.uniform(30, 120) for _ in range(rng.randrange(0, 3)))
    speaker = rng.uniform(90, 450)
    seconds = rng.uniform(6, 18) * min(length, 8)
    shares = rng.uniform(0.2, 0.8) * seconds if rng.random() < 0.2 else None
    return Plan(seconds, rng.uniform(60, 300), (speaker, *others), rng.choice([15, 24, 25, 30]), shares)


async def serve(place: Place) -> None:
    async def signal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while size := struct.unpack("!H", await reader.readexactly(2))[0]:
            await reader.readexactly(size)
            await place.pause(place.rng.expovariate(1 / 0.01))
            reply = place.rng.randrange(40, 500)
            writer.write(struct.pack("!H", reply) + place.filler(reply))

    await place.listen(SIGNAL, 443, signal, tls=True)
    media = await rtp.open_socket((place.names.v4(SFU), PORT))

    async def forward() -> None:
        drawn = place.plan
        while True:
            data, caller = await media.heard.get()
            if data[:1] == b"\x01":  # a probe
                media.send(b"\x02" + place.filler(31), caller)
            if data[:1] == b"\x05":
                for number, kbit in enumerate(drawn.others_kbit):
                    place.keep(asyncio.create_task(stream(place, media, caller, 10 + number, kbit)))
                break

    place.keep(asyncio.create_task(forward()))


async def stream(place: Place, media: rtp.UdpSocket, target: tuple[str, int] | None, number: int, kbit: float) -> None:
    """Audio and video of one speaker, to absolute deadlines, until the session's seconds are over."""
    rng, drawn, loop = place.rng, place.plan, asyncio.get_running_loop()
    start = loop.time()
    shared = drawn.shares_at is not None and number == 10

    async def send(kind: int, frames: Iterator[tuple[float, int]], first: float, last: float) -> None:
        sequence = rng.getrandbits(16)
        for at, size in frames:
            if first + at > last:
                return
            await place.pause(start + first + at - loop.time())
            parts = rtp.cut(size)
            for index, part in enumerate(parts):
                mark = index == len(parts) - 1
                media.send(rtp.header(kind, mark, sequence, int(at * 90_000), number) + place.filler(part), target)
                sequence += 1

    await asyncio.gather(
        send(111, rtp.audio(rng), 0.0, drawn.seconds),
        send(96, rtp.video(rng, kbit, drawn.fps, OTHER_S), 0.0, drawn.seconds),
        *([send(98, rtp.video(rng, 300, 5, 8), drawn.shares_at, drawn.seconds)] if shared else []),
    )


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    async with place.connected(SIGNAL, 443, tls=True) as (reader, writer):

        async def say(size: int) -> None:
            writer.write(struct.pack("!H", size) + place.filler(size))
            await reader.readexactly(struct.unpack("!H", await reader.readexactly(2))[0])

        for size in (280, 740, 1_600, rng.randrange(600, 2_400), rng.randrange(100, 1_400)):
            await say(size)
            await place.pause(rng.uniform(0.1, 0.7))
        await asyncio.get_running_loop().getaddrinfo(SFU, PORT, family=2)
        media = await rtp.open_socket((place.client_address, 0), (place.names.v4(SFU), PORT))
        for _ in range(3):
            media.send(b"\x01" + place.filler(27))
            await place.pause(rng.uniform(0.05, 0.3))
        media.send(b"\x05" + place.filler(60))
        media.send(b"\x05" + place.filler(60))  # the first may be lost

        async def reports() -> None:
            while True:
                await place.pause(rng.uniform(0.8, 1.3))
                media.send(b"\x81\xc9\0\x07" + place.filler(28 + 24 * len(drawn.others_kbit)))
                if rng.random() < 0.1:
                    await say(rng.randrange(80, 400))

        reporting = asyncio.create_task(reports())
        await stream(place, media, None, 1, drawn.up_kbit)
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        await asyncio.wait_for(say(90), 20)
