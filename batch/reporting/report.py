"""The page that each run writes for people to look at: one HTML file that needs nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightgbm as lgb
import numpy as np

from batch.gate.outcomes import count_outcomes, outcome_of
from batch.judging import FIRST_FIGURES, MODEL, NAMES, POPULARITY, RANDOM, RECENCY
from batch.judging.evaluation import HITRATE
from batch.judging.metrics import DEPTH
from batch.judging.recipe_record import describe_examples, recipe_record
from batch.learning.gather import Gathered
from batch.learning.model import Model
from batch.reporting import glance
from batch.reporting.charts import Axis, Chart
from batch.reporting.curves import Curves, Points
from batch.reporting.page import REPORT
from batch.reporting.portraits import Portrait
from batch.reporting.template import figure, template

JUDGES = ("model", "popularity", "random")
"""In the order of the page, which puts what is hardest to beat beside the model."""

NAMED_RANKERS = [(name, NAMES.get(name, name)) for name in (MODEL, RECENCY, POPULARITY, RANDOM)]
MOST_FEATURES = 20
KS_TOLD = (1, 3, 5, 10, 20)

HALF = 440
"""Width of a chart that has another beside it."""


def report_page(
    manifest: dict[str, Any], gathered: Gathered, model: Model, curves: Curves, users: Sequence[Portrait]
) -> str:
    """Lay out all that is known of a run; the same data and model give the same page."""
    band, by_band = glance.by_band(gathered)
    missing, full = glance.missing(gathered.network)
    metrics, recipe = manifest["metrics"], recipe_record(manifest)
    return template(REPORT).render(
        run=manifest,
        metrics=metrics,
        recipe=recipe,
        examples=describe_examples(recipe),
        hitrate=HITRATE,
        judges=JUDGES,
        rankers=NAMED_RANKERS,
        first_figures=FIRST_FIGURES,
        gate=[(outcome_of(verdict), verdict) for verdict in manifest.get("gate", [])],
        gate_counts=count_outcomes(manifest.get("gate", [])),
        charts=_charts(gathered, metrics, curves),
        by_topic=glance.by_topic(gathered),
        band=band,
        by_band=by_band,
        missing=missing,
        full_columns=full,
        ks=KS_TOLD,
        curve={judge: dict(points) for judge, points in curves.hitrate.items()},
        importance=importance(model.booster),
        with_factors=model.variant.with_factors,
        users=users,
    )


def importance(booster: lgb.Booster) -> list[tuple[str, float]]:
    """Return the features that the forest gains most by, and their share of its whole gain."""
    gains = booster.feature_importance("gain")
    order = np.argsort(-gains, kind="stable")[:MOST_FEATURES]
    names = [name.partition("_")[2] for name in booster.feature_name()]  # less the number of the column
    return [(names[place], float(gains[place] / gains.sum())) for place in order if gains[place] > 0]


def _charts(gathered: Gathered, metrics: dict[str, Any], curves: Curves) -> dict[str, str]:
    """Draw what there is to draw."""
    views, likes = (list(counts) for counts in zip(*gathered.split.by_hour, strict=True))
    drawn = {
        "hours": Chart(
            "hours", "Views and likes by hour of the day",
            f"Most likes in hour {_most(likes)}, most views in hour {_most(views)}.",
            Axis("hour of the day, UTC", 24), Axis("interactions", max(views + likes)),
        ).columns({"likes": likes, "views": views}),
    }  # fmt: skip
    if curves.hitrate:
        drawn["hitrate"] = Chart(
            "hitrate", "HitRate at k for k from 1 to 20", _at_five(curves.hitrate),
            Axis("k", DEPTH), Axis("HitRate@k", 1),
        ).lines(curves.hitrate)  # fmt: skip
    if curves.roc:
        area = {judge: figure(metrics[judge]["roc_auc"]) for judge in JUDGES}
        drawn["roc"] = Chart(
            "roc", "ROC curve", "Area below: " + ", ".join(f"{judge} {area[judge]}" for judge in area) + ".",
            Axis("share of rows not liked", 1), Axis("share of liked rows", 1), HALF,
        ).lines(curves.roc)  # fmt: skip
    if deciles := metrics["calibration"]:
        points = [(row["predicted"], row["liked"]) for row in deciles]
        top = _round_up(max(max(point) for point in points))
        drawn["calibration"] = Chart(
            "calibration", "Calibration by deciles of the predicted probability",
            f"Predicted {points[0][0]} to {points[-1][0]}, liked {points[0][1]} to {points[-1][1]}.",
            Axis("predicted probability of a like", top), Axis("share that was liked", top), HALF,
        ).lines({"model": points, "perfect": [(0, 0), (top, top)]}, dotted="model")  # fmt: skip
    return drawn


def _most(counts: list[int]) -> int:
    return int(np.argmax(counts))


def _at_five(hitrate: dict[str, Points]) -> str:
    return (
        "At 5: " + ", ".join(f"{judge} {figure(dict(points)[5])}" for judge, points in hitrate.items()) + "."
    )


def _round_up(value: float) -> float:
    """Return the next tenth, 0.1 at least."""
    return max(math.ceil(value * 10), 1) / 10
