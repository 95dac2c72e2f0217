"""The loss: at each position, the softmax over what the decoder would let the sampler draw there, and nothing else.

The target's field spans tokens [lo, hi). Its last `tail` members can be encoded but are never drawn; of the others
those before the position's `limit` are legal. So the sum runs over [lo, limit) and [hi - tail, hi).

Positions are sorted by field; a field is one matrix product with its own rows of the (tied) head. Loss and gradient
come out of the same pass, so no logits are kept, and the head's gradient is written once instead of once a field.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from netssmd.learn.dataset import U16

BITS = 1.4426950408889634  # bits in a nat


@dataclass(frozen=True, slots=True)
class Head:
    """The fields of the vocabulary as the loss needs them."""

    spans: tuple[tuple[int, int, int], ...]  # lo, hi, first of the tail
    field_of: npt.NDArray[np.int64]  # [V] field of each token

    @classmethod
    def of(cls, fields: Sequence[Any]) -> "Head":
        """Argument: the vocabulary's fields, which have lo, size, tail."""
        spans = tuple((f.lo, f.lo + f.size, f.lo + f.size - f.tail) for f in fields)
        field_of = np.zeros(max(hi for _, hi, _ in spans), np.int64)
        for at, (lo, hi, _) in enumerate(spans):
            field_of[lo:hi] = at
        return cls(spans, field_of)


@dataclass(frozen=True, slots=True)
class Group:
    """The positions of one field: [begin, end) of the sorted order."""

    begin: int
    end: int
    lo: int
    hi: int
    tail: int
    masked: bool  # whether a limit excludes anything at any of these positions


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each target lies in the sorted order; made on the CPU from the batch, before the model runs."""

    order: Tensor  # int64 [n] positions sorted by field
    targets: Tensor  # int64 [n] in that order
    limits: Tensor  # int64 [n]
    groups: tuple[Group, ...]


def plan(head: Head, targets: U16, limits: U16, where: npt.NDArray[np.bool_] | None = None) -> Plan:
    """Sort positions by field. `where` leaves positions out. All arrays [B, T]; positions are numbered b * T + t."""
    flat, bounds = targets.reshape(-1).astype(np.int64), limits.reshape(-1).astype(np.int64)
    fields = head.field_of[flat]
    if where is not None:
        fields = np.where(where.reshape(-1), fields, len(head.spans))
    order = np.argsort(fields, kind="stable")
    counts = np.bincount(fields, minlength=len(head.spans) + 1)[: len(head.spans)]
    order = order[: counts.sum()]
    flat, bounds = flat[order], bounds[order]
    groups = []
    begin = 0
    for (lo, hi, tail), count in zip(head.spans, counts.tolist(), strict=True):
        if count:
            end = begin + count
            groups.append(Group(begin, end, lo, hi, tail, bool((bounds[begin:end] < tail).any())))
            begin = end
    return Plan(torch.from_numpy(order), torch.from_numpy(flat), torch.from_numpy(bounds), tuple(groups))


def group_logits(hidden: Tensor, table: Tensor, where: Plan, group: Group) -> Tensor:
    """fp32 [n, hi - lo]: the scores of a field's members, illegal ones minus infinity."""
    span = slice(group.begin, group.end)
    logits = (hidden[span] @ table[group.lo : group.hi].t()).float()
    if group.masked:
        columns = torch.arange(group.lo, group.hi, device=hidden.device)
        illegal = (columns >= where.limits[span, None]) & (columns < group.tail)
        logits.masked_fill_(illegal, -torch.inf)
    return logits


class _Restricted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, where: Plan, scale: float) -> tuple[Tensor, Tensor]:
        """hidden [n, D] sorted, table [rows, D]: sum of the losses times scale, and each loss [n]."""
        losses = torch.empty(len(hidden), device=hidden.device)
        wants = any(ctx.needs_input_grad)
        d_hidden = torch.empty_like(hidden) if wants else None
        d_table = torch.zeros_like(table) if wants else None
        for group in where.groups:
            span = slice(group.begin, group.end)
            logits = group_logits(hidden, table, where, group)
            target = (where.targets[span] - group.lo).unsqueeze(1)
            log_p = torch.log_softmax(logits, 1)
            losses[span] = -log_p.gather(1, target).squeeze(1)
            if d_hidden is None or d_table is None:
                continue
            gradient = log_p.exp_()
            gradient.scatter_add_(1, target, torch.full_like(target, -1, dtype=gradient.dtype))
            gradient = gradient.mul_(scale).to(hidden.dtype)
            torch.mm(gradient, table[group.lo : group.hi], out=d_hidden[span])
            torch.mm(gradient.t(), hidden[span], out=d_table[group.lo : group.hi])
        if d_hidden is not None and d_table is not None:
            ctx.save_for_backward(d_hidden, d_table)
        ctx.mark_non_differentiable(losses)
        return losses.sum() * scale, losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_table = ctx.saved_tensors
        return d_hidden * gradients[0], d_table * gradients[0], None, None


def restricted_loss(hidden: Tensor, table: Tensor, where: Plan, total: int | None = None) -> tuple[Tensor, Tensor]:
    """
    Arguments: hidden [B, T, D]; table [rows, D], the embedding; where: the targets' plan, on the same device; total:
    the positions of the whole batch where this is a part of it.
    Return: the loss in nats, summed over the planned positions and divided by `total` (their number); every loss [n] in
    the plan's order, without a gradient.
    """
    total = len(where.order) if total is None else total
    chosen = hidden.reshape(-1, hidden.shape[-1]).index_select(0, where.order)
    with torch.autocast(hidden.device.type, enabled=False):
        mean, losses = _Restricted.apply(chosen.float(), table, where, 1.0 / max(1, total))  # type: ignore[no-untyped-call]
    return mean, losses


def to_device(where: Plan, device: torch.device) -> Plan:
    return Plan(where.order.to(device), where.targets.to(device), where.limits.to(device), where.groups)
