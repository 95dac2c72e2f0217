"""The context codec as learning sees it: arrays that keep the encoder's promises, escaped packets left out and
counted."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from netssmd.codec.encoder import Encoder
from netssmd.codec.vocab import FEATURE_COUNT, FIELD_NAMES, Stack, Statistics
from netssmd.errors import CheckpointError
from netssmd.learn.codec import ContextCodec
from netssmd.learn.prepare import check_legal, read_packets

CAPTURES = Path(
    os.environ.get("NETSSMD_CAPTURES", Path(__file__).resolve().parent.parent.parent / "shared" / "captures")
)


@pytest.mark.capture
@pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures")
def test_a_capture_becomes_arrays() -> None:
    codec = ContextCodec()
    files = sorted((CAPTURES / "lab" / "dns").glob("*.pcap.gz"))[:3]
    vocabulary = codec.fit([codec.statistics(read_packets(file), "dns") for file in files], ["dns"])
    packets = list(read_packets(files[0]))
    (arrays,) = codec.encode(packets, vocabulary, escapes=False)
    check_legal(arrays, vocabulary)
    assert arrays.packets == len(packets) and arrays.escaped == 0
    assert arrays.tokens[-1] == vocabulary.end
    assert arrays.features.shape == (len(arrays.tokens), FEATURE_COUNT) and vocabulary.width == 5 + FEATURE_COUNT
    fields = arrays.features[:, 0].astype(int) - vocabulary.feature_base[0]
    assert [FIELD_NAMES[f] for f in fields[:2]] == ["who", "service"]
    assert fields.tolist() == [vocabulary.field_of(int(token)) for token in arrays.tokens]
    ends = [*vocabulary.feature_base[1:], vocabulary.rows]
    assert (arrays.features >= vocabulary.feature_base).all() and (arrays.features < ends).all()


def test_escaped_packets_are_left_out_as_if_they_had_never_been() -> None:
    codec = ContextCodec()
    vocabulary = codec.fit([], ["a"])
    junk = [(n * 1000, bytes(12) + b"\x88\xcc" + bytes(40), 54) for n in range(3)]
    frame = bytes.fromhex("02000000000202000000000108004500001c000100004011b6cd c6120001c612000210001001 00080000")
    good = [(n * 5000, frame, len(frame)) for n in range(4)]
    mixed = sorted(good + junk)
    plain, without, kept = (
        codec.encode(packets, vocabulary, escapes=escapes)[0]
        for packets, escapes in ((good, False), (mixed, False), (mixed, True))
    )
    assert (plain.escaped, without.escaped, kept.escaped) == (0, 3, 3)
    assert (plain.packets, without.packets, kept.packets) == (4, 4, 7)
    np.testing.assert_array_equal(plain.tokens, without.tokens)
    np.testing.assert_array_equal(plain.features, without.features)
    assert Encoder(vocabulary).encoded.packets == 0


def test_another_codec_is_refused() -> None:
    with pytest.raises(CheckpointError, match="bytes"):
        ContextCodec().load({"name": "bytes", "format": 1})


def test_statistics_and_vocabulary_travel_between_processes() -> None:
    statistics = Statistics()
    statistics.stacks[Stack(b"\x02\x04\x05\xb4", 64240, 64, 0, 2, False)] += 3
    again = pickle.loads(pickle.dumps(statistics))
    assert again.stacks == statistics.stacks
