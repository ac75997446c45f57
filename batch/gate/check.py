"""Check a written run: collect the gate's inputs and apply its rules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from batch.context import Stores
from batch.evaluation import MODEL, PRIMARY_METRIC
from batch.evaluation.bootstrap import Difference
from batch.evaluation.evaluate import Evaluation
from batch.evaluation.holdout import HoldoutEvaluation
from batch.evaluation.scored_rows import ScoredRows
from batch.gate.compare_with_live import compare_with_live, find_live, read_lists
from batch.gate.inputs import GateInputs, HoldoutAuc, PopularityComparison
from batch.gate.outcomes import NOT_COMPARED, REFUSED, outcome_of
from batch.gate.rules import apply_rules, describe_refusal
from batch.loading.likes import Likes
from batch.progress import Stages
from batch.publishing.list_stats import ListStats
from batch.runs.ledger import Run
from batch.training.dataset import Dataset

MAX_LISTS = 20_000
"""Lists of users with something to leave out that are read back; above it, a random sample."""

Z_95 = 1.645
"""Quantile of the standard normal distribution: 95 % are below."""

USERS_WITH_ACTIONS = """
    SELECT DISTINCT user_row FROM {relation}
    WHERE {counts} AND happened_at <= $until AND user_row < $users ORDER BY 1
"""
ACTIONS = """
    SELECT DISTINCT user_row, post_row FROM {relation}
    WHERE {counts} AND happened_at <= $until AND user_row IN (SELECT unnest($users)) ORDER BY 1, 2
"""


@dataclass(frozen=True)
class GateVerdict:
    """The verdicts of all rules as the manifest keeps them, and why the gate refuses; None if it does not."""

    verdicts: list[dict[str, Any]]
    refusal: str | None


def check(
    stores: Stores, run: Run, dataset: Dataset, holdout: HoldoutEvaluation, stats: ListStats, *,
    users: int, stages: Stages,
) -> GateVerdict:  # fmt: skip
    """Apply the gate's rules to a written run.

    Parameters
    ----------
    holdout
        Evaluation of the model that was fit before the holdout.
    stats
        Counts over the lists as they were written.
    users
        Number of users that should have a list.
    """
    with stages.stage("gate", "rules") as row:
        inputs = collect(stores, run, dataset, holdout, stats, users=users)
        verdicts = [verdict.record() for verdict in apply_rules(inputs, stores.settings.gate)]
        outcomes = [outcome_of(verdict) for verdict in verdicts]
        row |= {"rules": len(verdicts), "refused": outcomes.count(REFUSED)}
        row |= {"not_compared": outcomes.count(NOT_COMPARED)}
    return GateVerdict(verdicts, describe_refusal(verdicts))


def collect(
    stores: Stores, run: Run, dataset: Dataset, holdout: HoldoutEvaluation, stats: ListStats, *, users: int
) -> GateInputs:
    """Measure what the rules read; parameters as in `check`."""
    live = find_live(stores, run.variant)
    comparison = None
    if live is not None:
        comparison = compare_with_live(stores, live, run.run_id, dataset, holdout=holdout, users=stats.lists)
    liked = check_liked(stores, run.run_id, dataset, stats.lists)
    return GateInputs(
        users_of_network=len(dataset.network.users),
        users_requested=users,
        lists=stats.lists,
        full=stats.full,
        lists_with_five=stats.lists_with_five,
        posts=stats.posts,
        posts_in_first=stats.posts_in_first,
        not_finite=stats.not_finite + int((~np.isfinite(holdout.rows.scores)).sum()),
        liked_in_lists=liked.liked_in_lists,
        lists_read=liked.lists_read,
        left_out_because=liked.because,
        popularity_comparison=compare_with_popularity(holdout.record(dataset)["full_catalogue"]),
        auc=measure_auc(holdout.rows, holdout.metrics),
        live=comparison,
    )


def compare_with_popularity(record: dict[str, Any]) -> PopularityComparison:
    """Read the comparison from the figures over the full catalogue, see `CatalogueResult.record`."""
    differences = {}
    for ranker, found in record["differences"].items():
        values = (np.nan if number is None else number for number in found[PRIMARY_METRIC])
        differences[ranker] = Difference(*values)
    return PopularityComparison(record["users"], differences, record["why_not_judged"])


def measure_auc(rows: ScoredRows, metrics: Evaluation) -> HoldoutAuc:
    """Return the ROC AUC of scored rows, with an interval that is honest for few users.

    If few users liked something, a bootstrap over users draws the same few again and again, and its
    interval is too narrow. So the upper end is at least 0.5 unless random order would rank as badly
    with a probability of less than 5 %.
    """
    result, users = metrics.viewed[MODEL], np.unique(rows.rows.users[rows.rows.liked]).size
    reason = metrics.insufficient_because
    if not reason and rows.rows.viewed.any() and not rows.log_odds:
        reason = "the model does not learn what is liked if viewed, which viewed rows measure"
    value, high = result.values["roc_auc"], result.interval("roc_auc").high
    return HoldoutAuc(value, min(max(high, value + _chance_margin(users)), 1.0), users, reason)


def _chance_margin(users: int) -> float:
    """Return how far below 0.5 the AUC of random order falls with a probability of 5 %.

    The rank of a liked row is uniform in random order, and the AUC is the mean of n of them: its standard
    deviation is 1 / sqrt(12 n) (Mann and Whitney, 1947). Rows of one user may be ranked alike, so n is the
    number of users with a liked row.
    """
    return 0.45 if users <= 1 else Z_95 / math.sqrt(12 * users)


@dataclass(frozen=True)
class LikedCheck:
    """Posts in lists that their user's list must leave out, lists read, see `GateInputs.left_out_because`."""

    liked_in_lists: int
    lists_read: int
    because: tuple[str, ...]


def check_liked(stores: Stores, run_id: str, dataset: Dataset, users: int) -> LikedCheck:
    """Count the posts in lists that their user has liked, has written or, if asked for, has viewed.

    The actions are those of the night's snapshot, whatever their time: one that was entered after it is
    considered by the refresh at the end of the night. They are read from the store again, not taken from
    what the lists were made of.

    Parameters
    ----------
    users
        Number of the network's users, from the first, that have a list.
    """
    network, now = dataset.network, dataset.now
    store, until = now.store, dataset.excluded_until
    source, because = {"relation": store.known_at(until), "counts": "action = 'like'"}, ["liked"]
    if now.own is not None:
        because.append("written")
    if now.acted_until is not None:
        because.append("viewed")
        source = {"relation": store.pulled, "counts": "true"}
    rows = store.arrays(USERS_WITH_ACTIONS.format(**source), {"until": until, "users": users})["user_row"]
    if now.own is not None:
        rows = np.union1d(rows, now.own.users[now.own.users < users])
    if rows.size > MAX_LISTS:
        rng = np.random.default_rng(stores.settings.night.seed)
        rows = np.sort(rng.choice(rows, MAX_LISTS, replace=False))
    found = store.arrays(ACTIONS.format(**source), {"until": until, "users": rows.tolist()})
    left_out = Likes.from_sorted_pairs(np.searchsorted(rows, found["user_row"]), found["post_row"], rows.size)
    if now.own is not None:
        left_out = left_out.union(now.own.of_rows(rows))
    user_ids, post_ids = network.users.index[rows].tolist(), network.posts.index.to_numpy()
    row_of_user = {user_id: row for row, user_id in enumerate(user_ids)}
    in_lists = read = 0
    for user_id, stored in read_lists(stores, run_id, user_ids):
        read += 1
        unwanted = set(post_ids[left_out.of(row_of_user[user_id])].tolist())
        in_lists += sum(post in unwanted for post, _ in stored.posts)
    return LikedCheck(in_lists, read, tuple(because))
