"""Scrolling a social network by HTTP/1.1: feed pages, batches of images, small reports of what was seen.

A screen of feed is an answer of tens of kB and 6 to 14 images of 5 to 60 kB (thumbnails); a screen is looked at for
some seconds; reports go up every screen.
"""

from __future__ import annotations

from tools.lab import http1
from tools.lab.place import Place
from tools.lab.social import Plan, plan, scroll

CATEGORY, PROGRAMS, MODULES = "social", (), ()

__all__ = ["CATEGORY", "MODULES", "PROGRAMS", "plan", "run", "serve"]


async def serve(place: Place) -> None:
    drawn: Plan = place.plan
    for name in drawn.hosts:
        await http1.serve(place, name)


async def run(place: Place) -> None:
    await scroll(place, http1.Http1(place))
