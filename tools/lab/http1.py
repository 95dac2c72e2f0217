"""HTTP/1.1, both sides: a server that gives what the request asks for, a client with a few connections a host.

A request names the size of what it wants and how long the server thinks (`/a81f.js?s=18230&t=12`), so a workload is
written on the client's side alone; the same requests work over HTTP/2 and HTTP/3 (`Fetcher`). Sizes of headers are
those that the HTTP Archive reports (2022: a request 400 to 900 bytes with cookies, a response 300 to 700).

Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
import ssl
import urllib.parse
from typing import Protocol

from tools.lab.place import Place

CONNECTIONS = 6  # a host, as browsers have it
CHUNK = 32 << 10
AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile",
)


class Fetcher(Protocol):
    """A client of some version of HTTP."""

    async def fetch(self, name: str, size: int, *, think_ms: float = 5, up: int = 0, rate: float = 0) -> None:
        """Get `size` bytes from the host, or send it `up` bytes first. The server sends at `rate` bytes a second (0: at
        once) after thinking."""

    async def close(self) -> None:
        """Close all connections."""


def path_of(place: Place, size: int, think_ms: float, rate: float) -> str:
    kind = place.rng.choice(["js", "css", "png", "webp", "woff2", "json", "m4s", "html"])
    folder = "/".join(f"{place.rng.getrandbits(24):x}" for _ in range(place.rng.randrange(1, 4)))
    return f"/{folder}/{place.rng.getrandbits(64):x}.{kind}?s={int(size)}&t={int(think_ms)}&r={int(rate)}"


def wish(path: str) -> tuple[int, float, float]:
    """(bytes, seconds to think, bytes a second) that a request asks for."""
    asked = urllib.parse.parse_qs(path.partition("?")[2])
    return tuple(float(asked.get(key, ["0"])[0]) for key in "str")  # type: ignore[return-value]


def request_headers(place: Place, name: str) -> list[tuple[str, str]]:
    style = place.shared(f"headers/{name}")
    return [
        ("user-agent", AGENTS[style.randrange(len(AGENTS))]),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"),
        ("accept-language", "en-US,en;q=0.5"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("referer", f"https://www.{name.split('.', 1)[-1]}/{place.rng.getrandbits(40):x}"),
        ("cookie", f"sid={style.getrandbits(128):032x}; p={'x' * style.randrange(0, 420)}{place.rng.getrandbits(32)}"),
    ]


def response_headers(place: Place, size: int) -> list[tuple[str, str]]:
    return [
        ("server", place.shared("server").choice(["nginx", "Apache", "cloudfront", "envoy"])),
        ("date", "Sun, 22 Nov 2026 06:00:00 GMT"),
        ("content-type", "application/octet-stream"),
        ("content-length", str(int(size))),
        ("cache-control", "public, max-age=31536000, immutable"),
        ("etag", f'"{place.rng.getrandbits(64):016x}"'),
        ("x-served-by", f"cache-{place.rng.getrandbits(60):x}" * place.shared("via").randrange(1, 6)),
    ]


def head(first: str, headers: list[tuple[str, str]]) -> bytes:
    lines = [first, *(f"{name.title()}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def parse_head(data: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = data.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


# ---- the server


async def serve(place: Place, name: str, port: int = 443, *, tls: bool = True, requests: int = 1000) -> None:
    """Serve the name; a connection ends after so many requests."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for left in range(requests, 0, -1):
            try:
                first, headers = parse_head(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 75))
            except (TimeoutError, asyncio.LimitOverrunError):
                return
            if length := int(headers.get("content-length", 0)):
                await skip(reader, length)
            size, think_s, rate = wish((first.split() + ["", "/"])[1])
            await place.pause(think_s / 1000)
            last = left == 1 or headers.get("connection") == "close"
            extra = [("connection", "close" if last else "keep-alive")]
            writer.write(head("HTTP/1.1 200 OK", response_headers(place, int(size)) + extra))
            await send_body(place, writer, int(size), rate)
            if last:
                return

    await place.listen(name, port, handle, tls=tls, alpn=("http/1.1",) if tls else ())


async def send_body(place: Place, writer: asyncio.StreamWriter, size: int, rate: float) -> None:
    while size > 0:
        piece = min(size, CHUNK if not rate else max(1200, int(rate / 20)))
        writer.write(place.filler(piece))
        await writer.drain()
        size -= piece
        if rate:
            await place.pause(piece / rate)


async def skip(reader: asyncio.StreamReader, length: int) -> None:
    while length > 0:
        data = await reader.read(min(length, 1 << 17))
        if not data:
            raise asyncio.IncompleteReadError(b"", length)
        length -= len(data)


# ---- the client


class Http1:
    """Up to six connections a host, kept open and used again."""

    def __init__(self, place: Place, port: int = 443, *, tls: bool = True, connections: int = CONNECTIONS) -> None:
        self.place, self.port, self.tls = place, port, tls
        self._idle: dict[str, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {}
        self._room: dict[str, asyncio.Semaphore] = {}
        self._connections = connections

    async def fetch(self, name: str, size: int, *, think_ms: float = 5, up: int = 0, rate: float = 0) -> None:
        async with self._room.setdefault(name, asyncio.Semaphore(self._connections)):
            for _ in range(3):  # a kept connection may have been closed meanwhile
                idle = self._idle.setdefault(name, [])
                pair = idle.pop() if idle else await self.place.connect(name, self.port, tls=self.tls)
                try:
                    if await self._ask(*pair, name, size, think_ms, up, rate):
                        idle.append(pair)
                    else:
                        await self.place.hang_up(pair[1])
                    return
                except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
                    await self.place.hang_up(pair[1])

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, size: int,
                   think_ms: float, up: int, rate: float) -> bool:  # fmt: skip
        place = self.place
        headers = [("host", name), *request_headers(place, name)]
        path = path_of(place, size, think_ms, rate)
        if up:
            headers.append(("content-length", str(int(up))))
        writer.write(head(f"{'POST' if up else 'GET'} {path} HTTP/1.1", headers))
        if up:
            await send_body(place, writer, int(up), 0)
        await writer.drain()
        _, answer = parse_head(await reader.readuntil(b"\r\n\r\n"))
        await skip(reader, int(answer.get("content-length", 0)))
        return answer.get("connection") != "close"

    async def close(self) -> None:
        pairs = [pair for idle in self._idle.values() for pair in idle]
        self._idle.clear()
        await asyncio.gather(*(self.place.hang_up(writer) for _, writer in pairs))
