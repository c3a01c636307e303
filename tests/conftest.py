"""Without a CUDA device kernels run in the interpreter, which must be settled before triton is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Iterator

import hypothesis
import pytest
from kernel_cases import DEVICE, DTYPES, dtype_name
from resa_bench.kernels import method

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
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def registry() -> Iterator[None]:
    """Forget afterwards the methods that a test registers."""
    before = dict(method._registry)
    yield
    method._registry.clear()
    method._registry.update(before)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run: the CPU under the interpreter, else the first GPU."""
    return DEVICE


@pytest.fixture(params=DTYPES, ids=dtype_name)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """fp16 and fp32 under the interpreter, bf16 and fp16 on a GPU."""
    return request.param
