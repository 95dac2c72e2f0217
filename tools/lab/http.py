"""HTTP by its version: the same workload over 1.1, 2 or 3."""

from __future__ import annotations

from collections.abc import Iterable

from tools.lab import http1, http2
from tools.lab.http1 import Fetcher
from tools.lab.place import Place


async def serve(place: Place, names: Iterable[str], version: int) -> None:
    for name in names:
        await (http2.serve if version == 2 else http1.serve)(place, name)


def client(place: Place, version: int) -> Fetcher:
    return http2.Http2(place) if version == 2 else http1.Http1(place)
