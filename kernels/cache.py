"""The KV cache of one layer: contiguous or paged, head-major by default, any strides with unit last stride."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_range, check_tensor
from .config import HEAD_DIMS, ceil_div


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of one layer.

    `lengths` counts the tokens that attention sees. A decode step first adds one to it (once for all layers), then
    each layer writes its new token at position lengths - 1.

    Attributes:
        k, v: contiguous `[B, Hkv, S, D]`, or pages `[P, Hkv, page, D]` when `block_table` is given.
        lengths: int32 `[B]`, tokens per sequence, on the device; may change in place between graph replays.
        block_table: int32 `[B, pages per sequence]`, the page that holds tokens page * i .. page * (i + 1) - 1.
    """

    k: Tensor
    v: Tensor
    lengths: Tensor
    block_table: Tensor | None = None

    def __post_init__(self) -> None:
        check_tensor("k", self.k, (None, None, None, None))
        check_tensor("v", self.v, self.k.shape, dtypes=(self.k.dtype,), device=self.k.device)
        if self.k.stride() != self.v.stride():
            raise ValueError(f"v: strides {self.v.stride()} differ from k's {self.k.stride()}")
        if self.k.shape[3] not in HEAD_DIMS:
            raise ValueError(f"k: head dim is {self.k.shape[3]}, allowed are {HEAD_DIMS}")
        batch = None if self.block_table is not None else self.k.shape[0]
        check_tensor("lengths", self.lengths, (batch,), dtypes=(torch.int32,), device=self.k.device)
        if self.block_table is not None:
            check_tensor(
                "block_table",
                self.block_table,
                (self.lengths.shape[0], None),
                dtypes=(torch.int32,),
                device=self.device,
            )

    @classmethod
    def allocate(
        cls,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        page_size: int | None = None,
    ) -> KVCache:
        """An empty cache for `capacity` tokens a sequence; with `page_size`, pages in shuffled order.

        It holds zeros: some libraries multiply what lies past the length by zero, which NaN would survive.
        """
        lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        if page_size is None:
            k = torch.zeros(batch, kv_heads, capacity, head_dim, dtype=dtype, device=device)
            return cls(k, torch.zeros_like(k), lengths)
        per_sequence = ceil_div(capacity, page_size)
        pages = batch * per_sequence
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(0)).to(torch.int32)
        k = torch.zeros(pages, kv_heads, page_size, head_dim, dtype=dtype, device=device)
        return cls(k, torch.zeros_like(k), lengths, order.view(batch, per_sequence).to(device))

    @property
    def batch(self) -> int:
        return self.lengths.shape[0]

    @property
    def kv_heads(self) -> int:
        return self.k.shape[1]

    @property
    def head_dim(self) -> int:
        return self.k.shape[3]

    @property
    def paged(self) -> bool:
        return self.block_table is not None

    @property
    def page_size(self) -> int:
        """Tokens a page; of a contiguous cache, its capacity."""
        return self.k.shape[2]

    @property
    def capacity(self) -> int:
        """Most tokens a sequence can hold."""
        return self.page_size * (self.block_table.shape[1] if self.block_table is not None else 1)

    @property
    def device(self) -> torch.device:
        return self.k.device

    @property
    def dtype(self) -> torch.dtype:
        return self.k.dtype

    def check_values(self) -> None:
        """Check lengths and block table on the device (synchronises). Raises ValueError."""
        check_range("lengths", self.lengths, 0, self.capacity)
        if self.block_table is not None:
            check_range("block_table", self.block_table, 0, self.k.shape[0] - 1)

    def gather(self) -> tuple[Tensor, Tensor]:
        """K and V as `[B, Hkv, S, D]`: views when contiguous, copies when paged."""
        return logical(self.k, self.block_table), logical(self.v, self.block_table)

    def store(self, k: Tensor, v: Tensor) -> None:
        """Fill the cache's first tokens from `[B, Hkv, T, D]`, contiguous or paged (plain torch)."""
        tokens = k.shape[2]
        if tokens > self.capacity:
            raise ValueError(f"k: {tokens} tokens do not fit the cache's capacity of {self.capacity}")
        if self.block_table is None:
            self.k[:, :, :tokens], self.v[:, :, :tokens] = k, v
            return
        position = torch.arange(tokens, device=self.device)
        page, inside = self.block_table.long()[:, position // self.page_size], position % self.page_size
        self.k[page, :, inside] = k.transpose(1, 2)
        self.v[page, :, inside] = v.transpose(1, 2)


def logical(data: Tensor, block_table: Tensor | None) -> Tensor:
    """`[P, H, page, ...]` pages put in order as `[B, H, S, ...]`; unchanged without a table."""
    if block_table is None:
        return data
    pages = data[block_table.long()]  # [B, pages, H, page, ...]
    return pages.transpose(1, 2).flatten(2, 3)
