"""The block-sparse decode step as one CUDA kernel for GPUs with thread-block clusters (compute capability 9.0 and up).

Beside the Triton kernels, not in their place: those run everywhere and show each stage, this one shows what the
boundaries between kernels cost. Triton has no way to let programs of one kernel speak to each other through shared
memory, so this kernel is CUDA C++, compiled at first use by NVRTC (docs/notes/speed.md).
"""

from .dense import CudaDense
from .method import ResaFused

__all__ = ["CudaDense", "ResaFused"]
