"""Logits that are not finite, or constant, fail the rows of every suite that runs a model.

A NaN in the last layer's weights reaches no key, value or attention that the gate compares with fp64; no more does a
head whose logits overflow in fp16, or one token on the way whose logits do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from benches import CPU, make_bench
from resa_bench.kernels import SparseConfig
from resa_bench.kernels.linear.weights import DenseWeight
from resa_bench.suites.core.failure import CheckFailed
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.runner import finite
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.decode import run as decode
from resa_bench.suites.decode.cases import DecodeCase
from resa_bench.suites.engine.engine import Engine
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.engine.measure import DecodePlan
from resa_bench.suites.engine.sampling import Sampling
from resa_bench.suites.engine.sound import Watch, check_logits, unsound
from resa_bench.suites.gsr import run as gsr
from resa_bench.suites.gsr.cases import GsrCase
from resa_bench.suites.lossless import run as lossless
from resa_bench.suites.lossless.cases import LosslessCase
from resa_bench.suites.lossless.method import NAME as LOSSLESS
from resa_bench.suites.maths.problems import Problem
from resa_bench.suites.maths.run import MathsCase, MathsRun
from resa_bench.suites.maths.work import Item
from resa_bench.suites.model.decoder import Decoder
from resa_bench.suites.model.load import LoadedModel
from resa_bench.suites.quality import run as quality
from resa_bench.suites.quality.cases import QualityCase
from resa_bench.suites.tasks import run as tasks
from resa_bench.suites.tasks.kinds.copy import CopyCase
from resa_bench.suites.tasks.kinds.divergence import DivergenceCase
from resa_bench.suites.tasks.kinds.needle import NeedleCase
from tiny_model import TINY, Letters, keep, tiny_decoder

BASE = SparseConfig(min_blocks=2, rectify_every=4)
DENSE, RESA = make_spec("torch-dense", BASE), make_spec("resa-torch", BASE)
PLAN = DecodePlan(periods=1, seconds=0.0, eager=False, breakdown=False)
PROMPT, LATE = 96, 103
"""Tokens of prompts, and where the one token stands whose logits overflow: after the steps that the gate looks at."""


class Alphabet(Letters):
    """Letters that name no end."""

    eos: tuple[int, ...] = ()


@dataclass(frozen=True)
class Run:
    """A suite's case in one dtype, and how it is run."""

    case: Callable[[str], Any]
    run: Callable[..., Sequence[Row]]
    specs: tuple[MethodSpec, ...] = (DENSE, RESA)

    def rows(self, decoder: Decoder, dtype: str) -> list[Row]:
        case, bench = self.case(dtype), make_bench(PLAN)
        loader = bench.held(Loader)
        keep(loader, decoder, Alphabet(), dtype)
        loader._checked = set(range(1000))  # the head's check would find some of it first
        return [finite(row) for row in self.run(case, self.specs, bench)]


RUNS = {
    "decode": Run(lambda d: DecodeCase("tiny", TINY, 1, 104, d, d), decode.run_case),
    "decode-text": Run(lambda d: DecodeCase("tiny", TINY, 1, 112, d, d, prompt="text"), decode.run_case),
    "quality": Run(lambda d: QualityCase("tiny", TINY, prompt=PROMPT, steps=16, dtype=d), quality.run_case),
    "quality-stepwise": Run(
        lambda d: QualityCase("tiny", TINY, prompt=PROMPT, steps=16, dtype=d, stepwise=True), quality.run_case
    ),
    "divergence": Run(
        lambda d: DivergenceCase(model="tiny", config=TINY, prompt=PROMPT, steps=16, dtype=d), tasks.run_case
    ),
    "needle": Run(lambda d: NeedleCase(model="tiny", config=TINY, prompt=400, depths=1, dtype=d), tasks.run_case),
    "copy": Run(lambda d: CopyCase(model="tiny", config=TINY, prompt=400, pairs=1, series=1, dtype=d), tasks.run_case),
    "lossless": Run(
        lambda d: LosslessCase("tiny", TINY, prompt=PROMPT, tokens=18, batch=1, dtype=d), lossless.run_case,
        (DENSE, make_spec(LOSSLESS, BASE, draft_length=3)),
    ),
    "gsr": Run(
        lambda d: GsrCase("tiny", TINY, (16,), prompt=PROMPT, summary=4, answer=8, weights=d, dtype=d, run="full",
                          page_size=None, sampling=Sampling()),
        gsr.run_case,
    ),
    "gsr-sampled": Run(
        lambda d: GsrCase("tiny", TINY, (16,), prompt=PROMPT, summary=4, answer=8, weights=d, dtype=d, run="sampled",
                          page_size=None, sampling=Sampling()),
        gsr.run_case,
    ),
}  # fmt: skip


def nan_in_the_last_layer() -> Decoder:
    decoder = tiny_decoder()
    down = decoder.layers[-1].down
    assert isinstance(down, DenseWeight)
    down.weight[3, 5] = float("nan")
    return decoder


def overflow_in_fp16() -> Decoder:
    decoder = tiny_decoder(dtype=torch.float16)
    assert isinstance(decoder.head, DenseWeight)
    decoder.head.weight.mul_(6e5).clamp_(-6e4, 6e4)
    return decoder


@pytest.mark.parametrize(
    ("broken", "dtype"),
    [pytest.param(nan_in_the_last_layer, "fp32", id="nan"), pytest.param(overflow_in_fp16, "fp16", id="overflow")],
)
@pytest.mark.parametrize("name", RUNS)
def test_all_rows_fail(name: str, broken: Callable[[], Decoder], dtype: str, room_for_letters: None) -> None:
    rows = RUNS[name].rows(broken(), dtype)
    assert rows
    assert {row.status for row in rows} == {"failed"}
    assert {row.reason for row in rows if "logits: " not in str(row.reason)} == set()


@pytest.fixture
def room_for_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A letter a token makes questions long."""
    monkeypatch.setattr("resa_bench.suites.tasks.kinds.needle.QUESTION_ROOM", 200)
    monkeypatch.setattr("resa_bench.suites.tasks.kinds.copy.PAIR_ROOM", 48)


@pytest.fixture
def one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of the first sequence's token at LATE hold an infinity; nothing else does."""
    step, verify = Engine.step, Engine.verify

    def infinite_step(engine: Engine) -> None:
        step(engine)
        if int(engine.state.lengths[0]) == LATE:
            engine.logits = engine.logits.clone()
            engine.logits[0, 7] = float("inf")

    def infinite_verify(engine: Engine, tokens: torch.Tensor) -> torch.Tensor:
        logits = verify(engine, tokens).clone()
        row = LATE - 1 - int(engine.state.lengths[0]) + tokens.shape[1]
        if 0 <= row < tokens.shape[1]:
            logits[0, row, 7] = float("inf")
        return logits

    monkeypatch.setattr(Engine, "step", infinite_step)
    monkeypatch.setattr(Engine, "verify", infinite_verify)


@pytest.mark.parametrize("name", ["decode", "decode-text", "quality-stepwise", "divergence", "lossless", "gsr"])
def test_one_token_on_the_way_fails_the_method(name: str, one_token: None) -> None:
    rows = RUNS[name].rows(tiny_decoder(), "fp32")
    of_sparse = [row for row in rows if row.method in (RESA.name, LOSSLESS)]
    assert of_sparse
    assert {row.status for row in of_sparse} == {"failed"}


def answer(decoder: Decoder, dtype: str) -> int:
    """Answers of the maths suite."""
    case = MathsCase("tiny", TINY, 1, 16, dtype=dtype, weights=dtype, sampling=Sampling())
    items = [Item(Problem("s", "1", "?", "1"), 0, tuple(range(2, 90)))]
    run = MathsRun(case, [RESA], items, LoadedModel(decoder, Alphabet(), "tiny"), CPU)  # type: ignore[arg-type]
    with torch.inference_mode():
        return sum(len(part) for part in run.bind(RESA).run(items))


@pytest.mark.parametrize(
    ("broken", "dtype"),
    [pytest.param(nan_in_the_last_layer, "fp32", id="nan"), pytest.param(overflow_in_fp16, "fp16", id="overflow")],
)
def test_maths(broken: Callable[[], Decoder], dtype: str) -> None:
    with pytest.raises(CheckFailed, match="logits"):
        answer(broken(), dtype)


def test_one_token_of_an_answer(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    assert answer(tiny_decoder(), "fp32") == 1
    monkeypatch.setattr(f"{__name__}.LATE", 95)
    request.getfixturevalue("one_token")
    with pytest.raises(CheckFailed, match="logits: those of 1 tokens"):
        answer(tiny_decoder(), "fp32")


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("row", "bad"),
    [
        ([1.0, 2.0, 3.0], False), ([6e4, -6e4, 0.0], False), ([0.0, 0.0, 1e-4], False), ([1.0, 1.0, 1.0], True),
        ([1.0, float("nan"), 2.0], True), ([1.0, float("inf"), 2.0], True), ([-float("inf")] * 3, True),
    ],
)  # fmt: skip
def test_which_logits_are_unsound(row: list[float], bad: bool, kind: torch.dtype) -> None:
    logits = torch.tensor([[1.0, 2.0, 5.0], row]).to(kind)
    assert unsound(logits).tolist() == [False, bad]
    watch = Watch(CPU)
    watch.look(logits)
    if not bad:
        check_logits(logits)
        watch.check()
        return
    for check in (watch.check, lambda: check_logits(logits)):
        with pytest.raises(CheckFailed, match="logits"):
            check()
