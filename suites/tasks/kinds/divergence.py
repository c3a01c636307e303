"""Divergence: every method goes on from stretches of text freely, until it leaves what dense decoding says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.flags import K
from ...core.spec import MethodSpec
from ...engine.engine import State
from ...model.decoder import Decoder
from ...model.tokenizer import Tokenizer
from ..cases import TaskCase
from ..contender import Contender, decoded_in_chunks
from ..divergence import CommonNoise, agreeing, survival
from ..registry import Scale, TaskKind, register_task
from ..task import Columns, Task
from ..text import stretches

CHUNK = 32  # rows of the other numeric path, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceCase(TaskCase):
    """Stretches of text that every method goes on from freely for `steps` tokens.

    Attributes:
        together: stretches in a batch.
        temperature: 0 is greedy; above it tokens are sampled with noise that all methods share.
    """

    task: ClassVar[str] = "divergence"

    steps: int = 128
    together: int = 8
    temperature: float = 0.0

    def __post_init__(self) -> None:
        TaskCase.__post_init__(self)
        if not self.temperature >= 0:
            raise ValueError(f"temperature: got {self.temperature}, must be 0 (greedy) or more")

    @property
    def batch(self) -> int:
        return self.together

    @property
    def room(self) -> int:
        return self.steps

    @property
    def words(self) -> tuple[str, ...]:
        sampled = (f"t{self.temperature:g}",) if self.temperature else ()
        return (str(self.steps), f"{self.together}x{self.groups}", *sampled)


class Divergence(Task):
    """Greedy (or sampled, with common noise) decoding; how long each method says what dense says."""

    def __init__(self, case: DivergenceCase, tokenizer: Tokenizer, decoder: Decoder) -> None:
        super().__init__(case, tokenizer, decoder)
        self.case = case
        self._texts = stretches(tokenizer, case.groups * case.batch, case.prompt)
        self._reference: Tensor | None = None

    def prompts(self, group: int) -> Tensor:
        return torch.tensor(self._texts[group * self.case.batch :][: self.case.batch])

    def begin(self, group: int, logits: Tensor) -> None:
        self._first, self._reference = logits.argmax(-1), None

    def noise(self, group: int) -> CommonNoise:
        case, decoder = self.case, self.decoder
        seed = case.seed * 1009 + group
        return CommonNoise(case.batch, decoder.config.vocab, case.temperature, seed, decoder.device)

    def measure(self, contender: Contender, group: int) -> Tensor:
        """Tokens until it leaves dense decoding, int64 `[R]`; dense says what the others are held to."""
        contender.start(self._first)
        decoded = contender.say(self.case.steps, self._reference)
        if self._reference is None:
            self._reference = decoded
        return agreeing(decoded, self._reference).cpu()

    def in_chunks(self, state: State, spec: MethodSpec, group: int) -> Tensor:
        """The same of dense decoding through rectification's kernels: what rounding alone does."""
        assert self._reference is not None
        fed = torch.cat((self._first[:, None], self._reference[:, :-1]), 1)
        rows = math.gcd(self.case.steps, CHUNK)
        decoded = decoded_in_chunks(self.decoder, state, spec, self.case.prompt, fed, rows, self.noise(group))
        return agreeing(decoded, self._reference).cpu()

    def rows(self, results: Sequence[Tensor], dense: Sequence[Tensor]) -> Iterator[Columns]:
        yield from self.lengths_rows(results)

    def lengths_rows(self, results: Sequence[Tensor]) -> Iterator[Columns]:
        """Mean and median of the lengths `[R]` of each batch, and the survival curve."""
        lengths, steps = torch.cat(list(results)), self.case.steps
        common = {"step": steps, "n_samples": len(lengths)}
        yield {"metric": "divergence", "value": float(lengths.double().mean()), **common}
        yield {"metric": "divergence_median", "value": float(lengths.double().quantile(0.5)), **common}
        for step, share in survival(lengths, steps):
            yield {"metric": "survival", "value": share, "n_samples": len(lengths), "step": step}


register_task(
    TaskKind(
        name=DivergenceCase.task,
        title="tokens until the first that dense decoding does not say",
        case=DivergenceCase,
        task=Divergence,
        scales={
            "quick": Scale((512,), {"steps": 48, "together": 4}),
            "default": Scale((2 * K,), {"steps": 128, "together": 8}),
            "gpu": Scale((2 * K,), {"steps": 128, "together": 32}),
            "full": Scale((4 * K,), {"steps": 512, "together": 16, "groups": 4}),
        },
    )
)
