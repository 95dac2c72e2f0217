"""What Suricata makes of traffic: a capture file or a live interface in, flows, protocols and complaints out.

In: a capture or an interface's name, and a folder for Suricata's files. Out: `Seen`: which application protocol it
named for how many flows, every event of its decoder, its stream engine and its application parsers by name, and its
counters.

The configuration is the smallest one that judges everything: checksums are verified always (``-k all``; a bad one
raises no event, it only counts in `stats`, and the packet is not looked at further), all application parsers are on,
`anomaly` names what is wrong and `flow` what was there. No rules are loaded: each rule of Suricata's own
``decoder-events.rules`` and ``stream-events.rules`` fires on an event of the same name, which `anomaly` writes anyhow.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

PROGRAM: Final = "suricata"
START_SECONDS: Final = 30
STOP_SECONDS: Final = 30
FILE_SECONDS: Final = 300

_PROTOCOLS: Final = (
    "bittorrent-dht", "dcerpc", "dhcp", "dns", "ftp", "http", "http2", "ike", "imap", "krb5", "mqtt", "nfs", "ntp",
    "pgsql", "quic", "rdp", "rfb", "sip", "smb", "smtp", "snmp", "ssh", "telnet", "tftp", "tls",
)  # fmt: skip

_CONFIG: Final = """%YAML 1.1
---
stats: {{enabled: yes, interval: 1}}
outputs:
  - eve-log:
      enabled: yes
      filetype: regular
      filename: eve.json
      types:
        - flow
        - tls: {{extended: yes}}
        - dns
        - http
        - stats: {{totals: yes, threads: no, deltas: no}}
        - anomaly: {{enabled: yes, types: {{decode: yes, stream: yes, applayer: yes}}}}
unix-command: {{enabled: no}}
vars: {{address-groups: {{HOME_NET: "any", EXTERNAL_NET: "any"}}}}
default-rule-path: {folder}
rule-files: []
threading: {{set-cpu-affinity: no}}
flow: {{memcap: 256mb, hash-size: 65536, prealloc: 1000}}
stream: {{memcap: 256mb, checksum-validation: yes, inline: no, reassembly: {{memcap: 512mb, depth: 1mb}}}}
host: {{hash-size: 4096, prealloc: 100, memcap: 32mb}}
defrag: {{memcap: 32mb, hash-size: 65536, trackers: 65535, max-frags: 65535, prealloc: yes, timeout: 60}}
app-layer:
  protocols:
{protocols}
af-packet:
  - {{interface: default, threads: 1, cluster-id: 99, cluster-type: cluster_flow, defrag: no, ring-size: 20000,
      checksum-checks: yes}}
"""


@dataclass(slots=True)
class Seen:
    """What Suricata wrote.

    Attributes:
        protocols: flows by transport and application protocol, such as ("TCP", "tls"); "failed" where it found none in
            the bytes, "" where there were no bytes to look at.
        flows: (transport, address, port, address, port) of each flow, as Suricata saw it opened.
        events: complaints by name, such as "decoder.ipv4.trunc_pkt", "stream.pkt_invalid_ack", "applayer.http....".
        stats: its counters, flat, such as "tcp.invalid_checksum".
        names: server names and host names that it read out of TLS and HTTP. answers: address -> names, from DNS.
    """

    protocols: Counter[tuple[str, str]] = field(default_factory=Counter)
    flows: list[tuple[str, str, int, str, int]] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    stats: dict[str, int] = field(default_factory=dict)
    names: list[tuple[str, str]] = field(default_factory=list)
    answers: list[tuple[str, str]] = field(default_factory=list)

    def events_of(self, kind: str) -> Counter[str]:
        """Complaints of one engine: "decoder", "stream" or "applayer"."""
        return Counter({name: count for name, count in self.events.items() if name.startswith(kind + ".")})

    @property
    def invalid_checksums(self) -> int:
        return sum(count for name, count in self.stats.items() if name.endswith("invalid_checksum"))


def write_config(folder: Path) -> Path:
    """Suricata's configuration for `folder`, where it will write too."""
    protocols = "".join(f"    {name}: {{enabled: yes}}\n" for name in _PROTOCOLS)
    path = folder / "suricata.yaml"
    path.write_text(_CONFIG.format(folder=folder, protocols=protocols.rstrip("\n")))
    return path


def watch_file(capture: Path, folder: Path) -> Seen:
    """Suricata's verdict on a capture. Raises RuntimeError if it could not read it."""
    config = write_config(folder)
    command = [PROGRAM, "-c", str(config), "-k", "all", "-l", str(folder), "--runmode", "single", "-r", str(capture)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=FILE_SECONDS, check=False)
    eve = folder / "eve.json"
    if result.returncode or not eve.exists():
        raise RuntimeError(f"suricata: {result.stderr.strip() or result.stdout.strip()}")
    return read_eve(eve)


@contextmanager
def watch_interface(name: str, folder: Path, namespace: str = "") -> Iterator[Path]:
    """Suricata on an interface (af-packet) while the block runs; the file of its events is complete afterwards.

    Raises RuntimeError if it does not begin to capture. `namespace`: of the network, empty for this one.
    """
    config = write_config(folder)
    within = ["ip", "netns", "exec", namespace] if namespace else []
    command = [*within, PROGRAM, "-c", str(config), "-k", "all", "-l", str(folder), f"--af-packet={name}"]
    with (folder / "suricata.out").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            _wait_started(process, folder / "suricata.out")
            yield folder / "eve.json"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_started(process: subprocess.Popen[bytes], out: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while b"Engine started" not in out.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"suricata does not capture: {out.read_text(errors='replace').strip()}")
        time.sleep(0.02)


def read_eve(path: Path) -> Seen:
    """What an eve.json says; a last line that is cut short is left out."""
    seen = Seen()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.endswith("\n"):
                _take(seen, json.loads(line))
    return seen


def _take(seen: Seen, event: dict[str, Any]) -> None:
    kind = event["event_type"]
    if kind == "flow":
        seen.protocols[event["proto"], event.get("app_proto", "")] += 1
        ports = event.get("src_port", 0), event.get("dest_port", 0)
        seen.flows.append((event["proto"], event.get("src_ip", ""), ports[0], event.get("dest_ip", ""), ports[1]))
    elif kind == "anomaly":
        anomaly = event["anomaly"]
        name = str(anomaly.get("event", anomaly.get("code", "unknown"))).lower()
        engine = anomaly["type"]
        if engine == "applayer":
            name = f"applayer.{event.get('app_proto', anomaly.get('app_proto', 'unknown'))}.{name}"
        seen.events[name if name.split(".")[0] in ("decoder", "stream", "applayer") else f"{engine}.{name}"] += 1
    elif kind == "stats":
        seen.stats = dict(_flat(event["stats"]))
    elif kind == "tls" and "sni" in event["tls"]:
        seen.names.append((event["dest_ip"], event["tls"]["sni"]))
    elif kind == "http" and "hostname" in event["http"]:
        seen.names.append((event["dest_ip"], event["http"]["hostname"]))
    elif kind == "dns" and event["dns"].get("type") == "answer":
        seen.answers += _answers(event["dns"])


def _answers(dns: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """(address, name that was asked for)"""
    for answer in dns.get("answers", ()):
        if answer.get("rrtype") in ("A", "AAAA"):
            yield answer["rdata"], dns["rrname"]


def _flat(stats: dict[str, Any], before: str = "") -> Iterator[tuple[str, int]]:
    """Suricata's nested counters, "decoder" left out of their names."""
    for key, value in stats.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}." if key != "decoder" or before else "")
        elif isinstance(value, int):
            yield before + key, value


def installed() -> bool:
    return shutil.which(PROGRAM) is not None
