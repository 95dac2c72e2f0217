"""A client of the unix socket: where daemons listen, and one request at a time.

`netssmd ctl` and `netssmd top` use this; it imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from netssmd.errors import NetssmdError, UsageError

NAME = "netssmd.sock"


def runtime_folder() -> Path:
    """Where this user's daemon puts its socket: $RUNTIME_DIRECTORY (systemd), $XDG_RUNTIME_DIR/netssmd, or
    /tmp/netssmd-<uid>, private."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    user = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(user) / "netssmd" if user else Path(f"/tmp/netssmd-{os.getuid()}")


def live_sockets() -> Iterator[Path]:
    """Sockets at the usual places that answer: the runtime folder's, then those of units under /run."""
    folders = [runtime_folder(), *sorted(Path("/run").glob("netssmd*"))]
    for path in dict.fromkeys(path for folder in folders for path in sorted(folder.glob("*.sock"))):
        if answers(path):
            yield path


def answers(path: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.settimeout(1)
        probe.connect(str(path))
        return True
    return False


class Asker:
    """A client's end: one request at a time, over one connection. Raises NetssmdError for what the daemon refuses and
    where none answers."""

    def __init__(self, path: Path, timeout_seconds: float = 10.0) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_seconds)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise NetssmdError(f"{path}: no daemon answers: {_why(error)}") from None
        self._file = self._socket.makefile("rb")

    def ask(self, command: str, arguments: dict[str, object] | None = None) -> dict[str, object]:
        """The result of a command."""
        request = json.dumps({"command": command, "arguments": arguments or {}})
        try:
            self._socket.sendall(request.encode() + b"\n")
            reply = json.loads(self._file.readline() or b"null")
        except (OSError, ValueError) as error:
            raise NetssmdError(f"{self.path}: no reply: {error}") from None
        if not isinstance(reply, dict):
            raise NetssmdError(f"{self.path}: the daemon closed the connection")
        if not reply.get("ok"):
            raise UsageError(str(reply.get("error")))
        result = reply["result"]
        assert isinstance(result, dict)
        return result

    def events(self) -> Iterator[dict[str, object]]:
        """What comes after `watch`, until the daemon stops."""
        self._socket.settimeout(None)
        for one in self._file:
            yield json.loads(one)

    def close(self) -> None:
        """Hang up; a thread that waits in `events` comes to its end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._socket.close()


def _why(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "you may not connect; it is open to its user, and to the group that control.group names"
    if isinstance(error, ConnectionRefusedError):
        return "the socket is left from one that was killed; start it again"
    return f"{error.strerror or error}; `netssmd run` starts one"


def find_socket() -> Path:
    """The only daemon at the usual places. Raises NetssmdError where there is none, UsageError where there are
    several."""
    found = list(live_sockets())
    if not found:
        raise NetssmdError(
            f"no daemon answers at {runtime_folder() / NAME}; start one with `netssmd run`, or name its socket with "
            "--socket"
        )
    if len(found) > 1:
        raise UsageError(f"several daemons run; choose one: {', '.join(f'--socket {path}' for path in found)}")
    return found[0]
