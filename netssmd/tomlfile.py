"""A TOML file in, a checked msgspec Struct out. Every mistake in it is one ConfigError: file, key, what was found, what
would be right.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec

from netssmd.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)
Hook = Callable[[type, Any], Any]

# A type's name for people, who write TOML and not Python.
NAMES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes",
                         tuple: "a list in brackets", dict: "a table"}  # fmt: skip
BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "up to {}", "lt": "below {}"}


def load(path: Path, kind: type[T], hook: Hook | None = None) -> T:
    """Read and check a file. hook: makes the values of types that msgspec does not know."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not TOML: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    return parse(text, str(path), kind, hook)


def parse(text: str, where: str, kind: type[T], hook: Hook | None = None) -> T:
    """Check TOML text; `where` names it in errors."""
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: not TOML: {error}") from None
    try:
        return msgspec.convert(tree, kind, dec_hook=hook)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(str(error), tree, kind)}") from None


def _explain(message: str, tree: dict[str, Any], kind: type) -> str:
    """msgspec's message, place first, with what was found there and what would be right."""
    text, _, place = message.partition(" - at `")
    keys = re.findall(r"\.(\w+)", place)
    where = ".".join(keys)
    unknown = re.search(r"unknown field `(.+)`", text)
    if unknown:
        known = list(_fields(kind, keys))
        near = difflib.get_close_matches(unknown[1], known, 1)
        remedy = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{where + '.' if where else ''}{unknown[1]}: unknown key; {remedy}"
    if not text.startswith(("Expected", "Invalid enum")):  # our own, which says it all
        return f"{where or 'top level'}: {text}"
    found: Any = tree
    for key in keys:
        found = found[key]
    field = _fields(kind, keys[:-1])[keys[-1]]
    return f"{where}: found {_shown(found)}; write {_right(field.type)}{_such_as(field.default)}"


def _fields(kind: Any, keys: list[str]) -> dict[str, msgspec.structs.FieldInfo]:
    """The fields of the section at `keys`."""
    for key in keys:
        kind = _fields(kind, [])[key].type
    return {field.name: field for field in msgspec.structs.fields(kind)}


def _right(kind: Any) -> str:
    """What may stand for a value of this type."""
    origin, members = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(json.dumps, members)) if len(members) < 3 else f"one of {json.dumps(members)[1:-1]}"
    if origin is Annotated:
        bounds = [BOUNDS[name].format(f"{limit:g}") for meta in members[1:] for name, limit in _limits(meta)]
        return " ".join([_right(members[0]), *bounds])
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "a table of keys"
    if origin in NAMES:
        inner = {_right(member) for member in members[origin is dict :] if member is not ...}
        return f"{NAMES[origin]} of {' or '.join(sorted(inner))}"
    if origin is not None:  # a union
        return ", or ".join(_right(member) for member in members)
    return NAMES.get(kind, "another kind of value")


def _limits(meta: msgspec.Meta) -> list[tuple[str, float]]:
    return [(name, limit) for name in BOUNDS if (limit := getattr(meta, name)) is not None]


def _such_as(default: object) -> str:
    """The default as an example, where it says something."""
    if isinstance(default, bool) or not isinstance(default, int | float | str | tuple) or not default:
        return ""
    return f", such as {_shown(default)}"


def _shown(value: object) -> str:
    """A value as TOML would write it, or nearly; not more of it than a line bears."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
