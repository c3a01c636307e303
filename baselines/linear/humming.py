"""humming-kernels (github.com/vllm-project/humming, Apache-2.0): JIT-compiled products; vLLM's quantised backend.

Written against 0.1.20. It takes our 4 and 8 bits as they are, code by code. Its zero points are (8 - z / s) in 16 bits,
which is 0.5 % of a random weight's size; nothing else is rounded anew.

Left alone it compiles a kernel for each of 92 classes of rows when a shape is first used. Here it is asked for one
class: 8 rows more make the next, and below 8 rows there is one. Kernels stay on disk (HUMMING_CACHE_DIR).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...kernels.linear.chosen import Multiply
from ...kernels.linear.fp8 import Fp8Weight
from ...kernels.linear.int4 import Int4Weight, unpack
from ...kernels.linear.product import AnyWeight, Product, ProductShape, register_product
from ..optional import first, load, missing, needs_16_bits, needs_cuda

CLASS_ROWS = 8
MULTIPLE = 64  # of N and K
NIBBLES = 8  # of a word of its packed weights
LOCKS = 2048  # counters of programs that share a tile; each launch leaves them at 0
GROUP = 128  # of the 4-bit weights of a suite's cases, whose kernels are compiled ahead


def row_class(rows: int) -> int:
    """The most rows of the class that `rows` belongs to, whose kernel it shares."""
    return -(-rows // CLASS_ROWS) * CLASS_ROWS


@register_product("humming")
class Humming(Product):
    """4 bits with zero points in our groups, e4m3 with a scale a row, beside 16-bit x or x in e4m3."""

    kinds = ("int4", "fp8", "fp8-a8")
    libraries = ("humming-kernels",)
    serves_models = True
    compiles = True

    @classmethod
    def unavailable(cls, shape: ProductShape, dtype: torch.dtype, device: torch.device) -> str | None:
        uneven = shape.columns % MULTIPLE or shape.depth % MULTIPLE
        return first(
            needs_cuda(device),
            needs_16_bits(dtype),
            f"N and K must be multiples of {MULTIPLE}" if uneven else None,
            missing("humming.transform", "linear"),
        )

    @classmethod
    def ahead(cls, kind: str, shape: ProductShape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
        def compile_it() -> None:
            torch.cuda.set_device(device)  # of this thread
            config = layer_config(kind, shape.columns, shape.depth, GROUP, dtype, False, device)
            kernels = load("humming.kernel.humming").HummingKernel
            kernels.prepare_kernels(config.to_str(), None, tuning(config, shape.rows, device), device)

        return compile_it

    @classmethod
    def hold(cls, weight: AnyWeight, dtype: torch.dtype) -> Multiply:
        """16-bit rows alone. A number of rows that is new compiles its class, if it was not compiled ahead."""
        group = weight.group if isinstance(weight, Int4Weight) else 0
        kind = "int4" if isinstance(weight, Int4Weight) else "fp8"
        (columns, depth), device = weight.shape, device_of(weight)
        config = layer_config(kind, columns, depth, group, dtype, False, device)
        tensors = load("humming.transform").transform_humming_tensors(config, plain_tensors(weight, dtype))
        locks = torch.zeros(LOCKS, dtype=torch.int32, device=device)
        chosen = cache(lambda most: tuning(config, most, device))
        forward = load("humming.forward").humming_forward

        def multiply(x: Tensor) -> Tensor:
            out = torch.empty(x.shape[0], columns, dtype=dtype, device=device)
            return forward(  # type: ignore[no-any-return]
                config, inputs=x.contiguous(), input_scale=None, outputs=out, locks=locks,
                tuning_config=chosen(row_class(x.shape[0])), **tensors,
            )  # fmt: skip

        return multiply

    @classmethod
    def bind(cls, x: Tensor | Fp8Weight, weight: AnyWeight, dtype: torch.dtype) -> Callable[[], Tensor]:
        if not isinstance(x, Fp8Weight):
            multiply = cls.hold(weight, dtype)
            return lambda: multiply(x)
        values, (columns, depth), device = x.values, weight.shape, x.values.device
        config = layer_config("fp8-a8", columns, depth, 0, dtype, False, device)
        tensors = load("humming.transform").transform_humming_tensors(config, plain_tensors(weight, dtype))
        locks = torch.zeros(LOCKS, dtype=torch.int32, device=device)
        chosen = tuning(config, values.shape[0], device)
        scale = torch.zeros(row_class(len(x.scales)), 1, device=device)[: len(x.scales)]  # its own have room for four
        scale.copy_(x.scales[:, None])
        forward = load("humming.forward").humming_forward
        out = torch.empty(values.shape[0], columns, dtype=dtype, device=device)

        def run() -> Tensor:
            return forward(  # type: ignore[no-any-return]
                config, inputs=values, input_scale=scale, outputs=out, locks=locks, tuning_config=chosen, **tensors
            )

        return run


def device_of(weight: AnyWeight) -> torch.device:
    """Where a weight of 4 or 8 bits lies."""
    assert isinstance(weight, Int4Weight | Fp8Weight)
    return weight.words.device if isinstance(weight, Int4Weight) else weight.values.device


def layer_config(
    kind: str, columns: int, depth: int, group: int, dtype: torch.dtype, bias: bool, device: torch.device
) -> Any:
    """The library's description of a weight `[columns, depth]`, a `LayerConfig`."""
    schemas = load("humming.schema")
    weights: dict[str, Any] = {"quant_method": "humming", "dtype": "float8e4m3"}
    if kind == "int4":
        weights |= {"dtype": "uint4", "group_size": group, "has_zero_point": True, "is_fp_zero_point": True}
    x_type = "float8e4m3" if kind == "fp8-a8" else {torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype]
    inputs = schemas.BaseInputSchema.from_config({"quant_method": "humming", "dtype": x_type})
    return load("humming.transform").prepare_layer_config(
        shape_n=columns, shape_k=depth, weight_schema=schemas.BaseWeightSchema.from_config(weights),
        input_schema=inputs.to_humming_schema(dtype), has_bias=bias, torch_dtype=dtype, device=device,
    )  # fmt: skip


def tuning(config: Any, rows: int, device: torch.device) -> str:
    """The library's own choice of tiles for a class of rows, as it takes them back."""
    chosen = load("humming.tune").get_heuristics_config(config, row_class(rows), device=device)
    return json.dumps(chosen)


def plain_tensors(weight: AnyWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    """Codes, scales and zero points of our weight as the library stores them, before it lays them out."""
    if isinstance(weight, Int4Weight):
        pairs = weight.scales[: weight.depth // weight.group].float()
        scale, zero = pairs[..., 0].T, pairs[..., 1].T  # [N, groups]; ours is (q - 8) s + z, theirs (q - p) s
        flat = scale == 0  # all weights of a group alike: then p would be infinite
        point = 8 - zero / torch.where(flat, torch.ones_like(scale), scale)
        return {
            "weight": packed_words(unpack(weight.words, weight.depth, weight.group)),
            "weight_scale": torch.where(flat, zero.abs(), scale).to(dtype).contiguous(),
            "zero_point": torch.where(flat, 8 - zero.sign(), point).to(dtype).contiguous(),
        }
    assert isinstance(weight, Fp8Weight)
    words = weight.values.view(torch.uint8).view(torch.int32)
    return {"weight": words, "weight_scale": weight.scales[:, None].to(dtype).contiguous()}


def packed_words(codes: Tensor) -> Tensor:
    """Integers 0..15 `[N, K]` as int32 `[N, K / 8]`, the first in the lowest bits."""
    rows, depth = codes.shape
    parts = codes.to(torch.int32).view(rows, depth // NIBBLES, NIBBLES)
    shifts = torch.arange(0, 4 * NIBBLES, 4, dtype=torch.int32, device=codes.device)
    return (parts << shifts).sum(2, dtype=torch.int32)
