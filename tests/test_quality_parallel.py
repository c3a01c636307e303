"""Teacher forcing in parallel against decoding step by step: logits, keys and values, selections; recall by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benches import recorded
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import DecodeMethod, SparseConfig, get_method, registered
from resa_bench.kernels.portable import TorchSparseMethod
from resa_bench.kernels.selectors import best, selectors
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.engine.engine import Engine, State, bind_layers
from resa_bench.suites.engine.prompt import prefill
from resa_bench.suites.quality import forced_attention, parallel
from resa_bench.suites.quality.forced import Forced, Reference, record_dense, run_forced
from resa_bench.suites.quality.forced_attention import ForcedAttention, Sequences, tiles
from resa_bench.suites.quality.parallel import dense_parallel, run_parallel
from tiny_model import TINY, tiny_decoder

PROMPT, STEPS, BATCH = 203, 75, 2  # multiples of no block size, period or tile
CPU = torch.device("cpu")
MINMAX = selectors()["minmax"]


def portable(spec: MethodSpec) -> DecodeMethod:
    """The method in plain torch, whose every step the parallel form is to equal; the interpreter would take minutes."""
    kind = get_method(spec.name)
    if not issubclass(kind, TorchSparseMethod):
        return kind(TINY.attention(BATCH), spec.config, dtype=torch.float32, device=CPU)
    settings = {name: getattr(kind, name) for name in ("rectifies", "uses", "ranks_by")}
    plain = type(f"Plain{kind.__name__}", (TorchSparseMethod,), settings)
    return plain(TINY.attention(BATCH), spec.config, dtype=torch.float32, device=CPU)


class Bench:
    """A prefilled model, the tokens that follow, and dense decoding of them either way."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.decoder = tiny_decoder()
        text = torch.randint(0, TINY.vocab, (BATCH, PROMPT + STEPS + 1), generator=generator)
        self.tokens = text[:, PROMPT:]
        self.state = State.allocate(self.decoder, BATCH, 320, STEPS + 1)
        prefill(self.decoder, self.state, text[:, :PROMPT])
        engine = self.engine(make_spec("torch-dense"))
        self.stepwise = record_dense(engine, engine.step, PROMPT, self.tokens[:, 0], self.tokens, STEPS)
        self.at_once = dense_parallel(self.decoder, self.state, PROMPT, self.tokens)

    def engine(self, spec: MethodSpec) -> Engine:
        dense = get_method("torch-dense")(TINY.attention(BATCH), spec.config, dtype=torch.float32, device=CPU)
        self.state.start(PROMPT, torch.zeros(BATCH, dtype=torch.int64))
        layers = bind_layers(self.state, portable(spec), dense, spec.dense_layers or 0)
        every = spec.config.rectify_every if spec.rectifies else None
        return Engine(self.decoder, self.state, layers, rectify_every=every)

    def step_by_step(self, spec: MethodSpec) -> tuple[Forced, torch.Tensor, torch.Tensor]:
        """Metrics, logits `[T, B, vocab]`, and each layer's keys and values as their steps wrote them."""
        engine, logits, written = self.engine(spec), [], []

        def step() -> None:
            engine.step()
            at = int(self.state.lengths[0]) - 1
            logits.append(engine.logits.clone())
            written.append(torch.stack([x[:, :, at].clone() for c in self.state.caches for x in (c.k, c.v)]))

        rectify = engine.rectify if engine.rectify_every else None
        forced = run_forced(engine, step, rectify, PROMPT, self.stepwise)
        return forced, torch.stack(logits), torch.stack(written)

    def together(self, spec: MethodSpec, monkeypatch: pytest.MonkeyPatch) -> tuple[Forced, torch.Tensor, torch.Tensor]:
        logits, written = list[torch.Tensor](), list[torch.Tensor]()
        head, compare = self.decoder.logits, parallel.kv_errors

        def keep_logits(x: torch.Tensor) -> torch.Tensor:
            logits.append(head(x))
            return logits[-1]

        def keep_written(cells: Any, exact: Any, exchange: Any) -> torch.Tensor:
            written.extend(x.transpose(0, 1).clone() for x in (cells.k, cells.v))  # [T, B, Hkv, D]
            return compare(cells, exact, exchange)

        monkeypatch.setattr(self.decoder, "logits", keep_logits)
        monkeypatch.setattr(parallel, "kv_errors", keep_written)
        forced = run_parallel(self.decoder, self.state, spec, PROMPT, self.at_once)
        monkeypatch.undo()
        return forced, torch.cat(logits).view(STEPS, BATCH, -1), torch.stack(written, 1)


@pytest.fixture(scope="module")
def bench() -> Bench:
    with torch.inference_mode():
        return Bench()


def spec(name: str, dense_layers: int | None = None, **settings: Any) -> MethodSpec:
    config: dict[str, Any] = {"block_size": 8, "active_ratio": 0.15, "min_blocks": 2} | settings
    return make_spec(name, **config, dense_layers=dense_layers)


SPECS = [
    *(spec("resa-torch", rectify_every=f) for f in (1, 4, 16)),
    *(spec("resa-torch", rectify_every=f, block_size=32) for f in (4, 7, 40)),
    spec("resa-torch", rectify_every=4, summary_kind="meanstd", spread_weight=0.3),
    spec("resa-torch", rectify_every=7, gqa_policy="all-heads", summary_kind="meanstd", block_size=16),
    spec("resa-torch", rectify_every=5, local_blocks=0),
    spec("resa-torch", rectify_every=40, local_blocks=3, min_blocks=4, summary_kind="meanstd"),
    spec("resa-torch", rectify_every=5, summary_dtype="fp8"),
    *(spec("resa-torch", rectify_every=f, selector="pairs", pinned_blocks=1, min_blocks=4) for f in (5, 40)),
    spec("sparse", selector="pairs", block_size=16),
    spec("resa-torch", rectify_every=5, selector="pooled", summary_kind="meanstd", summary_dtype="fp8"),
    spec("sparse", selector="pooled", local_blocks=0),
    spec("resa-torch", rectify_every=5, selector="shared2"),
    *(spec("resa-torch", rectify_every=7, selector=name) for name in ("channels16", "loki16", "pairs-shared2")),
    spec("sparse", selector="top-p90", min_blocks=8),
    spec("sparse"),
    spec("sparse", local_blocks=0, summary_kind="meanstd"),
    spec("resa-torch", rectify_every=5, pinned_blocks=1, min_blocks=4),
    spec("oracle", pinned_blocks=2, min_blocks=4),
    *(spec("quest", 0, gqa_policy=policy) for policy in ("per-head", "group-sum", "group-mean", "all-heads")),
    spec("quest", 1, gqa_policy="group-sum", budget_tokens=40),
    spec("oracle", block_size=16),
    spec("sink-window", block_size=16),
]


def name_of(value: MethodSpec) -> str:
    config = value.config
    return f"{value.label} local{config.local_blocks} {config.gqa_policy}".replace(" ", "-")


@pytest.mark.parametrize("method", SPECS, ids=name_of)
@pytest.mark.slow
def test_equals_decoding_step_by_step(bench: Bench, method: MethodSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits, K and V to rounding. Another selection anywhere would be off by a thousand times the tolerance."""
    with torch.inference_mode():
        stepwise, logits, written = bench.step_by_step(method)
        all_at_once = bench.together(method, monkeypatch)
    torch.testing.assert_close(all_at_once[1], logits, atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(all_at_once[2], written, atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(all_at_once[0].kv_error, stepwise.kv_error, atol=1e-5, rtol=1e-4)
    for name in ("kl", "top1", "loss", "extra_loss", "kv_error"):
        torch.testing.assert_close(all_at_once[0].values[name], stepwise.values[name], atol=1e-5, rtol=1e-3)
    assert stepwise.values["kl"].mean() > 1e-3  # selecting blocks did make a difference


def test_dense_equals_decoding_step_by_step(bench: Bench) -> None:
    for name in ("logits", "kv"):
        at_once, stepwise = (getattr(x, name) for x in (bench.at_once, bench.stepwise))
        torch.testing.assert_close(at_once, stepwise, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("every", [1, 4, None], ids=lambda f: f"f{f}")
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_the_tile_makes_no_difference(every: int | None, rows: int) -> None:
    layer = random_layer()
    config = SparseConfig(block_size=8, min_blocks=2)
    out, recall = ForcedAttention(config, MINMAX, every)(layer)
    other, shares = ForcedAttention(config, MINMAX, every, rows)(layer)
    torch.testing.assert_close(other, out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shares, recall, atol=1e-5, rtol=1e-5)


def random_layer(scale: float = 1.0) -> Sequences:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Sequences(scale * draw(37, 4, 32), draw(2, 150, 32), draw(2, 150, 32), draw(2, 37, 32), draw(2, 37, 32))


@pytest.mark.parametrize("selector", ["minmax", "mass", "window"])
def test_recall_is_the_mass_in_the_blocks_read(selector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a plain softmax over the row's tokens and the mask that the selector gave."""
    chosen: list[torch.Tensor] = []

    chooses = selectors()[selector]
    monkeypatch.setattr(chooses, "choose", recorded(chooses.choose, chosen))
    layer, config = random_layer(), SparseConfig(block_size=8, min_blocks=3)
    _, recall = ForcedAttention(config, chooses, None, 37)(layer)
    (mask,) = chosen
    for t in (0, 20, 36):
        length = layer.prompt + t + 1
        for head in range(4):
            mass = (layer.keys[head // 2, :length] @ layer.queries[t, head] * 32**-0.5).softmax(0)
            read = mask[min(head // 2, len(mask) - 1), t, 0].repeat_interleave(8)[:length]
            assert recall[t, head] == pytest.approx(float(mass[read].sum()), abs=1e-5)
            assert read.sum() in (24, 24 - (-length % 8))  # three blocks, the newest of which may be cut


def test_the_oracle_recalls_most(bench: Bench) -> None:
    with torch.inference_mode():
        shares = {
            name: run_parallel(bench.decoder, bench.state, spec(name), PROMPT, bench.at_once).recall
            for name in ("oracle", "sparse", "sink-window")
        }
        whole = run_parallel(bench.decoder, bench.state, spec("sparse", active_ratio=1.0), PROMPT, bench.at_once)
    first = {name: float(share[0].mean()) for name, share in shares.items() if share is not None}
    assert first["oracle"] > first["sparse"] > first["sink-window"]  # the first layer's keys are the same to all
    assert whole.recall is not None
    torch.testing.assert_close(whole.recall, torch.ones_like(whole.recall))


def test_blocks_without_mass_are_attended_to() -> None:
    """Queries so large that the mass of what is read underflows: still a softmax over the blocks read."""
    layer, config = random_layer(60.0), SparseConfig(block_size=8, min_blocks=2)
    out, recall = ForcedAttention(config, selectors()["window"], None)(layer)
    assert float(recall.min()) < forced_attention.LEAST_MASS
    t, length = 5, layer.prompt + 6
    blocks = -(-length // 8)
    read = [*range(8), *range((blocks - 1) * 8, length)]
    for head in range(4):
        weights = (layer.keys[head // 2, read] @ layer.queries[t, head] * 32**-0.5).softmax(0)
        torch.testing.assert_close(out[t, head], weights @ layer.values[head // 2, read], atol=1e-4, rtol=1e-4)


def test_equal_scores_go_to_the_lower_block() -> None:
    scores = torch.tensor([[[[1.0, 2.0, 2.0, 2.0, 0.0, 9.0]]]])
    config = SparseConfig(block_size=8, min_blocks=3)
    chosen = best(scores, torch.tensor([40]), config)  # five blocks: the last score is of one not there
    assert chosen.flatten().tolist() == [False, True, True, False, True, False]


def test_tiles_end_with_long_periods() -> None:
    assert list(tiles(70, None, 32)) == [(0, 32), (32, 64), (64, 70)]
    assert list(tiles(70, 40, 32)) == [(0, 32), (32, 40), (40, 70)]
    assert list(tiles(10, 4, 8)) == [(0, 8), (8, 10)]


def test_a_method_without_a_parallel_form_is_refused(bench: Bench) -> None:
    reference: Reference = bench.at_once
    with pytest.raises(ValueError, match="torch-dense: has no form for all steps at once"):
        run_parallel(bench.decoder, bench.state, make_spec("torch-dense"), PROMPT, reference)
    parallel_forms = {name for name, kind in registered().items() if kind.ranks_by is not None}
    assert {"resa", "resa-torch", "sparse", "quest", "oracle", "sink-window"} <= parallel_forms
    assert parallel_forms.isdisjoint({"resa-fused", "retro", "retro-cached", "resa-authors"})
