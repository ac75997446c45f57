"""Judges models on labels they have not learnt from."""

MODEL, RANDOM, POPULARITY, RECENCY = "model", "random", "popularity", "recency_popularity"

VIEWED_RANKERS = (MODEL, RANDOM, POPULARITY)
"""What is judged by `viewed-only`."""

RANKERS = (*VIEWED_RANKERS, RECENCY)
"""What is judged over the full catalogue: every figure of a model stands beside those of the other three."""

NAMES = {RECENCY: "recency popularity"}
"""How tables name a ranker whose key in records is no English."""
