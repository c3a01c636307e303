"""Models from GGUF files: the same logits as the model that was written, and errors that tell."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import (
    FP32,
    Dense,
    assert_close,
    expected_logits,
    gguf,
    make_model,
    some_tokens,
    write_gguf,
)
from resa_bench.suites.model.config import ModelConfig, RopeScaling
from resa_bench.suites.model.gguf_file import GGUFModel
from resa_bench.suites.model.load import load_decoder


@pytest.mark.parametrize("family", ["llama-linear-tied", "llama-plain-head-dim", "qwen2-yarn", "qwen3-yarn-tied"])
def test_gguf_logits_agree_with_transformers(tmp_path: Path, family: str) -> None:
    model = make_model(family)
    write_gguf(tmp_path / "small.gguf", model)
    decoder = GGUFModel(tmp_path / "small.gguf").decoder(**FP32)
    tokens = some_tokens()
    assert_close(Dense(decoder)(tokens), expected_logits(model, tokens))


def test_gguf_says_llama3_scaling_by_divisors(tmp_path: Path) -> None:
    config = ModelConfig("", 1, 64, 1, 1, 64, 1, 1, rope_theta=5e5, rope_scaling=RopeScaling("llama3", 32.0))
    divisors = replace(config, rope_scaling=None).rotary()[0] / config.rotary()[0]
    model = make_model("llama-plain-head-dim")
    model.config.head_dim, model.config.rope_parameters["rope_theta"] = 64, 5e5
    path = tmp_path / "llama3.gguf"
    write_gguf(path, model, extra=lambda writer: writer.add_tensor("rope_freqs.weight", divisors.numpy()))
    assert GGUFModel(path).config.rope_scaling == config.rope_scaling
    write_gguf(path, model, extra=lambda writer: writer.add_tensor("rope_freqs.weight", (divisors + 1).numpy()))
    with pytest.raises(ValueError, match="not llama3's scaling"):
        GGUFModel(path)


def test_gguf_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        GGUFModel(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("text " * 20)
    with pytest.raises(ValueError, match="cannot be read as GGUF"):
        GGUFModel(tmp_path / "text.gguf")
    writer = gguf.GGUFWriter(tmp_path / "gemma.gguf", "gemma")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="architecture is 'gemma', supported are llama, qwen2, qwen3"):
        GGUFModel(tmp_path / "gemma.gguf")
    model = make_model("llama-plain-head-dim")
    write_gguf(tmp_path / "window.gguf", model, extra=lambda writer: writer.add_sliding_window(8))
    with pytest.raises(ValueError, match="sliding-window"):
        GGUFModel(tmp_path / "window.gguf")
    weight = torch.ones(1).numpy()
    write_gguf(tmp_path / "more.gguf", model, extra=lambda writer: writer.add_tensor("blk.0.attn_sinks.weight", weight))
    with pytest.raises(ValueError, match=r"no use for: blk\.0\.attn_sinks\.weight"):
        GGUFModel(tmp_path / "more.gguf").decoder(**FP32)


class Part:
    """Some of a model's tensors, with its configuration: what one part of a split file holds."""

    def __init__(self, model: Any, holds: Callable[[str], bool]) -> None:
        self.config, self._tensors = model.config, {k: v for k, v in model.state_dict().items() if holds(k)}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._tensors


def write_parts(folder: Path, model: Any, count: int = 2) -> list[Path]:
    """The model in `count` parts, as llama.cpp's gguf-split writes it."""
    names = list(model.state_dict())
    paths = []
    for i in range(count):

        def split(writer: gguf.GGUFWriter, i: int = i) -> None:
            writer.add_uint16("split.no", i)
            writer.add_uint16("split.count", count)
            writer.add_int32("split.tensors.count", len(names))

        paths.append(folder / f"small-{i + 1:05}-of-{count:05}.gguf")

        def of_part(name: str, i: int = i) -> bool:
            return names.index(name) % count == i

        write_gguf(paths[-1], Part(model, of_part), extra=split)
    return paths


@pytest.mark.parametrize("given", [0, 2])
def test_a_split_model_is_loaded_whole(tmp_path: Path, given: int) -> None:
    model, tokens = make_model("llama-plain-head-dim"), some_tokens()
    loaded = GGUFModel(write_parts(tmp_path, model, 3)[given])
    assert loaded.config.name == "small"
    assert not loaded.config.tied_head
    assert_close(Dense(loaded.decoder(**FP32))(tokens), expected_logits(model, tokens))


def test_a_part_without_the_others_is_refused(tmp_path: Path) -> None:
    model = make_model("llama-plain-head-dim")
    first, second = write_parts(tmp_path, model)
    (tmp_path / "renamed.gguf").write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="is one of 2 parts of a model, but not named NAME-00001-of-00002"):
        GGUFModel(tmp_path / "renamed.gguf")
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="says that it is part 1 of 2, its name 2 of 2"):
        GGUFModel(first)
    second.unlink()
    with pytest.raises(ValueError, match=r"is one of 2 parts of a model; missing are small-00002-of-00002\.gguf"):
        GGUFModel(first)
    second.write_bytes(kept)
    write_gguf(tmp_path / "plain-00001-of-00004.gguf", model)  # whose metadata do not say that it is split
    with pytest.raises(ValueError, match="one of 4 parts"):
        GGUFModel(tmp_path / "plain-00001-of-00004.gguf")


def words(kind: str = "gpt2", pre: str = "gpt-2", merges: bool = True, kinds: bool = True) -> Any:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(kind)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list([chr(33 + i) for i in range(93)] + ['!"', "<s>", "</s>"])
        if kinds:
            writer.add_token_types([1] * 94 + [3, 3])
        if merges:
            writer.add_token_merges(['! "'])

    return extra


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        pytest.param(dict(merges=False), "", id="no-merges"),
        pytest.param(dict(kinds=False), "", id="no-token-types"),
        pytest.param(dict(kind="llama"), "tokenizer model is 'llama', supported is 'gpt2'", id="sentencepiece"),
        pytest.param(dict(pre="viking"), "got 'viking', known are", id="pre-tokenizer"),
    ],
)
def test_speed_runs_need_no_tokenizer(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    write_gguf(tmp_path / "a.gguf", make_model("llama-plain-head-dim"), extra=words(**settings))
    loaded = load_decoder(str(tmp_path / "a.gguf"), **FP32)
    assert loaded.tokenizer is None
    assert reason in loaded.no_tokenizer


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(tensors: int, entries: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries)


BEGIN = header(0, 1) + text(b"x")
ARCHITECTURE = header(1, 1) + text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
TENSOR = ARCHITECTURE + text(b"token_embd.weight") + struct.pack("<I", 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(BEGIN + struct.pack("<IIQ", 9, 0, 10**12), "claims 1000000000000 items", id="array"),
        pytest.param(BEGIN + struct.pack("<IIQ", 9, 8, 10**12), "claims 1000000000000 items", id="array-of-texts"),
        pytest.param(BEGIN + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 60, "type 9, which is", id="nested"),
        pytest.param(BEGIN + struct.pack("<IQ", 8, 2**62), "a text of 4611686018427387904 bytes", id="text"),
        pytest.param(BEGIN + struct.pack("<I", 77), "metadata of type 77", id="type"),
        pytest.param(header(2**63, 0), "claims 9223372036854775808 tensors", id="tensors"),
        pytest.param(header(0, 2**64 - 1), "claims 18446744073709551615 entries", id="entries"),
        pytest.param(header(0, 1) + struct.pack("<Q", 2**63), "a text of", id="key"),
        pytest.param(b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "it is big-endian", id="big-endian"),
        pytest.param(b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "of version 99", id="version"),
        pytest.param(TENSOR + struct.pack("<QQIQ", 2**40, 2**40, 0, 0), "cut off or damaged", id="shape"),
        pytest.param(TENSOR + struct.pack("<QQIQ", 4, 4, 0, 2**63), "cut off or damaged", id="offset"),
        pytest.param(TENSOR + struct.pack("<QQIQ", 4, 4, 99, 0), "has type 99", id="tensor-type"),
        pytest.param(TENSOR + struct.pack("<QQIQ", 5, 4, 2, 0), "rows of blocks of 32", id="block"),
        pytest.param(TENSOR + struct.pack("<QQIQ", 0, 4, 0, 0), "shape", id="empty"),
    ],
)
def test_a_header_is_not_believed(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "evil.gguf"
    path.write_bytes(data.ljust(1024, b"\0"))
    with pytest.raises(ValueError, match=message):
        GGUFModel(path)
