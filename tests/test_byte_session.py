"""A byte model runs as ours does: sessions, prompts, penalties, `generate` and `run`; what it garbles is counted."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from byte_models import byte_model, echoing_model, talk
from click.testing import CliRunner
from engine_fakes import FakeBackend

from netssmd.codec.bytes import ByteEncoder, to_text
from netssmd.commands.generate import command
from netssmd.commands.run import _open
from netssmd.daemon.config import parse as parse_config
from netssmd.daemon.service import Service, serve
from netssmd.engine import snapshot
from netssmd.engine.byte_options import ByteOptions, gaps_of_capture
from netssmd.engine.opening import OpenModel, Prompt, open_model
from netssmd.engine.plan import address_plan
from netssmd.engine.repetition import Repetition
from netssmd.engine.scheduler import Scheduler
from netssmd.engine.session import PACKETS, SILENT, TOKENS, Limits, Session, SessionInfo
from netssmd.errors import CaptureError, UsageError
from netssmd.model.cpu_backend import available_isas
from netssmd.packet.compliance import Checker
from netssmd.packet.pcap import Packet, PcapWriter, read_capture
from netssmd.packet.wire import parse

INFO = SessionInfo(0, "amazon", {}, 5, 1_000_000_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_model(tmp_path_factory.mktemp("byte") / "model")


def write(path: Path, packets: list[Packet]) -> Path:
    with open(path, "wb") as file:
        writer = PcapWriter(file)
        for packet in packets:
            writer.write(packet)
        writer.flush()
    return path


def read(path: Path) -> list[Packet]:
    with open(path, "rb") as file:
        return list(read_capture(file))


def talking(opened: OpenModel, packets: list[Packet] | None = None) -> Prompt:
    return opened.encode_prompt(talk() if packets is None else packets)


def asked(session: Session) -> list[list[int] | list[float] | list[bytes]]:
    """What a session wants drawn next."""
    wanted: list[list[int] | list[float] | list[bytes]] = [[], [], [], [], []]
    session.ask(*wanted)  # type: ignore[arg-type]
    return wanted


class Script(FakeBackend):
    """Draws what was written for it, if it lies in the range."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__(1)
        self.tokens = iter(tokens)
        self.factors: list[list[float] | None] = []

    def step(self, slots, rows, ranges, uniforms, temperatures, factors=None, factors_at=None):
        self.factors.append(None if factors is None else factors.tolist())
        token = next(self.tokens)
        assert ranges[0, 0] <= token < ranges[0, 1]
        return np.array([token], np.int32)


def run(session, backend) -> list:
    scheduler = Scheduler(backend)
    scheduler.add(session)
    packets = []
    while (result := scheduler.step()) is not None:
        packets += result[0]
    return packets


def test_generated_packets_take_the_way_of_all_others(folder: Path) -> None:
    """Tokens of a real conversation, drawn instead of forced: rendered whole, in order, clean to the checker."""
    opened = open_model(str(folder))
    tokens = [*talking(opened).tokens[:-1], opened.vocabulary.end]
    session = opened.session(INFO, address_plan())
    assert session.row() == [opened.vocabulary.begin("amazon")]
    packets = run(session, Script(tokens))
    assert session.reason == "end" and session.tokens == len(tokens)
    assert [p.orig_len for p in packets] == [p.orig_len for p in talk()] == [len(p.data) for p in packets]
    assert packets[0].ts_ns == INFO.start_ns and all(a.ts_ns <= b.ts_ns for a, b in pairwise(packets))
    assert {p.five_tuple for p in packets} == {packets[0].five_tuple}
    assert packets[0].five_tuple.originator[:2] == bytes((198, 18))
    checker = Checker()
    for p in packets:
        checker.observe(parse(p.data, p.orig_len), p.ts_ns)
        assert parse(p.data, p.orig_len).checksum_delta == 0


def test_a_prompt_is_prefilled_in_chunks_and_may_end_inside_a_packet(folder: Path) -> None:
    opened = open_model(str(folder))
    prompt = talking(opened)
    half = Prompt(prompt.tokens[: 95 * 3 + 40], (), 0, 3)
    session = opened.session(INFO, address_plan(), Limits(packets=4), prompt=half)
    backend = Script(list(prompt.tokens[95 * 3 + 40 : 95 * 4]))
    packets = run(session, backend)
    assert len(packets) == 4 and session.reason == PACKETS
    assert sum(backend.prefilled) == 95 * 3 + 40 and max(backend.prefilled) == 64


def test_a_long_prompt(folder: Path) -> None:
    """2,250 packets as in section 5.3: 213,750 tokens, whose own gaps are kept."""
    opened = open_model(str(folder))
    many = [p._replace(ts_ns=p.ts_ns + i * 1_000_000_000) for i in range(225) for p in talk()]
    prompt = talking(opened, many)
    assert prompt.packets == 2250 and len(prompt.tokens) == 2250 * 95
    session = opened.session(INFO, address_plan(), Limits(packets=2250), prompt=prompt)
    backend = FakeBackend(1)
    packets = run(session, backend)
    assert [p.ts_ns - packets[0].ts_ns for p in packets] == [p.ts_ns - many[0].ts_ns for p in many]
    assert max(backend.prefilled) == 64 and not backend.calls


def test_length_in_tokens(folder: Path) -> None:
    opened = open_model(str(folder))
    prompt = talking(opened)
    session = opened.session(INFO, address_plan(), Limits(tokens=95 * 2), prompt=prompt)
    assert len(run(session, FakeBackend(1))) == 2 and session.reason == TOKENS


def test_noise_ends_and_is_counted(folder: Path) -> None:
    opened = open_model(str(folder))
    session = opened.session(INFO, address_plan())
    assert not run(session, opened.backend(1))
    assert session.reason == SILENT
    assert sum(session.malformed().values()) == 256 and session.tokens == 256 * 95 + 1


def test_repetition_is_looked_back_for_a_window_or_for_ever() -> None:
    recent, ever = Repetition(5, 1.8, 3), Repetition(5, 1.8)
    said: list[int] = []
    for token in (0, 1, 1, 2, 3, 0, 0, 0, 4):
        recent.add(token)
        ever.add(token)
        said.append(token)
        assert recent.factors == [1.8 if t in said[-3:] else 1.0 for t in range(5)]
        assert ever.factors == [1.8 if t in said else 1.0 for t in range(5)]
    assert len(recent._recent) == 3 and not ever._recent


def test_factors_reach_the_draw(folder: Path) -> None:
    opened = open_model(str(folder), options=ByteOptions(penalty=1.8, window=2))
    session = opened.session(INFO, address_plan(), Limits(tokens=3))
    backend = Script([2, 7, 7])
    run(session, backend)
    assert [[i for i, f in enumerate(factors) if f != 1] for factors in backend.factors] == [[], [2], [2, 7]]
    assert {len(factors) for factors in backend.factors} == {256}
    plain = Script([2])
    run(open_model(str(folder)).session(INFO, address_plan(), Limits(tokens=1)), plain)
    assert plain.factors == [None]


@pytest.mark.parametrize("kind", ["cpu", "torch"])
def test_a_penalty_makes_the_real_backends_repeat_themselves_less(folder: Path, kind: str) -> None:
    def said(penalty: float) -> int:
        opened = open_model(str(folder), kind, options=ByteOptions(penalty=penalty, window=40))
        session = opened.session(INFO, address_plan(), Limits(tokens=94), opened.temperatures(0.2, {}))
        run(session, opened.backend(1))
        return len(set(session.repetition._recent)) if session.repetition else 0

    assert said(50.0) > said(1.0001)


def test_gaps_of_a_capture(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "t.pcap", talk(step_ns=7_000))
    assert list(gaps_of_capture(path)) == [7_000] * (len(talk()) - 1)
    opened = open_model(str(folder), options=ByteOptions(gaps_of_capture(path)))
    tokens = [*talking(opened).tokens[:-1], opened.vocabulary.end]
    packets = run(opened.session(INFO, address_plan()), Script(tokens))
    assert {b.ts_ns - a.ts_ns for a, b in pairwise(packets)} == {7_000}
    for bad, message in ((write(tmp_path / "one.pcap", talk()[:1]), "less than two"), (tmp_path / "no", "cannot be")):
        with pytest.raises(CaptureError, match=message):
            gaps_of_capture(bad)


def test_a_snapshot_goes_on_as_the_session_itself(folder: Path, tmp_path: Path) -> None:
    """Everything that a byte session consists of: repetition, flows, hosts, gaps of each kind, half a packet."""
    sampled = ByteOptions(gaps_of_capture(write(tmp_path / "t.pcap", talk(step_ns=3_000))), 1.8, 300)
    for options in (ByteOptions(), sampled):
        opened = open_model(str(folder), options=options)
        tokens = [*talking(opened).tokens[:-1], opened.vocabulary.end]
        plan = address_plan()
        prompt = Prompt(tokens[:200], (), 0, 2, (5, 6, 7))
        session = opened.session(INFO, plan, prompt=prompt)
        for token in tokens[:400]:
            session.advance(token)
        named = snapshot.named_things(opened.vocabulary, plan)
        copied = snapshot.unpack(snapshot.pack(snapshot.copy(session, named)))
        other = snapshot.restore_session(copied, named)
        assert other.decoder is not session.decoder and other.row() == session.row()
        for token in tokens[400:]:
            assert asked(other) == asked(session)
            a, b = session.advance(token), other.advance(token)
            assert (a is None) == (b is None) and (a is None or a[:3] == b[:3])
        assert other.reason == session.reason == "end" and other.packets == session.packets == len(talk())


# ---- generate ------------------------------------------------------------------------------------------------------


def generate(*arguments: object):
    return CliRunner().invoke(command, [str(a) for a in arguments])


def test_generate_from_a_prompt(folder: Path, tmp_path: Path) -> None:
    prompt = write(tmp_path / "prompt.pcap", talk())
    common = ("--model", folder, "--label", "amazon", "--prompt", prompt, "--packets", 10, "--seed", 3, "--threads", 1)
    kept = generate(*common, "--prompt-hosts", "keep", "--payload", "zero", "-o", tmp_path / "kept.pcap")
    assert kept.exit_code == 0, kept.output
    assert [p.data for p in read(tmp_path / "kept.pcap")] == [p.data for p in talk()]
    dealt = generate(*common, "-o", tmp_path / "dealt.pcap")
    assert dealt.exit_code == 0
    hosts = {parse(*p[1:]).src[:2] for p in read(tmp_path / "dealt.pcap")}
    assert hosts == {bytes((198, 18)), bytes((198, 19))}
    last = generate(*common[:-6], "--prompt-packets", 1, "--packets", 1, "--prompt-last", "--prompt-hosts", "keep",
                    "--payload", "zero", "-o", tmp_path / "last.pcap")  # fmt: skip
    assert last.exit_code == 0 and [p.data for p in read(tmp_path / "last.pcap")] == [talk()[-1].data]
    raw = generate(*common, "--raw", "-o", tmp_path / "raw.pcap")
    assert raw.exit_code == 0
    for packet, right in zip(read(tmp_path / "raw.pcap"), talk()):
        assert packet.data == right.data[:94]
        assert packet.orig_len == right.orig_len


def test_generate_from_the_string_form(folder: Path, tmp_path: Path) -> None:
    opened = open_model(str(folder))
    encoder = ByteEncoder(opened.vocabulary)  # type: ignore[arg-type]
    for packet in talk():
        encoder.packet(*packet)
    text = to_text(encoder.vocabulary, "amazon", encoder.tokens)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(text)
    common = ("--model", folder, "--label", "amazon", "--prompt-text", prompt, "--seed", 3)
    done = generate(*common, "--packets", 10, "-o", tmp_path / "a.pcap")
    assert done.exit_code == 0 and len(read(tmp_path / "a.pcap")) == 10
    other = generate(*common[:3], "netflix", *common[4:], "-o", tmp_path / "c.pcap")
    assert "its label is amazon, but netflix was asked for" in str(other.exception)
    prompt.write_text(" ".join(text.split()[:300]))
    half = generate(*common, "--tokens", 300, "-o", tmp_path / "b.pcap")
    assert "prompt.txt: packet 4 has 14 bytes; the model's packets have 94; --prompt-partial" in str(half.exception)
    part = generate(*common, "--tokens", 300, "--prompt-partial", "-o", tmp_path / "b.pcap")
    assert part.exit_code == 0 and len(read(tmp_path / "b.pcap")) == 3


def test_generate_counts_what_is_no_packet(folder: Path, tmp_path: Path) -> None:
    done = generate("--model", folder, "--label", "all", "--sampling", "paper", "--seed", 1, "-o", tmp_path / "x.pcap")
    assert done.exit_code == 0, done.output
    assert "2 sessions, 0 packets" in done.output and "malformed, left out: 5" in done.output


def test_options_of_the_byte_codec_are_refused_for_others(tmp_path: Path) -> None:
    from tiny_model import tiny_model

    model = tiny_model(tmp_path / "m")
    for option in (("--raw",), ("--repetition-penalty", 1.8), ("--sampling", "paper")):
        done = generate("--model", model, "--label", "dns", *option, "-o", tmp_path / "x.pcap")
        assert isinstance(done.exception, UsageError) and "context codec" in str(done.exception)
    text = tmp_path / "p.txt"
    text.write_text("1 2")
    done = generate("--model", model, "--label", "dns", "--prompt-text", text, "-o", tmp_path / "x.pcap")
    assert "the string form is the byte codec's" in str(done.exception)
    done = generate("--model", model, "--label", "dns", "--top-k", 5, "--packets", 3, "-o", tmp_path / "x.pcap")
    assert done.exit_code == 0


def test_speculation_changes_no_byte(tmp_path: Path) -> None:
    """On unless told otherwise where it is cheaper, told at the end, and never where it is not."""
    model = echoing_model(tmp_path / "model")
    common = ("--model", model, "--label", "amazon", "--tokens", 95 * 20, "--raw", "--seed", 3, "--sessions", 3)
    ahead = generate(*common, "-o", tmp_path / "ahead.pcap")
    plain = generate(*common, "--no-speculate", "-o", tmp_path / "plain.pcap")
    assert ahead.exit_code == plain.exit_code == 0 and len(read(tmp_path / "plain.pcap")) == 60
    assert (tmp_path / "ahead.pcap").read_bytes() == (tmp_path / "plain.pcap").read_bytes()
    assert "guesses right" not in plain.output
    if available_isas():
        assert "guesses right" in ahead.output
    if importlib.util.find_spec("torch"):
        torch = generate(*common[:-2], "--backend", "torch", "-o", tmp_path / "torch.pcap")
        assert torch.exit_code == 0 and "guesses right" not in torch.output


def test_another_model_takes_over_where_a_session_ends(folder: Path) -> None:
    """It hears its own beginning and the last packet; the session stays one: flow, hosts, clock, random numbers."""
    opened = open_model(str(folder))
    tokens = talking(opened).tokens
    end, cuts = opened.vocabulary.end, (3, 7, 10)  # packets of handshake, and on to the end of transfer, teardown
    parts = [list(tokens[95 * a : 95 * b - 1]) + [end] for a, b in pairwise((0, *cuts))]
    whole = opened.session(INFO, address_plan())
    expected = run(whole, Script([*tokens[:-1], end]))
    session, packets = opened.session(INFO, address_plan()), []
    for turn, part in enumerate(parts):
        backend = Hearing(part)
        if turn:
            session.go_on()
        packets += run(session, backend)
        assert session.reason == "end" and session.packets == cuts[turn]
        last = list(tokens[95 * (cuts[turn - 1] - 1) : 95 * cuts[turn - 1]])
        begin = opened.vocabulary.begin("amazon")
        assert [row[0] for row in backend.heard[: 96 if turn else 1]] == [begin, *(last if turn else [])]
    assert packets == expected and session.tokens == whole.tokens
    assert session.stream.counter == whole.stream.counter


class Hearing(Script):
    """Keeps the rows that it was given."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__(tokens)
        self.heard: list[list[int]] = []

    def prefill(self, slot, rows):
        self.heard += rows.tolist()

    def step(self, slots, rows, *more):
        self.heard += rows.tolist()
        return super().step(slots, rows, *more)


# ---- run -----------------------------------------------------------------------------------------------------------


def test_the_daemon_runs_a_byte_model(folder: Path, tmp_path: Path) -> None:
    """Noise: no packet comes of it, each session is ended and counted, and the daemon ends as asked."""
    text = f"""
[engine]
model = "{folder}"
pace = "topspeed"
threads = 1
[traffic]
seed = 1
sessions = 3
concurrency = 2
[output]
directory = "{tmp_path / "out"}"
[bytes]
repetition_penalty = 1.8
repetition_window = 500
[metrics]
port = 0
"""
    config = parse_config(text, "test")
    opened = _open(config, None)
    assert (opened.options.penalty, opened.options.window) == (1.8, 500)
    report = serve(config, opened)
    assert report.sessions == 3 and report.packets == 0
    assert sum(report.malformed.values()) > 700
    assert report.lines()[-1].startswith("Malformed: ")
    assert json.dumps(report.malformed)


def test_the_papers_sampling_is_a_preset_of_the_daemon(folder: Path, tmp_path: Path) -> None:
    """Its four values, each but for a key that says something else; refused for what has no repetition penalty."""
    from tiny_model import tiny_model

    text = f'[engine]\nmodel = "{folder}"\nsampling = "paper"\n'
    config = parse_config(text, "test")
    opened = _open(config, None)
    assert config.drawn() == (0.5, 25, 0.9, 1.8)
    assert (opened.sampling.top_k, opened.sampling.top_p, opened.options.penalty) == (25, 0.9, 1.8)
    assert Service(config, opened).temperatures.default == 0.5
    own = parse_config(text + "top_k = 3\n[traffic]\ntemperature = 0.8\n", "test")
    assert own.drawn() == (0.8, 3, 0.9, 1.8)
    assert parse_config("[traffic]\ntemperature = 0.8", "test").drawn() == (0.8, 0, 1.0, 1.0)
    other = parse_config(text.replace(str(folder), str(tiny_model(tmp_path / "m"))), "test")
    with pytest.raises(UsageError, match="the paper's sampling"):
        _open(other, None)
