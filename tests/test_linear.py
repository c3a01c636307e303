"""The linear suite and its fp8 products: rounding, kernels against fp64, plan, rows, tables."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from benches import QUICK, make_bench
from kernel_cases import DEVICE, NAN
from linear_cases import framed
from resa_bench.kernels.exact import CONFIDENCE, UNIT_ROUNDOFF
from resa_bench.kernels.linear.fp8 import E4M3, Fp8Weight, dequantise_fp8, fp8_reference, quantise_fp8
from resa_bench.kernels.linear.fp8_linear import fp8_linear
from resa_bench.kernels.linear.product import KINDS, Product, products, register_product
from resa_bench.suites import cli
from resa_bench.suites.core.failure import CheckFailed
from resa_bench.suites.core.flags import options
from resa_bench.suites.core.registry import Plan
from resa_bench.suites.linear.ahead import Measure
from resa_bench.suites.linear.cases import LinearCase, ProductSpec
from resa_bench.suites.linear.run import check, exact_product, make_weight, make_x, run_case
from resa_bench.suites.linear.suite import SUITE
from resa_bench.suites.linear.table import print_report
from resa_bench.suites.model.config import MODELS
from rich.console import Console
from torch import Tensor

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def random(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).to(DEVICE)


def test_quantised_rows_are_the_nearest_of_their_scale() -> None:
    matrix = random(7, 100)
    matrix[3] = 0
    weight = quantise_fp8(matrix)
    back = dequantise_fp8(weight)
    assert weight.scales[3] == 1
    assert (back[3] == 0).all()
    largest = matrix.abs().amax(1, keepdim=True)
    # three bits of mantissa: half a step is 2^-4 of the value, and below the smallest normal 2^-10 of a step of 1
    assert ((back - matrix).abs() <= matrix.abs() * 2.0**-4 * 1.001 + largest / 448 * 2.0**-10 * 1.001).all()
    assert torch.allclose(back.abs().amax(1), largest[:, 0], rtol=1e-6)
    wide = dequantise_fp8(weight, torch.float64)
    assert (wide == weight.values.double() * weight.scales.double()[:, None]).all()


def test_a_weight_checks_itself() -> None:
    values, scales = torch.zeros(4, 8, dtype=E4M3), torch.ones(4)
    for wrong in ((values.float(), scales), (values, scales.double()), (values, scales[:3]), (values.T, torch.ones(8))):
        with pytest.raises((TypeError, ValueError)):
            Fp8Weight(*wrong)
    with pytest.raises(TypeError, match="floating-point"):
        quantise_fp8(torch.ones(2, 2, dtype=torch.int32))


@pytest.mark.sanitizer
@pytest.mark.parametrize("quantised", [False, True], ids=["w8a16", "w8a8"])
@pytest.mark.parametrize(("rows", "total", "depth"), [(1, 70, 320), (17, 33, 200), (40, 64, 256), (130, 20, 64)])
def test_fp8_linear(rows: int, total: int, depth: int, quantised: bool, dtype: torch.dtype) -> None:
    weight = quantise_fp8(random(total, depth, seed=1) / depth**0.5)
    plain = framed(rows, depth, dtype, 2)
    x = quantise_fp8(plain) if quantised else plain
    out = torch.full((rows, total), NAN, dtype=dtype, device=DEVICE)
    assert fp8_linear(x, weight, out=out, dtype=dtype) is out
    wide = dequantise_fp8(x, torch.float64) if isinstance(x, Fp8Weight) else x.double()
    weights = dequantise_fp8(weight, torch.float64)
    exact, summed = wide @ weights.T, wide.abs() @ weights.T.abs()
    bound = UNIT_ROUNDOFF[dtype] * exact.abs() + 2 * (CONFIDENCE * depth**0.5 + 16) * 2.0**-24 * summed
    if quantised and DEVICE.type == "cuda":
        bound += 2.0**-13 * summed  # the 14 bits of the matrix units' own sums
    assert ((out.double() - exact).abs() <= bound).all()
    reference = fp8_reference(x, weight, torch.float64).double()
    assert torch.allclose(reference, exact, rtol=1e-4, atol=1e-5)


def test_fp8_linear_says_what_is_wrong() -> None:
    weight = quantise_fp8(random(16, 64))
    x = torch.zeros(2, 64, dtype=torch.float16, device=DEVICE)
    with pytest.raises(ValueError, match="x"):
        fp8_linear(x[:, :32], weight)
    with pytest.raises(ValueError, match="got 0 rows"):
        fp8_linear(x[:0], weight)
    with pytest.raises(ValueError, match="out"):
        fp8_linear(x, weight, out=x.new_zeros(16, 2).T)


# --- the suite --------------------------------------------------------------------------------------------------------


def planned(device: torch.device, **given: object) -> Plan:
    return SUITE.plan(options(SUITE.flags, given), device)


@pytest.mark.parametrize("model", MODELS)
def test_projections_hold_all_linear_parameters(model: str) -> None:
    config = MODELS[model]
    shapes = [LinearCase(model, name, "plain", 1).shape for name in ("qkv", "o", "gate_up", "down")]
    assert config.layers * sum(shape.columns * shape.depth for shape in shapes) == config.linear_parameters


def cases_of(plan: Plan) -> list[LinearCase]:
    return cast(list[LinearCase], list(plan.cases))


def test_the_list_has_every_kind_and_1_to_2048_rows() -> None:
    plan = planned(CUDA)
    cases = cases_of(plan)
    assert {case.kind for case in cases} == set(KINDS)
    assert {case.rows for case in cases} >= {1, 16, 32, 64, 256, 2048}
    assert {case.projection for case in cases} == {"qkv", "o", "gate_up", "down"}
    for case in cases:
        names = {spec.name for spec in (*plan.specs, *plan.further[case.slug])}
        assert names == {name for name, kind in products().items() if case.kind in kind.kinds}
    assert {case.model for case in cases_of(planned(CUDA, scale="full"))} == set(MODELS)


@pytest.mark.parametrize("kind", KINDS)
def test_our_product_passes_its_gate_and_a_wrong_one_does_not(kind: str) -> None:
    case = LinearCase("qwen2.5-1.5b", "o", kind, 2, "fp32")
    weight, x = make_weight(case, CPU), make_x(case, CPU)
    chosen = torch.arange(0, case.shape.columns, 64)
    exact = exact_product(x, weight, chosen)
    out = products()["ours"].bind(x, weight, case.torch_dtype)()
    assert check(out, exact, chosen, case).budget_used < 1
    for wrong in (out * 1.01, out.double(), out[:, 1:]):
        with pytest.raises(CheckFailed):
            check(wrong, exact, chosen, case)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["linear", "--device", "cpu", *words])
    printed = capsys.readouterr()
    return status, " ".join(printed.out.split()), " ".join(printed.err.split())


def test_a_wrong_product_costs_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(Product):
        kinds = ("plain",)

        @classmethod
        def bind(cls, x: Any, weight: Any, dtype: torch.dtype) -> Any:
            return lambda: 2 * torch.mm(x, weight.weight.T)

    monkeypatch.setattr("resa_bench.kernels.linear.product._products", products())
    register_product("wrong")(Wrong)
    case = LinearCase("qwen2.5-1.5b", "o", "plain", 2, "fp32")
    specs = [ProductSpec(name) for name in ("ours", "wrong", "torch-scaled-mm")]
    by_name = {row.method: row for row in run_case(case, specs, make_bench(Measure(QUICK)))}
    assert by_name["ours"].status in ("ok", "throttled")
    assert by_name["ours"].gbps is not None
    assert by_name["ours"].error_budget_used is not None
    assert by_name["wrong"].status == "failed"
    assert "of a row's norm" in (by_name["wrong"].reason or "")
    assert by_name["torch-scaled-mm"].reason == "needs a CUDA device, got cpu"
    console = Console(file=io.StringIO(), width=200)
    print_report(list(by_name.values()), console)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "qwen2.5-1.5b, fp32 weights" in out
    assert "wrong" in out


@pytest.mark.slow
@pytest.mark.usefixtures("plugins")
def test_the_quick_list_runs_on_a_cpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = run(capsys, "--quick", "--weights", "int4", "--output", str(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "linear.jsonl").read_text().splitlines()]
    assert status == 0
    assert {row["method"]: row["status"] for row in rows if row["method"] != "ours"} == dict.fromkeys(
        ("gemlite", "humming", "marlin", "ours-triton", "torch-int4pack"), "skipped"
    )
    assert "qwen2.5-1.5b, int4 weights" in out


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        (("--kernel", "nope"), "--kernel nope: unknown; known are"),
        (("--case", "nope"), "--case nope: no case matches"),
    ):
        status, _, err = run(capsys, *words)
        assert status == 2
        assert expected in err


def test_a_product_is_registered_once() -> None:
    with pytest.raises(ValueError, match="is there already"):
        register_product("ours")(Product)


def test_rows_of_a_rectification_by_a_librarys_first_word() -> None:
    plan = planned(CUDA, rows=(128, 256, 1024), weights=("int4", "fp8"), kernel=("ours", "humming", "torch"))
    assert {case.rows for case in cases_of(plan)} == {128, 256, 1024}
    names = {(case.kind, spec.name) for case in cases_of(plan) for spec in (*plan.specs, *plan.further[case.slug])}
    assert names == {
        ("int4", "ours"), ("int4", "humming"), ("int4", "torch-int4pack"), ("fp8", "ours"), ("fp8", "humming")
    }  # fmt: skip
