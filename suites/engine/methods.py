"""The frame that runs of whole models share: every method in turn, one that fails costs its own rows alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.bench import Bench, Report, RowMaker
from ..core.failure import failure, unavailable
from ..core.rows import Row
from ..core.spec import MethodSpec
from ..model.decoder import Decoder
from ..model.load import LoadedModel
from .engine import State
from .loader import Loader, prompt_ids, release
from .prompt import prefill


class MethodRun(ABC):
    """A case in hand: prepared once for the methods of `specs`, then measured method by method."""

    stage: ClassVar[str] = "total"  # of rows that name none
    loaded: LoadedModel
    state: State

    def __init__(self, case: Any, specs: Sequence[MethodSpec], bench: Bench, on_step: Report) -> None:
        self.case, self.specs, self.bench, self.on_step = case, list(specs), bench, on_step
        self.device, self.row = bench.device, RowMaker(case, bench, self.stage)

    @abstractmethod
    def prepare(self, loader: Loader) -> None:
        """Load the model, and make what all methods share."""

    @abstractmethod
    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        """Rows of one method, as they come: what fails late leaves what was measured before."""

    @property
    def decoder(self) -> Decoder:
        """The model in use, once `load` was done."""
        return self.loaded.decoder

    def load(self, loader: Loader, sizes: Iterable[int] = ()) -> None:
        """Have the case's model, its linear layers checked at the rows of batches of `sizes` (by default the case's).

        Raises:
            CheckFailed: a linear layer is wrong.
        """
        self.on_step("model")
        rows = {count for size in (*sizes,) or (self.case.batch,) for count in chunk_rows(size, self.specs)}
        self.loaded = loader.model(self.case, rows, self.device, self.on_step)

    def prefill_texts(
        self, beyond: int, capacity: int, history: int, texts: Sequence[Sequence[int]] = (),
        kv_dtype: str | None = None,
    ) -> Tensor:  # fmt: skip
        """Prefill the first tokens of stretches of text, one after another, into a new `state`.

        Args:
            beyond: tokens of each stretch after its prompt.
            capacity, history: of the state.
            texts: the stretches' ids, `[B][prompt + beyond]`; without them those of one text.
            kv_dtype: of the state's keys and values, as `KVCache.allocate` takes it.

        Returns:
            The stretches whole, int64 `[B, prompt + beyond]`.
        """
        case, length = self.case, self.case.prompt + beyond
        if texts:
            text = torch.tensor(texts, device=self.device)
        else:
            text = prompt_ids(self.loaded, case.batch * length).view(case.batch, length)
        self.state = State.allocate(self.decoder, case.batch, capacity, history, kv_dtype=kv_dtype)
        total = f"of {case.prompt}"
        prefill(
            self.decoder, self.state, text[:, : case.prompt], on_tokens=lambda n: self.on_step(f"prefill {n} {total}")
        )
        return text


def run_methods(
    run: MethodRun,
    specs: Sequence[MethodSpec],
    bench: Bench,
    too_large: Callable[[list[MethodSpec]], str | None] = lambda able: None,
    shared: Callable[[], Iterable[Row]] = tuple,
) -> list[Row]:
    """Rows of all methods: skipped or failed ones with their reason, the others as far as they came.

    Args:
        too_large: why the case does not fit the device with the methods that can run, or None.
        shared: rows that belong to no method of `specs`, asked for once all were measured.

    Raises:
        RankLost: of ranks that share a model one failed alone.
    """
    rows: list[Row] = []
    able: list[MethodSpec] = []
    for spec, reason in unavailable(specs, run.case, bench.device):
        if reason:
            rows.append(run.row(spec, status="skipped", reason=reason))
        else:
            able.append(spec)
    run.specs = able
    if not able:
        return rows
    if reason := too_large(able):
        return rows + [run.row(spec, status="skipped", reason=reason, final=True) for spec in able]
    with torch.inference_mode():
        try:
            run.prepare(bench.held(Loader))
        except Exception as error:
            bench.ranks.failed(error)
            return rows + [run.row(spec, **failure(error)) for spec in able]
        for spec in able:
            try:
                rows.extend(run.measure(spec))
                release(bench.device)
            except Exception as error:
                bench.ranks.failed(error)
                rows.append(run.row(spec, **failure(error)))
        rows.extend(shared())
    return rows


def chunk_rows(batch: int, specs: Iterable[MethodSpec]) -> set[int]:
    """Rows of the passes of `batch` sequences: one token of each, a period's, a window's, a verification's."""
    rows = {1}
    for spec in specs:
        rows.add(spec.window)
        rows |= {spec.config.rectify_every} if spec.rectifies else set()
        rows |= {spec.draft_length + 1} if spec.draft_length is not None else set()
    return {batch * count for count in rows}
