"""`netssmd top`: the status of a real daemon as a table, once and live, over the socket and over a broker."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from live_daemon import LiveDaemon, wait_for
from mosquitto import Mosquitto

from netssmd import cli


def test_once_over_the_socket_and_the_broker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Mosquitto(tmp_path / "m") as broker:
        text = f'[control]\nsocket = "{tmp_path}/s"\n[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\nnode = "lab-3"\n'
        with LiveDaemon(tmp_path / "d", text) as live:
            wait_for(lambda: live.said("connected as node lab-3"))
            assert cli.run(["top", "--once", "--socket", f"{tmp_path}/s"]) == 0
            out = capsys.readouterr().out
            assert "lab-3: running" in out and "label-0" in out and "label-1" in out and "sink file" in out
            assert "connected" in out and "lateness" in out and "findings " in out
            assert cli.run(["ctl", "pause", "--socket", f"{tmp_path}/s"]) == 0
            time.sleep(0.5)  # the status is told at once
            capsys.readouterr()
            assert cli.run(["top", "--once", "--broker", f"127.0.0.1:{broker.port}"]) == 0
            assert "lab-3: paused (operator)" in capsys.readouterr().out
            live.process.kill()
            live.process.wait()
            time.sleep(0.5)
            assert cli.run(["top", "--once", "--broker", f"127.0.0.1:{broker.port}"]) == 0
            assert "lab-3: offline" in capsys.readouterr().out
    assert cli.run(["top", "--once", "--socket", f"{tmp_path}/none"]) == 1
    assert "no daemon answers" in capsys.readouterr().err


def test_live_until_ctrl_c(tmp_path: Path) -> None:
    with LiveDaemon(tmp_path, f'[control]\nsocket = "{tmp_path}/s"\n'):
        command = [sys.executable, "-m", "netssmd", "top", "--socket", f"{tmp_path}/s", "--interval", "0.2"]
        top = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(2)
        top.send_signal(signal.SIGINT)
        out, error = top.communicate(timeout=20)
        assert top.returncode == 0, error
        assert "label-0" in out


@pytest.mark.parametrize("other_end", ["control_client", "fleet"])
def test_top_and_ctl_import_nothing_heavy(other_end: str) -> None:
    code = "import netssmd.commands.top, netssmd.commands.ctl, rich.live, sys\n"
    code += f"import netssmd.daemon.{other_end}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "torch", "scapy", "prometheus_client", "uvloop"} & set(done.stdout.split())
