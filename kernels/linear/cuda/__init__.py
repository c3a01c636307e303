"""One to sixteen rows times a 4-bit weight as one CUDA kernel, for GPUs of compute capability 9.0 and up.

Beside the Triton kernel, which runs everywhere and takes more rows. This one has its weights under way before the
kernel before it has ended, and never lets its pipeline drain: Triton offers no way to either.
"""
