"""Cases and methods as they are asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import (
    AttentionShape,
    SparseConfig,
    TorchDense,
    get_method,
    register,
)
from resa_bench.suites.core.flags import tokens as parse_tokens
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.core.sweep import matching
from resa_bench.suites.micro.cases import (
    DEFAULT_MODEL,
    OTHER_MODELS,
    PATTERNS,
    PRESETS,
    Case,
    ModelShape,
    default_cases,
    default_methods,
    further_methods,
)
from resa_bench.suites.model.config import MODELS

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
QWEN = PRESETS["qwen2.5-7b"]
TINY = Case("tiny", ModelShape(4, 2, 16), 1, 256, dtype="fp32")
SPARSE = SparseConfig(min_blocks=4, active_ratio=0.25)
DENSE_SPEC, RESA_SPEC = MethodSpec("torch-dense"), MethodSpec("resa-torch", SPARSE)


# --- cases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "slug"),
    [
        pytest.param({}, "qwen2.5-7b-b1-256k", id="default"),
        pytest.param({"batch": 8, "context": 4096}, "qwen2.5-7b-b8-4k", id="batch"),
        pytest.param({"context": 1000}, "qwen2.5-7b-b1-1000", id="no-whole-k"),
        pytest.param({"pattern": "recent"}, "qwen2.5-7b-b1-256k-recent", id="pattern"),
        pytest.param({"page_size": 16}, "qwen2.5-7b-b1-256k-page16", id="paged"),
        pytest.param({"pattern": "clustered", "page_size": 64}, "qwen2.5-7b-b1-256k-clustered-page64", id="both"),
    ],
)
def test_slug(changes: dict[str, Any], slug: str) -> None:
    assert replace(Case("qwen2.5-7b", QWEN, 1, 262144), **changes).slug == slug


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"context": 0}, "context, batch: got 0, 1, must be at least 1", id="context"),
        pytest.param({"batch": 0}, "context, batch: got 256, 0, must be at least 1", id="batch"),
        pytest.param({"dtype": "fp64"}, "dtype: got 'fp64', allowed are bf16, fp16, fp32", id="dtype"),
        pytest.param({"pattern": "zeros"}, "pattern: got 'zeros', allowed are random, clustered, recent", id="pattern"),
        pytest.param({"page_size": 0}, "page_size: got 0, must be at least 1 token", id="page-of-nothing"),
        pytest.param({"page_size": -16}, "page_size: got -16, must be at least 1 token", id="page-size"),
    ],
)
def test_a_bad_case_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_shape_and_bytes() -> None:
    case = Case("qwen2.5-7b", QWEN, 4, 1000, dtype="bf16")
    assert case.shape == AttentionShape(4, 28, 4, 128)
    assert case.capacity == 1024
    assert replace(case, page_size=100).capacity == 1000
    assert case.kv_bytes == 2 * 4 * 4 * 1024 * 128 * 2  # K and V, B, Hkv, S, D, bf16
    assert replace(case, dtype="fp32").kv_bytes == 2 * case.kv_bytes


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("4096", 4096), ("4K", 4096), ("4k", 4096), ("256K", 262144), ("1", 1)],
)
def test_parse_tokens(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "K", "4M", "1.5K", "many", "4 096"])
def test_parse_tokens_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=f"got '{text}', expected tokens such as 4096 or 4K"):
        parse_tokens(text)


@pytest.mark.parametrize("scale", ["quick", "default", "full"])
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_default_cases_are_distinct(device: torch.device, scale: str) -> None:
    cases = default_cases(device, scale)
    assert len({case.slug for case in cases}) == len(cases) > 1
    assert {case.dtype for case in cases} == {"fp32" if device == CPU else "bf16"}


def test_the_scales_nest_and_cover() -> None:
    quick, default, full = (set(default_cases(CUDA, scale)) for scale in ("quick", "default", "full"))
    assert quick < default < full
    assert {case.model for case in default} == {DEFAULT_MODEL, *OTHER_MODELS}
    assert {case.pattern for case in default} == set(PATTERNS)
    assert {case.batch for case in default} == {1, 4, 8, 16}
    assert {case.context for case in default if case.batch == 1} == {k * 1024 for k in (4, 8, 16, 32, 64, 128, 256)}


def test_default_cases_of_another_model() -> None:
    cases = default_cases(CPU, "quick", "llama-3.1-8b")
    assert {case.heads for case in cases} == {ModelShape(32, 8, 128)}


FILTERED = [Case(m, QWEN, b, c * 1024) for m in ("a", "bee") for b in (1, 4) for c in (4, 8)]


@pytest.mark.parametrize(
    ("globs", "slugs"),
    [
        pytest.param([], [case.slug for case in FILTERED], id="none"),
        pytest.param(["a-b1-*"], ["a-b1-4k", "a-b1-8k"], id="glob"),
        pytest.param(["bee-b4"], ["bee-b4-4k", "bee-b4-8k"], id="part-of-the-name"),
        pytest.param(["a-b1-4k", "*b4-8k"], ["a-b1-4k", "a-b4-8k", "bee-b4-8k"], id="any-of-several"),
    ],
)
def test_cases_by_name(globs: list[str], slugs: list[str]) -> None:
    assert [case.slug for case in matching([*FILTERED, *FILTERED], globs, "micro")] == slugs
    with pytest.raises(ValueError, match="--case nothing: no case matches; see `resa-bench micro --list`"):
        matching(FILTERED, ["nothing"], "micro")


# --- methods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        pytest.param(MethodSpec("torch-dense", SparseConfig(block_size=64)), "torch-dense", id="dense"),
        pytest.param(MethodSpec("resa", SparseConfig(block_size=32)), "resa b32", id="resa"),
        pytest.param(MethodSpec("resa", SparseConfig(gqa_policy="all-heads")), "resa b16 all-heads", id="resa-policy"),
        pytest.param(MethodSpec("quest", SparseConfig(gqa_policy="per-head")), "quest b16 per-head", id="quest"),
        pytest.param(MethodSpec("resa", SparseConfig(summary_kind="meanstd")), "resa b16 meanstd", id="summary"),
        pytest.param(MethodSpec("resa", SparseConfig(summary_dtype="fp8")), "resa b16 fp8", id="summary-dtype"),
        pytest.param(MethodSpec("sink-window", SparseConfig(gqa_policy="per-head")), "sink-window b16", id="unused"),
    ],
)
def test_method_label(spec: MethodSpec, label: str) -> None:
    assert spec.label == label


def test_columns_hold_what_the_method_uses() -> None:
    config = SparseConfig(block_size=32, active_ratio=0.2, rectify_every=8)
    assert MethodSpec("torch-dense", config).columns() == {}
    assert MethodSpec("resa", config).columns() == {
        "block_size": 32, "active_ratio": 0.2, "min_blocks": 16, "gqa_policy": "group-mean", "summary_kind": "minmax",
        "selector": None,
        "summary_dtype": None, "spread_weight": None, "pinned_blocks": None, "rectify_every": 8,
    }  # fmt: skip
    spread = SparseConfig(summary_kind="meanstd", spread_weight=0.3)
    assert MethodSpec("sparse", spread).columns()["spread_weight"] == 0.3
    assert MethodSpec("sparse", spread).label == "sparse b16 meanstd c0.3"


@pytest.mark.parametrize(
    ("device", "resa", "left_out"),
    [(CPU, ["resa-torch"], "resa"), (CUDA, ["resa"], "resa-torch")],
    ids=["cpu", "cuda"],
)
def test_default_methods(device: torch.device, resa: list[str], left_out: str) -> None:
    """Dense rivals first; ReSA at each block size, Quest under both policies, the others once."""
    specs = default_methods(device, SparseConfig(active_ratio=0.2), [32, 64])
    labels = [spec.label for spec in specs]
    dense = [get_method(spec.name).is_dense for spec in specs]
    assert dense == sorted(dense, reverse=True)
    assert {"sdpa-cudnn", "sdpa-flash", "flash-attn-2", "flashinfer", "triton-dense"} <= set(labels)
    assert ("torch-dense" in labels) == (device.type == "cpu")
    sparse = [
        *(f"{name} b{size} r0.2" for name in resa for size in (32, 64)),
        "quest b32 r0.2 per-head",
        "quest b32 r0.2 group-sum",
        "retro b32 r0.2 w2",
        "sink-window b32 r0.2",
        "oracle b32 r0.2",
    ]
    assert sorted(labels[sum(dense) :]) == sorted(sparse)
    assert left_out not in {spec.name for spec in specs}
    assert len(set(labels)) == len(labels)
    assert {spec.config.active_ratio for spec in specs if not get_method(spec.name).is_dense} == {0.2}


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("in_default", [True, False])
def test_a_registered_method_is_in_the_default_list_unless_kept_for_asking(in_default: bool) -> None:
    register("newcomer")(type("Newcomer", (TorchDense,), {"in_default": in_default}))
    names = [spec.name for spec in default_methods(CPU, SparseConfig(), [16])]
    assert names.count("newcomer") == int(in_default)


def test_the_micro_list_holds_other_heads_and_msas_blocks() -> None:
    cases = default_cases(torch.device("cuda"), "default")
    others = {case.model: case for case in cases if case.model != DEFAULT_MODEL}
    assert set(others) == set(OTHER_MODELS)
    assert len({PRESETS[name] for name in (DEFAULT_MODEL, *OTHER_MODELS)}) == 1 + len(OTHER_MODELS)
    (spec,) = further_methods(others["msa"], SparseConfig(), CUDA)
    assert (spec.config.block_size, spec.config.selected(others["msa"].context)) == (128, 16)
    shared = set(PRESETS) & set(MODELS)
    assert {"qwen2.5-32b", "qwen3-14b", "qwen3-32b", "llama-3.1-70b"} <= shared
    for name in shared:
        config = MODELS[name]
        assert PRESETS[name] == ModelShape(config.q_heads, config.kv_heads, config.head_dim)
