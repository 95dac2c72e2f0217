"""How long a scrape takes, how large it is, how many series it has, with many sessions live.

python tools/bench_scrape.py [--sessions 1000] [--seconds 5]

The daemon runs on the embedded model into a temporary folder; the exposition is made in process, without and with the
engine and output threads at work beside it, and fetched over HTTP. Times are the median and the worst.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from prometheus_client import generate_latest

sys.path.insert(0, str(Path(__file__).parent.parent))

from netssmd.daemon.config import parse
from netssmd.daemon.metrics import registry
from netssmd.daemon.service import Service
from netssmd.daemon.web import serve
from netssmd.engine.opening import open_model

CONFIG = """
[engine]
threads = 1
[traffic]
seed = 1
concurrency = {}
ramp = "0s"
[output]
directory = "{}"
[metrics]
port = 0
"""


def milliseconds(work: Callable[[], object], rounds: int) -> str:
    """Median and worst of so many rounds."""
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        took.append(1e3 * (time.perf_counter() - start))
    return f"median {statistics.median(took):.2f} ms, worst {max(took):.2f} ms of {rounds}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        service = Service(parse(CONFIG.format(options.sessions, folder), "bench"), open_model())
        ready = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(service.run(on_ready=lambda s: ready.set())))
        thread.start()
        ready.wait()
        deadline = time.monotonic() + 60
        while sum(service.counters.active().values()) < options.sessions and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(options.seconds)
        made = registry(service)
        server = serve(service, "127.0.0.1", 0)
        text = generate_latest(made).decode()
        series = sum(not line.startswith("#") for line in text.splitlines())
        print(f"{sum(service.counters.active().values())} sessions live, {series} series, {len(text)} bytes")
        print(f"exposition beside the running daemon: {milliseconds(lambda: generate_latest(made), 50)}")
        fetched = milliseconds(lambda: urllib.request.urlopen(server.url).read(), 50)
        print(f"fetched over HTTP beside it:          {fetched}")
        service._tell(service.stop)
        thread.join()
        print(f"exposition, the daemon stopped:       {milliseconds(lambda: generate_latest(made), 50)}")
        server.close()


if __name__ == "__main__":
    main()
