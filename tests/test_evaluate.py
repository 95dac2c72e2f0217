"""`netssmd evaluate`: distances of known sets, the classifiers on easy cases, the report, what goes wrong."""

import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from traces import BYE, HELLO, TALK, headers

from netssmd import cli
from netssmd.errors import UsageError
from netssmd.learn.evaluate import classify, compare, referees
from netssmd.learn.evaluate.sessions import Session, find, load
from netssmd.packet.pcap import Packet, PcapWriter
from netssmd.packet.render import render

stats = pytest.importorskip("scipy.stats")
pytest.importorskip("sklearn")

LABELS = ("talk", "knock")


def write(path: Path, label: str, seed: int, port: int = 40000) -> None:
    """A session: `talk` is a conversation with a download, `knock` is a SYN scan."""
    rng = random.Random(f"{label} {seed}")
    packets, now = [], 10**18 + seed * 10**12
    lines = []
    if label == "talk":
        lines, sent = [(line, port) for line in TALK], 1001
        for _ in range(rng.randrange(5, 15)):
            length = rng.randrange(400, 1400)
            lines += [(f"B P. {sent} 101 {length}", port), (f"A . 101 {sent + length}", port)]
            sent += length
        lines += [(line.replace("1001", str(sent)).replace("1002", str(sent + 1)), port) for line in BYE]
    else:
        for i in range(rng.randrange(8, 20)):
            lines += [("A S 0 0", port + i), ("B R. 0 1", port + i)]
    for line, at in lines:
        now += rng.randrange(1_000_000, 20_000_000) if label == "talk" else rng.randrange(50_000, 90_000)
        packets.append(Packet(now, *render(headers(line, a_port=at))))
    with path.open("wb") as file:
        writer = PcapWriter(file)
        writer.write_many(packets)
        writer.flush()


def make(root: Path, seeds: range, split: str = "val", labels: tuple[str, ...] = LABELS) -> Path:
    """A folder as `netssmd generate` writes it."""
    root.mkdir(parents=True, exist_ok=True)
    manifest = root / "manifest.csv"
    if not manifest.exists():
        manifest.write_text("file,label,split,rtt_ms,capped\n")
    with manifest.open("a") as file:
        for label in labels:
            for seed in seeds:
                write(root / f"{label}-{seed}.pcap", label, seed)
                file.write(f"{label}-{seed}.pcap,{label},{split},20,0\n")
    return root


def read(root: Path, split: str | None = None) -> list[Session]:
    return load(find(root, split), lambda: None)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make(tmp_path_factory.mktemp("sets") / "real", range(12), "val")
    return make(folder, range(100, 112), "train")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("sets") / "synthetic", range(200, 212), "train")


def cells(tables: list[compare.Table], label: str) -> dict[str, compare.Cell]:
    return {f"{table.name}: {name}": cell for table in tables for name, cell in table.lines[label].items()}


# ---- measures and distances


def test_a_session_is_what_the_capture_holds(tmp_path: Path) -> None:
    write(tmp_path / "one.pcap", "talk", 1)
    (session,) = read(tmp_path)
    assert session.packets == len(session.sizes) == len(session.up)
    assert session.up[:4].tolist() == [True, False, True, True]
    assert session.sizes[:4].tolist() == [54, 54, 54, 154]
    assert set(session.flow.tolist()) == {0} and set(session.port_class.tolist()) == {0}
    assert session.times_ns[0] == 0 and session.rtts_ns == (int(session.times_ns[2]),)
    assert session.tcp.endings["fin_both"] == 1


def test_direction_follows_the_flow_even_if_its_answer_was_captured_first(tmp_path: Path) -> None:
    with (tmp_path / "x.pcap").open("wb") as file:
        writer = PcapWriter(file)
        writer.write_many(Packet(i, *render(headers(line))) for i, line in enumerate(HELLO[1:]))
        writer.flush()
    assert read(tmp_path)[0].up.tolist() == [False, True]


def test_distances_are_scipys() -> None:
    from scipy.spatial.distance import jensenshannon

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=80), np.round(rng.normal(0.5, size=120), 1)
    assert compare.ks(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic)
    p, q = rng.integers(0, 5, 50), rng.integers(0, 9, 50)
    assert compare.js(p, q) == pytest.approx(jensenshannon(p, q))
    assert compare.js(np.array([1, 0]), np.array([0, 5])) == pytest.approx(np.sqrt(np.log(2)))


def test_identical_sets_have_no_distance(real: Path) -> None:
    sessions = read(real, "val")
    tables = compare.compare(sessions, sessions, sessions)
    for label in (*LABELS, compare.OVERALL):
        for name, cell in cells(tables, label).items():
            if cell.distance:
                assert cell.synthetic == cell.floor == pytest.approx(0, abs=1e-9), name
            else:
                assert cell.real == cell.synthetic == cell.floor, name


def test_different_labels_are_far_apart_and_flows_are_told(real: Path) -> None:
    talks, knocks = ([s for s in read(real, "val") if s.label == label] for label in LABELS)
    assert compare.ks(compare.sizes(talks), compare.sizes(knocks)) > 0.3
    of = cells(compare.compare(talks, talks), "talk")
    assert of["TCP flows: handshake"].real == of["TCP flows: FIN both"].real == 1
    assert of["TCP flows: handshake"].floor is None
    of = cells(compare.compare(knocks, knocks), "knock")
    assert of["TCP flows: handshake"].real == 0 and of["TCP flows: RST"].real == 1
    assert of["round trips: ms (median)"].real is None


# ---- classifiers


def test_labels_are_learnt_and_shuffled_ones_are_not(real: Path, synthetic: Path) -> None:
    train, test = (classify.samples(read(root), 100) for root in (synthetic, real))
    found = classify.label_test(train, test, LABELS, trees=20)
    assert found is not None and found.accuracy == 1 and found.chance == 0.5 and found.mistaken == {}
    accuracies = []
    for seed in range(5):
        shuffled = classify.Samples(np.random.default_rng(seed).permutation(train.labels), train.rows)
        again = classify.label_test(shuffled, test, LABELS, trees=20)
        assert again is not None
        accuracies.append(again.accuracy)
    assert 0.2 < np.mean(accuracies) < 0.8
    assert classify.label_test(train, test, ["talk", "unheard"], trees=2) is None


def test_features_see_no_address_and_no_port_number(tmp_path: Path) -> None:
    write(tmp_path / "a.pcap", "talk", 3)
    write(tmp_path / "b.pcap", "talk", 3, port=50123)
    a, b = (classify.features(session, 100) for session in read(tmp_path))
    assert a == b and all(isinstance(value, float) for value in a)


def test_the_discriminator_tells_what_differs(real: Path, synthetic: Path) -> None:
    a, b = classify.samples(read(real, "val"), 100), classify.samples(read(synthetic), 100)
    same = classify.discriminate(a, b)
    slower = classify.discriminate(a, classify.Samples(b.labels, b.rows + 1000))
    assert same is not None and 0.2 < same.auc < 0.8
    assert slower is not None and slower.auc == 1 and slower.each == 24


def test_copies_are_found(real: Path, synthetic: Path) -> None:
    train = read(real, "train")
    assert classify.copied(train, train) == {"knock": 1, "talk": 1}
    assert classify.copied(read(synthetic), train)["talk"] == 0


# ---- the command


def test_the_report(real: Path, synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["-o", str(tmp_path / "out"), "--trees", "5", "--labels", "talk,knock", "--bootstrap", "3"]
    argv = ["evaluate", str(real), str(synthetic), *output]
    assert cli.run(argv) == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    text = (tmp_path / "out" / "report.md").read_text()
    assert next(iter(report["topics"])) == "headlines"
    for topic in report["topics"]:
        assert topic.upper() in out and f"## {topic}" in text
    assert report["sets"]["floor"]["sessions"] == 24
    handshake = {"real": 1, "synthetic": 1, "floor": 1, "interval": [1, 1]}
    assert report["topics"]["TCP flows"]["talk"]["handshake"] == handshake
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count("<svg") >= 6 and "figures 2, 5, 6" in html and "http-equiv" not in html
    assert report["topics"]["label test"]["chosen labels"]["synthetic"]["accuracy"] == 1
    assert cli.run([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["topics"] == report["topics"]


def test_without_a_floor_the_real_captures_are_halved(
    synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make(tmp_path / "one", range(3), "val", ("talk",))
    argv = ["evaluate", str(one), str(synthetic), "-o", str(tmp_path / "out"), "--trees", "2", "--mixing", "none"]
    assert cli.run(argv) == 0
    captured = capsys.readouterr()
    assert "floor: 1 sessions" in captured.out and "half of each label's is the floor" in captured.err


def test_a_damaged_capture_is_told_and_the_rest_judged(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "some", range(4))
    (folder / "talk-0.pcap").write_bytes(b"nothing of the kind")
    whole = (folder / "talk-1.pcap").read_bytes()
    (folder / "talk-1.pcap").write_bytes(whole[:-3])
    assert cli.run(["evaluate", str(real), str(folder), "-o", str(tmp_path / "out"), "--trees", "2", "--json"]) == 0
    captured = capsys.readouterr()
    named = [line.split(": ")[1] for line in captured.err.splitlines()]
    assert named == [str(folder / f"talk-{i}.pcap") for i in (0, 1)]
    assert json.loads(captured.out)["sets"]["synthetic"]["sessions"] == 7


@pytest.mark.parametrize(
    ("real_argument", "more", "expected"),
    [
        ("nowhere", [], "nowhere: no such file or folder"),
        (".", [], "found no captures at all"),
        ("real", ["--only", "chess"], "looked for chess, split val, found knock (train)"),
        ("real", ["--split", "test"], "looked for split test"),
    ],
)
def test_wrong_arguments_are_one_line(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], real_argument: str, more: list[str], expected: str
) -> None:
    (tmp_path / "empty").mkdir()
    root = {"real": str(real), ".": str(tmp_path / "empty")}.get(real_argument, real_argument)
    assert cli.run(["evaluate", root, str(real), "-o", str(tmp_path / "out"), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_other_labels_cannot_be_judged(real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "chess"
    other.mkdir()
    write(other / "1.pcap", "talk", 1)
    assert cli.run(["evaluate", str(real), str(other), "-o", str(tmp_path / "out")]) == 2
    assert "its labels (chess) are not in" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(UsageError, match=r"pip install 'netssmd\[evaluate\]'"):
        classify.forest(1, 0)


# ---- referees


@pytest.mark.skipif(not shutil.which("tshark"), reason="no tshark")
def test_tshark_counts_what_was_planted(tmp_path: Path) -> None:
    write(tmp_path / "talk.pcap", "talk", 1)
    assert referees.ask_tshark("tshark", tmp_path / "talk.pcap") == {referees.STREAMS: 1, referees.COMPLETE: 1}
    frames = [render(headers(line)) for line in [*TALK, "B P. 1 101 1000", "A . 101 3001"]]
    frames[3] = (frames[3][0][:50] + b"\x12\x34" + frames[3][0][52:], frames[3][1])  # TCP checksum
    frames[4] = (frames[4][0][:24] + b"\x12\x34" + frames[4][0][26:], frames[4][1])  # IP checksum
    with (tmp_path / "bad.pcap").open("wb") as file:
        writer = PcapWriter(file)
        writer.write_many(Packet(i * 50_000_000, *frame) for i, frame in enumerate(frames))
        writer.flush()
    counts = referees.ask_tshark("tshark", tmp_path / "bad.pcap")
    assert counts["bad TCP checksum"] == counts["bad IP checksum"] == counts["ack_lost_segment"] == 1
    assert counts["retransmission"] + counts["out_of_order"] == 1
    assert counts["expert: error"] >= 2


@pytest.mark.skipif(not shutil.which("suricata"), reason="no suricata")
def test_suricata_counts_what_was_planted(tmp_path: Path) -> None:
    frames = [render(headers(line)) for line in [*TALK, "A . 101 900001"]]
    frames[4] = (frames[4][0][:50] + b"\x12\x34" + frames[4][0][52:], frames[4][1])  # TCP checksum
    with (tmp_path / "bad.pcap").open("wb") as file:
        writer = PcapWriter(file)
        writer.write_many(Packet(10**18 + i * 50_000_000, *frame) for i, frame in enumerate(frames))
        writer.flush()
    counts = referees.ask_suricata(tmp_path / "bad.pcap", tmp_path)
    assert counts[referees.CHECKSUMS] == 1 and counts["suricata: stream events"] >= 1
    assert counts["suricata: stream.pkt_invalid_ack"] == 1 and counts["suricata: decoder events"] == 0
    (tmp_path / "none.pcap").write_bytes(b"")
    assert referees.ask_suricata(tmp_path / "none.pcap", tmp_path) == {}


@pytest.mark.skipif(
    not all(map(shutil.which, ("tshark", "capinfos", "suricata"))), reason="no tshark, no capinfos or no suricata"
)
def test_referees_on_files_as_they_are_and_rendered_alike(tmp_path: Path) -> None:
    write(tmp_path / "talk.pcap", "talk", 1)
    for rendered in (True, False):
        verdict = referees.referee(read(tmp_path), rendered, lambda: None)
        assert (verdict.captures, verdict.in_order, verdict.skipped) == (1, 1, [])
        complaints = {name for name in verdict.rows() if verdict.counts[name]}  # a SYN of this trace has an ack number
        assert complaints <= {"suricata: stream events", "suricata: stream.pkt_broken_ack"}
        assert verdict.per_1000("malformed") == 0
        assert verdict.counts[referees.STREAMS] == verdict.counts[referees.COMPLETE] == 1


def test_a_missing_referee_is_skipped_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "talk.pcap", "talk", 1)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    verdict = referees.referee(read(tmp_path), True, lambda: None)
    assert verdict.in_order is None and verdict.per_1000("malformed") is None
    assert verdict.skipped[1] == "tshark: not installed (apt-get install tshark)"
