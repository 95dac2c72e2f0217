"""The commands that serve start light: real runs on a tiny model import nothing of what learning and judging need."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import tiny_model

from netssmd.model.cpu_backend import available_isas

HEAVY = ("torch", "scapy", "sklearn", "matplotlib", "scipy", "tokenizers", "mamba_ssm", "triton", "hypothesis")
SCRIPT = f"""
import sys
from netssmd import cli
code = cli.run(sys.argv[1:])
print("imported:", *sorted(set({HEAVY!r}) & set(sys.modules)))
with open("/proc/self/status") as status:
    print("megabytes:", *(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM")))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("light")
    tiny_model(folder / "model")
    return folder


def run(*arguments: object) -> tuple[str, int]:
    """Runs a command; what it imported of HEAVY, and the most memory it held."""
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{SCRIPT}", *map(str, arguments)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    imported, megabytes = done.stdout.splitlines()[-2:]
    return imported.removeprefix("imported:").strip(), int(megabytes.split()[1])


needs_cpu = pytest.mark.skipif(not available_isas(), reason="without the cpu backend torch serves")


@needs_cpu
def test_generate_then_codec_check_and_model(folder: Path) -> None:
    model, capture = folder / "model", folder / "x.pcap"
    imported, _ = run("generate", "--model", model, "--label", "web", "--sessions", 30, "--seed", 3, "-o", capture)
    assert imported == ""
    assert run("codec", "--model", model, capture)[0] == ""
    assert run("check", capture)[0] == ""
    assert run("model", "show", model)[0] == ""


@needs_cpu
@pytest.mark.parametrize("pace", ["live", "topspeed"])
def test_run_with_a_hundred_sessions(folder: Path, pace: str) -> None:
    """Memory, too: the tiny model's states are small, so this is the program's own."""
    text = f"""
[engine]
pace = "{pace}"
[traffic]
concurrency = 100
ramp = "0s"
[metrics]
port = 0
[output]
directory = "{folder / pace}"
"""
    (folder / f"{pace}.toml").write_text(text)
    imported, megabytes = run("run", "-c", folder / f"{pace}.toml", "--model", folder / "model", "--duration", "1s")
    assert imported == ""
    assert megabytes < 200
    assert list((folder / pace).glob("*.pcap"))
