"""Generated tasks: samples as asked, of exact length, the same for a seed, stored once, scored as RULER does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from report_rows import value
from resa_bench.kernels import Unsupported
from resa_bench.plots.data import NotDrawn
from resa_bench.plots.tasks import TaskSet, generated
from resa_bench.plots.tasks import tasks as tasks_figure
from resa_bench.suites.cli import main
from resa_bench.suites.model.config import ModelConfig
from resa_bench.suites.model.tokenizer import Tokenizer, byte_level_bpe
from resa_bench.suites.tasks import questions, words
from resa_bench.suites.tasks.chat import around_message
from resa_bench.suites.tasks.contender import Judged
from resa_bench.suites.tasks.kinds.copy import copy_case
from resa_bench.suites.tasks.kinds.frequent_words import counts
from resa_bench.suites.tasks.lists import default_list
from resa_bench.suites.tasks.questions import matches
from resa_bench.suites.tasks.registry import register_task, task_kinds
from resa_bench.suites.tasks.samples import Batch, write_batch
from resa_bench.suites.tasks.stored import stored, tokenizer_digest
from resa_bench.suites.tasks.table import case_table
from resa_bench.suites.tasks.task import error_over_prompts
from resa_bench.suites.tasks.words import Words

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GENERATED = ("frequent-words", "multi-key", "multi-query", "multi-value", "qa", "variables")
CONFIG = ModelConfig("small", 2, 64, 2, 1, 32, 64, 300, context=8192)
CHATML = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"


@cache
def letters(template: str | None = None) -> Tokenizer:
    """A byte a token, in GPT-2's spelling of bytes, and three marks of a chat."""
    from tokenizers.pre_tokenizers import ByteLevel

    marks = ["<|user|>", "<|end|>", "<|assistant|>"]
    tokens = sorted(ByteLevel.alphabet()) + marks
    kinds = [1] * (len(tokens) - len(marks)) + [3] * len(marks)
    return byte_level_bpe(tokens, [], kinds, "gpt-2", bos=None, eos=(257,), adds_bos=False, chat_template=template)


SYLLABLES = ("ker", "lon", "mit", "nas", "pod", "rug", "sil", "tov")
WORDS = Words(
    [f"{a}{b}{c}" for a in "bdfglmnprst" for b in "aeiou" for c in SYLLABLES],
    ["brave", "calm", "dark", "early", "fresh", "grand", "happy", "icy"],
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_words_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "load_words", lambda: WORDS)
    monkeypatch.setattr(questions, "words_version", lambda: "test")
    monkeypatch.setenv("RESA_BENCH_CACHE", str(tmp_path))


def batch_of(kind: str, length: int = 8000, seeds: tuple[str, ...] = ("a", "b"), template: str | None = None) -> Batch:
    task_kinds()
    tokenizer = letters(template)
    haystack = tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 20)
    return write_batch(tokenizer, haystack, WORDS, questions._forms[kind].make, length, seeds)


def test_a_list_of_words_that_does_not_fit_says_so() -> None:
    with pytest.raises(ValueError, match="ask for a longer context"):
        batch_of("frequent-words", 100)


@pytest.mark.parametrize("length", range(400, 3200, 200))
def test_a_short_list_of_words_keeps_those_asked_for(length: int) -> None:
    """In their order; a list once lost some, or its writing never ended."""
    made = batch_of("frequent-words", length)
    for row, answers in zip(made.prompts, made.answers, strict=True):
        times = Counter(letters().decode([int(i) for i in row]).split())
        rarer = [times[word] for word in set(WORDS.nouns) - set(answers)]
        numbers = [times[answer] for answer in answers]
        assert numbers == sorted(set(numbers), reverse=True)
        assert numbers[-1] > max(rarer)


@pytest.mark.parametrize("kind", GENERATED)
def test_samples_have_one_length_and_hold_their_answers(kind: str) -> None:
    made, again, other = batch_of(kind), batch_of(kind), batch_of(kind, seeds=("c", "d"))
    assert made.prompts.shape == (2, 8000)
    assert np.array_equal(made.prompts, again.prompts)
    assert made.answers == again.answers != other.answers
    for row, question, reply, length, answers in zip(
        made.prompts, made.questions, made.replies, made.reply_tokens, made.answers, strict=True
    ):
        text = letters().decode([*row, *question])
        assert text.count("Question:") == text.count("Answer:") == 1
        written = letters().decode(reply[:length])
        assert written.startswith(" ")
        for answer in answers:
            assert answer in text
            assert answer in written
        assert all(matches(f"{text[-40:]}{written}", answers, "all"))


def test_variables_are_those_of_the_chain() -> None:
    made = batch_of("variables")
    text = letters().decode([*made.prompts[0], *made.questions[0]])
    number = text.split("assigned the value ")[1].split()[0]
    values: dict[str, str] = {}
    for line in (line for line in text.splitlines() if line.startswith("VAR ") and " = " in line):
        name, _, value = line.removeprefix("VAR ").partition(" = ")
        values[name] = values[value.removeprefix("VAR ")] if value.startswith("VAR ") else value
    assert sorted(made.answers[0]) == sorted(name for name, value in values.items() if value == number)
    assert len(values) == 10


def test_the_most_frequent_words_are_asked_for() -> None:
    made = batch_of("frequent-words")
    text = letters().decode(made.prompts[0])
    body = text.split("how often each comes.")[1].split("\n\n")[-1].split()
    ordered = sorted(set(body), key=body.count, reverse=True)
    assert ordered[:3] == made.answers[0]
    assert body.count(ordered[2]) >= body.count(ordered[3]) + 2
    assert counts(10_000)[0] > counts(10_000)[1] > counts(10_000)[2] > counts(10_000)[3]


def test_questions_are_about_one_record_of_many() -> None:
    made = batch_of("qa")
    text = letters().decode(made.prompts[0])
    beginning = letters().decode(made.questions[0]).split("Answer: ")[1]
    assert text.count(f"{beginning} {made.answers[0][0]}.") == 1
    assert text.count("Record ") > 10


def test_a_text_that_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="ask for a longer context"):
        batch_of("multi-key", length=300)


def test_a_chat_template_stands_around_the_message() -> None:
    before, turn = around_message(letters(CHATML))
    assert letters().decode(before, special=False) == ""
    assert turn == "<|end|><|assistant|>"
    made = batch_of("multi-key", template=CHATML)
    tokenizer = letters(CHATML).tokenizer
    assert made.prompts[0][0] == tokenizer.token_to_id("<|user|>")
    assert list(made.questions[0]).count(tokenizer.token_to_id("<|assistant|>")) == 1
    with pytest.raises(ValueError, match="writes a message 2 times"):
        around_message(letters("{{ messages[0].content }}{{ messages[0].content }}"))


def test_samples_are_stored_by_all_they_follow_from(tmp_path: Path) -> None:
    made = batch_of("qa", 2000)
    calls: list[int] = []

    def make() -> Batch:
        calls.append(1)
        return made

    first, second = stored(("a", 1), make), stored(("a", 1), make)
    assert len(calls) == 1
    assert np.array_equal(second.prompts, first.prompts)
    assert second.answers == made.answers
    stored(("a", 2), make)
    assert len(calls) == 2
    for path in (tmp_path / "tasks").iterdir():
        path.write_bytes(b"cut off")
    assert np.array_equal(stored(("a", 1), make).questions, made.questions)
    assert len(calls) == 3
    assert tokenizer_digest(letters()) != tokenizer_digest(letters(CHATML))


def test_matching_is_rulers() -> None:
    assert matches("It is Bako and 123.", ("bako", "9"), "all") == [True, False]
    assert matches("It is Bako.", ("bako", "9"), "part") == [True]
    assert matches("", ("bako",), "part") == [False]


def test_the_error_is_that_of_a_mean_over_prompts() -> None:
    values = torch.tensor([[1, 1], [1, 0], [0, 0], [0, 1], [1, 1], [1, 1], [0, 0], [0, 0]]).bool()
    everything = torch.ones_like(values)
    error, prompts = error_over_prompts(values, everything, torch.arange(8))
    means = values.double().mean(1)
    assert (error, prompts) == (pytest.approx(float(means.std()) / 8**0.5), 8)
    together, lists = error_over_prompts(values, everything, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    assert lists == 4
    assert together == pytest.approx(float(torch.tensor([0.75, 0.25, 1.0, 0.0]).std()) / 2)
    assert error_over_prompts(values, everything, torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])) == (None, 3)


class Parrot:
    """Stands where a contender does, and says the right thing for every other sample."""

    def __init__(self, task: Any, vocab: int) -> None:
        self.task, self.engine, self.state = task, self, self
        self.logits = torch.zeros(task.case.batch, vocab)
        self.pending = torch.zeros(task.case.batch, dtype=torch.int64)

    def start(self, pending: torch.Tensor) -> None: ...

    def feed(self, tokens: torch.Tensor) -> None: ...

    def try_answer(self, tokens: torch.Tensor) -> Judged:
        replies = self.task.batch(0).replies
        assert torch.equal(tokens, torch.from_numpy(replies))
        self.logits.scatter_(1, tokens[:, :1], 1.0)
        real = torch.arange(tokens.shape[1]) < torch.from_numpy(self.task.batch(0).reply_tokens)[:, None]
        return Judged(real, torch.where(real, -0.5, -99.0))

    def say(self, count: int) -> torch.Tensor:
        decoded = torch.zeros(self.task.case.batch, count, dtype=torch.int64)
        replies = torch.from_numpy(self.task.batch(0).replies)[:, 1 : count + 1]
        decoded[::2, : replies.shape[1]] = replies[::2]
        return decoded


def test_answers_are_scored() -> None:
    made = task_kinds()["multi-value"].case(model="small", config=CONFIG, prompt=4096, together=4)
    assert isinstance(made, questions.QuestionCase)
    case = replace(made, question_tokens=300, answer_tokens=64)
    task = questions.Questions(case, letters(), type("D", (), {"config": CONFIG, "device": CPU})())  # type: ignore[arg-type]
    answers = task.measure(Parrot(task, 300), 0)  # type: ignore[arg-type]
    assert answers.hits.tolist() == [[True] * 4, [False] * 4] * 2
    assert answers.logp.tolist() == [[-0.5]] * 4
    rows = list(task.rows([answers], [answers]))
    assert [(row["metric"], row["value"]) for row in rows] == [
        ("multi-value", 0.5), ("multi-value_logp", -0.5), ("multi-value_kept", 1.0),
    ]  # fmt: skip
    assert rows[0]["value_error"] == pytest.approx((1 / 3) ** 0.5 / 2)
    assert rows[0]["n_texts"] == 4
    tight = questions.Questions(replace(case, question_tokens=20), letters(), task.decoder)
    with pytest.raises(ValueError, match="84 are allowed"):
        tight.batch(0)


def test_lists_fit_the_model_and_the_memory() -> None:
    def cases(scale: str, device: torch.device, config: ModelConfig = CONFIG, **more: Any) -> list[Any]:
        return default_list(scale, device, "small", config, **more)

    assert {case.task for case in cases("default", CPU)} == {"divergence", "needle", "copy"}
    assert set(GENERATED) < {case.task for case in cases("default", GPU)}
    assert [case.prompt for case in cases("full", CPU, tasks=("qa",))] == [4096, 7168]
    wide = replace(CONFIG, context=2**18)
    assert [case.prompt for case in cases("full", CPU, wide, tasks=("qa",))][-1] == 131072
    large = replace(CONFIG, layers=28, kv_heads=4, q_heads=8, head_dim=128, context=2**18)
    by_length = {case.prompt: case for case in cases("full", GPU, large, tasks=("qa",))}
    assert by_length[131072].together == 2
    assert by_length[131072].batch * by_length[131072].groups == 384
    assert (by_length[4096].batch, by_length[4096].groups) == (64, 6)
    lists = copy_case(model="small", config=large, prompt=16384, pairs=16, lists=24)
    assert (lists.together * lists.groups, lists.batch) == (24, 4 * lists.together)
    assert lists.batch <= 18
    asked = [case.pairs * case.together * case.groups for case in cases("default", GPU) if case.task == "copy"]
    assert all(0.5 / questions**0.5 <= 0.026 for questions in asked)  # the largest standard error of a share
    with pytest.raises(ValueError, match="over the 8192 that small handles"):
        cases("default", CPU, tasks=("qa",), contexts=(8192,))


def test_tasks_are_named_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--plan", "--device", "cpu", "--task", "qa", "variables", "--context", "2K"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "tasks-smollm2-135m-qa-2k-8" in text
    assert "tasks-smollm2-135m-variables-2k-8" in text
    with pytest.raises(SystemExit):
        main(["tasks", "--plan", "--device", "cpu", "--task", "nonsense"])
    assert "known are divergence, needle, copy" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ValueError, match="task 'qa' is there already"):
        register_task(task_kinds()["qa"])


def test_missing_words_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wonderwords", None)
    words.load_words.cache_clear()
    with pytest.raises(Unsupported, match=r"pip install -e '\.\[tasks\]'"):
        words.load_words()
    monkeypatch.setattr(words, "PACKAGE", "no-such-package")
    with pytest.raises(Unsupported, match="tasks with generated words need the package"):
        words.words_version()


def test_words_are_plain() -> None:
    pytest.importorskip("wonderwords")
    words.load_words.cache_clear()
    loaded = words.load_words()
    assert len(loaded.nouns) > 3000
    assert all(word.isalpha() and word.islower() for word in (*loaded.nouns, *loaded.adjectives))


def test_a_table_of_a_task_that_nobody_knows_here() -> None:
    rows = [
        replace(value("torch-dense", "strange", None, 0.5), case="tasks-x", selection_pattern="strange", n_samples=100)
    ]
    table = case_table("tasks-x", rows)
    assert "strange" in str(table.title)
    assert list(table.columns[1].cells) == ["50.0% ± 5.0%"]


def test_a_figure_has_a_panel_a_task() -> None:
    rows = [
        replace(
            value(method, kind, None, score), suite="tasks", case=f"tasks-{kind}-{context}", selection_pattern=kind,
            context=context, n_samples=96, value_error=0.04,
        )
        for kind in ("qa", "variables")
        for context in (4096, 7168)
        for method, score in (("torch-dense", 0.8), ("oracle", 0.7))
    ]  # fmt: skip
    drawn = generated(TaskSet("small", "cpu", rows))
    assert [ax.get_title() for ax in drawn.axes if ax.axison] == ["qa", "variables"]
    assert len(drawn.axes[0].containers) == 4
    with pytest.raises(NotDrawn, match="beside dense decoding"):
        generated(TaskSet("small", "cpu", rows[::2]))
    with pytest.raises(NotDrawn, match="figure of their own"):
        tasks_figure(TaskSet("small", "cpu", rows))
