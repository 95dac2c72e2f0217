"""Network namespaces of a test's own, and what is on a device in there: made for the test, gone with it.

Every test takes new names, so that tests run beside each other. A test that needs them is skipped where it may not make
any (`needs_netns`).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

ETH_P_ALL = 3
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23
OUTGOING = 4  # sll_pkttype of what the host itself sends: what a bridge forwards to a device


def _why_not() -> str:
    if os.getuid() != 0:
        return "takes root: network namespaces are made"
    if not os.path.exists("/dev/net/tun"):
        return "no /dev/net/tun"
    if shutil.which("ip") is None:
        return "no ip (iproute2)"
    made = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    return "" if made.returncode == 0 else "network namespaces cannot be made here"


needs_netns = pytest.mark.skipif(bool(_why_not()), reason=_why_not())


class Netns:
    """One named namespace."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ip(self, *arguments: str) -> str:
        """`ip` in there."""
        done = subprocess.run(["ip", "-n", self.name, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def command(self, *arguments: str) -> list[str]:
        """argv that runs a program in there."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def call(self, work: Callable[[], object]) -> None:
        """Run `work` in a thread in there."""
        errors: list[BaseException] = []

        def enter() -> None:
            try:
                with open(f"/run/netns/{self.name}") as file:
                    assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0x40000000) == 0
                work()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]


@contextmanager
def namespace() -> Iterator[Netns]:
    """A namespace with lo up, for the length of the block."""
    name = f"nsm{os.getpid()}x{os.urandom(3).hex()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        made = Netns(name)
        made.ip("link", "set", "lo", "up")
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


class Sniffer:
    """All frames on a device, in order, by AF_PACKET. `outgoing`: those that leave the host by it, else those that
    arrive. Reads in a thread until `stop`."""

    def __init__(self, netns: Netns, device: str, outgoing: bool = False) -> None:
        self.frames: list[bytes] = []
        self.times_ns: list[int] = []
        self._outgoing = outgoing
        self._stop = threading.Event()
        netns.call(lambda: self._open(device))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _open(self, device: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUFFORCE if hasattr(socket, "SO_RCVBUFFORCE") else 33,
                                64 << 20)  # fmt: skip
        self._socket.bind((device, ETH_P_ALL))
        self._socket.settimeout(0.05)

    def _read(self) -> None:
        while True:
            try:
                frame, address = self._socket.recvfrom(70_000)
            except (TimeoutError, OSError) as error:
                if self._stop.is_set() or not isinstance(error, TimeoutError | OSError):
                    return
                if not isinstance(error, TimeoutError):
                    time.sleep(0.01)  # ENETDOWN: the device went down or away
                continue
            if (address[2] == OUTGOING) == self._outgoing:
                self.frames.append(frame)
                self.times_ns.append(time.monotonic_ns())

    @property
    def lost(self) -> int:
        """Frames that this socket had no room for (PACKET_STATISTICS)."""
        return int(struct.unpack("II", self._socket.getsockopt(SOL_PACKET, 6, 8))[1])

    def stop(self) -> list[bytes]:
        """What was seen."""
        self._stop.set()
        self._thread.join()
        self._socket.close()
        return self.frames
