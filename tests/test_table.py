"""The tables a run ends with: labels, break-even contexts, what failed or was skipped; and a method of one's own."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benches import make_bench
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import get_method, method, registered
from resa_bench.suites.core.report import BreakEven, main_launch
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import MethodSpec, Names
from resa_bench.suites.micro.cases import Case, ModelShape
from resa_bench.suites.micro.run import run_case
from resa_bench.suites.micro.table import case_table, crossings, print_report, whole_steps
from rich.console import Console
from rich.table import Table

CPU = torch.device("cpu")


def row(name: str, median: float | None = 10.0, **changes: Any) -> Row:
    context = changes.get("context", 8192)
    kind = registered().get(name)
    settings: dict[str, Any] = {n: v for n, v in SETTINGS.items() if kind is not None and n in kind.uses}
    defaults: dict[str, Any] = {
        "suite": "micro", "model": "m", "case": f"m-b1-{context}", "method": name, "stage": "total",
        "context": context, "batch": 1, "q_heads": 28, "kv_heads": 4, "head_dim": 128, "cache_state": "cold",
        "launch": "graph", "selection_pattern": "random", "status": "ok", "median_us": median,
    }  # fmt: skip
    return Row(**(defaults | settings | changes))


SETTINGS = {"block_size": 16, "active_ratio": 0.1, "gqa_policy": "group-mean", "summary_kind": "minmax"}


def failed(name: str, status: str, reason: str, **changes: Any) -> Row:
    return row(name, None, status=status, reason=reason, cache_state=None, launch=None, **changes)


def text(renderable: Table) -> str:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(renderable)
    return console.export_text()


def report(rows: list[Row]) -> str:
    console = Console(width=160, file=io.StringIO(), record=True)
    print_report(rows, console)
    return console.export_text()


@pytest.mark.parametrize(
    ("single_row", "expected"),
    [
        pytest.param(row("sdpa-cudnn"), "sdpa-cudnn", id="dense"),
        pytest.param(row("resa"), "resa b16", id="resa"),
        pytest.param(row("resa", block_size=64, gqa_policy="group-sum"), "resa b64 group-sum", id="policy"),
        pytest.param(row("quest", gqa_policy="per-head"), "quest b16 per-head", id="quest"),
        pytest.param(row("quest", summary_kind="meanstd"), "quest b16 group-mean meanstd", id="meanstd"),
        pytest.param(row("no-longer-here", block_size=32), "no-longer-here b32", id="method-that-is-gone"),
        pytest.param(failed("resa", "oom", "x", block_size=32), "resa b32", id="without-a-time"),
    ],
)
def test_label(single_row: Row, expected: str) -> None:
    assert Names([single_row])[single_row] == expected


def test_label_is_the_specs() -> None:
    """Tables name a method as the command line does."""
    for name in registered():
        spec = MethodSpec(name)
        named = row(name, **spec.columns())
        assert Names([named])[named] == spec.label


def test_graphs_come_first() -> None:
    eager = row("resa", launch="eager")
    assert main_launch([eager, row("sdpa-cudnn")]) == "graph"
    assert main_launch([eager]) == "eager"


def test_whole_steps() -> None:
    """Cold totals as graphs; the eager row of a method that has no graph; no stages, no warm rows, no failures."""
    graph, eager = row("resa"), row("resa", launch="eager")
    uncaptured = row("resa-authors", launch="eager")
    others = [row("resa", stage="attend"), row("resa", cache_state="warm"), failed("quest", "failed", "x")]
    assert whole_steps([eager, uncaptured, *others, graph]) == [graph, uncaptured]


def points(*speedups: tuple[int, float], name: str = "resa", **changes: Any) -> list[Row]:
    return [row(name, context=context, speedup_vs_best_dense=speedup, **changes) for context, speedup in speedups]


KEY = ("m", "1", "resa b16")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(points((4096, 0.5), (16384, 1.5)), 8192.0, id="halfway-in-the-logarithm"),
        pytest.param(points((4096, 0.9), (8192, 1.3)), 4096 * 2**0.25, id="a-quarter-of-the-way"),
        pytest.param(points((16384, 1.5), (4096, 0.5)), 8192.0, id="in-any-order"),
        pytest.param(points((4096, 1.2), (8192, 2.0)), 4096.0, id="wins-throughout"),
        pytest.param(points((4096, 0.5), (8192, 0.9)), None, id="never-wins"),
        pytest.param(points((4096, 1.0), (8192, 1.0)), None, id="even-is-no-win"),
        pytest.param(points((4096, 1.5), (8192, 0.5), (32768, 1.5)), 16384.0, id="a-win-must-last"),
        pytest.param(points((4096, 2.0), (8192, 0.5)), None, id="loses-in-the-end"),
        pytest.param(points((4096, 1.0), (16384, 1.5)), 4096.0, id="even-at-the-first"),
        pytest.param(points((8192, 3.0)), None, id="one-context"),
    ],
)
def test_break_even(rows: list[Row], expected: float | None) -> None:
    tokens = {key: point.tokens for key, point in crossings(rows).items()}
    assert tokens == ({} if expected is None else {KEY: pytest.approx(expected)})


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([], id="no-rows"),
        pytest.param(points((4096, 2.0), (8192, 3.0), name="sdpa-flash"), id="dense"),
        pytest.param(points((4096, 2.0), (8192, 3.0), cache_state="warm"), id="warm"),
        pytest.param(points((4096, 2.0), (8192, 3.0), stage="attend"), id="another-stage"),
        pytest.param(points((4096, 2.0), (8192, 3.0), selection_pattern="recent"), id="another-pattern"),
        pytest.param([row("resa")], id="no-rival"),
        pytest.param([*points((4096, 2.0), (8192, 3.0), launch="eager"), row("sdpa-cudnn")], id="eager-beside-graphs"),
    ],
)
def test_break_even_leaves_out(rows: list[Row]) -> None:
    assert crossings(rows) == {}


def test_break_even_counts_rectification() -> None:
    """The step alone wins from 4K; with its share of rectification it wins from 8K."""
    rows = [*points((4096, 2.0), (16384, 3.0)), *points((4096, 0.5), (16384, 1.5), stage="total_amortised")]
    assert crossings(rows) == {KEY: BreakEven(pytest.approx(8192), False)}  # type: ignore[arg-type]


def test_break_even_of_each_model_batch_and_variant() -> None:
    rows = [
        *points((4096, 0.5), (16384, 1.5)),
        *points((4096, 0.9), (8192, 1.3), batch=4),
        *points((4096, 2.0), (8192, 3.0), block_size=64),
    ]
    assert crossings(rows) == {
        KEY: BreakEven(pytest.approx(8192), False),  # type: ignore[arg-type]
        ("m", "4", "resa b16"): BreakEven(pytest.approx(4096 * 2**0.25), False),  # type: ignore[arg-type]
        ("m", "1", "resa b64"): BreakEven(4096, True),
    }


def test_case_table_is_sorted_and_complete() -> None:
    best = {"best_dense": "sdpa-cudnn"}
    rows = [
        row("sdpa-cudnn", 30.0, speedup_vs_best_dense=1.0, gbps=2500.4, floor_fraction=0.83, **best),
        row("resa", 10.0, speedup_vs_best_dense=3.0, ci_low_us=9.8, ci_high_us=10.2, floor_speedup=9.1, **best),
        row("resa", 12.5, stage="total_amortised", speedup_vs_best_dense=2.4, **best),
        row("resa", 1.0, case="another"),
        row("quest", 20.0, status="throttled", reason="power cap", **best),
    ]
    lines = text(case_table("m-b1-8192", rows)).splitlines()
    assert lines[0].startswith("m-b1-8192: one decode step of attention (cold, graph)")
    body = [line for line in lines if "b16" in line or "sdpa" in line]
    assert [line.split()[1] for line in body] == ["resa", "quest", "sdpa-cudnn"]
    resa, quest, dense = (" ".join(line.replace("│", " ").split()) for line in body)
    assert resa == "resa b16 10.0 2.0 3.00x 2.40x 9.10x"
    assert quest == "quest b16 group-mean (throttled) 20.0 0.0"
    assert dense == "sdpa-cudnn (best dense) 30.0 0.0 2500 83 % 1.00x"


def test_case_table_names_failures_and_the_launch_of_an_uncaptured_method() -> None:
    rows = [row("sdpa-cudnn"), row("resa-authors", 99.0, launch="eager"), failed("quest", "oom", "too big")]
    shown = text(case_table("m-b1-8192", rows))
    assert "resa-authors b16 (eager)" in shown
    assert "quest b16 group-mean total: oom" in shown


def test_the_portable_path_is_said() -> None:
    shown = text(case_table("m-b1-8192", [row("resa-torch", launch="eager", device="CPU X")]))
    assert "portable torch path on a CPU" in " ".join(shown.split())


def test_a_column_without_a_cell_is_not_shown() -> None:
    assert "of floor" not in text(case_table("m-b1-8192", [row("resa")]))
    assert "of floor" in text(case_table("m-b1-8192", [row("resa"), row("quest", floor_fraction=0.5)]))


def test_report_shows_failures_and_skips_with_their_reasons() -> None:
    """Brackets in a reason are text, not the console's markup."""
    install = "no such module; pip install -e '.[fa3]'"
    rows = [
        row("sdpa-cudnn"),
        failed("resa", "failed", "RuntimeError: [enforce fail at alloc_cpu.cpp:117] [/tmp/x]"),
        failed("quest", "oom", "too big [B, H, S, D]"),
        failed("flash-attn-3", "skipped", install),
        failed("flash-attn-3", "skipped", install, context=16384),
    ]
    shown = report(rows)
    assert "failed m-b1-8192 resa b16 total: RuntimeError: [enforce fail at alloc_cpu.cpp:117] [/tmp/x]" in shown
    assert "oom m-b1-8192 quest b16 group-mean total: too big [B, H, S, D]" in shown
    assert shown.count(install) == 1  # once for all cases
    assert "skipped" in [line.strip() for line in shown[: shown.index(install)].splitlines()]  # the table's title


def test_report_shows_break_even_where_there_is_a_curve() -> None:
    rows = points((4096, 0.5), (16384, 1.5)) + points((4096, 2.0), (16384, 3.0), block_size=64)
    rows += points((16384, 2.0), (32768, 3.0), block_size=32)  # not measured below
    shown = report(rows)
    lines = {" ".join(line.replace("│", " ").split()) for line in shown.splitlines()}
    assert {"m 1 resa b16 8192", "m 1 resa b64 <= 4096", "m 1 resa b32 <= 16384"} <= lines
    assert "break-even" not in report(points((4096, 2.0)))


def test_report_of_nothing() -> None:
    assert report([]) == ""


# --- a method of one's own --------------------------------------------------------------------------------------------

MY_METHOD = '''
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from resa_bench.kernels import DecodeMethod, KVCache, StepTensors, register
from resa_bench.kernels.method import DenseLayer
from resa_bench.kernels.portable import write_tokens_torch


@register("my-method")
class MyMethod(DecodeMethod):
    """Dense attention with every KV head repeated."""

    is_dense = True

    def prepare(self, cache: KVCache) -> DenseLayer:
        def attend(step: StepTensors):
            def run() -> None:
                for b, length in enumerate(cache.lengths.tolist()):
                    k, v = (x[b, :, :length].repeat_interleave(self.shape.group, 0) for x in cache.gather())
                    step.out[b] = scaled_dot_product_attention(step.q[b][:, None], k, v)[:, 0]

            return run

        return DenseLayer(cache, self.shape.q_heads, attend, append=write_tokens_torch)
'''


@pytest.fixture
def my_method(tmp_path: Path) -> Iterator[str]:
    """A method written in one file, imported, and forgotten afterwards."""
    path = tmp_path / "my_method.py"
    path.write_text(MY_METHOD)
    spec = importlib.util.spec_from_file_location("my_method", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield "my-method"
    method._registry.pop("my-method")


def test_a_method_added_in_one_file_is_measured_and_shown(my_method: str) -> None:
    bench = make_bench()
    case = Case("tiny", ModelShape(4, 2, 16), 1, 256, dtype="fp32")
    rows = run_case(case, [MethodSpec("torch-dense"), MethodSpec(my_method)], bench)
    own = [r for r in rows if r.method == my_method]
    assert {(r.stage, r.status) for r in own} == {("append", "ok"), ("attend", "ok"), ("total", "ok")}
    total = next(r for r in own if r.stage == "total" and r.cache_state == "cold")
    assert total.best_dense in ("torch-dense", my_method)  # it counts as a rival itself
    assert total.max_rel_error is not None
    assert my_method in text(case_table(case.slug, rows))


def test_one_name_one_method(my_method: str) -> None:
    with pytest.raises(ValueError, match="method 'my-method' is registered already, by MyMethod"):
        method.register(my_method)(type("Another", (get_method("torch-dense"),), {}))
    with pytest.raises(KeyError, match=r"no method 'nobody'; known are .*my-method"):
        get_method("nobody")
