"""Sensors that report by MQTT over TLS: several devices of a home, QoS 0 and 1, pings, the clock by NTP now and then.

Real mosquitto on 8883 (or 1883 in the clear: a fifth); readings of 20 to 200 bytes every 2 to 20 s a device (defaults
of Zigbee2MQTT and Tasmota), keep-alives of 15 to 60 s.
"""

from __future__ import annotations

import asyncio
import random
import struct
from dataclasses import dataclass

from tools.lab.ntp import NtpServer, ask
from tools.lab.pages import log_normal
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "iot", ("mosquitto",), ()
HOST, TIME = "broker.iot.test", "ntp1.iot.test"


@dataclass(frozen=True, slots=True)
class Plan:
    every_s: tuple[float, ...]  # a device's interval
    qos: tuple[int, ...]
    seconds: float
    tls: bool


def plan(rng: random.Random, length: float) -> Plan:
    devices = rng.randrange(2, 6)
    every = tuple(rng.uniform(2, 14) / max(1, length / 4) for _ in range(devices))
    qos = tuple(rng.choice([0, 1]) for _ in range(devices))
    return Plan(every, qos, rng.uniform(24, 56) * min(length, 4), rng.random() < 0.8)


async def serve(place: Place) -> None:
    chain, key = place.shared("certificate").choice(place.tls.pairs)
    port = 8883 if place.plan.tls else 1883
    lines = ["allow_anonymous true", "user root"]
    for address in place.names.all(HOST):
        lines += [f"listener {port} {address}", *([f"certfile {chain}", f"keyfile {key}"] if place.plan.tls else [])]
    (place.folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
    await place.start("mosquitto", "-c", str(place.folder / "mosquitto.conf"), port=port)
    await place.listen_udp(TIME, 123, lambda: NtpServer(place))


def packet(kind: int, body: bytes) -> bytes:
    """An MQTT control packet (OASIS MQTT 3.1.1, 2.2)."""
    length, out = len(body), b""
    while True:
        length, low = length >> 7, length & 0x7F
        out += bytes([low | (0x80 if length else 0)])
        if not length:
            return bytes([kind]) + out + body


def text(words: str) -> bytes:
    return struct.pack("!H", len(words)) + words.encode()


async def read_packet(reader: asyncio.StreamReader) -> int:
    kind = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
    await reader.readexactly(length)
    return kind


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    end = asyncio.get_running_loop().time() + drawn.seconds

    async def device(number: int) -> None:
        await place.pause(rng.uniform(0, 2))
        if rng.random() < 0.6:
            await ask(place, TIME)
        async with place.connected(HOST, 8883 if drawn.tls else 1883, tls=drawn.tls) as (reader, writer):
            keep_alive = rng.choice([15, 30, 60])
            name = text(f"dev-{rng.getrandbits(40):x}")
            writer.write(packet(0x10, text("MQTT") + bytes([4, 2]) + struct.pack("!H", keep_alive) + name))
            await read_packet(reader)
            writer.write(packet(0x82, struct.pack("!H", 1) + text(f"home/{number}/set") + b"\1"))
            reading = asyncio.create_task(read_all(reader))
            last, clock = 0.0, asyncio.get_running_loop().time
            while clock() < end:
                topic = text(f"home/{number}/{rng.choice(['temperature', 'state', 'power'])}")
                body = place.filler(log_normal(rng, 60, 0.6, 2_000))
                number_of = struct.pack("!H", rng.randrange(1, 65536)) if drawn.qos[number] else b""
                writer.write(packet(0x30 | drawn.qos[number] << 1, topic + number_of + body))
                if rng.random() < 0.08:  # somebody switches a thing of another device: the broker sends it there
                    other = rng.randrange(len(drawn.every_s))
                    writer.write(packet(0x30, text(f"home/{other}/set") + b'{"state":"ON"}'))
                if clock() - last > keep_alive:
                    last = clock()
                    writer.write(packet(0xC0, b""))
                await place.pause(min(end - clock() + 0.1, rng.uniform(0.7, 1.3) * drawn.every_s[number]))
            writer.write(packet(0xE0, b""))
            await writer.drain()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def read_all(reader: asyncio.StreamReader) -> None:
        while True:
            await read_packet(reader)

    await asyncio.gather(*(device(number) for number in range(len(drawn.every_s))))
