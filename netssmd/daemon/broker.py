"""From the [mqtt] section to a connection: names, TLS, credentials.

The daemon and `netssmd ctl --broker` both connect by this. A password is in a file, never in the configuration, the
process list or a log; `$CREDENTIALS_DIRECTORY/name` in a path is systemd's LoadCredential.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netssmd.daemon.config import Mqtt
from netssmd.errors import ConfigError

if TYPE_CHECKING:
    import aiomqtt

CREDENTIALS = "CREDENTIALS_DIRECTORY"
LARGEST_PACKET = 1 << 20  # that a broker may send us
MISSING = "MQTT needs aiomqtt: pip install 'netssmd[mqtt]'"

log = logging.getLogger("netssmd")


def node_name(settings: Mqtt) -> str:
    """The configured one, or the host's name without its domain."""
    return settings.node or socket.gethostname().partition(".")[0] or "netssmd"


def port_of(settings: Mqtt) -> int:
    """The configured one, or MQTT's own."""
    return settings.port or (8883 if settings.tls else 1883)


def path_of(text: str, key: str) -> Path:
    """A path with systemd's credentials directory filled in. Raises ConfigError where that is not set."""
    name = f"${CREDENTIALS}"
    if not text.startswith(name):
        return Path(text)
    folder = os.environ.get(CREDENTIALS)
    if not folder:
        raise ConfigError(f"mqtt.{key}: {name} is not set; it is where LoadCredential= of a systemd unit is in force")
    return Path(folder + text[len(name) :])


def password_of(settings: Mqtt) -> str | None:
    """The first line of the password file. Raises ConfigError."""
    if not settings.password_file:
        return None
    path = path_of(settings.password_file, "password_file")
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"mqtt.password_file: {path}: cannot be read: {getattr(error, 'strerror', error)}") from None
    if not lines or not lines[0]:
        raise ConfigError(f"mqtt.password_file: {path}: empty; its first line is the password")
    return lines[0]


def tls_of(settings: Mqtt) -> ssl.SSLContext | None:
    """The TLS context. Raises ConfigError for files that cannot be used."""
    if not settings.tls:
        return None
    key = "ca_file"
    try:
        context = ssl.create_default_context(cafile=path_of(settings.ca_file, key) if settings.ca_file else None)
        key = "certificate_file"
        if settings.certificate_file:
            private = path_of(settings.key_file, "key_file") if settings.key_file else None
            context.load_cert_chain(path_of(settings.certificate_file, key), private)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"mqtt.{key}: cannot be used: {error}; write the path of a PEM file") from None
    return context


def check(settings: Mqtt) -> None:
    """Raises ConfigError for what would keep a connection from ever coming about."""
    try:
        import aiomqtt  # noqa: F401
    except ImportError:
        raise ConfigError(f"mqtt.host is set; {MISSING}") from None
    password_of(settings)
    tls_of(settings)


class _Heard(logging.Handler):
    """Keeps what the MQTT library logs; a broker that refuses a certificate is told of there, and nowhere else."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard[:] = [record.getMessage()]


def why(error: BaseException, heard: list[str]) -> str:
    """What ended a connection, with what the library had to say of it."""
    return f"{error} ({heard[-1]})" if heard else str(error)


def _forgive_gone_sockets(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception handler for a loop. aiomqtt asks for a socket to be watched in the loop's next turn; when a broker
    has hung up by then, the descriptor is closed. The client finds that out by itself; nobody wants its traceback."""
    error = context.get("exception")
    watching = any(name in context.get("message", "") for name in ("add_reader", "add_writer"))
    if watching and isinstance(error, OSError) and error.errno == errno.EBADF:
        log.debug("mqtt: the broker hung up before its socket could be watched")
    else:
        loop.default_exception_handler(context)


def client(settings: Mqtt, heard: list[str], identifier: str = "", will: Any = None) -> aiomqtt.Client:
    """A client on the running loop that is not connected yet; `async with` connects. TCP_NODELAY, or else replies wait
    for 40 ms and more. `heard`: the library's last complaint, see `why`. Raises ConfigError."""
    try:
        import aiomqtt
    except ImportError:
        raise ConfigError(MISSING) from None
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    asyncio.get_running_loop().set_exception_handler(_forgive_gone_sockets)
    logger = logging.Logger("mqtt")
    logger.addHandler(_Heard(heard))
    properties = Properties(PacketTypes.CONNECT)
    properties.MaximumPacketSize = LARGEST_PACKET
    return aiomqtt.Client(
        settings.host,
        port_of(settings),
        logger=logger,
        username=settings.user or None,
        password=password_of(settings),
        identifier=identifier or None,
        protocol=aiomqtt.ProtocolVersion.V5,
        will=will,
        clean_start=True,
        timeout=10,
        keepalive=max(1, settings.keepalive // 1_000_000_000),
        max_queued_incoming_messages=1_000,
        max_queued_outgoing_messages=1_000,
        properties=properties,
        tls_context=tls_of(settings),
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    )
