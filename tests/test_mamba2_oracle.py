"""`mamba2` against the reference functions of mamba_ssm, which are fetched for this test and never shipped.

The reference functions are plain PyTorch, but their modules import triton at the top; a stub stands in for it. The
source archive is fetched once by pip into the cache folder (XDG_CACHE_HOME, NETSSMD_ORACLE for another place); without
a network the test is skipped.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from netssmd.model import mamba2  # noqa: E402
from netssmd.model.config import ModelConfig  # noqa: E402

RELEASE = "2.2.6.post3"


class Anything(types.ModuleType):
    """A module whose every attribute is a decorator, a type, a number of a version ... whatever the importer makes of
    it.
    """

    __version__ = "3.0.0"
    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(f"{self.__name__}.{name}")

    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else self

    def __getitem__(self, key):
        return self

    def __le__(self, other):
        return True


def fetch(folder: Path) -> Path:
    """The unpacked source archive; downloaded if it is not there."""
    home = folder / f"mamba_ssm-{RELEASE}"
    if not home.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        quiet = {"MAMBA_SKIP_CUDA_BUILD": "TRUE", "MAMBA_FORCE_BUILD": "TRUE"}
        what = ["download", "--no-deps", "--no-binary=:all:", "--no-build-isolation", f"mamba-ssm=={RELEASE}"]
        command = [sys.executable, "-m", "pip", *what, "-q", "-d", str(folder)]
        done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"mamba-ssm {RELEASE} cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
        with tarfile.open(folder / f"mamba_ssm-{RELEASE}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return home


@pytest.fixture(scope="module")
def oracle():
    """A namespace of the reference functions."""
    cache = (
        os.environ.get("NETSSMD_ORACLE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "netssmd"
    )
    package = fetch(Path(cache)) / "mamba_ssm"
    before = dict(sys.modules)
    try:
        for name in ("triton", "triton.language"):
            sys.modules[name] = Anything(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "mamba_ssm.utils", "mamba_ssm.distributed"):
            module = types.ModuleType(name)  # its own __init__ would want the CUDA extension
            module.__path__ = [str(package.joinpath(*name.split(".")[1:]))]
            sys.modules[name] = module
        found = types.SimpleNamespace()
        for module, names in {
            "ssd_combined": ("ssd_chunk_scan_combined_ref",),
            "selective_state_update": ("selective_state_update_ref",),
            "layernorm_gated": ("rms_norm_ref",),
        }.items():
            loaded = importlib.import_module(f"mamba_ssm.ops.triton.{module}")
            for name in names:
                setattr(found, name, getattr(loaded, name))
        yield found
    finally:
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] in ("triton", "mamba_ssm"):
                del sys.modules[name]


def config(**kwargs) -> ModelConfig:
    shape = {"d_model": 32, "n_layer": 1, "d_state": 16, "headdim": 16, "chunk_size": 8, "vocab_size": 9, "rows": 9}
    return ModelConfig(**{**shape, **kwargs})


@pytest.mark.parametrize("ngroups", [1, 2])
def test_chunked_scan(oracle, ngroups: int) -> None:
    torch.manual_seed(0)
    c = config(ngroups=ngroups)
    batch, time = 2, 32
    xbc, dt = torch.randn(batch, time, c.conv_dim), torch.rand(batch, time, c.nheads)
    A, D = -torch.rand(c.nheads) * 4, torch.randn(c.nheads)
    x, B, C = xbc.split([c.d_inner, ngroups * c.d_state, ngroups * c.d_state], -1)
    B, C = B.unflatten(-1, (ngroups, -1)), C.unflatten(-1, (ngroups, -1))
    expected = oracle.ssd_chunk_scan_combined_ref(x.unflatten(-1, (c.nheads, -1)), dt, A, B, C, 8, D=D)
    first = torch.full((batch, time), mamba2.BEFORE)
    y, _ = mamba2.ssd(xbc, dt, A, D, torch.zeros(batch, c.nheads, c.headdim, c.d_state), first, c)
    torch.testing.assert_close(y, expected.flatten(2), rtol=1e-5, atol=1e-5)


def test_state_update_and_gated_norm(oracle) -> None:
    """A whole mixer, step by step, put together from the reference functions."""
    torch.manual_seed(1)
    c = config()
    mixer = mamba2.Mixer(c)
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    batch, time = 2, 16
    u = torch.randn(batch, time, c.d_model)
    ssm = torch.zeros(batch, c.nheads, c.headdim, c.d_state)
    z, xbc, dt = mixer.in_proj(u).split([c.d_inner, c.conv_dim, c.nheads], -1)
    xbc = F.silu(mixer.conv1d(F.pad(xbc.transpose(1, 2), (c.d_conv - 1, 0)))).transpose(1, 2)
    expected = []
    for t in range(time):
        x, B, C = xbc[:, t].split([c.d_inner, c.d_state, c.d_state], -1)
        each = (c.nheads, c.headdim)
        y = oracle.selective_state_update_ref(
            ssm,
            x.unflatten(-1, each),
            dt[:, t].unsqueeze(-1).expand(-1, *each),
            (-mixer.A_log.exp())[:, None, None].expand(*each, c.d_state),
            B.unsqueeze(1),
            C.unsqueeze(1),
            mixer.D[:, None].expand(*each),
            dt_bias=mixer.dt_bias[:, None].expand(*each),
            dt_softplus=True,
        )
        normed = oracle.rms_norm_ref(
            y.flatten(1), mixer.norm.weight, None, z=z[:, t], eps=c.norm_eps, norm_before_gate=False
        )
        expected.append(mixer.out_proj(normed))
    conv = torch.zeros(batch, c.d_conv - 1, c.conv_dim)
    start = torch.zeros(batch, c.nheads, c.headdim, c.d_state)
    first = torch.full((batch, time), mamba2.BEFORE, dtype=torch.int32)
    for kernels in (False, True):
        out, _, end = mixer(u, conv, start, first, kernels)
        torch.testing.assert_close(out, torch.stack(expected, 1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(end, ssm, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        stepped = torch.stack([mixer.step(u[:, t], conv, start) for t in range(time)], 1)
    torch.testing.assert_close(stepped, torch.stack(expected, 1), rtol=1e-5, atol=1e-5)
