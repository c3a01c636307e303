"""The quality suite's measuring: one dense run is recorded, then every method is fed the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from ...kernels import get_method
from ...profiling.device import Environment
from ..cases import MethodSpec
from ..decode.cases import capacity, rectifies, window
from ..decode.checks import check_attention
from ..decode.engine import Engine, State, bind_layers
from ..decode.loader import Loader, prompt_ids
from ..decode.prompt import prefill
from ..decode.sampling import Sampling
from ..micro import failure
from ..model.load import LoadedModel
from ..model.smollm import ModelNotHere
from ..rows import Row, digits
from .cases import QualityCase
from .exposure import ExposureMeter
from .forced import Reference, kv_errors, record_dense, run_forced
from .metrics import StepMetrics

BUCKET = 32  # steps that a row is the mean of
OWN = Sampling(temperature=0.6, top_p=0.9)  # of the dense model's own continuation
METRICS = ("kl", "top1", "loss", "extra_loss", "kv_error")


@dataclass(frozen=True, slots=True)
class QualityBench:
    """What a run measures with, the same for all its cases."""

    device: torch.device
    environment: Environment
    command: str


class QualityRun:
    """One case in hand."""

    def __init__(
        self, case: QualityCase, specs: Sequence[MethodSpec], bench: QualityBench, on_step: Callable[[str], None]
    ) -> None:
        self.case, self.specs, self.bench, self.on_step = case, list(specs), bench, on_step
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
        """Prefill the texts and record what dense decoding does after them."""
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
        name = "triton-dense" if self.bench.device.type == "cuda" else "torch-dense"
        self.dense_name = name
        engine, step, _ = self.bind(MethodSpec(name), OWN if case.source == "own" else Sampling())
        torch.manual_seed(case.seed)
        self.reference: Reference = record_dense(
            engine, step, case.prompt, rest[:, 0], rest if case.source == "text" else None, case.steps,
            lambda n: self.on_step(f"dense, step {n} of {case.steps}"),
        )  # fmt: skip

    def bind(
        self, spec: MethodSpec, sampling: Sampling | None = None
    ) -> tuple[Engine, Callable[[], object], Callable[[], object] | None]:
        """A method on the prefilled caches, its first step checked; its step and rectification, captured on a GPU."""
        case, device = self.case, self.bench.device
        first = torch.ones(case.batch, dtype=torch.int64, device=device)
        self.state.start(case.prompt, first)
        kind = get_method(spec.name)
        options: Any = {"dtype": case.torch_dtype, "device": device}
        method = kind(case.shape, spec.config, **options)
        every = spec.config.rectify_every if rectifies(spec) else None
        layers = bind_layers(self.state, method, None, 0)
        engine = Engine(self.decoder, self.state, layers, rectify_every=every, sampling=sampling)
        check_attention(engine, {0, len(layers) - 1})
        if device.type != "cuda" or not engine.graph_safe:
            return engine, engine.step, engine.rectify if every else None
        self.state.start(case.prompt, first)
        step = engine.capture(engine.step)
        rectify = None
        if every:
            self.state.start(case.prompt + every, first)
            self.state.count.fill_(every)
            rectify = engine.capture(engine.rectify)
        return engine, step, rectify

    def dense_rows(self) -> Iterator[Row]:
        """What the recorded run itself scores: its loss on the tokens that it was fed."""
        reference = self.reference
        following = reference.tokens[:, 1:].t()  # [steps, B]
        for first in range(0, reference.steps, BUCKET):
            part = slice(first, min(first + BUCKET, reference.steps))
            logits = reference.logits[part].float().log_softmax(-1)
            loss = -logits.gather(-1, following[part][..., None]).double().mean()
            yield self.row(
                self.dense_name, {}, metric="loss", step=part.stop, value=digits(float(loss)), status="ok",
                n_samples=(part.stop - first) * self.case.batch,
            )  # fmt: skip

    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        """Rows of one method: means of stretches of steps, of all steps, and by layer."""
        engine, step, rectify = self.bind(spec)
        steps = self.case.steps
        exposure, repaired = ExposureMeter(engine.layers), list[Tensor]()

        def on_step(n: int) -> None:
            self.on_step(f"{spec.label}, step {n} of {steps}")
            if 1 < engine.window <= n:
                exposure.read()
                repaired.append(kv_errors(self.state, self.reference, self.case.prompt, n - engine.window).mean())

        found, by_layer = run_forced(engine, step, rectify, self.case.prompt, self.reference, on_step)
        for metric, first, last, value in summarize(found):
            yield self.row(
                spec.name, spec.columns(), metric=metric, step=last, value=digits(value), status="ok",
                n_samples=(last - first) * self.case.batch,
            )  # fmt: skip
        for i, value in enumerate(by_layer.tolist()):
            yield self.row(
                spec.name, spec.columns(), metric="kv_error", layer=i, step=steps, value=digits(value), status="ok"
            )
        if repaired:  # of a method with a window: what a query has seen, and K and V once the window is over
            error = float(torch.stack(repaired).mean())
            for metric, value in (("kv_exposure", exposure.mean()), ("kv_error_repaired", error)):
                yield self.row(spec.name, spec.columns(), metric=metric, step=steps, value=digits(value), status="ok")


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
    """Feed every method of `specs` the same tokens; a method that fails costs its own rows alone."""
    run = QualityRun(case, specs, bench, on_step)
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
                run.prepare(loader.model(case, {case.batch, *chunks}, bench.device))
        except ModelNotHere as error:
            return rows + [without_value(spec, "skipped", str(error)) for spec in able]
        except Exception as error:
            status, reason = failure(error)
            return rows + [without_value(spec, status, reason) for spec in able]
        rows += list(run.dense_rows()) if able else []
        for spec in able:
            try:
                rows += list(run.measure(spec))
            except Exception as error:
                status, reason = failure(error)
                rows.append(without_value(spec, status, reason))
    return rows
