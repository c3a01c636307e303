"""200 malformed files, each drawn from a seed: what loads them raises a ValueError of one line, or nothing."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz_seeds import seeds
from model_files import FP32, make_model, write_gguf
from resa_bench.suites.maths.problems import load_problems
from resa_bench.suites.model.fingerprint import fingerprint
from resa_bench.suites.model.load import load_decoder, model_config

ODD_VALUES: list[Any] = [
    None, 0, -1, 1, 2, 3, 10**9, 2**70, -(2**70), 1.5, -2.5, 1e-9, 1e308, float("nan"), float("inf"), True, False, "",
    "8", "\ud800", [], [1], ["a"], [[]], [{}], {}, {"a": 1}, {"type": "linear"}, {"type": ["yarn"], "factor": "x"},
    {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4},
    {"type": "yarn", "factor": 0}, {"type": "yarn", "factor": 2, "beta_fast": -1}, {"type": "linear", "factor": -1},
]  # fmt: skip
CONFIG_KEYS = [
    "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "head_dim",
    "max_position_embeddings", "rms_norm_eps", "num_key_value_heads", "rope_theta", "rope_scaling", "rope_parameters",
    "tie_word_embeddings", "layer_types", "hidden_act", "bos_token_id", "eos_token_id", "model_type", "attention_bias",
    "quantization_config", "sliding_window", "use_sliding_window", "max_window_layers", "partial_rotary_factor",
]  # fmt: skip
TOKENIZER_KEYS = ["chat_template", "bos_token", "eos_token", "pad_token", "added_tokens_decoder", "tokenizer_class"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder and a GGUF file that load."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    root = tmp_path_factory.mktemp("good")
    model = make_model("llama-llama3")
    model.save_pretrained(root / "model", max_shard_size="60KB")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:96]
    library = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.save(str(root / "model" / "tokenizer.json"))
    settings = {"chat_template": "{{ messages[0].content }}", "bos_token": letters[1], "eos_token": {"content": "!"}}
    (root / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    (root / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))

    def words(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([*letters[:95], letters[0] + letters[1]])
        writer.add_token_merges([f"{letters[0]} {letters[1]}"])
        writer.add_token_types([1] * 96)
        writer.add_eos_token_id(2)

    write_gguf(root / "model.gguf", make_model("llama-plain-head-dim"), extra=words)
    lines = [{"id": i, "problem": f"{i} + 1?", "answer": str(i + 1), "solution": "\\boxed{2}"} for i in range(4)]
    (root / "problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut off, doubled, or with a few bytes or a word of it replaced."""
    kind = rng.randrange(5)
    at = rng.randrange(max(min(len(data), rng.choice((64, 4096, len(data)))), 1))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data + data[:at]
    if kind == 2:
        word = rng.choice((b"\xff" * 8, b"\0" * 8, (2**40).to_bytes(8, "little"), (2**63).to_bytes(8, "little")))
        return data[:at] + word + data[at + 8 :]
    if kind == 3:
        return data[:at] + rng.choice((b"[", b"{", b'"', b"]", b"}", b",", b"-", b"9" * 50)) + data[at:]
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 8)):
        changed[rng.randrange(min(len(data), 4096))] = rng.randrange(256)
    return bytes(changed)


def change_json(path: Path, keys: list[str], rng: random.Random) -> None:
    values = json.loads(path.read_text())
    for _ in range(rng.randrange(1, 3)):
        key = rng.choice(keys)
        if rng.random() < 0.2:
            values.pop(key, None)
        else:
            values[key] = rng.choice(ODD_VALUES)
    path.write_text(json.dumps(values))


def one_folder(folder: Path, rng: random.Random) -> None:
    """One file of a folder made malformed."""
    shard = sorted(folder.glob("*.safetensors"))[0]
    index = folder / "model.safetensors.index.json"

    def change_index() -> None:
        values = json.loads(index.read_text())
        key = rng.choice(list(values["weight_map"]))
        values["weight_map"][key] = rng.choice([*ODD_VALUES, "../x.safetensors", "/etc/passwd", "none.safetensors"])
        index.write_text(json.dumps(rng.choice((values, {"weight_map": values["weight_map"][key]}, {}))))

    def change_bytes(path: Path) -> Callable[[], object]:
        return lambda: path.write_bytes(damaged(path.read_bytes(), rng))

    def replace_by_folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    rng.choice(
        [
            lambda: change_json(folder / "config.json", CONFIG_KEYS, rng),
            lambda: change_json(folder / "config.json", CONFIG_KEYS, rng),
            lambda: change_json(folder / "tokenizer_config.json", TOKENIZER_KEYS, rng),
            lambda: change_json(folder / "generation_config.json", ["eos_token_id", "bos_token_id"], rng),
            change_index,
            change_bytes(shard),
            change_bytes(shard),
            *(change_bytes(folder / f"{name}.json") for name in ("config", "tokenizer", "tokenizer_config")),
            lambda: replace_by_folder(rng.choice(sorted(folder.iterdir()))),
        ]
    )()


def outcome(load: Callable[[], object]) -> str:
    """`loads`, or the error's text. Anything but a ValueError of one line fails."""
    try:
        load()
    except ValueError as error:
        text = str(error)
    else:
        return "loads"
    assert text
    assert "\n" not in text, text
    return text


@pytest.mark.slow
def test_malformed_folders(good: Path, tmp_path: Path) -> None:
    outcomes = []
    drawn = seeds("files", 90)
    for seed in drawn:
        folder = tmp_path / str(seed)
        shutil.copytree(good / "model", folder)
        one_folder(folder, random.Random(seed))
        outcomes.append(outcome(lambda folder=folder: load_decoder(str(folder), **FP32)))  # type: ignore[misc]
        outcome(lambda folder=folder: model_config(str(folder)))  # type: ignore[misc]
        outcome(lambda folder=folder: fingerprint(folder))  # type: ignore[misc]
        shutil.rmtree(folder)
    assert outcomes.count("loads") < len(drawn) / 2


def test_malformed_gguf_files(good: Path, tmp_path: Path) -> None:
    data, path, outcomes = (good / "model.gguf").read_bytes(), tmp_path / "a.gguf", []
    drawn = seeds("files", 80)
    for seed in drawn:
        path.write_bytes(damaged(data, random.Random(f"gguf {seed}")))
        outcomes.append(outcome(lambda: load_decoder(str(path), **FP32)))
        outcome(lambda: fingerprint(path))
    assert outcomes.count("loads") < len(drawn) * 0.7


def test_malformed_problem_files(good: Path, tmp_path: Path) -> None:
    data, path = (good / "problems.jsonl").read_bytes(), tmp_path / "a.jsonl"
    for seed in seeds("files", 40):
        rng = random.Random(f"problems {seed}")
        lines = [json.loads(line) for line in data.splitlines()]
        lines[rng.randrange(4)][rng.choice(["id", "problem", "answer", "solution"])] = rng.choice(ODD_VALUES)
        path.write_bytes(damaged(data, rng) if seed % 2 else "\n".join(map(json.dumps, lines)).encode())
        try:
            load_problems([path], warn=lambda text: None)
            error = "problems: none"
        except ValueError as raised:
            error = str(raised)
        assert error.startswith("problems: ")


def test_nothing_of_the_good_ones_is_refused(good: Path) -> None:
    for path in (good / "model", good / "model.gguf"):
        loaded = load_decoder(str(path), **FP32)
        assert loaded.tokenizer is not None
    assert len(load_problems([good / "problems.jsonl"])) == 4
