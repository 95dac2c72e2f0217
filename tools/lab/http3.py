"""HTTP/3, both sides, by aioquic: one QUIC connection a host. The interface is http1's.

Sources: RFC 9114, RFC 9000.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tools.lab.http1 import CHUNK, path_of, request_headers, response_headers, wish
from tools.lab.place import Place


def protocol_class() -> Any:
    """The connection: h3 on top of aioquic's asyncio shell; made here because aioquic is imported late."""
    import aioquic.h3.connection
    from aioquic.asyncio.protocol import QuicConnectionProtocol

    class Connection(QuicConnectionProtocol):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self.h3 = aioquic.h3.connection.H3Connection(self._quic)
            self.place: Place | None = None  # set on a server's connections
            self.waiting: dict[int, asyncio.Future[None]] = {}
            self.paths: dict[int, str] = {}

        def quic_event_received(self, event: Any) -> None:
            for what in self.h3.handle_event(event):
                if hasattr(what, "headers") and self.place:
                    self.paths[what.stream_id] = dict(what.headers).get(b":path", b"/").decode()
                if getattr(what, "stream_ended", False):
                    if self.place:
                        self.place.keep(asyncio.ensure_future(self.respond(what.stream_id)))
                    elif (done := self.waiting.pop(what.stream_id, None)) and not done.done():
                        done.set_result(None)

        async def respond(self, stream: int) -> None:
            assert self.place is not None
            size, think_ms, rate = wish(self.paths.pop(stream, "/"))
            await self.place.pause(think_ms / 1000)
            headers = [(":status", "200"), *response_headers(self.place, int(size))]
            self.h3.send_headers(stream, encoded(headers), end_stream=size < 1)
            await self.send_body(self.place, stream, int(size), rate)

        async def send_body(self, place: Place, stream: int, size: int, rate: float) -> None:
            while size > 0:
                piece = min(size, 8 * CHUNK if not rate else max(1200, int(rate / 20)))
                size -= piece
                self.h3.send_data(stream, place.filler(piece), end_stream=size <= 0)
                self.transmit()
                await place.pause(piece / rate if rate else 0)
            self.transmit()

        def connection_lost(self, error: Exception | None) -> None:
            for done in self.waiting.values():
                if not done.done():
                    done.set_result(None)

    return Connection


def encoded(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers]


async def serve(place: Place, name: str, port: int = 443) -> None:
    from aioquic.asyncio import serve as listen
    from aioquic.quic.configuration import QuicConfiguration

    configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3"], max_datagram_frame_size=None)
    chain, key = place.shared("certificate").choice(place.tls.pairs)
    configuration.load_cert_chain(str(chain), str(key))
    made = protocol_class()

    def connection(*arguments: Any, **keywords: Any) -> Any:
        protocol = made(*arguments, **keywords)
        protocol.place = place
        return protocol

    for address in place.names.all(name):
        place.keep(await listen(address, port, configuration=configuration, create_protocol=connection))


class Http3:
    """One connection a host."""

    def __init__(self, place: Place, port: int = 443) -> None:
        self.place, self.port = place, port
        self._opening: dict[str, asyncio.Task[Any]] = {}
        self._contexts: list[Any] = []

    async def _connect(self, name: str) -> Any:
        from aioquic.asyncio import connect
        from aioquic.quic.configuration import QuicConfiguration

        configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name=name, max_data=8 << 20,
                                          max_stream_data=4 << 20)  # fmt: skip
        configuration.load_verify_locations(str(self.place.tls.authority))
        configuration.verify_mode = 0
        address = await self.place.resolve(name)
        made = protocol_class()
        context = connect(address, self.port, configuration=configuration, create_protocol=made)
        self._contexts.append(context)
        return await context.__aenter__()

    async def fetch(self, name: str, size: int, *, think_ms: float = 5, up: int = 0, rate: float = 0) -> None:
        if name not in self._opening:
            self._opening[name] = asyncio.create_task(self._connect(name))
        connection = await asyncio.shield(self._opening[name])
        stream = connection._quic.get_next_available_stream_id()
        path = path_of(self.place, size, think_ms, rate)
        headers = [(":method", "POST" if up else "GET"), (":scheme", "https"), (":authority", name), (":path", path)]
        done = connection.waiting[stream] = asyncio.get_running_loop().create_future()
        connection.h3.send_headers(stream, encoded(headers + request_headers(self.place, name)), end_stream=not up)
        connection.transmit()
        if up:
            await connection.send_body(self.place, stream, int(up), 0)
        await done

    async def close(self) -> None:
        for context in self._contexts:
            await context.__aexit__(None, None, None)
