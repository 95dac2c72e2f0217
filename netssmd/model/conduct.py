"""What the labels of a model do, from the `conduct.json` in its folder; training writes it (learn/conduct.py).

    {"resets": {"chat": 0.03},                     labels that reset established TCP connections, with the share that
                                                    was reset before either side had closed
     "fin_behind_rst": {"chat": 0.98},              of the connections that were reset by a side that had closed, the
                                                    share in which the other side sent its FIN all the same
     "open": ["smb"],                              labels whose connections often do not end in their captures
     "closes_from": {"web": 0.46},                  share of a session's packets before which hardly any connection (one
                                                    in 20) is closed
     "shortest": {"web": 7},                        packets that all but one in 200 of a label's TCP flows have at least
     "tokens": {"web": [[0, 5], [9, 31], ...]},    the tokens that a label ever used in training: from, to (exclusive)
     "flow_tokens": {"web": {"53/udp":              likewise in flows to a service, of originator and responder
                 [[[4, 5], ...], [[6, 9], ...]]}},
     "weights": {"web": [[[31, 1.2], ...],         by which the odds of a token are multiplied that is drawn more or
                 [], [], [], []]},                  less often than training said it (netssmd calibrate), in each stage
                                                    of a session (codec/vocab.py, STAGES);
     "flow_weights": {"web": {"443/tcp":            likewise once a packet is one of a flow to a service
                 [[[912, 0.8]], []]}},
     "extents": {"web": [[812, 3051, 5,             sessions of a label in training: packets, milliseconds, flows;
        {"443/tcp": [[304, 1], [430, 1]],           null: not to be told; and by service the packets of its flows, with
         "53/udp": [[2, 3]]}], ...]},               how many had so many, where that is known
    "resolution_ns": 1000,                         in which the captures tell times
    "temperatures": {"who": 0.9}}                  of fields, where the model is best drawn from at another than 1

A session to be is given an extent like that of one of its label's sessions (engine/mix.py), and the model hears what is
left of it (codec/context.py); its flows go to that session's services and end as the label's do; what its label never
said cannot be drawn. A file that lacks a key knows nothing about it: then nothing is forbidden, or told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

from netssmd.codec.context import UNKNOWN
from netssmd.codec.decoder import Habits
from netssmd.codec.vocab import FIELD_NAMES, LEFT_BINS, STAGES
from netssmd.errors import CheckpointError

CONDUCT: Final = "conduct.json"
MOST_EXTENTS: Final = 256  # of a label
MOST_ENTRIES: Final = 4096
MOST_SHORTEST: Final = 1 << 16  # packets
MOST_PACKETS: Final = 1 << 40  # of a flow
MOST_FLOWS: Final = 1 << 20
MOST_RESOLUTION_NS: Final = 1_000_000
WEIGHTS: Final = (0.01, 100.0)
TEMPERATURES: Final = (0.001, 100.0)  # or 0: the likeliest token
MOST_BYTES: Final = 16 << 20

T = TypeVar("T")
Run = tuple[int, int]  # token ids: from, to (exclusive)
Weight = tuple[int, float]  # of a token


class Extent(NamedTuple):
    """A session in training; `UNKNOWN`: not told. services: by member of the vocabulary's feature `service` the packets
    of its flows, and how many had so many."""

    packets: int
    milliseconds: int
    flows: int
    services: Mapping[int, Sequence[tuple[int, int]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Conduct:
    """All by label. resets: None where nobody knows."""

    resets: Mapping[str, float] | None = None
    open: frozenset[str] = frozenset()
    closes_from: Mapping[str, float] = field(default_factory=dict)
    fin_behind_rst: Mapping[str, float] = field(default_factory=dict)
    shortest: Mapping[str, int] = field(default_factory=dict)
    tokens: Mapping[str, Sequence[Run]] = field(default_factory=dict)
    flow_tokens: Mapping[str, Mapping[int, Sequence[Sequence[Run]]]] = field(default_factory=dict)  # by service
    weights: Mapping[str, Sequence[Sequence[Weight]]] = field(default_factory=dict)
    flow_weights: Mapping[str, Mapping[int, Sequence[Sequence[Weight]]]] = field(default_factory=dict)  # by service
    extents: Mapping[str, Sequence[Extent]] = field(default_factory=dict)
    resolution_ns: int = 1
    temperatures: Mapping[str, float] = field(default_factory=dict)

    def habits(self, label: str, tells_extents: bool) -> Habits:
        """What its drawn sessions keep to. tells_extents: its flows say how many packets they will have."""
        return Habits(
            UNKNOWN if self.resets is None or label in self.open else self.resets.get(label, 0.0),
            self.may_reset(label),
            self.shortest.get(label, 0),
            not tells_extents,
            self.resolution_ns,
            self.closes_from.get(label, 0.0),
            self.fin_behind_rst.get(label, 0.0),
        )

    def may_reset(self, label: str) -> bool:
        """Whether a label resets established connections, for all that is known."""
        return self.resets is None or label in self.resets


NO_CONDUCT: Final = Conduct()


def load_conduct(folder: Path, vocab_size: int, services: Sequence[str] = ()) -> Conduct:
    """What the model in `folder`, of so many tokens and these services, has. Raises CheckpointError for a file that is
    broken."""
    return _read(folder, lambda document: parse_conduct(document, vocab_size, services), NO_CONDUCT)


def load_temperatures(folder: Path) -> dict[str, float]:
    """Those alone. Raises CheckpointError."""

    def temperatures(document: object) -> dict[str, float]:
        if not isinstance(document, dict):
            raise ValueError("it is no table")
        return dict(parse_conduct({"temperatures": document.get("temperatures")}, 0).temperatures)

    return _read(folder, temperatures, {})


def _read(folder: Path, parse: Callable[[object], T], without: T) -> T:
    path = folder / CONDUCT
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return without
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes")
        return parse(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f'{path}: {error}; it holds {{"resets": {{label: share of its connections that were reset}}, '
            '"fin_behind_rst": {label: share}, "open": [label], "closes_from": {label: share}, "shortest": {label: '
            'packets}, "tokens": {label: [[from, to], ...]}, "flow_tokens": {label: {service: [[[from, to], ...], '
            '[[from, to], ...]]}}, "weights": {label: [[[token, weight], ...], ...]}, "flow_weights": {label: '
            '{service: [[[token, weight], ...], [[token, weight], ...]]}}, "extents": {label: [[packets, milliseconds, '
            'flows, {service: [[packets, flows], ...]}], ...]}, "resolution_ns": a number, "temperatures": {field: '
            "number}}, or is not there"
        ) from None


def parse_conduct(document: object, vocab_size: int, services: Sequence[str] = ()) -> Conduct:
    """Raises ValueError."""
    if not isinstance(document, dict):
        raise ValueError("it is no table")
    said: dict[str, object] = document
    numbers = {name: number for number, name in enumerate(services) if name}
    left_open = said.get("open", [])
    if not isinstance(left_open, list) or not all(isinstance(label, str) for label in left_open):
        raise ValueError("open is no list of labels")

    def table(key: str) -> list[tuple[str, object]]:
        return _table(key, said.get(key))

    def run(label: str, entry: object) -> Run:
        return _run(label, entry, vocab_size)

    def weight(label: str, entry: object) -> Weight:
        return _weight(label, entry, vocab_size)

    resets = {label: _share("resets", label, part) for label, part in table("resets")}
    return Conduct(
        None if said.get("resets") is None else resets,
        frozenset(left_open),
        {label: _share("closes_from", label, part) for label, part in table("closes_from")},
        {label: _share("fin_behind_rst", label, part) for label, part in table("fin_behind_rst")},
        {label: _shortest(label, packets) for label, packets in table("shortest")},
        {
            label: [run(label, entry) for entry in _entries("tokens", label, runs)]
            for label, runs in table("tokens")
        },
        {
            label: _by_service("flow_tokens", label, by_service, numbers, run)
            for label, by_service in table("flow_tokens")
        },
        {
            label: [[weight(label, entry) for entry in _entries("weights", label, stage)] for stage in stages]
            for label, entries in table("weights")
            if (stages := _stages(label, entries))
        },
        {
            label: _by_service("flow_weights", label, by_service, numbers, weight)
            for label, by_service in table("flow_weights")
        },
        {
            label: [_extent(label, entry, numbers) for entry in _entries("extents", label, entries)]
            for label, entries in table("extents")
        },
        _resolution(said.get("resolution_ns", 1)),
        {name: _temperature(name, value) for name, value in table("temperatures")},
    )


def _table(key: str, value: object) -> list[tuple[str, object]]:
    if value is None:
        return []
    if not isinstance(value, dict):
        raise ValueError(f"{key} is no table")
    return list(value.items())


def _entries(key: str, label: str, entries: object) -> list[object]:
    if not isinstance(entries, list) or len(entries) > MOST_ENTRIES:
        raise ValueError(f"{key} of {label} are no list of {MOST_ENTRIES} entries at most")
    return entries


def _share(key: str, label: str, share: object) -> float:
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
        raise ValueError(f"{key} of {label} is no number from 0 to 1")
    return float(share)


def _shortest(label: str, packets: object) -> int:
    if type(packets) is not int or not 1 <= packets <= MOST_SHORTEST:
        raise ValueError(f"the shortest flow of {label} is no number from 1 to {MOST_SHORTEST}")
    return packets


def _resolution(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MOST_RESOLUTION_NS:
        raise ValueError(f"resolution_ns is no number from 1 to {MOST_RESOLUTION_NS}")
    return value


def _temperature(name: str, value: object) -> float:
    if name not in FIELD_NAMES:
        raise ValueError(f"temperatures: there is no field {name[:40]!r}")
    low, high = TEMPERATURES
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not (value == 0 or low <= value <= high):
        raise ValueError(f"the temperature of {name} is neither 0 nor a number from {low:g} to {high:g}")
    return float(value)


def _run(label: str, run: object, vocab_size: int) -> Run:
    if isinstance(run, list) and len(run) == 2 and all(type(token) is int for token in run):
        first, end = run
        if 0 <= first < end <= vocab_size:
            return first, end
    raise ValueError(f"tokens of {label}: {json.dumps(run)[:40]} is no [from, to] within 0 to {vocab_size}")


def _stages(label: str, stages: object) -> list[object]:
    if not isinstance(stages, list) or len(stages) != len(STAGES) + 1:
        raise ValueError(f"weights of {label} are no list of {len(STAGES) + 1} stages")
    return stages


def _weight(label: str, weight: object, vocab_size: int) -> Weight:
    low, high = WEIGHTS
    if isinstance(weight, list) and len(weight) == 2 and type(weight[0]) is int and 0 <= weight[0] < vocab_size:
        token, times = weight
        if isinstance(times, (int, float)) and not isinstance(times, bool) and low <= times <= high:
            return token, float(times)
    raise ValueError(
        f"weights of {label}: {json.dumps(weight)[:40]} is no [token below {vocab_size}, {low:g} to {high:g}]"
    )


def _extent(label: str, entry: object, numbers: Mapping[str, int]) -> Extent:
    told = len(LEFT_BINS)
    if not isinstance(entry, list) or len(entry) not in (told, told + 1):
        raise ValueError(f"an extent of {label} is no list of three numbers and a table")
    packets, milliseconds, flows = (_number(label, number) for number in entry[:told])
    if flows == 0:
        raise ValueError(f"an extent of {label} has no flows")
    if len(entry) == told:
        return Extent(packets, milliseconds, flows)
    services = {}
    for name, known in _table(f"the services of an extent of {label}", entry[told]):
        pairs = [_of_flows(label, name, pair) for pair in _entries(f"flows to {name}", label, known)]
        services[_service("extents", label, name, numbers)] = pairs
    return Extent(packets, milliseconds, flows, services)


def _service(key: str, label: str, name: str, numbers: Mapping[str, int]) -> int:
    if name not in numbers:
        raise ValueError(f"{key} of {label} tell of {name[:40]!r}, which is no service of this model")
    return numbers[name]


def _by_service(
    key: str, label: str, by_service: object, numbers: Mapping[str, int], entry: Callable[[str, object], T]
) -> dict[int, list[list[T]]]:
    """What the two sides of a label's flows to each service have: entries."""
    known: dict[int, list[list[T]]] = {}
    for name, sides in _table(f"{key} of {label}", by_service):
        if not isinstance(sides, list) or len(sides) != 2:
            raise ValueError(f"{key} of {label} to {name} are not of two sides")
        both = [[entry(label, one) for one in _entries(key, label, side)] for side in sides]
        known[_service(key, label, name, numbers)] = both
    return known


def _of_flows(label: str, name: str, pair: object) -> tuple[int, int]:
    if isinstance(pair, list) and len(pair) == 2 and all(type(one) is int for one in pair):
        packets, flows = pair
        if 1 <= packets < MOST_PACKETS and 1 <= flows < MOST_FLOWS:
            return packets, flows
    raise ValueError(f"flows to {name} of an extent of {label}: {json.dumps(pair)[:40]} is no [packets, flows]")


def _number(label: str, number: object) -> int:
    if number is None:
        return UNKNOWN
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 40:
        raise ValueError(f"an extent of {label} holds something else than numbers")
    return number
