"""The chunked form, the step form and a naive scan in float64 are one function, split anywhere, with resets
anywhere.
"""

from __future__ import annotations

from functools import partial

import pytest

torch = pytest.importorskip("torch")

from netssmd.model import mixer_cpu  # noqa: E402
from netssmd.model.config import ModelConfig  # noqa: E402
from netssmd.model.mamba2 import Mamba2LM, State  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(7)
    yield
    torch.set_num_threads(before)


def small(**kwargs) -> ModelConfig:
    shape = {"d_model": 32, "n_layer": 2, "d_state": 16, "headdim": 16, "chunk_size": 8, "vocab_size": 40, "rows": 50}
    return ModelConfig(**{**shape, **kwargs})


def lively(config: ModelConfig) -> Mamba2LM:
    """A model whose parameters all matter: the initial D, biases and norms are constants."""
    model = Mamba2LM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1 and "A_log" not in name:
                p.add_(torch.randn_like(p) * 0.3)
        model.backbone.embedding.weight.mul_(20)
    return model


def inputs(config: ModelConfig, batch: int = 3, time: int = 29, width: int = 4):
    rows = torch.randint(0, config.rows, (batch, time, width))
    reset = torch.rand(batch, time) < 0.15
    return rows, reset


def by_steps(model: Mamba2LM, rows, reset, state: State):
    hidden = []
    with torch.no_grad():
        for t in range(rows.shape[1]):
            if reset is not None:
                state.conv[:, reset[:, t]] = 0
                state.ssm[:, reset[:, t]] = 0
            hidden.append(model.step(rows[:, t], state))
    return torch.stack(hidden, 1), state


def close(a, b, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 3, 8, 32, 64])
@pytest.mark.parametrize("ngroups", [1, 2])
@pytest.mark.parametrize("resets", [False, True])
def test_chunks_equal_steps(chunk: int, ngroups: int, resets: bool) -> None:
    config = small(chunk_size=chunk, ngroups=ngroups)
    model = lively(config)
    rows, reset = inputs(config)
    start = State.zeros(config, 3)
    start.conv.normal_()
    start.ssm.normal_()
    expected, end = by_steps(model, rows, reset if resets else None, State(start.conv.clone(), start.ssm.clone()))
    with torch.no_grad():
        hidden, state = model(rows, start, reset if resets else None)
    close(hidden, expected)
    close(state.conv, end.conv)
    close(state.ssm, end.ssm)


def test_split_anywhere() -> None:
    config = small()
    model = lively(config)
    rows, reset = inputs(config)
    with torch.no_grad():
        whole, end = model(rows, None, reset)
        for cut in range(1, rows.shape[1]):
            first, state = model(rows[:, :cut], None, reset[:, :cut])
            second, state = model(rows[:, cut:], state, reset[:, cut:])
            close(torch.cat([first, second], 1), whole)
            close(state.ssm, end.ssm)
            close(state.conv, end.conv)


def both_paths(config: ModelConfig, monkeypatch, time: int, autocast: bool = False):
    """Loss and every gradient, by the compiled kernels and by plain PyTorch, through two segments with a carried
    state.
    """
    if mixer_cpu.library() is None:
        pytest.skip("no C++ compiler")
    model = lively(config)
    rows, reset = inputs(config, time=2 * time)
    weight = torch.randn(3, 2 * time, config.d_model)
    start = State.zeros(config, 3)
    start.conv.normal_().requires_grad_()
    start.ssm.normal_().requires_grad_()
    answers = []
    for fused in (True, False):
        with monkeypatch.context() as patch, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if not fused:
                patch.setattr(mixer_cpu, "library", lambda: None)
            assert mixer_cpu.usable(torch.zeros(1, time, 1), config) is fused
            model.zero_grad()
            start.conv.grad = start.ssm.grad = None
            first, state = model(rows[:, :time], start, reset[:, :time])
            second, state = model(rows[:, time:], state, reset[:, time:])
            hidden = torch.cat([first, second], 1)
            loss = (hidden * weight).sum() + state.ssm.sum() + state.conv.sum()
        loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        answers.append({"hidden": hidden.detach(), "conv0": start.conv.grad, "ssm0": start.ssm.grad, **grads})
    return answers


@pytest.mark.parametrize("shape", [{}, {"headdim": 32, "chunk_size": 4}, {"d_conv": 2}, {"d_conv": 3, "d_state": 24}])
def test_kernels_equal_plain_torch(shape, monkeypatch) -> None:
    fused, plain = both_paths(small(**shape), monkeypatch, time=24)
    for name in plain:
        close(fused[name] / plain[name].abs().max(), plain[name] / plain[name].abs().max(), 2e-5)


def test_kernels_equal_plain_torch_in_bf16(monkeypatch) -> None:
    for headdim in (16, 32, 64):
        fused, plain = both_paths(small(headdim=headdim, d_state=32), monkeypatch, time=16, autocast=True)
        for name in plain:
            error = (fused[name] - plain[name]).norm() / plain[name].norm()
            assert error < 0.05, (name, error)


def naive(model: Mamba2LM, rows, reset, state: State):
    """The recurrence written out with no in-place operation, for autograd in float64."""
    c, F = model.config, torch.nn.functional
    conv, ssm = list(state.conv), list(state.ssm)
    hidden = []
    for t in range(rows.shape[1]):
        keep = (~reset[:, t]).double()
        residual = F.embedding(rows[:, t], model.backbone.embedding.weight).sum(1)
        for i, layer in enumerate(model.backbone.layers):
            m = layer.mixer
            z, xbc, dt = m.in_proj(layer.norm(residual)).split([c.d_inner, c.conv_dim, c.nheads], -1)
            window = torch.cat([conv[i] * keep[:, None, None], xbc[:, None]], 1)
            conv[i] = window[:, 1:]
            xbc = F.silu((window * m.conv1d.weight[:, 0].t()).sum(1) + m.conv1d.bias)
            x, B, C = xbc.split([c.d_inner, c.d_state, c.d_state], -1)
            x = x.unflatten(-1, (c.nheads, c.headdim))
            dt = F.softplus(dt + m.dt_bias)
            decay = torch.exp(-dt * m.A_log.exp()) * keep[:, None]
            ssm[i] = ssm[i] * decay[..., None, None] + torch.einsum("bh,bhp,bn->bhpn", dt, x, B)
            y = torch.einsum("bhpn,bn->bhp", ssm[i], C) + m.D[:, None] * x
            residual = residual + m.out_proj(m.norm(y.flatten(1) * F.silu(z)))
        hidden.append(model.backbone.norm_f(residual))
    return torch.stack(hidden, 1)


@pytest.mark.parametrize("time", [16, 19])
def test_gradients_of_a_naive_scan_in_float64(time: int) -> None:
    """16 positions are whole chunks and take the compiled kernels; 19 take plain PyTorch."""
    config = small()
    model = lively(config)
    rows, reset = inputs(config, time=time)
    weight = torch.randn(3, time, config.d_model)
    exact = Mamba2LM(config).double()
    exact.load_state_dict(model.state_dict())
    start = State.zeros(config, 3)
    start.ssm.normal_()
    (model(rows, start, reset)[0] * weight).sum().backward()
    (naive(exact, rows, reset, State(start.conv.double(), start.ssm.double())) * weight).sum().backward()
    for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        scale = q.grad.abs().max()
        close(p.grad / scale, (q.grad / scale).float(), 1e-4)
        assert torch.isfinite(p.grad).all(), name


def test_a_reset_leaks_exactly_nothing() -> None:
    """What lies before a reset changes no bit after it, however large it is (plain PyTorch: no more than rounding of a
    running sum).
    """
    config = small()
    model = lively(config)
    for time in (24, 21):
        rows, _ = inputs(config, time=time)
        reset = torch.zeros(3, time, dtype=torch.bool)
        reset[:, 11] = True
        other = rows.clone()
        other[:, :11] = torch.randint(0, config.rows, (3, 11, 4))
        loud = State.zeros(config, 3)
        loud.ssm.fill_(1e6)
        a, sa = model(rows, None, reset)
        b, sb = model(other, loud, reset)
        same = torch.equal if mixer_cpu.usable(torch.zeros(3, time, 1), config) else partial(torch.allclose, atol=1e-5)
        assert same(a[:, 11:], b[:, 11:])
        assert same(sa.ssm, sb.ssm) and same(sa.conv, sb.conv)


def test_extreme_decay_keeps_gradients_finite() -> None:
    config = small()
    model = lively(config)
    with torch.no_grad():
        for layer in model.backbone.layers:
            layer.mixer.dt_bias.fill_(30.0)
            layer.mixer.A_log.fill_(5.0)
    for time in (16, 13):
        rows, reset = inputs(config, time=time)
        model.zero_grad()
        model(rows, None, reset)[0].square().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_logits_of_a_range_are_the_rows_of_the_full_head() -> None:
    config = small()
    model = lively(config)
    hidden = torch.randn(5, config.d_model)
    close(model.logits(hidden, 7, 19), (hidden @ model.backbone.embedding.weight.t())[:, 7:19], 1e-6)


def test_state_dict_has_the_names_of_the_table() -> None:
    config = small(ngroups=2)
    model = Mamba2LM(config)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == config.tensors()
    assert sum(p.numel() for p in model.parameters()) == config.parameters
