"""The quality suite's measuring: what dense decoding says to a text, then every method fed the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.analysis import BY_TEXT, error_of_mean
from ..core.bench import Bench, Report, RowMaker
from ..core.metrics import Metric, loss_of, step_metrics
from ..core.rows import Row, digits
from ..core.spec import MethodSpec, dense_here, make_spec
from ..engine.bind import Bound, Place, bind
from ..engine.case import capacity
from ..engine.costs import read_share
from ..engine.engine import State
from ..engine.loader import Loader
from ..engine.methods import MethodRun, run_methods
from ..engine.sampling import Sampling
from ..engine.texts import text_stretches, text_tokenizer
from .cases import QualityCase
from .forced import Forced, Reference, record_dense, run_forced
from .parallel import compare_dense, dense_parallel, run_parallel

BUCKET = 32  # steps that a row is the mean of
OWN = Sampling(temperature=0.6, top_p=0.9)  # of the dense model's own continuation


class InHand:
    """The case that was prepared last, for those of its methods that come later (`Bench.held`)."""

    run: QualityRun | None = None


class QualityRun(MethodRun):
    """One case in hand, for some of its methods and then for further ones."""

    case: QualityCase
    stage = "forced"

    def __init__(self, case: QualityCase, bench: Bench, on_step: Report = lambda _: None) -> None:
        super().__init__(case, (), bench, on_step)
        self.dense = make_spec(dense_here(bench.device))

    def prepare(self, loader: Loader) -> None:
        """Load the model, prefill the texts, settle which tokens are fed after them; the last two once a case."""
        case, in_hand = self.case, self.bench.held(InHand)
        if in_hand.run is not self:
            in_hand.run = None  # another case's state and references
        self.load(loader)
        if in_hand.run is self:
            return
        length = case.context + 1
        stretches = text_stretches(text_tokenizer(self.loaded), case.texts, case.batch, length)
        self.sources = [source for source, _ in stretches]
        texts = [ids for _, ids in stretches]
        fill = partial(self.prefill_texts, case.steps + 1, capacity(case), case.steps + 1, texts)
        self.tokens = fill()[:, case.prompt :]
        self.exact_state = self.state  # that of what methods are compared with
        self.references: dict[bool, Reference] = {}  # by whether it was recorded step by step
        self.dense_kept: Reference | None = None  # dense decoding on caches of the case's own type
        self.dense_launch = {False: "parallel"}
        self.sampled: Reference | None = None  # dense's own continuation, recorded step by step
        if case.source == "own":
            self.sampled = self.record(self.tokens[:, 0], None)
            self.tokens = self.sampled.tokens
        if case.kv_dtype:
            fill(case.kv_dtype)
            self.dense_kept = dense_parallel(self.decoder, self.state, case.prompt, self.tokens, self.on_step)
        in_hand.run = self

    def is_stepwise(self, spec: MethodSpec) -> bool:
        """Whether a method decodes step by step here: it was asked for, or the method has no other form."""
        return self.case.stepwise or spec.kind.ranks_by is None

    def reference(self, stepwise: bool) -> Reference:
        """What dense decoding says to the fed tokens, computed as the method is that it is compared with."""
        if stepwise not in self.references:
            self.references[stepwise] = self._reference(stepwise)
        return self.references[stepwise]

    def _reference(self, stepwise: bool) -> Reference:
        if not stepwise:
            return dense_parallel(self.decoder, self.exact_state, self.case.prompt, self.tokens, self.on_step)
        return self.record(self.tokens[:, 0], self.tokens) if self.sampled is None else self.sampled

    def record(self, first: Tensor, tokens: Tensor | None) -> Reference:
        """Dense decoding step by step, fed `tokens`, or what it samples itself."""
        case = self.case
        bound = self.bind(self.dense, self.exact_state, Sampling() if tokens is not None else OWN)
        self.dense_launch[True] = bound.launch
        torch.manual_seed(case.seed)
        return record_dense(
            bound.engine, bound.step, case.prompt, first, tokens, case.steps,
            lambda n: self.on_step(f"dense, step {n} of {case.steps}"),
        )  # fmt: skip

    def bind(self, spec: MethodSpec, state: State, sampling: Sampling | None = None) -> Bound:
        """A method on the prefilled caches, checked; graphs on a GPU. Raises CheckFailed, Unsupported."""
        first = torch.ones(self.case.batch, dtype=torch.int64, device=self.device)
        place = Place(state, self.case.prompt, first, ahead=True)
        return bind(self.decoder, place, spec, sampling=sampling, longest_period=self.case.steps)

    def force(self, spec: MethodSpec) -> tuple[Forced, str]:
        """Feed a method the tokens; how it was run."""
        case, stepwise = self.case, self.is_stepwise(spec)
        reference = self.reference(stepwise)
        if not stepwise:
            restored = None if self.dense_kept is None else self.dense_kept.kv
            forced = run_parallel(self.decoder, self.state, spec, case.prompt, reference, self.on_step, restored)
            return forced, "parallel"
        bound = self.bind(spec, self.state)
        self.row.took(spec, bound.engine.layers)
        forced = run_forced(
            bound.engine, bound.step, bound.rectify, case.prompt, reference,
            lambda n: self.on_step(f"{spec.label}, step {n} of {case.steps}"),
        )  # fmt: skip
        return forced, bound.launch

    def stretches(self) -> Iterator[tuple[slice, dict[str, int]]]:
        """Steps that a row is the mean of, and what the row says of them."""
        for first in range(0, self.case.steps, BUCKET):
            end = min(first + BUCKET, self.case.steps)
            yield slice(first, end), {"step": end, "n_samples": (end - first) * self.case.batch}

    def by_text(self, metric: Metric, values: Tensor) -> list[float]:
        """The average of each stretch of text, of values `[steps, B]`."""
        return [float(metric.average(own[:, None])) for own in values.unbind(1)]

    def over_texts(self, metric: Metric, values: Tensor) -> dict[str, Any]:
        """What a row says of the stretches of text that its value is the mean of; values `[steps, B]`."""
        columns = {"n_texts": self.case.batch, "text_source": ", ".join(dict.fromkeys(self.sources))}
        if self.case.batch == 1:
            return columns
        return columns | {"value_error": digits(error_of_mean(self.by_text(metric, values)), 3)}

    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        """Rows of one method: every metric over stretches of steps, and of all steps by layer and head."""
        forced, launch = self.force(spec)
        make = partial(self.row, spec, launch=launch)
        yield from self.rows_of(forced, make)
        middle = self.case.prompt + (self.case.steps + 1) // 2  # tokens that the mean step sees
        share = read_share(self.case, spec, middle, forced.tokens_read)
        yield make(metric="read_share", value=digits(share, 4), status="ok", **self.whole)
        for name, value in forced.whole.items():
            yield make(metric=name, value=digits(value), status="ok", **self.whole)

    @property
    def whole(self) -> dict[str, Any]:
        """What a row says of values of all steps."""
        return {"step": self.case.steps, "n_samples": self.case.steps * self.case.batch}

    def rows_of(self, forced: Forced, make: Callable[..., Row]) -> Iterator[Row]:
        """Rows that say how it fared; `make` takes their columns."""

        def row(metric: str, value: float, places: int = 6, **columns: Any) -> Row:
            return make(metric=metric, value=digits(value, places), status="ok", **(self.whole | columns))

        for span, columns in self.stretches():
            for metric in step_metrics():
                values = forced.values[metric.name][span].double()
                yield row(metric.name, float(metric.average(values)), **columns, **self.over_texts(metric, values))
        for metric in step_metrics():
            for i, value in enumerate(self.by_text(metric, forced.values[metric.name].double())):
                of_one: dict[str, Any] = {"stretch": i, "text_source": self.sources[i], "n_samples": self.case.steps}
                yield row(f"{metric.name}{BY_TEXT}", value, **of_one)
        for i, value in enumerate(forced.kv_error.tolist()):
            yield row("kv_error", value, layer=i)
        recall = [] if forced.recall is None else torch.cat(self.bench.ranks.gathered(forced.recall), 1).tolist()
        for i, heads in enumerate(recall):
            for head, value in enumerate(heads):
                yield row("recall", value, 4, layer=i, head=head)

    def dense_rows(self) -> Iterator[Row]:
        """What dense decoding itself scores: its loss on the tokens that it was fed.

        On caches of a type of the case's own, all that other methods are measured by.
        """
        if self.dense_kept is not None:
            forced = compare_dense(self.reference(stepwise=False), self.dense_kept, self.decoder.exchange)
            yield from self.rows_of(forced, partial(self.row.bare, self.dense, launch="parallel"))
            return
        for stepwise, reference in self.references.items():
            following = reference.tokens[:, 1:].t()  # [steps, B]
            for span, columns in self.stretches():
                logits = reference.logits[span].flatten(0, 1).float().log_softmax(-1)
                loss = float(loss_of(logits, following[span].flatten()).double().mean())
                launch = self.dense_launch[stepwise]
                yield self.row.bare(
                    self.dense, metric="loss", value=digits(loss), status="ok", launch=launch, **columns
                )


def run_case(
    case: QualityCase, specs: Sequence[MethodSpec], bench: Bench, on_step: Report = lambda _: None
) -> list[Row]:
    """Feed every method of `specs` the same tokens; a method that fails costs its own rows alone.

    The case stays prepared in `bench` for further methods of it.
    """
    run = bench.held(InHand).run
    if run is None or run.case != case:
        run = QualityRun(case, bench)
    run.on_step, run.row = on_step, RowMaker(case, bench, run.stage)
    return run_methods(run, specs, bench, shared=run.dense_rows)
