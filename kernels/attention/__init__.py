"""Attention of one decode step, stage by stage: Triton kernels, each with its launcher and its plain reference."""
