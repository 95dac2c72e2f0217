"""Streams: the same for ever, unbiased, and permutations that really are permutations."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netssmd.engine.sampling import Stream, derive, permute


def test_splitmix64_known_answers() -> None:
    """Vigna's reference splitmix64.c, seed 1234567."""
    stream = Stream(1234567)
    assert [stream.u64() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_snapshot_is_the_counter() -> None:
    stream = Stream(derive(1, "tokens"))
    [stream.uniform() for _ in range(100)]
    later = Stream(stream.key, stream.counter)
    assert [stream.u64() for _ in range(10)] == [later.u64() for _ in range(10)]


def test_derived_keys_do_not_collide() -> None:
    keys = {
        derive(s, *n) for s in (0, 1, -1, 10) for n in [(), ("a",), ("a", "b"), ("ab",), (7,), ("7",), (7, 8), (78,)]
    }
    assert len(keys) == 4 * 8


def test_a_uniform_stays_below_one_as_float32() -> None:
    stream = Stream(5)
    draws = [stream.uniform() for _ in range(20000)]
    assert all(0.0 <= d < 1.0 and struct.unpack("f", struct.pack("f", d))[0] == d for d in draws)
    assert abs(sum(draws) / len(draws) - 0.5) < 0.01


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**90))
def test_below_stays_below(key: int, n: int) -> None:
    assert 0 <= Stream(key).below(n) < n


def test_below_is_uniform() -> None:
    stream = Stream(99)
    counts = [0] * 7
    for _ in range(70000):
        counts[stream.below(7)] += 1
    assert sum((c - 10000) ** 2 / 10000 for c in counts) < 22.5  # chi squared, 6 degrees of freedom, p = 0.001
    with pytest.raises(ValueError):
        stream.below(0)


def test_choice_follows_the_weights_and_never_takes_a_zero() -> None:
    stream = Stream(3)
    counts = [0, 0, 0]
    for _ in range(30000):
        counts[stream.choice([1.0, 1.0, 4.0])] += 1
    assert counts[1] == 0 and abs(counts[0] / 30000 - 0.25) < 0.01


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


def test_permute_takes_any_size() -> None:
    seen = {permute(i, 2**79 - 3, 11) for i in range(1000)}
    assert len(seen) == 1000 and max(seen) > 2**76
