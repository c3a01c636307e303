"""The maths suite's running: a model bound to each method in turn, its answers judged and recorded as they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ...kernels import Unsupported
from ..core.origin import source_of
from ..core.spec import MethodSpec
from ..engine.bind import Place, bind
from ..engine.case import ModelCase, check_counts, check_types, fingerprint_of
from ..engine.engine import State
from ..engine.loader import Loader, release
from ..engine.methods import chunk_rows
from ..engine.prompt import fill_synthetic
from ..engine.sampling import Sampling
from ..model.config import ModelConfig
from ..model.load import LoadedModel
from .generate import Answer, Batch, places_needed
from .judge import Verdict
from .problems import Problem
from .prompting import prompt_ids
from .records import REFUSED, Record, RecordFile, Setting
from .sampling import StreamSampling
from .work import Item

Judges = Callable[[str, str], Verdict]
"""From the expected answer and a text to what became of it."""
PERIOD = 32  # steps between looks at the tokens, of methods that do not rectify
CHECK_TOKENS = 1024  # that methods are checked at
TEXT_CHARS = 4000  # of an answer's end kept in its record


@dataclass(frozen=True, slots=True)
class MathsCase(ModelCase):
    """A model, and how it is asked."""

    suite: ClassVar[str] = "maths"

    model: str  # `smollm2-135m`, or the path of a checkpoint
    config: ModelConfig
    batch: int = 8
    max_tokens: int = 16384
    sampling: Sampling = field(default_factory=lambda: Sampling(0.6, 0.9))
    prompt: str = "chat"
    weights: str = "bf16"
    dtype: str = "bf16"
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(batch=self.batch, max_tokens=self.max_tokens)
        check_types(self.weights, self.dtype)

    @property
    def context(self) -> int:
        """New tokens of the longest answer; prompts come on top."""
        return min(self.max_tokens, self.config.context)

    @property
    def setting(self) -> Setting:
        """What all its answers have in common."""
        return Setting(
            model=self.config.name, dtype=self.dtype, weights=self.weights, prompt=self.prompt,
            temperature=self.sampling.temperature, top_p=self.sampling.top_p, max_tokens=self.max_tokens,
            seed=self.seed, model_fingerprint=fingerprint_of(self.model),
        )  # fmt: skip

    @property
    def slug(self) -> str:
        """`maths-smollm2-135m-fp32-16384-t0.6-p0.9-s0`."""
        return f"maths-{self.setting.slug}"


def encode(problems: Sequence[Problem], loaded: LoadedModel, style: str) -> dict[Problem, list[int]]:
    """Every problem's prompt. Raises ValueError for a model without tokenizer or template."""
    if loaded.tokenizer is None:
        why = f": {loaded.no_tokenizer}" if loaded.no_tokenizer else ""
        raise ValueError(f"the model ({loaded.source}) has no tokenizer, so that it cannot be asked{why}")
    tokenizer = loaded.tokenizer
    return {problem: prompt_ids(tokenizer, problem.text, style) for problem in problems}


class MathsRun:
    """A model with caches that every method answers in."""

    def __init__(
        self, case: MathsCase, specs: Sequence[MethodSpec], items: Sequence[Item], loaded: LoadedModel,
        device: torch.device,
    ) -> None:  # fmt: skip
        """`items`: all there may be to answer; the caches have room for the longest."""
        self.case, self.device, self.loaded = case, device, loaded
        fitting = [item for item in items if not self.refusal(item)]
        longest = max((period(spec) for spec in specs), default=PERIOD)
        self.state: State | None = None
        if fitting:
            capacity = places_needed(fitting, case.max_tokens, case.config.context, longest)
            self.state = State.allocate(loaded.decoder, case.batch, capacity, longest)
            fill_synthetic(self.state, case.seed)  # something to check methods on

    def refusal(self, item: Item) -> str | None:
        """Why a problem cannot be asked, or None if it can."""
        if item.room(self.case.max_tokens, self.case.config.context) >= 1:
            return None
        limit = f"{self.case.config.name} handles {self.case.config.context}"
        return f"the prompt takes {len(item.prompt)} tokens and leaves none for an answer: {limit}"

    def bind(self, spec: MethodSpec) -> Batch:
        """A method on the caches, checked against fp64, captured on a GPU. Raises CheckFailed, Unsupported."""
        case, state, steps = self.case, self.state, period(spec)
        assert state is not None
        assert self.loaded.tokenizer is not None
        pending = torch.ones(case.batch, dtype=torch.int64, device=self.device)
        place = Place(state, min(CHECK_TOKENS, state.capacity - steps), pending, ahead=True)
        sampling = StreamSampling(case.sampling, len(state.history), case.batch, state.count)
        bound = bind(self.loaded.decoder, place, spec, sampling=sampling)
        ends = self.loaded.tokenizer.eos
        return Batch(bound, sampling, steps, max_tokens=case.max_tokens, ends=ends, seed=case.seed)

    def answer(
        self, spec: MethodSpec, items: Sequence[Item], judge: Judges, file: RecordFile,
        on_period: Callable[[int], None] = lambda _: None,
    ) -> Iterator[list[Record]]:  # fmt: skip
        """Answer `items` under a method; records as they come, written before they are handed on.

        Raises:
            Unsupported, CheckFailed, and what else ends a method; what it has answered is in the file.
        """
        refused = [self.record(spec, item, REFUSED, reason=self.refusal(item)) for item in items if self.refusal(item)]
        if refused:
            file.append(refused)
            yield refused
        left = [item for item in items if not self.refusal(item)]
        if not left:
            return
        reason = spec.kind.unavailable(self.case.shape, self.case.torch_dtype, self.device)
        if reason:
            raise Unsupported(reason)
        with torch.inference_mode():
            batch = self.bind(spec)
            for answers in batch.run(left, on_period):
                records = [self.judged(spec, answer, judge) for answer in answers]
                file.append(records)
                yield records
        release(self.device)

    def judged(self, spec: MethodSpec, answer: Answer, judge: Judges) -> Record:
        """The record of an answer."""
        assert self.loaded.tokenizer is not None
        text = self.loaded.tokenizer.decode(answer.ids, special=False)
        verdict = judge(answer.item.problem.answer, text)
        return self.record(
            spec, answer.item, verdict.outcome, extracted=verdict.extracted, finished=answer.finished,
            tokens=len(answer.ids), seconds=round(answer.seconds, 3), text=text[-TEXT_CHARS:],
        )  # fmt: skip

    def record(self, spec: MethodSpec, item: Item, outcome: str, **more: Any) -> Record:
        """A record of an item under a method, of which `key` is known before it is answered."""
        problem = item.problem
        return Record(
            setting=self.case.setting, method=spec.name, columns=spec.columns(), set=problem.set, problem=problem.id,
            digest=problem.digest, sample=item.sample, expected=problem.answer, prompt_tokens=len(item.prompt),
            outcome=outcome, source=source_of(spec), **more,
        )  # fmt: skip


def period(spec: MethodSpec) -> int:
    """Steps between looks at the tokens."""
    return spec.period if spec.rectifies else max(PERIOD, spec.window)


def load(case: MathsCase, specs: Sequence[MethodSpec], device: torch.device) -> LoadedModel:
    """The model, its linear layers checked at the numbers of rows that decoding has. Raises CheckFailed."""
    with torch.inference_mode():
        return Loader().model(case, chunk_rows(case.batch, specs), device)
