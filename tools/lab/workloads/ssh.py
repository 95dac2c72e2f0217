"""A shell over ssh, typed into: keystrokes and their echoes, outputs of commands, thinking in between.

OpenSSH on both sides, password-less keys. Keystrokes come 80 to 300 ms apart (Dhakal et al. 2018, "Observations on
typing from 136 million keystrokes": median 200 ms and a long tail), commands every few seconds.
"""

from __future__ import annotations

import asyncio
import os
import pty
import random
from dataclasses import dataclass

from tools.lab.openssh import client_arguments, serve_sshd
from tools.lab.place import Place

CATEGORY, PROGRAMS, MODULES = "shell", ("sshd", "ssh", "ssh-keygen"), ()
HOST = "shell.corp.test"
COMMANDS = (
    "ls -l /usr/bin | head -40", "ps aux", "cat /etc/services | head -60", "df", "uname -a", "id", "w", "env",
    "ls /etc", "du -s /usr/share/doc 2>/dev/null", "find /usr/share -name '*.txt' | head -25", "echo done",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    commands: int
    key_s: float
    think_s: float


def plan(rng: random.Random, length: float) -> Plan:
    commands = max(2, round(rng.randrange(4, 12) * length))
    return Plan(commands, rng.uniform(0.09, 0.25), rng.uniform(0.8, 2.5) / max(1, length / 4))


async def serve(place: Place) -> None:
    await serve_sshd(place, HOST)


async def run(place: Place) -> None:
    rng, drawn = place.rng, place.plan
    near, far = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        "ssh", "-tt", *client_arguments(place), HOST, "/bin/sh", stdin=far, stdout=far, stderr=far, cwd=place.folder,
        start_new_session=True,
    )  # fmt: skip
    os.close(far)
    loop = asyncio.get_running_loop()
    loop.add_reader(near, lambda: drain(loop, near))
    await place.pause(12 * place.conditions.rtt_ms / 1000 + rng.uniform(0.4, 1.5))
    for _ in range(drawn.commands):
        for letter in rng.choice(COMMANDS):
            os.write(near, letter.encode())
            await place.pause(min(1.5, drawn.key_s * rng.lognormvariate(0, 0.5)))
        os.write(near, b"\n")
        await place.pause(min(9.0, drawn.think_s * rng.lognormvariate(0, 0.7)))
    os.write(near, b"exit\n")
    await asyncio.wait_for(process.wait(), 20)
    loop.remove_reader(near)


def drain(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    try:
        if os.read(fd, 65536):
            return
    except OSError:
        pass
    loop.remove_reader(fd)
