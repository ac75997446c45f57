"""Further columns of the views that know what happened after the holdout began.

Our features are as of then; a further column holds the value of now. A counter of now (logins, shares)
contains what users did later, so a model learns from it what it cannot know when its lists are served.

For each numeric or boolean column, over the users (or posts) with a past at the start of the holdout:

    rest of the column = ranks of the column - their fit by the past
    rest of the future = ranks of the likes (or views) during the holdout - their fit by the past
    the column knows the future if the rests are correlated: above MIN_CORRELATION and MIN_DEVIATIONS

The past is each count as of the holdout's start, in ranks and in quantile bins; the fit is by least squares.
What a constant attribute says about the future, the past says too: on three real networks its correlation
is at most 0.06 in absolute value, and that of exact counters of now at least 0.4.
"""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pandas as pd

from batch.arrays import Float64s
from batch.features.build import select_profile_columns
from batch.loading.history import History
from batch.loading.network import Network
from batch.loading.period_counts import FADING_COLUMNS
from contract import columns

MIN_CORRELATION = 0.2
MIN_DEVIATIONS = 5.0
"""Standard deviations of the correlation of unrelated columns; with few users they are large."""

TINY = 1e-8
"""Relative size of what is left by rounding."""

MAX_BINS = 10
ROWS_PER_BIN = 100
COUNTS = ("likes", "views")
PAST = {
    columns.USERS: ("views", "likes", "recent", "days_since"),
    columns.POSTS: ("views", "likes", "recent_likes", "last_like", *FADING_COLUMNS),
}


def find_later_columns(network: Network, then: History, now: History) -> dict[str, float]:
    """Return the columns that know the future, e.g. `users.logins`, with their correlation.

    Parameters
    ----------
    then, now
        As of the holdout's start, and as of the cutoff.
    """
    users, posts = select_profile_columns(network)
    return _find(columns.USERS, users, then.user_counts, now.user_counts) | _find(
        columns.POSTS, posts, then.post_counts, now.post_counts
    )


def describe_later_columns(found: dict[str, float], since: datetime) -> list[str]:
    """Describe each of the columns, and what to do, in one line.

    Parameters
    ----------
    since
        Start of the holdout.
    """
    return [
        f"{columns.SCHEMA}.{name} knows what happened after {since.isoformat(timespec='seconds')} "
        f"(correlation {correlation:+.2f}, beyond what was known then): probably it counts up to now. The "
        "models learn from it what they cannot know at night, and the evaluation is too good. Leave it out "
        f"(OVERNIGHT_IGNORE_COLUMNS={name}), or let the view return a value that does not change"
        for name, correlation in found.items()
    ]


def _find(view: str, frame: pd.DataFrame, then: pd.DataFrame, now: pd.DataFrame) -> dict[str, float]:
    numbers = _numeric_columns(frame)
    rows = (then[list(COUNTS)].sum(axis=1) > 0).to_numpy()
    if numbers.empty or not rows.any():
        return {}
    basis = _basis(then.loc[rows, list(PAST[view])])
    free = max(basis.shape[0] - basis.shape[1], 1)
    least = max(MIN_CORRELATION, MIN_DEVIATIONS / np.sqrt(free))
    during = [_rest(basis, (now[name] - then[name]).to_numpy()[rows]) for name in COUNTS]
    found = {}
    for name, values in numbers.items():
        column = _rest(basis, values.to_numpy(np.float64)[rows])
        correlation = max((float(column @ future) for future in during), key=abs)
        if abs(correlation) > least:
            found[f"{view}.{name}"] = round(correlation, 3)
    return found


def _numeric_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the numeric and boolean columns as numbers."""
    known = {}
    for name, column in frame.items():
        first = column.first_valid_index()
        if first is not None and isinstance(column[first], float | bool):
            known[str(name)] = column.astype(np.float64)
    return pd.DataFrame(known, frame.index)


def _basis(past: pd.DataFrame) -> Float64s:
    """Return an orthonormal basis of what the past explains: (rows, dimensions)."""
    bins = int(np.clip(len(past) // ROWS_PER_BIN, 1, MAX_BINS))
    shares = past.rank(pct=True).fillna(0).to_numpy()
    steps = [np.minimum(shares * bins, bins - 1).astype(int) == number for number in range(1, bins)]
    blocks = np.concatenate([np.ones((len(past), 1)), shares, *steps], axis=1)
    sizes, vectors = np.linalg.eigh(blocks.T @ blocks)
    kept = sizes > sizes[-1] * TINY
    basis: Float64s = blocks @ (vectors[:, kept] / np.sqrt(sizes[kept]))
    return basis


def _rest(basis: Float64s, values: Float64s) -> Float64s:
    """Return what the past does not explain of the values' ranks, of length 1, or 0 if that is nothing."""
    ranked = pd.Series(values).rank()
    ranks: Float64s = ranked.fillna(ranked.mean()).to_numpy(np.float64) / len(values)
    rest: Float64s = ranks - basis @ (basis.T @ ranks)
    length = float(np.linalg.norm(rest))
    return rest / length if length > TINY * np.sqrt(len(values)) else np.zeros(len(values))
