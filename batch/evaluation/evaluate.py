"""One model's figures by every protocol, beside those of simpler rankers; as a record, and flat."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batch.arrays import Float64s, Int64s
from batch.evaluation import FIRST_FIGURES, MODEL, POPULARITY, RANDOM
from batch.evaluation.bootstrap import Difference, Measured, Pooled, measure
from batch.evaluation.catalogue_case import PROTOCOL as FULL_CATALOGUE
from batch.evaluation.full_catalogue import (
    COLD,
    MAX_USERS,
    WARM,
    CatalogueFigures,
    RankedCase,
    measure_cases,
    rank_case,
    record_of_rankers,
)
from batch.evaluation.ranking_metrics import KS, by_list, expected_of_random, ranked_lists, rounded
from batch.evaluation.scored_rows import TOPIC, ScoredRows, frequent, judge
from batch.loading.examples import Examples
from batch.training.dataset import Dataset, Window
from batch.training.model import Model

HITRATE = f"hitrate_at_{KS[0]}"
OF_SEGMENT = (HITRATE, "roc_auc")
OF_PROBABILITIES = ("log_loss", "calibration_error")

Figures = dict[str, float | int | None]


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes
    ----------
    protocol
        `viewed-only`, or what else the rows allow.
    rows, users, likes
        How many were judged by it, and how many of the rows are liked.
    viewed
        Of `model`, `random` and `popularity`.
    segments
        A record per segment, grouping by grouping.
    catalogue
        The figures over the full catalogue, which come first; None where they were not asked for.
    """

    protocol: str
    rows: int
    users: int
    likes: int
    viewed: dict[str, Measured]
    segments: list[dict[str, Any]]
    catalogue: CatalogueFigures | None

    @property
    def cannot_judge(self) -> str:
        """Say why the rows cannot judge a model; empty where they can."""
        return "" if self.likes else f"none of the {self.rows} held-out rows is liked"

    def cannot_judge_by(self) -> dict[str, str]:
        """Return protocol -> why it cannot judge a model, for those that cannot."""
        found = {self.protocol: self.cannot_judge}
        if self.catalogue:
            found[FULL_CATALOGUE] = self.catalogue.cannot_judge
        return {protocol: why for protocol, why in found.items() if why}

    def record(self) -> dict[str, Any]:
        """Return what a manifest keeps: metrics by ranker, and their intervals beside them."""
        found: dict[str, Any] = {
            "protocol": self.protocol,
            "judged": not self.cannot_judge,
            "why_not_judged": self.cannot_judge,
            **record_of_rankers(self.viewed),
        }
        found["calibration"] = list(self.viewed[MODEL].deciles)
        found["segments"] = self.segments
        if self.catalogue:
            found["full_catalogue"] = self.catalogue.record()
        return found

    def flat(self, other: tuple[str, Evaluation] | None = None) -> Figures:
        """Return metric -> value: `hitrate_at_5`, `_low` and `_high`, the ranker's name before it.

        Figures over the full catalogue start with `full_catalogue_`, those of
        its warm and cold users with `full_catalogue_warm_` and
        `full_catalogue_cold_`, and the model's less another ranker's with
        `full_catalogue_minus_popularity_` and `full_catalogue_minus_recency_popularity_`.

        Parameters
        ----------
        other
            Another variant's name and figures on the same rows: adds `minus_NAME_` differences.
        """
        found: Figures = {"users": self.users, "views": self.rows}
        found |= _flat("", self.viewed)
        if self.catalogue:
            found |= flat_catalogue("full_catalogue_", self.catalogue)
        for start, metric, difference in self.differences(other[1]) if other else ():
            name = f"{start}minus_{other[0] if other else ''}_{metric}"
            found |= _with_bounds(name, difference[0], difference[1:])
        return found

    def differences(self, other: Evaluation) -> list[tuple[str, str, Difference]]:
        """Return (prefix of the protocol, metric, difference): this model less the other, paired by user."""
        pairs = [("", self.viewed, other.viewed)]
        if self.catalogue and other.catalogue:
            pairs.insert(0, ("full_catalogue_", self.catalogue.rankers, other.catalogue.rankers))
        return [
            (start, metric, difference)
            for start, mine, theirs in pairs
            for metric, difference in mine[MODEL].minus(theirs[MODEL]).items()
        ]


def flat_catalogue(start: str, found: CatalogueFigures) -> Figures:
    """Return metric -> value over the full catalogue, see `Evaluation.flat`; names begin with `start`."""
    flat: Figures = {f"{start}users": found.users["all"], **_flat(start, found.rankers)}
    for group in (WARM, COLD):
        flat[f"{start}{group}_users"] = found.users[group]
        flat |= _flat(f"{start}{group}_", found.groups[group], FIRST_FIGURES)
    for name, differences in found.differences().items():
        for metric in FIRST_FIGURES:
            if metric in differences:
                difference, *bounds = differences[metric]
                flat |= _with_bounds(f"{start}minus_{name}_{metric}", difference, bounds)
    return flat


def evaluation(judged: ScoredRows, seed: int, catalogue: CatalogueFigures | None) -> Evaluation:
    """Measure what was judged; `catalogue` are the figures over the full catalogue, or None."""
    return Evaluation(
        protocol=judged.protocol,
        rows=len(judged.rows),
        users=int(np.unique(judged.rows.users).size),
        likes=int(judged.rows.liked.sum()),
        viewed=_viewed(judged, seed),
        segments=_segments(judged, seed),
        catalogue=catalogue,
    )


def compared(judged: ScoredRows, scores: Float64s, seed: int) -> dict[str, Difference]:
    """Return by metric the difference: the model less other scores of the same rows."""
    mine, theirs = (_ranked(judged, each, None, seed) for each in (judged.scores, scores))
    return mine.minus(theirs)


def _viewed(judged: ScoredRows, seed: int) -> dict[str, Measured]:
    constant = np.zeros(len(judged.rows))
    found = {
        MODEL: _ranked(judged, judged.scores, judged.probabilities, seed),
        RANDOM: measure(
            _expected(judged), _owners(judged), _pooled(judged, constant, judged.base_rate), seed
        ),
        POPULARITY: _ranked(judged, judged.popular, judged.popular_rate, seed),
    }
    if judged.probabilities is None:  # nothing to hold the other rankers' probabilities against
        for measured in found.values():
            for metric in OF_PROBABILITIES:
                measured.values.pop(metric), measured.draws.pop(metric)
    return found


def _ranked(judged: ScoredRows, scores: Float64s, probabilities: Float64s | None, seed: int) -> Measured:
    lists = by_list(ranked_lists(judged.lists, judged.rows.posts, judged.rows.liked, scores))
    return measure(lists, _owners(judged), _pooled(judged, scores, probabilities), seed)


def _pooled(judged: ScoredRows, scores: Float64s, probabilities: Float64s | None) -> Pooled:
    return Pooled(judged.rows.users, judged.rows.liked, scores, probabilities)


def _owners(judged: ScoredRows) -> Int64s:
    """Return (lists,) whose list each is, lists in ascending order."""
    _, first = np.unique(judged.lists, return_index=True)
    return judged.rows.users[first]


def _expected(judged: ScoredRows) -> dict[str, Float64s]:
    _, owner, candidates = np.unique(judged.lists, return_inverse=True, return_counts=True)
    relevant = np.bincount(owner, weights=judged.rows.liked, minlength=candidates.size)
    return expected_of_random(relevant.astype(np.int64), candidates.astype(np.int64))


def _segments(judged: ScoredRows, seed: int) -> list[dict[str, Any]]:
    found = []
    for grouping, labels in judged.segments.items():
        names, grouped = frequent(grouping, labels)
        found += [_segment(judged, grouping, name, grouped == name, seed) for name in names]
    return found


def _segment(judged: ScoredRows, grouping: str, name: str, within: Any, seed: int) -> dict[str, Any]:
    """Judge the rows of one segment; lists are whole in all groupings but by topic, which has no HitRate."""
    part = judged.within(within)
    whole = grouping != TOPIC
    lists = {HITRATE: _hitrate(part, part.scores)} if whole else {}
    model = measure(lists, _owners(part), _pooled(part, part.scores, None), seed)
    record: dict[str, Any] = {
        "by": grouping,
        "segment": name,
        "users": int(np.unique(part.rows.users).size),
        "views": len(part.rows),
        "like_rate": rounded(float(part.rows.liked.mean())),
    }
    for metric in OF_SEGMENT if whole else OF_SEGMENT[1:]:
        low, high = model.interval(metric)
        record |= {metric: rounded(model.values[metric])}
        record |= {f"{metric}_low": rounded(low), f"{metric}_high": rounded(high)}
    if whole:
        record[f"random_{HITRATE}"] = rounded(float(_expected(part)[HITRATE].mean()))
        record[f"popularity_{HITRATE}"] = rounded(float(_hitrate(part, part.popular).mean()))
    return record


def _hitrate(part: ScoredRows, scores: Float64s) -> Float64s:
    ranked = ranked_lists(part.lists, part.rows.posts, part.rows.liked, scores)
    return by_list(ranked, KS[:1])[HITRATE]


def _flat(start: str, measured: dict[str, Measured], metrics: Sequence[str] | None = None) -> Figures:
    found: Figures = {}
    for ranker, figures in measured.items():
        before = start if ranker == MODEL else f"{start}{ranker}_"
        for metric in metrics or figures.values:
            found |= _with_bounds(f"{before}{metric}", figures.values[metric], figures.interval(metric))
    return found


def _with_bounds(name: str, value: float, bounds: Sequence[float]) -> Figures:
    low, high = bounds
    return {name: rounded(value), f"{name}_low": rounded(low), f"{name}_high": rounded(high)}


log = logging.getLogger("batch")

__all__ = ["ScoredRows", "evaluate", "evaluated", "holdout_rows", "judged", "rank_holdout"]


def holdout_rows(examples: Examples) -> Examples:
    """Return the distinct (user, post) pairs to judge on: logged views, or all rows where none is logged."""
    views = examples.select(examples.viewed)
    return (views if len(views) else examples).distinct()


def share_of_likes(windows: Sequence[Window]) -> float:
    """Return the share of likes among the labelled views of windows: all that random order knows."""
    liked = np.concatenate([each.views.liked for each in windows])
    return float(liked.mean()) if liked.size else float("nan")


def judged(model: Model, dataset: Dataset, threads: int) -> ScoredRows:
    """Score the holdout with features as of its start."""
    rows = holdout_rows(dataset.holdout)
    like_rate = share_of_likes(dataset.training)
    return judge(model, dataset.network, dataset.at_holdout, rows, like_rate, threads)


def rank_holdout(model: Model, dataset: Dataset, threads: int, max_users: int) -> RankedCase:
    """Rank the full catalogue as of the holdout's start, for users who liked something in the holdout.

    Every like counts, also those that are not among the examples of the holdout.
    """
    earlier, history = dataset.before_holdout, dataset.at_holdout
    return rank_case(model, dataset.network, earlier, history, dataset.now.likes, threads, max_users)


def evaluated(model: Model, dataset: Dataset, threads: int, max_users: int = MAX_USERS) -> Evaluation:
    """Judge a model on the holdout by both protocols, features as of the holdout's start.

    Parameters
    ----------
    max_users
        How many users to judge over the full catalogue.
    """
    ranked = rank_holdout(model, dataset, threads, max_users)
    rows = judged(model, dataset, threads)
    return evaluation(rows, model.seed, measure_cases([ranked], model.seed))


def evaluate(model: Model, dataset: Dataset, rows: ScoredRows, ranked: RankedCase) -> dict[str, Any]:
    """Measure a model on the holdout; return what the manifest keeps.

    Parameters
    ----------
    rows
        The holdout as `judged` scored it.
    ranked
        The holdout as `rank_holdout` ranked it.

    Returns
    -------
    `full_catalogue`, see `CatalogueFigures.record`: the first figures. Beside
    it, of the rows: `protocol`, `holdout` (from, until, users, views), `judged`
    and `why_not_judged`, one object of metrics for each of `model`, `random`
    and `popularity`, their 95 % `intervals` (low, high), `calibration` by
    deciles and `segments`; None where a figure has no value.
    """
    found, split = evaluation(rows, model.seed, measure_cases([ranked], model.seed)), dataset.split
    for protocol, why in found.cannot_judge_by().items():
        log.warning("%s: the holdout cannot judge the model: %s", protocol, why)
    holdout = {
        "from": split.holdout_start.isoformat(),
        "until": split.cutoff.isoformat(),
        "users": found.users,
        "views": found.rows,
    }
    return {"holdout": holdout, **found.record()}
