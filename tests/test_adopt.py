"""Fine-tuning: what is kept of a base whose labels, features and states are not the model's."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from learn_data import small_vocabulary

from netssmd.codec.vocab import FEATURES
from netssmd.errors import UsageError
from netssmd.learn.adopt import EMBEDDING, adopt, places
from netssmd.model.checkpoint import save_checkpoint
from netssmd.model.config import ModelConfig
from netssmd.model.mamba2 import Mamba2LM

BASE = small_vocabulary(("chat", "web"))


def config_of(rows: int, d_state: int = 16) -> ModelConfig:
    return ModelConfig(
        d_model=32, n_layer=2, vocab_size=BASE.size, rows=rows, d_state=d_state, headdim=16, chunk_size=16
    )


@pytest.fixture
def base(tmp_path: Path) -> tuple[Path, Mamba2LM]:
    torch.manual_seed(1)
    model = Mamba2LM(config_of(BASE.rows))
    for name, weight in model.named_parameters():
        if name == EMBEDDING or "conv1d" in name:
            torch.nn.init.normal_(weight)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    save_checkpoint(tmp_path / "base", model.config, BASE.to_json(), tensors, "", "fp32")
    return tmp_path / "base", model


def test_rows_go_by_name_and_a_new_label_begins_unknown(base: tuple[Path, Mamba2LM]) -> None:
    folder, old = base
    vocabulary = small_vocabulary(("chat", "dns", "web"))
    new = Mamba2LM(config_of(vocabulary.rows))
    adopt(new, new.config, vocabulary.to_json(), folder)
    mine, theirs = new.backbone.embedding.weight, old.backbone.embedding.weight
    assert torch.equal(mine[: BASE.size], theirs[: BASE.size])
    for label in ("chat", "web", None):
        assert torch.equal(mine[vocabulary.label_row(label)], theirs[BASE.label_row(label)])
    assert torch.equal(mine[vocabulary.label_row("dns")], theirs[BASE.label_row(None)])
    assert torch.equal(mine[vocabulary.feature_base[0] :], theirs[BASE.feature_base[0] :])
    for (name, a), (_, b) in zip(new.named_parameters(), old.named_parameters(), strict=True):
        assert name == EMBEDDING or torch.equal(a, b)


def test_places_are_the_vocabularys() -> None:
    found = places(BASE.to_json())
    assert found["label web"][0] == BASE.label_row("web") and found["label"][0] == BASE.label_row(None)
    assert [found[name][0] for name, _ in FEATURES] == BASE.feature_base
    assert [found[c.name][0] for c in BASE.conditions] == [c.row for c in BASE.conditions]
    assert max(start + size for start, size in found.values()) == BASE.rows


def test_a_feature_that_the_base_has_not_begins_at_zero() -> None:
    from netssmd.learn.adopt import rows

    older = BASE.to_json()
    older["features"] = [name for name in older["features"] if name != "flow_left"]
    size = dict(FEATURES)["flow_left"]
    table = np.random.default_rng(0).standard_normal((BASE.rows - size, 8)).astype(np.float32)
    made = rows(table, older, BASE.to_json(), BASE.rows, Path("base"))
    start = places(BASE.to_json())["flow_left"][0]
    assert not made[start : start + size].any()
    np.testing.assert_array_equal(np.delete(made, np.s_[start : start + size], axis=0), table)


def test_a_state_is_cut_to_the_dimensions_that_matter(base: tuple[Path, Mamba2LM]) -> None:
    """Where half of the dimensions are never written, the half-sized model answers as the whole one."""
    folder, old = base
    inner, size = old.config.d_inner, old.config.d_state
    with torch.no_grad():
        for layer in old.backbone.layers:
            mixer = layer.mixer
            for at in range(0, size, 2):
                mixer.in_proj.weight[2 * inner + at] = 0
                mixer.conv1d.weight[inner + at] = 0
                mixer.conv1d.bias[inner + at] = 0
    tensors = {name: p.detach() for name, p in old.named_parameters()}
    save_checkpoint(folder, old.config, BASE.to_json(), tensors, "", "fp32")
    new = Mamba2LM(config_of(BASE.rows, d_state=size // 2))
    adopt(new, new.config, BASE.to_json(), folder)
    rows = torch.randint(0, BASE.rows, (1, 40, 3), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(new(rows)[0], old(rows)[0], rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused(base: tuple[Path, Mamba2LM]) -> None:
    folder, _ = base
    for changed, ports, what in (
        ({"d_model": 64}, [53, 80, 443], "its d_model is 32"),
        ({"d_state": 32}, [53, 80, 443], "a state can't grow"),
        ({}, [53, 80, 8080], "tokens mean something else"),
    ):
        config = dataclasses.replace(config_of(BASE.rows), **changed)
        with pytest.raises(UsageError, match=what):
            adopt(Mamba2LM(config), config, BASE.to_json() | {"ports": ports}, folder)
