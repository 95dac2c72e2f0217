"""A real sshd in the session's folder, with keys made for it; for ssh, rsync and those who guess passwords."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tools.lab.place import Place


async def serve_sshd(place: Place, name: str, *options: str) -> None:
    """Start sshd on the name's addresses, for root by key."""
    folder = place.folder
    kind = place.shared("hostkey").choice(["ed25519", "ed25519", "ecdsa", "rsa"])
    await asyncio.gather(keygen(folder / "host_key", kind), keygen(folder / "client_key", "ed25519"))
    (folder / "authorized_keys").write_bytes((folder / "client_key.pub").read_bytes())
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    lines = [
        *(f"ListenAddress {address}" for address in place.names.all(name)),
        f"HostKey {folder}/host_key", f"AuthorizedKeysFile {folder}/authorized_keys", "PermitRootLogin yes",
        "StrictModes no", "UsePAM no", "UseDNS no", "PrintMotd no", "PrintLastLog no", f"PidFile {folder}/sshd.pid",
        *options,
    ]  # fmt: skip
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    await place.start("/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd_config"), port=22)


async def keygen(path: Path, kind: str) -> None:
    process = await asyncio.create_subprocess_exec("ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path))
    if await process.wait():
        raise RuntimeError(f"ssh-keygen: no key of kind {kind}")


def client_arguments(place: Place) -> list[str]:
    return ["-F", "/dev/null", "-i", str(place.folder / "client_key"), "-l", "root", "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20"]  # fmt: skip
