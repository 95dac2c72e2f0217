"""The vocabulary: contiguous ranges, bins no wider than promised, and the same again from its JSON."""

import json

import frames
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netssmd.codec import vocab as v
from netssmd.codec.vocab import IAT_BINS, LENGTH_BINS, WINDOW_BINS, LogBins, Stack, Statistics, Vocabulary

SMALL = Statistics().fit(())
MADE_UP: Vocabulary = frames.random_tokens().made_up_vocabulary()


@pytest.mark.parametrize("vocabulary", [SMALL, MADE_UP])
def test_fields_are_contiguous_and_in_order(vocabulary: Vocabulary) -> None:
    lo = 0
    for number, entry in enumerate(vocabulary.fields):
        assert entry.name == v.FIELD_NAMES[number]
        assert entry.lo == lo and entry.size > entry.tail >= 0
        assert vocabulary.field_of(lo) == vocabulary.field_of(lo + entry.size - 1) == number
        lo += entry.size
    assert vocabulary.size == lo


@pytest.mark.parametrize("vocabulary", [SMALL, MADE_UP])
def test_rows_follow_the_tokens_without_a_gap(vocabulary: Vocabulary) -> None:
    rows = list(range(vocabulary.size))
    rows += [vocabulary.label_row(label) for label in (*vocabulary.labels, None)]
    for condition in vocabulary.conditions:
        rows += range(condition.row, condition.unknown_row + 1)
    for base, (_, count) in zip(vocabulary.feature_base, v.FEATURES, strict=True):
        rows += range(base, base + count)
    assert rows == list(range(vocabulary.rows))
    assert vocabulary.width == 2 + len(v.CONDITIONS) + len(v.FEATURES)


def test_names_are_unique_and_the_end_is_named_as_tokenizers_do() -> None:
    names = MADE_UP.token_names()
    assert len(set(names)) == len(names) == MADE_UP.size
    assert names[MADE_UP.end] == "<|endoftext|>"
    assert names[MADE_UP.lo[v.IAT]] == "iat:0"


def test_the_same_again_from_json() -> None:
    again = Vocabulary.from_json(json.loads(json.dumps(MADE_UP.to_json())))
    assert again.to_json() == MADE_UP.to_json()
    assert (again.size, again.rows, again.lo, again.stacks) == (MADE_UP.size, MADE_UP.rows, MADE_UP.lo, MADE_UP.stacks)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"name": "bytes"}, "'bytes'"), ({"format": 99}, "99"), ({"size": 5}, "5 tokens"), ({"lengths": None}, "damaged"),
     ({"stacks": [[]]}, "damaged"), ({"lengths": [[1]]}, "numbers up to 65535"), ({"ports": [80, 80]}, "twice"),
     ({"labels": ["a\x1b[2J"]}, "letters"), ({"labels": "web"}, "no list"), ({"windows": [1] * 5000}, "at most 4096"),
     ({"stacks": [["02", 1, 1, 1, 1, 1]]}, "1 octets"), ({"stacks": [["", 1, 1, 1, 8, 1]]}, "up to 7"),
     ({"features": []}, "features are not"), ({"kinds": 5}, "kinds"), ({"more": 1}, "unknown key 'more'"),
     ({"stacks": [["zz", 1, 1, 1, 1, 1]]}, "non-hex")],
)  # fmt: skip
def test_another_codec_is_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Vocabulary.from_json({**MADE_UP.to_json(), **change})


def test_an_unknown_label_is_said_to_be_one() -> None:
    assert MADE_UP.label_row("lab") == MADE_UP.label_base
    with pytest.raises(KeyError, match="nonsense"):
        MADE_UP.label_row("nonsense")


# --- bins -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [IAT_BINS, LENGTH_BINS, WINDOW_BINS])
def test_bins_hold_their_numbers_and_are_no_wider_than_nine_percent(bins: LogBins) -> None:
    assert bins.count == len(bins.edges) - 1
    for member, (lo, hi) in enumerate(zip(bins.edges, bins.edges[1:], strict=False)):
        assert bins.find(lo) == bins.find(hi - 1) == member
        if lo >= 512:
            assert hi / lo < 1.0925
    assert bins.find(bins.edges[-1] * 7) == bins.count - 1


@given(st.integers(0, (1 << 44) - 1))
def test_a_gap_lies_in_its_bin(gap: int) -> None:
    member = IAT_BINS.find(gap)
    assert IAT_BINS.edges[member] <= gap < IAT_BINS.edges[member + 1]


@given(st.dictionaries(st.sampled_from([c[0] for c in v.CONDITIONS]), st.floats(-1e9, 1e9, allow_subnormal=False)))
def test_conditions_have_a_row_each(values: dict[str, float]) -> None:
    rows = SMALL.condition_rows(values)
    for row, condition in zip(rows, SMALL.conditions, strict=True):
        assert condition.row <= row <= condition.unknown_row
        assert (row == condition.unknown_row) == (condition.name not in values)


def test_conditions_grow_with_their_value() -> None:
    for name, first, _, _ in v.CONDITIONS:
        i = [c[0] for c in v.CONDITIONS].index(name)
        rows = [SMALL.condition_rows({name: first / 2 * 1.1**k})[i] for k in range(300)]
        assert rows == sorted(rows) and len(set(rows)) == len(SMALL.conditions[i].edges) + 1
    assert SMALL.condition_rows(None) == [c.unknown_row for c in SMALL.conditions]


# --- dictionaries -----------------------------------------------------------------------------------------------------


def test_dictionaries_hold_what_is_frequent_and_one_capture_does_not_rule() -> None:
    whole = Statistics()
    for i in range(5):
        one = Statistics()
        one.lengths.update({100: 10, 200 + i: 1_000_000})
        one.ports.update({443: 1})
        one.stacks.update({Stack(b"", 1, 64, 0, 2, False): 2})
        whole.merge(one)
    vocabulary = whole.fit(("a",))
    assert vocabulary.lengths == (200, 201, 202, 203, 204, 100)
    assert vocabulary.ports == (443,) and len(vocabulary.stacks) == 1
    assert Statistics().fit(()).lengths == ()


def test_fitting_does_not_depend_on_the_order_of_captures() -> None:
    parts = []
    for i in range(6):
        one = Statistics()
        one.lengths.update({n: 5 + n % 3 for n in range(i, i + 400)})
        parts.append(one)
    forward, backward = Statistics(), Statistics()
    for one in parts:
        forward.merge(one)
    for one in reversed(parts):
        backward.merge(one)
    assert forward.fit(()).lengths == backward.fit(()).lengths
    assert len(forward.fit(()).lengths) == 256
