"""The daemon's TOML: documented defaults equal real ones, every mistake gets a line that says how to put it right."""

from pathlib import Path

import msgspec
import pytest

from netssmd import tomlfile
from netssmd.daemon.config import Config, load, parse
from netssmd.errors import ConfigError

SHIPPED = Path(__file__).parent.parent / "config" / "netssmd.toml"


def test_shipped_file_documents_every_key_with_its_default() -> None:
    assert load(SHIPPED) == Config() == parse("", "x")
    text = SHIPPED.read_text()
    for section in msgspec.structs.fields(Config):
        body = text.partition(f"[{section.name}]")[2]
        for key in msgspec.structs.fields(section.type):
            assert f"\n{key.name} = " in body or f"[{section.name}.{key.name}]" in body, f"{section.name}.{key.name}"


def test_units_and_conditions() -> None:
    config = parse(
        '[output]\nslice_size = "10MB"\nslice_duration = "2h"\n[traffic]\narrivals = "30/min"\nrtt_ms = 20\n'
        'loss_pct = "unknown"\nlabels = {web = 3, dns = 1}',
        "x",
    )
    assert config.output.slice_size == 10_000_000 and config.output.slice_duration == 7_200_000_000_000
    assert config.traffic.arrivals == 2_000_000_000
    assert config.traffic.conditions() == {"rtt_ms": (20.0, 20.0), "rate_mbit": (18.0, 1000.0)}
    assert config.traffic.labels == {"web": 3.0, "dns": 1.0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[metrics]\nprot = 1", "t.toml: metrics.prot: unknown key; did you mean port?"),
        ("[metric]\nport = 1", "t.toml: metric: unknown key; did you mean metrics?"),
        ("[log]\nbasename = 1", "t.toml: log.basename: unknown key; did you mean output.basename?"),
        ("[log]\nzzz = 1", "t.toml: log.zzz: unknown key; known here: level, status_interval"),
        ("[metrics]\nport = '1'", 't.toml: metrics.port: found "1"; write a whole number, such as 9464'),
        ("[traffic]\nlabels = ['web']", 't.toml: traffic.labels: found ["web"]; write a table of a number'),
        ("[traffic.labels]\nweb = 'x'", 't.toml: traffic.labels.web: found "x"; write a number'),
        ("[traffic.labels]\nweb = inf", "t.toml: traffic.labels.web: found inf; write 0 to 1e+09"),
        ("[traffic]\nconcurrency = 100000000000000000000", "traffic.concurrency: found 1e+20; write 0 to 100000"),
        ("[traffic]\ntemperature = 1e9", "t.toml: traffic.temperature: found 1e+09; write 0 to 100"),
        ("[traffic.temperatures]\niat = -1", "t.toml: traffic.temperatures.iat: found -1; write 0 to 100"),
        ("[traffic]\nrtt_ms = '10ms'", 'found "10ms"; write a number, or a list in brackets of a number, or "unknown"'),
        ("[traffic]\nrtt_ms = inf", "t.toml: traffic.rtt_ms: found inf; write a number, or a range [low, high]"),
        ("[traffic]\nloss_pct = 500", "t.toml: traffic.loss_pct: found 500.0; write percents up to 100"),
        ("engine = 3", "t.toml: engine: found 3; write a table of keys"),
        ("[output]\nledger = 1", "t.toml: output.ledger: found 1; write true or false"),
        ("[output]\ndirectory = ''", "t.toml: output.directory: found ''; write the path of a folder"),
        ('[output]\nbasename = "a\\u0000b"', "plain file name"),
        ("[metrics]\nport = 70000", "t.toml: metrics.port: found 70000; write a port up to 65535"),
        ("[output]\nslice_size = 64", "t.toml: output.slice_size: 64 carries no unit"),
        ("[output]\nslice_size = '10 parsecs'", "t.toml: output.slice_size: '10 parsecs' is not a size"),
        ("[traffic]\narrivals = '30'", "write it like 30/min"),
        ("[traffic]\nconcurrency = -1", "t.toml: traffic.concurrency: found -1; write 0 to 100000"),
        ("[traffic]\nrtt_ms = [9, 5]", "a range [low, high]"),
        ("[traffic.labels]\nweb = 0", "only weights of 0"),
        ("[engine]\nbackend = 'gpu'", 'engine.backend: found "gpu"; write one of "auto", "cpu", "torch", "cuda"'),
        ("[engine]\nsampling = 'papr'", 'engine.sampling: found "papr"; write "plain" or "paper"'),
        ("[bytes]\nspeculate = 1", "bytes.speculate: found 1; write true or false"),
        ("[output]\nbasename = '../x'", "plain file name"),
        ("[output\n", "t.toml: not TOML"),
    ],
)
def test_mistakes(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "t.toml")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_all_mistakes_at_once() -> None:
    text = """
metric = 1
[engine]
threads = -1
backend = "gpu"
lookahead = "1ms"
[traffic]
concurrency = -1
session_duration = 5
labels = { web = "x", dns = -1, ssh = 1 }
rtt_ms = [9, 5]
[output]
port = 3
ledger = true
"""
    with pytest.raises(ConfigError) as caught:
        parse(text, "t.toml")
    assert str(caught.value).splitlines() == [
        "t.toml: metric: unknown key; did you mean metrics?",
        't.toml: engine.backend: found "gpu"; write one of "auto", "cpu", "torch", "cuda"',
        "t.toml: engine.threads: found -1; write 0 to 1024",
        "t.toml: engine.lookahead: found 1ms; write 200ms or more",
        't.toml: traffic.session_duration: 5 carries no unit; write it as text, such as "60s"',
        't.toml: traffic.labels.web: found "x"; write a number',
        "t.toml: traffic.concurrency: found -1; write 0 to 100000",
        "t.toml: traffic.rtt_ms: found (9.0, 5.0); write a number, or a range [low, high] with 0 <= low <= high",
        "t.toml: output.port: unknown key; did you mean metrics.port or mqtt.port?",
    ]


def test_what_only_a_combination_shows_names_the_section() -> None:
    class Pair(msgspec.Struct, frozen=True):
        low: int = 0
        high: int = 10

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("swap low and high")

    class File(msgspec.Struct):
        pair: Pair = Pair()

    both = tomlfile.parse("[pair]\nlow = 20\nhigh = 30", "t", File)  # either alone would be refused
    assert both.pair == Pair(20, 30)
    with pytest.raises(ConfigError, match=r"^t: pair\.low: swap low and high$"):
        tomlfile.parse("[pair]\nlow = 20\nhigh = 15", "t", File)
    with pytest.raises(ConfigError, match=r"^t: pair: swap low and high$"):
        tomlfile.parse("[pair]\nlow = 9\nhigh = 5", "t", File)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.toml")


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "latin.toml"
    file.write_bytes(b'[output]\ndirectory = "caf\xe9"\n')
    with pytest.raises(ConfigError, match="byte 25 is not UTF-8"):
        load(file)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            '[tap]\nname = "lab0"\nserver_name = "lab0"',
            ["t.toml: tap.server_name: found 'lab0' like name; write the name of a second device"],
        ),
        ('[tap]\nserver_name = "lab0"', ["t.toml: tap.server_name: server_name stands without name"]),
        ('[mqtt]\nuser = "u"\npassword_file = "f"\nport = -1', ["t.toml: mqtt.port: found -1"]),
        ('[mqtt]\npassword_file = "f"\nport = -1', ["t.toml: mqtt.port: found -1", "t.toml: mqtt.password_file: "]),
    ],
)
def test_what_two_keys_do_to_each_other_is_told_as_it_is(text: str, lines: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "t.toml")
    told = sorted(str(caught.value).splitlines())
    assert len(told) == len(lines)
    for found, begin in zip(told, sorted(lines)):
        assert found.startswith(begin)
