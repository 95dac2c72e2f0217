"""The training file: every key with its default. `config/train.toml` documents them; a test holds the two equal.

A TOML document comes in and a TrainConfig comes out, or a ConfigError that names the key. Unknown keys are errors.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from netssmd import tomlfile
from netssmd.errors import ConfigError

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Amount = Annotated[float, Meta(ge=0.0)]


class ModelSection(Struct, forbid_unknown_fields=True, kw_only=True):
    d_model: Positive = 192
    n_layer: Positive = 6
    d_state: Positive = 32
    headdim: Positive = 32
    expand: Positive = 2
    chunk_size: Positive = 64


class BatchSection(Struct, forbid_unknown_fields=True, kw_only=True):
    streams: Positive = 16
    segment: Positive = 512
    window: Count = 0
    balance: Share = 0.5
    drop_label: Share = 0.02
    drop_conditions: Share = 0.1
    drop_left: Share = 0.2


class OptimizerSection(Struct, forbid_unknown_fields=True, kw_only=True):
    learning_rate: Amount = 2e-3
    warmup_steps: Count = 200
    final_share: Share = 0.1
    weight_decay: Amount = 0.1
    betas: tuple[Share, Share] = (0.9, 0.95)
    clip: Amount = 1.0
    dropout: Share = 0.0
    ema: Share = 0.999


class LengthSection(Struct, forbid_unknown_fields=True, kw_only=True):
    tokens: Count = 50_000_000
    epochs: Amount = 0.0
    hours: Amount = 0.0


class ValidationSection(Struct, forbid_unknown_fields=True, kw_only=True):
    every_steps: Count = 500
    tokens: Count = 200_000
    final_tokens: Count = 0


class OutputSection(Struct, forbid_unknown_fields=True, kw_only=True):
    path: str = "runs/train"
    log_steps: Positive = 20
    checkpoint_steps: Count = 250
    name: str = ""


class MachineSection(Struct, forbid_unknown_fields=True, kw_only=True):
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: Count = 0


class TrainConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    data: str = "data"
    seed: Count = 1
    base: str = ""
    model: ModelSection = msgspec.field(default_factory=ModelSection)
    batch: BatchSection = msgspec.field(default_factory=BatchSection)
    optimizer: OptimizerSection = msgspec.field(default_factory=OptimizerSection)
    length: LengthSection = msgspec.field(default_factory=LengthSection)
    validation: ValidationSection = msgspec.field(default_factory=ValidationSection)
    output: OutputSection = msgspec.field(default_factory=OutputSection)
    machine: MachineSection = msgspec.field(default_factory=MachineSection)


def load_train_config(path: Path) -> TrainConfig:
    """Read a training file. Raises ConfigError naming the file and the key."""
    config = tomlfile.load(path, TrainConfig)
    check(config, str(path))
    return config


def check(config: TrainConfig, place: str) -> None:
    """What no single key can say. Raises ConfigError."""
    length = config.length
    for key, value in (("hours", length.hours), ("epochs", length.epochs)):
        if not math.isfinite(value):
            raise ConfigError(f"{place}: length.{key} is {value}; write a number of {key}, or 0 for no limit")
    if not length.tokens and not length.hours and not length.epochs:
        raise ConfigError(
            f"{place}: length.tokens, length.epochs and length.hours are all 0; one of them has to end the training"
        )
    if config.model.d_model * config.model.expand % config.model.headdim:
        raise ConfigError(
            f"{place}: model.headdim {config.model.headdim} does not divide d_model x expand = "
            f"{config.model.d_model * config.model.expand}"
        )


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain values, for logs and model cards."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain
