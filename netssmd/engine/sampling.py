"""Random numbers that a session owns: in a key and a counter, out the same numbers for ever.

The stream is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014) read as a
counter-based generator: draw number `i` is `mix(key + i * GAMMA)`. So a snapshot of a stream is its counter, two
streams never share state, and what a session draws does not depend on who else is running. Numbers are computed a block
at a time, because 64-bit arithmetic is dear in Python and cheap in numpy; which block a number came in changes nothing.
`derive` makes independent keys from a seed and names (BLAKE2b).

    derive(seed, "session", 7) -> key of session 7 -> derive(key, "tokens"), derive(key, "identities"), ...
"""

import hashlib
import math
from typing import Final

import numpy as np

MASK: Final = 0xFFFFFFFFFFFFFFFF
GAMMA: Final = 0x9E3779B97F4A7C15
BLOCK: Final = 64


def mix(value: int) -> int:
    """SplitMix64's finalizer: a bijection of 64-bit integers in which every input bit moves every output bit."""
    value &= MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def mix_block(key: int, counter: int, count: int) -> list[int]:
    """`mix(key + i * GAMMA)` for the `count` numbers i after `counter`."""
    first = (key + (counter + 1) * GAMMA) & MASK
    z = np.arange(count, dtype=np.uint64) * np.uint64(GAMMA) + np.uint64(first)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers: list[int] = (z ^ (z >> np.uint64(31))).tolist()
    return numbers


def derive(seed: int, *names: str | int) -> int:
    """A 64-bit key for the thing that `names` names under `seed`. Text and numbers never collide ("7" is not 7)."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *names):
        kind, text = ("i", str(part)) if isinstance(part, int) else ("s", part)
        raw = text.encode()
        digest.update(f"{kind}{len(raw)}:".encode() + raw)
    return int.from_bytes(digest.digest(), "big")


class Stream:
    """Draws from the stream of `key`, beginning at `counter`; `(key, counter)` is the whole state."""

    __slots__ = ("_block", "_block_from", "counter", "key")

    def __init__(self, key: int, counter: int = 0) -> None:
        self.key: int = key & MASK
        self.counter: int = counter
        self._block: list[int] = []  # draws _block_from + 1, _block_from + 2 ...
        self._block_from: int = 0

    def u64(self) -> int:
        """The next 64 bits."""
        at = self.counter - self._block_from
        if at < 0 or at >= len(self._block):
            self._block = mix_block(self.key, self.counter, BLOCK)
            self._block_from = self.counter
            at = 0
        self.counter += 1
        return self._block[at]

    def uniform(self) -> float:
        """Uniform in [0, 1) on 2^24 points, so that it is exact (and still below 1) as a float32."""
        return (self.u64() >> 40) * 2.0**-24

    def bits(self, count: int) -> int:
        """`count` random bits as an integer; any count."""
        value, have = 0, 0
        while have < count:
            value = (value << 64) | self.u64()
            have += 64
        return value >> (have - count)

    def below(self, n: int) -> int:
        """Uniform in [0, n), without bias (draws in the incomplete last block are thrown away). Raises ValueError for n
        < 1."""
        if n < 1:
            raise ValueError(f"below() needs n >= 1, not {n}")
        if n == 1:
            return 0
        if n > MASK:
            width = (n - 1).bit_length()
            while (value := self.bits(width)) >= n:
                pass
            return value
        limit = (MASK + 1) - (MASK + 1) % n
        while (value := self.u64()) >= limit:
            pass
        return value % n

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.uniform()

    def log_between(self, low: float, high: float) -> float:
        """Log-uniform in [low, high); both positive."""
        return math.exp(self.between(math.log(low), math.log(high)))

    def exponential(self, mean: float) -> float:
        """Exponential with the given mean: the gap of a Poisson process."""
        return -mean * math.log(1.0 - self.uniform())

    def choice(self, cumulative: list[float]) -> int:
        """An index, drawn by weight; `cumulative` holds the running sums of the weights (last one > 0)."""
        point = self.uniform() * cumulative[-1]
        low, high = 0, len(cumulative) - 1
        while low < high:
            middle = (low + high) // 2
            if cumulative[middle] > point:
                high = middle
            else:
                low = middle + 1
        return low


def permute(index: int, size: int, key: int) -> int:
    """Where `index` lands in a random permutation of range(size) chosen by `key`. O(1) memory, any size.

    A four-round Feistel network over the next even number of bits, walked until it falls inside (Black and Rogaway,
    "Ciphers with arbitrary finite domains", CT-RSA 2002). So "draw without putting back" needs no list of what was
    drawn.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for round_key in range(4):
            left, right = right, left ^ (mix(key + GAMMA * (round_key + 1) + mix(right)) & low)
        index = (left << half) | right
        if index < size:
            return index


def unpermute(place: int, size: int, key: int) -> int:
    """The index that `permute` sends to `place`."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = place >> half, place & low
        for round_key in (3, 2, 1, 0):
            left, right = right ^ (mix(key + GAMMA * (round_key + 1) + mix(left)) & low), left
        place = (left << half) | right
        if place < size:
            return place
