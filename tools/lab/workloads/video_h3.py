"""Video on demand over HTTP/3: page, API and segments on QUIC connections, rate adapted.

As YouTube and others deliver it: after the first visit everything goes by QUIC; segments of 2 to 6 s, audio apart in
half of the sessions.
"""

from __future__ import annotations

import random

from tools.lab import http, player
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "streaming", (), ("aioquic",)


def plan(rng: random.Random, length: float) -> player.Plan:
    return player.plan(rng, length, cdns=2, seconds=(10, 30), versions=(3,))


async def serve(place: Place) -> None:
    await http.serve(place, place.plan.hosts, 3)


async def run(place: Place) -> None:
    separate = place.shared("audio").random() < 0.5
    await player.segments(place, http.client(place, 3), separate_audio=separate)
