"""A Hugging Face folder of mamba_ssm or of the authors in, our model folder out. No pickled code runs.

    config.json                                  sizes (mamba_ssm's MambaConfig)
    pytorch_model.bin | model.safetensors        tensors by mamba_ssm's names, bf16, fp16 or fp32
    tokenizer.json                               which id means which byte (codec/byte_vocab.py reads both kinds)

The weights keep their values; the head is tied, so it is left out once it is seen to be the embedding. Vocabularies
are padded to a multiple of 8 or 16, and not every named id means something: ids that mean neither a byte nor the end of
a packet get a bias of `NEVER`, so that they are never drawn. `pytorch_model.bin` is a pickle; torch's weights-only
reader rebuilds tensors from it and refuses everything else. What this program's Mamba-2 is not (Mamba-1, attention or
MLP layers, several groups, a head of its own ...) is refused by name.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from netssmd.codec.byte_vocab import ByteVocabulary, labels_of, names_of_tokenizer
from netssmd.codec.timing import Timing
from netssmd.errors import CheckpointError, ConfigError, NetssmdError
from netssmd.model.checkpoint import read_json, save_checkpoint
from netssmd.model.config import ModelConfig

Array = npt.NDArray[np.float32]

NEVER: Final = np.float32(-9984.0)  # exact in bf16; finite, so that a range of such ids still has a softmax
PICKLED: Final = "pytorch_model.bin"
SAFE: Final = "model.safetensors"
EMBEDDING: Final = "backbone.embedding.weight"
HEAD: Final = "lm_head.weight"

# mamba_ssm's defaults for Mamba2, where ssm_cfg says nothing, and those of its other switches that must stand as here.
SIZES: Final = {"d_state": 128, "d_conv": 4, "expand": 2, "headdim": 64, "ngroups": 1, "chunk_size": 256}
FIXED: Final = {
    "D_has_hdim": False,
    "rmsnorm": True,
    "norm_before_gate": False,
    "bias": False,
    "conv_bias": True,
    "d_ssm": None,
}
# Switches that only say how to begin a training or which kernel to use.
HARMLESS: Final = (
    "layer", "A_init_range", "dt_min", "dt_max", "dt_init_floor", "dt_limit", "use_mem_eff_path", "conv_init",
    "sequence_parallel", "process_group", "layer_idx",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Imported:
    """What was imported."""

    config: ModelConfig
    vocabulary: ByteVocabulary
    masked: int  # ids that are never drawn


def import_model(
    folder: Path,
    target: Path,
    packet_bytes: int = 128,
    protocols: tuple[str, ...] = (),
    timing: Timing | None = None,
    tokenizer: Path | None = None,
    ends: bool = False,
) -> Imported:
    """Import `folder` as `target`.

    Arguments: packet_bytes, protocols: what the model was trained on, which no file tells; tokenizer: where the
    tokenizer lies if not in the folder; ends: its training wrote `<|endoftext|>` behind sessions (the authors' does
    not). Raises CheckpointError naming file and key, tensor or token.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; name one that mamba_ssm's save_pretrained wrote")
    data = read_json(folder / "config.json")
    tensors, weights = read_tensors(folder)
    config = read_config(data, folder / "config.json", tensors, weights)
    where = tokenizer or folder / "tokenizer.json"
    where = where / "tokenizer.json" if where.is_dir() else where
    document = read_json(where)
    try:
        names = names_of_tokenizer(document, config.vocab_size)
        vocabulary = ByteVocabulary(
            tuple(names), labels_of(names), packet_bytes, protocols, framed=False, timing=timing
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None
    if not vocabulary.labels:
        raise CheckpointError(f"{where}: has no label token such as <|netflix|>; without one nothing can be asked for")
    drawable = np.array(vocabulary.drawable())
    drawable[vocabulary.end] = ends
    tensors["lm_head.bias"] = np.where(drawable, np.float32(0), NEVER)
    card = model_card(folder, config, vocabulary)
    exact = all(not (np.ascontiguousarray(tensor).view(np.uint32) & 0xFFFF).any() for tensor in tensors.values())
    try:
        save_checkpoint(target, config, vocabulary.to_json(), tensors, card, "bf16" if exact else "fp32")
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}") from None
    return Imported(config, vocabulary, int((~drawable).sum()))


# ---- the config ----------------------------------------------------------------------------------------------------


def read_config(data: Mapping[str, Any], path: Path, tensors: dict[str, Array], weights: Path) -> ModelConfig:
    """The sizes of a mamba_ssm config, held against the tensors, whose head is taken out. Raises CheckpointError."""
    if "model" in data and "codec" in data:
        raise CheckpointError(f"{path}: is a netssmd model already; use the folder as it is")
    if "ssm_cfg" not in data and "model_type" in data:
        raise CheckpointError(
            f"{path}: is a model of the transformers library ({data['model_type']}); mamba_ssm's own form is read"
        )
    ssm = data.get("ssm_cfg")
    ssm = ssm if isinstance(ssm, dict) else {}
    layer = ssm.get("layer", "Mamba1")
    if layer != "Mamba2":
        raise CheckpointError(f"{path}: ssm_cfg.layer is {layer!r} (Mamba1 where nothing is said); Mamba2 is run here")
    if data.get("attn_layer_idx"):
        raise CheckpointError(f"{path}: attn_layer_idx is {data['attn_layer_idx']}: attention layers are not run here")
    asked: dict[str, object] = {"d_intermediate": 0, "rms_norm": True}
    for key, right in asked.items():
        if data.get(key, right) != right:
            raise CheckpointError(f"{path}: {key} is {data[key]!r}; {right!r} is what is run here")
    for key, fixed in FIXED.items():
        if ssm.get(key, fixed) != fixed:
            raise CheckpointError(f"{path}: ssm_cfg.{key} is {ssm[key]!r}; {fixed!r} is what is run here")
    unknown = sorted(set(ssm) - set(SIZES) - set(FIXED) - set(HARMLESS))
    if unknown:
        raise CheckpointError(f"{path}: ssm_cfg.{unknown[0]} is not known here")
    if ssm.get("ngroups", 1) != 1:
        raise CheckpointError(
            f"{path}: ssm_cfg.ngroups is {ssm['ngroups']}: its gated norm goes over each group by itself; 1 is run here"
        )
    if list(ssm.get("dt_limit", (0.0, float("inf")))) != [0.0, float("inf")]:
        raise CheckpointError(f"{path}: ssm_cfg.dt_limit is {ssm['dt_limit']}; [0, Infinity] is what is run here")
    rows = _rows(data, path, tensors, weights)
    sizes = {key: ssm.get(key, default) for key, default in SIZES.items()}
    try:
        config = ModelConfig(
            d_model=data.get("d_model", 0), n_layer=data.get("n_layer", 0), vocab_size=rows, rows=rows,
            head_bias=True, **sizes,
        )  # fmt: skip
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    _check_tensors(config, tensors, weights)
    return config


def _rows(data: Mapping[str, Any], path: Path, tensors: dict[str, Array], weights: Path) -> int:
    """Rows of the embedding, padding included. The tied head is taken out."""
    if EMBEDDING not in tensors:
        raise CheckpointError(f"{weights}: tensor {EMBEDDING} is missing; this is no language model of mamba_ssm")
    embedding = tensors[EMBEDDING]
    head = tensors.pop(HEAD, None)
    if head is not None and not (head.shape == embedding.shape and np.array_equal(head, embedding)):
        raise CheckpointError(f"{weights}: {HEAD} is not {EMBEDDING}; only tied heads are run here")
    if head is None and data.get("tie_embeddings", True) is not True:
        raise CheckpointError(f"{path}: tie_embeddings is {data['tie_embeddings']!r}; only tied heads are run here")
    size, multiple = data.get("vocab_size"), data.get("pad_vocab_size_multiple", 8)
    if not (type(size) is int and size > 0 and type(multiple) is int and multiple > 0):
        raise CheckpointError(f"{path}: vocab_size is {size!r} and pad_vocab_size_multiple {multiple!r}")
    padded = -(-size // multiple) * multiple
    rows = int(embedding.shape[0])
    if rows not in (size, padded):
        raise CheckpointError(
            f"{path}: vocab_size is {size}, padded {padded}, but {weights.name} has {rows} rows in {EMBEDDING}"
        )
    return rows


def _check_tensors(config: ModelConfig, tensors: Mapping[str, Array], weights: Path) -> None:
    expected = {name: shape for name, shape in config.tensors().items() if name != "lm_head.bias"}
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(f"{weights}: tensor {name} is missing; its shape would be {list(shape)}")
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{weights}: tensor {name}: its shape is {list(tensors[name].shape)}; by config.json {list(shape)}"
            )
    foreign = sorted(set(tensors) - set(expected))
    if foreign:
        raise CheckpointError(f"{weights}: tensor {foreign[0]} is no part of a Mamba-2 of {config.n_layer} layers")


# ---- the tensors ---------------------------------------------------------------------------------------------------


def read_tensors(folder: Path) -> tuple[dict[str, Array], Path]:
    """Every tensor as float32, and the file they came from. Raises CheckpointError."""
    for name, read in ((SAFE, _read_safe), (PICKLED, _read_pickled)):
        path = folder / name
        if path.is_file():
            return read(path), path
    raise CheckpointError(f"{folder}: holds neither {SAFE} nor {PICKLED}")


def _read_safe(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError, safe_open

    torch = _torch(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: _array(torch, path, name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read_pickled(path: Path) -> dict[str, Array]:
    torch = _torch(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "weights_only" in str(error) or "Weights only" in str(error):
            reason = "holds more than tensors; nothing of it was run"
        raise CheckpointError(f"{path}: {reason}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}; a table of tensors would be right")
    return {str(name): _array(torch, path, str(name), value) for name, value in found.items()}


def _array(torch: Any, path: Path, name: str, tensor: Any) -> Array:
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        kind = str(tensor.dtype) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise CheckpointError(f"{path}: {name} is {kind}; a tensor of bf16, fp16 or fp32 would be right")
    array: Array = tensor.detach().to(torch.float32).contiguous().numpy()
    if not np.isfinite(array).all():
        raise CheckpointError(f"{path}: tensor {name} holds NaN or infinite numbers")
    return array


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise NetssmdError(f"{path}: reading it needs torch; install it with `pip install 'netssmd[train]'`") from None
    return torch


def model_card(folder: Path, config: ModelConfig, vocabulary: ByteVocabulary) -> str:
    """The card: what it is and where it came from."""
    layout = vocabulary.layout
    return "\n".join(
        [
            f"# {os.path.basename(os.path.abspath(folder))}",
            "",
            "A byte model (the paper's representation), imported by netssmd from a Hugging Face folder. Its tokens are",
            "header bytes as they stood in its training captures, addresses included.",
            "",
            "| | |",
            "|---|---|",
            f"| parameters | {config.parameters:,} |",
            f"| shape | d_model {config.d_model}, {config.n_layer} layers, d_state {config.d_state} |",
            f"| packets | {layout.packet_bytes} bytes, {' and '.join(vocabulary.protocols)} |",
            f"| vocabulary | {config.vocab_size} tokens |",
            f"| labels | {', '.join(vocabulary.labels)} |",
            "",
        ]
    )
