"""Training on a CPU: the mixer and the norms of `mamba2` with their elementwise halves in compiled kernels.

In plain PyTorch a training step of a small model spends nine tenths of its time in elementwise passes over memory.
`mixer.cpp` does everything between two matrix products in one pass, forward and backward; the products stay in PyTorch
(bf16 on AMX or AVX-512 where the CPU has it). The functions here are autograd functions with the same arguments and
answers as the plain ones in `mamba2`, which remain the reference and serve wherever this module cannot: no compiler, a
GPU, groups, or a length that is not whole chunks.

The library is compiled for this machine at first use (about 5 seconds) and kept in the user's cache folder under a name
made of the source, the compiler's flags and the CPU's features.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netssmd.model.config import ModelConfig

log = logging.getLogger(__name__)

FLAGS = (
    "-std=c++17 -O3 -march=native -mprefer-vector-width=512 -fno-math-errno -fno-trapping-math -fopenmp -shared -fPIC"
)


class Shape(ctypes.Structure):
    """`struct Shape` of mixer.cpp."""

    _fields_ = [(name, ctypes.c_int64) for name in ("B", "T", "H", "P", "N", "K", "L")] + [("eps", ctypes.c_float)]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None (with one line in the log) where they cannot be had. NETSSMD_MIXER=0 turns them
    off.
    """
    if os.environ.get("NETSSMD_MIXER") == "0":
        return None
    source = Path(__file__).with_name("mixer.cpp")
    command = [*shlex.split(os.environ.get("CXX", "c++")), *FLAGS.split()]
    try:
        target = _cache() / f"mixer-{_fingerprint(source, command)}.so"
        if not target.exists():
            _compile(source, target, command)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning(
            "training runs in plain PyTorch, some three times slower: cannot compile %s: %s", source.name, error
        )
        return None


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "netssmd"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fingerprint(source: Path, command: list[str]) -> str:
    digest = hashlib.sha256(source.read_bytes() + " ".join(command).encode() + platform.machine().encode())
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        digest.update(next((line for line in cpu.read_bytes().splitlines() if line.startswith(b"flags")), b""))
    return digest.hexdigest()[:16]


def _compile(source: Path, target: Path, command: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / "mixer.so"
        subprocess.run([*command, "-o", str(built), str(source)], check=True, capture_output=True, timeout=300)
        os.replace(built, target)


def usable(proj: Tensor, config: ModelConfig) -> bool:
    """Whether `mix` can take this input projection, [B, T, W]."""
    kind = proj.dtype in (torch.bfloat16, torch.float32)
    whole = proj.shape[1] > 0 and proj.shape[1] % config.chunk_size == 0
    return proj.device.type == "cpu" and kind and whole and config.ngroups == 1 and library() is not None


def usable_norm(residual: Tensor, kind: torch.dtype) -> bool:
    """Whether `add_norm` can take this residual."""
    known = residual.dtype == torch.float32 and kind in (torch.bfloat16, torch.float32)
    return residual.device.type == "cpu" and known and library() is not None


def _call(name: str, shape: Shape, kind: torch.dtype, *tensors: Tensor | None) -> None:
    """Runs one kernel. Every tensor is contiguous and of the type that mixer.cpp says; None is a null pointer."""
    assert all(t is None or t.is_contiguous() for t in tensors), name
    pointers = (ctypes.c_void_p * len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])
    getattr(library(), name)(ctypes.c_int32(kind == torch.bfloat16), ctypes.byref(shape), pointers)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, proj: Tensor, past: Tensor, ssm: Tensor, first: Tensor, w: Tensor, bias: Tensor, dt_bias: Tensor,
        A: Tensor, D: Tensor, weight: Tensor, config: ModelConfig,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        c = config
        B, T, _ = proj.shape
        H, P, N, L, E = c.nheads, c.headdim, c.d_state, c.chunk_size, c.d_inner
        M, kind = T // L, proj.dtype
        shape = Shape(B, T, H, P, N, c.d_conv, L, c.norm_eps)
        x, y2, xend = proj.new_empty(B * M * H, L, P), proj.new_empty(B * M, L, E), proj.new_empty(B * M, L, E)
        Bm, Cm = proj.new_empty(B * M, L, N), proj.new_empty(B * M, L, N)
        dt, cum = torch.empty(B, M, H, L), torch.empty(B, M, H, L)
        _call("conv_forward", shape, kind, proj, past, w, bias, dt_bias, A, first, x, Bm, Cm, xend, dt, cum)
        cb = torch.bmm(Cm, Bm.transpose(1, 2))
        scores = proj.new_empty(B * M * H, L, L)
        _call("scores_forward", shape, kind, cb, dt, cum, first, scores)
        y1 = torch.bmm(scores, x)
        states = torch.bmm(
            xend.transpose(1, 2), Bm
        )  # what each chunk adds, then in place the state before it  [B*M, E, N]
        last = torch.empty_like(ssm)
        _call("scan_forward", shape, kind, states, cum, first, ssm, states, last)
        y2 = torch.bmm(Cm, states.transpose(1, 2))
        out = proj.new_empty(B, T, E)
        _call("gate_forward", shape, kind, proj, x, y1, y2, cum, first, D, weight, out)
        ctx.save_for_backward(
            proj, past, first, w, bias, dt_bias, A, D, weight, x, Bm, Cm, xend, dt, cum, cb, scores, y1, y2, states
        )
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        return out, last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        proj, past, first, w, bias, dt_bias, A, D, weight, x, Bm, Cm, xend, dt, cum, cb, scores, y1, y2, states = (
            ctx.saved_tensors
        )
        shape, kind = ctx.shape, proj.dtype
        B, H, N = shape.B, shape.H, shape.N
        dout, dlast = grads
        dout = torch.zeros_like(proj[..., : H * shape.P]) if dout is None else dout
        dproj, dy1, dy2 = torch.empty_like(proj), torch.empty_like(y1), torch.empty_like(y2)
        dcum, ddt, dweight, dD = (
            torch.empty_like(cum),
            torch.empty_like(dt),
            w.new_empty(B, H * shape.P),
            w.new_empty(B, H),
        )
        _call(
            "gate_backward", shape, kind, proj, x, y1, y2, cum, first, D, weight, dout.contiguous(), dproj, dy1, dy2,
            dcum, dweight, dD,
        )  # fmt: skip
        dC2, dstates = torch.bmm(dy2, states), torch.bmm(dy2.transpose(1, 2), Cm)
        dinitial = w.new_empty(B, H, shape.P, N)
        dlast = None if dlast is None else dlast.contiguous()
        dadds = torch.empty_like(states)
        _call("scan_backward", shape, kind, states, dstates, cum, first, dlast, dadds, dinitial, dcum)
        dxend, dB2 = torch.bmm(Bm, dadds.transpose(1, 2)), torch.bmm(xend, dadds)
        dscores, dx1 = torch.bmm(dy1, x.transpose(1, 2)), torch.bmm(scores.transpose(1, 2), dy1)
        dcb = torch.empty_like(cb)
        _call("scores_backward", shape, kind, cb, dt, cum, first, dscores, dcb, ddt, dcum)
        dC1, dB1 = torch.bmm(dcb, Bm), torch.bmm(dcb.transpose(1, 2), Cm)
        dpast, dwb, dhead = torch.empty_like(past), w.new_empty(B, shape.K + 1, w.shape[1]), w.new_empty(B, 2, H)
        _call(
            "conv_backward", shape, kind, proj, past, w, bias, dt_bias, A, first, x, dt, cum, D, dx1, dy1, dxend, dB1,
            dB2, dC1, dC2, dcum, ddt, dproj, dpast, dwb, dhead,
        )  # fmt: skip
        dwb, dhead = dwb.sum(0), dhead.sum(0)
        return dproj, dpast, dinitial, None, dwb[:-1], dwb[-1], dhead[1], dhead[0], dD.sum(0), dweight.sum(0), None


def mix(
    proj: Tensor, past: Tensor, ssm: Tensor, first: Tensor, w: Tensor, bias: Tensor, dt_bias: Tensor, A: Tensor,
    D: Tensor, weight: Tensor, config: ModelConfig,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """
    Everything between the input and the output projection.
    Arguments: proj [B, T, W] = z, x, B, C, dt; past [B, K-1, conv_dim] and ssm [B, H, P, N], the state before; first
    int32 [B, T]; w [conv_dim, K], bias [conv_dim], dt_bias, A, D [H], weight [E], fp32.
    Return: normed output [B, T, E] in proj's type; ssm after the last position.
    """
    state = past.contiguous(), ssm.contiguous()
    apply: Any = _Mix.apply
    out: tuple[Tensor, Tensor] = apply(
        proj.contiguous(), *state, first, w.t().contiguous(), bias, dt_bias, A, D, weight, config
    )
    return out


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, branch: Tensor | None, weight: Tensor, eps: float, kind: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        B, T, width = residual.shape
        shape = Shape(B, T, 1, width, 1, 1, 1, eps)
        total = residual.view_as(residual) if branch is None else torch.empty_like(residual)
        out = torch.empty(residual.shape, dtype=kind)
        _call("norm_forward", shape, kind, residual, branch, weight, total, out)
        ctx.save_for_backward(total, weight)
        ctx.shape, ctx.kind, ctx.branch = shape, kind, branch is not None
        ctx.set_materialize_grads(False)
        return total, out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        dtotal, dout = grads
        dout = torch.zeros_like(total, dtype=ctx.kind) if dout is None else dout.contiguous()
        dtotal = None if dtotal is None else dtotal.contiguous()
        dresidual, dweight = torch.empty_like(total), weight.new_empty(ctx.shape.B, weight.shape[0])
        dbranch = torch.empty_like(dout) if ctx.branch else None
        _call("norm_backward", ctx.shape, ctx.kind, total, weight, dout, dtotal, dresidual, dbranch, dweight)
        return dresidual, dbranch, dweight.sum(0), None, None


def add_norm(
    residual: Tensor, branch: Tensor | None, weight: Tensor, eps: float, kind: torch.dtype
) -> tuple[Tensor, Tensor]:
    """
    Arguments: residual fp32 [B, T, D]; branch [B, T, D] in type `kind`, or None; weight fp32 [D].
    Return: residual + branch, fp32; its RMS norm times weight in type `kind`.
    """
    branch = None if branch is None else branch.contiguous()
    apply: Any = _AddNorm.apply
    out: tuple[Tensor, Tensor] = apply(residual.contiguous(), branch, weight, eps, kind)
    return out
