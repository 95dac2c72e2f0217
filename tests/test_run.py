"""`netssmd run` as a user starts it: it says what it does, ends by itself or by a signal, and refuses what cannot
be."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_model import tiny_model

from netssmd import cli
from netssmd.packet.pcap import read_capture

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def settings(folder: Path, model: str, text: str = "") -> Path:
    path = folder / "netssmd.toml"
    path.write_text(
        f'[engine]\nmodel = "{model}"\nlookahead = "500ms"\n[metrics]\nport = 0\n[output]\nfree_disk = "0MB"\n{text}'
    )
    return path


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "netssmd", "run", *map(str, arguments)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_a_run_says_what_it_does_and_ends_by_itself(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start("-c", settings(tmp_path, model), "--duration", "2s", "--seed", 4, "--output", out)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 0, error
    assert "3 labels" not in error and "dns, video-dash, web" in error and str(out) in error and "seed 4" in error
    assert "metrics:  off" in error and "for 2 s" in error
    actual = next(line for line in error.splitlines() if line.startswith("Actual: "))
    packets = sum(1 for path in out.glob("*.pcap") for _ in read_capture(io.BytesIO(path.read_bytes())))
    assert actual.startswith(f"Actual: {packets} packets (") and "Rated: " in error and packets > 0
    assert not [p for p in out.iterdir() if p.name.endswith(".part")]


def test_ctrl_c_ends_it_cleanly(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start("-c", settings(tmp_path, model), "--output", out)
    assert process.stderr
    while not (line := process.stderr.readline()).startswith("pace:"):
        assert line
    begun = time.time_ns()
    time.sleep(5)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and "Actual: " in error
    path = min(out.glob("*.pcap"))
    first = next(iter(read_capture(io.BytesIO(path.read_bytes()))))
    assert first.ts_ns >= begun  # how soon it comes is for `netssmd bench` to say


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("[log]\nlevle = 'info'", [], "log.levle: unknown key; did you mean level?"),
        ("[traffic.labels]\nweeb = 1", [], "traffic.labels: unknown label 'weeb': did you mean web?"),
        ("[traffic.temperatures]\niot = 1", [], "unknown field 'iot' for a temperature: did you mean"),
        (
            "[addresses]\nclients = ['10.0.0.1/8']",
            [],
            "addresses: clients: 10.0.0.1/8 has host bits set; did you mean 10.0.0.0/8?",
        ),
        ("", ["--duration", "soon"], "'soon' is not a duration"),
        (
            "[traffic.labels]\nweeb = 1\nwep = 1\n[addresses]\nmac_prefix = 'x'\n[traffic.temperatures]\niot = 1",
            [],
            "4 mistakes",
        ),
    ],
)
def test_mistakes(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, arguments: list[str], says: str
) -> None:
    path = settings(tmp_path, model, text)
    assert cli.run(["run", "-c", str(path), "--check-config", *arguments]) == 2
    error = capsys.readouterr().err
    lines = error.splitlines()
    assert all(line.startswith("netssmd: ") for line in lines) and f"{len(lines)} mistakes" in ("1 mistakes", says)
    assert says in error or len(lines) > 1
    assert [p.name for p in tmp_path.iterdir()] == ["netssmd.toml"]


@pytest.mark.parametrize("streams", ["2>&-", ">&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_streams_that_are_closed_or_full_do_not_end_it(model: str, tmp_path: Path, streams: str) -> None:
    arguments = f"-c {settings(tmp_path, model)} --duration 2 --seed 4 --output {tmp_path / 'out'}"
    command = f"exec {sys.executable} -m netssmd run {arguments} {streams}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=ROOT, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").glob("*.pcap")) and not list((tmp_path / "out").glob(".*"))


def test_check_config(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["run", "-c", str(settings(tmp_path, model)), "--check-config"]) == 0
    assert ": ok" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["run", "-c", str(settings(tmp_path, model)), "--output", "/proc/nothing", "--duration", "1s"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("netssmd: directory /proc/nothing: cannot be written")
