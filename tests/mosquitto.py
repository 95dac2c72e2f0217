"""A real mosquitto for a test: passwords, TLS, an access list; on a port of its own, on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

ACCESS = """
user operator
topic read netssmd/node/+/status
topic read netssmd/node/+/event/#
topic readwrite netssmd/reply/#
topic write netssmd/+/+/command
topic write netssmd/all/command
topic write netssmd/work
topic write netssmd/group/+/work

user watcher
topic read netssmd/node/+/status

pattern readwrite netssmd/node/%u/status
pattern write netssmd/node/%u/event/#
pattern read netssmd/node/%u/command
pattern read netssmd/group/+/command
pattern read netssmd/all/command
pattern readwrite netssmd/work
pattern readwrite netssmd/group/+/work
pattern write netssmd/reply/#
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Mosquitto:
    """Started at once. users: name -> password; none: anybody may do anything. tls: with certificates made here.
    demanding: of clients, too (client.pem, client.key; stranger.pem is another authority's)."""

    def __init__(
        self, folder: Path, users: dict[str, str] | None = None, tls: bool = False, demanding: bool = False
    ) -> None:
        if shutil.which("mosquitto") is None:
            pytest.skip("mosquitto is not installed: tools/test_programs.sh installs it")
        pytest.importorskip("aiomqtt")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        lines = [f"listener {self.port} 127.0.0.1", "set_tcp_nodelay true", "persistence false", "log_dest stderr"]
        if os.getuid() == 0:
            lines.append("user root")
        if users:
            passwords = folder / "passwords"
            passwords.touch(0o600)
            for name, password in users.items():
                subprocess.run(["mosquitto_passwd", "-b", passwords, name, password], check=True, capture_output=True)
                (folder / f"{name}.password").write_text(password + "\n")
            (folder / "access").write_text(ACCESS)
            lines += ["allow_anonymous false", f"password_file {passwords}", f"acl_file {folder / 'access'}"]
        else:
            lines.append("allow_anonymous true")
        if tls:
            certificates(folder)
            lines += [f"cafile {folder / 'ca.pem'}", f"certfile {folder / 'server.pem'}",
                      f"keyfile {folder / 'server.key'}"]  # fmt: skip
        if demanding:
            client_certificates(folder)
            lines.append("require_certificate true")
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["mosquitto", "-c", self.folder / "mosquitto.conf"], stderr=(self.folder / "log").open("ab")
        )
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.05)
        raise AssertionError("mosquitto does not answer")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Mosquitto:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


def openssl(folder: Path, *arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=folder)


NEW = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


def certificates(folder: Path) -> None:
    """An authority (ca.pem) and a certificate for localhost and 127.0.0.1 (server.pem, server.key), by openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    openssl(folder, *NEW, "-x509", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem",
            "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    openssl(folder, *NEW, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl(folder, "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", "names", "-out", "server.pem")  # fmt: skip


def client_certificates(folder: Path) -> None:
    """Of the same authority (client.pem, client.key), and one that nobody signed (stranger.pem, stranger.key)."""
    openssl(folder, *NEW, "-subj", "/CN=one", "-keyout", "client.key", "-out", "client.csr")
    openssl(folder, "x509", "-req", "-in", "client.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-out", "client.pem")  # fmt: skip
    openssl(folder, *NEW, "-x509", "-subj", "/CN=one", "-keyout", "stranger.key", "-out", "stranger.pem")
