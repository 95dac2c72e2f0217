"""How far a session of the byte codec is worth drafting ahead, by what came true so far.

In: the session's tokens. Out: the drafts for its next call of the backend (Backend.verify), none where they do not pay.
A draft is never wrong in what comes out: the backend draws with the numbers that it would have drawn with anyway, and
what was drafted behind a token that came out otherwise is forgotten.

Each place in a packet has its own record: checksums are never guessed, paddings always. The next draft is worth its
input as long as the chance that all up to it come true is greater than what an input costs, in tokens: with `T` tokens
expected of a call of `R` inputs, whose passing over the weights costs as much as `call_rows` inputs,

    chance > T / (call_rows + R)

`call_rows` is the backend's, shared between the sessions of a call. A session of which hardly anything comes true is
given up: guessing has its own cost.
"""

from __future__ import annotations

from typing import Final

from netssmd.codec.byte_vocab import ByteVocabulary
from netssmd.codec.draft import Drafter

RATE: Final = 0.125  # how fast a place's record follows
AT_FIRST: Final = 0.5
PATIENCE: Final = 1000  # calls
LEAST: Final = 0.25  # guesses that come true a call, where a call costs as much as one input


class Ahead:
    """One session's. drafted, accepted: tokens."""

    __slots__ = ("_calls", "_drafter", "_expected", "_first", "_record", "accepted", "drafted")

    def __init__(self, vocabulary: ByteVocabulary) -> None:
        self.drafted: int = 0
        self.accepted: int = 0
        self._calls: int = 0
        self._drafter: Drafter = Drafter(vocabulary)
        self._record: list[float] = [AT_FIRST] * (vocabulary.layout.packet_bytes + 1)
        self._expected: list[int] = []  # the drafts of the call under way, and one more if there is one
        self._first: int = 0  # the place of the first of them

    def hopeless(self, call_rows: float) -> bool:
        """It is not worth going on."""
        return self._calls >= PATIENCE and self.accepted * call_rows < LEAST * self._calls

    def take(self, token: int) -> None:
        """A token that was not drawn: the prompt's."""
        self._drafter.take(token)

    def drafts(self, call_rows: float, most: int) -> list[int]:
        """What to draft for the next call, at most so many."""
        at = self._first = len(self._drafter.known)
        chance = tokens = 1.0
        count = 0
        record = self._record
        most = min(most, len(record) - at)
        while count < most:
            chance *= record[at + count]
            if chance * (call_rows + count + 1) <= tokens:
                break
            tokens += chance
            count += 1
        self._expected = self._drafter.draft(count + 1)
        return self._expected[:count]

    def drawn(self, tokens: list[int], drafted: int) -> None:
        """What came of `drafted` drafts."""
        expected, record, at = self._expected, self._record, self._first
        for i, token in enumerate(tokens):
            if i < len(expected):
                record[at + i] += RATE * ((1.0 if expected[i] == token else 0.0) - record[at + i])
            self._drafter.take(token)
        self._calls += 1
        self.drafted += drafted
        self.accepted += len(tokens) - 1
