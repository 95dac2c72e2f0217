"""Many slots in one call on a GPU: the torch backend's model on one slab of states, each batch size a CUDA graph.

In and out as in `backend`. A call of n slots is filled up to the next batch size (1, 2, 4 ... 1,024; larger calls are
cut) with a spare slot that nobody owns, its inputs are copied into that size's buffers, and the graph of embedding,
layers, head, softmax and draw is replayed: one launch, one copy back. Where mamba-ssm and causal-conv1d can be
imported, their `selective_state_update` and `causal_conv1d_update` work on the slab in place; otherwise states are
gathered, stepped in plain torch and put back. On a device without graphs (the CPU, in tests) the same code runs
directly.

A slot does not meet its batch mates, but matrix products of another batch size may add in another order: packets are
the same run after run where `sizes` names one size only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from netssmd.model.backend import Floats, Ints, NonFiniteState, Sampling, check_factors
from netssmd.model.config import ModelConfig
from netssmd.model.mamba2 import Block, Mixer, State
from netssmd.model.torch_backend import TorchBackend

try:
    from causal_conv1d import causal_conv1d_update
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update
except ImportError:
    causal_conv1d_update = selective_state_update = None

SIZES: Final = tuple(1 << i for i in range(11))


def has_gpu() -> bool:
    """Whether torch can use one here."""
    return torch.cuda.is_available()


@dataclass(slots=True)
class _Call:
    """The buffers of one batch size B, and the graph that works on them."""

    slots: Tensor  # int64 [B]
    rows: Tensor  # int64 [B, W]
    ranges: Tensor  # int64 [B, 2]
    uniforms: Tensor  # float32 [B]
    temperatures: Tensor  # float32 [B]
    factors: Tensor  # float32 [B, V], 1 where a slot has none
    tokens: Tensor  # int64 [B]
    finite: Tensor  # bool [B]
    removed: Tensor | None = None  # float32 [B, 2], where it is asked for
    graph: Any = None
    adjusted: bool = False  # `factors` holds others than ones


class CudaBackend(TorchBackend):
    """Arguments: as TorchBackend's; sizes, the batch sizes that calls are filled up to, rising."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Floats],
        slots: int = 8,
        sampling: Sampling | None = None,
        device: str = "cuda",
        sizes: tuple[int, ...] = SIZES,
    ) -> None:
        super().__init__(config, tensors, slots, sampling, device)
        self.sizes = sizes
        self._fast = self.device.type == "cuda" and selective_state_update is not None
        self._calls: dict[tuple[int, int, bool], _Call] = {}

    def _make_states(self) -> list[State]:
        """One slab with a spare slot behind the last; a slot's state is a view of it."""
        self._slab = State.zeros(self.config, self.slots + 1, self.device)
        conv, ssm = self._slab.conv, self._slab.ssm
        return [State(conv[:, i : i + 1], ssm[:, i : i + 1]) for i in range(self.slots)]

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
        """See TorchBackend.step."""
        self._check(slots, ranges, uniforms, temperatures)
        check_factors(ranges, factors, factors_at)
        inputs = self._rows(rows)
        for slot in slots.tolist():
            self._state(slot)
        tokens = np.zeros(len(slots), np.int32)
        finite = np.ones(len(slots), bool)
        most = self.sizes[-1]
        for at in range(0, len(slots), most):
            part = slice(at, at + most)
            table = None
            if factors is not None and factors_at is not None:
                table = self._table(ranges[part], factors, factors_at[part])
            tokens[part], finite[part] = self._part(
                slots[part], inputs[part], ranges[part], uniforms[part], temperatures[part], table,
                None if table is None or removed is None else removed[part],
            )  # fmt: skip
        if not finite.all():
            raise NonFiniteState(slots[~finite].tolist(), tokens)
        return tokens

    def _table(self, ranges: Ints, factors: Floats, factors_at: Ints) -> Floats:
        """[n, V] factors, 1 outside each slot's range."""
        table = np.ones((len(ranges), self.config.vocab_size), np.float32)
        for row, at, (lo, hi) in zip(table, factors_at.tolist(), ranges.tolist(), strict=True):
            if at >= 0:
                row[lo:hi] = factors[at : at + hi - lo]
        return table

    def _part(
        self,
        slots: Ints,
        rows: Tensor,
        ranges: Ints,
        uniforms: Floats,
        temperatures: Floats,
        factors: Floats | None,
        removed: Floats | None,
    ) -> tuple[Ints, np.ndarray[Any, np.dtype[np.bool_]]]:
        n = len(slots)
        call = self._call(next(size for size in self.sizes if size >= n), rows.shape[1], removed is not None)
        call.slots.fill_(self.slots)
        call.slots[:n] = torch.from_numpy(slots.astype(np.int64))
        call.rows[:n] = rows
        call.ranges[:n] = torch.from_numpy(ranges.astype(np.int64))
        call.uniforms[:n] = torch.from_numpy(uniforms)
        call.temperatures[:n] = torch.from_numpy(temperatures)
        if factors is not None:
            call.factors[:n] = torch.from_numpy(factors)
            call.adjusted = True
        elif call.adjusted:
            call.factors.fill_(1.0)
            call.adjusted = False
        if call.graph is None:
            self._run(call)
        else:
            call.graph.replay()
        if removed is not None and call.removed is not None:
            removed[:] = call.removed[:n].cpu().numpy()
        return call.tokens[:n].cpu().numpy().astype(np.int32), call.finite[:n].cpu().numpy()

    def _call(self, size: int, width: int, counted: bool) -> _Call:
        """The buffers and, on a GPU, the captured graph for a batch size. Capturing steps the spare slot only.
        counted: with what masks take away."""
        call = self._calls.get((size, width, counted))
        if call is None:
            call = self._calls[size, width, counted] = _Call(
                torch.full((size,), self.slots, device=self.device),
                torch.zeros(size, width, dtype=torch.int64, device=self.device),
                torch.tensor([[0, 1]], device=self.device).repeat(size, 1),
                torch.zeros(size, device=self.device),
                torch.ones(size, device=self.device),
                torch.ones(size, self.config.vocab_size, device=self.device),
                torch.zeros(size, dtype=torch.int64, device=self.device),
                torch.ones(size, dtype=torch.bool, device=self.device),
                torch.zeros(size, 2, device=self.device) if counted else None,
            )
            if self.device.type == "cuda":
                self._capture(call)
        return call

    def _capture(self, call: _Call) -> None:
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(3):  # libraries make their workspaces and triton its kernels before the capture
                self._run(call)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run(call)
        call.graph = graph

    def _run(self, call: _Call) -> None:
        """All of one step, on the call's buffers; no number leaves the device."""
        backbone = self.model.backbone
        residual = self.model._embed(call.rows)
        for i, layer in enumerate(backbone.layers):
            assert isinstance(layer, Block)
            mix = self._mix_fast if self._fast else self._mix
            residual = residual + mix(layer.mixer, layer.norm(residual), i, call.slots)
        hidden = backbone.norm_f(residual)
        logits = self.model.logits(hidden, 0, self.config.vocab_size)
        call.finite.copy_(torch.isfinite(hidden).all(-1))
        draw = (call.ranges, call.uniforms, call.temperatures, self.sampling, call.factors)
        call.tokens.copy_(draw_many(logits, *draw))
        if call.removed is not None:
            call.removed.copy_(taken_away_many(logits, *draw))

    def _mix(self, mixer: Mixer, u: Tensor, i: int, slots: Tensor) -> Tensor:
        """One layer in plain torch. u [B, D]. Return: [B, D]."""
        conv, ssm = self._slab.conv[i].index_select(0, slots), self._slab.ssm[i].index_select(0, slots)
        out = mixer.step(u, conv, ssm)
        self._slab.conv[i].index_copy_(0, slots, conv)
        self._slab.ssm[i].index_copy_(0, slots, ssm)
        return out

    def _mix_fast(self, mixer: Mixer, u: Tensor, i: int, slots: Tensor) -> Tensor:
        """The same with mamba_ssm's kernels, which find each slot's state in the slab by its index."""
        c = self.config
        H, P, N, G = c.nheads, c.headdim, c.d_state, c.ngroups
        index = slots.to(torch.int32)
        z, xbc, dt = mixer.in_proj(u).split([c.d_inner, c.conv_dim, H], dim=-1)
        conv = self._slab.conv[i].transpose(1, 2)  # [slots, conv_dim, K-1]
        weight, bias = mixer.conv1d.weight[:, 0], mixer.conv1d.bias
        xbc = causal_conv1d_update(xbc.contiguous(), conv, weight, bias, "silu", conv_state_indices=index)
        x, B, C = xbc.split([c.d_inner, G * N, G * N], dim=-1)
        A = -mixer.A_log.float().exp()
        y = selective_state_update(
            self._slab.ssm[i],
            x.unflatten(-1, (H, P)),
            dt.unsqueeze(-1).expand(-1, H, P),
            A[:, None, None].expand(H, P, N),
            B.unflatten(-1, (G, N)),
            C.unflatten(-1, (G, N)),
            D=mixer.D.unsqueeze(-1).expand(H, P),
            dt_bias=mixer.dt_bias.unsqueeze(-1).expand(H, P),
            dt_softplus=True,
            state_batch_indices=index,
        )
        out: Tensor = mixer.out_proj(mixer.norm(y.flatten(1) * F.silu(z)))
        return out


def draw_many(
    logits: Tensor,
    ranges: Tensor,
    uniforms: Tensor,
    temperatures: Tensor,
    sampling: Sampling,
    factors: Tensor | None = None,
) -> Tensor:
    """`sampling.draw` for a batch, without a number leaving the device.

    Arguments: logits float32 [B, V]; ranges [B, 2]; uniforms, temperatures float32 [B]; factors [B, V]. Return: tokens
    [B].
    """
    if factors is not None:
        logits = _adjusted(logits, factors, sampling.penalties).masked_fill(factors == 0, -torch.inf)
    return _draw_many(logits, ranges, uniforms, temperatures, sampling)[0]


def taken_away_many(
    logits: Tensor, ranges: Tensor, uniforms: Tensor, temperatures: Tensor, sampling: Sampling, factors: Tensor
) -> Tensor:
    """`sampling.taken_away` for a batch. Return: float32 [B, 2]."""
    drawn, p = _draw_many(_adjusted(logits, factors, sampling.penalties), ranges, uniforms, temperatures, sampling)
    forbidden = factors == 0
    hit = forbidden.gather(1, drawn.unsqueeze(1)).squeeze(1).double()
    share = (p * forbidden).sum(-1, dtype=torch.float64) / p.sum(-1, dtype=torch.float64)
    return torch.stack((torch.where(temperatures == 0, hit, share), hit), -1).float()


def _adjusted(logits: Tensor, factors: Tensor, penalties: bool) -> Tensor:
    """`sampling.adjusted`, but a factor of 0 leaves its logit as it is."""
    f = torch.where(factors > 0, factors, 1.0)
    return torch.where(logits > 0, logits / f, logits * f) if penalties else logits + f.log()


def _draw_many(
    logits: Tensor, ranges: Tensor, uniforms: Tensor, temperatures: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Tokens [B], and the weights [B, V] by which they were drawn."""
    ids = torch.arange(logits.shape[1], device=logits.device)
    legal = (ids >= ranges[:, :1]) & (ids < ranges[:, 1:])
    logits = logits.masked_fill(~legal, -torch.inf)
    top, likeliest = logits.max(-1, keepdim=True)
    greedy = temperatures == 0
    scale = 1.0 / torch.where(greedy, 1.0, temperatures)
    p = ((logits - top) * scale.unsqueeze(1)).exp()
    if sampling.top_k > 0 or sampling.top_p < 1.0:
        order = logits.argsort(dim=-1, descending=True, stable=True)
        ranked = p.gather(1, order)
        if sampling.top_k > 0:
            ranked[:, sampling.top_k :] = 0.0
        if sampling.top_p < 1.0:
            before = ranked.double().cumsum(-1)
            reached = float(np.float32(sampling.top_p)) * before[:, -1:]
            before = F.pad(before[:, :-1], (1, 0))
            ranked = ranked * ((before < reached) | (before == 0))
        p = torch.zeros_like(p).scatter_(1, order, ranked)
    running = p.double().cumsum(-1)
    beyond = running > uniforms.double().unsqueeze(1) * running[:, -1:]
    some = p > 0
    last = logits.shape[1] - 1 - some.flip(-1).to(torch.uint8).argmax(-1)
    drawn = torch.where(beyond.any(-1), beyond.to(torch.uint8).argmax(-1), last)
    return torch.where(greedy, likeliest.squeeze(1), drawn), p
