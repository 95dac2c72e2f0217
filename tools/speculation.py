"""What speculation gains for models of the byte codec.

    python tools/speculation.py [--model DIR --label L] [--prompt FILE] [--tokens N] [--temperature T] [--top-k K]
                                [--top-p P] [--seconds S]

1. What it costs the paper's configuration (90.6 M parameters, random weights) to judge k tokens in one call, in steps.
2. With --model, a trained byte model: one session of it with and without speculation, with the same bytes out of both
   (or an error); how many guesses came true, tokens a call, the ratio in processor time.
3. The same calls, with as many tokens standing in each as stood there, by the paper's configuration: how many times as
   fast as its steps a 90.6 M model of such a rate of acceptance is. Which guesses come true is the small model's; their
   cost is the large one's.

Processor time, since others may run on the machine; costs are the best of the rounds that fit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from netssmd.commands.generate import read_prompt
from netssmd.daemon.speed import PAPER, random_tensors
from netssmd.engine.opening import open_model
from netssmd.engine.plan import address_plan
from netssmd.engine.scheduler import Scheduler
from netssmd.engine.session import Limits, SessionInfo, Temperatures
from netssmd.model.cpu_backend import CpuBackend

COUNTS = (1, 2, 4, 8, 16, 32, 64)
WORTH = 12.0  # call_rows of the large model


class Recorder:
    """A backend that notes how many inputs each call had and how many stood; `call_rows` as told."""

    def __init__(self, backend: Any, call_rows: float) -> None:
        self._backend = backend
        self.call_rows = call_rows
        self.slots, self.reset, self.prefill = backend.slots, backend.reset, backend.prefill
        self.calls: list[tuple[int, int]] = []

    def step(self, slots: Any, *more: Any) -> Any:
        self.calls += [(1, 1)] * len(slots)
        return self._backend.step(slots, *more)

    def verify(self, slots: Any, counts: Any, *more: Any) -> Any:
        tokens, taken = self._backend.verify(slots, counts, *more)
        self.calls += zip(counts.tolist(), taken.tolist(), strict=True)
        return tokens, taken


def call_seconds(backend: CpuBackend, count: int, stood: int) -> float:
    """Processor time of one call of which `stood` inputs stand, or of a step."""
    rng = np.random.default_rng(count)
    rows = rng.integers(0, 256, (count, 1)).astype(np.int32)
    drafts = rng.integers(0, 256, count).astype(np.int32)
    ranges = np.stack([drafts, drafts + 1], 1).astype(np.int32)  # one token to draw from: the draft
    ranges[stood - 1] = [drafts[stood - 1] ^ 1, (drafts[stood - 1] ^ 1) + 1]  # ... or another
    half = np.full(count, 0.5, np.float32)
    slots = np.zeros(1, np.int32)
    start = time.thread_time()
    if count == 1:
        backend.step(slots, rows, ranges, half, half)
    else:
        _, taken = backend.verify(slots, np.array([count], np.int32), rows, drafts, ranges, half, half)
        assert taken[0] == stood
    return time.thread_time() - start


def costs(backend: CpuBackend, counts: tuple[int, ...], seconds: float) -> dict[int, float]:
    """Seconds of a call of so many inputs that all stand, each the best of its rounds, which take turns."""
    best = dict.fromkeys(counts, 1e9)
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - start < seconds:
        for count in counts:
            best[count] = min(best[count], call_seconds(backend, count, count))
        rounds += 1
    return best


def session_run(args: argparse.Namespace, speculate: bool, call_rows: float = 0.0) -> dict[str, Any]:
    """One session of the trained model: bytes, calls, processor time."""
    opened = open_model(args.model, "cpu", args.top_k, args.top_p)
    prompt = read_prompt(opened, args.prompt, 20) if args.prompt else None
    backend = opened.backend(1)
    recorder = Recorder(backend, call_rows or backend.call_rows)
    scheduler = Scheduler(recorder, 1, speculate=speculate)  # type: ignore[arg-type]
    packets: list[bytes] = []
    n, seconds = 0, 0.0
    while scheduler.tokens < args.tokens:  # sessions that end are followed by others
        info = SessionInfo(n, args.label, {}, 7 + n, 0)
        limits = Limits(tokens=args.tokens - scheduler.tokens)
        scheduler.add(opened.session(info, address_plan(), limits, Temperatures(args.temperature), prompt=prompt))
        n += 1
        start = time.thread_time()
        while (result := scheduler.step()) is not None:
            packets += [p.data for p in result[0]]
        seconds += time.thread_time() - start
    return {"packets": packets, "calls": recorder.calls, "seconds": seconds, "scheduler": scheduler}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a byte model")
    parser.add_argument("--label", default="")
    parser.add_argument("--prompt", type=Path, help="a capture whose first 20 packets each session goes on from")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measure of costs")
    args = parser.parse_args()
    tensors = random_tensors(PAPER)
    for weights in ("bf16", "fp32", "int8"):
        backend = CpuBackend(PAPER, tensors, slots=1, weights=weights)
        best = costs(backend, COUNTS, args.seconds)
        told = "  ".join(f"{count}: {best[count] / best[1]:.2f}" for count in COUNTS)
        step = f"{best[1] * 1e3:.1f} ms"
        print(f"90.6 M, {weights} on {backend.isa}, a call of k tokens in steps ({step}):  {told}", flush=True)
    if not args.model:
        return
    plain = session_run(args, False)
    for name, call_rows in (("its own", 0.0), ("the large model's", WORTH)):
        ahead = session_run(args, True, call_rows)
        if ahead["packets"] != plain["packets"]:
            raise SystemExit("the packets differ")
        s = ahead["scheduler"]
        print(
            f"{args.model} at {name} cost of a call: {s.accepted / s.drafted:.0%} of {s.drafted:,} guesses right, "
            f"{1 + s.accepted / s.draws:.2f} tokens a call, {len(ahead['packets'])} packets the same, "
            f"{plain['seconds'] / ahead['seconds']:.2f} times as fast as by steps"
        )
    backend = CpuBackend(PAPER, tensors, slots=1, weights="bf16")
    sample = ahead["calls"][:: max(1, len(ahead["calls"]) // 400)]
    spent = stepping = 0.0
    for call in sample:  # in turns, so that a busy machine is as busy for both
        spent += call_seconds(backend, *call)
        stepping += call_seconds(backend, 1, 1)
    tokens = sum(stood for _, stood in sample)
    print(
        f"the 90.6 M model (bf16) with these calls: {tokens / len(sample):.2f} tokens a call, "
        f"{tokens * stepping / len(sample) / spent:.2f} times as fast as by steps"
    )


if __name__ == "__main__":
    main()
