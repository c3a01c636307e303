"""The interface that every method, sparse or dense, offers to the suites, and the registry of methods.

A `DecodeMethod` is built for a shape and its settings; `prepare(cache)` binds it to one layer's cache and returns a
`Layer`. A layer offers its decode step as named stages that can be timed apart or captured as one CUDA graph; stages
have their tensors bound and, unless they say that they are not graph-safe, allocate nothing and never synchronise.
Work space that layers can share lives in the method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .attention.summaries import write_tokens
from .binding import check_step
from .cache import KVCache
from .config import AttentionShape, SparseConfig
from .launch import can_read_fp8
from .registry import entry


class Unsupported(ValueError):
    """A method cannot serve this kind of cache (paged, ragged ...): its row is skipped, with this reason."""


def check_readable(cache: KVCache) -> None:
    """Raises Unsupported for a cache in fp8 on a device whose Triton kernels cannot read it."""
    if cache.in_fp8 and (reason := can_read_fp8(cache.device)):
        raise Unsupported(f"cache: is in fp8; {reason}")


class NotHere(RuntimeError):
    """Something that could be installed or fetched is missing: rows are skipped, with this reason."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One named part of a step (the vocabulary of docs/measuring.md) and the call that enqueues it."""

    name: str
    run: Callable[[], None]
    graph_safe: bool = True  # False: allocates or synchronises, so it cannot be captured
    blocks: Callable[[int], int] | None = None
    """Blocks a row that it selects or reads of a sequence of so many tokens, where it chooses; for whoever traces."""


@dataclass(frozen=True, slots=True)
class StepTensors:
    """Inputs and output of one decode step: q, out `[B, Hq, D]`; k, v `[B, Hkv, D]`; all contiguous."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor


@dataclass(frozen=True, slots=True)
class ChunkTensors:
    """Inputs and output of a rectification of f tokens: q, out `[B, f, Hq, D]`; k, v `[B, f, Hkv, D]`."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor


@dataclass(frozen=True, slots=True)
class WindowTensors:
    """Inputs and output of a step of n tokens a sequence, the newest last, of which the older ones were fed before.

    q, out `[B, n, Hq, D]`; k, v `[B, n, Hkv, D]`; all contiguous. `first` int32 `[B]`: the position of the first token
    that decoding fed. Rows before it are the prompt's: their K and V stay, nothing is attended for them, and their
    output is zero.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    first: Tensor

    @property
    def tokens(self) -> int:
        """w."""
        return self.q.shape[1]

    @property
    def newest(self) -> StepTensors:
        """Views of the newest token's row, strided over the sequences."""
        return StepTensors(self.q[:, -1], self.k[:, -1], self.v[:, -1], self.out[:, -1])


@dataclass(frozen=True, slots=True)
class Traffic:
    """Compulsory work of a stage: bytes (each input read once, each output written once) and floating-point ops."""

    bytes: int
    flops: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True, slots=True)
class Selection:
    """What a sparse step read: lists int32 `[B, R, N]`, -1 padded, of blocks of `block_size` tokens."""

    lists: Tensor
    block_size: int


class Layer(ABC):
    """A method bound to one layer's cache."""

    cache: KVCache
    rounds_to: torch.dtype | None = None
    """What a library rounds queries and probabilities to before products, where not to the type of queries."""
    way: ClassVar[str | None] = None
    """What runs a block-sparse step: `chain` (a kernel a stage), `fused` (one kernel); None for other steps."""

    @abstractmethod
    def stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """The decode step in order; `output(step)` holds the result after the last stage."""

    def output(self, step: StepTensors) -> Tensor:
        """Where the step leaves its result, `[B, Hq, D]`: `step.out`, or a library's own tensor (a copy costs time)."""
        return step.out

    @property
    def chunk_kernel(self) -> str | None:
        """The kernel (attention/chunk.py) that rectification attends with; None for methods without one."""
        return None

    @property
    def window(self) -> int:
        """Newest tokens that a step runs, the fed one included; over 1 for methods that repair earlier outputs."""
        return 1

    def window_stages(self, window: WindowTensors) -> tuple[Stage, ...]:
        """The decode step of a method with a window, in place of `stages`; `window.out` holds the result."""
        raise NotImplementedError(f"{type(self).__name__} runs one token a step; it has no window")

    def rectify_stages(self, chunk: ChunkTensors) -> tuple[Stage, ...]:
        """Rectification of the last f tokens: `overwrite`, then dense attention; empty for methods without one."""
        return ()

    def rectified(self, chunk: ChunkTensors) -> Tensor:
        """Where the latest rectification left its result, `[B, f, Hq, D]`: `chunk.out`, or a library's own tensor."""
        return chunk.out

    def overwrite(self, chunk: ChunkTensors) -> None:
        """Write K and V of the last f tokens and refresh what is derived from them (summaries); no attention."""
        raise NotImplementedError(f"{type(self).__name__} does not overwrite tokens")

    def refresh(self, tokens: int) -> None:  # noqa: B027 (nothing to do where nothing is derived)
        """Derive again, from the cache's keys, what is derived from the last `tokens` tokens of each sequence.

        For when lengths were set back: K and V beyond them are void, and nothing may be derived from those.
        """

    @abstractmethod
    def traffic(self) -> dict[str, Traffic]:
        """Compulsory work per stage and of `total`, at the cache's present lengths (synchronises)."""

    def rectify_traffic(self, tokens: int) -> Traffic:
        """Compulsory work of rectifying `tokens` tokens."""
        return Traffic(0)

    def selection(self) -> Selection | None:
        """The lists of the last step; None when everything was read."""
        return None


class DecodeMethod(ABC):
    """A way of doing one decode step of attention."""

    name: ClassVar[str]
    is_dense: ClassVar[bool] = False
    fixes_length: ClassVar[bool] = False
    """True if a captured step serves only the lengths that it was bound at; others need a new `prepare`."""
    evicts: ClassVar[bool] = False
    """True if it drops keys and values for good: what it keeps is all that it needs memory for."""
    in_default: ClassVar[bool] = True
    """False for a method that runs only when it is named."""
    joins: ClassVar[tuple[str, ...]] = ("micro", "decode", "quality", "tasks")
    """The suites whose default lists it joins, at one setting, where they do not name it themselves."""
    device_type: ClassVar[str | None] = None
    """`cuda` or `cpu`: default lists of other devices leave it out."""
    uses: ClassVar[tuple[str, ...]] = ()
    """The fields of SparseConfig that make a difference to this method; the rest stays out of its rows."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """What its name alone means, in every command: settings that differ from SparseConfig's defaults."""
    named: ClassVar[tuple[str, ...]] = ("block_size",)
    """The settings that the name of a variant always says; others where they differ from the defaults."""
    steps_like: ClassVar[str | None] = None
    """The method whose steps it computes another way: the same selection, and so the same quality."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions that it runs, by name: rows say their versions, and another version is measured again."""
    reads_fp8: ClassVar[bool] = False
    """Whether it serves caches that store keys and values in e4m3; others are refused by `layer_of`."""
    ranks_by: ClassVar[str | None] = None
    """The selector (selectors/) of its blocks; `summary`: that of its settings; None: only its own steps can tell."""

    def __init__(
        self, shape: AttentionShape, config: SparseConfig, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape, self.config, self.dtype, self.device = shape, config, dtype, device

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why the method cannot run here, or None if it can."""
        return None

    @classmethod
    def step_bytes(
        cls, shape: AttentionShape, config: SparseConfig, dtype: torch.dtype, tokens: int, in_fp8: bool = False
    ) -> int:
        """Device memory that the bound steps of one layer take for themselves, for plans made without a device.

        What layers share (scores, lists) does not count.

        Args:
            tokens: that the cache has room for, a sequence.
            in_fp8: keys and values are stored in e4m3.
        """
        return 0

    @property
    def layer_period(self) -> int:
        """Layers after which those of the method are alike again: more than 1 where some read the lists of others."""
        return 1

    @abstractmethod
    def prepare(self, cache: KVCache) -> Layer:
        """Bind to a layer's cache as it stands (summaries built, plans made, work space allocated).

        Raises:
            Unsupported: the method does not serve this kind of cache.
        """


def layer_of(method: DecodeMethod, cache: KVCache) -> Layer:
    """Bind a method to a layer's cache (`DecodeMethod.prepare`). Raises Unsupported for one in fp8 that it cannot read.

    For callers that do not know what the cache is: a method that knows nothing of scales would read bare numbers.
    """
    if cache.in_fp8 and not method.reads_fp8:
        raise Unsupported(f"cache: {method.name} reads no keys and values in fp8")
    return method.prepare(cache)


_registry: dict[str, type[DecodeMethod]] = {}
M = TypeVar("M", bound=type[DecodeMethod])


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a method known by `name` to every suite, table, plot. Raises ValueError for a taken one."""
    return entry(_registry, "method", name)  # type: ignore[return-value]


def registered() -> dict[str, type[DecodeMethod]]:
    """Every known method by name, in order of registration."""
    return dict(_registry)


def get_method(name: str) -> type[DecodeMethod]:
    """Raises KeyError naming the known methods."""
    if name not in _registry:
        raise KeyError(f"no method {name!r}; known are {', '.join(_registry)}")
    return _registry[name]


@dataclass
class DenseLayer(Layer):
    """A dense step: write the new token, attend over everything. Rivals give `attend` alone.

    `attend(step)` binds a step and returns the call that runs it; that call returns the library's own result, or None
    if it fills `step.out`. `append(cache, k, v)` takes one token a sequence, `[B, Hkv, D]`, or several,
    `[B, T, Hkv, D]`.
    """

    cache: KVCache
    q_heads: int
    attend: Callable[[StepTensors], Callable[[], Tensor | None]]
    append: Callable[[KVCache, Tensor, Tensor], None] = field(default=write_tokens)
    rounds_to: torch.dtype | None = None
    _result: Tensor | None = None

    def stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """Append and attend.

        Raises:
            TypeError, ValueError: a tensor of the step of the wrong dtype, shape, device or strides (`check_step`).
        """
        check_step(step, self.cache, self.q_heads)
        attend = self.attend(step)

        def run() -> None:
            self._result = attend()

        return (Stage("append", lambda: self.append(self.cache, step.k, step.v)), Stage("attend", run))

    def output(self, step: StepTensors) -> Tensor:
        return step.out if self._result is None else self._result.view_as(step.out)

    def overwrite(self, chunk: ChunkTensors) -> None:
        self.append(self.cache, chunk.k, chunk.v)

    def traffic(self) -> dict[str, Traffic]:
        return dense_traffic(self.cache, self.q_heads)


def dense_traffic(cache: KVCache, q_heads: int) -> dict[str, Traffic]:
    """Floors of a dense step: all K and V, the query and the output; the new token read and written."""
    size, stored, dim = cache.dtype.itemsize, cache.k.element_size(), cache.head_dim
    tokens = int(cache.lengths.sum())
    io = 2 * cache.batch * q_heads * dim * size
    attend = Traffic(2 * tokens * cache.kv_heads * dim * stored + io, 4 * tokens * q_heads * dim)
    append = Traffic(2 * cache.batch * cache.kv_heads * dim * (size + stored))
    return {"append": append, "attend": attend, "total": append + attend}


def chunk_traffic(cache: KVCache, q_heads: int, tokens: int) -> Traffic:
    """Floor of dense attention of the last `tokens` tokens, whose K and V are overwritten first."""
    size, stored, dim = cache.dtype.itemsize, cache.k.element_size(), cache.head_dim
    keys = int(cache.lengths.sum())
    chunk = cache.batch * tokens
    io = 2 * chunk * q_heads * dim * size + 2 * chunk * cache.kv_heads * dim * (size + stored)
    return Traffic(2 * keys * cache.kv_heads * dim * stored + io, 4 * keys * tokens * q_heads * dim)
