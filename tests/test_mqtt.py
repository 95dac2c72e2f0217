"""Daemons as nodes of a fleet, through a real mosquitto: requests and replies, retained status, will, events, TLS,
passwords, access lists, a broker that goes and comes back, work for whoever has room."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from live_daemon import LiveDaemon, wait_for
from mosquitto import ACCESS, Mosquitto, free_port
from test_control import CALLS, REFUSED

from netssmd import cli
from netssmd.daemon import fleet, topics
from netssmd.daemon.broker import client, password_of, path_of, tls_of
from netssmd.daemon.config import Config, Mqtt, parse
from netssmd.daemon.control_client import Asker
from netssmd.errors import ConfigError, NetssmdError, UsageError

# --- without a broker ---


@pytest.mark.parametrize(
    ("topic", "may"),
    [("netssmd/reply/a", True), ("netssmd/reply/a/b", True), ("netssmd/node/x/command", False),
     ("netssmd/reply/+", False),
     ("netssmd/reply/#", False), ("netssmd/reply/" + "x" * 300, False), ("other", False), (None, False)],
)  # fmt: skip
def test_replies_go_where_replies_go(topic: object, may: bool) -> None:
    assert topics.may_reply_to("netssmd", topic) is may


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('node = "a/b"', "mqtt.node: found 'a/b'; write up to 64 letters"),
        ('prefix = ""', "mqtt.prefix: found ''; write up to 64 letters"),
        ('group = "#"', "mqtt.group: found '#'"),
        ('password_file = "x"', "belongs to a user; write that too"),
        ('ca_file = "x"', "need tls = true"),
        ('keepalive = "1ms"', "mqtt.keepalive: found 0.001s; write 1s to 1h"),
        ('events = ["x"]', "write events of session-started"),
        ('password = "secret"', "mqtt.password: unknown key; did you mean password_file?"),
    ],
)  # fmt: skip
def test_mistakes_in_the_section(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"[mqtt]\n{text}", "t")
    assert says in str(caught.value)


def test_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = Mqtt(host="x", user="u", password_file="$CREDENTIALS_DIRECTORY/mqtt")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match=r"mqtt\.password_file: \$CREDENTIALS_DIRECTORY is not set"):
        password_of(section)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        password_of(section)
    (tmp_path / "mqtt").write_text("")
    with pytest.raises(ConfigError, match="its first line is the password"):
        password_of(section)
    (tmp_path / "mqtt").write_text("opensesame\nrest\n")
    assert password_of(section) == "opensesame" and "opensesame" not in repr(section)
    assert path_of("/a/$CREDENTIALS_DIRECTORY", "x") == Path("/a/$CREDENTIALS_DIRECTORY")
    with pytest.raises(ConfigError, match=r"mqtt\.ca_file: cannot be used"):
        tls_of(Mqtt(tls=True, ca_file=str(tmp_path / "none.pem")))


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_socket_that_the_broker_closed_at_once(
    new_loop: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    """No traceback for it; for anything else there is one."""

    async def gone() -> None:
        loop = asyncio.get_running_loop()
        client(Mqtt(host="127.0.0.1"), [])
        ours, theirs = socket.socketpair()
        descriptor = ours.fileno()
        loop.call_soon(loop.add_writer, descriptor, print)
        ours.close()
        await asyncio.sleep(0.01)
        assert not caplog.records
        loop.call_soon(os.close, descriptor)
        await asyncio.sleep(0.01)
        theirs.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(gone())
    (record,) = caplog.records
    assert record.name == "asyncio" and record.exc_info and record.exc_info[0] is OSError


def test_whom_a_command_is_for() -> None:
    assert fleet.address("start", "", "", False).anyone
    assert fleet.address("start", "", "g", False).topic("p") == "p/group/g/work"
    assert fleet.address("start", "", "", True).topic("p") == "p/all/command"
    assert fleet.address("pause", "", "g", False).topic("p") == "p/group/g/command"
    with pytest.raises(UsageError, match="say to whom"):
        fleet.address("pause", "", "", False)
    with pytest.raises(UsageError, match="choose one"):
        fleet.address("pause", "a", "g", False)
    assert fleet.settings(None, "h:99").port == 99
    with pytest.raises(UsageError, match="HOST:PORT"):
        fleet.settings(None, "h:x")


# --- with one ---


def section(broker: Mosquitto, node: str, more: str = "") -> str:
    return (
        f'[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\nnode = "{node}"\nstatus_interval = "1s"\n{more}'
        f'[control]\nsocket = "{broker.folder}/{node}.s"\n'
    )


def nodes(broker: Mosquitto, **others: str) -> dict[str, dict[str, Any]]:
    settings = fleet.settings(None, f"127.0.0.1:{broker.port}", **others)
    return {one["node"]: one for one in fleet.fleet_status(settings, 3.0)}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("m")) as one:
        yield one


@pytest.fixture(scope="module")
def daemon(broker: Mosquitto, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    with LiveDaemon(tmp_path_factory.mktemp("d"), "seed = 5\n" + section(broker, "one", 'group = "lab"\n')) as live:
        wait_for(lambda: live.said("connected as node one"))
        yield live
        assert live.stop() == 0, live.log
    assert nodes(broker)["one"] == {"node": "one", "group": "lab", "state": "offline"}  # a clean end says so itself


@pytest.mark.parametrize("name", CALLS)
def test_every_command_over_mqtt(daemon: LiveDaemon, broker: Mosquitto, name: str) -> None:
    arguments, key = CALLS[name]
    settings = fleet.settings(None, f"127.0.0.1:{broker.port}")
    for to in (fleet.address(name, "one", "", False), fleet.address(name, "", "lab", False)):
        begun = time.monotonic()
        replies = fleet.ask(settings, to, name, arguments, 5.0)
        assert len(replies) == 1 and replies[0]["node"] == "one", replies
        assert key in (replies[0]["error"] if name in REFUSED else replies[0]["result"])
        assert time.monotonic() - begun < 4  # it came with the reply, not with the time-out


def test_what_is_refused(daemon: LiveDaemon, broker: Mosquitto) -> None:
    settings = fleet.settings(None, f"127.0.0.1:{broker.port}")
    for arguments, says in (
        ({"label": "x"}, "unknown label 'x'"),
        ({"label": "label-0", "path": "/etc/passwd"}, "unknown argument 'path'"),
        ({"label": "label-0", "interface": "eth0"}, "unknown argument 'interface'"),
    ):
        replies = fleet.ask(settings, fleet.address("start", "one", "", False), "start", arguments, 5.0)
        assert says in replies[0]["error"]
    anyone = fleet.Address(lambda p: topics.work(p), "any node", anyone=True)

    def refused() -> bool:  # once the node shares the subscription: it does while it has room
        replies = fleet.ask(settings, anyone, "stop", {"daemon": True}, 5.0)
        return bool(replies) and "only start is work" in replies[0]["error"]

    wait_for(refused)
    assert fleet.ask(settings, fleet.address("pause", "nobody", "", False), "pause", {}, 0.6) == []


def publish(broker: Mosquitto, topic: str, payload: str, *more: str) -> None:
    command = ["mosquitto_pub", "-V", "5", "-p", str(broker.port), "-t", topic, "-m", payload, *more]
    subprocess.run(command, check=True, timeout=20)


def test_a_node_speaks_only_where_replies_go_and_obeys_nothing_retained(daemon: LiveDaemon, broker: Mosquitto) -> None:
    heard: list[str] = []
    listening = subprocess.Popen(
        ["mosquitto_sub", "-V", "5", "-p", str(broker.port), "-t", "#", "-R", "-F", "%t"], stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert listening.stdout
    out = listening.stdout
    threading.Thread(target=lambda: heard.extend(line.strip() for line in out), daemon=True).start()
    time.sleep(0.5)
    request = '{"command": "status"}'
    to = "netssmd/node/one/command"
    publish(broker, to, request, "-D", "publish", "response-topic", "netssmd/node/two/command")
    publish(broker, to, "not json", "-D", "publish", "response-topic", "netssmd/reply/mine")
    publish(broker, to, '{"command": "pause"}', "-r")
    wait_for(lambda: "netssmd/reply/mine" in heard)
    publish(broker, to, "", "-r")
    asker = Asker(broker.folder / "one.s")
    asker.ask("resume")
    listening.kill()
    assert "netssmd/node/two/command" not in heard


def test_events_are_published(daemon: LiveDaemon, broker: Mosquitto) -> None:
    settings = fleet.settings(None, f"127.0.0.1:{broker.port}")
    seen: list[dict[str, Any]] = []
    kinds = ["slice-closed", "paused", "resumed"]
    stream = fleet.watch(settings, kinds, "one")
    thread = threading.Thread(target=lambda: seen.extend(e for _, e in zip(range(3), stream)), daemon=True)
    thread.start()
    time.sleep(1)
    asker = Asker(broker.folder / "one.s")
    asker.ask("rotate")
    asker.ask("pause")
    asker.ask("resume")
    thread.join(15)
    assert {event["event"] for event in seen} == set(kinds) and all(event["node"] == "one" for event in seen)


def test_the_fleet_as_a_user_sees_it(daemon: LiveDaemon, broker: Mosquitto, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--broker", f"127.0.0.1:{broker.port}"]
    assert cli.run(["ctl", *where]) == 0
    assert capsys.readouterr().out.startswith("one              running")
    assert cli.run(["ctl", *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["broker"]["state"] == "connected"
    assert cli.run(["ctl", "rate", "900", "--all", *where]) == 0
    assert capsys.readouterr().out == "one:\n  packets per second: 900.0\n"
    assert cli.run(["ctl", "rate", "0", *where]) == 2 and "say to whom" in capsys.readouterr().err
    assert cli.run(["ctl", "pause", "--node", "nobody", "--timeout", "0.5", *where]) == 1
    assert "no node answered on node nobody" in capsys.readouterr().err
    assert cli.run(["ctl", "status", "--all", "--broker", f"127.0.0.1:{free_port()}"]) == 1
    assert "netssmd: broker 127.0.0.1:" in capsys.readouterr().err


# --- things that go wrong ---


def test_the_broker_is_killed_and_comes_back(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "m") as broker, LiveDaemon(tmp_path / "d", section(broker, "one")) as live:
        wait_for(lambda: live.said("connected as node one"))
        asker = Asker(broker.folder / "one.s")
        broker.kill()
        wait_for(lambda: asker.ask("status")["broker"]["state"] == "waiting")  # type: ignore[index]

        def packets() -> int:
            return asker.ask("status")["traffic"]["packets"]  # type: ignore[index]

        before = packets()
        wait_for(lambda: packets() > before + 200)  # generation goes on
        assert live.log.count("trying again") == 1
        broker.start()
        wait_for(lambda: live.said("connected as node one", 2), 30)
        assert nodes(broker)["one"]["state"] == "running"  # retained again, by a broker that had forgotten all
        assert asker.ask("status")["timing"]["lateness_max_seconds"] < 1  # type: ignore[index]
        live.process.kill()
        wait_for(lambda: nodes(broker)["one"]["state"] == "offline")  # the will
        live.process.wait()


def test_a_broker_that_hangs_holds_up_nothing(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "m") as broker, LiveDaemon(tmp_path / "d", section(broker, "one")) as live:
        wait_for(lambda: live.said("connected as node one"))
        broker.process.send_signal(signal.SIGSTOP)
        asker = Asker(broker.folder / "one.s")
        before = asker.ask("status")["traffic"]["packets"]  # type: ignore[index]
        wait_for(lambda: asker.ask("status")["traffic"]["packets"] > before + 200)  # type: ignore[index]
        assert live.stop() == 0, live.log
        broker.process.send_signal(signal.SIGCONT)


def test_a_broker_that_was_never_there(tmp_path: Path) -> None:
    text = f'[mqtt]\nhost = "127.0.0.1"\nport = {free_port()}\n[control]\nsocket = "{tmp_path}/s"\n'
    with LiveDaemon(tmp_path, text) as live:
        wait_for(lambda: live.said("trying again"))
        assert Asker(tmp_path / "s").ask("status")["broker"]["state"] == "waiting"  # type: ignore[index]
        assert live.stop() == 0, live.log


USERS = {"one": "first-secret", "operator": "second-secret", "watcher": "third-secret"}


def test_tls_passwords_and_the_access_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Mosquitto(tmp_path / "m", USERS, tls=True) as broker:
        files = f'tls = true\nca_file = "{broker.folder}/ca.pem"\nuser = "one"\n'
        text = section(broker, "one", files + f'password_file = "{broker.folder}/one.password"\n')
        with LiveDaemon(tmp_path / "d", text) as live:
            wait_for(lambda: live.said("connected as node one"))
            command_line = Path(f"/proc/{live.process.pid}/cmdline").read_bytes()
            where = ["--broker", f"localhost:{broker.port}", "--ca-file", f"{broker.folder}/ca.pem"]

            def as_user(name: str, *command: str) -> int:
                return cli.run(["ctl", *command, *where, "--user", name, "--password-file",
                                f"{broker.folder}/{name}.password", "--timeout", "3"])  # fmt: skip

            assert as_user("operator", "status", "--node", "one") == 0
            assert as_user("operator", "start", "label-1", "--count", "2") == 0  # by shared subscription, under ACL
            assert "started: 2" in capsys.readouterr().out
            assert as_user("watcher") == 0  # sees the fleet
            assert as_user("watcher", "pause", "--node", "one") == 1  # the broker drops it without a word
            assert "no node answered" in capsys.readouterr().err
            (broker.folder / "operator.password").write_text("wrong\n")
            assert as_user("operator", "pause", "--node", "one") == 1
            error = capsys.readouterr().err
            assert "Not authorized" in error and "wrong\n" not in error
            assert cli.run(["ctl", "--broker", f"localhost:{broker.port}", "--ca-file", "/etc/hostname"]) == 2
            assert "mqtt.ca_file: cannot be used" in capsys.readouterr().err
            asker = Asker(broker.folder / "one.s")
            status = json.dumps(asker.ask("status"))
            assert live.stop() == 0
            for secret in USERS.values():
                assert secret not in live.log and secret not in status and secret.encode() not in command_line


def certified(broker: Mosquitto, name: str) -> str:
    """The section of a node whose certificate is `name`.pem; "" for none."""
    own = f'certificate_file = "{broker.folder}/{name}.pem"\nkey_file = "{broker.folder}/{name}.key"\n' if name else ""
    return section(broker, name or "none", f'tls = true\nca_file = "{broker.folder}/ca.pem"\n{own}')


def test_a_broker_that_demands_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Mosquitto(tmp_path / "m", tls=True, demanding=True) as broker:
        with LiveDaemon(tmp_path / "d", certified(broker, "client")) as live:
            wait_for(lambda: live.said("connected as node client"))
            key = (broker.folder / "client.key").read_text().splitlines()[1]
            assert cli.run(["ctl", "status", "--node", "client", "-c", str(live.file)]) == 0
            assert live.stop() == 0 and key not in live.log and "client.key" not in capsys.readouterr().out
        refusals = {"": "certificate required", "stranger": "unknown ca"}
        nobody = [LiveDaemon(tmp_path / f"d{name}", certified(broker, name)) for name in refusals]  # both at once
        for live, says in zip(nobody, refusals.values()):
            with live:
                wait_for(lambda live=live: live.said("trying again"))  # type: ignore[misc]
                (line,) = [line for line in live.lines if "trying again" in line]
                assert f"mqtt: 127.0.0.1:{broker.port}: " in line and says in line and "Traceback" not in live.log
                assert live.stop() == 0
        assert cli.run(["ctl", "status", "--node", "one", "-c", str(nobody[0].file)]) == 1
        assert "certificate required" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["file", "credentials"])
def test_no_secret_shows(tmp_path: Path, how: str) -> None:
    """Not in the log (at its chattiest), the process list, the status or what --check-config says; the right password
    and a wrong one."""
    secret = "correct-horse-battery"
    with Mosquitto(tmp_path / "m", {"one": secret, "operator": "x"}) as broker:
        (broker.folder / "wrong").write_text("wrong-horse\n")
        environment = {"CREDENTIALS_DIRECTORY": str(broker.folder)} if how == "credentials" else {}
        folder = "$CREDENTIALS_DIRECTORY" if how == "credentials" else str(broker.folder)
        for name, says in (("one.password", "connected as node one"), ("wrong", "Not authorized")):
            text = section(broker, "one", f'user = "one"\npassword_file = "{folder}/{name}"\n')
            text += '[log]\nlevel = "debug"\n'
            with LiveDaemon(tmp_path / name, text, environment=environment) as live:
                wait_for(lambda live=live, says=says: live.said(says))  # type: ignore[misc]
                seen = [Path(f"/proc/{live.process.pid}/{what}").read_bytes() for what in ("cmdline", "environ")]
                seen.append(json.dumps(Asker(broker.folder / "one.s").ask("status")).encode())
                check = [sys.executable, "-m", "netssmd", "run", "--check-config", "-c", str(live.file)]
                checked = subprocess.run(check, capture_output=True, env={**os.environ, **environment}, timeout=60)
                assert checked.returncode == 0 and b"ok" in checked.stderr
                assert live.stop() == 0
                seen += [checked.stdout, checked.stderr, live.log.encode()]
            for one in seen:
                assert secret.encode() not in one and b"wrong-horse" not in one
    assert b"CREDENTIALS_DIRECTORY" in seen[1] or how == "file"


def test_a_wrong_password_is_told_and_the_daemon_runs(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "m", USERS) as broker:
        (tmp_path / "wrong").write_text("hunter2\n")
        text = section(broker, "one", f'user = "one"\npassword_file = "{tmp_path}/wrong"\n')
        with LiveDaemon(tmp_path / "d", text) as live:
            wait_for(lambda: live.said("Not authorized"))
            assert "hunter2" not in live.log and live.stop() == 0


def test_work_goes_to_nodes_with_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three nodes with 4, 6 and 8 places that run only what they are asked for: 15 sessions, then 5, of which 3 fit."""
    with Mosquitto(tmp_path / "m") as broker:
        fleet_of = [
            LiveDaemon(tmp_path / name, section(broker, name, f'group = "{group}"\n'),
                       {"concurrency = 8": "concurrency = 0", "slots = 24": f"slots = {slots}"})
            for name, group, slots in (("a", "x", 4), ("b", "x", 6), ("c", "y", 8))
        ]  # fmt: skip
        try:
            for live, name in zip(fleet_of, "abc"):
                wait_for(lambda live=live, name=name: live.said(f"connected as node {name}"))  # type: ignore[misc]
            wait_for(lambda: len(nodes(broker)) == 3)
            time.sleep(0.5)  # all have subscribed to work
            where = ["--broker", f"127.0.0.1:{broker.port}", "--timeout", "4"]
            for _ in range(5):
                assert cli.run(["ctl", "start", "label-0", "--count", "3", *where]) == 0, capsys.readouterr().err
            wait_for(lambda: sum(one["sessions"]["active"] for one in nodes(broker).values()) == 15)
            active = {name: one["sessions"]["active"] for name, one in nodes(broker).items()}
            assert active["a"] <= 4 and active["b"] <= 6 and active["c"] <= 8, active
            assert cli.run(["ctl", "start", "label-0", "--count", "5", *where]) == 1
            assert "2 sessions found no node with room" in capsys.readouterr().err
            assert cli.run(["ctl", "stop", "--label", "label-0", "--group", "x", *where]) == 0
            wait_for(lambda: [nodes(broker)[n]["sessions"]["active"] for n in "abc"] == [0, 0, 8])
        finally:
            for live in fleet_of:
                live.process.kill()
                live.process.wait()


def test_defaults_leave_mqtt_alone() -> None:
    assert Config().mqtt.host == ""
    with pytest.raises(NetssmdError, match="no broker"):
        fleet.settings(None, "")


def test_the_document_has_the_access_list_of_the_tests() -> None:
    text = (Path(__file__).parent.parent / "docs" / "control.md").read_text()
    assert ACCESS.strip() in "\n".join(line.removeprefix("    ") for line in text.splitlines())
