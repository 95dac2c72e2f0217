"""Wall time of packets, when the wall clock is set, or goes on while the monotonic one sleeps with the machine."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from netssmd.daemon.clock import SECOND, SLOWER, WallTime

BEGAN_NS = 1_770_000_000 * SECOND
HOUR = 3600 * SECOND


class Hands:
    """Both clocks of a machine, set by hand."""

    def __init__(self) -> None:
        self.monotonic_ns = 50 * SECOND
        self.offset_ns = BEGAN_NS - self.monotonic_ns

    def monotonic(self) -> int:
        return self.monotonic_ns

    def wall(self) -> int:
        return self.monotonic_ns + self.offset_ns

    def time(self) -> WallTime:
        return WallTime(self.wall, self.monotonic)


def test_it_goes_on_with_the_monotonic_clock() -> None:
    hands = Hands()
    wall = hands.time()
    hands.offset_ns += SECOND // 2  # no step
    assert wall.follow(hands.monotonic_ns) == 0 and wall.steps == 0
    assert wall.of(60 * SECOND) == BEGAN_NS + 10 * SECOND


def test_a_clock_set_forward_or_a_machine_that_slept_is_followed_at_once() -> None:
    hands = Hands()
    wall = hands.time()
    before_ns = wall.of(hands.monotonic_ns)
    hands.offset_ns += HOUR
    assert wall.follow(hands.monotonic_ns) == HOUR and wall.steps == 1
    assert wall.follow(hands.monotonic_ns) == 0 and wall.steps == 1, "told once"
    assert wall.of(hands.monotonic_ns) == before_ns + HOUR == hands.wall()


def test_a_clock_set_back_is_come_down_to_slowly() -> None:
    hands = Hands()
    wall = hands.time()
    hands.offset_ns -= 10 * SECOND
    from_ns = hands.monotonic_ns
    assert wall.follow(from_ns) == -10 * SECOND
    assert wall.of(from_ns) == hands.wall() + 10 * SECOND
    hands.monotonic_ns += 5 * SECOND * SLOWER
    assert wall.of(hands.monotonic_ns) == hands.wall() + 5 * SECOND
    assert wall.follow(hands.monotonic_ns) == 0 and wall.steps == 1
    hands.monotonic_ns += 6 * SECOND * SLOWER
    assert wall.of(hands.monotonic_ns) == hands.wall()


@given(
    st.lists(
        st.tuples(st.integers(0, 20 * SECOND), st.one_of(st.just(0), st.integers(-HOUR, HOUR)), st.booleans()),
        max_size=60,
    )
)
def test_packets_never_go_back_in_time(moments: list[tuple[int, int, bool]]) -> None:
    hands = Hands()
    wall = hands.time()
    last_ns, times = hands.monotonic_ns, []
    for gap_ns, step_ns, looks in moments:
        hands.monotonic_ns += gap_ns
        hands.offset_ns += step_ns
        if looks:
            wall.follow(last_ns)
        last_ns = hands.monotonic_ns
        times.append(wall.of(last_ns))
    assert all(a <= b for a, b in pairwise(times))
    hands.monotonic_ns += 20_000 * HOUR * len(moments)
    wall.follow(last_ns)
    assert abs(wall.of(hands.monotonic_ns) - hands.wall()) <= SECOND, "in the end it is right"
