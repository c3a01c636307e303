"""Sparse decoding inside transformers: equal to dense `generate` where everything is read, and to our own engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers_models import FULL_AND_WINDOW, greedy, prompt, tiny

pytest.importorskip("transformers", minversion="5.20")

from resa_bench.integrations.transformers import SparseCache, attach, detach
from resa_bench.integrations.transformers.from_decoder import transformers_model
from resa_bench.integrations.transformers.names import cache_name, cache_of
from resa_bench.integrations.transformers.refuse import check_call
from resa_bench.kernels import KVCache, SparseConfig, Unsupported, get_method
from resa_bench.kernels.selectors import Following
from resa_bench.suites.engine.engine import Engine, State, bind_layers, generate
from resa_bench.suites.engine.prompt import english_text, prefill
from resa_bench.suites.model.load import load_decoder
from tiny_model import TINY, tiny_decoder

EVERYTHING: dict[str, Any] = {"active_ratio": 1.0, "rectify_every": 8}
SPARSE: dict[str, Any] = {"min_blocks": 2, "block_size": 8, "rectify_every": 8}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("family", FULL_AND_WINDOW)
def test_everything_read_is_dense(family: str, batch: int) -> None:
    """Across three rectifications, ragged sequences padded on the left."""
    model, inputs = tiny(family), prompt(batch)
    dense = greedy(model, inputs)
    assert len(set(dense[0, 40:].tolist())) > 5, "a text that repeats itself tells nothing"
    attach(model, "resa", **EVERYTHING)
    assert torch.equal(greedy(model, inputs), dense)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("family", ["qwen3-next", "lfm2"])
def test_linear_layers_stay_as_they_are(family: str, batch: int) -> None:
    """Their state is put back where the outstanding steps began, before each rectification."""
    model, inputs = tiny(family), prompt(batch)
    dense = greedy(model, inputs)
    adapter = attach(model, "resa", **EVERYTHING)
    assert torch.equal(greedy(model, inputs), dense)
    cache = SparseCache(adapter, 64)
    with pytest.raises(Unsupported, match="from which no tokens can be taken"):
        cache_of(greedy(model, inputs, tokens=3, return_dict_in_generate=True)).crop(-1)
    assert sum(cache.is_linear) == 1


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_few_blocks_read_is_something_else(family: str) -> None:
    """So that the test above cannot pass with steps that are dense anyway."""
    model, inputs = tiny(family), prompt(4)
    dense = greedy(model, inputs)
    attach(model, "resa", **SPARSE)
    assert not torch.equal(greedy(model, inputs), dense)


@pytest.mark.parametrize("method", ["sparse", "quest", "sink-window", "oracle"])
def test_other_methods_of_the_registry(method: str) -> None:
    model, inputs = tiny("llama"), prompt(2)
    dense = greedy(model, inputs, tokens=12)
    settings: dict[str, Any] = {"block_size": 8, "min_blocks": 2}
    attach(model, method, **settings, active_ratio=1.0)
    assert torch.equal(greedy(model, inputs, tokens=12), dense)
    adapter = attach(model, method, **settings)
    assert adapter.spec.name == method
    if method != "quest":  # whose first two layers, here all, stay dense
        assert not torch.equal(greedy(model, inputs, tokens=12), dense)


def engine_tokens(decoder: Any, ids: torch.Tensor, config: SparseConfig, tokens: int) -> list[int]:
    """What our own engine decodes after a prompt `[1, T]`."""
    length, device = ids.shape[1], torch.device("cpu")
    state = State.allocate(decoder, 1, length + 128, tokens)
    state.start(length, prefill(decoder, state, ids).argmax(-1))
    method = get_method("resa-torch")(decoder.config.attention(1), config, dtype=decoder.dtype, device=device)
    layers = bind_layers(state, method, None, 0)
    engine = Engine(decoder, state, layers, rectify_every=config.rectify_every)
    generate(engine.step, engine.rectify, config.rectify_every, tokens)
    return state.history[:tokens, 0].tolist()


@pytest.mark.parametrize("selector", [None, "pairs-shared2"])
def test_equals_our_engine_on_a_tiny_model(selector: str | None) -> None:
    decoder = tiny_decoder()
    config = SparseConfig(block_size=8, min_blocks=2, rectify_every=8, selector=selector)
    ids = torch.randint(TINY.vocab, (1, 150), generator=torch.Generator().manual_seed(0))
    model, plain = transformers_model(decoder), {"repetition_penalty": 1.0}
    own = engine_tokens(decoder, ids, config, 40)
    assert greedy(model, {"input_ids": ids}, tokens=40, **plain)[0, 150:].tolist() != own
    attach(model, "resa", config)
    assert greedy(model, {"input_ids": ids}, tokens=40, **plain)[0, 150:].tolist() == own


@pytest.mark.slow
def test_equals_our_engine_on_smollm2() -> None:
    """A tenth of the blocks of real text, two rectifications; weights are shared, not copied."""
    loaded = load_decoder("smollm2-135m", dtype=torch.float32, device=torch.device("cpu"))
    assert loaded.tokenizer is not None
    decoder, config = loaded.decoder, SparseConfig(min_blocks=2, rectify_every=8)
    ids = torch.tensor(loaded.tokenizer.encode(english_text()[20000:24000])[:192])[None]
    model = transformers_model(decoder)
    first = decoder.layers[0].qkv.weight  # type: ignore[union-attr]
    assert model.model.layers[0].self_attn.q_proj.weight.data_ptr() == first.data_ptr()
    attach(model, "resa", config)
    sparse = greedy(model, {"input_ids": ids}, tokens=18, repetition_penalty=1.0)
    assert sparse[0, 192:].tolist() == engine_tokens(decoder, ids, config, 18)


def test_layers_that_follow_are_the_same_after_a_reset() -> None:
    """Of an odd number of layers the first would follow the last one otherwise, whose lists are of another text."""
    model, inputs = tiny("llama", num_hidden_layers=3), prompt(2)
    attach(model, "resa", **SPARSE, selector="shared2")
    cache = cache_of(greedy(model, inputs, tokens=4, return_dict_in_generate=True))
    for layers in (3, 0, 3):
        follow = [isinstance(layer.bound.selector, Following) for layer in cache.sparse_layers if layer.bound]
        assert follow == [False, True, False][:layers]
        if layers:
            cache.reset()
        else:
            cache = cache_of(greedy(model, inputs, 4, past_key_values=cache, return_dict_in_generate=True))


@pytest.fixture
def llama() -> Iterator[Any]:
    """A tiny model; what was attached to it is detached afterwards."""
    model = tiny("llama")
    yield model
    detach(model)


# ---- generate's usual options


def test_sampling_draws_the_same_numbers(llama: Any) -> None:
    options = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "num_return_sequences": 2}
    torch.manual_seed(3)
    dense = greedy(llama, prompt(2), **options)
    attach(llama, "resa", **EVERYTHING)
    torch.manual_seed(3)
    assert torch.equal(greedy(llama, prompt(2), **options), dense)


def test_streamer_and_stopping_criteria(llama: Any) -> None:
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Streamer:
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.tokens.append(-1)

    class At(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 51)

    attach(llama, "resa", **EVERYTHING)
    streamer = Streamer()
    out = greedy(llama, prompt(1), streamer=streamer, stopping_criteria=StoppingCriteriaList([At()]))
    assert out.shape[1] == 51
    assert streamer.tokens == [*out[0].tolist(), -1]


def test_end_of_sequence_and_processors(llama: Any) -> None:
    """Sequences end apart, and go on being padded."""
    inputs = prompt(4)
    options: dict[str, Any] = {"min_new_tokens": 3}
    plain = greedy(llama, inputs, **options)
    options |= {"eos_token_id": int(plain[1, 46])}
    dense = greedy(llama, inputs, **options)
    attach(llama, "resa", **EVERYTHING)
    assert torch.equal(greedy(llama, inputs, **options), dense)
    assert bool((dense[1, 47:] == 0).all())


def test_prompt_in_chunks(llama: Any) -> None:
    """The last chunk holds one token, which is the prompt's and not a step."""
    inputs = prompt(1, tokens=41)
    dense = greedy(llama, inputs)
    attach(llama, "resa", **EVERYTHING)
    assert torch.equal(greedy(llama, inputs, prefill_chunk_size=8), dense)
    adapter = attach(llama, "sink-window", block_size=8, min_blocks=2)
    cache = SparseCache(adapter, 64)
    greedy(llama, inputs, tokens=1, prefill_chunk_size=8, **{cache_name(llama): cache})
    exact = detached_cache(llama, inputs["input_ids"])
    own: Any = cache.layers[1]
    torch.testing.assert_close(own.keys[:, :, :41], exact.layers[1].keys, atol=1e-4, rtol=1e-4)


def detached_cache(model: Any, ids: torch.Tensor) -> Any:
    """The cache that a dense forward of ids leaves."""
    detach(model)
    return cache_of(model(ids, use_cache=True))


def test_a_short_maximum_length_grows(llama: Any) -> None:
    """The room follows what is decoded, whatever was foreseen."""
    inputs = prompt(2)
    dense = greedy(llama, inputs, tokens=100)
    adapter = attach(llama, "resa", **EVERYTHING)
    cache = SparseCache(adapter, 1)
    assert torch.equal(greedy(llama, inputs, tokens=100, **{cache_name(llama): cache}), dense)
    assert cache.capacity >= 139


def test_outside_generate_the_model_is_its_own(llama: Any) -> None:
    ids = prompt(1)["input_ids"]
    before = llama(ids).logits
    attach(llama, "resa", **SPARSE)
    assert torch.equal(llama(ids).logits, before)
    assert llama.config._attn_implementation == "sdpa"
    own = llama.generate
    detach(llama)
    assert llama.generate != own
    assert "forward" not in vars(llama)


# ---- turns, lengths, memory


def turns(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> tuple[torch.Tensor, Any]:
    """A first answer and a second question on its cache: the tokens of both, and the cache."""
    first = greedy(model, inputs, tokens=21, return_dict_in_generate=True, **options)
    batch = first.sequences.shape[0]
    question = torch.randint(3, 120, (batch, 7), generator=torch.Generator().manual_seed(9))
    ids = torch.cat((first.sequences, question), dim=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 28), value=1)
    cache = {cache_name(model): cache_of(first)}
    second = greedy(model, {"input_ids": ids, "attention_mask": mask}, return_dict_in_generate=True, **cache)
    return second.sequences, cache_of(second)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_second_question_on_the_same_cache(family: str, batch: int) -> None:
    model, inputs = tiny(family), prompt(batch)
    dense, _ = turns(model, inputs)
    attach(model, "resa", **EVERYTHING)
    sparse, _ = turns(model, inputs)
    assert torch.equal(sparse, dense)


def test_a_second_question_finds_exact_keys(llama: Any) -> None:
    """Sparse steps were rectified before the question was read, the outstanding ones too."""
    adapter = attach(llama, "resa", **SPARSE)
    sequences, cache = turns(llama, prompt(1))
    adapter.rectify(cache)
    assert cache.outstanding == 0
    exact = detached_cache(llama, sequences[:, :-1])
    for own, reference in zip(cache.layers, exact.layers, strict=True):
        torch.testing.assert_close(own.keys[:, :, : cache.length], reference.keys, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("count", [3, 11])
def test_cropping(llama: Any, count: int) -> None:
    """Fewer tokens than are outstanding (5 of 20 steps), and more."""

    def cropped() -> torch.Tensor:
        first = greedy(llama, prompt(2), tokens=21, return_dict_in_generate=True)
        cache_of(first).crop(-count)
        ids, kept = first.sequences[:, : 41 + 20 - count], cache_of(first)
        mask = torch.nn.functional.pad(prompt(2)["attention_mask"], (0, ids.shape[1] - 40), value=1)
        return greedy(llama, {"input_ids": ids, "attention_mask": mask}, **{cache_name(llama): kept})

    dense = cropped()
    attach(llama, "resa", **EVERYTHING)
    assert torch.equal(cropped(), dense)


def test_crop_says_what_it_cannot_remove(llama: Any) -> None:
    attach(llama, "resa", **EVERYTHING)
    cache = cache_of(greedy(llama, prompt(2), tokens=4, return_dict_in_generate=True))
    with pytest.raises(ValueError, match="expected the number of tokens to remove as -n"):
        cache.crop(3)
    with pytest.raises(ValueError, match="more than the shortest sequence has"):
        cache.crop(-39)


def test_keys_and_values_are_kept_once(llama: Any) -> None:
    """The transformers cache's layers are our caches, and padding takes no room in them."""
    attach(llama, "resa", **EVERYTHING)
    cache = cache_of(greedy(llama, prompt(4), tokens=4, return_dict_in_generate=True))
    for layer in cache.layers:
        assert isinstance(layer.store, KVCache)
        assert layer.keys.data_ptr() == layer.store.k.data_ptr() == layer.bound.cache.k.data_ptr()
    assert cache.lengths.tolist() == [43, 38, 30, 23]
    assert cache.get_seq_length() == 43


def test_steps_by_hand(llama: Any) -> None:
    """A cache and the model's forward are enough: forced tokens, say."""
    ids = prompt(1)["input_ids"]
    dense = llama(ids).logits[:, 30:]
    adapter = attach(llama, "resa", **EVERYTHING)
    cache = {cache_name(llama): SparseCache(adapter, 40)}
    with torch.no_grad():
        parts = [llama(ids[:, :31], **cache).logits[:, -1:]]
        parts += [llama(ids[:, i : i + 1], **cache).logits for i in range(31, 40)]
    torch.testing.assert_close(torch.cat(parts, 1), dense, atol=1e-3, rtol=1e-3)


# ---- refusals


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"assistant_model": "itself"}, "assistant_model"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
        ({"dola_layers": "high"}, "dola_layers"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"use_cache": False}, "use_cache"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"output_attentions": True}, "output_attentions"),
        ({"custom_generate": lambda *a, **k: None}, "custom_generate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_are_refused_by_name(llama: Any, options: dict[str, Any], name: str) -> None:
    attach(llama, "resa")
    given = {k: (llama if v == "itself" else v) for k, v in options.items()}
    with pytest.raises(Unsupported, match=name):
        greedy(llama, prompt(1), **given)


def test_other_caches_and_loops_are_refused(llama: Any) -> None:
    from transformers import DynamicCache

    attach(llama, "resa")
    with pytest.raises(Unsupported, match="got a DynamicCache"):
        greedy(llama, prompt(1), **{cache_name(llama): DynamicCache(config=llama.config)})
    with pytest.raises(Unsupported, match="another model or method"):
        greedy(llama, prompt(1), **{cache_name(llama): SparseCache(attach(tiny("llama"), "resa"), 64)})
    with pytest.raises(Unsupported, match="generate_batch"):
        llama.generate_batch([[3, 4]])


@pytest.mark.parametrize("where", ["right", "middle"])
def test_masks_beyond_left_padding_are_refused(llama: Any, where: str) -> None:
    attach(llama, "resa")
    inputs = prompt(1)
    inputs["attention_mask"][0, -3 if where == "middle" else -1] = 0
    with pytest.raises(Unsupported, match="pad on the left"):
        greedy(llama, inputs)


def test_a_mask_that_is_more_than_causal_is_refused_in_a_step(llama: Any) -> None:
    adapter = attach(llama, "resa")
    cache = {cache_name(llama): SparseCache(adapter, 64)}
    ids = prompt(1)["input_ids"]
    llama(ids[:, :20], **cache)
    with pytest.raises(Unsupported, match=r"expected \[batch, tokens\]"):
        llama(ids[:, 20:21], attention_mask=torch.ones(1, 1, 1, 21, dtype=torch.bool), **cache)


def test_methods_that_do_not_fit_are_refused(llama: Any) -> None:
    refused = {"retro": "repairs", "snapkv": "evicts", "r-kv": "evicts", "resa-lossless": "run `resa-bench lossless`"}
    for method, why in (refused | {"sdpa-flash": "fixes its length", "nonesuch": "known are"}).items():
        with pytest.raises(Unsupported, match=why):
            attach(llama, method)
    assert "generate" not in vars(llama)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"active_ration": 0.05}, "active_ration: no setting of a method; settings are block_size, active_ratio"),
        ({"window": 3}, "window: makes no difference to resa-torch, whose settings are block_size"),
        ({"dense_layers": -1}, "dense_layers: got -1, must be at least 0"),
        ({"dense_layers": "1"}, "dense_layers: got '1', expected int"),
        ({"dense_layers": 1.5}, "dense_layers: got 1.5, expected int"),
    ],
    ids=str,
)
def test_a_setting_that_would_be_lost_is_refused(llama: Any, settings: dict[str, Any], why: str) -> None:
    """A misspelt name once ran at the defaults without a word."""
    with pytest.raises(ValueError, match=f"^{why}"):
        attach(llama, "resa", **settings)


def test_an_empty_mask_is_refused(llama: Any) -> None:
    attach(llama, "resa")
    with pytest.raises(Unsupported, match="attention_mask: got \\[1, 0\\]"):
        llama.generate(torch.ones(1, 4, dtype=torch.long), attention_mask=torch.ones(1, 0), max_new_tokens=1)
    detach(llama)


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        ("phi3", {"hidden_size": 384, "head_dim": 96}, "head dim is 96"),
        ("llama", {"attention_dropout": 0.5}, "attention dropout"),
    ],
    ids=["head-dim", "dropout"],
)  # fmt: skip
def test_attention_that_is_not_served_is_refused(family: str, changes: dict[str, Any], why: str) -> None:
    model = tiny(family, **changes)
    model.train(why == "attention dropout")
    attach(model, "resa")
    with pytest.raises(Unsupported, match=why):
        greedy(model, prompt(1), tokens=3)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"softcap": 50.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"is_causal": False}, "not causal"),
        ({"sliding_window": 16}, "sliding window of 16"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_attention_is_handed_is_not_lost(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        check_call(3, True, {"position_ids": None, "softcap": None} | arguments)
    check_call(3, False, {"sliding_window": 16})


def test_models_that_are_not_served_are_refused() -> None:
    import transformers

    small: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    small |= {"intermediate_size": 32, "num_key_value_heads": 1}
    gemma2 = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**small))  # softcaps its scores

    def decode() -> None:  # refused by the first of them, by the second where transformers has SDPA for it
        attach(gemma2, "resa")
        greedy(gemma2, {"input_ids": torch.ones(1, 4, dtype=torch.long)}, tokens=3)

    with pytest.raises(Unsupported, match=r"attention interface|softcap"):
        decode()
    sharing = tiny("llama")
    sharing.config.num_kv_shared_layers = 1
    with pytest.raises(Unsupported, match="share keys and values"):
        attach(sharing, "resa")
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=60, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    )
    with pytest.raises(Unsupported, match="encoder-decoder"):
        attach(t5, "resa")
