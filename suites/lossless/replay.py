"""Acceptance measured on a real model, replayed where the weights are random and a draft says nothing.

Rounds run for real: m sparse steps, a dense pass of m + 1 rows, the comparison, roll-back. Only the number of drafts
that stand is taken from a list instead, drawn once from the measured shares; what a round costs hardly depends on it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.results import read_rows
from ..core.rows import Row
from ..core.spec import MethodSpec, Names, Variant
from ..engine.rounds import LosslessEngine, Verdict

ACCEPTANCE = "acceptance"  # the metric of a measured share; `step` is the number of accepted drafts
REPLAYED = "replayed_acceptance"  # of one that was not measured but replayed
ROUNDS = 256  # drawn; then they repeat


@dataclass(frozen=True, slots=True)
class Acceptance:
    """In `shares[a]` of all rounds, a of the m drafts stood: of this variant, on one model.

    Attributes:
        variant: lossless decoding with every setting that changes which blocks drafts read, and how many they are.
        source: where it was measured, in words.
    """

    variant: Variant
    shares: tuple[float, ...]
    source: str

    @property
    def drafts(self) -> int:
        """m."""
        return len(self.shares) - 1

    @property
    def mean(self) -> float:
        """Drafts accepted a round."""
        return mean_accepted(self.shares)

    def draws(self, rounds: int, batch: int, seed: int) -> Tensor:
        """Accepted drafts of every round, int64 `[rounds, B]`: the shares as exactly as rounds allow, in any order."""
        places = (torch.arange(rounds, dtype=torch.float64) + 0.5) / rounds
        edges = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)
        drawn = torch.searchsorted(edges / edges[-1], places)
        generator = torch.Generator().manual_seed(seed)
        return torch.stack([drawn[torch.randperm(rounds, generator=generator)] for _ in range(batch)], dim=1)


def mean_accepted(shares: Sequence[float]) -> float:
    """Drafts accepted a round, of shares of rounds by accepted drafts."""
    return sum(a * share for a, share in enumerate(shares))


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
        verdict = super()._judge(drafts, logits)
        accepted = self._draws.index_select(0, self._turn.remainder(len(self._draws)))[0]
        self._turn.add_(1)
        return Verdict(accepted, verdict.following)


def read_acceptances(path: Path, specs: Sequence[MethodSpec], sampling: str = "") -> tuple[Acceptance, ...]:
    """What a result file holds for these settings; of several cases, the longest.

    Args:
        specs: lossless ones; a row fits where its variant is the same.
        sampling: the word of it in the case's name; empty for greedy decoding.

    Raises:
        FileNotFoundError, ValueError: no such file; no row that fits one of the specs (those that are there are named).
    """
    rows = [
        r for r in read_rows(path)
        if r.suite == "lossless" and r.metric == ACCEPTANCE and r.status == "ok" and sampling_word(r.case) == sampling
    ]  # fmt: skip
    acceptances = []
    for spec in specs:
        fitting = [r for r in rows if r.variant == spec.variant]
        if not fitting:
            names = Names([spec, *rows])
            held = dict.fromkeys(names[row] for row in rows)
            raise ValueError(
                f"--replay {path}: no {'sampled' if sampling else 'greedy'} acceptance of {names[spec]}; "
                f"it holds {', '.join(held) or 'none'}. `resa-bench lossless` on a real model measures it"
            )
        longest = max(fitting, key=lambda r: r.context)
        acceptances.append(_acceptance(path, spec, [r for r in fitting if r.case == longest.case]))
    return tuple(acceptances)


def sampling_word(case: str) -> str:
    """`-t0.6-p0.95` at the end of a case's name, or nothing (`Sampling.word`)."""
    match = re.search(r"-t[\d.]+(e[+-]\d+)?-p[\d.]+(e[+-]\d+)?$", case)
    return match[0] if match else ""


def _acceptance(path: Path, spec: MethodSpec, rows: Sequence[Row]) -> Acceptance:
    shares = [0.0] * ((spec.draft_length or 0) + 1)
    for row in rows:
        shares[row.step or 0] = row.value or 0.0
    first, config = rows[0], spec.config
    read = config.selected(first.context) / config.blocks(first.context)
    source = (
        f"acceptance replayed from {path.name}: {first.model} at {first.context} tokens, where steps read {read:.0%} "
        f"of the blocks, accepted {mean_accepted(shares):.2f} of {spec.draft_length} drafts"
    )
    return Acceptance(spec.variant, tuple(shares), source)
