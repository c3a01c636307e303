"""Fingerprints: equal for equal contents anywhere, different for any other model."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from model_files import make_model, write_gguf
from resa_bench.suites.model import fingerprint as module
from resa_bench.suites.model.fingerprint import RANDOM, fingerprint
from resa_bench.suites.model.smollm import NAME

safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model("llama-plain-head-dim").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")
    return tmp_path / "model"


@pytest.fixture(params=[True, False], ids=["whole", "pieces"])
def sampled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights hashed whole, or by their pieces as large ones are."""
    if not request.param:
        monkeypatch.setattr(module, "WHOLE_BYTES", 0)


@pytest.mark.usefixtures("sampled")
def test_equal_contents_have_one_fingerprint(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere" / "other-name")
    os.utime(tmp_path / "elsewhere" / "other-name" / "model.safetensors", (1, 1))
    (tmp_path / "elsewhere" / "other-name" / "README.md").write_text("a stray file")
    assert fingerprint(folder) == fingerprint(tmp_path / "elsewhere" / "other-name")
    assert len(fingerprint(folder)) == 16


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("changed", ["model.norm.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight"])
def test_a_retrained_tensor_changes_it(folder: Path, changed: str) -> None:
    before = fingerprint(folder)
    tensors = safetensors.load_file(folder / "model.safetensors")
    tensors[changed] = tensors[changed] * 1.001
    safetensors.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(folder) != before


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.json"])
def test_each_text_file_changes_it(folder: Path, name: str) -> None:
    before = fingerprint(folder)
    path = folder / name
    path.write_text((path.read_text() if path.exists() else "") + " ")
    assert fingerprint(folder) != before


def test_gguf_files(tmp_path: Path) -> None:
    model = make_model("llama-plain-head-dim")
    write_gguf(tmp_path / "a.gguf", model)
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert fingerprint(tmp_path / "a.gguf") == fingerprint(str(tmp_path / "b.gguf"))
    with torch.no_grad():
        model.model.norm.weight.mul_(1.001)
    write_gguf(tmp_path / "b.gguf", model)
    assert fingerprint(tmp_path / "a.gguf") != fingerprint(tmp_path / "b.gguf")


def test_names_and_what_is_no_model(folder: Path, tmp_path: Path) -> None:
    assert fingerprint("qwen2.5-7b") == RANDOM
    assert fingerprint(NAME) == "b179c9523d0e6a0f"
    with pytest.raises(ValueError, match="cannot be read"):
        fingerprint(tmp_path / "none")
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="cut off"):
        fingerprint(folder)


def test_16_gb_take_less_than_a_second(tmp_path: Path) -> None:
    """A sparse file of 300 tensors: what counts is how much is read."""
    size = 16 * 2**30 // 300
    header = {f"t{i}": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [i * size, (i + 1) * size]}
              for i in range(300)}  # fmt: skip
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 300 * size)
    (tmp_path / "config.json").write_text("{}")
    began = time.monotonic()
    fingerprint(tmp_path)
    assert time.monotonic() - began < 1
