"""ReSA with its sparse step as one kernel; prompt, rectification and refresh run on the Triton kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..binding import TORCH_DTYPES, check_cache, check_step
from ..cache import KVCache
from ..config import AttentionShape, SparseConfig
from ..cuda import nvrtc
from ..e4m3 import E4M3
from ..launch import can_run_on
from ..method import Stage, StepTensors, Traffic, Unsupported, register
from ..pipeline import SparseLayer
from ..resa import ResaChain
from ..workspace import BlockSparseLayer
from .layout import plan, row_bytes
from .memory import expected_exchange_bytes
from .served import MIN_CAPABILITY, misaligned, unsupported
from .step import bind

STAGE = "append+score+select+attend+merge"


@dataclass
class FusedLayer(SparseLayer):
    """One layer whose step is a single stage."""

    way = "fused"

    def stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """The whole step as one stage.

        Raises:
            TypeError, ValueError: a tensor of the step of the wrong dtype, shape, device or strides.
        """
        check_step(step, self.cache, self.shape.q_heads)
        assert self.summaries is not None
        run = bind(step, self.cache, self.summaries, self.work, self.config)
        return (Stage(STAGE, run, blocks=self.config.selected),)

    def traffic(self) -> dict[str, Traffic]:
        """Floor of the one stage: that of the whole step (synchronises)."""
        parts = super().traffic()
        return {STAGE: parts["total"], "total": parts["total"]}


@register("resa-fused")
class ResaFused(ResaChain):
    """The steps of `resa`, the same selection and the same rectification, each step one CUDA kernel."""

    layer_class = FusedLayer
    ranks_by = None  # quality is to be that of its own kernel, step by step

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why the fused step cannot run here: no such GPU, or nothing to compile it with. None if it can."""
        if device.type != "cuda":
            return f"needs a CUDA device, got {device.type}"
        if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
            return "needs thread-block clusters (compute capability 9.0 or later)"
        return can_run_on(device) or nvrtc.unavailable()

    @classmethod
    def step_bytes(
        cls, shape: AttentionShape, config: SparseConfig, dtype: torch.dtype, tokens: int, in_fp8: bool = False
    ) -> int:
        """What the clusters that share a row exchange; 0 for settings that are not served."""
        if unsupported(shape, config, dtype, in_fp8):
            return 0
        read = row_bytes(config, shape.head_dim, tokens, dtype.itemsize, 1 if in_fp8 else dtype.itemsize)
        return expected_exchange_bytes(shape, config, tokens, dtype.itemsize, read)

    def prepare(self, cache: KVCache) -> BlockSparseLayer:
        """Bind to a layer's cache, as `resa` does.

        Raises:
            Unsupported: settings that the fused step does not serve, or rows too long for shared memory.
            TypeError, ValueError: not a cache of this method's shape, dtype and device (`check_cache`).
        """
        check_cache(cache, self.shape, self.dtype, self.device, (*TORCH_DTYPES, E4M3))
        reason = refused(cache, self.shape, self.config)
        if reason:
            raise Unsupported(reason)
        return super().prepare(cache)


def refused(cache: KVCache, shape: AttentionShape, config: SparseConfig) -> str | None:
    """Why the fused step does not serve a cache of a device that it runs on, or None."""
    reason = unsupported(shape, config, cache.dtype, cache.in_fp8)
    reason = reason or misaligned(k_cache=(cache.k, 16), v_cache=(cache.v, 16))
    if reason:
        return reason
    try:
        plan(cache, shape.group, config)
    except ValueError as error:
        return str(error)
    return None
