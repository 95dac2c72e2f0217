"""A ring of PCAP files: packets in, complete captures out, with a ledger beside each.

In: packets in the order of their time. Out: files `netssmd_00001_20260131235959.pcap` (dumpcap's names: a number that
goes on after a restart, and the UTC time of the slice's first packet) and, just before each, its ledger `....jsonl`.

A file is there under its name only when it is complete. Until then it is the hidden `.<name>.part`, and then: store,
fsync, ledger (part file, fsync, rename), rename, fsync of the directory. What a killed run leaves is finished at the
next start: a journal beside the part file, one block each time that packets are stored, says whose they are, so the
capture is cut back to the last block that is whole in both, and the ledger tells exactly the packets that are left.
Without a journal it is cut back to the last whole record, and the ledger counts packets only. A file without packets
never appears.

    block = length(4) CRC-32(4) | from(8) to(8) in the part file, packets(4) | what `beside` says     little-endian

A slice ends before the packet that would make it larger than `max_bytes` or `max_packets`, and with the first packet
behind a multiple of `max_seconds` on the packets' own clock. A packet of an earlier time stays in the open slice.

Storage that runs out, below `min_free_bytes` or for real: `on_full="stop"` completes the slice where that is possible
and raises; "drop" pauses and counts what is dropped until there is room; "wait" raises StorageWaits for whatever the
storage refuses, keeps all it has, and can be asked again. A packet is in `packets` and in the ledger
once it is stored, so both tell what the files hold.

Everything here blocks (write, fsync, rename): it belongs in the output thread, and in one thread only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, Protocol

from netssmd.errors import OutputError
from netssmd.packet.pcap import FILE_HEADER_BYTES, Packet, file_header, read_capture, record, whole_records

_BUFFER: Final = 1 << 20
_SECOND: Final = 1_000_000_000
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_TRIES: Final = 1024  # packets dropped between two looks at the free space
_SLACK: Final = 64 << 10
_BLOCK: Final = struct.Struct("<II")  # of a journal: length and CRC-32 of what follows
_SPAN: Final = struct.Struct("<QQI")  # bytes of the capture from and to, packets; then what `beside` says


class StorageWaits(OutputError):
    """A ring that waits (`on_full="wait"`) could not store; nothing is lost, and the same may be tried again."""


class Beside(Protocol):
    """A file written beside each capture. `Ledger` is one."""

    @property
    def suffix(self) -> str:
        """What stands in its name in place of `.pcap`."""

    @property
    def observe(self) -> Callable[..., None]:
        """Called with the note of each packet that is in the capture now."""

    def write(self, file: BinaryIO, capture: str, recovered: bool = False) -> None: ...

    def journal(self, notes: Sequence[tuple[Any, ...]]) -> bytes:
        """The notes of packets that are in the capture now, as bytes."""

    def replay(self, blocks: Iterable[bytes]) -> None:
        """Observe again what a journal tells. Raises ValueError for bytes that are none."""

    def write_recovered(self, file: BinaryIO, capture: str, packets: int) -> None: ...

    def clear(self) -> None:
        """The next capture begins."""


@dataclass(slots=True)
class _Slice:
    """The capture being written."""

    fd: int
    name: str
    slot: int  # number of its `max_seconds` period
    packets: int = 0  # stored and pending
    bytes: int = FILE_HEADER_BYTES  # likewise
    stored: int = FILE_HEADER_BYTES  # bytes in the file
    journal: int = -1  # file descriptor of the journal
    said: int = 0  # bytes in it
    unsaid: bytearray = field(default_factory=bytearray)  # blocks that wait for room


class PcapRing:
    """Rotating captures in a directory.

    Arguments:
        directory: Made if it is not there. One ring at a time may write a prefix in it (a lock holds that).
        max_bytes, max_seconds, max_packets: Where a slice ends; None for never.
        max_files: Complete captures kept; the oldest goes, with its ledger. Those of earlier runs count.
        snaplen: Bytes kept of a packet; 0 for whole packets.
        min_free_bytes: Floor of free space on the file system.
        beside: What is written beside each capture.
        on_complete: Called with name, packets and bytes of each capture that is complete.
    Attributes:
        packets, bytes, files: Stored so far (bytes of PCAP), files completed.
        dropped: Packets lost because storage ran out.
        recovered: Names of captures finished for a killed run.
    Raises:
        OutputError: From every method, where the storage does not do as told. The ring is then at an end; `close` it.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        prefix: str = "netssmd",
        max_bytes: int | None = None,
        max_seconds: float | None = None,
        max_packets: int | None = None,
        max_files: int | None = None,
        snaplen: int = 0,
        min_free_bytes: int = 256 << 20,
        nanosecond: bool = True,
        on_full: Literal["stop", "drop", "wait"] = "stop",
        beside: Beside | None = None,
        on_complete: Callable[[str, int, int], None] | None = None,
    ) -> None:
        if not prefix or "/" in prefix or "\0" in prefix or prefix.startswith("."):
            raise OutputError(f"prefix {prefix!r} of captures: expected the beginning of a file name, like netssmd")
        self._directory = Path(directory)
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._max_packets = max_packets
        self._slot_ns = round(max_seconds * _SECOND) if max_seconds else 0
        self._max_files = max_files
        self._snaplen = snaplen
        self._min_free_bytes = min_free_bytes
        self._nanosecond = nanosecond
        self._drop = on_full == "drop"
        self._wait = on_full == "wait"
        self._beside = beside
        self._on_complete = on_complete
        self._pattern = re.compile(rf"{re.escape(prefix)}_\d{{5,}}_\d{{14}}\.pcap")
        self._complete: deque[str] = deque()  # captures in the directory, oldest first; kept for `max_files` only
        self._number = 0  # of the last capture begun, by any run
        self._slice: _Slice | None = None
        self._pending: list[bytes] = []  # records not stored yet
        self._notes: list[tuple[Any, ...]] = []  # theirs
        self._pending_bytes = 0
        self._paused = False
        self._tries = 0
        self._failure: OutputError | None = None
        self.packets = 0
        self.bytes = 0
        self.files = 0
        self.dropped = 0
        self.recovered: list[str] = []
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self._directory / f".{prefix}.lock")
        except OSError as error:
            raise OutputError(f"directory {directory}: cannot be written: {error.strerror}; choose another") from error
        try:
            self._take_over()
            if not self._drop:
                self._demand_room(0)
        except OSError as error:
            self._unlock()
            raise self._error(error, "taking over") from error
        except OutputError:
            self._unlock()
            raise

    # ---- the three calls of a sink

    def write(self, packet: Packet, note: tuple[Any, ...] = ()) -> None:
        """Add a packet. `note` is handed to `beside.observe` once the packet is stored."""
        if self._paused and not self._try_again():
            self.dropped += 1
            return
        packed = record(packet, self._snaplen, 1 if self._nanosecond else 1000)
        if self._wait and self._pending_bytes >= _BUFFER:
            self._guard(self._store_if_room)  # before the packet is taken, so that nothing is taken twice
        if not self._guard(self._make_way, packet.ts_ns, len(packed)):
            self.dropped += 1
            return
        current = self._slice
        assert current is not None
        current.packets += 1
        current.bytes += len(packed)
        self._pending.append(packed)
        self._notes.append(note)
        self._pending_bytes += len(packed)
        if self._pending_bytes >= _BUFFER and not self._wait:
            self._guard(self._store_if_room)

    def flush(self, now_ns: int | None = None) -> None:
        """Store what is pending; complete the slice if `now_ns`, on the packets' clock, is behind its `max_seconds`."""
        self._tries = 0
        if self._paused and not self._try_again():
            return
        if self._guard(self._store_if_room) and now_ns is not None and self._is_past(now_ns):
            self._guard(self._finish)

    def look(self) -> str | None:
        """Is the open slice still where it was made? If somebody deleted it, or the whole directory, its packets are
        counted as dropped and the directory is made again. Return: what was found, if so. Raises StorageWaits."""
        current = self._slice
        if current is not None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if os.path.samestat(os.stat(self._part(current.name)), os.fstat(current.fd)):
                    return None
        elif self._directory.is_dir():
            return None
        lost = 0
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            lock = _lock(self._directory / f".{self._prefix}.lock")
        except OSError as error:
            raise StorageWaits(str(self._error(error, "making it again"))) from error
        if self._lock is not None:
            os.close(self._lock)
        self._lock = lock
        if current is not None:
            lost = current.packets - len(self._pending)
            self.dropped += lost
            self.packets -= lost
            self._forget_pending()
            os.close(current.fd)
            self._end_journal(current, keep=False)
            self._slice = None
            if self._beside is not None:
                self._beside.clear()
        what = f"the open slice {current.name}" if current else "it"
        return f"directory {self._directory}: {what} was deleted from outside; {lost} stored packets are lost, going on"

    def rotate(self) -> None:
        """Complete the slice now. Without packets there is nothing to complete."""
        self._guard(self._finish)

    def close(self) -> None:
        """Complete the slice and release the directory. May be called again, and after a failure."""
        if self._lock is None:
            return
        try:
            self._finish_what_is_stored()
        except OSError as error:
            if self._failure is None:
                raise self._error(error, "completing") from error
        finally:
            self._abandon()
            self._unlock()

    def last_stored(self) -> tuple[int, int] | None:
        """Time of the last packet in the newest complete capture, and how many packets at the end have that time."""
        names = [name for name in os.listdir(self._directory) if self._pattern.fullmatch(name)]
        if not names:
            return None
        path = self._directory / max(names, key=_number)
        last_ns = count = 0
        with path.open("rb") as file:
            for packet in read_capture(file):
                count = count + 1 if packet.ts_ns == last_ns else 1
                last_ns = packet.ts_ns
        return (last_ns, count) if count else None

    # ---- storing

    def _guard(self, action: Callable[..., None], *arguments: int) -> bool:
        """Do `action`. False if it wants space and dropping is allowed: the ring pauses. Otherwise failure is final."""
        if self._failure is not None:
            raise self._failure
        try:
            action(*arguments)
        except OSError as error:
            if self._drop and error.errno in _NO_SPACE:
                self._paused = True
                return False
            if self._wait:
                raise StorageWaits(str(self._error(error, "writing"))) from error
            self._failure = self._error(error, "writing")
            raise self._failure from error
        except StorageWaits:
            raise
        except OutputError as error:
            self._failure = error
            raise
        return not self._paused

    def _make_way(self, ts_ns: int, size: int) -> None:
        """See that there is a slice open that takes `size` bytes more at `ts_ns`."""
        current = self._slice
        if current is not None:
            if not (
                (self._max_bytes is not None and current.bytes + size > self._max_bytes)
                or (self._max_packets is not None and current.packets >= self._max_packets)
                or self._is_past(ts_ns)
            ):
                return
            self._finish()
        self._demand_room(0)
        if not self._paused:
            self._open(ts_ns)

    def _is_past(self, ts_ns: int) -> bool:
        return self._slot_ns > 0 and self._slice is not None and ts_ns // self._slot_ns > self._slice.slot

    def _open(self, ts_ns: int) -> None:
        second = time.strftime("%Y%m%d%H%M%S", time.gmtime(ts_ns // _SECOND))
        name = f"{self._prefix}_{self._number + 1:05d}_{second}.pcap"
        part = self._part(name)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            _write_all(fd, file_header(self._snaplen, self._nanosecond))
        except OSError:
            os.close(fd)
            part.unlink()
            raise
        self._number += 1
        self._slice = _Slice(fd, name, ts_ns // self._slot_ns if self._slot_ns else 0)
        if self._beside is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            self._slice.journal = os.open(self._journal(name), flags, 0o644)

    def _store_if_room(self) -> None:
        self._demand_room(self._pending_bytes)
        if not self._paused:
            self._store()

    def _store(self) -> None:
        """Pending records to the part file. Where that fails midway, the file ends with its last whole record."""
        current = self._slice
        if current is not None and current.unsaid:
            self._tell_journal(current)
        if current is None or not self._pending:
            return
        data = memoryview(b"".join(self._pending))
        done = 0
        try:
            while done < len(data):
                done += os.write(current.fd, data[done:])
        except OSError:
            count, done = self._whole(done)
            os.ftruncate(current.fd, current.stored + done)
            self._settle(current, count, done)
            raise
        self._settle(current, len(self._pending), done)

    def _whole(self, size: int) -> tuple[int, int]:
        """Number and bytes of the pending records that `size` bytes hold whole."""
        count = total = 0
        while total + len(self._pending[count]) <= size:
            total += len(self._pending[count])
            count += 1
        return count, total

    def _settle(self, current: _Slice, count: int, size: int) -> None:
        """The first `count` pending records, `size` bytes, are stored."""
        start = current.stored
        current.stored += size
        self.packets += count
        self.bytes += size
        self._pending_bytes -= size
        if self._beside is not None:
            observe = self._beside.observe
            for note in self._notes[:count]:
                if note:
                    observe(*note)
        notes = [note for note in self._notes[:count] if note]
        del self._pending[:count]
        del self._notes[:count]
        if self._beside is not None and count:
            block = _SPAN.pack(start, current.stored, count) + self._beside.journal(notes)
            current.unsaid += _BLOCK.pack(len(block), zlib.crc32(block)) + block
            self._tell_journal(current)

    def _tell_journal(self, current: _Slice) -> None:
        """The blocks that the journal does not have yet. Where that fails, it ends with its last whole block and has
        the rest told next time: it is worth nothing to a slice that is completed."""
        try:
            _write_all(current.journal, current.unsaid)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(current.journal, current.said)
            return
        current.said += len(current.unsaid)
        current.unsaid.clear()

    def _finish(self) -> None:
        """Complete the slice. Until its last step succeeds, the slice stays open and this may be tried again."""
        current = self._slice
        if current is None:
            return
        self._store()
        os.fsync(current.fd)
        self._write_beside(current.name, None)
        os.rename(self._part(current.name), self._directory / current.name)
        self._slice = None
        os.close(current.fd)
        self._end_journal(current, keep=False)
        self.bytes += FILE_HEADER_BYTES
        self.files += 1
        if self._max_files is not None:
            self._complete.append(current.name)
        if self._beside is not None:
            self._beside.clear()
        self._sync_directory()
        if self._on_complete is not None:
            self._on_complete(current.name, current.packets, current.bytes)
        self._trim()

    def _finish_what_is_stored(self) -> None:
        """Complete the slice, without its pending records if there is no space for them."""
        try:
            self._finish()
        except OSError as error:
            if error.errno not in _NO_SPACE or self._slice is None or self._slice.stored <= FILE_HEADER_BYTES:
                raise
            self._forget_pending()
            self._finish()

    def _journal(self, name: str) -> Path:
        """Beside a part file: what its packets are, in case that this process is killed."""
        return self._directory / f".{name}.journal"

    def _end_journal(self, current: _Slice, keep: bool) -> None:
        if current.journal >= 0:
            os.close(current.journal)
            current.journal = -1
            if not keep:
                with contextlib.suppress(OSError):
                    self._journal(current.name).unlink()

    def _replay(self, name: str, size: int) -> tuple[int, int]:
        """Have `beside` observe what the journal of a part file knows of its first `size` bytes. Return: the bytes that
        it knows, and packets in them; 0 and 0 if there is no journal or it is damaged from the start."""
        try:
            content = self._journal(name).read_bytes()
        except OSError:
            return 0, 0
        assert self._beside is not None
        self._beside.clear()
        at, end, packets, blocks = 0, FILE_HEADER_BYTES, 0, []
        while at + _BLOCK.size <= len(content):
            length, checksum = _BLOCK.unpack_from(content, at)
            block = content[at + _BLOCK.size : at + _BLOCK.size + length]
            if len(block) != length or length < _SPAN.size or zlib.crc32(block) != checksum:
                break
            start, stop, count = _SPAN.unpack_from(block)
            if start != end or stop > size:
                break
            at, end, packets = at + _BLOCK.size + length, stop, packets + count
            blocks.append(block[_SPAN.size :])
        try:
            self._beside.replay(blocks)
        except (ValueError, TypeError, IndexError):
            self._beside.clear()
            return 0, 0
        return (end, packets) if packets else (0, 0)

    def _write_beside(self, name: str, recovered: int | None, replayed: bool = False) -> None:
        """The file beside a capture; `recovered` is the number of packets if its writer was killed and left no journal,
        replayed: it left one."""
        if self._beside is None:
            return
        beside = _beside_name(name, self._beside.suffix)
        part = self._part(beside)
        try:
            with part.open("wb") as file:
                if recovered is None:
                    self._beside.write(file, name, replayed)
                else:
                    self._beside.write_recovered(file, name, recovered)
                file.flush()
                os.fsync(file.fileno())
            os.rename(part, self._directory / beside)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def _trim(self) -> None:
        """Delete the oldest captures beyond `max_files`; the ledger first, so that none is left without its capture."""
        while self._max_files is not None and len(self._complete) > self._max_files:
            name = self._complete.popleft()
            if self._beside is not None:
                (self._directory / _beside_name(name, self._beside.suffix)).unlink(missing_ok=True)
            (self._directory / name).unlink(missing_ok=True)

    def _forget_pending(self) -> None:
        self.dropped += len(self._pending)
        self._pending.clear()
        self._notes.clear()
        self._pending_bytes = 0

    def _abandon(self) -> None:
        """Let go of a slice that cannot be completed: its part file, whole records only, waits for the next start."""
        self._forget_pending()
        if self._slice is not None:
            os.close(self._slice.fd)
            self._end_journal(self._slice, keep=self._slice.stored > FILE_HEADER_BYTES)
            if self._slice.stored <= FILE_HEADER_BYTES:
                with contextlib.suppress(OSError):
                    self._part(self._slice.name).unlink()
            self._slice = None

    # ---- free space

    def _free(self) -> int:
        status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize

    def _demand_room(self, size: int) -> None:
        """Pause, or complete the slice and raise, if `size` bytes more would get below the floor."""
        if self._min_free_bytes <= 0:
            return
        free = self._free()
        if free - size >= self._min_free_bytes:
            return
        if self._drop:
            self._paused = True
            return
        if self._wait:
            raise StorageWaits(
                f"directory {self._directory}: {_megabytes(free)} free, the floor is "
                f"{_megabytes(self._min_free_bytes)}; free some space, or lower the floor"
            )
        with contextlib.suppress(OSError):
            self._finish_what_is_stored()
        raise OutputError(
            f"directory {self._directory}: {_megabytes(free)} free, the floor is {_megabytes(self._min_free_bytes)}; "
            "free some space, keep fewer files, or lower the floor"
        )

    def _try_again(self) -> bool:
        """While paused: is there room again? Looks now and then, and wants a little more than the floor."""
        if self._tries > 0:
            self._tries -= 1
            return False
        self._tries = _TRIES
        floor = self._min_free_bytes
        try:
            self._paused = self._free() < floor + floor // 16 + self._pending_bytes + _SLACK
        except OSError as error:
            self._failure = self._error(error, "writing")
            raise self._failure from error
        return not self._paused

    # ---- the directory

    def _take_over(self) -> None:
        """Finish what a killed run left, and go on where it was."""
        pattern = self._pattern
        names = os.listdir(self._directory)
        complete = [name for name in names if pattern.fullmatch(name)]
        left = []
        for name in names:
            final = name[1 : -len(".part")]
            if not (name.startswith(".") and name.endswith(".part")):
                continue
            if pattern.fullmatch(final):
                left.append(final)
            elif pattern.fullmatch(os.path.splitext(final)[0] + ".pcap"):
                (self._directory / name).unlink()  # a ledger that was not finished
        for name in names:
            part = name.removesuffix(".journal") + ".part"
            if name.endswith(".journal") and part not in names and pattern.fullmatch(part[1 : -len(".part")]):
                (self._directory / name).unlink()
        self._number = max(map(_number, complete + left), default=0)
        complete += [name for name in sorted(left, key=_number) if self._recover(name)]
        self._complete.extend(sorted(complete, key=_number))

    def _recover(self, name: str) -> bool:
        part = self._part(name)
        with part.open("r+b") as file:
            size, packets = whole_records(file)
            known, replayed = self._replay(name, size) if self._beside is not None else (0, 0)
            if packets:
                file.truncate(known or size)
                os.fsync(file.fileno())
        if not packets:
            part.unlink()
            self._journal(name).unlink(missing_ok=True)
            return False
        if self._beside is not None and not (self._directory / _beside_name(name, self._beside.suffix)).exists():
            try:
                self._write_beside(name, None if replayed else packets, bool(replayed))
                self._beside.clear()
            except OSError as error:
                if self._drop and error.errno in _NO_SPACE:
                    return False  # it waits for a start with more room
                raise
        os.rename(part, self._directory / name)
        self._sync_directory()
        with contextlib.suppress(OSError):
            self._journal(name).unlink()
        self.recovered.append(name)
        return True

    def _part(self, name: str) -> Path:
        return self._directory / f".{name}.part"

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _unlock(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                (self._directory / f".{self._prefix}.lock").unlink()
            os.close(self._lock)
            self._lock = None

    def _error(self, error: OSError, doing: str) -> OutputError:
        current = self._slice
        text = (
            f"directory {self._directory}: {doing} {current.name if current else 'captures'}: {error.strerror or error}"
        )
        if error.errno in _NO_SPACE:
            text += f" ({_megabytes(self._free())} free); free some, or keep fewer files"
        if current is not None and current.stored > FILE_HEADER_BYTES:
            text += "; what is stored of it is completed at close or at the next start"
        return OutputError(text)


def _number(name: str) -> int:
    return int(name.rsplit("_", 2)[1])


def _beside_name(name: str, suffix: str) -> str:
    return name.removesuffix(".pcap") + suffix


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _write_all(fd: int, data: bytes | bytearray) -> None:
    if os.write(fd, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lock(path: Path) -> int | None:
    """Hold the lock file until it is closed. It is deleted afterwards, so it must still be the one of that name."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise OutputError(
                f"directory {path.parent}: another process writes {path.name[1:-5]}_* there; "
                "choose another directory or prefix"
            ) from None
        except OSError:
            return fd  # a file system without locks: go on without
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                return fd
        os.close(fd)
