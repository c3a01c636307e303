"""One name, one meaning: methods, flags and settings mean the same in every command, and reach every half of it."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from resa_bench.kernels import registered
from resa_bench.suites import cli
from resa_bench.suites.core.flags import METHOD_FLAGS, options
from resa_bench.suites.core.registry import Suite, suites
from resa_bench.suites.core.rows import COLUMNS, IDENTITY
from resa_bench.suites.core.settings import SETTINGS
from resa_bench.suites.core.spec import MethodSpec, make_spec

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
TAKE_METHODS = [suite for suite in suites().values() if "method" in {flag.name for flag in suite.flags}]


def planned(suite: Suite, **given: Any) -> list[MethodSpec]:
    """The methods that a command would run."""
    return list(suite.plan(options(suite.flags, given), CPU).specs)


def means(spec: MethodSpec) -> tuple[Any, ...]:
    """What a name stands for in a whole model; a layer alone has no dense layers."""
    return spec.name, *(setting for setting in spec.variant.settings if setting[0] != "dense_layers")


@pytest.mark.parametrize("suite", TAKE_METHODS, ids=lambda suite: suite.name)
def test_a_methods_name_means_the_same_in_every_command(suite: Suite) -> None:
    """Quest's lists are per query head, as published; RetroAttention's shared by Quest's sum."""
    specs = {spec.name: spec for spec in planned(suite, method=["quest", "retro"]) if not spec.is_dense}
    assert {name: spec.config.gqa_policy for name, spec in specs.items()} == {
        "quest": "per-head", "retro": "group-sum",
    }  # fmt: skip
    assert [means(specs[name]) for name in specs] == [means(make_spec(name)) for name in specs]
    if suite.name != "micro":
        assert specs["quest"].dense_layers == 2


def test_every_command_that_runs_methods_was_asked() -> None:
    assert {suite.name for suite in TAKE_METHODS} >= {"micro", "decode", "quality", "tasks", "gsr", "maths"}


@pytest.mark.parametrize("suite", TAKE_METHODS, ids=lambda suite: suite.name)
def test_every_value_of_a_setting_is_a_variant(suite: Suite) -> None:
    specs = planned(suite, method=["quest"], block_size=[16, 32], gqa_policy=["group-sum", "per-head"])
    variants = {(s.config.block_size, s.config.gqa_policy) for s in specs if s.name == "quest"}
    assert variants == {(b, policy) for b in (16, 32) for policy in ("group-sum", "per-head")}


# --- bench: both halves get the same values ---------------------------------------------------------------------------


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[MethodSpec]]:
    """What each half of `bench` would measure."""
    plans: dict[str, list[MethodSpec]] = {}

    def act(suite: Suite, given: dict[str, Any], console: object) -> int:
        plans[suite.name] = planned(suite, **given)
        return 0

    monkeypatch.setattr(cli, "act_suite", act)
    return plans


@pytest.mark.parametrize(
    ("flag", "values", "setting"),
    [
        ("--gqa-policy", ["per-head"], "gqa_policy"),
        ("--block-size", ["16", "32"], "block_size"),
        ("--rectify-every", ["16", "64"], "rectify_every"),
        ("--summary", ["meanstd"], "summary_kind"),
    ],
)
def test_settings_reach_both_halves_of_the_main_job(
    halves: dict[str, list[MethodSpec]], flag: str, values: list[str], setting: str
) -> None:
    assert cli.main(["bench", "--device", "cpu", "--method", "quest", "resa-torch", flag, *values]) == 0
    assert set(halves) == {"micro", "decode"}
    name = "quest" if setting == "gqa_policy" else "resa-torch"
    for specs in halves.values():
        assert {str(getattr(s.config, setting)) for s in specs if s.name == name} == set(values)


def test_default_lists_of_both_halves_take_a_policy(halves: dict[str, list[MethodSpec]]) -> None:
    assert cli.main(["bench", "--device", "cpu", "--gqa-policy", "per-head"]) == 0
    for specs in halves.values():
        assert {spec.config.gqa_policy for spec in specs if spec.name == "quest"} == {"per-head"}


# --- each thing said once ---------------------------------------------------------------------------------------------


MAKERS = {"Flag", "switch", "several"}


def test_every_flag_is_declared_once() -> None:
    """A flag's declaration is a call of Flag, or of what makes one; suites change defaults by `but`."""
    declared: Counter[str] = Counter()
    for path in (ROOT / "suites").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in MAKERS:
                names = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "names")][0]
                words = names.elts if isinstance(names, ast.Tuple) else [names]
                declared.update(str(word.value) for word in words if isinstance(word, ast.Constant))
    assert {"--case", "--fresh", "--plan", "--list", "--drift"} <= set(declared)
    assert not [name for name, count in declared.items() if count > 1]
    own = {entry.flag for entry in SETTINGS.values() if entry.flag}
    assert not own & set(declared), "settings declare their flags themselves"


def test_a_setting_is_a_flag_a_column_and_part_of_a_rows_identity() -> None:
    flags = {flag.name for flag in METHOD_FLAGS} | {"draft_length"}
    for name, entry in SETTINGS.items():
        assert name in COLUMNS
        assert name in IDENTITY
        assert not entry.flag or name in flags


def test_every_setting_that_a_method_uses_is_declared() -> None:
    for kind in registered().values():
        assert set(kind.uses) <= set(SETTINGS)
        assert set(kind.defaults) <= set(SETTINGS)


def test_where_a_settings_name_stands() -> None:
    """Declared with the other settings; beside that only where a name means a value of it, and in tests."""
    named = [
        path.relative_to(ROOT).as_posix()
        for folder in ("kernels", "baselines", "profiling", "suites", "plots")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cu", ".cuh") and "pinned_blocks" in path.read_text()
    ]
    assert len(named) <= 3, named
