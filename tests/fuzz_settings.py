"""Random valid settings of a sparse step, and an independent fp64 reference that judges it.

Written from the paper's text and `SparseConfig`'s docstrings alone: nothing of the package computes what is expected.
A `Family` holds what a kernel is compiled for, so that a GPU compiles once for many settings.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from kernel_cases import dtype_name
from resa_bench.kernels import AttentionShape, ChunkTensors, KVCache, SparseConfig, StepTensors, Unsupported, get_method
from resa_bench.kernels.config import RATIO_DENOMINATOR
from torch import Tensor

SIZES = {"portable": (16, 32, 64, 128), "kernels": (64, 128)}
OUTPUT = {torch.float32: 3e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}
"""Of the largest value attended to: some roundings of weights and of the output."""
SCORES = {torch.float32: 1e-5, torch.float16: 2**-8, torch.bfloat16: 2**-6}
"""Of the largest sum of absolute products in a row: two blocks whose scores are closer are a tie."""


@dataclass(frozen=True)
class Family:
    """What does not change from setting to setting of one compiled kernel."""

    method: str
    batch: int
    kv_heads: int
    group: int
    dim: int
    block_size: int
    page_size: int | None
    capacity: int
    dtype: torch.dtype
    choice: dict[str, Any]

    @classmethod
    def draw(cls, rng: random.Random, path: str, dtypes: tuple[torch.dtype, ...]) -> Family:
        """`path`: "portable" or "kernels"."""
        block = rng.choice((8, 16, 32, 64, 128))
        methods = ("resa-torch", "resa-torch", "resa-torch", "torch-dense", "sink-window", "oracle")
        if path == "kernels":
            methods = ("resa", "resa", "resa", "resa", "triton-dense", "sink-window")
        method = rng.choice(methods)
        page = block * rng.choice((1, 2)) if path == "kernels" and rng.random() < 0.4 else None
        choice: dict[str, Any] = {}
        if rng.random() < 0.5:
            choice["gqa_policy"] = rng.choice(("group-mean", "group-sum", "per-head", "all-heads"))
        if rng.random() < 0.3:
            choice |= {"summary_kind": "meanstd", "spread_weight": rng.choice((0.0, 0.5, 1.0, 2.0))}
        if rng.random() < 0.2:
            choice["summary_dtype"] = "fp8"
        blocks = rng.choice((2, 5, 12, 30)) if path == "kernels" else rng.choice((2, 5, 20, 60))
        most = 400 if path == "kernels" else 1000
        capacity = min(blocks * block, most) + rng.choice((0, 1, 7, 40))
        return cls(
            method, rng.choice((1, 1, 2, 3)), rng.choice((1, 2, 3)), rng.choice((1, 2, 3, 4, 7, 8)),
            rng.choice(SIZES[path]), block, page, capacity, rng.choice(dtypes), choice,
        )  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One run: a few steps, a rectification, another step."""

    family: Family
    config: SparseConfig
    lengths: tuple[int, ...]
    steps: int
    chunk: int
    scale: float
    seed: int

    @classmethod
    def draw(cls, rng: random.Random, family: Family, seed: int) -> Setting:
        """A setting of a family."""
        local, pinned = rng.choice((1, 1, 1, 0, 2)), rng.choice((0, 0, 0, 1, 2))
        local = family.choice.get("local_blocks", local)
        least = max(rng.choice((1, 1, 2, 4, 16)), local + pinned)
        options = {"block_size": family.block_size, "local_blocks": local, "pinned_blocks": pinned} | family.choice
        if family.method in ("resa", "resa-fused"):
            options["chunk_kernel"] = "triton"  # a rival's may multiply what lies past the end, here NaN, by zero
        if rng.random() < 0.2:
            options["budget_tokens"] = family.block_size * (least + rng.choice((0, 3))) + rng.choice((0, 1))
        else:
            ratio = rng.choice((0.01, 0.05, 0.1, 0.123, 0.2, 1 / 3, 0.5, 0.7, 1.0))
            options |= {"active_ratio": ratio, "min_blocks": least}
        steps = rng.choice((1, 1, 2, 3))
        room = family.capacity - steps - 1
        lengths = tuple(rng.randint(0, max(room, 0)) for _ in range(family.batch))
        if rng.random() < 0.3:
            lengths = (max(room, 0),) * family.batch
        config = SparseConfig(**options)
        return cls(family, config, lengths, steps, rng.randint(1, steps), rng.choice((0.3, 1.0, 3.0)), seed)

    def __str__(self) -> str:
        family, config = self.family, self.config
        return (
            f"seed {self.seed}: {family.method} B{family.batch} {family.kv_heads}x{family.group} D{family.dim} "
            f"{dtype_name(family.dtype)} page {family.page_size} capacity {family.capacity} lengths {self.lengths} "
            f"steps {self.steps} chunk {self.chunk} scale {self.scale:g} {config}"
        )


class Mismatch(AssertionError):
    """What a method did is not what the reference says."""


def selected_count(config: SparseConfig, blocks: int) -> int:
    """n of M blocks."""
    if config.budget_tokens is not None:
        return min(blocks, config.budget_tokens // config.block_size)
    ratio = Fraction(str(config.active_ratio)).limit_denominator(RATIO_DENOMINATOR)
    return min(blocks, max(config.min_blocks, math.ceil(ratio * blocks)))


def block_scores(keys: Tensor, query: Tensor, config: SparseConfig) -> tuple[Tensor, Tensor]:
    """Scores `[rows, M]` of a sequence's blocks in fp64, and the sums of absolute products that bound their errors.

    Args:
        keys: `[Hkv, L, D]`; query: `[Hkv, G, D]`; both fp64.
    """
    size = config.block_size
    blocks = keys.split(size, 1)  # of [Hkv, size or less, D]
    if config.summary_kind == "minmax":
        first = torch.stack([block.amin(1) for block in blocks], 1)  # [Hkv, M, D]
        second = torch.stack([block.amax(1) for block in blocks], 1)

        def rate(q: Tensor) -> Tensor:  # [Hkv, R, D] to [Hkv, R, M]
            return torch.maximum(q[:, :, None] * first[:, None], q[:, :, None] * second[:, None]).sum(-1)

    else:
        first = torch.stack([block.mean(1) for block in blocks], 1)
        second = torch.stack([block.var(1, unbiased=False).sqrt() for block in blocks], 1)

        def rate(q: Tensor) -> Tensor:
            return q @ first.mT + config.spread_weight * (q.abs() @ second.mT)

    rows = query.mean(1, keepdim=True) if config.gqa_policy == "group-mean" else query
    scores, bounds = rate(rows), query.abs() @ (first.abs() + max(config.spread_weight, 1.0) * second.abs()).mT
    if config.gqa_policy in ("group-sum", "all-heads"):
        scores = scores.sum(1, keepdim=True)
    if config.gqa_policy != "per-head":
        bounds = bounds.sum(1, keepdim=True)
    if config.gqa_policy == "all-heads":
        scores, bounds = scores.sum(0, keepdim=True), bounds.sum(0, keepdim=True)
    return scores.flatten(0, 1), bounds.flatten(0, 1)


def mass_scores(keys: Tensor, query: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Softmax mass of each block, summed over the group: what the oracle ranks by. `[Hkv, M]`."""
    mass = torch.softmax(query @ keys.mT * keys.shape[-1] ** -0.5, -1).sum(1)
    scores = torch.stack([part.sum(1) for part in mass.split(size, 1)], 1)
    return scores, torch.full_like(scores, query.shape[1])


def attention(keys: Tensor, values: Tensor, query: Tensor, visible: Tensor) -> Tensor:
    """Softmax attention in fp64: keys, values `[Hkv, L, D]`; query `[Hkv, G, D]`; visible bool `[Hkv, G, L]`."""
    logits = query @ keys.mT * keys.shape[-1] ** -0.5
    return torch.softmax(logits.masked_fill(~visible, -math.inf), -1) @ values


class Run:
    """A method on a cache, and beside it plain fp64 tensors that hold what was written."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self.setting, self.device = setting, device
        family, config = setting.family, setting.config
        self.generator = torch.Generator(device).manual_seed(setting.seed)
        self.shape = AttentionShape(family.batch, family.kv_heads * family.group, family.kv_heads, family.dim)
        self.cache = KVCache.allocate(
            family.batch, family.kv_heads, family.capacity, family.dim, dtype=family.dtype, device=device,
            page_size=family.page_size,
        )  # fmt: skip
        held = self.random(2, family.batch, family.kv_heads, self.cache.capacity, family.dim)
        for b, length in enumerate(setting.lengths):
            held[:, b, :, length:] = math.nan  # what lies past the end is never read
        self.cache.store(held[0], held[1])
        self.keys, self.values = held.double()
        self.lengths = list(setting.lengths)
        self.cache.lengths.copy_(torch.tensor(setting.lengths))
        kind = get_method(family.method)
        if reason := kind.unavailable(self.shape, family.dtype, device):
            raise Unsupported(reason)
        self.layer = kind(self.shape, config, dtype=family.dtype, device=device).prepare(self.cache)
        self.step = StepTensors(*(torch.empty(family.batch, heads, family.dim, dtype=family.dtype, device=device)
                                  for heads in (self.shape.q_heads, family.kv_heads, family.kv_heads,
                                                self.shape.q_heads)))  # fmt: skip
        self.stages = self.layer.stages(self.step)

    def random(self, *shape: int) -> Tensor:
        """Normal deviates of the cache's dtype."""
        family = self.setting.family
        return (torch.randn(shape, generator=self.generator, device=self.device) * self.setting.scale).to(family.dtype)

    def fail(self, what: str) -> None:
        """Raise, with the setting that shows it."""
        raise Mismatch(f"{what}\n{self.setting}")

    def decode(self) -> None:
        """A step, checked."""
        step = self.step
        for tensor in (step.q, step.k, step.v):
            tensor.copy_(self.random(*tensor.shape))
        step.out.fill_(math.nan)
        self.cache.lengths.add_(1)
        for stage in self.stages:
            stage.run()
        for b, length in enumerate(self.lengths):
            self.keys[b, :, length], self.values[b, :, length] = step.k[b].double(), step.v[b].double()
            self.lengths[b] += 1
        self.check_cache()
        out, selection = self.layer.output(step), self.layer.selection()
        for b, length in enumerate(self.lengths):
            query = step.q[b].double().view(self.shape.kv_heads, self.shape.group, -1)
            keys, values = self.keys[b, :, :length], self.values[b, :, :length]
            visible = torch.ones(*query.shape[:2], length, dtype=torch.bool, device=self.device)
            if selection is not None:
                rows = self.check_lists(selection.lists[b], keys, query)
                visible = self.read(rows, length)
            self.check_output(f"sequence {b}", out[b].view_as(query), attention(keys, values, query, visible), values)

    def read(self, lists: Tensor, length: int) -> Tensor:
        """The tokens that lists `[R, n]` name, for every query head: bool `[Hkv, G, L]`."""
        size = self.setting.config.block_size
        hit = torch.zeros(lists.shape[0], -(-length // size), dtype=torch.bool, device=self.device)
        hit.scatter_(1, lists.long(), True)
        tokens = hit.repeat_interleave(size, 1)[:, :length]
        heads, group = self.shape.kv_heads, self.shape.group
        per_list = heads * group // lists.shape[0]
        return tokens.repeat_interleave(per_list, 0).view(heads, group, length)

    def check_lists(self, lists: Tensor, keys: Tensor, query: Tensor) -> Tensor:
        """Each row lists its n best blocks once, ascending, then -1; ties may fall either way. `[R, n]`."""
        config, blocks = self.setting.config, -(-keys.shape[1] // self.setting.config.block_size)
        n = selected_count(config, blocks)
        chosen = lists[:, :n]
        rises = bool((chosen[:, 1:] > chosen[:, :-1]).all())
        inside = bool((chosen >= 0).all() and (chosen < blocks).all() and (lists[:, n:] == -1).all())
        if not (rises and inside):
            self.fail(f"lists {lists.tolist()}: expected {n} of {blocks} blocks in order, then -1")
        if self.setting.family.method == "sink-window":
            sink = min(config.sink_blocks, n)
            wanted = [*range(sink), *range(blocks - (n - sink), blocks)]
            if chosen.tolist() != [wanted]:
                self.fail(f"list {chosen.tolist()}, expected {wanted}")
            return chosen
        index = torch.arange(blocks, device=self.device)
        always = (index >= blocks - config.local_blocks) | (index < config.pinned_blocks)
        if self.setting.family.method == "oracle":
            scores, bounds = mass_scores(keys, query, config.block_size)
        else:
            scores, bounds = block_scores(keys, query, config)
        tie = SCORES[self.setting.family.dtype] * bounds.amax(1, keepdim=True)
        if config.summary_dtype == "fp8":
            tie = tie + bounds.amax(1, keepdim=True) / 8  # e4m3 has three bits
        scores = scores.masked_fill(always, math.inf)
        worst_chosen = scores.gather(1, chosen.long()).amin(1, keepdim=True)
        nth = scores.topk(n, 1).values[:, -1:]
        if scores.shape[0] != lists.shape[0] or bool((worst_chosen < nth - 2 * tie).any()):
            self.fail(f"lists {chosen.tolist()} leave out better blocks: {(nth - worst_chosen).flatten().tolist()}")
        return chosen

    def check_output(self, where: str, out: Tensor, wanted: Tensor, values: Tensor) -> None:
        """Within some roundings."""
        off = float((out.double() - wanted).abs().max())
        allowed = OUTPUT[self.setting.family.dtype] * max(float(values.abs().max()), self.setting.scale)
        if not off <= allowed:
            self.fail(f"{where}: output off by {off:.3g}, allowed {allowed:.3g}")

    def check_cache(self) -> None:
        """The cache holds what was written, and nothing else changed."""
        for name, held, wanted in zip("KV", self.cache.gather(), (self.keys, self.values), strict=True):
            if not torch.equal(held.double().nan_to_num(nan=1e9), wanted.nan_to_num(nan=1e9)):
                self.fail(f"{name} differs from what was written")

    def rectify(self) -> None:
        """The last tokens' K and V overwritten, dense attention of theirs; where the method rectifies."""
        count, family = self.setting.chunk, self.setting.family
        heads = (self.shape.q_heads, family.kv_heads, family.kv_heads)
        q, k, v = (self.random(family.batch, count, h, family.dim) for h in heads)
        chunk = ChunkTensors(q, k, v, torch.full_like(q, math.nan))
        stages = self.layer.rectify_stages(chunk)
        for stage in stages:
            stage.run()
        if not stages:
            return
        for b, length in enumerate(self.lengths):
            self.keys[b, :, length - count : length] = k[b].double().transpose(0, 1)
            self.values[b, :, length - count : length] = v[b].double().transpose(0, 1)
        self.check_cache()
        out = self.layer.rectified(chunk)
        for b, length in enumerate(self.lengths):
            keys, values = self.keys[b, :, :length], self.values[b, :, :length]
            for t in range(count):
                query = q[b, t].double().view(self.shape.kv_heads, self.shape.group, -1)
                seen = torch.arange(length, device=self.device) < length - count + t + 1
                wanted = attention(keys, values, query, seen.expand(*query.shape[:2], -1))
                self.check_output(f"rectified token {t} of sequence {b}", out[b, t].view_as(query), wanted, values)


def check(setting: Setting, device: torch.device) -> None:
    """Run a setting: steps, a rectification, one more step. Raises Mismatch."""
    run = Run(setting, device)
    for _ in range(setting.steps):
        run.decode()
    run.rectify()
    run.decode()
