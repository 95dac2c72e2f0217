"""A call from browser to browser by WebRTC: signalling over TLS, STUN, ICE, DTLS, then SRTP and its feedback.

aiortc on both sides; media come as frames of drawn sizes that were "encoded" already, so a call costs no codec. Opus at
50 packets a second, VP8 at 150 to 900 kbit/s and 15 to 30 frames a second; a tenth of the calls are audio only.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tools.lab import rtp
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "conferencing", (), ("aiortc", "av")
SIGNAL, STUN, PEER = "sig.meet.test", "stun.meet.test", "peer.meet.test"


@dataclass(frozen=True, slots=True)
class Plan:
    seconds: float
    kbit: tuple[float, float]  # up, down
    fps: float
    video: bool


def plan(rng: random.Random, length: float) -> Plan:
    kbit = (rng.uniform(150, 800), rng.uniform(150, 900))
    return Plan(rng.uniform(5, 16) * min(length, 7), kbit, rng.choice([15, 24, 30]), rng.random() < 0.9)


class StunServer(asyncio.DatagramProtocol):
    """Answers binding requests with the address they came from (RFC 8489)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if len(data) >= 20 and data[:2] == b"\0\1" and len(address) == 2:
            cookie = data[4:8]
            port = address[1] ^ int.from_bytes(cookie[:2], "big")
            host = bytes(a ^ b for a, b in zip(map(int, address[0].split(".")), cookie, strict=True))
            body = struct.pack("!HHBBH", 0x0020, 8, 0, 1, port) + host
            reply = b"\x01\x01" + struct.pack("!H", len(body)) + data[4:20] + body
            self.transport.sendto(reply, address)  # type: ignore[attr-defined]


def prepare(address: str) -> Any:
    """aiortc, told to use one address only and to decode nothing."""
    import aioice.ice
    import aiortc
    import aiortc.rtcrtpreceiver

    class Nothing:
        def decode(self, frame: object) -> list[object]:
            return []

    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: [address]
    aiortc.rtcrtpreceiver.get_decoder = lambda codec: Nothing()
    return aiortc


def tracks(place: Place, kbit: float) -> list[Any]:
    """What a side sends."""
    import av
    from aiortc import MediaStreamTrack

    class Frames(MediaStreamTrack):
        def __init__(self, kind: str, frames: Any) -> None:
            self.kind = kind
            super().__init__()
            self.frames, self.start = frames, 0.0

        async def recv(self) -> Any:
            at, size = next(self.frames)
            now = asyncio.get_running_loop().time()
            self.start = self.start or now
            await place.pause(self.start + at - now)
            packet = av.Packet(place.filler(size))
            packet.pts, packet.time_base = int(at * 90_000), Fraction(1, 90_000)
            return packet

    sound = Frames("audio", rtp.audio(place.rng, place.shared("opus").choice([40, 70, 90, 120])))
    return [sound, *([Frames("video", rtp.video(place.rng, kbit, place.plan.fps, 25))] if place.plan.video else [])]


async def serve(place: Place) -> None:
    aiortc = prepare(place.names.v4(PEER))
    await place.listen_udp(STUN, 3478, StunServer)

    async def signal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while size := struct.unpack("!H", await reader.readexactly(2))[0]:
            said = await reader.readexactly(size)
            await place.pause(place.rng.expovariate(1 / 0.02))
            if not said.startswith(b"{"):
                writer.write(struct.pack("!H", size // 2) + place.filler(size // 2))
                continue
            peer = aiortc.RTCPeerConnection()
            place.keep(peer)
            for track in tracks(place, place.plan.kbit[1]):
                peer.addTrack(track)
            await peer.setRemoteDescription(aiortc.RTCSessionDescription(**json.loads(said)))
            await peer.setLocalDescription(await peer.createAnswer())
            answer = json.dumps({"sdp": peer.localDescription.sdp, "type": peer.localDescription.type}).encode()
            writer.write(struct.pack("!H", len(answer)) + answer)

    await place.listen(SIGNAL, 443, signal, tls=True)


async def run(place: Place) -> None:
    rng = place.rng
    aiortc = prepare(place.client_address)
    server = aiortc.RTCIceServer(urls=f"stun:{STUN}:3478")
    peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[server]))
    async with place.connected(SIGNAL, 443, tls=True) as (reader, writer):

        async def say(data: bytes) -> bytes:
            writer.write(struct.pack("!H", len(data)) + data)
            return await reader.readexactly(struct.unpack("!H", await reader.readexactly(2))[0])

        for size in (rng.randrange(300, 900), rng.randrange(100, 700)):
            await say(place.filler(size).replace(b"{", b"x"))
            await place.pause(rng.uniform(0.2, 1.2))
        for track in tracks(place, place.plan.kbit[0]):
            peer.addTrack(track)
        await peer.setLocalDescription(await peer.createOffer())
        offer = {"sdp": peer.localDescription.sdp, "type": peer.localDescription.type}
        answer = json.loads(await say(json.dumps(offer).encode()))
        await peer.setRemoteDescription(aiortc.RTCSessionDescription(**answer))
        connected = asyncio.get_running_loop().time() + 20
        while peer.connectionState != "connected":
            if asyncio.get_running_loop().time() > connected:
                raise RuntimeError(f"the call was not put through: {peer.connectionState}")
            await place.pause(0.05)
        await place.pause(place.plan.seconds)
        await peer.close()
        await say(place.filler(120).replace(b"{", b"x"))
