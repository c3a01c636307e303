"""The decode suite's measuring: rows end to end, speed-ups, tables, commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from benches import make_bench
from resa_bench.kernels import SparseConfig, get_method
from resa_bench.kernels.fused.method import STAGE
from resa_bench.profiling.ceilings import Ceilings
from resa_bench.suites.cli import main
from resa_bench.suites.core.bench import Bench
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import MethodSpec, Names
from resa_bench.suites.core.speedups import with_speedups
from resa_bench.suites.decode import run as decode_run
from resa_bench.suites.decode import suite
from resa_bench.suites.decode.cases import DecodeCase, ragged_pair
from resa_bench.suites.decode.run import CaseRun, run_case, step_us
from resa_bench.suites.decode.table import breakdown_table, crossings, print_report, ragged_table, texts
from resa_bench.suites.engine import bind, loader
from resa_bench.suites.engine.bind import Place
from resa_bench.suites.engine.engine import Engine, State, generate
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.engine.measure import DecodePlan
from resa_bench.suites.model import config as model_config
from resa_bench.suites.model.config import ModelConfig
from resa_bench.suites.model.smollm import ModelNotHere
from rich.console import Console

CPU = torch.device("cpu")
TINY = ModelConfig("tiny-for-tests", 2, 32, 4, 2, 16, 64, 100)


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(model_config.MODELS, TINY.name, TINY)
    return TINY.name


def bench_on_cpu(**plan: Any) -> Bench:
    return make_bench(DecodePlan(**({"seconds": 0.0} | plan)), Ceilings(1e5, 1e5, 1e3), "resa-bench decode ...")


SPECS = [
    MethodSpec("torch-dense", SparseConfig(rectify_every=4)),
    MethodSpec("resa-torch", SparseConfig(rectify_every=4, min_blocks=4)),
]


@pytest.mark.slow
def test_rows_of_a_case(tiny: str) -> None:
    case = DecodeCase(tiny, TINY, 2, 512, "fp32", "fp32")
    rows = run_case(case, SPECS, bench_on_cpu())
    assert not [r for r in rows if r.status != "ok"], [r.reason for r in rows]
    totals = {r.method: r for r in rows if r.stage == "total"}
    assert set(totals) == {"torch-dense", "resa-torch"}
    for row in totals.values():
        assert row.suite == "decode"
        assert row.n_samples == 8  # two periods of four tokens
        assert row.mean_us is not None
        assert row.tokens_per_s == pytest.approx(2 / row.mean_us * 1e6, rel=1e-4)
        assert row.wall_mean_us == pytest.approx(row.mean_us, rel=0.05)
        assert 0 < (row.error_budget_used or 0) <= 1
        assert row.best_dense == "torch-dense"
        parts = [r for r in rows if r.method == row.method and r.stage != "total"]
        assert sum(r.mean_us or 0.0 for r in parts) == pytest.approx(row.mean_us, rel=1e-3)  # the gap fills the rest
        assert {"append", "attend", "project", "ffn", "head", "sample", "gap"} <= {r.stage for r in parts}
    resa = totals["resa-torch"]
    assert resa.mean_us is not None
    assert resa.speedup_vs_best_dense == pytest.approx((totals["torch-dense"].mean_us or 0.0) / resa.mean_us, rel=1e-4)
    assert resa.rectify_every == 4
    assert {"rectify", "rectify+project+ffn"} <= {r.stage for r in rows if r.method == "resa-torch"}
    assert breakdown_table(case.slug, rows) is not None


def test_a_ragged_batch_says_what_each_sequence_says_alone(tiny: str) -> None:
    """Steps and rectifications of a whole case: positions, appended tokens, lists and repairs of each length's own."""
    case = DecodeCase(tiny, TINY, 3, 256, "fp32", "fp32", pattern="ragged")
    assert case.sequence_tokens == [16, 136, 256]
    bench = bench_on_cpu()
    for spec in SPECS:
        run = CaseRun(case, [spec], bench, lambda text: None)
        with torch.inference_mode():
            run.prepare(Loader())
            bound = run.contend(spec)
            tokens = 2 * spec.period
            run.place.before(tokens)
            assert run.state.lengths.tolist() == [n - tokens for n in case.sequence_tokens]
            kept = [(cache.k.clone(), cache.v.clone()) for cache in run.state.caches]
            generate(bound.step, bound.rectify, spec.period, tokens)
            assert run.state.lengths.tolist() == case.sequence_tokens
            together, logits = run.state.history[:tokens].clone(), bound.engine.logits.clone()
            for b, length in enumerate(case.sequence_tokens):
                alone = State.allocate(run.decoder, 1, run.state.capacity, tokens + 1)
                for cache, (k, v) in zip(alone.caches, kept, strict=True):
                    cache.k.copy_(k[b : b + 1])
                    cache.v.copy_(v[b : b + 1])
                Place(alone, length, run.place.pending[b : b + 1]).before(tokens)
                single = engine_of(run.decoder, alone, spec)
                generate(single.step, single.rectify if spec.rectifies else None, spec.period, tokens)
                assert torch.equal(alone.history[:tokens, 0], together[:, b])
                torch.testing.assert_close(single.logits[0], logits[b], rtol=1e-4, atol=1e-4)
        assert len(set(map(tuple, together.t().tolist()))) == 3, "sequences that say the same would hide a wrong length"


def engine_of(decoder: Any, state: State, spec: MethodSpec) -> Engine:
    """A method on a state, as `bind` makes it, without its gates."""
    every = spec.config.rectify_every if spec.rectifies else None
    return Engine(decoder, state, bind.layers_of(decoder, state, spec), rectify_every=every)


@pytest.mark.slow
def test_rows_of_a_ragged_batch_beside_the_uniform_one(tiny: str) -> None:
    pair = ragged_pair(DecodeCase(tiny, TINY, 4, 512, "fp32", "fp32"))
    assert [case.slug for case in pair] == [f"decode-{tiny}-fp32-b4-512-ragged", f"decode-{tiny}-fp32-b4-272"]
    rows = [row for case in pair for row in run_case(case, SPECS, bench_on_cpu(periods=1, breakdown=False))]
    assert {r.status for r in rows} == {"ok"}, [r.reason for r in rows]
    ragged, uniform = ({r.method: r for r in rows if r.case == case.slug} for case in pair)
    assert {r.selection_pattern for r in ragged.values()} == {"ragged"}
    dense = ragged["torch-dense"], uniform["torch-dense"]
    assert (dense[0].bytes, dense[0].flops) == (dense[1].bytes, dense[1].flops), "as many tokens, the same work"
    table = ragged_table(rows)
    assert table is not None
    assert table.row_count == len(SPECS)
    assert ragged_table([r for r in rows if r.case == pair[0].slug]) is None
    console = Console(width=200, record=True)
    print_report(rows, console)
    assert "synthetic contexts of many lengths" in console.export_text()
    assert not crossings([*ragged.values(), *uniform.values()]), "a longest sequence is no context of a curve"


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("weights", ["fp32", "int4", "fp8"])
@pytest.mark.slow
def test_every_setting_passes_the_gate(tiny: str, shared: bool, weights: str) -> None:
    case = DecodeCase(tiny, TINY, 1, 256, weights, "fp32", shared_kv=shared)
    rows = run_case(case, SPECS, bench_on_cpu(periods=1))
    assert {r.status for r in rows} == {"ok"}, [r.reason for r in rows]


def test_a_wrong_kernel_gets_no_time(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = get_method("resa-torch")
    original = kind.prepare

    def prepare(self: Any, cache: Any) -> Any:
        layer = original(self, cache)
        vars(layer)["output"] = lambda cells: cells.out * 1.01
        return layer

    monkeypatch.setattr(kind, "prepare", prepare)
    rows = run_case(DecodeCase(tiny, TINY, 1, 512, "fp32", "fp32"), SPECS, bench_on_cpu())
    resa = [r for r in rows if r.method == "resa-torch"]
    assert [(r.status, r.median_us) for r in resa] == [("failed", None)]
    assert "check: attention of layer 0" in str(resa[0].reason)
    assert [r for r in rows if r.method == "torch-dense" and r.timed]


class Words:
    """A tokenizer of a hundred words."""

    def encode(self, text: str) -> list[int]:
        return [ord(c) % 100 for c in text]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def test_a_text_prompt_is_never_written_to(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a method is asked to do, the next one finds the prompt as it was prefilled."""
    original = loader.load_decoder
    monkeypatch.setattr(
        loader, "load_decoder", lambda *a, **k: replace(original(*a, **k), tokenizer=cast(Any, Words()))
    )
    case = DecodeCase(tiny, TINY, 1, 300, "fp32", "fp32", prompt="text")
    run = CaseRun(case, SPECS, bench_on_cpu(), lambda _: None)
    with torch.inference_mode():
        run.prepare(Loader())
        before = [(c.k[:, :, : run.prompt].clone(), c.v[:, :, : run.prompt].clone()) for c in run.state.caches]
        for spec in (SPECS[1], SPECS[0]):
            rows = list(run.measure(spec))
            assert rows[0].status == "ok", rows[0].reason
            assert len((rows[0].text or "").split()) == 12, "three periods of four tokens"
        for cache, (k, v) in zip(run.state.caches, before, strict=True):
            assert torch.equal(cache.k[:, :, : run.prompt], k)
            assert torch.equal(cache.v[:, :, : run.prompt], v)


@pytest.mark.slow
def test_drift_of_a_text(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the three rectifications after a text says how far the four steps before it were off."""
    original = loader.load_decoder
    monkeypatch.setattr(
        loader, "load_decoder", lambda *a, **k: replace(original(*a, **k), tokenizer=cast(Any, Words()))
    )
    case = DecodeCase(tiny, TINY, 1, 300, "fp32", "fp32", prompt="text")
    bench = bench_on_cpu(periods=1)
    rows = run_case(case, SPECS, replace(bench, plan=replace(bench.plan, drift=True)))
    drift = [r for r in rows if r.metric]
    assert {r.method for r in drift} == {"resa-torch"}
    assert [(r.step, r.metric) for r in drift if r.layer is None] == [
        (step, metric) for step in (4, 8, 12) for metric in ("kl", "top1")
    ]
    assert {r.layer for r in drift if r.metric == "kv_change"} == set(range(TINY.layers))
    assert all(r.value is not None and r.value >= 0 for r in drift)
    console = Console(width=140, record=True)
    print_report(rows, console)
    assert "drift by the end of each period" in console.export_text()


def test_what_fails_late_leaves_what_was_measured(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no profiler here")

    monkeypatch.setattr(CaseRun, "stage_rows", broken)
    rows = run_case(DecodeCase(tiny, TINY, 1, 128, "fp32", "fp32"), SPECS[:1], bench_on_cpu())
    assert [(r.status, r.tokens_per_s is not None) for r in rows] == [("ok", True), ("failed", False)]
    assert "no profiler here" in str(rows[1].reason)


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
@pytest.mark.slow
def test_the_way_of_graphs(tiny: str, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    """What a GPU does, with calls in the place of graphs: captures, replays checked, eager rows beside."""
    monkeypatch.setattr(bind, "can_capture", lambda engine, device: True)
    monkeypatch.setattr(Engine, "capture", lambda self, run: run() or run)
    case = DecodeCase(tiny, TINY, 2, 512, "fp32", "fp32", shared_kv=shared)
    rows = run_case(case, SPECS, bench_on_cpu())
    assert {r.status for r in rows} == {"ok"}, [r.reason for r in rows]
    totals = [(r.method, r.launch) for r in rows if r.stage == "total"]
    assert sorted(totals) == sorted((s.name, launch) for s in SPECS for launch in ("graph", "eager"))
    eager = next(r for r in rows if r.stage == "total" and r.launch == "eager" and r.method == "resa-torch")
    assert eager.p99_us is None


@pytest.mark.parametrize(("broken", "message"), [("step", "replayed"), ("rectify", "graph's rectification writes")])
def test_a_graph_that_does_nothing_gets_no_time(
    tiny: str, monkeypatch: pytest.MonkeyPatch, broken: str, message: str
) -> None:
    monkeypatch.setattr(bind, "can_capture", lambda engine, device: True)

    def capture(self: Engine, run: Callable[[], None]) -> Callable[[], None]:
        run()
        return (lambda: None) if run.__name__ == broken else run

    monkeypatch.setattr(Engine, "capture", capture)
    rows = run_case(DecodeCase(tiny, TINY, 1, 256, "fp32", "fp32"), SPECS[1:], bench_on_cpu())
    assert [r.status for r in rows] == ["failed"]
    assert message in str(rows[0].reason)


@pytest.mark.parametrize("firm", [True, False], ids=["gpu", "cpu"])
def test_a_floor_that_is_beaten_is_an_error_where_ceilings_are_firm(
    tiny: str, monkeypatch: pytest.MonkeyPatch, firm: bool
) -> None:
    monkeypatch.setattr(decode_run, "firm_ceilings", lambda device: firm)
    bench = bench_on_cpu(breakdown=False)
    slow = replace(bench, ceilings=Ceilings(1e-6, 1e-6, 1e-9))
    (row,) = run_case(DecodeCase(tiny, TINY, 1, 128, "fp32", "fp32"), SPECS[:1], slow)
    if firm:
        assert row.status == "failed"
        assert "beats the floor" in str(row.reason)
    else:
        assert (row.status, row.floor_us, row.floor_fraction) == ("ok", None, None)
        assert row.tokens_per_s


def test_a_model_that_cannot_be_fetched_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any, **__: Any) -> None:
        raise ModelNotHere("offline: put the wheel there")

    monkeypatch.setattr(loader, "load_decoder", nowhere)
    case = DecodeCase("smollm2-135m", TINY, 1, 128, "fp32", "fp32", prompt="text")
    rows = run_case(case, SPECS, bench_on_cpu())
    assert {(r.status, r.reason) for r in rows} == {("skipped", "offline: put the wheel there")}


def test_one_kernel_on_a_cpu_is_skipped_with_its_reason(tiny: str) -> None:
    [row] = run_case(DecodeCase(tiny, TINY, 1, 256, "fp32", "fp32"), [MethodSpec("resa-fused")], bench_on_cpu())
    assert (row.status, row.reason) == ("skipped", "needs a CUDA device, got cpu")


def total(method: str, tokens_per_s: float, context: int = 1024, **columns: Any) -> Row:
    case = DecodeCase("m", TINY, 1, context)
    columns = (
        dict[str, Any]()
        | {
            "launch": "graph",
            "median_us": 1.0,
            "mean_us": 1e6 / tokens_per_s,
            "floor_us": 1.0,
            "status": "ok",
        }
        | columns
    )
    return Row(**case.columns(), method=method, stage="total", tokens_per_s=tokens_per_s, **columns)


def speedups(rows: list[Row]) -> list[Row]:
    return with_speedups(rows, step_us)


def test_speedups_are_against_the_best_dense_of_the_same_launch() -> None:
    rows = speedups(
        [
            total("torch-dense", 100.0, floor_us=6.0),
            total("triton-dense", 120.0, floor_us=6.0),
            total("triton-dense", 40.0, launch="eager"),
            total("resa", 240.0, floor_us=2.0),
            total("resa", 50.0, launch="eager"),
        ]
    )
    assert [r.speedup_vs_best_dense for r in rows[3:]] == [2.0, 1.25]
    assert rows[3].best_dense == "triton-dense"
    assert rows[3].floor_speedup == 3.0


def test_break_even() -> None:
    rows = speedups(
        [
            *(total("torch-dense", 100.0, context) for context in (1024, 4096, 16384)),
            *(
                total("resa", speed, context, block_size=16)
                for context, speed in ((1024, 50.0), (4096, 80.0), (16384, 120.0))
            ),
        ]
    )
    ((curve, point),) = crossings(rows).items()
    assert curve == ("tiny-for-tests", "bf16", "1", "resa b16")
    assert (point.tokens, point.at_most) == (pytest.approx(8192, rel=0.01), False)
    wins = [replace(row, speedup_vs_best_dense=1.5) for row in rows if row.method == "resa"]
    assert [p.at_most for p in crossings(wins).values()] == [True]


def test_a_step_in_one_kernel_has_a_column_of_the_breakdown() -> None:
    parts = {STAGE: 300.0, "rectify": 20.0, "project": 500.0, "gap": 10.0}
    common: dict[str, Any] = {"tokens_per_s": None, "status": "ok"}
    rows = [replace(total("resa-fused", 1.0, block_size=16), stage=n, mean_us=us, **common) for n, us in parts.items()]
    table = breakdown_table(rows[0].case, rows)
    assert table is not None
    assert [column.header for column in table.columns] == ["method", "project", "one kernel", "rectify", "gap"]
    assert [next(iter(column.cells)) for column in table.columns] == ["resa-fused b16", "500", "300", "20", "10"]


def test_texts_of_the_longest_prompt() -> None:
    rows = speedups(
        [
            total("torch-dense", 100.0, 1024, text="short"),
            total("torch-dense", 100.0, 4096, text="dense says"),
            total("resa-torch", 90.0, 4096, text="resa says"),
            total("oracle", 90.0, 4096, text="oracle says"),
        ]
    )
    assert [str(panel.renderable) for panel in texts(rows, Names(rows))] == ["dense says", "resa says"]


# --- commands ---------------------------------------------------------------------------------------------------------


def test_the_plan_measures_nothing_but_ceilings(
    tiny: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "measure_ceilings", lambda timer: Ceilings(10.0, 10.0, 0.1))
    monkeypatch.setattr(suite, "device_bytes", lambda device: 3 * 10**9)
    assert main(["decode", "--device", "cpu", "--model", tiny, "--context", "128", "--batch", "1", "--plan"]) == 0
    out = capsys.readouterr().out
    assert "decode-tiny-for-tests-fp32-b1-128" in out
    assert "tokens/s at most" in " ".join(out.split())
    assert "the device has 3.0 GB; cases in red do not fit and may run out of memory" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nope"], "model: got 'nope', allowed are qwen2.5-7b"),
        (["--model", "qwen2.5-7b", "--prompt", "text"], "has random weights and no tokenizer"),
        (["--model", "qwen2.5-7b", "--method", "nope"], "--method nope: unknown; known are"),
        (["--model", "qwen2.5-7b", "--case", "nope"], "--case nope: no case matches"),
        (["--model", "qwen2.5-7b", "--context", "32"], "--context 32: periods of 32 tokens need a context of 33"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "--device", "cpu", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [("--temperature", "-1", "got -1, must be 0 to 100"), ("--ratio", "2", "got 2, must be above 0 to 1")],
)
def test_values_out_of_range(flag: str, value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["decode", "--device", "cpu", flag, value])
    assert stop.value.code == 2
    assert f"argument {flag}: {message}" in " ".join(capsys.readouterr().err.split())
