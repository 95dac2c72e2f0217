"""Fine-tuning: the weights of a base model in a model that may know more labels and features, or have smaller states.

    base    | tokens | labels       | conditions | features          |     rows that have a name in both are copied,
    model   | tokens | labels, more | conditions | features, more    |     new features begin at zero, new labels as
                                                                            the label that is not known

Tokens have to be the same, which `netssmd prepare --model BASE` sees to. Where `d_state` is smaller than the base's,
each layer keeps the dimensions of its state through which most passes: written by B and read by C, all of a layer's
heads alike. What that costs, training has to make good.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from netssmd.codec.vocab import CONDITIONS, FEATURES, conditions_from
from netssmd.errors import UsageError
from netssmd.model.checkpoint import load_config_and_codec, load_tensors_numpy
from netssmd.model.config import ModelConfig
from netssmd.model.mamba2 import Mamba2LM

F32 = npt.NDArray[np.float32]

SHAPE = ("d_model", "n_layer", "d_conv", "expand", "headdim", "ngroups", "vocab_size")
TOKENS = ("name", "stacks", "lengths", "windows", "ports", "kinds")  # what makes the context codec's tokens
EMBEDDING = "backbone.embedding.weight"


def adopt(model: Mamba2LM, config: ModelConfig, codec: dict[str, Any], folder: Path) -> None:
    """Begin with the weights of the checkpoint in `folder`; `codec`: the section that describes the model's vocabulary.
    Raises CheckpointError, UsageError where they do not fit."""
    theirs, their_codec = load_config_and_codec(folder)
    for name in SHAPE:
        if getattr(theirs, name) != getattr(config, name):
            raise UsageError(
                f"{folder}: its {name} is {getattr(theirs, name)}, but this training's is {getattr(config, name)}; "
                "the base needs the same shape, and the data the base's vocabulary (`netssmd prepare --model`)"
            )
    if theirs.d_state < config.d_state:
        raise UsageError(
            f"{folder}: its d_state is {theirs.d_state}, this training's {config.d_state}; a state can't grow"
        )
    if any(codec.get(key) != their_codec.get(key) for key in TOKENS):
        raise UsageError(f"{folder}: its tokens mean something else; prepare the data with `netssmd prepare --model`")
    tensors = load_tensors_numpy(folder, theirs)
    tensors.pop("lm_head.bias", None)
    if theirs.d_state > config.d_state:
        tensors = shrink(tensors, theirs, config.d_state)
    tensors[EMBEDDING] = rows(tensors[EMBEDDING], their_codec, codec, config.rows, folder)
    model.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()})


def rows(embedding: F32, theirs: dict[str, Any], mine: dict[str, Any], count: int, folder: Path) -> F32:
    """The embedding table of `count` rows."""
    known, wanted = places(theirs), places(mine)
    if max(start + size for start, size in known.values()) != len(embedding):
        raise UsageError(f"{folder}: its table of {len(embedding)} rows is not one of this version; train it anew")
    made = np.zeros((count, embedding.shape[1]), np.float32)
    for name in ("all", "tokens"):
        if known.get(name, (0, 0))[1] != wanted.get(name, (0, 0))[1]:
            raise UsageError(
                f"{folder}: its inputs are not this data's (one is conditioned, the other not, or another codec); "
                "prepare the data with `netssmd prepare --model`"
            )
    unknown, _ = known.get("label", (0, 0))
    for name, (start, size) in wanted.items():
        if name in known and known[name][1] == size:
            at = known[name][0]
            made[start : start + size] = embedding[at : at + size]
        elif name.startswith("label "):
            made[start] = embedding[unknown]
    return made


def places(codec: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """First row and number of rows of everything that has a name; the label that is not known is "label"."""
    if codec["name"] != "context":
        return {"all": (0, int(codec["rows"]))}
    found = {"tokens": (0, int(codec["size"]))}
    at = int(codec["size"])
    for label in codec["labels"]:
        found[f"label {label}"] = (at, 1)
        at += 1
    found["label"] = (at, 1)
    sizes = {c.name: len(c.edges) + 2 for c in conditions_from(0)} | dict(FEATURES)
    assert len(sizes) == len(CONDITIONS) + len(FEATURES)
    at += 1
    for name in (*codec["conditions"], *codec["features"]):
        if name not in sizes:
            raise UsageError(f"the base knows {name!r}, which this version does not; train it anew")
        found[name] = (at, sizes[name])
        at += sizes[name]
    return found


def shrink(tensors: dict[str, F32], theirs: ModelConfig, d_state: int) -> dict[str, F32]:
    """Each layer's states cut down to `d_state` dimensions, those that matter most."""
    made = dict(tensors)
    for layer in range(theirs.n_layer):
        mixer = f"backbone.layers.{layer}.mixer."
        projection, kernel = tensors[mixer + "in_proj.weight"], tensors[mixer + "conv1d.weight"][:, 0]
        inner, size = theirs.d_inner, theirs.ngroups * theirs.d_state
        strength = np.linalg.norm(projection[inner : inner + len(kernel)], axis=1) * np.linalg.norm(kernel, axis=1)
        passes = strength[inner : inner + size] * strength[inner + size : inner + 2 * size]  # written by B, read by C
        groups = passes.reshape(theirs.ngroups, theirs.d_state)
        kept = np.sort(np.argsort(-groups, axis=1)[:, :d_state], axis=1)
        kept = (kept + theirs.d_state * np.arange(theirs.ngroups)[:, None]).ravel()
        channels = np.concatenate([np.arange(inner), inner + kept, inner + size + kept])
        behind = np.arange(inner + len(kernel), len(projection))
        made[mixer + "in_proj.weight"] = projection[np.concatenate([np.arange(inner), inner + channels, behind])]
        for name in ("conv1d.weight", "conv1d.bias"):
            made[mixer + name] = tensors[mixer + name][channels]
    return made
