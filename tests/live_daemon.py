"""A real daemon process for tests: the service with the fake model, from a configuration file that HUP reads again.

Run as a script it is the daemon; `LiveDaemon` starts it and keeps what it logs.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
BASE = """
[engine]
threads = 2
lookahead = "300ms"
slots = 24
[output]
directory = "{folder}/captures"
slice_duration = "0s"
free_disk = "0MB"
[snapshot]
enabled = false
[metrics]
port = 0
[traffic]
concurrency = 8
ramp = "0s"
"""


def wait_for(what: Callable[[], object], seconds: float = 20.0) -> None:
    """Until `what` is true; fails when it does not become so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


class LiveDaemon:
    """Started at once; `text` comes behind BASE, in which `replaced` may change lines. model: "fake" or "embedded";
    environment: more of it."""

    def __init__(
        self, folder: Path, text: str = "", replaced: dict[str, str] | None = None, model: str = "fake",
        environment: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "netssmd.toml"
        self.write(text, replaced)
        self.lines: list[str] = []
        path = f"{TESTS}{os.pathsep}{TESTS.parent}"
        environment = {**os.environ, **(environment or {}), "PYTHONPATH": path}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self.file), model], stderr=subprocess.PIPE, text=True, env=environment
        )
        threading.Thread(target=self._read, daemon=True).start()
        wait_for(lambda: any(line.endswith("ready\n") for line in self.lines) or self.process.poll() is not None)
        assert self.process.poll() is None, self.log

    def write(self, text: str = "", replaced: dict[str, str] | None = None) -> None:
        """A new configuration file."""
        base = BASE.format(folder=self.folder)
        for old, new in (replaced or {}).items():
            assert old in base
            base = base.replace(old, new)
        self.file.write_text(base + text)

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def said(self, text: str, times: int = 1) -> bool:
        return self.log.count(text) >= times

    def hup(self, says: str) -> None:
        """HUP, and until the log says this once more."""
        before = self.log.count(says)
        self.process.send_signal(signal.SIGHUP)
        wait_for(lambda: self.said(says, before + 1))

    def stop(self) -> int:
        """TERM, unless it is over; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def __enter__(self) -> LiveDaemon:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)


def main() -> None:
    from test_service import FakeModel

    from netssmd.daemon.config import Config, load
    from netssmd.daemon.retarget import require_fit
    from netssmd.daemon.service import serve
    from netssmd.engine.opening import open_model

    model: Any = open_model() if sys.argv[2] == "embedded" else FakeModel(endless=True)

    def read() -> Config:
        config = load(Path(sys.argv[1]))
        require_fit(config, model, sys.argv[1])
        return config

    level = read().log.level.upper()
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(message)s")
    # In one piece: other threads log.
    serve(read(), model, on_ready=lambda service: sys.stderr.write("ready\n") and None, load=read)


if __name__ == "__main__":
    main()
