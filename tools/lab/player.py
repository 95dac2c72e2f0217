"""A video player, whatever brings the segments: start-up, filling the buffer, then a segment as one is played.

The player adapts: the rate is chosen from the throughput it measured and held down while the buffer is low (the rule of
dash.js's first player). A session has the phases of a real one: page and API, licence and manifest, a burst that fills
the buffer, then ON and OFF. The ladder is of the lower half of what services publish (Apple's HLS authoring
specification has 145 to 7,800 kbit/s), and of its lowest part in usual sessions, so that they hold many segments rather
than many packets each; long ones go to 3,000.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tools.lab.http1 import Fetcher
from tools.lab.pages import log_normal
from tools.lab.place import Place

LADDER_KBIT = (100, 190, 365, 560, 730, 1_100, 2_000, 3_000)
AUDIO_KBIT = 96


@dataclass(frozen=True, slots=True)
class Plan:
    """Hosts and pace of a stream."""

    site: str
    api: str
    reports: str
    cdn: tuple[str, ...]  # video; audio from the last one
    segment_s: float
    buffer_s: float
    seconds: float
    ladder_kbit: tuple[int, ...]
    version: int = 1  # of HTTP

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.site, self.api, self.reports, *self.cdn)))


def plan(
    rng: random.Random,
    length: float,
    *,
    seconds: tuple[float, float] = (14, 40),
    segment_s: tuple[float, ...] = (2, 4, 4, 6),
    cdns: int = 2,
    versions: tuple[int, ...] = (1, 2),
) -> Plan:
    service = f"tv{rng.randrange(12)}.video.test"
    cdn = tuple(f"edge{rng.randrange(40)}-{i}.{service}" for i in range(rng.randrange(1, cdns + 1)))
    most = rng.randrange(2, 5) if length <= 1 else rng.randrange(4, len(LADDER_KBIT))
    return Plan(
        f"www.{service}", f"api.{service}", f"log.{service}", cdn, rng.choice(segment_s), rng.uniform(8, 20),
        rng.uniform(*seconds) * min(length, 5), LADDER_KBIT[: most + 1], rng.choice(versions),
    )  # fmt: skip


async def set_up(place: Place, fetcher: Fetcher) -> None:
    """What comes before the first segment: page, scripts, API calls, licence."""
    rng, drawn = place.rng, place.plan
    await fetcher.fetch(drawn.site, log_normal(rng, 24_000, 0.6), think_ms=log_normal(rng, 50, 0.6, 800))
    scripts = [log_normal(rng, 16_000, 0.9, 300_000) for _ in range(rng.randrange(2, 6))]
    await asyncio.gather(*(fetcher.fetch(drawn.site, size) for size in scripts))
    await place.pause(rng.uniform(0.05, 1.2))
    for _ in range(rng.randrange(1, 4)):
        think_ms = log_normal(rng, 30, 0.7, 500)
        await fetcher.fetch(drawn.api, log_normal(rng, 4_000, 0.9), think_ms=think_ms, up=rng.choice([0, 900]))
    await fetcher.fetch(drawn.api, log_normal(rng, 2_500, 0.4), think_ms=60, up=2_100)  # licence


Get = Callable[[int, float], Awaitable[None]]  # kbit/s, seconds


async def play(place: Place, get: Get, report: Callable[[], Awaitable[None]]) -> None:
    """Segments until the session's seconds are over; `get` brings one, `report` says how it goes every ten seconds."""
    drawn, clock = place.plan, asyncio.get_running_loop().time
    start, buffered, estimate, reported = clock(), 0.0, 800.0, clock()
    filled = False
    while clock() - start < drawn.seconds:
        before = clock()
        wanted = max([rate for rate in drawn.ladder_kbit if rate < 0.75 * estimate] or [drawn.ladder_kbit[0]])
        if buffered < 2 * drawn.segment_s:
            wanted = min(wanted, drawn.ladder_kbit[min(2, len(drawn.ladder_kbit) - 1)])
        await get(wanted, drawn.segment_s)
        took = max(0.001, clock() - before)
        estimate = 0.6 * estimate + 0.4 * min(50_000, wanted * drawn.segment_s / took)
        buffered = max(0.0, buffered - took) + drawn.segment_s
        if clock() - reported > 10:
            reported = clock()
            await report()
        filled = filled or buffered >= drawn.buffer_s
        if filled and buffered + drawn.segment_s > drawn.buffer_s:
            wait = buffered + drawn.segment_s - drawn.buffer_s
            await place.pause(wait)
            buffered -= wait


def segment_bytes(rng: random.Random, kbit: int, seconds: float) -> int:
    """Scenes differ: variable bit rate, a coefficient of variation of a quarter."""
    return int(kbit * 125 * seconds * min(2.5, rng.lognormvariate(0, 0.25)))


async def segments(place: Place, fetcher: Fetcher, *, separate_audio: bool, live: bool = False) -> None:
    """Play a stream: video (and audio beside it, as DASH has it); a live one has a playlist before each segment."""
    rng, drawn = place.rng, place.plan

    async def get(kbit: int, seconds: float) -> None:
        if live:
            await fetcher.fetch(drawn.cdn[0], log_normal(rng, 1_500, 0.2), think_ms=3)
        size = segment_bytes(rng, kbit, seconds)
        rate = 1.15 * kbit * 125 if live else 0
        video = fetcher.fetch(drawn.cdn[0], size, think_ms=log_normal(rng, 5, 0.8, 200), rate=rate)
        if separate_audio:
            audio = fetcher.fetch(drawn.cdn[-1], segment_bytes(rng, AUDIO_KBIT, seconds), think_ms=4)
            await asyncio.gather(video, audio)
        else:
            await video

    async def report() -> None:
        await fetcher.fetch(drawn.reports, 60, think_ms=5, up=log_normal(rng, 1_400, 0.5))

    await set_up(place, fetcher)
    if not live:
        await fetcher.fetch(drawn.cdn[0], log_normal(rng, 9_000, 0.6), think_ms=10)  # manifest
    await report()
    await play(place, get, report)
    await fetcher.close()
