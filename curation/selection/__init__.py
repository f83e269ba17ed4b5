"""Choosing the rows worth fine-tuning on: scores of a pool, strategies within a budget, and what must not be chosen."""
