"""What the ranks of a model tell each other in a pass: sums of hidden states, and their rows of the logits.

Everything goes through torch.distributed: NCCL on GPUs, where calls are captured with the rest of a step, gloo on CPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from .shard import Shard

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name from torch 2.13 on


@dataclass(frozen=True, slots=True)
class Exchange:
    """The exchange of one rank with the others of the default process group; none where it is simulated."""

    shard: Shard

    @property
    def adds_residual(self) -> bool:
        """Whether this rank's sums contain the residual: one of them must."""
        return self.shard.rank == 0

    def add(self, x: Tensor) -> Tensor:
        """The sum over ranks of hidden states `[rows, hidden]`, in place."""
        if not self.shard.simulated:
            dist.all_reduce(x)
        return x

    def gather(self, logits: Tensor) -> Tensor:
        """Logits `[rows, vocab]` of all ranks' shares `[rows, vocab / ranks]`; simulated: the share."""
        if self.shard.simulated:
            return logits
        shares = logits.new_empty(self.shard.ranks * len(logits), logits.shape[1])
        _all_gather(shares, logits)
        return shares.view(self.shard.ranks, *logits.shape).transpose(0, 1).reshape(len(logits), -1)


def exchange_of(shard: Shard) -> Exchange:
    """Raises RuntimeError where the ranks have not met: no process group of as many."""
    if not shard.simulated and not (dist.is_initialized() and dist.get_world_size() == shard.ranks):
        raise RuntimeError(f"a model over {shard.ranks} ranks needs a process group of as many: start it by torchrun")
    return Exchange(shard)
