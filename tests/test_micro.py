"""One case measured by the micro suite: gates, failures, speed-ups, floors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from benches import make_bench
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import (
    AttentionShape,
    ChunkTensors,
    KVCache,
    ResaTorch,
    SparseConfig,
    Stage,
    StepTensors,
    TorchDense,
    register,
)
from resa_bench.kernels.method import DenseLayer
from resa_bench.profiling.ceilings import Ceilings
from resa_bench.profiling.clocks import ClockReader, ClockState
from resa_bench.profiling.stats import Summary, summarize
from resa_bench.suites.core import speedups
from resa_bench.suites.core.bench import Bench
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.core.stages import WHOLE_STEPS
from resa_bench.suites.micro import run as micro_run
from resa_bench.suites.micro.cases import PRESETS, Case, ModelShape
from resa_bench.suites.micro.run import amortise, run_case, step_us

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
QWEN = PRESETS["qwen2.5-7b"]
TINY = Case("tiny", ModelShape(4, 2, 16), 1, 256, dtype="fp32")
SPARSE = SparseConfig(min_blocks=4, active_ratio=0.25)
DENSE_SPEC, RESA_SPEC = MethodSpec("torch-dense"), MethodSpec("resa-torch", SPARSE)


def only(rows: list[Row], **wanted: Any) -> Row:
    matching = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    assert len(matching) == 1, f"{len(matching)} rows with {wanted}"
    return matching[0]


# --- one case measured ------------------------------------------------------------------------------------------------


@pytest.fixture
def bench() -> Bench:
    return make_bench()


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


def test_a_ragged_batch_does_the_work_of_its_tokens(bench: Bench) -> None:
    case = replace(TINY, batch=4, context=1024, pattern="ragged")
    assert case.lengths == [64, 384, 704, 1024]
    assert case.slug == "tiny-b4-1k-ragged"
    rows = run_case(case, [DENSE_SPEC, RESA_SPEC], bench)
    assert {row.status for row in rows} == {"ok"}
    uniform = run_case(replace(TINY, batch=4, context=sum(case.lengths) // 4), [DENSE_SPEC], bench)
    work, expected = (only(of, method="torch-dense", stage="total", cache_state="cold") for of in (rows, uniform))
    assert work.bytes == expected.bytes
    with pytest.raises(ValueError, match="give --batch"):
        replace(TINY, pattern="ragged")


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
    assert row.floor_us is not None
    assert row.floor_us == pytest.approx(row.bytes / 1e9, rel=1e-4)  # 1e6 GB/s are 1e9 bytes a microsecond
    assert row.floor_fraction == pytest.approx(row.floor_us / row.median_us, rel=1e-3)
    assert row.gbps == pytest.approx(row.bytes / row.median_us / 1e3, rel=1e-4)


def test_a_period_longer_than_the_context_is_skipped(bench: Bench) -> None:
    """A chunk cut to the context is no f-th of a rectification of f tokens."""
    rows = run_case(TINY, [DENSE_SPEC, MethodSpec("resa-torch", replace(SPARSE, rectify_every=257))], bench)
    of_resa = [row for row in rows if row.method == "resa-torch"]
    assert {(row.status, row.reason) for row in of_resa} == {
        ("skipped", "rectify_every: 257 tokens do not fit a context of 256"),
    }  # fmt: skip


def test_a_window_longer_than_the_context_is_skipped(bench: Bench) -> None:
    rows = run_case(replace(TINY, context=1), [DENSE_SPEC, MethodSpec("retro", replace(SPARSE, window=2))], bench)
    assert {(row.status, row.reason) for row in rows if row.method == "retro"} == {
        ("skipped", "window: 2 tokens do not fit a context of 1"),
    }  # fmt: skip


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
    rows = run_case(TINY, [DENSE_SPEC], replace(bench, plan=replace(bench.plan, warm=False)))
    assert {row.cache_state for row in rows} == {"cold"}


def test_steps_are_told(bench: Bench) -> None:
    steps: list[str] = []
    run_case(TINY, [DENSE_SPEC], bench, steps.append)
    assert steps[:3] == ["inputs", "check torch-dense", "round 1"]


def survivors(rows: list[Row]) -> None:
    """The other methods of the case have their times."""
    assert only(rows, method="torch-dense", stage="total", cache_state="cold").timed
    assert only(rows, method="resa-torch", stage="total", cache_state="cold").timed


@pytest.mark.usefixtures("registry")
def test_out_of_memory_costs_one_method(bench: Bench) -> None:
    @register("greedy")
    class Greedy(TorchDense):
        def prepare(self, cache: KVCache) -> DenseLayer:
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

    def prepare(self, cache: KVCache) -> DenseLayer:
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
        pytest.param(lambda out: out.mul_(1.001), "check: attention, sequence 0: off by", id="scaled"),
        pytest.param(lambda out: out[0, -1, -1].add_(0.1), "check: attention, sequence 0: off by", id="one-element"),
        pytest.param(
            lambda out: out[0, 0, 0].fill_(float("nan")),
            "check: attention, sequence 0: 1 of 64 elements unwritten",
            id="unwritten",
        ),
        pytest.param(lambda out: out.zero_(), "check: attention, sequence 0: off by", id="zeros"),
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
        def prepare(self, cache: KVCache) -> DenseLayer:
            layer = super().prepare(cache)
            layer.stages = lambda step: (Stage("attend", lambda: None),)  # type: ignore[method-assign]
            return layer

    rows = run_case(TINY, [DENSE_SPEC, MethodSpec("idle")], bench)
    assert only(rows, method="idle").reason == "check: attention, sequence 0: 64 of 64 elements unwritten or not finite"


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
    assert str(row.reason).startswith("check: rectified token 0, sequence 0: off by")


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

    monkeypatch.setattr(micro_run, "make_inputs", make_inputs)
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
    compared = with_speedups([row("sdpa-cudnn", 30.0), row("sdpa-flash", 15.0, **change), row("resa", 10.0)])
    assert (compared[2].speedup_vs_best_dense, compared[2].best_dense) == (3.0, "sdpa-cudnn")
    assert compared[1].best_dense == "sdpa-flash"


def test_amortised_steps_compare_with_dense_totals() -> None:
    compared = with_speedups([row("sdpa-cudnn", 30.0), row("resa", 15.0, stage="total_amortised")])
    assert compared[1].speedup_vs_best_dense == 2.0


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
    compared = with_speedups([row("sdpa-cudnn"), row("resa", None, status="failed", reason="x")])
    assert compared[1].speedup_vs_best_dense is None


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
