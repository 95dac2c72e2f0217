"""Live video: a playlist before each short segment, which comes at little more than the rate it is made at.

Segments of 1 to 2 s and three to six seconds of buffer: low-latency HLS and DASH.
"""

from __future__ import annotations

import random
from dataclasses import replace

from tools.lab import http, player
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "streaming", (), ("h2",)


def plan(rng: random.Random, length: float) -> player.Plan:
    drawn = player.plan(rng, length, segment_s=(1, 2), cdns=1, seconds=(10, 26))
    return replace(drawn, buffer_s=rng.uniform(3, 6))


async def serve(place: Place) -> None:
    await http.serve(place, place.plan.hosts, place.plan.version)


async def run(place: Place) -> None:
    await player.segments(place, http.client(place, place.plan.version), separate_audio=False, live=True)
