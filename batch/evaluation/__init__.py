"""Evaluation of models on labels that they have not learnt from."""

MODEL, RANDOM, POPULARITY, RECENCY = "model", "random", "popularity", "recency_popularity"

RANKERS = (MODEL, RANDOM, POPULARITY, RECENCY)
"""The rankers of the full catalogue: a model and its three baselines. Viewed rows have no RECENCY."""

PRIMARY_METRICS = (
    "ndcg_at_10", "hitrate_at_5", "recall_at_20", "coverage_at_10", "overlap_at_10", "popularity_lift_at_10",
)  # fmt: skip
"""The main metrics over the full catalogue, in the order in which they are printed."""

PRIMARY_METRIC = PRIMARY_METRICS[0]
"""The metric by which models and recipes are compared."""

RANKER_LABELS = {RECENCY: "recency popularity"}
"""How tables name a ranker whose key is not plain English."""

NAMED_RANKERS = [(name, RANKER_LABELS.get(name, name)) for name in (MODEL, RECENCY, POPULARITY, RANDOM)]
"""(key, name) of the rankers of the full-catalogue metrics, the strongest baseline next to the model."""

VIEWED_RANKERS = (MODEL, POPULARITY, RANDOM)
"""The rankers of the metrics on viewed posts, in the order of pages."""
