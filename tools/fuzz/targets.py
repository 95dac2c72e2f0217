"""What is fuzzed: a function for each parser of bytes that somebody else wrote.

In: any bytes. Out: nothing, or whatever a parser raises that it must not: each target takes the errors of the
NetssmdError family that its parser promises and checks what it returns. `seeds/NAME/` holds the inputs to start from
and those that once were findings; tests/test_fuzz.py replays them all and lets hypothesis damage them, fuzz.py runs a
target under atheris. A new parser is a function and a row of `TARGETS`, and a valid input in make_seeds.py.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from netssmd.codec.byte_vocab import ByteVocabulary, labels_of, names_of_tokenizer
from netssmd.codec.decoder import decode
from netssmd.codec.encoder import encode
from netssmd.codec.vocab import Statistics, Vocabulary
from netssmd.daemon import config as daemon_config
from netssmd.daemon.addresses import plan_of
from netssmd.daemon.control import BY_NAME, failure, parse_request
from netssmd.daemon.snapshots import MAGIC, VERSION, Store
from netssmd.engine import snapshot
from netssmd.engine.plan import address_plan
from netssmd.errors import CaptureError, CheckpointError, ConfigError, LedgerError, SnapshotError, UsageError
from netssmd.learn.prepare import read_manifest
from netssmd.model.checkpoint import _json_object as json_object
from netssmd.model.checkpoint import check_tokenizer, parse_config, parse_tensors
from netssmd.model.conduct import CONDUCT, Conduct, load_conduct
from netssmd.model.config import ModelConfig
from netssmd.model.importer import read_config
from netssmd.output.flow_tables import write_cicflow, write_conn_log, write_csv
from netssmd.output.ledger_reader import Reading, connections
from netssmd.packet.compliance import Checker
from netssmd.packet.difference import first_difference
from netssmd.packet.pcap import MAX_SNAPLEN, read_capture, whole_records
from netssmd.packet.wire import parse
from netssmd.units import parse_duration_ns, parse_rate_bits_per_second, parse_size_bytes

SEEDS = Path(__file__).with_name("seeds")
HERE = Path("given")
EMPTY: Vocabulary = Statistics().fit(())
TINY = ModelConfig(d_model=2, n_layer=1, vocab_size=2, rows=2, d_state=1, d_conv=1, expand=1, headdim=1)
TOKENS = ["a", "b", "<|endoftext|>"]


@dataclass(frozen=True, slots=True)
class Target:
    """run: raises what is a finding. most_bytes: of an input. words: what the mutator may paste in. json_at: where a
    JSON document begins in an input, of which single values are changed too (8: behind its length, as in safetensors).
    """

    run: Callable[[bytes], None]
    most_bytes: int = 1024
    words: tuple[str, ...] = ()
    json_at: int | None = None
    packed: bool = False  # it is msgpack, not JSON


def starts(name: str) -> dict[str, bytes]:
    """What a target's fuzzing begins with: the inputs kept in its folder, and the valid ones as this code makes them
    (what a session's snapshot holds changes with every attribute)."""
    from make_seeds import seeds

    kept = {path.name: path.read_bytes() for path in sorted((SEEDS / name).glob("*"))}
    return kept | seeds()[name]


def one_line(error: Exception) -> None:
    """A message that says something, and not all that there is."""
    assert 0 < len(str(error)) < 20_000


def capture(data: bytes) -> None:
    """PCAP and PCAPNG, plain or compressed; and how much of a PCAP is whole."""
    found = 0
    try:
        for _, frame, orig_len in read_capture(io.BytesIO(data), "given"):
            assert len(frame) <= MAX_SNAPLEN + 2048 and len(frame) <= orig_len
            found += 1
    except CaptureError as error:
        one_line(error)
    size, packets = whole_records(io.BytesIO(data))
    assert 0 <= size <= len(data) and packets <= max(found, size // 16)


def records(data: bytes) -> list[tuple[int, bytes, int]]:
    """Frames out of bytes: length (1), bytes on the wire besides (1), time since the last (1, as a power of two)."""
    found, at, ts_ns = [], 0, 0
    while at + 3 <= len(data) and len(found) < 6:
        size, more, gap = data[at : at + 3]
        frame = data[at + 3 : at + 3 + size]
        ts_ns += (1 << gap % 70) * (-1 if gap > 250 else 1)
        found.append((ts_ns, frame, len(frame) + more))
        at += 3 + size
    return found


def headers(data: bytes) -> None:
    """Headers and compliance."""
    checker = Checker(max_flows=4)
    for ts_ns, frame, orig_len in records(data):
        parse(frame, orig_len)
        checker.observe_bytes(ts_ns, frame, orig_len)
    checker.finish()


def frames(data: bytes) -> None:
    """The codec: all frames come back exactly."""
    given = records(data)
    back = list(decode(encode(given, EMPTY), EMPTY))
    assert len(back) == len(given)
    for was, now in zip(given, back):
        assert first_difference(was, now) is None


def toml(data: bytes) -> None:
    """The daemon's configuration, and the addresses in it."""
    try:
        config = daemon_config.parse(data.decode("utf-8", "replace"), "given")
        plan_of(msgspec.structs.replace(config.addresses, names=""), 1, "given")  # no path is opened here
    except (ConfigError, UsageError) as error:
        one_line(error)


def model_config(data: bytes) -> None:
    """config.json."""
    try:
        parse_config(data, HERE)
    except CheckpointError as error:
        one_line(error)


def tokenizer(data: bytes) -> None:
    """tokenizer.json."""
    try:
        check_tokenizer(data, HERE, TOKENS)
    except CheckpointError as error:
        one_line(error)


def weights(data: bytes) -> None:
    """model.safetensors."""
    try:
        for array in parse_tensors(data, HERE, TINY).values():
            assert array.size <= 64
    except CheckpointError as error:
        one_line(error)


def codec(data: bytes) -> None:
    """The codec's section of config.json, as JSON."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        vocabulary = Vocabulary.from_json(document)
    except ValueError as error:
        one_line(error)
    else:
        assert vocabulary.to_json() == document


def byte_codec(data: bytes) -> None:
    """The section of a model that speaks bytes."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        ByteVocabulary.from_json(document if isinstance(document, dict) else {})
    except ValueError as error:
        one_line(error)


def import_config(data: bytes) -> None:
    """config.json of mamba_ssm."""
    tensors = {name: np.zeros(shape, np.float32) for name, shape in TINY.tensors().items()}
    try:
        read_config(json_object(data, HERE), HERE, tensors, HERE)
    except CheckpointError as error:
        one_line(error)


def import_tokenizer(data: bytes) -> None:
    """tokenizer.json of Hugging Face."""
    try:
        names = names_of_tokenizer(json_object(data, HERE), 272)
        ByteVocabulary(tuple(names), labels_of(names), 128, (), framed=False)
    except (CheckpointError, ValueError) as error:
        one_line(error)


def control(data: bytes) -> None:
    """A request of the control socket and of MQTT, and that its reply can be written."""
    reply: object
    try:
        request = parse_request(data)
        reply = {"id": request.id}
    except UsageError as error:
        one_line(error)
        reply = failure(error)
    json.dumps(reply, ensure_ascii=False).encode()


@cache
def named() -> dict[str, object]:
    """What sessions of a snapshot refer to."""
    return snapshot.named_things(EMPTY, address_plan(seed=1))


def snapshot_session(data: bytes) -> None:
    """A session as a snapshot holds it."""
    try:
        session = snapshot.restore_session(snapshot.unpack(data), named())
    except SnapshotError as error:
        one_line(error)
    else:
        assert session.decoder.vocabulary is EMPTY


def snapshot_file(data: bytes) -> None:
    """What stands between a snapshot's head and its checksum."""
    content = MAGIC + VERSION.to_bytes(4, "little") + data
    path = scratch() / "given_00000001.snapshot"
    path.write_bytes(content + hashlib.blake2b(content, digest_size=32).digest())
    try:
        Store(scratch(), "given", 1, 1 << 20).read(path)
    except SnapshotError as error:
        one_line(error)


def ledger(data: bytes) -> None:
    """A ledger, and the tables made of it."""
    path = scratch() / "given.jsonl"
    path.write_bytes(data)
    try:
        found = list(connections([path], Reading(), most_flows=10))
    except LedgerError as error:
        one_line(error)
        return
    for write in (write_csv, write_cicflow, write_conn_log):
        write(found, io.StringIO())


def units(data: bytes) -> None:
    """Sizes, rates, durations."""
    text = data.decode("utf-8", "replace")
    for parser in (parse_size_bytes, parse_rate_bits_per_second, parse_duration_ns):
        try:
            assert parser(text) >= 0
        except UsageError as error:
            one_line(error)


@cache
def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="netssmd-fuzz-", dir="/dev/shm"))


def conduct(data: bytes) -> None:
    """conduct.json of a model."""
    path = scratch() / CONDUCT
    path.write_bytes(data)
    try:
        load_conduct(path.parent, EMPTY.size, EMPTY.service_names())
    except CheckpointError as error:
        one_line(error)


def manifest(data: bytes) -> None:
    """manifest.csv of a set of captures."""
    path = scratch() / "manifest.csv"
    path.write_bytes(data)
    try:
        read_manifest(path, [])
    except UsageError as error:
        one_line(error)


STRANGE: tuple[object, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**40, 0.5, 1e308, math.inf, math.nan, "", "x", "context", "\x1b[2J",
    "\0", "\ud800", "ff" * 50, [], [[]], {}, {"x": 1}, [0] * 300, [1, 1],
)  # fmt: skip


def other_value(data: bytes, target: Target, rng: random.Random) -> bytes:
    """The input with one value of its document changed, copied, doubled or taken out."""
    at = target.json_at or 0
    head, tail = data[:at], data[at:]
    size = int.from_bytes(head, "little") if at else len(tail)
    try:
        document = msgspec.msgpack.decode(tail) if target.packed else json.loads(tail[:size])
    except (ValueError, RecursionError):
        return data
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        node = waiting.pop()
        inner = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in inner:
            places.append((node, key))
            waiting.append(node[key])
    if not places:
        return data
    node, key = rng.choice(places)
    match rng.randrange(4):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[f"{key}x"] = node[key]
        case 1:
            node.append(node[key])
        case 2:
            source, name = rng.choice(places)
            node[key] = copy.deepcopy(source[name])
        case 3:
            node[key] = rng.choice(STRANGE)
    try:
        if target.packed:
            return msgspec.msgpack.encode(document)
        text = json.dumps(document, separators=(",", ":")).encode()
    except (ValueError, OverflowError, TypeError, RecursionError):  # nothing that this form can say
        return data
    return (len(text).to_bytes(at, "little") if at else b"") + text + tail[size:]


def damaged(data: bytes, target: Target, rng: random.Random) -> bytes:
    """The input with a few changes: bytes, pieces, words of the target, values of its JSON."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(data) + 1)
        size = rng.choice([1, 1, 2, 4, 8, 40])
        match rng.randrange(6):
            case 0:
                data = data[:at] + rng.randbytes(size) + data[at + size :]
            case 1:
                data = data[:at] + data[at + size :]
            case 2:
                data = data[:at] + data[at : at + size] * rng.choice([2, 50]) + data[at + size :]
            case 3:
                data = data[:at] + rng.choice([b"\xff", b"\0", b"\x7f"]) * size + data[at + size :]
            case 4 if target.words:
                data = data[:at] + rng.choice(target.words).encode("latin-1") + data[at:]
            case _ if target.json_at is not None:
                data = other_value(data, target, rng)
    return data[: 2 * target.most_bytes]


CONDUCT_WORDS = (*(f'"{key.name}"' for key in fields(Conduct)), '"who"', '"other"', '"0-1023/tcp"', "1000")
JSON_WORDS = ('"', "{", "}", "[", "]", ":", ",", "null", "true", "1e999", "-1", "18446744073709551616", "NaN")
TARGETS: dict[str, Target] = {
    "capture": Target(capture, 512, ("\x0a\x0d\x0d\x0a", "\x1f\x8b", "\x28\xb5\x2f\xfd", "\xff\xff\xff\xff")),
    "headers": Target(headers, 320),
    "frames": Target(frames, 320),
    "toml": Target(toml, 512, ("[traffic]", "[output]", "[addresses]", "=", '"', "[[", "]]", "inf", "nan", "1e300")),
    "model_config": Target(model_config, 4096, (*JSON_WORDS, '"codec"', '"model"', '"labels"', '"stacks"'), 0),
    "tokenizer": Target(tokenizer, 512, (*JSON_WORDS, '"model"', '"vocab"'), 0),
    "weights": Target(weights, 2048, (*JSON_WORDS, '"dtype"', '"shape"', '"data_offsets"', "BF16", "F32"), 8),
    "codec": Target(codec, 3072, JSON_WORDS, 0),
    "byte_codec": Target(byte_codec, 3072, JSON_WORDS, 0),
    "import_config": Target(import_config, 1024, (*JSON_WORDS, '"ssm_cfg"', '"layer"', '"Mamba2"'), 0),
    "import_tokenizer": Target(import_tokenizer, 8192, (*JSON_WORDS, '"added_tokens"', '"merges"', '"BPE"'), 0),
    "control": Target(control, 512, (*JSON_WORDS, '"command"', '"arguments"', '"id"', *(f'"{c}"' for c in BY_NAME)), 0),
    "ledger": Target(ledger, 2048, (*JSON_WORDS, '"flows"', '"type"', '"session"', '"omitted"')),
    "snapshot_session": Target(snapshot_session, 8192, ("\x90", "\xc0", "\xcb", "\xcf"), 0, packed=True),
    "snapshot_file": Target(snapshot_file, 1024, ("\xdd", "\xc0", "\xc6", "\xcf", "\xcb")),
    "units": Target(units, 64, ("kbit", "MiB", "ms", ".", "9")),
    "conduct": Target(conduct, 1024, (*JSON_WORDS, *CONDUCT_WORDS), 0),
    "manifest": Target(manifest, 256, ("file", "label", ",", '"', "\r\n", "../")),
}
