"""FTP in the clear: a login, listings, files got and put, each over a data connection of its own (passive).

A server of pyftpdlib and Python's ftplib; files are log-normal, median 30 kB.
"""

from __future__ import annotations

import asyncio
import contextlib
import ftplib
import io
import random
import sys
import time
from dataclasses import dataclass

from tools.lab.pages import log_normal
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "file", (), ("pyftpdlib",)
HOST = "ftp.files.test"


@dataclass(frozen=True, slots=True)
class Plan:
    files: tuple[int, ...]
    steps: int
    think_s: float


def plan(rng: random.Random, length: float) -> Plan:
    files = tuple(log_normal(rng, 30_000, 1.2, 800_000) for _ in range(12))
    return Plan(files, max(3, round(rng.randrange(4, 12) * length)), rng.uniform(0.5, 3) / max(1, length / 4))


async def serve(place: Place) -> None:
    folder = place.folder / "ftp"
    folder.mkdir()
    for number, size in enumerate(place.plan.files):
        (folder / f"f{number}.dat").write_bytes(place.filler(size))
    options = ["-i", place.names.v4(HOST), "-p", "21", "-w", "-d", str(folder), "-u", "user", "-P", "secret"]
    await place.start(sys.executable, "-m", "pyftpdlib", *options, port=21)


async def run(place: Place) -> None:
    await place.resolve(HOST)
    address = place.names.v4(HOST)  # the server speaks IPv4
    await asyncio.to_thread(visit, place, address)


def visit(place: Place, address: str) -> None:
    rng, drawn = place.rng, place.plan
    with ftplib.FTP(timeout=30) as client:
        client.connect(address)
        client.login("user", "secret")
        for _ in range(drawn.steps):
            what = rng.random()
            with contextlib.suppress(ftplib.error_perm):
                if what < 0.25:
                    client.retrlines("LIST", lambda line: None)
                elif what < 0.75:
                    client.retrbinary(f"RETR f{rng.randrange(len(drawn.files))}.dat", lambda data: None)
                elif what < 0.92:
                    size = log_normal(rng, 30_000, 1.2, 800_000)
                    client.storbinary(f"STOR up{rng.randrange(99)}.dat", io.BytesIO(place.filler(size)))
                else:
                    client.sendcmd("NOOP")
            time.sleep(min(8.0, rng.expovariate(1 / drawn.think_s)))
        client.quit()
