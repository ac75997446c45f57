"""The protocol `full catalogue with likes left out`: rank all posts for users, and count what they liked.

A case is the state of a network at a cutoff. The candidates of a user are all
posts known at the cutoff, without those that their list would leave out: what the
user had liked, their own posts and, with OVERNIGHT_LEAVE_OUT=viewed, what they had
viewed. A hit is a post that the user liked afterwards. Evaluated are the users with such a like: warm
users have a like before the cutoff, cold users have none. A post that the user
never saw counts as a miss, so the metrics are far lower than under
`viewed-only`, and describe the served lists better.

Metrics of a list: those of ranking_metrics.py at 5 and 10, `recall_at_20`, and

- `coverage_at_k`: share of the known posts that are among the first k of any
  list. It grows with the number of users: compare it for the same users only.
- `overlap_at_10`: share of the first ten posts of one user that are also among
  the first ten of another user, drawn uniformly. With c(p) the number of users
  whose list has p, a user's value is the sum over their posts of c(p) - 1,
  divided by (users - 1) times the length of their list. 1: all lists are equal.
- `popularity_lift_at_k`: mean likes up to the cutoff of the first k posts,
  divided by that of the known posts.
- `full_list_at_k`: 1 if the list has k posts, else 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from batch.arrays import Bools, Float64s, Int32s, Int64s
from batch.evaluation.bootstrap import BootstrapResult, bootstrap
from batch.evaluation.ranking_metrics import (
    DEPTH,
    KS,
    RankedLists,
    compute_metrics,
    compute_random_metrics,
)
from batch.ids import Ids
from batch.loading.history import History
from batch.loading.likes import Likes
from batch.loading.network import Network

PROTOCOL = "full catalogue with likes left out"
PROTOCOL_VIEWED = "full catalogue with likes and views left out"

RECALL, RECALL_DEPTH = "recall_at_20", 20
OVERLAP, OVERLAP_DEPTH = "overlap_at_10", 10


@dataclass(frozen=True)
class CatalogueCase:
    """Users to evaluate at a cutoff, the posts to rank for them, and what they liked afterwards.

    Attributes
    ----------
    users
        (users,) rows in the network, ascending.
    user_ids
        (users,) their ids; the lists of several cutoffs are pooled by user id.
    likes
        Their likes up to the cutoff, in the order of `users`.
    left_out
        The posts that their lists leave out, in the same order.
    hidden
        Rows of the posts that were not known at the cutoff, ascending.
    liked_later
        (pairs,) index in `users` * posts + row of the post, ascending: new likes of known posts.
    popularity
        (posts,) likes up to the cutoff.
    protocol
        `PROTOCOL`, or `PROTOCOL_VIEWED` if lists leave out viewed posts.
    """

    users: Int64s
    user_ids: Ids
    likes: Likes
    left_out: Likes
    hidden: Int64s
    liked_later: Int64s
    popularity: Float64s
    protocol: str = PROTOCOL

    @property
    def known(self) -> Bools:
        """(posts,) whether the post was known at the cutoff."""
        known = np.ones(self.popularity.size, dtype=bool)
        known[self.hidden] = False
        return known

    @property
    def warm(self) -> Bools:
        """(users,) whether the user had liked something by the cutoff."""
        warm: Bools = np.diff(self.likes.starts) > 0
        return warm

    @property
    def relevant(self) -> Int64s:
        """(users,) number of likes to find."""
        return np.bincount(self.liked_later // self.popularity.size, minlength=self.users.size)

    @property
    def candidates(self) -> Int64s:
        """(users,) number of posts to rank for each user."""
        known = self.known
        out = self.left_out
        known_out = np.bincount(out.users, weights=known[out.posts], minlength=self.users.size)
        return int(known.sum()) - known_out.astype(np.int64)

    def keep_users(self, keep: Bools) -> CatalogueCase:
        """Return the case of a part of the users; `keep` is (users,)."""
        posts, index = self.popularity.size, np.cumsum(keep) - 1
        owner, post = np.divmod(self.liked_later, posts)
        kept = keep[owner]
        return replace(
            self,
            users=self.users[keep],
            user_ids=self.user_ids[keep],
            likes=self.likes.of_rows(np.flatnonzero(keep)),
            left_out=self.left_out.of_rows(np.flatnonzero(keep)),
            liked_later=index[owner[kept]] * posts + post[kept],
        )


@dataclass(frozen=True)
class ScoredLists:
    """The metrics of each list of one ranker in one case.

    Attributes
    ----------
    user_ids
        (lists,) the user of each list.
    values
        Metric -> (lists,) value, NaN where undefined.
    coverage
        `coverage_at_k` -> value of all lists together.
    """

    user_ids: Ids
    values: dict[str, Float64s]
    coverage: dict[str, float]


def build_case(
    network: Network, history: History, likes_after: Likes, max_users: int, seed: int
) -> CatalogueCase:
    """Choose the users to evaluate at `history.cutoff`, and collect their likes before and after it.

    Parameters
    ----------
    likes_after
        All likes of the network's users up to a later time; those of the history may be included.
    max_users
        If there are more users, draw this many at random.
    """
    posts, known = len(network.posts), history.known
    before, after = (
        likes.users.astype(np.int64) * posts + likes.posts for likes in (history.likes, likes_after)
    )
    pairs = np.setdiff1d(after[known[likes_after.posts]], before, assume_unique=True)
    users = np.unique(pairs // posts)
    if users.size > max_users:
        users = np.sort(np.random.default_rng(seed).choice(users, max_users, replace=False))
        pairs = pairs[np.isin(pairs // posts, users)]
    left_out = history.left_out.of_rows(users)
    rows = np.searchsorted(users, pairs // posts)
    pairs = pairs[~left_out.contain(rows, pairs % posts, posts)]  # no list can have these
    keep = np.isin(users, pairs // posts)
    users, left_out = users[keep], left_out.of_rows(np.flatnonzero(keep))
    return CatalogueCase(
        users=users,
        user_ids=network.user_ids[users],
        likes=history.likes.of_rows(users),
        left_out=left_out,
        hidden=np.flatnonzero(~known),
        liked_later=np.searchsorted(users, pairs // posts) * posts + pairs % posts,
        popularity=history.post_counts["likes"].to_numpy(np.float64),
        protocol=PROTOCOL if history.acted_until is None else PROTOCOL_VIEWED,
    )


def rank_by_score(case: CatalogueCase, scores: Float64s) -> Int32s:
    """Rank the same scores for every user, without hidden posts and what the user's list leaves out.

    Parameters
    ----------
    scores
        (posts,) highest first; equal scores are ordered by ascending row.

    Returns
    -------
    (users, DEPTH) rows of posts, best first, padded with -1.
    """
    order = np.lexsort((np.arange(scores.size), -scores))
    order = order[case.known[order]]
    lists = np.full((case.users.size, DEPTH), -1, dtype=np.int32)
    for index in range(case.users.size):
        left_out = case.left_out.of(index)
        head = order[: DEPTH + left_out.size]
        fresh = head[~np.isin(head, left_out)][:DEPTH]
        lists[index, : fresh.size] = fresh
    return lists


def measure_lists(case: CatalogueCase, lists: Int32s, seed: int) -> BootstrapResult:
    """Compute every metric of one ranker's lists in one case, with 95 % intervals over users.

    Parameters
    ----------
    lists
        (users, DEPTH) rows of posts, best first, padded with -1.
    """
    return summarise([score_lists(case, lists)], seed)


def summarise(scored: Sequence[ScoredLists], seed: int) -> BootstrapResult:
    """Pool the lists of one ranker in several cases; intervals are over users, with all their lists.

    The values are means over lists; for coverage, means over cases. Coverage
    has no interval: a draw with replacement has fewer distinct users, and so
    fewer posts. Overlap is a mean over pairs of users, so a user who is drawn
    once more counts on both sides: its draws are rescaled to twice their
    distance from the value (the projection of Hoeffding, 1948).
    """
    scored = [case for case in scored if case.user_ids.size] or scored[:1]
    names = list(scored[0].values)
    values = {name: np.concatenate([case.values[name] for case in scored]) for name in names}
    result = bootstrap(values, np.concatenate([case.user_ids for case in scored]), None, seed)
    overlap = result.values[OVERLAP]
    result.draws[OVERLAP] = overlap + 2 * (result.draws[OVERLAP] - overlap)
    for name in scored[0].coverage:
        result.values[name] = float(np.mean([case.coverage[name] for case in scored]))
    return result


def score_lists(case: CatalogueCase, lists: Int32s) -> ScoredLists:
    """Compute the metrics of each list, see the module's docstring; `lists` as in `measure_lists`."""
    shown = lists >= 0
    pairs = np.arange(case.users.size)[:, None] * case.popularity.size + lists
    hits = shown & np.isin(pairs, case.liked_later)
    ranked = RankedLists(hits, case.relevant, case.candidates)
    values = compute_metrics(ranked) | {RECALL: compute_metrics(ranked, (RECALL_DEPTH,))[RECALL]}
    likes, coverage = np.where(shown, case.popularity[lists], 0.0), {}
    for k in KS:
        values[f"full_list_at_{k}"] = np.asarray(shown[:, :k].all(axis=1), np.float64)
        mean = likes[:, :k].sum(axis=1) / np.maximum(shown[:, :k].sum(axis=1), 1)
        values[f"popularity_lift_at_{k}"] = np.where(shown[:, 0], mean / _mean_popularity(case), np.nan)
        distinct = np.unique(lists[:, :k][shown[:, :k]]).size
        coverage[f"coverage_at_{k}"] = distinct / int(case.known.sum()) if len(lists) else float("nan")
    values[OVERLAP] = _overlap(case, lists[:, :OVERLAP_DEPTH])
    return ScoredLists(case.user_ids, values, coverage)


def _overlap(case: CatalogueCase, heads: Int32s) -> Float64s:
    """Return (users,) the share of each user's posts in another user's list; NaN if there is one user."""
    shown = heads >= 0
    others = np.bincount(heads[shown], minlength=case.popularity.size) - 1
    common = np.where(shown, others[heads], 0).sum(axis=1)
    pairs = shown.sum(axis=1) * (case.users.size - 1)
    return np.where(pairs > 0, common / np.maximum(pairs, 1), np.nan)


def score_random(case: CatalogueCase) -> ScoredLists:
    """Compute the expected metrics of random lists, exactly: no lists are drawn."""
    candidates, known = case.candidates, case.known
    values = compute_random_metrics(case.relevant, candidates)
    values[RECALL] = compute_random_metrics(case.relevant, candidates, (RECALL_DEPTH,))[RECALL]
    out = case.left_out
    weights = (case.popularity * known)[out.posts]
    rest = (case.popularity * known).sum() - np.bincount(out.users, weights, case.users.size)
    lift = rest / np.maximum(candidates, 1) / _mean_popularity(case)
    for k in KS:
        values[f"full_list_at_{k}"] = (candidates >= k).astype(np.float64)
        values[f"popularity_lift_at_{k}"] = np.where(candidates > 0, lift, np.nan)
    values[OVERLAP] = _expected_overlap(case)
    coverage = {f"coverage_at_{k}": _expected_coverage(case, k) for k in KS}
    return ScoredLists(case.user_ids, values, coverage)


def _expected_overlap(case: CatalogueCase) -> Float64s:
    """Return the expected value of `_overlap` for random lists.

    The list of another user has each of their candidates with probability k / candidates, and each
    candidate of a user is equally likely to be in their list.
    """
    candidates, users, known = case.candidates, case.users.size, case.known
    probability = np.minimum(OVERLAP_DEPTH / np.maximum(candidates, 1), 1)
    out = case.left_out
    of_left_out = np.bincount(out.posts, probability[out.users], minlength=known.size)
    lists = np.where(known, probability.sum() - of_left_out, 0.0)  # (posts,) expected number of lists with it
    of_candidates = lists.sum() - np.bincount(out.users, lists[out.posts], users)
    others = of_candidates / np.maximum(candidates, 1) - probability
    return np.where(candidates * (users - 1) > 0, others / max(users - 1, 1), np.nan)


def _expected_coverage(case: CatalogueCase, k: int) -> float:
    """Return the expected share of posts in at least one random list of k posts.

    For each post: 1 - the product over users of the probability that their list lacks it.
    """
    share = np.minimum(k / np.maximum(case.candidates, 1), 1 - 1e-12)
    missed = np.log1p(-share)
    posts = case.popularity.size
    of_others = np.bincount(case.left_out.posts, missed[case.left_out.users], minlength=posts)
    covered = 1 - np.exp(missed.sum() - of_others)
    return float(covered[case.known].mean()) if case.users.size else float("nan")


def _mean_popularity(case: CatalogueCase) -> float:
    """Return the mean likes of a known post; NaN if no known post has likes."""
    total = float(case.popularity[case.known].sum())
    return total / int(case.known.sum()) if total > 0 else float("nan")
