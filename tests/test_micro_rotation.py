"""Layers in rotation: how many, that each has a cache of its own, what the rows say, and what is no row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from benches import QUICK, make_bench
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import SparseConfig
from resa_bench.suites.core.flags import options
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.micro import rotation
from resa_bench.suites.micro.cases import Case, ModelShape
from resa_bench.suites.micro.inputs import make_inputs
from resa_bench.suites.micro.rotation import LEAST, MOST, layers_in_rotation, make_rotation
from resa_bench.suites.micro.run import run_case
from resa_bench.suites.micro.suite import FLAGS, Measure, plan
from resa_bench.suites.micro.table import case_table
from rich.console import Console

CPU = torch.device("cpu")
TINY = Case("tiny", ModelShape(4, 2, 16), 1, 256, dtype="fp32")
SPARSE = SparseConfig(min_blocks=4, active_ratio=0.25)
SPECS = [MethodSpec("torch-dense"), MethodSpec("resa-torch", SPARSE), MethodSpec("retro", SPARSE)]


def measured(specs: list[MethodSpec]) -> list[Row]:
    return run_case(TINY, specs, make_bench(Measure(QUICK, warm=False, eager=False, rotation=True)))


def in_rotation(rows: list[Row]) -> dict[str, Row]:
    return {row.method: row for row in rows if row.cache_state == "rotation"}


def test_so_many_layers_that_a_cache_is_displaced() -> None:
    large = replace(TINY, context=2**20, heads=ModelShape(4, 2, 128))  # 2 GiB of K and V
    assert [layers_in_rotation(TINY, step_bytes, 1000) for step_bytes in (1000, 100, 50, 1)] == [LEAST, 10, 20, MOST]
    assert layers_in_rotation(large, 1, 1000) == 4
    assert layers_in_rotation(replace(large, batch=8), 1, 1000) == 1


def test_layers_hold_the_same_in_caches_of_their_own() -> None:
    for page_size, kv_dtype in ((None, None), (64, None), (64, "fp8")):
        case = replace(TINY, page_size=page_size, kv_dtype=kv_dtype)
        layers = make_rotation(make_inputs(case, CPU, 8), 3)
        assert len({inputs.cache.k.data_ptr() for inputs in layers}) == 3
        for inputs in layers[1:]:
            for own, first in zip(inputs.cache.gather(), layers[0].cache.gather(), strict=True):
                assert torch.equal(own[:, :, : case.context], first[:, :, : case.context])
            assert inputs.cache.lengths.tolist() == [case.context]
            assert inputs.step is layers[0].step


@pytest.mark.slow
def test_a_time_is_a_layers_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resa_bench.suites.micro.run.layers_in_rotation", lambda *_: 2 * LEAST)
    rows = measured(SPECS)
    assert {row.status for row in rows} == {"ok"}
    rotating = in_rotation(rows)
    assert set(rotating) == {spec.name for spec in SPECS}
    for row in rotating.values():
        (cold,) = (r for r in rows if (r.method, r.stage, r.cache_state) == (row.method, "total", "cold"))
        assert row.median_us is not None
        assert cold.median_us is not None
        assert row.rotation_layers == 2 * LEAST
        assert row.median_us / cold.median_us < row.rotation_layers - 2  # a whole round takes as many steps
        assert cold.rotation_layers is None
        assert row.best_dense == "torch-dense"
        assert row.floor_us == cold.floor_us
    console = Console(width=160, record=True)
    console.print(case_table(TINY.slug, rows))
    assert "in rotation" in console.export_text()


def test_layers_that_follow_have_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five layers four, so that half of them follow; the floor is the mean of both kinds."""
    monkeypatch.setattr("resa_bench.suites.micro.run.layers_in_rotation", lambda *_: 5)
    specs = [MethodSpec("resa-torch", replace(SPARSE, selector=name)) for name in ("pooled", "shared2")]
    rows = measured(specs)
    every, half = (row for row in rows if row.cache_state == "rotation")
    assert (every.rotation_layers, half.rotation_layers) == (5, 4)
    (first,) = (row for row in rows if row.selector == "shared2" and row.stage == "total" and row.cache_state == "cold")
    ranked = SPARSE.blocks(256) * SPARSE.summary_bytes(16, 4) * 2
    written = SPARSE.summary_bytes(16, 4) * 2
    assert half.bytes is not None
    assert first.bytes == half.bytes + (ranked + written) // 2


def test_the_last_layer_passes_the_gate_or_there_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = rotation.make_rotation

    def spoilt(*arguments: Any) -> Any:
        layers = made(*arguments)
        layers[-1].cache.v.mul_(1.1)
        return layers

    monkeypatch.setattr("resa_bench.suites.micro.run.make_rotation", spoilt)
    rows = measured(SPECS[:1])
    row = in_rotation(rows)["torch-dense"]
    assert row.status == "failed"
    assert "times its error budget" in (row.reason or "")
    assert all(row.timed for row in rows if row.cache_state == "cold")


def test_the_plan_asks_for_it_on_a_gpu_alone() -> None:
    for device, left_out, asked in (("cuda", False, True), ("cuda", True, False), ("cpu", False, False)):
        chosen = plan(options(FLAGS, {"no_rotation": left_out}), torch.device(device))
        assert ("rotation" in chosen.kinds) == asked
        assert chosen.measure.rotation == asked
