"""The data folder: sessions as numbers, mapped into memory. What `prepare` writes and `train` reads.

    DATA/vocabulary.json        the codec's vocabulary (fields, labels, condition bins, features)
    DATA/files.json             which capture became which session, what was left out and why
    DATA/{train,val}/
        tokens.npy    u2 [N]     the tokens of all sessions, one after another
        limits.npy    u2 [N]     exclusive end of the legal prefix of the field's range at that position
        features.npy  u2 [N, F]  embedding rows of the codec's context at that position
        sessions.npy  [S]        SESSION records: where a session lies and what it is

Array files are written as they grow, and get their length into the header at the end. A data folder appears under its
name when it is complete, not before.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from netssmd.errors import NetssmdError, OutputError, UsageError

SPLITS = ("train", "val")
HEADER_BYTES = 128  # of an .npy file: magic, version, length and a padded dictionary

U16 = npt.NDArray[np.uint16]


def session_dtype(conditions: int) -> np.dtype[Any]:
    """One record a session: `start` and `length` in tokens, `label` an index into the vocabulary's labels (-1:
    unknown), `conditions` embedding rows, `packets`, `file` an index into files.json."""
    return np.dtype(
        [
            ("start", "<i8"),
            ("length", "<i8"),
            ("label", "<i4"),
            ("conditions", "<i4", (conditions,)),
            ("packets", "<i4"),
            ("file", "<i4"),
        ]
    )


@dataclass(frozen=True, slots=True)
class Shard:
    """One split of a data folder, mapped read-only."""

    tokens: U16  # [N]
    limits: U16  # [N]
    features: U16  # [N, F]
    sessions: npt.NDArray[Any]  # [S] of session_dtype

    @property
    def packets(self) -> int:
        return int(self.sessions["packets"].sum())


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data folder: the vocabulary as a JSON document and the shards of both splits."""

    path: Path
    vocabulary: dict[str, Any]
    train: Shard
    val: Shard


def open_dataset(path: Path) -> Dataset:
    """Map the data folder at `path`. Raises UsageError naming what is missing or does not fit."""
    document = path / "vocabulary.json"
    if not document.is_file():
        raise UsageError(f"{path}: no vocabulary.json here; make a data folder with `netssmd prepare DIR -o {path}`")
    try:
        vocabulary = json.loads(document.read_text())
    except ValueError as error:
        raise UsageError(f"{document}: not JSON ({error}); prepare the data again") from None
    return Dataset(path, vocabulary, *(open_shard(path / split) for split in SPLITS))


def open_shard(path: Path) -> Shard:
    """Map one split; the lengths of its arrays have to agree."""
    arrays = {}
    for name in ("tokens", "limits", "features", "sessions"):
        file = path / f"{name}.npy"
        try:
            # An array without elements cannot be mapped; a split without sessions is legal.
            arrays[name] = np.load(file, mmap_mode="r") if file.stat().st_size > HEADER_BYTES else np.load(file)
        except (OSError, ValueError) as error:
            raise UsageError(f"{file}: {error}; prepare the data again") from None
    shard = Shard(**arrays)
    total = int(shard.sessions["length"].sum())
    if not len(shard.tokens) == len(shard.limits) == len(shard.features) == total:
        raise UsageError(
            f"{path}: {len(shard.tokens)} tokens, {len(shard.limits)} limits, {len(shard.features)} feature rows and "
            f"sessions of {total} tokens do not agree; prepare the data again"
        )
    return shard


class ArrayWriter:
    """An .npy file that grows along its first axis."""

    def __init__(self, path: Path, dtype: np.dtype[Any], row: tuple[int, ...] = ()) -> None:
        self.dtype, self.row, self.length = dtype, row, 0
        self.file: BinaryIO = open(path, "wb")  # noqa: SIM115 closed by close()
        self.file.write(self._header())

    def _header(self) -> bytes:
        shape = (self.length, *self.row)
        descr = np.lib.format.dtype_to_descr(self.dtype)
        text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode("latin1")
        size = HEADER_BYTES * (2 if self.dtype.names else 1)  # records have a longer description
        text += b" " * (size - 10 - len(text) - 1) + b"\n"
        return b"\x93NUMPY\x01\x00" + (size - 10).to_bytes(2, "little") + text

    def append(self, rows: npt.NDArray[Any]) -> None:
        rows = np.ascontiguousarray(rows, dtype=self.dtype)
        if rows.shape[1:] != self.row:
            raise ValueError(f"rows of shape {rows.shape[1:]} in an array of {self.row}")
        self.file.write(rows.tobytes())
        self.length += len(rows)

    def close(self) -> None:
        self.file.seek(0)
        self.file.write(self._header())
        self.file.close()


class ShardWriter:
    """Writes one split, a session at a time."""

    def __init__(self, path: Path, features: int, conditions: int) -> None:
        path.mkdir(parents=True)
        word = np.dtype("<u2")
        self.tokens = ArrayWriter(path / "tokens.npy", word)
        self.limits = ArrayWriter(path / "limits.npy", word)
        self.features = ArrayWriter(path / "features.npy", word, (features,))
        self.sessions = ArrayWriter(path / "sessions.npy", session_dtype(conditions))

    def append(
        self, tokens: U16, limits: U16, features: U16, *, label: int, conditions: list[int], packets: int, file: int
    ) -> None:
        record = np.zeros(1, self.sessions.dtype)
        record[0] = (self.tokens.length, len(tokens), label, conditions, packets, file)
        self.sessions.append(record)
        self.tokens.append(tokens)
        self.limits.append(limits)
        self.features.append(features)

    def close(self) -> None:
        for array in (self.tokens, self.limits, self.features, self.sessions):
            array.close()


class DatasetWriter:
    """Builds a data folder beside its final name and moves it there when all is written.

    Arguments: path: the folder to be; features: rows of the codec's context a position; conditions: condition rows a
    session; overwrite: whether an older data folder may be replaced. Raises OutputError when the folder exists or
    cannot be written.
    """

    def __init__(self, path: Path, features: int, conditions: int, *, overwrite: bool = False) -> None:
        check_target(path, overwrite=overwrite)
        self.path = path
        self.part = path.with_name(path.name + ".part")
        try:
            shutil.rmtree(self.part, ignore_errors=True)
            self.shards = {split: ShardWriter(self.part / split, features, conditions) for split in SPLITS}
        except OSError as error:
            raise OutputError(f"{self.part}: {error.strerror}; choose a folder that can be written") from None

    def __enter__(self) -> "DatasetWriter":
        return self

    def finish(self, vocabulary: dict[str, Any], files: dict[str, Any]) -> None:
        for shard in self.shards.values():
            shard.close()
        (self.part / "vocabulary.json").write_text(json.dumps(vocabulary))
        (self.part / "files.json").write_text(json.dumps(files, indent=1))
        if self.path.exists():
            shutil.rmtree(self.path)
        os.rename(self.part, self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            shutil.rmtree(self.part, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, NetssmdError):
            raise OutputError(f"{self.part}: {error.strerror or error}; nothing was kept") from None


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds something; replace only what is a data folder. Raises OutputError."""
    if not path.exists():
        return
    if not path.is_dir():
        raise OutputError(f"{path}: is a file; name a folder for the data")
    if not any(path.iterdir()):
        return
    if not (path / "vocabulary.json").is_file():
        raise OutputError(f"{path}: holds something that is no data folder; choose another name")
    if not overwrite:
        raise OutputError(f"{path}: holds a data folder already; choose another name or say --overwrite")
