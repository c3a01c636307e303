"""One decode step of attention as a FlashInfer Trace Definition, with a reference in plain torch, and its Solutions.

The schema: https://bench.flashinfer.ai/docs/flashinfer-trace (repository flashinfer-ai/flashinfer-bench, commit
40e6ca7844b5). A Definition is what must be computed, its reference the mathematical specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Template
from typing import Any

from ...kernels import AttentionShape, SparseConfig
from ...kernels.config import SELECTS

OP_TYPE = "gqa_decode_step"
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

DENSE = '''"""One decode step of grouped-query attention: append the new token, attend to all."""

import torch


def run(q, k, v, k_cache, v_cache):
    batch, q_heads, head_dim = q.shape
    kv_heads, kv_len = k_cache.shape[1:3]
    k_cache[:, :, kv_len - 1], v_cache[:, :, kv_len - 1] = k, v
    heads = q.float().view(batch, kv_heads, q_heads // kv_heads, head_dim)
    logits = heads @ k_cache.float().transpose(2, 3) * head_dim**-0.5
$mask    weights = torch.exp(logits - logits.amax(-1, keepdim=True))
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights @ v_cache.float()).view(q.shape).to(q.dtype)
'''

SPARSE = '''

def chosen_tokens(heads, keys, dtype):
    """Which tokens each query head attends to, [batch, kv_heads, group, kv_len]: those of the best blocks."""
    batch, kv_heads, group, head_dim = heads.shape
    kv_len = keys.shape[2]
    blocks = -(-kv_len // $block_size)
    parts = [keys[:, :, block * $block_size : (block + 1) * $block_size] for block in range(blocks)]
$summaries
    first, second = (x.to(dtype).float() for x in (first, second))  # [batch, kv_heads, blocks, head_dim]
    queries = heads$queries
    scores = $scores
    scores = scores$shared  # [batch, 1 or kv_heads, 1 or group, blocks]
    index = torch.arange(blocks, device=keys.device)
    scores[..., (index >= blocks - $local) | (index < $pinned)] = float("inf")  # always read
    count = min(blocks, max($least, -(-blocks * $numerator // $denominator)))
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]  # ties to the lower block
    best = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True)
    tokens = best.repeat_interleave($block_size, dim=-1)[..., :kv_len]
    return tokens.expand(batch, kv_heads, group, kv_len)
'''
MASK = """    summary_dtype = $summary_dtype
    mask = chosen_tokens(heads, k_cache.float(), summary_dtype)
    logits = logits.masked_fill(~mask, float("-inf"))
"""
SUMMARIES = {
    "minmax": """    first = torch.stack([part.amin(2) for part in parts], 2)
    second = torch.stack([part.amax(2) for part in parts], 2)""",
    "meanstd": """    first = torch.stack([part.mean(2) for part in parts], 2)
    second = torch.stack([part.var(2, correction=0).sqrt() for part in parts], 2)""",
}
FP8 = "\n    first, second = first.clamp(-448, 448), second.clamp(-448, 448)"
SCORES = {
    "minmax": "queries.clamp(max=0) @ first.transpose(2, 3) + queries.clamp(min=0) @ second.transpose(2, 3)",
    "meanstd": "queries @ first.transpose(2, 3) + $spread_weight * queries.abs() @ second.transpose(2, 3)",
}
SHARED = {
    "group-mean": "",
    "per-head": "",
    "group-sum": ".sum(2, keepdim=True)",
    "all-heads": ".sum((1, 2), keepdim=True)",
}

SOLUTION = '''"""$method of resa-bench $version: one decode step. Needs the package (pip install resa-bench).

The method is bound to the cache at every call; times in traces are those of the bound step.
"""

import torch
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import AttentionShape, KVCache, SparseConfig, StepTensors, get_method

CONFIG = SparseConfig($config)


def run(q, k, v, k_cache, v_cache):
    batch, q_heads, head_dim = q.shape
    lengths = torch.full((batch,), k_cache.shape[2], dtype=torch.int32, device=q.device)
    shape = AttentionShape(batch, q_heads, k_cache.shape[1], head_dim)
    method = get_method("$method")(shape, CONFIG, dtype=q.dtype, device=q.device)
    layer = method.prepare(KVCache(k_cache, v_cache, lengths))
    step = StepTensors(q, k, v, torch.empty_like(q))
    for stage in layer.stages(step):
        stage.run()
    return layer.output(step)
'''


@dataclass(frozen=True, slots=True)
class Problem:
    """What a row's method had to compute.

    Attributes:
        dtype: of queries, keys and values, as rows name it.
        sparse: the settings by which blocks are chosen; None: attention to all.
    """

    shape: AttentionShape  # its batch does not count
    dtype: str
    sparse: SparseConfig | None = None

    @property
    def name(self) -> str:
        """`gqa_decode_step_h28_kv4_d128_bf16`, and how blocks are chosen where they are."""
        shape, config = self.shape, self.sparse
        words = [OP_TYPE, f"h{shape.q_heads}", f"kv{shape.kv_heads}", f"d{shape.head_dim}", self.dtype]
        if config is not None:
            budget = f"r{config.active_ratio:g}" if config.budget_tokens is None else f"n{config.budget_tokens}"
            words += [f"b{config.block_size}", budget, f"min{config.floor_blocks}", config.gqa_policy]
            spread = f"c{config.spread_weight:g}" if config.summary_kind == "meanstd" else ""
            words += [f"{config.summary_kind}{spread}", config.summary_dtype or ""]
            words.append(f"pin{config.pinned_blocks}" if config.pinned_blocks else "")
        return "_".join(word.replace("-", "_") for word in words if word)

    @property
    def reference(self) -> str:
        """Python whose `run` computes it step by step, in fp32."""
        config = self.sparse
        if config is None:
            return Template(DENSE).substitute(mask="")
        fp8 = config.summary_dtype == "fp8"
        mask = Template(MASK).substitute(summary_dtype="torch.float8_e4m3fn" if fp8 else "q.dtype")
        local, pinned = config.always
        helper = Template(SPARSE).substitute(
            block_size=config.block_size,
            summaries=SUMMARIES[config.summary_kind] + (FP8 if fp8 else ""),
            queries=".mean(2, keepdim=True)" if config.gqa_policy == "group-mean" else "",
            scores=Template(SCORES[config.summary_kind]).safe_substitute(spread_weight=config.spread_weight),
            shared=SHARED[config.gqa_policy],
            local=local,
            pinned=pinned,
            least=config.floor_blocks,
            numerator=config.ratio.numerator,
            denominator=config.ratio.denominator,
        )
        text = Template(DENSE).substitute(mask=mask)
        return text.replace("import torch\n", "import torch\n" + helper, 1).replace("attend to all.", "read blocks.")

    @property
    def definition(self) -> dict[str, Any]:
        """The Definition, as JSON."""
        dtype = DTYPES[self.dtype]
        tensors = {
            "q": ["batch_size", "num_qo_heads", "head_dim"],
            "k": ["batch_size", "num_kv_heads", "head_dim"],
            "v": ["batch_size", "num_kv_heads", "head_dim"],
            "k_cache": ["batch_size", "num_kv_heads", "kv_len", "head_dim"],
            "v_cache": ["batch_size", "num_kv_heads", "kv_len", "head_dim"],
        }
        what = "all tokens" if self.sparse is None else "the best blocks of tokens by their summaries"
        return {
            "name": self.name,
            "op_type": OP_TYPE,
            "tags": ["stage:decode", "fused"],
            "description": (
                f"One decode step of grouped-query attention: the new token's K and V are written at the cache's last "
                f"position, then {what} are attended to. Made by resa-bench."
            ),
            "axes": {
                "batch_size": {"type": "var"},
                "kv_len": {"type": "var", "description": "tokens a sequence, the new one included"},
                "num_qo_heads": {"type": "const", "value": self.shape.q_heads},
                "num_kv_heads": {"type": "const", "value": self.shape.kv_heads},
                "head_dim": {"type": "const", "value": self.shape.head_dim},
            },
            "inputs": {name: {"shape": axes, "dtype": dtype} for name, axes in tensors.items()},
            "outputs": {"output": {"shape": tensors["q"], "dtype": dtype}},
            "reference": self.reference,
        }

    def solution_source(self, method: str, version: str | None) -> str:
        """Python whose `run` computes it by a method of this package."""
        config = self.sparse
        settings = {} if config is None else {name: getattr(config, name) for name in (*SELECTS, "budget_tokens")}
        changed = (f"{name}={value!r}" for name, value in settings.items() if value != getattr(SparseConfig(), name))
        return Template(SOLUTION).substitute(method=method, version=version or "", config=", ".join(changed))
