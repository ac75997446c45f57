"""Cuts time into history, training and holdout, and all labels into windows.

    |----- history ------|---- training labels ----|-- holdout labels --|
    first           history_end               holdout_start        cutoff
              |-----|-----|-----|-----|------|-------|---------|--------|
                            windows

Evaluation uses features as of `holdout_start` and labels after that; the night
itself uses features as of the cutoff, for which the labels are still to come.
Training takes the labels of a window with the features as of its start, so that
features are as fresh there as they are when they serve. The model that is
judged learns from the windows before the holdout, the one that goes live from
all of them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

from batch.arrays import Float64s
from batch.loading.interaction_store import InteractionStore
from contract.columns import HAPPENED_AT, INTERACTIONS, SCHEMA
from contract.errors import SourceError

log = logging.getLogger("batch")

MINUTE = timedelta(minutes=1)
YEAR_ONE = datetime(1, 1, 1, tzinfo=UTC).timestamp()

WINDOWS = 7
"""Windows with equally many likes, from the end of the history to the cutoff."""

WINDOWS_IF_LARGE = 3
LARGE_INTERACTIONS = 20_000_000
"""From so many interactions up there are fewer windows: each costs a factorisation, and has labels enough."""

PER_MINUTE = """
    SELECT epoch_us(date_trunc('minute', happened_at)) // 1000000 AS minute,
           count(*) FILTER (action = 'view') AS views, count(*) FILTER (action = 'like') AS likes
    FROM interactions WHERE happened_at <= $cutoff GROUP BY 1 ORDER BY 1
"""


@dataclass(frozen=True)
class Split:
    """Times (UTC) that part history, training labels, holdout labels and what is to come.

    Attributes
    ----------
    windows
        Starts of the windows, ascending; `history_end` and `holdout_start` are
        among them. Each ends where the next begins, the last at the cutoff.
    by_hour
        (views, likes) in each of the 24 hours of the day (UTC), up to the cutoff.
    """

    windows: tuple[datetime, ...]
    history_end: datetime
    holdout_start: datetime
    cutoff: datetime
    by_hour: tuple[tuple[int, int], ...]

    @property
    def bounds(self) -> tuple[datetime, ...]:
        """The starts of the windows, and the cutoff."""
        return (*self.windows, self.cutoff)


def split_by_time(
    store: InteractionStore, cutoff: datetime, history_fraction: float, holdout_fraction: float
) -> Split:
    """Cut so that each part holds its fraction of the labelled views (of the likes, where no view is logged).

    The windows hold equally many likes each, except that `history_end` and
    `holdout_start` take the place of the starts that are near them.

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
    fixed = (ends[first], ends[second])
    windows = _windows(every_minute[every_minute["likes"] > 0], fixed, cutoff, history_fraction)
    return Split(windows, *fixed, cutoff, _by_hour(every_minute))


def _by_hour(per_minute: pd.DataFrame) -> tuple[tuple[int, int], ...]:
    hour = per_minute["minute"].astype(np.int64) // 3_600 % 24
    counted = per_minute[["views", "likes"]].groupby(hour).sum().reindex(range(24), fill_value=0)
    return tuple((int(views), int(likes)) for views, likes in counted.to_numpy())


def _windows(
    per_minute: pd.DataFrame, fixed: tuple[datetime, datetime], cutoff: datetime, history_fraction: float
) -> tuple[datetime, ...]:
    """Return the starts of the windows, ascending.

    Parameters
    ----------
    per_minute
        Minutes with likes.
    fixed
        Starts that must be among them.
    history_fraction
        Share of the likes before the first window.
    """
    large = per_minute[["views", "likes"]].to_numpy().sum() >= LARGE_INTERACTIONS
    count = WINDOWS_IF_LARGE if large else WINDOWS
    share = np.cumsum(per_minute["likes"].to_numpy(np.float64)) / per_minute["likes"].sum()
    ends = per_minute["minute"].to_numpy(np.int64) + 60
    step = (1 - history_fraction) / count
    of_fixed = [share[ends <= time.timestamp()].max(initial=0.0) for time in fixed]
    starts = set(fixed)
    for wanted in history_fraction + step * np.arange(count):
        start = datetime.fromtimestamp(int(ends[np.searchsorted(share, wanted)]), UTC)
        if start < cutoff and min(abs(wanted - known) for known in of_fixed) > step / 2:
            starts.add(start)
    return tuple(sorted(starts))


def _cuts(labels: Float64s, history: float, holdout: float) -> tuple[int, int]:
    """Return the minutes that end history and training, so that each of the three parts has one at least."""
    share = np.cumsum(labels) / labels.sum()
    second = min(int(np.searchsorted(share, 1 - holdout)), labels.size - 2)
    second = max(second, 1)
    first = min(int(np.searchsorted(share, history)), second - 1)
    return first, second
