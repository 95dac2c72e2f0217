"""The unix socket: newline-delimited JSON requests in, replies out, in order; `watch` is followed by events.

The socket is there before the daemon is ready and goes when it ends. It lies in the runtime directory (systemd's, or
the user's), has mode 0600, or 0660 with a group that may control the daemon; nobody can connect before it has them.
Requests are bounded in length, connections in number; who does not read its replies holds up itself only.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from netssmd.daemon.control import MOST_BYTES, failure, obey, parse_request
from netssmd.daemon.control_client import NAME, answers, runtime_folder
from netssmd.errors import ConfigError, OutputError, UsageError

if TYPE_CHECKING:
    from netssmd.daemon.service import Service

CONNECTIONS = 64
LONGEST_PATH = 107  # bytes, unix(7)
FAREWELL_SECONDS = 1.0  # for those who watch to read the last events


# --- where it lies ---


def _own_folder(folder: Path) -> None:
    """Make it, for this user alone. One of that name that somebody else made is refused."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.getuid(), 0):
        raise OutputError(f"{folder}: belongs to somebody else; set control.socket to a path of your own")


def listen(wanted: str, group: str) -> tuple[socket.socket, Path]:
    """A listening socket and its path: the one that a configuration asks for; "": the usual one, or with the process's
    number where another daemon has that."""
    if wanted:
        return _bind(Path(wanted), group), Path(wanted)
    folder = runtime_folder()
    _own_folder(folder)
    others = (f"netssmd-{os.getpid()}{f'-{i}' if i else ''}.sock" for i in range(CONNECTIONS))
    for name in (NAME, *others):
        with contextlib.suppress(FileExistsError):
            return _bind(folder / name, group), folder / name
    raise OutputError(f"{folder}: no name is left for a socket; set control.socket")


def _bind(path: Path, group: str) -> socket.socket:
    """A listening socket under its final name; one that nobody listens at any more gives way. Until it listens nobody
    can connect, and then it has its mode. Raises FileExistsError where somebody listens."""
    if len(os.fsencode(path)) + len(f".{os.getpid()}") > LONGEST_PATH:
        raise ConfigError(f"control.socket: {path}: a socket's path has at most {LONGEST_PATH} bytes; choose a shorter")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        part.unlink(missing_ok=True)
        listener.bind(str(part))
        os.chmod(part, 0o660 if group else 0o600)
        if group:
            os.chown(part, -1, grp.getgrnam(group).gr_gid)
        listener.listen(CONNECTIONS)
        try:
            os.link(part, path)  # unlike a rename it does not take the place of one that was made just now
        except FileExistsError:
            if answers(path):
                raise
            os.rename(part, path)
        part.unlink(missing_ok=True)
    except FileExistsError:
        part.unlink(missing_ok=True)
        listener.close()
        raise
    except KeyError:
        part.unlink(missing_ok=True)
        listener.close()
        raise ConfigError(f"control.group: there is no group {group!r}; make it, or leave it empty") from None
    except OSError as error:
        part.unlink(missing_ok=True)
        listener.close()
        raise OutputError(
            f"control socket {path}: {error.strerror}; set control.socket to a path that can be made"
        ) from None
    return listener


# --- serving ---


class ControlSocket:
    """The listening socket of one service; `close` takes it away."""

    def __init__(self, service: Service, path: str = "", group: str = "") -> None:
        self.service = service
        try:
            self._listener, self.path = listen(path, group)
        except FileExistsError:
            raise OutputError(f"{path}: another daemon listens there; set control.socket to another path") from None
        self._inode = self.path.stat().st_ino
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._watched: set[asyncio.Task[None]] = set()  # those of `_serving` that end with the events

    async def start(self) -> None:
        """Answer from here on."""
        self._server = await asyncio.start_unix_server(self._accept, sock=self._listener, limit=MOST_BYTES)

    async def close(self) -> None:
        """Answer nobody any more, and remove the path if it is still ours. The events are closed already, and who
        watches is told the last of them."""
        if self._server:
            self._server.close()
        self._listener.close()
        if self._watched:
            await asyncio.wait(self._watched, timeout=FAREWELL_SECONDS)
        for task in tuple(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        if len(self._serving) >= CONNECTIONS:
            writer.close()
            return
        self._serving.add(task)
        try:
            await self._serve(reader, writer)
        except OSError:
            pass  # the other side left
        finally:
            self._serving.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                request_line = await reader.readline()
            except ValueError:  # longer than the limit
                await _write(writer, failure(f"a request is at most {MOST_BYTES} bytes"))
                return
            if not request_line.endswith(b"\n"):
                return
            try:
                request = parse_request(request_line)
            except UsageError as error:
                await _write(writer, failure(error))
                continue
            await _write(writer, await obey(self.service, request))
            if request.command.streams:
                task = asyncio.current_task()
                assert task
                self._watched.add(task)
                try:
                    await self._stream(reader, writer, request.arguments["events"] or [])
                finally:
                    self._watched.discard(task)
                return

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kinds: list[str]) -> None:
        """Events until the daemon stops or the caller closes; what the caller says meanwhile is not heard."""
        with self.service.events.subscribe(*kinds) as events:
            gone = asyncio.ensure_future(_end_of(reader))
            try:
                told = 0
                while True:
                    coming = asyncio.ensure_future(anext(events))
                    await asyncio.wait((coming, gone), return_when=asyncio.FIRST_COMPLETED)
                    if not coming.done():
                        coming.cancel()
                        return
                    if events.lost > told:
                        await _write(writer, {"event": "lost", "count": events.lost - told})
                        told = events.lost
                    await _write(writer, coming.result().json())
            except StopAsyncIteration:
                return
            finally:
                gone.cancel()


async def _end_of(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(4096):
            pass


async def _write(writer: asyncio.StreamWriter, value: dict[str, object]) -> None:
    writer.write(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str).encode() + b"\n")
    await writer.drain()
