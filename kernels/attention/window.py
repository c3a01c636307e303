"""What a layer remembers of the newest w tokens, so that later steps can repair their outputs (RetroAttention)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache import KVCache
from ..checks import check_tensor
from ..config import AttentionShape, SparseConfig

PIECE = 32  # dims of a row that a merging program takes


@dataclass(frozen=True, slots=True)
class Ring:
    """Results of the newest w tokens, at slot `position % w`, and when each block was last loaded.

    Steps are told apart by a clock that never goes back, so a sequence may be started anew at any time: what an earlier
    run left is older than any query of this one, and the results of its tokens are not asked for. The step whose
    clock is c is the one that fed the token of age now - c.

    Attributes:
        out: float32 `[B, w, Hq, D]`, normalised. In fp32, as it is merged w - 1 times: rounded to the cache's dtype
            each time it would be off by w roundings, in fp32 by the one of the output.
        lse: float32 `[B, w, Hq, D / PIECE]`, base-2 log-sum-exp of the scaled logits; the same value in every copy. The
            programs that merge a row's pieces run at once, and each replaces the one that it read.
        loaded: int32 `[B, Hkv, M]`, clock of the last step that loaded a block, of each KV head; 0 before the first.
        clock: int32 `[1]`, of the step under way, or of the next one; merging moves it on.
        query: `[B, w, Hq, D]`, the query that each token was fed with, where repairs go on using it; or None.
    """

    out: Tensor
    lse: Tensor
    loaded: Tensor
    clock: Tensor
    query: Tensor | None

    @classmethod
    def allocate(cls, shape: AttentionShape, config: SparseConfig, cache: KVCache, *, keeps_queries: bool) -> Ring:
        """An empty ring of `config.window` slots: nothing seen, no block ever loaded."""
        rows, device = (cache.batch, config.window, shape.q_heads), cache.device
        pieces = max(cache.head_dim // PIECE, 1)
        blocks = config.blocks(cache.capacity)
        query = torch.zeros(*rows, cache.head_dim, dtype=cache.dtype, device=device) if keeps_queries else None
        return cls(
            torch.zeros(*rows, cache.head_dim, dtype=torch.float32, device=device),
            torch.full((*rows, pieces), float("-inf"), dtype=torch.float32, device=device),
            torch.zeros(cache.batch, cache.kv_heads, blocks, dtype=torch.int32, device=device),
            torch.full((1,), config.window, dtype=torch.int32, device=device),  # the oldest query's clock is 1
            query,
        )

    def copy(self) -> Ring:
        """As it stands now."""
        query = None if self.query is None else self.query.clone()
        return Ring(self.out.clone(), self.lse.clone(), self.loaded.clone(), self.clock.clone(), query)

    @property
    def slots(self) -> int:
        """w: tokens a sequence that the ring remembers."""
        return self.out.shape[1]

    def check(self, shape: AttentionShape, cache: KVCache, blocks: int, tokens: int) -> None:
        """Raises TypeError, ValueError unless the ring is of this shape and has a slot for each of the tokens."""
        if not 1 <= tokens <= self.slots:
            raise ValueError(f"q: {tokens} tokens a sequence, allowed 1 to the ring's {self.slots} slots")
        rows, device = (cache.batch, self.slots, shape.q_heads), cache.device
        pieces = max(cache.head_dim // PIECE, 1)
        check_tensor("ring.out", self.out, (*rows, cache.head_dim), dtypes=(torch.float32,), device=device)
        check_tensor("ring.lse", self.lse, (*rows, pieces), dtypes=(torch.float32,), device=device)
        check_tensor(
            "ring.loaded", self.loaded, (cache.batch, cache.kv_heads, blocks), dtypes=(torch.int32,), device=device
        )
        check_tensor("ring.clock", self.clock, (1,), dtypes=(torch.int32,), device=device)
        if self.query is not None:
            check_tensor("ring.query", self.query, (*rows, cache.head_dim), dtypes=(cache.dtype,), device=device)

    def forget(self) -> None:
        """Let the window's tokens see all that the next step loads as new, instead of going on with what they had.

        For when lengths were set back: slots that lie beyond have taken the places of older tokens.
        """
        self.lse.fill_(float("-inf"))
        self.loaded.zero_()

    def latest(self) -> Tensor:
        """Blocks that the latest step loaded, bool `[B, Hkv, M]`. After a step, not within one."""
        return self.loaded == self.clock - 1

    def in_window(self) -> Tensor:
        """Blocks that any of the last w steps loaded: what the oldest query of the window has seen. After a step."""
        return self.loaded >= self.clock - self.slots
