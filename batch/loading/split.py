"""Splits time into history, training and holdout, and the labels into windows.

    |----- history ------|---- training labels ----|-- holdout labels --|
    first           history_end               holdout_start        cutoff
              |-----|-----|-----|-----|------|-------|---------|--------|
                            windows

Evaluation uses features as of `holdout_start` and the labels after it. The
night's lists use features as of the cutoff. Training uses the labels of each
window with the features as of the window's start, so that features are as fresh
in training as in serving. The evaluated model is trained on the windows before
the holdout, the model that goes live on all windows.
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
"""Number of windows from the end of the history to the cutoff, with equally many likes each."""

WINDOWS_IF_LARGE = 3
LARGE_INTERACTIONS = 20_000_000
"""With at least this many interactions there are fewer windows: each needs a factorisation."""

PER_MINUTE = """
    SELECT epoch_us(date_trunc('minute', happened_at)) // 1000000 AS minute,
           count(*) FILTER (action = 'view') AS views, count(*) FILTER (action = 'like') AS likes
    FROM {known} WHERE happened_at <= $cutoff GROUP BY 1 ORDER BY 1
"""


@dataclass(frozen=True)
class TimeSplit:
    """Times (UTC) that separate history, training labels, holdout labels and the future.

    Attributes
    ----------
    windows
        Starts of the windows, ascending; `history_end` and `holdout_start` are
        among them. Each ends where the next begins, the last at the cutoff.
    by_hour
        (views, likes) in each hour of the day (UTC), up to the cutoff.
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
) -> TimeSplit:
    """Split so that each part has its fraction of the views, or of the likes if no view is logged.

    The windows have equally many likes each, except that `history_end` and
    `holdout_start` replace the starts near them.

    Raises
    ------
    SourceError
        There are no likes, all labels are in less than three minutes, or a time is before the year 1.
    """
    per_minute = pd.DataFrame(
        store.arrays(PER_MINUTE.format(known=store.known_at(cutoff)), {"cutoff": cutoff})
    )
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
    first, second = _cut_indices(labels[labels > 0].to_numpy(np.float64), history_fraction, holdout_fraction)
    ends = [datetime.fromtimestamp(int(minute), UTC) + MINUTE for minute in per_minute["minute"]]
    fixed = (ends[first], ends[second])
    windows = _window_starts(every_minute[every_minute["likes"] > 0], fixed, cutoff, history_fraction)
    return TimeSplit(windows, *fixed, cutoff, _count_by_hour(every_minute))


def _count_by_hour(per_minute: pd.DataFrame) -> tuple[tuple[int, int], ...]:
    hour = per_minute["minute"].astype(np.int64) // 3_600 % 24
    counted = per_minute[["views", "likes"]].groupby(hour).sum().reindex(range(24), fill_value=0)
    return tuple((int(views), int(likes)) for views, likes in counted.to_numpy())


def _window_starts(
    per_minute: pd.DataFrame, fixed: tuple[datetime, datetime], cutoff: datetime, history_fraction: float
) -> tuple[datetime, ...]:
    """Return the starts of the windows, ascending.

    Parameters
    ----------
    per_minute
        Minutes with likes.
    fixed
        Starts that must be included.
    history_fraction
        Share of the likes before the first window.
    """
    large = per_minute[["views", "likes"]].to_numpy().sum() >= LARGE_INTERACTIONS
    count = WINDOWS_IF_LARGE if large else WINDOWS
    share = np.cumsum(per_minute["likes"].to_numpy(np.float64)) / per_minute["likes"].sum()
    ends = per_minute["minute"].to_numpy(np.int64) + 60
    step = (1 - history_fraction) / count
    fixed_shares = [share[ends <= time.timestamp()].max(initial=0.0) for time in fixed]
    starts = set(fixed)
    for wanted in history_fraction + step * np.arange(count):
        start = datetime.fromtimestamp(int(ends[np.searchsorted(share, wanted)]), UTC)
        if start < cutoff and min(abs(wanted - known) for known in fixed_shares) > step / 2:
            starts.add(start)
    return tuple(sorted(starts))


def _cut_indices(labels: Float64s, history: float, holdout: float) -> tuple[int, int]:
    """Return the indices of the last minutes of history and training; each part has at least one minute."""
    share = np.cumsum(labels) / labels.sum()
    second = min(int(np.searchsorted(share, 1 - holdout)), labels.size - 2)
    second = max(second, 1)
    first = min(int(np.searchsorted(share, history)), second - 1)
    return first, second
