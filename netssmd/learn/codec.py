"""The context codec as learning sees it: statistics for its vocabulary, and sessions as arrays. The only file here that
knows the encoder.

A session's features come out of the encoder once a stage (who speaks, then what); here each token gets its own row of
them, the field that the token belongs to in front.
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from netssmd.codec.encoder import Encoded, Encoder
from netssmd.codec.vocab import LEFT, LEFT_BINS, MILLISECOND, STAGE_FEATURES, Statistics, Vocabulary
from netssmd.errors import CheckpointError
from netssmd.learn.prepare import Codec, EncodedFile, Salvage


class ContextCodec:
    """`netssmd.learn.prepare.Codec` for the context codec."""

    def statistics(self, packets: Iterable[Any], label: str) -> Statistics:
        statistics = Statistics()
        encoder = Encoder(Statistics().fit(()), statistics)
        for ts_ns, data, orig_len in packets:
            encoder.packet(ts_ns, data, orig_len)
        return statistics

    def fit(self, statistics: Iterable[Statistics], labels: Sequence[str]) -> Vocabulary:
        whole = Statistics()
        for one in statistics:
            whole.merge(one)
        return whole.fit(tuple(labels))

    def load(self, document: dict[str, Any]) -> Vocabulary:
        try:
            return Vocabulary.from_json(document)
        except ValueError as error:
            raise CheckpointError(f"vocabulary: {error}; prepare the data again") from None

    def with_labels(self, document: dict[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        v = self.load(document)
        known = (*v.labels, *(label for label in labels if label not in v.labels))
        return Vocabulary(known, v.stacks, v.lengths, v.windows, v.ports).to_json()

    def encode(
        self, packets: Iterable[Any], vocabulary: Vocabulary, *, escapes: bool, whole: bool = True
    ) -> list[EncodedFile]:
        """Encoded once to find out which packets need the escape, and again without them; and to learn how long its
        flows are, which is then told. One session in ten is not told: so is one that goes on from a prompt."""
        kept = list(packets)
        encoder, escaped = self._encode(kept, vocabulary)
        if escaped and not escapes:
            kept = [packet for at, packet in enumerate(kept) if at not in escaped]
            encoder, _ = self._encode(kept, vocabulary)
        whole = whole and not (isinstance(packets, Salvage) and packets.damage)
        if whole and kept and zlib.crc32(kept[0][1]) % 10:
            encoder, _ = self._encode(kept, vocabulary, encoder.encoded)
        return [as_arrays(encoder.encoded, vocabulary, len(escaped))]

    def _encode(
        self, packets: Sequence[Any], vocabulary: Vocabulary, known: Encoded | None = None
    ) -> tuple[Encoder, set[int]]:
        encoder, escaped = Encoder(vocabulary, known=known), set()
        for at, (ts_ns, data, orig_len) in enumerate(packets):
            before = encoder.encoded.escaped
            encoder.packet(ts_ns, data, orig_len)
            if encoder.encoded.escaped > before:
                escaped.add(at)
        encoder.end()
        return encoder, escaped


def codec_of(document: dict[str, Any]) -> Codec:
    """The codec that a vocabulary belongs to."""
    if document.get("name") == "bytes":
        from netssmd.learn.byte_codec import ByteCodec

        return ByteCodec()
    return ContextCodec()


def as_arrays(encoded: Encoded, vocabulary: Vocabulary, escaped: int) -> EncodedFile:
    """One row of features a token: `Vocabulary.feature_rows` of its field and stage."""
    tokens = np.array(encoded.tokens, np.uint16)
    stages = np.array(encoded.features, np.uint16).reshape(-1, STAGE_FEATURES)
    field = np.searchsorted(vocabulary.lo, tokens, side="right") - 1
    stages[:, LEFT - 1 : LEFT - 1 + len(LEFT_BINS)] = what_is_left(encoded, vocabulary)
    told = stages[encoded.stages]
    base = vocabulary.feature_base
    state = base[-1] + 64 * field + told[:, 0] - base[1]
    features = np.concatenate([(base[0] + field)[:, None], told, state[:, None]], axis=1).astype(np.uint16)
    return EncodedFile(tokens, np.array(encoded.limits, np.uint16), features, encoded.packets, escaped)


def what_is_left(encoded: Encoded, vocabulary: Vocabulary) -> npt.NDArray[Any]:
    """Rows of `Context._left` for each stage, now that the session's extent is known: that of its last stage."""
    progress = np.array(encoded.progress, np.int64).reshape(-1, len(LEFT_BINS))
    left = np.maximum(progress[-1], 0) - progress
    left[:, 1] //= MILLISECOND
    bins = [np.searchsorted(np.array(b.edges[1:-1]), left[:, i], side="right") for i, b in enumerate(LEFT_BINS)]
    told = np.where(left < 0, 0, 1 + np.stack(bins, axis=1))
    rows: npt.NDArray[Any] = np.array(vocabulary.left_base[: len(LEFT_BINS)]) + told
    return rows
