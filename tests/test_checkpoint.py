"""A model folder is written whole and read with suspicion: every defect is one line that names file, tensor and
remedy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from netssmd.codec.vocab import Vocabulary
from netssmd.errors import CheckpointError
from netssmd.model import checkpoint
from netssmd.model.checkpoint import load_codec, load_config, load_tensors_numpy, model_hash, save_checkpoint
from netssmd.model.config import ModelConfig

VOCABULARY = Vocabulary(("web", "mail"), (), (100, 200), (65535,), (80, 443))
CONFIG = ModelConfig(
    d_model=8,
    n_layer=2,
    vocab_size=VOCABULARY.size,
    rows=VOCABULARY.rows,
    d_state=4,
    headdim=8,
)
NAME = "backbone.layers.1.mixer.in_proj.weight"


def tensors(seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in CONFIG.tensors().items()}


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path / "m", CONFIG, VOCABULARY.to_json(), tensors(), "# card\n")
    return tmp_path / "m"


def edit_json(path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def rewrite(folder, change, dtype: str = "bf16") -> None:
    """Puts other tensors into the folder, unchecked."""
    arrays = tensors()
    change(arrays)
    (folder / checkpoint.WEIGHTS).write_bytes(checkpoint._safetensors(arrays, dtype))


def edit_header(folder, change) -> None:
    path = folder / checkpoint.WEIGHTS
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def test_round_trip_in_fp32_is_exact(tmp_path) -> None:
    save_checkpoint(tmp_path / "m", CONFIG, VOCABULARY.to_json(), tensors(), "card", dtype="fp32")
    found = load_tensors_numpy(tmp_path / "m")
    assert all(np.array_equal(found[name], array) for name, array in tensors().items())
    assert load_config(tmp_path / "m") == CONFIG
    assert Vocabulary.from_json(load_codec(tmp_path / "m")).to_json() == VOCABULARY.to_json()
    assert sorted(os.listdir(tmp_path / "m")) == sorted(set(checkpoint.FILES) - {checkpoint.CONDUCT})
    assert os.listdir(tmp_path) == ["m"]


def test_bf16_is_the_rounding_of_torch_and_the_file_is_read_by_safetensors(folder) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    theirs = safetensors.load_file(folder / checkpoint.WEIGHTS)
    ours = load_tensors_numpy(folder)
    for name, array in tensors().items():
        expected = torch.from_numpy(array).bfloat16()
        assert torch.equal(theirs[name], expected)
        assert np.array_equal(ours[name], expected.float().numpy())


def test_a_file_written_by_safetensors_is_read(folder) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    path = folder / checkpoint.WEIGHTS
    safetensors.save_file({name: torch.from_numpy(array) for name, array in tensors().items()}, path)
    assert all(np.array_equal(array, tensors()[name]) for name, array in load_tensors_numpy(folder).items())


def test_the_tokenizer_is_one_of_hugging_face(folder) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / checkpoint.TOKENIZER))
    names = VOCABULARY.token_names()
    assert tokenizer.get_vocab_size() == VOCABULARY.size
    ids = [VOCABULARY.end, 5, VOCABULARY.size - 1, 300]
    assert tokenizer.encode(" ".join(names[i] for i in ids)).ids == ids


def test_config_json_has_the_keys_of_mamba_ssm(folder) -> None:
    data = json.loads((folder / checkpoint.CONFIG).read_text())
    assert (data["d_model"], data["n_layer"], data["vocab_size"]) == (8, 2, VOCABULARY.size)
    assert data["ssm_cfg"]["layer"] == "Mamba2" and data["ssm_cfg"]["d_state"] == 4


def test_saving_again_replaces_the_folder_and_its_hash(folder) -> None:
    before = model_hash(folder)
    assert before == model_hash(folder) and len(before) == 64
    (folder / checkpoint.CARD).write_text("another card")
    assert model_hash(folder) == before
    save_checkpoint(folder, CONFIG, VOCABULARY.to_json(), tensors(2), "# card\n")
    assert model_hash(folder) != before
    assert os.listdir(folder.parent) == ["m"]


def test_a_failed_save_leaves_the_old_model(folder, monkeypatch) -> None:
    before = model_hash(folder)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, CONFIG, VOCABULARY.to_json(), tensors(2), "# card\n")
    assert model_hash(folder) == before
    assert os.listdir(folder.parent) == ["m"]


def test_saving_refuses_what_it_could_not_load(tmp_path) -> None:
    codec = VOCABULARY.to_json()
    bad = tensors()
    bad[NAME][3, 4] = np.nan
    with pytest.raises(CheckpointError, match=r"1 of .* NaN"):
        save_checkpoint(tmp_path / "m", CONFIG, codec, bad, "")
    with pytest.raises(CheckpointError, match="bytes"):
        save_checkpoint(tmp_path / "m", CONFIG, {"name": "bytes"}, tensors(), "")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match=r"thesis\.tex"):
        save_checkpoint(tmp_path / "home", CONFIG, codec, tensors(), "")
    assert not (tmp_path / "m").exists()


DEFECTS = {
    "no folder": (lambda f: os.rename(f, f.with_name("x")), r"config\.json: no such folder"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json: no such file; a model folder holds"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{oops"), r"config\.json: is not JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), r"config\.json: holds a JSON list"),
    "config of something else": (
        lambda f: (f / "config.json").write_text('{"d_model": 8}'),
        "has no 'model' section; this is not a netssmd model",
    ),
    "config with a wrong size": (
        lambda f: edit_json(f / "config.json", lambda d: d["model"].update(headdim=7)),
        r"config\.json: model: headdim is 7; it must divide",
    ),
    "config with a typo": (
        lambda f: edit_json(f / "config.json", lambda d: d["model"].update(d_stat=7)),
        "unknown key d_stat",
    ),
    "config at odds with itself": (
        lambda f: edit_json(f / "config.json", lambda d: d.update(n_layer=9)),
        "n_layer is 9, but the 'model' section says 2",
    ),
    "another codec": (
        lambda f: edit_json(f / "config.json", lambda d: d["codec"].update(name="words")),
        r"config\.json: made for codec 'words'; this version knows 'context' and 'bytes'",
    ),
    "another format": (
        lambda f: edit_json(f / "config.json", lambda d: d["codec"].update(format=99)),
        r"config\.json: codec: .*99",
    ),
    "a damaged codec": (
        lambda f: edit_json(f / "config.json", lambda d: d["codec"].pop("lengths")),
        "codec: .*lengths",
    ),
    "a vocabulary of another size": (
        lambda f: edit_json(f / "config.json", lambda d: d["codec"].update(ports=[80], size=d["codec"]["size"] - 1)),
        r"config\.json: ",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json: no such file"),
    "tokenizer is not JSON": (lambda f: (f / "tokenizer.json").write_text("x"), r"tokenizer\.json: is not JSON"),
    "tokenizer of another kind": (lambda f: (f / "tokenizer.json").write_text("{}"), "has no model.vocab"),
    "tokenizer of another vocabulary": (
        lambda f: edit_json(f / "tokenizer.json", lambda d: d["model"]["vocab"].update({"who:1": 2})),
        r"tokenizer\.json: token 'who:1' is 2; by the codec in config\.json it is 1",
    ),
    "tokenizer with a token less": (
        lambda f: edit_json(f / "tokenizer.json", lambda d: d["model"]["vocab"].pop("who:1")),
        r"tokenizer\.json: .* tokens; the codec in config\.json has",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors: no such file"),
    "weights are a pickle": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04\x95" + b"x" * 50),
        "is not a safetensors file",
    ),
    "weights are empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "is not a safetensors file"),
    "weights cut in the data": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-10]),
        r"tensor \S+: the file is cut short: \d+ bytes, it needs \d+",
    ),
    "weights cut in the header": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:100]),
        "is cut short: 100 bytes, but the header alone needs",
    ),
    "a tensor is missing": (
        lambda f: rewrite(f, lambda a: a.pop(NAME)),
        rf"tensor {NAME} is missing; its shape would be",
    ),
    "a tensor too many": (
        lambda f: rewrite(f, lambda a: a.update({"lm_head.weight": np.zeros((2, 2), np.float32)})),
        r"tensor lm_head\.weight is not part of this model",
    ),
    "a wrong shape": (
        lambda f: rewrite(f, lambda a: a.update({NAME: a[NAME].T})),
        rf"tensor {NAME}: its shape is \[8, \d+\]; \[\d+, 8\] would be right",
    ),
    "not a number": (
        lambda f: rewrite(f, lambda a: a[NAME].__setitem__((0, 0), np.nan), "fp32"),
        rf"tensor {NAME}: 1 of \d+ numbers are NaN or infinite",
    ),
    "a wrong type": (
        lambda f: edit_header(f, lambda h: h[NAME].update(dtype="F64")),
        rf"tensor {NAME}: is of type F64; BF16 or F32 would be right",
    ),
    "a shape that the bytes do not fill": (
        lambda f: edit_header(f, lambda h: h[NAME].update(shape=[1, 8])),
        rf"tensor {NAME}: \d+ bytes for shape \[1, 8\] of BF16",
    ),
    "a header without offsets": (
        lambda f: edit_header(f, lambda h: h[NAME].pop("data_offsets")),
        rf"tensor {NAME}: the header does not give dtype, shape and data_offsets",
    ),
    "a key that nobody knows": (
        lambda f: edit_json(f / "config.json", lambda d: d.update(tie_embedings=True)),
        r"config\.json: unknown key 'tie_embedings'; did you mean tie_embeddings\?",
    ),
    "a key of the codec that nobody knows": (
        lambda f: edit_json(f / "config.json", lambda d: d["codec"].update(run="os.system")),
        r"config\.json: codec: unknown key 'run'; known are name",
    ),
    "labels that are no list": (
        lambda f: edit_json(f / "config.json", lambda d: d["codec"].update(labels="web")),
        "codec: .*labels is no list",
    ),
    "kinds that are a number": (
        lambda f: edit_json(f / "config.json", lambda d: d["codec"].update(kinds=5)),
        "codec: its kinds of payload are not those",
    ),
    "a billion layers": (
        lambda f: edit_json(f / "config.json", lambda d: d["model"].update(n_layer=10**9)),
        "n_layer is 1000000000; 1024 is the most",
    ),
    "config nested deeply": (
        lambda f: (f / "config.json").write_text("[" * 10_000),
        r"config\.json: is not JSON: maximum recursion depth",
    ),
    "tokenizer nested deeply": (
        lambda f: (f / "tokenizer.json").write_text('{"model":' * 10_000),
        r"tokenizer\.json: is not JSON: maximum recursion depth",
    ),
    "tokenizer of 100 MB": (
        lambda f: os.truncate(f / "tokenizer.json", 100_000_000),
        r"tokenizer\.json: is larger than 16777216 bytes",
    ),
    "weights of a terabyte": (
        lambda f: os.truncate(f / "model.safetensors", 1 << 40),
        r"model\.safetensors: is larger than \d+ bytes",
    ),
    "a header of 2^60 bytes": (
        lambda f: (f / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{" * 100),
        "a header of 1152921504606846976 bytes is claimed; 16777216 are the most",
    ),
    "a header nested deeply": (
        lambda f: (f / "model.safetensors").write_bytes((60_000).to_bytes(8, "little") + b'{"a":' * 12_000),
        "the safetensors header is not JSON: maximum recursion depth",
    ),
    "a shape of a million numbers": (
        lambda f: edit_header(f, lambda h: h[NAME].update(shape=[10**4000] * 1000)),
        rf"tensor {NAME}: the header does not give",
    ),
    "negative offsets": (
        lambda f: edit_header(f, lambda h: h[NAME].update(data_offsets=[-8, 0])),
        rf"tensor {NAME}: the header does not give",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_named(folder, defect: str) -> None:
    damage, message = DEFECTS[defect]
    load_tensors_numpy(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tensors_numpy(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_is_a_file(tmp_path) -> None:
    (tmp_path / "m").write_text("")
    with pytest.raises(CheckpointError):
        load_config(tmp_path / "m")
    with pytest.raises(CheckpointError, match="is a file; a model needs a folder"):
        save_checkpoint(tmp_path / "m", CONFIG, VOCABULARY.to_json(), tensors(), "")


def test_reading_needs_neither_torch_nor_tokenizers(folder) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, tokenizers=None, safetensors=None)\n"
        "from netssmd.model.checkpoint import *\n"
        f"load_tensors_numpy({str(folder)!r}); print(model_hash({str(folder)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == model_hash(folder)
