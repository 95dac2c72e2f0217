"""A telephone call: SIP by UDP through a proxy (register, invite, ringing), then RTP both ways with RTCP, then goodbye.

G.711 frames of 20 ms are 172 bytes of RTP, G.729 32, Opus 40 to 120 with silences left out; RTCP every five seconds
(RFC 3550). Half of the calls have voice activity detection, a talk spurt lasts 1 s, a pause 1.4 s (ITU-T P.59).
"""

from __future__ import annotations

import asyncio
import random
import struct
from dataclasses import dataclass

from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "conferencing", (), ()
PROXY, GATEWAY = "sip.voice.test", "media.voice.test"
CODECS = {"PCMU": (0, 160), "PCMA": (8, 160), "G729": (18, 20), "opus": (111, 80)}
FRAME_S = 0.02


@dataclass(frozen=True, slots=True)
class Plan:
    codec: str
    ring_s: float
    talk_s: float
    silences: bool
    near: int  # RTP ports
    far: int


def plan(rng: random.Random, length: float) -> Plan:
    ports = [2 * rng.randrange(8_000, 16_000) for _ in range(2)]
    talk_s = rng.uniform(5, 18) * min(length, 12)
    return Plan(rng.choice(list(CODECS)), rng.uniform(0.5, 5), talk_s, rng.random() < 0.4, *ports)


def message(place: Place, first: str, number: int, method: str, sdp_port: int = 0) -> bytes:
    codec, (kind, _) = place.plan.codec, CODECS[place.plan.codec]
    call = f"{place.shared('call').getrandbits(64):016x}"
    body = ""
    if sdp_port:
        body = (
            f"v=0\r\no=- {call[:8]} 1 IN IP4 {place.client_address}\r\ns=-\r\n"
            f"c=IN IP4 {place.client_address}\r\nt=0 0\r\n"
            f"m=audio {sdp_port} RTP/AVP {kind} 101\r\na=rtpmap:{kind} {codec}/8000\r\n"
            "a=rtpmap:101 telephone-event/8000\r\na=ptime:20\r\na=sendrecv\r\n"
        )
    lines = [
        first, f"Via: SIP/2.0/UDP {place.client_address}:5060;branch=z9hG4bK{call[:10]}{number};rport",
        "Max-Forwards: 70", f"From: <sip:alice@voice.test>;tag={call[:6]}",
        f"To: <sip:bob@voice.test>;tag={call[6:12]}", f"Call-ID: {call}@voice.test",
        f"CSeq: {number} {method}", f"Contact: <sip:alice@{place.client_address}:5060>", "User-Agent: Lab Phone 2.4",
        "Allow: INVITE, ACK, CANCEL, OPTIONS, BYE, REFER, NOTIFY", *(["Content-Type: application/sdp"] if body else []),
        f"Content-Length: {len(body)}",
    ]  # fmt: skip
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


class Socket(asyncio.DatagramProtocol):
    """A UDP socket with what it heard in a queue."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self.heard.put_nowait((data, address))

    def send(self, data: bytes, address: tuple[str, int] | None = None) -> None:
        self.transport.sendto(data, address)  # type: ignore[attr-defined]


async def open_socket(local: tuple[str, int], remote: tuple[str, int] | None = None) -> Socket:
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_datagram_endpoint(Socket, local_addr=local, remote_addr=remote)
    return protocol


async def talk(place: Place, media: Socket, control: Socket, far: str, port: int, seconds: float) -> None:
    """RTP frames every 20 ms to absolute deadlines, and RTCP reports."""
    rng, drawn = place.rng, place.plan
    kind, size = CODECS[drawn.codec]
    sequence, stamp, source = rng.getrandbits(16), rng.getrandbits(32), rng.randbytes(4)
    clock = asyncio.get_running_loop().time
    start, next_report, frame = clock(), rng.uniform(1, 4), 0
    spurt_ends = rng.expovariate(1 / 1.0)
    while (at := frame * FRAME_S) < seconds:
        await place.pause(start + at - clock())
        speaking = at < spurt_ends
        if drawn.silences and at > spurt_ends + 1.4:
            spurt_ends = at + rng.expovariate(1 / 1.0)
        if speaking or not drawn.silences:
            marked, now = kind | (0 if frame else 0x80), (stamp + 160 * frame) & 0xFFFFFFFF
            head = struct.pack("!BBHI", 0x80, marked, sequence & 0xFFFF, now) + source
            length = size if drawn.codec != "opus" else int(rng.uniform(0.5, 1.5) * size)
            media.send(head + place.filler(length), (far, port))
            sequence += 1
        if at > next_report:
            next_report = at + rng.uniform(2.5, 7.5)
            report = struct.pack("!BBH", 0x81, 200, 12) + source + place.filler(44) + b"\x81\xca\0\x05"
            control.send(report + place.filler(20), (far, port + 1))
        frame += 1


async def serve(place: Place) -> None:
    drawn = place.plan
    proxy = await open_socket((place.names.v4(PROXY), 5060))
    media = await open_socket((place.names.v4(GATEWAY), drawn.far))
    control = await open_socket((place.names.v4(GATEWAY), drawn.far + 1))
    rng = place.rng

    async def answer() -> None:
        talking: asyncio.Task[None] | None = None
        answered = False
        while True:
            data, caller = await proxy.heard.get()
            method = data.split(b" ", 1)[0].decode(errors="replace")
            if method == "REGISTER":
                await place.pause(rng.expovariate(1 / 0.01))
                proxy.send(message(place, "SIP/2.0 200 OK", 1, "REGISTER"), caller)
            elif method == "INVITE" and not answered:
                answered = True
                proxy.send(message(place, "SIP/2.0 100 Trying", 2, "INVITE"), caller)
                await place.pause(rng.uniform(0.05, 0.4))
                proxy.send(message(place, "SIP/2.0 180 Ringing", 2, "INVITE"), caller)
                await place.pause(drawn.ring_s)
                proxy.send(message(place, "SIP/2.0 200 OK", 2, "INVITE", drawn.far), caller)
                work = talk(place, media, control, place.client_address, drawn.near, drawn.talk_s + 5)
                talking = asyncio.create_task(work)
            elif method == "INVITE":
                proxy.send(message(place, "SIP/2.0 200 OK", 2, "INVITE", drawn.far), caller)
            elif method == "BYE":
                if talking:
                    talking.cancel()
                proxy.send(message(place, "SIP/2.0 200 OK", 3, "BYE"), caller)

    place.keep(asyncio.create_task(answer()))


async def run(place: Place) -> None:
    drawn = place.plan
    loop = asyncio.get_running_loop()
    address = (await loop.getaddrinfo(PROXY, 5060, family=2))[0][4][0]
    await loop.getaddrinfo(GATEWAY, None, family=2)
    phone = await open_socket((place.client_address, 5060), (str(address), 5060))
    media = await open_socket((place.client_address, drawn.near))
    control = await open_socket((place.client_address, drawn.near + 1))

    async def ask(first: str, number: int, method: str, until: bytes, port: int = 0) -> None:
        """Send it, again after half a second, a second, two (RFC 3261, timer A), until the answer is there."""
        for wait in (0.5, 1, 2, 4, 8):
            phone.send(message(place, first, number, method, port))
            try:
                async with asyncio.timeout(wait if method != "INVITE" else 20):
                    while not (await phone.heard.get())[0].startswith(until):
                        pass
                return
            except TimeoutError:
                continue

    await ask("REGISTER sip:voice.test SIP/2.0", 1, "REGISTER", b"SIP/2.0 200")
    await place.pause(place.rng.uniform(0.2, 2))
    await ask("INVITE sip:bob@voice.test SIP/2.0", 2, "INVITE", b"SIP/2.0 200", drawn.near)
    phone.send(message(place, "ACK sip:bob@voice.test SIP/2.0", 2, "ACK"))
    await talk(place, media, control, place.names.v4(GATEWAY), drawn.far, drawn.talk_s)
    await ask("BYE sip:bob@voice.test SIP/2.0", 3, "BYE", b"SIP/2.0 200")
