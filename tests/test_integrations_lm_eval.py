"""The model `resa` of lm-evaluation-harness: two tasks offline; dense equals lm_eval's own `hf`."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("transformers", minversion="5.20")
pytest.importorskip("lm_eval", reason="pip install -e '.[lm-eval]'")
pytest.importorskip("accelerate", reason="pip install -e '.[lm-eval]'")

from lm_eval import simple_evaluate
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from resa_bench.integrations.lm_eval import TASKS
from resa_bench.integrations.lm_eval.data import FILES, text_of
from resa_bench.integrations.lm_eval.model import Forced, Request, ResaLM, load_own
from resa_bench.integrations.transformers import detach
from resa_bench.kernels import Unsupported
from transformers_models import tiny

MODEL: dict[str, Any] = {"pretrained": "smollm2-135m", "device": "cpu", "dtype": "float32", "batch_size": 4}


@pytest.fixture(scope="module")
def smollm() -> tuple[Any, dict[str, Any]]:
    """SmolLM2 for transformers, and lm_eval's options with its tokenizer."""
    return load_own("smollm2-135m", {"device": "cpu", "dtype": "float32", "batch_size": 4})


def results(model: Any, task: str, limit: int) -> dict[str, Any]:
    """Metrics of a task, and what was answered to each question."""
    evaluated = simple_evaluate(
        model=model, tasks=[task], limit=limit, task_manager=TaskManager(include_path=str(TASKS)), bootstrap_iters=0,
        verbosity="ERROR",
    )  # fmt: skip
    return {"scores": evaluated["results"][task], "answers": [s["resps"] for s in evaluated["samples"][task]]}


@pytest.mark.slow
def test_sums_are_generated_alike(smollm: tuple[Any, dict[str, Any]]) -> None:
    model, options = smollm
    detach(model)
    own = results(HFLM(pretrained=model, **options), "resa_sums", 2)
    dense = results(ResaLM(model, "dense", **options), "resa_sums", 2)
    assert dense == own
    assert own["scores"]["exact_match,number"] > 0


@pytest.mark.slow
def test_needles_are_scored_alike(smollm: tuple[Any, dict[str, Any]]) -> None:
    model, options = smollm
    detach(model)
    own = results(HFLM(pretrained=model, **options), "resa_needles", 1)
    dense = results(ResaLM(model, "dense", **options), "resa_needles", 1)
    assert dense["scores"] == own["scores"]
    pairs = [(a, b) for x, y in zip(dense["answers"], own["answers"], strict=True) for a, b in zip(x, y, strict=True)]
    assert all(abs(a[0][0] - b[0][0]) < 1e-3 and a[0][1] == b[0][1] for a, b in pairs)
    detach(model)


def test_sparse_steps_are_what_is_scored() -> None:
    """A continuation of one token, too: the context's last token is fed by a step."""
    generator = torch.Generator().manual_seed(0)
    requests: list[Request] = [(None, torch.randint(3, 120, (150,), generator=generator).tolist(), [5])]
    model = tiny("llama")
    few: dict[str, Any] = {"block_size": 8, "min_blocks": 2}
    scores = [
        resa_of(model, method=name, **few)._loglikelihood_tokens(requests, disable_tqdm=True)[0][0]
        for name in ("dense", "sink-window")
    ]
    assert abs(scores[0] - scores[1]) > 1e-3


def test_log_likelihoods_of_ragged_requests_are_dense_ones() -> None:
    """Contexts of one token, continuations of one, and such as rectify on the way; a batch of all of them."""
    model = tiny("llama")
    lm = resa_of(model, method="resa", active_ratio=1.0, rectify_every=4, batch_size=3)
    generator = torch.Generator().manual_seed(0)
    lengths = [(1, 1), (1, 9), (30, 1), (20, 13), (2, 2)]

    def drawn(count: int) -> list[int]:
        ids: list[int] = torch.randint(3, 120, (count,), generator=generator).tolist()
        return ids

    requests: list[Request] = [(None, drawn(context), drawn(continuation)) for context, continuation in lengths]
    answers = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    for (_, context, continuation), (score, greedy) in zip(requests, answers, strict=True):
        with torch.no_grad():
            logits = lm.adapter.forward(input_ids=torch.tensor([context + continuation])).logits[0].float()
        rows = slice(len(context) - 1, len(context) + len(continuation) - 1)
        expected = logits[rows].log_softmax(-1).gather(1, torch.tensor(continuation)[:, None]).sum()
        assert score == pytest.approx(float(expected), abs=1e-3)
        assert greedy == (logits[rows].argmax(-1).tolist() == continuation)


def resa_of(model: Any, **options: Any) -> ResaLM:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(120)}, unk_token="w3"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", pad_token="w0")
    return ResaLM(model, tokenizer=tokenizer, **options)


def test_what_is_fed_and_what_is_scored() -> None:
    text = Forced.of([1, 2, 3], [4, 5], limit=100)
    assert (text.prompt, text.fed, [text.target(i) for i in range(4)]) == ([1, 2], [3, 4], [None, 4, 5, None])
    alone = Forced.of([1], [4], limit=100)
    assert (alone.prompt, alone.fed, alone.target(0)) == ([1], [], 4)
    cut = Forced.of([1, 2, 3], [4, 5], limit=2)
    assert (cut.prompt, cut.fed, [cut.target(i) for i in range(2)]) == ([3], [4], [4, 5])


def test_the_model_is_registered_and_refuses_by_name() -> None:
    assert get_model("resa") is ResaLM
    with pytest.raises(Unsupported, match="repairs"):
        resa_of(tiny("llama"), method="retro")


@pytest.mark.parametrize("file", FILES)
def test_the_shipped_questions_are_what_the_code_writes(file: str) -> None:
    assert (TASKS / file).read_text() == text_of(file)
