"""Is it remembered? What generated captures share with the training set, beside what held-out real ones share with it.

In: sessions. Out: shares of

    runs of sizes           RUN packets in a row (sizes and directions) that occur in a training session
    runs of sizes and gaps  the same with each gap's power of two in microseconds
    flows                   whole flows of at least FLOW_PACKETS packets: sizes and directions
    identifiers             unicast addresses and MACs, initial sequence numbers

Regular traffic repeats itself, so real against real stands beside each. Identifiers come from an address plan and a
random stream, never from the model: what is found anyway is chance, and how much chance gives is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netssmd.learn.evaluate.sessions import Session, packets_by_flow

RUN = 12
FLOW_PACKETS = 8
KINDS = ("runs of sizes", "runs of sizes and gaps", "flows")


def _signed(session: Session) -> Any:
    return np.where(session.up, session.sizes, -session.sizes).astype(np.int64)


def _runs(symbols: Any) -> Any:
    """A number for each RUN symbols in a row: a polynomial hash modulo 2^64."""
    if len(symbols) < RUN:
        return np.zeros(0, np.uint64)
    mixed = (symbols.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    total = np.zeros(len(symbols) - RUN + 1, np.uint64)
    with np.errstate(over="ignore"):
        for i in range(RUN):
            total = total * np.uint64(0x100000001B3) + mixed[i : len(mixed) - RUN + 1 + i]
    return total


def sizes_runs(session: Session) -> Any:
    return _runs(_signed(session))


def timed_runs(session: Session) -> Any:
    gaps = np.diff(session.times_ns, prepend=session.times_ns[:1]) // 1000
    octave = np.floor(np.log2(np.maximum(gaps, 1))).astype(np.int64)
    return _runs(_signed(session) * 64 + octave)


def flows(session: Session) -> Iterator[bytes]:
    """Sizes and directions of each flow that is long enough."""
    signed = _signed(session).astype(np.int32)
    for chosen in packets_by_flow(session):
        if len(chosen) >= FLOW_PACKETS:
            yield signed[chosen].tobytes()


@dataclass(frozen=True, slots=True)
class Memory:
    """What a training set holds."""

    sizes: Any
    timed: Any
    flows: frozenset[bytes]
    identifiers: frozenset[bytes]

    @classmethod
    def of(cls, train: Sequence[Session]) -> Memory:
        def united(runs: Any) -> Any:
            return np.unique(np.concatenate([runs(session) for session in train]))

        return cls(
            united(sizes_runs), united(timed_runs), frozenset(f for session in train for f in flows(session)),
            frozenset(i for session in train for i in session.identifiers),
        )  # fmt: skip

    def shares(self, sessions: Sequence[Session]) -> dict[str, tuple[int, float | None]]:
        """By kind: how many there were, and which share of them the training set holds."""
        found: dict[str, tuple[int, float | None]] = {}
        for kind, runs, known in ((KINDS[0], sizes_runs, self.sizes), (KINDS[1], timed_runs, self.timed)):
            mine = np.concatenate([runs(session) for session in sessions]) if sessions else np.zeros(0, np.uint64)
            found[kind] = len(mine), float(np.isin(mine, known).mean()) if len(mine) else None
        whole = [flow for session in sessions for flow in flows(session)]
        found[KINDS[2]] = len(whole), sum(flow in self.flows for flow in whole) / len(whole) if whole else None
        return found

    def identifiers_of(self, sessions: Sequence[Session]) -> dict[str, tuple[int, int, float]]:
        """By kind: how many identifiers there were, how many of them the training set holds, and how many it would if
        each were thrown uniformly in the /16 (IPv4), the /64 (IPv6) or among all numbers of its kind."""
        mine = {identifier for session in sessions for identifier in session.identifiers}
        found = {}
        for kind, (tag, name) in IDENTIFIERS.items():
            own = [i for i in mine if i[:1] == tag]
            known = [i for i in self.identifiers if i[:1] == tag]
            found[name] = len(own), len(set(own) & set(known)), _by_chance(kind, own, known)
        return found


IDENTIFIERS = {
    "ipv4": (b"4", "IPv4 addresses"), "ipv6": (b"6", "IPv6 addresses"), "mac": (b"m", "MAC addresses"),
    "isn": (b"s", "initial sequence numbers"),
}  # fmt: skip
_ROOM = {"ipv4": (3, 2**16), "ipv6": (9, 2**64), "mac": (1, 2**48), "isn": (1, 2**32)}  # bytes that agree, how many


def _by_chance(kind: str, own: Sequence[bytes], known: Sequence[bytes]) -> float:
    prefix, room = _ROOM[kind]
    near: dict[bytes, int] = {}
    for identifier in known:
        near[identifier[:prefix]] = near.get(identifier[:prefix], 0) + 1
    return float(sum(near.get(identifier[:prefix], 0) / room for identifier in own))
