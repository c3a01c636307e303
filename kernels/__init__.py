"""Block-sparse decode attention: the device code stage by stage, its references, and ReSA, which puts it together; the
same step as one CUDA kernel (`fused`).

Imports nothing else of this project, so that it can be used on its own from another engine.
"""

from .attention.chunk import ChunkKernel, best_chunk_kernel, chunk_kernels, register_chunk_kernel
from .attention.dense import dense_attention, dense_splits
from .attention.merge import Partials, merge_partials
from .attention.scores import score_blocks, score_rows
from .attention.selection import select_blocks
from .attention.sparse_decode import sparse_decode, sparse_splits
from .attention.summaries import Summaries, build_summaries, refresh_summaries, write_tokens
from .attention.window import Ring
from .attention.window_decode import window_decode, window_splits
from .attention.window_merge import merge_window
from .cache import KVCache
from .config import AttentionShape, SparseConfig
from .fused import ResaFused
from .method import (
    ChunkTensors,
    DecodeMethod,
    Layer,
    NotHere,
    Selection,
    Stage,
    StepTensors,
    Traffic,
    Unsupported,
    WindowTensors,
    get_method,
    register,
    registered,
)
from .portable import ResaTorch, TorchDense
from .resa import ResaChain, SparseOnly
from .triton_dense import TritonDense
from .ways import Resa, way

__all__ = [
    "AttentionShape",
    "ChunkKernel",
    "ChunkTensors",
    "DecodeMethod",
    "KVCache",
    "Layer",
    "NotHere",
    "Partials",
    "Resa",
    "ResaChain",
    "ResaFused",
    "ResaTorch",
    "Ring",
    "Selection",
    "SparseConfig",
    "SparseOnly",
    "Stage",
    "StepTensors",
    "Summaries",
    "TorchDense",
    "Traffic",
    "TritonDense",
    "Unsupported",
    "WindowTensors",
    "best_chunk_kernel",
    "build_summaries",
    "chunk_kernels",
    "dense_attention",
    "dense_splits",
    "get_method",
    "merge_partials",
    "merge_window",
    "refresh_summaries",
    "register",
    "register_chunk_kernel",
    "registered",
    "score_blocks",
    "score_rows",
    "select_blocks",
    "sparse_decode",
    "sparse_splits",
    "way",
    "window_decode",
    "window_splits",
    "write_tokens",
]
