"""The linear suite: a step's matrix products, 1 to 2048 rows, in 16, 8 and 4 bits; ours beside libraries."""
