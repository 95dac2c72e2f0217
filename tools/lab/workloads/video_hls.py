"""Video on demand by HLS: one stream of muxed segments, rate adapted.

Six-second segments are Apple's recommendation, two and four what low-latency packagers make.
"""

from __future__ import annotations

import random

from tools.lab import http, player
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "streaming", (), ("h2",)


def plan(rng: random.Random, length: float) -> player.Plan:
    return player.plan(rng, length, segment_s=(2, 4, 6, 6), cdns=1, seconds=(10, 30))


async def serve(place: Place) -> None:
    await http.serve(place, place.plan.hosts, place.plan.version)


async def run(place: Place) -> None:
    await player.segments(place, http.client(place, place.plan.version), separate_audio=False)
