"""Rows of a case whose model another program decodes too: the engine's first, then the client's on the same caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from ...kernels import Layer, StepTensors
from ..core.bench import Bench, Conditions, Report
from ..core.failure import CheckFailed, failure
from ..core.rows import Row
from ..core.spec import MethodSpec, dense_here, make_spec
from ..engine.bind import Bound
from ..engine.checks import relative_distance
from ..engine.client import ENGINE, Contender, load_client
from ..engine.gate import Check, check_attended
from ..engine.loader import Loader, release
from ..engine.measure import EAGER_STEPS, time_decoding, time_period
from ..engine.sound import Watch, check_logits
from . import run
from .cases import DecodeCase
from .run import CaseRun

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest ||logits - engine's|| / ||engine's|| where both read everything: a client rounds at other places."""


class ClientRun(CaseRun):
    """A case in hand, and the client that decodes it beside the engine."""

    bound: Bound

    def prepare(self, loader: Loader) -> None:
        """As the engine does, in tensors that torch.compile's graphs take."""
        with torch.inference_mode(False), torch.no_grad():
            super().prepare(loader)

    def contend(self, spec: MethodSpec) -> Bound:
        """As the engine does; the client is compared with what was bound last."""
        self.bound = super().contend(spec)
        return self.bound

    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        """The engine's rows of a method, then one a launch of the client's."""
        with torch.inference_mode(False), torch.no_grad():
            yield from self.rows_of(spec)

    def rows_of(self, spec: MethodSpec) -> Iterator[Row]:
        """As `measure`, in tensors that torch.compile's graphs take."""
        client = load_client(self.case.client)
        if spec.name in client.METHODS:
            self.bound = self.dense
        else:
            yield from super().measure(spec)
        for launch, make in client.contenders(self.decoder, self.state, spec):
            if launch == "eager" and self.bench.device.type == "cuda" and not self.bench.plan.eager:
                continue
            try:
                yield self.client_row(spec, launch, make)
            except Exception as error:
                columns = {"client": self.case.client, "launch": launch, "cache_state": "cold"}
                yield self.row(spec, **(failure(error) | columns))
            release(self.bench.device)

    def client_row(self, spec: MethodSpec, launch: str, make: Callable[[], Contender]) -> Row:
        """The row of one contender, checked against the engine. Raises CheckFailed."""
        device, case = self.bench.device, self.case
        cuda = device.type == "cuda"
        self.on_step(f"{case.client} {spec.label}, {launch}")
        check = self.check(spec, launch)
        contender = make()
        tokens = EAGER_STEPS if cuda and launch == "eager" else spec.period
        check = check.worst(self.check_step(spec, contender))
        if cuda:
            release(device)
            torch.cuda.reset_peak_memory_stats(device)
        rectify = None if tokens < spec.period else contender.rectify

        def restart() -> None:
            contender.stand(self.before(tokens), self.place.pending)

        watch = Watch(device)
        restart()
        time_period(lambda: watch.look(contender.step()), rectify, tokens, device)  # compiles, captures
        watch.check()
        with Conditions(device) as conditions:
            timing = time_decoding(
                contender.step, rectify, tokens, device,
                restart=restart, periods=self.bench.plan.periods, seconds=0.0 if tokens < spec.period else self.seconds,
            )  # fmt: skip
            if rectify is None and contender.rectify is not None:
                timing.apart_us = self.rectification_us(contender, spec)
        work = self.work(self.bound)
        bound = replace(self.bound, spec=spec, check=check)
        peak = torch.cuda.max_memory_allocated(device) if cuda else None
        clocks = conditions.columns()
        return self.total(bound, timing, work, clocks, launch, client=case.client, peak_memory_bytes=peak)

    @property
    def seconds(self) -> float:
        """To decode at least; a text is decoded for its periods alone, as the engine does."""
        return 0.0 if self.place.ahead else self.bench.plan.seconds

    def before(self, steps: int) -> int:
        """Tokens that the caches hold where so many steps follow."""
        length = self.place.length
        assert isinstance(length, int), "ragged batches are the engine's alone"
        return length if self.place.ahead else length - steps

    def rectification_us(self, contender: Contender, spec: MethodSpec) -> float:
        """A token's share of one rectification, timed apart."""
        assert contender.rectify is not None
        contender.stand(self.before(spec.period), self.place.pending)
        for _ in range(spec.period):
            contender.step()
        _, wall_us = time_period(contender.rectify, None, 1, self.bench.device)
        return wall_us / spec.period

    @cached_property
    def dense(self) -> Bound:
        """The engine's dense method."""
        return super().contend(make_spec(dense_here(self.bench.device)))

    def engine_logits(self, bound: Bound) -> Tensor:
        """Of the engine's next step, from the caches as they are now."""
        self.place.before(1)
        bound.engine.step()
        return bound.engine.logits

    def contender(self, spec: MethodSpec, launch: str) -> Contender:
        """One of the client's, at a launch."""
        return dict(load_client(self.case.client).contenders(self.decoder, self.state, spec))[launch]()

    def logits(self, contender: Contender) -> Tensor:
        """Of its next step. Raises CheckFailed where they are not finite, or all alike."""
        contender.stand(self.before(1), self.place.pending)
        logits = contender.step()
        check_logits(logits)
        return logits

    def check(self, spec: MethodSpec, launch: str) -> Check:
        """What is the same at all settings, and a sparse method's attention. Raises CheckFailed.

        In 16 bits a client rounds at other places than the engine, and so other blocks are chosen: on random weights
        the logits of two right steps are far apart. So the model around the attention is compared where every block
        is read, and the attention, as it is set, with fp64.
        """
        if spec.is_dense:
            return Check()
        config = replace(spec.config, active_ratio=1.0, budget_tokens=None)
        self.compare(
            "every block read: ", self.logits(self.contender(replace(spec, config=config), launch)), self.dense
        )
        check, watched = Check(), self.contender(spec, "eager")
        layers = {0, spec.dense_layers or 0, self.case.config.layers - 1}

        def observe(i: int, layer: Layer, cells: StepTensors) -> None:
            nonlocal check
            if i in layers:
                check = check.worst(check_attended(layer, cells, f" of layer {i}"))

        watched.watch(observe)
        self.logits(watched)
        return check

    def check_step(self, spec: MethodSpec, contender: Contender) -> Check:
        """The contender's own step: its logits beside the engine's, where rounding does not move them apart."""
        logits = self.logits(contender)
        if spec.is_dense:
            return self.compare("", logits, self.dense)
        if self.case.torch_dtype == torch.float32:
            return self.compare("", logits, self.bound)
        return Check()

    def compare(self, what: str, logits: Tensor, bound: Bound) -> Check:
        """How far logits are off the engine's. Raises CheckFailed."""
        error = relative_distance(logits, self.engine_logits(bound))
        if not error <= (most := TOLERANCE[self.case.torch_dtype]):
            raise CheckFailed(
                f"{self.case.client}: {what}logits are {error:.2g} of their norm off the engine's, over {most:g}"
            )
        return Check(error, error / most)


def run_case(
    case: DecodeCase, specs: Sequence[MethodSpec], bench: Bench, on_step: Report = lambda _: None
) -> list[Row]:
    """Rows of one case: the engine's, and its client's where it has one."""
    if case.client != ENGINE:
        load_client(case.client)
    return run.run_case(case, specs, bench, on_step, CaseRun if case.client == ENGINE else ClientRun)
