"""Commands that are run once: a long work in stages can be cut short and goes on where it was."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click


class Stages:
    """Runs `netssmd` commands: a stage is complete when its stamp in `out` holds the same command, what it was given,
    and the stages before it. `seconds`: what each took."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.seconds: dict[str, float] = {}
        self._before = ""

    def begin(self) -> None:
        """A new row of stages that do not depend on those so far."""
        self._before = ""

    def run(
        self, name: str, *argv: str, given: str = "", printed: str = "", first: Callable[[], None] | None = None
    ) -> None:
        """`given`: what the command reads that no stage made, such as a training file. `printed`: the file in `out`
        that gets what it prints. `first`: is done before, where the stage is to be run."""
        stamp = self.out / f"{name}.done"
        wanted = hashlib.sha256("\0".join((self._before, given, *argv)).encode()).hexdigest()
        self._before = wanted
        if stamp.is_file() and (known := json.loads(stamp.read_text()))["command"] == wanted:
            self.seconds[name] = known["seconds"]
            click.echo(f"== {name}: done before", err=True)
            return
        click.echo(f"== {name}: netssmd {' '.join(argv)}", err=True)
        if first is not None:
            first()
        began = time.monotonic()
        with open(self.out / printed if printed else "/dev/null", "wb") as out:
            result = subprocess.run([sys.executable, "-m", "netssmd", *argv], check=False, stdout=out)
        if result.returncode:
            raise click.ClickException(f"{name} ended with {result.returncode}; the stages before it are kept")
        self.seconds[name] = time.monotonic() - began
        stamp.write_text(json.dumps({"command": wanted, "seconds": self.seconds[name]}) + "\n")
