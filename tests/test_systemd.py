"""The units, by systemd's own tools: verified, scored, installed, alike; and booted where systemd-nspawn runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SYSTEMD = ROOT / "systemd"
DROP_INS = sorted(path.stem for path in (SYSTEMD / "drop-ins").glob("*.conf"))
WORST_EXPOSURE = 2.0

analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


def install(folder: Path, program: str = "") -> Path:
    """`make install-units` into a folder; returns where the units are."""
    program = program or str(Path(sys.executable).with_name("netssmd"))
    subprocess.run(
        ["make", "-s", "-C", str(ROOT), "install-units", f"DESTDIR={folder}", f"PROGRAM={program}"], check=True
    )
    return folder / "etc/systemd/system"


def analyzed(*arguments: str) -> str:
    """Output of systemd-analyze, which complains on stderr and may exit 0 all the same."""
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True)
    assert not done.stderr.strip() and done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def exposure(unit: Path) -> float:
    found = re.search(r"exposure level for \S+: ([0-9.]+)", analyzed("security", "--offline=true", str(unit)))
    assert found
    return float(found[1])


@analyze
def test_the_units_are_valid_and_sandboxed(tmp_path: Path) -> None:
    units = install(tmp_path)
    for name in ("netssmd.service", "netssmd@.service"):
        unit = units / name.replace("@", "@lab")
        if unit.name != name:
            (units / name).rename(unit)
        analyzed("verify", str(unit))
        assert exposure(unit) <= WORST_EXPOSURE


@analyze
@pytest.mark.parametrize("name", DROP_INS)
def test_a_drop_in_is_valid_and_stays_sandboxed(name: str, tmp_path: Path) -> None:
    unit = install(tmp_path) / "netssmd.service"
    without = exposure(unit)
    drop_in = unit.parent / "netssmd.service.d" / f"{name}.conf"
    drop_in.parent.mkdir()
    shutil.copy(SYSTEMD / "drop-ins" / drop_in.name, drop_in)
    analyzed("verify", str(unit))
    assert without <= exposure(unit) <= WORST_EXPOSURE


@analyze
def test_the_checks_can_fail(tmp_path: Path) -> None:
    unit = install(tmp_path) / "netssmd.service"
    text = unit.read_text()
    unit.write_text(text.replace("ProtectSystem=", "ProtectSystm="))
    with pytest.raises(AssertionError, match="ProtectSystm"):
        analyzed("verify", str(unit))
    unit.write_text(text.split("CapabilityBoundingSet=")[0])
    assert exposure(unit) > WORST_EXPOSURE


def test_an_instance_is_the_same_service() -> None:
    def settings(name: str) -> list[str]:
        lines = (SYSTEMD / name).read_text().splitlines()
        return [line for line in lines if not line.startswith("#")]

    one = settings("netssmd@.service")
    assert [line for line in one if "%i" in line], "no instance"
    alone = "\n".join(one)
    for part, instead in ((" (%i)", ""), ("/%i.toml", "/netssmd.toml"), ("-%i", ""), ("/%i", "")):
        alone = alone.replace(part, instead)
    assert alone.splitlines() == settings("netssmd.service")


def test_install_touches_nothing_outside_its_root_and_keeps_a_configuration(tmp_path: Path) -> None:
    units = install(tmp_path, "/srv/it/netssmd")
    assert "ExecStart=/srv/it/netssmd run -c /etc/netssmd/netssmd.toml" in (units / "netssmd.service").read_text()
    for name in ("usr/lib/sysusers.d/netssmd.conf", "usr/lib/tmpfiles.d/netssmd.conf"):
        assert (tmp_path / name).is_file()
    mine = tmp_path / "etc/netssmd/netssmd.toml"
    assert mine.read_text() == (ROOT / "config/netssmd.toml").read_text()
    mine.write_text("[traffic]\nconcurrency = 1\n")
    install(tmp_path)
    assert mine.read_text() == "[traffic]\nconcurrency = 1\n"


@pytest.mark.skipif(not shutil.which("systemd-sysusers"), reason="systemd is not installed")
def test_the_user_and_the_folders_are_made(tmp_path: Path) -> None:
    install(tmp_path)
    (tmp_path / "etc/passwd").write_text("")
    (tmp_path / "etc/group").write_text("")
    made = subprocess.run(["systemd-sysusers", f"--root={tmp_path}", "--dry-run"], capture_output=True, text=True)
    assert made.returncode == 0 and "netssmd" in made.stdout + made.stderr


@pytest.mark.slow
def test_a_system_boots_with_it(tmp_path: Path) -> None:
    """READY, packets, reload, kill -9, a lane that hangs, an instance, a clean stop: see tools/boot_service.py."""
    marker = tmp_path / "of the machine"
    marker.write_text("still here")
    done = subprocess.run([sys.executable, str(ROOT / "tools/boot_service.py")], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the watchdog is not fed" in done.stdout and "stop is clean" in done.stdout
    assert marker.read_text() == "still here"
