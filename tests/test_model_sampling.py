"""Draws follow the exact distribution; the order of everything is fixed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netssmd.model.sampling import adjusted, draw, taken_away, weights

scipy_stats = pytest.importorskip("scipy.stats")


def exact(logits, temperature: float, top_k: int, top_p: float):
    """The distribution by the textbook, in float64."""
    p = np.exp((logits.astype(float) - logits.max()) / temperature)
    order = sorted(range(len(p)), key=lambda i: (-logits[i], i))[: top_k or len(p)]
    total = sum(p[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        if kept and mass >= top_p * total:
            break
        kept.append(i)
        mass += p[i]
    out = np.zeros(len(p))
    out[kept] = p[kept] / p[kept].sum()
    return out


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.5, 5, 1.0), (1.0, 0, 0.8), (0.9, 12, 0.9)]
)
def test_draws_follow_the_exact_distribution(temperature: float, top_k: int, top_p: float) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1, 40).astype(np.float32)
    p = exact(logits, temperature, top_k, top_p)
    n = 40_000
    uniforms = rng.random(n, dtype=np.float32)
    counts = np.bincount([draw(logits, float(u), temperature, top_k, top_p) for u in uniforms], minlength=40)
    assert counts[p == 0].sum() == 0
    common = p * n >= 5
    expected = np.append(p[common], 1 - p[common].sum()) * n
    found = np.append(counts[common], n - counts[common].sum())
    keep = expected > 1e-6
    assert scipy_stats.chisquare(found[keep], expected[keep] * found[keep].sum() / expected[keep].sum()).pvalue > 1e-3


def test_order_among_equals_is_by_index() -> None:
    logits = np.zeros(6, np.float32)
    assert draw(logits, 0.0, 0.0) == 0
    assert np.flatnonzero(weights(logits, 1.0, 3, 1.0)).tolist() == [0, 1, 2]
    assert np.flatnonzero(weights(logits, 1.0, 0, 0.5)).tolist() == [0, 1, 2]
    assert [draw(logits, u / 6 + 0.01) for u in range(6)] == [0, 1, 2, 3, 4, 5]


def test_the_first_index_whose_running_sum_exceeds_the_number() -> None:
    logits = np.log(np.array([1, 1, 2], np.float32))
    assert [draw(logits, u) for u in (0.0, 0.24, 0.26, 0.49, 0.51, 0.999)] == [0, 0, 1, 1, 2, 2]


def test_a_member_of_no_weight_is_never_drawn() -> None:
    logits = np.array([-1e4, 0, -1e4], np.float32)
    assert draw(logits, 0.0) == 1
    assert draw(logits, 1.0) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=50),
    st.floats(0, 1, exclude_max=True, width=32),
    st.floats(0, 5, width=32).filter(lambda t: t == 0 or t > 0.05),
    st.integers(0, 60),
    st.floats(0.0625, 1, width=32),
)
def test_a_draw_is_always_a_kept_member(logits, uniform, temperature, top_k, top_p) -> None:
    array = np.array(logits, np.float32)
    index = draw(array, uniform, temperature, top_k, top_p)
    assert 0 <= index < len(array)
    if temperature == 0 or top_k == 1:
        assert index == int(np.argmax(array))
    elif len(array) > 1:
        assert weights(array, temperature, top_k, top_p)[index] > 0


def test_factors_multiply_odds_and_forbid() -> None:
    logits = np.array([3.6, -1.0, 2.0, 0.0], np.float32)
    factors = np.array([2.0, 0.5, 0.0, 1.0], np.float32)
    plain, found = weights(logits, 1.0, 0, 1.0), weights(adjusted(logits, factors), 1.0, 0, 1.0)
    np.testing.assert_allclose(found / found.sum(), plain * factors / (plain * factors).sum(), rtol=1e-5)
    assert adjusted(logits, np.ones(4, np.float32)).tolist() == logits.tolist()


def test_penalties_penalize_and_forbid() -> None:
    logits = np.array([3.6, -1.0, 2.0, 0.0], np.float32)
    assert adjusted(logits, np.ones(4, np.float32), penalties=True).tolist() == logits.tolist()
    found = adjusted(logits, np.array([1.8, 1.8, 0.0, 1.8], np.float32), penalties=True)
    np.testing.assert_allclose(found, [2.0, -1.8, -np.inf, 0.0], rtol=1e-6)
    assert {draw(found, u / 100) for u in range(100)} == {0, 1, 3}
    assert draw(adjusted(logits, np.array([0, 0, 1, 0], np.float32)), 0.0) == 2
    assert draw(adjusted(logits, np.array([0, 0, 1, 0], np.float32)), 0.5, 0.0) == 2


def test_a_draw_is_the_same_with_and_without_what_is_forbidden_at_either_end() -> None:
    """What a label's repertoire relies on, which leaves such tokens out of the range (codec/vocab.py)."""
    rng = np.random.default_rng(3)
    for _ in range(300):
        logits = rng.normal(0, 3, 40).astype(np.float32)
        factors = np.zeros(40, np.float32)
        lo, hi = np.sort(rng.choice(41, 2, replace=False)).tolist()
        factors[lo:hi] = rng.choice(np.float32([0, 1]), hi - lo)
        factors[[lo, hi - 1]] = 1
        whole, inside = adjusted(logits, factors), adjusted(logits[lo:hi], factors[lo:hi])
        for top_k, top_p in ((0, 1.0), (5, 1.0), (25, 0.9)):
            for uniform in (0.0, float(rng.random(dtype=np.float32)), 1 - 2.0**-24):
                for temperature in (0.0, 0.7, 1.0):
                    expected = lo + draw(inside, uniform, temperature, top_k, top_p)
                    assert draw(whole, uniform, temperature, top_k, top_p) == expected


@pytest.mark.parametrize("penalties", [False, True])
def test_what_forbidding_takes_away_is_how_often_it_turns_a_draw(penalties: bool) -> None:
    logits = np.float32([0.5, 1.0, -0.3, 0.2, 2.0])
    factors = np.float32([1, 0, 2, 1, 0])
    p = weights(adjusted(logits, np.float32([1, 1, 2, 1, 1]), penalties), 0.7, 4, 1.0)
    share = float((p[1] + p[4]) / p.sum())
    hits = [taken_away(logits, factors, u, 0.7, 4, penalties=penalties) for u in np.linspace(0, 0.999, 1000)]
    assert {round(removed, 5) for removed, _ in hits} == {round(share, 5)}
    assert abs(sum(hit for _, hit in hits) / 1000 - share) < 0.003
    assert taken_away(logits, factors, 0.5, 0.0) == (1.0, True)
    assert taken_away(logits, np.float32([1, 1, 1, 1, 1.8]), 0.9) == (0.0, False)
