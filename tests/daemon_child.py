"""`netssmd run` whose first moment is a fixed one: `python daemon_child.py START_NS ARGUMENT...`."""

import sys
import time

from netssmd import cli

if __name__ == "__main__":
    start_ns, begun_ns = int(sys.argv[1]), time.monotonic_ns()
    time.time_ns = lambda: start_ns + (time.monotonic_ns() - begun_ns) // 10**12  # stands still for a quarter hour
    sys.exit(cli.run(["run", *sys.argv[2:]]))
