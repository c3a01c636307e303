"""What a resumed run leaves out of its keys would be answered with another run's rows: nothing that matters may be."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import SparseConfig, registered
from resa_bench.kernels.registry import SELECTORS
from resa_bench.suites.core import origin
from resa_bench.suites.core.origin import library_of, same_origin, source_of
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.engine import texts
from resa_bench.suites.gsr.cases import LENGTHS, GsrCase, is_script, scaled
from resa_bench.suites.model.config import MODELS
from resa_bench.suites.model.smollm import CONFIG
from resa_bench.suites.quality.cases import QualityCase
from resa_bench.suites.tasks.stored import writing_digest
from runner_cases import CASES, CPU, DENSE, A, FakeWorker, Run, row_of

OTHERS: list[dict[str, Any]] = [
    {"source": "000000000000"}, {"device": "another"}, {"source": origin.package_hash(), "library": "flash-attn 1.0"},
]  # fmt: skip


@pytest.mark.parametrize("change", OTHERS, ids=str)
def test_rows_of_other_code_or_another_device_are_measured_again(tmp_path: Path, change: dict[str, Any]) -> None:
    run = Run(tmp_path / "micro.jsonl")
    run(FakeWorker({A: lambda case, specs: [row_of(case, spec, **change) for spec in specs]}), cases=CASES[:1])
    run(cases=CASES[:1])
    assert run.worker.measured == [A]
    assert "2 rows are of other sources" in run.printed
    run(cases=CASES[:1])
    assert run.worker.measured == []


METHOD = """
class Mine:
    VALUE = {value}
def make(writer):
    return {value}
"""


def module_of(path: Path, value: int) -> ModuleType:
    """A user's file, as a process imports it. The hash of a file is taken once a process."""
    origin.file_hash.cache_clear()
    path.write_text(METHOD.format(value=value))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_a_method_of_ones_own_is_known_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of a plugin's method is another source; methods of the package are not touched by it."""
    hashes = []
    for value in (1, 2, 1):
        module = module_of(tmp_path / "users_own.py", value)
        monkeypatch.setattr("resa_bench.kernels.method._registry", registered() | {"mine": module.Mine})
        hashes.append(source_of(MethodSpec("mine"), CASES[0]))
        assert source_of(DENSE, CASES[0]) == origin.package_hash()
    assert hashes[0] == hashes[2] != hashes[1]
    assert all(value.startswith(origin.package_hash()) for value in hashes)


def test_stored_samples_are_of_the_code_that_writes_them(tmp_path: Path) -> None:
    first, second = (writing_digest(module_of(tmp_path / "users_task.py", value).make) for value in (1, 2))
    assert first != second


def test_a_librarys_version_is_part_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    origin.versions_of.cache_clear()
    monkeypatch.setattr(metadata, "version", lambda name: "1.0")
    spec = MethodSpec("flash-attn-2")
    row = row_of(CASES[0], DENSE, source=origin.package_hash(), method="flash-attn-2", library=library_of(spec))
    assert row.library == "flash-attn 1.0"
    assert same_origin(row, spec, CASES[0], CPU)
    origin.versions_of.cache_clear()
    monkeypatch.setattr(metadata, "version", lambda name: "1.1")
    assert not same_origin(row, spec, CASES[0], CPU)
    origin.versions_of.cache_clear()


def test_another_version_of_a_text_is_another_text(monkeypatch: pytest.MonkeyPatch) -> None:
    case = QualityCase("m", CONFIG, 64, 16, batch=3, texts=("help", "numpy"))
    before = case.text_sources
    row = row_of(CASES[0], DENSE, text_source=", ".join(texts.TEXTS[name].source() for name in case.texts))
    assert same_origin(row, DENSE, case, CPU)
    assert same_origin(replace(row, text_source=texts.TEXTS["numpy"].source()), DENSE, case, CPU)
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1")
    assert case.text_sources != before
    assert not same_origin(row, DENSE, case, CPU)


def gsr(**changes: Any) -> GsrCase:
    return GsrCase("qwen2.5-7b", MODELS["qwen2.5-7b"], **changes)


def test_names_of_gsr_cases_tell_their_inputs_apart() -> None:
    """Lengths of one sum and one longest candidate, points and pages: each is another measurement."""
    usual = "gsr-qwen2.5-7b-bf16-n4-p256-a52000-m18000-r4160-b8192-sampled"
    cases = [
        gsr(), gsr(lengths=(8000, 12000, 14000, 18000)), gsr(lengths=(9000, 10000, 15000, 18000)), gsr(points=5),
        gsr(page_size=64), gsr(page_size=None), gsr(run="full", page_size=None), gsr(run="full"),
    ]  # fmt: skip
    names = [case.slug for case in cases]
    assert names[0] == usual == gsr(lengths=LENGTHS[::-1]).slug
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("scale", [1, 0.5, 1 / 128, 0.3, 2.7])
def test_default_lengths_at_any_scale_are_a_script(scale: float) -> None:
    assert is_script(scaled(LENGTHS, scale))


def test_other_lengths_are_no_script() -> None:
    assert not is_script((100, 110, 150, 180))
    assert not is_script((90, 110, 140))
    assert not is_script((90, 110, 140, 180, 200))


def test_a_selector_of_ones_own_is_known_by_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = module_of(tmp_path / "users_selector.py", 1)
    monkeypatch.setitem(SELECTORS, "mine", module.Mine())
    spec = MethodSpec("resa-torch", SparseConfig(selector="mine"))
    assert source_of(spec, CASES[0]) != origin.package_hash()
