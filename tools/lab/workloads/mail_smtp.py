"""Mail handed in: submission with STARTTLS on 587, or from server to server on 25; letters, some with attachments.

aiosmtpd and Python's smtplib. Sizes are log-normal with a median of 12 kB and a tail of attachments to 2 MB (mean of
75 kB as mail providers report).
"""

from __future__ import annotations

import asyncio
import contextlib
import email.message
import random
import smtplib
import ssl
import time
from dataclasses import dataclass
from typing import Any

from tools.lab.pages import log_normal
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "mail", (), ("aiosmtpd",)
HOST = "mx1.mail.test"


@dataclass(frozen=True, slots=True)
class Plan:
    letters: tuple[int, ...]
    port: int
    tls: bool
    together: bool  # on one connection
    pause_s: float


def plan(rng: random.Random, length: float) -> Plan:
    letters = tuple(log_normal(rng, 12_000, 1.6, 2e6) for _ in range(max(1, round(rng.randrange(2, 12) * length))))
    port = rng.choice([587, 587, 25])
    return Plan(letters, port, port == 587 or rng.random() < 0.6, rng.random() < 0.5, rng.uniform(0.2, 4))


async def serve(place: Place) -> None:
    from aiosmtpd.smtp import SMTP

    class Box:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            await place.pause(place.rng.expovariate(1 / 0.05))  # filters
            return f"250 2.0.0 Ok: queued as {place.rng.getrandbits(40):X}"

    context = place.server_context() if place.plan.tls else None
    loop = asyncio.get_running_loop()
    for address in place.names.all(HOST):
        made = lambda: SMTP(Box(), hostname=HOST, tls_context=context, loop=loop, data_size_limit=1 << 25)  # noqa: E731
        place.keep(await loop.create_server(made, address, place.plan.port))


async def run(place: Place) -> None:
    await place.resolve(HOST)
    await asyncio.to_thread(send_all, place)


def send_all(place: Place) -> None:
    drawn = place.plan
    waiting = list(drawn.letters)
    while waiting:
        client = smtplib.SMTP(HOST, drawn.port, local_hostname="pc.home.test", timeout=30)
        if drawn.tls:
            client.starttls(context=unverified())
        while waiting:
            client.send_message(letter(place, waiting.pop()))
            time.sleep(min(15.0, place.rng.expovariate(1 / drawn.pause_s)))
            if not drawn.together:
                break
        client.docmd("QUIT")
        with contextlib.suppress(OSError):  # the server closes first (RFC 5321, 4.1.1.10)
            while client.sock and client.sock.recv(1024):
                pass
        client.close()


def unverified() -> ssl.SSLContext:
    """As between mail servers: encrypted, to whomever (RFC 7435)."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def letter(place: Place, size: int) -> email.message.EmailMessage:
    out = email.message.EmailMessage()
    out["From"], out["To"], out["Subject"] = "alice@mail.test", f"user{place.rng.randrange(99)}@mail.test", "x" * 40
    out["Message-ID"] = f"<{place.rng.getrandbits(128):x}@mail.test>"
    out.set_content("\n".join(place.filler(36).hex() for _ in range(min(size, 9_000) // 73)))
    if size > 20_000:
        out.add_attachment(place.filler(size * 3 // 4), maintype="application", subtype="pdf", filename="a.pdf")
    return out
