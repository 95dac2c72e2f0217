"""Every parser of what others wrote, through the targets of tools/fuzz: all kept inputs, and those damaged at random.

tools/fuzz/fuzz.py runs the same targets under atheris for as long as one likes.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools" / "fuzz"))

import targets  # noqa: E402
from targets import SEEDS, TARGETS, damaged, starts  # noqa: E402

STARTS = {name: starts(name) for name in TARGETS}
MOST_BYTES = 64 << 20  # that reading a small input may take


def test_fuzzing_begins_with_what_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage of what is refused at its first byte would find nothing; `one_line` is told each refusal."""
    refused: list[Exception] = []
    monkeypatch.setattr(targets, "one_line", refused.append)
    for name in TARGETS:
        refused.clear()
        for data in STARTS[name].values():
            TARGETS[name].run(data)
        assert name == "units" or not refused, name  # a size is no rate


@pytest.mark.parametrize(("name", "kept"), [(name, kept) for name in TARGETS for kept in STARTS[name]])
def test_kept_inputs(name: str, kept: str) -> None:
    TARGETS[name].run(STARTS[name][kept])


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**64 - 1))
def test_damaged_inputs(name: str, seed: int) -> None:
    rng = random.Random(seed)
    TARGETS[name].run(damaged(rng.choice(list(STARTS[name].values())), TARGETS[name], rng))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


def nobody() -> bytes:
    """A session whose number and label are `true`, and whose decoder stands where none can be."""
    whole = targets.snapshot.unpack(STARTS["snapshot_session"]["begun"])
    names = targets.snapshot.layout()["engine.session.Session"]
    whole[1 + names.index("info")] = True
    decoder = whole[1 + names.index("decoder")]
    decoder[1 + targets.snapshot.layout()["codec.decoder.Decoder"].index("lo")] = 10**9
    return targets.snapshot.pack(whole)


LIES = {
    "a packet of 2 GiB": ("capture", (SEEDS / "capture/pcap").read_bytes()[:32] + b"\xff\xff\xff\x7f" * 2),
    "a block of 4 GiB": ("capture", (SEEDS / "capture/ng").read_bytes() + b"\6\0\0\0\xfc\xff\xff\xff" + bytes(40)),
    "weights with a header of 2^60 bytes": ("weights", (1 << 60).to_bytes(8, "little") + b"{" * 100),
    "a tokenizer nested 10,000 deep": ("tokenizer", b'{"model":' * 10_000),
    "a codec nested 10,000 deep": ("codec", b"[" * 10_000),
    "a model of a billion layers": (
        "model_config", (SEEDS / "model_config/small").read_bytes().replace(b'"n_layer":1', b'"n_layer":1000000000'),
    ),
    "TOML with a number of 100,000 digits": ("toml", b"[traffic]\nseed = " + b"9" * 100_000),
    "a ledger of the year 10^20": (
        "ledger", (SEEDS / "ledger/small").read_bytes().replace(b'"last_ts_ns": 2', b'"last_ts_ns": 1' + b"0" * 29),
    ),
    "a byte codec of infinite packets": (
        "byte_codec", (SEEDS / "byte_codec/small").read_bytes().replace(b'"packet_bytes":94', b'"packet_bytes":1e999'),
    ),
    "merges that are no pairs": (
        "import_tokenizer", (SEEDS / "import_tokenizer/bpe").read_bytes().replace(b'"1 0"', b"0"),
    ),
    "a request whose id is no text": ("control", b'{"command": "status", "id": "\\ud800"}'),
    "a request whose id is nested": ("control", b'{"command": "status", "id": ' + b"[" * 990 + b"]" * 990 + b"}"),
    "a snapshot of a billion flows": ("snapshot_session", b"\xdd\x3b\x9a\xca\x00" + b"\xc0" * 100),
    "a snapshot of a session that is nobody": ("snapshot_session", nobody()),
    "a snapshot that names what has a name of 30,000 letters": (
        "snapshot_session", targets.snapshot.pack([targets.snapshot.NAMED, "x" * 30_000]),
    ),
    "a snapshot with half an entry": ("snapshot_session", b"\x92\x02\x01"),
    "a snapshot nested 100,000 deep": ("snapshot_session", b"\x91" * 100_000),
    "a snapshot of 2^31 sessions": (
        "snapshot_file", (SEEDS / "snapshot_file/one").read_bytes().replace(b"sessions\x01", b"sessions\xce\x80\0\0\0"),
    ),
    "TOML nested 10,000 deep": ("toml", b"x = " + b"[" * 10_000),
    "TOML with a key of 2,000 parts": ("toml", b"engine.threads." + b"a." * 2_000 + b"a = 1"),
    "a size of 5,000 digits": ("units", b"1" * 5_000 + b"MB"),
    "a manifest without a line": ("manifest", b""),
    "a manifest with a file name that no file has": ("manifest", b"file\na\0b\n"),
    "a manifest with a field of a megabyte": ("manifest", b"file\n" + b"x" * 1_000_000),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_takes_no_memory(lie: str) -> None:
    name, data = LIES[lie]
    tracemalloc.start()
    try:
        TARGETS[name].run(data)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def test_a_broken_parser_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness can fail: a parser that raises what it must not."""

    def broken(*arguments: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(targets, "parse_config", broken)
    with pytest.raises(IndexError):
        TARGETS["model_config"].run(b"{}")


@pytest.mark.slow
def test_a_coverage_guided_run(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed (extra dev)")
    command = [sys.executable, str(ROOT / "tools/fuzz/fuzz.py"), "capture", "-runs=3000", "-seed=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "stat::number_of_executed_units: 3000" in done.stderr, done.stderr[-3000:]
    assert int(done.stderr.split("cov: ")[-1].split()[0]) > 100, "the sources were not instrumented"
