"""The section [addresses] of a configuration in, an address plan out; the file of names is read here. `Plans` are
those of one run: a session keeps the one that it began with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from netssmd.daemon.config import Addresses
from netssmd.engine.plan import AddressPlan, address_plan
from netssmd.errors import ConfigError, SnapshotError

LONGEST_FILE = 16 << 20
PLANS_KEPT: Final = 16  # sessions of older ones go on after a restart with the one in force


def plan_of(
    addresses: Addresses, seed: int = 0, where: str = "addresses", mark: str = "none"
) -> AddressPlan:
    """The plan that a configuration describes. Raises ConfigError; `where` names the section in it, `mark` is
    `output.mark`."""
    written: dict[str, Any] = msgspec.structs.asdict(addresses)
    written["names"] = read_names(Path(addresses.names), where) if addresses.names else ()
    written["labels"] = {
        pattern: {key: value for key, value in msgspec.structs.asdict(own).items() if value is not None}
        for pattern, own in addresses.labels.items()
    }
    return address_plan(**written, seed=seed, where=where, mark=mark)


def read_names(path: Path, where: str) -> list[str]:
    """The names of a file: one a line, empty lines and what follows # left out, small letters."""
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_FILE).decode()
    except OSError as error:
        raise ConfigError(f"{where}: names: {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: names: {path}: byte {error.start} is not UTF-8; save it as text") from None
    except ValueError:
        raise ConfigError(f"{where}: names: {str(path)!r} is no path of a file") from None
    names = [name for line in text.splitlines() if (name := line.partition("#")[0].strip().rstrip(".").lower())]
    if not names:
        raise ConfigError(f"{where}: names: {path}: holds no names; write one a line, such as www.example.net")
    return names


@dataclass(frozen=True, slots=True)
class _Written:
    """A plan and what it was made of, as plain values."""

    plan: AddressPlan
    addresses: dict[str, Any]
    mark: str


class Plans:
    """The address plans of a run, each made once, by a hash of what was written."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._written: dict[str, _Written] = {}  # a new one with each plan: others read it meanwhile

    def of(self, addresses: Addresses, mark: str) -> AddressPlan:
        """The plan of a section. Raises ConfigError."""
        plain: dict[str, Any] = msgspec.to_builtins(addresses)
        key = hashlib.blake2b(msgspec.json.encode([plain, mark]), digest_size=8).hexdigest()
        if key not in self._written:
            kept = list(self._written.items())[1 - PLANS_KEPT :]
            self._written = {**dict(kept), key: _Written(plan_of(addresses, self.seed, mark=mark), plain, mark)}
        return self._written[key].plan

    def by_key(self) -> dict[str, AddressPlan]:
        """All of them."""
        return {key: written.plan for key, written in self._written.items()}

    def told(self) -> dict[str, list[Any]]:
        """What they were made of, for a snapshot."""
        return {key: [written.addresses, written.mark] for key, written in self._written.items()}

    def take(self, told: Mapping[str, Any], names: str) -> None:
        """Those of an earlier run; `names`: the file of names, which is this run's. Raises SnapshotError."""
        try:
            for key, (plain, mark) in told.items():
                addresses = msgspec.convert({**plain, "names": names}, Addresses)
                plan = plan_of(addresses, self.seed, mark=str(mark))
                self._written = {**self._written, str(key): _Written(plan, dict(plain), str(mark))}
        except (ConfigError, msgspec.ValidationError, TypeError, ValueError, AttributeError) as error:
            raise SnapshotError(f"made with other addresses, which are no plan now: {error}") from None
