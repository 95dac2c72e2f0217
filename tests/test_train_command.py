"""`netssmd train` as a program: a signal saves, the same command goes on, errors are one line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from learn_data import write_data

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
[model]
d_model = 32
n_layer = 1
d_state = 8
headdim = 16
chunk_size = 16
[batch]
streams = 2
segment = 32
[length]
tokens = {tokens}
[validation]
tokens = 200
final_tokens = 0
[output]
log_steps = 1
[machine]
device = "cpu"
precision = "fp32"
threads = 1
"""


def command(folder: Path, tokens: int, *more: str) -> list[str]:
    write_data(folder / "data") if not (folder / "data").exists() else None
    (folder / "train.toml").write_text(CONFIG.format(tokens=tokens))
    options = ["-c", str(folder / "train.toml"), "--data", str(folder / "data"), "-o", str(folder / "out")]
    return [sys.executable, "-m", "netssmd", "train", *options, *more]


def start(argv: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    process = start(command(tmp_path, 100_000_000))
    assert process.stderr is not None
    for line in process.stderr:
        if "bits/packet" in line:
            break
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "saved; the same command goes on" in out
    done = json.loads((tmp_path / "out" / "last" / "state.json").read_text())
    process = start(command(tmp_path, done["tokens"] + 64, "--json"))
    out, _ = process.communicate(timeout=60)
    summary = json.loads(out)
    assert process.returncode == 0 and summary["finished"] and summary["step"] == done["steps"] + 1
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    assert summary["bits_per_packet"] > 0 and set(summary["by_label"]) == {"chat", "dns", "web"}


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    argv = command(tmp_path, 100)
    with open(tmp_path / "train.toml", "a") as file:
        file.write("speed = 3\n")
    process = start(argv)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("netssmd: ") and "machine.speed: unknown key" in err and err.count("\n") == 1
