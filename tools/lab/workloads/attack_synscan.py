"""A port scan by nmap: SYN or connect scan of one to three hosts, some ports open, at the speeds of its templates.

Seen from the scanner, at 15 to 300 probes a second or as fast as it goes. A host has two to eight open ports of the
usual ones; nmap's `-T2` to `-T5`, 50 to 900 ports.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "attack", ("nmap",), ()
USUAL = (21, 22, 25, 53, 80, 110, 143, 443, 445, 993, 3306, 3389, 5432, 6379, 8080, 8443)


@dataclass(frozen=True, slots=True)
class Plan:
    hosts: tuple[str, ...]
    open: tuple[int, ...]
    ports: int
    arguments: tuple[str, ...]


def plan(rng: random.Random, length: float) -> Plan:
    kind = rng.choice(["-sS", "-sS", "-sS", "-sT"])
    slowly = ("--max-rate", str(round(15 * 20 ** rng.random())))
    pace = rng.choice([("-T3",), ("-T4",), ("-T5",), ("-T3", *slowly), ("-T4", *slowly), ("-T4", *slowly)])
    if rng.random() < 0.2:
        pace += ("-A", "--version-light", "-sV") if rng.random() < 0.3 else ("--randomize-hosts",)
    hosts = tuple(f"host{rng.randrange(200)}.victim.test" for _ in range(rng.choice([1, 1, 1, 2, 3])))
    ports = round(rng.randrange(50, 480) * length / len(hosts))
    return Plan(hosts, tuple(rng.sample(USUAL, rng.randrange(2, 9))), ports, (kind, *pace))


async def serve(place: Place) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.wait_for(reader.read(1024), 10)

    for name in dict.fromkeys(place.plan.hosts):
        for port in place.plan.open:
            if port != 53:  # the session's own DNS may have this address
                await place.listen(name, port, greet)


async def run(place: Place) -> None:
    drawn = place.plan
    addresses = [place.names.v4(name) for name in dict.fromkeys(drawn.hosts)]
    arguments = ["-n", "-Pn", "--max-retries", "2", *drawn.arguments]
    if drawn.ports > 1000:
        arguments += ["-p", f"1-{drawn.ports}"]
    else:
        arguments += ["--top-ports", str(drawn.ports)]
    await place.call("nmap", *arguments, *addresses)
