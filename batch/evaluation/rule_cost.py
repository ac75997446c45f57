"""What a rule of the feed costs in likes: lists before and after it, over the full catalogue of a case.

Both lists are of the same model, users and cutoff, so their differences are
paired by user. A like is found if the post is in one of the first places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from batch.arrays import Float64s, Int32s
from batch.evaluation import PRIMARY_METRIC
from batch.evaluation.bootstrap import BootstrapResult, bootstrap
from batch.evaluation.catalogue_case import CatalogueCase, score_lists
from batch.evaluation.full_catalogue import rank_by_model
from batch.evaluation.ranking_metrics import DEPTH, round_or_none
from batch.feed_rules import EXPLORE, LIKES_FOUND, TOPICS
from batch.feed_rules.explore import DrawKey, Exploration
from batch.feed_rules.topics import TopicRule
from batch.scoring.chunk import Lists
from batch.training.dataset import Dataset
from batch.training.model import Model
from contract.settings import FeedSettings, Settings


@dataclass(frozen=True)
class RuleCost:
    """The metrics of the lists of some users before and after a rule.

    Attributes
    ----------
    users
        Number of users with a like to find.
    window
        `likes_found` counts the later likes of a user among so many first places.
    before, after
        `likes_found` and NDCG@10, with their bootstrap.
    """

    users: int
    window: int
    before: BootstrapResult
    after: BootstrapResult

    def record(self) -> dict[str, Any]:
        """Return the JSON object for a manifest; `difference` is [after - before, low, high]."""
        differences = self.after.minus(self.before)
        return {"users": self.users, "window": self.window} | {
            name: {
                "before": round_or_none(self.before.values[name]),
                "after": round_or_none(self.after.values[name]),
                "difference": [round_or_none(value) for value in differences[name]],
            }
            for name in (LIKES_FOUND, PRIMARY_METRIC)
        }


def measure_rules(
    model: Model, dataset: Dataset, case: CatalogueCase, settings: Settings
) -> dict[str, RuleCost]:
    """Measure what each rule that is on costs, with the lists of a model as of the holdout's start.

    Parameters
    ----------
    case
        The users of the holdout, as in `RankedCase`.
    """
    feed, costs = settings.feed, dict[str, RuleCost]()
    topics = TopicRule.of(dataset.network.posts, feed)
    if topics is None and feed.explore_places == 0:
        return {}
    n = settings.night.top_n
    lists = rank_by_model(model, dataset.network, dataset.at_holdout, case, settings, n=n)
    if topics is not None:
        limited = np.take_along_axis(lists, topics.order(lists), axis=1)
        costs[TOPICS] = measure_rule(case, lists, limited, topics.window, model.seed)
        lists = limited
    explored = _explore(model, dataset, case, feed, lists)
    if explored is not None:
        costs[EXPLORE] = measure_rule(case, lists, explored, max(DEPTH, feed.explore_places), model.seed)
    return costs


def _explore(
    model: Model, dataset: Dataset, case: CatalogueCase, feed: FeedSettings, lists: Int32s
) -> Int32s | None:
    """Return the lists of a case's users with explored places as of the holdout's start; None without."""
    history = dataset.at_holdout
    key = DrawKey(model.seed, model.variant.name, history.cutoff)
    exploration = Exploration.of(feed, key, history, np.flatnonzero(~history.known))
    if exploration is None:
        return None
    scored = Lists(lists, np.zeros(lists.shape, np.float32), case.left_out)
    return exploration.draw(scored, dataset.network.user_ids[case.users]).posts


def measure_rule(case: CatalogueCase, before: Int32s, after: Int32s, window: int, seed: int) -> RuleCost:
    """Compare the lists of a case's users before and after a rule.

    Parameters
    ----------
    before, after
        (users of the case, n) rows of posts, best first, padded with -1; of a width of their own.
    window
        First places in which likes are counted.
    """
    results = [
        bootstrap(_metrics(case, lists, window), case.user_ids, None, seed) for lists in (before, after)
    ]
    return RuleCost(case.users.size, window, *results)


def _metrics(case: CatalogueCase, lists: Int32s, window: int) -> dict[str, Float64s]:
    head = np.full((case.users.size, max(window, DEPTH)), -1, dtype=np.int32)
    width = min(head.shape[1], lists.shape[1])
    head[:, :width] = lists[:, :width]
    pairs = np.arange(case.users.size)[:, None] * case.popularity.size + head
    hits = (head >= 0) & np.isin(pairs, case.liked_later)
    ranked = score_lists(case, head[:, :DEPTH]).values
    return {
        LIKES_FOUND: hits[:, :window].sum(axis=1).astype(np.float64),
        PRIMARY_METRIC: ranked[PRIMARY_METRIC],
    }
