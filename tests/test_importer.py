"""Folders of mamba_ssm and the authors become our models: same logits, junk masked, nothing run, defects named."""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from byte_models import MAMBA_CONFIG, look_alike, scrambled_tokenizer, talk, word_level_tokenizer  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from test_mamba2_oracle import Anything, fetch  # noqa: E402

from netssmd.commands.model import command  # noqa: E402
from netssmd.engine.opening import open_model  # noqa: E402
from netssmd.errors import CheckpointError  # noqa: E402
from netssmd.model.backend import open_backend  # noqa: E402
from netssmd.model.checkpoint import load_tensors_numpy  # noqa: E402
from netssmd.model.importer import NEVER, import_model  # noqa: E402
from netssmd.packet.pcap import PcapWriter  # noqa: E402

TOKENIZERS = {"bpe": scrambled_tokenizer, "wordlevel": word_level_tokenizer}


@pytest.fixture(scope="module")
def mamba_ssm():
    """mamba_ssm's own MambaLMHeadModel, its kernels replaced by its reference functions."""
    cache = os.environ.get("NETSSMD_ORACLE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "netssmd"
    )
    package = fetch(Path(cache)) / "mamba_ssm"
    before = dict(sys.modules)
    stubs = (
        "triton", "triton.language", "selective_scan_cuda", "transformers", "transformers.utils",
        "transformers.utils.hub", "transformers.generation", "huggingface_hub",
    )  # fmt: skip
    try:
        for name in stubs:
            sys.modules[name] = Anything(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules["huggingface_hub"].PyTorchModelHubMixin = type("Hub", (), {})
        parts = ("ops", "ops.triton", "utils", "distributed", "modules", "models")
        names = ["mamba_ssm", *(f"mamba_ssm.{part}" for part in parts)]
        for name in names:
            module = types.ModuleType(name)
            module.__path__ = [str(package.joinpath(*name.split(".")[1:]))]
            sys.modules[name] = module
        of = importlib.import_module
        ssd, gated, norms = (of(f"mamba_ssm.ops.triton.{n}") for n in ("ssd_combined", "layernorm_gated", "layer_norm"))
        mixer = of("mamba_ssm.modules.mamba2")

        def scan(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, dt_softplus=False, **kwargs):
            return ssd.ssd_chunk_scan_combined_ref(
                x, dt, A, B, C, x.shape[1], D=D, z=z, dt_bias=dt_bias, dt_softplus=dt_softplus
            )

        mixer.mamba_chunk_scan_combined = scan
        mixer.causal_conv1d_fn = None
        gated.rmsnorm_fn = lambda x, w, b, z, eps, group_size, norm_before_gate: gated.rms_norm_ref(
            x, w, b, z=z, eps=eps, group_size=group_size, norm_before_gate=norm_before_gate
        )
        norms.rms_norm_fn = norms.rms_norm_ref
        norms.RMSNorm.forward = lambda self, x: norms.rms_norm_ref(x, self.weight, self.bias, eps=self.eps)
        model = of("mamba_ssm.models.mixer_seq_simple")
        config = of("mamba_ssm.models.config_mamba").MambaConfig

        def build(data: dict, tensors: dict):
            slow = {**data, "fused_add_norm": False, "ssm_cfg": {**data["ssm_cfg"], "use_mem_eff_path": False}}
            built = model.MambaLMHeadModel(config(**slow))
            built.load_state_dict({name: t.float() for name, t in tensors.items()})
            return built.eval()

        yield build
    finally:
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] in {"mamba_ssm", *(stub.split(".")[0] for stub in stubs)}:
                del sys.modules[name]
        sys.modules.update(before)


@pytest.mark.parametrize("kind", ["cpu", "torch"])
@pytest.mark.parametrize(("tokenizer", "bf16"), [("bpe", True), ("wordlevel", False)])
def test_logits_are_those_of_mamba_ssm(mamba_ssm, tmp_path: Path, tokenizer: str, bf16: bool, kind: str) -> None:
    tensors = look_alike(tmp_path / "hf", TOKENIZERS[tokenizer](), bf16)
    imported = import_model(tmp_path / "hf", tmp_path / "ours")
    vocabulary = imported.vocabulary
    ids = [vocabulary.begin("netflix"), *[vocabulary.byte_ids[b] for b in talk()[0].data], vocabulary.pkt]
    with torch.inference_mode():
        right = mamba_ssm(MAMBA_CONFIG, tensors)(torch.tensor([ids])).logits[0].numpy()
    backend = open_backend(tmp_path / "ours", kind, 1)
    found = np.array([backend.logits_for(0, np.array([token], np.int32)) for token in ids])
    drawable = np.array(vocabulary.drawable())
    assert np.abs(right[:, drawable]).max() > 0.5
    np.testing.assert_allclose(found[:, drawable], right[:, drawable], rtol=1e-4, atol=1e-4)
    assert (found[:, ~drawable] < -9_000).all()
    assert imported.masked == (~drawable).sum()


@pytest.mark.parametrize("tokenizer", sorted(TOKENIZERS))
def test_weights_keep_their_values_and_junk_is_masked(tmp_path: Path, tokenizer: str) -> None:
    tensors = look_alike(tmp_path / "hf", TOKENIZERS[tokenizer](), bf16=tokenizer == "bpe")
    import_model(tmp_path / "hf", tmp_path / "ours")
    ours = load_tensors_numpy(tmp_path / "ours")
    assert set(ours) == set(tensors) - {"lm_head.weight"} | {"lm_head.bias"}
    for name, tensor in tensors.items():
        if name != "lm_head.weight":
            assert np.array_equal(ours[name], tensor.float().numpy()), name
    opened = open_model(str(tmp_path / "ours"))
    assert "netflix" in opened.labels
    bias = ours["lm_head.bias"]
    v = opened.vocabulary
    assert (bias == np.where(v.drawable(), 0, NEVER)).all() and bias[v.end] == NEVER and bias[v.pkt] == 0
    import_model(tmp_path / "hf", tmp_path / "ends", ends=True)
    assert load_tensors_numpy(tmp_path / "ends")["lm_head.bias"][v.end] == 0


def test_safetensors_and_a_tokenizer_elsewhere(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = look_alike(tmp_path / "hf", word_level_tokenizer(), bf16=True)
    (tmp_path / "hf" / "pytorch_model.bin").unlink()
    del tensors["lm_head.weight"]
    save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "hf" / "model.safetensors")
    (tmp_path / "tok").mkdir()
    (tmp_path / "hf" / "tokenizer.json").rename(tmp_path / "tok" / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"hf/tokenizer.json: no such file"):
        import_model(tmp_path / "hf", tmp_path / "ours")
    imported = import_model(tmp_path / "hf", tmp_path / "ours", 94, ("tcp",), tokenizer=tmp_path / "tok")
    assert imported.vocabulary.layout.packet_bytes == 94


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, how: str) -> None:
    look_alike(tmp_path / "hf", word_level_tokenizer())
    proof = tmp_path / "was-run"
    weights = tmp_path / "hf" / "pytorch_model.bin"
    if how == "torch":
        torch.save({"backbone.embedding.weight": torch.zeros(2), "x": Bomb(proof)}, weights)
    else:
        weights.write_bytes(pickle.dumps({"x": Bomb(proof)}))
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: holds more than tensors; nothing of it was run"):
        import_model(tmp_path / "hf", tmp_path / "ours")
    assert not proof.exists() and not (tmp_path / "ours").exists()
    torch.load(weights, weights_only=False) if how == "torch" else pickle.loads(weights.read_bytes())
    assert proof.exists()  # it would have


CONFIGS = [
    ({"ssm_cfg": {}}, r"ssm_cfg.layer is 'Mamba1'"),
    ({"ssm_cfg": {"layer": "Mamba1"}}, r"ssm_cfg.layer is 'Mamba1'"),
    ({"attn_layer_idx": [1, 3]}, r"attn_layer_idx is \[1, 3\]: attention layers"),
    ({"d_intermediate": 64}, "d_intermediate is 64"),
    ({"rms_norm": False}, "rms_norm is False"),
    ({"ssm_cfg": {"layer": "Mamba2", "ngroups": 2}}, "ngroups is 2"),
    ({"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "norm_before_gate is True"),
    ({"ssm_cfg": {"layer": "Mamba2", "wings": 2}}, "ssm_cfg.wings is not known"),
    ({"ssm_cfg": {"layer": "Mamba2", "d_state": 16, "headdim": 7}}, "headdim is 7"),
    ({"ssm_cfg": {"layer": "Mamba2", "d_state": 32, "headdim": 16}}, r"in_proj.weight: its shape is \[.*\]; by config"),
    ({"vocab_size": 300}, "vocab_size is 300, padded 304, but pytorch_model.bin has 272 rows"),
    ({"vocab_size": "many"}, "vocab_size is 'many'"),
    ({"n_layer": 3}, "tensor backbone.layers.2.norm.weight is missing"),
    ({"n_layer": 1}, "tensor backbone.layers.1.mixer.A_log is no part of a Mamba-2 of 1 layers"),
    ({"model": {}, "codec": {}}, "is a netssmd model already"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("import") / "hf"
    look_alike(path, word_level_tokenizer())
    return path


@pytest.mark.parametrize(("change", "message"), CONFIGS, ids=[message[:24] for _, message in CONFIGS])
def test_configs_that_are_not_run_here_are_named(folder: Path, tmp_path: Path, change: dict, message: str) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps({**MAMBA_CONFIG, **change}))
    with pytest.raises(CheckpointError, match=message):
        import_model(folder, tmp_path / "ours")
    config.write_text(json.dumps(MAMBA_CONFIG))
    assert not (tmp_path / "ours").exists()


def test_other_bad_folders_are_named(folder: Path, tmp_path: Path) -> None:
    def refused(message: str, name: str = "", content: bytes = b"") -> None:
        before = (folder / name).read_bytes() if name else b""
        if name:
            (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            import_model(folder, tmp_path / "ours")
        if name:
            (folder / name).write_bytes(before)

    words = word_level_tokenizer()
    del words["model"]["vocab"]["77"]
    refused("tokenizer.json: no token for byte 77", "tokenizer.json", json.dumps(words).encode())
    big = word_level_tokenizer(tuple(f"label{i}" for i in range(20)))
    refused("tokenizer.json: token '<.label12.>' has id 272, but the weights have 272 rows", "tokenizer.json",
            json.dumps(big).encode())  # fmt: skip
    refused("has no label token", "tokenizer.json", json.dumps(word_level_tokenizer(())).encode())
    refused("tokenizer.json: is not JSON", "tokenizer.json", b"{")
    refused("config.json: is not JSON", "config.json", b"\xff")
    refused("is a model of the transformers library", "config.json", b'{"model_type": "mamba2"}')
    refused("pytorch_model.bin: ", "pytorch_model.bin", b"PK not a zip")
    refused("pytorch_model.bin: ", "pytorch_model.bin", (folder / "pytorch_model.bin").read_bytes()[:5000])
    untied = torch.load(folder / "pytorch_model.bin", weights_only=True)
    untied["lm_head.weight"] = untied["lm_head.weight"] + 1
    torch.save(untied, tmp_path / "untied")
    refused("only tied heads", "pytorch_model.bin", (tmp_path / "untied").read_bytes())
    untied["lm_head.weight"] = torch.full((272, 32), torch.nan)
    torch.save(untied, tmp_path / "nan")
    refused("lm_head.weight holds NaN", "pytorch_model.bin", (tmp_path / "nan").read_bytes())
    torch.save([1], tmp_path / "list")
    refused("holds a list", "pytorch_model.bin", (tmp_path / "list").read_bytes())
    with pytest.raises(CheckpointError, match="no such folder"):
        import_model(tmp_path / "nowhere", tmp_path / "ours")


def test_the_command(folder: Path, tmp_path: Path) -> None:
    capture = tmp_path / "talk.pcap"
    with open(capture, "wb") as file:
        writer = PcapWriter(file)
        for packet in talk():
            writer.write(packet)
        writer.flush()
    run = CliRunner().invoke
    target = tmp_path / "ours"
    done = run(command, ["import", str(folder), "-o", str(target), "--timing", f"amazon={capture}"])
    assert done.exit_code == 0, done.output
    assert "labels amazon, netflix; 15 of 272 token ids mean no byte" in done.output and "no timing" not in done.output
    shown = json.loads(run(command, ["show", str(target), "--json"]).output)
    assert shown["codec"] == "bytes" and shown["labels"] == ["amazon", "netflix"]
    assert shown["vocabulary"]["packet_bytes"] == 128 and shown["vocabulary"]["timing"] == ["amazon"]
    again = run(command, ["import", str(folder), "-o", str(tmp_path / "o2"), "--packet-bytes", "94", "--json"])
    assert again.exit_code == 0 and '"tcp"' in again.output and "no timing is known" in again.output
    missing = run(command, ["import", str(folder), "-o", str(tmp_path / "o3"), "--timing", "nothing.pcap"])
    assert "nothing.pcap: cannot be read" in str(missing.exception)
