"""The tasks suite's measuring: prompts are prefilled once, dense decoding goes first, then every other method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...kernels.config import ceil_div
from ..core.bench import Bench, Report
from ..core.rows import Row, digits
from ..core.spec import MethodSpec, make_spec, resa_here
from ..engine.engine import State
from ..engine.loader import Loader, release
from ..engine.methods import MethodRun, run_methods
from ..engine.texts import text_tokenizer
from ..model.load import LoadedModel
from .cases import TaskCase, dense_spec
from .contender import Contender
from .kinds.divergence import Divergence
from .prompt import prefill_rows
from .registry import task_kinds
from .task import Task


def make_task(case: TaskCase, loaded: LoadedModel) -> Task:
    """Raises Unsupported without a tokenizer or a package, ValueError where the prompts cannot be written."""
    return task_kinds()[case.task].task(case, text_tokenizer(loaded), loaded.decoder)


class TaskRun(MethodRun):
    """One case in hand: what each method did in its batches, or what it raised."""

    case: TaskCase
    stage = "free"

    def __init__(self, case: TaskCase, specs: Sequence[MethodSpec], bench: Bench, on_step: Report) -> None:
        """`specs`: dense decoding first, whether it was asked for or not."""
        super().__init__(case, specs, bench, on_step)
        self.dense = self.specs[0]
        self.results: dict[MethodSpec, list[Any]] = {spec: [] for spec in self.specs}
        self.chunked: list[torch.Tensor] = []
        self.errors: dict[MethodSpec, Exception] = {}

    def prepare(self, loader: Loader) -> None:
        """All batches of the case: each is prefilled once for all methods, so that rows are made only afterwards.

        A method that fails is left out of the batches that follow. Raises what dense decoding raises.
        """
        case = self.case
        self.load(loader)
        self.task = make_task(case, self.loaded)
        room = max([case.room, *(spec.window for spec in self.specs)])
        self.state = State.allocate(self.decoder, case.batch, ceil_div(case.prompt + room, 64) * 64, room + 1)
        for group in range(case.groups):
            where = f"{group + 1} of {case.groups}" if case.groups > 1 else "prompts"
            self.on_step(f"prefill, {where}")
            prompts = self.task.prompts(group).to(self.device)
            self.task.begin(group, prefill_rows(self.decoder, self.state, prompts))
            self.compete(self.dense, group)
            for spec in self.specs:
                if spec == self.dense or spec in self.errors:
                    continue
                self.on_step(f"{spec.label}, {where}")
                try:
                    self.compete(spec, group)
                except Exception as error:
                    self.errors[spec] = error

    def compete(self, spec: MethodSpec, group: int) -> None:
        """What a method does in a batch."""
        case, task = self.case, self.task
        try:
            contender = Contender(self.decoder, self.state, spec, case.prompt, case.room, task.noise(group))
            self.row.took(spec, contender.engine.layers)
            self.results[spec].append(task.measure(contender, group))
            if spec == self.dense and isinstance(task, Divergence):
                path = make_spec(resa_here(self.device))
                self.chunked.append(task.in_chunks(self.state, path, group))
        except Exception as error:
            if spec == self.dense:
                error.add_note(f"{spec.name}, which all are compared with")
            raise
        finally:
            release(self.device)

    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        """Rows of one method. Raises what it raised."""
        if spec in self.errors:
            raise self.errors[spec]
        for columns in self.task.rows(self.results[spec], self.results[self.dense]):
            yield self.value_row(spec, columns)
        if spec == self.dense and isinstance(self.task, Divergence):
            for columns in self.task.lengths_rows(self.chunked):
                yield self.value_row(spec, columns, stage="chunk")

    def value_row(self, spec: MethodSpec, columns: dict[str, Any], **more: str) -> Row:
        """A row of one value."""
        numbers = {name: digits(columns[name]) for name in ("value", "value_error") if columns.get(name) is not None}
        return self.row(spec, status="ok", **(columns | numbers | more))


def run_case(case: TaskCase, specs: Sequence[MethodSpec], bench: Bench, on_step: Report = lambda _: None) -> list[Row]:
    """Do one task under every method of `specs`; a method that fails costs its own rows alone.

    Dense decoding goes first, asked for or not.
    """
    dense = dense_spec(bench.device)
    specs = [dense, *(spec for spec in specs if spec.variant != dense.variant)]
    return run_methods(TaskRun(case, specs, bench, on_step), specs, bench)
