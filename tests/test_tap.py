"""The TAP sink on real devices in namespaces of its own: frames arrive byte for byte and in order, whatever happens to
the device is survived and counted, and nothing but a TAP is ever opened."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from netns import Netns, Sniffer, namespace, needs_netns

from netssmd import cli
from netssmd.engine.plan import CLIENT, SERVER, address_plan
from netssmd.errors import OutputError
from netssmd.output import tap_device
from netssmd.output.ledger import FlowKey, SessionMeta
from netssmd.output.sink import Outgoing
from netssmd.output.tap import Sides, TapOptions, TapSink, open_taps
from netssmd.packet.pcap import Packet

pytestmark = needs_netns
SESSION = SessionMeta("1-0", "web")
PROJECT = Path(__file__).parent.parent


@pytest.fixture
def netns() -> Iterator[Netns]:
    with namespace() as made:
        yield made


def frame(number: int, size: int = 100) -> bytes:
    """A numbered Ethernet frame of an ethertype that nobody speaks."""
    return bytes.fromhex("024e00000002024e0000000188b5") + number.to_bytes(8, "big").rjust(size - 14, b".")


def outgoing(data: bytes, due_ns: int = 0, flow: FlowKey | None = None, direction: int = 0) -> Outgoing:
    return Outgoing(Packet(0, data, len(data)), SESSION, flow, direction, due_ns)


def until(happened: Callable[[], bool], what: str, sink: TapSink | None = None) -> None:
    """Wait for it, looking after the sink meanwhile as the daemon does."""
    give_up_ns = time.monotonic_ns() + 10_000_000_000
    while not happened():
        assert time.monotonic_ns() < give_up_ns, f"never {what}"
        if sink:
            sink.flush(0)
        time.sleep(0.01)


def netssmd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "netssmd", *arguments], capture_output=True, text=True, cwd=PROJECT)


# --- the command ------------------------------------------------------------------------------------------------------


def test_create_list_delete(netns: Netns, capsys: pytest.CaptureFixture[str]) -> None:
    inside = ["--netns", netns.name]
    assert cli.run(["tap", "create", "tap0", *inside, "--owner", "65534", "--group", "0", "--mtu", "1400",
                    "--mac", "02:4e:00:00:00:07", "--bridge", "br0"]) == 0  # fmt: skip
    (link,) = json.loads(netns.ip("-json", "-details", "link", "show", "tap0"))
    info = link["linkinfo"]["info_data"]
    assert (link["mtu"], link["address"], link["master"]) == (1400, "02:4e:00:00:00:07", "br0")
    assert info["type"] == "tap" and info["persist"] and not info["pi"] and "UP" in link["flags"]
    assert link["inet6_addr_gen_mode"] == "none"
    assert cli.run(["tap", "list", *inside, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"taps": [{"name": "tap0", "mtu": 1400, "up": True}]}
    assert cli.run(["tap", "delete", "tap0", *inside]) == 0
    assert "tap0" not in netns.ip("link")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["create", "sixteen-letters-"], "a name has 1 to 15 bytes, this one 16"),
        (["create", "a/b"], "write a name of letters"),
        (["create", "tap%d"], "write a name of letters"),
        (["create", ".."], "write a name of letters"),
        (["create", "tap0", "--owner", "nobody-such"], "--owner nobody-such: there is no such user"),
        (["create", "tap0", "--mac", "01:00:00:00:00:00"], "write the address of one host"),
        (["create", "tap0", "--netns", "no-such"], "make it with `ip netns add no-such`"),
        (["create", "tap0", "--netns", "../x"], "write a name that `ip netns list` shows"),
        (["create", "lo"], "there is an interface of this name"),
        (["create", "tap1", "--bridge", "lo"], "there is an interface of this name that is no bridge"),
        (["delete", "lo"], "lo: is no TAP device (no driver named), and netssmd opens nothing else"),
        (["delete", "veth0"], "veth0: is no TAP device (driver veth), and netssmd opens nothing else"),
        (["delete", "tun0"], "tun0: is no TAP device (driver tun), and netssmd opens nothing else"),
        (["delete", "nothing"], "TAP device nothing: there is none"),
    ],
)
def test_mistakes_are_one_line_and_touch_nothing(
    netns: Netns, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    netns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    netns.ip("tuntap", "add", "tun0", "mode", "tun")
    before = netns.ip("-oneline", "link")
    inside = [] if "--netns" in arguments else ["--netns", netns.name]
    assert cli.run(["tap", *arguments, *inside]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("netssmd: ") and says in error and error.count("\n") == 1
    assert netns.ip("-oneline", "link") == before


@pytest.mark.parametrize("name", ["lo", "veth0", "tun0"])
def test_only_taps_are_opened(netns: Netns, name: str) -> None:
    netns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    netns.ip("tuntap", "add", "tun0", "mode", "tun")
    with pytest.raises(OutputError, match=f"{name}: is no TAP device"):
        open_taps([name], TapOptions(netns=netns.name))


def test_what_cannot_be_opened_says_why(netns: Netns) -> None:
    with pytest.raises(OutputError, match=f"there is none in network namespace {netns.name}; make it with `netssmd"):
        open_taps(["tap0"], TapOptions(create=False, netns=netns.name))
    sink = open_taps(["tap0"], TapOptions(netns=netns.name))
    with pytest.raises(OutputError, match="another program has it open"):
        open_taps(["tap0"], TapOptions(netns=netns.name))
    sink.close()
    assert "tap0" not in netns.ip("link"), "a device that was made for a run goes with it"


UNPRIVILEGED = """
import sys, time
from netssmd.output.tap import TapOptions, open_taps
from netssmd.output.tap_device import devices
from netssmd.errors import OutputError
sys.path.insert(0, {tests!r})
from test_tap import frame, outgoing
caps = [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "CapPrm", "CapBnd"))]
assert set(caps) == {{"0" * 16}}, caps
sink = open_taps(["tap0"], TapOptions())
sink.write([outgoing(frame(i)) for i in range(1000)])
sink.close()
assert (sink.packets, sink.dropped) == (1000, 0), (sink.packets, sink.dropped)
for name in ("tap1", "tap2"):
    try:
        open_taps([name], TapOptions())
    except OutputError as error:
        print(error)
"""


def test_its_owner_needs_no_capability(netns: Netns, tmp_path: Path) -> None:
    tap_device.create("tap0", 65534, netns=netns.name)
    tap_device.create("tap1", 1, netns=netns.name)
    sniffer = Sniffer(netns, "tap0")
    node = tmp_path / "tun"
    os.mknod(node, 0o020666, os.makedev(10, 200))
    os.chmod(node, 0o666)
    script = UNPRIVILEGED.format(tests=str(Path(__file__).parent))
    inner = f"mount --bind {node} /dev/net/tun && exec setpriv --reuid 65534 --regid 65534 --clear-groups " \
            f"--inh-caps=-all --bounding-set=-all {sys.executable} -c '{script}'"  # fmt: skip
    script_path = tmp_path / "run.sh"
    script_path.write_text(inner.replace("'" + script + "'", '"$1"'))
    done = subprocess.run(
        netns.command("unshare", "-m", "bash", str(script_path), script), capture_output=True, text=True, cwd=PROJECT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tap1: belongs to another user" in done.stdout
    assert "tap2: there is none, and making one takes CAP_NET_ADMIN" in done.stdout
    until(lambda: len(sniffer.frames) == 1000, "all there")
    assert sniffer.stop() == [frame(i) for i in range(1000)]


# --- sending ----------------------------------------------------------------------------------------------------------


def test_frames_arrive_byte_for_byte_in_order_and_nothing_else(netns: Netns) -> None:
    sink = open_taps(["tap0"], TapOptions(netns=netns.name))
    sniffer = Sniffer(netns, "tap0")
    frames = [frame(i, 60 + i * 37 % 1455) for i in range(20_000)]
    for at in range(0, len(frames), 100):
        sink.write([outgoing(data) for data in frames[at : at + 100]])
    until(lambda: len(sniffer.frames) + sniffer.lost >= len(frames), "all there")
    time.sleep(0.3)  # noise of the device's own would come now
    assert sniffer.stop() == frames
    assert (sink.packets, sink.dropped, sink.ports[0].pacer.sent_bytes) == (20_000, 0, sum(map(len, frames)))
    sink.close()


def test_frames_leave_when_they_are_due_not_before(netns: Netns) -> None:
    sink = open_taps(["tap0"], TapOptions(netns=netns.name))
    sniffer = Sniffer(netns, "tap0")
    start_ns = time.monotonic_ns() + 50_000_000
    due = [start_ns + i * 2_000_000 for i in range(200)]
    sink.write([outgoing(frame(i), due_ns) for i, due_ns in enumerate(due)])
    until(lambda: len(sniffer.frames) == 200, "all there")
    assert all(seen >= wanted for seen, wanted in zip(sniffer.times_ns, due, strict=True))
    assert sniffer.stop() == [frame(i) for i in range(200)]
    pacer = sink.ports[0].pacer
    assert sum(pacer.lateness) == 200 and pacer.lateness_sum_ns > 0
    sink.close()


def test_what_is_not_due_when_it_closes_is_cut_and_counted(netns: Netns) -> None:
    sink = open_taps(["tap0"], TapOptions(netns=netns.name))
    now_ns = time.monotonic_ns()
    sink.write([outgoing(frame(0), now_ns), outgoing(frame(1), now_ns + 3_600_000_000_000)])
    sink.close()
    sink.close()
    assert sink.packets == 1 and sink.ports[0].dropped["cut"] == 1 == sink.dropped


def test_too_long_for_the_device(netns: Netns) -> None:
    tap_device.create("tap0", 0, mtu=1000, netns=netns.name)
    sink = open_taps(["tap0"], TapOptions(netns=netns.name))
    sniffer = Sniffer(netns, "tap0")
    sink.write([outgoing(frame(0, 1014)), outgoing(frame(1, 1015)), outgoing(frame(2))])
    until(lambda: len(sniffer.frames) == 2, "there")
    assert sniffer.stop() == [frame(0, 1014), frame(2)]
    assert sink.ports[0].dropped["oversize"] == 1
    netns.ip("link", "set", "tap0", "mtu", "1400")
    sink.flush(0)
    sink.write([outgoing(frame(4, 1414))])
    until(lambda: sink.packets == 3, "sent")
    sink.close()


# --- what happens to devices ------------------------------------------------------------------------------------------


def test_down_and_up_again(netns: Netns, caplog: pytest.LogCaptureFixture) -> None:
    tap_device.create("tap0", 0, netns=netns.name)
    sink = open_taps(["tap0"], TapOptions(netns=netns.name))
    (port,) = sink.ports
    with caplog.at_level(logging.WARNING):
        netns.ip("link", "set", "tap0", "down")
        sink.flush(0)
        sink.write([outgoing(frame(i)) for i in range(500)])
        until(lambda: port.dropped["down"] == 500, "counted", sink)
        netns.ip("link", "set", "tap0", "up")
        sniffer = Sniffer(netns, "tap0")
        until(lambda: port.up, "up", sink)
        sink.write([outgoing(frame(i)) for i in range(500, 600)])
        until(lambda: len(sniffer.frames) == 100, "there", sink)
    assert sniffer.stop() == [frame(i) for i in range(500, 600)]
    assert [r.getMessage() for r in caplog.records] == [
        "TAP tap0 is down: its packets are dropped until it is back", "TAP tap0 is up again",
    ]  # fmt: skip
    assert (sink.packets, sink.dropped, port.outages) == (100, 500, 1)
    sink.close()


@pytest.mark.parametrize("made", [True, False])
def test_deleted_and_there_again(netns: Netns, caplog: pytest.LogCaptureFixture, made: bool) -> None:
    if not made:
        tap_device.create("tap0", 0, netns=netns.name)
    sink = open_taps(["tap0"], TapOptions(netns=netns.name))
    (port,) = sink.ports
    assert port.made == made
    with caplog.at_level(logging.WARNING):
        netns.ip("link", "del", "tap0")
        sink.write([outgoing(frame(i)) for i in range(100)])
        if not made:
            until(lambda: port.dropped["gone"] == 100, "counted", sink)
            assert not port.up
            tap_device.create("tap0", 0, netns=netns.name)
        until(lambda: port.outages == 1 and port.up, "found again", sink)
        sent = sink.packets
        sniffer = Sniffer(netns, "tap0")
        sink.write([outgoing(frame(i)) for i in range(100, 200)])
        until(lambda: len(sniffer.frames) == 100, "there", sink)
    assert sniffer.stop() == [frame(i) for i in range(100, 200)]
    assert [r.getMessage() for r in caplog.records] == [
        "TAP tap0 is gone: its packets are dropped until it is back", "TAP tap0 is up again",
    ]  # fmt: skip
    assert sent + sink.dropped == 100 and sink.packets == sent + 100
    sink.close()
    assert ("tap0" in netns.ip("link")) != made


@pytest.mark.parametrize("what", ["down", "gone"])
def test_what_is_waited_for_loses_nothing(netns: Netns, what: str) -> None:
    """The stream is held back by who listens; what is under way already is kept, more than the queue holds."""
    tap_device.create("tap0", 0, netns=netns.name)
    told: list[tuple[str, bool]] = []
    options = TapOptions(netns=netns.name, wait=True, queue_packets=64)
    sink = open_taps(["tap0"], options)
    sink.watch(lambda name, is_down: told.append((name, is_down)))
    netns.ip("link", *(["set", "tap0", "down"] if what == "down" else ["del", "tap0"]))
    sink.write([outgoing(frame(i)) for i in range(50)])
    until(lambda: told == [("tap0", True)], "told", sink)
    sink.write([outgoing(frame(i)) for i in range(50, 500)])
    assert sink.packets == sink.dropped == 0
    if what == "down":
        sniffer = Sniffer(netns, "tap0")
        netns.ip("link", "set", "tap0", "up")
    else:
        netns.ip("tuntap", "add", "tap0", "mode", "tap")
        sniffer = Sniffer(netns, "tap0")
        netns.ip("link", "set", "tap0", "addrgenmode", "none", "up")
    until(lambda: len(sniffer.frames) >= 500, "there", sink)
    assert sniffer.stop() == [frame(i) for i in range(500)]
    assert told == [("tap0", True), ("tap0", False)] and (sink.packets, sink.dropped) == (500, 0)
    netns.ip("link", "set", "tap0", "down")
    sink.write([outgoing(frame(i)) for i in range(100)])
    until(lambda: len(told) == 3, "told again", sink)
    sink.close()  # does not wait
    assert sink.dropped == 100


# --- two sides --------------------------------------------------------------------------------------------------------

PLAN = address_plan()
CLIENT_HOST, SERVER_HOST = PLAN.pools[CLIENT, 4].address(5), PLAN.pools[SERVER, 4].address(5)


@pytest.mark.parametrize(
    ("flow", "direction", "side"),
    [
        ((6, CLIENT_HOST, 40000, SERVER_HOST, 443), 0, 0),
        ((6, CLIENT_HOST, 40000, SERVER_HOST, 443), 1, 1),
        ((6, SERVER_HOST, 20, CLIENT_HOST, 40001), 0, 1),  # the server opens: FTP's data connection
        ((6, SERVER_HOST, 20, CLIENT_HOST, 40001), 1, 0),
        ((17, b"\x00" * 4, 68, b"\xff" * 4, 67), 0, 0),  # DHCP: who has no address yet
        ((58, b"\xfe\x80" + bytes(14), 0, b"\xff\x02" + bytes(14), 0), 0, 0),
        ((58, b"\xfe\x80" + bytes(14), 0, b"\xfe\x80" + bytes(13) + b"1", 0), 1, 1),
    ],
)
def test_a_packet_leaves_where_its_sender_lives(flow: FlowKey, direction: int, side: int) -> None:
    sides = Sides(PLAN.networks(CLIENT), PLAN.networks(SERVER))
    for _ in range(2):
        assert sides.of(outgoing(frame(0), 0, flow, direction)) == side


@pytest.mark.parametrize(("sender", "side"), [(CLIENT_HOST, 0), (SERVER_HOST, 1)])
@pytest.mark.parametrize("tag", [b"", b"\x81\x00\x00\x05"])
def test_arp_leaves_where_its_sender_lives(sender: bytes, side: int, tag: bytes) -> None:
    arp = b"\xff" * 6 + b"\x02\x4e\x00\x00\x00\x01" + tag + b"\x08\x06" + bytes(14) + sender + bytes(10)
    assert Sides(PLAN.networks(CLIENT), PLAN.networks(SERVER)).of(outgoing(arp)) == side


def test_two_sides_through_a_bridge_lose_nothing(netns: Netns) -> None:
    """Each side sees at its cable what the other side sent, in order: what an in-line device would be given."""
    for name in ("cli0", "srv0"):
        tap_device.create(name, 0, netns=netns.name, bridge="br0")
    sides = Sides(PLAN.networks(CLIENT), PLAN.networks(SERVER))
    sink = open_taps(["cli0", "srv0"], TapOptions(netns=netns.name), sides)
    forwarded = [Sniffer(netns, name, outgoing=True) for name in ("srv0", "cli0")]
    arrived = [Sniffer(netns, name) for name in ("cli0", "srv0")]
    client_mac, server_mac = PLAN.mac(CLIENT_HOST), PLAN.mac(SERVER_HOST)
    flow = (6, CLIENT_HOST, 40000, SERVER_HOST, 443)
    frames: tuple[list[bytes], list[bytes]] = ([], [])
    start_ns = time.monotonic_ns() + 20_000_000
    for i in range(4000):
        direction = i * 7 % 3 % 2
        macs = server_mac + client_mac if direction == 0 else client_mac + server_mac
        data = macs + frame(i, 60 + i % 1400)[12:]
        frames[direction].append(data)
        sink.write([outgoing(data, start_ns + i * 100_000, flow, direction)])
    until(lambda: all(len(s.frames) >= len(its) for s, its in zip(forwarded, frames)), "forwarded", sink)
    for sniffers in (arrived, forwarded):
        for sniffer, its in zip(sniffers, frames):
            assert sniffer.stop() == its and len(its) > 1000
    assert [port.pacer.sent for port in sink.ports] == [len(its) for its in frames] and sink.dropped == 0
    sink.close()
    names = {f"netssmd-tap-{port.name}" for port in sink.ports}
    assert not names & {thread.name for thread in threading.enumerate()}
