"""Answers of a small model: sampling, and decoding in ragged batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from maths_cases import CPU, letter_tokenizer
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import get_method
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.engine.engine import Engine, State, bind_layers, generate
from resa_bench.suites.engine.prompt import prefill
from resa_bench.suites.engine.sampling import Sampling
from resa_bench.suites.maths.generate import Answer
from resa_bench.suites.maths.problems import Problem
from resa_bench.suites.maths.run import MathsCase, MathsRun
from resa_bench.suites.maths.sampling import choose, stream
from resa_bench.suites.maths.work import Item
from resa_bench.suites.model.load import LoadedModel
from resa_bench.suites.model.tokenizer import Tokenizer
from tiny_model import TINY, tiny_decoder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letter_tokenizer()


def test_streams_belong_to_their_names() -> None:
    assert torch.equal(stream(0, "a", "1", 2, count=8), stream(0, "a", "1", 2, count=5 + 3))
    assert not torch.equal(stream(0, "a", "1", 2, count=8), stream(0, "a", "1", 3, count=8))
    assert not torch.equal(stream(0, "a", "1", 2, count=8), stream(1, "a", "1", 2, count=8))


def test_choice_follows_temperature_and_top_p() -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0, 2.0, 0.5]])
    sampling = Sampling(0.7, 0.9)
    count = 20000
    chosen = choose(logits.expand(count, -1), sampling, stream(0, "test", count=count))
    shares = chosen.bincount(minlength=5) / count
    wanted = sampling.probabilities(logits)[0]
    assert ((shares > 0) == (wanted > 0)).all()
    torch.testing.assert_close(shares, wanted, atol=4 * 0.5 / math.sqrt(count), rtol=0)
    edges = choose(logits.expand(2, -1), sampling, torch.tensor([0.0, 1.0 - 2**-24]))
    assert edges.tolist() == [1, 3]
    assert choose(logits, Sampling(), torch.tensor([0.7])).tolist() == [1]


PROMPTS = (70, 7, 33, 120, 2)
DENSE = make_spec("torch-dense")
RESA = make_spec("resa-torch", min_blocks=2, rectify_every=8)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    generator = torch.Generator().manual_seed(5)
    lists = [torch.randint(2, TINY.vocab, (n,), generator=generator).tolist() for n in PROMPTS]
    return [Item(Problem("s", str(i), "?", "1"), 0, tuple(ids)) for i, ids in enumerate(lists)]


@pytest.fixture(scope="module")
def decoder() -> Any:
    return tiny_decoder()


def answers(
    decoder: Any, tokenizer: Tokenizer, spec: MethodSpec, items: Sequence[Item], ends: tuple[int, ...] = (), **case: Any
) -> dict[str, Answer]:
    loaded = LoadedModel(decoder, replace(tokenizer, eos=ends), "tiny")
    settings: dict[str, Any] = {"batch": 2, "max_tokens": 40, "sampling": Sampling(), "dtype": "fp32"} | case
    case_of = MathsCase("tiny", decoder.config, weights=settings["dtype"], **settings)
    run = MathsRun(case_of, [spec], items, loaded, decoder.device)
    with torch.inference_mode():
        return {a.item.problem.id: a for part in run.bind(spec).run(items) for a in part}


@torch.inference_mode()
def alone(decoder: Any, spec: MethodSpec, item: Item, tokens: int) -> list[int]:
    """The same prompt decoded at batch 1 as the decode suite does."""
    length, every = len(item.prompt), spec.config.rectify_every if spec == RESA else None
    state = State.allocate(decoder, 1, 256, tokens + 8)
    logits = prefill(decoder, state, torch.tensor([item.prompt]))
    state.start(length, logits.argmax(-1))
    method = get_method(spec.name)(TINY.attention(1), spec.config, dtype=torch.float32, device=CPU)
    engine = Engine(decoder, state, bind_layers(state, method, None, 0), rectify_every=every)
    generate(engine.step, engine.rectify if every else None, every or 1, tokens)
    return state.history[:tokens, 0].tolist()


@pytest.mark.parametrize("spec", [DENSE, RESA], ids=["dense", "resa"])
def test_ragged_batches_answer_as_one_by_one(
    decoder: Any, tokenizer: Tokenizer, items: list[Item], spec: MethodSpec
) -> None:
    """Five prompts in two places: places are filled again, and one stays empty at the end."""
    by_problem = answers(decoder, tokenizer, spec, items)
    assert len(by_problem) == len(items)
    for item in items:
        answer = by_problem[item.problem.id]
        assert list(answer.ids) == alone(decoder, spec, item, 40), item.problem.id
        assert not answer.finished


@pytest.mark.gpu
def test_captured_steps_answer_ragged_batches(tokenizer: Tokenizer, items: list[Item]) -> None:
    """As at batch 1, up to near-ties that rounding decides."""
    model = tiny_decoder(dtype=torch.float16, device="cuda")
    spec = replace(RESA, name="resa")
    ragged, single = (answers(model, tokenizer, spec, items, batch=batch, dtype="fp16") for batch in (2, 1))
    assert sum(ragged[key].ids == single[key].ids for key in ragged) >= len(items) - 1


def test_samples_do_not_depend_on_the_batch(decoder: Any, tokenizer: Tokenizer, items: list[Item]) -> None:
    sampled: dict[str, Any] = {"sampling": Sampling(0.6, 0.9), "max_tokens": 24}
    together = answers(decoder, tokenizer, RESA, items, batch=5, **sampled)
    apart = answers(decoder, tokenizer, RESA, items[::-1], batch=1, **sampled)
    assert {k: a.ids for k, a in together.items()} == {k: a.ids for k, a in apart.items()}
    other = answers(decoder, tokenizer, RESA, items, batch=5, seed=1, **sampled)
    assert any(other[k].ids != together[k].ids for k in together)


def test_an_end_token_ends_an_answer(decoder: Any, tokenizer: Tokenizer, items: list[Item]) -> None:
    free = answers(decoder, tokenizer, DENSE, items)
    end = free["0"].ids[13]
    stopped = answers(decoder, tokenizer, DENSE, items, (end,))
    for key, answer in stopped.items():
        whole = list(free[key].ids)
        assert answer.finished == (end in whole)
        assert list(answer.ids) == (whole[: whole.index(end) + 1] if end in whole else whole)
    assert stopped["0"].finished


def test_answers_stay_in_the_context(decoder: Any, tokenizer: Tokenizer, items: list[Item]) -> None:
    small = replace(TINY, context=100)
    cramped = tiny_decoder(small)
    loaded = LoadedModel(cramped, tokenizer, "tiny")
    run = MathsRun(MathsCase("tiny", small, 2, 40, weights="fp32", dtype="fp32"), [DENSE], items, loaded, CPU)
    assert [item.problem.id for item in items if run.refusal(item)] == ["3"]
    assert "takes 120 tokens" in str(run.refusal(items[3]))
    assert "handles 100" in str(run.refusal(items[3]))
    by_problem = answers(cramped, tokenizer, DENSE, [i for i in items if not run.refusal(i)])
    assert [len(by_problem[key].ids) for key in ("0", "1", "2", "4")] == [30, 40, 40, 40]
