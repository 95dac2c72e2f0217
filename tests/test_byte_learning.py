"""The byte codec from captures to a model: samples, phases, the same training loop, several processes, fine-tuning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from byte_models import byte_model, talk  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from traces import BYE, TALK, headers  # noqa: E402

from netssmd import cli  # noqa: E402
from netssmd.codec.byte_vocab import ByteVocabulary  # noqa: E402
from netssmd.codec.bytes import ByteEncoder  # noqa: E402
from netssmd.learn.byte_codec import ByteCodec  # noqa: E402
from netssmd.learn.dataset import open_dataset  # noqa: E402
from netssmd.learn.phases import PHASES, PhaseTracker, cut_phase  # noqa: E402
from netssmd.learn.prepare import check_legal, prepare  # noqa: E402
from netssmd.learn.streams import Rows, Streams  # noqa: E402
from netssmd.packet.pcap import Packet, PcapWriter, read_capture  # noqa: E402
from netssmd.packet.wire import parse  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def write(path: Path, packets: list[Packet]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        writer = PcapWriter(file)
        for packet in packets:
            writer.write(packet)
        writer.flush()
    return path


def two_flows() -> list[Packet]:
    """The conversation twice, interleaved, the second from another port."""
    from netssmd.packet.render import render

    packets = []
    for i, line in enumerate(TALK + BYE):
        for port in (40000, 40001):
            h = headers(line, port)
            h.body = b""
            packets.append(Packet(10**18 + i * 10**6 + port, *render(h)))
    return packets


@pytest.fixture
def captures(tmp_path: Path) -> Path:
    for label, step in (("amazon", 1_000_000), ("netflix", 9_000_000)):
        for number in range(4):
            write(tmp_path / "pcaps" / label / f"{number}.pcap", talk(step_ns=step))
    write(tmp_path / "pcaps" / "amazon" / "both.pcap", two_flows())
    split = ["train"] * 3 + ["val"]
    rows = [f"{label}/{n}.pcap,{label},{split[n]}" for label in ("amazon", "netflix") for n in range(4)]
    text = "\n".join(["file,label,split", *rows, "amazon/both.pcap,amazon,train"])
    (tmp_path / "pcaps" / "manifest.csv").write_text(text + "\n")
    return tmp_path / "pcaps"


# ---- samples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framed", [True, False])
def test_a_sample_is_what_the_encoder_says(framed: bool) -> None:
    codec = ByteCodec(94, framed=framed)
    vocabulary = codec.fit([], ["amazon"])
    (sample,) = codec.encode(talk(), vocabulary, escapes=False)
    encoder = ByteEncoder(vocabulary)
    for packet in talk():
        encoder.packet(*packet)
    encoder.end()
    assert sample.tokens.tolist() == encoder.tokens and sample.packets == len(talk())
    check_legal(sample, vocabulary)
    assert sample.features.shape == (len(sample.tokens), 0)


def test_single_flows_long_samples_and_what_does_not_fit() -> None:
    codec = ByteCodec(94, single_flow=True)
    vocabulary = codec.fit([], ["a"])
    odd = Packet(10**18 + 5, b"\xff" * 60, 60)
    samples = codec.encode([*two_flows(), odd], vocabulary, escapes=False)
    assert [s.packets for s in samples] == [len(TALK + BYE)] * 2
    multi = ByteCodec(94).encode([*two_flows(), odd], vocabulary, escapes=False)
    assert [(s.packets, s.escaped) for s in multi] == [(2 * len(TALK + BYE), 1)]
    (cut,) = ByteCodec(94, sample_tokens=300).encode(two_flows(), vocabulary, escapes=False)
    assert cut.packets == 3 and len(cut.tokens) == 3 * 95 - 1 and vocabulary.end not in cut.tokens
    (none,) = ByteCodec(94).encode([odd], vocabulary, escapes=False)
    assert none.packets == 0 and none.escaped == 1


def test_phases_of_a_flow() -> None:
    tracker = PhaseTracker()
    names = [PHASES[tracker.feed(headers(line))] for line in TALK + BYE]
    assert names == ["handshake"] * 3 + ["transfer"] * 4 + ["teardown"] * 3
    flow = talk()
    lengths = [len(cut_phase(flow, phase)) for phase in PHASES]
    assert lengths == [3, 5, 4]  # the last two are led by the packet before
    assert cut_phase(flow, "transfer")[0] == flow[2] and cut_phase(flow, "teardown")[0] == flow[6]
    middle = flow[4:]
    assert [len(cut_phase(middle, phase)) for phase in PHASES] == [0, 3, 4]
    assert PHASES[PhaseTracker().feed(headers("A R 0 0"))] == "teardown"
    assert PHASES[PhaseTracker().feed(headers("A P. 1 1 10"))] == "transfer"
    (sample,) = ByteCodec(94, phase="handshake").encode(flow, ByteVocabulary.make(("a",), 94), escapes=False)
    assert sample.packets == 3


# ---- the data folder and its streams -------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioned", [False, True])
def test_streams_begin_with_the_label(captures: Path, tmp_path: Path, conditioned: bool) -> None:
    prepared = prepare([captures], tmp_path / "data", ByteCodec(94, conditioned=conditioned), workers=2)
    assert not prepared.problems
    dataset = open_dataset(tmp_path / "data")
    vocabulary = ByteVocabulary.from_json(dataset.vocabulary)
    assert len(dataset.train.sessions) == 7 and len(dataset.val.sessions) == 2
    assert sorted(vocabulary.timing.counts) == ["amazon", "netflix"]
    rows = Rows.of(vocabulary)
    streams = Streams(dataset.train, rows, 2, seed=1)
    heard = set()
    for _ in range(30):
        batch = streams.next(100)
        assert batch.rows.shape == (2, 100, vocabulary.width)
        assert (batch.rows[:, :, 1:] >= vocabulary.size).all() and (batch.rows < vocabulary.rows).all()
        for b, t in zip(*np.nonzero(batch.reset)):
            label = vocabulary.labels[batch.label[b, t]]
            assert batch.rows[b, t, 0] == vocabulary.begin(label)
            heard.add(label)
    assert heard == {"amazon", "netflix"}


# ---- training ------------------------------------------------------------------------------------------------------

CONFIG = """
[model]
d_model = 48
n_layer = 2
d_state = 16
headdim = 16
chunk_size = 32
[batch]
streams = 4
segment = {segment}
drop_label = 0.0
[optimizer]
learning_rate = 5e-3
warmup_steps = 10
ema = 0.9
[length]
tokens = {tokens}
[validation]
every_steps = 0
tokens = 500
[output]
log_steps = 5
[machine]
device = "cpu"
precision = "fp32"
threads = 1
"""


def train(folder: Path, data: Path, out: str, tokens: int, *more: str, processes: int = 1, segment: int = 190) -> None:
    (folder / "train.toml").write_text(CONFIG.format(tokens=tokens, segment=segment))
    run = [sys.executable, "-m", "netssmd"]
    if processes > 1:
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *run[1:]]
    options = ["train", "-c", str(folder / "train.toml"), "--data", str(data), "-o", str(folder / out), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*run, *options], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_model_learns_what_packets_are_and_writes_them(captures: Path, tmp_path: Path) -> None:
    """From captures to captures: after seconds of training every packet is one, of the right hosts, ports and flags."""
    assert cli.run(["prepare", str(captures), "-o", str(tmp_path / "data"), "--codec", "bytes", "--phase", "handshake",
                    "--workers", "1"]) == 0  # fmt: skip
    train(tmp_path, tmp_path / "data", "out", 50_000, segment=95)
    target = tmp_path / "made.pcap"
    arguments = ["--label", "netflix", "--seed", "1", "-t", "0.1", "--prompt-hosts", "keep", "--packets", "60"]
    model = str(tmp_path / "out" / "model")
    assert cli.run(["generate", "--model", model, *arguments, "-o", str(target)]) == 0
    with open(target, "rb") as file:
        packets = list(read_capture(file))
    made = [parse(p.data, p.orig_len) for p in packets]
    right = [headers(line) for line in TALK[:3]]
    assert len(made) > 20
    assert {h.flags for h in made} <= {h.flags for h in right}
    ends = [{(h.src, h.dst, h.dport) for h in some} for some in (made, right)]
    assert len(ends[0] & ends[1]) >= 1 and len(ends[0] - ends[1]) <= 3


def test_two_processes_train_as_one_does_and_one_goes_on_from_two(captures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepare([captures], data, ByteCodec(94), workers=1)
    train(tmp_path, data, "one", 4 * 64 * 6, segment=64)
    train(tmp_path, data, "two", 4 * 64 * 6, segment=64, processes=2)
    one, two = (load_file(tmp_path / out / "last" / "tensors.safetensors") for out in ("one", "two"))
    assert one.keys() == two.keys() and one["state.ssm"].shape[1] == 4
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=2e-3, atol=2e-4)
    logs = [[json.loads(line) for line in (tmp_path / out / "log.jsonl").open()] for out in ("one", "two")]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    for a, b in zip(*logs):
        assert a["bits_per_packet"] == pytest.approx(b["bits_per_packet"], rel=1e-3)
    train(tmp_path, data, "two", 4 * 64 * 9, segment=64)
    state = json.loads((tmp_path / "two" / "last" / "state.json").read_text())
    assert state["steps"] == 9 and max(state["streams"]["visits"]) > 0


def test_fine_tuning_begins_from_a_base(captures: Path, tmp_path: Path) -> None:
    data, phase = tmp_path / "data", tmp_path / "phase"
    prepare([captures], data, ByteCodec(94, single_flow=True), workers=1)
    train(tmp_path, data, "base", 4 * 64 * 10, segment=64)
    base = tmp_path / "base" / "model"
    assert cli.run(["prepare", str(captures), "-o", str(phase), "--codec", "bytes", "--phase", "handshake",
                    "--model", str(base), "--workers", "1"]) == 0  # fmt: skip
    dataset = open_dataset(phase)
    assert set(dataset.train.sessions["packets"]) == {3}
    train(tmp_path, phase, "tuned", 4 * 64 * 4, "--base", str(base), segment=64)
    first = json.loads((tmp_path / "tuned" / "log.jsonl").open().readline())
    fresh = json.loads((tmp_path / "base" / "log.jsonl").open().readline())
    assert first["bits_per_packet"] < 0.9 * fresh["bits_per_packet"]


def test_phases_are_tuned_by_one_command_and_chained_by_another(
    captures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A base, three models of it, and sessions that go from one to the next; the same bytes however they are run."""
    prepare([captures], tmp_path / "data", ByteCodec(94, single_flow=True), workers=1)
    train(tmp_path, tmp_path / "data", "base", 4 * 64 * 10, segment=64)
    (tmp_path / "train.toml").write_text(CONFIG.format(tokens=4 * 64 * 4, segment=64))
    tune = ["train", "-c", str(tmp_path / "train.toml"), "-o", str(tmp_path / "tuned"), "--phases", str(captures)]
    base = str(tmp_path / "base" / "model")
    assert cli.run(tune) == 2 and "give its folder as --base" in capsys.readouterr().err
    assert cli.run([*tune, "--base", base]) == 0
    told = capsys.readouterr().out.splitlines()
    models = [str(tmp_path / "tuned" / phase / "model") for phase in PHASES]
    assert [line.split(":")[0] for line in told[:3]] == models
    then = ("--then", models[1], "--then", models[2])
    assert told[3] == f"netssmd generate --model {models[0]} {' '.join(then)} --label LABEL -o OUT.pcap"
    sizes = [set(open_dataset(tmp_path / "tuned" / phase / "data").train.sessions["packets"]) for phase in PHASES]
    assert sizes == [{3}, {5}, {4}]  # led by the last packet of the phase before
    common = ["--label", "all", "--sessions", "3", "--seed", "1", "--raw", "--max-packets", "40"]

    def made(name: str, *more: str) -> tuple[bytes, int]:
        target = tmp_path / f"{name}.pcap"
        assert cli.run(["generate", "--model", models[0], *common, *more, "-o", str(target)]) == 0
        with open(target, "rb") as file:
            return target.read_bytes(), len(list(read_capture(file)))

    chained = made("chained", *then)
    assert made("again", *then, "--threads", "1", "--no-speculate") == chained
    assert chained[1] > made("two", *then[:2])[1] > made("one")[1] >= 6
    capsys.readouterr()
    for framed, code in ((True, 0), (False, 2)):  # a model of another size may take over, one of another language not
        other = byte_model(tmp_path / f"framed-{framed}", framed=framed)
        arguments = ["--model", models[0], *common, "--then", str(other), "--overwrite"]
        assert cli.run(["generate", *arguments, "-o", str(tmp_path / "x.pcap")]) == code
    assert "its vocabulary is not that of" in capsys.readouterr().err


def test_mistakes_are_one_line(captures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["prepare", str(captures), "-o", str(tmp_path / "d"), "--free"]) == 2
    assert "of --codec bytes" in capsys.readouterr().err
    assert cli.run(["prepare", str(captures), "-o", str(tmp_path / "b"), "--codec", "bytes", "--workers", "1"]) == 0
    assert cli.run(["prepare", str(captures), "-o", str(tmp_path / "c"), "--model", str(tmp_path / "b")]) == 2
    assert "say --codec bytes" in capsys.readouterr().err
    (tmp_path / "t.toml").write_text("[length]\ntokens = 0\nepochs = 0\n")
    assert cli.run(["train", "-c", str(tmp_path / "t.toml"), "--data", str(tmp_path / "b")]) == 2
    assert "length.tokens, length.epochs and length.hours are all 0" in capsys.readouterr().err


def test_the_papers_training_file_is_one() -> None:
    from netssmd.learn.config import load_train_config

    config = load_train_config(ROOT / "config" / "train-paper.toml")
    o = config.optimizer
    assert (config.model.d_model, config.model.n_layer, config.length.epochs) == (768, 24, 30.0)
    assert (o.learning_rate, o.clip, o.ema, o.final_share) == (5e-4, 1.0, 0.0, 1.0)
    assert (config.batch.streams, config.batch.segment, config.machine.precision) == (1, 100_000, "bf16")
