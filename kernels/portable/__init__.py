"""The portable path: block-sparse steps and a dense rival in plain torch, for machines that run no Triton kernels.

Same methods, other means: scores are one batched matrix-vector product of summaries with query slots, attention is a
gather of the selected blocks and SDPA over the packed GQA group, so that K and V are read once there too. Contiguous
caches only. Also an oracle for the kernels.
"""

from .layer import TorchSparseLayer, tokens_of
from .method import ResaTorch, TorchDense, TorchSparseMethod
from .ranking import StepBlocks, calibrated, fill_scores, select_torch
from .tokens import PAGED, refresh_torch, write_tokens_torch

__all__ = [
    "PAGED",
    "ResaTorch",
    "StepBlocks",
    "TorchDense",
    "TorchSparseLayer",
    "TorchSparseMethod",
    "calibrated",
    "fill_scores",
    "refresh_torch",
    "select_torch",
    "tokens_of",
    "write_tokens_torch",
]
