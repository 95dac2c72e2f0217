"""Which sessions, how many at once, and the manifest: the process that the user started.

It forks a process a session, waits for their reports, gives finished captures their names and appends a row each. One
thread and no shared state: whatever kills it kills its children (session.py), and what they leave are files beginning
with a dot, which the next start removes.
"""

from __future__ import annotations

import csv
import glob
import importlib
import importlib.util
import json
import os
import pkgutil
import random
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netssmd.errors import OutputError, UsageError
from netssmd.learn.prepare import MANIFEST, stable_split
from tools.lab import session, workloads
from tools.lab.place import Tls

COLUMNS = [
    "file", "label", "category", "split", "packets", "flows", "duration_s", "rate_mbit", "rtt_ms", "loss_pct", "capped",
    "seed", "jitter_ms", "queue_ms", "reorder_pct", "lost", "queue_drops", "handshake_ms", "congestion", "stack",
    "ipv6", "mtu", "length", "late_us_p50", "late_us_p99", "waited_pct",
]  # fmt: skip
SCRATCH = ".lab-"  # and the recorder's process id
PART = ".part"
MOST_FAILURES = 8  # one after the other
ALWAYS = ("ip", "tcpdump", "openssl")
PACKAGES = {"ip": "iproute2"}  # Debian's packages, where they are not called like the program


# ---- workloads


def load_workloads() -> dict[str, Any]:
    """Every module of tools/lab/workloads by its label, sorted."""
    found = {}
    for module in pkgutil.iter_modules(workloads.__path__):
        loaded = importlib.import_module(f"{workloads.__name__}.{module.name}")
        found[module.name.replace("_", "-")] = loaded
    return dict(sorted(found.items()))


def missing(workload: Any) -> str:
    """Why it cannot run here; "" if it can."""
    programs = [program for program in (*ALWAYS, *workload.PROGRAMS) if which(program) is None]
    modules = [module for module in workload.MODULES if importlib.util.find_spec(module) is None]
    if programs:
        return f"no program {', '.join(f'{name} (package {PACKAGES.get(name, name)})' for name in programs)}"
    return f"no Python package {', '.join(modules)} (pip install '.[lab]')" if modules else ""


def search_path() -> str:
    """PATH, and where Debian puts servers' programs."""
    more = ["/usr/sbin", "/sbin", *sorted(glob.glob("/usr/lib/postgresql/*/bin"))]
    return os.pathsep.join([os.environ.get("PATH", ""), *more])


def which(program: str) -> str | None:
    return shutil.which(program, path=search_path())


# ---- the plan of a run


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked for."""

    out: Path
    labels: Sequence[str]
    seed: int
    sessions: int  # 0: until the minutes are over
    minutes: float  # 0: until the sessions are recorded
    jobs: int
    long_share: float
    packets: int
    seconds: float
    snaplen: int
    free_bytes: int
    reorder_pct: float = 0.0
    debug: bool = False


def plan(wanted: Wanted, done: dict[str, int]) -> Iterator[tuple[str, int, str, float]]:
    """(label, number, seed, length) of one session after the other; labels take turns, numbers go on from `done`."""
    numbers = {label: done.get(label, 0) for label in wanted.labels}
    count = 0
    while True:
        order = random.Random(f"{wanted.seed}/order/{count}").sample(list(wanted.labels), len(wanted.labels))
        for label in order:
            if wanted.sessions and count >= wanted.sessions:
                return
            number = numbers[label]
            numbers[label] += 1
            seed = f"{wanted.seed}/{label}/{number}"
            rng = random.Random(f"{seed}/length")
            length = 1.0 if rng.random() >= wanted.long_share else round(rng.uniform(6, 16), 1)
            yield label, number, seed, length
            count += 1


# ---- the folder


def open_folder(wanted: Wanted) -> dict[str, int]:
    """Make the folder or go on in it: leftovers are removed; how many numbers of each label are taken."""
    out = wanted.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        living = sweep(out)
        manifest = out / MANIFEST
        if not manifest.exists():
            with open(manifest, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(COLUMNS)
            return {}
        with open(manifest, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except OSError as error:
        raise OutputError(f"{out}: {error.strerror}; name a folder that can be written") from None
    if reader.fieldnames != COLUMNS:
        raise UsageError(f"{manifest}: not a manifest of this lab; name an empty folder")
    if living:
        raise UsageError(
            f"{out}: another recorder writes here (process {', '.join(sorted(living))}); name another folder, or "
            f"remove {SCRATCH}* in this one if there is none"
        )
    taken: dict[str, int] = {}
    for row in rows:
        number = int(Path(row["file"]).name.split(".")[0])
        taken[row["label"]] = max(taken.get(row["label"], 0), number + 1)
    return taken


def sweep(out: Path) -> set[str]:
    """Remove what recorders that are no more have left, scratch folders and captures that were not finished; return
    the process ids of those that still run."""
    living = set()
    for folder in out.glob(f"{SCRATCH}*"):
        pid = folder.name.removeprefix(SCRATCH)
        if pid.isdigit() and int(pid) != os.getpid() and Path(f"/proc/{pid}").exists():
            living.add(pid)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for part in out.glob(f"*/.*{PART}"):
        if part.name.split(".")[1] not in living:
            part.unlink(missing_ok=True)
    return living


def make_certificates(folder: Path) -> Tls:
    """An authority, and a chain with an elliptic and one with an RSA key: 1.2 and 2.6 kB of handshake. By openssl."""

    def run(*argv: str) -> None:
        done = subprocess.run(["openssl", *argv], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OutputError(f"openssl {argv[0]}: {done.stderr.strip().splitlines()[-1]}")

    (folder / "names.cnf").write_text(
        "subjectAltName=DNS:*.test,DNS:*.video.test,DNS:*.social.test,DNS:*.cdn-net.test,DNS:*.mail.test\n"
        "keyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth\n"
    )
    elliptic, rsa = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"], ["-newkey", "rsa:2048"]
    pairs = []
    run("req", "-x509", *elliptic, "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "30",
        "-subj", "/C=XX/O=Lab Trust Services/CN=Lab Root R1")  # fmt: skip
    for kind, new in (("ec", elliptic), ("rsa", rsa)):
        run("req", "-new", *new, "-nodes", "-keyout", f"{kind}.key", "-out", f"{kind}.csr", "-subj", "/CN=site.test")
        run("x509", "-req", "-in", f"{kind}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{kind}.pem", "-days", "30", "-extfile", "names.cnf")  # fmt: skip
        chain = folder / f"{kind}.chain.pem"
        chain.write_text((folder / f"{kind}.pem").read_text() + (folder / "ca.pem").read_text())
        (folder / f"{kind}.key").chmod(0o644)
        pairs.append((chain, folder / f"{kind}.key"))
    return Tls(folder / "ca.pem", tuple(pairs))


# ---- the run


@dataclass(slots=True)
class Job:
    """A session under way."""

    spec: session.Spec
    pid: int
    report: int
    since: float
    text: bytes = b""


@dataclass(slots=True)
class Tally:
    """What a run has brought so far."""

    sessions: int = 0
    packets: int = 0
    bytes: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    by_label: dict[str, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class Recorder:
    """Runs the plan; `news` hears of every session that ended."""

    wanted: Wanted
    workloads: dict[str, Any]
    news: Callable[[Tally, list[Job]], None]
    tally: Tally = field(default_factory=Tally)
    jobs: list[Job] = field(default_factory=list)
    stopping: bool = False
    failed_since: int = 0  # the last that succeeded

    def run(self) -> Tally:
        """Raises UsageError, OutputError. SIGINT and SIGTERM end the sessions under way, unrecorded."""
        if os.geteuid() != 0:
            raise UsageError("the lab makes network namespaces: run it as root")
        waiting = plan(self.wanted, open_folder(self.wanted))
        scratch = (self.wanted.out / f"{SCRATCH}{os.getpid()}").resolve()
        scratch.mkdir()
        os.environ["PATH"] = search_path()
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            tls = make_certificates(scratch)
            self._loop(waiting, scratch, tls)
        finally:
            for job in self.jobs:
                os.kill(job.pid, signal.SIGKILL)
                os.waitpid(job.pid, 0)
            for number, handler in before.items():
                signal.signal(number, handler)
            for part in self.wanted.out.glob(f"*/.{os.getpid()}.*{PART}"):
                part.unlink(missing_ok=True)
            shutil.rmtree(scratch, ignore_errors=True)
        return self.tally

    def _stop(self, number: int, frame: object) -> None:
        self.stopping = True

    def _loop(self, waiting: Iterator[tuple[str, int, str, float]], scratch: Path, tls: Tls) -> None:
        end = time.monotonic() + self.wanted.minutes * 60 if self.wanted.minutes else float("inf")
        more = True
        while not self.stopping and (more or self.jobs):
            while more and len(self.jobs) < self.wanted.jobs:
                following = next(waiting, None) if time.monotonic() < end else None
                if following is None:
                    more = False
                    break
                self._check_disk()
                self._start(*following, scratch, tls)
            readable, _, _ = select.select([job.report for job in self.jobs], [], [], 0.25)
            for job in [job for job in self.jobs if job.report in readable]:
                text = os.read(job.report, 1 << 16)
                job.text += text
                if not text:
                    self._finish(job)
            self.news(self.tally, self.jobs)

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.wanted.out).free
        if free < self.wanted.free_bytes:
            raise OutputError(
                f"{self.wanted.out}: {free >> 20} MiB are free, less than {self.wanted.free_bytes >> 20}; what is "
                "recorded is whole: make room and start again, or lower --free-disk"
            )

    def _start(self, label: str, number: int, seed: str, length: float, scratch: Path, tls: Tls) -> None:
        wanted = self.wanted
        folder = scratch / f"{label}-{number}"
        folder.mkdir()
        file = wanted.out.resolve() / label / f".{os.getpid()}.{number}{PART}"
        spec = session.Spec(
            label, number, seed, length, wanted.packets, wanted.seconds * max(1.0, length / 3), wanted.snaplen, folder,
            file, tls, wanted.reorder_pct, wanted.debug,
        )  # fmt: skip
        report, says = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(report)
            session.record(spec, self.workloads[label], says)
        os.close(says)
        self.jobs.append(Job(spec, pid, report, time.monotonic()))

    def _finish(self, job: Job) -> None:
        """Name the capture and append its row."""
        self.jobs.remove(job)
        os.close(job.report)
        os.waitpid(job.pid, 0)
        shutil.rmtree(job.spec.folder, ignore_errors=True)
        spec = job.spec
        name = f"{spec.label}/{spec.number}.pcap.gz"
        try:
            row = json.loads(job.text)
        except ValueError:
            row = {"error": "it ended without a word"}
        if "error" in row:
            self.tally.failures.append((name, row["error"]))
            spec.file.unlink(missing_ok=True)
            self.failed_since += 1
            if self.failed_since >= max(MOST_FAILURES, 2 * len(self.wanted.labels)):
                raise OutputError(f"{self.failed_since} sessions failed one after the other, the last: {row['error']}")
            return
        self.failed_since = 0
        final = self.wanted.out / name
        os.replace(spec.file, final)
        category = self.workloads[spec.label].CATEGORY
        row |= {"file": name, "label": spec.label, "category": category, "split": stable_split(name)}
        with open(self.wanted.out / MANIFEST, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        self.tally.sessions += 1
        self.tally.packets += row["packets"]
        self.tally.bytes += final.stat().st_size
        sums = self.tally.by_label.setdefault(spec.label, [0, 0])
        sums[0] += 1
        sums[1] += row["packets"]
