"""Timing rounds on random weights, their acceptance replayed: the decode suite's run of a case with one method more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...kernels import Traffic
from ...profiling.ceilings import Ceilings
from ...profiling.clocks import ClockReader
from ...profiling.energy import EnergyCounter
from ..core.bench import clock_columns
from ..core.failure import CheckFailed
from ..core.rows import Row, digits
from ..core.spec import MethodSpec, resa_here
from ..decode.run import CaseRun
from ..engine.bind import Bound, can_capture, layers_of
from ..engine.checks import MODEL_TOLERANCE, check_attention, check_rectified, relative_distance
from ..engine.costs import dense_attention, weight_traffic
from ..engine.loader import release
from ..engine.measure import Timing, time_decoding
from .cases import ReplayCase
from .method import NAME
from .replay import REPLAYED, ReplayedEngine

ROUNDS = 16  # of a period; the context is set back between periods, so that all end near it


@dataclass(frozen=True, slots=True)
class RoundCosts:
    """What a round moves and multiplies, by the token that it yields."""

    draft: Traffic  # one sparse step
    verification: Traffic  # one dense pass of m + 1 rows a sequence
    drafts: int
    yielded: float  # tokens a round, of each sequence

    def floor_us(self, ceilings: Ceilings) -> float:
        """Microseconds a token."""
        step, dense = (ceilings.floor_us(x.bytes, x.flops) for x in (self.draft, self.verification))
        return (self.drafts * step + dense) / self.yielded

    @property
    def bytes(self) -> int:
        """A token."""
        return int((self.drafts * self.draft.bytes + self.verification.bytes) / self.yielded)

    @property
    def flops(self) -> int:
        """A token."""
        return int((self.drafts * self.draft.flops + self.verification.flops) / self.yielded)


def verification(case: ReplayCase, drafts: int) -> Traffic:
    """Every weight once for m + 1 rows a sequence, head included, and dense attention of them in all layers."""
    rows, dense = drafts + 1, dense_attention(case)
    layers = case.config.layers
    return weight_traffic(case, case.batch * rows) + Traffic(layers * dense.bytes, layers * dense.flops * rows)


def by_token(timing: Timing, yielded: float) -> Timing:
    """Times of rounds as times of the tokens that they yield."""
    return Timing(
        token_us=[us / yielded for us in timing.token_us],
        wall_us=timing.wall_us / yielded,
        period_us=[us / yielded for us in timing.period_us],
        joules=None if timing.joules is None else timing.joules / yielded,
        seconds=timing.seconds,
    )


@dataclass(frozen=True, slots=True)
class Rounds:
    """Lossless decoding bound to a case.

    Attributes:
        bound: its `step` is a round.
        length: where a period begins; room: tokens that it may take.
    """

    bound: Bound
    engine: ReplayedEngine
    length: int
    room: int


class ReplayRun(CaseRun):
    """One case in hand. Dense methods are measured as the decode suite does."""

    case: ReplayCase

    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        """Rows of one method: of lossless decoding, times by the token, and what was replayed."""
        if spec.name != NAME:
            yield from super().measure(spec)
            return
        case, bench, device = self.case, self.bench, self.bench.device
        cuda = device.type == "cuda"
        acceptance = case.acceptance(spec)
        self.on_step(f"check {spec.label}")
        rounds = self.bind_rounds(spec)
        bound, engine = rounds.bound, rounds.engine
        if cuda:
            release(device)
            torch.cuda.reset_peak_memory_stats(device)

        def restart() -> None:
            self.state.start(rounds.length, self.place.pending)
            engine.start(rounds.room)

        self.on_step(f"time {spec.label}")
        reader = ClockReader(device)
        restart()
        time_decoding(bound.step, None, ROUNDS, device, periods=1)  # warm-up
        states = [reader.read()]
        timing = time_decoding(
            bound.step, None, ROUNDS, device, restart=restart, periods=bench.plan.periods, seconds=bench.plan.seconds,
            energy=EnergyCounter(device),
        )  # fmt: skip
        states.append(reader.read())
        yielded = 1 + acceptance.mean
        self.state.lengths.fill_(case.context)
        attention = sum((layer.traffic()["total"] for layer in bound.engine.layers), Traffic(0))
        weights = replace(weight_traffic(case, case.batch), bytes=self.decoder.weight_bytes)
        costs = RoundCosts(weights + attention, verification(case, engine.drafts), engine.drafts, yielded)
        replayed = {"accepted_length": digits(acceptance.mean), "selection_pattern": "replayed"}
        total = self.total(
            bound, by_token(timing, yielded), costs, clock_columns(states), bound.launch, **replayed,
            peak_memory_bytes=torch.cuda.max_memory_allocated(device) if cuda else None,
        )  # fmt: skip
        reason = "; ".join(filter(None, (acceptance.source, total.reason)))
        yield replace(total, reason=reason, p50_us=None, p99_us=None)  # a round's tokens come together
        for accepted, share in enumerate(acceptance.shares):
            yield self.row(
                spec, **replayed, stage="text", metric=REPLAYED, step=accepted, value=digits(share), status="ok",
                reason=acceptance.source,
            )  # fmt: skip

    def bind_rounds(self, spec: MethodSpec) -> Rounds:
        """The method bound, checked and captured.

        Raises:
            CheckFailed: attention of a draft or a verification is wrong, or the graph advances otherwise.
            ValueError: the context is shorter than a period, or the case has no acceptance for the method.
        """
        case, device, state = self.case, self.bench.device, self.state
        acceptance = case.acceptance(spec)
        drafts = acceptance.drafts
        room = ROUNDS * (drafts + 1)
        length = case.context - room - (drafts + 1)
        if length < 1:
            raise ValueError(
                f"draft length {drafts}: {ROUNDS} rounds take {room + drafts + 1} tokens, more than the context of "
                f"{case.context}; take fewer drafts or a longer context"
            )
        self.place.before(0)
        layers = layers_of(self.decoder, state, spec, resa_here(device))
        engine = ReplayedEngine(
            self.decoder, state, layers, drafts=drafts, room=room, sampling=case.sampling, acceptance=acceptance,
            seed=case.seed,
        )  # fmt: skip
        self.place.before(1)
        check = check_attention(engine.engine, {0, case.config.layers - 1})
        self.place.after(drafts + 1)
        check_rectified(engine.engine, None)
        step: Callable[[], object] = engine.round
        graph = can_capture(engine.engine, device)
        if graph:
            state.start(length, self.place.pending)
            step = engine.engine.capture(engine.round)
        bound = Bound(spec, engine.engine, check, step, None, "graph" if graph else "eager")
        rounds = Rounds(bound, engine, length, room)
        if graph:
            self.check_rounds(rounds, step)
        return rounds

    def check_rounds(self, rounds: Rounds, replay: Callable[[], object]) -> None:
        """A round eagerly, then replayed over poisoned keys: it must advance as far, and verify the first row alike.

        (Later rows are drafts, which random weights choose by differences smaller than a rounding.)

        Raises:
            CheckFailed: it does not.
        """
        engine, length = rounds.engine, rounds.length
        cache = engine.engine.layers[-1].cache
        seen: list[tuple[list[int], Tensor]] = []
        for run in (engine.round, replay):
            engine.rewind()
            self.state.start(length, self.place.pending)
            engine.start(rounds.room)
            cache.k[:, :, length] = 0.0
            cache.v[:, :, length] = 0.0
            run()
            written = torch.stack([data[:, :, length] for data in (cache.k, cache.v)])
            seen.append((engine.counts.tolist(), written))
        (advance, eager), (replayed, graph) = seen
        distance = relative_distance(graph, eager)
        if advance != replayed or not distance <= MODEL_TOLERANCE[graph.dtype]:
            raise CheckFailed(
                f"the graph's round advances by {replayed} tokens, an eager one by {advance}; the keys and values that "
                f"it verifies first are off by {distance:.1e}"
            )
