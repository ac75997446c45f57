"""The data at a glance: views and likes by hour, topic and age, and where values are missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from batch.learning.gather import Gathered
from batch.loading.groupings import frequent_topics
from batch.loading.load import Network
from contract import columns

NOT_KNOWN, OTHERS = "not known", "all others"

MOST_TOPICS = 15
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


def by_topic(gathered: Gathered) -> list[Actions]:
    """Count what users did by the post's topic, most likes first; nothing where no post has a topic."""
    names = frequent_topics(gathered.network.posts)
    if not names:
        return []
    views, likes = (
        counts[columns.TOPIC].sum(axis=0, dtype=np.float64)
        for counts in (gathered.now.views_of_group, gathered.now.likes_of_group)
    )
    order = np.lexsort((np.arange(len(names)), -likes[: len(names)]))
    told = [Actions(names[place], int(views[place]), int(likes[place])) for place in order[:MOST_TOPICS]]
    rest = [*order[MOST_TOPICS:].tolist(), len(names)]
    others = Actions(f"{OTHERS}, or {NOT_KNOWN}", int(views[rest].sum()), int(likes[rest].sum()))
    return told + ([others] if others.views or others.likes else [])


def by_band(gathered: Gathered) -> tuple[str, list[Actions]]:
    """Count what users did by bands of the first column of users that is a quantity, say their age.

    A band has about as many users as another. Nothing where there is no such column.
    """
    for name, values in gathered.network.users.items():
        if values.dtype != np.float64:
            continue
        finite = values.where(np.isfinite(values))
        if finite.nunique() > FEWEST_VALUES:
            return str(name), _bands(finite.reset_index(drop=True), gathered.now.user_counts)
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
