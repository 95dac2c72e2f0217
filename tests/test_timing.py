"""Gaps: fitted by label, direction and size, sampled as the paper does, recorded with a prompt."""

from __future__ import annotations

import json

import pytest

from netssmd.codec.timing import DEFAULT_MEAN_NS, FittedGaps, RecordedGaps, SampledGaps, Timing, class_of
from netssmd.engine.sampling import Stream


def fitted() -> Timing:
    timing = Timing()
    for i in range(200):
        timing.observe("slow", 0, 0, 50_000_000 + i)
        timing.observe("slow", 1, 1448, 1_000_000)
        timing.observe("fast", 0, 0, 2_000)
    timing.observe("fast", 1, 500, 7_000)
    timing.observe("fast", 1, 500, -5)
    return timing


def draws(timing: Timing, label: str, direction: int, size: int, n: int = 300) -> list[int]:
    gaps = FittedGaps(timing, label, Stream(7))
    return [gaps.gap_ns(direction, size) for _ in range(n)]


def near(values: list[int], right: int) -> bool:
    return all(abs(value - right) <= 0.1 * right for value in values)


def test_drawn_by_label_direction_and_size() -> None:
    timing = fitted()
    assert near(draws(timing, "slow", 0, 0), 50_000_000)
    assert near(draws(timing, "slow", 1, 1460), 1_000_000)
    assert near(draws(timing, "fast", 0, 0), 2_000)
    assert len(set(draws(timing, "slow", 0, 0))) > 100  # uniform inside the bin, not its edge


def test_what_was_seen_too_seldom_falls_back() -> None:
    timing = fitted()
    whole = draws(timing, "fast", 1, 500)  # two gaps of this class: the label's of all classes
    assert sum(1_800 < g < 2_200 for g in whole) > 280
    other = draws(timing, "unheard", 1, 1448)  # no such label: that class of all labels
    assert near(other, 1_000_000)
    mean = sum(draws(Timing(), "any", 0, 0, 4000)) / 4000
    assert 0.9 < mean / DEFAULT_MEAN_NS < 1.1


def test_counts_come_back_from_json_and_add_up() -> None:
    a = Timing.from_json(json.loads(json.dumps(fitted().to_json())))
    assert a.counts == fitted().counts
    a.merge(fitted())
    assert a.counts["slow"][class_of(0, 0)] == {b: 2 * n for b, n in fitted().counts["slow"][class_of(0, 0)].items()}
    for bad in ([], {"x": []}, {"x": [[1]] * 8}, {"x": [[1, -1]] * 8}, {"x": [[9999, 1]] * 8}, {"x": [[0.5, 1]] * 8}):
        with pytest.raises(ValueError, match="timing"):
            Timing.from_json(bad)


def test_the_papers_way_and_a_prompts_own() -> None:
    gaps = RecordedGaps([5, 6], SampledGaps(Timing([100, 200, 300]), Stream(1)))
    drawn = [gaps.gap_ns(i % 2, i) for i in range(302)]
    assert drawn[:2] == [5, 6]
    assert set(drawn[2:]) == {100, 200, 300}
