"""What only sessions of the byte codec can be asked for: how tokens are drawn, where gaps come from, raw bytes.

The paper's sampling (section 5.3) is the preset "paper": temperature 0.5, top-k 25, top-p 0.9, repetition penalty 1.8
over all that the session said, prompt included.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from netssmd.errors import CaptureError, UsageError
from netssmd.packet.pcap import read_capture

MAX_GAPS: Final = 1_000_000


class Preset(NamedTuple):
    """A named set of sampling parameters; see model/sampling.py and engine/repetition.py."""

    temperature: float
    top_k: int
    top_p: float
    penalty: float


PRESETS: Final = {"paper": Preset(0.5, 25, 0.9, 1.8)}


@dataclass(frozen=True, slots=True)
class ByteOptions:
    """gaps_ns: times between packets to draw from, the paper's way; none: the model's own distributions. penalty,
    window: of repetition; penalty 1 is none. raw: bytes as generated, stale checksums, addresses and all."""

    gaps_ns: Sequence[int] = ()
    penalty: float = 1.0
    window: int = 0
    raw: bool = False


NO_OPTIONS: Final = ByteOptions()


def gaps_of_capture(path: Path) -> Sequence[int]:
    """The times between a capture's packets in nanoseconds, a million at most; a clock that stepped back counts as 0.
    Raises CaptureError, also for a capture of less than two packets."""
    gaps = array("q")
    try:
        with open(path, "rb") as file:
            for before, packet in pairwise(read_capture(file, str(path))):
                gaps.append(max(0, packet.ts_ns - before.ts_ns))
                if len(gaps) == MAX_GAPS:
                    break
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read: {error.strerror}") from None
    if not gaps:
        raise CaptureError(f"{path}: holds less than two packets; timestamps are drawn from the gaps between packets")
    return gaps


def penalty_of(penalty: float, where: str) -> float:
    """Checks a repetition penalty. Raises UsageError."""
    if not 0.01 <= penalty <= 100:
        raise UsageError(f"{where} {penalty:g}: write a number from 0.01 to 100; 1 is no penalty, the paper has 1.8")
    return penalty
