"""Which files of a folder are the model, and which matrix the head: as transformers loads them, or refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import FP32, make_model
from resa_bench.kernels.linear.weights import DenseWeight
from resa_bench.suites.model.checkpoint import load_checkpoint
from resa_bench.suites.model.load import load_decoder, model_config
from torch import Tensor

safetensors = pytest.importorskip("safetensors.torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model("llama-plain-head-dim").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def head(folder: Path) -> Tensor:
    decoder = load_checkpoint(folder, **FP32)
    assert isinstance(decoder.head, DenseWeight)
    return decoder.head.weight


def transformers_head(folder: Path) -> Tensor:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).lm_head.weight.detach().float()


def set_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def scaled(folder: Path, factor: float) -> dict[str, Tensor]:
    """Another model of the same shapes."""
    return {name: tensor * factor for name, tensor in safetensors.load_file(folder / "model.safetensors").items()}


def shard(folder: Path) -> None:
    """model.safetensors as shards with their index."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def tied_but_different(folder: Path) -> None:
    set_config(folder, tie_word_embeddings=True)


def tied_and_equal(folder: Path) -> None:
    tensors = safetensors.load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    safetensors.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    set_config(folder, tie_word_embeddings=True)


def tied_and_only_a_head(folder: Path) -> None:
    tensors = safetensors.load_file(folder / "model.safetensors")
    del tensors["model.embed_tokens.weight"]
    safetensors.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    set_config(folder, tie_word_embeddings=True)


def second_copy(folder: Path) -> None:
    safetensors.save_file(scaled(folder, 2), folder / "z_backup.safetensors")
    safetensors.save_file(scaled(folder, 3), folder / "a_backup.safetensors")


def an_adapter(folder: Path) -> None:
    safetensors.save_file({"lora_A": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")


def shards_and_newer_whole(folder: Path) -> None:
    newer = scaled(folder, 2)
    shard(folder)
    safetensors.save_file(newer, folder / "model.safetensors", metadata={"format": "pt"})


def shards_and_stray(folder: Path) -> None:
    stray = scaled(folder, 2)
    shard(folder)
    safetensors.save_file(stray, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [tied_but_different, tied_and_equal, tied_and_only_a_head, second_copy, an_adapter, shards_and_newer_whole,
     shards_and_stray],
)  # fmt: skip
def test_the_head_is_the_one_that_transformers_loads(folder: Path, change: Any) -> None:
    change(folder)
    assert torch.equal(head(folder), transformers_head(folder))
    assert model_config(str(folder)) == load_checkpoint(folder, **FP32).config


def test_tied_heads_share_their_memory(folder: Path) -> None:
    tied_and_equal(folder)
    decoder = load_checkpoint(folder, **FP32)
    assert isinstance(decoder.head, DenseWeight)
    assert decoder.head.weight is decoder.embedding
    assert decoder.config.tied_head


def without_names(folder: Path) -> None:
    tensors = safetensors.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name in ("one", "two"):
        safetensors.save_file(tensors, folder / f"{name}.safetensors")


def shards_without_index(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").unlink()
    next(folder.glob("model-00002-*")).unlink()


def duplicates(folder: Path) -> None:
    shard(folder)
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    tensors = safetensors.load_file(first) | safetensors.load_file(second)
    safetensors.save_file(tensors, second, metadata={"format": "pt"})


def index_elsewhere(name: str, beside: bool = False) -> Any:
    def change(folder: Path) -> None:
        shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
        if not beside:
            (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))

    return change


def index_of_others(folder: Path) -> None:
    shard(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"]["lm_head.weight"] = next(f for f in files if f != index["weight_map"]["lm_head.weight"])
    path.write_text(json.dumps(index))


def adapter_alone(folder: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    an_adapter(folder)
    (folder / "adapter_config.json").write_text("{}")


def adapter_by_its_tensors(folder: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    safetensors.save_file({name: torch.zeros(2, 2)}, folder / "model.safetensors")


def integers(folder: Path) -> None:
    tensors = safetensors.load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)
    safetensors.save_file(tensors, folder / "model.safetensors")


def a_pipe(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def a_device(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_names, r"has 2 files \(one\.safetensors, two\.safetensors\), none of them .*: which is the model\?"),
        (shards_without_index, "shards and no model.safetensors.index.json"),
        (duplicates, r"stands in model-00001-of-\d+\.safetensors and in model-00002"),
        (index_elsewhere("../outside.safetensors"), r"lies in '\.\./outside\.safetensors', expected .* same folder"),
        (index_elsewhere("../outside.safetensors", beside=True), r"lies in '\.\./outside"),
        (index_elsewhere("/dev/zero"), "lies in '/dev/zero', expected"),
        (index_elsewhere("."), "lies in '.', expected"),
        (index_of_others, "'lm_head.weight' is not in model-.*, where model.safetensors.index.json has it"),
        (adapter_alone, "holds an adapter .*merge it into its base model"),
        (adapter_by_its_tensors, "holds an adapter's tensors only; merge it"),
        (integers, "'lm_head.weight' has dtype 'I8', supported are F64, F32, F16, BF16"),
        (a_pipe, "model.safetensors cannot be read: not a file"),
        (a_device, "config.json cannot be read: not a file"),
    ],
)
def test_what_is_not_clearly_the_model_is_refused(folder: Path, change: Any, message: str) -> None:
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_decoder(str(folder), **FP32)
    assert "\n" not in str(caught.value)


def test_one_file_of_any_name_is_the_model(folder: Path) -> None:
    expected = head(folder)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    an_adapter(folder)
    assert torch.equal(head(folder), expected)


def test_a_key_that_stands_twice_is_refused(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].decode().rstrip()
    name = '"lm_head.weight":'
    at = header.index(name)
    header = header[:at] + header[at : header.index("}", at) + 1] + "," + header[at:]
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + data[8 + length :])
    with pytest.raises(ValueError, match=r"the key 'lm_head\.weight' stands twice"):
        load_checkpoint(folder, **FP32)


def test_a_huge_configuration_takes_no_memory(folder: Path) -> None:
    set_config(folder, hidden_size=2**20, vocab_size=2**24)
    with pytest.raises(ValueError, match=r"has shape \[96, 64\], the configuration says \[16777216, 1048576\]"):
        load_checkpoint(folder, **FP32)


def test_tokens_beyond_the_embedding_are_refused(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models

    words = {chr(200 + i): i for i in range(95)} | {"b": 95}
    library = Tokenizer(models.WordLevel(words, unk_token="b"))
    library.add_special_tokens([AddedToken("<far>", special=True)])
    library.save(str(folder / "tokenizer.json"))
    set_config(folder, bos_token_id=None, eos_token_id=95)
    loaded = load_decoder(str(folder), **FP32)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode("b") == [95]
    with pytest.raises(ValueError, match=r"holds the token '<far>' of id 96, the model embeds 96"):
        loaded.tokenizer.encode("<far>")
    (folder / "generation_config.json").unlink()
    set_config(folder, eos_token_id=96)
    with pytest.raises(ValueError, match="bos or eos is the token 96, but the model embeds 96"):
        load_decoder(str(folder), **FP32)
    set_config(folder, eos_token_id=95)
    Tokenizer(models.WordLevel({"a": 0, "b": 96}, unk_token="a")).save(str(folder / "tokenizer.json"))
    with pytest.raises(ValueError, match="has a token of id 96, but the model embeds 96"):
        load_decoder(str(folder), **FP32)
