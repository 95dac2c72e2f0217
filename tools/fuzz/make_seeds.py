"""Writes the inputs that fuzzing starts from into seeds/: small, valid, one of each kind. Findings are not touched.

python tools/fuzz/make_seeds.py
"""

from __future__ import annotations

import gzip
import json
import random
import struct
import sys
from pathlib import Path

import numpy as np
import zstandard

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "tests")]
# ruff: noqa: E402

import frames as made
from targets import EMPTY, SEEDS, TINY, TOKENS, named

from netssmd.codec.byte_vocab import ByteVocabulary, labels_of
from netssmd.codec.decoder import Decoder
from netssmd.daemon.control import COMMANDS, Command
from netssmd.daemon.snapshots import _frame
from netssmd.engine import snapshot
from netssmd.engine.identities import FreshIdentities
from netssmd.engine.plan import AddressPlan
from netssmd.engine.sampling import Stream
from netssmd.engine.session import Session, SessionInfo
from netssmd.model.checkpoint import _config_dict, _safetensors, _tokenizer_dict
from netssmd.model.config import ModelConfig
from netssmd.output.ledger import SCHEMA
from netssmd.packet.pcap import Packet, file_header, record
from netssmd.packet.render import render

CONDUCT = {
    "resets": {"chat": 0.03}, "open": ["smb"], "shortest": {"web": 7}, "tokens": {"web": [[0, 5], [9, 31]]},
    "resolution_ns": 1000, "temperatures": {"who": 0.9}, "closes_from": {"web": 0.46},
    "flow_tokens": {"web": {"0-1023/tcp": [[[0, 5]], []]}},
    "fin_behind_rst": {"chat": 0.98},
    "weights": {"web": [[[3, 1.25]], [], [], [], []]},
    "flow_weights": {"web": {"0-1023/tcp": [[[4, 0.5]], []]}},
    "extents": {"web": [[812, 3051, 24, {"0-1023/tcp": [[30, 14]], "other": [[1, 10]]}], [None, 9, 2]]},
}  # fmt: skip
A, B = made.HOSTS4[:2]
A6, B6 = made.HOSTS6[:2]


def some_frames() -> list[bytes]:
    tcp = made.tcp(40000, 443, 2, 7, 0, options=bytes.fromhex("020405b4"))
    answer = made.tcp(443, 40000, 18, 9, 8)
    dns = struct.pack(">HHHH", 5353, 53, 8 + 12, 0) + bytes(12)
    return [
        made.ethernet(A, B, made.ipv4(A, B, 6, tcp)),
        made.ethernet(B, A, made.ipv4(B, A, 6, answer)),
        made.ethernet(A, B, made.ipv4(A, B, 17, dns)),
        made.ethernet(A6, B6, made.ipv6(A6, B6, 6, tcp)),
        made.ethernet(A, B, made.ipv4(A, B, 1, bytes(8))),
    ]


def block(kind: int, body: bytes, order: str) -> bytes:
    """A PCAPNG block."""
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def pcapng(order: str) -> bytes:
    frame = some_frames()[0]
    section = block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)
    interface = block(1, struct.pack(order + "HHIHHBxxxHH", 1, 0, 0, 9, 1, 9, 0, 0), order)
    packet = block(6, struct.pack(order + "IIIII", 0, 1, 2, len(frame), len(frame)) + frame, order)
    simple = block(3, struct.pack(order + "I", len(frame)) + frame, order)
    return section + interface + packet + simple


FLOW = {"packets": [1, 1], "bytes": [60, 60], "ip_bytes": [40, 40], "payload_bytes": [0, 0], "first_ts_ns": 1,
        "last_ts_ns": 2, "proto": 6, "src": "198.18.0.1", "sport": 40000, "dst": "198.19.0.1", "dport": 443,
        "history": "Sh"}  # fmt: skip
LEDGER = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in (
        {"type": "header", "schema": SCHEMA, "capture": "a.pcap", "model": "", "model_hash": "0", "version": "1",
         "linktype": 1, "snaplen": 0, "created": "", "sessions": 1, "packets": 2},
        {"type": "session", "session": "7-1", "label": "web", "attack": False, "conditions": {}, "seed": 1,
         "model_hash": "0", "first_ts_ns": 1, "last_ts_ns": 2, "packets": 2, "bytes": 120, "complete": True,
         "findings": {}, "flows": [FLOW], "flows_omitted": None},
        {"type": "omitted", "first_ts_ns": None, "last_ts_ns": 2, "packets": 0, "bytes": 0},
    )
)  # fmt: skip


def byte_vocabulary() -> ByteVocabulary:
    names = [*map(str, range(256)), "<|web|>", "<|pkt|>", "<|endoftext|>"]
    return ByteVocabulary(tuple(names), labels_of(names), 94, (), framed=False)


def session() -> Session:
    """A session some packets after its beginning."""
    rng = random.Random(1)
    plan = named()["plan"]
    assert isinstance(plan, AddressPlan)
    decoder = Decoder(EMPTY, FreshIdentities(plan, 1, Stream(1)), max_flows=8)
    made = Session(SessionInfo(1, "", {}, 1, 0), decoder, Stream(2), [], EMPTY.end, render)
    while made.packets < 4:
        token = rng.randrange(decoder.lo, decoder.hi)
        if token != EMPTY.end:
            made.advance(token, 0, 0)
    return made


def snapshot_file() -> bytes:
    info = [1, "web", {}, 1, 0]
    head = {"id": "1", "sessions": 1, "packets": 1, "layout": {}}
    board = {"lanes": [{}], "over": [], "speakers": [info], "session_ns": 1, "lag_ns": 0}
    frames = [head, board, [0, None, b"state", 3, True], [[5, b"frame", 60, 1, 0, None, 0, 0, 0]]]
    return b"".join(_frame(frame) for frame in frames) + bytes(4)


def example(command: Command) -> dict[str, object]:
    """A request that the command takes."""
    values: dict[str, object] = {"true": True, "web=3 dns=1": {"web": 3}, "session-ended": ["session-ended"]}
    given = {}
    for argument in command.arguments:
        shown = argument.kind.example
        given[argument.name] = values.get(shown, float(shown) if shown.isdigit() else shown)
    return {"command": command.name, "arguments": {k: int(v) if isinstance(v, float) else v for k, v in given.items()}}


def merges() -> list[str]:
    """Pairs that make one token of every byte's decimal number, whichever digits are joined first."""
    two = [f"{n}" for n in range(10, 100)]
    three = [f"{n}" for n in range(100, 256)]
    return [f"{n[0]} {n[1]}" for n in two] + [f"{n[:k]} {n[k:]}" for n in three for k in (1, 2)]


def seeds() -> dict[str, dict[str, bytes]]:
    packets = [Packet(i * 1000, frame, len(frame)) for i, frame in enumerate(some_frames())]
    plain = file_header() + b"".join(record(packet) for packet in packets)
    cooked = plain[:20] + struct.pack("<I", 113) + plain[24:]
    sized = ModelConfig(4, 1, EMPTY.size, EMPTY.rows, d_state=1, headdim=4)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in TINY.tensors().items()}
    mamba = {"d_model": TINY.d_model, "n_layer": 1, "vocab_size": 2, "pad_vocab_size_multiple": 1,
             "ssm_cfg": {"layer": "Mamba2", "d_state": 1, "d_conv": 1, "expand": 1, "headdim": 1}}  # fmt: skip
    specials = ["<|web|>", "<|pkt|>", "<|endoftext|>"]
    vocab = {**{str(n): n for n in range(256)}, **{name: 256 + i for i, name in enumerate(specials)}}
    words = {"model": {"type": "WordLevel", "vocab": vocab}, "added_tokens": [{"id": 256, "content": "<|web|>"}]}
    bpe = {**words, "model": {"type": "BPE", "vocab": vocab, "merges": merges()}}
    dump = lambda value: json.dumps(value, separators=(",", ":")).encode()  # noqa: E731
    return {
        "capture": {"pcap": plain, "cooked": cooked, "gzip": gzip.compress(plain, mtime=0), "ng": pcapng("<"),
                    "ng-big": pcapng(">"), "zstd": zstandard.compress(plain)},
        "frames": {"all": b"".join(bytes((len(frame), 0, 10)) + frame for frame in some_frames())},
        "headers": {"all": b"".join(bytes((len(frame), 0, 10)) + frame for frame in some_frames())},
        "byte_codec": {"small": dump(byte_vocabulary().to_json())},
        "import_config": {"small": dump(mamba)},
        "import_tokenizer": {"words": dump(words), "bpe": dump(bpe)},
        "control": {command.name: dump(example(command)) for command in COMMANDS},
        "ledger": {"small": LEDGER},
        "snapshot_session": {"begun": snapshot.pack(snapshot.copy(session(), named()))},
        "snapshot_file": {"one": snapshot_file()},
        "toml": {"small": b'[traffic]\nconcurrency = 3\nrtt_ms = [1, 2.5]\nlabels = {web = 1}\narrivals = "30/min"\n',
                 "places": b'[output]\nslice_size = "1MB"\n[addresses]\nclients = ["10.0.0.0/8", "fd00::/64"]\n'},
        "model_config": {"small": dump(_config_dict(sized, EMPTY.to_json()))},
        "tokenizer": {"small": dump(_tokenizer_dict(TOKENS))},
        "weights": {"bf16": _safetensors(arrays, "bf16"), "fp32": _safetensors(arrays, "fp32")},
        "codec": {"empty": dump(EMPTY.to_json())},
        "units": {"size": b"10MB", "rate": b"1.5mbit/s", "time": b"150 ms"},
        "conduct": {"small": json.dumps(CONDUCT).encode()},
        "manifest": {"small": b"file,label,split,rtt_ms\na.pcap,web,val,3\nb/c.pcap,ssh,,\n"},
    }  # fmt: skip


if __name__ == "__main__":
    for target, inputs in seeds().items():
        folder = SEEDS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in inputs.items():
            (folder / name).write_bytes(content)
