"""The section [addresses] of a configuration in, an address plan out; the file of names is read here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from netssmd.daemon.config import Addresses
from netssmd.engine.plan import AddressPlan, address_plan
from netssmd.errors import ConfigError

LONGEST_FILE = 16 << 20


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
