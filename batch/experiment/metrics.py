"""What an experiment is judged by: each metric is a ratio of sums over users, or a mean over them.

The frames here have a row per user and the columns below; those of the time
before the experiment carry the prefix `before_`.

in_test   bool, the variant that the user was assigned to
views     views since the user's first exposure
likes     likes since then
days      days (UTC) on which the user viewed anything
hits      those of the days on which one of the first five posts viewed was liked after its view
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]

IN_TEST = "in_test"
VIEWS, LIKES, DAYS, HITS = "views", "likes", "days", "hits"
COUNTS = (VIEWS, LIKES, DAYS, HITS)
BEFORE = "before_"


@dataclass(frozen=True)
class Metric:
    """Sum of `top` over the sum of `bottom`; over the number of users where there is no bottom."""

    name: str
    title: str
    top: str
    bottom: str | None

    def values(self, users: pd.DataFrame, before: bool = False) -> Floats | None:
        """Return (users,) numbers whose mean is the metric and whose variance is the ratio's.

        That is the delta method (Deng, Knoblich and Lu, 2018): a user's number
        is r + (top - r * bottom) / mean(bottom), with r the ratio of the sums. A
        user without any gets r. None where the metric has no value.
        """
        prefix = BEFORE if before else ""
        top = users[prefix + self.top].to_numpy(np.float64)
        if self.bottom is None:
            return top if top.size else None
        bottom = users[prefix + self.bottom].to_numpy(np.float64)
        if bottom.sum() == 0:
            return None
        ratio = top.sum() / bottom.sum()
        return np.asarray(ratio + (top - ratio * bottom) / bottom.mean())


LIKE_RATE = Metric("like_rate", "likes per view", LIKES, VIEWS)
HITRATE = Metric("hitrate_at_5", "HitRate@5", HITS, DAYS)
LIKES_PER_USER = Metric("likes_per_user", "likes per user", LIKES, None)

METRICS = (LIKE_RATE, HITRATE, LIKES_PER_USER)
"""The first that has a value is the primary one: it alone decides, the others are looked at."""
