"""Kinds of task, one a file: each registers itself when it is imported."""
