"""Generative self-refinement (arXiv 2509.00084) as a workload: candidates side by side, then one answer from them."""
