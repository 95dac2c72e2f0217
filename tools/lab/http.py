"""HTTP by its version: the same workload over 1.1, 2 or 3."""

from __future__ import annotations

from collections.abc import Iterable

from tools.lab import http1, http2, http3
from tools.lab.http1 import Fetcher
from tools.lab.place import Place

SERVERS = {1: http1.serve, 2: http2.serve, 3: http3.serve}
CLIENTS = {1: http1.Http1, 2: http2.Http2, 3: http3.Http3}


async def serve(place: Place, names: Iterable[str], version: int) -> None:
    for name in names:
        await SERVERS[version](place, name)


def client(place: Place, version: int) -> Fetcher:
    return CLIENTS[version](place)
