"""The compulsory work behind a row's time: its floor, and what the time means beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...kernels import Traffic
from ...profiling.ceilings import Ceilings, Verdict
from .rows import digits

NOTHING = Traffic(0)


@dataclass(frozen=True, slots=True)
class Work:
    """Of a step, and one part in `every` of a rectification; nothing where it is not known."""

    step: Traffic
    rectification: Traffic = NOTHING
    every: int = 1

    @property
    def total(self) -> Traffic:
        """Bytes and FLOPs, rectification amortised in."""
        apart = self.rectification
        return self.step + Traffic(apart.bytes // self.every, apart.flops // self.every)

    def floor_us(self, ceilings: Ceilings) -> float:
        """The shortest time for it."""
        step, apart = (ceilings.floor_us(part.bytes, part.flops) for part in (self.step, self.rectification))
        return step + apart / self.every

    def columns(self, time_us: float, verdict: Verdict, reason: str | None) -> dict[str, Any]:
        """What a row of that time says of it; no floor where the verdict on the time is `impossible`.

        Args:
            reason: what the row says so far; the verdict's reason is added.
        """
        total = self.total
        columns = {"bytes": total.bytes, "flops": total.flops, "gbps": digits(total.bytes / time_us / 1e3)}
        if verdict.kind == "impossible":
            return columns
        floor_us = self.floor_us(verdict.ceilings)
        return columns | {
            "floor_us": digits(floor_us),
            "floor_fraction": digits(floor_us / time_us),
            "read_ceiling_gbps": round(verdict.ceilings.read_gbps, 1),
            "matrix_ceiling_tflops": digits(verdict.ceilings.matrix_tflops, 4),
            "reason": "; ".join(filter(None, (reason, verdict.reason))) or None,
        }
