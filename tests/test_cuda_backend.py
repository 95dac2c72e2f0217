"""The cuda backend's code path without graphs, on the CPU, against the torch backend: same tokens, same states.

Not covered here, for want of a GPU: graph capture and replay, and mamba_ssm's kernels (`_mix_fast`).
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_torch_backend import CONFIG, one_thread, rows, step, tensors  # noqa: E402, F401

from netssmd.errors import NetssmdError  # noqa: E402
from netssmd.model.backend import NonFiniteState, Sampling, open_backend, unpack_state  # noqa: E402
from netssmd.model.cuda_backend import CudaBackend, draw_many, has_gpu  # noqa: E402
from netssmd.model.sampling import adjusted, draw  # noqa: E402
from netssmd.model.torch_backend import TorchBackend  # noqa: E402

DEVICES = ["cpu", *(["cuda"] if has_gpu() else [])]


def close(a: bytes, b: bytes) -> None:
    for x, y in zip(unpack_state(CONFIG, a), unpack_state(CONFIG, b)):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=5), Sampling(top_k=9, top_p=0.8)])
def test_ragged_calls_draw_what_the_torch_backend_draws(device: str, sampling: Sampling) -> None:
    """Batches of one to eleven slots in any order, some larger than the largest size, prompts and leavers between."""
    a = TorchBackend(CONFIG, tensors(), 11, sampling)
    b = CudaBackend(CONFIG, tensors(), 11, sampling, device, sizes=(1, 2, 4, 8))
    rng = np.random.default_rng(3)
    for t in range(60):
        n = int(rng.integers(1, 12))
        slots = rng.permutation(11)[:n].tolist()
        inputs, uniforms = rows(n, seed=t), rng.random(n, dtype=np.float32)
        temperature = [1.0, 0.7, 0.0][t % 3]
        tokens = [step(x, slots, inputs, uniforms, temperature=temperature).tolist() for x in (a, b)]
        assert tokens[0] == tokens[1]
        if t % 7 == 0:
            for x in (a, b):
                x.prefill(slots[0], rows(9, seed=t))
        if t % 11 == 0:
            for x in (a, b):
                x.reset(slots[0])
    for s in range(11):
        close(a.save_state(s), b.save_state(s))
        b.load_state(s, a.save_state(s))
        assert b.save_state(s) == a.save_state(s)


def test_padding_touches_nobody() -> None:
    b = CudaBackend(CONFIG, tensors(), 6, device="cpu", sizes=(8,))
    before = [b.save_state(s) for s in range(6)]
    step(b, [2, 5], rows(2), [0.1, 0.9])
    assert [b.save_state(s) == before[s] for s in range(6)] == [True, True, False, True, True, False]


def test_with_one_size_a_slot_answers_the_same_alone_and_in_any_batch() -> None:
    alone, crowd = (CudaBackend(CONFIG, tensors(), 6, device="cpu", sizes=(8,)) for _ in range(2))
    inputs, uniforms = rows(20, 6), np.random.default_rng(1).random((20, 6), dtype=np.float32)
    for t in range(20):
        one = [int(step(alone, [s], inputs[t, s : s + 1], uniforms[t, s : s + 1])[0]) for s in range(6)]
        assert step(crowd, list(range(6)), inputs[t], uniforms[t]).tolist() == one


def test_a_broken_state_is_named_and_the_others_go_on() -> None:
    a, b = (CudaBackend(CONFIG, tensors(), 6, device="cpu") for _ in range(2))
    saved = np.frombuffer(b.save_state(1), np.uint8).copy()
    saved[-4:] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    b.load_state(1, saved.tobytes())
    expected = step(a, [0, 2], rows(3)[[0, 2]], [0.1, 0.3])
    with pytest.raises(NonFiniteState, match="slot 1 is no longer finite") as caught:
        step(b, [0, 1, 2], rows(3), [0.1, 0.2, 0.3])
    assert caught.value.tokens[[0, 2]].tolist() == expected.tolist()


def test_what_does_not_fit_is_refused() -> None:
    b = CudaBackend(CONFIG, tensors(), 6, device="cpu")
    with pytest.raises(ValueError, match="slot 6: there are 6"):
        step(b, [0, 6], rows(2), [0.5, 0.5])
    with pytest.raises(ValueError, match="names one twice"):
        step(b, [0, 0], rows(2), [0.5, 0.5])


def test_draw_many_is_draw() -> None:
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 3, (200, 50)).astype(np.float32)
    logits[::5] = np.round(logits[::5])  # ties
    lo = rng.integers(0, 40, 200)
    ranges = np.stack([lo, lo + rng.integers(1, 11, 200)], 1)
    uniforms = rng.random(200, dtype=np.float32)
    temperatures = rng.choice(np.float32([0.0, 0.5, 1.0, 2.0]), 200)
    for sampling in (Sampling(), Sampling(top_k=3), Sampling(top_p=0.7), Sampling(top_k=4, top_p=0.6)):
        many = draw_many(*map(torch.from_numpy, (logits, ranges, uniforms, temperatures)), sampling).tolist()
        one = [
            low + draw(line[low:high], u, t, sampling.top_k, sampling.top_p)
            for line, (low, high), u, t in zip(logits, ranges.tolist(), uniforms, temperatures)
        ]
        assert many == one
    factors = rng.choice(np.float32([0, 1, 1, 1.8]), logits.shape)
    factors[np.arange(200), lo] = 1
    given = [*map(torch.from_numpy, (logits, ranges, uniforms, temperatures))]
    for penalties in (False, True):
        many = draw_many(*given, Sampling(top_k=4, top_p=0.6, penalties=penalties), torch.from_numpy(factors)).tolist()
        one = [
            low + draw(adjusted(line[low:high], f[low:high], penalties), u, t, 4, 0.6)
            for line, f, (low, high), u, t in zip(logits, factors, ranges.tolist(), uniforms, temperatures)
        ]
        assert many == one


def test_factors_of_one_call_do_not_reach_the_next() -> None:
    """Slots with and without, then nobody with any, in the buffers of one batch size."""
    a, b = TorchBackend(CONFIG, tensors(), 3), CudaBackend(CONFIG, tensors(), 3, device="cpu", sizes=(4,))
    rng = np.random.default_rng(6)
    slots, ranges = np.arange(3, dtype=np.int32), np.tile(np.int32([3, 37]), (3, 1))
    for t in range(20):
        factors = rng.choice(np.float32([0, 1.8]), 34)
        factors[5] = 1
        given = (factors, np.int32([-1, 0, -1])) if t % 2 else ()
        call = (slots, rows(3, seed=t), ranges, rng.random(3, dtype=np.float32), np.ones(3, np.float32), *given)
        taken = [np.zeros((3, 2), np.float32) for _ in range(2)] if given else [None, None]
        more = [{} if one is None else {"removed": one} for one in taken]
        assert a.step(*call, **more[0]).tolist() == b.step(*call, **more[1]).tolist()
        if given:
            assert np.allclose(*taken, atol=1e-4) and taken[0][1, 0] > 0 and not taken[0][[0, 2]].any()


@pytest.mark.skipif(has_gpu(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(tmp_path) -> None:
    from tiny_model import tiny_model

    with pytest.raises(NetssmdError, match="finds no GPU here"):
        open_backend(tiny_model(tmp_path / "m"), "cuda")
