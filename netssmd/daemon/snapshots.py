"""Snapshots of the daemon: every live session, what was made but not sent, and where arrivals stand, in one file.

::

    take    control: orders --> engine lanes stand between two steps, each copies its sessions --> output lane copies
            what it holds and stores what it sent --> lanes go on; a thread of its own packs and writes the copy
    stop    the same, except that the lanes end after their copy; the captures are completed before the file is written
    start   newest snapshot --> sessions into slots, packets into the release, arrivals and clock as they were

All of it is in session time, which stands still while the daemon is down: at live pace the clock goes on where it was
and packets carry the wall time of their sending; at top speed the packets are those of an uninterrupted run, byte for
byte. After kill -9 a live run repeats what the snapshot did not know of, and says so in the ledger; at top speed what
the captures hold already is made once more and not stored again.

::

    file   = MAGIC  version(4)  frame*  0(4)  BLAKE2b-256 of all before
    frame  = length(4)  msgpack                                                  little-endian
    frames   head (a map), board (a map), then sessions and packets as the head counts them

A file appears under its name when it is complete (part, fsync, rename, fsync of the folder). One that is damaged, of
another model, seed, pace or version is refused with one line and set aside under `.refused`; nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from netssmd.daemon.board import Board, Over
from netssmd.daemon.lanes import EngineLane
from netssmd.daemon.output_lane import OutputLane
from netssmd.engine import snapshot
from netssmd.engine.session import FiveTuple, OutPacket, SessionInfo
from netssmd.errors import SnapshotError
from netssmd.output.ledger import SessionMeta

MAGIC: Final = b"NSSMSNAP"
VERSION: Final = 1
DIGEST: Final = 32
SUFFIX: Final = ".snapshot"
REFUSED_KEPT: Final = 5  # files that were set aside; the oldest go
PACKETS_A_FRAME: Final = 256
_SIZE: Final = struct.Struct("<I")


# ---- one moment of all lanes ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class LaneCopy:
    """An engine lane. sessions: copy in msgpack, state, steps left of the quantum, in the group?

    The states lie in memory that goes back to the kernel as a whole: 64 of the embedded model are 40 MB, and as so many
    objects they would leave holes in the allocator's heap that it keeps for ever.
    """

    kept: dict[str, Any]
    sessions: list[tuple[msgspec.Raw, memoryview, int, bool]]


@dataclass(slots=True)
class Cut:
    """A moment between two steps of every lane, and what it looked like.

    last: the lanes end here and do not go on.
    """

    named: snapshot.Named
    board: Board
    lanes: Sequence[EngineLane]
    output: OutputLane
    id: str
    last: bool = False
    on_cut: Callable[[Sequence[SessionMeta], str], None] | None = None
    copies: dict[int, LaneCopy] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)  # of the board
    packets: list[OutPacket] = field(default_factory=list)  # made and not sent
    ended: list[Over] = field(default_factory=list)  # sessions that are over, of which packets are still held
    error: SnapshotError | None = None
    stood_ns: int = 0  # how long the lanes stood
    done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _since_ns: int = 0

    def stand(self, lane: EngineLane) -> bool:
        """In an engine lane, between two steps: copy its sessions; the last lane to come calls the output lane. Return:
        whether they are copied."""
        with self._lock:
            self._since_ns = self._since_ns or time.monotonic_ns()
        lane.hand_over()
        try:
            copy = self._copy(lane)
        except SnapshotError as error:
            copy = LaneCopy({}, [])
            self.error = error
        with self._lock:
            self.copies[lane.index] = copy
            all_stand = len(self.copies) == len(self.lanes)
        if self.last:
            return self.error is None
        if all_stand:
            self.output.orders.put(self.finish)
        while not self.done.wait(0.05) and not self.over():
            pass
        return True

    def _copy(self, lane: EngineLane) -> LaneCopy:
        """Each session is packed as it is copied: as values it takes twenty times the memory."""
        backend, places = lane.scheduler.backend, lane.scheduler.places()
        states: mmap.mmap | None = None
        sessions = []
        for number, place in enumerate(places):
            state = backend.save_state(place.slot)
            size = len(state)  # the same for all of a model
            if states is None:
                states = mmap.mmap(-1, size * len(places))
            at = number * size
            states[at : at + size] = state
            packed = msgspec.Raw(snapshot.pack(snapshot.copy(place.session, self.named)))
            sessions.append((packed, memoryview(states)[at : at + size], place.left, place.active))
        return LaneCopy(lane.kept(), sessions)

    def over(self) -> bool:
        """Whether the daemon ends or has ended what lanes do: this moment will not be."""
        return self.board.stop.is_set() or self.board.broken.is_set() or self.board.done

    @property
    def complete(self) -> bool:
        """Every engine lane has copied its sessions."""
        return len(self.copies) == len(self.lanes) and self.error is None

    @property
    def owes(self) -> bool:
        """Packets of this run were made and not sent."""
        return any(packet.ts_ns < self.board.end_ns for packet in self.packets)

    def finish(self) -> None:
        """In the output lane, while the others stand or after they ended: copy what is held and the board."""
        board, output = self.board, self.output
        if not self.last:
            output.take_all()
            for sink in output.sinks:
                sink.flush(0)
        self.packets = output.held()
        self.ended = output.ended()
        try:
            arrivals = snapshot.copy(board.arrivals, self.named)
        except SnapshotError as error:
            self.error = error
        self.kept = {
            "session_ns": board.clock.now_ns() if board.clock else board.floor_ns,
            "lag_ns": board.clock.lag_ns if board.clock else 0,
            "arrivals": arrivals if self.error is None else None,
            "numbers": board.numbers,
            "asked_numbers": board.asked_numbers,
            "asked": [
                [*_info(asked.info), asked.limits.packets, asked.limits.duration_ns] for asked in list(board.asked)
            ],
            "floors": list(board.floors),
            "forked": [*board.forked.items(), *output.forked()],
            "released_ns": output.reached_ns,
        }
        self.stood_ns = time.monotonic_ns() - self._since_ns
        self.done.set()

    def cut(self, sessions: Sequence[SessionMeta]) -> None:
        """The ledger says of these sessions where they were cut."""
        if self.on_cut is not None:
            self.on_cut(sessions, self.id)


# ---- files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Saved:
    """A snapshot that was read: everything but the sessions' objects, which want a model."""

    path: Path
    head: dict[str, Any]
    board: dict[str, Any]
    sessions: list[list[Any]]  # lane, copy, state, left, active
    packets: list[OutPacket]

    @property
    def id(self) -> str:
        return str(self.head["id"])


class Store:
    """The snapshots of one basename in a folder, which is made when it is needed.

    keep: complete ones that stay. max_bytes: larger ones are neither written nor read.
    """

    def __init__(self, directory: Path, basename: str, keep: int, max_bytes: int) -> None:
        self.directory = directory
        self.basename = basename
        self.keep = keep
        self.max_bytes = max_bytes
        self._pattern = re.compile(rf"{re.escape(basename)}_(\d{{8,}}){re.escape(SUFFIX)}")

    def paths(self) -> list[Path]:
        """Complete snapshots, oldest first."""
        try:
            names = os.listdir(self.directory)
        except OSError:
            return []
        found = [(int(match[1]), name) for name in names if (match := self._pattern.fullmatch(name))]
        return [self.directory / name for _, name in sorted(found)]

    def write(self, frames: Iterator[bytes]) -> tuple[Path, int]:
        """A new file, complete or not there. Return: path and bytes. Raises SnapshotError."""
        paths = self.paths()
        number = int(self._pattern.fullmatch(paths[-1].name)[1]) + 1 if paths else 1  # type: ignore[index]
        path = self.directory / f"{self.basename}_{number:08d}{SUFFIX}"
        part = path.with_name(f".{path.name}.part")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                size = self._write(file, frames)
                file.flush()
                os.fsync(file.fileno())
            os.rename(part, path)
            self._sync()
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise SnapshotError(f"snapshot {path}: cannot be written: {error.strerror or error}") from error
        except SnapshotError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise SnapshotError(f"snapshot {path}: {error}") from error
        for old in self.paths()[: -self.keep]:
            with contextlib.suppress(OSError):
                old.unlink()
        return path, size

    def _write(self, file: Any, frames: Iterator[bytes]) -> int:
        digest = hashlib.blake2b(digest_size=DIGEST)
        size = 0
        for frame in frames:
            size += len(frame)
            if size + DIGEST > self.max_bytes:
                raise SnapshotError(f"more than snapshot.max_size, {self.max_bytes / 1e6:g} MB; raise it")
            digest.update(frame)
            file.write(frame)
        file.write(digest.digest())
        return size + DIGEST

    def read(self, path: Path) -> Saved:
        """Raises SnapshotError saying what is wrong with the file."""
        try:
            size = path.stat().st_size
            if size > self.max_bytes:
                raise SnapshotError(f"{size / 1e6:.1f} MB are more than snapshot.max_size")
            content = path.read_bytes()
        except OSError as error:
            raise SnapshotError(f"cannot be read: {error.strerror or error}") from error
        if content[: len(MAGIC)] != MAGIC or len(content) < len(MAGIC) + 8 + DIGEST:
            raise SnapshotError("not a snapshot")
        (version,) = _SIZE.unpack_from(content, len(MAGIC))
        if version != VERSION:
            raise SnapshotError(f"format {version}; this version reads {VERSION}")
        if hashlib.blake2b(memoryview(content)[:-DIGEST], digest_size=DIGEST).digest() != content[-DIGEST:]:
            raise SnapshotError("damaged: its checksum is wrong")
        try:
            return _saved(path, [snapshot.unpack(frame) for frame in _frames(memoryview(content))])
        except (TypeError, ValueError, KeyError, IndexError, struct.error) as error:
            raise SnapshotError(f"damaged: {type(error).__name__}: {error}") from error

    def set_aside(self, path: Path) -> Path | None:
        """Out of the way, not deleted. Return: where it is now, None where that failed."""
        aside = path.with_name(f"{path.name}.refused")
        try:
            os.replace(path, aside)
            old = sorted(self.directory.glob(f"{self.basename}_*{SUFFIX}.refused"), key=lambda p: p.stat().st_mtime)
            for one in old[:-REFUSED_KEPT]:
                one.unlink()
        except OSError:
            return None
        return aside

    def discard(self) -> None:
        """Delete all complete snapshots: the run that they belong to has come to its end."""
        for path in self.paths():
            with contextlib.suppress(OSError):
                path.unlink()
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def _sync(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _frame(value: object) -> bytes:
    packed = snapshot.pack(value)
    return _SIZE.pack(len(packed)) + packed


def _frames(content: memoryview) -> Iterator[memoryview]:
    at = len(MAGIC) + _SIZE.size
    while True:
        (size,) = _SIZE.unpack_from(content, at)
        at += _SIZE.size
        if size == 0:
            break
        if at + size > len(content) - DIGEST:
            raise ValueError("a frame longer than the file")
        yield content[at : at + size]
        at += size
    if at != len(content) - DIGEST:
        raise ValueError("bytes behind the last frame")


def frames(cut: Cut, head: dict[str, Any]) -> Iterator[bytes]:
    """The file of a cut, piece by piece."""
    sessions = [(index, part) for index, copy in sorted(cut.copies.items()) for part in copy.sessions]
    yield MAGIC + _SIZE.pack(VERSION)
    head = head | {"layout": snapshot.layout(), "sessions": len(sessions), "packets": len(cut.packets)}
    yield _frame(head)
    infos = {packet.session.number: packet.session for packet in cut.packets}
    yield _frame(
        {
            **cut.kept,
            "lanes": [copy.kept for _, copy in sorted(cut.copies.items())],
            "over": [[*_info(over.info), over.clock_ns, over.reason] for over in cut.ended],
            "speakers": [_info(info) for info in infos.values()],
        }
    )
    for index, (value, state, left, active) in sessions:
        yield _frame([index, value, state, left, active])
    for at in range(0, len(cut.packets), PACKETS_A_FRAME):
        yield _frame([_packed(packet) for packet in cut.packets[at : at + PACKETS_A_FRAME]])
    yield _SIZE.pack(0)


def _info(info: SessionInfo) -> list[Any]:
    return [info.number, info.label, info.conditions, info.seed, info.start_ns]


def _packed(packet: OutPacket) -> list[Any]:
    ts_ns, data, orig_len, info, flow, five_tuple, direction, kind, found, planted = packet
    ends = five_tuple and list(five_tuple)
    return [ts_ns, data, orig_len, info.number, flow, ends, direction, kind, found, planted]


def _saved(path: Path, parts: list[Any]) -> Saved:
    head, board = parts[0], parts[1]
    if not isinstance(head, dict) or not isinstance(board, dict):
        raise TypeError("its head is no map")
    count = head["sessions"]
    sessions = parts[2 : 2 + count]
    infos = {int(part[0]): SessionInfo(*part) for part in board["speakers"]}
    packets = []
    for chunk in parts[2 + count :]:
        for ts_ns, data, orig_len, number, flow, five_tuple, direction, kind, found, *planted in chunk:
            if type(ts_ns) is not int or type(data) is not bytes or type(orig_len) is not int:
                raise TypeError("a packet that is none")
            packets.append(
                OutPacket(
                    ts_ns, data, orig_len, infos[number], flow, FiveTuple(*five_tuple) if five_tuple else None,
                    direction, kind, found, str(planted[0]) if planted else "",
                )
            )  # fmt: skip
    if len(sessions) != count or len(packets) != head["packets"]:
        raise ValueError("sessions or packets are missing")
    for part in sessions:
        lane, _, state, left, active = part
        if not (type(lane) is type(left) is int and type(state) is bytes and type(active) is bool and lane >= 0):
            raise TypeError("a session's place that is none")
    return Saved(path, head, board, sessions, packets)
