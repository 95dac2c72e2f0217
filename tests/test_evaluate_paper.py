"""Segments, mixtures, memory, intervals, the page: on traces of which the answer is known."""

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from test_evaluate import LABELS, make, read, write
from traces import BYE, HELLO, headers

from netssmd.learn.evaluate import bootstrap, memorised, mixing, page, paper, segments
from netssmd.learn.evaluate.report import Sheet
from netssmd.learn.evaluate.sessions import Session
from netssmd.packet.pcap import Packet, PcapWriter
from netssmd.packet.render import render

pytest.importorskip("scipy.stats")
pytest.importorskip("sklearn")


def session_of(path: Path, lines: list[str]) -> Session:
    path.mkdir()
    with (path / "one.pcap").open("wb") as file:
        writer = PcapWriter(file)
        writer.write_many(Packet(10**18 + i * 10**7, *render(headers(line))) for i, line in enumerate(lines))
        writer.flush()
    return read(path)[0]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Session]]:
    root = tmp_path_factory.mktemp("paper")
    seeds = {"real": range(10), "floor": range(100, 112), "synthetic": range(200, 212)}
    return {name: read(make(root / name, some)) for name, some in seeds.items()}


# ---- segments


def test_a_request_closes_a_segment_only_if_something_came(tmp_path: Path) -> None:
    talk = [
        "A P. 1 1 100", "B . 1 101 1000", "B P. 1001 101 500", "A . 101 1501",  # 1,500 bytes down
        "A P. 101 1501 50", "A P. 151 1501 50",  # two requests in a row: one segment
        "B P. 1501 201 2000", "A . 201 3501",
        "A P. 201 3501 10",  # never answered
    ]  # fmt: skip
    session = session_of(tmp_path / "s", [*HELLO, *talk])
    found = segments.segments(session)
    assert found.sizes.tolist() == [1.5, 2.0]
    assert found.averages.tolist() == [1.75] and found.counts.tolist() == [2]


def test_data_before_any_request_is_a_segment_too(tmp_path: Path) -> None:
    session = session_of(tmp_path / "s", [*HELLO, "B P. 1 1 300", "A . 1 301", "A P. 1 301 20", "B P. 301 21 700"])
    assert segments.segments(session).sizes.tolist() == [0.3, 0.7]


def test_a_session_without_downloads_has_no_segments(tmp_path: Path) -> None:
    found = segments.segments(session_of(tmp_path / "s", [*HELLO, *BYE[:2]]))
    assert len(found.sizes) == len(found.averages) == len(found.counts) == 0


def test_table_5_has_the_floor_and_the_random_baseline(tmp_path: Path) -> None:
    asks = [line for i in range(3) for line in (f"A P. {1 + 10 * i} 1 10", f"B P. {1 + 900 * i} 11 {400 + 200 * i}")]
    session = session_of(tmp_path / "s", [*HELLO, *asks])
    twice = dataclasses.replace(session, servers=session.servers, payload=session.payload * 2)
    sheet = paper.table5([session], [twice], [session], 0)
    rows = {row[0]: row for row in sheet.rows}
    assert rows["raw size, kB: synthetic"][1:5] == ("1", "0.6", "0.6", "0.163")
    assert rows["raw size, kB: real against real (floor)"][2:6] == ("0", "0", "0", "0")
    assert "raw size, kB: random, skewed to the right" in rows
    assert not [name for name in rows if name.startswith("segments")]  # one sender: one count, nothing to compare


def test_measures_of_equal_and_of_distant_samples() -> None:
    rng = np.random.default_rng(0)
    sample = rng.lognormal(3, 1, 300)
    same = dict(zip(segments.COLUMNS, segments.measured(sample, sample.copy())))
    assert same["KS"] == same["EMD"] == same["KL nats"] == same["mean delta"] == 0 and same["AD p"] > 0.2
    other = dict(zip(segments.COLUMNS, segments.measured(sample, sample + 1000)))
    assert other["KS"] == 1 and other["KS p"] < 1e-6 and other["AD p"] <= 0.02 and other["KL nats"] > 1
    assert other["median delta"] == pytest.approx(1000) and other["EMD"] == pytest.approx(1000)
    assert segments.anderson(np.ones(5), np.ones(9), 0) == (0.0, 1.0)


def test_the_random_baseline_stays_between_least_and_greatest_and_leans_to_the_left() -> None:
    real = np.linspace(10, 20, 1000)
    values = segments.skewed(real, np.random.default_rng(0))
    assert len(values) == 1000 and values.min() >= 10 and values.max() <= 20 and np.median(values) < 12.5


# ---- mixtures


def test_mixtures_replace_real_sessions_by_as_many_synthetic_ones() -> None:
    parts = mixing.Parts(np.arange(10), np.arange(100, 103), np.arange(200, 203))
    for percent, made in ((0, 0), (30, 3), (50, 5), (100, 10)):
        real, synthetic = mixing.mixture(parts, percent)
        assert len(real) == 10 - made and len(synthetic) == made
        assert set(synthetic) <= {100, 101, 102}


def test_who_is_tested_was_never_trained_on(sets: dict[str, list[Session]]) -> None:
    parts = mixing.split(sets["floor"], sets["synthetic"], 0)
    assert set(parts) == set(LABELS)
    for label, part in parts.items():
        assert not set(part.synthetic) & set(part.held) and len(part.real) == 12
        assert {sets["synthetic"][i].label for i in (*part.synthetic, *part.held)} == {label}


def test_curves_of_labels_that_differ_and_of_labels_that_are_wrong(sets: dict[str, list[Session]]) -> None:
    right = mixing.curves(sets["floor"], sets["real"], sets["synthetic"], models=("decision tree",))
    assert {(c.level, c.variant, c.test) for c in right} == set(
        itertools.product(("label", "category"), mixing.VARIANTS, ("real", "synthetic"))
    )
    assert all(c.accuracies == (1.0,) * len(mixing.SHARES) for c in right)
    other = {"talk": "knock", "knock": "talk"}
    swapped = [dataclasses.replace(session, label=other[session.label]) for session in sets["synthetic"]]
    wrong = mixing.curves(sets["floor"], sets["real"], swapped, models=("decision tree",))
    curve = next(c for c in wrong if (c.level, c.variant, c.test) == ("label", "all columns", "real"))
    assert curve.accuracies[0] == 1 and curve.accuracies[-1] == 0


def test_too_few_sessions_give_no_curves(sets: dict[str, list[Session]]) -> None:
    assert mixing.curves(sets["floor"][:3], sets["real"], sets["synthetic"]) == []


# ---- memory


def test_what_was_copied_is_found_and_what_was_not_is_not(sets: dict[str, list[Session]], tmp_path: Path) -> None:
    memory = memorised.Memory.of(sets["floor"])
    again = memory.shares(sets["floor"])
    assert all(share == 1 for n, share in again.values() if n)
    talks = [session for session in sets["synthetic"] if session.label == "talk"]
    assert memory.shares(talks)["flows"][1] == 0
    write(tmp_path / "copy.pcap", "talk", 100)  # the first one of the floor
    copy = read(tmp_path)
    assert memory.shares(copy)["flows"] == (1, 1.0) and memory.shares(copy)["runs of sizes and gaps"][1] == 1


def test_identifiers_found_again_are_counted_beside_chance(sets: dict[str, list[Session]]) -> None:
    memory = memorised.Memory.of(sets["floor"])
    found = memory.identifiers_of(sets["floor"])
    for name, (n, known, _) in found.items():
        assert n == known, name
    n, known, chance = found["IPv4 addresses"]
    assert n >= 2 and 0 < chance < 0.1
    assert memorised.Memory.of(sets["floor"][:1]).identifiers_of([])["MAC addresses"] == (0, 0, 0)


# ---- intervals


def test_intervals_hold_the_value_and_shrink_with_the_number_of_cases() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for n in (50, 5000):
        right = rng.random(n) < 0.7
        low, high = bootstrap.of_score(lambda chosen, r=right: float(r[chosen].mean()), n) or (0, 0)
        assert low < right.mean() < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5
    assert bootstrap.interval([1.0, None]) is None and bootstrap.of_score(lambda chosen: 1.0, 0) is None


def test_resampling_keeps_groups_and_their_sizes() -> None:
    groups = {"a": [1, 2, 3], "b": [4]}
    drawn = bootstrap.resample(groups, np.random.default_rng(1))
    assert {name: len(some) for name, some in drawn.items()} == {"a": 3, "b": 1} and set(drawn["a"]) <= {1, 2, 3}


# ---- sheets and the page


def test_every_score_of_the_papers_tables_has_its_floor(sets: dict[str, list[Session]]) -> None:
    real, synthetic, floor = sets["real"], sets["synthetic"], sets["floor"]
    for sheet in paper.table2(real, synthetic, floor):
        ours, theirs, chance = (sheet.rows[i] for i in range(3))
        assert ours[0] == "synthetic" and theirs[0] == "real against real (floor)" and chance[0].startswith("random")
        assert "nan" not in str(sheet.rows)
        assert max(float(ours[1]), float(theirs[1])) < float(chance[1])
    by_byte = paper.table2(real, real, real)[0]
    assert by_byte.rows[0][1:] == ("0.000",) * 4
    three = paper.table3(real, synthetic, floor)
    handshake = three.data["handshake"]["flows"]
    assert 0 < handshake["synthetic"] < 1 and handshake["real"] is not None and handshake["floor"] is not None


def test_the_page_needs_nothing_but_itself_and_escapes_what_it_shows() -> None:
    sheet = Sheet("headlines", "a <note>", ("", "x"), [("<script>", "1")])
    text = page.page("a & b", ["about"], [sheet, Sheet("more", "", ("",), [])], [("picture", "<svg></svg>")])
    assert "<script>" not in text and "&lt;script&gt;" in text and "a &amp; b" in text
    assert not re.search(r"(src|href)=|https?://", text) and text.count("<details>") == 1
