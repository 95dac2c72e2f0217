"""The seam between the engine and whatever computes the model: embedding rows in, drawn tokens out.

A backend holds the recurrent states of a fixed number of slots, one session each. Calls are ragged: any slots, in any
order; joining is `prefill`, leaving is `reset`. What a slot answers never depends on the other slots of the call, down
to the last bit. States are fp32.

    cpu     compiled C++, no torch (cpu_backend.py)
    torch   the reference and the fallback (torch_backend.py)
    cuda    a GPU: one slab of states, CUDA graphs (cuda_backend.py)
"""

from __future__ import annotations

import importlib.util
import os
import struct
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from netssmd.errors import ConfigError, NetssmdError, UsageError
from netssmd.model.checkpoint import load_config, load_tensors_numpy
from netssmd.model.config import ModelConfig

Ints: TypeAlias = npt.NDArray[np.int32]
Floats: TypeAlias = npt.NDArray[np.float32]
Kind = Literal["auto", "cpu", "torch", "cuda"]

Weights = Literal["auto", "fp32", "bf16", "int8"]

KINDS: Final = ("auto", "cpu", "torch", "cuda")
WEIGHTS: Final = ("auto", "fp32", "bf16", "int8")
MOST_AHEAD: Final = 64  # inputs of one slot in a call of `verify`


class Backend(Protocol):
    """Slots 0..slots-1, each one session's state, zero at first. Ranges are tokens lo <= t < hi. Raises ValueError for
    what does not fit.

    Disjoint slots may be stepped from several threads at once.
    """

    @property
    def slots(self) -> int: ...

    @property
    def call_rows(self) -> float:
        """What a call costs by itself, counted in further inputs of `verify`; 0: these are no cheaper than steps."""

    def reset(self, slot: int) -> None:
        """Puts the slot's state to zero."""

    def prefill(self, slot: int, rows: Ints) -> None:
        """Consumes inputs, each a line of embedding rows [T, W]; draws nothing."""

    def step(
        self,
        slots: Ints,
        rows: Ints,
        ranges: Ints,
        uniforms: Floats,
        temperatures: Floats,
        factors: Floats | None = None,
        factors_at: Ints | None = None,
        removed: Floats | None = None,
    ) -> Ints:
        """
        Advances each slot by one input and draws its next token as `sampling.draw` does.
        Arguments: slots [n], each at most once; rows [n, W]; ranges [n, 2]; uniforms [n] in [0, 1); temperatures [n], 0
        for the likeliest; factors [M] of `sampling.adjusted` for those slots that have some, factors_at [n] where each
        slot's lie, one for each token of its range, or -1 for a slot without: both or neither; removed [n, 2], to be
        filled for slots that have factors with what `sampling.taken_away` says.
        Return: tokens [n]. Raises NonFiniteState.
        """

    def verify(
        self,
        slots: Ints,
        counts: Ints,
        rows: Ints,
        drafts: Ints,
        ranges: Ints,
        uniforms: Floats,
        temperatures: Floats,
        factors: Floats | None = None,
        factors_at: Ints | None = None,
    ) -> tuple[Ints, Ints]:
        """
        Draws for several inputs of each slot, as far as they turn out to be right: as many calls of `step`, to the last
        bit, in one.
        Arguments: slots [n], each at most once; counts [n], 1 to `MOST_AHEAD` inputs for each; then T = sum of counts,
        one slot's inputs behind the other's: rows [T, W]; drafts [T], what must be drawn at an input for the slot's
        next one to stand (its last is not read); ranges, uniforms, temperatures, factors, factors_at as for `step`.
        Return: tokens [T]; taken [n], how many of a slot's inputs stood, so that as many of its tokens are drawn and
        its state is advanced by as many inputs; 0 for a state that is no longer finite.
        """

    def logits_for(self, slot: int, rows: Ints) -> Floats:
        """Advances the slot by one input [W]; logits [vocab_size]. For tests."""

    def save_state(self, slot: int) -> bytes:
        """The slot's state; `load_state` of any backend for the same model takes it."""

    def load_state(self, slot: int, state: bytes) -> None:
        """Puts a saved state into a slot, bit for bit."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: top_k 0 and top_p 1 keep every member of the range. `temperature` is what sessions use
    unless told otherwise. penalties: factors are to be taken for such (`sampling.adjusted`).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    penalties: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            raise ConfigError(
                f"sampling: temperature is {self.temperature}; it must lie between 0 (the likeliest token) and 100"
            )
        if self.top_k < 0:
            raise ConfigError(f"sampling: top_k is {self.top_k}; it must be 0 (all) or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"sampling: top_p is {self.top_p}; it must be above 0 and at most 1")


class NonFiniteState(NetssmdError):
    """Slots whose recurrent state overflowed or met a NaN. The other slots of the call were advanced: their tokens are
    in `tokens`.
    """

    def __init__(self, slots: list[int], tokens: Ints) -> None:
        super().__init__(f"the state of slot {', '.join(map(str, slots))} is no longer finite; reset it")
        self.slots = slots
        self.tokens = tokens


def check_factors(ranges: Ints, factors: Floats | None, factors_at: Ints | None) -> None:
    """Raises ValueError for factors that do not fit the ranges, are negative or not finite, or forbid a whole range."""
    if factors is None or factors_at is None:
        if factors is not None or factors_at is not None:
            raise ValueError("factors and factors_at come together")
        return
    if len(factors_at) != len(ranges):
        raise ValueError(f"factors_at has {len(factors_at)} numbers; {len(ranges)} would be right")
    for i, (at, (lo, hi)) in enumerate(zip(factors_at.tolist(), ranges.tolist(), strict=True)):
        if at < 0:
            continue
        own = factors[at : at + hi - lo]
        if len(own) < hi - lo:
            raise ValueError(f"factors: {len(factors)} numbers, but position {i} has {at}..{at + hi - lo - 1}")
        if not np.isfinite(own).all() or (own < 0).any() or not own.any():
            raise ValueError(f"factors at position {i}: each must be finite and 0 or more, and one above 0")


def open_backend(
    folder: str | os.PathLike[str],
    kind: Kind = "auto",
    slots: int = 8,
    sampling: Sampling | None = None,
    weights: Weights = "auto",
) -> Backend:
    """A backend on a checkpoint. `auto` takes the compiled one where there is one. `weights` is how the cpu backend
    keeps them: `auto` is bf16 where that is exact, else fp32. Raises CheckpointError, NetssmdError, UsageError.
    """
    if kind not in KINDS:
        raise UsageError(f"backend {kind!r}: there are {', '.join(KINDS)}")
    if weights not in WEIGHTS:
        raise UsageError(f"weights {weights!r}: there are {', '.join(WEIGHTS)}")
    sampling = sampling or Sampling()
    config = load_config(folder)
    tensors = load_tensors_numpy(folder, config)
    if kind == "cpu" or (kind == "auto" and _has_cpu()):
        from netssmd.model.cpu_backend import CpuBackend

        backend: Backend = CpuBackend(
            config,
            tensors,
            slots=slots,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            penalties=sampling.penalties,
            weights=None if weights == "auto" else weights,
        )
        return backend
    if weights not in ("auto", "fp32"):
        raise UsageError(f"weights {weights!r} are the cpu backend's; the others compute in fp32")
    if importlib.util.find_spec("torch") is None:
        raise NetssmdError(
            "no backend: the compiled one is not there and torch is not installed; run `make setup` with a C++ compiler"
        )
    if kind == "cuda":
        from netssmd.model.cuda_backend import CudaBackend, has_gpu

        if not has_gpu():
            raise NetssmdError("backend 'cuda': torch finds no GPU here; use 'cpu' or 'auto'")
        return CudaBackend(config, tensors, slots=slots, sampling=sampling)
    from netssmd.model.torch_backend import TorchBackend

    return TorchBackend(config, tensors, slots=slots, sampling=sampling)


def lend_threads(backend: object, threads: int) -> None:
    """Lets a call of one engine thread use up to `threads` cores while the others have nothing to do, if the backend
    can and gains by it."""
    from netssmd.model.cpu_backend import CpuBackend

    if isinstance(backend, CpuBackend):
        backend.lend(threads)


def _has_cpu() -> bool:
    if importlib.util.find_spec("netssmd.model.cpu_backend") is None:
        return False
    from netssmd.model.cpu_backend import available_isas

    return bool(available_isas())


# ---- saved states --------------------------------------------------------------------------------------------------

_STATE: Final = struct.Struct("<8s8I")
_MAGIC: Final = b"NSSMSTAT"
_VERSION: Final = 1
_SIZES: Final = ("n_layer", "d_conv - 1", "conv_dim", "heads", "headdim", "d_state")


def pack_state(config: ModelConfig, conv: Floats, ssm: Floats) -> bytes:
    """Arguments: conv [n_layer, K-1, conv_dim], ssm [n_layer, H, P, N]. Return: a header and the numbers, little-endian
    fp32.
    """
    return (
        _STATE.pack(_MAGIC, _VERSION, *_sizes(config), 0) + conv.astype("<f4").tobytes() + ssm.astype("<f4").tobytes()
    )


def unpack_state(config: ModelConfig, state: bytes) -> tuple[Floats, Floats]:
    """The arrays of `pack_state`. Raises ValueError for bytes of another model or version."""
    if len(state) < _STATE.size or not state.startswith(_MAGIC):
        raise ValueError(f"state: {len(state)} bytes that do not begin with {_MAGIC.decode()}; not a saved slot")
    _, version, *found = _STATE.unpack_from(state)
    if version != _VERSION:
        raise ValueError(f"state: version {version}; this build reads {_VERSION}")
    for name, is_, right in zip(_SIZES, found, _sizes(config), strict=False):
        if is_ != right:
            raise ValueError(f"state: {name} is {is_}; the model's is {right}")
    if len(state) != _STATE.size + config.state_bytes:
        raise ValueError(f"state: {len(state)} bytes; {_STATE.size + config.state_bytes} would be right")
    numbers = np.frombuffer(state, "<f4", offset=_STATE.size).astype(np.float32)
    conv, ssm = numbers[: config.conv_state_size], numbers[config.conv_state_size :]
    c = config
    return conv.reshape(c.n_layer, c.d_conv - 1, c.conv_dim), ssm.reshape(c.n_layer, c.nheads, c.headdim, c.d_state)


def _sizes(config: ModelConfig) -> tuple[int, ...]:
    c = config
    return c.n_layer, c.d_conv - 1, c.conv_dim, c.nheads, c.headdim, c.d_state
