"""A model shared by several processes by heads and columns: what each of them has, and what they exchange."""
