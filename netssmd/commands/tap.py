"""`netssmd tap`: TAP devices made, removed, listed.

A device is made once, as root, for the user that the daemon runs as; from then on the daemon needs no capability to
send packets into it. Only TAP devices are touched (output/tap_device.py).
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re

import click

from netssmd.errors import UsageError


@click.group("tap")
def command() -> None:
    """Make, remove and list the TAP devices that packets leave on."""


@command.command("create")
@click.argument("name")
@click.option("--owner", metavar="USER", help="Who may open it. Default: who called sudo, or else you.")
@click.option("--group", metavar="GROUP", help="A group that may open it as well.")
@click.option("--mtu", type=click.IntRange(68, 65521), default=1500, show_default=True, help="Bytes of an IP packet.")
@click.option("--mac", metavar="ADDRESS", default="", help="Default: a random one, locally administered.")
@click.option("--netns", metavar="NAME", default="", help="In this network namespace (ip netns).")
@click.option("--bridge", metavar="NAME", default="", help="Put it into this bridge, which is made if not there.")
def create(name: str, owner: str | None, group: str | None, mtu: int, mac: str, netns: str, bridge: str) -> None:
    """Make a persistent TAP device NAME, up, without IPv6 noise of its own. Takes root."""
    from netssmd.output import tap_device

    uid = user_id(owner) if owner is not None else int(os.environ.get("SUDO_UID", os.getuid()))
    gid = group_id(group) if group is not None else -1
    device = tap_device.create(name, uid, gid, mtu, check_mac(mac), netns, bridge)
    inside = f" in {netns}" * bool(netns) + f", in bridge {bridge}" * bool(bridge)
    click.echo(f"{device.name}: TAP device{inside}, user {uid} may open it, mtu {device.mtu}, up")


@command.command("delete")
@click.argument("name")
@click.option("--netns", metavar="NAME", default="", help="In this network namespace (ip netns).")
def delete(name: str, netns: str) -> None:
    """Remove the TAP device NAME. Takes root."""
    from netssmd.output import tap_device

    tap_device.delete(name, netns)
    click.echo(f"{name}: removed")


@command.command("list")
@click.option("--netns", metavar="NAME", default="", help="Of this network namespace (ip netns).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_taps(netns: str, as_json: bool) -> None:
    """The TAP devices there are."""
    from netssmd.output import tap_device

    found = tap_device.devices(netns)
    if as_json:
        click.echo(json.dumps({"taps": [{"name": d.name, "mtu": d.mtu, "up": d.up} for d in found]}))
        return
    for device in found:
        click.echo(f"{device.name:<16} mtu {device.mtu:<6} {'up' if device.up else 'down'}")
    if not found:
        click.echo("no TAP device; make one with `netssmd tap create NAME`", err=True)


def user_id(text: str) -> int:
    try:
        return int(text) if text.isdigit() else pwd.getpwnam(text).pw_uid
    except KeyError:
        raise UsageError(f"--owner {text}: there is no such user; write a name or a number") from None


def group_id(text: str) -> int:
    try:
        return int(text) if text.isdigit() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise UsageError(f"--group {text}: there is no such group; write a name or a number") from None


def check_mac(text: str) -> str:
    """A unicast MAC address, or nothing."""
    if text and not (re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", text) and int(text[:2], 16) & 1 == 0):
        raise UsageError(f"--mac {text}: write the address of one host, such as 02:4e:00:00:00:01")
    return text
