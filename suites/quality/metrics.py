"""How far one model's output lies from another's: pure functions on logits, keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One step, each `[B]` on the CPU.

    Attributes:
        kl: KL(dense || method) of the next-token distributions, nats.
        top1: 1 where both rank the same token first.
        loss: of the method, minus the log-likelihood of the token that follows, nats; `extra_loss` over dense.
        kv_error: relative 2-norm distance of the step's key and value to dense's, mean over layers.
    """

    kl: Tensor
    top1: Tensor
    loss: Tensor
    extra_loss: Tensor
    kv_error: Tensor


def compare_logits(dense: Tensor, method: Tensor, following: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL, agreement, the method's loss and its excess, each float32 `[B]`.

    Args:
        dense, method: logits `[B, vocab]`, any dtype.
        following: int64 `[B]`, the token that comes next.
    """
    p, q = dense.float().log_softmax(-1), method.float().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).clamp(min=0)
    top1 = (p.argmax(-1) == q.argmax(-1)).float()
    loss = -q.gather(-1, following[:, None])[:, 0]
    return kl, top1, loss, loss + p.gather(-1, following[:, None])[:, 0]


def step_metrics(compared: Tensor, kv_error: Tensor) -> list[StepMetrics]:
    """Metrics of T steps, brought to the CPU at once.

    Args:
        compared: `[4, T, B]`, what `compare_logits` found at each step.
        kv_error: `[T, B]`.
    """
    columns = torch.cat((compared, kv_error[None])).cpu()
    return [StepMetrics(*one) for one in columns.unbind(1)]


def relative_error(mine: Tensor, theirs: Tensor) -> Tensor:
    """||mine - theirs|| / ||theirs|| over all but the first dimension, float32 `[B]`."""
    difference = (mine.float() - theirs.float()).flatten(1).norm(dim=1)
    return difference / theirs.float().flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)


def kv_error(mine: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> Tensor:
    """Mean relative error of keys and values, each `[T, B, Hkv, D]`: float32 `[T, B]`."""
    steps = len(mine[0])
    both = [relative_error(a.flatten(0, 1), b.flatten(0, 1)) for a, b in zip(mine, theirs, strict=True)]
    return ((both[0] + both[1]) / 2).view(steps, -1)
