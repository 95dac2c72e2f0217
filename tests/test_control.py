"""Commands: one table, checked requests, the unix socket and `netssmd ctl` against a real daemon process."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_daemon import LiveDaemon, wait_for

from netssmd import cli
from netssmd.commands.ctl import read
from netssmd.daemon import control_client
from netssmd.daemon.control import BY_NAME, COMMANDS, MOST_BYTES, Request, check_arguments, parse_request
from netssmd.daemon.control_client import Asker
from netssmd.daemon.control_socket import ControlSocket
from netssmd.daemon.events import Events
from netssmd.errors import NetssmdError, UsageError

TOOLS = Path(__file__).parent.parent / "tools"

# One call of every command that does no harm to the others, on both adapters: (arguments, a key of the result).
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "status": ({"sessions": True}, "live"),
    "start": ({"label": "label-1", "count": 2, "packets": 100, "rtt_ms": 40, "seed": 4}, "sessions"),
    "fork": ({"session": "5-999999"}, "no live session '5-999999'"),  # tests/test_fork.py has those that there are
    "stop": ({"label": "label-1"}, "stopped"),
    "pause": ({}, "pauses"),
    "resume": ({}, "pauses"),
    "rate": ({"packets_per_second": 800}, "packets_per_second"),
    "mix": ({"labels": {"label-0": 1, "label-1": 2}}, "labels"),
    "rotate": ({}, "files"),
    "snapshot": ({}, "snapshot.enabled is false"),  # of the fake model: refused, by name
    "watch": ({"events": ["paused"]}, "events"),
}
REFUSED = ("fork", "snapshot")


def test_every_command_is_tried() -> None:
    assert set(CALLS) == {command.name for command in COMMANDS}


def test_the_document_has_the_tables_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("control_tool", TOOLS / "control.py")
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = tool.DOCUMENT.read_text()
    assert tool.filled(text) == text, "run python tools/control.py"


# --- requests ---


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "at most 65536 bytes"),
        ("[" * 60_000, "not JSON"),
        ("3", "write an object such as"),
        ('{"command": "stat"}', "unknown command 'stat': did you mean start?"),
        ('{"command": 7}', "unknown command '7': there are status, start"),
        ('{"command": "status", "path": "/etc"}', "unknown key 'path'"),
        ('{"command": "status", "arguments": []}', "arguments: write an object"),
        ('{"command": "pause", "arguments": {"until": 3}}', "pause: unknown argument 'until': it takes none"),
        ('{"command": "start", "arguments": {"label": "x", "out": "/tmp/x"}}', "start: unknown argument 'out'"),
        ('{"command": "start"}', "start: label is missing; write one such as web"),
        ('{"command": "start", "arguments": {"label": "x", "count": 0}}', "start: count: write a whole number from 1"),
        ('{"command": "start", "arguments": {"label": "x", "count": true}}', "start: count: write a whole number"),
        ('{"command": "start", "arguments": {"label": "x", "duration": "3"}}', "duration: '3' is not a duration"),
        ('{"command": "start", "arguments": {"label": "x\\n"}}', "start: label: write text of 1 to 200"),
        ('{"command": "rate", "arguments": {"packets_per_second": NaN}}', "write packets a second from 0"),
        ('{"command": "rate", "arguments": {"packets_per_second": -1}}', "write packets a second from 0"),
        ('{"command": "mix", "arguments": {"labels": {"a": Infinity}}}', "mix: labels: a: write a weight of 0 or more"),
        ('{"command": "watch", "arguments": {"events": ["x"]}}', "'x' is no event; the events are session-started"),
    ],
)  # fmt: skip
def test_wrong_requests(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_request(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["command", "arguments", "label", "count"]), inner),
    max_leaves=8).map(lambda tree: json.dumps(tree).encode())))  # fmt: skip
def test_any_bytes_are_a_request_or_one_error(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(parse_request(data), Request)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(COMMANDS), st.data())
def test_any_values_are_taken_or_one_error(command, data) -> None:  # type: ignore[no-untyped-def]
    value = st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.lists(st.text())
    try:
        checked = check_arguments(command, {a.name: data.draw(value) for a in command.arguments})
        assert set(checked) == {a.name for a in command.arguments}
    except UsageError:
        pass


def test_no_argument_is_a_path_or_an_interface() -> None:
    names = {argument.name for command in COMMANDS for argument in command.arguments}
    assert not {name for name in names if any(word in name for word in ("path", "file", "dir", "interface", "device"))}


def test_values_of_the_command_line() -> None:
    arguments = {argument.name: argument for argument in BY_NAME["start"].arguments}
    assert read(arguments["count"], "3") == 3 and read(arguments["rtt_ms"], "4.5") == 4.5
    assert read(BY_NAME["mix"].arguments[0], ["web=3", "dns"]) == {"web": 3.0, "dns": 1.0}
    with pytest.raises(UsageError, match="count: 'x' is no number"):
        read(arguments["count"], "x")


# --- a real daemon ---


def control(path: Path, group: str = "") -> str:
    return f'[control]\nsocket = "{path}"\ngroup = "{group}"\n'


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    folder = tmp_path_factory.mktemp("d")
    with LiveDaemon(folder, "seed = 5\n" + control(folder / "s")) as live:
        yield live
        assert live.stop() == 0, live.log
    assert not (folder / "s").exists()


@pytest.fixture
def asker(daemon: LiveDaemon) -> Iterator[Asker]:
    one = Asker(daemon.folder / "s")
    yield one
    one.close()


@pytest.mark.parametrize("name", CALLS)
def test_every_command_over_the_socket(asker: Asker, name: str) -> None:
    arguments, key = CALLS[name]
    if name in REFUSED:
        with pytest.raises(UsageError, match=key):
            asker.ask(name, arguments)
        return
    assert key in asker.ask(name, arguments)


def packets(asker: Asker) -> int:
    return asker.ask("status")["traffic"]["packets"]  # type: ignore[index]


def test_a_pause_by_command_stands_still_and_goes_on(daemon: LiveDaemon, asker: Asker) -> None:
    asker.ask("rate", {"packets_per_second": 0})
    asker.ask("pause")
    time.sleep(0.2)  # what was under way is over
    still = packets(asker)
    time.sleep(0.5)
    assert packets(asker) == still
    status = asker.ask("status")
    assert status["state"] == "paused" and list(status["pauses"]) == ["operator"]  # type: ignore[call-overload]
    assert asker.ask("resume") == {"pauses": []}
    wait_for(lambda: packets(asker) > still)
    assert asker.ask("status")["timing"]["lateness_max_seconds"] < 0.5  # type: ignore[index]


def test_sessions_come_and_go_by_command(asker: Asker) -> None:
    result = asker.ask("start", {"label": "label-1", "count": 3})
    names = result["sessions"]
    assert result["started"] == 3 and isinstance(names, list)

    def live() -> set[str]:
        return {one["session"] for one in asker.ask("status", {"sessions": True})["live"]}  # type: ignore[attr-defined]

    wait_for(lambda: set(names) <= live())
    assert asker.ask("stop", {"session": names[0]}) == {"stopped": 1}
    wait_for(lambda: names[0] not in live())
    with pytest.raises(UsageError, match="no live session"):
        asker.ask("stop", {"session": "9-9"})
    with pytest.raises(UsageError, match="one of session, label, daemon"):
        asker.ask("stop")
    with pytest.raises(UsageError, match="did you mean label-1"):
        asker.ask("start", {"label": "label1"})
    room = asker.ask("status")["sessions"]["room"]  # type: ignore[index]
    assert asker.ask("start", {"label": "label-1", "count": room + 5})["left"] == 5
    with pytest.raises(UsageError, match="no room: all 24 places"):
        asker.ask("start", {"label": "label-1"})
    asker.ask("stop", {"label": "label-1"})
    wait_for(lambda: asker.ask("status")["sessions"]["room"] == 16)  # type: ignore[index]


def test_watch_streams_events(daemon: LiveDaemon, asker: Asker) -> None:
    watching = Asker(daemon.folder / "s")
    watching.ask("watch", {"events": ["slice-closed", "paused"]})
    seen: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: seen.extend(e for _, e in zip(range(2), watching.events())), daemon=True)
    thread.start()
    time.sleep(0.2)
    asker.ask("rotate")
    asker.ask("pause")
    asker.ask("resume")
    thread.join(10)
    assert [event["event"] for event in seen] == ["slice-closed", "paused"] and seen[0]["packets"] > 0
    watching.close()


def test_the_socket_is_bounded_and_survives_what_clients_do(daemon: LiveDaemon, asker: Asker) -> None:
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(str(daemon.folder / "s"))
    raw.sendall(b'{"command": "pause", "arguments": {"x": 1}}\n{"id": 7, "command": "status"}\n')
    lines = raw.makefile("rb")
    assert json.loads(lines.readline()) == {
        "ok": False, "error": "pause: unknown argument 'x': it takes none",
    }  # fmt: skip
    assert json.loads(lines.readline())["id"] == 7
    raw.sendall(b"x" * (MOST_BYTES * 2))
    assert "at most 65536 bytes" in json.loads(lines.readline())["error"]
    assert lines.readline() == b""  # and hung up
    half = socket.socket(socket.AF_UNIX)
    half.connect(str(daemon.folder / "s"))
    half.sendall(b'{"command": "pause"}')  # no end of line: not a request
    half.close()
    many = []
    for _ in range(200):  # more than are served; some are turned away
        one = socket.socket(socket.AF_UNIX)
        one.setblocking(False)
        with_room = one.connect_ex(str(daemon.folder / "s"))
        many.append((one, with_room))
    for one, _ in many:
        one.close()
    wait_for(lambda: asker.ask("status")["state"] == "running")


def test_only_its_user_may_connect(daemon: LiveDaemon, tmp_path: Path) -> None:
    assert stat.S_IMODE((daemon.folder / "s").stat().st_mode) == 0o600
    import grp

    group = grp.getgrgid(os.getgid()).gr_name
    with LiveDaemon(tmp_path, control(tmp_path / "s", group)) as other:
        found = (tmp_path / "s").stat()
        assert stat.S_IMODE(found.st_mode) == 0o660 and found.st_gid == os.getgid()
        with pytest.raises(AssertionError, match="another daemon listens there"):
            LiveDaemon(tmp_path / "2", control(tmp_path / "s"))
        other.process.kill()
        other.process.wait()
    assert (tmp_path / "s").exists()  # left by kill -9
    with pytest.raises(NetssmdError, match="left from one that was killed"):
        Asker(tmp_path / "s")
    with LiveDaemon(tmp_path, control(tmp_path / "s")):
        Asker(tmp_path / "s").close()
    with pytest.raises(AssertionError, match="there is no group 'no-such-group'"):
        LiveDaemon(tmp_path, control(tmp_path / "s", "no-such-group"))


def test_daemons_at_the_usual_place_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "r"))
    assert cli.run(["ctl", "status"]) == 1
    assert f"no daemon answers at {tmp_path / 'r' / 'netssmd.sock'}" in capsys.readouterr().err
    with LiveDaemon(tmp_path / "a"), LiveDaemon(tmp_path / "b") as second:
        first, other = tmp_path / "r" / "netssmd.sock", tmp_path / "r" / f"netssmd-{second.process.pid}.sock"
        assert list(control_client.live_sockets())[:2] == [other, first]
        assert cli.run(["ctl", "status"]) == 2
        assert "several daemons run; choose one: --socket" in capsys.readouterr().err
        assert cli.run(["ctl", "status", "--socket", str(first)]) == 0
        assert "running, up" in capsys.readouterr().out


def ctl(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "netssmd", "ctl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_ctl_as_a_user_types_it(daemon: LiveDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--socket", str(daemon.folder / "s")]
    done = ctl("--socket", daemon.folder / "s", "status", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["seed"] == 5, done.stderr
    assert cli.run(["ctl", "start", "label-1", "--count", "2", "--duration", "30s", *where]) == 0
    assert "started: 2" in capsys.readouterr().out
    assert cli.run(["ctl", "mix", "label-0=2", "label-1", *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"labels": {"label-0": 2.0, "label-1": 1.0}}
    assert cli.run(["ctl", "rate", "700", *where]) == 0
    assert capsys.readouterr().out == "packets per second: 700.0\n"
    assert cli.run(["ctl", "rate", "0", *where]) == 0
    assert cli.run(["ctl", "stop", "--label", "label-1", *where]) == 0
    assert cli.run(["ctl", "stop", *where]) == 2
    assert capsys.readouterr().err.endswith("netssmd: say what to stop: one of session, label, daemon\n")
    assert cli.run(["ctl", "pause", "--node", "x", *where]) == 2
    assert cli.run(["ctl", "status", "--socket", "/nowhere/s"]) == 1
    assert "no daemon answers: No such file" in capsys.readouterr().err
    assert cli.run(["ctl", "pauze"]) == 2
    assert cli.run(["ctl"]) == 0


def test_ctl_imports_nothing_heavy() -> None:
    code = "import netssmd.commands.ctl, netssmd.daemon.control_client, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "torch", "scapy", "rich", "prometheus_client", "aiomqtt", "uvloop"} & set(done.stdout.split())


def test_the_last_events_reach_who_watches_and_one_who_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    """As the daemon ends: what was emitted in its last moment is told before the socket goes."""

    async def scenario() -> list[bytes]:
        service = SimpleNamespace(events=Events())
        control_socket = ControlSocket(service, str(tmp_path / "s"))  # type: ignore[arg-type]
        await control_socket.start()
        readers = []
        for _ in range(2):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"), limit=1 << 30)
            writer.write(b'{"command": "watch", "id": 7}\n')
            assert b'"id":7' in await reader.readline()
            readers.append((reader, writer))
        readers[1][1].transport.pause_reading()  # type: ignore[attr-defined]
        for name in range(900):
            service.events.emit("slice-closed", capture=f"{name}-{'x' * 4_000}", packets=1, bytes=2)
        service.events.close()
        closing = asyncio.ensure_future(control_socket.close())
        lines = (await readers[0][0].read()).splitlines()
        await closing
        for _, writer in readers:
            writer.close()
        return lines

    lines = asyncio.run(scenario())
    assert [json.loads(line)["capture"].partition("-")[0] for line in lines] == [str(name) for name in range(900)]
    assert not (tmp_path / "s").exists()


def test_stop_ends_the_daemon_and_says_so_to_who_watches(tmp_path: Path) -> None:
    with LiveDaemon(tmp_path, control(tmp_path / "s")) as live:
        watching = subprocess.Popen(
            [sys.executable, "-m", "netssmd", "ctl", "watch", "stopping", "slice-closed", "--socket", tmp_path / "s"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        asker = Asker(tmp_path / "s")
        wait_for(lambda: asker.ask("status")["traffic"]["packets"])  # type: ignore[index]
        time.sleep(1)  # the other one is at it
        assert asker.ask("stop", {"daemon": True}) == {"stopping": True}
        assert live.process.wait(20) == 0, live.log
        out = watching.communicate(timeout=20)[0]
        assert watching.returncode == 0 and "stopping" in out and "slice-closed" in out
    assert list((tmp_path / "captures").glob("*.pcap")) and not (tmp_path / "s").exists()
