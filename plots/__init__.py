"""Figures made from result rows and nothing else."""
