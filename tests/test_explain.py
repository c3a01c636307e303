"""From the kernel's speed-up to the model's: the table, its sentence and its figure."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from matplotlib.patches import Rectangle
from resa_bench.plots.decode_data import decode_sets
from resa_bench.plots.waterfall import decode_waterfall
from resa_bench.suites import cli
from resa_bench.suites.core.results import append, read_rows
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.waterfall import PARTS, REMAINDER, waterfall
from resa_bench.suites.explain.command import explained, kernel_of, waterfalls

RESULTS = Path(__file__).resolve().parents[1] / "results"
FUSED, H200 = RESULTS / "h100" / "fused" / "decode.jsonl.gz", RESULTS / "h200"
DENSE_US = {"append": 10.0, "attend": 390.0, "project": 100.0, "ffn": 300.0, "head": 50.0, "gap": 50.0}
SPARSE_US = {"append+score": 30.0, "select": 20.0, "attend": 50.0, "rectify": 20.0, "rectify+project+ffn": 30.0,
             "project": 100.0, "ffn": 300.0, "head": 50.0, "gap": 0.0}  # fmt: skip


def step(us: float, method: str) -> Row:
    shape: dict[str, Any] = {"context": 4096, "batch": 1, "q_heads": 4, "kv_heads": 1, "head_dim": 64, "layers": 2}
    return Row(suite="decode", model="m", case="c", method=method, stage="total", mean_us=us, median_us=us,
               tokens_per_s=1e6 / us, status="ok", **shape)  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read_rows(FUSED)


def test_parts_lead_from_attention_to_the_whole_step() -> None:
    fall = waterfall(step(900.0, "sdpa-cudnn"), step(600.0, "resa"), DENSE_US, SPARSE_US)
    assert fall.attention is not None
    assert fall.attention.so_far == 4.0
    assert fall.speedup == 1.5
    assert fall.heaviest.name == "feed-forward"
    assert fall.heaviest.without == 2.0
    assert sum(part.dense_us for part in fall.parts) == 900.0
    assert sum(part.sparse_us for part in fall.parts) == 600.0
    assert [part.name for part in fall.parts] == [name for name in PARTS if name in {p.name for p in fall.parts}]


def test_what_no_stage_holds_is_the_remainder() -> None:
    fall = waterfall(step(1000.0, "sdpa-cudnn"), step(640.0, "resa"), DENSE_US, SPARSE_US)
    assert (fall.parts[-1].name, fall.parts[-1].dense_us, fall.parts[-1].sparse_us) == (REMAINDER, 100.0, 40.0)
    bare = waterfall(step(1000.0, "sdpa-cudnn"), step(640.0, "resa"), {}, SPARSE_US)
    assert [part.name for part in bare.parts] == [REMAINDER]
    assert bare.attention is None
    assert bare.parts[0].without is None


@pytest.mark.parametrize(
    "sparse", [{"attend": 0.0, "ffn": 600.0}, {"attend": 600.0, "ffn": 0.0}, {"attend": 600.0, "ffn": 600.0}], ids=str
)
def test_stages_that_are_nothing_or_everything_divide_by_no_zero(sparse: dict[str, float]) -> None:
    fall = waterfall(step(900.0, "sdpa-cudnn"), step(600.0, "resa"), {"attend": 390.0, "ffn": 510.0}, sparse)
    assert fall.speedup == 1.5
    assert all(part.without is None or part.without > 0 for part in fall.parts if part.name != REMAINDER)


def test_a_stage_that_no_part_names_is_not_lost() -> None:
    fall = waterfall(step(900.0, "sdpa-cudnn"), step(650.0, "resa"), DENSE_US, SPARSE_US | {"new stage": 50.0})
    assert (fall.parts[-1].name, fall.parts[-1].sparse_us) == (REMAINDER, 50.0)


def test_every_sparse_step_of_the_rows_ends_at_its_own_ratio(rows: list[Row]) -> None:
    falls = waterfalls(rows)
    assert len(falls) >= 20
    for fall in falls:
        assert fall.speedup == pytest.approx(fall.sparse.speedup_vs_best_dense, rel=1e-4)
        assert fall.dense.method == fall.sparse.best_dense
        assert fall.attention is not None


def test_the_figure_draws_every_part_and_the_model(rows: list[Row]) -> None:
    (figures,) = decode_sets(rows)
    fig = decode_waterfall(figures)
    axes = [ax for ax in fig.axes if ax.get_visible()]
    bars = [[cast(Rectangle, patch) for patch in ax.patches] for ax in axes]
    assert len(axes) == 4
    assert any("takes off the speed-up, or adds" in text.get_text() for text in fig.texts)
    for ax, drawn in zip(axes, bars, strict=True):
        names = [tick.get_text() for tick in ax.get_xticklabels()]
        assert names[0] == "attention"
        assert names[-1].rstrip("*") == "the model"
        last = drawn[-1]
        title = ax.get_title()
        step_row = next(
            f.sparse for f in waterfalls(rows) if f.sparse.method == "resa-fused" and _titled(f.sparse, title)
        )
        assert last.get_height() == pytest.approx(step_row.speedup_vs_best_dense, rel=1e-4)
        assert max(bar.get_y() + bar.get_height() for bar in drawn) > last.get_height()


def _titled(row: Row, title: str) -> bool:
    shared = "shared K/V" in title
    return (
        f"{row.weight_dtype} weights, batch {row.batch}," in title and row.context == 262144 and row.shared_kv is shared
    )


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["explain", *words])
    printed = capsys.readouterr()
    return status, " ".join(printed.out.split()), " ".join(printed.err.split())


def test_the_command_explains_a_committed_case(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "decode-qwen2.5-7b-int4-b1-256k", "--gpu", "h100", "--method", "resa-fused")
    fused = next(r for r in read_rows(FUSED) if r.case == "decode-qwen2.5-7b-int4-b1-256k" and r.stage == "total"
                 and r.method == "resa-fused" and r.launch == "graph")  # fmt: skip
    assert status == 0
    assert f"the model {fused.speedup_vs_best_dense:.2f}x" in out
    assert "one layer's kernel alone" in out
    assert "model without this part" in out
    assert "results/h100/fused/decode.jsonl.gz" in out


def test_the_kernel_is_of_the_nearest_folder_and_names_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Kernels of the case stand in micro.jsonl.gz of results/h200, and of results/h200/clusters at another commit."""
    status, out, _ = run(capsys, "decode-qwen2.5-7b-int4-b1-256k", "--gpu", "h200", "--method", "resa")
    step = next(r for r in read_rows(H200 / "decode.jsonl.gz") if r.case == "decode-qwen2.5-7b-int4-b1-256k"
                and r.stage == "total" and r.method == "resa" and r.launch == "graph")  # fmt: skip
    kernel = kernel_of(step, read_rows(H200 / "micro.jsonl.gz"))
    assert status == 0
    assert kernel is not None
    assert kernel.commit is not None
    assert f"the kernel alone: results/h200/micro.jsonl.gz, commit {kernel.commit[:7]}" in out
    assert f"the kernel is {kernel.speedup_vs_best_dense:.2f}x" in out


def test_a_kernel_of_the_folder_above_or_of_another_stands_in(rows: list[Row]) -> None:
    fall = next(f for f in waterfalls(rows) if f.sparse.method == "resa-fused")
    file = Path("runs/one/decode.jsonl")
    layer = replace(fall.sparse, suite="micro", commit="a" * 40)
    micro = {Path(f"runs/{place}micro.jsonl"): [layer] for place in ("else/", "", "one/")}
    for nearest in ("one/", "", "else/"):
        entry = explained(fall, file, micro)
        assert entry.kernel_source == f"runs/{nearest}micro.jsonl, commit aaaaaaa"
        del micro[Path(f"runs/{nearest}micro.jsonl")]
    assert explained(fall, file, micro).kernel is None


def test_without_a_kernel_s_row_the_sentence_speaks_of_attention(
    capsys: pytest.CaptureFixture[str], rows: list[Row], tmp_path: Path
) -> None:
    path = tmp_path / "decode.jsonl"
    append(path, rows)
    status, out, _ = run(capsys, str(path), "--method", "resa-fused")
    assert status == 0
    assert "resa-fused b16: attention is " in out
    assert "the kernel is" not in out
    assert "the kernel alone" not in out


def test_a_later_run_without_stages_does_not_hide_one_with_stages(capsys: pytest.CaptureFixture[str]) -> None:
    """The energy part of the reference run measures the same step later, and breaks nothing down."""
    status, out, _ = run(capsys, "decode-qwen2.5-7b-int4-b1-256k", "--gpu", "h200", "--method", "resa")
    assert status == 0
    assert "results/h200/decode.jsonl.gz" in out
    assert "feed-forward" in out


def test_settings_of_a_model_do_not_hide_the_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    """Quest keeps two dense layers in a model; one layer alone has no such setting."""
    status, out, _ = run(capsys, "decode-qwen2.5-7b-int4-b1-256k", "--gpu", "h200", "--method", "quest")
    assert status == 0
    assert "one layer's kernel alone" in out


def test_the_command_explains_the_cases_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, str(FUSED), "--case", "*-b4-*")
    assert status == 0
    assert "decode-qwen2.5-7b-int4-b4-256k" in out
    assert "-b1-" not in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("nope", "--gpu", "b300"), "nope: is no file, and --gpu b300 has no decode rows; rows are there of: h100"),
        ((str(FUSED), "--case", "nope"), "--case nope: no case matches; cases there: decode-qwen2.5-7b-bf16-b1-128k"),
        (("decode-nope",), "decode-nope: no such case with a dense and a sparse step in one run; cases there: decode-"),
        (("qwen2.5-7b-b1-32k",), "qwen2.5-7b-b1-32k: one layer, not a model; cases there: decode-"),
        ((str(FUSED), "--method", "retro"), "--method retro: no step of it beside a dense one; methods there: resa"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], expected: str) -> None:
    status, _, err = run(capsys, *words)
    assert status == 2
    assert expected in err
