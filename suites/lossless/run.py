"""Lossless decoding of a real model: the same prompts decoded densely, then by drafts; rows of times and of texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from ...kernels import Unsupported, get_method
from ...profiling.clocks import ClockReader, ClockState, worst
from ..core.rows import Row, digits
from ..core.speedups import with_speedups
from ..decode.suite import DecodeBench, can_capture, step_us
from ..engine.checks import check_attention
from ..engine.engine import Engine, State, bind_layers
from ..engine.gate import Check
from ..engine.loader import Loader, prompt_ids
from ..engine.measure import Timing, time_period
from ..engine.methods import run_methods
from ..engine.prompt import prefill
from ..engine.rounds import Acceptances, LosslessEngine
from ..micro.cases import MethodSpec
from ..model.load import LoadedModel
from .cases import LosslessCase
from .method import NAME, bare
from .replay import ACCEPTANCE
from .texts import decode_by_rows, gap, largest_tie, partings


class LosslessRun:
    """One case in hand: its model, its prefilled prompts, what dense decoding said after them."""

    def __init__(
        self, case: LosslessCase, specs: Sequence[MethodSpec], bench: DecodeBench, on_step: Callable[[str], None]
    ) -> None:
        self.case, self.specs, self.bench, self.on_step = case, list(specs), bench, on_step
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.said: Tensor | None = None  # int64 [B, T], by the first dense method, greedily

    @property
    def exact(self) -> bool:
        """Whether one-row steps and passes of several rows take the same path, so that no near-tie is excused."""
        return self.case.dtype == "fp32"

    def row(self, spec: MethodSpec, **columns: Any) -> Row:
        common = {
            **self.case.columns(),
            "read_ceiling_gbps": round(self.bench.ceilings.read_gbps, 1),
            "started_at": self.started_at,
            "command": self.bench.command,
            **asdict(self.bench.environment),
            "method": spec.name,
            "stage": "total",
            **spec.columns(),
        }
        return Row(**(common | columns))

    def prepare(self, loader: Loader) -> None:
        """Model and prompts, stretches of the text one after another. Raises ValueError where drafts do not fit."""
        case = self.case
        drafts = max([spec.draft_length or 0 for spec in self.specs])
        capacity = case.capacity(drafts)
        self.on_step("model")
        verified = {case.batch * (spec.draft_length + 1) for spec in self.specs if spec.draft_length}
        self.loaded: LoadedModel = loader.model(case, {case.batch, *verified}, self.bench.device)
        decoder = self.decoder = self.loaded.decoder
        length = case.prompt + 1
        text = prompt_ids(self.loaded, case.batch * length).view(case.batch, length)
        self.prompt, self.pending = text[:, :-1], text[:, -1]
        self.state = State.allocate(decoder, case.batch, capacity, max(case.tokens, drafts))
        prefill(
            decoder, self.state, self.prompt, on_tokens=lambda n: self.on_step(f"prefill {n} of {case.prompt}")
        )  # fmt: skip

    def restart(self) -> None:
        """Stand after the prompts, with the same noise ahead for every method."""
        self.state.start(self.case.prompt, self.pending)
        torch.manual_seed(self.case.seed)

    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        yield from self.lossless(spec) if spec.name == NAME else self.dense(spec)

    def dense(self, spec: MethodSpec) -> Iterator[Row]:
        """Time a dense decoding, and keep what the first one says."""
        case, device = self.case, self.bench.device
        kind = get_method(spec.name)
        if kind.fixes_length:
            raise Unsupported("fixes its length when it is bound; a text grows")
        self.on_step(f"check {spec.label}")
        self.restart()
        method = kind(case.shape, spec.config, dtype=case.torch_dtype, device=device)
        engine = Engine(self.decoder, self.state, bind_layers(self.state, method, None, 0), sampling=case.sampling)
        check = check_attention(engine, {0, len(engine.layers) - 1})
        step, launch = self.launched(engine, engine.step)
        self.on_step(f"time {spec.label}")
        self.restart()
        reader = ClockReader(device)
        states = [reader.read()]
        intervals, wall_us = time_period(step, None, case.tokens, device)
        states.append(reader.read())
        if self.said is None and case.sampling.temperature == 0:
            self.said = self.state.history[: case.tokens].t().clone()
        timing = Timing(intervals, wall_us)
        yield self.row(
            spec, **self.times(sum(intervals), wall_us, len(intervals), check, launch), **outcome(states),
            p50_us=digits(timing.quantile_us(0.5)), p99_us=digits(timing.quantile_us(0.99)),
        )  # fmt: skip

    def launched(self, engine: Engine, run: Callable[[], None]) -> tuple[Callable[[], object], str]:
        """`run` as a graph where it can be one, and how it is launched."""
        if not can_capture(engine, self.bench.device):
            return run, "eager"
        self.restart()
        return engine.capture(run), "graph"

    def times(self, total_us: float, wall_us: float, samples: int, check: Check, launch: str) -> dict[str, Any]:
        """Columns of a decoding that took so long: by the token, all sequences together."""
        case = self.case
        mean = total_us / case.tokens
        return {
            "n_samples": samples,
            "median_us": digits(mean),
            "mean_us": digits(mean),
            "wall_mean_us": digits(wall_us / case.tokens),
            "tokens_per_s": digits(case.batch / mean * 1e6),
            "cache_state": "cold",
            "launch": launch,
            "fixed_length": False,
            "max_rel_error": digits(check.max_rel_error, 3),
            "error_budget_used": digits(check.budget_used, 3),
        }

    def lossless(self, spec: MethodSpec) -> Iterator[Row]:
        """Decode by drafts: a row of its times, of its texts against dense decoding's, and of what was accepted.

        The time is that of the whole batch, which waits for its slowest sequence.
        """
        case, device = self.case, self.bench.device
        drafts = spec.draft_length or 0
        self.on_step(f"check {spec.label}")
        self.restart()
        layers = bind_layers(self.state, bare(case, spec, device), None, 0)
        engine = LosslessEngine(
            self.decoder, self.state, layers, drafts=drafts, room=case.tokens, sampling=case.sampling
        )  # fmt: skip
        check = check_attention(engine.engine, {0, len(layers) - 1})
        self.restart()
        run, launch = self.launched(engine.engine, engine.round)
        self.restart()
        if launch == "eager":
            run()  # where decoding begins, a round changes nothing that stands
        self.restart()
        self.on_step(f"time {spec.label}")
        reader = ClockReader(device)
        states = [reader.read()]
        total_us, fed = timed(lambda: engine.generate(case.tokens, run), device)
        states.append(reader.read())
        found = engine.acceptances()
        common = {"accepted_length": digits(found.mean), "chunk_kernel": layers[-1].chunk_kernel}
        row = self.row(
            spec, **self.times(total_us, total_us, found.rounds, check, launch), **common, **outcome(states)
        )  # fmt: skip
        yield from self.judged(row, spec, fed, engine) if case.sampling.temperature == 0 else [row]
        yield from self.shares(spec, found, common)

    def judged(self, row: Row, spec: MethodSpec, fed: Tensor, engine: LosslessEngine) -> Iterator[Row]:
        """The row if its texts are dense decoding's, a failed one otherwise; rows of how many are.

        In fp32 the one-row steps of the dense method are the path. Elsewhere it is dense passes of as many rows, and
        what the one-row steps said is compared beside: near-ties may fall either way there, nothing else may.
        """
        case, exact = self.case, self.exact
        if self.said is None:
            raise ValueError("no dense method ran, so nothing says what the texts must be")
        path = self.said
        if not exact:
            self.on_step(f"texts by {spec.draft_length or 0} + 1 rows")
            self.restart()
            path = decode_by_rows(engine.engine, case.tokens)
        found = partings(path, fed)
        gaps = [gap(self.decoder, self.prompt, path, one) for one in found]
        wrong = [(one, by) for one, by in zip(found, gaps, strict=True) if exact or by > largest_tie(case.torch_dtype)]
        if wrong:
            one, by = wrong[0]
            reason = (
                f"{len(wrong)} of {case.batch} texts are not dense decoding's: sequence {one.sequence} has "
                f"{one.other} for {one.dense} after {one.token} tokens, which dense decoding told apart by {by:.1e} "
                "of its logits' size"
            )
            yield self.row(spec, status="failed", reason=reason)
        else:
            yield row
        common = {"stage": "text", "status": "ok", "step": case.tokens, "n_samples": case.batch, "launch": row.launch}
        yield self.row(spec, **common, metric="equal_tokens", value=digits(1 - len(found) / case.batch))
        if found:
            first = min(one.token for one in found)
            yield self.row(spec, **common, metric="first_divergence", value=first)
            yield self.row(spec, **common, metric="divergence_gap", value=digits(max(gaps)))
        if not exact:
            apart = len(partings(self.said, fed)) / case.batch
            yield self.row(spec, **common, metric="equal_tokens_one_row", value=digits(1 - apart))

    def shares(self, spec: MethodSpec, found: Acceptances, common: dict[str, Any]) -> Iterator[Row]:
        """A row for each number of accepted drafts: the share of rounds that had it."""
        for accepted, rounds in enumerate(found.histogram):
            yield self.row(
                spec, **common, stage="text", metric=ACCEPTANCE, step=accepted, value=digits(rounds / found.rounds),
                n_samples=found.rounds, status="ok",
            )  # fmt: skip


def outcome(states: list[ClockState]) -> dict[str, Any]:
    """Status and clocks of a row that was timed between these readings."""
    clocks = worst(states)
    status = "throttled" if clocks.throttle_reasons else "ok"
    return asdict(clocks) | {"status": status, "reason": clocks.throttle_reasons}


def timed(run: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Microseconds by the wall clock, and what came out."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    out = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1e6, out


def run_case(
    case: LosslessCase,
    specs: Sequence[MethodSpec],
    bench: DecodeBench,
    loader: Loader,
    on_step: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Decode with every method of `specs`, dense ones first; a method that fails costs its own rows alone."""
    run = LosslessRun(case, specs, bench, on_step)
    dense_first = sorted(specs, key=lambda spec: not get_method(spec.name).is_dense)
    rows = run_methods(run, dense_first, bench.device, loader)
    return with_speedups(rows, step_us)
