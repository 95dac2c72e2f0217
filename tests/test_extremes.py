"""Numbers at the edge of what their type holds: the configuration refuses them, or the daemon runs with them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import pytest
from test_service import FakeModel

from netssmd import cli
from netssmd.codec.vocab import MOST
from netssmd.commands import generate
from netssmd.daemon.config import Config, Duration, Interval, Size, parse
from netssmd.daemon.service import serve
from netssmd.errors import ConfigError, NetssmdError

# What each kind of value is tried with.
EDGES: dict[object, list[str]] = {
    int: ["-1", "1", str(2**31), str(2**63), str(2**64), str(10**40)],
    float: ["-1.0", "5e-324", "1e-300", "1e300", "inf", "nan"],
    Duration: ['"0s"', '"1ns"', '"99999999999999999d"'],
    Size: ['"0B"', '"1B"', '"99999999999999999TB"'],
    Interval: ['"0.0000000000000001/d"', '"99999999999999999999999/s"', f'"{"9" * 400}/s"'],
}
# Where a number asks for work that shall not be done here, or for a port.
LEFT_OUT = {("engine", "threads"), ("metrics", "port")}
BASE = {
    "engine": {"pace": '"topspeed"', "threads": "1"},
    "traffic": {"concurrency": "2", "sessions": "3"},
    "metrics": {"port": "0"},
    "snapshot": {"enabled": "false"},
}


def kind_of(field: msgspec.structs.FieldInfo) -> list[str]:
    if isinstance(field.type, type):
        return EDGES.get(field.type, [])
    return [*EDGES[float], "[0.0, 1e308]"] if field.name in MOST else []


CASES = [
    (section.name, field.name, value)
    for section in msgspec.structs.fields(Config)
    for field in msgspec.structs.fields(section.type)
    for value in kind_of(field)
    if (section.name, field.name) not in LEFT_OUT
]


@pytest.mark.parametrize(("section", "key", "value"), CASES)
def test_what_the_configuration_accepts_the_daemon_runs_with(
    section: str, key: str, value: str, tmp_path: Path
) -> None:
    output = {"directory": f'"{tmp_path / "out"}"', "free_disk": '"0B"'}
    sections = {**BASE, "output": output}
    if section == "pacing":  # top speed knows none
        sections["engine"] = {"threads": "1"}
    sections[section] = {**sections.get(section, {}), key: value}
    config = None
    text = "".join(f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in keys.items()) for name, keys in sections.items())
    with contextlib.suppress(ConfigError):
        config = parse(text, "t.toml")
    if config is None:
        with pytest.raises(ConfigError, match=rf"t\.toml: .*{key}"):
            parse(text, "t.toml")
        return
    with contextlib.suppress(NetssmdError):  # said before the first packet: addresses that do not fit, no disk so large
        serve(config, FakeModel(), duration_ns=100_000_000)


@pytest.mark.parametrize("condition", MOST)
def test_generate_and_the_daemon_have_the_same_bounds(condition: str, tmp_path: Path) -> None:
    option = "--" + condition.partition("_")[0]
    found = next(parameter for parameter in generate.command.params if option in parameter.opts)
    assert found.type.max == MOST[condition]  # type: ignore[attr-defined]
    arguments = ["generate", "--label", "web", option, "1e300", "-o", str(tmp_path / "x.pcap")]
    assert cli.run(arguments) == 2
    with pytest.raises(ConfigError, match=f"traffic.{condition}"):
        parse(f"[traffic]\n{condition} = 1e300\n", "t.toml")
