"""The metrics port: a few pages by GET, on threads of their own, away from everything that makes packets.

    GET /metrics    the exposition: Prometheus' text format, or OpenMetrics to who accepts it

A client that is slow, silent or one of too many is cut off: a connection lives `DEADLINE_SECONDS` at most, and
`MOST_CONNECTIONS` at once; those beyond are closed unanswered. Loopback unless the configuration says otherwise.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
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

App: TypeAlias = Callable[[dict[str, Any], Any], Iterable[bytes]]


class _Handler(WSGIRequestHandler):
    """Says nothing on stderr; a silent client is not waited for."""

    timeout = DEADLINE_SECONDS

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
            if len(self._open) >= MOST_CONNECTIONS:
                return False
            self._open[request] = time.monotonic()
        return True

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called twice a second: cut off who has been here too long, however busy."""
        oldest = time.monotonic() - DEADLINE_SECONDS
        with self._lock:
            late = [connection for connection, since in self._open.items() if since < oldest]
        for connection in late:
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


def _plain(start_response: Any, status: str, text: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
    return [text.encode()]


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
    pages: dict[str, App] = {"/metrics": make_wsgi_app(registry(service))}
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
