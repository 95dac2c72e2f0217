"""sd_notify(3) in a few lines: a state such as READY=1 as a datagram to the socket that systemd names, if it names
one.

READY=1 when the lanes run, STATUS= every few seconds, RELOADING=1 and READY=1 around a reload, STOPPING=1 when the end
begins, and WATCHDOG=1 as long as there is progress (see watchdog.py). A start or an end that takes long (a large model
or snapshot, a slow disk) asks for more time meanwhile by EXTEND_TIMEOUT_USEC, up to `PATIENCE_SECONDS`.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

STATUS_SECONDS = 5.0
PATIENCE_SECONDS = 600.0  # what hangs for longer is systemd's to end
EXTEND_EVERY_SECONDS = 10.0
EXTEND_BY_SECONDS = 30.0
LOOKS = 4  # at the lanes within systemd's limit: one turn may take up to three quarters of it


def notify(state: str) -> bool:
    """Send `state` ("READY=1", "STOPPING=1", "WATCHDOG=1", "STATUS=..."). False when nobody listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return False
    if path.startswith("@"):  # abstract namespace
        path = "\0" + path[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect(path)
            channel.send(state.encode())
    except OSError:
        return False
    return True


@contextlib.contextmanager
def reloading() -> Iterator[None]:
    """Around a reload: `systemctl reload` returns when it is over."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        yield
    finally:
        notify("READY=1")


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Around a start or an end: systemd's time limit for it does not run out before the block ends."""
    over = threading.Event()

    def extend() -> None:
        for _ in range(round(PATIENCE_SECONDS / EXTEND_EVERY_SECONDS)):
            if over.wait(EXTEND_EVERY_SECONDS):
                return
            notify(f"EXTEND_TIMEOUT_USEC={EXTEND_BY_SECONDS * 1e6:.0f}")

    if os.environ.get("NOTIFY_SOCKET"):
        threading.Thread(target=extend, name="netssmd-patience", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def status_seconds() -> float:
    """How often STATUS= is wanted; 0 = nobody listens."""
    return STATUS_SECONDS if os.environ.get("NOTIFY_SOCKET") else 0.0


def watchdog_seconds() -> float:
    """How often to look whether WATCHDOG=1 may be sent: a quarter of systemd's limit; 0 = not wanted."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    try:
        return int(os.environ.get("WATCHDOG_USEC") or "0") / 1e6 / LOOKS
    except ValueError:
        return 0.0
