"""The page that each run writes for people to look at: one HTML file that needs nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
import redis
from sklearn.metrics import roc_curve

from batch.arrays import Float64s, Int64s
from batch.evaluation import FIRST_FIGURES, MODEL, NAMES, POPULARITY, RANDOM, RECENCY
from batch.evaluation.evaluate import HITRATE
from batch.evaluation.ranking_metrics import DEPTH, by_list, expected_of_random, ranked_lists
from batch.evaluation.recipe_choice import describe_examples, recipe_record
from batch.evaluation.scored_rows import ScoredRows
from batch.gate.outcomes import count_outcomes, outcome_of
from batch.loading.likes import Likes
from batch.loading.network import Network
from batch.loading.post_groups import frequent_topics
from batch.reports import run_page
from batch.reports.charts import Axis, Chart
from batch.reports.files import REPORT, figure, template
from batch.training.dataset import Dataset
from batch.training.model import Model
from contract import columns
from contract.codec import decode_list
from contract.keys import Keys

JUDGES = ("model", "popularity", "random")
"""In the order of the page, which puts what is hardest to beat beside the model."""

NAMED_RANKERS = [(name, NAMES.get(name, name)) for name in (MODEL, RECENCY, POPULARITY, RANDOM)]
MOST_FEATURES = 20
KS_TOLD = (1, 3, 5, 10, 20)

HALF = 440
"""Width of a chart that has another beside it."""


def report_page(
    manifest: dict[str, Any], dataset: Dataset, model: Model, curves: Curves, users: Sequence[Portrait]
) -> str:
    """Lay out all that is known of a run; the same data and model give the same page."""
    band, by_band = run_page.by_band(dataset)
    missing, full = run_page.missing(dataset.network)
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
        charts=_charts(dataset, metrics, curves),
        by_topic=run_page.by_topic(dataset),
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


def _charts(dataset: Dataset, metrics: dict[str, Any], curves: Curves) -> dict[str, str]:
    """Draw what there is to draw."""
    views, likes = (list(counts) for counts in zip(*dataset.split.by_hour, strict=True))
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


KS_OF_CURVE = tuple(range(1, DEPTH + 1))

Points = list[tuple[float, float]]

ROC_STEPS = 100
"""A page needs no more points than it has pixels."""


@dataclass(frozen=True)
class Curves:
    """Points (x, y) by judge: `model`, `popularity` and `random`.

    Attributes
    ----------
    hitrate
        x is k, y is HitRate@k; none where there are no rows.
    roc
        x is the share of rows not liked that a threshold lets through, y that
        of the liked; none where all labels are alike.
    """

    hitrate: dict[str, Points]
    roc: dict[str, Points]


def curves_of(judged: ScoredRows) -> Curves:
    """Draw the model, popularity and random order on the same rows."""
    if len(judged.rows) == 0:
        return Curves({}, {})
    scored = {"model": judged.scores, "popularity": judged.popular}
    rows = judged.rows
    ranked = {
        judge: ranked_lists(judged.lists, rows.posts, rows.liked, scores) for judge, scores in scored.items()
    }
    found = {judge: by_list(lists, KS_OF_CURVE) for judge, lists in ranked.items()}
    every = ranked["model"]
    found["random"] = expected_of_random(every.relevant, every.candidates, KS_OF_CURVE)
    hitrate = {
        judge: [(float(k), float(values[f"hitrate_at_{k}"].mean())) for k in KS_OF_CURVE]
        for judge, values in found.items()
    }
    if rows.liked.all() or not rows.liked.any():
        return Curves(hitrate, {})
    roc = {judge: _roc(judged, scores) for judge, scores in scored.items()}
    return Curves(hitrate, roc | {"random": [(0.0, 0.0), (1.0, 1.0)]})


def _roc(judged: ScoredRows, scores: Float64s) -> Points:
    passed_wrongly, passed, _ = roc_curve(judged.rows.liked, scores)
    steps = np.linspace(0, 1, ROC_STEPS + 1)
    return [
        (float(x), float(y)) for x, y in zip(steps, np.interp(steps, passed_wrongly, passed), strict=True)
    ]


NOT_KNOWN, OTHERS = "not known", "all others"

MAX_TOPICS = 15
"""Told one by one."""

BANDS = 8
FEWEST_VALUES = 10
"""A column of numbers with no more distinct values than this is a code, not a quantity."""


@dataclass(frozen=True)
class Actions:
    """How many views and likes there are of one kind."""

    name: str
    views: int
    likes: int


@dataclass(frozen=True)
class Missing:
    """How many rows of a relation, by what share of them, have no value in a column."""

    column: str
    rows: int
    share: float


def by_topic(dataset: Dataset) -> list[Actions]:
    """Count what users did by the post's topic, most likes first; nothing where no post has a topic."""
    names = frequent_topics(dataset.network.posts)
    if not names:
        return []
    views, likes = (
        counts[columns.TOPIC].sum(axis=0, dtype=np.float64)
        for counts in (dataset.now.views_of_group, dataset.now.likes_of_group)
    )
    order = np.lexsort((np.arange(len(names)), -likes[: len(names)]))
    told = [Actions(names[place], int(views[place]), int(likes[place])) for place in order[:MAX_TOPICS]]
    rest = [*order[MAX_TOPICS:].tolist(), len(names)]
    others = Actions(f"{OTHERS}, or {NOT_KNOWN}", int(views[rest].sum()), int(likes[rest].sum()))
    return told + ([others] if others.views or others.likes else [])


def by_band(dataset: Dataset) -> tuple[str, list[Actions]]:
    """Count what users did by bands of the first column of users that is a quantity, say their age.

    A band has about as many users as another. Nothing where there is no such column.
    """
    for name, values in dataset.network.users.items():
        if values.dtype != np.float64:
            continue
        finite = values.where(np.isfinite(values))
        if finite.nunique() > FEWEST_VALUES:
            return str(name), _bands(finite.reset_index(drop=True), dataset.now.user_counts)
    return "", []


def _bands(values: pd.Series[Any], counts: pd.DataFrame) -> list[Actions]:
    band = pd.qcut(values, BANDS, labels=False, duplicates="drop")
    frame = counts[["views", "likes"]].assign(value=values, band=band.fillna(BANDS))
    found = []
    for number, users in frame.groupby("band"):
        low, high = users["value"].min(), users["value"].max()
        name = NOT_KNOWN if number == BANDS else f"{low:g} to {high:g}"
        found.append(Actions(name, int(users["views"].sum()), int(users["likes"].sum())))
    return found


def missing(network: Network) -> tuple[list[Missing], int]:
    """Return the columns that lack values, those that lack most first, and how many columns lack none."""
    found, full = [], 0
    for relation, frame in ((columns.USERS, network.users), (columns.POSTS, network.posts)):
        for name, absent in frame.isna().sum().items():
            if absent:
                found.append(Missing(f"{relation}.{name}", int(absent), int(absent) / len(frame)))
            full += not absent
    return sorted(found, key=lambda each: -each.share), full


HOW_MANY = 5
POSTS_SHOWN = 5
MOST_COLUMNS = 12
LETTERS = 90


@dataclass(frozen=True)
class ShownPost:
    """A post as a person recognises it; `score` is None for one that was liked."""

    post_id: int
    topic: str
    words: str
    score: float | None = None


@dataclass(frozen=True)
class Portrait:
    """One user.

    Attributes
    ----------
    profile
        Column -> value, as far as they are known.
    topics
        (topic, likes), most liked first.
    likes, liked
        How many posts they liked up to the cutoff, and some of those.
    gets
        The head of their list.
    """

    user_id: int
    profile: dict[str, str]
    topics: list[tuple[str, int]]
    likes: int
    liked: list[ShownPost]
    gets: list[ShownPost]


def portraits(client: redis.Redis, keys: Keys, run_id: str, dataset: Dataset, users: int) -> list[Portrait]:
    """Describe some of the first `users` users, whose lists the run has written."""
    network, likes = dataset.network, dataset.now.likes
    topics = network.posts[columns.TOPIC].reset_index(drop=True)
    found = []
    for place in chosen(likes, users):
        user_id, liked = int(network.users.index[place]), likes.of(int(place))
        some = liked[np.linspace(0, liked.size - 1, min(POSTS_SHOWN, liked.size)).astype(np.int64)]
        counts = topics[liked].value_counts()
        ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
        stored = client.get(keys.user(run_id, user_id))
        listed = decode_list(stored)[:POSTS_SHOWN] if stored else []
        found.append(
            Portrait(
                user_id=user_id,
                profile=_profile(network.users.iloc[place]),
                topics=[(str(topic), int(count)) for topic, count in ranked[:POSTS_SHOWN]],
                likes=int(liked.size),
                liked=[_shown(network.posts, int(post_id)) for post_id in network.posts.index[some]],
                gets=[_shown(network.posts, post_id, score) for post_id, score in listed],
            )
        )
    return found


def chosen(likes: Likes, users: int) -> Int64s:
    """Choose users by their number of likes, evenly from few to many; anybody if none of them has one."""
    counts = np.diff(likes.starts[: users + 1])
    who = np.flatnonzero(counts) if counts.any() else np.arange(users)
    ordered = who[np.argsort(counts[who], kind="stable")]
    many = min(HOW_MANY, ordered.size)
    return ordered[((np.arange(many) + 0.5) * ordered.size / max(many, 1)).astype(np.int64)]


def _profile(user: pd.Series[Any]) -> dict[str, str]:
    known = user[user.notna()][:MOST_COLUMNS]
    return {
        str(name): f"{value:g}" if isinstance(value, float) else str(value) for name, value in known.items()
    }


def _shown(posts: pd.DataFrame, post_id: int, score: float | None = None) -> ShownPost:
    post = posts.loc[post_id]
    topic, text = (str(post[name]) if post.notna()[name] else "" for name in (columns.TOPIC, columns.TEXT))
    words = " ".join(text.split())
    return ShownPost(post_id, topic, words if len(words) <= LETTERS else f"{words[:LETTERS]}…", score)
