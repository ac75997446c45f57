"""HitRate@k for every k, and the ROC curve: what a report draws of the rows a model was judged on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_curve

from batch.judging.judged import Judged
from batch.judging.metrics import DEPTH, Floats, by_list, expected_of_random, ranked_lists

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


def curves_of(judged: Judged) -> Curves:
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


def _roc(judged: Judged, scores: Floats) -> Points:
    passed_wrongly, passed, _ = roc_curve(judged.rows.liked, scores)
    steps = np.linspace(0, 1, ROC_STEPS + 1)
    return [
        (float(x), float(y)) for x, y in zip(steps, np.interp(steps, passed_wrongly, passed), strict=True)
    ]
