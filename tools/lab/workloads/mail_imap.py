"""Reading mail by IMAP over TLS: log in, list what is new, fetch some letters, then wait in IDLE for more.

A small server of the lab's own that speaks as much of RFC 9051 as a client asks for, over TLS on 993. A mailbox has 5
to 60 new headers, a letter 12 kB in the median; IDLE hears of a new one every half minute.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from tools.lab.pages import log_normal
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "mail", (), ()
HOST = "imap.mail.test"


@dataclass(frozen=True, slots=True)
class Plan:
    letters: tuple[int, ...]
    reads: int
    idle_s: float
    every_s: float


def plan(rng: random.Random, length: float) -> Plan:
    letters = tuple(log_normal(rng, 12_000, 1.3, 1e6) for _ in range(max(1, round(rng.randrange(5, 60) * length))))
    reads = max(1, round(rng.randrange(1, 9) * length))
    return Plan(letters, min(len(letters), reads), rng.uniform(3, 40) * min(length, 3), rng.uniform(4, 30))


async def serve(place: Place) -> None:
    letters = place.plan.letters

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def push() -> None:
            while True:
                await place.pause(place.rng.expovariate(1 / place.plan.every_s))
                writer.write(b"* %d EXISTS\r\n* 1 RECENT\r\n" % (len(letters) + 1))

        writer.write(b"* OK [CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE AUTH=PLAIN] ready.\r\n")
        idling: asyncio.Task[None] | None = None
        while line := await reader.readline():
            tag, _, rest = line.strip().partition(b" ")
            verb, _, asked = rest.partition(b" ")
            await place.pause(place.rng.expovariate(1 / 0.004))
            if tag == b"DONE" and idling:
                idling.cancel()
                tag = b"i1"
            elif verb == b"IDLE":
                writer.write(b"+ idling\r\n")
                idling = asyncio.create_task(push())
                continue
            elif verb == b"LIST":
                writer.writelines(b'* LIST (\\HasNoChildren) "/" "Folder %d"\r\n' % n for n in range(8))
            elif verb == b"SELECT":
                writer.write(b"* FLAGS (\\Answered \\Flagged \\Deleted \\Seen)\r\n* %d EXISTS\r\n" % len(letters))
                writer.write(b"* OK [UIDVALIDITY 1700000000] UIDs valid\r\n* OK [UIDNEXT 9000] Predicted next UID\r\n")
            elif verb == b"HEADERS":
                for number in range(len(letters)):
                    size = place.rng.randrange(380, 900)
                    writer.write(b"* %d FETCH (UID %d BODY[HEADER] {%d}\r\n" % (number, number, size))
                    writer.write(place.filler(size) + b")\r\n")
            elif verb == b"FETCH":
                size = letters[int(asked)]
                writer.write(b"* %d FETCH (BODY[] {%d}\r\n" % (int(asked), size) + place.filler(size) + b")\r\n")
            writer.write(tag + b" OK " + verb + b" completed (0.001 + 0.000 secs).\r\n")
            await writer.drain()
            if verb == b"LOGOUT":
                return

    await place.listen(HOST, 993, handle, tls=True)


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    async with place.connected(HOST, 993, tls=True) as (reader, writer):
        await reader.readline()
        number = 0

        async def ask(command: str) -> None:
            nonlocal number
            number += 1
            tag = f"a{number:04}"
            writer.write(f"{tag} {command}\r\n".encode())
            await until(reader, tag.encode())

        for command in ("LOGIN alice@mail.test secret-of-hers", 'ID ("name" "Lab Mail" "version" "128.0")',
                        'LIST "" "*"', "SELECT INBOX", "HEADERS 1:* (UID FLAGS BODY.PEEK[HEADER])"):  # fmt: skip
            await ask(command)
        for letter in rng.sample(range(len(drawn.letters)), drawn.reads):
            await ask(f"FETCH {letter}")
            await place.pause(min(20.0, 2.5 * rng.lognormvariate(0, 0.8)))
        writer.write(b"i1 IDLE\r\n")
        await place.pause(drawn.idle_s)
        writer.write(b"DONE\r\n")
        await until(reader, b"i1")
        await ask("LOGOUT")


async def until(reader: asyncio.StreamReader, tag: bytes) -> None:
    """Read to the tagged answer; literals are skipped by their length."""
    while line := await reader.readline():
        if line.endswith(b"}\r\n") and b"{" in line:
            await reader.readexactly(int(line[line.rindex(b"{") + 1 : -3]))
        elif line.startswith(tag + b" "):
            return
