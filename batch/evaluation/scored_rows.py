"""Rows to judge on, with what each ranking makes of them: the model, popularity, and the labels."""

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
    """Distinct (list, post) rows, where a list is what one user was shown in one window of time.

    Attributes
    ----------
    rows
        The labelled rows.
    scores
        (rows,) the model's.
    log_odds
        Whether the scores are log-odds of a like of what was viewed. Of others
        there is no probability, and so neither log loss nor calibration.
    popular
        (rows,) like rate of the post as of the history, or its likes where views are not known.
    popular_rate
        The same if it is a rate, else None.
    base_rate
        (rows,) share of likes in what the model learnt from: all that random order knows.
    lists
        (rows,) number of the list; one per user, unless windows were pooled.
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
        """(rows,) the model's probability of a like; None where its scores tell none."""
        return expit(self.scores) if self.log_odds else None

    @property
    def protocol(self) -> str:
        """Name of the protocol that such rows allow."""
        return "viewed-only" if self.rows.viewed.any() else "likes beside sampled negatives"

    def within(self, keep: Bools) -> ScoredRows:
        """Return the rows to keep."""
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


def judge(
    model: Model, network: Network, history: History, rows: Examples, base_rate: float, threads: int
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
        segments=labels_of(network, history, rows),
        log_odds=model.recipe.from_views,
    )


def pooled(parts: Sequence[ScoredRows]) -> ScoredRows:
    """Put the rows of several judgements together; each part's lists stay lists of their own."""
    above = 1 + max((int(part.lists.max(initial=0)) for part in parts), default=0)
    rates = [part.popular_rate for part in parts if part.popular_rate is not None]
    return ScoredRows(
        rows=Examples.concatenate([part.rows for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        popular=np.concatenate([part.popular for part in parts]),
        popular_rate=np.concatenate(rates) if len(rates) == len(parts) else None,
        base_rate=np.concatenate([part.base_rate for part in parts]),
        lists=np.concatenate([part.lists + above * place for place, part in enumerate(parts)]),
        segments={
            name: np.concatenate([part.segments[name] for part in parts]) for name in parts[0].segments
        },
        log_odds=all(part.log_odds for part in parts),
    )


def _popularity(history: History, rows: Examples) -> tuple[Float64s, Float64s | None]:
    """Return the score of each row's post by like rate, or by likes where views are not known."""
    rate = post_like_rate(history)
    if np.isnan(rate).any():
        likes: Float64s = history.post_counts["likes"].to_numpy(np.float64)[rows.posts]
        return likes, None
    return rate[rows.posts], rate[rows.posts]


ACTIVITY, COUNTRY, TOPIC = "activity", "country", "topic"

NEW, LIGHT, HEAVY = "new (0)", "light (1-9)", "heavy (10+)"
"""By views and likes up to the history's end."""

HEAVY_FROM = 10
MOST_COUNTRIES = 5
MAX_TOPICS = 10
REST, UNKNOWN = "all others", "not known"


def labels_of(network: Network, history: History, rows: Examples) -> dict[str, Labels]:
    """Name the segment of each row under every grouping that the network's columns allow."""
    counts = history.user_counts
    actions = (counts["views"] + counts["likes"]).to_numpy()[rows.users]
    activity = np.select([actions < 1, actions < HEAVY_FROM], [NEW, LIGHT], HEAVY).astype(object)
    found: dict[str, Labels] = {ACTIVITY: activity}
    if COUNTRY in network.users:
        found[COUNTRY] = _named(network.users[COUNTRY])[rows.users]
    if network.posts[columns.TOPIC].notna().any():
        found[TOPIC] = _named(network.posts[columns.TOPIC])[rows.posts]
    return found


def _named(column: Any) -> Labels:
    named: Labels = column.astype(object).where(column.notna(), UNKNOWN).astype(str).to_numpy(object)
    return named


def frequent(grouping: str, labels: Labels) -> tuple[list[str], Labels]:
    """Keep the names with most rows, put the rest together; return the names in the order to print."""
    if grouping == ACTIVITY:
        return [name for name in (NEW, LIGHT, HEAVY) if (labels == name).any()], labels
    most = MOST_COUNTRIES if grouping == COUNTRY else MAX_TOPICS
    names, counts = np.unique(labels.astype(str), return_counts=True)
    kept = [str(names[place]) for place in np.lexsort((names, -counts))[:most]]
    grouped = np.where(np.isin(labels.astype(str), kept), labels, REST).astype(object)
    return kept + ([REST] if len(names) > most else []), grouped
