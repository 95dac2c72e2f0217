"""The reference backend: `mamba2` in plain PyTorch, fp32, on a slab of states.

Slots are computed one after the other. A batched matrix product may choose another summation order for another batch
size, and vectorised functions treat the ends of an array differently, so a batch would make a slot's last bits depend
on its neighbours. Alone, every slot meets the same shapes in every call.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from netssmd.model.backend import (
    MOST_AHEAD,
    Floats,
    Ints,
    NonFiniteState,
    Sampling,
    check_factors,
    pack_state,
    unpack_state,
)
from netssmd.model.config import ModelConfig
from netssmd.model.mamba2 import Mamba2LM, State
from netssmd.model.sampling import adjusted, draw, taken_away


class TorchBackend:
    """Arguments: tensors, float32 by mamba_ssm's state-dict names; device, where the model runs (drawing is always done
    in numpy).
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Floats],
        slots: int = 8,
        sampling: Sampling | None = None,
        device: str = "cpu",
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}; it must be at least 1")
        self.config = config
        self.slots = slots
        self.sampling = sampling or Sampling()
        self.device = torch.device(device)
        self.model = Mamba2LM(config, kernels=False).requires_grad_(False).eval()
        self.model.load_state_dict({name: torch.from_numpy(np.array(t, np.float32)) for name, t in tensors.items()})
        self.model.to(self.device)
        self._states = self._make_states()
        self.call_rows = 0.0

    def _make_states(self) -> list[State]:
        return [State.zeros(self.config, 1, self.device) for _ in range(self.slots)]

    def reset(self, slot: int) -> None:
        """Puts the slot's state to zero."""
        state = self._state(slot)
        state.conv.zero_()
        state.ssm.zero_()

    @torch.inference_mode()
    def prefill(self, slot: int, rows: Ints) -> None:
        """Consumes inputs [T, W] in the chunked form; draws nothing. Raises NonFiniteState."""
        state = self._state(slot)
        if len(rows) == 0:
            return
        _, after = self.model(self._rows(rows).unsqueeze(0), state)
        state.conv.copy_(after.conv)
        state.ssm.copy_(after.ssm)
        if not bool(torch.isfinite(after.ssm).all()):
            raise NonFiniteState([slot], np.empty(0, np.int32))

    @torch.inference_mode()
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
        Arguments: slots [n], each at most once; rows [n, W]; ranges [n, 2]; uniforms [n] in [0, 1); temperatures [n], 0
        for the likeliest; factors [M], factors_at [n], removed [n, 2]: see Backend.step.
        Return: tokens [n].
        """
        self._check(slots, ranges, uniforms, temperatures)
        check_factors(ranges, factors, factors_at)
        lo, hi = ranges[:, 0], ranges[:, 1]
        inputs = self._rows(rows)
        states = [self._state(slot) for slot in slots.tolist()]
        tokens = np.zeros(len(slots), np.int32)
        broken = []
        for i, state in enumerate(states):
            hidden = self.model.step(inputs[i : i + 1], state)
            logits = self.model.logits(hidden[0], int(lo[i]), int(hi[i])).cpu().numpy()
            if not np.isfinite(logits).all():
                broken.append(int(slots[i]))
                continue
            how = (float(uniforms[i]), float(temperatures[i]), self.sampling.top_k, self.sampling.top_p)
            if factors is not None and factors_at is not None and (at := int(factors_at[i])) >= 0:
                own = factors[at : at + len(logits)]
                if removed is not None:
                    removed[i] = taken_away(logits, own, *how, self.sampling.penalties)
                logits = adjusted(logits, own, self.sampling.penalties)
            choice = draw(logits, *how)
            tokens[i] = lo[i] + choice
        if broken:
            raise NonFiniteState(broken, tokens)
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
        """See Backend.verify, which this defines: steps, while they draw what was drafted. The chunked form would add
        in another order than steps do."""
        ends = np.cumsum(counts)
        if (counts < 1).any() or (counts > MOST_AHEAD).any() or len(rows) != (ends[-1] if len(ends) else 0):
            raise ValueError(f"counts: {counts.tolist()}; each must be 1 to {MOST_AHEAD}, and their sum {len(rows)}")
        if len(set(slots.tolist())) != len(slots):
            raise ValueError(f"slots: {slots.tolist()} names one twice")
        tokens = np.full(len(rows), -1, np.int32)
        taken = np.zeros(len(slots), np.int32)
        for i, end in enumerate(ends.tolist()):
            for at in range(end - int(counts[i]), end):
                one = slice(at, at + 1)
                own = (factors, None if factors_at is None else factors_at[one])
                try:
                    drawn = self.step(slots[i : i + 1], rows[one], ranges[one], uniforms[one], temperatures[one], *own)
                except NonFiniteState:
                    taken[i] = 0
                    break
                tokens[at] = drawn[0]
                taken[i] += 1
                if drawn[0] != drafts[at]:
                    break
        return tokens, taken

    @torch.inference_mode()
    def logits_for(self, slot: int, rows: Ints) -> Floats:
        """Advances the slot by one input [W]; logits [vocab_size]. For tests."""
        hidden = self.model.step(self._rows(rows[None]), self._state(slot))
        logits: Floats = self.model.logits(hidden[0], 0, self.config.vocab_size).cpu().numpy()
        return logits

    def save_state(self, slot: int) -> bytes:
        """The slot's state behind a versioned header."""
        state = self._state(slot)
        return pack_state(self.config, state.conv.cpu().numpy(), state.ssm.cpu().numpy())

    def load_state(self, slot: int, state: bytes) -> None:
        """Puts a saved state into a slot, bit for bit. Raises ValueError for bytes of another model or version."""
        conv, ssm = unpack_state(self.config, state)
        own = self._state(slot)
        own.conv.copy_(torch.from_numpy(conv).unsqueeze(1))
        own.ssm.copy_(torch.from_numpy(ssm).unsqueeze(1))

    def _check(self, slots: Ints, ranges: Ints, uniforms: Floats, temperatures: Floats) -> None:
        """Raises ValueError for arguments of `step` that do not fit."""
        lo, hi = ranges[:, 0], ranges[:, 1]
        if (lo < 0).any() or (hi > self.config.vocab_size).any() or (lo >= hi).any():
            raise ValueError(f"ranges: each must be 0 <= lo < hi <= {self.config.vocab_size}")
        if len(set(slots.tolist())) != len(slots):
            raise ValueError(f"slots: {slots.tolist()} names one twice")
        if (temperatures < 0).any() or not ((uniforms >= 0) & (uniforms <= 1)).all():
            raise ValueError("temperatures must be 0 or more, uniforms within [0, 1)")

    def _state(self, slot: int) -> State:
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot}: there are {self.slots}, from 0")
        return self._states[slot]

    def _rows(self, rows: Ints) -> Tensor:
        if rows.size and (rows.min() < 0 or rows.max() >= self.config.rows):
            raise ValueError(
                f"rows: {int(rows.min())}..{int(rows.max())}; the embedding has rows 0..{self.config.rows - 1}"
            )
        return torch.from_numpy(np.ascontiguousarray(rows, np.int32)).to(self.device)


def use_threads(count: int) -> None:
    """How many threads torch may use inside one operation; a measure of one core wants one."""
    torch.set_num_threads(count)
