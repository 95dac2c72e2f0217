"""An application with a PostgreSQL database: pgbench's transactions at a rate, and queries with larger answers by psql.

Real postgres, TLS in half of the sessions; one to four connections, 2 to 40 transactions a second in all, from a pool
or with a connection each (pgbench -C), as small web applications have them.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from dataclasses import dataclass

from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "database", ("initdb", "postgres", "pgbench", "psql"), ()
HOST, USER = "db.app.test", "nobody"  # postgres will not run as root


@dataclass(frozen=True, slots=True)
class Plan:
    clients: int
    rate: float
    seconds: int
    each: bool  # a connection a transaction
    read_only: bool
    tls: bool
    queries: int


def plan(rng: random.Random, length: float) -> Plan:
    return Plan(
        clients=rng.choice([1, 1, 2, 4]), rate=2 * 20 ** rng.random(),
        seconds=round(rng.uniform(7, 22) * min(length, 4)), each=rng.random() < 0.15, read_only=rng.random() < 0.5,
        tls=rng.random() < 0.5, queries=round(rng.randrange(0, 5) * length),
    )  # fmt: skip


async def serve(place: Place) -> None:
    folder = place.folder / "pg"
    folder.mkdir()
    shutil.chown(folder, USER)
    data = str(folder / "data")
    await succeed(place, "initdb", "-D", data, "-A", "trust", "-U", "app", "--no-sync", "-E", "UTF8", user=USER)
    addresses = place.names.all(HOST)
    settings = {"listen_addresses": ",".join(addresses), "unix_socket_directories": str(folder), "fsync": "off"}
    if place.plan.tls:
        chain, key = place.shared("certificate").choice(place.tls.pairs)
        for name, source in (("server.crt", chain), ("server.key", key)):
            shutil.copyfile(source, folder / "data" / name)
            shutil.chown(folder / "data" / name, USER)
            os.chmod(folder / "data" / name, 0o600)
        settings["ssl"] = "on"
    with open(folder / "data" / "pg_hba.conf", "a") as file:
        file.write("host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n")
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    await place.start("postgres", "-D", data, *options, port=5432, user=USER)
    local = ["-h", str(folder), "-U", "app", "postgres"]
    for _ in range(200):  # it listens before it answers
        if (await place.call("psql", *local, "-c", "select 1"))[0] == 0:
            break
        await place.pause(0.05)
    await succeed(place, "pgbench", "-i", "-q", "-I", "dtGp", *local)


async def succeed(place: Place, *argv: str, user: str | None = None) -> None:
    status, said = await place.call(*argv, user=user)
    if status:
        raise RuntimeError(f"{argv[0]}: {said.decode(errors='replace').strip().splitlines()[-1]}")


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    who = ["-h", HOST, "-U", "app", "postgres"]
    options = ["-n", "-c", str(drawn.clients), "-T", str(drawn.seconds), "-R", f"{drawn.rate:.2f}"]
    options += [*(["-C"] if drawn.each else []), *(["-S"] if drawn.read_only else [])]
    options += ["-M", rng.choice(["simple", "extended", "prepared"])]

    async def queries() -> None:
        for _ in range(drawn.queries):
            await place.pause(rng.uniform(0.2, 1.8) * drawn.seconds / drawn.queries)
            rows = round(20 * 40 ** rng.random())
            await place.call("psql", *who, "-q", "-c", f"select * from pgbench_accounts limit {rows}", seconds=60)

    await asyncio.gather(place.call("pgbench", *options, *who, seconds=120), queries())
