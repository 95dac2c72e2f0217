"""The repetition penalty: what a session has said lately becomes less likely (section 5.3; CTRL, Keskar et al., 2019).

In: the session's tokens, prompt included, one by one. Out: `factors`, one for each token of the vocabulary, in the form
of `model.sampling.adjusted`: the penalty for a token that is among the last `window` ones, else 1. With window 0 it is
among all of them, which is what mamba_ssm's generation does (at a cost that grows with the square of the length; here
it does not grow).
"""

from __future__ import annotations


class Repetition:
    """One session's. penalty: above 1; window: tokens looked back, 0 for all."""

    __slots__ = ("_at", "_counts", "_recent", "factors", "penalty", "window")

    def __init__(self, size: int, penalty: float, window: int = 0) -> None:
        self.penalty: float = penalty
        self.window: int = window
        self.factors: list[float] = [1.0] * size
        self._counts: list[int] = [0] * size  # how often each is in the window
        self._recent: list[int] = []  # the window, as a ring
        self._at: int = 0

    def add(self, token: int) -> None:
        """A token was said."""
        if self.window == 0:
            self.factors[token] = self.penalty
            return
        if len(self._recent) < self.window:
            self._recent.append(token)
        else:
            gone = self._recent[self._at]
            self._counts[gone] -= 1
            if self._counts[gone] == 0:
                self.factors[gone] = 1.0
            self._recent[self._at] = token
            self._at = (self._at + 1) % self.window
        self._counts[token] += 1
        self.factors[token] = self.penalty

    def ahead(self, tokens: list[int]) -> list[list[float]]:
        """`factors` as they are, then as each of these tokens would leave them, one after the other. Nothing is said
        yet."""
        after = Repetition(0, self.penalty, self.window)
        after.factors, after._counts = list(self.factors), list(self._counts)
        after._recent, after._at = list(self._recent), self._at
        out = [list(after.factors)]
        for token in tokens:
            after.add(token)
            out.append(list(after.factors))
        return out
