"""Bytes that a step's attention reads beside dense attention: counted where lists are chosen, else by the settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import SparseConfig
from resa_bench.kernels.selectors import selectors
from resa_bench.suites.core.analysis import mean_of
from resa_bench.suites.core.flags import options
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.engine.costs import read_share
from resa_bench.suites.model.smollm import CONFIG
from resa_bench.suites.quality.cases import QualityCase
from resa_bench.suites.quality.forced_attention import ForcedAttention, Sequences
from resa_bench.suites.quality.rivals import offered, rival_specs
from resa_bench.suites.quality.suite import FLAGS, choose_specs
from test_quality import CPU, SPARSE, Loader, make_bench, measure, models  # noqa: F401  (the fixture)
from tiny_model import TINY

SMOLLM = QualityCase("smollm2-135m", CONFIG, prompt=4000, steps=96)
PLAIN = make_spec("sparse", SPARSE)
LENGTH = 4096


def share(method: str, **settings: Any) -> float:
    return read_share(SMOLLM, make_spec(method, **settings), LENGTH)


def test_share_by_the_settings() -> None:
    """Of 4096 tokens at b = 16: 26 blocks of 256, and a summary of two numbers a channel for every 16 keys."""
    read, ranked = 26 / 256, 2 / 32
    assert share("sparse") == pytest.approx(read + ranked)
    assert share("sink-window") == pytest.approx(read)
    assert share("oracle") == pytest.approx(read + 0.5)  # every key
    assert share("resa", rectify_every=32) == pytest.approx(read + ranked + 29 / 30 / 32)
    fewer = 20 / 256
    assert share("resa-plus", selector="pairs") == pytest.approx(fewer + ranked + 29 / 30 / 32)
    assert share("resa-plus", selector="pairs-shared2") == pytest.approx(fewer + ranked / 2 + 29 / 30 / 32)
    assert share("sparse", selector="shared4") == pytest.approx(read + ranked * 8 / 30)  # of 30 layers 8 choose
    assert share("quest", gqa_policy="group-sum") == pytest.approx((2 + 28 * (read + ranked)) / 30)
    assert read_share(SMOLLM, make_spec("sparse"), LENGTH, 2048.0) == pytest.approx(0.5 + ranked)


def test_share_does_not_depend_on_the_case_s_type() -> None:
    half = QualityCase("smollm2-135m", CONFIG, prompt=4000, steps=96, dtype="bf16", batch=3)
    assert read_share(half, PLAIN, LENGTH) == read_share(SMOLLM, PLAIN, LENGTH)


def test_lists_of_query_heads_count_as_their_union() -> None:
    torch.manual_seed(0)
    layer = Sequences(torch.randn(8, 4, 16), torch.randn(1, 264, 16), torch.randn(1, 264, 16))
    config = make_spec("quest", SPARSE).config
    attention = ForcedAttention(config, selectors()["minmax"], None)
    assert attention.tokens_read is None
    attention(layer)
    assert attention.tokens_read is not None
    assert config.selected(264) * 16 < attention.tokens_read <= 4 * config.selected(264) * 16


@pytest.mark.parametrize("spec", [PLAIN, make_spec("snapkv", SPARSE)], ids=lambda s: s.name)
def test_a_run_says_it(models: Loader, spec: MethodSpec) -> None:  # noqa: F811
    case = QualityCase("tiny", TINY, prompt=300, steps=8)
    rows = [row for row in measure(models, [spec], case) if row.variant == spec.variant]
    value = mean_of(rows, "read_share")
    middle = 304  # tokens that the mean step sees
    kept = SPARSE.selected(300) * 16 + 4.5  # of the prompt, and every token since
    expected = kept / middle if spec.kind.evicts else read_share(case, spec, middle)
    assert value == pytest.approx(expected, rel=2e-3)


def test_the_list_that_compares_selectors_has_every_one() -> None:
    specs = rival_specs(CPU, SparseConfig())
    assert {spec.name for spec in specs} >= {"resa-torch", "resa-plus", "oracle", "quest", "snapkv", "r-kv"}
    assert {spec.config.selector for spec in specs if "selector" in spec.kind.uses} == {None, *offered()}
    assert "mass" not in offered()  # the oracle's own
    others = {spec.config.active_ratio for spec in rival_specs(CPU, SPARSE) if spec != make_spec("resa-plus", SPARSE)}
    assert others == {SPARSE.active_ratio}


def test_that_list_takes_no_methods() -> None:
    with pytest.raises(ValueError, match="leave out --method"):
        choose_specs(options(FLAGS, {"compare_selectors": True, "method": ("resa",)}), CPU)
