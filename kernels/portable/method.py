"""Methods in plain torch: block-sparse ones, what their layers share, and the dense rival of a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..attention.chunk import ChunkKernel, best_chunk_kernel
from ..attention.summaries import Summaries
from ..binding import check_cache, check_step
from ..cache import KVCache
from ..config import SELECTS, AttentionShape, SparseConfig
from ..method import DecodeMethod, DenseLayer, StepTensors, Unsupported, register
from ..selectors import Following, Selector, selector_of
from ..workspace import BlockSparseLayer, Workspace
from .layer import TorchSparseLayer
from .tokens import FP8, PAGED, refresh_torch, write_tokens_torch


class TorchSparseMethod(DecodeMethod):
    """Base of block-sparse methods in plain torch; `pipeline.SparseMethod` adds the kernels.

    What layers share, since they run one after another, lives here: work space, gathered blocks, the chunk kernel.
    """

    rectifies: ClassVar[bool] = False
    torch_layer_class: ClassVar[type[TorchSparseLayer]] = TorchSparseLayer

    def __init__(
        self, shape: AttentionShape, config: SparseConfig, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        if not isinstance(config, SparseConfig):
            raise TypeError(f"config: got {type(config).__name__}, expected a SparseConfig")
        super().__init__(shape, config, dtype=dtype, device=device)
        self.selector = selector_of(self.ranks_by, config)
        self._layers, self._handed = 0, dict[str, Tensor]()  # bound so far; what they hand on in a step
        self._chosen_blocks = 0  # that the cache of the last one that chooses has room for
        self._work: dict[int, Workspace] = {}  # by blocks of the cache; kept, since captured graphs hold addresses
        self._gathered: dict[int, tuple[Tensor, Tensor]] = {}  # by blocks gathered
        self._kernels: dict[str, ChunkKernel] = {}

    def rows(self) -> int:
        """Lists a sequence."""
        return self.selector.rows(self.shape, self.config)

    def workspace(self, cache: KVCache) -> Workspace:
        """Scores and lists for caches of this capacity, shared by all layers."""
        blocks = self.config.blocks(cache.capacity)
        if blocks not in self._work:
            self._work[blocks] = Workspace.allocate(self.config, self.rows(), cache)
        return self._work[blocks]

    @property
    def layer_period(self) -> int:
        """Layers after which the same ones choose again."""
        return len(self.selector.choosing)

    def chosen_by(self, cache: KVCache) -> Selector:
        """What the next layer's blocks are chosen by.

        Raises:
            Unsupported: its cache has room for more or fewer blocks than that of the layer whose lists it would read.
        """
        selector, blocks = self.selector.of_layer(self._layers, self.config), self.config.blocks(cache.capacity)
        if isinstance(selector, Following) and blocks != self._chosen_blocks:
            raise Unsupported(
                f"cache: has room for {blocks} blocks, the layer whose lists it reads for {self._chosen_blocks}; give "
                f"all layers caches of one capacity, or take a selector of every layer instead of {self.selector.name}"
            )
        return selector

    def summaries(self, cache: KVCache, selector: Selector) -> Summaries | None:
        """Room for a layer's summaries, or None where nothing is scored by them."""
        config = self.config
        if not selector.summarised:
            return None
        return Summaries.allocate(cache, config.block_size, config.summary_kind, config.summary_dtype)

    def kernel(self, cache: KVCache, name: str | None) -> ChunkKernel | None:
        """The chunk kernel that all layers share, or None where nothing is rectified."""
        if not self.rectifies:
            return None
        kernel = best_chunk_kernel(self.shape, cache, name)
        return self._kernels.setdefault(kernel.name, kernel)

    def number(self, layer: BlockSparseLayer) -> None:
        """Count a layer, and let it take from those before it what they hand on."""
        layer.index, layer.handed = self._layers, self._handed
        self._layers += 1
        if not isinstance(layer.selector, Following):
            self._chosen_blocks = self.config.blocks(layer.cache.capacity)

    def prepare(self, cache: KVCache) -> BlockSparseLayer:
        """Bind to a layer's cache: summaries built, work space allocated. Waits for the device.

        Raises:
            Unsupported: a paged cache, or one in fp8.
            TypeError, ValueError: not a cache of this method's shape, dtype and device, or one whose lengths are out of
                range (`check_cache`).
        """
        if isinstance(cache, KVCache) and cache.in_fp8:
            raise Unsupported(FP8)
        check_cache(cache, self.shape, self.dtype, self.device)
        if cache.paged:
            raise Unsupported(PAGED)
        selector = self.chosen_by(cache)
        summaries = self.summaries(cache, selector)
        if summaries is not None:
            refresh_torch(cache, summaries)
        count = max(self.rows(), cache.kv_heads) * self.config.selected(cache.capacity)
        if count not in self._gathered:
            size = self.config.block_size * cache.head_dim
            keys = torch.empty(count, size, dtype=cache.dtype, device=cache.device)
            self._gathered[count] = keys, torch.empty_like(keys)
        layer = self.torch_layer_class(
            cache,
            self.shape,
            self.config,
            selector,
            self.workspace(cache),
            summaries,
            self.kernel(cache, self.config.chunk_kernel or "torch"),
            self._gathered[count],
        )
        self.number(layer)
        return layer


@register("resa-torch")
class ResaTorch(TorchSparseMethod):
    """ReSA in plain torch (gather + SDPA): the method that is timed where there is no GPU."""

    rectifies = True
    device_type = "cpu"
    uses = (*SELECTS, "rectify_every")
    steps_like = "resa"
    ranks_by = "summary"


@register("torch-dense")
class TorchDense(DecodeMethod):
    """SDPA with the GQA group packed as query rows, so that K and V are read once: the dense rival on a CPU."""

    is_dense = True
    device_type = "cpu"

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why the method does not run here: on a GPU others are faster. None if it does."""
        return "is the CPU's dense rival; GPUs have better ones" if device.type == "cuda" else None

    def prepare(self, cache: KVCache) -> DenseLayer:
        """Bind to a layer's cache. Waits for the device.

        Raises:
            Unsupported: a paged cache, or one in fp8.
            TypeError, ValueError: as `check_cache` says.
        """
        if isinstance(cache, KVCache) and cache.in_fp8:
            raise Unsupported(FP8)
        check_cache(cache, self.shape, self.dtype, self.device)
        if cache.paged:
            raise Unsupported(PAGED)
        batch, group = cache.batch, self.shape.group

        def attend(step: StepTensors) -> Callable[[], None]:
            check_step(step, cache, self.shape.q_heads)
            query = step.q.reshape(batch, cache.kv_heads, group, cache.head_dim)
            out = step.out.view_as(query)

            def run() -> None:
                for b, length in enumerate(cache.lengths_on_host()):
                    k, v = cache.k[b, None, :, :length], cache.v[b, None, :, :length]
                    out[b] = scaled_dot_product_attention(query[b, None], k, v)[0]

            return run

        return DenseLayer(cache, self.shape.q_heads, attend, append=write_tokens_torch)
