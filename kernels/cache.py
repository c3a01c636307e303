"""The KV cache of one layer: contiguous or paged, head-major by default, any strides with unit last stride."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .checks import check_no_grad, check_range, check_same_strides, check_tensor, check_whole, usable_device
from .config import HEAD_DIMS, KV_DTYPES, MAX_ROWS, ceil_div
from .e4m3 import E4M3, decoded, encoded, scales_of

MAX_TOKENS = 1 << 28
"""Tokens that a sequence can hold at most: indices of tokens, and tiles of them times splits, fit 32 bits."""


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of one layer.

    `lengths` counts the tokens that attention sees. A decode step first adds one to it (once for all layers), then
    each layer writes its new token at position lengths - 1.

    In e4m3 an element stands for itself times the scale of its KV head, one for keys and one for values. `store` and
    `calibrate` choose the scales, by the first tokens. What is written later takes these scales, and saturates where it
    is larger than they allow: HEADROOM (e4m3.py) times the largest of the first tokens, at least.

    Attributes:
        k, v: contiguous `[B, Hkv, S, D]`, or pages `[P, Hkv, page, D]` when `block_table` is given.
        lengths: int32 `[B]`, tokens per sequence, on the device; may change in place between graph replays.
        block_table: int32 `[B, pages per sequence]`, the page that holds tokens page * i .. page * (i + 1) - 1.
        queries: `[B, w, Hq, D]`, those of the prompt's newest w tokens, where prefilling leaves them: what eviction
            judges by. Zeros stand before the queries of a prompt that is shorter.
        scales: float32 `[Hkv, 2]`, powers of two, of keys and of values in e4m3; None for other element types.
        read_as: of a cache in e4m3, the element type of queries, and what keys and values become before products.

    Raises:
        TypeError, ValueError: a tensor of the wrong type, shape, dtype, device or strides; elements that share memory;
            more than MAX_TOKENS tokens a sequence.
    """

    k: Tensor
    v: Tensor
    lengths: Tensor
    block_table: Tensor | None = None
    queries: Tensor | None = None
    scales: Tensor | None = None
    read_as: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_tensor("k", self.k, (None, None, None, None))
        if 0 in self.k.shape:
            raise ValueError(f"k: got shape {list(self.k.shape)}, every length must be at least 1")
        check_tensor("v", self.v, self.k.shape, dtypes=(self.k.dtype,), device=self.k.device)
        check_same_strides("v", self.v, "k", self.k)
        if any(stride < 1 for stride, length in zip(self.k.stride(), self.k.shape, strict=True) if length > 1):
            raise ValueError(f"k: strides {self.k.stride()} make elements share memory; pass k.contiguous()")
        if not self.k.is_meta and self.k.data_ptr() == self.v.data_ptr():
            raise ValueError("v: is k's memory; keys and values need a tensor each")
        check_no_grad("k", self.k)
        check_no_grad("v", self.v)
        if self.k.shape[3] not in HEAD_DIMS:
            raise ValueError(f"k: head dim is {self.k.shape[3]}, allowed are {HEAD_DIMS}")
        if (self.k.dtype == E4M3) != (self.scales is not None) or (self.scales is None) != (self.read_as is None):
            raise TypeError(f"k: got {self.k.dtype}; scales and read_as go with {E4M3}, and that with both")
        if self.scales is not None:
            check_tensor("scales", self.scales, (self.k.shape[1], 2), dtypes=(torch.float32,), device=self.k.device)
            if not self.scales.is_contiguous():
                raise ValueError("scales: must be contiguous")
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
        if self.queries is not None:
            shape = (self.lengths.shape[0], None, None, self.k.shape[3])
            check_tensor("queries", self.queries, shape, dtypes=(self.dtype,), device=self.device)
        check_whole("cache: capacity in tokens", self.capacity, 1, MAX_TOKENS)

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
        kv_dtype: str | None = None,
    ) -> KVCache:
        """An empty cache for `capacity` tokens a sequence; with `page_size`, pages in shuffled order.

        It holds zeros: some libraries multiply what lies past the length by zero, which NaN would survive.

        Args:
            kv_dtype: fp8 stores keys and values in e4m3, with scales of 1 until they are chosen; None: in `dtype`.

        Raises:
            TypeError, ValueError: a size that is no whole number or out of range, a device that is not here.
        """
        for name, value, most in (
            ("batch", batch, MAX_ROWS), ("kv_heads", kv_heads, MAX_ROWS), ("capacity", capacity, MAX_TOKENS),
        ):  # fmt: skip
            check_whole(name, value, 1, most)
        if head_dim not in HEAD_DIMS:
            raise ValueError(f"head_dim: got {head_dim}, allowed are {HEAD_DIMS}")
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype: got {dtype!r}, expected a torch.dtype, such as torch.bfloat16")
        if page_size is not None:
            check_whole("page_size", page_size, 1, MAX_TOKENS)
        if kv_dtype not in (None, *KV_DTYPES):
            raise ValueError(f"kv_dtype: got {kv_dtype!r}, allowed are {', '.join(KV_DTYPES)}, or None for dtype")
        device = usable_device(device)
        lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        stored, scales, read_as = dtype, None, None
        if kv_dtype is not None:
            stored, scales, read_as = E4M3, torch.ones(kv_heads, 2, device=device), dtype
        if page_size is None:
            k = torch.zeros(batch, kv_heads, capacity, head_dim, dtype=stored, device=device)
            return cls(k, torch.zeros_like(k), lengths, scales=scales, read_as=read_as)
        per_sequence = ceil_div(capacity, page_size)
        pages = batch * per_sequence
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(0)).to(torch.int32)
        k = torch.zeros(pages, kv_heads, page_size, head_dim, dtype=stored, device=device)
        table = order.view(batch, per_sequence).to(device)
        return cls(k, torch.zeros_like(k), lengths, table, scales=scales, read_as=read_as)

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.lengths.shape[0]

    @property
    def kv_heads(self) -> int:
        """KV heads of a sequence."""
        return self.k.shape[1]

    @property
    def head_dim(self) -> int:
        """Elements of a key, and of a value."""
        return self.k.shape[3]

    @property
    def paged(self) -> bool:
        """Whether tokens lie on pages that a block table names."""
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
        """Where keys, values, lengths and block table lie."""
        return self.k.device

    @property
    def dtype(self) -> torch.dtype:
        """Element type of queries, and of keys and values once they are read."""
        return self.read_as or self.k.dtype

    @property
    def scales_or_any(self) -> Tensor:
        """What kernels are given for the scales: another tensor, which they do not read, where there are none."""
        return self.lengths if self.scales is None else self.scales

    @property
    def in_fp8(self) -> bool:
        """Whether keys and values are stored in e4m3."""
        return self.scales is not None

    def check_values(self) -> None:
        """Check lengths and block table on the device (synchronises). Raises ValueError."""
        check_range("lengths", self.lengths, 0, self.capacity)
        if self.block_table is not None:
            check_range("block_table", self.block_table, 0, self.k.shape[0] - 1)

    def lengths_on_host(self) -> list[int]:
        """Tokens of each sequence (synchronises).

        Raises:
            ValueError: a sequence has fewer than 0 tokens, or more than it has room for.
        """
        lengths: list[int] = self.lengths.tolist()
        for b, length in enumerate(lengths):
            if not 0 <= length <= self.capacity:
                raise ValueError(
                    f"lengths: sequence {b} has {length} tokens, allowed 0 to the cache's capacity of {self.capacity}; "
                    "allocate room for more"
                )
        return lengths

    def gather(self) -> tuple[Tensor, Tensor]:
        """K and V as `[B, Hkv, S, D]` of `dtype`: views when contiguous, copies when paged or in e4m3."""
        k, v = logical(self.k, self.block_table), logical(self.v, self.block_table)
        if self.scales is None:
            return k, v
        return decoded(k, self.scales[:, 0], self.dtype), decoded(v, self.scales[:, 1], self.dtype)

    def read(self, sequence: int, length: int) -> tuple[Tensor, Tensor]:
        """K and V of a sequence's first tokens, `[1, Hkv, length, D]` of `dtype`; of contiguous caches."""
        k, v = (x[sequence, None, :, :length] for x in (self.k, self.v))
        if self.scales is None:
            return k, v
        return decoded(k, self.scales[:, 0], self.dtype), decoded(v, self.scales[:, 1], self.dtype)

    def calibrate(self, k: Tensor, v: Tensor) -> None:
        """Choose the scales by the first tokens, `[B, Hkv, T, D]`; nothing to do unless in e4m3. Does not wait."""
        if self.scales is not None:
            self.scales.copy_(torch.stack((scales_of(k), scales_of(v)), 1))

    def store(self, k: Tensor, v: Tensor) -> None:
        """Fill the cache's first tokens from `[B, Hkv, T, D]` of `dtype`, contiguous or paged (plain torch).

        Lengths stay as they are; scales are chosen.

        Raises:
            TypeError, ValueError: k or v of the wrong dtype, shape or device; more tokens than there is room for.
        """
        shape = (self.batch, self.kv_heads, None, self.head_dim)
        check_tensor("k", k, shape, dtypes=(self.dtype,), device=self.device, last_contiguous=False)
        check_tensor("v", v, k.shape, dtypes=(self.dtype,), device=self.device, last_contiguous=False)
        check_no_grad("k", k)
        check_no_grad("v", v)
        tokens = k.shape[2]
        if tokens > self.capacity:
            raise ValueError(f"k: {tokens} tokens do not fit the cache's capacity of {self.capacity}")
        if self.scales is not None and tokens:
            self.calibrate(k, v)
            k, v = encoded(k, self.scales[:, 0]), encoded(v, self.scales[:, 1])
        if self.block_table is None:
            self.k[:, :, :tokens], self.v[:, :, :tokens] = k, v
            return
        position = torch.arange(tokens, device=self.device)
        page, inside = self.block_table.long()[:, position // self.page_size], position % self.page_size
        for pages, new in ((self.k, k), (self.v, v)):
            as_indexed(pages)[page, :, inside] = as_indexed(new.transpose(1, 2))

    def clone(self) -> KVCache:
        """A cache of its own memory that holds the same, pages in the same places."""
        own = {n: x.clone() for n in ("k", "v", "lengths", "queries", "scales") if (x := getattr(self, n)) is not None}
        return replace(self, **own)


def logical(data: Tensor, block_table: Tensor | None) -> Tensor:
    """`[P, H, page, ...]` pages put in order as `[B, H, S, ...]`; unchanged without a table."""
    if block_table is None:
        return data
    pages = as_indexed(data)[block_table.long()]  # [B, pages, H, page, ...]
    return pages.transpose(1, 2).flatten(2, 3).view(data.dtype)


def as_indexed(data: Tensor) -> Tensor:
    """The same memory in a type that torch can index by tensors, which it cannot by e4m3 everywhere."""
    return data.view(torch.uint8) if data.dtype == E4M3 else data
