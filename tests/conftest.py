"""Without a CUDA device kernels run in the interpreter, which must be settled before triton is imported."""

import gc
import os
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Iterator

import hypothesis
import pytest
from interpreter import quicken
from kernel_cases import DEVICE, DTYPES, dtype_name
from resa_bench.kernels import method

HALVES_KEPT = 4
"""Each fourth test in half precision runs interpreted; on a GPU, or with RESA_BENCH_EVERY_TEST set, all do."""

if DEVICE.type == "cpu":
    import triton.runtime.interpreter

    quicken(triton.runtime.interpreter)

hypothesis.settings.register_profile(
    "kernels",
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("kernels")


def pytest_configure(config: pytest.Config) -> None:
    """The interpreter's numpy warns of -inf minus -inf and of NaN, which kernels discard."""
    for message in ("invalid value encountered in", "All-NaN slice encountered"):
        config.addinivalue_line("filterwarnings", f"ignore:{message}:RuntimeWarning")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `package` run where they are asked for, those marked `gpu` where kernels are compiled."""
    if "package" not in config.getoption("-m"):
        built = [item for item in items if item.get_closest_marker("package")]
        config.hook.pytest_deselected(items=built)
        items[:] = [item for item in items if item not in built]
    if DEVICE.type == "cuda":
        return
    if not os.environ.get("RESA_BENCH_EVERY_TEST"):
        left_out = thinned_out(items)
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_unconfigure() -> None:
    """Libraries that count their objects at exit would report those as leaked."""
    gc.unfreeze()


def thinned_out(items: list[pytest.Item]) -> set[pytest.Item]:
    """What takes long without a GPU and repeats what others show: halves, and cases of tests marked `thinned(n)`."""
    halves = [item for item in items if is_half(item)]
    left_out = set(halves) - set(halves[::HALVES_KEPT])
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("thinned") and item not in left_out:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for same_test in cases.values():
        marker = same_test[0].get_closest_marker("thinned")
        assert marker is not None
        left_out |= set(same_test) - set(same_test[:: marker.args[0]])
    return left_out


def is_half(item: pytest.Item) -> bool:
    """Whether an item takes the fixture `dtype` in 16 bits."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return parameters.get("dtype") in (torch.float16, torch.bfloat16)


@pytest.fixture(scope="module", autouse=True)
def _what_stays_is_not_garbage() -> None:
    """Garbage collections skip what imports and earlier files left: a second each, with the whole suite."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def registry() -> Iterator[None]:
    """Forget afterwards the methods that a test registers."""
    before = dict(method._registry)
    yield
    method._registry.clear()
    method._registry.update(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for one another make small products many times slower where other tests run beside them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def inference() -> Iterator[None]:
    """Models decode without gradients."""
    with torch.inference_mode():
        yield


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> str:
    """What measuring processes import, where nobody reads their times: on a CPU, ceilings alone take eight seconds."""
    from resa_bench.profiling import timing
    from resa_bench.suites.core import plugins, worker
    from resa_bench.suites.decode import suite as decode

    names = ",".join(str(Path(__file__).with_name(f"{name}.py")) for name in ("known_ceilings", "small_cache"))
    monkeypatch.setenv(plugins.VARIABLE, names)
    for module, name in ((worker, "measure_ceilings"), (decode, "measure_ceilings"), (timing, "_cpu_cache_bytes")):
        monkeypatch.setattr(module, name, getattr(module, name))  # where a command runs here, as it was afterwards
    return names


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run: the CPU under the interpreter, else the first GPU."""
    return DEVICE


def dtype_params() -> list[object]:
    """Each dtype; under the interpreter, half precision is slow: fp32 alone is for every day."""
    interpreted = DEVICE.type != "cuda"
    return [pytest.param(x, marks=[pytest.mark.slow] if interpreted and x != torch.float32 else []) for x in DTYPES]


@pytest.fixture(params=dtype_params(), ids=dtype_name)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """fp16 and fp32 under the interpreter, bf16 and fp16 on a GPU."""
    return request.param
