"""The C++ CPU backend: embedding rows in, drawn tokens out, no torch.

`CpuBackend` hands a checkpoint's tensors to `netssmd.model._cpu` (sources in `netssmd/model/cpu/`), which packs them
once as fp32, bf16 or int8 and holds the recurrent states of `slots` sessions in one fp32 slab. A call leaves the
interpreter lock, so one thread per core may step disjoint slots of the same backend at once; where a single thread
does and the model is large, others may share its calls (`lend`). A slot's numbers do not depend on its batch mates,
its thread or its slot number, and prefill is the same as steps, bit for bit.

The instruction set is the best that the machine has, or `isa`, or the environment's NETSSMD_CPU_ISA: amx, avx512,
avx2, portable. Results agree between them to rounding, not to the bit: whoever wants the same packets on different
machines names one.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from netssmd import freshness
from netssmd.errors import NetssmdError
from netssmd.model.backend import Floats, Ints, NonFiniteState
from netssmd.model.config import ModelConfig

_cpu: Any = None
missing_reason = ""
try:
    _cpu = importlib.import_module("netssmd.model._cpu")
except ImportError as error:
    missing_reason = f"the compiled module netssmd.model._cpu is not there ({error}); install with a C++20 compiler"

ISA_VARIABLE = "NETSSMD_CPU_ISA"
WEIGHT_TYPES = ("fp32", "bf16", "int8")

# Layers that lie in a core's own cache, in the shared one, in memory: see tools/speculation.py.
_CALL_ROWS = ((2_000_000, 0.5), (32_000_000, 5.0), (1 << 62, 12.0))
# Above this, two cores read the layers faster than one; below, waiting for each other costs what the second one brings.
_SHARED_BYTES = 32_000_000


def available_isas() -> list[str]:
    """Instruction sets that this build and machine have, best first; empty where the module is not compiled."""
    return [] if _cpu is None else list(_cpu.available_isas())


def require_fresh() -> None:
    """Raises NetssmdError where the module was compiled from other C++ sources than those that lie here: its calls may
    take other arguments by now."""
    module = freshness.CPU_BACKEND
    built = {name: then for name, then in freshness.built_from().items() if name == module}
    if freshness.stale_modules(os.path.dirname(os.path.abspath(freshness.__file__)), built):
        raise NetssmdError(f"cpu backend: {module} was compiled from older sources; `make setup` builds it again")


class CpuBackend:
    """
    Arguments:
        tensors: float32 arrays by mamba_ssm's state-dict names, e.g. of `load_tensors_numpy`.
        weights: "fp32", "bf16" or "int8" (one scale per row); None: bf16 if that is exact for every matrix, else fp32.
        top_k, top_p: see `sampling.draw`; 0 and 1 keep all. penalties: what factors are, see `sampling.adjusted`.
    Raises ValueError for tensors and arguments that do not fit, NetssmdError where the module is not compiled.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Floats],
        *,
        slots: int = 8,
        top_k: int = 0,
        top_p: float = 1.0,
        penalties: bool = False,
        weights: str | None = None,
        isa: str | None = None,
    ) -> None:
        if _cpu is None:
            raise NetssmdError(f"cpu backend: {missing_reason}, or use the torch backend")
        arrays = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
        self.config = config
        self.weights = weights or ("bf16" if _all_bf16(arrays) else "fp32")
        sizes = {
            name: int(getattr(config, name))
            for name in (
                "d_model",
                "n_layer",
                "vocab_size",
                "rows",
                "d_state",
                "d_conv",
                "expand",
                "headdim",
                "ngroups",
            )
        }
        sizes["norm_groups"] = 1  # the gated norm goes over all of d_inner, as in mamba2.Mixer
        self._decoder = _cpu.Decoder(
            {**sizes, "norm_eps": float(config.norm_eps)},
            arrays,
            self.weights,
            slots,
            top_k,
            top_p,
            penalties,
            isa or os.environ.get(ISA_VARIABLE) or "auto",
        )
        self.slots = slots

    @property
    def call_rows(self) -> float:
        """What a call costs by itself, in further inputs: reading the layers, which is dearer the farther they lie."""
        return next(rows for most, rows in _CALL_ROWS if self.layer_bytes <= most)

    @property
    def threads(self) -> int:
        """How many threads may share a call, 1 at first. The answers are the same, bit for bit. Calls are shared while
        one thread alone makes them: where several do, each has a core already. Not to be set during a call."""
        return int(self._decoder.threads)

    @threads.setter
    def threads(self, count: int) -> None:
        self._decoder.threads = count

    def lend(self, threads: int) -> None:
        """Lets up to `threads` threads, at most 16, share a call if the model is one for which that is faster."""
        self.threads = min(threads, 16) if self.layer_bytes > _SHARED_BYTES else 1

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(self._decoder.isa)

    @property
    def layer_bytes(self) -> int:
        """Bytes of packed weights that every step reads: the layers, without embedding and head."""
        return int(self._decoder.layer_bytes)

    @property
    def state_bytes(self) -> int:
        """Bytes of one slot's recurrent state."""
        return int(self._decoder.state_bytes)

    def reset(self, slot: int) -> None:
        """Puts the slot's state to zero: a new session."""
        self._decoder.reset(slot)

    def prefill(self, slot: int, rows: Ints) -> None:
        """Consumes inputs [T, W] without drawing; the same state as T steps, bit for bit."""
        if not self._decoder.prefill(slot, np.ascontiguousarray(rows, np.int32)):
            raise NonFiniteState([slot], np.empty(0, np.int32))

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
        Advances each slot by one input and draws its next token.
        Arguments: slots [n], each at most once; rows [n, W]; ranges [n, 2], lo <= token < hi; uniforms [n] in [0, 1);
        temperatures [n], 0 for the likeliest; factors [M], factors_at [n], removed [n, 2]: see Backend.step.
        Return: tokens [n]. Raises NonFiniteState, ValueError.
        """
        slots = np.ascontiguousarray(slots, np.int32)
        tokens = np.empty(slots.shape, np.int32)
        try:
            broken = self._decoder.step(
                slots,
                np.ascontiguousarray(rows, np.int32),
                np.ascontiguousarray(ranges, np.int32),
                np.ascontiguousarray(uniforms, np.float32),
                np.ascontiguousarray(temperatures, np.float32),
                tokens,
                None if factors is None else np.ascontiguousarray(factors, np.float32),
                None if factors_at is None else np.ascontiguousarray(factors_at, np.int32),
                removed,
            )
        except TypeError:
            require_fresh()
            raise
        if broken:
            raise NonFiniteState([int(slots[i]) for i in broken], tokens)
        return tokens

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
        Draws for several inputs of each slot in one pass over the weights: see Backend.verify.
        Return: tokens [T], taken [n]. Raises ValueError.
        """
        if not hasattr(self._decoder, "verify"):
            require_fresh()
        counts = np.ascontiguousarray(counts, np.int32)
        tokens = np.empty(np.shape(rows)[0], np.int32)
        taken = np.zeros(counts.shape, np.int32)
        self._decoder.verify(
            np.ascontiguousarray(slots, np.int32),
            counts,
            np.ascontiguousarray(rows, np.int32),
            np.ascontiguousarray(drafts, np.int32),
            np.ascontiguousarray(ranges, np.int32),
            np.ascontiguousarray(uniforms, np.float32),
            np.ascontiguousarray(temperatures, np.float32),
            tokens,
            taken,
            None if factors is None else np.ascontiguousarray(factors, np.float32),
            None if factors_at is None else np.ascontiguousarray(factors_at, np.int32),
        )
        return tokens, taken

    def hidden_and_logits(self, slot: int, rows: Ints) -> tuple[Floats, Floats]:
        """Advances the slot by one input [W]; hidden [d_model] after the last norm, logits. For tests."""
        hidden = np.empty(self.config.d_model, np.float32)
        logits = np.empty(self.config.vocab_size, np.float32)
        self._decoder.inspect(slot, np.ascontiguousarray(rows, np.int32), hidden, logits)
        return hidden, logits

    def logits_for(self, slot: int, rows: Ints) -> Floats:
        """Advances the slot by one input [W]; logits [vocab_size], for tests."""
        return self.hidden_and_logits(slot, rows)[1]

    def save_state(self, slot: int) -> bytes:
        """The slot's state in `backend.pack_state`'s form: the same for every backend and instruction set."""
        return bytes(self._decoder.save(slot))

    def load_state(self, slot: int, state: bytes) -> None:
        """Puts a saved state into a slot. Raises ValueError for bytes of another model or version."""
        self._decoder.load(slot, state)


def roofline_seconds(backend: CpuBackend, n: int, seconds: float) -> float:
    """Least time for one step of n slots: a kernel that only reads the layers and rewrites n states."""
    return float(_cpu.bandwidth(backend.layer_bytes, n * backend.state_bytes, seconds))


def _all_bf16(tensors: Mapping[str, Floats]) -> bool:
    """Whether every matrix keeps its value in bf16, as the tensors of a bf16 checkpoint do."""
    return all(not (np.frombuffer(t, np.uint32) & 0xFFFF).any() for t in tensors.values() if t.ndim == 2)
