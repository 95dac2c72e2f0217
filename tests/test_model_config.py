"""Sizes that cannot be are refused with the reason; what follows from the rest is counted right."""

from __future__ import annotations

import pytest

from netssmd.errors import ConfigError
from netssmd.model.config import ModelConfig

SMALL = {"d_model": 32, "n_layer": 2, "vocab_size": 40, "rows": 50}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 0}, "d_model is 0; it must be a whole number of at least 1"),
        ({"d_model": 10**9}, "d_model is 1000000000; 65536 is the most"),
        ({"n_layer": 2.0}, r"n_layer is 2\.0"),
        ({"d_state": True}, "d_state is True"),
        ({"rows": 39}, "rows is 39; it must be at least vocab_size, 40"),
        ({"headdim": 24}, r"headdim is 24; it must divide expand \* d_model, 2 \* 32 = 64"),
        ({"ngroups": 3}, "ngroups is 3; it must divide the number of heads, 2"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"dmodel": 3}, "unknown key dmodel; known are d_model"),
    ],
)
def test_what_cannot_be_is_refused(change, message) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_json({**SMALL, **change})


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="vocab_size, rows missing"):
        ModelConfig.from_json({"d_model": 32, "n_layer": 2})
    with pytest.raises(ConfigError, match="found list"):
        ModelConfig.from_json([])


def test_json_and_back() -> None:
    config = ModelConfig(**SMALL, d_state=16, headdim=16, chunk_size=7)
    assert ModelConfig.from_json(config.to_json()) == config


def test_the_papers_model_has_90_6_million_parameters() -> None:
    config = ModelConfig(d_model=768, n_layer=24, vocab_size=272, rows=272, d_state=128, headdim=64)
    assert round(config.parameters / 1e6, 1) == 90.6
    assert config.ssm_state_size == 4_718_592
    assert config.state_bytes == 4 * (4_718_592 + 24 * 3 * (1536 + 256))
