"""The tasks suite's measuring: prompts are prefilled once, dense decoding goes first, then every other method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from ...kernels import get_method
from ...profiling.device import Environment
from ..core.rows import Row, digits
from ..decode.cases import rectifies
from ..engine.engine import State
from ..engine.loader import Loader, release
from ..micro.cases import MethodSpec
from ..micro.suite import failure
from ..model.load import LoadedModel
from ..model.smollm import ModelNotHere
from .cases import TaskCase, dense_spec
from .contender import Contender
from .measure import Divergence, Task, make_task
from .prompt import prefill_rows


@dataclass(frozen=True, slots=True)
class TaskBench:
    """What a run measures with, the same for all its cases."""

    device: torch.device
    environment: Environment
    command: str


class TaskRun:
    """One case in hand: what each method did so far, and why some do nothing any more."""

    def __init__(
        self, case: TaskCase, specs: Sequence[MethodSpec], bench: TaskBench, on_step: Callable[[str], None]
    ) -> None:
        self.case, self.specs, self.bench, self.on_step = case, list(specs), bench, on_step
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.dense = self.specs[0]
        self.found: dict[MethodSpec, list[Any]] = {spec: [] for spec in self.specs}
        self.chunked: list[torch.Tensor] = []
        self.broken: dict[MethodSpec, tuple[str, str]] = {}

    def row(self, spec: MethodSpec, stage: str, **columns: Any) -> Row:
        common = {
            **self.case.columns(),
            "started_at": self.started_at,
            "command": self.bench.command,
            **asdict(self.bench.environment),
            "method": spec.name,
            "stage": stage,
            **spec.columns(),
        }
        return Row(**(common | columns))

    @property
    def able(self) -> list[MethodSpec]:
        """Methods that have not failed."""
        return [spec for spec in self.specs if spec not in self.broken]

    def drop(self, specs: Sequence[MethodSpec], status: str, reason: str) -> None:
        """These methods have a status instead of values."""
        self.broken |= dict.fromkeys(specs, (status, reason))

    def measure(self, loaded: LoadedModel) -> None:
        """All batches of the case; a method that fails is left out of those that follow."""
        case, decoder = self.case, loaded.decoder
        task = make_task(case, loaded)
        room = max(case.room, *(s.config.rectify_every for s in self.able if rectifies(s)), 1)  # a graph's warm-up
        state = State.allocate(decoder, case.batch, -(-(case.prompt + room) // 64) * 64, room + 1)
        for group in range(case.groups):
            where = f"{group + 1} of {case.groups}" if case.groups > 1 else "prompts"
            self.on_step(f"prefill, {where}")
            task.begin(group, prefill_rows(decoder, state, task.prompts(group).to(decoder.device)))
            for spec in self.able:
                self.on_step(f"{spec.label}, {where}")
                self._attempt(task, loaded, state, spec, group)
                if self.dense in self.broken:
                    status, reason = self.broken[self.dense]
                    self.drop(self.able, status, f"{self.dense.name}, which all are compared with: {reason}")
                    return

    def _attempt(self, task: Task, loaded: LoadedModel, state: State, spec: MethodSpec, group: int) -> None:
        case = self.case
        try:
            contender = Contender(loaded.decoder, state, spec, case.prompt, case.room, task.noise(group))
            self.found[spec].append(task.measure(contender, group))
            if spec == self.dense and isinstance(task, Divergence):
                path = MethodSpec("resa" if self.bench.device.type == "cuda" else "resa-torch")
                self.chunked.append(task.in_chunks(state, path, group))
        except Exception as error:
            self.drop([spec], *failure(error))
        release(self.bench.device)

    def rows(self, loaded: LoadedModel | None) -> Iterator[Row]:
        """Of every method in the order asked for: values, or the reason that there are none."""
        task = make_task(self.case, loaded) if loaded is not None and self.able else None
        for spec in self.specs:
            if spec in self.broken or task is None:
                status, reason = self.broken[spec]
                yield self.row(spec, "free", status=status, reason=reason)
                continue
            for columns in task.rows(spec, self.found[spec], self.found[self.dense]):
                yield self._value(spec, "free", columns)
            if spec == self.dense and isinstance(task, Divergence):
                for columns in task.lengths_rows(self.chunked):
                    yield self._value(spec, "chunk", columns)

    def _value(self, spec: MethodSpec, stage: str, columns: dict[str, Any]) -> Row:
        return self.row(spec, stage, status="ok", **(columns | {"value": digits(columns["value"])}))


def run_case(
    case: TaskCase,
    specs: Sequence[MethodSpec],
    bench: TaskBench,
    loader: Loader,
    on_step: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Do one task under every method of `specs`; a method that fails costs its own rows alone.

    Dense decoding goes first, asked for or not.
    """
    dense = dense_spec(bench.device)
    run = TaskRun(case, [dense, *(spec for spec in specs if spec != dense)], bench, on_step)
    for spec in run.specs:
        reason = get_method(spec.name).unavailable(case.shape, case.torch_dtype, bench.device)
        if reason:
            run.drop([spec], "skipped", reason)
    loaded = None
    with torch.inference_mode():
        try:
            if dense not in run.broken:
                on_step("model")
                chunks = {case.batch * spec.config.rectify_every for spec in run.able if rectifies(spec)}
                loaded = loader.model(case, {case.batch, *chunks}, bench.device)
                run.measure(loaded)
        except ModelNotHere as error:
            run.drop(run.able, "skipped", str(error))
        except Exception as error:
            run.drop(run.able, *failure(error))
        return list(run.rows(loaded))
