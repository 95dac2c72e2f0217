"""Compiled modules: there when a compiler is, fresh when tests run, and never in front of an edited source."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from netssmd import freshness

REPOSITORY = Path(__file__).parent.parent
BUILT = freshness.built_from()


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_the_build_list_names_is_compiled_where_a_compiler_is() -> None:
    if not os.environ.get("NETSSMD_EXPECT_COMPILED"):
        pytest.skip("run by `make test` on a machine with a compiler")
    lines = (REPOSITORY / "cmake/mypyc_modules.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    expected = {path.removesuffix(".py").replace("/", ".") for path in listed if (REPOSITORY / path).exists()}
    expected |= set(freshness.NATIVE)
    assert set(BUILT) == expected


def test_compiled_modules_are_fresh() -> None:
    """The tests would judge other code than the one in the editor."""
    assert freshness.stale_modules(str(REPOSITORY / "netssmd"), BUILT) == []


@pytest.mark.parametrize("module", BUILT)
def test_a_fresh_compiled_module_is_what_gets_imported(module: str) -> None:
    if os.environ.get("NETSSMD_INTERPRETED", "0") != "0":
        pytest.skip("NETSSMD_INTERPRETED is set")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert str(spec.origin).endswith(".so")


def test_one_edited_source_makes_its_module_stale(tmp_path: Path) -> None:
    write(tmp_path, "packet/wire.py", "x = 1\n")
    write(tmp_path, "packet/flow.py", "y = 1\n")
    modules = ["netssmd.packet.wire", "netssmd.packet.flow"]
    built = {module: freshness.source_hash(str(tmp_path), module) or "" for module in modules}
    assert freshness.stale_modules(str(tmp_path), built) == []
    write(tmp_path, "packet/wire.py", "x = 2\n")
    assert freshness.stale_modules(str(tmp_path), built) == ["netssmd.packet.wire"]


def test_cpp_sources_count_together_and_may_be_absent(tmp_path: Path) -> None:
    assert freshness.source_hash(str(tmp_path), freshness.CPU_BACKEND) is None
    assert freshness.stale_modules(str(tmp_path), {freshness.CPU_BACKEND: "00"}) == []
    write(tmp_path, "model/cpu/a.cpp", "int a;")
    one = freshness.source_hash(str(tmp_path), freshness.CPU_BACKEND)
    write(tmp_path, "model/cpu/b.hpp", "int b;")
    assert freshness.source_hash(str(tmp_path), freshness.CPU_BACKEND) != one


def run_with_binaries(
    tmp_path: Path, wire_at_build: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Import netssmd.packet.{wire,flow} in a copy of the package whose binaries are stand-ins."""
    package = tmp_path / "netssmd"
    for name in ("__init__.py", "freshness.py"):
        write(package, name, (REPOSITORY / "netssmd" / name).read_text())
    write(package, "packet/__init__.py", "")
    write(package, "packet/flow.py", "KIND = 'source'\n")
    write(package, "packet/wire.py", wire_at_build)
    modules = ["netssmd.packet.wire", "netssmd.packet.flow"]
    hashes = {module: freshness.source_hash(str(package), module) for module in modules}
    write(package, "_build.py", f"SOURCES = {hashes!r}\n")
    write(package, "packet/wire.py", "KIND = 'source'\n")
    write(tmp_path, "binaries/wire.py", "KIND = 'binary'\n")
    write(tmp_path, "binaries/flow.py", "KIND = 'binary'\n")
    program = """if True:
        import importlib.util, sys
        class Binaries:
            def find_spec(self, name, path=None, target=None):
                if name in ("netssmd.packet.wire", "netssmd.packet.flow"):
                    return importlib.util.spec_from_file_location(name, f"binaries/{name.rpartition('.')[2]}.py")
        sys.meta_path.insert(0, Binaries())
        from netssmd.packet import flow, wire
        print(wire.KIND, flow.KIND)
    """
    return subprocess.run([sys.executable, "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True,
                          check=True, env={"PATH": os.environ["PATH"], **environment})  # fmt: skip


def test_the_whole_group_runs_from_source_after_an_edit(tmp_path: Path) -> None:
    result = run_with_binaries(tmp_path, "KIND = 'older source'\n", {})
    assert result.stdout == "source source\n"
    assert "netssmd.packet.wire changed since it was compiled" in result.stderr


def test_binaries_serve_while_nothing_changed(tmp_path: Path) -> None:
    result = run_with_binaries(tmp_path, "KIND = 'source'\n", {})
    assert result.stdout == "binary binary\n"
    assert result.stderr == ""


def test_sources_on_request(tmp_path: Path) -> None:
    result = run_with_binaries(tmp_path, "KIND = 'source'\n", {"NETSSMD_INTERPRETED": "1"})
    assert result.stdout == "source source\n"
