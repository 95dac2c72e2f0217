"""Prepare: labels, splits and conditions from folders and manifests; one bad file is one line; workers change
nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from learn_data import PacketCodec, write_capture

from netssmd.codec.vocab import Vocabulary
from netssmd.errors import OutputError, UsageError
from netssmd.learn.byte_codec import ByteCodec
from netssmd.learn.codec import ContextCodec
from netssmd.learn.dataset import open_dataset
from netssmd.learn.prepare import Prepared, find_sources, prepare, stable_split, vocabulary_of
from netssmd.packet.pcap import Packet, PcapWriter


@pytest.fixture
def captures(tmp_path: Path) -> Path:
    folder = tmp_path / "captures"
    for label, files in (("web", 12), ("dns", 8)):
        for number in range(files):
            write_capture(folder / label / f"{number}.pcap.gz", 5 + number, seed=number)
    return folder


def run(folder: Path, target: Path, **options: object) -> Prepared:
    return prepare([folder], target, PacketCodec(), **{"workers": 1, **options})  # type: ignore[arg-type]


def test_folders_are_labels_and_names_decide_the_split(captures: Path, tmp_path: Path) -> None:
    prepared = run(captures, tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    assert not prepared.problems
    assert dataset.vocabulary["labels"] == ["dns", "web"]
    files = json.loads((tmp_path / "data" / "files.json").read_text())["files"]
    assert {f["file"]: f["split"] for f in files} == {f["file"]: stable_split(f["file"]) for f in files}
    assert len(files) == 20
    for shard in (dataset.train, dataset.val):
        for record in shard.sessions:
            assert files[record["file"]]["label"] == dataset.vocabulary["labels"][record["label"]]
            assert record["length"] == 2 * record["packets"] + 1
    assert sum(t.packets for t in prepared.tallies.values()) == dataset.train.packets + dataset.val.packets


def test_a_tenth_is_for_validation() -> None:
    assert np.mean([stable_split(f"web/{n}.pcap") == "val" for n in range(5000)]) == pytest.approx(0.1, abs=0.015)


def test_the_manifest_decides(captures: Path, tmp_path: Path) -> None:
    (captures / "manifest.csv").write_text(
        "file,label,split,capped,rtt_ms,rate_mbit,seed\n"
        "web/0.pcap.gz,video,val,1,12.5,,7\n"
        "web/1.pcap.gz,,train,0,fast,50,7\n"
        "web/2.pcap.gz,web,holdout,0,1,1,7\n"
        "web/99.pcap.gz,web,train,0,1,1,7\n"
    )
    prepared = run(captures, tmp_path / "data")
    files = {f["file"]: f for f in json.loads((tmp_path / "data" / "files.json").read_text())["files"]}
    assert (
        files["web/0.pcap.gz"] | {"label": "video", "split": "val", "capped": True, "conditions": {"rtt_ms": 12.5}}
        == files["web/0.pcap.gz"]
    )
    assert files["web/1.pcap.gz"]["label"] == "web" and files["web/1.pcap.gz"]["conditions"] == {"rate_mbit": 50.0}
    assert "web/2.pcap.gz" not in files
    assert {name: reason.split()[0] for name, reason in prepared.problems} == {
        "web/1.pcap.gz": "rtt_ms",
        "web/2.pcap.gz": "split",
        "web/99.pcap.gz": "named",
    }
    dataset = open_dataset(tmp_path / "data")
    vocabulary = PacketCodec().load(dataset.vocabulary)
    names = json.loads((tmp_path / "data" / "files.json").read_text())["files"]
    for record in dataset.val.sessions:
        name = names[record["file"]]["file"]
        last = dataset.val.tokens[record["start"] + record["length"] - 1]
        assert (last == vocabulary.end) == (name != "web/0.pcap.gz"), "a capped session has no END"
        if name == "web/0.pcap.gz":
            assert record["conditions"].tolist() == vocabulary.condition_rows({"rtt_ms": 12.5})


def test_a_manifest_in_the_folder_above_is_found(captures: Path) -> None:
    (captures / "manifest.csv").write_text("file,label\nweb/0.pcap.gz,video\n")
    sources, problems = find_sources([captures / "web"])
    assert {s.name: s.label for s in sources}["0.pcap.gz"] == "video"
    assert not problems, "what lies elsewhere is not missing"


def test_bad_files_are_told_and_skipped(captures: Path, tmp_path: Path) -> None:
    (captures / "web" / "notes.txt").write_text("no capture")
    (captures / "web" / "empty.pcap").write_text("")
    (captures / ".hidden").write_text("never looked at")
    write_capture(captures / "web" / "none.pcap", 0)
    write_capture(captures / "web" / "cut.pcap", 9)
    cut = captures / "web" / "cut.pcap"
    cut.write_bytes(cut.read_bytes()[:-5])
    prepared = run(captures, tmp_path / "data")
    assert sorted(name for name, _ in prepared.problems) == [
        "web/cut.pcap",
        "web/empty.pcap",
        "web/none.pcap",
        "web/notes.txt",
    ]
    problems = dict(prepared.problems)
    assert "kept 8 packets" in problems["web/cut.pcap"]
    assert "no packets" in problems["web/none.pcap"]
    files = json.loads((tmp_path / "data" / "files.json").read_text())
    assert len(files["files"]) == 21 and len(files["problems"]) == 4


def test_a_directory_without_captures_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    with pytest.raises(UsageError, match="no files"):
        run(folder, tmp_path / "data")
    (folder / "a.txt").write_text("hello")
    with pytest.raises(UsageError, match="not a capture"):
        run(folder, tmp_path / "data")
    with pytest.raises(UsageError, match="no such"):
        run(folder / "nowhere", tmp_path / "data")
    assert not (tmp_path / "data").exists() and not (tmp_path / "data.part").exists()


def test_a_table_that_is_no_manifest(captures: Path, tmp_path: Path) -> None:
    (captures / "manifest.csv").write_text("name,label\n")
    with pytest.raises(UsageError, match="column `file`"):
        run(captures, tmp_path / "data")


def test_workers_change_nothing(captures: Path, tmp_path: Path) -> None:
    (captures / "web" / "notes.txt").write_text("no capture")
    one = run(captures, tmp_path / "one", workers=1)
    two = run(captures, tmp_path / "two", workers=2)
    assert one.tallies == two.tallies and one.problems == two.problems
    for file in sorted(path.relative_to(one.path) for path in one.path.rglob("*") if path.is_file()):
        assert (one.path / file).read_bytes() == (two.path / file).read_bytes(), file


def test_escaped_packets_are_counted_and_left_out_unless_asked(captures: Path, tmp_path: Path) -> None:
    write_capture(captures / "arp" / "1.pcap", 6, escaped=2)
    write_capture(captures / "arp" / "all.pcap", 3, escaped=3)
    without = run(captures, tmp_path / "without")
    kept = run(captures, tmp_path / "kept", escapes=True)

    def arp(prepared: Prepared) -> tuple[int, int]:
        tallies = [tally for (_, label), tally in prepared.tallies.items() if label == "arp"]
        return sum(t.packets for t in tallies), sum(t.escaped for t in tallies)

    assert arp(without) == (4, 2) and arp(kept) == (9, 5)
    assert [name for name, _ in without.problems] == ["arp/all.pcap"] and not kept.problems


def test_a_reused_vocabulary_and_its_labels(captures: Path, tmp_path: Path) -> None:
    run(captures / "web", tmp_path / "web")
    again = run(captures, tmp_path / "both", vocabulary=vocabulary_of(tmp_path / "web"))
    dataset = open_dataset(tmp_path / "both")
    assert dataset.vocabulary == open_dataset(tmp_path / "web").vocabulary
    assert set(dataset.train.sessions["label"]) == {0, -1}
    assert [(name, reason.split(":")[0]) for name, reason in again.problems] == [("dns", "no label of the vocabulary")]
    with pytest.raises(UsageError, match="neither"):
        vocabulary_of(captures)


def test_the_target_is_looked_at_before_the_work(captures: Path, tmp_path: Path) -> None:
    run(captures, tmp_path / "data")
    with pytest.raises(OutputError, match="--overwrite"):
        run(captures, tmp_path / "data")
    run(captures, tmp_path / "data", overwrite=True)


def test_progress_is_told_for_both_phases(captures: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    run(captures, tmp_path / "data", advance=lambda *news: told.append(news))
    train = sum(
        stable_split(f"{label}/{n}.pcap.gz") == "train"
        for label, n in [("web", i) for i in range(12)] + [("dns", i) for i in range(8)]
    )
    assert ("statistics", train, train) in told and told[-1] == ("encoding", 20, 20)


def test_the_command(captures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = pytest.importorskip("netssmd.learn.codec")
    from netssmd.commands.prepare import command

    monkeypatch.setattr(codec, "ContextCodec", PacketCodec)
    (captures / "web" / "notes.txt").write_text("no capture")
    result = CliRunner().invoke(command, [str(captures), "-o", str(tmp_path / "data"), "--workers", "1", "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["sessions"] == 20 and summary["labels"]["web"]["train"]["sessions"] <= 12
    assert "web/notes.txt: not a capture" in result.stderr
    table = CliRunner().invoke(command, [str(captures), "-o", str(tmp_path / "data"), "--workers", "1", "--overwrite"])
    assert table.exit_code == 0 and "tokens/packet" in table.stdout and "20 sessions" in table.stdout


def test_conditions_that_are_no_numbers_are_unknown(captures: Path) -> None:
    (captures / "manifest.csv").write_text("file,rtt_ms,loss_pct\nweb/0.pcap.gz,nan,-1\nweb/1.pcap.gz,inf,0.5\n")
    sources, problems = find_sources([captures])
    known = {s.name: s.conditions for s in sources}
    assert known["web/0.pcap.gz"] == {} and known["web/1.pcap.gz"] == {"loss_pct": 0.5}
    assert [name for name, _ in problems] == ["web/0.pcap.gz"] * 2 + ["web/1.pcap.gz"]


def test_a_ledger_beside_a_capture_is_no_problem(captures: Path) -> None:
    (captures / "web" / "0.jsonl").write_text("{}\n")
    sources, problems = find_sources([captures])
    assert len(sources) == 20 and not problems


def test_labels_are_added_to_a_models_vocabulary(tmp_path: Path) -> None:
    frame = bytes.fromhex("02000000000202000000000108004500001c000100004011b6cdc6120001c61200021000100100080000")
    for label in ("new", "old"):
        (tmp_path / label).mkdir()
        with open(tmp_path / label / "a.pcap", "wb") as file:
            writer = PcapWriter(file)
            for n in range(4):
                writer.write(Packet(n, frame, len(frame)))
            writer.flush()
    base = Vocabulary(("old",), (), (40,), (), (53,))
    with pytest.raises(UsageError, match="a label of the byte codec is a token"):
        ByteCodec().with_labels({}, ["new"])
    roots = [tmp_path / "new", tmp_path / "old"]
    prepare(roots, tmp_path / "data", ContextCodec(), vocabulary=base.to_json(), add_labels=True, workers=1)
    made = Vocabulary.from_json(open_dataset(tmp_path / "data").vocabulary)
    assert made.labels == ("old", "new") and (made.lengths, made.ports, made.size) == ((40,), (53,), base.size)
