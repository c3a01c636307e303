"""Acceptance measured on a real model, replayed where the weights are random and a draft says nothing.

Rounds run for real: m sparse steps, a dense pass of m + 1 rows, the comparison, roll-back. Only the number of drafts
that stand is taken from a list instead, drawn once from the measured shares; what a round costs hardly depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels import SparseConfig
from ..core.rows import Row, read_rows
from ..engine.rounds import LosslessEngine, Verdict
from ..micro.cases import MethodSpec

ACCEPTANCE = "acceptance"  # the metric of a measured share; `step` is the number of accepted drafts
REPLAYED = "replayed_acceptance"  # of one that was not measured but replayed
ROUNDS = 256  # drawn; then they repeat


@dataclass(frozen=True, slots=True)
class Acceptance:
    """In `shares[a]` of all rounds, a of the m drafts stood: of these settings, on this model.

    Attributes:
        source: where it was measured, in words.
    """

    block_size: int
    active_ratio: float
    shares: tuple[float, ...]
    source: str

    @property
    def drafts(self) -> int:
        return len(self.shares) - 1

    @property
    def mean(self) -> float:
        """Drafts accepted a round."""
        return sum(a * share for a, share in enumerate(self.shares))

    def fits(self, spec: MethodSpec) -> bool:
        config = spec.config
        wanted = (spec.draft_length, config.block_size, config.active_ratio)
        return wanted == (self.drafts, self.block_size, self.active_ratio)

    def draws(self, rounds: int, batch: int, seed: int) -> Tensor:
        """Accepted drafts of every round, int64 `[rounds, B]`: the shares as exactly as rounds allow, in any order."""
        places = (torch.arange(rounds, dtype=torch.float64) + 0.5) / rounds
        edges = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)
        drawn = torch.searchsorted(edges / edges[-1], places)
        generator = torch.Generator().manual_seed(seed)
        return torch.stack([drawn[torch.randperm(rounds, generator=generator)] for _ in range(batch)], dim=1)


class ReplayedEngine(LosslessEngine):
    """A lossless engine whose rounds accept what was measured elsewhere; its text is nobody's."""

    def __init__(self, *args: Any, acceptance: Acceptance, seed: int = 0, **options: Any) -> None:
        """
        Raises:
            ValueError: the acceptance is of another draft length; or as `LosslessEngine`.
        """
        super().__init__(*args, **options)
        if acceptance.drafts != self.drafts:
            raise ValueError(f"acceptance: of {acceptance.drafts} drafts a round, the engine drafts {self.drafts}")
        device = self.state.lengths.device
        self._draws = acceptance.draws(ROUNDS, self.state.batch, seed).to(device)
        self._turn = torch.zeros(1, dtype=torch.int64, device=device)

    def rewind(self) -> None:
        """Accept from the first number on again."""
        self._turn.zero_()

    def _judge(self, drafts: Tensor, logits: Tensor) -> Verdict:
        """The comparison is made, so that its time is in; its result gives way to the list's."""
        found = super()._judge(drafts, logits)
        accepted = self._draws.index_select(0, self._turn.remainder(len(self._draws)))[0]
        self._turn.add_(1)
        return Verdict(accepted, found.following)


def read_acceptances(path: Path, specs: Sequence[MethodSpec], ending: str = "") -> tuple[Acceptance, ...]:
    """What a result file holds for these settings.

    Args:
        specs: lossless ones; a row fits with the same draft length, block size and active ratio.
        ending: of the case's name, which tells a sampling; empty for greedy decoding.

    Raises:
        FileNotFoundError, ValueError: no such file; no row that fits one of the specs (those that are there are named).
    """
    rows = [
        r for r in read_rows(path)
        if r.suite == "lossless" and r.metric == ACCEPTANCE and r.status == "ok" and _sampling(r.case) == ending
    ]  # fmt: skip
    found = []
    for spec in specs:
        config = spec.config
        wanted = (spec.draft_length, config.block_size, config.active_ratio)
        mine = [r for r in rows if (r.draft_length, r.block_size, r.active_ratio) == wanted]
        if not mine:
            held = sorted({f"m {r.draft_length} b {r.block_size} r {r.active_ratio:g}" for r in rows})
            raise ValueError(
                f"--replay {path}: no {'sampled' if ending else 'greedy'} acceptance of m {spec.draft_length} "
                f"b {config.block_size} r {config.active_ratio:g}; it holds {', '.join(held) or 'none'}. "
                "`resa-bench lossless` on a real model measures it"
            )
        longest = max(mine, key=lambda r: r.context)
        found.append(
            _acceptance(path, [r for r in mine if (r.case, r.min_blocks) == (longest.case, longest.min_blocks)])
        )
    return tuple(found)


def _sampling(case: str) -> str:
    """`-t0.6-p0.95` of a case's name, or nothing."""
    at = case.rfind("-t")
    return case[at:] if at >= 0 and "-p" in case[at:] else ""


def _acceptance(path: Path, rows: Sequence[Row]) -> Acceptance:
    first = rows[0]
    assert first.block_size is not None
    assert first.active_ratio is not None
    assert first.draft_length is not None
    shares = [0.0] * (first.draft_length + 1)
    for row in rows:
        shares[row.step or 0] = row.value or 0.0
    config = SparseConfig(
        block_size=first.block_size, active_ratio=first.active_ratio, min_blocks=first.min_blocks or 1
    )
    read = config.selected(first.context) / config.blocks(first.context)
    mean = sum(a * share for a, share in enumerate(shares))
    source = (
        f"acceptance replayed from {path.name}: {first.model} at {first.context} tokens, where steps read {read:.0%} "
        f"of the blocks, accepted {mean:.2f} of {first.draft_length} drafts"
    )
    return Acceptance(first.block_size, first.active_ratio, tuple(shares), source)
