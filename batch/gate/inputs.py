"""What the rules of the gate look at: plain figures of a run, and of the live run beside it."""

from __future__ import annotations

from dataclasses import dataclass

from batch.evaluation.bootstrap import Difference


@dataclass(frozen=True)
class BesideLive:
    """A run beside the one of its variant that is live.

    Attributes
    ----------
    run_id
        The live run.
    users_of_network
        How many the network had for it.
    users
        How many of the users drawn have a first post in both runs.
    overlap
        Mean over them of the part of the first five that both lists share.
    posts_in_first, posts_in_its_first
        Distinct posts among the first five of those users, now and in the live run.
    differences
        Metric of the viewed rows -> difference on the same held-out rows; None where they cannot be compared.
    why_not
        Why not, in words.
    ndcg_at_10
        Difference of NDCG@10 over the full catalogue, for the same users; None where it cannot be compared.
    why_no_ndcg
        Why not, in words.
    """

    run_id: str
    users_of_network: int
    users: int
    overlap: float
    posts_in_first: int
    posts_in_its_first: int
    differences: dict[str, Difference] | None
    why_not: str = ""
    ndcg_at_10: Difference | None = None
    why_no_ndcg: str = ""


@dataclass(frozen=True)
class PopularityComparison:
    """The model that was fitted before the holdout, over the full catalogue, beside simpler rankers.

    Attributes
    ----------
    users
        How many were judged.
    differences
        `popularity` and `recency_popularity` -> NDCG@10 of the model less that of the ranker, paired by user.
    cannot_judge
        Why the holdout cannot judge, in words; empty where it can.
    """

    users: int
    differences: dict[str, Difference]
    cannot_judge: str = ""


@dataclass(frozen=True)
class GateInputs:
    """What was measured of a run that is written.

    Attributes
    ----------
    users_of_network, users_asked
        How many there are, and how many were to be scored.
    lists, full, of_five, posts, posts_in_first
        As in `tally.Tally`.
    not_finite
        Scores of lists and of held-out rows that are infinite or no number.
    liked_served, lists_joined
        Posts that their user likes, and how many lists were read back to find them.
    popularity_comparison
        The model against popularity and recency popularity.
    live
        None where nothing is live that this run could be compared with.
    """

    users_of_network: int
    users_asked: int
    lists: int
    full: int
    of_five: int
    posts: int
    posts_in_first: int
    not_finite: int
    liked_served: int
    lists_joined: int
    popularity_comparison: PopularityComparison
    live: BesideLive | None
