"""What servers are called: the number of a service in, its name out, the same for every session.

In: a domain, or an operator's list of names. Out: `ServiceNames`, a numbered set of services: service i has one name,
and for a length that a question shall have there are services whose names have it. Made-up names are one label (or a
prefix and a label) under the domain, spelled in syllables::

    service i   label of 3 + i mod 32 letters     kelo.test  www.darino.test  cdn.fevasoliku.test

Label lengths go round, so that any set of 32 services has one for each; within a length the label is the number i // 32
in a permuted spelling, so no two services share a name. Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from netssmd.engine.sampling import derive, mix, permute

SHORTEST: Final = 3
LENGTHS: Final = 32
MOST: Final = 50_000  # there are 32 * 1805 labels of three letters
_CONSONANTS: Final = b"bcdfghjklmnprstvwyz"
_VOWELS: Final = b"aeiou"
_PREFIXES: Final = (b"www.", b"api.", b"cdn.", b"img.")


class ServiceNames:
    """The names of services 0 .. `count` - 1."""

    def __init__(self, count: int, domain: bytes, listed: Sequence[bytes] = (), seed: int = 0) -> None:
        """`listed` names come instead of made-up ones, and are the services then."""
        self.count: int = len(listed) if listed else count
        self.domain: bytes = domain
        self._listed: list[bytes] = list(listed)
        self._key: int = derive(seed, "names")
        self._by_length: dict[int, list[int]] = {}
        self._made: dict[int, bytes] = {}  # names by service

    def name(self, service: int) -> bytes:
        """Its name as text, without the last dot."""
        if self._listed:
            return self._listed[service % len(self._listed)]
        name = self._made.get(service)
        if name is None:
            name = self._made[service] = self._make_up(service)
        return name

    def _make_up(self, service: int) -> bytes:
        size = SHORTEST + service % LENGTHS
        prefix = b""
        if size >= 8 and mix(self._key + service) & 1:
            prefix = _PREFIXES[mix(self._key ^ service) & 3]
            size -= len(prefix)
        return prefix + self._spell(service // LENGTHS, size) + b"." + self.domain

    def _spell(self, number: int, size: int) -> bytes:
        """`size` letters, another word for each number."""
        words = 1
        for i in range(min(size, 8)):
            words *= len(_VOWELS) if i & 1 else len(_CONSONANTS)
        place = permute(number % words, words, self._key + size)
        rest = mix(place + self._key)
        letters = bytearray()
        for i in range(size):
            alphabet = _VOWELS if i & 1 else _CONSONANTS
            if i < 8:
                letters.append(alphabet[place % len(alphabet)])
                place //= len(alphabet)
            else:
                letters.append(alphabet[rest % len(alphabet)])
                rest = rest // len(alphabet) or mix(rest + i)
        return bytes(letters)

    def of_length(self, size: int) -> list[int]:
        """Services whose names are `size` characters long."""
        if not self._by_length:  # engine threads share a plan: none may see it half made
            made: dict[int, list[int]] = {}
            for service in range(self.count):
                made.setdefault(len(self.name(service)), []).append(service)
            self._by_length = made
        return self._by_length.get(size, [])

    def find(self, name: bytes) -> int:
        """The service that has this name, or one that the name is below; -1 if there is none."""
        while name:
            for service in self.of_length(len(name)):
                if self.name(service) == name:
                    return service
            name = name.partition(b".")[2]
        return -1

    def shorter(self, size: int) -> list[int]:
        """The services whose names are the longest ones below `size` characters; empty if there are none."""
        while size > 0:
            size -= 1
            found = self.of_length(size)
            if found:
                return found
        return []


def text_name(wire: bytes) -> bytes:
    """The text of a name that `wire_name` wrote."""
    labels = []
    at = 0
    while at < len(wire) and wire[at]:
        labels.append(wire[at + 1 : at + 1 + wire[at]])
        at += wire[at] + 1
    return b".".join(labels)


def wire_name(name: bytes) -> bytes:
    """A name as DNS messages write it (RFC 1035 section 3.1)."""
    result = b""
    for label in name.split(b"."):
        result += bytes((len(label),)) + label
    return result + b"\0"
