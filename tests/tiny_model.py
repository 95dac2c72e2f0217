"""A checkpoint with the real codec and random weights: well-formed packets, no sense. Made in a temporary folder.

Its labels know no long gaps and no long flows: whatever is drawn, a session goes on at once, and to its end.
"""

from pathlib import Path

import numpy as np

from netssmd.codec import vocab as v
from netssmd.codec.vocab import Stack, Vocabulary
from netssmd.model.checkpoint import save_checkpoint
from netssmd.model.config import ModelConfig

LABELS = ("dns", "video-dash", "web")
EXTENT = [[30, None, 3], [100, None, 6]]  # packets, milliseconds, flows


def tiny_vocabulary() -> Vocabulary:
    options = bytes.fromhex("020405b40402080a0000000000000000" + "01030307")
    stacks = (Stack(options, 64240, 64, 0, 2, False), Stack(options, 65160, 64, 0, 2, True))
    return Vocabulary(LABELS, stacks, (1, 52, 517), (502, 64240), (53, 80, 443))


def tiny_model(folder: Path, seed: int = 1) -> Path:
    vocabulary = tiny_vocabulary()
    config = ModelConfig(
        d_model=32, n_layer=2, d_state=16, headdim=16, vocab_size=vocabulary.size, rows=vocabulary.rows
    )
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in config.tensors().items()}
    for name in tensors:
        if name.endswith("A_log"):
            tensors[name] = np.abs(tensors[name])
        elif name.endswith("dt_bias"):
            tensors[name] -= 3.0
    card = "A model of random numbers, for tests.\n"
    conduct = {"tokens": brisk(vocabulary), "extents": dict.fromkeys(LABELS, EXTENT)}
    save_checkpoint(folder, config, vocabulary.to_json(), tensors, card, conduct=conduct)
    return folder


def brisk(vocabulary: Vocabulary) -> dict[str, list[list[int]]]:
    """All tokens but those of gaps beyond a fifth of a second."""
    lo = vocabulary.fields[v.IAT].lo
    runs = [[0, lo + v.IAT_BINS.find(200_000_000)], [lo + v.IAT_BINS.count, vocabulary.size]]
    return dict.fromkeys(LABELS, runs)
