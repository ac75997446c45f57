"""The report page that each run writes: one HTML file without external resources."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from batch.arrays import Float64s
from batch.context import Stores
from batch.evaluation import NAMED_RANKERS, PRIMARY_METRICS, VIEWED_RANKERS
from batch.evaluation.evaluate import HITRATE
from batch.evaluation.ranking_metrics import DEPTH, compute_metrics, compute_random_metrics, rank_rows
from batch.evaluation.recipe_choice import describe_examples, recipe_record
from batch.evaluation.scored_rows import ScoredRows
from batch.feed_rules import TOPICS
from batch.gate.outcomes import count_outcomes, outcome_of
from batch.loading.cohorts import frequent_topics
from batch.loading.network import Network
from batch.progress import Stages
from batch.reports.charts import Axis, Chart
from batch.reports.describe_rules import describe_rules
from batch.reports.files import REPORT, format_number, load_template, report_path, write_report
from batch.reports.run_charts import HALF_WIDTH, draw_calibration, draw_topics
from batch.reports.user_examples import UserExample, read_user_examples
from batch.training.dataset import Dataset
from batch.training.model import Model
from contract import columns
from contract.manifest import Manifest

log = logging.getLogger("batch")

MAX_FEATURES = 20
TABLE_KS = (1, 3, 5, 10, 20)
CURVE_KS = tuple(range(1, DEPTH + 1))

Points = list[tuple[float, float]]

ROC_STEPS = 100
"""Points of a ROC curve: a page needs no more than it has pixels."""


@dataclass(frozen=True)
class Curves:
    """Points (x, y) of each ranker: `model`, `popularity` and `random`.

    Attributes
    ----------
    hitrate
        x is k, y is HitRate@k; empty without rows.
    roc
        x is the false positive rate, y the true positive rate; empty if all
        labels are equal.
    """

    hitrate: dict[str, Points]
    roc: dict[str, Points]


def render_run_page(
    manifest: dict[str, Any],
    dataset: Dataset,
    model: Model,
    curves: Curves,
    examples: Sequence[UserExample],
) -> str:
    """Lay out everything that is known of a run; the same data and model give the same page."""
    band_column, by_band = count_by_band(dataset)
    missing_values, complete_columns = list_missing_values(dataset.network)
    metrics, recipe, topics = manifest["metrics"], recipe_record(manifest), manifest.get(TOPICS)
    return load_template(REPORT).render(
        run=manifest,
        metrics=metrics,
        recipe=recipe,
        training_examples=describe_examples(recipe),
        hitrate=HITRATE,
        viewed_rankers=VIEWED_RANKERS,
        rankers=NAMED_RANKERS,
        first_figures=PRIMARY_METRICS,
        gate=[(outcome_of(verdict), verdict) for verdict in manifest.get("gate", [])],
        gate_counts=count_outcomes(manifest.get("gate", [])),
        charts=_draw_charts(dataset, metrics, curves) | ({TOPICS: draw_topics(topics)} if topics else {}),
        rules=describe_rules(Manifest.from_record(manifest)),
        by_topic=count_by_topic(dataset),
        band_column=band_column,
        by_band=by_band,
        missing_values=missing_values,
        complete_columns=complete_columns,
        ks=TABLE_KS,
        hitrate_curves={ranker: dict(points) for ranker, points in curves.hitrate.items()},
        importance=list_importance(model.booster),
        with_factors=model.variant.with_factors,
        users=examples,
    )


def list_importance(booster: lgb.Booster) -> list[tuple[str, float]]:
    """Return the features with the largest gain, and their share of the forest's total gain."""
    gains = booster.feature_importance("gain")
    order = np.argsort(-gains, kind="stable")[:MAX_FEATURES]
    names = [name.partition("_")[2] for name in booster.feature_name()]  # without the column's number
    return [(names[column], float(gains[column] / gains.sum())) for column in order if gains[column] > 0]


def _draw_charts(dataset: Dataset, metrics: dict[str, Any], curves: Curves) -> dict[str, str]:
    """Draw the charts that there are data for."""
    views, likes = (list(counts) for counts in zip(*dataset.split.by_hour, strict=True))
    charts = {
        "hours": Chart(
            "hours", "Views and likes by hour of the day",
            f"Most likes in hour {int(np.argmax(likes))}, most views in hour {int(np.argmax(views))}.",
            Axis("hour of the day, UTC", 24), Axis("interactions", max(views + likes)),
        ).columns({"likes": likes, "views": views}),
    }  # fmt: skip
    if curves.hitrate:
        charts["hitrate"] = Chart(
            "hitrate", "HitRate at k for k from 1 to 20", _describe_hitrate(curves.hitrate),
            Axis("k", DEPTH), Axis("HitRate@k", 1),
        ).lines(curves.hitrate)  # fmt: skip
    if curves.roc:
        areas = ", ".join(
            f"{ranker} {format_number(metrics[ranker]['roc_auc'])}" for ranker in VIEWED_RANKERS
        )
        charts["roc"] = Chart(
            "roc", "ROC curve", f"ROC AUC: {areas}.",
            Axis("false positive rate", 1), Axis("true positive rate", 1), HALF_WIDTH,
        ).lines(curves.roc)  # fmt: skip
    if chart := draw_calibration(metrics):
        charts["calibration"] = chart
    return charts


def _describe_hitrate(hitrate: dict[str, Points]) -> str:
    values = (f"{ranker} {format_number(dict(points)[5])}" for ranker, points in hitrate.items())
    return "At 5: " + ", ".join(values) + "."


def compute_curves(scored: ScoredRows) -> Curves:
    """Compute the curves of the model, popularity and random order on the same rows."""
    rows = scored.rows
    if len(rows) == 0:
        return Curves({}, {})
    scores = {"model": scored.scores, "popularity": scored.popular}
    ranked = {
        ranker: rank_rows(scored.lists, rows.posts, rows.liked, values) for ranker, values in scores.items()
    }
    by_ranker = {ranker: compute_metrics(lists, CURVE_KS) for ranker, lists in ranked.items()}
    of_model = ranked["model"]
    by_ranker["random"] = compute_random_metrics(of_model.relevant, of_model.candidates, CURVE_KS)
    hitrate = {
        ranker: [(float(k), float(values[f"hitrate_at_{k}"].mean())) for k in CURVE_KS]
        for ranker, values in by_ranker.items()
    }
    if rows.liked.all() or not rows.liked.any():
        return Curves(hitrate, {})
    roc = {ranker: _compute_roc(scored, values) for ranker, values in scores.items()}
    return Curves(hitrate, roc | {"random": [(0.0, 0.0), (1.0, 1.0)]})


def _compute_roc(scored: ScoredRows, scores: Float64s) -> Points:
    false_positive_rates, true_positive_rates, _ = roc_curve(scored.rows.liked, scores)
    x = np.linspace(0, 1, ROC_STEPS + 1)
    y = np.interp(x, false_positive_rates, true_positive_rates)
    return list(zip(x.tolist(), y.tolist(), strict=True))


NOT_KNOWN, OTHERS = "not known", "all others"

MAX_TOPICS = 15
"""Topics with a row of their own."""

BANDS = 8
MIN_DISTINCT_VALUES = 10
"""A numeric column with no more distinct values is a code, not a quantity."""


@dataclass(frozen=True)
class ActionCounts:
    """Number of views and likes of one group."""

    name: str
    views: int
    likes: int


@dataclass(frozen=True)
class MissingValues:
    """Number and share of the rows of a relation that are null in a column."""

    column: str
    rows: int
    share: float


def count_by_topic(dataset: Dataset) -> list[ActionCounts]:
    """Count views and likes by the post's topic, most likes first; empty if no post has a topic."""
    names = frequent_topics(dataset.network.posts)
    if not names:
        return []
    views, likes = dataset.now.of_groups[columns.TOPIC].totals()
    order = np.lexsort((np.arange(len(names)), -likes[: len(names)]))
    rows = [ActionCounts(names[topic], int(views[topic]), int(likes[topic])) for topic in order[:MAX_TOPICS]]
    rest = [*order[MAX_TOPICS:].tolist(), len(names)]
    others = ActionCounts(f"{OTHERS}, or {NOT_KNOWN}", int(views[rest].sum()), int(likes[rest].sum()))
    return rows + ([others] if others.views or others.likes else [])


def count_by_band(dataset: Dataset) -> tuple[str, list[ActionCounts]]:
    """Count views and likes by bands of the first quantity among the columns of users, say their age.

    The bands have about equally many users. Return the column and its bands;
    an empty list if there is no such column.
    """
    for name, values in dataset.network.users.items():
        if values.dtype != np.float64:
            continue
        finite = values.where(np.isfinite(values))
        if finite.nunique() > MIN_DISTINCT_VALUES:
            return str(name), _count_bands(finite.reset_index(drop=True), dataset.now.user_counts)
    return "", []


def _count_bands(values: pd.Series[Any], counts: pd.DataFrame) -> list[ActionCounts]:
    band = pd.qcut(values, BANDS, labels=False, duplicates="drop")
    frame = counts[["views", "likes"]].assign(value=values, band=band.fillna(BANDS))
    rows = []
    for number, users in frame.groupby("band"):
        low, high = users["value"].min(), users["value"].max()
        name = NOT_KNOWN if number == BANDS else f"{low:g} to {high:g}"
        rows.append(ActionCounts(name, int(users["views"].sum()), int(users["likes"].sum())))
    return rows


def list_missing_values(network: Network) -> tuple[list[MissingValues], int]:
    """Return the columns with nulls, largest share first, and the number of columns without any."""
    incomplete, complete = [], 0
    for relation, frame in ((columns.USERS, network.users), (columns.POSTS, network.posts)):
        for name, nulls in frame.isna().sum().items():
            if nulls:
                incomplete.append(MissingValues(f"{relation}.{name}", int(nulls), int(nulls) / len(frame)))
            complete += not nulls
    return sorted(incomplete, key=lambda each: -each.share), complete


def write_run_page(
    stores: Stores, manifest: Manifest, dataset: Dataset, model: Model, *, rows: ScoredRows, stages: Stages
) -> None:
    """Write the page of a run; if the disk does not take it, the night goes on without.

    Parameters
    ----------
    rows
        The holdout's rows as the model that was fit before it scores them.
    """
    path = report_path(stores.settings, manifest.run_id)
    with stages.stage("report", "bytes") as row:
        examples = read_user_examples(stores, manifest.run_id, dataset, manifest.users)
        page = render_run_page(manifest.to_record(), dataset, model, compute_curves(rows), examples)
        row |= {"bytes": 0}
        try:
            row |= {"bytes": write_report(path, page)}
        except OSError as error:
            log.warning("%s has no report: %s cannot be written: %s", manifest.run_id, path, error.strerror)
