"""The processes that torchrun starts to share one model: who this one is, and how they stay in step.

All of them measure the same cases in the same order, since each exchange needs every one. Rank 0 alone decides (which
case is next, how long to go on), reports and writes; the others are told.
"""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
WAIT = timedelta(minutes=30)  # for rank 0's next word: it may draw figures, or read a long file
PART_SECONDS = 30.0  # for parting in good order
MEET = timedelta(seconds=60)  # for the other ranks to fail as this one did


class _Hosts:
    """The ranks' hosts, beside whatever the default group's tensors go through: gloo, made by `Ranks.join`."""

    group: Any = None


class RankLost(Exception):
    """Another rank is gone, or failed where this one did not: nothing can go on."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that share a model: `rank` of `world`, `local` on its machine. By default it is alone.

    Raises:
        ValueError: the rank is outside the world.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"RANK: got {self.rank} with WORLD_SIZE {self.world}, must be 0 to {self.world - 1}")

    @classmethod
    def from_environment(cls) -> Self:
        """As torchrun says by RANK, WORLD_SIZE and LOCAL_RANK; alone without them. Raises ValueError."""
        rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        words = (rank, world, os.environ.get("LOCAL_RANK", rank))
        try:
            return cls(*map(int, words))
        except ValueError as error:
            text = str(error) if "must be" in str(error) else f"got {', '.join(words)}, expected numbers"
            raise ValueError(f"RANK, WORLD_SIZE, LOCAL_RANK: {text}") from None

    @classmethod
    def alone(cls, command: str) -> Ranks:
        """Of a command that shares no model. Raises ValueError where torchrun started several."""
        ranks = cls.from_environment()
        if ranks.world > 1:
            raise ValueError(f"under torchrun {command} would run {ranks.world} times; start it alone, on one GPU")
        return ranks

    @property
    def first(self) -> bool:
        """Whether this is the one that reports and writes."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """A GPU of its own; on a CPU the one there is. Raises ValueError for more ranks than GPUs."""
        if chosen.type != "cuda" or self.world == 1:
            return chosen
        if self.local >= torch.cuda.device_count():
            raise ValueError(f"LOCAL_RANK is {self.local}, but there are {torch.cuda.device_count()} GPUs here")
        return torch.device("cuda", self.local)

    def join(self, device: torch.device) -> None:
        """Meet the others: NCCL among GPUs, gloo for what the hosts tell each other."""
        if self.world == 1:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=WAIT, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=WAIT)
        _Hosts.group = dist.new_group(backend="gloo", timeout=WAIT)

    def leave(self) -> None:
        """Part from the others, in good order. (NCCL waits for captured graphs that hold its calls to be gone.)"""
        if self.world > 1 and dist.is_initialized():
            gc.collect()
            timer = threading.Timer(PART_SECONDS, os._exit, (0,))  # nothing is left to do but to part
            timer.daemon = True
            timer.start()
            dist.destroy_process_group()
            timer.cancel()
            _Hosts.group = None

    def same(self, value: T) -> T:
        """Rank 0's value, which pickles, on every rank."""
        if self.world == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, group=_Hosts.group)
        return box[0]  # type: ignore[no-any-return]

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, in their order; all must ask."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=_Hosts.group)
        return values

    def wait(self) -> None:
        """Wait until all hosts are here; nothing to do for one alone."""
        if self.world > 1:
            dist.barrier(group=_Hosts.group)

    def failed(self, error: BaseException) -> None:
        """Wait until all ranks have failed too, so that they go on together.

        Raises:
            RankLost: the others have not, or are gone.
        """
        if self.world == 1:
            return
        try:
            dist.monitored_barrier(group=_Hosts.group, timeout=MEET)
        except (RuntimeError, ValueError):
            words = " ".join(str(error).split())[:200] or type(error).__name__
            text = f"rank {self.rank} of {self.world} failed alone, or another rank is gone"
            raise RankLost(f"{text}: {words}") from error
