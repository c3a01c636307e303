"""`resa-bench profile`: cases by name, what runs inside the capture range, the commands with stand-ins for tools."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from resa_bench.kernels import Traffic
from resa_bench.plots.timeline import draw_timeline
from resa_bench.profiling import ncu, tools
from resa_bench.profiling.process import ToolFailed
from resa_bench.profiling.ranges import Blocks, Open, Span, mark, span
from resa_bench.suites import cli
from resa_bench.suites.core.flags import add_flags, options
from resa_bench.suites.core.spec import make_spec
from resa_bench.suites.decode.cases import DecodeCase
from resa_bench.suites.micro.cases import Case
from resa_bench.suites.profile import target as target_module
from resa_bench.suites.profile.bytes import byte_frame, counter_frame
from resa_bench.suites.profile.cli import TARGET_FLAGS, target, target_words
from resa_bench.suites.profile.target import run_under_tool
from resa_bench.suites.profile.workload import Workload, parse_case

DATA = Path(__file__).parent / "data"
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
COUNTED = (DATA / "ncu-resa-b1-128k.csv").read_text()


@pytest.mark.parametrize(
    "slug",
    [
        "qwen2.5-7b-b1-256k",
        "llama-3.1-8b-b4-128k-clustered",
        "qwen3-8b-b1-4097-recent-page64",
        "qwen2.5-7b-b2-8k-page16",
    ],
)
def test_kernel_cases_by_name(slug: str) -> None:
    case = parse_case(slug, CUDA)
    assert isinstance(case, Case)
    assert case.slug == slug
    assert case.dtype == "bf16"


@pytest.mark.parametrize(
    ("slug", "weights", "dtype"),
    [
        ("decode-qwen2.5-7b-int4-b1-256k", "int4", "bf16"),
        ("decode-llama-3.1-8b-fp16-b4-32k", "fp16", "fp16"),
        ("decode-qwen2.5-7b-bf16-b8-64k-shared", "bf16", "bf16"),
    ],
)
def test_decode_cases_by_name(slug: str, weights: str, dtype: str) -> None:
    case = parse_case(slug, CUDA)
    assert isinstance(case, DecodeCase)
    assert (case.slug, case.weights, case.dtype) == (slug, weights, dtype)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt-5-b1-4k", "model 'gpt-5' unknown, known are qwen2.5-7b"),
        ("decode-gpt-5-int4-b1-4k", "model 'gpt-5' unknown"),
        ("qwen2.5-7b", "expected MODEL-bB-CONTEXT such as"),
        ("qwen2.5-7b-b0-4k", "context, batch"),
    ],
)
def test_bad_case_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_case(name, CUDA)


def chosen(case: str, *words: str) -> Any:
    """Options as the parser makes them."""
    parser = argparse.ArgumentParser()
    add_flags(parser, TARGET_FLAGS)
    made = options(TARGET_FLAGS, vars(parser.parse_args(words)))
    made.case = case
    return made


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--method", "quest", "--dense-layers", "0", "--gqa-policy", "group-sum", "--budget-tokens", "1024"],
        ["--block-size", "32", "--ratio", "0.2", "--rectify-every", "16", "--summary", "meanstd-fp8", "--seed", "3"],
        ["--method", "retro", "--window", "4", "--chunk-kernel", "torch", "--min-blocks", "8"],
    ],
    ids=["default", "quest", "resa", "retro"],
)
@pytest.mark.parametrize("case", ["qwen2.5-7b-b1-4k", "decode-qwen2.5-7b-int4-b1-4k"])
def test_the_child_gets_the_same_case_and_method(case: str, words: list[str]) -> None:
    """What is handed on derives from the flags: parsed again, it is the same."""
    first = chosen(case, *words)
    handed = target_words(first)
    assert handed[0] == case
    assert len(handed) == 1 + len(words)
    assert target(chosen(handed[0], *handed[1:]), CUDA) == target(first, CUDA)


def test_a_name_means_the_same_as_everywhere() -> None:
    _, spec = target(chosen("decode-qwen2.5-7b-int4-b1-4k", "--method", "quest"), CUDA)
    assert spec == make_spec("quest")
    assert (spec.config.gqa_policy, spec.dense_layers) == ("per-head", 2)
    _, layer = target(chosen("qwen2.5-7b-b1-4k", "--method", "quest"), CUDA)
    assert layer == make_spec("quest", dense_layers=None)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--block-size", "16", "32"], "2 variants (resa b16, resa b32)"),
        (["--method", "resa", "quest"], "2 variants (resa b16, quest b16 per-head)"),
        (["--min-blocks", "8", "16"], "2 variants (resa b16 min8, resa b16 min16)"),
    ],
)
def test_several_variants_are_named_and_refused(words: list[str], named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        target(chosen("qwen2.5-7b-b1-4k", *words), CUDA)


class Log:
    """A listener that writes down names as ranges open."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextmanager
    def _open(self, name: str) -> Iterator[None]:
        self.names.append(name)
        yield

    def stage(self, name: str, blocks: Blocks | None) -> Open:
        return self._open(name)

    def span(self, name: Span, value: int | None) -> Open:
        return self._open(name if value is None else f"{name} {value}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Ranges, with `[` and `]` where the capture range opens and closes."""
    log = Log()
    monkeypatch.setattr(target_module, "_synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: log.names.append("["))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: log.names.append("]"))
    return log


def workload(layers: int | None) -> Workload:
    def eager() -> None:
        for i in range(layers or 1):
            with span("layer", i), mark("attend"):
                pass

    def single_layer() -> None:
        with mark("attend"):
            pass

    case = Case("qwen2.5-7b", parse_case("qwen2.5-7b-b1-4k", CPU).heads, 1, 4096)  # type: ignore[union-attr]
    run: Callable[[], None] = single_layer if layers is None else eager
    middle = None if layers is None else layers // 2
    traffic = {"attend": Traffic(1)}
    return Workload(
        case, make_spec("resa"), True, lambda: None, lambda: None, run, run, lambda: 1.0, lambda: traffic, layer=middle
    )


def test_passes_inside_the_capture_range(log: Log) -> None:
    run_under_tool(workload(None), log, 2, one_by_one=False)
    assert log.names == [
        "[", "step 4095", "step 4096", "rectification 4096", "step 4096", "attend", "rectification 4096", "attend", "]",
    ]  # fmt: skip


def test_one_by_one_opens_it_in_the_middle_layer_alone(log: Log) -> None:
    run_under_tool(workload(3), log, 2, one_by_one=True)
    layer_events = ["layer 0", "attend", "[", "layer 1", "attend", "]", "layer 2", "attend"]
    assert log.names == ["step 4096", *layer_events, "rectification 4096", *layer_events]


def test_counters_of_an_ncu_report() -> None:
    launches = ncu.parse(COUNTED)
    assert [(launch.kind, launch.stage, launch.name) for launch in launches[:4]] == [
        ("step", "append+score", "_score_kernel"), ("step", "select", "_select_kernel"),
        ("step", "attend", "_sparse_decode_kernel"), ("step", "merge", "_merge_kernel"),
    ]  # fmt: skip
    attend = launches[2]
    assert attend.dram_read_bytes == 26_915_584
    assert attend.gbps == pytest.approx(1584, abs=1)
    assert (attend.registers, attend.programs, attend.threads) == (84, 264, 128)
    assert attend.stalls[0][0] == "long_scoreboard"
    assert launches[-1].kind == "rectification"


def test_bytes_beside_the_model() -> None:
    """At 128K attention must read 26.9 MB and scoring 16.9 MB; a model that is a fifth off is found out."""
    launches = ncu.parse(COUNTED)
    right = {"append+score": 16_921_856, "select": 144_000, "attend": 26_897_000}
    assert list(byte_frame(launches, right).verdict) == ["agrees", "small", "agrees"]
    wrong = byte_frame(launches, right | {"attend": 26_897_000 * 5 // 4}).set_index("stage")
    assert wrong.verdict["attend"] == "disagrees"
    assert counter_frame(launches).shape == (len(launches), 14)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("==WARNING== No kernels were profiled.\n", ToolFailed, "counted no kernel"),
        (COUNTED.replace('"ns"', '"us"'), ValueError, "not in base units (duration_ns in us"),
    ],
    ids=["nothing", "units"],
)
def test_what_is_no_ncu_report(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        ncu.parse(text)


FACTS = {
    "case": "qwen2.5-7b-b1-256k", "method": "resa", "label": "resa b16", "context": 262144, "graph": True,
    "back_to_back": False, "untraced_us": 56.0, "eager_us": 600.0, "ranges": 4, "idle_range_us": 0.2,
    "stage_bytes": {"append+score": 16_921_856, "attend": 26_897_000},
    "environment": {"device": "NVIDIA H100", "torch": "2.11", "triton": "3.6", "commit": "abc", "dirty": False},
}  # fmt: skip


def stand_in(path: Path, body: str) -> Path:
    """A tool that is a Python program; `words` are its arguments, `told` its --facts, `output` its --output."""
    head = (
        f"#!{sys.executable}\nimport json, shutil, sys\nwords = sys.argv[1:]\n"
        "value = lambda name: next((w.split('=', 1)[1] for w in words if w.startswith(name + '=')), None)\n"
        "if '--version' in words: print('version 2025.3.1'); sys.exit()\n"
        f"if value('--facts'): open(value('--facts'), 'w').write({json.dumps(FACTS)!r})\n"
    )
    path.write_text(head + body)
    path.chmod(0o755)
    return path


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The commands believe in a GPU; tools come from the environment alone."""
    monkeypatch.setattr(cli, "choose_device", lambda name: CUDA)
    monkeypatch.setattr(tools, "ROOT", tmp_path)
    return tmp_path


def test_nsys_from_command_to_picture(
    gpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = DATA / "nsys-resa-b1-256k.sqlite"
    tool = stand_in(gpu / "nsys", f"if words[0] == 'export': shutil.copy({str(report)!r}, value('--output'))\n")
    monkeypatch.setenv("NSYS", str(tool))
    out = gpu / "out"
    assert (
        cli.main(["profile", "nsys", "qwen2.5-7b-b1-256k", "--block-size", "32", "--output", str(out), "--perfetto"])
        == 0
    )
    printed = capsys.readouterr().out
    assert f"{tool} profile --output={out / 'report.nsys-rep'}" in printed
    assert "--cuda-graph-trace=node --capture-range=cudaProfilerApi" in printed
    assert "profile run qwen2.5-7b-b1-256k --block-size 32 --steps 8" in printed
    assert re.search(r"attend +1 +24\.4 +45\.8%", printed)
    assert "4 ranges a step cost 0.8 us while nobody listens: 0.13% of a step launched from Python" in printed
    assert {path.name for path in out.iterdir()} == {
        "facts.json", "stages.csv", "kernels.csv", "timeline.csv", "timeline.png", "timeline.svg", "trace.json",
    }  # fmt: skip
    facts = json.loads((out / "facts.json").read_text())
    assert facts["source"] == "nsys"
    assert str(gpu) not in facts["command"]
    assert shlex.split(facts["command"])[:3] == ["nsys", "profile", "--output=report.nsys-rep"]


def test_nsys_that_fails(gpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tool = stand_in(gpu / "nsys", "print('no such case'); sys.exit(3)\n")
    monkeypatch.setenv("NSYS", str(tool))
    assert cli.main(["profile", "nsys", "qwen2.5-7b-b1-256k", "--output", str(gpu / "out")]) == 1
    assert "nsys ended with 3:\nno such case" in capsys.readouterr().out


@pytest.mark.parametrize(("attend", "status"), [(26_897_000, 0), (20_000_000, 1)], ids=["agrees", "disagrees"])
def test_ncu_from_command_to_verdict(
    gpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], attend: int, status: int
) -> None:
    monkeypatch.setitem(FACTS["stage_bytes"], "attend", attend)  # type: ignore[arg-type]
    counted = str(DATA / "ncu-resa-b1-128k.csv")
    tool = stand_in(gpu / "ncu", f"if value('--import'): print('==WARNING== x'); print(open({counted!r}).read())\n")
    monkeypatch.setenv("NCU", str(tool))
    monkeypatch.setattr(ncu, "counters_denied", lambda: None)
    out = gpu / "out"
    assert cli.main(["profile", "ncu", "qwen2.5-7b-b1-128k", "--output", str(out)]) == status
    printed = capsys.readouterr().out
    assert "--clock-control=none" in printed
    assert ("disagrees" in printed) == bool(status)
    assert len(pd.read_csv(out / "counters.csv")) == len(ncu.parse(COUNTED))


def test_ncu_that_may_not_count(gpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NCU", str(stand_in(gpu / "ncu", "")))
    monkeypatch.setattr(ncu, "counters_denied", lambda: "the driver gives counters to administrators only")
    assert cli.main(["profile", "ncu", "qwen2.5-7b-b1-128k", "--output", str(gpu)]) == 1
    assert "administrators only; run as root" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_without_a_gpu_the_clock_tells_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["profile", "nsys", "qwen2.5-7b-b1-4k", "--steps", "1", "--device", "cpu", "--output", str(tmp_path)]
    assert cli.main(words) == 0
    assert "no GPU: stages by the wall clock" in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "stages.csv")
    assert list(frame[frame.kind == "step"].stage) == ["append", "score", "select", "attend", "gap"]
    assert json.loads((tmp_path / "facts.json").read_text())["source"] == "wall clock"


@pytest.mark.parametrize("tool", ["ncu", "run"])
def test_what_needs_a_gpu_says_so(tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profile", tool, "qwen2.5-7b-b1-4k", "--device", "cpu"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


def test_a_long_step_is_drawn_with_its_middle(tmp_path: Path) -> None:
    kernels = pd.DataFrame(
        [
            ("step", "graph", ("project", "append+score", "attend", "merge")[i % 4], "k", 10 * i, 10 * i + 8)
            for i in range(60)
        ]
        + [("rectification", "graph", "rectify", "k", 0, 9000)],
        columns=["kind", "launch", "stage", "kernel", "start_us", "end_us"],
    )
    kernels.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "f.json").write_text(json.dumps(FACTS | {"source": "nsys"}))
    drawn = draw_timeline(tmp_path / "t.csv", tmp_path / "f.json", tmp_path / "timeline")
    text = drawn[1].read_text()
    for words in ("one step, replayed", "from its middle: 18 kernels of 60", "one rectification, replayed, 9 ms"):
        assert words in text
