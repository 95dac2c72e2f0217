"""Sessions into batches without padding: B endless streams, each a concatenation of whole sessions, read T positions at
a time.

    stream 0   |== session 17 ==|=== session 3 ==========|== 91 ==| ...
    stream 1   |======== session 40 ======|=== session 8 ===| ...
               '----- segment -----'----- segment -----'            the model's state goes from one segment to the next
               ^ reset              ^ reset where a session begins

Which session comes next is a seeded order in which a session of weight w is drawn w times as often as one of weight 1:
its k-th visit falls at time (k + u) / w with u uniform in [0, 1), and sessions are taken by time. So each session is
heard once in every 1/w, in an order that is never the same twice, and all that has to be remembered is how often each
was visited. Per visit, u also decides whether the label and the conditions are told, and what of the session's extent.

With a `window` a visit hears no more than so many tokens in a row, so that a long session cannot be learnt by heart
while it is being read: the model has to find what is constant in it (addresses, in the byte codec) in its state.
"""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from netssmd.codec.vocab import LEFT, LEFT_BINS
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
    """One session on its way through a stream, with the label row and condition rows it is told with, and which of the
    features that say what is left of it are not. It is heard from position `first` to `end` (exclusive)."""

    session: int
    label: int
    conditions: tuple[int, ...]
    untold: tuple[int, ...] = ()
    first: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """The embedding rows that are no tokens, as the vocabulary numbers them.

    begin: by label row, the token before a session's first: END, or the byte codec's label. told: label and conditions
    are added to every input. left: for each feature that says what is left of the session, its place among the codec's
    features and the row that does not tell. end: the token without which a session's extent is not known.
    """

    begin: dict[int, int]
    told: bool
    labels: tuple[int, ...]
    unknown_label: int
    unknown_conditions: tuple[int, ...]
    left: tuple[tuple[int, int], ...]
    end: int

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
            tuple((LEFT + i, int(row)) for i, row in enumerate(vocabulary.left_base[: len(LEFT_BINS)])),
            int(vocabulary.end),
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
        return np.random.default_rng((self.seed, session, self.visits[session])).random(4 + len(LEFT_BINS))

    def _due(self, session: int) -> float:
        return float((self.visits[session] + self._draw(session)[0]) / self.weights[session])

    def next(self) -> tuple[int, list[float]]:
        """The next session and the uniform numbers that belong to this visit: for the label, the conditions, each of
        what is left, and where it begins."""
        session = self.heap[0][1]
        drawn: list[float] = self._draw(session)[1:].tolist()
        self.visits[session] += 1
        heapq.heapreplace(self.heap, (self._due(session), session))
        return session, drawn


class Streams:
    """B streams over the training sessions.

    Arguments: drop_label, drop_conditions, drop_left: share of visits whose label (conditions; each of what is left) is
    told as unknown. window: most tokens of a visit; 0: whole sessions. state: of `state()`, to go on exactly where an
    earlier run stopped.
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
        drop_left: float = 0.0,
        window: int = 0,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.shard, self.rows, self.window = shard, rows, window
        self.drop_label, self.drop_conditions, self.drop_left = drop_label, drop_conditions, drop_left
        self.order = Order(session_weights(shard, alpha), seed, None if state is None else state["visits"])
        if state is None:
            visits = [self._visit() for _ in range(batch)]
            self.at = [(visit, visit.first) for visit in visits]
        else:
            self.at = [
                (Visit(s, label, tuple(told), tuple(untold), *(part or (0, int(shard.sessions["length"][s])))), at)
                for s, label, told, untold, at, *part in state["at"]  # no part: written before there were windows
            ]

    def state(self) -> dict[str, Any]:
        """The position in the data, as JSON."""
        at = [
            [v.session, v.label, list(v.conditions), list(v.untold), position, v.first, v.end]
            for v, position in self.at
        ]
        return {"visits": list(self.order.visits), "at": at}

    def _visit(self) -> Visit:
        session, (label, conditions, *left, place) = self.order.next()
        record = self.shard.sessions[session]
        length = int(record["length"])
        first = max(0, int(place * length) - self.window) if self.window else 0
        return Visit(
            session,
            self.rows.unknown_label if label < self.drop_label else self.rows.label(int(record["label"])),
            self.rows.unknown_conditions
            if conditions < self.drop_conditions
            else tuple(int(row) for row in record["conditions"]),
            tuple(i for i, number in enumerate(left) if number < self.drop_left),
            first,
            min(length, first + self.window) if self.window else length,
        )

    def next(self, length: int) -> Batch:
        """The next `length` positions of every stream."""
        batch = blank(len(self.at), length, self.rows, self.shard)
        for b in range(len(self.at)):
            filled = 0
            while filled < length:
                visit, position = self.at[b]
                take = min(length - filled, visit.end - position)
                fill(batch, b, filled, self.shard, self.rows, visit, position, take)
                filled += take
                if position + take == visit.end:
                    visit = self._visit()
                    position = visit.first - take
                self.at[b] = (visit, position + take)
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
    complete = shard.tokens[int(record["start"]) + int(record["length"]) - 1] == rows.end
    for i, (place, untold) in enumerate(rows.left):
        if not complete or i in visit.untold:
            batch.rows[b, here, told + place] = untold
    batch.reset[b, at] = position == visit.first
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
