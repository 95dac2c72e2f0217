"""HTTP/2, both sides, by the package h2: one connection a host, its streams side by side, flow control kept.

Source: RFC 9113. The interface is http1's.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tools.lab.http1 import path_of, request_headers, response_headers, wish
from tools.lab.place import Place

WINDOW = 1 << 20  # a stream's, as browsers announce one of megabytes
FRAME = 16_384


class Peer:
    """A connection: what h2 wants sent is sent, what it says happened is heard."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, client: bool) -> None:
        import h2.config
        import h2.connection
        import h2.settings

        self.reader, self.writer = reader, writer
        config = h2.config.H2Configuration(client_side=client, header_encoding="utf-8", validate_inbound_headers=False)
        self.h2: Any = h2.connection.H2Connection(config)
        codes = h2.settings.SettingCodes
        values = {codes.INITIAL_WINDOW_SIZE: WINDOW, codes.MAX_CONCURRENT_STREAMS: 100, codes.ENABLE_PUSH: 0}
        self.h2.local_settings = h2.settings.Settings(client=client, initial_values=values)
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(8 << 20)
        self.room = asyncio.Condition()
        self.open = True

    async def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.writer.write(data)
        await self.writer.drain()

    async def events(self) -> list[Any] | None:
        """What happened next; None: the peer has closed."""
        data = await self.reader.read(1 << 16)
        if not data:
            return None
        events: list[Any] = self.h2.receive_data(data)
        for event in events:
            if length := getattr(event, "flow_controlled_length", 0):
                self.h2.acknowledge_received_data(length, event.stream_id)
        await self.flush()
        async with self.room:
            self.room.notify_all()
        return events

    async def send_body(self, place: Place, stream: int, size: int, rate: float) -> None:
        while size > 0:
            async with self.room:
                while self.open and self.h2.local_flow_control_window(stream) <= 0:
                    await self.room.wait()
            if not self.open:
                return
            window = self.h2.local_flow_control_window(stream)
            piece = min(size, FRAME if not rate else max(1200, int(rate / 20)), window, self.h2.max_outbound_frame_size)
            size -= piece
            self.h2.send_data(stream, place.filler(piece), end_stream=size <= 0)
            await self.flush()
            await place.pause(piece / rate if rate else 0)

    async def shut(self) -> None:
        self.open = False
        async with self.room:
            self.room.notify_all()


async def serve(place: Place, name: str, port: int = 443) -> None:
    import h2.events

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer, tasks = Peer(reader, writer, client=False), set()
        await peer.flush()
        paths: dict[int, str] = {}

        async def respond(stream: int) -> None:
            size, think_ms, rate = wish(paths.pop(stream, "/"))
            await place.pause(think_ms / 1000)
            peer.h2.send_headers(stream, [(":status", "200"), *response_headers(place, int(size))], end_stream=size < 1)
            await peer.flush()
            await peer.send_body(place, stream, int(size), rate)

        try:
            while (events := await peer.events()) is not None:
                for event in events:
                    if isinstance(event, h2.events.RequestReceived):
                        paths[event.stream_id] = dict(event.headers)[":path"]
                    if isinstance(event, h2.events.StreamEnded):
                        task = asyncio.create_task(respond(event.stream_id))
                        tasks.add(task)
                        task.add_done_callback(tasks.discard)
        finally:
            await peer.shut()

    await place.listen(name, port, handle, tls=True, alpn=("h2",))


class Http2:
    """One connection a host."""

    def __init__(self, place: Place, port: int = 443) -> None:
        self.place, self.port = place, port
        self._peers: dict[str, asyncio.Task[tuple[Peer, dict[int, asyncio.Future[None]]]]] = {}
        self._readers: list[asyncio.Task[None]] = []

    async def _connect(self, name: str) -> tuple[Peer, dict[int, asyncio.Future[None]]]:
        import h2.events

        peer = Peer(*await self.place.connect(name, self.port, tls=True, alpn=("h2",)), client=True)
        await peer.flush()
        waiting: dict[int, asyncio.Future[None]] = {}

        async def read() -> None:
            try:
                while (events := await peer.events()) is not None:
                    for event in events:
                        if isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                            done = waiting.pop(event.stream_id, None)
                            if done and not done.done():
                                done.set_result(None)
            except OSError:
                pass
            finally:
                await peer.shut()
                for done in waiting.values():
                    if not done.done():
                        done.set_result(None)
                self._peers.pop(name, None)

        self._readers.append(asyncio.create_task(read()))
        return peer, waiting

    async def fetch(self, name: str, size: int, *, think_ms: float = 5, up: int = 0, rate: float = 0) -> None:
        if name not in self._peers:
            self._peers[name] = asyncio.create_task(self._connect(name))
        peer, waiting = await asyncio.shield(self._peers[name])
        if not peer.open:
            return
        stream = peer.h2.get_next_available_stream_id()
        path = path_of(self.place, size, think_ms, rate)
        headers = [(":method", "POST" if up else "GET"), (":scheme", "https"), (":authority", name), (":path", path)]
        peer.h2.send_headers(stream, headers + request_headers(self.place, name), end_stream=not up)
        done = waiting[stream] = asyncio.get_running_loop().create_future()
        await peer.flush()
        if up:
            await peer.send_body(self.place, stream, int(up), 0)
        await done

    async def close(self) -> None:
        for task in list(self._peers.values()):
            peer, _ = await task
            if peer.open:
                peer.h2.close_connection()
                await peer.flush()
            await self.place.hang_up(peer.writer)
        for reader in self._readers:
            reader.cancel()
