"""Model folders: weights and everything needed to use them, written whole and read with suspicion. No torch.

    model.safetensors   tensors by mamba_ssm's state-dict names, bf16 or fp32; the head is tied, so it is not there
    config.json         {"model": ModelConfig, "codec": the vocabulary} and mamba_ssm's own keys beside them
    tokenizer.json      token names as a Hugging Face `tokenizers` WordLevel file; written and checked as plain JSON
    README.md           the model card

In: a folder. Out: the config, the codec's section, float32 arrays. Every defect is a CheckpointError that names the
file, the tensor or key, what was found and what would be right. Nothing in a folder is executed: safetensors is a JSON
header and raw numbers (the format is https://huggingface.co/docs/safetensors), read here directly so that damage can be
named. Nothing in it decides how much memory is taken: files of text are read up to a bound, and of the weights not more
than the config asks for.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt

from netssmd.errors import CheckpointError, ConfigError
from netssmd.model.conduct import CONDUCT
from netssmd.model.config import ModelConfig

WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"
CARD: Final = "README.md"
FILES: Final = (WEIGHTS, CONFIG, TOKENIZER, CARD, CONDUCT)

END_NAME: Final = "<|endoftext|>"
UNK_NAME: Final = "<|unk|>"
MAX_JSON: Final = 16 << 20  # bytes of config.json and tokenizer.json: a hundred times what the embedded model needs
MAX_HEADER: Final = 16 << 20  # bytes of the weights' header: some hundred for a tensor
MAX_DIMENSIONS: Final = 8

# What config.json may hold: what is written here, and what MambaConfig of mamba_ssm has besides.
KEYS: Final = (
    "architecture", "model", "codec", "d_model", "d_intermediate", "n_layer", "vocab_size", "ssm_cfg", "attn_layer_idx",
    "attn_cfg", "rms_norm", "residual_in_fp32", "fused_add_norm", "pad_vocab_size_multiple", "tie_embeddings",
)  # fmt: skip

Array = npt.NDArray[np.float32]


def embedded_model_path() -> Path:
    """The folder of the model that comes with the package."""
    return Path(__file__).with_name("embedded")


def folder_of(name: str) -> Path:
    """A model's folder by its path; "embedded" is the one that comes with the package."""
    return embedded_model_path() if name == "embedded" else Path(name)


# ---- writing -------------------------------------------------------------------------------------------------------


def save_checkpoint(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    codec: Mapping[str, Any],
    tensors: Mapping[str, Any],
    card: str,
    dtype: Literal["bf16", "fp32"] = "bf16",
    conduct: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model folder. It appears whole: everything is written beside it first and an older folder is replaced by
    a rename.

    Arguments: codec, the vocabulary's `to_json`; tensors, anything numpy can view as float32, by the names of
    `config.tensors()`; card, Markdown; conduct, for model/conduct.py. Raises CheckpointError for tensors that do not
    fit the config, a vocabulary that does not fit it, or a folder that holds something else; OSError for a disk that is
    full or read-only.
    """
    folder = Path(folder)
    names = _token_names(codec, folder / CONFIG)
    if len(names) != config.vocab_size:
        raise CheckpointError(
            f"{folder}: the codec has {len(names)} tokens, but the model's vocab_size is {config.vocab_size}"
        )
    arrays = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}
    _check_tensors(folder / WEIGHTS, config, arrays)
    contents = {
        WEIGHTS: _safetensors(arrays, dtype),
        CONFIG: _json(_config_dict(config, codec)),
        TOKENIZER: _json(_tokenizer_dict(names)),
        CARD: card.encode(),
    }
    if conduct is not None:
        contents[CONDUCT] = json.dumps(conduct).encode() + b"\n"
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file; a model needs a folder")
    foreign = sorted({path.name for path in folder.iterdir()} - set(FILES)) if folder.exists() else []
    if foreign:
        raise CheckpointError(
            f"{folder}: holds {foreign[0]!r}, which is no part of a model; choose a new or empty folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fresh = work / "new"
        fresh.mkdir()
        for name, content in contents.items():
            with open(fresh / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            os.rename(folder, work / "old")
        os.rename(fresh, folder)
    finally:
        if (work / "old").exists() and not folder.exists():
            os.rename(work / "old", folder)
        shutil.rmtree(work, ignore_errors=True)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _config_dict(config: ModelConfig, codec: Mapping[str, Any]) -> dict[str, Any]:
    ssm = {name: getattr(config, name) for name in ("d_state", "d_conv", "expand", "headdim", "ngroups", "chunk_size")}
    return {
        "architecture": "netssmd-mamba2",
        "model": config.to_json(),
        "codec": dict(codec),
        "d_model": config.d_model,
        "d_intermediate": 0,
        "n_layer": config.n_layer,
        "vocab_size": config.vocab_size,
        "ssm_cfg": {"layer": "Mamba2", **ssm},
        "rms_norm": True,
        "residual_in_fp32": True,
        "tie_embeddings": True,
    }


def _tokenizer_dict(names: list[str]) -> dict[str, Any]:
    """A `tokenizers` file that maps token names parted by white space to ids and back."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    unk = UNK_NAME if UNK_NAME in names else END_NAME
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": name, **special} for i, name in enumerate(names) if name.startswith("<|")
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {name: i for i, name in enumerate(names)}, "unk_token": unk},
    }


def _safetensors(arrays: Mapping[str, Array], dtype: Literal["bf16", "fp32"]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    at = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        data = (_to_bf16(array) if dtype == "bf16" else array.astype("<f4")).tobytes()
        header[name] = {
            "dtype": "BF16" if dtype == "bf16" else "F32",
            "shape": list(array.shape),
            "data_offsets": [at, at + len(data)],
        }
        at += len(data)
        parts.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def _to_bf16(array: Array) -> npt.NDArray[np.uint16]:
    """The upper halves, rounded to nearest even."""
    bits = array.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


# ---- reading -------------------------------------------------------------------------------------------------------


def load_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """The model's sizes. Raises CheckpointError, also when the codec or the tokenizer in the folder does not fit
    them.
    """
    return load_config_and_codec(folder)[0]


def load_codec(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The codec's section of config.json, for `Vocabulary.from_json`."""
    return load_config_and_codec(folder)[1]


def load_config_and_codec(folder: str | os.PathLike[str]) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads config.json once and holds it against tokenizer.json."""
    folder = Path(folder)
    config, codec, names = parse_config(_read(folder / CONFIG, MAX_JSON), folder / CONFIG)
    check_tokenizer(_read(folder / TOKENIZER, MAX_JSON), folder / TOKENIZER, names)
    return config, codec


def parse_config(content: bytes, path: Path) -> tuple[ModelConfig, dict[str, Any], list[str]]:
    """The sizes, the codec's section and its token names, of a config.json. Raises CheckpointError."""
    data = _json_object(content, path)
    for key in ("model", "codec"):
        if not isinstance(data.get(key), dict):
            raise CheckpointError(f"{path}: has no {key!r} section; this is not a netssmd model")
    unknown = sorted(set(data) - set(KEYS))
    if unknown:
        near = difflib.get_close_matches(unknown[0], KEYS, 1)
        remedy = f"did you mean {near[0]}?" if near else "take it out, or use the version that wrote it"
        raise CheckpointError(f"{path}: unknown key {unknown[0]!r}; {remedy}")
    try:
        config = ModelConfig.from_json(data["model"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    for key in ("d_model", "n_layer", "vocab_size"):
        if data.get(key, getattr(config, key)) != getattr(config, key):
            raise CheckpointError(
                f"{path}: {key} is {data[key]!r}, but the 'model' section says {getattr(config, key)}"
            )
    codec: dict[str, Any] = data["codec"]
    names = _token_names(codec, path)
    if len(names) != config.vocab_size:
        raise CheckpointError(
            f"{path}: the codec has {len(names)} tokens, but the model's vocab_size is {config.vocab_size}"
        )
    if codec.get("rows", config.rows) != config.rows:
        raise CheckpointError(f"{path}: the codec has {codec['rows']} embedding rows, but the model has {config.rows}")
    return config, codec, names


def load_tensors_numpy(folder: str | os.PathLike[str], config: ModelConfig | None = None) -> dict[str, Array]:
    """Every tensor as float32 (bf16 is widened exactly), checked against the config for names, shapes and finite
    numbers.
    """
    folder = Path(folder)
    config = load_config(folder) if config is None else config
    path = folder / WEIGHTS
    content = _read(path, 8 + MAX_HEADER + 4 * config.parameters)
    return parse_tensors(content, path, config)


def parse_tensors(content: bytes, path: Path, config: ModelConfig) -> dict[str, Array]:
    """The tensors of a safetensors file, whole. Raises CheckpointError."""
    header = _read_header(path, content)
    expected = config.tensors()
    if len(header) > len(expected):
        unknown = sorted(set(header) - set(expected))
        raise _unknown_tensor(path, unknown[0], config)
    start = 8 + int.from_bytes(content[:8], "little")
    arrays = {name: _tensor(path, content, start, name, entry) for name, entry in header.items()}
    _check_tensors(path, config, arrays)
    return arrays


def model_hash(folder: str | os.PathLike[str]) -> str:
    """SHA-256, in hex, of what decides the model's answers: the config, the weights and what is known of its labels'
    conduct. The card does not count.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    data = read_json(folder / CONFIG)
    digest.update(json.dumps([data.get("model"), data.get("codec")], sort_keys=True, separators=(",", ":")).encode())
    with _opened(folder / WEIGHTS) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    with contextlib.suppress(FileNotFoundError):
        digest.update((folder / CONDUCT).read_bytes())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder. Raises CheckpointError."""
    return _json_object(_read(path, MAX_JSON), path)


def read_card(folder: str | os.PathLike[str]) -> str:
    """The model card, as text that a terminal may show; empty if there is none."""
    path = Path(folder) / CARD
    if not path.is_file():
        return ""
    text = _read(path, MAX_JSON).decode(errors="replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _read(path: Path, most: int) -> bytes:
    with _opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise CheckpointError(f"{path}: is larger than {most} bytes, which is the most that such a file needs")
    return content


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        what = "no such file" if path.parent.is_dir() else "no such folder"
        raise CheckpointError(f"{path}: {what}; a model folder holds {', '.join(FILES)}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None


def _json_object(content: bytes, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(data).__name__}; it must be an object")
    return data


def _read_header(path: Path, content: bytes) -> dict[str, Any]:
    """The header of a safetensors file without its metadata."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length < 2 or content[8:9] != b"{":
        raise CheckpointError(f"{path}: is not a safetensors file")
    if length > MAX_HEADER:
        raise CheckpointError(f"{path}: a header of {length} bytes is claimed; {MAX_HEADER} are the most that is read")
    if 8 + length > len(content):
        raise CheckpointError(f"{path}: is cut short: {len(content)} bytes, but the header alone needs {8 + length}")
    try:
        header = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is no JSON object")
    header.pop("__metadata__", None)
    return header


def _tensor(path: Path, content: bytes, start: int, name: str, entry: Any) -> Array:
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = len(shape) <= MAX_DIMENSIONS and all(type(n) is int and 0 <= n <= 1 << 62 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path}: tensor {name}: the header does not give dtype, shape and data_offsets")
    if kind not in ("BF16", "F32"):
        raise CheckpointError(f"{path}: tensor {name}: is of type {kind}; BF16 or F32 would be right")
    count = 1
    for n in shape:
        count *= n
    if end - begin != count * (2 if kind == "BF16" else 4):
        raise CheckpointError(f"{path}: tensor {name}: {end - begin} bytes for shape {list(shape)} of {kind}")
    if start + end > len(content):
        raise CheckpointError(
            f"{path}: tensor {name}: the file is cut short: {len(content)} bytes, it needs {start + end}"
        )
    data = memoryview(content)[start + begin : start + end]
    if kind == "F32":
        return np.frombuffer(data, "<f4").astype(np.float32).reshape(shape)
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)


def _check_tensors(path: Path, config: ModelConfig, arrays: Mapping[str, Array]) -> None:
    expected = config.tensors()
    for name, shape in expected.items():
        if name not in arrays:
            raise CheckpointError(f"{path}: tensor {name} is missing; its shape would be {list(shape)}")
        if arrays[name].shape != shape:
            raise CheckpointError(
                f"{path}: tensor {name}: its shape is {list(arrays[name].shape)}; {list(shape)} would be right"
            )
        if not np.isfinite(arrays[name]).all():
            bad = int((~np.isfinite(arrays[name])).sum())
            raise CheckpointError(f"{path}: tensor {name}: {bad} of {arrays[name].size} numbers are NaN or infinite")
    unknown = sorted(set(arrays) - set(expected))
    if unknown:
        raise _unknown_tensor(path, unknown[0], config)


def _unknown_tensor(path: Path, name: str, config: ModelConfig) -> CheckpointError:
    return CheckpointError(f"{path}: tensor {name} is not part of this model ({config.n_layer} layers, tied head)")


def _token_names(codec: Mapping[str, Any], path: Path) -> list[str]:
    """The names of the codec's tokens by id. Raises CheckpointError for a codec that is not known here."""
    try:
        if codec.get("name") == "bytes":
            from netssmd.codec.byte_vocab import ByteVocabulary

            return ByteVocabulary.from_json(dict(codec)).token_names()
        if codec.get("name") == "context":
            from netssmd.codec.vocab import Vocabulary

            return Vocabulary.from_json(dict(codec)).token_names()
        raise CheckpointError(f"{path}: made for codec {codec.get('name')!r}; this version knows 'context' and 'bytes'")
    except ValueError as error:
        raise CheckpointError(f"{path}: codec: {error}") from None


def check_tokenizer(content: bytes, path: Path, names: list[str]) -> None:
    """Holds a tokenizer.json against the codec's names. Raises CheckpointError."""
    model = _json_object(content, path).get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict):
        raise CheckpointError(f"{path}: has no model.vocab; it must be a WordLevel tokenizer")
    if len(vocab) != len(names):
        raise CheckpointError(f"{path}: {len(vocab)} tokens; the codec in {CONFIG} has {len(names)}")
    for i, name in enumerate(names):
        if vocab.get(name) != i:
            raise CheckpointError(f"{path}: token {name!r} is {vocab.get(name)!r}; by the codec in {CONFIG} it is {i}")
