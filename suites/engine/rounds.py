"""Lossless decoding by sparse self-speculation: sparse steps draft, one dense pass verifies.

A round drafts m tokens: m sparse steps feed the pending token x0 and the drafts d1 .. d(m-1), which gives d1 .. dm.
One dense pass of the m+1 rows x0, d1 .. dm through rectification's kernels then overwrites their K and V and gives the
exact distribution after each row. The first a drafts are accepted; the exact token of row a, a correction or, with
a = m, a bonus, is the next pending one. Each sequence accepts as many as it does; nothing asks the device.

The state between rounds is that of an engine which has just rectified:

- K and V of the first `lengths` tokens are what dense decoding leaves; summaries are those of these keys alone. What
  lies beyond, in caches and summaries, is void, and the next round writes it before it is read.
- `pending` is exact too: the token that dense decoding would feed next.
- `history` is the tape of one round's drafting and `count` is 0: sequences advance by different numbers of tokens, so
  no count of a common history fits them all. What was fed is in `tokens` `[B, T]`, the first `counts` `[B]` of a row.

During a round `lengths` runs up to the last draft (L + m + 1) and is set back to L + a + 1. With one cache shared by
all layers K and V are the last layer's, never those of dense decoding: good for times, not for texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import Layer
from ...kernels.config import ceil_div
from ...profiling.ranges import mark
from ..model.decoder import Decoder
from .engine import Engine, State
from .sampling import Sampling, draw


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verification finds of m drafts a sequence."""

    accepted: Tensor  # int64 [B], leading drafts that stand, 0 .. m
    following: Tensor  # int64 [B], the exact token after them


def agree(drafts: Tensor, exact: Tensor) -> Verdict:
    """Greedy acceptance: drafts int64 `[B, m]` stand while they are the exact tokens int64 `[B, m + 1]`."""
    accepted = _leading(drafts == exact[:, :-1])
    return Verdict(accepted, exact.gather(1, accepted[:, None])[:, 0])


def accept(drafts: Tensor, q: Tensor, p: Tensor, generator: torch.Generator | None = None) -> Verdict:
    """The rule under which accepted drafts and the token after them are distributed as if drawn from p alone.

    Source: arXiv 2211.17192, section 2.3 and appendix A.1.

    Draft d stands with probability min(1, p(d) / q(d)). After the first that does not, a token is drawn from the
    positive part of p - q; after m that do, from the last p. A token of probability 0 under p never comes out.

    Args:
        drafts: int64 `[B, m]`, each drawn from its q.
        q: float32 `[B, m, vocab]`, the distributions of the drafts.
        p: float32 `[B, m + 1, vocab]`, the exact ones, row i after i drafts.
        generator: of the device of p; the default one otherwise.
    """
    exact_share, draft_share = (x.gather(2, drafts[:, :, None])[:, :, 0] for x in (p[:, :-1], q))  # p(d), q(d): [B, m]
    chance = torch.rand(exact_share.shape, dtype=exact_share.dtype, device=exact_share.device, generator=generator)
    accepted = _leading((chance * draft_share < exact_share) | ((exact_share >= draft_share) & (exact_share > 0)))
    last = drafts.shape[1] - 1
    wanted, given = _row(p, accepted), _row(q, accepted.clamp(max=last)) * (accepted <= last)[:, None]
    rest = (wanted - given).clamp(min=0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, wanted)  # p and q that differ by rounding alone
    return Verdict(accepted, draw(rest, generator))


def _leading(agreed: Tensor) -> Tensor:
    """True entries before the first false one of each row, int64 `[B]`."""
    return agreed.long().cumprod(1).sum(1)


def _row(x: Tensor, index: Tensor) -> Tensor:
    """Row `index[b]` of each `x[b]`: `[B, rows, vocab]` to `[B, vocab]`."""
    return x[torch.arange(len(x), device=x.device), index]


@dataclass(frozen=True, slots=True)
class Acceptances:
    """How far drafts carried: in `histogram[a]` rounds, summed over sequences, a of the m drafts were accepted.

    A sequence's last round counts in full, though its text may end before the last accepted draft.
    """

    histogram: tuple[int, ...]

    @property
    def rounds(self) -> int:
        """Of all sequences."""
        return sum(self.histogram)

    @property
    def drafted(self) -> int:
        """Drafts in all rounds."""
        return self.rounds * (len(self.histogram) - 1)

    @property
    def accepted(self) -> int:
        """Drafts that stood."""
        return sum(a * rounds for a, rounds in enumerate(self.histogram))

    @property
    def mean(self) -> float:
        """Drafts accepted a round; a round yields one token more. NaN before the first round."""
        return self.accepted / self.rounds if self.rounds else float("nan")


class LosslessEngine:
    """A decoder bound to a rectifying sparse method on a state, drafting m tokens a round and verifying them.

    `generate` does everything; `start` and `round` are its parts. A round asks nothing of the device and works at fixed
    addresses, so that it can be captured, before the first start, where it leaves what stands as it was:
    `lossless.engine.capture(lossless.round)`, where `lossless.engine.graph_safe`.
    """

    def __init__(
        self,
        decoder: Decoder,
        state: State,
        layers: Sequence[Layer],
        *,
        drafts: int,
        room: int,
        sampling: Sampling | None = None,
    ) -> None:
        """
        Args:
            state: exact as between rounds; its history has at least `drafts` rows.
            layers: one a layer of the decoder, bound to the state's caches by a method that rectifies.
            drafts: m.
            room: most tokens that `generate` may be asked for.
            sampling: greedy by default; a temperature and top-p hold for drafts and exact distributions alike.

        Raises:
            ValueError: drafts or room below 1, a history too short, a method without dense passes.
        """
        if min(drafts, room) < 1:
            raise ValueError(f"drafts, room: got {drafts}, {room}, must be at least 1 token each")
        if len(state.history) < drafts:
            raise ValueError(f"history: {len(state.history)} rows, {drafts} drafts need one each")
        if any(layer.chunk_kernel is None for layer in layers):
            raise ValueError("layers: verification needs a method that rectifies (resa, resa-torch) in every layer")
        self.state, self.drafts, self.room = state, drafts, room
        self.sampling = sampling or Sampling()
        greedy = self.sampling.temperature == 0
        drawn = None if greedy else self._draw_draft
        self.engine = Engine(decoder, state, layers, rectify_every=drafts + 1, sampling=drawn)
        self._layers = list({id(layer): layer for layer in layers}.values())

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=decoder.device)

        self.tokens = zeros(state.batch, room + drafts + 1)  # fed; a round writes m + 1, some stand
        self.counts = zeros(state.batch)  # that stand of each row of `tokens`
        self._limit = zeros(1)  # of `counts`
        self._histogram = zeros(drafts + 1)
        self._columns = torch.arange(drafts + 1, device=decoder.device)
        self._q = None if greedy else zeros(state.batch, drafts, decoder.config.vocab, dtype=torch.float32)

    def _draw_draft(self, logits: Tensor) -> Tensor:
        """A draft from logits `[B, vocab]`; the distribution that it is drawn from is kept."""
        assert self._q is not None
        q = self.sampling.probabilities(logits)
        self._q.index_copy_(1, self.state.count - 1, q[:, None])
        return draw(q)

    def start(self, tokens: int) -> None:
        """Be ready for `tokens` more tokens a sequence, from where the state stands (synchronises).

        A sequence that has them advances no further, whatever the others do.

        Raises:
            ValueError: they are none, more than `room`, or do not fit the caches together with the drafts beyond them.
        """
        if not 1 <= tokens <= self.room:
            raise ValueError(f"tokens: got {tokens}, allowed are 1 to the room of {self.room}")
        length, capacity = int(self.state.lengths.max()), self.state.capacity
        if length + tokens + self.drafts + 1 > capacity:
            wanted = f"{length} in the cache, {tokens} to come and {self.drafts + 1} rows of verification"
            raise ValueError(f"tokens: {wanted} do not fit the capacity of {capacity}")
        self.counts.zero_()
        self._histogram.zero_()
        self._limit.fill_(tokens)

    def generate(self, tokens: int, run: Callable[[], object] | None = None) -> Tensor:
        """Decode `tokens` tokens of every sequence; asks the device only when the slowest might be done.

        Args:
            run: a round, where `round` was captured.

        Returns:
            The ids fed, the token that was pending first, int64 `[B, tokens]`; the next one is pending.

        Raises:
            ValueError: as `start`.
        """
        self.start(tokens)
        left = tokens
        while left > 0:
            for _ in range(ceil_div(left, self.drafts + 1)):
                (run or self.round)()
            left = tokens - int(self.counts.min())
        return self.tokens[:, :tokens].clone()

    def round(self) -> None:
        """Draft, verify, accept, roll back: every unfinished sequence advances by 1 to m + 1 tokens."""
        fed = self._draft()
        logits = self.engine.verify(fed)
        with mark("sample"):
            self._advance(fed, self._judge(fed[:, 1:], logits))
        with mark("rectify"):
            for layer in self._layers:
                layer.refresh(1)  # the newest block alone can hold valid keys beside void ones

    def _draft(self) -> Tensor:
        """x0, d1 .. dm, int64 `[B, m + 1]`; afterwards lengths count them all."""
        state = self.state
        state.count.zero_()
        for _ in range(self.drafts):
            self.engine.step()
        with mark("other"):
            state.lengths.add_(1)
            return torch.cat((state.history[: self.drafts], state.pending[None])).t()

    def _judge(self, drafts: Tensor, logits: Tensor) -> Verdict:
        """Of drafts `[B, m]` and the exact logits `[B, m + 1, vocab]`."""
        if self._q is None:
            return agree(drafts, logits.argmax(-1))
        p = self.sampling.probabilities(logits.flatten(0, 1)).view_as(logits)
        return accept(drafts, self._q, p)

    def _advance(self, fed: Tensor, verdict: Verdict) -> None:
        """Keep what stands of `fed` `[B, m + 1]`, up to the limit; set lengths back to it."""
        state, kept = self.state, verdict.accepted + 1
        left = self._limit - self.counts
        self.tokens.scatter_(1, self.counts[:, None] + self._columns, fed)
        exact = torch.cat((fed, verdict.following[:, None]), dim=1)
        exact.scatter_(1, kept[:, None], verdict.following[:, None])
        self._histogram.index_add_(0, verdict.accepted, (left > 0).long())
        steps = torch.minimum(kept, left)  # [B], 0 for a sequence that is done
        state.pending.copy_(exact.gather(1, steps[:, None])[:, 0])
        state.lengths.add_(steps - (self.drafts + 1))
        self.counts.add_(steps)
        state.count.zero_()

    def acceptances(self) -> Acceptances:
        """Of the rounds since `start` (synchronises)."""
        return Acceptances(tuple(self._histogram.tolist()))
