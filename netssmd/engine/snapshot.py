"""A running session as plain values, and back: what a snapshot holds of it, whatever it consists of.

    Session ─┬ SessionInfo, Limits, Temperatures, clock, counters, prompt position
             ├ Stream (key, counter)
             ├ Decoder ─ Context ─ Hosts, Services, Flows ─ Sides ─ Headers, Stack
             ├ FreshIdentities ─ Stream                              the plan is named, not stored
             ├ PayloadWriter ─ Speakers, Stream
             ├ Checker ─ Totals, its own Flows ─ Sides
             ├ Guide
             └ Planter ─ Checker, Stream

One walk copies all of it, so that an attribute that is added to a class is carried without being named anywhere else.
It goes into the classes of `KEPT` only, takes their attributes as the class declares them (`__slots__`, or mypyc's list
of them), and writes each value as a plain one or as a list that begins with a tag::

    None  bool  int  float  str  bytes      themselves
    [LIST, value ...]  [DICT, key, value ...]  [TUPLE, value ...]
    [KIND + n, value ...]      an object of class n of the layout, its attributes in the layout's order
    [REF, n]                   the n-th list, dict or object of the walk again: flows, sides and hosts share each other
    [NAMED, name]              what belongs to the model, the plan or the code: vocabulary, a label's plan, a writer
    [PARTIAL, name, value, value]   functools.partial of a named function: positions, keywords

What is none of these is refused by name. The values go into msgpack (no pickle: nothing but these classes is ever made,
and no code of a snapshot's choosing runs). `layout()` tells the order of attributes; who stores values stores it beside
them, and a layout that does not fit the running code is refused. Compiled and interpreted code have the same layout.

The recurrent state is the backend's: `save_state` and `load_state` of model/backend.py go with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any, Final, TypeAlias

import msgspec

from netssmd.codec.byte_vocab import ByteVocabulary
from netssmd.codec.bytes import ByteDecoder
from netssmd.codec.context import Context, Flow, Host, Service, Side
from netssmd.codec.decoder import Decoder, Habits, Recorded
from netssmd.codec.flows import FlowTable
from netssmd.codec.kinds import KINDS
from netssmd.codec.timing import FittedGaps, RecordedGaps, SampledGaps, Timing
from netssmd.codec.vocab import Stack, Vocabulary
from netssmd.engine.anomalies import Planter
from netssmd.engine.guide import Guide
from netssmd.engine.identities import FreshIdentities
from netssmd.engine.mix import Arrivals, RateCap
from netssmd.engine.plan import AddressPlan
from netssmd.engine.repetition import Repetition
from netssmd.engine.sampling import Stream
from netssmd.engine.session import FiveTuple, Limits, Session, SessionInfo, Temperatures
from netssmd.errors import SnapshotError
from netssmd.packet import compliance
from netssmd.packet.mark import render_marked
from netssmd.packet.messages import WRITERS, Speaker, filler
from netssmd.packet.payload import PayloadWriter
from netssmd.packet.render import render
from netssmd.packet.wire import Headers

Value: TypeAlias = Any  # None, bool, int, float, str, bytes, or a list that begins with a tag
Layout: TypeAlias = dict[str, list[str]]
Named: TypeAlias = Mapping[str, object]
Renames: TypeAlias = Callable[[bytes], bytes]

REF: Final = 0
LIST: Final = 1
DICT: Final = 2
TUPLE: Final = 3
NAMED: Final = 4
PARTIAL: Final = 5
KIND: Final = 16  # + a class's place in the layout

_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})


def _blank_session(named: Named) -> Session:
    byte = isinstance(named["vocabulary"], ByteVocabulary)
    return Session(_INFO, _blank_bytes(named) if byte else _blank_decoder(named), Stream(0), [], 0, render)


def _blank_bytes(named: Named) -> ByteDecoder:
    vocabulary = named["vocabulary"]
    assert isinstance(vocabulary, ByteVocabulary)
    return ByteDecoder(vocabulary, _blank_gaps())


def _blank_gaps() -> FittedGaps:
    return FittedGaps(Timing(), "", Stream(0))


def _blank_decoder(named: Named) -> Decoder:
    vocabulary = named["vocabulary"]
    assert isinstance(vocabulary, Vocabulary)
    return Decoder(vocabulary, _blank_identities(named))


def _blank_identities(named: Named) -> FreshIdentities:
    plan = named["plan"]
    assert isinstance(plan, AddressPlan)
    return FreshIdentities(plan, 0, Stream(0))


_INFO: Final = SessionInfo(0, "", {}, 0, 0)
_HOST: Final = Host(4, b"", b"")


@dataclass(frozen=True, slots=True)
class Kept:
    """A class that snapshots hold.

    blank: makes an object whose attributes are then all set (compiled classes have no other way); None for what is
        immutable and made of its attributes. caches: attributes that are not stored. since: attributes that older
        snapshots may lack. Both stay as `blank` made them.
    """

    cls: type
    blank: Callable[[Named], object] | None
    caches: frozenset[str] = frozenset()
    since: frozenset[str] = frozenset()


KEPT: Final = (
    Kept(Session, _blank_session, since=frozenset(("_overheard", "resolution_ns"))),
    Kept(SessionInfo, None),
    Kept(Limits, None),
    Kept(Temperatures, lambda named: Temperatures()),
    Kept(Stream, lambda named: Stream(0), caches=frozenset(("_block", "_block_from"))),
    Kept(Decoder, _blank_decoder, since=frozenset(("clamped", "owed"))),
    Kept(Habits, None),
    Kept(Recorded, lambda named: Recorded([])),
    Kept(ByteDecoder, _blank_bytes),
    Kept(FlowTable, lambda named: FlowTable()),
    Kept(FittedGaps, lambda named: _blank_gaps(), caches=frozenset(("_members", "_running"))),
    Kept(SampledGaps, lambda named: SampledGaps(Timing(), Stream(0))),
    Kept(RecordedGaps, lambda named: RecordedGaps([], _blank_gaps())),
    Kept(Repetition, lambda named: Repetition(1, 1.0)),
    Kept(FreshIdentities, _blank_identities),
    Kept(Context, lambda named: _blank_decoder(named).context),
    Kept(Host, lambda named: Host(4, b"", b"")),
    Kept(Side, lambda named: Side(_HOST, 0)),
    Kept(Flow, lambda named: Flow(0, 4, 0, 0, [])),
    Kept(Service, lambda named: Service(_HOST, _HOST, 4, 0, 0, 0, 0)),
    Kept(Stack, None),
    Kept(Headers, lambda named: Headers()),
    Kept(PayloadWriter, lambda named: PayloadWriter("zero", Stream(0), KINDS)),
    Kept(Speaker, lambda named: Speaker(filler, 0, False, False, 0, [])),
    Kept(compliance.Checker, lambda named: compliance.Checker()),
    Kept(compliance.Totals, lambda named: compliance.Totals()),
    Kept(compliance.Flow, lambda named: compliance.Flow((b"", 0, b"", 0), 0, False, False, 0)),
    Kept(compliance.Side, lambda named: compliance.Side()),
    Kept(Guide, lambda named: Guide(False)),
    Kept(Planter, lambda named: Planter({}, Stream(0), 1)),
    Kept(FiveTuple, None),
    Kept(Arrivals, lambda named: Arrivals(1, 0, 0, 0)),
    Kept(RateCap, lambda named: RateCap(0)),
)


def _declared(cls: type) -> list[str]:
    """The attributes of a class, in an order that compiled and interpreted code share."""
    if issubclass(cls, tuple):
        return list(cls._fields)  # type: ignore[attr-defined]
    names: set[str] = set()
    for base in cls.__mro__:
        for table in ("__mypyc_attrs__", "__slots__", "__dataclass_fields__"):
            names.update(base.__dict__.get(table, ()))
    names -= {"__dict__", "__weakref__"}
    if not names:
        raise TypeError(f"class {cls.__name__} declares no attributes: give it __slots__")
    return sorted(names)


class _Shape:
    """How objects of one class are taken apart and made."""

    def __init__(self, kept: Kept, number: int) -> None:
        self.cls = kept.cls
        self.name = f"{kept.cls.__module__.removeprefix('netssmd.')}.{kept.cls.__name__}"
        self.tag = KIND + number
        self.blank = kept.blank
        self.since = kept.since
        self.attributes = [name for name in _declared(kept.cls) if name not in kept.caches]
        get = attrgetter(*self.attributes)
        self.get: Callable[[object], tuple[object, ...]] = get if len(self.attributes) > 1 else lambda o: (get(o),)


_SHAPES: Final = {kept.cls: _Shape(kept, number) for number, kept in enumerate(KEPT)}


def layout() -> Layout:
    """The attributes of each class as values of this build have them."""
    return {shape.name: list(shape.attributes) for shape in _SHAPES.values()}


def named_things(
    vocabulary: Vocabulary | ByteVocabulary, plan: AddressPlan, plans: Mapping[str, AddressPlan] | None = None
) -> dict[str, object]:
    """What sessions refer to but do not own, by name. `plan`: the one in force; `plans`: all that sessions may have, by
    a name that tells them apart in every run."""
    writers = {f"writer {row[0].__name__}": row[0] for row in WRITERS.values()}
    of_labels = {f"plan {label}": plan.for_label(label) for label in vocabulary.labels}
    timing = {"timing": vocabulary.timing} if isinstance(vocabulary, ByteVocabulary) else {}
    return {
        **of_labels,
        **timing,
        "vocabulary": vocabulary,
        "plan": plan,
        **{f"plan of {pattern}": own for pattern, own in plan.labels},
        "kinds": KINDS,
        "render": render,
        "render_marked": render_marked,
        f"writer {filler.__name__}": filler,
        **writers,
        **{
            f"plan {label} of {key}": one.for_label(label)
            for key, one in (plans or {}).items()
            for label in vocabulary.labels
        },
    }


def copy(thing: object, named: Named) -> Value:
    """The thing as values that share nothing with it. Raises SnapshotError for what no row of `KEPT` holds."""
    return _Walk(named).value(thing)


def restore(value: Value, named: Named, layout: Layout | None = None, renames: Renames | None = None) -> Any:
    """The thing again. `layout`: the one that was stored with it (None: this build's). `renames`: what becomes of each
    bytes value. Raises SnapshotError."""
    try:
        return _Making(named, layout, renames).thing(value)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise SnapshotError(f"its content is damaged: {type(error).__name__}: {_brief(error)}") from error


def restore_session(
    value: Value, named: Named, layout: Layout | None = None, renames: Renames | None = None
) -> Session:
    """A session from its copy. Raises SnapshotError also for one that could not take a step."""
    session = restore(value, named, layout, renames)
    if type(session) is not Session or type(session.decoder) not in (Decoder, ByteDecoder):
        raise SnapshotError(f"a session was expected where a {type(session).__name__} stands")
    if type(session.info) is not SessionInfo:
        raise SnapshotError("a session that does not say which one it is")
    decoder: Any = session.decoder
    try:
        rows = session.row()
        fits = 0 <= decoder.lo < decoder.hi <= decoder.vocabulary.size and all(
            type(row) is int and 0 <= row < decoder.vocabulary.rows for row in rows
        )
    except (TypeError, AttributeError) as error:
        raise SnapshotError(f"a session that cannot go on: {_brief(error)}") from error
    if not fits:
        raise SnapshotError(f"session {session.info.number} asks for rows or tokens that the model does not have")
    return session


def pack(value: Value) -> bytes:
    """Values as msgpack. Raises SnapshotError for numbers beyond 64 bits."""
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, TypeError) as error:
        raise SnapshotError(f"a value that msgpack does not hold: {_brief(error)}") from error


def unpack(data: bytes | memoryview) -> Value:
    """Values of msgpack. Raises SnapshotError."""
    try:
        return msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise SnapshotError(f"its content is damaged: {_brief(error)}") from error


def _brief(thing: object) -> str:
    """What a message says of it: a damaged snapshot can hold anything, at any length."""
    return str(thing)[:200]


class _Walk:
    """One copy under way: lists, dicts and objects are numbered in the order in which they are met."""

    def __init__(self, named: Named) -> None:
        self._names = {id(thing): name for name, thing in named.items()}
        self._numbers: dict[int, int] = {}
        self._plan = "plan"

    def value(self, thing: Any) -> Value:
        kind = type(thing)
        if kind in _PLAIN:
            return thing
        if isinstance(thing, int):  # a quantity of the configuration
            return int(thing)
        name = self._names.get(id(thing))
        if kind is AddressPlan and name is None:  # one that nobody knows: the session goes on with the one in force
            name = self._plan
        if name is not None:
            return [NAMED, name]
        if kind is tuple:
            return self._row(TUPLE, thing)
        shape = _SHAPES.get(kind)
        if shape is not None and shape.blank is None:
            return self._row(shape.tag, shape.get(thing))
        if kind is partial:
            return [PARTIAL, self._name(thing.func), self.value(thing.args), self.value(thing.keywords)]
        number = self._numbers.get(id(thing))
        if number is not None:
            return [REF, number]
        self._numbers[id(thing)] = len(self._numbers)
        if kind is Session:
            self._plan = f"plan {thing.info.label}"
        if kind is list:
            return self._row(LIST, thing)
        if kind is dict:
            return self._row(DICT, chain.from_iterable(thing.items()))
        if shape is not None:
            return self._row(shape.tag, shape.get(thing))
        raise SnapshotError(
            f"an object of {kind.__module__}.{kind.__qualname__} ({str(thing)[:60]}) cannot be kept: "
            "no row of KEPT in engine/snapshot.py has its class"
        )

    def _row(self, tag: int, things: Iterable[Any]) -> Value:
        """Most of what there is are plain values, which a call each would cost three times as long."""
        plain, value = _PLAIN, self.value
        row = [thing if type(thing) in plain else value(thing) for thing in things]
        row.insert(0, tag)
        return row

    def _name(self, thing: object) -> str:
        name = self._names.get(id(thing))
        if name is None:
            raise SnapshotError(f"{thing!r} cannot be kept: only named functions can")
        return name


class _Making:
    """One restoration under way."""

    def __init__(self, named: Named, layout: Layout | None, renames: Renames | None = None) -> None:
        self._named = named
        self._renames = renames
        self._made: list[Any] = []
        self._shapes = [_fit(name, names) for name, names in layout.items()] if layout is not None else _OWN

    def thing(self, value: Value) -> Any:
        if type(value) is not list:
            if type(value) not in _PLAIN:
                raise TypeError(f"a {type(value).__name__} among the values")
            return self._renames(value) if self._renames is not None and type(value) is bytes else value
        tag = value[0]
        if type(tag) is not int or tag < 0:
            raise TypeError(f"{tag!r} where a tag is expected")
        if tag >= KIND:
            return self._object(*self._shapes[tag - KIND], value)
        if tag == REF:
            number = value[1]
            if type(number) is not int or number < 0:
                raise TypeError(f"{number!r} where a number of an object is expected")
            return self._made[number]
        if tag == LIST:
            items: list[Any] = []
            self._made.append(items)
            items.extend(map(self.thing, value[1:]))
            return items
        if tag == DICT:
            if len(value) % 2 == 0:
                raise ValueError("a map with half an entry")
            mapping: dict[Any, Any] = {}
            self._made.append(mapping)
            parts = iter(value[1:])
            for key in parts:
                mapping[self.thing(key)] = self.thing(next(parts))
            return mapping
        if tag == TUPLE:
            return tuple(map(self.thing, value[1:]))
        if tag == NAMED:
            return self._named[value[1]]
        if tag == PARTIAL:
            function = self._named[value[1]]
            if not callable(function):
                raise TypeError(f"{value[1]!r} is no function")
            return partial(function, *self.thing(value[2]), **self.thing(value[3]))
        raise TypeError(f"{tag} where a tag is expected")

    def _object(self, shape: _Shape, names: list[str], value: list[Value]) -> Any:
        if len(value) != len(names) + 1:
            raise ValueError(f"{len(value) - 1} values for the {len(names)} attributes of {shape.name}")
        if shape.blank is None:
            return shape.cls(**dict(zip(names, map(self.thing, value[1:]))))
        made = shape.blank(self._named)
        self._made.append(made)
        for name, part in zip(names, value[1:]):
            setattr(made, name, self.thing(part))
        return made


def _fit(name: str, names: list[str]) -> tuple[_Shape, list[str]]:
    """The shape of a class as a snapshot has it. Raises SnapshotError if the running code has other attributes."""
    shape = next((shape for shape in _SHAPES.values() if shape.name == name), None)
    if shape is None:
        raise SnapshotError(f"it holds objects of class {_brief(name)}, which this version does not have")
    other = set(names) ^ set(shape.attributes)
    if other - shape.since or len(names) != len(set(names)):
        raise SnapshotError(
            f"another version wrote it: {name} has other attributes than this one's ({', '.join(sorted(other))})"
        )
    return shape, names


_OWN: Final = [(shape, shape.attributes) for shape in _SHAPES.values()]
