"""`netssmd codec --model` of a byte model: what of captures the model sees, what of it is a packet, and what it costs.

In: captures and a model of the byte codec. Out: counts over all of them. A packet *fits* if the layout has a place for
it; others are left out, by reason: in a real capture what the layout has not, in one of `generate --raw` also what the
model garbled. Of those that fit tokens are made, which are read again as the model's own output would be: they are the
same bytes, or *malformed* by a reason of `REASONS`, which in real captures is the floor under a model's own rate. Bits
a packet are the model's, over the tokens that it may draw.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netssmd.codec.byte_vocab import ByteVocabulary
    from netssmd.codec.bytes import ByteDecoder
    from netssmd.packet.pcap import Packet

    Read = Callable[[Path, str, Callable[[str], None]], Iterator[Packet]]
    Bits = Callable[[list[int], str], float]


# What a layout has no place for, beside what is no packet at all.
LAYOUT = {
    "version": "an IP version that the layout has not, or other than the Ethernet type says",
    "protocol": "a protocol that the layout has not, or a fragment",
    "does-not-fit": "headers longer than the layout",
}


@dataclass(slots=True)
class ByteTally:
    """Counts over all captures."""

    files: int = 0
    packets: int = 0
    tokens: int = 0
    exact: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    malformed: Counter[str] = field(default_factory=Counter)
    bits: float = 0.0
    judged: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    mismatches: int = 0


def view(
    files: Sequence[tuple[Path, str]], vocabulary: ByteVocabulary, read: Read, bits: Bits | None, judged: int,
    advance: Callable[[str, int, int], None],
) -> ByteTally:  # fmt: skip
    """Everything that is counted. `bits` of the first `judged` packets of each capture, if there is a model to ask."""
    tally = ByteTally()
    for at, (path, name) in enumerate(files):
        first: list[int] = []
        damage: list[str] = []
        seen = tally.packets
        decoder = _decoder(vocabulary)
        for packet in read(path, name, damage.append):
            tokens = _one(packet, name, vocabulary, decoder, tally)
            if tokens and len(first) < judged * len(tokens):
                first += tokens
        tally.problems.extend((name, reason) for reason in damage)
        tally.files += tally.packets > seen or not damage
        tally.malformed.update(decoder.malformed)
        if bits is not None and first:
            tally.bits += bits(first, path.resolve().parent.name)
            tally.judged += len(first) // (vocabulary.layout.packet_bytes + 1)
        advance("round trip", at + 1, len(files))
    return tally


def _decoder(vocabulary: ByteVocabulary) -> ByteDecoder:
    from netssmd.codec.bytes import ByteDecoder
    from netssmd.codec.timing import FittedGaps
    from netssmd.engine.sampling import Stream

    return ByteDecoder(vocabulary, FittedGaps(vocabulary.timing, "", Stream(0)), mtu=0, keep_body=True)


def _one(packet: Packet, name: str, vocabulary: ByteVocabulary, decoder: ByteDecoder, tally: ByteTally) -> list[int]:
    """One packet there and back; its tokens, none for one that does not fit."""
    from netssmd.codec.bytes import block, headers_of, reason_of

    tally.packets += 1
    data, reason = block(packet.data, packet.orig_len, vocabulary.layout, vocabulary.protocols)
    if reason:
        garbled = reason_of(packet.data, headers_of(packet.data, packet.orig_len)) if reason == "not-ip" else ""
        tally.left_out[garbled or reason] += 1
        return []
    tokens = [*[vocabulary.byte_ids[byte] for byte in data], vocabulary.pkt]
    tally.tokens += len(tokens)
    decoder.ended = decoder.silent = False
    decoded = None
    for token in tokens:
        decoded = decoder.feed(token)
    if decoded is not None:
        if bytes(vocabulary.byte_of[token] for token in decoder.last_tokens()[:-1]) == data:
            tally.exact += 1
        else:
            tally.mismatches += 1
            tally.problems.append((name, f"packet {tally.packets}: comes back as other bytes"))
    return tokens


def bits_of(folder: Path, vocabulary: ByteVocabulary) -> Bits:
    """Bits that the model needs for tokens behind a label (none: a label that it does not know). Raises
    CheckpointError, NetssmdError."""
    import numpy as np

    from netssmd.model.backend import open_backend

    backend = open_backend(folder, "auto", slots=1)

    def bits(tokens: list[int], label: str) -> float:
        told = label if label in vocabulary.labels else None
        fixed = vocabulary.told_rows(told, {})
        before, total, inside = vocabulary.begin(told), 0.0, 0
        backend.reset(0)
        for token in tokens:
            logits = backend.logits_for(0, np.array([before, *fixed], np.int32)).astype(np.float64)
            lo, hi = vocabulary.range_behind(inside)
            legal = logits[lo:hi]
            total += (legal.max() + math.log(np.exp(legal - legal.max()).sum()) - logits[token]) / math.log(2.0)
            inside = 0 if token == vocabulary.pkt else inside + 1
            before = token
        return total

    return bits


def summary(tally: ByteTally, vocabulary: ByteVocabulary) -> dict[str, Any]:
    """What --json prints."""
    fitting = tally.packets - sum(tally.left_out.values())
    return {
        "codec": "bytes",
        "files": tally.files,
        "packets": tally.packets,
        "packet_bytes": vocabulary.layout.packet_bytes,
        "fitting_packets": fitting,
        "left_out_packets": dict(tally.left_out.most_common()),
        "exact_packets": tally.exact,
        "malformed_packets": dict(tally.malformed.most_common()),
        "tokens": tally.tokens,
        "tokens_per_packet": round(tally.tokens / max(1, fitting), 4),
        "bits_per_packet": round(tally.bits / tally.judged, 4) if tally.judged else None,
        "judged_packets": tally.judged,
        "problems": [{"file": name, "reason": reason} for name, reason in tally.problems],
    }


def table(tally: ByteTally, vocabulary: ByteVocabulary, folder: Path) -> str:
    """The same for people."""
    from netssmd.codec.bytes import REASONS

    whole = summary(tally, vocabulary)
    size = vocabulary.layout.packet_bytes
    lines = [
        f"files             {tally.files:>14,}",
        f"packets           {tally.packets:>14,}",
        f"that fit          {whole['fitting_packets']:>14,}   {size} bytes, {' and '.join(vocabulary.protocols)}",
        f"exact packets     {tally.exact:>14,}",
        f"malformed         {sum(tally.malformed.values()):>14,}",
        f"tokens            {tally.tokens:>14,}   vocabulary of {vocabulary.size:,}, of {folder}",
        f"tokens per packet {whole['tokens_per_packet']:>14.3f}",
    ]
    if tally.judged:
        lines.append(
            f"bits per packet   {whole['bits_per_packet']:>14.3f}   by the model, on {tally.judged:,} packets, "
            "conditions unknown"
        )
    for title, counts, why in (("left out", tally.left_out, REASONS | LAYOUT), ("malformed", tally.malformed, REASONS)):
        if counts:
            lines += ["", f"{title:<14} {'packets':>10}"]
            lines += [f"{name:<14} {count:>10,}   {why[name]}" for name, count in counts.most_common()]
    return "\n".join(lines)
