"""Timing rounds on random weights, their acceptance replayed: the decode suite's run of a case with one method more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...kernels import Traffic
from ...profiling.energy import EnergyCounter
from ..core.bench import Conditions
from ..core.failure import CheckFailed
from ..core.rows import Row, digits
from ..core.spec import MethodSpec, resa_here
from ..core.work import NOTHING, Work
from ..decode.run import CaseRun
from ..engine.bind import Bound, can_capture, layers_of
from ..engine.checks import MODEL_TOLERANCE, check_attention, check_rectified, relative_distance
from ..engine.costs import dense_attention, weight_traffic
from ..engine.loader import release
from ..engine.measure import Timing, time_decoding
from ..engine.sound import check_logits
from .cases import ReplayCase
from .method import NAME
from .replay import REPLAYED, ReplayedEngine

ROUNDS = 16  # of a period; the context is set back between periods, so that all end near it


def round_costs(step: Traffic, verified: Traffic, drafts: int, yielded: float) -> Work:
    """What a token takes where a round of sparse steps and one dense pass yields so many of each sequence."""

    def share(traffic: Traffic, times: float) -> Traffic:
        return Traffic(int(traffic.bytes * times / yielded), int(traffic.flops * times / yielded))

    return Work(share(step, drafts), share(verified, 1))


def verification(case: ReplayCase, drafts: int) -> Traffic:
    """Every weight once for m + 1 rows a sequence, head included, and dense attention of them in all layers."""
    rows, dense = drafts + 1, dense_attention(case)
    layers = case.config.layers
    return weight_traffic(case, case.batch * rows) + Traffic(layers * dense.bytes, layers * dense.flops * rows)


def by_token(timing: Timing, yielded: float) -> Timing:
    """Times of rounds as times of the tokens that they yield."""
    joules = None if timing.joules is None else timing.joules / yielded
    tokens, periods = ([us / yielded for us in values] for values in (timing.token_us, timing.period_us))
    return replace(timing, token_us=tokens, period_us=periods, wall_us=timing.wall_us / yielded, joules=joules)


class ReplayRun(CaseRun):
    """One case in hand. Dense methods are measured as the decode suite does."""

    case: ReplayCase

    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        """Rows of one method: of lossless decoding, times by the token, and what was replayed."""
        if spec.name != NAME:
            yield from super().measure(spec)
            return
        case, bench, device = self.case, self.bench, self.device
        cuda = device.type == "cuda"
        acceptance = case.acceptance(spec)
        self.on_step(f"check {spec.label}")
        bound, engine = self.bind_rounds(spec)
        if cuda:
            release(device)
            torch.cuda.reset_peak_memory_stats(device)
        self.on_step(f"time {spec.label}")
        self.begin(engine)
        time_decoding(bound.step, None, ROUNDS, device, periods=1, ranks=bench.ranks)  # warm-up
        with Conditions(device) as conditions:
            timing = time_decoding(
                bound.step, None, ROUNDS, device, restart=lambda: self.begin(engine), periods=bench.plan.periods,
                seconds=bench.plan.seconds, energy=EnergyCounter(device), ranks=bench.ranks,
            )  # fmt: skip
        check_logits(bound.engine.logits)
        yielded = 1 + acceptance.mean
        self.state.lengths.fill_(case.context)
        attention = sum((layer.traffic()["total"] for layer in bound.engine.layers), NOTHING)
        weights = replace(weight_traffic(case, case.batch), bytes=self.decoder.weight_bytes)
        work = round_costs(weights + attention, verification(case, engine.drafts), engine.drafts, yielded)
        replayed = {"accepted_length": digits(acceptance.mean), "selection_pattern": "replayed"}
        total = self.total(
            bound, by_token(timing, yielded), work, conditions.columns(), bound.launch, **replayed,
            peak_memory_bytes=torch.cuda.max_memory_allocated(device) if cuda else None,
        )  # fmt: skip
        reason = "; ".join(filter(None, (acceptance.source, total.reason)))
        yield replace(total, reason=reason, p50_us=None, p99_us=None)  # a round's tokens come together
        for accepted, share in enumerate(acceptance.shares):
            yield self.row(
                spec, **replayed, stage="text", metric=REPLAYED, step=accepted, value=digits(share), status="ok",
                reason=acceptance.source,
            )  # fmt: skip

    def first_length(self, engine: ReplayedEngine) -> int:
        """Tokens where a period of rounds begins, so that all that they may take ends at the case's context.

        Raises:
            ValueError: the context is shorter than that.
        """
        taken, context = engine.room + engine.drafts + 1, self.case.context
        if context <= taken:
            raise ValueError(
                f"draft length {engine.drafts}: {ROUNDS} rounds take {taken} tokens, more than the context of "
                f"{context}; take fewer drafts or a longer context"
            )
        return context - taken

    def begin(self, engine: ReplayedEngine) -> None:
        """Stand where a period of rounds begins."""
        self.state.start(self.first_length(engine), self.place.pending)
        engine.start(engine.room)

    def bind_rounds(self, spec: MethodSpec) -> tuple[Bound, ReplayedEngine]:
        """The method bound, checked and captured; a step of it is a round.

        Raises:
            CheckFailed: attention of a draft or a verification is wrong, or the graph advances otherwise.
            ValueError: the context is shorter than a period, or the case has no acceptance for the method.
        """
        case, device = self.case, self.device
        acceptance = case.acceptance(spec)
        rows = acceptance.drafts + 1
        self.place.before(0)
        layers = layers_of(self.decoder, self.state, spec, resa_here(device))
        self.row.took(spec, layers)
        engine = ReplayedEngine(
            self.decoder, self.state, layers, drafts=acceptance.drafts, room=ROUNDS * rows, sampling=case.sampling,
            acceptance=acceptance, seed=case.seed,
        )  # fmt: skip
        length = self.first_length(engine)
        self.place.before(1)
        check = check_attention(engine.engine, {0, case.config.layers - 1})
        self.place.after(rows)
        check_rectified(engine.engine, None)
        if not can_capture(engine.engine, device):
            return Bound(spec, engine.engine, check, engine.round, None, "eager"), engine
        self.state.start(length, self.place.pending)  # before the first start a round changes nothing that stands
        replay = engine.engine.capture(engine.round)
        self.check_rounds(engine, replay)
        return Bound(spec, engine.engine, check, replay, None, "graph"), engine

    def check_rounds(self, engine: ReplayedEngine, replay: Callable[[], object]) -> None:
        """A round eagerly, then replayed over poisoned keys: it must advance as far, and verify the first row alike.

        (Later rows are drafts, which random weights choose by differences smaller than a rounding.)

        Raises:
            CheckFailed: it does not.
        """
        cache, first = engine.engine.layers[-1].cache, self.first_length(engine)
        seen: list[tuple[list[int], Tensor]] = []
        for run in (engine.round, replay):
            engine.rewind()
            self.begin(engine)
            for data in (cache.k, cache.v):
                data[:, :, first] = 0.0
            run()
            written = torch.stack([data[:, :, first] for data in (cache.k, cache.v)])
            seen.append((engine.counts.tolist(), written))
        (advance, eager), (replayed, graph) = seen
        distance = relative_distance(graph, eager)
        if advance != replayed or not distance <= MODEL_TOLERANCE[graph.dtype]:
            raise CheckFailed(
                f"the graph's round advances by {replayed} tokens, an eager one by {advance}; the keys and values that "
                f"it verifies first are off by {distance:.1e}"
            )
