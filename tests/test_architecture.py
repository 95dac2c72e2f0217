"""The house rules that code review forgets: which way imports point, and who may import what.

When a test here objects, move the code, not the table.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "netssmd"

PIPELINE = ["packet", "codec", "model", "engine", "output", "daemon"]
MAY_IMPORT = {
    **{folder: set(PIPELINE[: i + 1]) for i, folder in enumerate(PIPELINE)},
    "learn": {"packet", "codec", "model", "learn"},
    "commands": {*PIPELINE, "learn", "commands"},
}
# Single files at the package's top. These stand below everything, and import only each other.
FREE_FOR_ALL = {"errors", "units", "tomlfile", "freshness", "_build"}
TOP = {"cli", "__main__"}

TORCH = {"torch", "mamba_ssm", "causal_conv1d", "triton", "tokenizers"}
TORCH_ALLOWED = re.compile(r"model/(mamba2|mixer_cpu|torch_backend|cuda_backend|importer)\.py|learn/.*")
IMPURE = {"time", "asyncio", "socket", "pathlib", "random", "os", "threading", "subprocess", "tempfile", "datetime"}
PURE = re.compile(r"(packet|codec)/.*")
HEAVY = {"torch", "scapy", "sklearn", "matplotlib", "numpy", "scipy", "asyncio", "prometheus_client", "rich"}

MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports(file: str) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything that the file imports anywhere, relative imports made absolute."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["netssmd", *Path(file).parent.parts]
            base = package[: len(package) + 1 - node.level] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{prefix}.{alias.name}", node.lineno) for alias in node.names)


def only_for_types(file: str) -> set[int]:
    """Lines under `if TYPE_CHECKING:`; nothing there is imported at run time."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


@pytest.mark.parametrize("file", MODULES)
def test_imports_point_down_the_list(file: str) -> None:
    own = Path(file).parts[0].removesuffix(".py")
    for name, line in imports(file):
        parts = name.split(".")
        if parts[0] != "netssmd" or len(parts) < 2 or parts[1].startswith("__version"):
            continue
        target = parts[1]
        if target in FREE_FOR_ALL or own in TOP:
            continue
        if own == "__init__" or own in FREE_FOR_ALL:
            allowed = FREE_FOR_ALL
        else:
            assert own in MAY_IMPORT, f"netssmd/{own} has no place in the house: docs/architecture.md lists the folders"
            allowed = MAY_IMPORT[own]
        assert target in allowed, f"netssmd/{file}:{line} imports {name}: {own} may import {sorted(allowed)}"


@pytest.mark.parametrize("file", [file for file in MODULES if not TORCH_ALLOWED.fullmatch(file)])
def test_only_learning_and_the_torch_backends_import_torch(file: str) -> None:
    found = [f"netssmd/{file}:{line} {name}" for name, line in imports(file)
             if name.split(".")[0] in TORCH and line not in only_for_types(file)]  # fmt: skip
    assert not found


@pytest.mark.parametrize("file", [file for file in MODULES if PURE.fullmatch(file)])
def test_the_pure_folders_know_no_clock_no_path_no_socket(file: str) -> None:
    if file == "packet/pcap.py":
        pytest.skip("opens the path it is given: the one edge inside packet/")
    found = [f"netssmd/{file}:{line} {name}" for name, line in imports(file)
             if name.split(".")[0] in IMPURE and line not in only_for_types(file)]  # fmt: skip
    assert not found


@pytest.mark.parametrize(
    "argv", [["-c", "import netssmd.cli"], ["-m", "netssmd", "--help"], ["-m", "netssmd", "--version"]]
)
def test_the_command_line_starts_light(argv: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *argv], capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )  # fmt: skip
    report = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in report}
    assert "click" in imported
    assert not imported & HEAVY
