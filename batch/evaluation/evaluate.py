"""Metrics of one model under every protocol, with those of the baselines; as a record, and flat."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from batch.arrays import Bools, Float64s, Int64s
from batch.evaluation import MODEL, POPULARITY, PRIMARY_METRICS, RANDOM
from batch.evaluation.bootstrap import BootstrapResult, Difference, PointwiseRows, bootstrap
from batch.evaluation.full_catalogue import COLD, WARM, CatalogueResult, record_metrics
from batch.evaluation.ranking_metrics import (
    KS,
    compute_metrics,
    compute_random_metrics,
    rank_rows,
    round_or_none,
)
from batch.evaluation.scored_rows import TOPIC, ScoredRows, merge_rare

log = logging.getLogger("batch")

HITRATE = f"hitrate_at_{KS[0]}"
SEGMENT_METRICS = (HITRATE, "roc_auc")
PROBABILITY_METRICS = ("log_loss", "calibration_error")

CATALOGUE_PREFIX = "full_catalogue_"

FlatMetrics = dict[str, float | int | None]


class MetricDifference(NamedTuple):
    """One metric of a model minus that of another model, paired by user.

    `prefix` names the protocol: CATALOGUE_PREFIX, or empty for the viewed rows.
    """

    prefix: str
    metric: str
    difference: Difference


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one model.

    Attributes
    ----------
    protocol
        `viewed-only`, or what else the rows allow.
    rows, users, likes
        Number of rows, of their users, and of liked rows.
    viewed
        Metrics of `model`, `random` and `popularity` on the rows.
    segments
        A record per segment, grouping by grouping.
    catalogue
        Metrics over the full catalogue; None if they were not asked for.
    """

    protocol: str
    rows: int
    users: int
    likes: int
    viewed: dict[str, BootstrapResult]
    segments: list[dict[str, Any]]
    catalogue: CatalogueResult | None

    @property
    def insufficient_because(self) -> str:
        """Why the rows are too few to evaluate a model; empty if they suffice."""
        return "" if self.likes else f"none of the {self.rows} held-out rows is liked"

    def warn_if_insufficient(self) -> None:
        """Log a warning for each protocol that has too little data in the holdout."""
        reasons = {self.protocol: self.insufficient_because}
        if self.catalogue:
            reasons[self.catalogue.protocol] = self.catalogue.insufficient_because
        for protocol, reason in reasons.items():
            if reason:
                log.warning("%s: too little data in the holdout to evaluate the model: %s", protocol, reason)

    def record(self) -> dict[str, Any]:
        """Return the JSON object for a manifest: metrics by ranker, and their intervals."""
        record: dict[str, Any] = {
            "protocol": self.protocol,
            "judged": not self.insufficient_because,
            "why_not_judged": self.insufficient_because,
            **record_metrics(self.viewed),
        }
        record["calibration"] = list(self.viewed[MODEL].deciles)
        record["segments"] = self.segments
        if self.catalogue:
            record["full_catalogue"] = self.catalogue.record()
        return record

    def flatten(self, baseline: tuple[str, Evaluation] | None = None) -> FlatMetrics:
        """Return metric -> value: `hitrate_at_5`, `_low` and `_high`, with the ranker's name as a prefix.

        Metrics over the full catalogue start with `full_catalogue_`, those of
        its warm and cold users with `full_catalogue_warm_` and
        `full_catalogue_cold_`, and differences to a ranker with
        `full_catalogue_minus_popularity_` and `full_catalogue_minus_recency_popularity_`.

        Parameters
        ----------
        baseline
            Name and evaluation of another variant on the same rows: adds `minus_NAME_` differences.
        """
        flat: FlatMetrics = {"users": self.users, "views": self.rows}
        flat |= _flatten("", self.viewed)
        if self.catalogue:
            flat |= flatten_catalogue(CATALOGUE_PREFIX, self.catalogue)
        if baseline:
            name, other = baseline
            for prefix, metric, difference in self.differences(other):
                flat |= _with_bounds(f"{prefix}minus_{name}_{metric}", difference.value, difference[1:])
        return flat

    def differences(self, other: Evaluation) -> list[MetricDifference]:
        """Return this model minus the other, metric by metric, paired by user."""
        pairs = [("", self.viewed, other.viewed)]
        if self.catalogue and other.catalogue:
            pairs.insert(0, (CATALOGUE_PREFIX, self.catalogue.rankers, other.catalogue.rankers))
        return [
            MetricDifference(prefix, metric, difference)
            for prefix, mine, theirs in pairs
            for metric, difference in mine[MODEL].minus(theirs[MODEL]).items()
        ]


def flatten_catalogue(prefix: str, result: CatalogueResult) -> FlatMetrics:
    """Return metric -> value over the full catalogue, see `Evaluation.flatten`."""
    flat: FlatMetrics = {f"{prefix}users": result.users["all"], **_flatten(prefix, result.rankers)}
    for group in (WARM, COLD):
        flat[f"{prefix}{group}_users"] = result.users[group]
        flat |= _flatten(f"{prefix}{group}_", result.groups[group], PRIMARY_METRICS)
    for name, differences in result.differences().items():
        for metric in PRIMARY_METRICS:
            if metric in differences:
                value, *bounds = differences[metric]
                flat |= _with_bounds(f"{prefix}minus_{name}_{metric}", value, bounds)
    return flat


def evaluate_rows(rows: ScoredRows, seed: int, catalogue: CatalogueResult | None) -> Evaluation:
    """Measure scored rows; `catalogue` are the metrics over the full catalogue, or None."""
    return Evaluation(
        protocol=rows.protocol,
        rows=len(rows.rows),
        users=int(np.unique(rows.rows.users).size),
        likes=int(rows.rows.liked.sum()),
        viewed=_measure_rankers(rows, seed),
        segments=_measure_segments(rows, seed),
        catalogue=catalogue,
    )


def compare_scores(rows: ScoredRows, scores: Float64s, seed: int) -> dict[str, Difference]:
    """Return metric -> the model minus other scores of the same rows, paired by user."""
    mine, theirs = (_measure(rows, each, None, seed) for each in (rows.scores, scores))
    return mine.minus(theirs)


def _measure_rankers(rows: ScoredRows, seed: int) -> dict[str, BootstrapResult]:
    constant = _pointwise(rows, np.zeros(len(rows.rows)), rows.base_rate)
    results = {
        MODEL: _measure(rows, rows.scores, rows.probabilities, seed),
        RANDOM: bootstrap(_random_metrics(rows), _users_of_lists(rows), constant, seed),
        POPULARITY: _measure(rows, rows.popular, rows.popular_rate, seed),
    }
    if rows.probabilities is None:  # the other rankers' probabilities have nothing to be compared with
        for result in results.values():
            for metric in PROBABILITY_METRICS:
                result.values.pop(metric), result.draws.pop(metric)
    return results


def _measure(
    rows: ScoredRows, scores: Float64s, probabilities: Float64s | None, seed: int
) -> BootstrapResult:
    lists = compute_metrics(rank_rows(rows.lists, rows.rows.posts, rows.rows.liked, scores))
    return bootstrap(lists, _users_of_lists(rows), _pointwise(rows, scores, probabilities), seed)


def _pointwise(rows: ScoredRows, scores: Float64s, probabilities: Float64s | None) -> PointwiseRows:
    return PointwiseRows(rows.rows.users, rows.rows.liked, scores, probabilities)


def _users_of_lists(rows: ScoredRows) -> Int64s:
    """Return (lists,) the user of each list, lists in ascending order."""
    _, first = np.unique(rows.lists, return_index=True)
    return rows.rows.users[first]


def _random_metrics(rows: ScoredRows) -> dict[str, Float64s]:
    _, owner, candidates = np.unique(rows.lists, return_inverse=True, return_counts=True)
    relevant = np.bincount(owner, weights=rows.rows.liked, minlength=candidates.size)
    return compute_random_metrics(relevant.astype(np.int64), candidates.astype(np.int64))


def _measure_segments(rows: ScoredRows, seed: int) -> list[dict[str, Any]]:
    records = []
    for grouping, labels in rows.segments.items():
        names, merged = merge_rare(grouping, labels)
        records += [_measure_segment(rows, grouping, name, merged == name, seed) for name in names]
    return records


def _measure_segment(rows: ScoredRows, grouping: str, name: str, keep: Bools, seed: int) -> dict[str, Any]:
    """Measure the rows of one segment. A topic has parts of lists only, and so no HitRate."""
    part = rows.where(keep)
    whole_lists = grouping != TOPIC
    lists = {HITRATE: _hitrate(part, part.scores)} if whole_lists else {}
    model = bootstrap(lists, _users_of_lists(part), _pointwise(part, part.scores, None), seed)
    record: dict[str, Any] = {
        "by": grouping,
        "segment": name,
        "users": int(np.unique(part.rows.users).size),
        "views": len(part.rows),
        "like_rate": round_or_none(float(part.rows.liked.mean())),
    }
    for metric in SEGMENT_METRICS if whole_lists else SEGMENT_METRICS[1:]:
        record |= _with_bounds(metric, model.values[metric], model.interval(metric))
    if whole_lists:
        record[f"random_{HITRATE}"] = round_or_none(float(_random_metrics(part)[HITRATE].mean()))
        record[f"popularity_{HITRATE}"] = round_or_none(float(_hitrate(part, part.popular).mean()))
    return record


def _hitrate(part: ScoredRows, scores: Float64s) -> Float64s:
    ranked = rank_rows(part.lists, part.rows.posts, part.rows.liked, scores)
    return compute_metrics(ranked, KS[:1])[HITRATE]


def _flatten(
    prefix: str, rankers: dict[str, BootstrapResult], metrics: Sequence[str] | None = None
) -> FlatMetrics:
    flat: FlatMetrics = {}
    for ranker, result in rankers.items():
        start = prefix if ranker == MODEL else f"{prefix}{ranker}_"
        for metric in metrics or result.values:
            flat |= _with_bounds(f"{start}{metric}", result.values[metric], result.interval(metric))
    return flat


def _with_bounds(name: str, value: float, bounds: Sequence[float]) -> FlatMetrics:
    low, high = bounds
    return {
        name: round_or_none(value),
        f"{name}_low": round_or_none(low),
        f"{name}_high": round_or_none(high),
    }
