"""The size and shape of a Mamba-2 model, and what follows from it.

A `ModelConfig` comes out of a training file or a checkpoint's `config.json` and goes into every backend. It holds
numbers only: no torch. The letters are those of Mamba-2 (Dao and Gu, "Transformers are SSMs", 2024); the block is
mamba_ssm's `Mamba2` with `norm_before_gate` False and ungated biases left out. `tensors()` is the one table of
parameter names and shapes; checkpoints, backends and tests read it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from netssmd.errors import ConfigError

# The most that a size may be: far beyond any model that a machine of today runs, and no more memory than those need
# can be asked for by a number in a file.
MOST = {
    "d_model": 65_536, "n_layer": 1_024, "vocab_size": 1 << 20, "rows": 1 << 22, "d_state": 4_096, "d_conv": 16,
    "expand": 16, "headdim": 65_536, "ngroups": 4_096, "chunk_size": 65_536,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a model is made of.

    vocab_size: number of tokens V, the rows of the embedding that the tied head can choose. rows: all rows of the
    embedding: tokens, then labels, condition bins and context features, which are inputs only. chunk_size: tokens per
    block of the chunked form; it changes speed and rounding, never meaning.
    """

    d_model: int
    n_layer: int
    vocab_size: int
    rows: int
    d_state: int = 64
    d_conv: int = 4
    expand: int = 2
    headdim: int = 32
    ngroups: int = 1
    chunk_size: int = 64
    norm_eps: float = 1e-5
    head_bias: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "norm_eps":
                if not isinstance(value, float) or not 0.0 < value < 1.0:
                    raise ConfigError(f"model: norm_eps is {value!r}; it must be a number between 0 and 1")
            elif field.name == "head_bias":
                if not isinstance(value, bool):
                    raise ConfigError(f"model: head_bias is {value!r}; it must be true or false")
            elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"model: {field.name} is {value!r}; it must be a whole number of at least 1")
            elif value > MOST[field.name]:
                raise ConfigError(f"model: {field.name} is {value}; {MOST[field.name]} is the most")
        if self.rows < self.vocab_size:
            raise ConfigError(f"model: rows is {self.rows}; it must be at least vocab_size, {self.vocab_size}")
        if self.d_inner % self.headdim:
            raise ConfigError(
                f"model: headdim is {self.headdim}; it must divide expand * d_model, "
                f"{self.expand} * {self.d_model} = {self.d_inner}"
            )
        if self.nheads % self.ngroups:
            raise ConfigError(f"model: ngroups is {self.ngroups}; it must divide the number of heads, {self.nheads}")

    @property
    def d_inner(self) -> int:
        """Width of x and z."""
        return self.expand * self.d_model

    @property
    def nheads(self) -> int:
        """Heads H of `headdim` channels P each; every head has one A, D and dt."""
        return self.d_inner // self.headdim

    @property
    def conv_dim(self) -> int:
        """Channels of the causal convolution: x, B, C."""
        return self.d_inner + 2 * self.ngroups * self.d_state

    @property
    def d_in_proj(self) -> int:
        """Outputs of the input projection: z, x, B, C, dt."""
        return self.d_inner + self.conv_dim + self.nheads

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and shape, by mamba_ssm's state-dict names. The head is tied, so it is not in the
        table.
        """
        shapes: dict[str, tuple[int, ...]] = {"backbone.embedding.weight": (self.rows, self.d_model)}
        for i in range(self.n_layer):
            layer = f"backbone.layers.{i}."
            shapes[layer + "norm.weight"] = (self.d_model,)
            shapes[layer + "mixer.in_proj.weight"] = (self.d_in_proj, self.d_model)
            shapes[layer + "mixer.conv1d.weight"] = (self.conv_dim, 1, self.d_conv)
            shapes[layer + "mixer.conv1d.bias"] = (self.conv_dim,)
            shapes[layer + "mixer.dt_bias"] = (self.nheads,)
            shapes[layer + "mixer.A_log"] = (self.nheads,)
            shapes[layer + "mixer.D"] = (self.nheads,)
            shapes[layer + "mixer.norm.weight"] = (self.d_inner,)
            shapes[layer + "mixer.out_proj.weight"] = (self.d_model, self.d_inner)
        shapes["backbone.norm_f.weight"] = (self.d_model,)
        if self.head_bias:
            shapes["lm_head.bias"] = (self.vocab_size,)
        return shapes

    @property
    def parameters(self) -> int:
        """Number of trained numbers."""
        total = 0
        for shape in self.tensors().values():
            size = 1
            for n in shape:
                size *= n
            total += size
        return total

    @property
    def conv_state_size(self) -> int:
        """Numbers of one session's convolution state: the last d_conv - 1 inputs of every channel in every layer."""
        return self.n_layer * (self.d_conv - 1) * self.conv_dim

    @property
    def ssm_state_size(self) -> int:
        """Numbers of one session's SSM state: [n_layer, H, P, N]."""
        return self.n_layer * self.d_inner * self.d_state

    @property
    def state_bytes(self) -> int:
        """Bytes of one session's whole recurrent state in fp32."""
        return 4 * (self.conv_state_size + self.ssm_state_size)

    def to_json(self) -> dict[str, Any]:
        """A dict for `config.json`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, data: object) -> ModelConfig:
        """The config of a `to_json` dict. Raises ConfigError naming the key that is missing, unknown or wrong."""
        if not isinstance(data, dict):
            raise ConfigError(f"model: found {type(data).__name__}; it must be a table of sizes")
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(str(key) for key in data if key not in known)
        if unknown:
            raise ConfigError(f"model: unknown key {', '.join(unknown)}; known are {', '.join(known)}")
        missing = [name for name, field in known.items() if field.default is dataclasses.MISSING and name not in data]
        if missing:
            raise ConfigError(f"model: {', '.join(missing)} missing")
        return cls(**data)
