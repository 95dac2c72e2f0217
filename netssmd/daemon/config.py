"""The daemon's configuration: a TOML file in, a checked `Config` out.

One Struct per section; a key is one line here and one in config/netssmd.toml, which documents it (a test holds the two
equal). Values carry units ("10MB", "60s"). Raises ConfigError: file, key, what was found, what would be right.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

import msgspec

from netssmd import tomlfile
from netssmd.codec.vocab import MOST, PACKETS
from netssmd.daemon.events import EVENTS
from netssmd.daemon.topics import NAME
from netssmd.engine.byte_options import PRESETS, Preset
from netssmd.errors import NetssmdError
from netssmd.output.ledger import ATTACKS
from netssmd.packet.mutants import LIVE, no_such_defect
from netssmd.packet.pcap import MAX_SNAPLEN
from netssmd.units import parse_duration_ns, parse_size_bytes


class Duration(int):
    """Nanoseconds, written like "60s"."""


class Size(int):
    """Bytes, written like "64MB"."""


class Interval(int):
    """Mean nanoseconds between events, written as their rate: "30/min"."""


PLAIN = Preset(1.0, 0, 1.0, 1.0)  # the defaults of the keys that say how tokens are drawn
Condition = float | tuple[float, float] | Literal["unknown"]
Extent = int | tuple[int, int] | Literal["learned", "unknown"]


TAP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
MOST_DURATION_NS = 36_500 * 86_400 * 10**9
MOST_GAP_NS = 1000 * 86_400 * 10**9  # mean time between arrivals
MOST_SESSIONS = 100_000  # at once: far beyond any memory, and still a number that arrays can have


def _at_least(name: str, value: float, low: float) -> None:
    if not low <= value < math.inf:
        raise ValueError(f"{name} is {value:g}; write {low:g} or more")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value:g}; write {low:g} to {high:g}")


class _Section(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    pass


class Engine(_Section, frozen=True):
    """Which model, on what, how far ahead."""

    model: str = "embedded"
    backend: Literal["auto", "cpu", "torch", "cuda"] = "auto"
    weights: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    threads: int = 0
    group: int = 16
    slots: int = 0
    pace: Literal["live", "topspeed"] = "live"
    lookahead: Duration = Duration(2_000_000_000)
    queue_packets: int = 65_536
    sampling: Literal["plain", "paper"] = "plain"
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        _between("threads", self.threads, 0, 1024)
        _between("group", self.group, 1, MOST_SESSIONS)
        _between("slots", self.slots, 0, 2 * MOST_SESSIONS)
        _between("queue_packets", self.queue_packets, 64, 10_000_000)
        _between("top_k", self.top_k, 0, 65_536)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; write a number above 0 and up to 1")
        if self.lookahead < 200_000_000:
            raise ValueError(f"lookahead is {self.lookahead / 1e6:g}ms; write 200ms or more")
        if self.lookahead > 600_000_000_000:
            raise ValueError(f"lookahead is {self.lookahead / 1e9:g}s; write 600s or less")


class Traffic(_Section, frozen=True):
    """Which sessions, how many, how long."""

    seed: int = 0
    concurrency: int = 32
    arrivals: Interval = Interval(0)
    ramp: Duration = Duration(5_000_000_000)
    sessions: int = 0
    session_packets: int = 0
    session_duration: Duration = Duration(300_000_000_000)
    packets_per_second: float = 0.0
    temperature: float = 1.0
    attacks: tuple[str, ...] = ATTACKS
    labels: dict[str, float] = {}
    temperatures: dict[str, float] = {}
    rtt_ms: Condition = (5.0, 120.0)
    rate_mbit: Condition = (18.0, 1000.0)
    loss_pct: Condition = (0.0, 2.0)
    extent: Extent = "learned"

    def __post_init__(self) -> None:
        _at_least("seed", self.seed, 0)
        _between("concurrency", self.concurrency, 0, MOST_SESSIONS)
        for name in ("sessions", "session_packets", "packets_per_second"):
            _at_least(name, getattr(self, name), 0)
        if 0 < self.packets_per_second < 0.001:
            raise ValueError(f"packets_per_second is {self.packets_per_second:g}; write 0 for no cap, or 0.001 or more")
        for key, value in self.labels.items():
            _between(f"labels.{key}", value, 0, 1e9)
        for name, value in (("temperature", self.temperature), *self.temperatures.items()):
            _between(name if name == "temperature" else f"temperatures.{name}", value, 0, 100)
        if self.labels and not any(self.labels.values()):
            raise ValueError("labels has only weights of 0; give one label a weight above 0, or leave the table out")
        for name in ("rtt_ms", "rate_mbit", "loss_pct"):
            value = getattr(self, name)
            if value != "unknown":
                low, high = _bounds(value)
                if not 0 <= low <= high < math.inf:
                    raise ValueError(f"{name} is {value}; write a number, or a range [low, high] with 0 <= low <= high")
                if high > MOST[name] and name != "loss_pct":
                    raise ValueError(f"{name} is {value}; write {MOST[name]:g} or less")
                if name == "loss_pct" and high > 100:
                    raise ValueError(f"loss_pct is {value}; write percents up to 100")

        if not isinstance(self.extent, str):
            low, high = _bounds(self.extent)
            if not 1 <= low <= high <= 1 << 32:
                raise ValueError("extent is packets, from 1 to 2^32, or a range [low, high] of them")

    def conditions(self) -> dict[str, tuple[float, float]]:
        """Ranges by condition, those that the model is not told left out; and of the packets that were ordered."""
        ranges = {}
        if self.extent != "learned":
            low, high = _bounds(0 if self.extent == "unknown" else self.extent)
            ranges[PACKETS] = float(low), float(high)
        for name in ("rtt_ms", "rate_mbit", "loss_pct"):
            value = getattr(self, name)
            if value != "unknown":
                low, high = _bounds(value)
                ranges[name] = float(low), float(high)
        return ranges


def _bounds(value: float | tuple[float, float]) -> tuple[float, float]:
    """Of a number or a range: the least and the most."""
    return value if isinstance(value, tuple) else (value, value)


class Bytes(_Section, frozen=True):
    """What only models of the byte codec take."""

    timing: str = ""
    repetition_penalty: float = 1.0
    repetition_window: int = 0
    speculate: bool = True

    def __post_init__(self) -> None:
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; write a number from 0.01 to 100; 1 is no penalty"
            )
        _at_least("repetition_window", self.repetition_window, 0)


class LabelAddresses(_Section, frozen=True):
    """What is different for the labels of a pattern; None: as for all others."""

    clients: tuple[str, ...] | None = None
    servers: tuple[str, ...] | None = None
    hosts: int | None = None
    services: int | None = None
    mac_prefix: str | None = None
    gateway: str | None = None
    vlan: int | None = None


class Addresses(_Section, frozen=True):
    """Who the hosts are."""

    clients: tuple[str, ...] = ("198.18.0.0/16", "2001:2::/49")
    servers: tuple[str, ...] = ("198.19.0.0/16", "2001:2:0:8000::/49")
    hosts: int = 250
    services: int = 1000
    mac_prefix: str = "02:4e"
    gateway: str = "auto"
    vlan: int = 0
    domain: str = "test"
    names: str = ""
    labels: dict[str, LabelAddresses] = {}


class Output(_Section, frozen=True):
    """Where packets go."""

    files: bool = True
    directory: str = "captures"
    basename: str = "netssmd"
    slice_duration: Duration = Duration(60_000_000_000)
    slice_size: Size = Size(64_000_000)
    slice_packets: int = 0
    ring_files: int = 60
    free_disk: Size = Size(200_000_000)
    snaplen: int = 0
    payload: Literal["zero", "random", "pattern", "protocol"] = "protocol"
    mark: Literal["none", "reserved-bit", "oui"] = "none"
    ledger: bool = True

    def __post_init__(self) -> None:
        for name in ("slice_packets", "ring_files", "snaplen"):
            _at_least(name, getattr(self, name), 0)
        if not self.directory or "\0" in self.directory:
            raise ValueError(f"directory is {self.directory!r}; write the path of a folder, such as captures")
        if not re.fullmatch(r"[^./\0][^/\0]*", self.basename) or len(self.basename.encode()) > 200:
            raise ValueError(
                f"basename is {self.basename!r}; write a plain file name without / and without a leading dot"
            )
        if self.snaplen and not 64 <= self.snaplen <= MAX_SNAPLEN:
            raise ValueError(f"snaplen is {self.snaplen}; write 0 for whole frames, or 64 to {MAX_SNAPLEN}")


class Compliance(_Section, frozen=True):
    """What is watched, and what is done about it."""

    check: bool = True
    mode: Literal["observe", "guide"] = "observe"
    anomalies: dict[str, float] = {}

    def __post_init__(self) -> None:
        if self.mode == "guide" and not self.check:
            raise ValueError('check is false and mode is "guide"; the guide goes by the checker: leave check out')
        for name, rate in self.anomalies.items():
            if name not in LIVE:
                raise ValueError(f"anomalies.{name}: {no_such_defect(name)}")
            _between(f"anomalies.{name}", rate, 0, 1)


class Tap(_Section, frozen=True):
    """The device that packets leave on, or the two sides of an in-line device."""

    name: str = ""
    server_name: str = ""
    netns: str = ""
    create: bool = True
    mtu: int = 1500
    when_down: Literal["drop", "wait"] = "drop"

    def __post_init__(self) -> None:
        for key, name in (("name", self.name), ("server_name", self.server_name)):
            if name and not TAP_NAME.fullmatch(name):
                raise ValueError(f"{key} is {name!r}; write the name of a TAP device: up to 15 letters, digits, _ - .")
        if self.server_name and self.server_name == self.name:
            raise ValueError(f"server_name is {self.server_name!r} like name; write the name of a second device")
        if self.server_name and not self.name:
            raise ValueError("server_name stands without name; write the client side's device into name")
        _between("mtu", self.mtu, 576, 65_521)

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are set, the client's side first."""
        return tuple(name for name in (self.name, self.server_name) if name)


class Pacing(_Section, frozen=True):
    """How fast, and what happens to what is late."""

    pps: float = 0.0
    mbps: float = 0.0
    multiplier: float = 1.0
    deficit: Literal["stretch", "drop"] = "stretch"
    late: Duration = Duration(200_000_000)
    catch_up: Duration = Duration(100_000_000)
    realtime: int = 10

    def __post_init__(self) -> None:
        for name in ("pps", "mbps"):
            _at_least(name, getattr(self, name), 0)
        _between("multiplier", self.multiplier, 0.001, 1000)
        _between("realtime", self.realtime, 0, 99)
        if len(self.rates) > 1:
            raise ValueError(f"{' and '.join(self.rates)} are set; keep one of pps, mbps and multiplier")

    @property
    def rates(self) -> list[str]:
        """Those of the three that are set."""
        plain = {"pps": 0.0, "mbps": 0.0, "multiplier": 1.0}
        return [name for name, value in plain.items() if getattr(self, name) != value]


class Metrics(_Section, frozen=True):
    """Where Prometheus finds the counters."""

    address: str = "127.0.0.1"
    port: int = 9464

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; write a port up to 65535, or 0 for no metrics")


class Control(_Section, frozen=True):
    """The unix socket of `netssmd ctl`."""

    socket: str = ""
    group: str = ""


class Snapshot(_Section, frozen=True):
    """What survives the daemon."""

    enabled: bool = True
    interval: Duration = Duration(60_000_000_000)
    directory: str = ""
    keep: int = 2
    max_size: Size = Size(4_000_000_000)

    def __post_init__(self) -> None:
        _between("keep", self.keep, 1, 1000)
        if 0 < self.interval < 100_000_000:
            raise ValueError(f"interval is {self.interval / 1e6:g}ms; write 100ms or more, or 0s for TERM only")
        if "\0" in self.directory:
            raise ValueError(f"directory is {self.directory!r}; write the path of a folder, or leave it empty")


class Mqtt(_Section, frozen=True):
    """The broker through which a fleet is controlled."""

    host: str = ""
    port: int = 0
    tls: bool = False
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    user: str = ""
    password_file: str = ""
    prefix: str = "netssmd"
    node: str = ""
    group: str = ""
    keepalive: Duration = Duration(20_000_000_000)
    status_interval: Duration = Duration(5_000_000_000)
    events: tuple[str, ...] = tuple(EVENTS)

    def __post_init__(self) -> None:
        _between("port", self.port, 0, 65535)
        for name in ("prefix", "node", "group"):
            value = getattr(self, name)
            if not NAME.fullmatch(value) and (value or name == "prefix"):
                raise ValueError(f"{name} is {value!r}; write up to 64 letters, digits, dots, - and _")
        if self.key_file and not self.certificate_file:
            raise ValueError("key_file belongs to a certificate_file; write that too")
        if not self.tls and (self.ca_file or self.certificate_file):
            raise ValueError("ca_file and certificate_file need tls = true")
        if self.password_file and not self.user:
            raise ValueError("password_file belongs to a user; write that too")
        for name in ("keepalive", "status_interval"):
            if not 1_000_000_000 <= getattr(self, name) <= 3_600_000_000_000:
                raise ValueError(f"{name} is {getattr(self, name) / 1e9:g}s; write 1s to 1h")
        for kind in self.events:
            if kind not in EVENTS:
                raise ValueError(f"events is {kind!r}; write events of {', '.join(EVENTS)}")


class Log(_Section, frozen=True):
    """What the daemon says about itself."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    status_interval: Duration = Duration(5_000_000_000)


class Config(_Section, frozen=True):
    """The whole file."""

    engine: Engine = Engine()
    traffic: Traffic = Traffic()
    bytes: Bytes = Bytes()
    addresses: Addresses = Addresses()
    output: Output = Output()
    compliance: Compliance = Compliance()
    tap: Tap = Tap()
    snapshot: Snapshot = Snapshot()
    pacing: Pacing = Pacing()
    metrics: Metrics = Metrics()
    control: Control = Control()
    mqtt: Mqtt = Mqtt()
    log: Log = Log()

    def __post_init__(self) -> None:
        if not self.output.files and not self.tap.name:
            raise ValueError("output.files is false and tap.name empty; packets need a place to go to: set one of them")
        if self.engine.pace == "topspeed" and self.pacing.rates:
            raise ValueError(f'engine.pace is "topspeed" and pacing.{self.pacing.rates[0]} set; keep one of them')

    def drawn(self) -> Preset:
        """How tokens are drawn: what the keys say, and the preset's values for those that are at their defaults."""
        own = Preset(self.traffic.temperature, self.engine.top_k, self.engine.top_p, self.bytes.repetition_penalty)
        preset = PRESETS.get(self.engine.sampling, own)
        told = {name: value for name, value in own._asdict().items() if value != getattr(PLAIN, name)}
        return preset._replace(**told)


def load(path: Path) -> Config:
    """Read and check a file."""
    return tomlfile.load(path, Config, _quantity)


def parse(text: str, where: str) -> Config:
    """Check TOML text; `where` names it in errors."""
    return tomlfile.parse(text, where, Config, _quantity)


def _quantity(kind: type, value: object) -> object:
    """A unit type from its text."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} carries no unit; write it as text, such as {EXAMPLES[kind]}")
    if kind is Interval:
        return Interval(_interval_ns(value))
    try:
        number = parse_duration_ns(value) if kind is Duration else parse_size_bytes(value)
    except NetssmdError as error:
        raise ValueError(str(error)) from None
    if kind is Duration and number > MOST_DURATION_NS:
        raise ValueError(f"{value!r} is more than 100 years")
    return kind(number)


EXAMPLES: dict[type, str] = {Duration: '"60s"', Size: '"64MB"', Interval: '"30/min"'}
PER_NS = {"s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}


def _interval_ns(text: str) -> int:
    """ "30/min" -> 2_000_000_000; "0/s" -> 0 (no process)."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*/\s*(s|min|h|d)\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is not a rate of arrivals: write it like 30/min, 0.5/s or 2/h")
    number = float(match[1])
    if number == math.inf:
        raise ValueError(f"{text[:40]!r}... is no rate of arrivals that could be kept")
    if number and PER_NS[match[2]] / number > MOST_GAP_NS:
        raise ValueError(f"{text!r} is less than one arrival in 1000 days; write 0/s for none")
    return max(round(PER_NS[match[2]] / number), 1) if number else 0
