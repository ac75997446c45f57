"""One model's figures by every protocol, beside random order and popularity; as a record, and flat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from batch.judging import JUDGES
from batch.judging.bootstrap import Measured, Pooled, measure
from batch.judging.catalogue import PROTOCOL as FULL_CATALOGUE
from batch.judging.judged import Judged
from batch.judging.metrics import KS, Floats, Places, by_list, expected_of_random, ranked_lists
from batch.judging.segments import TOPIC, frequent

HITRATE = f"hitrate_at_{KS[0]}"
OF_SEGMENT = (HITRATE, "roc_auc")

Figures = dict[str, float | int | None]


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes
    ----------
    protocol
        `viewed-only`, or what else the rows allow.
    rows, users
        How many were judged by it.
    viewed
        Of `model`, `random` and `popularity`.
    segments
        A record per segment, grouping by grouping.
    catalogue, catalogue_users
        The same three by the other protocol, empty where it was not asked for.
    """

    protocol: str
    rows: int
    users: int
    viewed: dict[str, Measured]
    segments: list[dict[str, Any]]
    catalogue: dict[str, Measured]
    catalogue_users: int

    def record(self) -> dict[str, Any]:
        """Return what a manifest keeps: metrics by judge, and their intervals beside them."""
        found: dict[str, Any] = {"protocol": self.protocol, **_by_judge(self.viewed)}
        found["calibration"] = list(self.viewed["model"].deciles)
        found["segments"] = self.segments
        if self.catalogue:
            found["full_catalogue"] = {
                "protocol": FULL_CATALOGUE,
                "users": self.catalogue_users,
                **_by_judge(self.catalogue),
            }
        return found

    def flat(self, beside: tuple[str, Evaluation] | None = None) -> Figures:
        """Return metric -> value: `hitrate_at_5`, `_low` and `_high`, `random_` and `popularity_` before it.

        Figures over the full catalogue start with `full_catalogue_`.

        Parameters
        ----------
        beside
            Another variant's name and figures on the same rows: adds `minus_NAME_` differences.
        """
        found: Figures = {"users": self.users, "views": self.rows}
        found |= _flat("", self.viewed)
        if self.catalogue:
            found["full_catalogue_users"] = self.catalogue_users
            found |= _flat("full_catalogue_", self.catalogue)
        for start, metric, difference in self.differences(beside[1]) if beside else ():
            for end, value in zip(("", "_low", "_high"), difference, strict=True):
                found[f"{start}minus_{beside[0] if beside else ''}_{metric}{end}"] = rounded(value)
        return found

    def differences(self, other: Evaluation) -> list[tuple[str, str, tuple[float, float, float]]]:
        """Return (prefix of the protocol, metric, (difference, low, high)): this less the other, paired."""
        pairs = [("", self.viewed, other.viewed), ("full_catalogue_", self.catalogue, other.catalogue)]
        return [
            (start, metric, difference)
            for start, mine, theirs in pairs
            if mine and theirs
            for metric, difference in mine["model"].minus(theirs["model"]).items()
        ]


def evaluation(judged: Judged, seed: int, catalogue: tuple[int, dict[str, Measured]] | None) -> Evaluation:
    """Measure what was judged; `catalogue` is what `full_catalogue` returned, or None."""
    return Evaluation(
        protocol=judged.protocol,
        rows=len(judged.rows),
        users=int(np.unique(judged.rows.users).size),
        viewed=_viewed(judged, seed),
        segments=_segments(judged, seed),
        catalogue=catalogue[1] if catalogue else {},
        catalogue_users=catalogue[0] if catalogue else 0,
    )


def compared(judged: Judged, scores: Floats, seed: int) -> dict[str, tuple[float, float, float]]:
    """Return by metric (difference, low, high): the model less other scores of the same rows."""
    mine, theirs = (_ranked(judged, each, None, seed) for each in (judged.scores, scores))
    return mine.minus(theirs)


def rounded(value: float) -> float | None:
    """Return four digits, None for NaN."""
    return round(value, 4) if math.isfinite(value) else None


def _viewed(judged: Judged, seed: int) -> dict[str, Measured]:
    constant = np.zeros(len(judged.rows))
    return {
        "model": _ranked(judged, judged.scores, judged.probabilities, seed),
        "random": measure(
            _expected(judged), _owners(judged), _pooled(judged, constant, judged.base_rate), seed
        ),
        "popularity": _ranked(judged, judged.popular, judged.popular_rate, seed),
    }


def _ranked(judged: Judged, scores: Floats, probabilities: Floats | None, seed: int) -> Measured:
    lists = by_list(ranked_lists(judged.lists, judged.rows.posts, judged.rows.liked, scores))
    return measure(lists, _owners(judged), _pooled(judged, scores, probabilities), seed)


def _pooled(judged: Judged, scores: Floats, probabilities: Floats | None) -> Pooled:
    return Pooled(judged.rows.users, judged.rows.liked, scores, probabilities)


def _owners(judged: Judged) -> Places:
    """Return (lists,) whose list each is, lists in ascending order."""
    _, first = np.unique(judged.lists, return_index=True)
    return judged.rows.users[first]


def _expected(judged: Judged) -> dict[str, Floats]:
    _, owner, candidates = np.unique(judged.lists, return_inverse=True, return_counts=True)
    relevant = np.bincount(owner, weights=judged.rows.liked, minlength=candidates.size)
    return expected_of_random(relevant.astype(np.int64), candidates.astype(np.int64))


def _segments(judged: Judged, seed: int) -> list[dict[str, Any]]:
    found = []
    for grouping, labels in judged.segments.items():
        names, grouped = frequent(grouping, labels)
        found += [_segment(judged, grouping, name, grouped == name, seed) for name in names]
    return found


def _segment(judged: Judged, grouping: str, name: str, within: Any, seed: int) -> dict[str, Any]:
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


def _hitrate(part: Judged, scores: Floats) -> Floats:
    ranked = ranked_lists(part.lists, part.rows.posts, part.rows.liked, scores)
    return by_list(ranked, KS[:1])[HITRATE]


def _by_judge(measured: dict[str, Measured]) -> dict[str, Any]:
    values = {
        judge: {metric: rounded(value) for metric, value in measured[judge].values.items()}
        for judge in JUDGES
    }
    intervals = {
        judge: {
            metric: [rounded(bound) for bound in measured[judge].interval(metric)]
            for metric in measured[judge].values
        }
        for judge in JUDGES
    }
    return {**values, "intervals": intervals}


def _flat(start: str, measured: dict[str, Measured]) -> Figures:
    found: Figures = {}
    for judge in JUDGES:
        before = start if judge == "model" else f"{start}{judge}_"
        for metric, value in measured[judge].values.items():
            low, high = measured[judge].interval(metric)
            found[f"{before}{metric}"] = rounded(value)
            found[f"{before}{metric}_low"] = rounded(low)
            found[f"{before}{metric}_high"] = rounded(high)
    return found
