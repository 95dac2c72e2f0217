"""The metrics port: a few pages by GET, on threads of their own, away from everything that makes packets.

    GET /               the status page (page.html): self-contained, reads /status.json every two seconds
    GET /status.json    how the daemon is doing: daemon/status.py, read on the control thread
    GET /metrics        the exposition: Prometheus' text format, or OpenMetrics to who accepts it

A client that is slow or silent is cut off: a connection lives `DEADLINE_SECONDS` at most, and where there are
`MOST_CONNECTIONS` the oldest makes room for the next. Loopback unless the configuration says otherwise.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from netssmd.daemon.metrics import registry
from netssmd.errors import OutputError

if TYPE_CHECKING:
    from netssmd.daemon.service import Service

DEADLINE_SECONDS: Final = 10.0
MOST_CONNECTIONS: Final = 32
CONTROL_SECONDS: Final = 5.0  # waited for the control thread

App: TypeAlias = Callable[[dict[str, Any], Any], Iterable[bytes]]


class _Handler(WSGIRequestHandler):
    """Says nothing on stderr."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a connection, with a bound on both number and age."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, *arguments: Any) -> None:
        self._open: dict[socket.socket, float] = {}  # since when
        self._lock = threading.Lock()
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """HTTPServer's own asks the resolver for this host's full name, which may take seconds; nobody reads it."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._lock:
            oldest = [next(iter(self._open))] if len(self._open) >= MOST_CONNECTIONS else []
            for connection in oldest:
                del self._open[connection]
            self._open[request] = time.monotonic()
        self._cut_off(oldest)
        return True

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called twice a second: who has been here too long goes, however busy."""
        latest = time.monotonic() - DEADLINE_SECONDS
        with self._lock:
            late = [connection for connection, since in self._open.items() if since < latest]
        self._cut_off(late)

    def _cut_off(self, connections: list[socket.socket]) -> None:
        """Its thread notices that nothing comes or goes any more, and ends."""
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""


def application(pages: Mapping[str, App]) -> App:
    """GET and HEAD of known paths; anything else is 404 or 405."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        page = pages.get(environ["PATH_INFO"])
        if page is None:
            return _plain(start_response, "404 Not Found", f"there are {', '.join(pages)}\n")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _plain(start_response, "405 Method Not Allowed", "GET only\n", ("Allow", "GET, HEAD"))
        body = page(environ, start_response)
        return body if environ["REQUEST_METHOD"] == "GET" else []

    return app


def _answer(start_response: Any, status: str, kind: str, body: bytes, *headers: tuple[str, str]) -> Iterable[bytes]:
    always = [("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"), ("Referrer-Policy", "no-referrer")]
    length = ("Content-Length", str(len(body)))
    start_response(status, [("Content-Type", f"{kind}; charset=utf-8"), length, *always, *headers])
    return [body]


def _plain(start_response: Any, status: str, text: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    return _answer(start_response, status, "text/plain", text.encode(), *headers)


def status_page() -> App:
    """page.html. It may run its own script, use its own style and read from here; nothing else, whatever labels say."""
    text = Path(__file__).with_name("page.html").read_text("utf-8")
    own = [f"{tag}-src {' '.join(_hashes(text, tag))}" for tag in ("script", "style")]
    policy = "; ".join(["default-src 'none'", "connect-src 'self'", "img-src data:", *own, "frame-ancestors 'none'"])

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return _answer(start_response, "200 OK", "text/html", text.encode(), ("Content-Security-Policy", policy))

    return app


def _hashes(page: str, tag: str) -> list[str]:
    """Content Security Policy's names of the inline elements."""
    digests = [hashlib.sha256(inner.encode()).digest() for inner in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)]
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]


def status_json(service: Service) -> App:
    """The status, or 503 where the control thread does not answer in time."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            status = service.ask(lambda: service.status().json(), CONTROL_SECONDS)
        except TimeoutError:
            return _plain(start_response, "503 Service Unavailable", "the control thread does not answer\n")
        return _answer(start_response, "200 OK", "application/json", json.dumps(status).encode())

    return app


class MetricsServer:
    """A running server; `close` stops it. `url` is that of the metrics."""

    def __init__(self, server: WSGIServer, address: str) -> None:
        host = f"[{address}]" if ":" in address else address
        self.url = f"http://{host}:{server.server_port}/metrics"
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, name="netssmd-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2)


def serve(service: Service, address: str, port: int) -> MetricsServer:
    """Serve the pages of a service. Raises OutputError if the port cannot be had."""
    pages: dict[str, App] = {
        "/": status_page(),
        "/status.json": status_json(service),
        "/metrics": make_wsgi_app(registry(service)),
    }
    kind: Any = _Server
    if ":" in address:
        kind = type("_Server6", (_Server,), {"address_family": socket.AF_INET6})
    try:
        server = make_server(address, port, application(pages), kind, _Handler)
    except OSError as error:
        raise OutputError(
            f"metrics: {address}:{port} cannot be opened: {error.strerror or error}; "
            "set metrics.port to a free port, or to 0 for none"
        ) from None
    return MetricsServer(server, address)
