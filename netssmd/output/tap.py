"""Packets onto the wire: a sink over one TAP device, or over two that stand for the two sides of an in-line device.

    output thread --write--> sides --> port: fit to the MTU --push--> pacer's queue     (due_ns, frame)
                                       port's thread: pacer.run --write(2)--> TAP

One side: every packet leaves there. Two sides: a packet leaves on the side where its sender lives (`Sides`), so that a
firewall, bridge or IPS between the two devices sees each conversation from both ends, as it would between two cables.

A frame longer than the device's MTU is fragmented if it is IPv4 and may be, and dropped and counted otherwise: the
kernel itself would take it in silence. A device that is down or gone stops nobody: packets that fall due meanwhile are
dropped and counted, or (`wait`) whoever listens to `on_outage` holds the stream back. One line is logged when an outage
begins and one when it ends; a device that is gone is looked for again, and made again if this process made it.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from netssmd.errors import OutputError
from netssmd.output.ledger import SessionMeta
from netssmd.output.pacer import CAPACITY, CLOSED, REASONS, RETRY, Frame, Pacer, be_punctual, open_pacer
from netssmd.output.sink import Outgoing
from netssmd.output.tap_device import HEADER_BYTES, Attached, attach
from netssmd.packet.fragment import fragments, link_len

log = logging.getLogger("netssmd")

CLIENT_SIDE, SERVER_SIDE = 0, 1
LEAD_NS: Final = 50_000_000  # how long before their time packets are wanted: more than the interpreter's threads take
RETRY_NS: Final = 500_000_000  # between two looks for a device that is gone
LOOK_SECONDS: Final = 0.1  # between two looks at a device that is down
_SIDES_KNOWN: Final = 65_536

OnOutage = Callable[[str, bool], object]
"""Called with a device's name when it goes (True) and when it is back (False)."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class TapOptions:
    """How devices are opened. create: made here where they are missing, with this MTU; netns: where they live;
    realtime: SCHED_FIFO priority of the sending threads, 0 = none; late_ns: see pacer.py; wait: frames are kept while a
    device is down or gone."""

    create: bool = True
    mtu: int = 1500
    netns: str = ""
    realtime: int = 0
    late_ns: int = -1
    wait: bool = False
    queue_packets: int = CAPACITY


class TapPort:
    """One device: its descriptor, its queue, its thread."""

    def __init__(self, name: str, options: TapOptions, pacer: Pacer | None = None) -> None:
        self.name = name
        self.options = options
        self.on_outage: OnOutage | None = None
        self.pacer: Pacer = pacer or open_pacer(options.queue_packets, options.late_ns, options.wait)
        self._left: list[Frame] = []  # that found no room, while the device was waited for
        self._closing = threading.Event()
        self.fragmented = 0  # frames that became several
        self.oversize = 0  # frames dropped because they were too long for the device
        self.outages = 0  # times that the device was down or gone
        self._attached: Attached | None = attach(name, options.netns, options.create, options.mtu)
        self.made = self._attached.made  # by this process, and gone with it
        self._mtu = self._attached.device.mtu
        self._up = True
        self._lock = threading.Lock()  # of what is attached: the sending thread loses it while others look
        self.look()
        self._thread = threading.Thread(target=self._work, name=f"netssmd-tap-{name}", daemon=True)
        self._thread.start()

    @property
    def up(self) -> bool:
        """The device is there and up."""
        return self._up

    def push(self, frames: list[Frame]) -> None:
        """Hand frames over, in the order of their time. Waits while too many wait, but not for a device."""
        limit = self._mtu + HEADER_BYTES
        if any(len(data) > limit for _, data in frames):
            frames = [(due_ns, piece) for due_ns, data in frames for piece in self._fit(data, limit)]
        frames = self._left + frames
        done = self.pacer.push(frames)
        while done < len(frames) and (self._up or not self.options.wait) and not self._closing.is_set():
            done += self.pacer.push(frames[done:])
        self._left = frames[done:]

    def _fit(self, data: bytes, limit: int) -> Sequence[bytes]:
        if len(data) <= limit or len(data) - link_len(data) <= self._mtu:
            return (data,)
        pieces = fragments(data, self._mtu)
        if pieces:
            self.fragmented += 1
        else:
            self.oversize += 1
        return pieces

    def watch(self, on_outage: OnOutage) -> None:
        """Be told of outages, from any thread; of one that has begun already at once."""
        with self._lock:
            self.on_outage = on_outage
            if not self._up:
                on_outage(self.name, True)

    def look(self) -> None:
        """Read MTU and state from the kernel; a change of the state is logged. Called every second or so."""
        with self._lock:
            device = self._attached.look() if self._attached else None
            if device is not None:
                self._mtu = device.mtu
            self._set_up(device is not None and device.up, "down" if device else "gone")

    def _set_up(self, up: bool, what: str = "") -> None:
        if up == self._up:
            return
        self._up = up
        if up:
            log.warning("TAP %s is up again", self.name)
        else:
            self.outages += 1
            until = "all waits until" if self.options.wait else "its packets are dropped until"
            log.warning("TAP %s is %s: %s it is back", self.name, what, until)
        if self.on_outage:
            self.on_outage(self.name, not up)

    def _work(self) -> None:
        """The sending thread: run the pacer, and find the device again when it is gone."""
        if problem := be_punctual(self.options.realtime):
            log.warning("TAP %s: %s", self.name, problem)
        while (code := self._run()) != CLOSED:
            if code == RETRY:
                self._find()
            elif code == errno.EIO:
                self._sit_out()
            else:
                self._lose(code)

    def _run(self) -> int:
        attached = self._attached
        if attached:
            return self.pacer.run(attached.fd)
        if self.options.wait and not self._closing.wait(RETRY_NS / 1e9):
            return RETRY
        return self.pacer.run(-1, time.monotonic_ns() + RETRY_NS)

    def _sit_out(self) -> None:
        """The device is down, and is waited for."""
        with self._lock:
            self._set_up(False, "down")
        while not self._closing.wait(LOOK_SECONDS):
            self.look()
            if self._up or self._attached is None:
                return
        with self._lock:
            self._detach()  # what is left is dropped

    def _lose(self, code: int) -> None:
        """The descriptor is of no use any more."""
        if code not in (errno.EBADFD, errno.ENODEV):
            log.error("TAP %s: %s", self.name, os.strerror(code))
        with self._lock:
            self._detach()
            self._set_up(False, "gone")
        if self.made:
            self._find()

    def _find(self) -> None:
        options = self.options
        try:
            attached = attach(self.name, options.netns, self.made, options.mtu)
        except OutputError as error:
            log.debug("%s", error)
            return
        with self._lock:
            self._attached = attached
        self.look()

    def _detach(self) -> None:
        attached, self._attached = self._attached, None
        if attached:
            attached.close()

    def close(self) -> None:
        """Send what is due, drop the rest, end the thread, close the device."""
        self.cut(time.monotonic_ns())
        self._thread.join()
        with self._lock:
            self._detach()

    def cut(self, due_ns: int) -> None:
        """No more frames come; what is due later is dropped."""
        if not self._closing.is_set():
            self._closing.set()
            self.pacer.close(due_ns)

    @property
    def dropped(self) -> dict[str, int]:
        """Frames that were not sent, by reason."""
        counts = dict(zip(REASONS, self.pacer.dropped, strict=True)) | {"oversize": self.oversize}
        if self._closing.is_set():
            counts["cut"] += len(self._left)
        return counts


class Sides:
    """On which side a packet's sender lives: clients' networks on one, servers' on the other; who is in neither
    (0.0.0.0, link-local addresses, what has no address) is where its direction says: the originator with the clients.
    """

    def __init__(self, clients: Iterable[Network], servers: Iterable[Network]) -> None:
        self._networks = [(network, CLIENT_SIDE) for network in clients] + [(n, SERVER_SIDE) for n in servers]
        self._known: dict[bytes, int] = {}

    def of(self, item: Outgoing) -> int:
        """CLIENT_SIDE or SERVER_SIDE."""
        sender = self._sender(item)
        side = self._known.get(sender)
        if side is None:
            if len(self._known) >= _SIDES_KNOWN:
                self._known.clear()
            side = self._known[sender] = self._look_up(sender)
        return item.direction if side < 0 else side

    @staticmethod
    def _sender(item: Outgoing) -> bytes:
        if item.flow is not None:
            return item.flow[1] if item.direction == 0 else item.flow[3]
        data = item.packet.data
        start = link_len(data)
        return data[start + 14 : start + 18] if data[start - 2 : start] == b"\x08\x06" else b""  # ARP's sender

    def _look_up(self, sender: bytes) -> int:
        if len(sender) not in (4, 16):
            return -1
        address = ipaddress.ip_address(sender)
        return next((side for network, side in self._networks if address in network), -1)


class TapSink:
    """A sink over one port, or over two with `sides` to choose between them."""

    def __init__(self, ports: Sequence[TapPort], sides: Sides | None = None) -> None:
        self.ports = ports
        self.sides = sides

    def watch(self, on_outage: OnOutage) -> None:
        """Be told of outages, from any thread; of one that has begun already at once."""
        for port in self.ports:
            port.watch(on_outage)

    @property
    def lead_ns(self) -> int:
        """How long before their time packets are wanted."""
        return LEAD_NS

    @property
    def packets(self) -> int:
        """Frames that the kernel took."""
        return sum(port.pacer.sent for port in self.ports)

    @property
    def dropped(self) -> int:
        """Frames that it did not get."""
        return sum(sum(port.dropped.values()) for port in self.ports)

    def write(self, batch: Sequence[Outgoing]) -> None:
        if self.sides is None:
            self.ports[0].push([(item.due_ns, item.packet.data) for item in batch])
            return
        frames: tuple[list[Frame], list[Frame]] = ([], [])
        for item in batch:
            frames[self.sides.of(item)].append((item.due_ns, item.packet.data))
        for port, its in zip(self.ports, frames, strict=True):
            if its:
                port.push(its)

    def end_session(self, session: SessionMeta) -> None:
        pass

    def flush(self, now_ns: int) -> None:
        for port in self.ports:
            port.look()
            port.push([])

    def rotate(self) -> None:
        pass

    def cut(self, due_ns: int) -> None:
        for port in self.ports:
            port.cut(due_ns)

    def close(self) -> None:
        for port in self.ports:
            port.close()


def open_taps(names: Sequence[str], options: TapOptions, sides: Sides | None = None) -> TapSink:
    """Open one device, or the client's and the server's side."""
    ports: list[TapPort] = []
    try:
        for name in names:
            ports.append(TapPort(name, options))
    except BaseException:
        for port in ports:
            port.close()
        raise
    return TapSink(ports, sides)
