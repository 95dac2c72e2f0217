"""Media of calls: how large frames are and when they come, and a UDP socket that sends them.

Audio is a packet every 20 ms. Video comes in frames, a key frame now and then, cut into packets of equal size (RFC 8834
and libwebrtc's packetizer); its level changes every few seconds with what is seen and with the size of its window.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Iterator

AUDIO_S = 0.02
MOST_BYTES = 1_100  # of a packet of video


class UdpSocket(asyncio.DatagramProtocol):
    """A UDP socket with what it heard in a queue (the newest are dropped when nobody listens)."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue(1000)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if not self.heard.full():
            self.heard.put_nowait((data, address))

    def error_received(self, error: Exception) -> None:
        """Nobody at the other end (yet, or any more): the sender of datagrams does not mind."""

    def send(self, data: bytes, address: tuple[str, int] | None = None) -> None:
        self.transport.sendto(data, address)  # type: ignore[attr-defined]


async def open_socket(local: tuple[str, int], remote: tuple[str, int] | None = None) -> UdpSocket:
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_datagram_endpoint(UdpSocket, local_addr=local, remote_addr=remote)
    return protocol


def audio(rng: random.Random, size: int = 90, spread: float = 0.12) -> Iterator[tuple[float, int]]:
    """(second, bytes) of Opus at a constant quality."""
    at = 0.0
    while True:
        yield at, max(20, int(rng.gauss(size, spread * size)))
        at += AUDIO_S


def video(rng: random.Random, kbit: float, fps: float, key_s: float) -> Iterator[tuple[float, int]]:
    """(second, bytes) of frames; a key frame is six times a usual one."""
    at, next_key, level, level_ends = 0.0, 0.0, 1.0, rng.uniform(3, 9)
    while True:
        if at > level_ends:
            level, level_ends = rng.choice([0.35, 0.7, 1.0, 1.0, 1.4]), at + rng.uniform(3, 14)
        size = level * kbit * 125 / fps * rng.lognormvariate(0, 0.3)
        if at >= next_key:
            size, next_key = size * 6, at + key_s * rng.uniform(0.7, 1.3)
        yield at, max(80, int(size))
        at += 1 / fps


def cut(size: int) -> list[int]:
    """The packets of a frame, of equal size."""
    count = -(-size // MOST_BYTES)
    return [-(-size // count)] * count


def header(kind: int, mark: bool, sequence: int, stamp: int, source: int) -> bytes:
    """RTP's fixed header (RFC 3550, 5.1)."""
    return struct.pack("!BBHII", 0x80, kind | mark << 7, sequence & 0xFFFF, stamp & 0xFFFFFFFF, source)
