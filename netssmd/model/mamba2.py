"""Mamba-2 in PyTorch: embedding rows in, hidden states and logits out. The reference for every backend, and what
training runs.

Input for one position is a few rows of the embedding (the previous token, the label, conditions, context features);
their sum is the residual stream. Each layer is mamba_ssm's `Mamba2` block:

    z, x, B, C, dt = in_proj(rms_norm(residual))
    x, B, C        = silu(causal depthwise conv over time)
    state          = exp(dt A) * state + dt * x B^T          per head: state [P, N], A < 0 a scalar
    y              = state C + D x
    residual      += out_proj(rms_norm(y * silu(z)))

Two forms of the same function. `step` is the recurrence above, one position at a time. `forward` is the state-space
dual (SSD): time is cut into chunks of L positions; inside a chunk y is a masked matrix product, (C B^T * decay) (dt x),
and between chunks only the state travels. `forward` begins from a given state and returns the one after the last
position, so a sequence may be split anywhere.

`reset[b, t]` puts the state to zero before position t: a new session begins inside a packed row. Every position knows
where its session began, and whatever lies before that is multiplied by an exact zero or never read: the convolution
window, the chunk masks and the carried state.

On a CPU `mixer_cpu` replaces the parts between the matrix products by compiled kernels; the code here is what they are
tested against.

Shapes: B batch, T time, D d_model, E d_inner, H heads, P headdim, N d_state, G groups, K d_conv, L chunk, M chunks.
Source: Dao and Gu, "Transformers are SSMs", 2024, section 6; state-dict names are those of mamba_ssm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netssmd.model import mixer_cpu
from netssmd.model.config import ModelConfig


@dataclass(slots=True)
class State:
    """The recurrent state of B sequences, fp32. `conv` holds the last K-1 inputs of the convolution, oldest first."""

    conv: Tensor  # [n_layer, B, K-1, conv_dim]
    ssm: Tensor  # [n_layer, B, H, P, N]

    @classmethod
    def zeros(cls, config: ModelConfig, batch: int, device: torch.device | str = "cpu") -> State:
        c = config
        return cls(
            torch.zeros(c.n_layer, batch, c.d_conv - 1, c.conv_dim, device=device),
            torch.zeros(c.n_layer, batch, c.nheads, c.headdim, c.d_state, device=device),
        )

    def detach(self) -> State:
        """The same numbers without their history: truncates back-propagation through time."""
        return State(self.conv.detach(), self.ssm.detach())


BEFORE = -(2**30)  # `first` of a position whose session began before the call


def session_starts(rows: Tensor, reset: Tensor | None) -> Tensor:
    """
    Which positions belong together: position t may read j exactly where first[t] <= j; what came before the call has
    negative j.
    Arguments: rows [B, T, W]; reset bool [B, T]. Return: first int32 [B, T], the last reset at or before t, else
    BEFORE.
    """
    if reset is None:
        return torch.full(rows.shape[:2], BEFORE, dtype=torch.int32, device=rows.device)
    at = torch.arange(rows.shape[1], dtype=torch.int32, device=rows.device)
    return torch.where(reset, at, BEFORE).cummax(1).values


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def add(self, residual: Tensor, branch: Tensor | None, kernels: bool) -> tuple[Tensor, Tensor]:
        """residual + branch, [B, T, D] fp32, and its norm in the type that the next product wants."""
        autocast = torch.is_autocast_enabled("cpu")
        kind = branch.dtype if branch is not None else torch.get_autocast_dtype("cpu") if autocast else residual.dtype
        if kernels and mixer_cpu.usable_norm(residual, kind):
            return mixer_cpu.add_norm(residual, branch, self.weight, self.eps, kind)
        residual = residual if branch is None else residual + branch
        return residual, self(residual)


class Mixer(nn.Module):
    """mamba_ssm's Mamba2 block without its residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = self.config = config
        self.in_proj = nn.Linear(c.d_model, c.d_in_proj, bias=False)
        self.conv1d = nn.Conv1d(c.conv_dim, c.conv_dim, c.d_conv, groups=c.conv_dim)
        self.dt_bias = nn.Parameter(torch.zeros(c.nheads))
        self.A_log = nn.Parameter(torch.zeros(c.nheads))
        self.D = nn.Parameter(torch.ones(c.nheads))
        self.norm = RMSNorm(c.d_inner, c.norm_eps)
        self.out_proj = nn.Linear(c.d_inner, c.d_model, bias=False)

    def forward(
        self, u: Tensor, conv: Tensor, ssm: Tensor, first: Tensor, kernels: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Arguments: u [B, T, D]; conv [B, K-1, conv_dim]; ssm [B, H, P, N]; first int32 [B, T] from `session_starts`;
        kernels, whether compiled ones may be used.
        Return: output [B, T, D] and both states after the last position.
        """
        c = self.config
        proj = self.in_proj(u)
        A = -self.A_log.exp()
        weight = self.conv1d.weight[:, 0]
        assert self.conv1d.bias is not None
        after = conv_state(proj, conv, first, c)
        if kernels and mixer_cpu.usable(proj, c):
            y, ssm = mixer_cpu.mix(
                proj, conv, ssm, first, weight, self.conv1d.bias, self.dt_bias, A, self.D, self.norm.weight, c
            )
        else:
            z, xbc, dt = proj.split([c.d_inner, c.conv_dim, c.nheads], dim=-1)
            xbc = causal_conv(xbc, conv, weight, self.conv1d.bias, first)
            dt = F.softplus(dt.float() + self.dt_bias)  # [B, T, H] fp32
            y, ssm = ssd(xbc, dt, A, self.D, ssm, first, c)
            y = self.norm(y.float() * F.silu(z.float()))
        return self.out_proj(y), after, ssm

    def step(self, u: Tensor, conv: Tensor, ssm: Tensor) -> Tensor:
        """
        One position; both states are advanced in place.
        Arguments: u [B, D]; conv [B, K-1, conv_dim]; ssm [B, H, P, N]. Return: output [B, D].
        """
        c = self.config
        z, xbc, dt = self.in_proj(u).float().split([c.d_inner, c.conv_dim, c.nheads], dim=-1)
        bias = self.conv1d.bias
        assert bias is not None
        window = torch.cat([conv, xbc.unsqueeze(1)], dim=1)  # [B, K, conv_dim]
        conv.copy_(window[:, 1:])
        xbc = F.silu((window * self.conv1d.weight[:, 0].t()).sum(1) + bias)
        x, B, C = xbc.split([c.d_inner, c.ngroups * c.d_state, c.ngroups * c.d_state], dim=-1)
        x = x.unflatten(-1, (c.nheads, c.headdim))  # [B, H, P]
        B, C = (
            m.unflatten(-1, (c.ngroups, c.d_state)).repeat_interleave(c.nheads // c.ngroups, 1) for m in (B, C)
        )  # [B, H, N]
        dt = F.softplus(dt + self.dt_bias)  # [B, H]
        decay = (dt * -self.A_log.float().exp()).exp()
        ssm.mul_(decay[..., None, None]).add_((x * dt.unsqueeze(-1)).unsqueeze(-1) * B.unsqueeze(-2))
        y = (ssm * C.unsqueeze(-2)).sum(-1) + self.D.unsqueeze(-1) * x  # [B, H, P]
        return self.out_proj(self.norm(y.flatten(1) * F.silu(z)))


def conv_state(proj: Tensor, past: Tensor, first: Tensor, config: ModelConfig) -> Tensor:
    """
    The last K-1 inputs of the convolution, zero where they belong to an earlier session than the last position.
    Arguments: proj [B, T, W]; past [B, K-1, conv_dim]. Return: [B, K-1, conv_dim] fp32.
    """
    c = config
    T, keep = proj.shape[1], c.d_conv - 1
    new = proj[:, max(T - keep, 0) :, c.d_inner : c.d_inner + c.conv_dim].float()
    new = torch.cat([past[:, new.shape[1] :], new], dim=1)
    at = torch.arange(T - keep, T, device=proj.device)
    return new * (at >= first[:, -1:]).unsqueeze(-1)


def causal_conv(x: Tensor, past: Tensor, weight: Tensor, bias: Tensor, first: Tensor) -> Tensor:
    """
    silu(bias + sum_k weight[:, k] x[t - K + 1 + k]), reading `past` before the first position and nothing across a
    reset.
    Arguments: x [B, T, C]; past [B, K-1, C] fp32; weight [C, K]; bias [C]; first int [B, T]. Return: [B, T, C] in x's
    type.
    """
    T, K = x.shape[1], weight.shape[1]
    padded = torch.cat([past.to(x.dtype), x], dim=1)  # [B, K-1+T, C]
    at = torch.arange(T, device=x.device)
    out = x * weight[:, -1] + bias
    for k in range(K - 1):
        own = (at - (K - 1) + k >= first).unsqueeze(-1)  # [B, T, 1]
        out = out + padded[:, k : k + T] * own * weight[:, k]
    return F.silu(out).to(x.dtype)


def ssd(
    xbc: Tensor, dt: Tensor, A: Tensor, D: Tensor, ssm: Tensor, first: Tensor, config: ModelConfig
) -> tuple[Tensor, Tensor]:
    """
    The selective state space over T positions, in chunks; a remainder shorter than a chunk is a chunk of its own
    length.
    Arguments: xbc [B, T, conv_dim]; dt [B, T, H] after softplus; A, D [H]; ssm [B, H, P, N]; first int [B, T].
    Return: y [B, T, E], ssm after the last position.
    """
    T, L = xbc.shape[1], config.chunk_size
    whole = T - T % L
    parts = []
    for start, stop, length in ((0, whole, L), (whole, T, T - whole)):
        if start < stop:
            span = slice(start, stop)
            y, ssm = _ssd_chunks(xbc[:, span], dt[:, span], A, D, ssm, first[:, span] - start, length, config)
            parts.append(y)
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), ssm


def _ssd_chunks(
    xbc: Tensor, dt: Tensor, A: Tensor, D: Tensor, ssm: Tensor, first: Tensor, L: int, c: ModelConfig
) -> tuple[Tensor, Tensor]:
    """`ssd` for T a multiple of L."""
    batch, T, _ = xbc.shape
    M, H, P, N, G = T // L, c.nheads, c.headdim, c.d_state, c.ngroups
    kind = xbc.dtype
    x, Bm, Cm = xbc.unflatten(1, (M, L)).split([c.d_inner, G * N, G * N], dim=-1)
    x = x.unflatten(-1, (H, P))  # [B, M, L, H, P]
    Bm, Cm = (m.unflatten(-1, (G, N)).transpose(2, 3) for m in (Bm, Cm))  # [B, M, G, L, N]
    dt = dt.unflatten(1, (M, L))  # [B, M, L, H]
    cum = (dt * A).cumsum(2)  # [B, M, L, H], falling
    last = cum[:, :, -1:]  # [B, M, 1, H]

    # Who reads whom. `first` counts from the start of the call; `at` is each chunk's own positions in that count.
    at = torch.arange(T, device=xbc.device).view(M, L)
    first = first.unflatten(1, (M, L))  # [B, M, L]
    reads = (at.unsqueeze(-2) <= at.unsqueeze(-1)) & (at.unsqueeze(-2) >= first.unsqueeze(-1))  # [B, M, L, L]
    to_end = (last - cum).exp() * (at >= first[:, :, -1:]).unsqueeze(-1)  # [B, M, L, H]
    from_start = cum.exp() * (first < at[:, :1]).unsqueeze(-1)  # [B, M, L, H]

    # Inside a chunk.
    cum_h = cum.transpose(2, 3)  # [B, M, H, L]
    fall = (cum_h.unsqueeze(-1) - cum_h.unsqueeze(-2)).masked_fill(~reads.unsqueeze(2), -math.inf)
    decay = fall.exp().to(kind).unflatten(2, (G, H // G))  # [B, M, G, H/G, L, L], exactly 0 where nothing is read
    scores = ((Cm @ Bm.transpose(-1, -2)).unsqueeze(3) * decay).flatten(2, 3)  # [B, M, H, L, L]
    xdt = x * dt.to(kind).unsqueeze(-1)  # [B, M, L, H, P]
    y = (scores @ xdt.transpose(2, 3)).transpose(2, 3)  # [B, M, L, H, P]

    # What each chunk adds to the state, then the state before each chunk.
    xend = (xdt * to_end.to(kind).unsqueeze(-1)).flatten(3).unflatten(3, (G, -1)).transpose(2, 3)  # [B, M, G, L, E/G]
    adds = (xend.transpose(-1, -2) @ Bm).reshape(batch, M, H, P, N).float()
    carry = from_start[:, :, -1, :, None, None]  # [B, M, H, 1, 1]
    states = []
    for m in range(M):
        states.append(ssm)
        ssm = ssm * carry[:, m] + adds[:, m]
    entering = torch.stack(states, dim=1).to(kind).view(batch, M, G, -1, N)  # [B, M, G, E/G, N]
    y_in = (Cm @ entering.transpose(-1, -2)).transpose(2, 3).reshape(batch, M, L, H, P)
    y = y + y_in * from_start.to(kind).unsqueeze(-1) + x * D.to(kind).unsqueeze(-1)
    return y.reshape(batch, T, c.d_inner), ssm


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = Mixer(config)


class Backbone(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.rows, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)


class HeadBias(nn.Module):
    """Scores added to every token's: 0, or far below zero for tokens that training never saw. Not trained."""

    bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("bias", torch.zeros(config.vocab_size))


class Mamba2LM(nn.Module):
    """The model. `state_dict` has mamba_ssm's names; the head is the embedding's first `vocab_size` rows.

    kernels: whether `forward` may use the compiled kernels of `mixer_cpu`.
    """

    def __init__(self, config: ModelConfig, kernels: bool = True) -> None:
        super().__init__()
        self.config = config
        self.kernels = kernels
        self.backbone = Backbone(config)
        self.lm_head = HeadBias(config) if config.head_bias else None
        initialise(self)

    def forward(
        self,
        rows: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
        drop: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> tuple[Tensor, State]:
        """
        Arguments: rows int [B, T, W], each position's embedding rows; state before the first position, zeros if None,
        not changed; reset bool [B, T], True where the state is zeroed before the position; drop: dropout for training,
        of what goes into the residual stream.
        Return: hidden [B, T, D] after the final norm, fp32; state after the last position (with its gradient history:
        detach it).
        """
        c = self.config
        if state is None:
            state = State.zeros(c, rows.shape[0], rows.device)
        first = session_starts(rows, reset)
        residual, out = drop(self._embed(rows)), None
        convs, ssms = [], []
        for i, layer in enumerate(self.backbone.layers):
            assert isinstance(layer, Block)
            residual, u = layer.norm.add(residual, out, self.kernels)
            out, conv, ssm = layer.mixer(u, state.conv[i], state.ssm[i], first, self.kernels)
            out = drop(out)
            convs.append(conv)
            ssms.append(ssm)
        _, hidden = self.backbone.norm_f.add(residual, out, self.kernels)
        return hidden.float(), State(torch.stack(convs), torch.stack(ssms))

    def step(self, rows: Tensor, state: State) -> Tensor:
        """One position. rows int [B, W]; state is advanced in place (call under no_grad). Return: hidden [B, D],
        fp32.
        """
        residual = self._embed(rows)
        for i, layer in enumerate(self.backbone.layers):
            assert isinstance(layer, Block)
            residual = residual + layer.mixer.step(layer.norm(residual), state.conv[i], state.ssm[i])
        hidden: Tensor = self.backbone.norm_f(residual)
        return hidden

    def logits(self, hidden: Tensor, lo: int, hi: int) -> Tensor:
        """Scores of tokens [lo, hi) for hidden [..., D]; only those rows of the head are computed. Return: fp32 [...,
        hi-lo].
        """
        scores = F.linear(hidden, self.backbone.embedding.weight[lo:hi]).float()
        return scores if self.lm_head is None else scores + self.lm_head.bias[lo:hi]

    def _embed(self, rows: Tensor) -> Tensor:
        table = self.backbone.embedding.weight
        return F.embedding_bag(rows.reshape(-1, rows.shape[-1]), table, mode="sum").view(*rows.shape[:-1], -1)


def initialise(model: Mamba2LM, std: float = 0.02, dt_min: float = 1e-3, dt_max: float = 0.1) -> None:
    """mamba_ssm's initial weights: dt log-uniform in [dt_min, dt_max], A uniform in [1, 16], output projections shrunk
    by depth.
    """
    nn.init.normal_(model.backbone.embedding.weight, std=std)
    for layer in model.backbone.layers:
        assert isinstance(layer, Block)
        mixer = layer.mixer
        dt = torch.exp(torch.empty_like(mixer.dt_bias).uniform_(math.log(dt_min), math.log(dt_max))).clamp(min=1e-4)
        with torch.no_grad():
            mixer.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
            mixer.A_log.copy_(torch.empty_like(mixer.A_log).uniform_(1, 16).log())
            mixer.out_proj.weight.div_(math.sqrt(model.config.n_layer))
