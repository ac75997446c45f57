"""Judges models on labels they have not learnt from."""

MODEL, RANDOM, POPULARITY, RECENCY = "model", "random", "popularity", "recency_popularity"

VIEWED_RANKERS = (MODEL, RANDOM, POPULARITY)
"""What is judged by `viewed-only`."""

RANKERS = (*VIEWED_RANKERS, RECENCY)
"""What is judged over the full catalogue: every figure of a model stands beside those of the other three."""

FIRST_FIGURES = (
    "ndcg_at_10", "hitrate_at_5", "recall_at_20", "coverage_at_10", "overlap_at_10", "popularity_lift_at_10",
)  # fmt: skip
"""Over the full catalogue: what a model is judged by first, in this order."""

NAMES = {RECENCY: "recency popularity"}
"""How tables name a ranker whose key in records is no English."""
