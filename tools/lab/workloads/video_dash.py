"""Video on demand by MPEG-DASH: audio and video segments apart, rate adapted, from up to three hosts of a network.

Segments of 2 to 6 s and a buffer of 8 to 20 s are what the DASH-IF guidelines and players' defaults say.
"""

from __future__ import annotations

import random

from tools.lab import http, player
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "streaming", (), ("h2",)


def plan(rng: random.Random, length: float) -> player.Plan:
    return player.plan(rng, length, cdns=3)


async def serve(place: Place) -> None:
    await http.serve(place, place.plan.hosts, place.plan.version)


async def run(place: Place) -> None:
    await player.segments(place, http.client(place, place.plan.version), separate_audio=True)
