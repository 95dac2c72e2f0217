"""`netssmd generate` on a model of random numbers: same seed same bytes, merged and per session, prompts, errors,
nothing half-written."""

import csv
import io
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_model import tiny_model

from netssmd import cli
from netssmd.codec.encoder import Encoder
from netssmd.engine.guide import GUARDED, RULES
from netssmd.engine.opening import MAX_FLOWS, open_model
from netssmd.engine.plan import address_plan
from netssmd.engine.session import SessionInfo
from netssmd.learn.prepare import find_sources
from netssmd.output import spool
from netssmd.packet.compliance import INDEX, Checker
from netssmd.packet.mutants import LIVE
from netssmd.packet.pcap import Packet, PcapWriter, read_capture
from netssmd.packet.wire import ICMP, parse


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def generate(model: str, *arguments: object) -> int:
    return cli.run(["generate", "--model", model, *map(str, arguments)])


def packets_of(path: Path) -> list[Packet]:
    return list(read_capture(io.BytesIO(path.read_bytes())))


def test_same_seed_same_bytes_whatever_threads_and_batch(model: str, tmp_path: Path) -> None:
    for name, threads in (("a", 1), ("b", 2), ("c", 4)):
        arguments = ("--label", "web", "--sessions", 9, "--seed", 5, "--max-packets", 60, "--threads", threads)
        assert generate(model, *arguments, "-o", tmp_path / f"{name}.pcap") == 0
    a, b, c = ((tmp_path / f"{n}.pcap").read_bytes() for n in "abc")
    assert a == b == c and len(a) > 1000
    assert generate(model, "--label", "web", "--seed", 6, "--max-packets", 60, "-o", tmp_path / "d.pcap") == 0
    assert (tmp_path / "d.pcap").read_bytes() != a
    times = [p.ts_ns for p in packets_of(tmp_path / "a.pcap")]
    assert times == sorted(times)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_an_order_that_the_model_cannot_keep_to_is_refused_at_once(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conduct = Path(model) / "conduct.json"
    whole = conduct.read_text()
    conduct.write_text(json.dumps(json.loads(whole) | {"extents": {"web": [[50, None, 4]]}}))
    try:
        assert generate(model, "--label", "web", "--extent", 60, "--seed", 5, "-o", tmp_path / "web.pcap") == 0
        assert 30 < len(packets_of(tmp_path / "web.pcap")) < 130
        assert generate(model, "--label", "all", "--extent", 60, "-o", tmp_path / "all.pcap") == 2
    finally:
        conduct.write_text(whole)
    assert "no session of 'dns' to tell how packets are shared out" in capsys.readouterr().err
    assert not (tmp_path / "all.pcap").exists()


def test_a_folder_holds_each_session_a_ledger_and_a_manifest(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--label", "all", "--sessions", 3, "--seed", 5, "--rtt", 20, "--loss", 0, "--max-packets", 50)
    assert generate(model, *arguments, "-o", f"{out}/") == 0
    rows = list(csv.DictReader((out / "manifest.csv").open()))
    names = "file,label,category,split,packets,flows,duration_s,rate_mbit,rtt_ms,loss_pct,capped,seed"
    assert list(rows[0]) == names.split(",") and len(rows) == 9
    for row in rows:
        packets = packets_of(out / row["file"])
        assert len(packets) == int(row["packets"]) and row["rtt_ms"] == "20" and row["loss_pct"] == "0"
        assert row["file"].startswith(row["label"]) and 18 <= float(row["rate_mbit"]) <= 1000
        header, session = map(json.loads, (out / row["file"]).with_suffix(".jsonl").read_text().splitlines())
        assert header["packets"] == len(packets) and session["label"] == row["label"]
        assert session["complete"] and session["reason"] == ("packets" if row["capped"] == "1" else "end")
        assert sum(sum(flow["packets"]) for flow in session["flows"]) == len(packets)
    merged = tmp_path / "merged.pcap"
    assert generate(model, *arguments, "-o", merged) == 0
    apart = [p for row in rows for p in packets_of(out / row["file"])]
    assert sorted(packets_of(merged)) == sorted(apart)


def ledger_of(capture: Path) -> list[dict[str, Any]]:
    """The sessions that the ledger beside a capture tells of."""
    return [json.loads(line) for line in capture.with_suffix(".jsonl").read_text().splitlines()[1:]]


def test_the_ledger_tells_the_findings_that_the_capture_has(model: str, tmp_path: Path) -> None:
    arguments = ("--label", "all", "--sessions", 12, "--seed", 8, "--max-packets", 200)
    assert generate(model, *arguments, "-o", f"{tmp_path}/") == 0
    told: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for capture in sorted(tmp_path.glob("*.pcap")):
        (session,) = ledger_of(capture)
        own = Counter(session["findings"])
        assert own == sum((Counter(flow.get("findings", {})) for flow in session["flows"]), Counter())
        told += own
        checker = Checker()
        for packet in packets_of(capture):
            checker.observe_bytes(*packet)
        seen += Counter(dict(zip(INDEX, checker.finish().in_packets)))
    assert told == seen and len(told) > 3  # a model of random numbers keeps no rules
    assert generate(model, *arguments, "-o", tmp_path / "merged.pcap") == 0
    assert sum((Counter(s["findings"]) for s in ledger_of(tmp_path / "merged.pcap")), Counter()) == told


def test_planted_defects_are_told_and_are_the_only_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dial = ("--anomaly", "syn_in_established=0.04", "--anomaly", "lost_segment=0.04")
    arguments = ("--label", "redis", "--sessions", 3, "--seed", 4, "--max-packets", 400, "--guide")
    assert generate("embedded", *arguments, *dial, "-o", f"{tmp_path}/a/") == 0
    planted: Counter[str] = Counter()
    raised: Counter[str] = Counter()
    rows = {row["file"]: row for row in csv.DictReader((tmp_path / "a/manifest.csv").open())}
    for capture in sorted((tmp_path / "a").glob("*.pcap")):
        (session,) = ledger_of(capture)
        planted.update(session.get("planted", {}))
        raised.update(session["findings"])
        packets = packets_of(capture)
        assert int(rows[capture.name]["packets"]) == session["packets"] == len(packets)
        assert set(session["interventions"]) == set(RULES)
        moments = {packet.ts_ns for packet in packets}
        marked = [mark for flow in session["flows"] for mark in flow.get("planted", [])]
        assert sum(session.get("planted", {}).values()) == len(marked)
        assert all(ts_ns in moments for ts_ns, _ in marked)
    assert min(planted["syn_in_established"], planted["lost_segment"]) > 2
    assert raised["unexpected_syn"] == planted["syn_in_established"] and raised["gap"] > 2
    assert "Planted: lost_segment " in capsys.readouterr().err
    assert generate("embedded", *arguments, "-o", f"{tmp_path}/b/") == 0
    assert not any(session["findings"].keys() & set(GUARDED) or "planted" in session
                   for capture in (tmp_path / "b").glob("*.pcap") for session in ledger_of(capture))  # fmt: skip


@pytest.mark.parametrize(
    ("dial", "complaint"),
    [
        ("sin_in_established=0.1", "no such defect; did you mean syn_in_established? there are lost_segment"),
        ("lost_segment", "write the share of packets that get it, as lost_segment=0.001"),
        ("lost_segment=often", "write the share of packets that get it"),
        ("lost_segment=1.5", "a share of packets lies between 0 and 1"),
        ("lost_segment=nan", "a share of packets lies between 0 and 1"),
    ],
)
def test_a_dial_that_is_none(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], dial: str, complaint: str
) -> None:
    assert generate(model, "--label", "web", "--anomaly", dial, "-o", tmp_path / "x.pcap") == 2
    assert f"--anomaly {dial}: {complaint}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_packets_cut_a_session(model: str, tmp_path: Path) -> None:
    arguments = ("--label", "dns", "--sessions", 30, "--seed", 2, "--packets", 3)
    assert generate(model, *arguments, "-o", f"{tmp_path}/") == 0
    rows = list(csv.DictReader((tmp_path / "manifest.csv").open()))
    assert {row["packets"] for row in rows} >= {"3"} and all(int(row["packets"]) <= 3 for row in rows)
    assert all(row["capped"] == "1" for row in rows if row["packets"] == "3")


@pytest.fixture
def capture(model: str, tmp_path: Path) -> Path:
    """Forty packets whose addresses are outside the plan."""
    assert generate(model, "--label", "web", "--sessions", 40, "--seed", 3, "-o", tmp_path / "x.pcap") == 0
    path = tmp_path / "real.pcap"
    with path.open("wb") as file:
        writer = PcapWriter(file)
        for i, packet in enumerate(packets_of(tmp_path / "x.pcap")[:40]):
            data = packet.data
            if data[12:14] == b"\x08\x00":  # 198.18/15 becomes 10.18/15
                data = data[:26] + b"\x0a" + data[27:30] + b"\x0a" + data[31:]
            writer.write(Packet(1_700_000_000_000_000_000 + i * 1_000_000, data, packet.orig_len))
        writer.flush()
    return path


@pytest.mark.parametrize("hosts", ["keep", "remap"])
def test_a_prompt_is_part_of_the_output(model: str, capture: Path, tmp_path: Path, hosts: str) -> None:
    arguments = ("--label", "web", "--seed", 3, "--prompt", capture, "--prompt-packets", 30, "--prompt-hosts", hosts)
    out = tmp_path / "out.pcap"
    assert generate(model, *arguments, "--packets", 80, "-o", out) == 0
    given, made = packets_of(capture)[:30], packets_of(out)
    assert 30 <= len(made) <= 80
    pairs = [(parse(a.data, a.orig_len), parse(b.data, b.orig_len)) for a, b in zip(given, made)]
    assert all(a.version == b.version for a, b in pairs)
    slack = 0.0 if hosts == "keep" else 0.1  # remapped, a length is drawn anew within its bin
    told = [(a, b) for a, b in pairs if a.transport != ICMP]  # an error quotes the packet that it answers
    assert all(abs(a.payload_len - b.payload_len) <= slack * a.payload_len for a, b in told)
    same = [a.src == b.src and a.dst == b.dst for a, b in pairs if a.version == 4]
    assert same and (all(same) if hosts == "keep" else not any(same))
    if hosts == "keep":
        assert [p.ts_ns for p in made[:30]] == [p.ts_ns for p in given]


def test_encoding_what_was_generated_gives_a_prompt_of_as_many_packets(model: str, capture: Path) -> None:
    prompt = open_model(model).encode_prompt(packets_of(capture))
    assert prompt.packets == 40 and prompt.tokens[-1] != open_model(model).vocabulary.end
    assert isinstance(Encoder(open_model(model).vocabulary), Encoder)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--label", "vidoe-dash", "-o", "x.pcap"), 2, "did you mean video-dash? the labels of this model are dns"),
        (("--label", "web", "-o", "x.pcap.gz"), 2, "plain PCAP"),
        (("--label", "web", "-o", "/proc/nothing/x.pcap"), 1, "/proc/nothing: cannot be written"),
        (("--label", "web", "--prompt", "/nonexistent", "-o", "x.pcap"), 1, "/nonexistent: cannot be read"),
        (("--label", "web", "--start", "yesterday", "-o", "x.pcap"), 2, "--start yesterday: write a time"),
        (("--label", "web", "--start", "9999-01-01", "-o", "x.pcap"), 2, "captures hold times of 1970 to 2105"),
        (("--label", "web", "-o", ""), 2, "write FILE.pcap or DIR/"),
        (("--label", "web", "-o", "-"), 2, "write FILE.pcap or DIR/"),
        (("--label", "web", "-o", "/dev/null/"), 2, "/dev/null/: is no folder"),
        (("--label", "web", "--spacing", "3", "-o", "x.pcap"), 2, "'3' is not a duration"),
    ],
)
def test_mistakes(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], code: int, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert generate(model, *arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("netssmd: ") and says in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_no_model_and_a_disk_that_fills(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generate(str(tmp_path / "none"), "--label", "web", "-o", tmp_path / "x.pcap") == 1
    assert "no such folder" in capsys.readouterr().err

    def full(self: PcapWriter) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PcapWriter, "flush", full)
    assert generate(model, "--label", "web", "-o", tmp_path / "x.pcap") == 1
    assert "x.pcap: cannot be written: No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--rtt", "--rate", "--loss", "--temperature"])
def test_numbers_that_are_none(model: str, tmp_path: Path, option: str) -> None:
    assert generate(model, "--label", "web", option, "nan", "-o", tmp_path / "x.pcap") == 2


def test_a_disk_that_fills_late_leaves_nothing_of_a_folder(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, calls = PcapWriter.flush, 0

    def full(self: PcapWriter) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")
        flush(self)

    monkeypatch.setattr(PcapWriter, "flush", full)
    arguments = ("--label", "web", "--sessions", 4, "--packets", 5)
    assert generate(model, *arguments, "-o", f"{tmp_path}/new/") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_leaves_nothing_behind(model: str, tmp_path: Path, number: signal.Signals) -> None:
    arguments = ["--model", model, "--label", "web", "--sessions", "5000", "-o", str(tmp_path / "x.pcap")]
    process = subprocess.Popen([sys.executable, "-m", "netssmd", "generate", *arguments], stderr=subprocess.PIPE)
    while not list(tmp_path.glob(".x.pcap-*/*.spool")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number and error.strip() == b""
    assert not list(tmp_path.iterdir())


def test_a_generated_folder_is_a_training_set(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert generate(model, "--label", "all", "--sessions", 2, "--seed", 5, "--max-packets", 30, "-o", f"{out}/") == 0
    sources, problems = find_sources([out])
    assert not problems and sorted(s.label for s in sources) == ["dns", "dns", "video-dash", "video-dash", "web", "web"]
    assert all(set(s.conditions) == {"rtt_ms", "rate_mbit", "loss_pct"} for s in sources)


def test_a_served_session_keeps_few_contexts(model: str) -> None:
    opened = open_model(model)
    session = opened.session(SessionInfo(0, "web", {}, 1, 0), address_plan())
    assert session.decoder.context.max_flows == MAX_FLOWS == 1024


def test_merging_in_rounds_gives_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for order in range(23):
        paths.append(tmp_path / f"{order}.spool")
        with paths[-1].open("wb") as file:
            writer = spool.SpoolWriter(file)
            for i in range(order % 7):
                flow = (
                    None
                    if i == 2
                    else (6, bytes([10, 0, 0, order]), 40000 + i, b"\1" * 16 if i == 5 else b"\1" * 4, 80)
                )
                if flow and len(flow[1]) != len(flow[3]):
                    flow = (6, b"\2" * 16, 1, b"\1" * 16, 2)
                writer.write(i * 10 % 30 + i // 3 * 30, bytes([order, i]), 60, flow, i % 2, 1 << order, LIVE[i])
    at_once = list(spool.merge(paths, tmp_path))
    monkeypatch.setattr(spool, "MAX_OPEN", 5)
    assert list(spool.merge(paths, tmp_path)) == at_once and len(at_once) == sum(o % 7 for o in range(23))
    assert all((p.found, p.planted) == (1 << p.data[0], LIVE[p.data[1]]) for p in at_once)
    assert [(p.ts_ns, p.order) for p in at_once] == sorted((p.ts_ns, p.order) for p in at_once)
    with pytest.raises(ValueError, match="most that are merged"):
        list(spool.merge(paths * 2, tmp_path))


@pytest.mark.parametrize(
    ("option", "value"), [("pps", 777), ("pps", 0.5), ("mbps", 1.5), ("multiplier", 3), ("multiplier", 0.1)]
)
def test_a_rate_retimes_a_capture(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: float
) -> None:
    """Within 1 % of the asked, in the capture's own time, and the same packets in the same order as without."""
    arguments = ("--label", "web", "--sessions", 9, "--seed", 5, "--max-packets", 60)
    assert generate(model, *arguments, "-o", tmp_path / "drawn.pcap") == 0
    assert generate(model, *arguments, f"--{option}", value, "-o", tmp_path / "timed.pcap") == 0
    error = capsys.readouterr().err
    drawn, timed = packets_of(tmp_path / "drawn.pcap"), packets_of(tmp_path / "timed.pcap")
    assert [p.data for p in drawn] == [p.data for p in timed] and drawn[0].ts_ns == timed[0].ts_ns
    span_ns = timed[-1].ts_ns - timed[0].ts_ns
    got = {
        "pps": (len(timed) - 1) * 1e9 / span_ns,
        "mbps": sum(p.orig_len for p in timed[:-1]) * 8e3 / span_ns,
        "multiplier": (drawn[-1].ts_ns - drawn[0].ts_ns) / span_ns,
    }
    assert got[option] == pytest.approx(value, rel=0.01)
    size = sum(p.orig_len for p in timed)
    assert f"Actual: {len(timed)} packets ({size} bytes) sent in {span_ns / 1e9:.2f} seconds\nRated: " in error
    ledger = [json.loads(line) for line in (tmp_path / "timed.jsonl").read_text().splitlines()]
    assert (ledger[0]["first_ts_ns"], ledger[0]["last_ts_ns"]) == (timed[0].ts_ns, timed[-1].ts_ns)


def test_top_speed_leaves_no_gaps_and_the_manifest_knows(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--label", "all", "--sessions", 3, "--seed", 5, "--max-packets", 50, "--topspeed")
    assert generate(model, *arguments, "-o", f"{out}/") == 0
    for row in csv.DictReader((out / "manifest.csv").open()):
        packets = packets_of(out / row["file"])
        if not packets:
            continue
        span_ns = packets[-1].ts_ns - packets[0].ts_ns
        assert span_ns == sum(p.orig_len + 24 for p in packets[:-1]) * 8 // 10 and float(row["duration_s"]) == 0


def test_rates_exclude_each_other(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, says in (
        (("--pps", 5, "--topspeed"), "--pps and --topspeed exclude each other; keep one"),
        (("--mbps", 5, "--multiplier", 2), "--mbps and --multiplier exclude each other; keep one"),
        (("--pps", 0), "0.0 is not in the range x>0"),
        (("--pps", "nan"), "is not a number that can be"),
    ):
        assert generate(model, "--label", "web", *given, "-o", tmp_path / "x.pcap") == 2
        assert says in capsys.readouterr().err


def test_a_folder_that_holds_captures_is_refused_or_replaced(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    first = ("--label", "web", "--sessions", 3, "--seed", 1, "--max-packets", 20, "-o", f"{out}/")
    second = ("--label", "dns", "--sessions", 2, "--seed", 2, "--max-packets", 20, "-o", f"{out}/")
    assert generate(model, *first) == 0
    (out / "notes.txt").write_text("mine")
    (out / "mine.pcap").write_bytes(b"mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert generate(model, *second) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "holds captures already (manifest.csv and 4 more)" in error and "--overwrite" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert generate(model, *second, "--overwrite") == 0
    new = {"dns-0.pcap", "dns-0.jsonl", "dns-1.pcap", "dns-1.jsonl", "manifest.csv"}
    assert {path.name for path in out.iterdir()} == new | {"notes.txt", "mine.pcap"}, "what others put there stays"


def test_an_older_manifest_names_nothing_outside_its_folder(model: str, tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside.pcap"
    out.mkdir()
    outside.write_bytes(b"mine")
    (out / "manifest.csv").write_text("file,label\n../outside.pcap,web\n")
    assert generate(model, "--label", "web", "--max-packets", 9, "--overwrite", "-o", f"{out}/") == 0
    assert outside.read_bytes() == b"mine"
