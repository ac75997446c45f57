"""What the gate's rules read: figures of a run, and its comparison with the live run."""

from __future__ import annotations

from dataclasses import dataclass

from batch.evaluation.bootstrap import Difference


@dataclass(frozen=True)
class LiveComparison:
    """Comparison of a run with the live run of its variant.

    Attributes
    ----------
    run_id
        The live run.
    users_of_network
        Users that the network had for the live run.
    users
        Sampled users with a list that is not empty in both runs.
    overlap
        Mean over these users of the share of the first five posts that both lists have.
    head_posts, live_head_posts
        Distinct posts in the first five of these users, in this run and in the live run.
    differences
        Metric of the viewed rows -> difference on the same held-out rows; None if not comparable.
    not_comparable_because
        The reason; empty if comparable.
    lists_not_comparable_because
        Why no user's lists are compared although there are some; empty if they are.
    ndcg_at_10
        Difference of NDCG@10 over the full catalogue, for the same users; None if not comparable.
    ndcg_not_comparable_because
        The reason; empty if comparable.
    """

    run_id: str
    users_of_network: int
    users: int
    overlap: float
    head_posts: int
    live_head_posts: int
    differences: dict[str, Difference] | None
    not_comparable_because: str = ""
    lists_not_comparable_because: str = ""
    ndcg_at_10: Difference | None = None
    ndcg_not_comparable_because: str = ""


@dataclass(frozen=True)
class PopularityComparison:
    """Comparison of the model fit before the holdout with popularity rankers, over the full catalogue.

    Attributes
    ----------
    users
        Number of evaluated users.
    differences
        `popularity` and `recency_popularity` -> NDCG@10 of the model minus the ranker's, paired by user.
    not_comparable_because
        Why the holdout is not enough to compare; empty if it is.
    """

    users: int
    differences: dict[str, Difference]
    not_comparable_because: str = ""


@dataclass(frozen=True)
class HoldoutAuc:
    """ROC AUC of the model fit before the holdout, on the held-out rows.

    Attributes
    ----------
    value
        The AUC; 0.5 is that of random order.
    high
        The upper end of its 95 % interval.
    users
        Number of users with a liked row.
    not_comparable_because
        Why the rows do not measure the model; empty if they do.
    """

    value: float
    high: float
    users: int
    not_comparable_because: str = ""


@dataclass(frozen=True)
class GateInputs:
    """Measurements of a run that is written.

    Attributes
    ----------
    users_of_network, users_requested
        Users of the network; users to be scored.
    lists, full, lists_with_five, posts, posts_in_first
        As in `ListStats`.
    not_finite
        Scores of lists and of held-out rows that are NaN or infinite.
    liked_in_lists, lists_read
        Posts in lists that their user's list must leave out; lists that were read back to find them.
    left_out_because
        What the users did with these posts: `liked`, `written` if authors are known, `viewed` if asked for.
    popularity_comparison
        The model compared with popularity and recency popularity.
    auc
        Of the model fit before the holdout.
    live
        Comparison with the live run; None if no run of the variant is live.
    """

    users_of_network: int
    users_requested: int
    lists: int
    full: int
    lists_with_five: int
    posts: int
    posts_in_first: int
    not_finite: int
    liked_in_lists: int
    lists_read: int
    left_out_because: tuple[str, ...]
    popularity_comparison: PopularityComparison
    auc: HoldoutAuc
    live: LiveComparison | None
