"""Make docs/images/status.png: the status page of a daemon that has run for a while, as a browser shows it.

python tools/status_picture.py [--seconds 120]

The daemon runs on the embedded model into a temporary folder, its /status.json is kept every two seconds, and then
shown to the page one after the other, so that the curve is that of the run. Needs chromium.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "status.png"
PAGE = ROOT / "netssmd" / "daemon" / "page.html"
SIZE = 1040, 1010

CONFIG = """
[traffic]
seed = 11
concurrency = 6
ramp = "30s"
session_duration = "60s"
[traffic.labels]
web = 3
video-dash = 2
voip-sip = 1
ssh = 1
iot-mqtt = 1
dns = 1
social-h2 = 1
attack-synscan = 0.3
[output]
directory = "captures"
slice_duration = "10s"
[metrics]
port = {}
"""


def record(seconds: float) -> list[bytes]:
    """What /status.json said, every two seconds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "netssmd.toml").write_text(CONFIG.format(port))
        command = [sys.executable, "-m", "netssmd", "run", "-c", "netssmd.toml"]
        daemon = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
        try:
            time.sleep(4)
            for _ in range(int(seconds / 2)):
                time.sleep(2)
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/status.json", timeout=10) as answer:
                    said.append(answer.read())
        finally:
            daemon.terminate()
            daemon.wait(30)
    return said


def serve(said: list[bytes]) -> HTTPServer:
    """The page, and one recorded status after the other; the last one stays."""
    left = list(said)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = self.path == "/"
            body = PAGE.read_bytes() if page else left.pop(0) if len(left) > 1 else left[0]
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8" if page else "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    said = record(options.seconds)
    server = serve(said)
    PICTURE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={profile}",
             f"--window-size={SIZE[0]},{SIZE[1]}", f"--virtual-time-budget={2000 * len(said) + 1000}",
             f"--screenshot={PICTURE}", f"http://127.0.0.1:{server.server_port}/"],
            check=True, stderr=subprocess.DEVNULL, timeout=300,
        )  # fmt: skip
    server.shutdown()
    last = json.loads(said[-1])
    print(f"{PICTURE}: after {last['uptime_seconds']:.0f} s, {last['traffic']['packets']} packets")


if __name__ == "__main__":
    main()
