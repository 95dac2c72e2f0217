"""The context codec as learning sees it: statistics for its vocabulary, and sessions as arrays. The only file here that
knows the encoder.

A session's features come out of the encoder once a stage (who speaks, then what); here each token gets its own row of
them, the field that the token belongs to in front.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from netssmd.codec.encoder import Encoded, Encoder
from netssmd.codec.vocab import STAGE_FEATURES, Statistics, Vocabulary
from netssmd.errors import CheckpointError
from netssmd.learn.prepare import Codec, EncodedFile


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

    def encode(self, packets: Iterable[Any], vocabulary: Vocabulary, *, escapes: bool) -> list[EncodedFile]:
        """Escaped packets are found by encoding; to leave them out the session is encoded again without them."""
        kept = list(packets)
        encoded, escaped = self._encode(kept, vocabulary)
        left_out = 0 if escapes else len(escaped)
        if left_out:
            kept = [packet for at, packet in enumerate(kept) if at not in escaped]
            encoded, _ = self._encode(kept, vocabulary)
        return [as_arrays(encoded, vocabulary, len(escaped))]

    def _encode(self, packets: Sequence[Any], vocabulary: Vocabulary) -> tuple[Encoded, set[int]]:
        encoder, escaped = Encoder(vocabulary), set()
        for at, (ts_ns, data, orig_len) in enumerate(packets):
            before = encoder.encoded.escaped
            encoder.packet(ts_ns, data, orig_len)
            if encoder.encoded.escaped > before:
                escaped.add(at)
        encoder.end()
        return encoder.encoded, escaped


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
    told = stages[encoded.stages]
    base = vocabulary.feature_base
    state = base[-1] + 64 * field + told[:, 0] - base[1]
    features = np.concatenate([(base[0] + field)[:, None], told, state[:, None]], axis=1).astype(np.uint16)
    return EncodedFile(tokens, np.array(encoded.limits, np.uint16), features, encoded.packets, escaped)
