"""Several processes, one training: what `torchrun` starts on the GPUs or cores of one machine or many.

Each rank has all of the model and some of the streams. A step's gradients are those of its own streams, divided by the
whole step's positions, and summed over the ranks; so every rank makes the same step, and a training on N ranks is the
training on one, to the order of a sum. Rank 0 keeps the clock, validates, logs and writes; its folder is resumed by any
number of ranks.

torchrun tells each process its place by RANK, WORLD_SIZE and LOCAL_RANK (see PyTorch's manual of it).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=24)  # a rank waits for rank 0's validation
BUCKET = 1 << 24  # numbers summed at once


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place. `local`: among those of its machine, of which there are `beside`."""

    rank: int = 0
    world: int = 1
    local: int = 0
    beside: int = 1

    @property
    def leads(self) -> bool:
        """Does this process log and write?"""
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over the ranks, in place: many in one message."""
        if self.world == 1:
            return
        waiting: list[Tensor] = []
        size = 0
        for tensor in [*tensors, None]:
            if tensor is None or size + tensor.numel() > BUCKET:
                self._sum_bucket(waiting)
                waiting, size = [], 0
            if tensor is not None:
                waiting.append(tensor)
                size += tensor.numel()

    def _sum_bucket(self, tensors: list[Tensor]) -> None:
        if not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        at = 0
        for tensor in tensors:
            tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
            at += tensor.numel()

    def agree(self, elapsed: float, stop: bool, device: torch.device) -> tuple[float, bool]:
        """Rank 0's clock, and whether anybody was asked to stop."""
        if self.world == 1:
            return elapsed, stop
        news = torch.tensor([elapsed if self.leads else 0.0, float(stop)], dtype=torch.float64, device=device)
        dist.all_reduce(news)
        return float(news[0]), bool(news[1] > 0)

    def gather(self, mine: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """On rank 0 every rank's tensor, in order; elsewhere nothing. `shapes`: by rank."""
        if self.world == 1:
            return [mine]
        if not self.leads:
            dist.send(mine.contiguous(), 0)
            return []
        found = [mine]
        for rank in range(1, self.world):
            theirs = torch.empty(shapes[rank], dtype=mine.dtype, device=mine.device)
            dist.recv(theirs, rank)
            found.append(theirs)
        return found

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Joins the processes that torchrun started, if it did. `device`: machine.device of the training file."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpu = torch.cuda.is_available() and device != "cpu"
    if gpu:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpu else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(int(os.environ["RANK"]), world, local, int(os.environ.get("LOCAL_WORLD_SIZE", str(world))))
    finally:
        dist.destroy_process_group()
