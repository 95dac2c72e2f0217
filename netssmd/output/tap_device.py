"""TAP devices: named, looked at, attached to, made and removed. Nothing else is ever opened.

In: the name of a device and, where it is not this process's own, of the network namespace it lives in. Out: a file
descriptor that takes frames, or facts about devices.

A physical interface cannot be opened here, three times over: the name must be one that a TAP may have, the device that
bears it must say of itself that it is a TAP (ETHTOOL_GDRVINFO: driver `tun`, bus `tap`), and the only way in is
TUNSETIFF on /dev/net/tun, which the kernel refuses for every other kind of device.

Attaching takes no capability where the device belongs to the caller; making, changing and removing one takes
CAP_NET_ADMIN, entering a namespace CAP_SYS_ADMIN. A device that `attach` made itself is not persistent: the kernel
removes it with its last descriptor, also after kill -9. IPv6 is told to give the device no address before it goes up,
or else it announces itself with router solicitations and multicast reports of its own.

Sources: Linux Documentation/networking/tuntap.rst, ip-netns(8), netdevice(7). Raises OutputError throughout.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from netssmd.errors import OutputError

T = TypeVar("T")

NAME_BYTES: Final = 15  # IFNAMSIZ less the final zero
NETNS_FOLDER: Final = "/run/netns"
TUN_PATH: Final = "/dev/net/tun"
HEADER_BYTES: Final = 14  # of Ethernet, which an MTU does not count

_TUNSETIFF: Final = 0x400454CA
_IFF_TAP_NO_PI: Final = 0x1002
_SIOCGIFMTU: Final = 0x8921
_SIOCGIFFLAGS: Final = 0x8913
_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GDRVINFO: Final = 3
_IFF_UP: Final = 1
_CLONE_NEWNET: Final = 0x40000000
_ADDR_GEN_MODE_NONE: Final = 1


@dataclass(frozen=True, slots=True)
class Device:
    """What the kernel says of an interface. `driver` and `bus` are "tun" and "tap" for a TAP; `mtu` in bytes behind the
    Ethernet header."""

    name: str
    driver: str
    bus: str
    mtu: int
    up: bool

    @property
    def is_tap(self) -> bool:
        return (self.driver, self.bus) == ("tun", "tap")


@dataclass(frozen=True, slots=True)
class Attached:
    """An open TAP: its descriptor (non-blocking) and what it was then. `made`: by this process, and gone with it.

    `control` is a socket of the device's namespace: it shows the device from any thread.
    """

    fd: int
    device: Device
    made: bool
    control: socket.socket

    def look(self) -> Device | None:
        """The device as it is now; None if it is gone."""
        return _look_up(self.control, self.device.name)

    def close(self) -> None:
        os.close(self.fd)
        self.control.close()


def check_name(name: str, what: str = "TAP device") -> str:
    """The name, if a TAP device may have it."""
    if not 1 <= len(name.encode()) <= NAME_BYTES:
        raise OutputError(f"{what} {name!r}: a name has 1 to {NAME_BYTES} bytes, this one {len(name.encode())}")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise OutputError(f"{what} {name!r}: write a name of letters, digits, '_', '-' and '.', such as netssm0")
    return name


# --- in another namespace ---------------------------------------------------------------------------------------------


def in_netns(netns: str, work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own, inside the named namespace ("" = this one). Raises what it raises."""
    results: list[T] = []
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            if netns:
                _enter(netns)
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter, name="netssmd-netns", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _enter(netns: str) -> None:
    """Move the calling thread into a namespace that ip-netns(8) made."""
    if not re.fullmatch(r"[^/\0]+", netns) or netns in (".", ".."):
        raise OutputError(f"network namespace {netns!r}: write a name that `ip netns list` shows")
    try:
        fd = os.open(f"{NETNS_FOLDER}/{netns}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise OutputError(
            f"network namespace {netns}: cannot be opened: {error.strerror}; make it with `ip netns add {netns}`"
        ) from None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise OutputError(
                f"network namespace {netns}: cannot be entered: {reason}; that takes CAP_SYS_ADMIN, or start the "
                f"program inside it: ip netns exec {netns} ..."
            )
    finally:
        os.close(fd)


# --- looking ----------------------------------------------------------------------------------------------------------


def look_up(name: str) -> Device | None:
    """The interface of this name in the calling thread's namespace; None if there is none."""
    with _control() as control:
        return _look_up(control, name)


def _control() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _look_up(control: socket.socket, name: str) -> Device | None:
    request = struct.pack("16s24x", name.encode())
    try:
        flags = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)[0]
        mtu = struct.unpack_from("i", fcntl.ioctl(control, _SIOCGIFMTU, request), 16)[0]
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENXIO):
            return None
        raise OutputError(f"interface {name}: {error.strerror}") from None
    driver, bus = _driver(control, name)
    return Device(name, driver, bus, mtu, bool(flags & _IFF_UP))


def _driver(control: socket.socket, name: str) -> tuple[str, str]:
    """Driver and bus as ethtool(8) -i shows them; empty where the interface tells nothing (lo)."""
    info = ctypes.create_string_buffer(struct.pack("I192x", _ETHTOOL_GDRVINFO), 196)
    try:
        fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), ctypes.addressof(info)))
    except OSError:
        return "", ""
    # struct ethtool_drvinfo: cmd(4) driver(32) version(32) fw_version(32) bus_info(32) ...
    return tuple(info.raw[at : at + 32].partition(b"\0")[0].decode("ascii", "replace") for at in (4, 100))  # type: ignore[return-value]


def require_tap(device: Device) -> Device:
    if not device.is_tap:
        kind = f"driver {device.driver}" if device.driver else "no driver named"
        raise OutputError(
            f"{device.name}: is no TAP device ({kind}), and netssmd opens nothing else; write another name, or make "
            "one with `netssmd tap create NAME`"
        )
    return device


# --- attaching --------------------------------------------------------------------------------------------------------


def attach(name: str, netns: str = "", create: bool = False, mtu: int = 1500, mac: str = "") -> Attached:
    """Open the TAP device. create: if it is not there, make one that lives as long as the descriptor, with this MTU
    and MAC ("" = one that the kernel picks), and bring it up."""
    check_name(name)
    return in_netns(netns, lambda: _attach(name, netns, create, mtu, mac))


def _attach(name: str, netns: str, create: bool, mtu: int, mac: str) -> Attached:
    found = look_up(name)
    if found is not None:
        require_tap(found)
    elif not create:
        inside = f" in network namespace {netns}" if netns else ""
        there = f" --netns {netns}" if netns else ""
        raise OutputError(f"TAP device {name}: there is none{inside}; make it with `netssmd tap create {name}{there}`")
    fd = _open_tun()
    try:
        try:
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP_NO_PI))
        except OSError as error:
            raise OutputError(f"TAP device {name}: {_refusal(error, name, found is not None)}") from None
        if found is None:
            links(lambda ipr: _configure(ipr, name, mtu, mac), f"TAP device {name}")
        device = look_up(name)
        if device is None:
            raise OutputError(f"TAP device {name}: vanished while it was opened")
        return Attached(fd, require_tap(device), found is None, _control())
    except BaseException:
        os.close(fd)
        raise


def _open_tun() -> int:
    try:
        return os.open(TUN_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENODEV)
        remedy = "modprobe tun" if missing else f"chmod 0666 {TUN_PATH}, as udev does"
        raise OutputError(f"{TUN_PATH}: cannot be opened: {error.strerror}; as root: {remedy}") from None


def _refusal(error: OSError, name: str, found: bool) -> str:
    if error.errno == errno.EBUSY:
        return "another program has it open; stop that one, or make another device"
    if error.errno == errno.EPERM and found:
        return f"belongs to another user; make it with `netssmd tap create {name} --owner USER`"
    if error.errno == errno.EPERM:
        return f"there is none, and making one takes CAP_NET_ADMIN; as root: netssmd tap create {name} --owner USER"
    return f"cannot be opened: {error.strerror}"


# --- making, by netlink -----------------------------------------------------------------------------------------------


def create(
    name: str, owner: int, group: int = -1, mtu: int = 1500, mac: str = "", netns: str = "", bridge: str = ""
) -> Device:
    """Make a persistent TAP device that user `owner` (and group, unless -1) may open, up and silent. bridge: put it
    into this bridge, which is made if it is not there."""
    check_name(name)
    if bridge:
        check_name(bridge, "bridge")

    async def make(ipr: Any) -> None:
        if await ipr.link_lookup(ifname=name):
            raise OutputError(f"{name}: there is an interface of this name; `netssmd tap delete {name}` removes a TAP")
        if bridge:
            await _bridge(ipr, bridge)
        ids = {"uid": owner, **({"gid": group} if group >= 0 else {})}
        await ipr.link("add", ifname=name, kind="tuntap", mode="tap", ifr={"no_pi": 1}, **ids)
        try:
            await _configure(ipr, name, mtu, mac, bridge)
        except BaseException:
            await _remove(ipr, name)
            raise

    def work() -> Device:
        links(make, f"TAP device {name}")
        device = look_up(name)
        if device is None:
            raise OutputError(f"TAP device {name}: vanished while it was made")
        return device

    return in_netns(netns, work)


def delete(name: str, netns: str = "") -> None:
    """Remove a TAP device; of anything else hands off."""
    check_name(name)

    def work() -> None:
        device = look_up(name)
        if device is None:
            raise OutputError(f"TAP device {name}: there is none")
        require_tap(device)
        links(lambda ipr: _remove(ipr, name), f"TAP device {name}")

    in_netns(netns, work)


def devices(netns: str = "") -> list[Device]:
    """All TAP devices."""

    def work() -> list[Device]:
        found = (look_up(name) for _, name in socket.if_nameindex())
        return [device for device in found if device is not None and device.is_tap]

    return in_netns(netns, work)


async def _configure(ipr: Any, name: str, mtu: int, mac: str, bridge: str = "") -> None:
    """MTU, MAC, bridge; then silence; then up."""
    index = (await ipr.link_lookup(ifname=name))[0]
    settings: dict[str, Any] = {"mtu": mtu, **({"address": mac} if mac else {})}
    if bridge:
        settings["master"] = (await ipr.link_lookup(ifname=bridge))[0]
    await ipr.link("set", index=index, **settings)
    await _silence(ipr, index)
    await ipr.link("set", index=index, state="up")


async def _silence(ipr: Any, index: int) -> None:
    """No IPv6 address of its own, where there is IPv6 at all."""
    from pyroute2.netlink.exceptions import NetlinkError

    inet6 = ("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE)]})
    try:
        await ipr.link("set", index=index, IFLA_AF_SPEC={"attrs": [inet6]})
    except NetlinkError as error:
        if error.code not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL):
            raise


async def _bridge(ipr: Any, name: str) -> None:
    found = await ipr.link_lookup(ifname=name)
    if not found:
        await ipr.link("add", ifname=name, kind="bridge", br_mcast_snooping=0)  # which would send IGMP of its own
        index = (await ipr.link_lookup(ifname=name))[0]
        await _silence(ipr, index)
        await ipr.link("set", index=index, state="up")
        return
    (link,) = await ipr.link("get", index=found[0])
    if link.get(("linkinfo", "kind")) != "bridge":
        raise OutputError(f"bridge {name}: there is an interface of this name that is no bridge")


async def _remove(ipr: Any, name: str) -> None:
    for index in await ipr.link_lookup(ifname=name):
        await ipr.link("del", index=index)


def links(work: Callable[[Any], Any], what: str) -> None:
    """Run the coroutine `work(ipr)` with an AsyncIPRoute, on the selector loop: pyroute2 does not know uvloop's
    sockets. Not in a thread that runs a loop already."""
    try:
        import asyncio

        from pyroute2 import AsyncIPRoute
        from pyroute2.netlink.exceptions import NetlinkError
    except ImportError:
        raise OutputError(f"{what}: making and removing takes pyroute2: pip install 'netssmd[tap]'") from None

    async def run() -> None:
        async with AsyncIPRoute() as ipr:
            await work(ipr)

    try:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(run())
    except NetlinkError as error:
        raise OutputError(f"{what}: {_netlink_reason(error.code)}") from None
    except OSError as error:  # the ioctls of making
        raise OutputError(f"{what}: {_netlink_reason(error.errno or 0)}") from None


def _netlink_reason(code: int) -> str:
    if code in (errno.EPERM, errno.EACCES):
        return "making and removing takes CAP_NET_ADMIN; run this as root"
    return os.strerror(code)
