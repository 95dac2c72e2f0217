"""Lookups of a household: bursts of names as pages are opened, and some names that do not exist.

Bursts of 1 to 12 names a page and pauses of seconds follow what home resolvers log (a page has a dozen hosts, HTTP
Archive 2024, median); a tenth of queries fail (NXDOMAIN share of public resolvers' statistics, 5 to 15 %).
"""

from __future__ import annotations

import asyncio
import random
import struct
from dataclasses import dataclass

from tools.lab.names import AAAA, HTTPS, MX, PTR, SRV, TXT, A, encode_name
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "infra", (), ()
KINDS = {A: 55, AAAA: 14, HTTPS: 10, PTR: 8, TXT: 6, MX: 3, SRV: 4}


@dataclass(frozen=True, slots=True)
class Plan:
    bursts: int
    pause_s: float
    edns: float  # share of queries with an OPT record


def plan(rng: random.Random, length: float) -> Plan:
    return Plan(int(rng.uniform(14, 45) * length), rng.uniform(0.5, 1.5), rng.choice([0.0, 0.4, 1.0]))


async def serve(place: Place) -> None:
    """The session's own DNS is all that is needed."""


async def run(place: Place) -> None:
    rng = place.rng
    with open("/etc/resolv.conf") as file:
        server = next(line.split()[1] for line in file if line.startswith("nameserver"))
    kinds = [kind for kind in KINDS if kind != AAAA or place.names.v6 or rng.random() < 0.8]
    tasks = []
    for _ in range(place.plan.bursts):
        for _ in range(min(12, 1 + int(rng.expovariate(1 / 2.5)))):
            kind = rng.choices(kinds, [KINDS[k] for k in kinds])[0]
            tasks.append(asyncio.create_task(ask(place, server, name_for(rng, kind), kind)))
            await place.pause(rng.expovariate(1 / 0.03))
        await place.pause(rng.expovariate(1 / place.plan.pause_s))
    await asyncio.gather(*tasks)


def name_for(rng: random.Random, kind: int) -> str:
    host, zone = rng.randrange(160), rng.randrange(8)
    if kind == PTR:
        return f"{rng.randrange(256)}.{rng.randrange(256)}.18.198.in-addr.arpa"
    if kind == SRV:
        return f"_sip._udp.zone{zone}.test"
    if kind in (TXT, MX):
        return f"zone{zone}.test"
    if rng.random() < 0.1:
        return f"nx{rng.randrange(1000)}.zone{zone}.test"
    return rng.choice([f"h{host}.zone{zone}.test", f"www.zone{zone}.test", f"img{host % 9}.media.zone{zone}.test"])


class Once(asyncio.DatagramProtocol):
    def __init__(self, number: bytes, done: asyncio.Future[bytes]) -> None:
        self.number, self.done = number, done

    def datagram_received(self, data: bytes, address: object) -> None:
        if data[:2] == self.number and not self.done.done():
            self.done.set_result(data)


async def ask(place: Place, server: str, name: str, kind: int) -> None:
    """One query from a port of its own, again after two seconds without an answer, over TCP if it was truncated."""
    rng, loop = place.rng, asyncio.get_running_loop()
    number = rng.randbytes(2)
    edns = rng.random() < place.plan.edns
    query = number + struct.pack("!5H", 0x0100, 1, 0, 0, int(edns)) + encode_name(name) + struct.pack("!HH", kind, 1)
    query += b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0) if edns else b""
    done: asyncio.Future[bytes] = loop.create_future()
    transport, _ = await loop.create_datagram_endpoint(lambda: Once(number, done), remote_addr=(server, 53))
    reply = b""
    try:
        for _ in range(3):
            transport.sendto(query)
            try:
                reply = await asyncio.wait_for(asyncio.shield(done), 2)
                break
            except TimeoutError:
                continue
    finally:
        transport.close()
    if len(reply) > 3 and reply[2] & 2:
        reader, writer = await asyncio.open_connection(server, 53)
        writer.write(struct.pack("!H", len(query)) + query)
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        await reader.readexactly(size)
        writer.close()
        await writer.wait_closed()
