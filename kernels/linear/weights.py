"""What a linear layer consists of: its weight in 16 bits, and the RMSNorm before it. Others are in `int4` and `fp8`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm before a linear layer: x / sqrt(mean(x^2) + eps) * weight.

    Attributes:
        weight: `[K]` in the activations' dtype.
    """

    weight: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """A weight `[N, K]` in the activations' dtype, and its bias `[N]`. With SwiGLU: N/2 gate rows, then N/2 up rows."""

    weight: Tensor
    bias: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def bytes(self) -> int:
        """What one multiplication must read."""
        return tensor_bytes(self.weight, self.bias)


def tensor_bytes(*tensors: Tensor | None) -> int:
    """Bytes of the elements of those that are there."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
