"""What is seen on the client's device, by tcpdump, to the last frame.

tcpdump's `--immediate-mode` hands over each frame at once; without it the last ones stay in the kernel's buffer. Even
so "stop" must not come before the file holds what the device has counted: `finish` waits for that.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

FILE_HEADER_BYTES, RECORD_HEADER = 24, struct.Struct("=IIII")
START_SECONDS, FLUSH_SECONDS = 20.0, 10.0


class Capture:
    """A running tcpdump, in the network namespace that `enter` enters, ending by itself after `limit` frames."""

    def __init__(self, path: Path, device: str, enter: Callable[[], None], *, snaplen: int, limit: int) -> None:
        self.path = path
        argv = ["tcpdump", "-i", device, "-w", str(path), "-U", "--immediate-mode", "-n", "-K", "-s", str(snaplen)]
        argv += ["-c", str(limit), "-B", "16384", "-Z", "root"]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=enter
        )  # fmt: skip
        assert self.process.stderr is not None
        self._stderr = self.process.stderr
        said = b""
        os.set_blocking(self._stderr.fileno(), False)
        until = time.monotonic() + START_SECONDS
        while b"listening on" not in said:
            said += self._stderr.read() or b""
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"tcpdump does not capture: {said.decode(errors='replace').strip()}")
            time.sleep(0.005)
        self._read_bytes, self._records = FILE_HEADER_BYTES, 0

    @property
    def over(self) -> bool:
        """Did it end by itself, having reached the limit?"""
        return self.process.poll() is not None

    def records(self) -> int:
        """Whole frames in the file by now."""
        with open(self.path, "rb") as file:
            file.seek(self._read_bytes)
            fresh = file.read()
        at = 0
        while at + RECORD_HEADER.size <= len(fresh):
            end = at + RECORD_HEADER.size + RECORD_HEADER.unpack_from(fresh, at)[2]
            if end > len(fresh):
                break
            at, self._records = end, self._records + 1
        self._read_bytes += at
        return self._records

    def finish(self, seen: Callable[[], int]) -> int:
        """Stop when the file holds as many frames as `seen` counts; how many are missing after all."""
        until = time.monotonic() + FLUSH_SECONDS
        while not self.over and self.records() < seen() and time.monotonic() < until:
            time.sleep(0.02)
        missing = 0 if self.over else max(0, seen() - self.records())
        if not self.over:
            self.process.send_signal(signal.SIGINT)
        self.process.wait()
        return missing
