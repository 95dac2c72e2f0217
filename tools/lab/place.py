"""What a workload works with: a side of the session, its names, its generator, sockets, and real programs.

Both sides get a `Place` of their own, in their own network namespace. Servers listen on addresses that belong to
names (`listen`), clients look the name up by the system's resolver and connect (`connect`): the lookups are in the
capture. Everything ends with the session, whatever a workload leaves running.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.lab.link import Conditions
from tools.lab.names import Names

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
FILLER = os.urandom(1 << 20)  # payloads are not kept: one block, cut anywhere, is as good as another
STREAM_LIMIT = 1 << 20
START_SECONDS = 60.0
RESETS = 0.15  # share of sessions whose client closes with RST: what backbone and campus traces report, 10 to 20 %


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates for every name under `test.`, made once a run: (chain, key) by kind, and who signed them."""

    authority: Path
    pairs: tuple[tuple[Path, Path], ...]


@dataclass(slots=True)
class Place:
    """One side of a session.

    `plan` is what the workload's `plan` drew, the same on both sides. `length` is 1 for a usual session and about 10
    for a long one: durations and counts scale with it. `style` is a generator that gives both sides the same numbers,
    `rng` is a side's own.
    """

    names: Names
    conditions: Conditions
    rng: random.Random
    folder: Path
    tls: Tls
    plan: Any
    length: float
    client_address: str
    gateway: str
    style_seed: str
    _known: dict[str, str] = field(default_factory=dict)
    _running: list[Any] = field(default_factory=list)
    _contexts: dict[tuple[str, ...], ssl.SSLContext] = field(default_factory=dict)

    # ---- time and size

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    def filler(self, size: int) -> bytes:
        """That many bytes which do not compress."""
        size = max(0, int(size))
        start = self.rng.randrange(1 << 16)
        return FILLER[start : start + size] if size < 900_000 else os.urandom(size)

    def shared(self, what: str) -> random.Random:
        """A generator that is the same on both sides."""
        return random.Random(f"{self.style_seed}/{what}")

    def keep(self, running: object) -> None:
        """Hold on to a task or a server for as long as the session lasts."""
        self._running.append(running)

    # ---- servers

    async def listen(
        self, name: str, port: int, handler: Handler, *, tls: bool = False, alpn: tuple[str, ...] = ()
    ) -> Any:
        """Serve TCP on the name's addresses. What a handler raises when its client is gone is no error."""

        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, EOFError, ssl.SSLError):
                await handler(reader, writer)
            with contextlib.suppress(OSError, ssl.SSLError):
                writer.close()

        context = self.server_context(alpn) if tls else None
        server = await asyncio.start_server(
            guarded, self.names.all(name), port, ssl=context, limit=STREAM_LIMIT, backlog=1024
        )  # fmt: skip
        self._running.append(server)
        return server

    async def listen_udp(self, name: str, port: int, protocol: Callable[[], asyncio.DatagramProtocol]) -> None:
        loop = asyncio.get_running_loop()
        for address in self.names.all(name):
            self._running.append(await loop.create_datagram_endpoint(protocol, local_addr=(address, port)))

    def server_context(self, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
        key = ("server", *alpn)
        if key not in self._contexts:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            chain, private = self.shared("certificate").choice(self.tls.pairs)
            context.load_cert_chain(chain, private)
            self._contexts[key] = self._common(context, alpn)
        return self._contexts[key]

    # ---- clients

    def client_context(self, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
        key = ("client", *alpn)
        if key not in self._contexts:
            context = ssl.create_default_context(cafile=str(self.tls.authority))
            context.check_hostname = False  # one certificate serves all names
            self._contexts[key] = self._common(context, alpn)
        return self._contexts[key]

    def _common(self, context: ssl.SSLContext, alpn: tuple[str, ...]) -> ssl.SSLContext:
        if self.shared("tls").random() < 0.15:  # what is left of TLS 1.2 on the web
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    async def resolve(self, name: str) -> str:
        """An address of the name, asked once: a client's own cache."""
        if name not in self._known:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            self._known[name] = str(found[0][4][0])
        return self._known[name]

    async def connect(
        self, name: str, port: int, *, tls: bool = False, alpn: tuple[str, ...] = ()
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = await self.resolve(name)
        return await asyncio.open_connection(
            address, port, ssl=self.client_context(alpn) if tls else None, server_hostname=name if tls else None,
            limit=STREAM_LIMIT,
        )  # fmt: skip

    async def hang_up(self, writer: asyncio.StreamWriter) -> None:
        """Close a connection: with FIN, or in sessions of that style with RST (SO_LINGER 0), as hasty clients do."""
        if self.shared("hurry").random() < RESETS and (connection := writer.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError):  # the server was faster
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), 10)

    @contextlib.asynccontextmanager
    async def connected(
        self, name: str, port: int, *, tls: bool = False, alpn: tuple[str, ...] = ()
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await self.connect(name, port, tls=tls, alpn=alpn)
        try:
            yield reader, writer
        finally:
            await self.hang_up(writer)

    # ---- real programs

    async def start(self, *argv: str, port: int | None = None, user: str | None = None,
                    env: dict[str, str] | None = None) -> asyncio.subprocess.Process:  # fmt: skip
        """Start a server program; wait until a TCP port is listened on, if one is given."""
        program = shutil.which(argv[0]) or argv[0]
        log = self.folder / f"{Path(program).name}.log"
        with open(log, "ab") as out:
            process = await asyncio.create_subprocess_exec(
                program, *argv[1:], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.folder, user=user,
                env={**os.environ, **(env or {})},
            )  # fmt: skip
        self._running.append(process)
        if port is not None:
            await self.listening(port, process, log)
        return process

    async def listening(self, port: int, process: asyncio.subprocess.Process, log: Path) -> None:
        """Wait until somebody listens there. Asks the kernel's table, so that no server sees a connection of ours."""
        until = asyncio.get_running_loop().time() + START_SECONDS
        while not is_listening(port):
            if asyncio.get_running_loop().time() > until or (process.returncode or 0) != 0:
                said = log.read_text(errors="replace").strip().splitlines()
                raise RuntimeError(f"nothing listens on port {port}: {said[-1] if said else 'not a word'} ({log.name})")
            await asyncio.sleep(0.02)

    async def call(self, *argv: str, stdin: bytes | None = None, seconds: float = 600.0, user: str | None = None,
                   env: dict[str, str] | None = None) -> tuple[int, bytes]:  # fmt: skip
        """Run a client program to its end: (exit status, what it wrote). Raises TimeoutError."""
        program = shutil.which(argv[0]) or argv[0]
        process = await asyncio.create_subprocess_exec(
            program, *argv[1:], stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL, user=user,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.folder, env={**os.environ, **(env or {})},
        )  # fmt: skip
        try:
            out, _ = await asyncio.wait_for(process.communicate(stdin), seconds)
        except TimeoutError:
            process.terminate()
            raise
        return process.returncode or 0, out


def is_listening(port: int) -> bool:
    """Does a TCP socket of this network namespace listen on the port?"""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
                return True
    return False
