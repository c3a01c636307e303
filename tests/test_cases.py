"""Cases and methods as they are asked for, and one case measured: gates, failures, speed-ups, floors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import (
    AttentionShape,
    ChunkTensors,
    KVCache,
    Layer,
    ResaTorch,
    SparseConfig,
    Stage,
    StepTensors,
    TorchDense,
    get_method,
    method,
    register,
)
from resa_bench.profiling.ceilings import Ceilings
from resa_bench.profiling.clocks import ClockReader, ClockState
from resa_bench.profiling.device import describe
from resa_bench.profiling.stats import Summary, summarize
from resa_bench.profiling.timing import CpuTimer, Plan, Timer
from resa_bench.suites import micro, speedups
from resa_bench.suites.cases import (
    PATTERNS,
    PRESETS,
    Case,
    MethodSpec,
    ModelShape,
    default_cases,
    default_methods,
    filter_cases,
    parse_tokens,
)
from resa_bench.suites.micro import WHOLE_STEPS, Bench, amortise, run_case, step_us
from resa_bench.suites.rows import Row

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
QWEN = PRESETS["qwen2.5-7b"]
TINY = Case("tiny", ModelShape(4, 2, 16), 1, 256, dtype="fp32")
SPARSE = SparseConfig(min_blocks=4, active_ratio=0.25)
DENSE_SPEC, RESA_SPEC = MethodSpec("torch-dense"), MethodSpec("resa-torch", SPARSE)


@pytest.fixture
def registry() -> Iterator[None]:
    """Forget afterwards the methods that a test registers."""
    before = dict(method._registry)
    yield
    method._registry.clear()
    method._registry.update(before)


def only(rows: list[Row], **wanted: Any) -> Row:
    found = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    assert len(found) == 1, f"{len(found)} rows with {wanted}"
    return found[0]


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
    with pytest.raises(ValueError, match=f"context: got '{text}', expected tokens such as 4096 or 4K"):
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
    assert {case.model for case in default} == set(PRESETS)
    assert {case.pattern for case in default} == set(PATTERNS)
    assert {case.batch for case in default} == {1, 4, 8}
    assert {case.context for case in default if case.batch == 1} == {k * 1024 for k in (4, 8, 16, 32, 64, 128, 256)}


def test_default_cases_of_another_model() -> None:
    cases = default_cases(CPU, "quick", "llama-3.1-8b")
    assert {case.heads for case in cases} == {ModelShape(32, 8, 128)}


FILTERED = [Case(m, QWEN, b, c * 1024) for m in ("a", "bee") for b in (1, 4) for c in (4, 8)]


@pytest.mark.parametrize(
    ("filters", "slugs"),
    [
        pytest.param({}, [case.slug for case in FILTERED], id="none"),
        pytest.param({"names": ["a-b1-*"]}, ["a-b1-4k", "a-b1-8k"], id="glob"),
        pytest.param({"names": ["bee-b4"]}, ["bee-b4-4k", "bee-b4-8k"], id="part-of-the-name"),
        pytest.param({"names": ["a-b1-4k", "*b4-8k"]}, ["a-b1-4k", "a-b4-8k", "bee-b4-8k"], id="any-of-several"),
        pytest.param({"contexts": [8192], "batches": [4]}, ["a-b4-8k", "bee-b4-8k"], id="numbers"),
        pytest.param({"names": ["a-*"], "contexts": [4096]}, ["a-b1-4k", "a-b4-4k"], id="both"),
        pytest.param({"names": ["nothing"]}, [], id="no-match"),
    ],
)
def test_filter_cases(filters: dict[str, Any], slugs: list[str]) -> None:
    assert [case.slug for case in filter_cases(FILTERED, **filters)] == slugs


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
        "summary_dtype": None, "spread_weight": None, "pinned_blocks": None, "rectify_every": 8,
    }  # fmt: skip
    spread = SparseConfig(summary_kind="meanstd", spread_weight=0.3)
    assert MethodSpec("sparse", spread).columns()["spread_weight"] == 0.3
    assert MethodSpec("sparse", spread).label == "sparse b16 meanstd c0.3"


@pytest.mark.parametrize(
    ("device", "resa", "left_out"),
    [(CPU, ["resa-torch"], "resa"), (CUDA, ["resa", "resa-fused"], "resa-torch")],
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
        *(f"{name} b{size}" for name in resa for size in (32, 64)),
        "quest b32 per-head",
        "quest b32 group-sum",
        "retro b32 w2",
        "sink-window b32",
        "oracle b32",
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


# --- one case measured ------------------------------------------------------------------------------------------------


class SmallTimer(CpuTimer):
    """The CPU's timer with a small flush, for quick tests."""

    def __init__(self) -> None:
        Timer.__init__(self, CPU, 2**16)


PLAN = Plan(precision=0.5, budget_s=0.2, min_samples=5, max_samples=10, warmup_s=0.0)


@pytest.fixture
def bench() -> Bench:
    return Bench(CPU, SmallTimer(), Ceilings(1e6, 1e6, 1e6), describe(CPU), PLAN, "resa-bench test")


def test_a_case_end_to_end(bench: Bench) -> None:
    rows = run_case(TINY, [DENSE_SPEC, RESA_SPEC], bench)
    assert {row.status for row in rows} == {"ok"}
    stages = {
        name: sorted((row.stage, row.cache_state) for row in rows if row.method == name)
        for name in ("torch-dense", "resa-torch")
    }
    total = [("total", "cold"), ("total", "warm")]
    assert stages["torch-dense"] == sorted([("append", "cold"), ("attend", "cold"), *total])
    parts = ["append", "score", "select", "attend", "rectify", "total_amortised"]
    assert stages["resa-torch"] == sorted([*((name, "cold") for name in parts), *total])
    for row in rows:
        assert (row.case, row.context, row.batch, row.q_heads, row.kv_heads, row.head_dim) == (
            "tiny-b1-256", 256, 1, 4, 2, 16,
        )  # fmt: skip
        assert (row.suite, row.launch, row.dtype, row.paged, row.command) == (
            "micro", "eager", "fp32", False, "resa-bench test",
        )  # fmt: skip
        assert row.n_samples is not None
        assert 5 <= row.n_samples <= 10
        assert row.min_us is not None
        assert row.median_us is not None
        assert 0 < row.min_us <= row.median_us
        assert row.max_rel_error is not None
        assert row.max_rel_error < 1e-5
        assert row.error_budget_used is not None
        assert 0 <= row.error_budget_used <= 1
        assert row.block_size == (16 if row.method == "resa-torch" else None)
        assert row.chunk_kernel == ("torch" if row.method == "resa-torch" else None)


def test_whole_steps_name_the_best_dense(bench: Bench) -> None:
    rows = run_case(TINY, [DENSE_SPEC, RESA_SPEC], bench)
    for state in ("cold", "warm"):
        dense = only(rows, method="torch-dense", stage="total", cache_state=state)
        sparse = only(rows, method="resa-torch", stage="total", cache_state=state)
        assert (dense.best_dense, dense.speedup_vs_best_dense) == ("torch-dense", 1.0)
        assert dense.median_us is not None
        assert sparse.median_us is not None
        assert sparse.best_dense == "torch-dense"
        assert sparse.speedup_vs_best_dense == pytest.approx(dense.median_us / sparse.median_us, rel=1e-4)
    assert {row.stage for row in rows if row.best_dense} == {"total", "total_amortised"}


def test_bytes_and_floors_of_a_dense_step(bench: Bench) -> None:
    """By hand: K and V of 256 tokens, q and out, the new token read and written, all fp32."""
    row = only(run_case(TINY, [DENSE_SPEC], bench), stage="total", cache_state="cold")
    assert row.bytes == 4 * (2 * 256 * 2 * 16 + 2 * 4 * 16 + 2 * 2 * 2 * 16)
    assert row.flops == 4 * 256 * 4 * 16
    assert row.median_us is not None
    assert row.floor_us == pytest.approx(row.bytes / 1e9, rel=1e-4)  # 1e6 GB/s are 1e9 bytes a microsecond
    assert row.floor_fraction == pytest.approx(row.floor_us / row.median_us, rel=1e-3)
    assert row.gbps == pytest.approx(row.bytes / row.median_us / 1e3, rel=1e-4)


def test_amortised_row_adds_a_share_of_rectification(bench: Bench) -> None:
    rows = run_case(TINY, [MethodSpec("resa-torch", replace(SPARSE, rectify_every=8))], bench)
    total, rectify, both = (
        only(rows, stage=stage, cache_state="cold") for stage in ("total", "rectify", "total_amortised")
    )
    assert total.median_us is not None
    assert rectify.median_us is not None
    assert both.median_us == pytest.approx(total.median_us + rectify.median_us / 8, rel=1e-4)
    assert total.bytes is not None
    assert rectify.bytes is not None
    assert both.bytes == total.bytes + rectify.bytes // 8
    assert both.rectify_every == 8


def test_without_warm_rows(bench: Bench) -> None:
    rows = run_case(TINY, [DENSE_SPEC], replace(bench, warm=False))
    assert {row.cache_state for row in rows} == {"cold"}


def test_steps_are_told(bench: Bench) -> None:
    told: list[str] = []
    run_case(TINY, [DENSE_SPEC], bench, told.append)
    assert told[:3] == ["inputs", "check torch-dense", "round 1"]


def survivors(rows: list[Row]) -> None:
    """The other methods of the case have their times."""
    assert only(rows, method="torch-dense", stage="total", cache_state="cold").timed
    assert only(rows, method="resa-torch", stage="total", cache_state="cold").timed


@pytest.mark.usefixtures("registry")
def test_out_of_memory_costs_one_method(bench: Bench) -> None:
    @register("greedy")
    class Greedy(TorchDense):
        def prepare(self, cache: KVCache) -> Layer:
            raise torch.OutOfMemoryError("CUDA out of memory.\n  Tried to allocate 20.00 GiB.")

    rows = run_case(TINY, [DENSE_SPEC, MethodSpec("greedy"), RESA_SPEC], bench)
    row = only(rows, method="greedy")
    assert (row.status, row.stage, row.median_us) == ("oom", "total", None)
    assert row.reason == "CUDA out of memory. Tried to allocate 20.00 GiB."
    survivors(rows)


class Spoiled(TorchDense):
    """Dense attention whose output is changed after the last stage."""

    def spoil(self, step: StepTensors) -> None:
        raise NotImplementedError

    def prepare(self, cache: KVCache) -> Layer:
        layer = super().prepare(cache)
        honest = layer.stages

        def stages(step: StepTensors) -> tuple[Stage, ...]:
            return (*honest(step), Stage("merge", lambda: self.spoil(step)))

        layer.stages = stages  # type: ignore[method-assign]
        return layer


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(lambda out: out.mul_(1.001), "check: attention: off by", id="scaled"),
        pytest.param(lambda out: out[0, -1, -1].add_(0.1), "check: attention: off by", id="one-element"),
        pytest.param(
            lambda out: out[0, 0, 0].fill_(float("nan")),
            "check: attention: 1 of 64 elements unwritten",
            id="unwritten",
        ),
        pytest.param(lambda out: out.zero_(), "check: attention: off by", id="zeros"),
    ],
)
def test_a_wrong_result_gets_no_time(bench: Bench, spoil: Any, reason: str) -> None:
    @register("wrong")
    class Wrong(Spoiled):
        def spoil(self, step: StepTensors) -> None:
            spoil(step.out)

    rows = run_case(TINY, [MethodSpec("wrong"), DENSE_SPEC, RESA_SPEC], bench)
    row = only(rows, method="wrong")
    assert (row.status, row.median_us, row.best_dense) == ("failed", None, None)
    assert str(row.reason).startswith(reason)
    survivors(rows)
    assert "wrong" not in {row.best_dense for row in rows}


@pytest.mark.usefixtures("registry")
def test_an_output_left_over_from_before_does_not_pass(bench: Bench) -> None:
    """A method that writes nothing, after one that left the right answer in the same buffer."""

    @register("idle")
    class Idle(TorchDense):
        def prepare(self, cache: KVCache) -> Layer:
            layer = super().prepare(cache)
            layer.stages = lambda step: (Stage("attend", lambda: None),)  # type: ignore[method-assign]
            return layer

    rows = run_case(TINY, [DENSE_SPEC, MethodSpec("idle")], bench)
    assert only(rows, method="idle").reason == "check: attention: 64 of 64 elements unwritten or not finite"


@pytest.mark.usefixtures("registry")
def test_a_wrong_rectification_gets_no_time(bench: Bench) -> None:
    @register("unrectified")
    class Unrectified(ResaTorch):
        def prepare(self, cache: KVCache):  # type: ignore[no-untyped-def]
            def zero(chunk: ChunkTensors) -> None:
                chunk.out.zero_()

            layer = super().prepare(cache)
            layer.rectify_stages = lambda chunk: (Stage("rectify", lambda: zero(chunk)),)  # type: ignore[method-assign]
            return layer

    row = only(run_case(TINY, [MethodSpec("unrectified", SPARSE)], bench), method="unrectified")
    assert (row.status, row.block_size) == ("failed", 16)
    assert str(row.reason).startswith("check: rectified token 0: off by")


@pytest.mark.usefixtures("registry")
def test_an_unavailable_method_is_skipped_with_its_reason(bench: Bench) -> None:
    @register("elsewhere")
    class Elsewhere(TorchDense):
        @classmethod
        def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
            return f"needs a quantum device, got {device.type}"

    rows = run_case(TINY, [MethodSpec("elsewhere"), DENSE_SPEC], bench)
    row = only(rows, method="elsewhere")
    assert (row.status, row.reason) == ("skipped", "needs a quantum device, got cpu")
    assert only(rows, method="torch-dense", stage="total", cache_state="cold").timed


def test_inputs_that_do_not_fit_fail_every_available_method(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_inputs(*_: object) -> None:
        raise torch.OutOfMemoryError("too big")

    monkeypatch.setattr(micro, "make_inputs", make_inputs)
    rows = run_case(TINY, [DENSE_SPEC, RESA_SPEC], bench)
    assert [(row.method, row.status, row.reason) for row in rows] == [
        ("torch-dense", "oom", "too big"),
        ("resa-torch", "oom", "too big"),
    ]


def test_faster_than_the_floor_is_an_error(bench: Bench) -> None:
    """With a ceiling of a thousandth of a byte a microsecond no honest time is that short. Warm rows may beat it."""
    rows = run_case(TINY, [DENSE_SPEC], replace(bench, ceilings=Ceilings(1e-6, 1e-6, 1e6)))
    cold = only(rows, stage="total", cache_state="cold")
    assert (cold.status, cold.median_us, cold.speedup_vs_best_dense) == ("failed", None, None)
    assert "beats the floor of" in str(cold.reason)
    warm = only(rows, stage="total", cache_state="warm")
    assert warm.timed
    assert warm.floor_fraction is not None
    assert warm.floor_fraction > 1


def test_throttling_flags_the_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A throttle reason seen once, before or after, is on every row; their times stay."""
    states = iter([ClockState(1900, 2600, 50, 300.0, None), ClockState(1500, 2600, 80, 700.0, "power cap")])
    monkeypatch.setattr(ClockReader, "read", lambda _: next(states))
    rows = run_case(TINY, [DENSE_SPEC], bench)
    assert {(r.status, r.reason, r.throttle_reasons, r.sm_clock_mhz, r.temperature_c, r.timed) for r in rows} == {
        ("throttled", "power cap", "power cap", 1500, 80, True)
    }


# --- speed-ups and amortisation ---------------------------------------------------------------------------------------


def row(name: str, median: float | None = 10.0, **changes: Any) -> Row:
    defaults: dict[str, Any] = {
        "suite": "micro", "model": "m", "case": "m-b1-8k", "method": name, "stage": "total", "context": 8192,
        "batch": 1, "q_heads": 28, "kv_heads": 4, "head_dim": 128, "cache_state": "cold", "launch": "graph",
        "status": "ok", "median_us": median,
    }  # fmt: skip
    return Row(**(defaults | changes))


def with_speedups(rows: list[Row]) -> list[Row]:
    return speedups.with_speedups(rows, step_us, WHOLE_STEPS)


def test_speedup_is_against_the_fastest_dense() -> None:
    rows = with_speedups(
        [
            row("sdpa-flash", 40.0),
            row("resa", 10.0, floor_us=2.0),
            row("sdpa-cudnn", 30.0, floor_us=20.0),
            row("quest", 60.0),
        ]
    )
    assert [(r.speedup_vs_best_dense, r.best_dense) for r in rows] == [
        (0.75, "sdpa-cudnn"), (3.0, "sdpa-cudnn"), (1.0, "sdpa-cudnn"), (0.5, "sdpa-cudnn"),
    ]  # fmt: skip
    assert [r.floor_speedup for r in rows] == [None, 10.0, 1.0, None]


@pytest.mark.parametrize("change", [{"cache_state": "warm"}, {"launch": "eager"}], ids=["warm", "eager"])
def test_rivals_ran_the_same_way(change: dict[str, Any]) -> None:
    found = with_speedups([row("sdpa-cudnn", 30.0), row("sdpa-flash", 15.0, **change), row("resa", 10.0)])
    assert (found[2].speedup_vs_best_dense, found[2].best_dense) == (3.0, "sdpa-cudnn")
    assert found[1].best_dense == "sdpa-flash"


def test_amortised_steps_compare_with_dense_totals() -> None:
    found = with_speedups([row("sdpa-cudnn", 30.0), row("resa", 15.0, stage="total_amortised")])
    assert found[1].speedup_vs_best_dense == 2.0


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([row("resa"), row("quest", 20.0)], id="no-dense"),
        pytest.param([row("sdpa-cudnn", None, status="failed", reason="x"), row("resa")], id="dense-failed"),
        pytest.param([row("sdpa-cudnn", stage="attend"), row("resa")], id="dense-has-no-total"),
        pytest.param([row("sdpa-cudnn", stage="attend"), row("resa", stage="attend")], id="stages-are-no-steps"),
    ],
)
def test_no_speedup_without_a_rival(rows: list[Row]) -> None:
    assert with_speedups(rows) == rows


def test_a_failed_row_gets_no_speedup() -> None:
    found = with_speedups([row("sdpa-cudnn"), row("resa", None, status="failed", reason="x")])
    assert found[1].speedup_vs_best_dense is None


def test_amortise_adds_every_statistic() -> None:
    total = Summary(100, 10.0, 9.0, 11.0, 9.5, 10.5, 8.0, 10.1, 10.0, 14.0)
    rectify = Summary(40, 320.0, 310.0, 340.0, 315.0, 330.0, 300.0, 322.0, 320.0, 400.0)
    assert amortise(total, rectify, 32) == Summary(
        n_samples=40,
        median_us=20.0,
        ci_low_us=9.0 + 310 / 32,
        ci_high_us=11.0 + 340 / 32,
        q20_us=9.5 + 315 / 32,
        q80_us=10.5 + 330 / 32,
        min_us=8.0 + 300 / 32,
        mean_us=10.1 + 322 / 32,
        p50_us=20.0,
        p99_us=14.0 + 400 / 32,
    )
    assert amortise(total, summarize([0.0]), 1).median_us == 10.0
