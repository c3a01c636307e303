"""Layers of whole methods and their inputs, for the tests of methods, checks and graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import resa_bench.baselines  # noqa: F401  registers the rivals
import torch
from kernel_cases import DEVICE, NAN, dtype_name, make_method
from resa_bench.kernels import AttentionShape, Layer, SparseConfig, StepTensors, get_method
from resa_bench.suites.micro.cases import Case, ModelShape
from resa_bench.suites.micro.checks import dense_exact
from resa_bench.suites.micro.inputs import Inputs, make_inputs
from torch import Tensor

CONFIG = SparseConfig(active_ratio=0.3, min_blocks=3)
CHUNK = 4


def make(
    name: str,
    dtype: torch.dtype,
    lengths: Sequence[int] = (101, 38),
    *,
    heads: ModelShape = ModelShape(6, 2, 64),
    page_size: int | None = None,
    kv_dtype: str | None = None,
    **changes: Any,
) -> tuple[Layer, Inputs]:
    """A prepared layer and its inputs. Skips methods that cannot run here."""
    shape = AttentionShape(len(lengths), heads.q_heads, heads.kv_heads, heads.head_dim)
    reason = get_method(name).unavailable(shape, dtype, DEVICE)
    if reason:
        pytest.skip(f"{name} {reason}")
    case = Case("tiny", heads, len(lengths), max(lengths), dtype_name(dtype), "clustered", page_size, kv_dtype=kv_dtype)
    inputs = make_inputs(case, DEVICE, CHUNK)
    inputs.cache.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
    layer = make_method(name, shape, replace(CONFIG, **changes), dtype).prepare(inputs.cache)
    return layer, inputs


def run(layer: Layer, step: StepTensors) -> Tensor:
    """One step into a poisoned output."""
    step.out.fill_(NAN)
    for stage in layer.stages(step):
        stage.run()
    return step.out


def written(layer: Layer, inputs: Inputs) -> list:
    """Exact dense attention with the step's token in the cache."""
    layer.stages(inputs.step)[0].run()
    return dense_exact(inputs)
