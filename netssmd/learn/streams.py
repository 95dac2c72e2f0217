"""Sessions into batches without padding: B endless streams, each a concatenation of whole sessions, read T positions at
a time.

    stream 0   |== session 17 ==|=== session 3 ==========|== 91 ==| ...
    stream 1   |======== session 40 ======|=== session 8 ===| ...
               '----- segment -----'----- segment -----'            the model's state goes from one segment to the next
               ^ reset              ^ reset where a session begins

Which session comes next is a seeded order in which a session of weight w is drawn w times as often as one of weight 1:
its k-th visit falls at time (k + u) / w with u uniform in [0, 1), and sessions are taken by time. So each session is
heard once in every 1/w, in an order that is never the same twice, and all that has to be remembered is how often each
was visited. Per visit, u also decides whether the label and the conditions are told.
"""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from netssmd.learn.dataset import U16, Shard

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Batch:
    """B x T positions. `label` and `share` serve the accounts: label index (-1: unknown) and packets a token."""

    rows: I32  # [B, T, W] embedding rows of the input
    reset: npt.NDArray[np.bool_]  # [B, T] True where a session begins
    targets: U16  # [B, T]
    limits: U16  # [B, T]
    label: I32  # [B, T]
    share: npt.NDArray[np.float32]  # [B, T]

    @property
    def packets(self) -> float:
        return float(self.share.sum())

    def part(self, streams: slice) -> "Batch":
        """Some of the streams; nothing is copied."""
        return Batch(
            self.rows[streams],
            self.reset[streams],
            self.targets[streams],
            self.limits[streams],
            self.label[streams],
            self.share[streams],
        )


@dataclass(frozen=True, slots=True)
class Visit:
    """One session on its way through a stream, with the label row and condition rows it is told with."""

    session: int
    label: int
    conditions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """The embedding rows that are no tokens, as the vocabulary numbers them.

    begin: by label row, the token before a session's first: END, or the byte codec's label. told: label and conditions
    are added to every input.
    """

    begin: dict[int, int]
    told: bool
    labels: tuple[int, ...]
    unknown_label: int
    unknown_conditions: tuple[int, ...]

    @classmethod
    def of(cls, vocabulary: Any) -> "Rows":
        names = (*vocabulary.labels, None)
        rows = [int(vocabulary.label_row(name)) for name in names]
        return cls(
            {row: int(vocabulary.begin(name)) for row, name in zip(rows, names, strict=True)},
            bool(vocabulary.conditioned),
            tuple(rows[:-1]),
            rows[-1],
            tuple(map(int, vocabulary.condition_rows(None))),
        )

    @property
    def width(self) -> int:
        """Rows of an input without the codec's features."""
        return 2 + len(self.unknown_conditions) if self.told else 1

    def label(self, index: int) -> int:
        return self.labels[index] if index >= 0 else self.unknown_label


def session_weights(shard: Shard, alpha: float) -> npt.NDArray[np.float64]:
    """How often each session is drawn: (tokens of its label) ** -alpha, the largest weight 1. At 0 all alike; at 1
    labels get equal shares of the tokens."""
    labels, lengths = shard.sessions["label"], shard.sessions["length"]
    tokens = np.bincount(labels + 1, weights=lengths)
    weights: npt.NDArray[np.float64] = np.maximum(tokens, 1.0)[labels + 1] ** -alpha
    weights /= weights.max()
    return weights


class Order:
    """The endless seeded order of sessions. `visits` [S] is its whole state."""

    def __init__(self, weights: npt.NDArray[np.float64], seed: int, visits: Sequence[int] | None = None) -> None:
        self.weights, self.seed = weights, seed
        self.visits = [0] * len(weights) if visits is None else list(visits)
        self.heap = [(self._due(session), session) for session in range(len(weights))]
        heapq.heapify(self.heap)

    def _draw(self, session: int) -> npt.NDArray[np.float64]:
        return np.random.default_rng((self.seed, session, self.visits[session])).random(3)

    def _due(self, session: int) -> float:
        return float((self.visits[session] + self._draw(session)[0]) / self.weights[session])

    def next(self) -> tuple[int, float, float]:
        """The next session and two uniform numbers that belong to this visit."""
        session = self.heap[0][1]
        _, label, conditions = self._draw(session)
        self.visits[session] += 1
        heapq.heapreplace(self.heap, (self._due(session), session))
        return session, float(label), float(conditions)


class Streams:
    """B streams over the training sessions.

    Arguments: drop_label, drop_conditions: share of visits whose label (conditions) is told as unknown. state: of
    `state()`, to go on exactly where an earlier run stopped.
    """

    def __init__(
        self,
        shard: Shard,
        rows: Rows,
        batch: int,
        *,
        seed: int = 0,
        alpha: float = 0.0,
        drop_label: float = 0.0,
        drop_conditions: float = 0.0,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.shard, self.rows = shard, rows
        self.drop_label, self.drop_conditions = drop_label, drop_conditions
        self.order = Order(session_weights(shard, alpha), seed, None if state is None else state["visits"])
        if state is None:
            self.at = [(self._visit(), 0) for _ in range(batch)]
        else:
            self.at = [(Visit(s, label, tuple(conditions)), position) for s, label, conditions, position in state["at"]]

    def state(self) -> dict[str, Any]:
        """The position in the data, as JSON."""
        at = [[visit.session, visit.label, list(visit.conditions), position] for visit, position in self.at]
        return {"visits": list(self.order.visits), "at": at}

    def _visit(self) -> Visit:
        session, label, conditions = self.order.next()
        record = self.shard.sessions[session]
        return Visit(
            session,
            self.rows.unknown_label if label < self.drop_label else self.rows.label(int(record["label"])),
            self.rows.unknown_conditions
            if conditions < self.drop_conditions
            else tuple(int(row) for row in record["conditions"]),
        )

    def next(self, length: int) -> Batch:
        """The next `length` positions of every stream."""
        batch = blank(len(self.at), length, self.rows, self.shard)
        for b in range(len(self.at)):
            filled = 0
            while filled < length:
                visit, position = self.at[b]
                total = int(self.shard.sessions["length"][visit.session])
                take = min(length - filled, total - position)
                fill(batch, b, filled, self.shard, self.rows, visit, position, take)
                filled += take
                self.at[b] = (visit, position + take) if position + take < total else (self._visit(), 0)
        return batch


def blank(batch: int, length: int, rows: Rows, shard: Shard) -> Batch:
    width = rows.width + shard.features.shape[1]
    shape = (batch, length)
    return Batch(
        np.zeros((*shape, width), np.int32),
        np.zeros(shape, np.bool_),
        np.zeros(shape, np.uint16),
        np.zeros(shape, np.uint16),
        np.full(shape, -1, np.int32),
        np.zeros(shape, np.float32),
    )


def fill(batch: Batch, b: int, at: int, shard: Shard, rows: Rows, visit: Visit, position: int, take: int) -> None:
    """Put `take` positions of a session, from `position` on, into row `b` of the batch at `at`."""
    record = shard.sessions[visit.session]
    start = int(record["start"]) + position
    here, there = slice(at, at + take), slice(start, start + take)
    told = rows.width
    batch.targets[b, here] = shard.tokens[there]
    batch.limits[b, here] = shard.limits[there]
    batch.rows[b, at, 0] = shard.tokens[start - 1] if position else rows.begin[visit.label]
    batch.rows[b, at + 1 : at + take, 0] = shard.tokens[start : start + take - 1]
    if rows.told:
        batch.rows[b, here, 1:told] = (visit.label, *visit.conditions)
    batch.rows[b, here, told:] = shard.features[there]
    batch.reset[b, at] = position == 0
    batch.label[b, here] = record["label"]
    batch.share[b, here] = record["packets"] / record["length"]


# ---- validation


def choose_sessions(shard: Shard, tokens: int, seed: int) -> list[int]:
    """Whole sessions for validation, about `tokens` in all (0: every session). Each label is heard: first with one
    session of no more than its share (its shortest, if all are longer), then in turn while the budget lasts."""
    order = [int(s) for s in np.random.default_rng(seed).permutation(len(shard.sessions))]
    if not tokens:
        return order
    lengths, labels = shard.sessions["length"], shard.sessions["label"]
    by_label = {int(label): [s for s in order if labels[s] == label] for label in np.unique(labels)}
    share = tokens // max(1, len(by_label))
    chosen = []
    for sessions in by_label.values():
        first = next((s for s in sessions if lengths[s] <= share), min(sessions, key=lambda s: int(lengths[s])))
        sessions.remove(first)
        chosen.append(first)
    budget = tokens - int(lengths[chosen].sum())
    for turn in itertools.zip_longest(*by_label.values()):
        for session in turn:
            if session is not None and lengths[session] <= budget:
                chosen.append(session)
                budget -= int(lengths[session])
    return chosen


class Pass:
    """One pass over chosen sessions in B streams of about equal length. Where a stream has run out, `label` is
    LEFT_OVER: the state of a stream that has ended is of no interest, and its positions do not count.

    Arguments: shift: tell every session the label that lies `shift` places further on: the wrong one.
    """

    LEFT_OVER = -2

    def __init__(self, shard: Shard, rows: Rows, sessions: Sequence[int], batch: int, shift: int = 0) -> None:
        self.shard, self.rows, self.shift = shard, rows, shift
        lengths = shard.sessions["length"]
        self.queues: list[list[int]] = [[] for _ in range(min(batch, len(sessions)))]
        loads = [(0, b) for b in range(len(self.queues))]
        for session in sorted(sessions, key=lambda s: -int(lengths[s])):
            load, b = heapq.heappop(loads)
            self.queues[b].append(session)
            heapq.heappush(loads, (load + int(lengths[session]), b))
        self.longest = max(load for load, _ in loads) if loads else 0
        self.at = [(0, 0)] * len(self.queues)  # place in the queue, position in the session

    def visit(self, session: int) -> Visit:
        record = self.shard.sessions[session]
        label = int(record["label"])
        told = self.rows.label((label + self.shift) % len(self.rows.labels) if label >= 0 else -1)
        return Visit(session, told, tuple(int(row) for row in record["conditions"]))

    def lengths(self, length: int) -> list[int]:
        """Lengths of the segments to ask for."""
        return [min(length, self.longest - start) for start in range(0, self.longest, length)]

    def next(self, length: int) -> Batch:
        batch = blank(len(self.queues), length, self.rows, self.shard)
        batch.label[:] = self.LEFT_OVER
        for b, queue in enumerate(self.queues):
            filled = 0
            while filled < length and self.at[b][0] < len(queue):
                place, position = self.at[b]
                total = int(self.shard.sessions["length"][queue[place]])
                take = min(length - filled, total - position)
                fill(batch, b, filled, self.shard, self.rows, self.visit(queue[place]), position, take)
                filled += take
                self.at[b] = (place, position + take) if position + take < total else (place + 1, 0)
        return batch
