"""Judges models on labels they have not learnt from."""

JUDGES = ("model", "random", "popularity")
"""Every figure of a model stands beside the other two."""
