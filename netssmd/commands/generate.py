"""`netssmd generate`: sessions once, into one capture or a folder of captures.

In: labels, counts, conditions, a seed, perhaps the beginning of a real capture. Out: FILE.pcap, all sessions merged by
time, or DIR/ with `<label>-<n>.pcap` for each and a manifest.csv shaped like those of the training sets; ground truth
(JSON lines) beside each capture. Same seed, same bytes, whatever the threads and the batch. Files appear under their
names only when complete.
"""

from __future__ import annotations

import csv
import math
import os
import secrets
import shutil
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from netssmd.commands.anomalies import chosen_anomalies, planted_line
from netssmd.commands.byte_options import Asked, with_byte_options
from netssmd.commands.rates import chosen_rate, rate_options
from netssmd.errors import OutputError, UsageError

if TYPE_CHECKING:
    from netssmd.engine.guide import Guide
    from netssmd.engine.opening import OpenModel, Prompt
    from netssmd.engine.plan import AddressPlan
    from netssmd.engine.session import OutPacket, Session, SessionInfo
    from netssmd.output.ledger import Ledger, SessionMeta
    from netssmd.output.rate import Rate
    from netssmd.output.spool import Spooled
    from netssmd.packet.pcap import Packet

SECOND = 1_000_000_000
MANIFEST = ("file", "label", "category", "split", "packets", "flows", "duration_s", "rate_mbit", "rtt_ms", "loss_pct",
            "capped", "seed")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a session: a row of the manifest."""

    info: SessionInfo
    packets: int
    flows: int
    reason: str
    malformed: dict[str, int]  # packets that were none, by reason; byte codec only
    guide: Guide | None = None
    planted: dict[str, int] = field(default_factory=dict)

    @property
    def capped(self) -> bool:
        """It did not end by itself."""
        return self.reason != "end"


class Finite(click.FloatRange):
    """A number in a range; nan and inf are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number that can be.", param, ctx)
        return number


@click.command("generate")
@click.option("--label", "labels", multiple=True, required=True, help="Label, repeatable; 'all' for all of the model.")
@click.option("--sessions", type=click.IntRange(1), default=1, show_default=True, help="Sessions of each label.")
@click.option("--packets", type=click.IntRange(1), help="Cut each session here. Default: its own end.")
@click.option("--max-packets", type=click.IntRange(1), default=20_000, show_default=True,
              help="Cut sessions that do not end by themselves.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="Same seed, same bytes. Default: a new one, told on stderr.")
@click.option("--extent", type=click.IntRange(1, 1 << 32), metavar="PACKETS",
              help="Told to the model, which ends its sessions after about so many. Default: as learned.")  # fmt: skip
@click.option("--rtt", type=Finite(0, 60_000), metavar="MS", help="Round-trip time. Default: drawn per session.")
@click.option("--rate", type=Finite(0, 1_000_000), metavar="MBIT", help="Rate of the access link. Default: drawn.")
@click.option("--loss", type=Finite(0, 100), metavar="PCT", help="Packet loss. Default: drawn.")
@click.option("--prompt", type=click.Path(path_type=Path), metavar="FILE", help="Go on from the start of this capture.")
@click.option("--prompt-packets", type=click.IntRange(1), default=100, show_default=True, help="Its first packets.")
@click.option("--prompt-hosts", type=click.Choice(["keep", "remap"]), default="remap", show_default=True,
              help="Whether its hosts stay who they are.")  # fmt: skip
@click.option("-t", "--temperature", type=Finite(0, 100),
              help="Of sampling, times what the model asks for its fields. Default: 1, or the preset's.")  # fmt: skip
@click.option(
    "--start", metavar="TIME", default="2026-01-01T00:00:00", show_default=True, help="Of the first session, UTC."
)
@click.option(
    "--spacing", metavar="TIME", default="1s", show_default=True, help="From one session's start to the next."
)
@click.option("--snaplen", type=click.IntRange(64, 262_144), help="Keep so many bytes of each frame. Default: all.")
@click.option("--payload", type=click.Choice(["zero", "random", "pattern", "protocol"]), default="protocol",
              show_default=True, help="What fills packets behind their headers.")  # fmt: skip
@click.option("--mark", type=click.Choice(["none", "reserved-bit", "oui"]), default="none", show_default=True,
              help="Tells the frames from real ones; `netssmd untaint` clears it.")  # fmt: skip
@click.option("--addresses", type=click.Path(path_type=Path), metavar="FILE.toml",
              help="A daemon's configuration whose [addresses] count here too.")  # fmt: skip
@click.option("--guide", is_flag=True, help="Forbid tokens that the state of a TCP flow forbids; says how often.")
@click.option("--anomaly", "anomalies", multiple=True, metavar="DEFECT=SHARE",
              help="Plant a defect in this share of the packets that can have it; repeatable.")  # fmt: skip
@click.option("--model", default="embedded", help="Checkpoint folder. Default: the embedded model.")
@click.option("--backend", type=click.Choice(["auto", "cpu", "torch", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Engine threads. Default: one a core.")
@rate_options
@with_byte_options
@click.option("--overwrite", is_flag=True, help="Replace the captures of an older run in a folder.")
@click.option("-o", "--output", required=True, metavar="FILE.pcap|DIR/", help="One capture, or a folder of captures.")
def command(
    labels: tuple[str, ...], sessions: int, packets: int | None, max_packets: int, seed: int | None,
    extent: int | None, rtt: float | None, rate: float | None, loss: float | None, prompt: Path | None,
    prompt_packets: int, prompt_hosts: str,
    temperature: float | None, start: str, spacing: str, snaplen: int | None, payload: str, mark: str,
    addresses: Path | None, guide: bool, anomalies: tuple[str, ...], model: str, backend: str, threads: int | None,
    pps: float | None, mbps: float | None, multiplier: float | None, topspeed: bool, overwrite: bool, output: str,
    **byte: Any,
) -> None:  # fmt: skip
    """Generate sessions once, into a capture file or a folder."""
    from netssmd.codec.vocab import PACKETS
    from netssmd.engine.mix import CONDITIONS
    from netssmd.units import parse_duration_ns

    planted = chosen_anomalies(anomalies)
    target = Target.of(output, overwrite)
    asked = Asked(**byte)
    opened = asked.open(model, backend)
    names = opened.labels if "all" in labels else tuple(dict.fromkeys(labels))
    opened.check_labels(names)
    if extent is not None:
        opened.check_extent(names)
    given = {"rtt_ms": rtt, "rate_mbit": rate, "loss_pct": loss}
    seed = secrets.randbits(32) if seed is None else seed
    job = Job(
        opened,
        names,
        sessions,
        seed,
        plan_for(addresses, seed, mark),
        {name: CONDITIONS[name][:2] if value is None else (value, value) for name, value in given.items()}
        | ({} if extent is None else {PACKETS: (float(extent), float(extent))}),
        packets or max_packets,
        asked.tokens or 0,
        asked.temperature(temperature),
        snaplen or 0,
        payload,
        _start_ns(start),
        parse_duration_ns(spacing),
        read_prompt(opened, prompt, prompt_packets, asked.prompt_last) if prompt else asked.text_prompt(opened, names),
        prompt_hosts == "keep",
        chosen_rate(pps, mbps, multiplier, topspeed),
        guide,
        planted,
        asked.speculate,
        asked.open_then(opened, backend),
    )
    outcomes = target.write(job, threads or len(os.sched_getaffinity(0)))
    _tell(job, outcomes, output, packets is None and asked.tokens is None)
    if job.rate:
        from netssmd.output.rate import actual_lines

        for line in actual_lines(target.sent.packets, target.sent.bytes, sum(target.sent.spans_ns) / SECOND):
            click.echo(line, err=True)


def plan_for(file: Path | None, seed: int, mark: str) -> AddressPlan:
    """The default address plan, or that of a daemon's configuration file."""
    if file is None:
        from netssmd.engine.plan import address_plan

        return address_plan(seed=seed, mark=mark)
    from netssmd.daemon.addresses import plan_of
    from netssmd.daemon.config import load

    return plan_of(load(file).addresses, seed, f"{file}: addresses", mark)


def _start_ns(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--start {text}: write a time such as 2026-01-01T00:00:00") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if not 1970 <= moment.year < 2106:
        raise UsageError(f"--start {text}: captures hold times of 1970 to 2105")
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def read_prompt(opened: OpenModel, path: Path, count: int, last: bool = False) -> Prompt:
    """The first packets of a capture (or the last ones), encoded."""
    from netssmd.errors import CaptureError
    from netssmd.packet.pcap import read_capture

    try:
        with open(path, "rb") as file:
            packets = read_capture(file, str(path))
            prompt = opened.encode_prompt(deque(packets, count) if last else islice(packets, count))
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read: {error.strerror}") from None
    if not prompt.packets:
        raise CaptureError(f"{path}: holds no packets; a prompt needs one at least")
    return prompt


@dataclass(frozen=True, slots=True)
class Job:
    """What to generate. Session i is a pure function of this."""

    model: OpenModel
    labels: tuple[str, ...]
    each: int  # sessions of each label
    seed: int
    plan: AddressPlan
    conditions: dict[str, tuple[float, float]]
    packets: int  # where a session is cut
    tokens: int  # likewise; 0 = nowhere
    temperature: float
    snaplen: int
    payload: str
    start_ns: int
    spacing_ns: int
    prompt: Prompt | None
    keep_hosts: bool
    rate: Rate | None = None  # packets get times by it; None: as drawn
    guide: bool = False
    anomalies: dict[str, float] = field(default_factory=dict)  # defect -> share of the packets that can have it
    speculate: bool = True
    then: tuple[OpenModel, ...] = ()  # that take over where a session ends

    @property
    def sessions(self) -> int:
        return len(self.labels) * self.each

    def info(self, i: int) -> SessionInfo:
        """Session i: label by label in turn, so that a merged capture mixes them."""
        from netssmd.engine.mix import draw_conditions
        from netssmd.engine.sampling import Stream, derive
        from netssmd.engine.session import SessionInfo

        n, which = divmod(i, len(self.labels))
        label = self.labels[which]
        seed = derive(self.seed, "generate", label, n)
        base_ns = self.prompt.start_ns if self.prompt and self.keep_hosts else self.start_ns
        conditions = draw_conditions(self.conditions, Stream(derive(seed, "mix")))
        return SessionInfo(i, label, conditions, seed, base_ns + i * self.spacing_ns)

    def opener(self) -> Callable[[int], Session]:
        from netssmd.engine.anomalies import Planter
        from netssmd.engine.opening import MAX_FLOWS
        from netssmd.engine.sampling import Stream, derive
        from netssmd.engine.session import Limits
        from netssmd.packet.compliance import Checker

        limits, temperatures = Limits(self.packets, tokens=self.tokens), self.model.temperatures(self.temperature, {})

        def open_session(i: int) -> Session:
            session = self.model.session(
                self.info(i), self.plan, limits, temperatures, self.snaplen, self.prompt, self.keep_hosts, self.payload
            )
            session.checker = Checker(max_flows=MAX_FLOWS)
            if self.guide:
                session.guide = self.model.guide(session.info.label)
            if self.anomalies:
                session.planter = Planter(self.anomalies, Stream(derive(session.info.seed, "anomalies")), MAX_FLOWS)
            return session

        return open_session

    def meta(self, i: int) -> SessionMeta:
        from netssmd.output.ledger import SessionMeta, is_attack

        info = self.info(i)
        attack = is_attack(info.label)
        return SessionMeta(f"{self.seed}-{i}", info.label, info.conditions, info.seed, self.model.hash, attack)

    def end_meta(self, i: int, outcome: Outcome) -> SessionMeta:
        """What the ledger tells of session i at its end."""
        guide = outcome.guide
        interventions = None if guide is None else guide.interventions_by_rule()
        return replace(self.meta(i), interventions=interventions, reason=outcome.reason)

    def ledger(self) -> Ledger:
        from netssmd.output.ledger import Ledger

        return Ledger(self.model.name, self.model.hash, self.snaplen)

    def name(self, i: int) -> str:
        """File name of session i in a folder."""
        n, which = divmod(i, len(self.labels))
        return f"{self.labels[which]}-{n}.pcap"


# --- targets ----------------------------------------------------------------------------------------------------------


@contextmanager
def _stored(path: Path) -> Iterator[BinaryIO]:
    """A new file that is on the disk when the block ends."""
    with open(path, "wb", buffering=1 << 20) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _put(capture: Path, ledger: Ledger, records: Callable[[Callable[[Packet], None]], None]) -> None:
    """One capture and its ledger; `records` is called with the function that writes a packet."""
    from netssmd.packet.pcap import PcapWriter

    with _stored(capture) as file:
        writer = PcapWriter(file)
        records(writer.write)
        writer.flush()
    with _stored(capture.with_name(f"{capture.name.removesuffix('.pcap')}.jsonl")) as beside:
        ledger.write(beside, capture.name)


def _note(ledger: Ledger, meta: SessionMeta, p: Spooled) -> None:
    """A packet that went into the capture, with what it raised and what it was given."""
    from netssmd.output.ledger import measure
    from netssmd.packet.compliance import names_of

    found = names_of(p.found) if p.found else ()
    sizes = measure(p.data, p.orig_len)
    ledger.observe(meta, p.ts_ns, p.flow, p.direction, p.orig_len, found, *sizes, p.planted)


def _named_by(manifest: Path) -> set[str]:
    """The captures in its folder that a manifest names, and their ledgers."""
    try:
        with manifest.open(newline="") as file:
            rows = [row.get("file") or "" for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error):
        return set()
    captures = {name for name in rows if name.endswith(".pcap") and "/" not in name and "\0" not in name}
    return captures | {f"{name.removesuffix('.pcap')}.jsonl" for name in captures}


class Sent:
    """What went into captures: counted, and given its times on the way."""

    def __init__(self) -> None:
        self.packets = 0
        self.bytes = 0
        self.spans_ns: list[int] = []  # of each capture, from its first packet to its last

    def timed(self, job: Job, packets: Iterator[Spooled]) -> Iterator[Spooled]:
        """The packets of one capture, with the times that the job's rate gives them."""
        from netssmd.output.rate import Retimer

        retimer = Retimer(job.rate) if job.rate else None
        first_ns = last_ns = -1
        for p in packets:
            last_ns = retimer.at(p.ts_ns, p.orig_len) if retimer else p.ts_ns
            first_ns = last_ns if first_ns < 0 else first_ns
            self.packets += 1
            self.bytes += p.orig_len
            yield p._replace(ts_ns=last_ns) if retimer else p
        self.spans_ns.append(last_ns - first_ns)


class Target:
    """Where the sessions go. `of` picks the kind by what the user wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sent = Sent()

    @staticmethod
    def of(text: str, overwrite: bool = False) -> Target:
        path = Path(text)
        if text in ("", "-"):
            raise UsageError(f"-o {text!r}: captures go into a file or a folder; write FILE.pcap or DIR/")
        if text.endswith("/") or path.is_dir() or not path.suffix:
            if path.exists() and not path.is_dir():
                raise UsageError(f"-o {text}: is no folder; write the name of a folder or of a file with .pcap")
            target = FolderTarget(path)
            if not overwrite:
                target.require_unused()
            return target
        if path.suffix in (".gz", ".zst", ".pcapng"):
            raise UsageError(f"-o {text}: captures are written as plain PCAP; name it {path.with_suffix('.pcap').name}")
        return FileTarget(path)

    def write(self, job: Job, threads: int) -> list[Outcome]:
        """Generate the job into this place."""
        folder = self.path if isinstance(self, FolderTarget) else self.path.parent
        made = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=folder))
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}") from None
        try:
            outcomes = generate(job, work, threads)
            ready = work / "ready"
            ready.mkdir()
            self.collect(job, work, ready, outcomes)
            self.publish(ready, folder)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
            if made:
                with suppress(OSError):
                    folder.rmdir()  # only if nothing came of it
        return outcomes

    def publish(self, ready: Path, folder: Path) -> None:
        """Move complete files to where they belong: ledgers, captures, then the manifest that names them."""
        for path in sorted(ready.iterdir(), key=lambda p: (p.name == "manifest.csv", p.suffix == ".pcap", p)):
            os.replace(path, folder / path.name)

    def collect(self, job: Job, work: Path, ready: Path, outcomes: Sequence[Outcome]) -> None:
        """Make captures and ledgers in `ready` of the sessions spooled in `work`."""
        raise NotImplementedError


class FileTarget(Target):
    """One capture, all sessions merged by time."""

    def collect(self, job: Job, work: Path, ready: Path, outcomes: Sequence[Outcome]) -> None:
        from netssmd.output.spool import merge
        from netssmd.packet.pcap import Packet

        ledger, metas = job.ledger(), [job.meta(i) for i in range(job.sessions)]

        def records(write: Callable[[Packet], None]) -> None:
            for p in self.sent.timed(job, merge([spool_path(work, i) for i in range(job.sessions)], work)):
                write(Packet(p.ts_ns, p.data, p.orig_len))
                _note(ledger, metas[p.order], p)
            for i, outcome in enumerate(outcomes):
                ledger.end(job.end_meta(i, outcome))

        _put(ready / self.path.name, ledger, records)


class FolderTarget(Target):
    """A capture for each session and a manifest; they are moved in when all are complete, and what the manifest before
    named goes."""

    def require_unused(self) -> None:
        """Raises OutputError if captures are there: old ones would lie among the new ones."""
        with suppress(OSError):
            there = sorted(p.name for p in self.path.iterdir() if p.suffix == ".pcap" or p.name == "manifest.csv")
            if there:
                more = f" and {len(there) - 1} more" if len(there) > 1 else ""
                raise OutputError(
                    f"{self.path}: holds captures already ({there[0]}{more}); choose another folder or say --overwrite"
                )

    def publish(self, ready: Path, folder: Path) -> None:
        old = _named_by(folder / "manifest.csv") - {path.name for path in ready.iterdir()}
        super().publish(ready, folder)
        for name in old:
            (folder / name).unlink(missing_ok=True)

    def collect(self, job: Job, work: Path, ready: Path, outcomes: Sequence[Outcome]) -> None:
        for i, outcome in enumerate(outcomes):
            self._one(job, work, ready, i, outcome)
        with _stored(ready / "manifest.csv") as file:
            lines = [MANIFEST, *(self._row(job, i, outcome) for i, outcome in enumerate(outcomes))]
            file.write("".join(csv_line(line) for line in lines).encode())

    def _one(self, job: Job, work: Path, ready: Path, i: int, outcome: Outcome) -> None:
        from netssmd.output.spool import read_spool
        from netssmd.packet.pcap import Packet

        ledger, meta = job.ledger(), job.meta(i)

        def records(write: Callable[[Packet], None]) -> None:
            with open(spool_path(work, i), "rb") as spool:
                for p in self.sent.timed(job, read_spool(spool, 0)):
                    write(Packet(p.ts_ns, p.data, p.orig_len))
                    _note(ledger, meta, p)
            ledger.end(job.end_meta(i, outcome))

        _put(ready / job.name(i), ledger, records)
        spool_path(work, i).unlink()

    def _row(self, job: Job, i: int, outcome: Outcome) -> Sequence[object]:
        info, conditions = outcome.info, outcome.info.conditions
        return (
            job.name(i), info.label, info.label.partition("-")[0], "train", outcome.packets, outcome.flows,
            f"{self.sent.spans_ns[i] / SECOND:.3f}",
            *(f"{conditions[c]:g}" for c in ("rate_mbit", "rtt_ms", "loss_pct")), int(outcome.capped), info.seed,
        )  # fmt: skip


def csv_line(values: Sequence[object]) -> str:
    """One line of CSV."""
    import io

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


# --- generating -------------------------------------------------------------------------------------------------------


def spool_path(work: Path, i: int) -> Path:
    return work / f"{i}.spool"


class Spool:
    """The sink of one session: its packets to a spool file, its outcome into the list."""

    def __init__(
        self, path: Path, outcomes: list[Outcome | None], i: int, waiting: list[Spool] | None = None
    ) -> None:
        """waiting: where to go, with the session, when it ends by itself and another model takes over."""
        from netssmd.output.spool import SpoolWriter

        self._path = path
        self._waiting = waiting
        self._session: Session | None = None
        self._file = open(path, "wb", buffering=1 << 16)  # noqa: SIM115 - lives as long as the session
        self._writer = SpoolWriter(self._file)
        self._outcomes = outcomes
        self._i = i
        self._packets = 0  # a defect may leave some out

    def write(self, p: OutPacket) -> None:
        self._packets += 1
        self._writer.write(p.ts_ns, p.data, p.orig_len, p.five_tuple, p.direction, p.found, p.planted)

    def end(self, session: Session) -> None:
        from netssmd.engine.session import ENDED

        self._file.close()
        if self._waiting is not None and session.reason == ENDED and session.packets:
            self._session = session
            self._waiting.append(self)
            return
        self._outcomes[self._i] = Outcome(
            session.info, self._packets, session.flows, session.reason, session.malformed(), session.guide,
            {} if session.planter is None else session.planter.planted,
        )  # fmt: skip

    def taken_over(self, waiting: list[Spool] | None) -> Session:
        """The session, which goes on with another model, and this file with it."""
        from netssmd.output.spool import SpoolWriter

        assert self._session is not None
        session, self._session, self._waiting = self._session, None, waiting
        self._file = open(self._path, "ab", buffering=1 << 16)  # noqa: SIM115 - as long as the session
        self._writer = SpoolWriter(self._file)
        session.go_on()
        return session


def _taken_over(going: list[Spool], waiting: list[Spool] | None, i: int) -> Session:
    """Session i of those that wait, ready for the next model."""
    return going[i].taken_over(waiting)


def generate(job: Job, work: Path, threads: int) -> list[Outcome]:
    """Run all sessions into spool files under `work`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from netssmd.engine.batch import Batch, run_batch
    from netssmd.model.backend import lend_threads

    outcomes: list[Outcome | None] = [None] * job.sessions
    columns = (
        TextColumn("sessions"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    console = Console(stderr=True)
    group = 16
    guesses: list[Sequence[int]] = []
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("sessions", total=job.sessions, rate="")

        def run(batch: Batch) -> None:
            def watch() -> None:
                elapsed = progress.tasks[0].elapsed or 1e-9
                rate = f"{batch.packets:,} packets, {batch.packets / elapsed:,.0f}/s"
                progress.update(task, completed=batch.done, total=batch.sessions, rate=rate)

            run_batch(batch, watch)
            guesses.append(batch.speculation())

        def made(
            model: OpenModel, count: int, session: Callable[[int], Session], sink: Callable[[int], Spool]
        ) -> Batch:
            own = min(threads, count)
            backend = model.backend(own * min(group, -(-count // own)))
            lend_threads(backend, threads)
            return Batch(backend, count, session, sink, own, group, job.speculate)

        waiting: list[Spool] | None = [] if job.then else None  # sessions that ended, for the next model
        opener = job.opener()
        run(made(job.model, job.sessions, opener, lambda i: Spool(spool_path(work, i), outcomes, i, waiting)))
        for turn, model in enumerate(job.then, 1):
            going, waiting = waiting or [], [] if turn < len(job.then) else None
            if going:
                run(made(model, len(going), partial(_taken_over, going, waiting), going.__getitem__))
    drafted, accepted, draws = map(sum, zip(*guesses))
    if drafted:
        share, each = accepted / drafted, 1 + accepted / draws
        click.echo(f"speculation: {share:.0%} of {drafted:,} guesses right, {each:.1f} tokens a call", err=True)
    return [outcome for outcome in outcomes if outcome is not None]


def _tell(job: Job, outcomes: Sequence[Outcome], output: str, own_end: bool) -> None:
    packets = sum(o.packets for o in outcomes)
    click.echo(f"{output}: {len(outcomes)} sessions, {packets} packets, seed {job.seed}", err=True)
    if job.guide:
        total = job.model.guide("")
        for outcome in outcomes:
            if outcome.guide is not None:
                total.add(outcome.guide)
        click.echo(total.line(packets), err=True)
    if job.anomalies:
        planted: Counter[str] = Counter()
        for outcome in outcomes:
            planted.update(outcome.planted)
        click.echo(planted_line(planted), err=True)
    capped = sum(o.capped for o in outcomes)
    if capped and own_end:
        click.echo(
            f"{capped} sessions did not end by themselves and were cut at {job.packets} packets (--max-packets)",
            err=True,
        )
    malformed: Counter[str] = Counter()
    for outcome in outcomes:
        malformed.update(outcome.malformed)
    if malformed:
        from netssmd.codec.bytes import malformed_text

        click.echo(f"malformed, left out: {malformed_text(malformed)}", err=True)
