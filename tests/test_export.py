"""Rows as a FlashInfer Trace dataset: references that compute what methods do, and the schema as it is documented."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import AttentionShape, SparseConfig
from resa_bench.suites.cli import main
from resa_bench.suites.core.results import append
from resa_bench.suites.core.rows import Row
from resa_bench.suites.export.definition import Problem
from resa_bench.suites.export.flashinfer_trace import evaluation, make_dataset, problem_of

RESULTS = sorted((Path(__file__).parent.parent / "results").glob("*/micro.jsonl.gz"))


def make(**changes: Any) -> Row:
    """A whole step of ReSA in 12 us where the best dense method takes 18."""
    columns: dict[str, Any] = {
        "suite": "micro", "model": "m", "case": "m-b1-8k", "method": "resa", "stage": "total", "context": 8192,
        "batch": 1, "q_heads": 28, "kv_heads": 4, "head_dim": 128, "dtype": "bf16", "block_size": 16,
        "active_ratio": 0.1, "min_blocks": 16, "gqa_policy": "group-mean", "summary_kind": "minmax", "paged": False,
        "selection_pattern": "random", "cache_state": "cold", "launch": "graph", "n_samples": 100, "median_us": 12.0,
        "ci_low_us": 11.9, "ci_high_us": 12.1, "speedup_vs_best_dense": 1.5, "best_dense": "sdpa-cudnn",
        "max_rel_error": 0.002, "error_budget_used": 0.3, "status": "ok", "device": "NVIDIA H100 80GB HBM3",
        "driver": "580", "torch": "2.11.0", "triton": "3.6.0", "python": "3.12.3", "version": "1.2.3",
        "commit": "a" * 40, "started_at": "2026-11-22T18:10:43+00:00", "seed": 0, "command": "resa-bench micro",
    }  # fmt: skip
    if changes.get("status", "ok") not in ("ok", "throttled"):
        columns |= dict.fromkeys(("median_us", "ci_low_us", "ci_high_us", "n_samples", "speedup_vs_best_dense"))
        columns |= {"reason": "it broke"}
    return Row(**(columns | changes))


def dense(method: str = "sdpa-cudnn", **changes: Any) -> Row:
    settings = dict.fromkeys(("block_size", "active_ratio", "min_blocks", "gqa_policy", "summary_kind"))
    return make(**(settings | {"method": method} | changes))


def run_of(source: str) -> Any:
    """The `run` of a Definition's reference or of a Solution."""
    namespace: dict[str, Any] = {}
    exec(compile(source, "main.py", "exec"), namespace)
    return namespace["run"]


# --- references and solutions compute the same ------------------------------------------------------------------------


@pytest.mark.parametrize("kv_len", [5, 256, 601])
@pytest.mark.parametrize(
    ("method", "config"),
    [
        pytest.param("torch-dense", None, id="dense"),
        pytest.param("resa-torch", SparseConfig(min_blocks=2), id="resa"),
        pytest.param("resa-torch", SparseConfig(min_blocks=2, block_size=32, pinned_blocks=1), id="pinned"),
        pytest.param("resa-torch", SparseConfig(min_blocks=3, summary_kind="meanstd", spread_weight=0.5), id="meanstd"),
        pytest.param("resa-torch", SparseConfig(min_blocks=2, summary_dtype="fp8"), id="fp8"),
        pytest.param("resa-torch", SparseConfig(gqa_policy="per-head", budget_tokens=64), id="per-head"),
        pytest.param("resa-torch", SparseConfig(min_blocks=2, gqa_policy="group-sum"), id="group-sum"),
        pytest.param("resa-torch", SparseConfig(min_blocks=2, gqa_policy="all-heads"), id="all-heads"),
    ],
)
def test_a_solution_computes_what_its_definitions_reference_does(
    method: str, config: SparseConfig | None, kv_len: int
) -> None:
    problem = Problem(AttentionShape(1, 8, 2, 32), "fp32", config)
    random = torch.Generator().manual_seed(kv_len)
    shapes = {"q": (2, 8, 32), "k": (2, 2, 32), "v": (2, 2, 32), "k_cache": (2, 2, kv_len, 32)}
    q, k, v, k_cache = (torch.randn(shape, generator=random) for shape in shapes.values())
    v_cache = torch.randn(k_cache.shape, generator=random)
    expected = run_of(problem.reference)(q, k, v, k_cache.clone(), v_cache.clone())
    keys, values = k_cache.clone(), v_cache.clone()
    torch.testing.assert_close(run_of(problem.solution_source(method, "1"))(q, k, v, keys, values), expected)
    assert torch.equal(keys[:, :, -1], k)
    assert torch.equal(values[:, :, :-1], v_cache[:, :, :-1])


def test_blocks_that_are_not_chosen_change_nothing() -> None:
    """The reference of a sparse definition is not that of the dense one."""
    config = SparseConfig(min_blocks=2)
    shape = AttentionShape(1, 4, 1, 16)
    q, k, v = torch.ones(1, 4, 16), torch.ones(1, 1, 16), torch.ones(1, 1, 16)
    keys, values = torch.zeros(1, 1, 256, 16), torch.zeros(1, 1, 256, 16)
    keys[:, :, 32:48] = 1.0  # the best block; the newest is read, too
    values[:, :, 64:80] = 1e6
    assert float(run_of(Problem(shape, "fp32", config).reference)(q, k, v, keys, values).max()) < 2
    assert float(run_of(Problem(shape, "fp32").reference)(q, k, v, keys, values).max()) > 1e3


# --- rows to objects --------------------------------------------------------------------------------------------------


def test_a_row_becomes_a_trace() -> None:
    dataset = make_dataset([make(), dense(speedup_vs_best_dense=1.0, median_us=18.0)])
    names = ["gqa_decode_step_h28_kv4_d128_bf16_b16_r0.1_min16_group_mean_minmax", "gqa_decode_step_h28_kv4_d128_bf16"]
    assert list(dataset.definitions) == names
    ((trace,),) = (dataset.traces["resa-bench", names[0]].values(),)
    assert trace["workload"]["axes"] == {"batch_size": 1, "kv_len": 8192}
    performance = trace["evaluation"]["performance"]
    assert performance == {
        "latency_ms": pytest.approx(0.012), "reference_latency_ms": pytest.approx(0.018), "speedup_factor": 1.5,
    }  # fmt: skip
    assert trace["evaluation"]["environment"]["hardware"] == "NVIDIA_H100_80GB_HBM3"
    assert trace["evaluation"]["environment"]["libs"]["resa_bench"] == "1.2.3"
    assert "sdpa-cudnn, the best dense method" in trace["evaluation"]["log"]
    assert [author for author, _ in dataset.traces] == ["resa-bench", "baseline"]


@pytest.mark.parametrize(
    ("changes", "status", "parts"),
    [
        pytest.param({}, "PASSED", {"correctness", "performance"}, id="ok"),
        pytest.param(
            {"status": "throttled", "reason": "power cap"}, "PASSED", {"correctness", "performance"}, id="cap"
        ),
        pytest.param({"max_rel_error": None}, "PASSED", {"correctness", "performance"}, id="no-error-known"),
        pytest.param({"status": "failed"}, "INCORRECT_NUMERICAL", {"correctness"}, id="gate"),
        pytest.param({"status": "failed", "max_rel_error": None}, "RUNTIME_ERROR", set(), id="crash"),
        pytest.param({"status": "oom"}, "RUNTIME_ERROR", set(), id="memory"),
    ],
)
def test_status_says_which_parts_there_are(changes: dict[str, Any], status: str, parts: set[str]) -> None:
    """The nullable table of flashinfer-trace/trace.mdx."""
    result = evaluation(make(**changes))
    assert result["status"] == status
    assert {name for name in ("correctness", "performance") if result[name] is not None} == parts
    assert changes.get("reason", "") in result["log"]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"suite": "decode", "mean_us": 12.0}, id="whole-model"),
        pytest.param({"stage": "append"}, id="stage"),
        pytest.param({"cache_state": "warm"}, id="warm"),
        pytest.param({"paged": True}, id="paged"),
        pytest.param({"selection_pattern": "clustered"}, id="pattern"),
        pytest.param({"status": "skipped"}, id="skipped"),
        pytest.param({"method": "retro", "window": 2}, id="method-with-a-past"),
        pytest.param({"method": "of-a-plugin-that-is-gone"}, id="unknown-method"),
        pytest.param({"launch": "eager", "median_us": 99.0}, id="eager-beside-a-graph"),
    ],
)
def test_what_the_schema_cannot_say_is_left_out_and_counted(changes: dict[str, Any]) -> None:
    dataset = make_dataset([make(), make(**changes)])
    assert sum(map(len, dataset.traces.values())) == 1
    assert sum(dataset.left_out.values()) == 1


def test_eager_steps_stand_where_there_is_no_graph() -> None:
    """On a CPU."""
    dataset = make_dataset([make(launch="eager", method="resa-torch", dtype="fp32")])
    assert sum(map(len, dataset.traces.values())) == 1


def test_settings_that_change_the_result_are_another_definition() -> None:
    changes: list[dict[str, Any]] = [
        {}, {"block_size": 32}, {"active_ratio": 0.2}, {"min_blocks": 8}, {"pinned_blocks": 1}, {"dtype": "fp16"},
        {"gqa_policy": "group-sum"}, {"summary_kind": "meanstd", "spread_weight": 0.5}, {"summary_dtype": "fp8"},
        {"head_dim": 64}, {"budget_tokens": 512, "method": "quest"}, {"summary_kind": "meanstd", "spread_weight": 1.0},
    ]  # fmt: skip
    problems = [problem_of(make(**change)) for change in changes]
    assert len({problem.name for problem in problems if problem}) == len(changes)
    assert problem_of(make(rectify_every=64)) == problem_of(make())  # a step is the same
    assert problem_of(make(selector="pairs")) is None  # the schema says summaries alone


# --- the files, by the schema -----------------------------------------------------------------------------------------


def check_definition(item: dict[str, Any]) -> None:
    """flashinfer-trace/definition.mdx: required fields, axes that exist, a reference with `run`."""
    assert {"name", "op_type", "axes", "inputs", "outputs", "reference"} <= set(item)
    for axis in item["axes"].values():
        assert axis["type"] == "var" or (axis["type"] == "const" and axis["value"] >= 0)
    assert not set(item["inputs"]) & set(item["outputs"])
    for tensor in (*item["inputs"].values(), *item["outputs"].values()):
        assert tensor["dtype"] in ("float32", "float16", "bfloat16")
        assert set(tensor["shape"]) <= set(item["axes"])
    assert callable(run_of(item["reference"]))


def check_solution(item: dict[str, Any], definitions: dict[str, Any]) -> None:
    """flashinfer-trace/solution.mdx."""
    assert item["name"]
    assert item["author"]
    assert item["definition"] in definitions
    path, function = item["spec"]["entry_point"].split("::")
    assert (item["spec"]["language"], function) == ("python", "run")
    assert item["spec"]["target_hardware"]
    assert [source["path"] for source in item["sources"]] == [path]
    assert callable(run_of(item["sources"][0]["content"]))


def check_trace(item: dict[str, Any], definitions: dict[str, Any], solutions: set[str] | None) -> None:
    """flashinfer-trace/trace.mdx and workload.mdx; without solutions, a workload."""
    definition, workload = definitions[item["definition"]], item["workload"]
    assert set(workload["axes"]) == {name for name, axis in definition["axes"].items() if axis["type"] == "var"}
    assert {name: source["type"] for name, source in workload["inputs"].items()} == dict.fromkeys(
        definition["inputs"], "random"
    )
    assert workload["uuid"]
    if solutions is None:
        assert item["solution"] is item["evaluation"] is None
        return
    assert item["solution"] in solutions
    assert {"status", "log", "correctness", "performance", "environment", "timestamp"} == set(item["evaluation"])
    if item["evaluation"]["status"] == "PASSED":
        performance = item["evaluation"]["performance"]
        assert performance["latency_ms"] > 0
        ratio = performance["reference_latency_ms"] / performance["latency_ms"]
        assert ratio == pytest.approx(performance["speedup_factor"])


def lines_of(paths: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(paths) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the committed rows."""
    if not RESULTS:
        pytest.skip("no committed rows of the micro suite")
    folder = tmp_path_factory.mktemp("export") / "dataset"
    assert main(["export", "--format", "flashinfer-trace", *map(str, RESULTS), "-o", str(folder)]) == 0
    return folder


def test_committed_rows_keep_to_the_schema(exported: Path) -> None:
    definitions = {}
    for path in (exported / "definitions").rglob("*.json"):
        item = json.loads(path.read_text())
        check_definition(item)
        definitions[item["name"]] = item
    solutions = set()
    for path in (exported / "solutions").rglob("*.json"):
        item = json.loads(path.read_text())
        check_solution(item, definitions)
        assert item["name"] not in solutions
        solutions.add(item["name"])
    workloads, traces = (lines_of((exported / part).rglob("*.jsonl")) for part in ("workloads", "traces"))
    for item in workloads:
        check_trace(item, definitions, None)
    for item in traces:
        check_trace(item, definitions, solutions)
    known = {(item["definition"], item["workload"]["uuid"]) for item in workloads}
    assert {(item["definition"], item["workload"]["uuid"]) for item in traces} == known
    assert len(known) == len(workloads)


@pytest.mark.skipif(importlib.util.find_spec("flashinfer_bench") is None, reason="flashinfer-bench is not installed")
def test_flashinfer_bench_reads_it(exported: Path) -> None:
    from flashinfer_bench.data import TraceSet

    traces = TraceSet.from_path(str(exported))
    assert sum(map(len, traces.traces.values())) == len(lines_of((exported / "traces").rglob("*.jsonl")))
    assert len(traces.definitions) == len(traces.workloads)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["folder with files", "nothing fits", "no file"])
def test_errors_are_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    path, folder = tmp_path / "rows.jsonl", tmp_path / "out"
    if fault != "no file":
        append(path, [make(stage="append") if fault == "nothing fits" else make()])
    if fault == "folder with files":
        folder.mkdir()
        (folder / "file").touch()
    assert main(["export", "--format", "flashinfer-trace", str(path), "-o", str(folder)]) == 2
    expected = {"folder with files": "is not empty", "nothing fits": "no row fits", "no file": "no result file"}
    text = capsys.readouterr().err
    assert expected[fault] in " ".join(text.split())
    assert "Traceback" not in text


def test_a_type_that_the_schema_does_not_name_is_left_out() -> None:
    dataset = make_dataset([make(), make(dtype="{}")])
    assert (len(dataset.definitions), dict(dataset.left_out)) == (1, {"dtype {}": 1})
