"""How fast this machine is: what `netssmd bench` measures, each figure beside its yardstick in the same run.

In: a model folder. Out: plain dicts for JSON. Four measures:

- `end_to_end`: the whole daemon at top speed into PCAP files with ledgers. Where the time goes is told in processor
  seconds of the threads (a machine that others use as well stretches wall time, not these): `model` inside backend
  calls, `engine` around them (codec, rendering, scheduling), `output` the output thread (order, files, ledger),
  `control` the rest.
- `kernel`: the cpu backend alone. Its roofline is what one call must move at the least, the layers once and n states
  read and rewritten, against the time in which a kernel that does nothing else moves as much, measured right before
  and after.
- `eager`: the step loop in plain PyTorch, one session, one thread: the embedding sum, the layers, the head for the
  range, the draw.
- `paper`: the same two for the paper's own configuration: 90.6 M parameters, byte tokens, 95 of them a packet; the cpu
  backend with bf16 and int8 weights, on one thread and on all cores (`share` of the roofline is that of one core).

Kernel and eager figures are the best round's in processor time, because others may run on the machine. The daemon's
packets a second are what its tokens a second came to: at the end of so short a run the packets of faster sessions still
wait for slower ones.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from netssmd.daemon.config import parse
from netssmd.daemon.service import Service
from netssmd.engine.opening import OpenModel
from netssmd.engine.plan import AddressPlan, address_plan
from netssmd.engine.scheduler import Backend, Scheduler
from netssmd.engine.session import Limits, Session, SessionInfo, Temperatures
from netssmd.model.backend import Floats, Ints
from netssmd.model.checkpoint import load_config, load_tensors_numpy
from netssmd.model.config import ModelConfig
from netssmd.model.cpu_backend import CpuBackend, roofline_seconds

PAPER = ModelConfig(d_model=768, n_layer=24, d_state=128, headdim=64, vocab_size=272, rows=300)
PAPER_TOKENS_PER_PACKET = 95
RANGE = 64  # tokens in the announced range of a kernel measure: about what a field has
ENGINE_THREAD, OUTPUT_THREAD = "netssmd-engine", "netssmd-output"


class TimedBackend:
    """A backend that counts the processor time inside it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.slots = backend.slots
        self.call_rows = backend.call_rows
        self.reset = backend.reset
        self.save_state = backend.save_state
        self.load_state = backend.load_state
        self.ns: dict[int, int] = {}  # by thread

    def _timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.thread_time_ns()
        try:
            return call(*arguments)
        finally:
            me = threading.get_ident()
            self.ns[me] = self.ns.get(me, 0) + time.thread_time_ns() - start

    def prefill(self, slot: int, rows: Ints) -> None:
        self._timed(self._backend.prefill, slot, rows)

    def step(
        self, slots: Ints, rows: Ints, ranges: Ints, uniforms: Floats, temperatures: Floats,
        factors: Floats | None = None, factors_at: Ints | None = None, removed: Floats | None = None,
    ) -> Ints:  # fmt: skip
        more = () if factors is None else (factors, factors_at, removed)
        tokens: Ints = self._timed(self._backend.step, slots, rows, ranges, uniforms, temperatures, *more)
        return tokens

    def verify(
        self, slots: Ints, counts: Ints, rows: Ints, drafts: Ints, ranges: Ints, uniforms: Floats, temperatures: Floats,
        factors: Floats | None = None, factors_at: Ints | None = None,
    ) -> tuple[Ints, Ints]:  # fmt: skip
        more = (ranges, uniforms, temperatures, factors, factors_at)
        answer: tuple[Ints, Ints] = self._timed(self._backend.verify, slots, counts, rows, drafts, *more)
        return answer


class _TimedModel:
    """An OpenModel whose backends are timed."""

    def __init__(self, model: OpenModel) -> None:
        self._model = model
        self.name, self.hash, self.labels, self.vocabulary = model.name, model.hash, model.labels, model.vocabulary
        self.temperatures, self.guide, self.check_extent = model.temperatures, model.guide, model.check_extent
        self.timed: TimedBackend

    def backend(self, slots: int) -> Backend:
        self.timed = TimedBackend(self._model.backend(slots))
        return self.timed

    def session(
        self,
        info: SessionInfo,
        plan: AddressPlan,
        limits: Limits,
        temperatures: Temperatures,
        snaplen: int,
        payload: str = "protocol",
    ) -> Session:
        return self._model.session(info, plan, limits, temperatures, snaplen, payload=payload)


CONFIG = """
[engine]
pace = "topspeed"
threads = {threads}
group = {group}
[traffic]
seed = 1
concurrency = {sessions}
ramp = "0s"
[output]
directory = "{directory}"
slice_duration = "0s"
slice_size = "64MB"
ring_files = 4
[snapshot]
enabled = false
[metrics]
port = 0
"""


def end_to_end(model: OpenModel, sessions: int, threads: int, seconds: float, group: int = 16) -> dict[str, Any]:
    """The daemon for `seconds` at top speed, its start left out."""
    timed = _TimedModel(model)
    with tempfile.TemporaryDirectory() as folder:
        text = CONFIG.format(threads=threads, sessions=sessions, group=group, directory=Path(folder) / "captures")
        service = Service(parse(text, "bench"), timed)
        marks: list[tuple[float, int]] = []  # time, tokens drawn
        clocks = _thread_clocks(service)

        def watch() -> None:
            while not service.lanes or not hasattr(service, "output") or not service.output.counters.total_packets:
                time.sleep(0.005)
            for pause in (seconds, 0.0):
                marks.append((time.monotonic(), service.counters.sum("tokens")))
                time.sleep(pause)
            service._tell(service.stop)

        watcher = threading.Thread(target=watch, daemon=True)
        whole = time.process_time()
        watcher.start()
        report = asyncio.run(service.run())
        whole = time.process_time() - whole
        watcher.join()
    (begin, before), (end, tokens) = marks
    tokens_per_second = (tokens - before) / (end - begin)
    tokens_per_packet = service.counters.sum("tokens") / max(1, report.packets)
    model_seconds = sum(timed.timed.ns.values()) / 1e9
    engine, output = (sum(v for k, v in clocks.items() if k.startswith(n)) for n in (ENGINE_THREAD, OUTPUT_THREAD))
    stages = {
        "model": model_seconds,
        "engine": engine - model_seconds,
        "output": output,
        "control": max(0.0, whole - engine - output),
    }
    return {
        "sessions": sessions,
        "threads": service.threads,
        "packets_per_second": tokens_per_second / tokens_per_packet,
        "tokens_per_second": tokens_per_second,
        "tokens_per_packet": tokens_per_packet,
        "mean_batch": service.counters.sum("tokens") / max(1, service.counters.sum("steps")),
        "cpu_us_per_packet": {name: 1e6 * s / max(1, report.packets) for name, s in stages.items()},
        "python_share": 1 - model_seconds / whole,
        "packets_per_cpu_second": report.packets / whole,
        "rss_mb": resident_mb(),
    }


def first_packet_seconds(model: OpenModel) -> tuple[float, float]:
    """Wall and processor time from nothing to a capture with one packet in it: a fresh process of `netssmd generate`,
    the better of two."""
    best, best_cpu = 1e9, 1e9
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "netssmd", "generate", "--model", str(model.folder), "--packets", "1",
                   "--label", model.labels[0], "--seed", "1", "-o", f"{folder}/x.pcap"]  # fmt: skip
        for _ in range(2):
            start, cpu = time.monotonic(), _children_seconds()
            subprocess.run(command, check=True, capture_output=True)
            best, best_cpu = min(best, time.monotonic() - start), min(best_cpu, _children_seconds() - cpu)
    return best, best_cpu


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _thread_clocks(service: Service) -> dict[str, float]:
    """Filled, when a lane ends, with its thread's processor seconds."""
    clocks: dict[str, float] = {}
    build = service._build

    def timed(run: Callable[[], None]) -> Callable[[], None]:
        def work() -> None:
            try:
                run()
            finally:
                clocks[threading.current_thread().name] = time.thread_time()

        return work

    def built(duration_ns: int) -> None:
        build(duration_ns)
        for lane in service.lanes:
            lane.run = timed(lane.run)  # type: ignore[method-assign]
        service.output.run = timed(service.output.run)  # type: ignore[method-assign]

    service._build = built  # type: ignore[method-assign]
    return clocks


def resident_mb() -> float:
    """Memory of this process that is in use now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


# --- the backend alone ------------------------------------------------------------------------------------------------


def random_tensors(config: ModelConfig) -> dict[str, Floats]:
    """Weights at the scale of an initialised model, all of them representable in bf16."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in config.tensors().items():
        x = rng.standard_normal(shape, np.float32) * np.float32(0.02 if len(shape) < 2 else shape[-1] ** -0.5)
        if name.endswith(("norm.weight", "norm_f.weight", ".D")):
            x += 1
        elif name.endswith("dt_bias"):
            x -= 4
        tensors[name] = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return tensors


def best_step_seconds(
    backend: Backend, config: ModelConfig, n: int, seconds: float, width: int
) -> tuple[float, float]:
    """Processor time and wall time of one call of n slots, each the best of the rounds that fit in `seconds`."""
    rng = np.random.default_rng(1)
    slots = np.arange(n, dtype=np.int32)
    rows = rng.integers(0, config.rows, (n, width)).astype(np.int32)
    lo = rng.integers(0, config.vocab_size - RANGE, n)
    ranges = np.stack([lo, lo + RANGE], 1).astype(np.int32)
    uniforms, temperatures = rng.random(n).astype(np.float32), np.ones(n, np.float32)
    best, best_wall, rounds, start = 1e9, 1e9, 0, time.perf_counter()
    while time.perf_counter() - start < seconds or rounds < 3:
        begin, begin_wall = time.thread_time(), time.perf_counter()
        rows[:, 0] = backend.step(slots, rows, ranges, uniforms, temperatures)
        best, best_wall = min(best, time.thread_time() - begin), min(best_wall, time.perf_counter() - begin_wall)
        rounds += 1
    return best, best_wall


def kernel(backend: CpuBackend, n: int, seconds: float, width: int) -> dict[str, float]:
    """Tokens a second of calls of n slots, and the share of the roofline."""
    least = roofline_seconds(backend, n, seconds / 4)
    step, wall = best_step_seconds(backend, backend.config, n, seconds, width)
    if backend.threads > 1:
        step = wall  # a helper goes on while the caller waits for the processor
    least = min(least, roofline_seconds(backend, n, seconds / 4))
    return {"slots": n, "tokens_per_second": n / step, "roofline_share": least / wall}


def eager_tokens_per_second(
    config: ModelConfig, tensors: dict[str, Floats], seconds: float, width: int, threads: int = 1
) -> float:
    """One session in plain PyTorch."""
    from netssmd.model.torch_backend import TorchBackend, use_threads

    use_threads(threads)
    step, wall = best_step_seconds(TorchBackend(config, tensors, 1), config, 1, seconds, width)
    use_threads(1)
    return 1 / (step if threads == 1 else wall)


def without_torch() -> str:
    """Why there is no eager loop to compare with; empty if there is one."""
    return "" if importlib.util.find_spec("torch") else "torch is not installed: pip install 'netssmd[train]'"


def paper(seconds: float) -> dict[str, Any]:
    """The paper's configuration, random weights: the eager loop as its authors run it, and the cpu backend."""
    tensors = random_tensors(PAPER)
    counts = sorted({1, min(16, len(os.sched_getaffinity(0)))})
    eagerly = [eager_tokens_per_second(PAPER, tensors, seconds, 2, threads) for threads in counts]
    eager, rows = eagerly[0], []
    for weights in ("bf16", "int8"):
        backend = CpuBackend(PAPER, tensors, slots=1, weights=weights)
        for threads in counts:
            backend.threads = threads
            rows.append({"weights": weights, "threads": threads, **kernel(backend, 1, seconds, width=2)})
    fused: dict[str, Any] = rows[0]
    return {
        "parameters": PAPER.parameters,
        "tokens_per_packet": PAPER_TOKENS_PER_PACKET,
        "eager_tokens_per_second": eager,
        "cpu_tokens_per_second": fused["tokens_per_second"],
        "cpu_roofline_share": fused["roofline_share"],
        "ratio_to_eager": fused["tokens_per_second"] / eager,
        "eager_tokens_per_second_all_cores": eagerly[-1],
        "cpu": rows,
        "packets_per_second": eager / PAPER_TOKENS_PER_PACKET,
    }


def weights_kl(model: OpenModel, weights: str, tokens: int) -> float:
    """KL divergence in nats a token of `weights` from fp32, over what is drawn from, along sessions that fp32 makes."""
    config = load_config(model.folder)
    tensors = load_tensors_numpy(model.folder, config)
    exact, other = (CpuBackend(config, tensors, slots=1, weights=w) for w in ("fp32", weights))
    plan, total, count = address_plan(seed=1), 0.0, 0
    while count < tokens:
        exact.reset(0)
        other.reset(0)
        label = model.labels[count % len(model.labels)]
        session = model.session(SessionInfo(count, label, {}, count, 0), plan, Limits(packets=200))
        while not session.ended and count < tokens:
            row, lo, hi = np.array(session.row(), np.int32), session.decoder.lo, session.decoder.hi
            p, q = (_log_softmax(b.logits_for(0, row)[lo:hi]) for b in (exact, other))
            total += float((np.exp(p) * (p - q)).sum())
            count += 1
            running = np.cumsum(np.exp(p))
            drawn = int(np.searchsorted(running, session.stream.uniform() * running[-1], side="right"))
            session.advance(lo + min(drawn, hi - lo - 1))
    return total / count


def _log_softmax(logits: Floats) -> np.ndarray[Any, np.dtype[np.float64]]:
    shifted = logits.astype(np.float64) - logits.max()
    result: np.ndarray[Any, np.dtype[np.float64]] = shifted - np.log(np.exp(shifted).sum())
    return result


def groups(model: OpenModel, sizes: tuple[int, ...], sessions: int, packets: int) -> dict[int, float]:
    """Processor microseconds a token of the scheduler with its backend, by group size: which one suits the cache."""
    result = {}
    for group in sizes:
        scheduler = Scheduler(model.backend(sessions), group)
        plan = address_plan(seed=1)
        for i in range(sessions):
            label = model.labels[i % len(model.labels)]
            scheduler.add(model.session(SessionInfo(i, label, {}, i + 1, 0), plan, Limits(packets=packets)))
        start = time.thread_time()
        while scheduler.step() is not None:
            pass
        result[group] = 1e6 * (time.thread_time() - start) / scheduler.tokens
    return result


# --- all together -----------------------------------------------------------------------------------------------------


def measure(model: OpenModel, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that `netssmd bench` prints."""
    config = load_config(model.folder)
    tensors = load_tensors_numpy(model.folder, config)
    width = model.vocabulary.width
    cores = len(os.sched_getaffinity(0))
    seconds, sizes, counts = (0.8, (1, 64), (1, 64)) if quick else (4.0, (1, 8, 16, 64), (1, 8, 64, 256))
    result: dict[str, Any] = {"model": model.name, "parameters": config.parameters, "cores": cores, "quick": quick}
    say("start to first packet")
    result["first_packet_seconds"], result["first_packet_cpu_seconds"] = first_packet_seconds(model)
    result["runs"] = []
    for threads in sorted({1, min(2, cores)}):
        for sessions in counts:
            if sessions >= threads:
                say(f"daemon into PCAP files: {sessions} sessions, {threads} threads")
                result["runs"].append(end_to_end(model, sessions, threads, seconds))
    backend = CpuBackend(config, tensors, slots=max(sizes), weights=None if model.weights == "auto" else model.weights)
    result |= {"isa": backend.isa, "weights": backend.weights, "state_bytes": backend.state_bytes}
    result["kernel"] = []
    for n in sizes:
        say(f"backend alone, {n} slots")
        result["kernel"].append(kernel(backend, n, min(seconds, 1.0), width))
    result["roofline_share"] = result["kernel"][0]["roofline_share"]
    why = without_torch()
    if why:
        result |= {"ratio_to_eager": None, "packets_per_second_paper_config": None, "skipped": why}
    else:
        say("eager torch loop")
        eager = eager_tokens_per_second(config, tensors, min(seconds, 2.0), width)
        result["eager_tokens_per_second"] = eager
        result["ratio_to_eager"] = result["kernel"][0]["tokens_per_second"] / eager
        result["ratio_to_eager_in_groups"] = max(k["tokens_per_second"] for k in result["kernel"]) / eager
        say("the paper's configuration (90.6 M parameters, byte tokens)")
        result["paper"] = paper(min(seconds, 2.0))
        result["packets_per_second_paper_config"] = result["paper"]["packets_per_second"]
    if not quick:
        say("int8 and bf16 weights against fp32")
        result["weights_kl"] = {kind: weights_kl(model, kind, 2000) for kind in ("bf16", "int8")}
        say("group sizes")
        result["group_us_per_token"] = groups(model, (4, 8, 16, 24, 32), 64, 40)
    best = max(result["runs"], key=lambda run: float(run["packets_per_second"]))
    return result | {key: best[key] for key in ("packets_per_second", "tokens_per_second", "python_share")}
