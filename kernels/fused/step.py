"""Launching the fused step: its checks and its arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from ..attention.summaries import Summaries, check_new
from ..cache import KVCache
from ..checks import check_tensor
from ..config import AttentionShape, SparseConfig
from ..cuda import nvrtc
from ..method import StepTensors
from ..workspace import Workspace
from . import compiler
from .layout import Plan, constants, exchanged, plan
from .served import misaligned, unsupported

THREADS = 256  # as in layout.cuh
LOG2_E = 1.4426950408889634


class _Arguments(ctypes.Structure):
    """`Arguments` of layout.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "q", "summaries", "scores", "lists", "counts", "lengths", "table", "k_cache", "v_cache", "k_new", "v_new",
            "scales", "out", "exchange", "epochs",
        )),
        *((name, ctypes.c_longlong) for name in (
            "q_batch", "q_head", "summary_outer", "summary_head", "score_batch", "score_row", "list_batch", "list_row",
            "table_batch", "cache_outer", "cache_head", "cache_token", "new_batch", "new_head",
            "exchange_row",
        )),
        *((name, ctypes.c_int) for name in (
            "kv_heads", "local_blocks", "first_blocks", "ratio_numerator", "ratio_denominator", "floor_blocks",
            "list_capacity", "key_capacity", "token_capacity", "pages",
        )),
        ("spread_weight", ctypes.c_float),
        ("scale_log2", ctypes.c_float),
    ]  # fmt: skip


def bind(
    step: StepTensors, cache: KVCache, summaries: Summaries, work: Workspace, config: SparseConfig
) -> Callable[[], None]:
    """A call that enqueues one step: K and V appended, their block's summary, scores, lists, counts and `step.out`.

    It reads the lengths on the device, allocates nothing and does not synchronise. The work space is left as the Triton
    kernels leave it (`score_blocks`, `select_blocks`).

    Args:
        step: q, out `[B, Hq, D]`; k, v `[B, Hkv, D]`, of the cache's dtype; out contiguous.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, device or stride; settings the kernel does not serve.
    """
    shape = AttentionShape(cache.batch, step.q.shape[1], cache.kv_heads, cache.head_dim)
    reason = unsupported(shape, config, cache.dtype, cache.in_fp8)
    reason = reason or misaligned(summaries=(summaries.data, 16))
    if reason:
        raise ValueError(reason)
    _check_work(cache, summaries, work, config)
    layout = plan(cache, shape.group, config)
    return enqueued(
        step,
        cache,
        layout,
        constants(cache, shape.group, config, layout),
        held=(summaries, work),
        summaries=summaries.data.data_ptr(),
        scores=work.scores.data_ptr(),
        lists=work.lists.data_ptr(),
        counts=work.counts.data_ptr(),
        summary_outer=summaries.data.stride(0),
        summary_head=summaries.data.stride(1),
        score_batch=work.scores.stride(0),
        score_row=work.scores.stride(1),
        list_batch=work.lists.stride(0),
        list_row=work.lists.stride(1),
        local_blocks=config.local_blocks,
        first_blocks=config.always[1],
        ratio_numerator=config.ratio.numerator,
        ratio_denominator=config.ratio.denominator,
        floor_blocks=config.floor_blocks,
        list_capacity=work.lists.shape[2],
        spread_weight=config.spread_weight,
    )


def enqueued(
    step: StepTensors,
    cache: KVCache,
    layout: Plan,
    settings: dict[str, int],
    *,
    held: tuple[object, ...] = (),
    **searched: float,
) -> Callable[[], None]:
    """A call that enqueues the kernel of these settings; `searched` are the arguments of a step that searches.

    Args:
        held: what has to live as long as the call.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, device or stride.
    """
    group = step.q.shape[1] // cache.kv_heads
    for name, tensor in (("q", step.q), ("out", step.out)):
        check_tensor(
            name,
            tensor,
            (cache.batch, group * cache.kv_heads, cache.head_dim),
            dtypes=(cache.dtype,),
            device=cache.device,
        )
    check_new(cache, step.k, step.v, (cache.batch, cache.kv_heads, cache.head_dim))
    if not step.out.is_contiguous():
        raise ValueError("out: must be contiguous")
    reason = misaligned(k_cache=(cache.k, 16), v_cache=(cache.v, 16), q=(step.q, 4), k=(step.k, 4), v=(step.v, 4))
    if reason:
        raise ValueError(reason)
    exchange, epochs = _exchange(cache, group, layout)
    table = cache.block_table if cache.block_table is not None else cache.lengths
    arguments = _Arguments(
        q=step.q.data_ptr(),
        lengths=cache.lengths.data_ptr(),
        table=table.data_ptr(),
        k_cache=cache.k.data_ptr(),
        v_cache=cache.v.data_ptr(),
        k_new=step.k.data_ptr(),
        v_new=step.v.data_ptr(),
        scales=cache.scales_or_any.data_ptr(),
        out=step.out.data_ptr(),
        exchange=exchange.data_ptr(),
        epochs=epochs.data_ptr(),
        q_batch=step.q.stride(0),
        q_head=step.q.stride(1),
        table_batch=table.stride(0),
        cache_outer=cache.k.stride(0),
        cache_head=cache.k.stride(1),
        cache_token=cache.k.stride(2),
        new_batch=step.k.stride(0),
        new_head=step.k.stride(1),
        exchange_row=exchange.shape[1],
        kv_heads=cache.kv_heads,
        key_capacity=layout.keys,
        token_capacity=cache.capacity,
        pages=cache.k.shape[0],
        scale_log2=cache.head_dim**-0.5 * LOG2_E,
        **searched,
    )
    ctas = layout.cluster * layout.clusters
    kernel = compiler.kernel(cache.device, settings, ctas, THREADS, layout.shared_bytes, layout.clusters > 1)
    parameters = nvrtc.addresses(arguments)
    address, rows = ctypes.addressof(parameters), cache.batch * cache.kv_heads
    held = (*held, arguments, parameters, step, cache, exchange, epochs)

    def run(_: tuple[object, ...] = held) -> None:
        kernel.launch(rows, address)

    return run


def _exchange(cache: KVCache, group: int, layout: Plan) -> tuple[Tensor, Tensor]:
    """What clusters of a row publish, `[rows, words]` of 64 bits, and how many steps their CTAs have done; zeros."""
    words, members = exchanged(layout, group, cache.head_dim)
    rows = cache.batch * cache.kv_heads if members else 0
    return (
        torch.zeros((rows, words), dtype=torch.int64, device=cache.device),
        torch.zeros((rows, members), dtype=torch.int32, device=cache.device),
    )


def _check_work(cache: KVCache, summaries: Summaries, work: Workspace, config: SparseConfig) -> None:
    """Summaries of the settings asked for, and room as `Workspace.allocate` makes it."""
    held = summaries.kind, summaries.block_size, summaries.dtype
    if held != (config.summary_kind, config.block_size, config.summary_dtype):
        raise ValueError(f"summaries: are {held}, config asks for another kind, block size or dtype")
    blocks, rows = config.blocks(cache.page_size), (cache.batch, cache.kv_heads)
    check_tensor("summaries", summaries.data, (cache.k.shape[0], cache.kv_heads, blocks, 2, cache.head_dim))
    every, chosen = config.blocks(cache.capacity), config.selected(cache.capacity)
    check_tensor("scores", work.scores, (*rows, every), dtypes=(torch.float32,), device=cache.device)
    check_tensor("lists", work.lists, (*rows, chosen), dtypes=(torch.int32,), device=cache.device)
    check_tensor("counts", work.counts, rows, dtypes=(torch.int32,), device=cache.device)
    if not (summaries.data.is_contiguous() and work.counts.is_contiguous()):
        raise ValueError("summaries, counts: must be contiguous")
