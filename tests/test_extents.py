"""Packets of a flow as a member of EXTENT: there and back, and drawn ones that add up."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from netssmd.codec.extents import FEW, REST, UNTOLD, drawable_extents, extent_bounds, extent_member, kept_to

sizes = st.integers(1, 1 << 30)


@given(sizes, sizes, st.integers(1, 10_000))
def test_a_member_holds_what_it_was_made_of(packets: int, others: int, flows: int) -> None:
    left = packets + others + flows
    member = extent_member(packets, left, flows)
    least, end = extent_bounds(member, left, flows)
    assert 0 <= member < UNTOLD and least <= packets
    assert packets < end or member == REST - 1  # the largest share has no bound


@given(sizes, st.integers(1, 10_000))
def test_the_bins_leave_nothing_out(left: int, flows: int) -> None:
    members = range(FEW, REST)
    bounds = [extent_bounds(member, left, flows) for member in members]
    assert bounds[0][0] == FEW + 1
    assert all(a[0] <= b[0] <= a[1] for a, b in pairwise(bounds))


def test_the_last_flow_has_the_rest() -> None:
    for left in (17, 100, 123_456):
        assert extent_member(left, left, 1) == REST and extent_bounds(REST, left, 1) == (left, left + 1)
        assert drawable_extents(left, 1, 7) == (REST, REST + 1)
    assert drawable_extents(5, 1, 1) == (4, 5) and drawable_extents(5, 1, 9) == (8, 9)
    assert drawable_extents(-3, 1, 1) == (0, 1)
    assert extent_member(2_574, 2_576, 2) == REST  # the other one has two


def test_equal_shares_are_one_member_whatever_their_size() -> None:
    assert len({extent_member(n, n * flows, flows) for n in (20, 333, 70_000) for flows in (3, 9, 20)}) == 1


@given(st.integers(1, 100_000), st.integers(1, 200), st.integers(1, 30), st.integers(0))
def test_whatever_is_drawn_adds_up(packets: int, flows: int, shortest: int, seed: int) -> None:
    """Within the members that may be drawn."""
    rng = random.Random(seed)
    left, drawn = packets, []
    for to_come in range(flows, 0, -1):
        floor, end = drawable_extents(left, to_come, shortest)
        assert 0 <= floor < end <= UNTOLD
        least, beyond = extent_bounds(rng.randrange(floor, end), left, to_come)
        drawn.append(kept_to(rng.randrange(least, beyond), left, to_come, shortest))
        left -= drawn[-1]
    assert min(drawn) >= shortest
    if packets >= flows:
        assert packets <= sum(drawn) <= packets + flows * (shortest - 1)
