"""A TOML file in, a checked msgspec Struct out, or one ConfigError with a line for each mistake: file, key, what was
found, what would be right.
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
MAX_BYTES = 1 << 18  # of a file
BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "up to {}", "lt": "below {}"}


def load(path: Path, kind: type[T], hook: Hook | None = None) -> T:
    """Read and check a file. hook: makes the values of types that msgspec does not know."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes; a configuration is a few kilobytes of TOML")
        text = content.decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not TOML: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    return parse(text, str(path), kind, hook)


def parse(text: str, where: str, kind: type[T], hook: Hook | None = None) -> T:
    """Check TOML text; `where` names it in errors. Raises ConfigError with a line for each mistake there is."""
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of more digits than Python reads
        raise ConfigError(f"{where}: not TOML: {error}") from None
    mistakes = _Check(kind, hook).section(tree, kind, "")
    if mistakes:
        raise ConfigError("\n".join(f"{where}: {mistake}" for mistake in mistakes))
    return msgspec.convert(tree, kind, dec_hook=hook)


class _Check:
    """Finds every mistake, where msgspec stops at the first: each value is converted by itself."""

    def __init__(self, root: type[msgspec.Struct], hook: Hook | None) -> None:
        self._root = root
        self._hook = hook

    def section(self, tree: dict[str, Any], kind: type, at: str) -> list[str]:
        """The mistakes of a table that is to become a `kind`; `at` is its place, such as "traffic."."""
        fields = _fields(kind)
        mistakes: list[str] = []
        good: dict[str, Any] = {}
        for key, value in tree.items():
            field = fields.get(key)
            if field is None:
                mistakes.append(f"{at}{key}: unknown key; {self._remedy(key, fields)}")
                continue
            wrong = self._value(value, field.type, f"{at}{key}", _such_as(field.default))
            mistakes += wrong
            if not wrong:
                good[key] = value
        return mistakes + self._refused(good, kind, at)

    def _value(self, value: Any, kind: Any, at: str, example: str) -> list[str]:
        if _is_section(kind) and isinstance(value, dict):
            return self.section(value, kind, f"{at}.")
        if get_origin(kind) is dict and isinstance(value, dict):
            inner = get_args(kind)[1]
            return [wrong for key, entry in value.items() for wrong in self._value(entry, inner, f"{at}.{key}", "")]
        try:
            msgspec.convert(value, kind, dec_hook=self._hook)
        except msgspec.ValidationError as error:
            text = str(error).partition(" - at `")[0]
            if not text.startswith(("Expected", "Invalid enum")):  # our own, which says it all
                return [f"{at}: {text}"]
            example = "" if get_origin(kind) is Literal else example
            return [f"{at}: found {_shown(value)}; write {_right(kind)}{example}"]
        return []

    def _refused(self, good: dict[str, Any], kind: type, at: str) -> list[str]:
        """What the section itself (`__post_init__`) says to values of the right type: first about each key alone, and
        only if all these pass, about their combination. What is said only as long as another key is missing is no
        mistake of this key."""
        whole = self._refusal(good, kind)
        if not whole:
            return []
        alone = {key: self._refusal({key: value}, kind) for key, value in good.items()}
        sound = [key for key, text in alone.items() if not text]
        told = [
            (key, text)
            for key, text in alone.items()
            if text
            and not text.startswith("Object missing")
            and all(self._refusal({key: good[key], other: good[other]}, kind) == text for other in sound)
        ]
        if not told:
            begins = [key for key in good if whole.startswith((f"{key} is ", f"{key}."))]
            return [f"{at}{_placed(begins[0], whole)}" if begins else f"{at.rstrip('.') or 'top level'}: {whole}"]
        return [f"{at}{_placed(key, text)}" for key, text in told]

    def _refusal(self, values: dict[str, Any], kind: type) -> str:
        try:
            msgspec.convert(values, kind, dec_hook=self._hook)
        except msgspec.ValidationError as error:
            return str(error).partition(" - at `")[0]
        return ""

    def _remedy(self, key: str, fields: dict[str, msgspec.structs.FieldInfo]) -> str:
        near = difflib.get_close_matches(key, fields, 1)
        if near:
            return f"did you mean {near[0]}?"
        elsewhere = [
            f"{section.name}.{key}"
            for section in _fields(self._root).values()
            if _is_section(section.type) and key in _fields(section.type)
        ]
        return f"did you mean {' or '.join(elsewhere)}?" if elsewhere else f"known here: {', '.join(fields)}"


def _placed(key: str, text: str) -> str:
    """ "port is 70000; write ..." of the key `port` -> "port: found 70000; write ..."; other texts behind the key."""
    match = re.match(rf"{re.escape(key)}((?:\.[^\s]+)?) is (.*)", text, re.DOTALL)
    return f"{key}{match[1]}: found {match[2]}" if match else f"{key}: {text}"


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _fields(kind: Any) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(kind)}


def _right(kind: Any) -> str:
    """What may stand for a value of this type."""
    origin, members = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(json.dumps, members)) if len(members) < 3 else f"one of {json.dumps(members)[1:-1]}"
    if origin is Annotated:
        bounds = [BOUNDS[name].format(f"{limit:g}") for meta in members[1:] for name, limit in _limits(meta)]
        return " ".join([_right(members[0]), *bounds])
    if _is_section(kind):
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
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return "a table too deep to show"
    return text if len(text) <= 60 else f"{text[:57]}..."
