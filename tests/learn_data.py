"""Random sessions that keep the codec's promises, for the tests of learning: no captures and no encoder needed."""

import gzip
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from netssmd.codec.vocab import FEATURES, Vocabulary
from netssmd.learn.dataset import DatasetWriter
from netssmd.learn.prepare import EncodedFile


def small_vocabulary(labels: tuple[str, ...] = ("chat", "dns", "web")) -> Vocabulary:
    return Vocabulary(labels, (), (40, 1460), (502, 64240), (53, 80, 443))


def random_session(
    vocabulary: Vocabulary, length: int, rng: np.random.Generator, favourite: int = 0
) -> tuple[Any, Any, Any]:
    """Tokens, limits, features of a session of `length` tokens, END last. Tokens come from a few members of few fields,
    so that there is something to learn; `favourite` shifts them."""
    fields = [vocabulary.fields[number] for number in (0, 7, 14, 15, 25)]
    tokens, limits = np.zeros(length, np.uint16), np.zeros(length, np.uint16)
    features = np.zeros((length, len(FEATURES)), np.uint16)
    for i in range(length):
        f = fields[i % len(fields)]
        legal = f.size - f.tail if rng.random() < 0.5 else int(rng.integers(1, f.size - f.tail + 1))
        limits[i] = f.lo + legal
        tokens[i] = f.lo + (
            f.size - 1 if f.tail and rng.random() < 0.05 else min(legal - 1, favourite + int(rng.integers(3)))
        )
    tokens[-1], limits[-1] = vocabulary.end, vocabulary.fields[0].lo + 2
    for column, (base, (_, count)) in enumerate(zip(vocabulary.feature_base, FEATURES, strict=True)):
        features[:, column] = base + rng.integers(0, count, length)
    return tokens, limits, features


def write_data(path: Path, *, sessions: int = 12, tokens: tuple[int, int] = (20, 200), seed: int = 0) -> Vocabulary:
    """A data folder: `sessions` for training and a third of that for validation."""
    vocabulary, rng = small_vocabulary(), np.random.default_rng(seed)
    with DatasetWriter(path, len(FEATURES), 3) as writer:
        for number in range(sessions + sessions // 3):
            label = number % len(vocabulary.labels)
            length = int(rng.integers(*tokens))
            session = random_session(vocabulary, length, rng, favourite=5 * label)
            writer.shards["train" if number < sessions else "val"].append(
                *session,
                label=label,
                conditions=vocabulary.condition_rows({"rtt_ms": 20.0}),
                packets=max(1, length // 5),
                file=number,
            )
        writer.finish(vocabulary.to_json(), {"files": [], "problems": []})
    return vocabulary


class JsonCodec:
    """The part of a codec that training needs."""

    def load(self, document: dict[str, Any]) -> Vocabulary:
        return Vocabulary.from_json(document)


class PacketCodec(JsonCodec):
    """A codec small enough to see through: a packet is (LENGTH by its length, IAT 0); one that begins with 0xee is
    escaped."""

    def statistics(self, packets: Iterable[Any], label: str) -> Counter[int]:
        return Counter(len(data) for _, data, _ in packets)

    def fit(self, statistics: Iterable[Counter[int]], labels: Sequence[str]) -> Vocabulary:
        lengths = tuple(sorted(sum(statistics, Counter())))
        return Vocabulary(tuple(labels), (), lengths, (), ())

    def with_labels(self, document: dict[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        raise NotImplementedError

    def encode(
        self, packets: Iterable[Any], vocabulary: Vocabulary, *, escapes: bool, whole: bool = True
    ) -> list[EncodedFile]:
        every = [data for _, data, _ in packets]
        kept = [data for data in every if escapes or data[:1] != b"\xee"]
        length, iat = vocabulary.fields[14], vocabulary.fields[25]
        pairs = [(length.lo + len(data) % length.size, iat.lo) for data in kept]
        tokens = np.array([token for pair in pairs for token in pair] + [vocabulary.end], np.uint16)
        limits = np.array([length.lo + length.size, iat.lo + 1] * len(kept) + [vocabulary.end + 2], np.uint16)
        features = np.tile(np.array(vocabulary.feature_base, np.uint16), (len(tokens), 1))
        escaped = sum(data[:1] == b"\xee" for data in every)
        return [EncodedFile(tokens, limits, features, len(kept), escaped)]


def write_capture(path: Path, packets: int, *, escaped: int = 0, seed: int = 0) -> None:
    """A small PCAP file, gzip-compressed if its name says so."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for number in range(packets):
            data = (b"\xee" if number < escaped else b"\x02") + bytes(59 + int(rng.integers(40)))
            file.write(struct.pack("<IIII", number, 0, len(data), len(data)) + data)
