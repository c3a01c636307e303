"""Selection is exact: the same lists as a stable sort, on scores made to trip it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import DEVICE, DTYPES, NAN, make_cache
from resa_bench.kernels import KVCache, SparseConfig, select_blocks
from resa_bench.kernels.attention import long_selection, selection
from resa_bench.kernels.attention.selection import selection_reference
from resa_bench.kernels.config import MAX_BLOCKS
from resa_bench.kernels.launch import recording
from torch import Tensor

INF = float("inf")
LARGEST = torch.finfo(torch.float32).max
DENORMAL = 2.0**-149


def choice(*values: float) -> Callable[[int, torch.Generator], Tensor]:
    """Rows of values drawn from a few: ties everywhere."""

    def draw(blocks: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(values), (blocks,), generator=generator)
        return torch.tensor(values, dtype=torch.float32)[index]

    return draw


def neighbours(blocks: int, generator: torch.Generator) -> Tensor:
    """Shuffled floats that differ by one unit in the last place."""
    bits = torch.tensor(1.0).view(torch.int32) + torch.randperm(blocks, generator=generator)
    return bits.to(torch.int32).view(torch.float32)


PATTERNS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "normal": lambda m, g: torch.randn(m, generator=g),
    "ties": choice(0.0, 1.0, 2.0, 3.0),
    "all-equal": choice(1.5),
    "signed-zeros": choice(-0.0, 0.0),
    "zeros-and-denormals": choice(-0.0, 0.0, DENORMAL, -DENORMAL),
    "minus-infinity": choice(-INF, -INF, -1.0, 1.0),
    "all-minus-infinity": choice(-INF),
    "plus-infinity": choice(INF, INF, 0.0, -1.0),
    "all-plus-infinity": choice(INF),
    "both-infinities": choice(INF, -INF),
    "huge": choice(LARGEST, -LARGEST, LARGEST / 2, 1e-30),
    "every-size": lambda m, g: torch.randn(m, generator=g) * torch.exp2(torch.randint(-140, 120, (m,), generator=g)),
    "negative": lambda m, g: -torch.rand(m, generator=g) - 1,
    "neighbours": neighbours,
    "ascending": lambda m, g: torch.arange(m, dtype=torch.float32),
    "descending": lambda m, g: -torch.arange(m, dtype=torch.float32),
    "one-worst": lambda m, g: torch.ones(m).index_fill(0, torch.randint(m, (1,), generator=g), -1.0),
    "one-best": lambda m, g: torch.zeros(m).index_fill(0, torch.randint(m, (1,), generator=g), 1.0),
}


def length_cache(lengths: list[int], capacity: int, block_size: int = 8) -> KVCache:
    """A cache of `lengths` and `capacity`, both in blocks; the last block of each sequence holds one token."""
    tokens = [max((blocks - 1) * block_size + 1, 0) if blocks else 0 for blocks in lengths]
    return make_cache(tokens, 1, 16, dtype=DTYPES[0], capacity=capacity * block_size)


def select(scores: Tensor, cache: KVCache, config: SparseConfig, *, spare: int = 0) -> tuple[Tensor, Tensor]:
    """Lists and counts from poisoned buffers, `spare` entries longer than needed."""
    shape = (*scores.shape[:2], config.selected(cache.capacity) + spare)
    lists = torch.full(shape, -7, dtype=torch.int32, device=DEVICE)
    counts = torch.full(scores.shape[:2], -7, dtype=torch.int32, device=DEVICE)
    select_blocks(scores, cache, lists, counts, config, check_values=True)
    return lists, counts


def check_selection(scores: Tensor, cache: KVCache, config: SparseConfig, *, spare: int = 0) -> None:
    """Scores past a sequence's end are poisoned first, then lists, padding and counts must be exactly right."""
    scores = scores.clone()
    lengths = cache.lengths.tolist()
    for b, length in enumerate(lengths):
        scores[b, :, config.blocks(length) :] = NAN
    lists, counts = select(scores.to(DEVICE), cache, config, spare=spare)
    for b, length in enumerate(lengths):
        blocks, n = config.blocks(length), config.selected(length)
        assert counts[b].tolist() == [n] * counts.shape[1]
        wanted = selection_reference(scores[b, :, :blocks].cpu(), n)
        assert lists[b, :, :n].tolist() == wanted.tolist()
        assert bool((lists[b, :, n:] == -1).all())


@pytest.mark.sanitizer
@pytest.mark.parametrize("n", [1, 5, 33, 1000], ids=lambda n: f"n{n}")
@pytest.mark.slow
def test_adversarial_scores(n: int) -> None:
    """All patterns as rows of one launch; sequences of no block, one block, n and n + 1 blocks and full."""
    capacity = 100
    lengths = [min(m, capacity) for m in (0, 1, n, n + 1, capacity)]
    generator = torch.Generator().manual_seed(n)
    scores = torch.stack([torch.stack([draw(capacity, generator) for draw in PATTERNS.values()]) for _ in lengths])
    config = SparseConfig(block_size=8, active_ratio=0.0001, min_blocks=n)
    check_selection(scores, length_cache(lengths, capacity), config, spare=3)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.slow
def test_long_rows(pattern: str) -> None:
    """Rows longer than one scan, and not a power of two."""
    generator = torch.Generator().manual_seed(0)
    scores = PATTERNS[pattern](1300, generator)[None, None]
    check_selection(scores, length_cache([1300], 1300), SparseConfig(block_size=8, active_ratio=0.13))


@pytest.mark.sanitizer
@pytest.mark.thinned(2)
@pytest.mark.parametrize(("bits", "ratio"), [(1, 0.01), (1, 0.4), (2, 0.4), (2, 0.01)])
@pytest.mark.slow
def test_bits_of_a_pass(bits: int, ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One or two bits of the threshold in a pass, few and many blocks kept of all patterns."""
    monkeypatch.setattr(selection, "BITS", bits)
    generator = torch.Generator().manual_seed(2)
    scores = torch.stack([draw(700, generator) for draw in PATTERNS.values()])[None]
    config = SparseConfig(block_size=8, active_ratio=ratio, min_blocks=1)
    check_selection(scores, length_cache([700], 700), config)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("spread", [0, 1, 2, 15, 16, 17, 24, 30])
@pytest.mark.slow
def test_ranges_of_keys(spread: int, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys up to 2^spread apart, and that plus one: one or both halves of their bits are searched, ties cut or not."""
    monkeypatch.setattr(selection, "BITS", bits)
    generator = torch.Generator().manual_seed(spread)
    rows = []
    for most in (2**spread - 1, 2**spread, 2**spread + 1):
        steps = torch.randint(most + 1, (90,), generator=generator)
        steps[:2] = torch.tensor([0, most])
        steps[2:30:3] = steps[3]
        for start in (0x00000000, 0x3F800000 - 2**29):  # positive floats in their order
            rows += [(start + steps).clamp(max=0x7F7FFFFF).to(torch.int32).view(torch.float32)]
    scores = torch.stack(rows + [-row for row in rows])[None]
    scores[:, ::3, 5] = INF
    for n in (1, 9, 45):
        check_selection(scores, length_cache([90], 90), SparseConfig(block_size=8, active_ratio=0.001, min_blocks=n))


@pytest.mark.thinned(3)
@pytest.mark.parametrize("width", [32, 128, 512, 1024, 2048, 8192, 16384])
@pytest.mark.slow
def test_widths(width: int) -> None:
    """Every number of programs and warps; shorter sequences leave programs without blocks."""
    generator = torch.Generator().manual_seed(width)
    lengths = [width, width // 2 + 1, 1]
    normal = torch.randn(3, 1, width, generator=generator)
    scores = torch.cat([normal, (normal * 8).round()], dim=1)  # without and with ties
    scores[:, :, :3] = INF
    config = SparseConfig(block_size=8, active_ratio=0.1, min_blocks=2)
    check_selection(scores, length_cache(lengths, width), config, spare=1)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("pattern", ["one-worst", "normal", "ties"])
@pytest.mark.slow
def test_longest_row(pattern: str) -> None:
    """As many blocks as a program holds: counts near 2^15 must not run over into each other."""
    scores = PATTERNS[pattern](32768, torch.Generator().manual_seed(1))[None, None]
    check_selection(scores, length_cache([32768], 32768), SparseConfig(block_size=8, active_ratio=0.9))


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks that a program holds, few: longer rows are shared out by spans as short."""
    monkeypatch.setattr(selection, "HELD_BLOCKS", 128)
    monkeypatch.setattr(long_selection, "SPAN", 128)
    return 128


@pytest.mark.sanitizer
@pytest.mark.slow
@pytest.mark.thinned(2)
@pytest.mark.parametrize("ratio", [0.01, 0.4, 1.0])
def test_rows_that_no_program_holds(ratio: float, held: int) -> None:
    """Rows of ties, of near keys, of infinities; a full sequence, a shorter one, one block, none."""
    blocks = 2 * held + 41
    generator = torch.Generator().manual_seed(3)
    lengths = [blocks, held - 1, 1, 0]
    drawn = ("ties", "neighbours", "both-infinities", "every-size")
    rows = torch.stack([PATTERNS[name](blocks, generator) for name in drawn])
    scores = torch.stack([rows.roll(b, dims=1) for b in range(len(lengths))])
    config = SparseConfig(block_size=8, active_ratio=ratio, min_blocks=1)
    cache = length_cache(lengths, blocks)
    check_selection(scores, cache, config, spare=3)
    with recording() as launches:
        select(scores.to(DEVICE), cache, config)
    assert [launch.name for launch in launches] == ["_tally_kernel"] * 8 + ["_write_long_kernel"]


@pytest.mark.parametrize("span", [32, 256])
def test_spans_of_a_long_row(span: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many programs a row, or two: each finds its place in the list, ties cut within and between spans."""
    monkeypatch.setattr(long_selection, "SPAN", span)
    scores = PATTERNS["ties"](4 * held, torch.Generator().manual_seed(span))[None, None]
    check_selection(scores, length_cache([4 * held], 4 * held), SparseConfig(block_size=8, active_ratio=0.3))


@pytest.mark.slow
@pytest.mark.thinned(2)
@pytest.mark.parametrize("pattern", ["ties", "normal"])
def test_a_million_tokens_in_blocks_of_16(pattern: str) -> None:
    scores = PATTERNS[pattern](MAX_BLOCKS, torch.Generator().manual_seed(1))[None, None]
    check_selection(scores, length_cache([MAX_BLOCKS], MAX_BLOCKS), SparseConfig(block_size=8, active_ratio=0.9))


@pytest.mark.parametrize("ratio", [0.1, 0.15, 0.3, 0.55, 0.7, 1.0])
@pytest.mark.slow
def test_ceilings_are_exact(ratio: float) -> None:
    """n = ceil(r M) in exact arithmetic, on host and device: 0.15 of 100 is 15 (in 32-bit floats 16)."""
    lengths = [1, 2, 7, 10, 19, 20, 21, 40, 60, 99, 100]
    config = SparseConfig(block_size=8, active_ratio=ratio, min_blocks=1)
    wanted = [min(m, max(1, ceil(Fraction(str(ratio)) * m))) for m in lengths]
    assert [config.selected(m * 8) for m in lengths] == wanted
    _, counts = select(torch.zeros(len(lengths), 1, 100, device=DEVICE), length_cache(lengths, 100), config)
    assert counts[:, 0].tolist() == wanted
    if ratio == 0.15:
        assert wanted[-1] == 15


@pytest.mark.parametrize("budget", [8, 47, 10_000])
def test_budget_in_tokens(budget: int) -> None:
    lengths = [0, 1, 5, 6, 40]
    config = SparseConfig(block_size=8, budget_tokens=budget, active_ratio=0.5)
    assert [config.selected(m * 8) for m in lengths] == [min(m, budget // 8) for m in lengths]
    scores = torch.randn(5, 2, 40, generator=torch.Generator().manual_seed(2))
    check_selection(scores, length_cache(lengths, 40), config)


def test_minimum_of_blocks() -> None:
    config = SparseConfig()  # ReSA's defaults: 10 % is reached past 2,560 tokens, below 256 everything is read
    assert [config.selected(s) for s in (1, 16, 17, 256, 272, 2560, 2576, 262144)] == [1, 1, 2, 16, 16, 16, 17, 1639]


def test_local_blocks_are_taken_first() -> None:
    scores = torch.zeros(1, 2, 20)
    scores[:, :, :10] = LARGEST
    scores[:, :, 18:] = INF
    lists, _ = select(scores.to(DEVICE), length_cache([20], 20), SparseConfig(block_size=8, min_blocks=4))
    assert lists.tolist() == [[[0, 1, 18, 19]] * 2]


@pytest.mark.slow
def test_lengths_change_in_place() -> None:
    cache = length_cache([50, 50], 50)
    scores = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(3))
    for lengths in ([50, 3], [1, 0], [17, 49]):
        cache.lengths.copy_(torch.tensor(lengths, dtype=torch.int32) * 8)
        check_selection(scores, cache, SparseConfig(block_size=8, min_blocks=4, active_ratio=0.3))


def test_strided_buffers() -> None:
    """Scores and lists may be slices of larger buffers; what surrounds them stays."""
    cache = length_cache([30, 12], 30)
    config = SparseConfig(block_size=8, min_blocks=4)
    scores = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(4)).to(DEVICE)[:, :2, :30]
    buffer = torch.full((2, 5, 16), -7, dtype=torch.int32, device=DEVICE)
    lists = buffer[:, 1:3, 2:8]
    counts = torch.empty(2, 2, dtype=torch.int32, device=DEVICE)
    select_blocks(scores, cache, lists, counts, config)
    for b, blocks in enumerate((30, 12)):
        wanted = selection_reference(scores[b, :, :blocks].cpu(), 4)
        assert lists[b].tolist() == [[*row, -1, -1] for row in wanted.tolist()]
    lists.fill_(-7)
    assert bool((buffer == -7).all())


SPECIAL = (0.0, -0.0, INF, -INF, LARGEST, -LARGEST, DENORMAL, -DENORMAL, 1.0, -1.0)


@given(data=st.data())
@pytest.mark.slow
def test_anything(data: st.DataObject) -> None:
    capacity = data.draw(st.integers(1, 70), label="capacity")
    lengths = data.draw(st.lists(st.integers(0, capacity), min_size=1, max_size=3), label="lengths")
    number = st.sampled_from(SPECIAL) | st.floats(width=32, allow_nan=False)
    pool = data.draw(st.lists(number, min_size=1, max_size=capacity), label="pool")  # a small pool makes ties
    seed = data.draw(st.integers(0, 1000), label="seed")
    scores = torch.stack(
        [choice(*pool)(capacity, torch.Generator().manual_seed(seed + i)) for i in range(2 * len(lengths))]
    )
    config = SparseConfig(
        block_size=8,
        active_ratio=data.draw(st.integers(1, 100), label="percent") / 100,
        min_blocks=data.draw(st.integers(1, capacity + 1), label="min_blocks"),
    )
    check_selection(scores.view(len(lengths), 2, capacity), length_cache(lengths, capacity), config)
