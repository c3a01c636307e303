"""Lossless decoding of a real model: the same prompts decoded densely, then by drafts; rows of times and of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.bench import Bench, Conditions, Report
from ..core.rows import Row, digits
from ..core.spec import MethodSpec, resa_here
from ..core.speedups import with_speedups
from ..decode.run import run_case as run_decode_case
from ..decode.run import step_us
from ..engine.bind import Place, bind, can_capture, layers_of
from ..engine.checks import check_attention
from ..engine.gate import Check
from ..engine.loader import Loader
from ..engine.measure import Timing, time_period, wall_seconds
from ..engine.methods import MethodRun, run_methods
from ..engine.rounds import Acceptances, LosslessEngine
from ..engine.sound import check_logits
from .cases import LosslessCase, ReplayCase
from .method import NAME
from .replay import ACCEPTANCE
from .replayed import ReplayRun
from .texts import check_text, decode_by_rows, gap, largest_tie, partings


class LosslessRun(MethodRun):
    """One case in hand: its model, its prefilled prompts, what dense decoding wrote after them."""

    case: LosslessCase
    dense_text: Tensor | None = None  # int64 [B, T], by the first dense method, greedily

    @property
    def exact(self) -> bool:
        """Whether one-row steps and passes of several rows take the same path, so that no near-tie is excused."""
        return self.case.dtype == "fp32"

    def prepare(self, loader: Loader) -> None:
        """Model and prompts, stretches of the text one after another. Raises ValueError where drafts do not fit."""
        case = self.case
        drafts = max([spec.draft_length or 0 for spec in self.specs])
        capacity = case.capacity(drafts)
        self.load(loader)
        text = self.prefill_texts(1, capacity, max(case.tokens, drafts))
        self.prompt = text[:, :-1]
        self.place = Place(self.state, case.prompt, text[:, -1], ahead=True)

    def restart(self) -> None:
        """Stand after the prompts, with the same noise ahead for every method."""
        self.place.before(0)
        torch.manual_seed(self.case.seed)

    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        """Rows of one method."""
        yield from self.lossless(spec) if spec.name == NAME else self.dense(spec)

    def dense(self, spec: MethodSpec) -> Iterator[Row]:
        """Time a dense decoding, and keep what the first one writes."""
        case, device = self.case, self.device
        self.on_step(f"check {spec.label}")
        bound = bind(self.decoder, self.place, spec, sampling=case.sampling)
        self.on_step(f"time {spec.label}")
        self.restart()
        with Conditions(device) as conditions:
            intervals, wall_us = time_period(bound.step, None, case.tokens, device)
        if self.dense_text is None and case.sampling.temperature == 0:
            self.dense_text = self.state.history[: case.tokens].t().clone()
        check_logits(bound.engine.logits)
        timing = Timing(intervals, wall_us)
        yield self.row(
            spec, **self.times(sum(intervals), wall_us, len(intervals), bound.check, bound.launch),
            **conditions.columns(), p50_us=digits(timing.quantile_us(0.5)), p99_us=digits(timing.quantile_us(0.99)),
        )  # fmt: skip

    def times(self, total_us: float, wall_us: float, samples: int, check: Check, launch: str) -> dict[str, Any]:
        """Columns of a decoding that took so long: by the token, all sequences together."""
        case = self.case
        mean = total_us / case.tokens
        return {
            "n_samples": samples, "median_us": digits(mean), "mean_us": digits(mean),
            "wall_mean_us": digits(wall_us / case.tokens), "tokens_per_s": digits(case.batch / mean * 1e6),
            "cache_state": "cold", "launch": launch, "fixed_length": False, **check.columns(),
        }  # fmt: skip

    def lossless(self, spec: MethodSpec) -> Iterator[Row]:
        """Decode by drafts: a row of its times, of its texts against dense decoding's, and of what was accepted.

        The time is that of the whole batch, which waits for its slowest sequence.
        """
        case, device = self.case, self.device
        self.on_step(f"check {spec.label}")
        self.restart()
        layers = layers_of(self.decoder, self.state, spec, resa_here(device))
        self.row.took(spec, layers)
        engine = LosslessEngine(
            self.decoder, self.state, layers, drafts=spec.draft_length or 0, room=case.tokens, sampling=case.sampling
        )
        check = check_attention(engine.engine, {0, len(layers) - 1})
        self.restart()
        run: Callable[[], object] = engine.round
        graph = can_capture(engine.engine, device)
        if graph:
            run = engine.engine.capture(engine.round)
        else:
            run()  # where decoding begins, a round changes nothing that stands
        self.restart()
        self.on_step(f"time {spec.label}")
        with Conditions(device) as conditions:
            seconds, fed = wall_seconds(lambda: engine.generate(case.tokens, run), device)
        acceptances = engine.acceptances()
        self.restart()
        check_text(engine.engine, fed)
        common = {"accepted_length": digits(acceptances.mean), "chunk_kernel": layers[-1].chunk_kernel}
        times = self.times(seconds * 1e6, seconds * 1e6, acceptances.rounds, check, "graph" if graph else "eager")
        row = self.row(spec, **times, **common, **conditions.columns())
        yield from self.judged(row, spec, fed, engine) if case.sampling.temperature == 0 else [row]
        yield from self.shares(spec, acceptances, common)

    def judged(self, row: Row, spec: MethodSpec, fed: Tensor, engine: LosslessEngine) -> Iterator[Row]:
        """The row if its texts are dense decoding's, a failed one otherwise; rows of how many are.

        In fp32 the one-row steps of the dense method are the path. Elsewhere it is dense passes of as many rows, and
        what the one-row steps wrote is compared beside: near-ties may fall either way there, nothing else may.
        """
        case, exact = self.case, self.exact
        if self.dense_text is None:
            raise ValueError("no dense method ran, so nothing says what the texts must be")
        path = self.dense_text
        if not exact:
            self.on_step(f"texts by {spec.draft_length or 0} + 1 rows")
            self.restart()
            path = decode_by_rows(engine.engine, case.tokens)
        apart = partings(path, fed)
        gaps = [gap(self.decoder, self.prompt, path, parting) for parting in apart]
        tie = 0.0 if exact else largest_tie(case.torch_dtype)
        wrong = [(parting, by) for parting, by in zip(apart, gaps, strict=True) if exact or by > tie]
        if wrong:
            parting, by = wrong[0]
            reason = (
                f"{len(wrong)} of {case.batch} texts are not dense decoding's: sequence {parting.sequence} has "
                f"{parting.other} for {parting.dense} after {parting.token} tokens, which dense decoding told apart by "
                f"{by:.1e} of its logits' size"
            )
            yield self.row(spec, status="failed", reason=reason)
        else:
            yield row
        common = {"stage": "text", "status": "ok", "step": case.tokens, "n_samples": case.batch, "launch": row.launch}
        yield self.row(spec, **common, metric="equal_tokens", value=digits(1 - len(apart) / case.batch))
        if apart:
            first = min(parting.token for parting in apart)
            yield self.row(spec, **common, metric="first_divergence", value=first)
            yield self.row(spec, **common, metric="divergence_gap", value=digits(max(gaps)))
        if not exact:
            share = len(partings(self.dense_text, fed)) / case.batch
            yield self.row(spec, **common, metric="equal_tokens_one_row", value=digits(1 - share))

    def shares(self, spec: MethodSpec, acceptances: Acceptances, common: dict[str, Any]) -> Iterator[Row]:
        """A row for each number of accepted drafts: the share of rounds that had it."""
        for accepted, rounds in enumerate(acceptances.histogram):
            yield self.row(
                spec, **common, stage="text", metric=ACCEPTANCE, step=accepted,
                value=digits(rounds / acceptances.rounds), n_samples=acceptances.rounds, status="ok",
            )  # fmt: skip


def run_case(
    case: LosslessCase | ReplayCase, specs: Sequence[MethodSpec], bench: Bench, on_step: Report = lambda _: None
) -> list[Row]:
    """Decode with every method of `specs`, dense ones first; a method that fails costs its own rows alone."""
    if isinstance(case, ReplayCase):
        return run_decode_case(case, specs, bench, on_step, ReplayRun)
    dense_first = sorted(specs, key=lambda spec: not spec.is_dense)
    return with_speedups(run_methods(LosslessRun(case, specs, bench, on_step), dense_first, bench), step_us)
