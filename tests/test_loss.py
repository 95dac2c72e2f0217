"""The restricted softmax: equal to a plain softmax over the legal members, position by position, and so is its
gradient."""

import numpy as np
import torch
from learn_data import random_session, small_vocabulary

from netssmd.learn.loss import Head, plan, restricted_loss


def problem(length: int = 60) -> tuple[Head, np.ndarray, np.ndarray, torch.Tensor, torch.Tensor]:
    vocabulary = small_vocabulary()
    tokens, limits, _ = random_session(vocabulary, length, np.random.default_rng(3))
    torch.manual_seed(0)
    hidden = torch.randn(2, length // 2, 8, dtype=torch.float32, requires_grad=True)
    table = torch.randn(vocabulary.rows, 8, requires_grad=True)
    return Head.of(vocabulary.fields), tokens.reshape(2, -1), limits.reshape(2, -1), hidden, table


def plain(
    head: Head, tokens: np.ndarray, limits: np.ndarray, hidden: torch.Tensor, table: torch.Tensor
) -> list[torch.Tensor]:
    losses = []
    for h, token, limit in zip(hidden.reshape(-1, 8), tokens.reshape(-1), limits.reshape(-1), strict=True):
        lo, hi, tail = head.spans[head.field_of[token]]
        legal = [m for m in range(lo, hi) if m < limit or m >= tail]
        losses.append(-torch.log_softmax(table[legal] @ h, 0)[legal.index(token)])
    return losses


def test_equals_the_softmax_over_legal_members() -> None:
    head, tokens, limits, hidden, table = problem()
    where = plan(head, tokens, limits)
    mean, losses = restricted_loss(hidden, table, where)
    expected = torch.stack(plain(head, tokens, limits, hidden, table))
    torch.testing.assert_close(losses, expected.detach()[where.order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, expected.mean(), rtol=1e-5, atol=1e-5)
    got = torch.autograd.grad(mean, (hidden, table), retain_graph=True)
    for mine, reference in zip(got, torch.autograd.grad(expected.mean(), (hidden, table)), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)


def test_positions_left_out_have_no_say() -> None:
    head, tokens, limits, hidden, table = problem()
    where = np.zeros(tokens.shape, np.bool_)
    where[1, :7] = True
    mean, losses = restricted_loss(hidden, table, plan(head, tokens, limits, where))
    expected = torch.stack(plain(head, tokens, limits, hidden, table)).reshape(tokens.shape)[1, :7]
    assert len(losses) == 7
    torch.testing.assert_close(mean, expected.mean(), rtol=1e-5, atol=1e-5)
    gradient = torch.autograd.grad(mean, hidden)[0]
    assert not gradient[0].any() and not gradient[1, 7:].any()


def test_an_illegal_member_gets_no_gradient_and_a_tail_member_does() -> None:
    vocabulary = small_vocabulary()
    head = Head.of(vocabulary.fields)
    acked = vocabulary.fields[15]
    hidden, table = torch.ones(1, 1, 4), torch.zeros(vocabulary.rows, 4, requires_grad=True)
    where = plan(head, np.array([[acked.lo]], np.uint16), np.array([[acked.lo + 2]], np.uint16))
    mean, _ = restricted_loss(hidden, table, where)
    torch.testing.assert_close(mean, torch.tensor(float(np.log(2 + acked.tail))))
    rows = torch.autograd.grad(mean, table)[0].any(1).nonzero().flatten().tolist()
    last = acked.lo + acked.size
    assert rows == [acked.lo, acked.lo + 1, *range(last - acked.tail, last)]
