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

Labels are views, each liked or not. Views can be too few to learn from, for
example if the network began to log them today:

    cut time by views
    if too little is left to train on or to evaluate on, or the views ended long ago:
        cut time by likes
        if that leaves enough, and twice as many likes to train on:
            labels are likes beside sampled negatives, as without views
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

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

MIN_TRAINING_VIEWS = 500
MIN_TRAINING_LIKES = 100
"""Views (if they are the labels) and likes needed to train: with fewer, a forest learns nothing or chance."""

MIN_HOLDOUT_USERS = 30
"""Users with likes needed to evaluate on: with fewer, an interval over users is meaningless."""

VIEWS, LIKES = "views", "likes"

PER_MINUTE = """
    SELECT epoch_us(date_trunc('minute', happened_at)) // 1000000 AS minute,
           count(*) FILTER (action = 'view') AS views, count(*) FILTER (action = 'like') AS likes
    FROM {known} WHERE happened_at <= $cutoff GROUP BY 1 ORDER BY 1
"""
USERS_WITH_LIKES = """
    SELECT count(DISTINCT user_row) FROM {known}
    WHERE action = 'like' AND happened_at > $since AND happened_at <= $until
"""


@dataclass(frozen=True)
class LabelCounts:
    """What there is to train on, from the end of the history to the holdout, and to evaluate on.

    Attributes
    ----------
    labels
        VIEWS or LIKES: what time is cut by, and what is learnt and evaluated.
    training_views, training_likes
        Views and likes to train on.
    holdout_likes, holdout_users
        Likes in the holdout, and users with one.
    """

    labels: str
    training_views: int
    training_likes: int
    holdout_likes: int
    holdout_users: int

    @property
    def shortage(self) -> str:
        """What is missing, in words; empty if there is enough."""
        found = (
            (self.training_views, MIN_TRAINING_VIEWS if self.labels == VIEWS else 0, "views to train on"),
            (self.training_likes, MIN_TRAINING_LIKES, "likes to train on"),
            (self.holdout_users, MIN_HOLDOUT_USERS, "users with likes to evaluate on"),
        )
        return ", ".join(f"{count} {what} ({floor} needed)" for count, floor, what in found if count < floor)


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
    counts
        What there is to train on and to evaluate on.
    why
        Why the labels are likes although views are logged; else empty.
    """

    windows: tuple[datetime, ...]
    history_end: datetime
    holdout_start: datetime
    cutoff: datetime
    by_hour: tuple[tuple[int, int], ...]
    counts: LabelCounts
    why: str = ""

    @property
    def bounds(self) -> tuple[datetime, ...]:
        """The starts of the windows, and the cutoff."""
        return (*self.windows, self.cutoff)

    @property
    def labels(self) -> str:
        """VIEWS or LIKES, see `LabelCounts`."""
        return self.counts.labels

    @property
    def warnings(self) -> list[str]:
        """What an operator must know: likes are used in place of views, or there is too little of both."""
        found = []
        if self.why:
            found.append(
                f"the logged views are not used yet: {self.why}. The run learns from likes and sampled "
                "negatives and is evaluated on them, as without views. If the views are older than a few "
                "days, check that they are still logged"
            )
        if self.counts.shortage:
            found.append(
                f"too little data: {self.counts.shortage}. The model may have learnt chance, and the rules "
                "of the gate that need more do not check it. Lists may be no better than popularity"
            )
        return found

    def record(self) -> dict[str, Any]:
        """Return the JSON object for a manifest."""
        return asdict(self.counts) | {"why": self.why}


def split_by_time(
    store: InteractionStore,
    cutoff: datetime,
    history_fraction: float,
    holdout_fraction: float,
    *,
    views_only: bool = False,
) -> TimeSplit:
    """Split so that each part has its fraction of the views, or of the likes if views are too few.

    The windows have equally many likes each, except that `history_end` and
    `holdout_start` replace the starts near them.

    Parameters
    ----------
    views_only
        Cut by views if any is logged, however few: a recipe is set that learns from them.

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
    cut = _choose_cut(store, per_minute, cutoff, (history_fraction, holdout_fraction), views_only)
    windows = _window_starts(per_minute[per_minute["likes"] > 0], cut.times, cutoff, history_fraction)
    by_hour = _count_by_hour(per_minute)
    return TimeSplit(windows, *cut.times, cutoff, by_hour, counts=cut.counts, why=cut.why)


@dataclass(frozen=True)
class _Cut:
    """The end of the history and the start of the holdout by one kind of labels."""

    times: tuple[datetime, datetime]
    counts: LabelCounts
    why: str = ""


def _choose_cut(
    store: InteractionStore,
    per_minute: pd.DataFrame,
    cutoff: datetime,
    fractions: tuple[float, float],
    views_only: bool,
) -> _Cut:
    """Cut by views; by likes if no view is logged, or if views are not enough and likes are."""
    labels = VIEWS if per_minute[VIEWS].sum() > 0 else LIKES
    cut = _cut_by(labels, store, per_minute, cutoff, fractions)
    if labels == VIEWS and not views_only and (why := _why_not_views(per_minute, cut)):
        by_likes = _cut_by(LIKES, store, per_minute, cutoff, fractions)
        likes = 0 if cut is None else cut.counts.training_likes
        if by_likes and not by_likes.counts.shortage and by_likes.counts.training_likes >= 2 * likes:
            return replace(by_likes, why=why)
    if cut is None:
        raise SourceError(
            f"{SCHEMA}.{INTERACTIONS}: all labels lie in {_count_minutes(per_minute, labels)} minute(s); "
            "history, training and holdout need one each"
        )
    return cut


def _why_not_views(per_minute: pd.DataFrame, cut: _Cut | None) -> str:
    """Return why the views are not enough, or that they ended long ago; empty if they are enough."""
    viewed = per_minute["minute"][per_minute[VIEWS] > 0]
    first, last = (
        datetime.fromtimestamp(int(time), UTC).isoformat() for time in (viewed.min(), viewed.max())
    )
    when = f"{per_minute[VIEWS].sum()} views from {first} to {last}"
    if cut is None:
        return f"{when} lie in {_count_minutes(per_minute, VIEWS)} minute(s)"
    if cut.counts.shortage:
        return f"{when} leave {cut.counts.shortage}"
    later, likes = per_minute[LIKES][per_minute["minute"] > viewed.max()].sum(), per_minute[LIKES].sum()
    return f"{when} ended before {later} of {likes} likes" if later * 2 > likes else ""


def _count_minutes(per_minute: pd.DataFrame, labels: str) -> int:
    return int((per_minute[labels] > 0).sum())


def _cut_by(
    labels: str,
    store: InteractionStore,
    per_minute: pd.DataFrame,
    cutoff: datetime,
    fractions: tuple[float, float],
) -> _Cut | None:
    """Cut so that each part has its fraction of the labels; None if they lie in fewer than three minutes."""
    labelled = per_minute[per_minute[labels] > 0]
    if len(labelled) < 3:
        return None
    first, second = _cut_indices(labelled[labels].to_numpy(np.float64), *fractions)
    last_minutes = labelled["minute"].to_numpy(np.int64)[[first, second]]
    history_end, holdout_start = (datetime.fromtimestamp(int(each), UTC) + MINUTE for each in last_minutes)
    part = np.searchsorted(last_minutes, per_minute["minute"])  # 0 history, 1 training, 2 holdout
    training, holdout = per_minute[part == 1], per_minute[part == 2]
    counts = LabelCounts(
        labels=labels,
        training_views=int(training[VIEWS].sum()),
        training_likes=int(training[LIKES].sum()),
        holdout_likes=int(holdout[LIKES].sum()),
        holdout_users=store.scalar(
            USERS_WITH_LIKES.format(known=store.known_at(cutoff)), {"since": holdout_start, "until": cutoff}
        ),
    )
    return _Cut((history_end, holdout_start), counts)


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
