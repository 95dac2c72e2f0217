"""Scrolling a social network by HTTP/2: the same as social-h1, all requests to a host on one connection."""

from __future__ import annotations

from tools.lab import http2
from tools.lab.place import Place
from tools.lab.social import Plan, plan, scroll

CATEGORY, PROGRAMS, MODULES = "social", (), ("h2",)

__all__ = ["CATEGORY", "MODULES", "PROGRAMS", "plan", "run", "serve"]


async def serve(place: Place) -> None:
    drawn: Plan = place.plan
    for name in drawn.hosts:
        await http2.serve(place, name)


async def run(place: Place) -> None:
    await scroll(place, http2.Http2(place))
