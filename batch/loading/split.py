"""Cuts time into history, training and holdout.

    |----- history ------|---- training labels ----|-- holdout labels --|
    first    |       history_end               holdout_start        cutoff
         half_way

Training uses features as of `history_end` and labels after it; evaluation
uses features as of `holdout_start` and labels after that; the night itself
uses features as of the cutoff, for which the labels are still to come. What
happened between `half_way` and `history_end` teaches as well, with features as
of `half_way`: most likes may lie there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pandas as pd

from batch.loading.interaction_store import InteractionStore
from contract.columns import HAPPENED_AT, INTERACTIONS, SCHEMA
from contract.errors import SourceError

log = logging.getLogger("batch")

MINUTE = timedelta(minutes=1)
YEAR_ONE = datetime(1, 1, 1, tzinfo=UTC).timestamp()

PER_MINUTE = """
    SELECT epoch_us(date_trunc('minute', happened_at)) // 1000000 AS minute,
           count(*) FILTER (action = 'view') AS views, count(*) FILTER (action = 'like') AS likes
    FROM interactions WHERE happened_at <= $cutoff GROUP BY 1 ORDER BY 1
"""


@dataclass(frozen=True)
class Split:
    """The moments (UTC) that part history, training labels, holdout labels and what is to come.

    `half_way`: by then half of the history's likes had happened; None where they lie in one minute.
    `by_hour`: (views, likes) in each of the 24 hours of the day (UTC), up to the cutoff.
    """

    half_way: datetime | None
    history_end: datetime
    holdout_start: datetime
    cutoff: datetime
    by_hour: tuple[tuple[int, int], ...]


def split_by_time(
    store: InteractionStore, cutoff: datetime, history_fraction: float, holdout_fraction: float
) -> Split:
    """Cut so that each part holds its fraction of the labelled views (of the likes, where no view is logged).

    Raises
    ------
    SourceError
        There are no likes, all lie in so few minutes that time cannot be cut, or some lie before the year 1.
    """
    per_minute = pd.DataFrame(store.arrays(PER_MINUTE, {"cutoff": cutoff}))
    relation = f"{SCHEMA}.{INTERACTIONS}"
    if not (per_minute["minute"] >= YEAR_ONE).all():
        raise SourceError(
            f"{relation} has a {HAPPENED_AT} before the year 1; leave such rows out in the view"
        )
    if per_minute["likes"].sum() == 0:
        raise SourceError(
            f"{relation} has no likes up to {cutoff.isoformat()}; there is nothing to learn from"
        )
    every_minute = per_minute
    labels = per_minute["views" if per_minute["views"].sum() > 0 else "likes"]
    per_minute = per_minute[labels > 0]
    if len(per_minute) < 3:
        raise SourceError(
            f"{relation}: all labels lie in {len(per_minute)} minute(s); "
            "history, training and holdout need one each"
        )
    first, second = _cuts(labels[labels > 0].to_numpy(np.float64), history_fraction, holdout_fraction)
    ends = [datetime.fromtimestamp(int(minute), UTC) + MINUTE for minute in per_minute["minute"]]
    half_way = _half_way(every_minute[every_minute["minute"] <= per_minute["minute"].iloc[first]])
    return Split(half_way, ends[first], ends[second], cutoff, _by_hour(every_minute))


def _by_hour(per_minute: pd.DataFrame) -> tuple[tuple[int, int], ...]:
    hour = per_minute["minute"].astype(np.int64) // 3_600 % 24
    counted = per_minute[["views", "likes"]].groupby(hour).sum().reindex(range(24), fill_value=0)
    return tuple((int(views), int(likes)) for views, likes in counted.to_numpy())


def _half_way(history: pd.DataFrame) -> datetime | None:
    """Return the end of the minute by which half of the likes of these minutes had happened."""
    liked = history[history["likes"] > 0]
    if len(liked) < 2:
        return None
    share = np.cumsum(liked["likes"].to_numpy(np.float64)) / liked["likes"].sum()
    place = min(int(np.searchsorted(share, 0.5)), len(liked) - 2)
    return datetime.fromtimestamp(int(liked["minute"].iloc[place]), UTC) + MINUTE


def _cuts(labels: npt.NDArray[np.float64], history: float, holdout: float) -> tuple[int, int]:
    """Return the minutes that end history and training, so that each of the three parts has one at least."""
    share = np.cumsum(labels) / labels.sum()
    second = min(int(np.searchsorted(share, 1 - holdout)), labels.size - 2)
    second = max(second, 1)
    first = min(int(np.searchsorted(share, history)), second - 1)
    return first, second
