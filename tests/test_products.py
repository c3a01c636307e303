"""4-bit projections by the product measured best: the table, dispatch and what stands around it, cases and rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import resa_bench.kernels.linear.best as best_module
import torch
from benches import make_bench
from kernel_cases import DEVICE, random
from linear_cases import framed, make_linear
from resa_bench.kernels import SparseConfig, Unsupported
from resa_bench.kernels.linear.best import FILE, OURS, Best, best_of
from resa_bench.kernels.linear.chosen import ChosenWeight, Multiply
from resa_bench.kernels.linear.dispatch import linear, linear_reference
from resa_bench.kernels.linear.finish import finish, finish_reference
from resa_bench.kernels.linear.fp8 import Fp8Weight, dequantise_fp8
from resa_bench.kernels.linear.int4 import Int4Weight, dequantise
from resa_bench.kernels.linear.product import AnyWeight, Product, ProductShape, products
from resa_bench.profiling.ceilings import Ceilings
from resa_bench.profiling.device import device_name
from resa_bench.suites.cli import main
from resa_bench.suites.core.failure import CheckFailed
from resa_bench.suites.core.rows import IDENTITY, Row, identity
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.decode.cases import DecodeCase
from resa_bench.suites.decode.run import run_case
from resa_bench.suites.decode.suite import twice_notes
from resa_bench.suites.engine.checks import check_linears
from resa_bench.suites.engine.costs import memory_bytes
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.engine.measure import DecodePlan
from resa_bench.suites.engine.products import by_best, refusal, shapes, wanted
from resa_bench.suites.linear import choose, suite
from resa_bench.suites.model import config as model_config
from resa_bench.suites.model.config import MODELS, ModelConfig
from resa_bench.suites.model.weights import QUANTISED, random_decoder
from resa_bench.suites.profile.workload import parse_case

CPU = torch.device("cpu")
TINY = ModelConfig("tiny-for-products", 2, 64, 4, 2, 16, 96, 100, qkv_bias=True)
FUSED = ("", "bias", "residual", "norm", "swiglu", "norm+bias+swiglu+residual")


class Slow(Product):
    """A library's product as this test has it: the weight read back, then torch."""

    kinds = ("int4", "fp8")
    serves_models = True
    compiles = True
    asked: list[int]
    compiled: list[ProductShape]
    wrong = 1.0

    @classmethod
    def ahead(cls, kind: str, shape: ProductShape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
        return lambda: cls.compiled.append(shape)

    @classmethod
    def hold(cls, weight: AnyWeight, dtype: torch.dtype) -> Multiply:
        assert isinstance(weight, Int4Weight | Fp8Weight)
        plain = dequantise(weight, dtype) if isinstance(weight, Int4Weight) else dequantise_fp8(weight, dtype)

        def multiply(x: torch.Tensor) -> torch.Tensor:
            cls.asked.append(len(x))
            return x @ plain.T * cls.wrong

        return multiply

    @classmethod
    def bind(cls, x: Any, weight: AnyWeight, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        multiply = cls.hold(weight, dtype)
        return lambda: multiply(x)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> type[Slow]:
    """`slow` is the best product of the tiny model's o and down from 3 rows on, on this CPU; ours of the others."""
    import resa_bench.kernels.linear.product as product_module

    Slow.name, Slow.asked, Slow.compiled, Slow.wrong = "slow", [], [], 1.0
    monkeypatch.setitem(product_module._products, "slow", Slow)
    monkeypatch.setitem(model_config.MODELS, TINY.name, TINY)
    own = shapes(TINY)
    entries = {f"{n}x{k}": {"1": OURS, "3": "slow", "16": "slow"} for n, k in (own["o"], own["down"])}
    table = {device_name(CPU): {"commit": "c", "libraries": [], "best": {"int4": entries, "fp8": entries}}}
    monkeypatch.setattr(best_module, "table", lambda: table)
    return Slow


# --- which ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "product"),
    [
        (2, OURS),
        (4, "a"),
        (5, "a"),
        (8, "a"),
        (9, OURS),
        (31, OURS),
        (32, "b"),
        (64, "b"),
        (65, "b"),
        (128, "b"),
        (129, OURS),
    ],
)
def test_a_library_counts_between_two_sizes_that_it_was_the_best_at(rows: int, product: str) -> None:
    assert Best(((1, OURS), (4, "a"), (8, "a"), (32, "b"), (128, "b"))).product(rows) == product


def test_the_file_names_products_of_this_package_and_the_commit_of_its_rows() -> None:
    for device, entry in json.loads(FILE.read_text()).items():
        assert len(entry["commit"]) == 40
        for kind, weights in entry["best"].items():
            for shape in weights:
                best = best_of(device, kind, *map(int, shape.split("x")))
                assert best is not None
                assert all(name == OURS or products()[name].serves_models for _, name in best.measured)
    assert best_of("a device that nobody has", "int4", 64, 64) is None


def row(method: str, us: float, projection: str = "gate_up", rows: int = 16, **columns: Any) -> Row:
    base: dict[str, Any] = {
        "suite": "linear", "model": "qwen2.5-7b", "case": f"linear-qwen2.5-7b-int4-{projection}-m{rows}",
        "method": method, "stage": "total", "context": 0, "batch": rows, "q_heads": 28, "kv_heads": 4, "head_dim": 128,
        "weight_dtype": "int4", "median_us": us, "status": "ok", "device": "G", "commit": "0" * 40,
    }  # fmt: skip
    return Row(**(base | columns))


def test_choosing_counts_what_stands_around_a_product() -> None:
    rows = [
        row(OURS, 50), row("humming", 47), row("torch-int4pack", 1),  # two launches more, and no model can use torch's
        row(OURS, 50, rows=32), row("humming", 47, rows=32),  # ours has them, too
        row("humming", 1, rows=64),  # nothing beside it
        row(OURS, 9, "down", 1024), row("humming", 8, "down", 1024),  # a rectification
        row(OURS, 50, weight_dtype="fp8"), row("humming", 47, weight_dtype="fp8"),
        row(OURS, 50, rows=32, weight_dtype="fp8"), row("humming", 47, rows=32, weight_dtype="fp8"),
        row(OURS, 50, "o", 64, weight_dtype="fp8"), row("humming", 49, "o", 64, weight_dtype="fp8"),  # one launch
        row(OURS, 1, "down", weight_dtype="fp8-a8"),  # no model takes it
    ]  # fmt: skip
    columns, depth = shapes(MODELS["qwen2.5-7b"])["gate_up"]
    of_int4 = {f"{columns}x{depth}": {"16": OURS, "32": "humming"}}
    of_int4 |= {"x".join(map(str, shapes(MODELS["qwen2.5-7b"])["down"])): {"1024": "humming"}}
    of_fp8 = {f"{columns}x{depth}": {"16": OURS, "32": "humming"}}
    of_fp8 |= {"x".join(map(str, shapes(MODELS["qwen2.5-7b"])["o"])): {"64": OURS}}
    best = {"int4": of_int4, "fp8": of_fp8}
    assert choose.choose(rows) == {"G": {"commit": "0" * 40, "libraries": [], "best": best}}
    with pytest.raises(ValueError, match="rows of one commit"):
        choose.choose([*rows, row(OURS, 1, commit="1" * 40)])
    with pytest.raises(ValueError, match="no timed rows"):
        choose.choose([])


def test_the_file_follows_from_the_published_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Path(__file__).parent.parent / "results/h200/linear.jsonl.gz"
    out = tmp_path / "best.json"
    out.write_text(json.dumps({"another": {}}))
    choose.write_choice([rows], out)
    assert json.loads(out.read_text()) == {"another": {}} | json.loads(FILE.read_text())
    monkeypatch.setattr(suite, "write_choice", lambda files: choose.write_choice(files, out))
    assert main(["linear", "--choose", str(rows)]) == 0
    assert "NVIDIA H200" in capsys.readouterr().out
    (tmp_path / "none.jsonl").write_text("")
    assert main(["linear", "--choose", str(tmp_path / "none.jsonl")]) == 2
    assert "no timed rows of int4 or fp8 weights" in " ".join(capsys.readouterr().err.split())


# --- dispatch ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", FUSED, ids=lambda f: f or "plain")
def test_what_stands_around_a_product_that_fuses_nothing(fused: str, slow: type[Slow], dtype: torch.dtype) -> None:
    case = make_linear(5, 64, 128, dtype, group=64, fused=fused)
    assert isinstance(case.weight, Int4Weight)
    held = {"slow": slow.hold(case.weight, dtype)}
    weight = ChosenWeight(case.weight, Best(((1, OURS), (4, "slow"), (8, "slow"))), held)
    assert weight.shape == case.weight.shape
    assert weight.bytes == case.weight.bytes
    out = linear(case.x, weight, **case.fused)
    assert slow.asked == [5]
    reference = linear_reference(case.x, weight, **case.fused)
    assert torch.equal(reference, linear_reference(case.x, case.weight, **case.fused))
    assert (out - reference).float().norm() <= 2e-2 * reference.float().norm()
    linear(case.x[:1], weight, norm=case.norm)
    assert slow.asked == [5]  # one row is ours


@pytest.mark.sanitizer
@pytest.mark.parametrize("fused", FUSED[1:], ids=lambda f: f)
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (5, 1030)])
def test_finish(rows: int, columns: int, fused: str, dtype: torch.dtype) -> None:
    swiglu = "swiglu" in fused
    y = framed(rows, (1 + swiglu) * columns, dtype, 1)
    bias = random((1 + swiglu) * columns, dtype=dtype, seed=2) if "bias" in fused else None
    residual = framed(rows, columns, dtype, 3) if "residual" in fused else None
    exact = finish_reference(*(None if t is None else t.double() for t in (y, bias, residual)), swiglu=swiglu)  # type: ignore[arg-type]
    out = finish(y, bias, residual, swiglu=swiglu)
    assert out.dtype == dtype
    u = torch.finfo(dtype).eps
    assert ((out.double() - exact).abs() <= u * exact.abs() + 1e-5).all()


def test_nothing_to_finish_is_no_launch() -> None:
    y = torch.ones(2, 3, device=DEVICE)
    assert finish(y) is y


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_model_by_the_best_products_says_the_same(kind: str, slow: type[Slow]) -> None:
    decoder = random_decoder(TINY, dtype=torch.float32, device=CPU, weight_dtype=kind)
    needs = wanted(TINY, kind, {1, 4, 99}, CPU)
    assert {need.shape.rows for need in needs} == {4}  # one row is ours, and so is what was not measured
    assert {(n.shape.columns, n.shape.depth) for n in needs} == {shapes(TINY)["o"], shapes(TINY)["down"]}
    steps: list[str] = []
    best = by_best(decoder, kind, needs, steps.append)
    assert len(slow.compiled) == 2
    assert any("compiled 2 of 2" in step for step in steps)
    for own, other in zip(decoder.layers, best.layers, strict=True):
        assert other.qkv is own.qkv
        assert other.gate_up is own.gate_up
        assert isinstance(other.o, ChosenWeight)
        assert isinstance(other.down, ChosenWeight)
    assert best.weight_bytes == decoder.weight_bytes
    check_linears(best, {1, 4})
    assert slow.asked == [4, 4]
    slow.wrong = 1.1
    with pytest.raises(CheckFailed, match="4 rows"):
        check_linears(best, {4})
    assert by_best(decoder, kind, [], steps.append).layers[0].o is decoder.layers[0].o


def case_of(**columns: Any) -> DecodeCase:
    return replace(DecodeCase(TINY.name, TINY, 3, 64, "int4", "fp32", products="best"), **columns)


def test_rows_of_a_run_by_the_best_products(slow: type[Slow]) -> None:
    bench = make_bench(DecodePlan(seconds=0.0, breakdown=False), Ceilings(1e5, 1e5, 1e3), "resa-bench decode ...")
    specs = [MethodSpec("torch-dense", SparseConfig(rectify_every=4))]
    specs += [MethodSpec("resa-torch", SparseConfig(rectify_every=4, min_blocks=2))]
    rows = run_case(case_of(), specs, bench)
    assert [r.status for r in rows] == ["ok"] * len(rows), [r.reason for r in rows]
    assert {r.products for r in rows} == {"best"}
    assert {3, 12} <= set(slow.asked)  # steps, and rectification of 4 tokens of each sequence
    own = run_case(case_of(products=OURS), specs, bench)
    assert {r.products for r in own} == {None}
    assert not {identity(r) for r in own} & {identity(r) for r in rows}


def test_the_loader_drops_the_second_copy(slow: type[Slow], monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader()
    first = loader.model(case_of(), {4}, CPU)
    assert loader.model(case_of(), {4}, CPU) is first
    assert isinstance(first.decoder.layers[0].o, ChosenWeight)
    plain = loader.model(case_of(products=OURS), {4}, CPU)
    assert isinstance(plain.decoder.layers[0].o, Int4Weight)
    assert plain.decoder.layers[0].o is first.decoder.layers[0].o.own
    assert loader._best is None
    monkeypatch.setattr(Slow, "unavailable", classmethod(lambda cls, *_: "gone"))
    with pytest.raises(Unsupported, match="slow: gone"):
        loader.model(case_of(), {4}, CPU)


def test_cases_say_their_products(slow: type[Slow]) -> None:
    best, own = case_of(), case_of(products=OURS)
    assert best.slug == "decode-tiny-for-products-int4-b3-64-best"
    assert own.slug == "decode-tiny-for-products-int4-b3-64"
    assert own.columns()["products"] is None  # rows of before have no such column
    assert "products" in IDENTITY
    config = MODELS["qwen2.5-7b"]
    whole = DecodeCase("qwen2.5-7b", config, 1, 8192, "int4")
    more = memory_bytes(replace(whole, products="best"), []) - memory_bytes(whole, [])
    assert more == int(config.linear_parameters * 4.25 / 8)
    assert twice_notes([whole]) == []
    assert "3.5 GB more" in twice_notes([replace(whole, products="best")])[0]
    for change, message in (
        ({"products": "x"}, "got 'x'"),
        ({"products": "best", "weights": "bf16"}, "of int4 or fp8 weights"),
    ):
        with pytest.raises(ValueError, match=f"products: .*{message}"):
            replace(whole, **change)  # type: ignore[arg-type]
    assert parse_case("decode-qwen2.5-7b-int4-b32-8k-best", CPU).products == "best"  # type: ignore[union-attr]


def test_what_cannot_run_is_refused_in_a_line(
    slow: type[Slow], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(TINY, "int4", torch.float32, CPU) is None
    monkeypatch.setattr(Slow, "unavailable", classmethod(lambda cls, *_: "slow_library cannot be imported"))
    assert refusal(TINY, "int4", torch.float32, CPU) == "slow: slow_library cannot be imported"
    for arguments, message in (
        ("--weights int4", "slow: slow_library cannot be imported"),
        ("--weights fp32", "give --weights int4 or fp8"),
        ("--context 512", "give --weights int4 or fp8"),
        ("--model qwen2.5-1.5b --weights int4", "no products of qwen2.5-1.5b's sizes were measured on"),
    ):
        given = f"decode --device cpu --model {TINY.name} --products best {arguments}".split()
        assert main(given) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


# --- humming itself ---------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 33, 64])
def test_humming_holds_a_weight_of_a_model(rows: int) -> None:
    """A captured graph replays it with new rows; the same result as ours within what its zero points are rounded by."""
    pytest.importorskip("humming")
    device, dtype = torch.device("cuda"), torch.bfloat16
    case = make_linear(rows, 256, 512, dtype, group=128, fused="norm+bias+residual")
    assert isinstance(case.weight, Int4Weight)
    held = {"humming": products()["humming"].hold(case.weight, dtype)}
    weight = ChosenWeight(case.weight, Best(((rows, "humming"),)), held)
    x = case.x.clone()

    def run() -> torch.Tensor:
        return linear(x, weight, **case.fused)

    run()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for seed in (5, 6):
        x.copy_(random(rows, 512, dtype=dtype, seed=seed))
        graph.replay()
        reference = linear_reference(x, case.weight, **case.fused)
        assert (out - reference).float().norm() <= 1e-2 * reference.float().norm()
