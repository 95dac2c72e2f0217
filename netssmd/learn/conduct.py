"""What conduct.json says of a model's labels (model/conduct.py), read off the training sessions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from netssmd.codec import vocab as v
from netssmd.codec.context import FIN_ACKED, FIN_SENT, OPEN, RESET, SYN_SENT
from netssmd.codec.vocab import FLOW_LEFT, FLOW_SERVICE, FLOW_STATE, LEFT, LEFT_BINS, TCP_STATES, Vocabulary
from netssmd.learn.dataset import Shard
from netssmd.model.conduct import MOST_EXTENTS

Ints = npt.NDArray[np.int_]

SYN_ACKS = (v.FLAGS_SYN_ACK, v.FLAGS_SYN_ACK + 1)
ACKS, FINS = (v.FLAGS_ACK, v.FLAGS_ACK + 1), (v.FLAGS_FIN, v.FLAGS_FIN + 1)
MICROSECOND = 1_000  # ns
MOSTLY = 0.7  # of its connections: a label that ends no more of them leaves them open, as captures that were cut do
RARELY = 0.05  # of its connections: a label that resets no more of them is taken for one that does not
FLOWS = len(v.STAGES) + 1  # the first of `speakers` that speaks in a flow
RSTS = (v.FLAGS_RST, v.FLAGS_RST + 1)


def conduct(shard: Shard, vocabulary: Vocabulary) -> dict[str, Any]:
    """Extents are told to the bins that the model sees; those of sessions that were cut are left out."""
    labels = vocabulary.labels
    extents: dict[str, list[list[Any]]] = {label: [] for label in labels}
    used = np.zeros((len(labels), vocabulary.size), np.bool_)
    said_by: list[dict[tuple[int, int], npt.NDArray[np.bool_]]] = [{} for _ in labels]  # by service and direction
    answered, early, late = np.zeros((3, len(labels)), int)  # connections; reset before and after a side had closed
    established, closed = np.zeros((2, len(labels)), int)  # connections; closed by both sides
    by_closer, behind = np.zeros((2, len(labels)), int)  # reset by a side that had closed; a FIN sent behind that
    closings: list[list[float]] = [[] for _ in labels]  # how far in their sessions connections begin to be closed
    lengths: list[list[int]] = [[] for _ in labels]  # of TCP flows, as bins
    shape, length, gap = (vocabulary.fields[field] for field in (v.TCP_SHAPE, v.EXTENT, v.IAT))
    names, nothing = vocabulary.service_names(), np.zeros(vocabulary.size, np.bool_)
    for record, tokens, (states, services, owed) in labelled(shard, vocabulary, FLOW_STATE, FLOW_SERVICE, FLOW_LEFT):
        label = int(record["label"])
        used[label, tokens] = True
        _hear(said_by[label], tokens, services, vocabulary)
        opening = np.flatnonzero((tokens >= length.lo) & (tokens < length.lo + v.EXTENT_UNTOLD))
        packets = owed[opening + 1] - 1  # bins, as the next token is told them
        lengths[label] += packets[states[opening] < TCP_STATES**2].tolist()
        at = np.flatnonzero((tokens >= shape.lo) & (tokens < shape.lo + 36 * v.FLAGS_OTHER))
        classes = (tokens[at] - shape.lo) // 36
        answered[label] += np.isin(classes, SYN_ACKS).sum()
        own, peer = states[at] // TCP_STATES, states[at] % TCP_STATES
        established[label] += (np.isin(classes, ACKS) & (own == SYN_SENT) & (peer == SYN_SENT)).sum()
        closed[label] += (np.isin(classes, FINS) & (own < FIN_SENT) & np.isin(peer, (FIN_SENT, FIN_ACKED))).sum()
        if tokens[-1] == vocabulary.end:
            said = np.cumsum((tokens >= gap.lo) & (tokens < gap.lo + gap.size))[at]  # packets before each
            firsts = np.isin(classes, FINS) & (own < FIN_SENT) & (peer < FIN_SENT) & (own >= OPEN)
            closings[label] += (said[firsts] / int(record["packets"])).tolist()
        more, less = np.maximum(own, peer), np.minimum(own, peer)  # which side is farther on
        rst = np.isin(classes, RSTS) & (more >= OPEN) & (less >= SYN_SENT)
        by_closer[label] += (rst & (peer < FIN_SENT) & np.isin(own, (FIN_SENT, FIN_ACKED))).sum()
        behind[label] += (np.isin(classes, FINS) & (own < FIN_SENT) & (own >= OPEN) & (peer == RESET)).sum()
        early[label] += (rst & (more < FIN_SENT)).sum()
        late[label] += (rst & (less < FIN_SENT) & np.isin(more, (FIN_SENT, FIN_ACKED))).sum()
        if tokens[-1] == vocabulary.end:
            left = shard.features[int(record["start"]), LEFT:][: len(LEFT_BINS)].astype(int)
            left -= np.array(vocabulary.left_base[: len(LEFT_BINS)]) + 1
            numbers = [bins.edges[max(0, member)] for bins, member in zip(LEFT_BINS, left, strict=True)]
            if numbers[2]:  # without flows it is no session to be like
                extents[labels[label]].append([*numbers, _flows(services[opening + 1], packets, names)])
    return {
        "resets": {
            label: round(float(early[i] / max(early[i], answered[i])), 4) if early[i] > RARELY * answered[i] else 0.0
            for i, label in enumerate(labels)
            if max(early[i], late[i]) > RARELY * answered[i]
        },
        "fin_behind_rst": {
            label: round(min(1.0, float(behind[i] / by_closer[i])), 4) for i, label in enumerate(labels) if by_closer[i]
        },
        "open": [
            label
            for i, label in enumerate(labels)
            if established[i] and closed[i] + early[i] + late[i] < MOSTLY * established[i]
        ],
        "closes_from": {
            label: round(sorted(known)[len(known) // 20], 2) for label, known in zip(labels, closings) if known
        },
        "shortest": {label: _shortest(bins) for label, bins in zip(labels, lengths) if bins},
        "tokens": {label: _runs(row) for label, row in zip(labels, used) if row.any()},
        "flow_tokens": {
            label: {
                names[service]: [_runs(heard.get((service, side), nothing)) for side in (0, 1)]
                for service in sorted({service for service, _ in heard})
            }
            for label, heard in zip(labels, said_by)
            if heard
        },
        "extents": {label: _thinned(sorted(known, key=lambda one: one[:3])) for label, known in extents.items()},
        "resolution_ns": _resolution(np.logical_or.reduce(used), vocabulary),
    }


def labelled(shard: Shard, vocabulary: Vocabulary, *features: int) -> Iterator[tuple[Any, Ints, list[Ints]]]:
    """The sessions whose label is known: record, tokens [n], and the members [n] of these features with which each
    token is predicted."""
    for record in shard.sessions:
        if record["label"] >= 0:
            session = slice(int(record["start"]), int(record["start"]) + int(record["length"]))
            members = [
                shard.features[session, feature].astype(int) - vocabulary.feature_base[feature] for feature in features
            ]
            yield record, shard.tokens[session].astype(int), members


def _resolution(used: npt.NDArray[np.bool_], vocabulary: Vocabulary) -> int:
    """A microsecond, as most captures tell, if every gap can be a number of them."""
    first, edges = vocabulary.fields[v.IAT].lo, v.IAT_BINS.edges
    bins = [(edges[i], edges[i + 1]) for i in range(v.IAT_BINS.count) if used[first + i]]
    whole = all(-(-lo // MICROSECOND) * MICROSECOND < hi for lo, hi in bins)
    return MICROSECOND if bins and whole else 1


def speakers(
    tokens: npt.NDArray[Any], services: npt.NDArray[Any], vocabulary: Vocabulary
) -> Ints:
    """Who says each token of a session: before a packet's flow is known the stage of the session, 0 to `FLOWS` - 1,
    then `FLOWS` + 2 times the flow's service (the feature's member, told in `services`) + 1 if it is the responder.

    Arguments: tokens, services [n]. Return: [n].
    """
    who = vocabulary.fields[v.WHO]
    starts = np.flatnonzero((tokens >= who.lo) & (tokens < who.lo + who.size))
    members = tokens[starts] - who.lo
    directions = np.where(members < v.WHO_FAR, (members - v.WHO_FLOW) & 1, members - v.WHO_FAR)
    directions[members < v.WHO_FLOW] = 0  # a new flow's first packet
    direction = np.repeat(directions, np.diff([*starts, len(tokens)]))
    gap = vocabulary.fields[v.IAT]
    ends = (tokens >= gap.lo) & (tokens < gap.lo + gap.size)
    stages = np.searchsorted(v.STAGES, np.cumsum(ends) - ends, "right")
    return np.where(tokens >= vocabulary.fields[v.TCP_SHAPE].lo, FLOWS + 2 * services + direction, stages)


def _hear(
    heard: dict[tuple[int, int], npt.NDArray[np.bool_]], tokens: npt.NDArray[Any], service: npt.NDArray[Any],
    vocabulary: Vocabulary,
) -> None:  # fmt: skip
    """Which tokens each side of the flows to each service says in a session."""
    spoken = speakers(tokens, service, vocabulary)
    for speaker in np.unique(spoken[spoken >= FLOWS]):
        key = divmod(int(speaker) - FLOWS, 2)
        heard.setdefault(key, np.zeros(vocabulary.size, np.bool_))[tokens[spoken == speaker]] = True


Flows = dict[str, list[list[int]]]


def _flows(services: Ints, bins: Ints, names: list[str]) -> Flows:
    """By the name of a service: packets, to their bin, and how many flows had so many."""
    edges, found = v.FLOW_LEFT_BINS.edges, {}
    for service in np.unique(services):
        members, counts = np.unique(bins[services == service], return_counts=True)
        found[names[service]] = [[edges[one], int(count)] for one, count in zip(members, counts, strict=True)]
    return found


def _thinned(known: list[list[Any]]) -> list[list[Any]]:
    known = [one for one in known if one[3]] or known  # those that tell of their flows, if there are any
    return known[:: max(1, -(-len(known) // MOST_EXTENTS))]


def _shortest(bins: list[int]) -> int:
    return v.FLOW_LEFT_BINS.edges[sorted(bins)[len(bins) // 200]]


def _runs(row: npt.NDArray[np.bool_]) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], row, [False])).astype(np.int8)))
    return [[int(a), int(b)] for a, b in edges.reshape(-1, 2)]
