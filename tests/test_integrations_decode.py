"""`decode --client transformers`: rows of the engine, of our methods in transformers, and of its own dense steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benches import make_bench

pytest.importorskip("transformers", minversion="5.20")

from resa_bench.integrations.transformers import client
from resa_bench.kernels import StepTensors, Unsupported
from resa_bench.suites.cli import main
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.decode.cases import DecodeCase
from resa_bench.suites.decode.client import run_case
from resa_bench.suites.engine import client as engine_client
from resa_bench.suites.engine.measure import DecodePlan
from resa_bench.suites.model import config as model_config
from resa_bench.suites.model.config import ModelConfig

CPU = torch.device("cpu")
TINY = ModelConfig("tiny-for-clients", 2, 64, 4, 2, 32, 64, 100, qkv_bias=True)
METHODS = ("torch-dense", "resa-torch", "transformers-sdpa", "transformers-flash-3")


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model_config.MODELS, TINY.name, TINY)


def specs(*names: str) -> list[MethodSpec]:
    """Methods that read four of some twenty blocks and rectify every eight tokens."""
    return [make_spec(name, replace(MethodSpec(name).config, min_blocks=4, rectify_every=8)) for name in names]


def rows_of(*names: str, dtype: str = "fp32", **plan: Any) -> list[Row]:
    case = DecodeCase(TINY.name, TINY, 2, 320, dtype, dtype, client="transformers")
    assert case.slug.endswith("-transformers")
    measure = DecodePlan(periods=1, seconds=0.0, breakdown=False, **plan)
    return run_case(case, specs(*names), make_bench(measure))


@pytest.mark.slow
def test_rows_of_all_contenders() -> None:
    rows = rows_of(*METHODS)
    assert [(r.method, r.client, r.status, r.launch) for r in rows] == [
        ("transformers-flash-3", None, "skipped", None),
        ("torch-dense", None, "ok", "eager"),
        ("resa-torch", None, "ok", "eager"),
        ("resa-torch", "transformers", "ok", "eager"),
        ("transformers-sdpa", "transformers", "ok", "eager"),
    ]
    timed = [row for row in rows if row.timed]
    assert all(row.tokens_per_s and row.floor_us and row.speedup_vs_best_dense for row in timed)
    assert all(row.max_rel_error is not None and row.max_rel_error < 1e-3 for row in timed)


@pytest.mark.slow
def test_a_step_that_computes_something_else_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    made = client.sparse_contender

    def wrong(*args: Any) -> engine_client.Contender:
        contender = made(*args)
        return replace(contender, step=lambda: contender.step() * 1.1)

    monkeypatch.setattr(client, "sparse_contender", wrong)
    row = rows_of("resa-torch")[-1]
    assert row.status == "failed"
    assert "off the engine's" in (row.reason or "")


@pytest.mark.slow
def test_in_16_bits_attention_is_compared_with_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """There two right steps choose other blocks, so logits say little of the attention."""
    assert rows_of("resa-torch", dtype="bf16")[-1].status == "ok"
    made = client.SparseCache._step

    def of_another_query(self: Any, own: Any, query: Any, key: Any, value: Any) -> Any:
        observe, self.observe = self.observe, None
        out = made(self, own, query, key, value)
        if observe is not None:
            observe(own.index, own.bound, StepTensors(query[:, :, 0] * 1.05, key[:, :, 0], value[:, :, 0], out[:, 0]))
        self.observe = observe
        return out

    monkeypatch.setattr(client.SparseCache, "_step", of_another_query)
    row = rows_of("resa-torch", dtype="bf16")[-1]
    assert (row.status, row.client) == ("failed", "transformers")
    assert "beyond their fp32 error budget" in (row.reason or "")


@pytest.mark.slow
def test_the_contenders_stand_on_the_engines_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    hold = client.SparseCache.hold

    def watched(self: Any, stores: Any, length: int) -> None:
        hold(self, stores, length)
        held.append((self, stores))

    monkeypatch.setattr(client.SparseCache, "hold", watched)
    rows_of("resa-torch")
    assert held
    for cache, stores in held:
        assert [layer.keys.data_ptr() for layer in cache.layers] == [store.k.data_ptr() for store in stores]


def test_four_bit_weights_and_other_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--weights", "int4"], ["--shared-kv"], ["--temperature", "0.5"]):
        assert main(["decode", "--client", "transformers", "--model", TINY.name, *options, "--plan"]) != 0
        assert f"{options[0]}" in capsys.readouterr().err


def test_the_plan_names_the_methods_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    from resa_bench.suites.core.registry import get_suite

    options = _options("--client", "transformers", "--model", TINY.name, "--context", "256")
    plan = get_suite("decode").plan(options, CPU)
    assert [spec.name for spec in plan.specs] == list(METHODS)
    assert [case.slug for case in plan.cases] == ["decode-tiny-for-clients-fp32-b1-256-transformers"]


def _options(*words: str) -> Any:
    import argparse

    from resa_bench.suites.core import flags
    from resa_bench.suites.decode.suite import FLAGS

    parser = argparse.ArgumentParser()
    flags.add_flags(parser, FLAGS)
    return flags.options(FLAGS, vars(parser.parse_args(words)))


def test_a_client_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(engine_client.CLIENTS, "transformers", "no_such_library.client")
    assert main(["decode", "--client", "transformers", "--model", TINY.name, "--plan"]) != 0
    assert "pip install -e '.[transformers]'" in " ".join(capsys.readouterr().err.split())


def test_dense_methods_of_the_client_run_nowhere_else() -> None:
    (spec,) = specs("transformers-sdpa")
    with pytest.raises(Unsupported, match="--client transformers"):
        spec.kind(None, spec.config, dtype=torch.float32, device=CPU).prepare(None)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def forget_models() -> Iterator[None]:
    yield
    client._models.clear()


def test_a_step_on_the_way_that_overflows_fails_the_clients_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step agrees with the engine's; the fifth has an infinite logit."""

    def contenders(*arguments: Any) -> Iterator[tuple[str, Any]]:
        for launch, make in client.contenders(*arguments):
            contender, steps = make(), iter(range(1000))

            def step(contender: Any = contender, steps: Iterator[int] = steps) -> torch.Tensor:
                logits = contender.step()
                return logits.masked_fill(torch.arange(TINY.vocab) == 7, float("inf")) if next(steps) == 4 else logits

            yield launch, lambda contender=contender, step=step: replace(contender, step=step)

    broken = SimpleNamespace(METHODS=client.METHODS, contenders=contenders)
    monkeypatch.setattr("resa_bench.suites.decode.client.load_client", lambda name: broken)
    rows = [row for row in rows_of("transformers-sdpa") if row.client]
    assert {row.status for row in rows} == {"failed"}
    assert "logits: those of 2 tokens" in str(rows[0].reason)
