"""`netssmd codec`: captures in, through the codec and back; what came back, and what it costs.

In: capture files and folders of them. Out: a table on stdout (or one JSON object), a progress bar and one line a
problem on stderr. Exit code 1 when a packet did not come back exactly, or when no file could be read.

Each capture is read twice as a stream, once to encode it and once to compare what is decoded: what is held is one
capture's tokens and identities, and counts. The vocabulary is a model's, else one fitted to the captures themselves.
Bits a packet are the model's: the mean of -log2 of the probability of what came next, over the range that was legal.
Without a model they are the empirical entropy of each field's tokens: what a coder would need that knows their
frequencies and nothing of their order.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netssmd.commands.prepare import progress
from netssmd.errors import CaptureError, CheckpointError, NetssmdError, UsageError

if TYPE_CHECKING:
    from netssmd.codec.encoder import Encoded
    from netssmd.codec.vocab import Vocabulary
    from netssmd.packet.pcap import Packet

ENDINGS = (".pcap", ".pcapng", ".cap")
COMPRESSED = (".gz", ".zst")
SHOWN_PROBLEMS = 20
READ_AHEAD = 4096  # packets read between two looks at the clock, so that encoding is timed and reading is not


@dataclass(slots=True)
class Tally:
    """Counts over all captures. `entropy_tokens` are the counts of single tokens by id."""

    files: int = 0
    packets: int = 0
    exact: int = 0
    escaped: int = 0
    tokens: int = 0
    by_token: dict[int, int] = field(default_factory=dict)
    encode_ns: int = 0
    decode_ns: int = 0
    model_bits: float = 0.0
    model_packets: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    mismatches: int = 0


@click.command
@click.argument("paths", metavar="FILE_OR_DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="Model folder: its vocabulary, and bits a packet by it.")
@click.option("--bits-packets", default=100, show_default=True, type=click.IntRange(min=0),
              help="Packets of each capture that the model judges; 0 for none.")  # fmt: skip
@click.option("--bench", is_flag=True, help="Say how many packets a second are encoded and decoded, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(paths: tuple[Path, ...], model: Path | None, bits_packets: int, bench: bool, as_json: bool) -> int:
    """Round-trip captures through the codec: exactness, escapes, tokens and bits a packet.

    Folders are searched for *.pcap, *.pcapng and *.cap, plain or with .gz or .zst.
    """
    files = find_captures(paths)
    folder = model if model is not None else embedded_model()
    if folder is not None and is_byte_model(folder):
        return byte_view(files, folder, bits_packets, as_json)
    with progress() as advance:
        vocabulary = load_vocabulary(folder / "config.json") if folder else fit_vocabulary(files, advance)
        judge = open_judge(folder, vocabulary, bits_packets, asked=model is not None) if folder else None
        tally = Tally()
        for at, (path, name) in enumerate(files):
            round_trip(path, name, vocabulary, tally, judge)
            advance("round trip", at + 1, len(files))
    tell(tally.problems)
    click.echo(json.dumps(summary(tally, vocabulary), indent=2) if as_json else table(tally, vocabulary, folder, bench))
    return 1 if tally.mismatches or not tally.files else 0


def is_byte_model(folder: Path) -> bool:
    """Whether a model folder's codec is the paper's; False also where there is none."""
    from netssmd.model.checkpoint import read_json

    if not (folder / "config.json").is_file():
        return False
    codec = read_json(folder / "config.json").get("codec")
    return isinstance(codec, dict) and codec.get("name") == "bytes"


def byte_view(files: Sequence[tuple[Path, str]], folder: Path, bits_packets: int, as_json: bool) -> int:
    """The command for a model of the byte codec: see byte_codec.py."""
    from netssmd.codec.byte_vocab import ByteVocabulary
    from netssmd.commands import byte_codec
    from netssmd.model.checkpoint import load_config_and_codec

    _, codec = load_config_and_codec(folder)
    try:
        vocabulary = ByteVocabulary.from_json(codec)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: codec: {error}") from None
    bits = byte_codec.bits_of(folder, vocabulary) if bits_packets else None
    with progress() as advance:
        tally = byte_codec.view(files, vocabulary, read, bits, bits_packets, advance)
    tell(tally.problems)
    summary = byte_codec.summary(tally, vocabulary)
    click.echo(json.dumps(summary, indent=2) if as_json else byte_codec.table(tally, vocabulary, folder))
    return 1 if tally.mismatches or not tally.files else 0


def tell(problems: Sequence[tuple[str, str]]) -> None:
    """The first problems, a line each on stderr."""
    for name, reason in problems[:SHOWN_PROBLEMS]:
        click.echo(f"netssmd: {name}: {reason}", err=True)
    if len(problems) > SHOWN_PROBLEMS:
        click.echo(f"netssmd: {len(problems) - SHOWN_PROBLEMS} more problems; --json lists them all", err=True)


# --- what to read -----------------------------------------------------------------------------------------------------


def find_captures(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Captures and what to call them. Raises UsageError for a path that is not there or a folder without captures."""
    found: dict[Path, str] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if is_capture(p.name) and p.is_file())
            if not inside:
                raise UsageError(f"{path}: no captures in this folder; they are named *.pcap, *.pcapng or *.cap")
            found.update((p, str(p)) for p in inside)
        elif path.exists():
            found[path] = str(path)
        else:
            raise UsageError(f"{path}: no such file or folder; give captures or folders that hold some")
    return list(found.items())


def is_capture(name: str) -> bool:
    stem, ending = os.path.splitext(name.lower())
    return (os.path.splitext(stem)[1] if ending in COMPRESSED else ending) in ENDINGS and not name.startswith(".")


def read(path: Path, name: str, problem: Callable[[str], None]) -> Iterator["Packet"]:
    """A capture's packets; where it cannot be read (on), `problem` is told why and the packets end."""
    from netssmd.packet.pcap import read_capture

    try:
        with open(path, "rb") as file:
            yield from read_capture(file, name)
    except CaptureError as error:
        problem(str(error).removeprefix(f"{name}: "))
    except OSError as error:
        problem(error.strerror or str(error))


def embedded_model() -> Path | None:
    """Folder of the model that comes with the package, if one does."""
    from netssmd import freshness

    folder = Path(freshness.__file__).parent / "model" / "embedded"
    return folder if (folder / "config.json").is_file() else None


def load_vocabulary(path: Path) -> "Vocabulary":
    """The vocabulary in a model's config.json. Raises CheckpointError."""
    from netssmd.codec.vocab import Vocabulary
    from netssmd.model.checkpoint import read_json

    try:
        return Vocabulary.from_json(read_json(path).get("codec", {}))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; give the folder of a model of this version") from None


def fit_vocabulary(files: Sequence[tuple[Path, str]], advance: Callable[[str, int, int], None]) -> "Vocabulary":
    """A vocabulary whose dictionaries hold what these captures say most often."""
    from netssmd.codec.encoder import Encoder
    from netssmd.codec.vocab import Statistics

    whole = Statistics()
    empty = whole.fit(())
    for at, (path, name) in enumerate(files):
        one = Statistics()
        encoder = Encoder(empty, one)
        for ts_ns, data, orig_len in read(path, name, lambda reason: None):
            encoder.packet(ts_ns, data, orig_len)
        whole.merge(one)
        advance("vocabulary", at + 1, len(files))
    return whole.fit(())


# --- there and back ---------------------------------------------------------------------------------------------------

Judge = Callable[["Encoded", str], tuple[float, int]]


def round_trip(path: Path, name: str, vocabulary: "Vocabulary", tally: Tally, judge: Judge | None) -> None:
    """Encode a capture, decode it, compare, and add what was found to the tally."""
    damage: list[str] = []
    encoded = encode_timed(read(path, name, damage.append), vocabulary, tally)
    tally.problems.extend((name, reason) for reason in damage)
    if damage and not encoded.packets:
        return
    tally.files += 1
    tally.packets += encoded.packets
    tally.escaped += encoded.escaped
    tally.tokens += len(encoded.tokens)
    for token in encoded.tokens:
        tally.by_token[token] = tally.by_token.get(token, 0) + 1
    compare(path, name, encoded, vocabulary, tally)
    if judge is not None and encoded.packets:
        bits, packets = judge(encoded, path.resolve().parent.name)
        tally.model_bits += bits
        tally.model_packets += packets


def encode_timed(packets: Iterator["Packet"], vocabulary: "Vocabulary", tally: Tally) -> "Encoded":
    from netssmd.codec.encoder import Encoder

    encoder = Encoder(vocabulary)
    while block := list(islice(packets, READ_AHEAD)):
        begun = time.perf_counter_ns()
        for ts_ns, data, orig_len in block:
            encoder.packet(ts_ns, data, orig_len)
        tally.encode_ns += time.perf_counter_ns() - begun
    encoder.end()
    return encoder.encoded


def compare(path: Path, name: str, encoded: "Encoded", vocabulary: "Vocabulary", tally: Tally) -> None:
    """Decode a capture beside reading it again; count exact packets, report the first one that is not."""
    from netssmd.codec.decoder import decode
    from netssmd.packet.difference import first_difference

    returned = decode(encoded, vocabulary)
    reported = False

    def mismatch(number: int, what: str) -> None:
        nonlocal reported
        tally.mismatches += 1
        if not reported:
            tally.problems.append((name, f"packet {number}: {what}"))
        reported = True

    for number, packet in enumerate(islice(read(path, name, lambda reason: None), encoded.packets), 1):
        begun = time.perf_counter_ns()
        try:
            back = next(returned, None)
        except Exception as error:  # whatever a defect of the codec raises, the other captures shall be tried
            mismatch(number, f"cannot be decoded: {error!r}")
            return
        tally.decode_ns += time.perf_counter_ns() - begun
        if back is None:
            mismatch(number, "is missing")
            return
        difference = first_difference((packet.ts_ns, packet.data, packet.orig_len), back)
        if difference is None:
            tally.exact += 1
        else:
            mismatch(number, str(difference))
    if next(returned, None) is not None:
        mismatch(encoded.packets + 1, "was never sent")


def open_judge(folder: Path, vocabulary: "Vocabulary", packets: int, asked: bool) -> Judge | None:
    """Bits that the model in `folder` needs for the first packets of a session; None where there are no weights, and
    where no model can run. Raises NetssmdError for a damaged model that was `asked` for."""
    if packets == 0 or not (folder / "model.safetensors").is_file():
        return None
    try:
        from netssmd.model.backend import open_backend

        backend = open_backend(folder, "auto", slots=1)
    except (ImportError, NetssmdError) as error:
        if asked and isinstance(error, CheckpointError):
            raise
        click.echo(f"netssmd: bits a packet without the model: {error}", err=True)
        return None
    import numpy as np

    from netssmd.codec.vocab import IAT, STAGE_FEATURES

    iat = vocabulary.fields[IAT]

    def judge(encoded: "Encoded", label: str) -> tuple[float, int]:
        row = vocabulary.label_row(label if label in vocabulary.labels else None)
        fixed = [row, *vocabulary.condition_rows(None)]
        bits, seen, before = 0.0, 0, vocabulary.end
        backend.reset(0)
        for token, limit, stage in zip(encoded.tokens, encoded.limits, encoded.stages, strict=True):
            number = vocabulary.field_of(token)
            known = encoded.features[stage * STAGE_FEATURES : (stage + 1) * STAGE_FEATURES]
            rows = [before, *fixed, *vocabulary.feature_rows(number, known)]
            logits = backend.logits_for(0, np.array(rows, np.int32)).astype(np.float64)
            entry = vocabulary.fields[number]
            tail = entry.lo + entry.size - entry.tail
            legal = np.concatenate([logits[entry.lo : min(limit, tail)], logits[tail : entry.lo + entry.size]])
            top = legal.max()
            bits += (top + math.log(np.exp(legal - top).sum()) - logits[token]) / math.log(2.0)
            before = token
            seen += iat.lo <= token < iat.lo + iat.size
            if seen == packets:
                break
        return bits, seen

    return judge


# --- what is said about it --------------------------------------------------------------------------------------------


def tokens_by_field(tally: Tally, vocabulary: "Vocabulary") -> dict[str, int]:
    """Tokens of each field that occurred, the frequent ones first."""
    counts: dict[str, int] = {}
    for token, count in tally.by_token.items():
        name = vocabulary.fields[vocabulary.field_of(token)].name
        counts[name] = counts.get(name, 0) + count
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def entropy_bits(tally: Tally, vocabulary: "Vocabulary") -> float:
    """Bits for all tokens, given each one's field and how often that field takes each member."""
    by_field = tokens_by_field(tally, vocabulary)
    return -sum(
        count * math.log2(count / by_field[vocabulary.fields[vocabulary.field_of(token)].name])
        for token, count in tally.by_token.items()
    )


def bits_per_packet(tally: Tally, vocabulary: "Vocabulary") -> float:
    if tally.model_packets:
        return tally.model_bits / tally.model_packets
    return abs(entropy_bits(tally, vocabulary)) / tally.packets if tally.packets else 0.0


def summary(tally: Tally, vocabulary: "Vocabulary") -> dict[str, Any]:
    packets = max(1, tally.packets)
    return {
        "files": tally.files,
        "packets": tally.packets,
        "exact_packets": tally.exact,
        "escaped_packets": tally.escaped,
        "tokens": tally.tokens,
        "tokens_per_packet": round(tally.tokens / packets, 4),
        "bits_per_packet": round(bits_per_packet(tally, vocabulary), 4),
        "tokens_per_packet_by_field": {
            name: round(count / packets, 5) for name, count in tokens_by_field(tally, vocabulary).items()
        },
        "problems": [{"file": name, "reason": reason} for name, reason in tally.problems],
        "encode_packets_per_second": round(per_second(tally.packets, tally.encode_ns)),
    }


def per_second(packets: int, elapsed_ns: int) -> float:
    return packets * 1e9 / elapsed_ns if elapsed_ns else 0.0


def table(tally: Tally, vocabulary: "Vocabulary", folder: Path | None, bench: bool) -> str:
    """The same for people."""
    whole = summary(tally, vocabulary)
    source = f"of {folder}" if folder else "fitted to these captures"
    if tally.model_packets:
        how = f"by the model, on {tally.model_packets:,} packets, conditions unknown"
    else:
        how = "empirical entropy of each field's tokens, no model"
    lines = [
        f"files             {tally.files:>14,}",
        f"packets           {tally.packets:>14,}",
        f"exact packets     {tally.exact:>14,}",
        f"escaped packets   {tally.escaped:>14,}",
        f"tokens            {tally.tokens:>14,}   vocabulary of {vocabulary.size:,}, {source}",
        f"tokens per packet {whole['tokens_per_packet']:>14.3f}",
        f"bits per packet   {whole['bits_per_packet']:>14.3f}   {how}",
    ]
    if bench:
        lines += [
            f"encode            {per_second(tally.packets, tally.encode_ns):>14,.0f}   packets/s",
            f"decode            {per_second(tally.packets, tally.decode_ns):>14,.0f}   packets/s, rendering included",
        ]
    lines += ["", f"{'field':<14} {'tokens/packet':>13} {'share':>7}"]
    for name, count in tokens_by_field(tally, vocabulary).items():
        lines.append(f"{name:<14} {count / max(1, tally.packets):>13.4f} {count / max(1, tally.tokens):>7.1%}")
    return "\n".join(lines)
