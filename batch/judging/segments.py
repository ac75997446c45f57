"""Segments that a model is judged by: how active the user was, their country, the post's topic."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from batch.loading.examples import Examples
from batch.loading.history import History
from batch.loading.load import Network
from contract import columns

Labels = npt.NDArray[np.object_]

ACTIVITY, COUNTRY, TOPIC = "activity", "country", "topic"

NEW, LIGHT, HEAVY = "new (0)", "light (1-9)", "heavy (10+)"
"""By views and likes up to the history's end."""

HEAVY_FROM = 10
MOST_COUNTRIES = 5
MOST_TOPICS = 10
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
    most = MOST_COUNTRIES if grouping == COUNTRY else MOST_TOPICS
    names, counts = np.unique(labels.astype(str), return_counts=True)
    kept = [str(names[place]) for place in np.lexsort((names, -counts))[:most]]
    grouped = np.where(np.isin(labels.astype(str), kept), labels, REST).astype(object)
    return kept + ([REST] if len(names) > most else []), grouped
