"""sd_notify(3) in a few lines: a state such as READY=1 as a datagram to the socket that systemd names, if it names
one."""

import os
import socket


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


def watchdog_seconds() -> float:
    """How often WATCHDOG=1 is wanted: half of systemd's limit; 0 = not wanted."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return int(os.environ.get("WATCHDOG_USEC") or "0") / 2e6
