"""Labelled rows with the scores of a model and of popularity, and the segments of their users and posts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from batch.arrays import Bools, Float64s, Int64s
from batch.features.build import post_like_rate
from batch.loading.examples import Examples
from batch.loading.history import History
from batch.loading.network import Network
from batch.training.model import Model
from contract import columns

Labels = npt.NDArray[np.object_]


@dataclass(frozen=True)
class ScoredRows:
    """Distinct (list, post) rows; a list holds what one user was shown in one window of time.

    Attributes
    ----------
    rows
        The labelled rows.
    scores
        (rows,) scores of the model.
    log_odds
        Whether the scores are log-odds of a like of a viewed post. Other scores
        give no probability, and so neither log loss nor calibration.
    popular
        (rows,) like rate of the post as of the history; its likes if no views are known.
    popular_rate
        The same if it is a rate, else None.
    base_rate
        (rows,) share of likes in the training data: the prediction of random order.
    lists
        (rows,) number of the list; one per user, unless windows were concatenated.
    segments
        Grouping -> (rows,) name of the segment.
    """

    rows: Examples
    scores: Float64s
    popular: Float64s
    popular_rate: Float64s | None
    base_rate: Float64s
    lists: Int64s
    segments: dict[str, Labels]
    log_odds: bool = True

    @property
    def probabilities(self) -> Float64s | None:
        """(rows,) the model's probability of a like; None if its scores are not log-odds."""
        return expit(self.scores) if self.log_odds else None

    @property
    def protocol(self) -> str:
        """Name of the protocol that these rows allow."""
        return "viewed-only" if self.rows.viewed.any() else "likes beside sampled negatives"

    def where(self, keep: Bools) -> ScoredRows:
        """Return the rows to keep; `keep` is (rows,)."""
        return ScoredRows(
            rows=self.rows.select(keep),
            scores=self.scores[keep],
            popular=self.popular[keep],
            popular_rate=None if self.popular_rate is None else self.popular_rate[keep],
            base_rate=self.base_rate[keep],
            lists=self.lists[keep],
            segments={name: labels[keep] for name, labels in self.segments.items()},
            log_odds=self.log_odds,
        )


def score_rows(
    model: Model, network: Network, history: History, rows: Examples, *, base_rate: float, threads: int
) -> ScoredRows:
    """Score rows with features as of `history.cutoff`."""
    popular, popular_rate = _popularity(history, rows)
    return ScoredRows(
        rows=rows,
        scores=model.scores(network, history, rows, threads),
        popular=popular,
        popular_rate=popular_rate,
        base_rate=np.full(len(rows), base_rate),
        lists=rows.users,
        segments=label_segments(network, history, rows),
        log_odds=model.recipe.from_views,
    )


def concat_rows(parts: Sequence[ScoredRows]) -> ScoredRows:
    """Concatenate scored rows; lists of different parts stay separate lists."""
    offset = 1 + max((int(part.lists.max(initial=0)) for part in parts), default=0)
    rates = [part.popular_rate for part in parts if part.popular_rate is not None]
    return ScoredRows(
        rows=Examples.concatenate([part.rows for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        popular=np.concatenate([part.popular for part in parts]),
        popular_rate=np.concatenate(rates) if len(rates) == len(parts) else None,
        base_rate=np.concatenate([part.base_rate for part in parts]),
        lists=np.concatenate([part.lists + offset * index for index, part in enumerate(parts)]),
        segments={
            name: np.concatenate([part.segments[name] for part in parts]) for name in parts[0].segments
        },
        log_odds=all(part.log_odds for part in parts),
    )


def _popularity(history: History, rows: Examples) -> tuple[Float64s, Float64s | None]:
    """Return the popularity score of each row's post, and the same if it is a like rate, else None."""
    rate = post_like_rate(history)
    if np.isnan(rate).any():
        likes: Float64s = history.post_counts["likes"].to_numpy(np.float64)[rows.posts]
        return likes, None
    return rate[rows.posts], rate[rows.posts]


ACTIVITY, COUNTRY, TOPIC = "activity", "country", "topic"

NEW, LIGHT, HEAVY = "new (0)", "light (1-9)", "heavy (10+)"
"""By views and likes up to the history's cutoff."""

MIN_HEAVY_ACTIONS = 10
MAX_COUNTRIES = 5
MAX_TOPICS = 10
REST, UNKNOWN = "all others", "not known"


def label_segments(network: Network, history: History, rows: Examples) -> dict[str, Labels]:
    """Return the segment of each row under every grouping that the network's columns allow."""
    counts = history.user_counts
    actions = (counts["views"] + counts["likes"]).to_numpy()[rows.users]
    activity = np.select([actions < 1, actions < MIN_HEAVY_ACTIONS], [NEW, LIGHT], HEAVY).astype(object)
    labels: dict[str, Labels] = {ACTIVITY: activity}
    if COUNTRY in network.users:
        labels[COUNTRY] = _labels(network.users[COUNTRY])[rows.users]
    if network.posts[columns.TOPIC].notna().any():
        labels[TOPIC] = _labels(network.posts[columns.TOPIC])[rows.posts]
    return labels


def _labels(column: Any) -> Labels:
    labels: Labels = column.astype(object).where(column.notna(), UNKNOWN).astype(str).to_numpy(object)
    return labels


def merge_rare(grouping: str, labels: Labels) -> tuple[list[str], Labels]:
    """Merge the segments with fewest rows into one; return the names in print order, and the labels."""
    if grouping == ACTIVITY:
        return [name for name in (NEW, LIGHT, HEAVY) if (labels == name).any()], labels
    max_names = MAX_COUNTRIES if grouping == COUNTRY else MAX_TOPICS
    names, counts = np.unique(labels.astype(str), return_counts=True)
    kept = [str(names[index]) for index in np.lexsort((names, -counts))[:max_names]]
    merged = np.where(np.isin(labels.astype(str), kept), labels, REST).astype(object)
    return kept + ([REST] if len(names) > max_names else []), merged
