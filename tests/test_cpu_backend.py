"""The C++ backend is the torch reference, faster: any instruction set, weights, split and company."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from netssmd.model import cpu_backend
from netssmd.model.backend import NonFiniteState
from netssmd.model.config import ModelConfig
from netssmd.model.cpu_backend import CpuBackend, available_isas
from netssmd.model.sampling import adjusted, draw, taken_away, weights

if not available_isas():
    pytest.skip(cpu_backend.missing_reason, allow_module_level=True)

ISAS = available_isas()
TYPES = cpu_backend.WEIGHT_TYPES
W = 3
SHAPES = [
    {},
    {"d_model": 48, "headdim": 24, "d_state": 40},
    {"d_model": 64, "headdim": 16, "d_state": 128, "ngroups": 2},
    {"d_model": 64, "headdim": 64, "d_state": 17, "d_conv": 3, "n_layer": 1},
    {"d_model": 36, "headdim": 8, "d_state": 5, "d_conv": 2, "ngroups": 3},
    {"d_model": 192, "headdim": 48, "d_state": 64, "norm_eps": 1e-3},
    {"head_bias": True},
]


def small(**kwargs) -> ModelConfig:
    return ModelConfig(
        **{"d_model": 32, "n_layer": 2, "d_state": 16, "headdim": 32, "vocab_size": 75, "rows": 90, **kwargs}
    )


def lively(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights that all matter, with decays from fast to nearly none."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in config.tensors().items():
        x = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("A_log"):
            x = np.log(rng.uniform(1, 16, shape)).astype(np.float32)
        elif name.endswith("dt_bias"):
            x = rng.uniform(-5, 0, shape).astype(np.float32)
        elif name.endswith(("norm.weight", "norm_f.weight", ".D")):
            x = 1 + 0.3 * x
        elif name.endswith(("in_proj.weight", "out_proj.weight")):
            x *= shape[-1] ** -0.5
        else:
            x *= 0.3
        tensors[name] = np.ascontiguousarray(x, np.float32)
    return tensors


def rounded(tensors: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """The values that the packed weights stand for, so that only arithmetic is left to differ."""
    out = {}
    for name, x in tensors.items():
        if x.ndim != 2 or kind == "fp32":
            out[name] = x
        elif kind == "bf16":
            bits = x.view(np.uint32)
            out[name] = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
        else:
            scale = np.abs(x).max(1, keepdims=True) / np.float32(127)
            out[name] = np.rint(x / scale).astype(np.float32) * scale
    return out


def inputs(config: ModelConfig, n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.rows, (n, W)).astype(np.int32)


def reference(config: ModelConfig, tensors: dict[str, np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states and logits of the torch step form, fp32."""
    torch = pytest.importorskip("torch")
    from netssmd.model.mamba2 import Mamba2LM, State

    torch.set_num_threads(1)
    model = Mamba2LM(config)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
    state = State.zeros(config, 1)
    hidden = []
    with torch.inference_mode():
        for line in torch.from_numpy(rows.astype(np.int64)):
            hidden.append(model.step(line[None], state)[0])
        stacked = torch.stack(hidden)
        return stacked.numpy(), model.logits(stacked, 0, config.vocab_size).numpy()


def run(backend: CpuBackend, slot: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pairs = [backend.hidden_and_logits(slot, line) for line in rows]
    return np.array([h for h, _ in pairs]), np.array([x for _, x in pairs])


def step_all(backend: CpuBackend, slots, rows, lo=0, hi=None, uniform=0.37, temperature=1.0) -> np.ndarray:
    n = len(slots)
    hi = backend.config.vocab_size if hi is None else hi
    full = lambda x: np.full(n, x, np.float32)  # noqa: E731
    return backend.step(
        np.array(slots, np.int32), rows, np.tile(np.int32([lo, hi]), (n, 1)), full(uniform), full(temperature)
    )


# ---- against the reference -----------------------------------------------------------------------------------------


def test_ten_thousand_steps_equal_the_reference() -> None:
    config = small()
    tensors = lively(config)
    rows = inputs(config, 10_000)
    hidden, logits = reference(config, tensors, rows)
    for isa in ISAS:
        h, x = run(CpuBackend(config, tensors, slots=1, weights="fp32", isa=isa), 0, rows)
        assert np.abs(h - hidden).max() < 1e-4, isa
        assert np.abs(x - logits).max() < 1e-4, isa


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_equals_the_reference(shape: dict) -> None:
    config = small(**shape)
    tensors = lively(config)
    rows = inputs(config, 150)
    hidden, logits = reference(config, tensors, rows)
    for isa in ISAS:
        h, x = run(CpuBackend(config, tensors, slots=2, weights="fp32", isa=isa), 1, rows)
        assert np.abs(h - hidden).max() < 1e-4, isa
        assert np.abs(x - logits).max() < 1e-4, isa


@pytest.mark.parametrize(("kind", "tolerance"), [("bf16", 2e-4), ("int8", 6e-3)])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_short_weights_equal_the_reference_of_the_rounded_model(kind: str, tolerance: float, shape: dict) -> None:
    config = small(**shape)
    tensors = rounded(lively(config), kind)
    if kind == "int8":  # its embedding rows are kept in bf16 as inputs
        tensors["backbone.embedding.weight"] = rounded(tensors, "bf16")["backbone.embedding.weight"]
    rows = inputs(config, 300)
    hidden, _ = reference(config, tensors, rows)
    for isa in ISAS:
        h, _ = run(CpuBackend(config, tensors, slots=1, weights=kind, isa=isa), 0, rows)
        assert np.abs(h - hidden).max() < tolerance, isa


def test_extreme_inputs_stay_right() -> None:
    """Gates and step sizes far out on both sides: exp must neither overflow nor lose digits."""
    config = small()
    tensors = lively(config)
    tensors["backbone.layers.0.mixer.in_proj.weight"] *= 60
    rows = inputs(config, 60)
    hidden, _ = reference(config, tensors, rows)
    for isa in ISAS:
        h, _ = run(CpuBackend(config, tensors, slots=1, weights="fp32", isa=isa), 0, rows)
        assert np.abs(h - hidden).max() < 1e-4, isa


# ---- whoever else is there -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", TYPES)
def test_prefill_is_steps_split_anywhere(isa: str, kind: str) -> None:
    config = small(d_model=48, headdim=24, d_state=40)
    backend = CpuBackend(config, lively(config), slots=4, weights=kind, isa=isa)
    rows = inputs(config, 150)
    for line in rows:
        backend.logits_for(0, line)
    backend.prefill(1, rows)
    at = 0
    for length in (1, 2, 3, 7, 8, 9, 17, 64, 0, 39):
        backend.prefill(2, rows[at : at + length])
        at += length
    assert at == len(rows)
    assert backend.save_state(0) == backend.save_state(1) == backend.save_state(2)
    assert backend.save_state(3) == CpuBackend(config, lively(config), slots=1).save_state(0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", TYPES)
def test_batch_mates_and_slots_change_nothing(isa: str, kind: str) -> None:
    config = small(d_model=64)
    tensors = lively(config)
    n, steps = 70, 12
    rows = np.stack([inputs(config, n, seed) for seed in range(steps)])  # [steps, session, W]
    alone = CpuBackend(config, tensors, slots=n, weights=kind, isa=isa)
    tokens = np.array([[step_all(alone, [s], rows[t, s : s + 1])[0] for s in range(n)] for t in range(steps)])
    together = CpuBackend(config, tensors, slots=n + 3, weights=kind, isa=isa)
    rng = np.random.default_rng(3)
    place = rng.permutation(n + 3)[:n]
    for t in range(steps):
        order = rng.permutation(n)
        for part in np.split(order, np.sort(rng.choice(n, 4, replace=False))):
            if len(part):
                assert (step_all(together, place[part], rows[t, part]) == tokens[t, part]).all()
    for s in range(n):
        assert alone.save_state(s) == together.save_state(int(place[s]))


def test_the_range_computed_is_the_range_of_all_logits() -> None:
    config = small()
    tensors = lively(config)
    for isa in ISAS:
        backend = CpuBackend(config, tensors, slots=2, isa=isa)
        for line in inputs(config, 20):
            before = backend.save_state(0)
            logits = backend.logits_for(0, line)
            for lo, hi in ((0, 75), (3, 4), (15, 17), (16, 32), (31, 75)):
                backend.load_state(1, before)
                assert step_all(backend, [1], line[None], lo, hi, temperature=0)[0] == lo + int(
                    np.argmax(logits[lo:hi])
                )


def test_two_threads_on_disjoint_slots() -> None:
    config = small(d_model=64)
    tensors = lively(config)
    backend = CpuBackend(config, tensors, slots=8)
    alone = CpuBackend(config, tensors, slots=8)
    rows = [inputs(config, 4, seed) for seed in range(200)]
    results: dict[int, list] = {0: [], 1: []}

    def work(half: int) -> None:
        slots = range(4 * half, 4 * half + 4)
        results[half] = [step_all(backend, slots, r) for r in rows]

    threads = [threading.Thread(target=work, args=(half,)) for half in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    expected = [step_all(alone, range(4), r) for r in rows]
    assert (np.array(results[0]) == np.array(expected)).all()
    assert (np.array(results[1]) == np.array(expected)).all()
    assert backend.save_state(0) == backend.save_state(4) == alone.save_state(0)


def large(**kwargs) -> ModelConfig:
    """Of which every stage is worth sharing."""
    return small(d_model=256, headdim=64, d_state=64, **kwargs)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", TYPES)
def test_a_call_that_threads_share_answers_the_same(isa: str, kind: str) -> None:
    config = large()
    tensors = lively(config)
    alone, shared = (CpuBackend(config, tensors, slots=5, weights=kind, isa=isa) for _ in range(2))
    shared.threads = 3
    for t in range(40):
        rows = inputs(config, 5, t)
        one = step_all(alone, [0], rows[:1])
        assert (step_all(shared, [0], rows[:1]) == one).all()
        assert (step_all(shared, [3, 1, 4], rows[2:]) == step_all(alone, [3, 1, 4], rows[2:])).all()
        if t % 4 == 0:
            arguments = (
                np.int32([2, 4]), np.int32([3, 1]), rows[:4], rows[:4, 0], np.tile(np.int32([0, 75]), (4, 1)),
                np.full(4, 0.5, np.float32), np.full(4, 1, np.float32),
            )  # fmt: skip
            for mine, its in zip(alone.verify(*arguments), shared.verify(*arguments), strict=True):
                assert (mine == its).all()
    rows = inputs(config, 80)
    alone.prefill(2, rows)
    shared.prefill(2, rows)
    assert all(alone.save_state(slot) == shared.save_state(slot) for slot in range(5))
    shared.threads = 1
    assert (step_all(shared, [0], rows[:1]) == step_all(alone, [0], rows[:1])).all()


def test_drafts_that_stand_are_taken_by_a_shared_call_too() -> None:
    config = large(n_layer=1)
    tensors = lively(config)
    plain, shared = (CpuBackend(config, tensors, slots=1) for _ in range(2))
    shared.threads = 2
    rows, uniforms, ranges = inputs(config, 64), np.full(64, 0.5, np.float32), np.tile(np.int32([0, 75]), (64, 1))
    ones = np.ones(64, np.float32)
    drafts = [int(plain.step(ints(0), rows[i : i + 1], ranges[:1], uniforms[:1], ones[:1])[0]) for i in range(64)]
    for i in range(0, 64, 2):
        tokens, taken = shared.verify(
            ints(0), ints(2), rows[i : i + 2], np.int32(drafts[i : i + 2]), ranges[:2], uniforms[:2], ones[:2]
        )
        assert taken.tolist() == [2] and tokens.tolist() == drafts[i : i + 2]
    assert plain.save_state(0) == shared.save_state(0)


def test_threads_that_call_by_themselves_share_nothing_and_answer_the_same() -> None:
    config = large(n_layer=1)
    tensors = lively(config)
    backend, alone = CpuBackend(config, tensors, slots=2), CpuBackend(config, tensors, slots=1)
    backend.threads = 2
    rows = [inputs(config, 1, seed) for seed in range(300)]
    expected = [int(step_all(alone, [0], r)[0]) for r in rows]
    results: dict[int, list[int]] = {}

    def work(slot: int) -> None:
        results[slot] = [int(step_all(backend, [slot], r)[0]) for r in rows]

    threads = [threading.Thread(target=work, args=(slot,)) for slot in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: expected, 1: expected}


def test_only_large_models_share_their_calls() -> None:
    backend = CpuBackend(small(), lively(small()))
    backend.lend(2)
    assert backend.threads == 1
    for count in (0, 17):
        with pytest.raises(ValueError, match=f"threads is {count}; 1 to 16 would be right"):
            backend.threads = count


# ---- snapshots -----------------------------------------------------------------------------------------------------


def test_a_saved_state_goes_on_anywhere() -> None:
    config = small(d_model=48, headdim=24, d_state=40)
    tensors = lively(config)
    rows = inputs(config, 40)
    for isa in ISAS:
        one = CpuBackend(config, tensors, slots=2, isa=isa, weights="fp32")
        one.prefill(1, rows[:20])
        saved = one.save_state(1)
        other = CpuBackend(config, tensors, slots=3, isa=isa, weights="fp32")
        other.prefill(2, rows[30:])
        other.load_state(2, saved)
        assert other.save_state(2) == saved
        one.prefill(1, rows[20:])
        other.prefill(2, rows[20:])
        assert other.save_state(2) == one.save_state(1)


def test_the_saved_state_is_the_references() -> None:
    pytest.importorskip("torch")
    from netssmd.model.torch_backend import TorchBackend

    config = small(d_model=48, headdim=24, d_state=40)
    tensors = lively(config)
    rows = inputs(config, 50)
    cpu = CpuBackend(config, tensors, slots=1, weights="fp32")
    torch = TorchBackend(config, tensors, slots=1)
    cpu.prefill(0, rows[:30])
    torch.load_state(0, cpu.save_state(0))
    for line in rows[30:]:
        assert np.abs(cpu.logits_for(0, line) - torch.logits_for(0, line)).max() < 1e-4
    cpu.load_state(0, torch.save_state(0))
    assert cpu.save_state(0) == torch.save_state(0)


def test_reset_forgets() -> None:
    config = small()
    backend = CpuBackend(config, lively(config), slots=2)
    backend.prefill(0, inputs(config, 10))
    backend.reset(0)
    assert backend.save_state(0) == backend.save_state(1)


# ---- sampling ------------------------------------------------------------------------------------------------------

CUTS = [(0, 1.0), (5, 1.0), (0, 0.6), (12, 0.8), (1, 1.0), (0, 1e-6)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("top_k", "top_p"), CUTS)
def test_draws_equal_the_definition(isa: str, top_k: int, top_p: float) -> None:
    config = small()
    backend = CpuBackend(config, lively(config), slots=2, isa=isa, top_k=top_k, top_p=top_p, weights="fp32")
    backend.prefill(0, inputs(config, 5))
    state = backend.save_state(0)
    line = inputs(config, 1, 9)
    logits = backend.logits_for(0, line[0])
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(300):
        lo, hi = sorted(rng.choice(config.vocab_size + 1, 2, replace=False).tolist())
        temperature = float(rng.choice([0, 0.3, 1.0, 2.5]))
        uniform = float(np.float32(rng.random()))
        backend.load_state(1, state)
        token = int(step_all(backend, [1], line, lo, hi, uniform, temperature)[0])
        wrong += token != lo + draw(logits[lo:hi], uniform, temperature, top_k, top_p)
    assert wrong <= 1  # the two exponentials may differ in the last bit right at a boundary


@pytest.mark.parametrize("penalties", [False, True])
@pytest.mark.parametrize("isa", ISAS)
def test_factors_change_the_draw_as_defined(isa: str, penalties: bool) -> None:
    """Slots with factors and without, on every instruction set; what is forbidden never comes, at 0.0 neither."""
    config = small()
    backend = CpuBackend(
        config, lively(config), slots=3, isa=isa, top_k=20, top_p=0.95, penalties=penalties, weights="fp32"
    )
    backend.prefill(0, inputs(config, 5))
    state = backend.save_state(0)
    line = inputs(config, 1, 9)
    logits = backend.logits_for(0, line[0])
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(200):
        bounds = [sorted(rng.choice(config.vocab_size + 1, 2, replace=False).tolist()) for _ in range(3)]
        sizes = [hi - lo for lo, hi in bounds]
        factors = rng.choice(np.float32([0, 1, 1.8]), sum(sizes))
        at = np.int32([sizes[2], -1, 0])  # in any order, the middle one without
        for i in (0, 2):
            factors[at[i] + rng.integers(sizes[i])] = 1
        uniforms = np.float32([0.0, rng.random(), rng.random()])
        temperature = float(rng.choice([0, 0.5, 1.0]))
        for s in range(3):
            backend.load_state(s, state)
        tokens = backend.step(
            np.arange(3, dtype=np.int32), np.repeat(line, 3, 0), np.int32(bounds), uniforms,
            np.full(3, temperature, np.float32), factors, at, removed := np.full((3, 2), -1, np.float32),
        )  # fmt: skip
        assert (removed[1] == -1).all()  # it has no factors
        for i, (lo, hi) in enumerate(bounds):
            own = logits[lo:hi]
            if at[i] >= 0:
                assert factors[at[i] + tokens[i] - lo] > 0
                mine = factors[at[i] : at[i] + hi - lo]
                share, hit = taken_away(own, mine, float(uniforms[i]), temperature, 20, 0.95, penalties)
                wrong += removed[i, 1] != hit or abs(removed[i, 0] - share) > 1e-4
                own = adjusted(own, mine, penalties)
            wrong += int(tokens[i]) != lo + draw(own, float(uniforms[i]), temperature, 20, 0.95)
    assert wrong <= 2


@pytest.mark.parametrize("isa", ISAS)
def test_a_token_that_the_head_forbids_is_not_drawn_at_zero(isa: str) -> None:
    """A number of exactly 0 takes the first token of any weight: a bias of -1e4 has to leave none."""
    config = ModelConfig(**{**small().to_json(), "head_bias": True})
    tensors = lively(config)
    tensors["lm_head.bias"] = np.where(np.arange(config.vocab_size) < 9, -1e4, 0).astype(np.float32)
    backend = CpuBackend(config, tensors, slots=1, isa=isa)
    assert step_all(backend, [0], inputs(config, 1), uniform=0.0)[0] >= 9


def test_draws_follow_the_distribution() -> None:
    """Chi-square, alpha 1e-4."""
    stats = pytest.importorskip("scipy.stats")
    config = small()
    n, rounds = 64, 300
    backend = CpuBackend(config, lively(config), slots=n, weights="fp32")
    backend.prefill(0, inputs(config, 5))
    state = backend.save_state(0)
    line = inputs(config, 1, 9)
    p = weights(backend.logits_for(0, line[0])[10:40], 1.0, 0, 1.0).astype(np.float64)
    p /= p.sum()
    rng = np.random.default_rng(8)
    counts = np.zeros(30)
    slots = np.arange(n, dtype=np.int32)
    for _ in range(rounds):
        for s in slots:
            backend.load_state(int(s), state)
        tokens = backend.step(
            slots,
            np.repeat(line, n, 0),
            np.tile(np.int32([10, 40]), (n, 1)),
            rng.random(n).astype(np.float32),
            np.ones(n, np.float32),
        )
        counts += np.bincount(tokens - 10, minlength=30)
    expected = p * n * rounds
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    chi2 = ((observed - expected) ** 2 / expected).sum()
    assert chi2 < stats.chi2.ppf(1 - 1e-4, len(observed) - 1)


# ---- what does not fit ---------------------------------------------------------------------------------------------


def ints(*x) -> np.ndarray:
    return np.array(x, np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": ints(4)}, r"slot 4 is outside 0\.\.3"),
        ({"slots": ints(-1)}, r"slot -1 is outside 0\.\.3"),
        ({"rows": ints([90, 0, 0])}, r"row 90 \(position 0, column 0\) is outside 0\.\.89"),
        ({"rows": ints([0, 0, -1])}, "row -1"),
        ({"rows": ints([0, 0, 0], [0, 0, 0])}, "rows has 2 rows; 1 would be right"),
        ({"ranges": ints([5, 5])}, r"range \[5, 5\) at position 0"),
        ({"ranges": ints([6, 5])}, r"range \[6, 5\)"),
        ({"ranges": ints([0, 76])}, r"range \[0, 76\)"),
        ({"ranges": ints([0, 3, 5])}, "ranges has 3 columns"),
        ({"uniforms": np.float32([1.5])}, "uniform 1.5"),
        ({"uniforms": np.float32([np.nan])}, "uniform"),
        ({"uniforms": np.float32([0.5, 0.5])}, "uniforms has 2 numbers"),
        ({"temperatures": np.float32([-1])}, "temperature -1"),
        ({"temperatures": np.float32([])}, "temperatures has 0 numbers"),
        ({"factors": np.float32([1] * 5)}, "come together"),
        ({"factors": np.float32([1] * 5), "factors_at": ints(0, 0)}, "factors_at has 2 numbers; 1 would be right"),
        ({"factors": np.float32([1] * 5), "factors_at": ints(1)}, r"position 0 has 1\.\.5"),
        ({"factors": np.float32([0] * 5), "factors_at": ints(0)}, "all are 0"),
        ({"factors": np.float32([1, 1, -1, 1, 1]), "factors_at": ints(0)}, "-1.* is not a number of at least 0"),
        ({"factors": np.float32([1, 1, np.nan, 1, 1]), "factors_at": ints(0)}, "is not a number of at least 0"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    config = small()
    backend = CpuBackend(config, lively(config), slots=4)
    good = {
        "slots": ints(0),
        "rows": ints([0, 1, 2]),
        "ranges": ints([0, 5]),
        "uniforms": np.float32([0.5]),
        "temperatures": np.float32([1]),
    }
    before = backend.save_state(0)
    with pytest.raises(ValueError, match=message):
        backend.step(**{**good, **change})
    assert backend.save_state(0) == before
    backend.step(**good)


def test_a_slot_named_twice_is_refused_and_free_again() -> None:
    config = small()
    backend = CpuBackend(config, lively(config), slots=4)
    with pytest.raises(ValueError, match="slot 2 is named twice"):
        step_all(backend, [2, 1, 2], inputs(config, 3))
    step_all(backend, [2, 1, 0], inputs(config, 3))


def test_states_of_another_model_are_refused() -> None:
    config = small()
    backend = CpuBackend(config, lively(config), slots=1)
    other = small(d_state=24)
    foreign = CpuBackend(other, lively(other), slots=1).save_state(0)
    good = backend.save_state(0)
    for state, message in [
        (foreign, "conv_dim is 112; the model's is 96"),
        (good[:-4], "would be right"),
        (b"x", "do not begin with NSSMSTAT"),
        (good[:8] + b"\x09" + good[9:], "version 9"),
    ]:
        with pytest.raises(ValueError, match=message):
            backend.load_state(0, state)


def test_wrong_models_are_refused() -> None:
    config = small()
    tensors = lively(config)
    without = {k: v for k, v in tensors.items() if not k.endswith("norm_f.weight")}
    for arguments, message in [
        ({"tensors": without}, "backbone.norm_f.weight is missing"),
        (
            {"tensors": {**tensors, "backbone.norm_f.weight": np.ones(7, np.float32)}},
            "has 7 numbers; 32 would be right",
        ),
        ({"isa": "mmx"}, "'mmx' is not available here"),
        ({"weights": "int4"}, "'int4' is not known"),
        ({"slots": 0}, "slots is 0"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
    ]:
        with pytest.raises(ValueError, match=message):
            CpuBackend(config, **{"tensors": tensors, **arguments})


def test_a_state_that_overflows_is_named_and_its_mates_go_on() -> None:
    config = small()
    tensors = lively(config)
    tensors["backbone.embedding.weight"] = tensors["backbone.embedding.weight"].copy()
    tensors["backbone.embedding.weight"][80] = np.nan
    for isa in ISAS:
        for kind in TYPES:
            backend = CpuBackend(config, tensors, slots=3, isa=isa, weights=kind)
            alone = CpuBackend(config, tensors, slots=1, isa=isa, weights=kind)
            rows = inputs(config, 3) % 75
            expected = step_all(alone, [0], rows[2:])
            rows[1, 1] = 80
            with pytest.raises(NonFiniteState, match="slot 1 ") as caught:
                step_all(backend, [0, 1, 2], rows)
            assert caught.value.slots == [1]
            assert caught.value.tokens[2] == expected[0]
            with pytest.raises(NonFiniteState):  # it does not heal by itself
                step_all(backend, [1], rows[:1])
            with pytest.raises(NonFiniteState):
                backend.prefill(1, rows[:2])
            backend.reset(1)
            step_all(backend, [1], rows[:1])


def test_the_environment_names_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small()
    monkeypatch.setenv(cpu_backend.ISA_VARIABLE, "portable")
    assert CpuBackend(config, lively(config)).isa == "portable"
    monkeypatch.delenv(cpu_backend.ISA_VARIABLE)
    assert CpuBackend(config, lively(config)).isa == ISAS[0]


def test_the_weight_type_follows_the_checkpoint() -> None:
    config = small()
    tensors = lively(config)
    assert CpuBackend(config, tensors).weights == "fp32"
    assert CpuBackend(config, rounded(tensors, "bf16")).weights == "bf16"


def test_a_binary_of_older_sources_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from netssmd import freshness
    from netssmd.errors import NetssmdError
    from netssmd.model.cpu_backend import require_fresh

    require_fresh()
    monkeypatch.setattr(freshness, "built_from", lambda: {freshness.CPU_BACKEND: "00", "netssmd.packet.wire": "00"})
    with pytest.raises(NetssmdError, match=r"_cpu was compiled from older sources; `make setup` builds it again"):
        require_fresh()
