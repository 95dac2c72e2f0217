"""The byte codec as learning sees it: captures to samples of header bytes (sections 4.1.2, 5.1 and 5.3).

A capture is one sample (multi-flow), or one for each of its flows by five-tuple (single-flow), or for one phase of
each. Statistics are gaps between packets by label, which the vocabulary carries as its timing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netssmd.codec.byte_vocab import ByteVocabulary
from netssmd.codec.bytes import block, observe_timing
from netssmd.codec.flows import FlowSplitter, flow_key
from netssmd.codec.timing import Timing
from netssmd.errors import CheckpointError, UsageError
from netssmd.learn.phases import cut_phase
from netssmd.learn.prepare import EncodedFile
from netssmd.packet.wire import parse


@dataclass(frozen=True, slots=True)
class ByteCodec:
    """`netssmd.learn.prepare.Codec` for the byte codec.

    packet_bytes, protocols, framed, conditioned: see codec.byte_vocab. single_flow: split by five-tuple. phase: one of
    learn.phases.PHASES, of single flows; empty: whole flows. sample_tokens: longest sample, 0 for no limit.
    """

    packet_bytes: int = 94
    protocols: tuple[str, ...] = ()
    framed: bool = True
    conditioned: bool = False
    single_flow: bool = False
    phase: str = ""
    sample_tokens: int = 0

    def statistics(self, packets: Iterable[Any], label: str) -> Timing:
        timing = Timing()
        if self.single_flow or self.phase:
            for flow in self._flows(packets):
                observe_timing(timing, label, flow)
        else:
            observe_timing(timing, label, packets)
        return timing

    def fit(self, statistics: Iterable[Timing], labels: Sequence[str]) -> ByteVocabulary:
        whole = Timing()
        for one in statistics:
            whole.merge(one)
        return ByteVocabulary.make(
            tuple(labels), self.packet_bytes, self.protocols, self.framed, self.conditioned, whole
        )

    def load(self, document: dict[str, Any]) -> ByteVocabulary:
        try:
            return ByteVocabulary.from_json(document)
        except ValueError as error:
            raise CheckpointError(f"vocabulary: {error}; prepare the data again") from None

    def with_labels(self, document: dict[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        raise UsageError("--add-labels: a label of the byte codec is a token, and its model has as many as it has")

    def encode(
        self, packets: Iterable[Any], vocabulary: ByteVocabulary, *, escapes: bool, whole: bool = True
    ) -> list[EncodedFile]:
        """Samples; packets that the layout has no place for are left out and counted with the first."""
        left_out = [0]
        if self.single_flow or self.phase:
            samples = []
            for flow in self._flows(packets):
                samples.append(self._sample(cut_phase(flow, self.phase) if self.phase else flow, vocabulary, left_out))
        else:
            samples = [self._sample(packets, vocabulary, left_out)]
        found = [sample for sample in samples if sample.packets]
        if not found:
            return [EncodedFile(*_arrays([], vocabulary), 0, left_out[0])]
        first = found[0]
        found[0] = EncodedFile(first.tokens, first.limits, first.features, first.packets, left_out[0])
        return found

    def _flows(self, packets: Iterable[Any]) -> Iterable[list[Any]]:
        splitter: FlowSplitter[Any] = FlowSplitter()
        for packet in packets:
            key = flow_key(parse(packet[1], packet[2]))
            if key is not None:
                yield from splitter.add(key, packet)
        yield from splitter.rest()

    def _sample(self, packets: Iterable[Any], vocabulary: ByteVocabulary, left_out: list[int]) -> EncodedFile:
        blocks: list[bytes] = []
        most = self.sample_tokens // (self.packet_bytes + 1) if self.sample_tokens else 0
        cut = False
        for _, data, orig_len in packets:
            found, reason = block(data, orig_len, vocabulary.layout, vocabulary.protocols)
            if reason:
                left_out[0] += 1
            elif most and len(blocks) == most:
                cut = True
                break
            else:
                blocks.append(found)
        tokens, limits, features = _arrays(blocks, vocabulary)
        if cut:  # no end to learn from
            tokens, limits, features = tokens[:-1], limits[:-1], features[:-1]
        return EncodedFile(tokens, limits, features, len(blocks), 0)


def _arrays(blocks: list[bytes], vocabulary: ByteVocabulary) -> tuple[Any, Any, Any]:
    """Tokens and limits of whole packets, the delimiter between them and END behind; no features."""
    size, ids = vocabulary.layout.packet_bytes, np.array(vocabulary.byte_ids, np.uint16)
    tokens = np.full((len(blocks), size + 1), vocabulary.pkt, np.uint16)
    tokens[:, :size] = ids[np.frombuffer(b"".join(blocks), np.uint8)].reshape(-1, size)
    tokens[-1:, size] = vocabulary.end
    limits = np.full_like(tokens, vocabulary.size)
    if vocabulary.framed:
        limits[:, :size], limits[:, size] = 256, 258
    return tokens.reshape(-1), limits.reshape(-1), np.zeros((tokens.size, 0), np.uint16)
