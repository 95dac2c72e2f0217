"""Slots are independent to the last bit; a saved state resumes; prefill and step are one function."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from netssmd.codec.vocab import Vocabulary  # noqa: E402
from netssmd.errors import CheckpointError, ConfigError, UsageError  # noqa: E402
from netssmd.model.backend import NonFiniteState, Sampling, check_factors, open_backend  # noqa: E402
from netssmd.model.checkpoint import save_checkpoint  # noqa: E402
from netssmd.model.config import ModelConfig  # noqa: E402
from netssmd.model.sampling import adjusted, draw  # noqa: E402
from netssmd.model.torch_backend import TorchBackend  # noqa: E402

CONFIG = ModelConfig(d_model=32, n_layer=2, vocab_size=40, rows=50, d_state=16, headdim=16, chunk_size=8)
WIDTH = 4


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensors(config: ModelConfig = CONFIG) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in config.tensors().items()}


def backend(slots: int = 6, sampling: Sampling | None = None) -> TorchBackend:
    return TorchBackend(CONFIG, tensors(), slots, sampling)


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CONFIG.rows, (*shape, WIDTH), dtype=np.int32)


def step(b: TorchBackend, slots: list[int], inputs, uniforms, lo: int = 3, hi: int = 37, temperature: float = 1.0):
    n = len(slots)
    ranges = np.tile(np.array([lo, hi], np.int32), (n, 1))
    uniforms = np.asarray(uniforms, np.float32)
    return b.step(np.array(slots, np.int32), inputs, ranges, uniforms, np.full(n, temperature, np.float32))


def test_a_slot_answers_the_same_alone_and_in_any_batch() -> None:
    alone, crowd = backend(), backend()
    inputs, uniforms = rows(20, 6), np.random.default_rng(1).random((20, 6), dtype=np.float32)
    for t in range(20):
        one = [int(step(alone, [s], inputs[t, s : s + 1], uniforms[t, s : s + 1])[0]) for s in range(6)]
        order = np.random.default_rng(t).permutation(6)
        many = step(crowd, order.tolist(), inputs[t, order], uniforms[t, order])
        assert many.tolist() == [one[s] for s in order]
    assert all(alone.save_state(s) == crowd.save_state(s) for s in range(6))


def test_prefill_equals_steps() -> None:
    for length in (1, 7, 8, 21):
        a, b = backend(), backend()
        inputs = rows(length)
        a.prefill(2, inputs[:5])
        a.prefill(2, inputs[5:])
        for line in inputs:
            b.logits_for(2, line)
        probe = rows(seed=9)
        np.testing.assert_allclose(a.logits_for(2, probe), b.logits_for(2, probe), rtol=1e-4, atol=1e-4)


def test_a_saved_state_resumes_bit_for_bit_in_another_slot_of_another_backend() -> None:
    a, b = backend(), backend()
    a.prefill(1, rows(13))
    b.prefill(4, rows(5, seed=3))
    saved = a.save_state(1)
    b.load_state(4, saved)
    assert b.save_state(4) == saved
    for t in range(5):
        line = rows(seed=t)
        assert np.array_equal(a.logits_for(1, line), b.logits_for(4, line))
    b.reset(4)
    assert b.save_state(4) == b.save_state(0)


def test_a_token_is_drawn_from_its_range_by_the_sampling_functions() -> None:
    sampling = Sampling(top_k=5, top_p=0.9)
    a, b = backend(sampling=sampling), backend()
    for t in range(30):
        lo, hi, u = t % 7, 20 + t % 11, (t * 0.37) % 1
        line = rows(1, seed=t)
        token = int(step(a, [0], line, [u], lo, hi, 0.8)[0])
        logits = b.logits_for(0, line[0])[lo:hi]
        assert token == lo + draw(logits, np.float32(u), np.float32(0.8), 5, 0.9)


@pytest.mark.parametrize("penalties", [False, True])
def test_factors_change_the_draw_of_those_slots_that_have_some(penalties: bool) -> None:
    sampling = Sampling(top_k=7, top_p=0.9, penalties=penalties)
    a, b = backend(sampling=sampling), backend()
    rng = np.random.default_rng(4)
    for t in range(30):
        inputs, uniforms = rows(3, seed=t), rng.random(3, dtype=np.float32)
        ranges = np.array([[3, 37], [0, 40], [10, 12]], np.int32)
        factors = rng.choice(np.float32([0, 1, 1.8]), 36)
        factors[[2, 35]] = 1
        at = np.array([0, -1, 34], np.int32)
        tokens = a.step(np.arange(3, dtype=np.int32), inputs, ranges, uniforms, np.ones(3, np.float32), factors, at)
        for i, (token, (lo, hi)) in enumerate(zip(tokens.tolist(), ranges.tolist())):
            logits = b.logits_for(i, inputs[i])[lo:hi]
            if at[i] >= 0:
                logits = adjusted(logits, factors[at[i] : at[i] + hi - lo], penalties)
                assert factors[at[i] + token - lo] > 0
            assert token == lo + draw(logits, uniforms[i], np.float32(1), 7, 0.9)


@pytest.mark.parametrize(
    ("factors", "at", "message"),
    [
        ([1, 1], None, "come together"),
        ([1, 1, 1], [0, 0], "factors_at has 2 numbers; 1 would be right"),
        ([1, 1], [0], "position 0 has 0..2"),
        ([1, -1, 1], [0], "finite and 0 or more"),
        ([1, np.inf, 1], [0], "finite and 0 or more"),
        ([0, 0, 0], [0], "one above 0"),
    ],
)
def test_factors_that_do_not_fit_are_refused(factors, at, message: str) -> None:
    at = None if at is None else np.array(at, np.int32)
    with pytest.raises(ValueError, match=message):
        check_factors(np.array([[4, 7]], np.int32), np.array(factors, np.float32), at)


def test_what_does_not_fit_is_refused_before_any_state_changes() -> None:
    b = backend()
    before = b.save_state(0)
    with pytest.raises(ValueError, match="slot 6: there are 6"):
        step(b, [0, 6], rows(2), [0.5, 0.5])
    with pytest.raises(ValueError, match="names one twice"):
        step(b, [0, 0], rows(2), [0.5, 0.5])
    with pytest.raises(ValueError, match="ranges"):
        step(b, [0], rows(1), [0.5], lo=5, hi=5)
    with pytest.raises(ValueError, match="ranges"):
        step(b, [0], rows(1), [0.5], lo=5, hi=41)
    with pytest.raises(ValueError, match="embedding has rows"):
        step(b, [0], rows(1) + 50, [0.5])
    with pytest.raises(ValueError, match="uniforms"):
        step(b, [0], rows(1), [1.5])
    for bad in (
        b"",
        before[:-4],
        b"x" + before[1:],
        before[:8] + b"\x09" + before[9:],
        before[:12] + b"\x09" + before[13:],
    ):
        with pytest.raises(ValueError, match="state"):
            b.load_state(0, bad)
    assert b.save_state(0) == before


def test_a_broken_state_is_named_and_the_others_go_on() -> None:
    a, b = backend(), backend()
    saved = np.frombuffer(b.save_state(1), np.uint8).copy()
    saved[-4:] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    b.load_state(1, saved.tobytes())
    expected = step(a, [0, 2], rows(3)[[0, 2]], [0.1, 0.3])
    with pytest.raises(NonFiniteState, match="slot 1 is no longer finite") as caught:
        step(b, [0, 1, 2], rows(3), [0.1, 0.2, 0.3])
    assert caught.value.slots == [1]
    assert caught.value.tokens[[0, 2]].tolist() == expected.tolist()
    assert b.save_state(2) == a.save_state(2)


def test_open_backend(tmp_path) -> None:
    vocabulary = Vocabulary(("web",), (), (100,), (65535,), (80,))
    config = ModelConfig(d_model=8, n_layer=1, vocab_size=vocabulary.size, rows=vocabulary.rows, d_state=4, headdim=8)
    save_checkpoint(tmp_path / "m", config, vocabulary.to_json(), tensors(config), "")
    opened = open_backend(tmp_path / "m", "torch", slots=3)
    assert opened.slots == 3
    opened.prefill(2, np.zeros((4, 5), np.int32))
    with pytest.raises(UsageError, match="there are auto, cpu, torch, cuda"):
        open_backend(tmp_path / "m", "gpu")
    with pytest.raises(CheckpointError, match="no such folder"):
        open_backend(tmp_path / "n", "torch")
    with pytest.raises(ConfigError, match="top_p is 0"):
        Sampling(top_p=0.0)
