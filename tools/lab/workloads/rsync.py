"""Backups by rsync over ssh: a folder is sent, then changed a little and sent again.

Files are log-normal, median 40 kB (Agrawal et al. 2007, five-year study of file-system metadata: most files are small,
most bytes in few); runs follow each other within seconds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tools.lab.openssh import client_arguments, serve_sshd
from tools.lab.pages import log_normal
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "file", ("rsync", "sshd", "ssh", "ssh-keygen"), ()
HOST = "backup.corp.test"


@dataclass(frozen=True, slots=True)
class Plan:
    files: tuple[int, ...]
    runs: int
    fetch: bool  # the other way


def plan(rng: random.Random, length: float) -> Plan:
    files = tuple(log_normal(rng, 40_000, 1.3, 1.5e6) for _ in range(max(1, round(rng.randrange(3, 14) * length))))
    return Plan(files, rng.choice([1, 1, 2, 2, 3]), rng.random() < 0.35)


async def serve(place: Place) -> None:
    await serve_sshd(place, HOST)
    write_files(place, "there") if place.plan.fetch else (place.folder / "there").mkdir()


def write_files(place: Place, name: str) -> None:
    folder = place.folder / name
    folder.mkdir()
    for number, size in enumerate(place.plan.files):
        (folder / f"file{number}.dat").write_bytes(place.filler(size))


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    if not drawn.fetch:
        write_files(place, "here")
    here, there = str(place.folder / "here") + "/", f"{HOST}:{place.folder}/there/"
    source, target = (there, here) if drawn.fetch else (here, there)
    for _ in range(drawn.runs):
        shell = " ".join(["ssh", *client_arguments(place)])
        status, said = await place.call("rsync", "-a", "-e", shell, source, target)
        if status:
            raise RuntimeError(f"rsync: {said.decode(errors='replace').strip()}")
        await place.pause(rng.uniform(0.5, 3))
        for number, size in enumerate(drawn.files):
            if not drawn.fetch and rng.random() < 0.4:
                changed = place.filler(size // 2) + place.filler(size // 3)
                (place.folder / "here" / f"file{number}.dat").write_bytes(changed)
