"""A sensor on the wire believes the daemon: Suricata on a TAP device in a namespace of the test's own, one-sided and
between the two sides of a bridge; and names agree in what it reads."""

import ipaddress
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from netns import Netns, Sniffer, namespace, needs_netns

from netssmd import cli
from netssmd.learn.evaluate import suricata
from netssmd.packet.pcap import read_capture

pytestmark = pytest.mark.skipif(not suricata.installed(), reason="suricata is not installed (apt: backports)")

CONFIG = """
[traffic]
seed = 11
sessions = 24
concurrency = 24
ramp = "2s"
session_duration = "6s"
labels = {{dns = 2, ntp = 1, web = 2, chat = 1, "attack-synscan" = 1}}
[tap]
name = "{tap}"
server_name = "{server}"
netns = "{netns}"
create = false
[output]
directory = "{folder}"
mark = "reserved-bit"
[metrics]
port = 0
[control]
socket = "{folder}.sock"
"""


def tap(netns: Netns, name: str, bridge: str = "") -> str:
    """A device that the kernel says nothing on by itself."""
    netns.ip("tuntap", "add", "dev", name, "mode", "tap")
    netns.ip("link", "set", name, "addrgenmode", "none")
    if bridge:
        netns.ip("link", "set", name, "master", bridge)
    netns.ip("link", "set", name, "up")
    return name


def beyond_only(folder: Path) -> int:
    """Packets between hosts that are both behind the router: a bridge leaves them on their side."""
    count = 0
    for path in folder.glob("*.pcap"):
        with path.open("rb") as file:
            count += sum(packet.data[:6] == packet.data[6:12] for packet in read_capture(file))
    return count


def run(config: Path) -> int:
    """The daemon until its sessions are over. Return: packets sent."""
    done = subprocess.run(
        [sys.executable, "-m", "netssmd", "run", "-c", str(config), "--duration", "12s"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Dropped" not in done.stderr, done.stderr
    found = re.search(r"Actual: (\d+) packets", done.stderr)
    assert found, done.stderr
    return int(found[1])


def flows_of_ledgers(folder: Path) -> dict[tuple[str, frozenset[tuple[str, int]]], bool]:
    """TCP and UDP flows, and whether each is an attack's."""
    flows = {}
    for path in folder.glob("*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            for flow in line.get("flows", ()):
                if flow["proto"] in (6, 17):
                    flows[flow_key("TCP" if flow["proto"] == 6 else "UDP", flow)] = line["attack"]
    return flows


def flow_key(proto: str, flow: dict[str, object]) -> tuple[str, frozenset[tuple[str, int]]]:
    return proto, frozenset({(flow["src"], flow["sport"]), (flow["dst"], flow["dport"])})  # type: ignore[arg-type]


def names_agree(seen: suricata.Seen) -> int:
    """Every server that was looked up is called as it was asked for. Return: how many."""
    asked = defaultdict(set)
    for address, name in seen.answers:
        asked[ipaddress.ip_address(address)].add(name)
    checked = [(address, name) for address, name in seen.names if ipaddress.ip_address(address) in asked]
    assert all(name in asked[ipaddress.ip_address(address)] for address, name in checked)
    by_address = defaultdict(set)
    for address, name in [*seen.names, *seen.answers]:
        by_address[address].add(name)
    several = {address: names for address, names in by_address.items() if len(names) > 1}
    assert not several, several
    return len(checked)


@needs_netns
@pytest.mark.parametrize("sides", [1, 2])
def test_suricata_on_the_wire_believes_every_packet(tmp_path: Path, sides: int) -> None:
    with namespace() as netns:
        if sides == 2:
            netns.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
            netns.ip("link", "set", "br0", "addrgenmode", "none")
            netns.ip("link", "set", "br0", "up")
        device = tap(netns, "netssm0", "br0" if sides == 2 else "")
        server = tap(netns, "netssm1", "br0") if sides == 2 else ""
        config, captures = tmp_path / "netssmd.toml", tmp_path / "captures"
        config.write_text(CONFIG.format(tap=device, server=server, netns=netns.name, folder=captures))
        cables = [Sniffer(netns, name, outgoing=True) for name in (device, server) if server]
        with suricata.watch_interface(device, tmp_path, netns.name) as eve:
            sent = run(config)
        seen = suricata.read_eve(eve)
        forwarded = [len(cable.stop()) for cable in cables]
    kept = beyond_only(captures)
    if server:  # nothing is lost on its way through the bridge, and the clients' side sees what crosses it
        assert sum(forwarded) == sent - kept and all(forwarded)
    assert 300 < sent - kept <= seen.stats["capture.kernel_packets"] <= sent
    assert seen.stats["pkts"] == seen.stats["capture.kernel_packets"] and not seen.stats.get("capture.kernel_drops")
    assert seen.invalid_checksums == 0 and not seen.events_of("decoder"), seen.events
    told = flows_of_ledgers(captures)
    found = {
        (proto, frozenset({(str(ipaddress.ip_address(src)), sport), (str(ipaddress.ip_address(dst)), dport)}))
        for proto, src, sport, dst, dport in seen.flows
        if proto in ("TCP", "UDP")
    }
    assert found <= set(told) and set(told.values()) == {True, False}  # every flow can be joined to its label
    assert sides == 2 or (found == set(told) and seen.stats["pkts"] == sent)
    named = Counter(protocol for (_, protocol), count in seen.protocols.items() for _ in range(count))
    assert named["dns"] > 5 and named["tls"] and named["ntp"], named
    assert names_agree(seen)


def test_what_a_label_says_is_what_suricata_names(tmp_path: Path) -> None:
    """Files: no namespace needed. Each label's own protocol, and no complaint about checksums, headers or messages."""
    wanted = {"dns": "dns", "ntp": "ntp", "ssh": "ssh", "video-dash": "tls", "attack-slowloris": "http"}
    for label, protocol in wanted.items():
        path = tmp_path / f"{label}.pcap"
        arguments = ["--label", label, "--sessions", "3", "--packets", "400", "--seed", "3", "-o", str(path)]
        assert cli.run(["generate", *arguments]) == 0
        folder = tmp_path / label
        folder.mkdir()
        seen = suricata.watch_file(path, folder)
        assert seen.invalid_checksums == 0 and not seen.events_of("decoder")
        wrong = {name for name in seen.events_of("applayer") if name.startswith(f"applayer.{protocol}.")}
        answered_twice = "applayer.http.unable_to_match_response_to_request"
        unanswered = "applayer.http.applayer_detect_protocol_only_one_direction"
        assert wrong <= {answered_twice, unanswered}, seen.events
        named = Counter(name for (_, name), count in seen.protocols.items() for _ in range(count) if name)
        assert named[protocol] == max(named[name] for name in named if name != "dns" or label == "dns"), (label, named)
        names_agree(seen)
