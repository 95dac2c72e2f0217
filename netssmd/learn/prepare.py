"""Captures in, a data folder out: find the files, fit the codec's vocabulary, encode every session, say what was left
out.

One capture is one session. Its label is the manifest's, else the name of the folder it lies in; its split is the
manifest's, else a hash of its name puts one file in ten into `val`, the same one each time. `manifest.csv` (in a folder
given, or in the folder above it) has columns `file` and any of `label split capped rtt_ms rate_mbit loss_pct`; `file`
is relative to the manifest.

A process pool does the work file by file, twice: statistics of the `train` files for the vocabulary (unless one is
given), then tokens. What is wrong with one file concerns that file only: it is reported and skipped; of a capture that
breaks off the packets before the damage are kept, as a session without an end.
"""

import csv
import hashlib
import json
import math
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from netssmd.errors import CaptureError, NetssmdError, UsageError
from netssmd.learn.dataset import SPLITS, U16, DatasetWriter, check_target
from netssmd.packet.pcap import read_capture

CONDITIONS = ("rtt_ms", "rate_mbit", "loss_pct")
MANIFEST = "manifest.csv"
LEDGER = ".jsonl"  # beside the captures that netssmd writes itself
VAL_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Source:
    """One capture to learn from, and what is known about it."""

    path: Path
    name: str  # as reports and files.json name it
    label: str
    split: str
    capped: bool = False
    conditions: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """One session as arrays, on its way from a worker to the shard."""

    tokens: U16
    limits: U16
    features: U16
    packets: int
    escaped: int
    damage: str = ""  # why the capture breaks off after these packets


class Codec(Protocol):
    """What learning needs of a codec: learn.codec.ContextCodec, learn.byte_codec.ByteCodec; tests bring a small one."""

    def statistics(self, packets: Iterable[Any], label: str) -> Any:
        """What one capture tells about the vocabulary to be; sent between processes."""

    def fit(self, statistics: Iterable[Any], labels: Sequence[str]) -> Any:
        """The vocabulary for all of them."""

    def load(self, document: dict[str, Any]) -> Any:
        """The vocabulary that a JSON document describes."""

    def with_labels(self, document: dict[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        """The document of a vocabulary that knows these labels, too. Raises UsageError."""

    def encode(
        self, packets: Iterable[Any], vocabulary: Any, *, escapes: bool, whole: bool = True
    ) -> list[EncodedFile]:
        """The tokens of a capture's sessions, END included; with `escapes` false without the packets that need the
        escape, which are counted. whole: the capture was not cut, so its flows are as long as they are in it."""


# ---- which files


def find_sources(roots: Sequence[Path], manifest: Path | None = None) -> tuple[list[Source], list[tuple[str, str]]]:
    """All captures under `roots` (folders or files), sorted, and the (name, reason) of manifest rows that cannot be
    used."""
    problems: list[tuple[str, str]] = []
    found: dict[Path, Source] = {}
    for root in roots:
        if not root.exists():
            raise UsageError(f"{root}: no such file or folder; give folders that hold captures")
        rows = read_manifest(manifest or nearest_manifest(root), problems)
        files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        base = root if root.is_dir() else root.parent
        for path in files:
            if path.name.startswith(".") or path.name == MANIFEST or path.suffix == LEDGER:
                continue
            known = rows.get(path.resolve(), {})
            source = describe(path, path.relative_to(base), known, problems)
            if source is not None:
                found.setdefault(path.resolve(), source)
        for path in rows:
            if path.is_relative_to(base.resolve()) and not path.exists() and root.is_dir():
                problems.append((str(path.relative_to(base.resolve())), "named in the manifest but not there"))
    return list(found.values()), problems


def nearest_manifest(root: Path) -> Path | None:
    base = root.resolve() if root.is_dir() else root.resolve().parent
    return next((p / MANIFEST for p in (base, base.parent) if (p / MANIFEST).is_file()), None)


def read_manifest(path: Path | None, problems: list[tuple[str, str]]) -> dict[Path, dict[str, str]]:
    """Rows by the capture's absolute path. Raises UsageError for a file that is no manifest."""
    if path is None:
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: {what}; a manifest is a CSV table with the column `file`") from None
    if "file" not in columns:
        raise UsageError(f"{path}: columns {', '.join(columns) or 'none'}; the column `file` is missing")
    named = [row for row in rows if row["file"]]
    problems += [(path.name, f"{row['file']!r} is no file name") for row in named if "\0" in row["file"]]
    return {(path.resolve().parent / row["file"]).resolve(): row for row in named if "\0" not in row["file"]}


def describe(path: Path, inside: Path, row: dict[str, str], problems: list[tuple[str, str]]) -> Source | None:
    """Label, split and conditions of one file; None (and a problem) where the manifest says something that cannot be
    used."""
    name = inside.as_posix()
    split = row.get("split") or stable_split(name)
    if split not in SPLITS:
        problems.append((name, f"split {split!r} in the manifest; train and val are known"))
        return None
    conditions = {}
    for key in CONDITIONS:
        if text := row.get(key):
            try:
                number = float(text)
            except ValueError:
                number = math.nan
            if 0 <= number < math.inf:
                conditions[key] = number
            else:
                problems.append((name, f"{key} is {text!r} in the manifest, not a number from 0; taken as unknown"))
    label = row.get("label") or path.resolve().parent.name
    return Source(path, name, label, split, row.get("capped") in ("1", "true", "yes"), conditions)


def stable_split(name: str) -> str:
    """One name in ten is `val`; a name never changes sides."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "big") < VAL_SHARE * 2**64 else "train"


# ---- one file, in a worker


class Salvage:
    """Iterates over a capture's packets; where it breaks off, `damage` says why and the iteration ends."""

    def __init__(self, path: Path, read: Callable[[Path], Iterable[Any]]) -> None:
        self.path, self.read, self.damage, self.count = path, read, "", 0

    def __iter__(self) -> Iterator[Any]:
        try:
            for packet in self.read(self.path):
                self.count += 1
                yield packet
        except CaptureError as error:
            if not self.count:
                raise
            self.damage = reason(error, self.path)


def reason(error: Exception, path: Path) -> str:
    """What is wrong, without the file's name, which stands before it in every report."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text.removeprefix(f"{path}: ")


def read_packets(path: Path) -> Iterator[Any]:
    with open(path, "rb") as file:
        yield from read_capture(file, str(path))


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker does with each capture: collect statistics (no vocabulary), or encode."""

    codec: Codec
    vocabulary: dict[str, Any] | None = None
    escapes: bool = False
    read: Callable[[Path], Iterable[Any]] = read_packets


_work: Work
_vocabulary: Any


def begin(work: Work) -> None:
    """Start a worker process: the vocabulary is decoded once, not once a file."""
    global _work, _vocabulary
    _work = work
    _vocabulary = None if work.vocabulary is None else work.codec.load(work.vocabulary)


def work_on(source: Source) -> Any:
    """One file's statistics, or its sessions; a str is the reason why there is none."""
    packets = Salvage(source.path, _work.read)
    try:
        if _vocabulary is None:
            return _work.codec.statistics(packets, source.label)
        encoded = _work.codec.encode(packets, _vocabulary, escapes=_work.escapes, whole=not source.capped)
    except (NetssmdError, OSError) as error:
        return reason(error, source.path)
    except Exception as error:
        error.add_note(f"while reading {source.path}")
        raise
    if not any(one.packets for one in encoded):
        return f"no packets to learn from ({sum(one.escaped for one in encoded)} escaped)"
    return [finish_session(one, _vocabulary, capped=source.capped, damage=packets.damage) for one in encoded]


def finish_session(encoded: EncodedFile, vocabulary: Any, *, capped: bool, damage: str) -> EncodedFile:
    """A session that was cut has no END to learn from."""
    check_legal(encoded, vocabulary)
    cut = slice(None, -1 if (capped or damage) and encoded.tokens[-1] == vocabulary.end else None)
    return replace(
        encoded, tokens=encoded.tokens[cut], limits=encoded.limits[cut], features=encoded.features[cut], damage=damage
    )


def check_legal(encoded: EncodedFile, vocabulary: Any) -> None:
    """The codec's promise, without which the loss is infinite: a token lies before its limit or in its field's tail."""
    sizes = [f.size for f in vocabulary.fields]
    ends = np.repeat([f.lo + f.size for f in vocabulary.fields], sizes)[encoded.tokens]
    tails = np.repeat([f.lo + f.size - f.tail for f in vocabulary.fields], sizes)[encoded.tokens]
    tokens, limits = encoded.tokens.astype(int), encoded.limits.astype(int)
    wrong = np.flatnonzero(((tokens >= limits) & (tokens < tails)) | (limits > ends))
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(f"the codec encoded token {tokens[at]} at position {at} with the limit {limits[at]}")


# ---- all files


@dataclass(slots=True)
class Tally:
    """What one label contributed."""

    sessions: int = 0
    packets: int = 0
    tokens: int = 0
    escaped: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` did: totals by (split, label), and every (file, reason) that was skipped or cut."""

    path: Path
    tallies: dict[tuple[str, str], Tally]
    problems: list[tuple[str, str]]


Advance = Callable[[str, int, int], None]  # phase, files done, files in all


def prepare(
    roots: Sequence[Path],
    target: Path,
    codec: Codec,
    *,
    manifest: Path | None = None,
    workers: int | None = None,
    escapes: bool = False,
    vocabulary: dict[str, Any] | None = None,
    add_labels: bool = False,
    overwrite: bool = False,
    advance: Advance = lambda phase, done, total: None,
    read: Callable[[Path], Iterable[Any]] = read_packets,
) -> Prepared:
    """Make the data folder `target` from the captures under `roots`.

    Arguments: vocabulary: a vocabulary to reuse; one is fitted to the train captures without it. add_labels: it learns
    those of the captures that it does not know. escapes: keep packets that need the codec's escape. workers: processes;
    the number of CPUs without it. advance: called as files get done.
    Raises UsageError, OutputError; problems of single files are returned.
    """
    check_target(target, overwrite=overwrite)
    sources, problems = find_sources(roots, manifest)
    if not sources:
        raise UsageError(f"{', '.join(map(str, roots))}: no files; give folders that hold captures")
    workers = workers or len(os.sched_getaffinity(0))
    if vocabulary is not None and add_labels:
        vocabulary = codec.with_labels(vocabulary, sorted({source.label for source in sources}))
    work = Work(codec, vocabulary, escapes, read)
    if vocabulary is None:
        train = [source for source in sources if source.split == "train"]
        results = run(Work(codec, None, escapes, read), train, workers, "statistics", advance)
        # A file without statistics is reported when it comes to encoding.
        statistics = (result for _, result in results if not isinstance(result, str))
        fitted = codec.fit(statistics, sorted({source.label for source in sources}))
        work = replace(work, vocabulary=fitted.to_json())
    assert work.vocabulary is not None
    known = codec.load(work.vocabulary)
    results = run(work, sources, workers, "encoding", advance)
    tallies = write_all(results, known, work.vocabulary, target, problems, overwrite=overwrite)
    return Prepared(target, tallies, problems)


def run(
    work: Work, sources: Sequence[Source], workers: int, phase: str, advance: Advance
) -> Iterator[tuple[Source, Any]]:
    """Results in the order of the sources; no more than a few files a worker are under way at any time."""
    advance(phase, 0, len(sources))
    if workers == 1 or len(sources) < 2:
        begin(work)
        for done, source in enumerate(sources, 1):
            yield source, work_on(source)
            advance(phase, done, len(sources))
        return
    context = multiprocessing.get_context("forkserver")  # the parent may have threads: a progress bar, torch
    with ProcessPoolExecutor(workers, context, begin, (work,)) as pool:
        queue: deque[tuple[Source, Future[Any]]] = deque()
        waiting = iter(sources)
        for done in range(1, len(sources) + 1):
            while len(queue) < 4 * workers and (following := next(waiting, None)) is not None:
                queue.append((following, pool.submit(work_on, following)))
            source, future = queue.popleft()
            yield source, future.result()
            advance(phase, done, len(sources))


def write_all(
    results: Iterable[tuple[Source, Any]],
    vocabulary: Any,
    document: dict[str, Any],
    target: Path,
    problems: list[tuple[str, str]],
    *,
    overwrite: bool,
) -> dict[tuple[str, str], Tally]:
    """Write every session into its split; the data folder appears at the end, if there was anything."""
    tallies: dict[tuple[str, str], Tally] = {}
    files: list[dict[str, Any]] = []
    strangers: Counter[str] = Counter()
    index = {label: at for at, label in enumerate(vocabulary.labels)}
    unknown = list(vocabulary.condition_rows(None))
    features = max(0, vocabulary.width - 2 - len(unknown))  # a byte model that is not conditioned has no label row
    with DatasetWriter(target, features, len(unknown), overwrite=overwrite) as writer:
        for source, result in results:
            if isinstance(result, str):
                problems.append((source.name, result))
                continue
            if result[0].damage:
                kept = sum(session.packets for session in result)
                problems.append((source.name, f"{result[0].damage}; kept {kept} packets before it"))
            strangers[source.label] += source.label not in index
            for session in result:
                writer.shards[source.split].append(
                    session.tokens,
                    session.limits,
                    session.features,
                    label=index.get(source.label, -1),
                    conditions=list(vocabulary.condition_rows(source.conditions)),
                    packets=session.packets,
                    file=len(files),
                )
            files.append(account(source, result, tallies))
        if not files:
            first = f"; {problems[0][0]}: {problems[0][1]}" if problems else ""
            raise UsageError(f"none of the files is a capture that can be learnt from{first}")
        problems += [
            (label, f"no label of the vocabulary: {n} sessions without a label") for label, n in strangers.items() if n
        ]
        writer.finish(document, {"files": files, "problems": problems})
    return tallies


def account(source: Source, result: list[EncodedFile], tallies: dict[tuple[str, str], Tally]) -> dict[str, Any]:
    """Add a file's sessions to its label's tally; what files.json says about it."""
    packets, tokens = sum(session.packets for session in result), sum(len(session.tokens) for session in result)
    escaped = sum(session.escaped for session in result)
    tally = tallies.setdefault((source.split, source.label), Tally())
    tally.sessions += len(result)
    tally.packets += packets
    tally.tokens += tokens
    tally.escaped += escaped
    return {
        "file": source.name,
        "label": source.label,
        "split": source.split,
        "capped": source.capped,
        "conditions": source.conditions,
        "sessions": len(result),
        "packets": packets,
        "tokens": tokens,
        "escaped": escaped,
    }


def vocabulary_of(model: Path) -> dict[str, Any]:
    """The vocabulary of a checkpoint or of a data folder, to encode other captures alike. Raises UsageError."""
    for name, section in (("config.json", "codec"), ("vocabulary.json", None)):
        try:
            document = json.loads((model / name).read_text())
            vocabulary: dict[str, Any] = document[section] if section else document
            return vocabulary
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"{model / name}: no codec in it ({error!r}); name a model or a data folder") from None
    raise UsageError(f"{model}: neither config.json nor vocabulary.json; name a model or a data folder")
