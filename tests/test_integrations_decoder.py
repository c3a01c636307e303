"""Families that our runner does not know: transformers' model in our decoder's place, under the same engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benches import make_bench
from safetensors.torch import load_file, save_file
from transformers_models import greedy, tiny

pytest.importorskip("transformers", minversion="5.20")

from model_files import CPU, FP32, Dense
from resa_bench.integrations.transformers import attach
from resa_bench.integrations.transformers.decoder import TransformersDecoder
from resa_bench.kernels import SparseConfig
from resa_bench.suites.cli import main
from resa_bench.suites.core.spec import make_spec
from resa_bench.suites.engine.case import config_of
from resa_bench.suites.model.load import load_decoder
from resa_bench.suites.quality.cases import QualityCase
from resa_bench.suites.quality.run import run_case as run_quality
from resa_bench.suites.tasks.kinds.divergence import DivergenceCase
from resa_bench.suites.tasks.run import run_case as run_tasks
from test_integrations_transformers import engine_tokens

GRANITE: dict[str, Any] = {"attention_multiplier": 0.3, "logits_scaling": 3.0, "residual_multiplier": 0.7}


def write(folder: Path, family: str, **changes: Any) -> Any:
    """A tiny model of a family in a folder, with a tokenizer of letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    model = tiny(family, **changes)
    model.save_pretrained(folder)
    letters = {chr(32 + i): i for i in range(95)} | {"\n": 95, "?": 96}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


@pytest.fixture
def phi3(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-phi"
    write(folder, "phi3")
    return folder


@pytest.mark.parametrize("family", ["phi3", "mistral", "granite"])
def test_logits_are_the_models(family: str, tmp_path: Path) -> None:
    """Prompt and steps; Granite scales attention, residuals and logits."""
    folder = tmp_path / family
    model = write(folder, family, **(GRANITE if family == "granite" else {}))
    decoder = load_decoder(str(folder), **FP32).decoder
    assert isinstance(decoder, TransformersDecoder)
    ids = torch.randint(3, 90, (40,), generator=torch.Generator().manual_seed(0))
    dense = Dense(decoder)
    own = torch.cat([dense(ids[:30]), *(dense(ids[i : i + 1]) for i in range(30, 40))])
    with torch.no_grad():
        torch.testing.assert_close(own, model(ids[None]).logits[0], atol=2e-4, rtol=1e-4)


def test_the_engine_and_the_adapter_say_the_same(phi3: Path) -> None:
    """Few blocks, several rectifications: our engine over transformers' modules, and our method inside transformers."""
    config = SparseConfig(block_size=8, min_blocks=2, rectify_every=8)
    ids = torch.randint(3, 90, (1, 100), generator=torch.Generator().manual_seed(1))
    decoder = load_decoder(str(phi3), **FP32).decoder
    assert isinstance(decoder, TransformersDecoder)
    own = engine_tokens(decoder, ids, config, 24)
    attach(decoder.model, "resa", config)
    assert greedy(decoder.model, {"input_ids": ids}, tokens=24, repetition_penalty=1.0)[0, 100:].tolist() == own


def test_quality_measures_such_a_model(phi3: Path) -> None:
    case = QualityCase(str(phi3), config_of(str(phi3)), 160, 16, batch=2)
    specs = [make_spec("resa-torch", SparseConfig(block_size=8, min_blocks=2, rectify_every=8))]
    rows = run_quality(case, specs, make_bench())
    assert {(row.status, row.reason) for row in rows if row.status != "ok"} == set()
    assert {"kl", "recall", "kv_error"} <= {row.metric for row in rows if row.method == "resa-torch"}
    assert rows[0].model == "tiny-phi"


@pytest.mark.slow
def test_tasks_measure_such_a_model(phi3: Path) -> None:
    case = DivergenceCase(model=str(phi3), config=config_of(str(phi3)), prompt=160, steps=16)
    rows = run_tasks(case, [make_spec("resa-torch", SparseConfig(min_blocks=2))], make_bench())
    assert {(row.method, row.status) for row in rows} == {("torch-dense", "ok"), ("resa-torch", "ok")}


def test_a_person_is_told_that_transformers_runs_it(phi3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from resa_bench.suites.engine.case import model_notes

    assert "run by transformers" in model_notes(str(phi3))[0]
    assert model_notes("smollm2-135m") == []


def test_layers_that_do_not_attend_to_everything_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gemma"
    write(folder, "gemma3")
    assert main(["quality", "--model", str(folder), "--plan"]) != 0
    assert "DynamicSlidingWindowLayer" in " ".join(capsys.readouterr().err.split())


def test_without_transformers_the_family_is_refused_with_the_command(
    phi3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resa_bench.suites.model import load

    monkeypatch.setattr(load, "FALLBACK", "no_such_library.decoder")
    with pytest.raises(ValueError, match=r"supported are llama.*pip install -e '\.\[transformers\]'"):
        config_of(str(phi3))


def test_four_bit_weights_are_refused(phi3: Path) -> None:
    with pytest.raises(ValueError, match="no int4 weights"):
        load_decoder(str(phi3), dtype=torch.float32, device=CPU, weight_dtype="int4")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_a_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({name: x for name, x in load_file(path).items() if "layers.1.mlp" not in name}, path)


def of_another_size(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 48}))


def of_another_family(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "gpt2"}))


@pytest.mark.parametrize("damage", [cut, without_a_tensor, of_another_size, of_another_family])
def test_files_that_are_not_all_of_the_model_are_refused(phi3: Path, damage: Callable[[Path], None]) -> None:
    """transformers draws weights that it does not find at random."""
    damage(phi3)
    with pytest.raises(ValueError, match=r"^/.*(lack \d+ of the model's weights|transformers cannot load it)") as stop:
        load_decoder(str(phi3), **FP32)
    assert "\n" not in str(stop.value)
