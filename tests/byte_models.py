"""Byte models for tests: random weights, and look-alikes of the folders that the authors publish."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from traces import BYE, TALK, headers

from netssmd.codec.byte_vocab import ByteVocabulary
from netssmd.codec.timing import Timing
from netssmd.model.checkpoint import save_checkpoint
from netssmd.model.config import ModelConfig
from netssmd.packet.pcap import Packet
from netssmd.packet.render import render

LABELS = ("amazon", "netflix")


def talk(lines: list[str] | None = None, step_ns: int = 1_000_000) -> list[Packet]:
    """A TCP conversation as whole frames."""
    packets = []
    for i, line in enumerate(TALK + BYE if lines is None else lines):
        h = headers(line)
        h.body = b""
        h.link = bytes.fromhex("020000000002020000000001") + b"\x08\x00"
        packets.append(Packet(1_700_000_000_000_000_000 + i * step_ns, *render(h)))
    return packets


def random_tensors(config: ModelConfig, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in config.tensors().items()}
    for name in tensors:
        if name.endswith("A_log"):
            tensors[name] = np.abs(tensors[name])
        elif name.endswith("dt_bias"):
            tensors[name] -= 3.0
    return tensors


def byte_model(folder: Path, timing: Timing | None = None, packet_bytes: int = 94, framed: bool = True) -> Path:
    """A model of the byte codec that writes noise and never ends by itself."""
    vocabulary = ByteVocabulary.make(LABELS, packet_bytes, framed=framed, timing=timing)
    config = ModelConfig(
        d_model=32, n_layer=2, d_state=16, headdim=16, vocab_size=vocabulary.size, rows=vocabulary.rows, head_bias=True
    )
    tensors = random_tensors(config)
    tensors["lm_head.bias"] = np.where(np.arange(vocabulary.size) == vocabulary.end, -9984, 0).astype(np.float32)
    save_checkpoint(folder, config, vocabulary.to_json(), tensors, "Noise, for tests.\n")
    return folder


def echoing_model(folder: Path) -> Path:
    """Mostly zeros, whatever came before; never ends by itself."""
    vocabulary = ByteVocabulary.make(LABELS, 94)
    config = ModelConfig(
        d_model=32, n_layer=2, d_state=16, headdim=16, vocab_size=vocabulary.size, rows=vocabulary.rows, head_bias=True
    )
    tensors = random_tensors(config)
    bias = np.zeros(vocabulary.size, np.float32)
    bias[0], bias[vocabulary.end] = 6, -9984
    tensors["lm_head.bias"] = bias
    save_checkpoint(folder, config, vocabulary.to_json(), tensors, "Zeros, for tests.\n")
    return folder


# ---- look-alikes ---------------------------------------------------------------------------------------------------

MAMBA_CONFIG = {
    "d_model": 32,
    "d_intermediate": 0,
    "n_layer": 2,
    "vocab_size": 271,
    "ssm_cfg": {"layer": "Mamba2", "d_state": 16, "headdim": 16},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}


def scrambled_tokenizer(label: str = "netflix", seed: int = 3) -> dict[str, object]:
    """BPE over decimal strings as training leaves it: specials at ids 0 to 3, digits, then pairs in the order in which
    they were merged, among them "256"; 261 entries."""
    rng = np.random.default_rng(seed)
    numbers = [str(n) for n in [*range(10, 100), *rng.permutation(range(100, 256)).tolist()]]
    pairs, longer = numbers[:90], numbers[90:]
    rng.shuffle(pairs)
    longer.insert(100, "256")
    specials = ["<|endoftext|>", "<|padding|>", "<|pkt|>", f"<|{label}|>"]
    vocab = {name: i for i, name in enumerate([*specials, *"0123456789", *pairs, *longer])}
    merges = [f"{n[0]} {n[1]}" for n in pairs] + [_merge(n, pairs) for n in longer]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, name) for i, name in enumerate(specials)],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "CharDelimiterSplit", "delimiter": " "},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip


def _merge(number: str, pairs: list[str]) -> str:
    """The merge that makes a three-digit string: of its two pairs the one that was merged first is there already."""
    first, last = number[:2], number[1:]
    rank = {pair: i for i, pair in enumerate(pairs)}
    if rank.get(last, 99) < rank.get(first, 99):
        return f"{number[0]} {last}"
    return f"{first} {number[2]}"


def word_level_tokenizer(labels: tuple[str, ...] = LABELS) -> dict[str, object]:
    """Byte b is id b, <|unk|> 256, the others added behind: what the authors' newer script writes."""
    added = ["<|endoftext|>", "<|padding|>", "<|pkt|>", *[f"<|{label}|>" for label in labels]]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(256, "<|unk|>"), *(_added(257 + i, name) for i, name in enumerate(added))],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {str(b): b for b in range(256)} | {"<|unk|>": 256},
                  "unk_token": "<|unk|>"},
    }  # fmt: skip


def _added(number: int, content: str) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": content, **flags}


def look_alike(folder: Path, tokenizer: dict[str, object], bf16: bool = False, config=None, seed: int = 1):
    """A folder as mamba_ssm's save_pretrained writes it, the tied head stored twice. Return: its tensors."""
    import torch

    config = config or MAMBA_CONFIG
    ssm = {"d_state": 128, "headdim": 64, **config["ssm_cfg"]}
    rows = -(-config["vocab_size"] // config["pad_vocab_size_multiple"]) * config["pad_vocab_size_multiple"]
    ssm.pop("layer", None)
    sizes = ModelConfig(d_model=config["d_model"], n_layer=config["n_layer"], vocab_size=rows, rows=rows, **ssm)
    found = {name: torch.from_numpy(t) for name, t in random_tensors(sizes, seed).items()}
    if bf16:
        found = {name: t.bfloat16() for name, t in found.items()}
    found["lm_head.weight"] = found["backbone.embedding.weight"]
    folder.mkdir(parents=True)
    torch.save(found, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return found
