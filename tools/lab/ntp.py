"""NTP, both sides (RFC 5905): a server and a question."""

from __future__ import annotations

import asyncio
import socket
import struct
import time

from tools.lab.place import Place

ERA_SECONDS = 2_208_988_800  # from 1900 to 1970
PACKET_BYTES = 48


def stamp() -> bytes:
    now = time.time_ns()
    return struct.pack("!II", now // 10**9 + ERA_SECONDS, (now % 10**9 << 32) // 10**9)


class NtpServer(asyncio.DatagramProtocol):
    def __init__(self, place: Place) -> None:
        self.place = place

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if len(data) >= PACKET_BYTES:
            head = struct.pack("!BBbbII4s", 0x24, 2, data[2], -23, 300, 900, b"GPS\0")
            reply = head + stamp() + data[40:48] + stamp() + stamp()
            later = self.place.rng.expovariate(1 / 0.0002)
            asyncio.get_running_loop().call_later(later, self.transport.sendto, reply, address)  # type: ignore[attr-defined]


async def ask(place: Place, name: str) -> None:
    """One question from a port of its own; no answer within a second is none."""
    address = await place.resolve(name)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect((address, 123))
        client.send(struct.pack("!BBbb11I", 0x23, 0, 6, -20, *([0] * 9), *struct.unpack("!II", stamp())))
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 512), 1)
        except (TimeoutError, OSError):
            return
