"""Accepting drafts: counts, and tokens distributed as dense decoding's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lossless_cases import lossless, sparse
from resa_bench.suites.engine.engine import State
from resa_bench.suites.engine.prompt import prefill
from resa_bench.suites.engine.rounds import accept, agree
from resa_bench.suites.engine.sampling import Sampling, draw
from tiny_model import TINY, tiny_decoder

pytestmark = pytest.mark.usefixtures("one_thread", "inference")

DRAWS = 40_000
VOCAB = 7


def assert_distributed(drawn: torch.Tensor, p: torch.Tensor) -> None:
    """Ids `[n]` against probabilities `[cells]` by chi-squared at 0.1 %; cells of less than 5 draws count as one."""
    counts, expected = drawn.bincount(minlength=len(p)).double(), p.double() * len(drawn)
    assert not bool(counts[expected == 0].any()), "what cannot be drawn is not"
    rare = expected < 5
    counts, expected = (torch.cat((x[~rare], x[rare].sum()[None])) for x in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    spread = 2 / (9 * (len(expected) - 1))
    bound = (len(expected) - 1) * (1 - spread + 3.09 * spread**0.5) ** 3  # Wilson and Hilferty, 1931
    assert float(((counts - expected) ** 2 / expected).sum()) < bound


def distributions(*shape: int, seed: int) -> torch.Tensor:
    logits = torch.randn(*shape, VOCAB, generator=torch.Generator().manual_seed(seed))
    return (1.2 * logits).softmax(-1)


def test_agree_counts_leading_drafts() -> None:
    exact = torch.tensor([[5, 6, 7, 8]]).expand(4, -1)
    drafts = torch.tensor([[5, 6, 7], [5, 0, 7], [0, 6, 7], [5, 6, 0]])
    verdict = agree(drafts, exact)
    assert verdict.accepted.tolist() == [3, 1, 0, 2]
    assert verdict.following.tolist() == [8, 6, 5, 7]


def test_accepted_and_following_tokens_are_distributed_as_p() -> None:
    """Token i + 1 of a round, whether a draft, a correction or a bonus, where the round reaches it."""
    generator = torch.Generator().manual_seed(0)
    m = 3
    p, q = distributions(m + 1, seed=1), distributions(m, seed=2)
    drafts = torch.stack([draw(q[i].expand(DRAWS, -1), generator) for i in range(m)], dim=1)
    verdict = accept(drafts, q.expand(DRAWS, -1, -1), p.expand(DRAWS, -1, -1), generator)
    for i in range(m + 1):
        reached = verdict.accepted >= i
        drawn = verdict.following if i == m else torch.where(verdict.accepted > i, drafts[:, i], verdict.following)
        assert_distributed(drawn[reached], p[i])
        if i < m:  # as likely as theory has it
            rate = float((verdict.accepted[reached] > i).double().mean())
            assert rate == pytest.approx(float(torch.minimum(p[i], q[i]).sum()), abs=0.015)


def test_rounds_of_a_chain_are_distributed_as_the_chain() -> None:
    """Where each distribution hangs on the token before: pairs of tokens, over the end of a round, too."""
    generator = torch.Generator().manual_seed(5)
    p, q = distributions(VOCAB, seed=6), distributions(VOCAB, seed=7)
    m, wanted = 2, 4
    text = torch.full((DRAWS, wanted + m + 1), -1)
    pending, counts = torch.zeros(DRAWS, dtype=torch.int64), torch.zeros(DRAWS, dtype=torch.int64)
    while int(counts.min()) < wanted:
        tokens = [pending]
        for _ in range(m):
            tokens.append(draw(q[tokens[-1]], generator))
        fed = torch.stack(tokens, dim=1)
        verdict = accept(fed[:, 1:], q[fed[:, :-1]], p[fed], generator)
        emitted = torch.cat((fed[:, 1:], verdict.following[:, None]), dim=1)
        emitted.scatter_(1, verdict.accepted[:, None], verdict.following[:, None])
        at = counts.clamp(max=wanted)[:, None] + torch.arange(m + 1)
        text.scatter_(1, at, emitted)
        counts += verdict.accepted + 1
        pending = verdict.following
    exact = p[0]
    for i in range(wanted - 1):
        pairs = text[:, i] * VOCAB + text[:, i + 1]
        assert_distributed(pairs, (exact[:, None] * p).flatten())
        exact = exact @ p


def test_equal_distributions_accept_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    q = distributions(DRAWS, 2, seed=3)
    q[:, :, 0] = 0.0  # never drafted
    drafts = torch.stack([draw(q[:, i], generator) for i in range(2)], dim=1)
    last = distributions(1, seed=4)
    verdict = accept(drafts, q, torch.cat((q, last.expand(DRAWS, 1, -1)), dim=1), generator)
    assert bool((verdict.accepted == 2).all())
    assert_distributed(verdict.following, last[0])


def test_zero_probabilities() -> None:
    """As top-p makes them: tokens that q never drafts are reached by corrections, those that p lacks never come."""
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.0, 0.0, 0.1, 0.2, 0.3, 0.4])
    q = torch.tensor([0.5, 0.0, 0.2, 0.2, 0.1, 0.0])
    drafts = draw(q.expand(DRAWS, -1), generator)[:, None]
    verdict = accept(drafts, q.expand(DRAWS, 1, -1), p.expand(DRAWS, 2, -1), generator)
    assert bool((verdict.accepted[drafts[:, 0] == 0] == 0).all())
    first = torch.where(verdict.accepted > 0, drafts[:, 0], verdict.following)
    assert_distributed(first, p)
    nothing = accept(torch.tensor([[1]]), q.view(1, 1, -1), p.expand(1, 2, -1))  # a draft of no probability at all
    assert int(nothing.accepted) == 0
    assert int(nothing.following) > 1
    apart = torch.eye(2)[None]  # no token in common: always the correction
    assert accept(torch.tensor([[0]]), apart[:, :1], apart[:, 1:].expand(1, 2, -1)).following.tolist() == [1]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(0.8), Sampling(1.0, 0.8)], ids=["t0.8", "top-p"])
def test_sampled_text_is_distributed_as_dense_sampling(sampling: Sampling) -> None:
    """The engine's own rounds: pairs of tokens after one prompt, against their exact probabilities."""
    decoder = tiny_decoder(replace(TINY, layers=2, vocab=VOCAB))
    batch, repeats, length = 512, 8, 61
    prompt = torch.randint(0, VOCAB, (1, length + 1), generator=torch.Generator().manual_seed(3))

    def after(*more: int) -> torch.Tensor:
        """Probabilities `[vocab]` of what follows."""
        whole = torch.cat((prompt, torch.tensor([more], dtype=torch.int64)), dim=1)
        return sampling.probabilities(prefill(decoder, State.allocate(decoder, 1, 96, 1), whole))[0]

    exact = torch.stack([after()[t] * after(t) for t in range(VOCAB)]).flatten()
    source, state = State.allocate(decoder, 1, 96, 1), State.allocate(decoder, batch, 96, 8)
    prefill(decoder, source, prompt[:, :-1])
    for cache, original in zip(state.caches, source.caches, strict=True):
        cache.k.copy_(original.k.expand_as(cache.k))
        cache.v.copy_(original.v.expand_as(cache.v))
    torch.manual_seed(0)
    state.start(length, prompt[:, -1].expand(batch))
    engine = lossless(decoder, state, sparse(8, 0.01, 1), 2, sampling=sampling)
    pairs = []
    for _ in range(repeats):
        state.start(length, prompt[:, -1].expand(batch))
        fed = engine.generate(3)
        pairs.append(fed[:, 1] * VOCAB + fed[:, 2])
    accepted = engine.acceptances()
    assert 0 < accepted.accepted < accepted.rounds * (len(accepted.histogram) - 1)
    assert_distributed(torch.cat(pairs), exact)
