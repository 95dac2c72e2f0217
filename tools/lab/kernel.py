"""What the lab asks of Linux: namespaces, TAPs, sysctls. Calls that the os module of Python 3.11 lacks go by ctypes.

Sources: unshare(2), setns(2), mount(2), prctl(2), Linux Documentation/networking/tuntap.rst and ip-sysctl.rst.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29
_TUNSETIFF, _IFF_TAP_NO_PI = 0x400454CA, 0x1002
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def enter(namespace: int) -> None:
    """Put this thread into the namespace of an open descriptor."""
    _check(_libc.setns(namespace, 0), "setns")


def mount(source: str, target: str, kind: str, options: str = "") -> None:
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), 0, options.encode()), f"mount {target}")


def bind(source: str, target: str) -> None:
    _check(_libc.mount(source.encode(), target.encode(), None, _MS_BIND, None), f"mount {target}")


def private_mounts() -> None:
    """From here on mounts are seen in this namespace only."""
    _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount /")


def die_with_parent() -> None:
    """SIGKILL for this process when the one that forked it is gone."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    _libc.prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)


def namespace() -> int:
    """A descriptor of the network namespace this thread is in."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def tap(name: str) -> int:
    """Make a TAP in this network namespace: a non-blocking descriptor, the device goes with it."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP_NO_PI))
    return fd


def ip(lines: Sequence[str]) -> None:
    """Commands of ip(8) in this network namespace, one process for all. Raises RuntimeError."""
    done = subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip: {done.stderr.strip()}")


def sysctl(values: Mapping[str, object]) -> None:
    """Set sysctls of this network namespace: names with dots under net. Those that the kernel lacks are passed over."""
    for name, value in values.items():
        path = Path("/proc/sys/net") / name.replace(".", "/")
        if path.exists():
            path.write_text(str(value))


def congestion_controls() -> list[str]:
    """Those that TCP has here, the default first."""
    folder = Path("/proc/sys/net/ipv4")
    default = (folder / "tcp_congestion_control").read_text().strip()
    return [default, *(folder / "tcp_available_congestion_control").read_text().split()]


def waited_seconds(pid: int) -> float:
    """How long a process was ready to run and did not: others had the processors. 0 where the kernel does not count."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def device_counts(pid: int, device: str) -> tuple[int, int]:
    """(frames that came in by the device, frames that were to go out) in the network namespace of a process."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == device:
            fields = [int(number) for number in numbers.split()]
            return fields[1], fields[9] + fields[11]  # sent and dropped on the way out
    raise RuntimeError(f"no device {device} in the namespace of process {pid}")
