"""Small models decoded by several processes over gloo, and by one: what tests/test_parallel.py compares.

Processes come from one server that has torch imported, so that they start at once.
"""

from __future__ import annotations

import gc
import json
import multiprocessing as mp
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from resa_bench.kernels import SparseConfig
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.engine.bind import layers_of
from resa_bench.suites.engine.engine import Engine, State, generate
from resa_bench.suites.engine.prompt import prefill
from resa_bench.suites.model.config import ModelConfig
from resa_bench.suites.model.parallel.shard import Shard
from resa_bench.suites.model.weights import assemble
from safetensors.torch import save_file
from torch import Tensor

CPU = torch.device("cpu")
BATCH, PROMPT, STEPS, VOCAB = 2, 70, 9, 64
SPARSE = SparseConfig(block_size=8, active_ratio=0.3, min_blocks=2, rectify_every=4)


@dataclass(frozen=True)
class Small:
    """A model, the method that decodes it, and the type of its projections."""

    config: ModelConfig
    spec: MethodSpec = field(default_factory=lambda: MethodSpec("torch-dense", SPARSE))
    weights: str = "fp32"


def small(name: str, q_heads: int = 8, kv_heads: int = 4, dim: int = 16, ffn: int = 96, **more: Any) -> ModelConfig:
    return ModelConfig(name, 2, 64, q_heads, kv_heads, dim, ffn, VOCAB, rope_theta=1e4, **more)


RESA = MethodSpec("resa-torch", SPARSE)
PER_HEAD = MethodSpec("resa-torch", replace(SPARSE, gqa_policy="per-head"))
MODELS = {
    "llama": Small(small("llama"), RESA),
    "qwen2": Small(small("qwen2", qkv_bias=True, tied_head=True), RESA),
    "qwen3": Small(small("qwen3", qk_norm=True), RESA),
    "dense": Small(small("dense")),
    "fewer-kv-heads-than-ranks": Small(small("gqa", kv_heads=1, qkv_bias=True), PER_HEAD),
    "int4": Small(small("int4", dim=64, ffn=512), RESA, "int4"),
    "unequal-columns": Small(small("unequal", dim=64, ffn=640), weights="int4"),
}


def save_llama(folder: Path, config: ModelConfig) -> None:
    """Random weights as a Hugging Face folder."""
    tensors = dict[str, Tensor]()

    def fill(name: str, out: Tensor) -> None:
        tensors[name] = out.normal_(0.0, 0.1).clone()

    assemble(config, fill, dtype=torch.float32, device=CPU)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    fields = {
        "model_type": "llama", "num_hidden_layers": config.layers, "hidden_size": config.hidden,
        "num_attention_heads": config.q_heads, "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim,
        "intermediate_size": config.ffn, "vocab_size": config.vocab, "max_position_embeddings": 4096,
        "rms_norm_eps": config.norm_eps,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(fields))


@dataclass
class Decoded:
    """What a decoding left: logits of each step, token ids fed, keys of the last layer, lists of its last step."""

    logits: Tensor  # [STEPS, B, vocab]
    tokens: Tensor  # [STEPS, B]
    keys: Tensor  # [B, Hkv, tokens, D]
    lists: Tensor | None  # [B, rows, N]


def on_gpu(spec: MethodSpec) -> MethodSpec:
    """Its form on a GPU, reading all blocks: in bf16 a near-tie of scores may fall either way."""
    name = "triton-dense" if spec.is_dense else "resa"
    return replace(spec, name=name, config=replace(spec.config, active_ratio=1.0))


def decode(model: Small, shard: Shard | None = None, device: torch.device = CPU) -> Decoded:
    """Prefill, then some greedy steps with rectifications, on random weights that make attention matter.

    On a GPU in bf16, steps and rectifications as graphs, and the tokens fed are given: near-ties may fall either way.
    """
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    generator = torch.Generator().manual_seed(5)

    def fill(name: str, out: Tensor) -> None:
        is_norm = out.ndim == 1 and not name.endswith(".bias")
        out.copy_(torch.empty(out.shape).normal_(1.0 if is_norm else 0.0, 0.15, generator=generator))

    text = torch.randint(0, VOCAB, (BATCH, PROMPT + STEPS + 1), generator=torch.Generator().manual_seed(6)).to(device)
    prompt, following = text[:, :PROMPT], text[:, PROMPT:]
    weights = "bf16" if cuda and model.weights == "fp32" else model.weights
    with torch.inference_mode():
        decoder = assemble(model.config, fill, dtype=dtype, device=device, weight_dtype=weights, shard=shard)
        state = State.allocate(decoder, BATCH, 128, STEPS + 1)
        first = prefill(decoder, state, prompt).argmax(-1)
        spec = on_gpu(model.spec) if cuda else model.spec
        layers = layers_of(decoder, state, spec)
        every = spec.config.rectify_every if spec.rectifies else None
        engine = Engine(decoder, state, layers, rectify_every=every)
        run, rectify = engine.step, engine.rectify if every else None
        if cuda:
            state.start(PROMPT, first)
            run = engine.capture(engine.step)  # type: ignore[assignment]
            if every:
                state.start(PROMPT + every, first)
                state.count.fill_(every)
                rectify = engine.capture(engine.rectify)  # type: ignore[assignment]
            prefill(decoder, state, prompt)
        state.start(PROMPT, following[:, 0] if cuda else first)
        for layer in {id(layer): layer for layer in layers if every}.values():
            layer.refresh(PROMPT)
        logits: list[Tensor] = []

        def step() -> None:
            run()
            logits.append(engine.logits.clone())
            if cuda:
                state.pending.copy_(following[:, len(logits)])

        generate(step, rectify, every or STEPS, STEPS)
        selection = layers[-1].selection()
        keys = layers[-1].cache.gather()[0][:, :, : PROMPT + STEPS]
        lists = None if selection is None else selection.lists.cpu()
        return Decoded(torch.stack(logits).cpu(), state.history[:STEPS].cpu(), keys.cpu(), lists)


def _decode_all(rank: int, world: int, folder: Path, on: str) -> None:
    torch.set_num_threads(1)
    device, meet = CPU, {"init_method": f"file://{folder / 'meet'}", "rank": rank, "world_size": world}
    if on == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device, **meet)  # type: ignore[arg-type]
    else:
        dist.init_process_group("gloo", **meet)  # type: ignore[arg-type]
    results = {name: decode(model, Shard(rank, world), device) for name, model in MODELS.items()}
    torch.save(results, folder / f"{rank}.pt")
    gc.collect()  # graphs that hold NCCL's calls
    dist.destroy_process_group()


def decode_by(world: int, folder: Path, on: str = "cpu") -> list[dict[str, Decoded]]:
    """What each of `world` processes has of every model; `on` a CPU, or a GPU each."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processes = [context.Process(target=_decode_all, args=(rank, world, folder, on)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(500)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
