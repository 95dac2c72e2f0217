"""`netssmd run`: the daemon in the foreground.

In: a TOML file (config/netssmd.toml documents it) or nothing, and a few overrides. Out: captures and ledgers in a
folder, metrics on a port, and on stderr what it does. Without a file: the embedded model, all its labels, slices of 60
s or 64 MB in a ring of 60 in ./captures.
"""

import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netssmd.commands.rates import chosen_rate, rate_options
from netssmd.errors import UsageError
from netssmd.units import parse_duration_ns

if TYPE_CHECKING:
    from netssmd.daemon.config import Config
    from netssmd.daemon.service import Service
    from netssmd.engine.opening import OpenModel
    from netssmd.output.rate import Rate

SECOND = 1_000_000_000
PLAIN_STATUS_NS = 60 * SECOND  # between status lines where stderr is no terminal


@click.command("run")
@click.option("-c", "--config", "path", type=click.Path(path_type=Path), help="TOML file; see config/netssmd.toml.")
@click.option("--duration", metavar="TIME", default="", help="Stop after this time: 20, 20s, 5min. Default: run on.")
@click.option("--seed", type=click.IntRange(1), help="Same seed, same sessions.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for captures and ledgers.")
@click.option("--model", help="Checkpoint folder, instead of the embedded model.")
@rate_options
@click.option("--fresh", is_flag=True, help="Begin anew, whatever sessions an earlier run has left.")
@click.option("--check-config", is_flag=True, help="Check the file and the model it names, and end.")
def command(
    path: Path | None, duration: str, seed: int | None, output: Path | None, model: str | None, pps: float | None,
    mbps: float | None, multiplier: float | None, topspeed: bool, fresh: bool, check_config: bool,
) -> None:  # fmt: skip
    """Run the daemon in the foreground: live sessions into rotating captures."""
    from netssmd.daemon.config import Config, load


    rate = chosen_rate(pps, mbps, multiplier, topspeed)

    def read() -> Config:
        return _override(load(path) if path else Config(), seed, output, model, rate)

    config = read()
    duration_ns = parse_seconds(duration)
    if check_config:
        _open(config, path)
        click.echo(f"{path or 'defaults'}: ok", err=True)
        return
    level = config.log.level.upper()
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s")
    from netssmd.daemon.notify import patience
    from netssmd.daemon.retarget import require_fit
    from netssmd.daemon.service import serve

    status = _StatusLine()
    starting = contextlib.ExitStack()

    def reread() -> Config:
        changed = read()
        require_fit(changed, opened, str(path or "defaults"))
        return changed

    def ready(service: "Service") -> None:
        starting.close()
        _introduce(service, duration_ns)

    with starting:
        starting.enter_context(patience())
        opened = _open(config, path)
        report = serve(config, opened, duration_ns, on_ready=ready, on_status=status.show, load=reread, fresh=fresh)
    status.clear()
    for line in report.lines():
        _say(line)
    if report.dropped:
        _say(f"Dropped: {report.dropped} packets, for want of disk space")
    for tap, drops in report.taps.items():
        if drops:
            reasons = ", ".join(f"{count} {reason}" for reason, count in drops.items())
            _say(f"Dropped at TAP {tap}: {sum(drops.values())} packets ({reasons})")


def _say(text: str, nl: bool = True) -> None:
    """To stderr. A terminal that is gone, or a full disk under a log, does not end a daemon."""
    with contextlib.suppress(OSError):
        click.echo(text, nl=nl, err=True)


def parse_seconds(text: str) -> int:
    """Nanoseconds of "20" (seconds) or of a duration with its unit; 0 for nothing."""
    if not text:
        return 0
    plain = text.replace(".", "", 1).isdigit()
    value = parse_duration_ns(text + "s" if plain else text)
    if value <= 0:
        raise UsageError(f"--duration {text}: write a time above 0, such as 20s")
    return value


def _override(
    config: "Config", seed: int | None, output: Path | None, model: str | None, rate: "Rate | None"
) -> "Config":
    from msgspec.structs import replace

    engine: dict[str, Any] = {"model": model} if model else {}
    rates: dict[str, float] = {}
    if rate:
        engine["pace"] = "topspeed" if rate.kind == "topspeed" else "live"
        rates = {"pps": 0.0, "mbps": 0.0, "multiplier": 1.0}
        if rate.kind != "topspeed":
            rates[rate.kind] = float(rate.value)
    config = replace(config, engine=replace(config.engine, **engine), pacing=replace(config.pacing, **rates))
    if seed:
        config = replace(config, traffic=replace(config.traffic, seed=seed))
    if output:
        config = replace(config, output=replace(config.output, directory=str(output)))
    return config


def _open(config: "Config", path: Path | None) -> "OpenModel":
    """The model, with everything in the configuration that only the model can judge."""
    from netssmd.daemon.retarget import require_fit
    from netssmd.engine.byte_options import ByteOptions, gaps_of_capture
    from netssmd.engine.opening import open_model

    engine, special = config.engine, config.bytes
    gaps_ns = gaps_of_capture(Path(special.timing)) if special.timing else ()
    drawn = config.drawn()
    options = ByteOptions(gaps_ns, drawn.penalty, special.repetition_window)
    opened = open_model(engine.model, engine.backend, drawn.top_k, drawn.top_p, engine.weights, options)
    require_fit(config, opened, str(path) if path else "defaults")
    return opened


def _introduce(service: "Service", duration_ns: int) -> None:
    from netssmd.daemon import build

    config = service.config
    output, traffic = config.output, config.traffic
    labels = service.mix.names
    shown = ", ".join(labels) if len(labels) <= 8 else f"{len(labels)} labels"
    arrivals = f"{SECOND / traffic.arrivals:g} sessions/s, at most " if traffic.arrivals else ""
    slices = [f"{output.slice_duration / SECOND:g} s"] if output.slice_duration else []
    slices += [f"{output.slice_size / 1e6:g} MB"] if output.slice_size else []
    lines = [
        f"netssmd {service.build_info()[0]}: model {service.model.name} ({service.model.hash[:12]}), "
        f"backend {service.backend_name}, {service.threads} engine thread{'s' * (service.threads > 1)}, "
        f"seed {service.seed}",
        f"sessions: {arrivals}{traffic.concurrency} at once, of {shown}",
        f"files:    {Path(output.directory).resolve()}/{output.basename}_*.pcap"
        f"{', a slice each ' + ' or '.join(slices) if slices else ''}"
        f"{f', the last {output.ring_files} kept' if output.ring_files else ''}"
        f"{', ledgers beside them' * output.ledger}"
        if output.files
        else "files:    off",
        *_taps(service),
        f"metrics:  {service.metrics.url}" if service.metrics else "metrics:  off",
        f"control:  {service.socket.path if service.socket else 'off'}",
        f"pace:     {build.pace(config)}, {f'for {duration_ns / SECOND:g} s' if duration_ns else 'until Ctrl-C'}",
    ]
    for line in lines:
        _say(line)


def _taps(service: "Service") -> list[str]:
    ports = service.tap.ports if service.tap else []
    sides = " (clients' side)", " (servers' side)"
    return [
        f"TAP:      {port.name}{side if len(ports) > 1 else ''}{', made for this run' if port.made else ''}"
        f"{'' if port.up else ', down: its packets are dropped'}"
        for port, side in zip(ports, sides)
    ]


class _StatusLine:
    """On a terminal one line that is written over; elsewhere a log line a minute."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = False
        self._logged_ns = time.monotonic_ns()

    def show(self, service: "Service") -> None:
        from netssmd.daemon.status import line

        if self._terminal:
            _say(f"\r\x1b[K{line(service.status())}", nl=False)
            self._shown = True
        elif time.monotonic_ns() - self._logged_ns >= PLAIN_STATUS_NS:
            self._logged_ns = time.monotonic_ns()
            logging.getLogger("netssmd").info(line(service.status()))

    def clear(self) -> None:
        """Leave the terminal on a new line."""
        if self._shown:
            _say("\r\x1b[K", nl=False)
