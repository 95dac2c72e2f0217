"""How fast the model trains on this CPU: compiled kernels against plain PyTorch, in turns within one run.

    python tools/bench_training.py [--headdim 64] [--chunk 64] [--threads 2]

Prints tokens/s of forward, backward and AdamW in bf16, best of the rounds, because others may run on the machine.
"""

import argparse
import time

import torch

from netssmd.model import mixer_cpu
from netssmd.model.config import ModelConfig
from netssmd.model.mamba2 import Mamba2LM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"d-model": 192, "layers": 6, "headdim": 64, "chunk": 64, "batch": 16, "time": 512}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=6)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=o.d_model, n_layer=o.layers, vocab_size=2500, rows=3500, headdim=o.headdim, chunk_size=o.chunk
    )
    model = Mamba2LM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    rows = torch.randint(0, config.rows, (o.batch, o.time, 16))
    reset = torch.rand(o.batch, o.time) < 1 / 500
    target = torch.randint(0, 256, (o.batch * o.time,))

    def step(kernels: bool) -> float:
        model.kernels = kernels
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            hidden, _ = model(rows, None, reset)
            logits = model.logits(hidden, 0, 256).flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()
        optimizer.zero_grad()
        return o.batch * o.time / (time.perf_counter() - begin)

    best = {True: 0.0, False: 0.0}
    for round_ in range(o.rounds + 1):
        for kernels in best:
            rate = step(kernels)
            best[kernels] = max(best[kernels], rate) if round_ else 0.0
    print(f"{config.parameters:,} parameters, {o.threads} threads, batch {o.batch} x {o.time}")
    print(f"plain PyTorch {best[False]:,.0f} tokens/s; compiled kernels {best[True]:,.0f} tokens/s", end="")
    print(f", {best[True] / best[False]:.1f}x" if mixer_cpu.library() is not None else " (none: no compiler)")


if __name__ == "__main__":
    main()
