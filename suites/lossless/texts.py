"""Whether two decodings said the same, where they part, and by how little."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.checks import MODEL_TOLERANCE
from ..engine.engine import Engine, State
from ..engine.prompt import prefill
from ..engine.sound import Watch
from ..model.decoder import Decoder

TIE = 3.0  # roundings of a model (MODEL_TOLERANCE) that two tokens' logits may lie apart and still change places


@dataclass(frozen=True, slots=True)
class Parting:
    """The first token at which a sequence's texts differ."""

    sequence: int
    token: int  # tokens that agree
    dense: int  # what dense decoding fed there
    other: int


def partings(dense: Tensor, other: Tensor) -> list[Parting]:
    """Where the sequences of two texts, int64 `[B, T]` each, part; empty if all are equal."""
    first = {b: row.index(True) for b, row in enumerate((dense != other).tolist()) if True in row}
    return [Parting(b, token, int(dense[b, token]), int(other[b, token])) for b, token in first.items()]


def gap(decoder: Decoder, prompt: Tensor, text: Tensor, parting: Parting) -> float:
    """How far dense decoding preferred its token to the other one, in units of its logits' root mean square.

    Args:
        prompt: int64 `[B, P]`; its last token is not the pending one.
        text: dense decoding's, int64 `[B, T]`, from the pending token on.
    """
    known = torch.cat((prompt[parting.sequence], text[parting.sequence, : parting.token]))[None]
    logits = prefill(decoder, State.allocate(decoder, 1, known.shape[1], 1), known)[0].float()
    apart = (logits[parting.dense] - logits[parting.other]).abs()
    return float(apart / (logits - logits.mean()).square().mean().sqrt())


def largest_tie(dtype: torch.dtype) -> float:
    """The largest `gap` at which roundings may let two runs choose differently; none does in fp32."""
    return 0.0 if dtype == torch.float32 else TIE * MODEL_TOLERANCE[dtype]


def decode_by_rows(engine: Engine, tokens: int) -> Tensor:
    """Dense greedy decoding by passes of as many rows as a verification has, of which the first alone counts.

    So that where the number of rows decides the kernels (bf16 on a GPU), the two have the same.

    Args:
        engine: of a method that rectifies; its `rectify_every` is the number of rows.

    Returns:
        The ids fed, int64 `[B, tokens]`, the token that was pending first.
    """
    state, rows = engine.state, engine.rectify_every
    assert rows is not None
    fed = []
    for _ in range(tokens):
        fed.append(state.pending.clone())
        state.lengths.add_(rows)
        logits = engine.verify(state.pending[:, None].expand(-1, rows))
        state.lengths.sub_(rows - 1)
        state.pending.copy_(logits[:, 0].argmax(-1))
    return torch.stack(fed, dim=1)


def check_text(engine: Engine, fed: Tensor) -> None:
    """Run a text through the model once more, as many rows at a time as a verification has, and look at its logits.

    Args:
        engine: stands before the text; of a method that rectifies.
        fed: int64 `[B, T]`.

    Raises:
        CheckFailed: logits are not finite, or constant.
    """
    state, rows, watch = engine.state, engine.rectify_every, Watch(fed.device)
    assert rows is not None
    for part in fed.split(rows, dim=1):
        tokens = part.shape[1]
        state.lengths.add_(rows)
        filled = torch.cat((part, part[:, -1:].expand(-1, rows - tokens)), 1)
        watch.look(engine.verify(filled)[:, :tokens])
    watch.check()
