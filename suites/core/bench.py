"""What a run measures with, and the columns that all its rows share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import torch

from ...kernels import AttentionShape, Layer
from ...profiling.ceilings import Ceilings
from ...profiling.clocks import ClockReader, ClockState, worst
from ...profiling.contention import Watch
from ...profiling.device import Environment
from ...profiling.timing import Timer
from .origin import library_of, source_of
from .ranks import Ranks
from .rows import Row, digits
from .spec import MethodSpec

T = TypeVar("T")
Report = Callable[[str], None]
"""Is told what is being done, for the line of progress."""


class Case(Protocol):
    """One set of inputs of a suite, on which its methods are measured. Frozen and hashable."""

    @property
    def suite(self) -> str: ...
    @property
    def slug(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def at_a_time(self) -> int | None:
        """Methods that are measured and written together; None: all, since they are compared within a run."""

    @property
    def shape(self) -> AttentionShape: ...
    @property
    def torch_dtype(self) -> torch.dtype: ...
    def columns(self) -> dict[str, Any]:
        """What a row says about its case, seed, suite and slug included."""


@dataclass(slots=True)
class Bench:
    """What a run measures with, the same for all its cases.

    Attributes:
        plan: what the suite wants to know of the run: how long to measure, what to leave out.
    """

    device: torch.device
    environment: Environment
    command: str
    plan: Any
    timer: Timer
    ceilings: Ceilings
    idle_watts: float | None = None
    ranks: Ranks = field(default_factory=Ranks)
    _held: dict[type, Any] = field(default_factory=dict)

    def held(self, kind: type[T]) -> T:
        """The object of a kind that is kept from case to case: a model in use, say. Made when it is first asked for."""
        if kind not in self._held:
            self._held[kind] = kind()
        return self._held[kind]  # type: ignore[no-any-return]


class RowMaker:
    """Makes the rows of one case: what its methods share is filled in. The only builder of rows."""

    def __init__(self, case: Case, bench: Bench, stage: str = "total") -> None:
        """`stage`: of rows that name none."""
        self.case, self.stage = case, stage
        self._ways: dict[MethodSpec, list[str]] = {}
        self.common = {
            **case.columns(),
            "read_ceiling_gbps": round(bench.ceilings.read_gbps, 1),
            "matrix_ceiling_tflops": digits(bench.ceilings.matrix_tflops, 4),
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": bench.command,
            "idle_watts": bench.idle_watts,
            **asdict(bench.environment),
        }

    def __call__(self, spec: MethodSpec, **columns: Any) -> Row:
        """A row of a method; `columns` over what it has in common with others."""
        return Row(**(self._of(spec) | {"way": self.way(spec)} | spec.columns() | columns))

    def took(self, spec: MethodSpec, layers: Sequence[Layer]) -> None:
        """Note how a method's steps run, for its rows from now on: as its last layer (the first may be dense).

        Of a method that is bound again, to fewer sequences say, and runs otherwise then, rows say both: `fused+chain`.
        """
        way, ways = layers[-1].way, self._ways.setdefault(spec, [])
        if way is not None and way not in ways:
            ways.append(way)

    def way(self, spec: MethodSpec) -> str | None:
        """How a method's steps ran, as far as `took` was told."""
        return "+".join(self._ways.get(spec, ())) or None

    def bare(self, spec: MethodSpec, **columns: Any) -> Row:
        """A row that says nothing of settings: dense decoding's own, beside which methods are judged."""
        return Row(**(self._of(spec) | columns))

    def _of(self, spec: MethodSpec) -> dict[str, Any]:
        origin = {"source": source_of(spec, self.case), "library": library_of(spec, self.case)}
        return self.common | {"method": spec.name, "stage": self.stage} | origin


class Conditions:
    """Clocks and other users of the device around a measurement: `with Conditions(device) as conditions`.

    The clocks are read when it begins and when it ends; `read` again now and then between.
    """

    def __init__(self, device: torch.device) -> None:
        self._reader, self._watch = ClockReader(device), Watch(device)
        self._states: list[ClockState] = []

    def __enter__(self) -> Conditions:
        self.read()
        return self

    def __exit__(self, *_: object) -> None:
        self.read()

    def read(self) -> None:
        """Read the clocks."""
        self._states.append(self._reader.read())

    def columns(self) -> dict[str, Any]:
        """What rows say about it: the worst of all readings, who else was there, and the status that follows."""
        clocks = worst(self._states)
        status = "throttled" if clocks.throttle_reasons else "ok"
        reasons = {"status": status, "reason": clocks.throttle_reasons, "contention": self._watch.reason()}
        return asdict(clocks) | reasons
