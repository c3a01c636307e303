"""The quality suite's measuring: what dense decoding says to a text, then every method fed the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from ...kernels import get_method
from ...profiling.device import Environment
from ..core.rows import Row, digits
from ..decode.cases import capacity, rectifies, window
from ..engine.checks import check_attention
from ..engine.engine import Engine, State, bind_layers
from ..engine.loader import Loader, prompt_ids
from ..engine.prompt import prefill
from ..engine.sampling import Sampling
from ..micro.cases import MethodSpec
from ..micro.suite import failure
from ..model.load import LoadedModel
from ..model.smollm import ModelNotHere
from .cases import QualityCase
from .forced import Forced, Reference, record_dense, run_forced
from .metrics import StepMetrics
from .parallel import SELECTORS, dense_parallel, run_parallel

BUCKET = 32  # steps that a row is the mean of
OWN = Sampling(temperature=0.6, top_p=0.9)  # of the dense model's own continuation
METRICS = ("kl", "top1", "loss", "extra_loss", "kv_error")


@dataclass(frozen=True, slots=True)
class QualityBench:
    """What a run measures with, the same for all its cases."""

    device: torch.device
    environment: Environment
    command: str
    prepared: dict[QualityCase, QualityRun] = field(default_factory=dict)
    """The case in hand, for those of its methods that come later."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A method on the caches, stepping; `launch` says how."""

    engine: Engine
    step: Callable[[], object]
    rectify: Callable[[], object] | None
    launch: str


class QualityRun:
    """One case in hand."""

    def __init__(self, case: QualityCase, bench: QualityBench, on_step: Callable[[str], None]) -> None:
        self.case, self.bench = case, bench
        self.begin(on_step)

    def begin(self, on_step: Callable[[str], None]) -> None:
        """Some methods of the case are to be measured, the first or further ones."""
        self.on_step = on_step
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")

    def row(self, name: str, columns: dict[str, Any], **more: Any) -> Row:
        common = {
            **self.case.columns(),
            "started_at": self.started_at,
            "command": self.bench.command,
            **asdict(self.bench.environment),
            "method": name,
            "stage": "forced",
        }
        return Row(**(common | columns | more))

    def prepare(self, loaded: LoadedModel) -> None:
        """Prefill the texts; settle which tokens are fed after them."""
        case, decoder = self.case, loaded.decoder
        self.decoder = decoder
        length = case.context + 1
        text = prompt_ids(loaded, case.batch * length).view(case.batch, length)
        self.state = State.allocate(decoder, case.batch, capacity(case), case.steps + 1)
        self.on_step("prefill")
        prefill(
            decoder, self.state, text[:, : case.prompt],
            on_tokens=lambda n: self.on_step(f"prefill {n} of {case.prompt}"),
        )  # fmt: skip
        rest = text[:, case.prompt :]
        self.dense_name = "triton-dense" if self.bench.device.type == "cuda" else "torch-dense"
        self.references: dict[bool, Reference] = {}  # by whether it was recorded step by step
        self.dense_launch = {False: "parallel"}
        self.tokens = rest
        self.sampled: Reference | None = None  # dense's own continuation, recorded step by step
        if case.source == "own":
            self.sampled = self.record(rest[:, 0], None)
            self.tokens = self.sampled.tokens

    def is_stepwise(self, spec: MethodSpec) -> bool:
        """Whether a method decodes step by step here: it was asked for, or the method has no other form."""
        return self.case.stepwise or spec.name not in SELECTORS

    def reference(self, stepwise: bool) -> Reference:
        """What dense decoding says to the fed tokens, computed as the method is that it is compared with."""
        if stepwise not in self.references:
            self.references[stepwise] = self._reference(stepwise)
        return self.references[stepwise]

    def _reference(self, stepwise: bool) -> Reference:
        if not stepwise:
            return dense_parallel(self.decoder, self.state, self.case.prompt, self.tokens, self.on_step)
        return self.record(self.tokens[:, 0], self.tokens) if self.sampled is None else self.sampled

    def record(self, first: Tensor, tokens: Tensor | None) -> Reference:
        """Dense decoding step by step, fed `tokens`, or what it samples itself."""
        case = self.case
        bound = self.bind(MethodSpec(self.dense_name), Sampling() if tokens is not None else OWN)
        self.dense_launch[True] = bound.launch
        torch.manual_seed(case.seed)
        return record_dense(
            bound.engine, bound.step, case.prompt, first, tokens, case.steps,
            lambda n: self.on_step(f"dense, step {n} of {case.steps}"),
        )  # fmt: skip

    def bind(self, spec: MethodSpec, sampling: Sampling | None = None) -> Bound:
        """A method on the prefilled caches, its first step checked; its step and rectification, captured on a GPU."""
        case, device = self.case, self.bench.device
        first = torch.ones(case.batch, dtype=torch.int64, device=device)
        self.state.start(case.prompt, first)
        options: Any = {"dtype": case.torch_dtype, "device": device}
        method = get_method(spec.name)(case.shape, spec.config, **options)
        dense = get_method(self.dense_name)(case.shape, spec.config, **options) if spec.dense_layers else None
        every = spec.config.rectify_every if rectifies(spec) else None
        layers = bind_layers(self.state, method, dense, spec.dense_layers or 0)
        engine = Engine(self.decoder, self.state, layers, rectify_every=every, sampling=sampling)
        check_attention(engine, {0, len(layers) - 1})
        if device.type != "cuda" or not engine.graph_safe:
            return Bound(engine, engine.step, engine.rectify if every else None, "eager")
        self.state.start(case.prompt, first)
        step = engine.capture(engine.step)
        rectify = None
        if every:
            self.state.start(case.prompt + every, first)
            self.state.count.fill_(every)
            rectify = engine.capture(engine.rectify)
        return Bound(engine, step, rectify, "graph")

    def dense_rows(self) -> Iterator[Row]:
        """What dense decoding itself scores: its loss on the tokens that it was fed."""
        for stepwise, reference in self.references.items():
            following = reference.tokens[:, 1:].t()  # [steps, B]
            for first in range(0, reference.steps, BUCKET):
                part = slice(first, min(first + BUCKET, reference.steps))
                logits = reference.logits[part].float().log_softmax(-1)
                loss = -logits.gather(-1, following[part][..., None]).double().mean()
                yield self.row(
                    self.dense_name, {}, metric="loss", step=part.stop, value=digits(float(loss)), status="ok",
                    n_samples=(part.stop - first) * self.case.batch, launch=self.dense_launch[stepwise],
                )  # fmt: skip

    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        """Rows of one method: means of stretches of steps, and of all steps by layer and head."""
        forced, launch = self.force(spec)
        steps, batch = self.case.steps, self.case.batch
        for metric, first, last, value in summarize(forced.steps):
            yield self.row(
                spec.name, spec.columns(), metric=metric, step=last, value=digits(value), status="ok",
                n_samples=(last - first) * batch, launch=launch,
            )  # fmt: skip
        whole: Any = {"step": steps, "n_samples": steps * batch, "status": "ok", "launch": launch}
        for i, value in enumerate(forced.kv_error.tolist()):
            yield self.row(spec.name, spec.columns(), metric="kv_error", layer=i, value=digits(value), **whole)
        for i, heads in enumerate([] if forced.recall is None else forced.recall.tolist()):
            for head, value in enumerate(heads):
                value = digits(value, 4)
                yield self.row(spec.name, spec.columns(), metric="recall", layer=i, head=head, value=value, **whole)
        for metric, found in (("kv_exposure", forced.kv_exposure), ("kv_error_repaired", forced.kv_error_repaired)):
            if found is not None:
                yield self.row(spec.name, spec.columns(), metric=metric, value=digits(found), **whole)

    def force(self, spec: MethodSpec) -> tuple[Forced, str]:
        """Feed a method the tokens; how it was run."""
        case, stepwise = self.case, self.is_stepwise(spec)
        reference = self.reference(stepwise)
        if not stepwise:
            return run_parallel(self.decoder, self.state, spec, case.prompt, reference, self.on_step), "parallel"
        bound = self.bind(spec)
        forced = run_forced(
            bound.engine, bound.step, bound.rectify, case.prompt, reference,
            lambda n: self.on_step(f"{spec.label}, step {n} of {case.steps}"),
        )  # fmt: skip
        return forced, bound.launch


def summarize(found: Sequence[StepMetrics]) -> Iterator[tuple[str, int, int, float]]:
    """Means over stretches of BUCKET steps: metric, steps before, steps at its end, value."""
    for first in range(0, len(found), BUCKET):
        part = found[first : first + BUCKET]
        for metric in METRICS:
            values = torch.stack([getattr(one, metric) for one in part])
            yield metric, first, first + len(part), float(values.double().mean())


def run_case(
    case: QualityCase,
    specs: Sequence[MethodSpec],
    bench: QualityBench,
    loader: Loader,
    on_step: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Feed every method of `specs` the same tokens; a method that fails costs its own rows alone.

    The case stays prepared in `bench` for further methods of it.
    """
    run = bench.prepared.get(case)
    ready = run is not None
    if run is None:
        bench.prepared.clear()  # another case's state and references
        run = QualityRun(case, bench, on_step)
    run.begin(on_step)
    rows: list[Row] = []

    def without_value(spec: MethodSpec, status: str, reason: str) -> Row:
        return run.row(spec.name, spec.columns(), status=status, reason=reason)

    able = []
    for spec in specs:
        reason = get_method(spec.name).unavailable(case.shape, case.torch_dtype, bench.device)
        if reason:
            rows.append(without_value(spec, "skipped", reason))
        else:
            able.append(spec)
    with torch.inference_mode():
        try:
            if able:
                on_step("model")
                chunks = {case.batch * spec.config.rectify_every for spec in able if rectifies(spec)}
                chunks |= {case.batch * window(spec) for spec in able}
                loaded = loader.model(case, {case.batch, *chunks}, bench.device)
                if not ready:
                    run.prepare(loaded)
                    bench.prepared[case] = run
        except ModelNotHere as error:
            return rows + [without_value(spec, "skipped", str(error)) for spec in able]
        except Exception as error:
            status, reason = failure(error)
            return rows + [without_value(spec, status, reason) for spec in able]
        measured: list[Row] = []
        for spec in able:
            try:
                measured += list(run.measure(spec))
            except Exception as error:
                status, reason = failure(error)
                measured.append(without_value(spec, status, reason))
        rows += [*(run.dense_rows() if able else ()), *measured]
    return rows
