"""Streams: whole sessions one after another, resets at their starts, nothing lost between segments, and the order
resumable."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from learn_data import write_data

from netssmd.learn.dataset import Shard, open_dataset
from netssmd.learn.streams import Order, Pass, Rows, Streams, choose_sessions, session_weights


@pytest.fixture
def shard_and_rows(tmp_path: Path) -> tuple[Shard, Rows]:
    vocabulary = write_data(tmp_path / "data")
    return open_dataset(tmp_path / "data").train, Rows.of(vocabulary)


@pytest.mark.parametrize("segment", [1, 7, 64, 1000])
def test_a_stream_is_whole_sessions(shard_and_rows: tuple[Shard, Rows], segment: int) -> None:
    shard, rows = shard_and_rows
    streams = Streams(shard, rows, 2, seed=5)
    parts = [streams.next(segment) for _ in range(2000 // segment)]
    targets = np.concatenate([p.targets for p in parts], 1)
    resets = np.concatenate([p.reset for p in parts], 1)
    inputs = np.concatenate([p.rows for p in parts], 1)
    sessions = {shard.tokens[s["start"] : s["start"] + s["length"]].tobytes(): s for s in shard.sessions}
    for b in range(2):
        starts = np.flatnonzero(resets[b])
        assert starts[0] == 0
        for begin, end in itertools.pairwise(starts):
            session = sessions[targets[b, begin:end].tobytes()]
            where = slice(session["start"], session["start"] + session["length"])
            assert inputs[b, begin, 0] == rows.begin[rows.unknown_label]
            np.testing.assert_array_equal(inputs[b, begin + 1 : end, 0], targets[b, begin : end - 1])
            assert set(inputs[b, begin:end, 1]) == {rows.label(session["label"])}
            np.testing.assert_array_equal(inputs[b, begin:end, 2:5], [session["conditions"]] * (end - begin))
            np.testing.assert_array_equal(inputs[b, begin:end, 5:], shard.features[where])


def test_a_window_is_a_piece_of_a_session(shard_and_rows: tuple[Shard, Rows]) -> None:
    """From anywhere in it, beginnings included; the state begins anew, the input before it is what stood there."""
    shard, rows = shard_and_rows
    streams = Streams(shard, rows, 1, seed=5, window=20)
    batch = streams.next(20_000)
    starts = [*np.flatnonzero(batch.reset[0]).tolist(), 20_000]
    text, places = shard.tokens.tobytes(), []
    for begin, end in itertools.pairwise(starts[:-1]):
        assert 1 <= end - begin <= 20
        piece = batch.targets[0, begin:end]
        at = text.find(piece.tobytes())
        found = []
        while at >= 0:
            if at % piece.itemsize == 0:
                found.append(at // piece.itemsize)
            at = text.find(piece.tobytes(), at + 1)
        begins, first = shard.sessions["start"], rows.begin[rows.unknown_label]
        assert batch.rows[0, begin, 0] in [first if at in begins else shard.tokens[at - 1] for at in found]
        np.testing.assert_array_equal(batch.rows[0, begin + 1 : end, 0], piece[:-1])
        places += found[:1]
    beginnings = sum(place in shard.sessions["start"] for place in places)
    assert 0 < beginnings < len(places) and len(set(places)) > 100


def test_packets_of_a_batch_add_up(shard_and_rows: tuple[Shard, Rows]) -> None:
    shard, rows = shard_and_rows
    run = Pass(shard, rows, list(range(len(shard.sessions))), 3)
    total = sum(run.next(length).packets for length in run.lengths(50))
    assert total == pytest.approx(shard.packets, rel=1e-5)


@pytest.mark.parametrize("window", [0, 50])
def test_going_on_from_a_saved_place(shard_and_rows: tuple[Shard, Rows], window: int) -> None:
    shard, rows = shard_and_rows
    options = {"seed": 2, "alpha": 0.5, "drop_label": 0.3, "drop_conditions": 0.3, "window": window}
    whole, first = Streams(shard, rows, 3, **options), Streams(shard, rows, 3, **options)
    for _ in range(5):
        whole.next(33)
        first.next(33)
    second = Streams(shard, rows, 3, **options, state=json.loads(json.dumps(first.state())))
    for _ in range(20):
        np.testing.assert_array_equal(whole.next(33).rows, second.next(33).rows)


def test_every_session_is_heard_once_before_any_is_heard_three_times(shard_and_rows: tuple[Shard, Rows]) -> None:
    shard, _ = shard_and_rows
    order = Order(session_weights(shard, 0.0), seed=1)
    n = len(shard.sessions)
    epochs = [[order.next()[0] for _ in range(n)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_balance_gives_labels_equal_shares(shard_and_rows: tuple[Shard, Rows]) -> None:
    shard, _ = shard_and_rows
    sessions = shard.sessions.copy()
    sessions["length"][sessions["label"] == 1] *= 50
    long = Shard(shard.tokens, shard.limits, shard.features, sessions)
    order = Order(session_weights(long, 1.0), seed=1)
    heard = np.zeros(3)
    for _ in range(20_000):
        session = sessions[order.next()[0]]
        heard[session["label"]] += session["length"]
    assert heard / heard.sum() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_labels_and_conditions_are_left_untold_as_often_as_asked(shard_and_rows: tuple[Shard, Rows]) -> None:
    shard, rows = shard_and_rows
    streams = Streams(shard, rows, 1, drop_label=0.2, drop_conditions=0.4)
    visits = [streams._visit() for _ in range(4000)]
    assert np.mean([v.label == rows.unknown_label for v in visits]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([v.conditions == rows.unknown_conditions for v in visits]) == pytest.approx(0.4, abs=0.03)


def test_a_pass_reads_each_session_once_and_can_tell_a_wrong_label(shard_and_rows: tuple[Shard, Rows]) -> None:
    shard, rows = shard_and_rows
    chosen = choose_sessions(shard, 0, seed=0)
    run = Pass(shard, rows, chosen, 4, shift=1)
    counted, told = 0, set()
    for length in run.lengths(40):
        batch = run.next(length)
        used = batch.label != Pass.LEFT_OVER
        counted += int(used.sum())
        told |= {(int(label), int(row)) for label, row in zip(batch.label[used], batch.rows[used][:, 1], strict=True)}
    assert counted == len(shard.tokens)
    assert told == {(label, rows.labels[(label + 1) % 3]) for label in range(3)}


def test_validation_hears_every_label_within_its_budget(shard_and_rows: tuple[Shard, Rows]) -> None:
    shard, _ = shard_and_rows
    sessions = shard.sessions.copy()
    sessions["length"][np.flatnonzero(sessions["label"] == 0)[1:]] *= 100
    long = Shard(shard.tokens, shard.limits, shard.features, sessions)
    for seed in range(10):
        chosen = choose_sessions(long, 700, seed)
        assert set(sessions["label"][chosen]) == {0, 1, 2} and len(set(chosen)) == len(chosen)
        assert sessions["length"][chosen].sum() <= 700
    assert len(choose_sessions(shard, 1, seed=0)) == 3, "one of each label, whatever the budget"
    assert sorted(choose_sessions(shard, 0, seed=0)) == list(range(len(sessions)))
