"""A day of a replayed network: who looks at the feed, what serving shows them, and what they would like.

For every post that a user is shown there are two true like probabilities: what
it would be were the user in control, by control's list, and what it would be
in test, by test's list with the odds of a like times a factor. The factor of
a day is such that over all users who look at the feed on it, whichever
variant they are in,

    sum of the probabilities in test = (1 + effect) * sum of those in control.

So `effect` is the whole truth about likes per view: what the two models'
lists differ by is part of it, not beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, logit

from demo.population import DAY, Floats, Ints
from demo.tastes import HOUR_SHARES, Tastes

FEWEST_SHOWN, MOST_SHOWN = 5, 15
"""Posts that a user looks at in a visit; one visit a day."""

_LATEST_START = 1_800
"""Seconds into its hour, so that a visit ends on the day on which it began."""
_DWELL_SECONDS = (8, 50)
_PAUSE_SECONDS = 2

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Visits:
    """Who looks at the feed on a day: places of users ascending, when (seconds UTC), at how many posts."""

    users: Ints
    starts: Ints
    sizes: Ints


@dataclass(frozen=True)
class Shown:
    """Every post that users look at, ordered by day, user and rank; one row each.

    Attributes
    ----------
    users, days, ranks
        Place of the user, day from 0, rank from 0.
    times
        Seconds UTC.
    control, test
        Places of the posts that control's and test's list have at that rank.
    in_control, in_test
        True like probabilities of those.
    """

    users: Ints
    days: Ints
    ranks: Ints
    times: Ints
    control: Ints
    test: Ints
    in_control: Floats
    in_test: Floats

    @classmethod
    def together(cls, days: list[Shown]) -> Shown:
        """Join days, in their order."""
        return cls(*(np.concatenate([getattr(day, each.name) for day in days]) for each in fields(cls)))


def draw_visits(rng: np.random.Generator, tastes: Tastes, midnight: int) -> Visits:
    """Draw a day's visits: the more active a user, the likelier is one."""
    activity = tastes.users.activity * len(tastes.users.activity)
    users = np.flatnonzero(rng.random(len(activity)) < -np.expm1(-activity)).astype(np.int64)
    hours = rng.choice(24, users.size, p=HOUR_SHARES)
    seconds = rng.integers(_LATEST_START, size=users.size)
    sizes = rng.integers(FEWEST_SHOWN, MOST_SHOWN + 1, users.size)
    return Visits(users, midnight + hours * 3_600 + seconds, sizes)


def show(
    tastes: Tastes, visits: Visits, day: int, lists: tuple[list[Ints], list[Ints]], effect: float
) -> Shown:
    """Say what each visitor looks at, and would like, in either variant.

    Parameters
    ----------
    lists
        Of control and of test: for each visit the places of the posts served,
        best first. A visit ends where the shorter one does.
    """
    control, test = lists
    pairs = zip(visits.sizes, control, test, strict=True)
    sizes = np.array([min(int(size), len(a), len(b)) for size, a, b in pairs], dtype=np.int64)
    users = np.repeat(visits.users, sizes)
    ranks = np.arange(users.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    times = np.repeat(visits.starts, sizes) + ranks * (_DWELL_SECONDS[1] + _PAUSE_SECONDS)
    posts = [
        np.concatenate([each[:size] for each, size in zip(some, sizes, strict=True)] or [users])
        for some in (control, test)
    ]
    hours = times % DAY // 3_600
    in_control, raw = (tastes.probabilities(users, each, hours) for each in posts)
    in_test = raised(raw, (1 + effect) * float(in_control.sum()))
    days = np.full(users.size, day, dtype=np.int64)
    return Shown(users, days, ranks, times, posts[0], posts[1], in_control, in_test)


def raised(probabilities: Floats, total: float) -> Floats:
    """Multiply the odds of all by one factor, so that the probabilities come to `total`."""
    if probabilities.size == 0:
        return probabilities
    logits = logit(probabilities)
    shift = brentq(lambda by: float(expit(logits + by).sum()) - total, -30, 30)
    result: Floats = expit(logits + shift)
    return result


def dwell(rng: np.random.Generator, views: int) -> Ints:
    """Draw how many seconds after its view each like comes, before the next view."""
    return rng.integers(_DWELL_SECONDS[0], _DWELL_SECONDS[1] + 1, views)
