"""The metrics port: its pages, and that no client hurts. The status page is opened in a browser."""

from __future__ import annotations

import contextlib
import gzip
import html
import http.client
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_service import running
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from test_metrics import promtool

from netssmd.daemon import web
from netssmd.daemon.service import Service

HOSTILE = "<img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    with running(tmp_path_factory.mktemp("live"), ("ssh", HOSTILE)) as (service, url):
        deadline = time.monotonic() + 20
        while service.output.counters.total_packets < 50 or not service.counters.files_written():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield service, url


def get(url: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, method=method, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=10)
    return answer


def test_metrics_in_both_formats(daemon: tuple[Service, str]) -> None:
    url = daemon[1] + "/metrics"
    plain = get(url)
    assert plain.headers["Content-Type"].startswith("text/plain; version=")
    text = plain.read().decode()
    assert 'netssmd_packets_total{label="ssh"}' in text and "process_resident_memory_bytes" in text
    strict = get(url, Accept="application/openmetrics-text; version=1.0.0")
    assert strict.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in text_string_to_metric_families(strict.read().decode())}
    assert {"netssmd_packets", "netssmd_build_info", "process_cpu_seconds"} <= names
    packed = get(url, Accept_Encoding="gzip")
    assert packed.headers["Content-Encoding"] == "gzip" and b"netssmd_packets" in gzip.decompress(packed.read())


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (tools/test_programs.sh installs it)")
def test_promtool_has_no_objection_to_a_live_exposition(daemon: tuple[Service, str]) -> None:
    assert promtool(get(daemon[1] + "/metrics").read().decode()) == ""


def test_status_json_is_the_status(daemon: tuple[Service, str]) -> None:
    answer = get(daemon[1] + "/status.json")
    status = json.load(answer)
    assert answer.headers["Content-Type"].startswith("application/json")
    assert status["state"] == "running" and set(status["labels"]) == {"ssh", HOSTILE}
    assert status.keys() == daemon[0].ask(lambda: daemon[0].status().json(), 10).keys()


def test_only_get_of_known_paths(daemon: tuple[Service, str]) -> None:
    url = daemon[1]
    for path, method, code in (
        ("/metrics", "POST", 405), ("/", "DELETE", 405), ("/status.json", "PUT", 405), ("/etc/passwd", "GET", 404),
        ("/../../etc/passwd", "GET", 404), ("/page.html", "GET", 404),
    ):  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(url + path, method)
        assert caught.value.code == code
    head = get(url + "/", "HEAD")
    assert head.status == 200 and head.read() == b""
    assert "default-src 'none'" in head.headers["Content-Security-Policy"]


def test_it_listens_on_loopback_only(daemon: tuple[Service, str]) -> None:
    assert daemon[0].metrics and daemon[0].metrics.url.startswith("http://127.0.0.1:")
    port = int(daemon[1].rpartition(":")[2])
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=1):
        pass


def silent(url: str, says: bytes = b"") -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=10)
    client.sendall(says)
    return client


def test_clients_that_stall_do_not_keep_others_out(daemon: tuple[Service, str]) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(2 * web.MOST_CONNECTIONS):
            stack.enter_context(silent(daemon[1], b"GET /metrics HTTP/1.1\r\nX-Slow: "))
        assert b"netssmd_packets" in get(daemon[1] + "/metrics").read()


def test_clients_that_stall_are_cut_off(daemon: tuple[Service, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "DEADLINE_SECONDS", 0.3)
    for says in (b"", b"GET /metrics HTTP/1.1\r\nX-Slow: "):
        with silent(daemon[1], says) as client:
            while client.recv(1000):  # until it is closed; the socket's own timeout would raise
                pass


def test_nonsense_is_survived(daemon: tuple[Service, str]) -> None:
    end = b"\r\n\r\n"
    for says in (b"\0" * 100, b"GET" + end, b"GET / HTTP/9.9" + end, end, b"GET /" + b"a" * 100_000 + end):
        with silent(daemon[1]) as client, contextlib.suppress(ConnectionError):
            client.sendall(says + b"\n")
            while client.recv(1000):
                pass
    assert get(daemon[1] + "/status.json").status == 200


needs_chromium = pytest.mark.skipif(
    not shutil.which("chromium"), reason="needs chromium (tools/test_programs.sh installs it)"
)


def browse(url: str, folder: Path) -> tuple[str, str]:
    """The page as it stands after some seconds, and what the browser's console said."""
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--enable-logging=stderr", f"--user-data-dir={folder}", "--virtual-time-budget=6000", "--dump-dom", url],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line or "INFO:CONSOLE" in line]
    return done.stdout, "\n".join(console)


@needs_chromium
def test_the_page_in_a_browser(daemon: tuple[Service, str], tmp_path: Path) -> None:
    dom, console = browse(daemon[1] + "/", tmp_path)
    assert console == ""
    assert '<span class="state running" id="state" role="status">running</span>' in dom
    assert "<title>netssmd – running</title>" in dom
    assert html.escape(HOSTILE, quote=False) in dom and "<img" not in dom
    assert '<tr class="bar"' in dom and ">ssh</td>" in dom and "<polyline" in dom and ">file</td>" in dom
    for wrong in ("undefined", "NaN", "[object", "connecting"):
        assert wrong not in dom.partition("<script>")[0], wrong


@needs_chromium
def test_the_page_says_when_the_daemon_is_paused_or_gone(tmp_path: Path) -> None:
    with running(tmp_path / "out") as (service, url):
        service.pause("disk full")
        dom, _ = browse(url + "/", tmp_path / "profile")
        assert "paused: disk full</span>" in dom
    page = (Path(web.__file__).parent / "page.html").read_text()
    alone = tmp_path / "alone.html"
    alone.write_text(page)
    dom, _ = browse(alone.as_uri(), tmp_path / "profile2")
    assert ">unreachable</span>" in dom
    assert "http://www.w3.org/2000/svg" in page and page.count("http://") + page.count("https://") == 1
