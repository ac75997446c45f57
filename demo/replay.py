"""Replay of an experiment day by day: serving answers, users view and like, the night trains.

Serving, the night and the servers are real; users and dates are simulated. The
days lie in 2021 and 2022, so exposures, which serving records with today's
time, are moved to the replayed day once they are in Postgres.

Each post that a user is shown has two true like probabilities: by control's list
if the user were in control, and by test's list, with the odds of a like times a
factor, if the user were in test. The factor of a day is such that over all users
of that day, whichever variant they are in,

    sum of the probabilities in test = (1 + effect) * sum of those in control.

So `effect` is the whole true effect on likes per view; the difference between the
two models' lists is part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import redis
import sqlalchemy as sa
from scipy.optimize import brentq
from scipy.special import expit, logit

from batch.context import Stores
from batch.experiment.exposures import drain
from batch.experiment.split import change_split
from batch.formatting import echo
from batch.pipeline import run_night
from batch.runs import ledger
from contract.experiment import CONTROL, TEST, VARIANTS, Experiment
from contract.ids import IdKind, encode_id
from contract.settings import Settings
from demo import feed
from demo.ground_truth import HOUR_SHARES, GroundTruth, draw_ground_truth
from demo.ids import SimulatedIds, make_ids
from demo.population import DAY, END, Floats, Ints
from demo.postgres import make_engine
from demo.processes import DemoError
from demo.simulate import COUNTERS, simulate
from serving.app import EXTENSION, create_app

NAME = "replay"
SALT = "replay"
PERCENT_TEST = 50
ACTOR = "demo experiment"
HISTORY_ROWS_PER_USER = 30
"""Views and likes per user before the experiment."""

TRAINING_ROWS = 20_000
"""Training rows of a night: few, because a replay has many nights."""

FIRST_MIDNIGHT = (END // DAY + 1) * DAY
KEEP_DAYS = 3_650
"""Days for which exposures are kept: replayed days are years ago."""


@dataclass(frozen=True)
class ReplayParameters:
    """Size of the replay, the true relative effect of test on likes per view, and the kind of ids."""

    users: int
    posts: int
    days: int
    seed: int
    effect: float
    ids: IdKind = IdKind.NUMBER

    def make_ids(self) -> SimulatedIds:
        """Return the ids of users and posts."""
        return make_ids(self.ids, self.users, self.posts, self.seed)


def first_day() -> datetime:
    """Return when the experiment starts."""
    return datetime.fromtimestamp(FIRST_MIDNIGHT, UTC)


def replay(settings: Settings, client: redis.Redis, parameters: ReplayParameters) -> Impressions:
    """Simulate a network, start an experiment on it, and replay its days.

    Afterwards interactions, exposures and runs are in Postgres, as those of a
    real network. Returns the impressions with their true like probabilities.
    """
    users, posts, seed = parameters.users, parameters.posts, parameters.seed
    rows = users * HISTORY_ROWS_PER_USER
    simulate(settings.stores.database_url, users, posts, rows, seed, ids=parameters.ids)
    ids = parameters.make_ids()
    truth = draw_ground_truth(seed, users, posts)
    settings = settings.replace(
        exposures=True, exposures_keep_days=KEEP_DAYS, training_rows=TRAINING_ROWS, threads=1
    )
    engine = make_engine(settings.stores.database_url)
    experiment = Experiment(NAME, SALT, PERCENT_TEST)
    ledger.create(engine)
    stores = Stores(settings, engine, client, ACTOR)
    change_split(stores, first_day(), lambda _: experiment, parameters.days)
    days = []
    started = datetime.now(UTC)
    with _log_warnings_only():
        echo("==> The night before", err=True)
        run_night(stores, VARIANTS)
        for day in range(parameters.days):
            echo(f"==> Day {day + 1} of {parameters.days}, and its night", err=True)
            rng = np.random.default_rng([seed, 6, day])
            visits = draw_visits(rng, truth, FIRST_MIDNIGHT + day * DAY)
            lists = _request_lists(settings, client, experiment, ids, visits)
            impressions = build_impressions(truth, visits, day, lists, parameters.effect)
            _write_interactions(engine, rng, impressions, experiment, ids)
            days.append(impressions)
            if day < parameters.days - 1:
                run_night(stores, VARIANTS)
            drain(stores, datetime.now(UTC))
            _move_exposures(engine, started, first_day() + timedelta(days=day))
    return Impressions.concat(days)


def _request_lists(
    settings: Settings, client: redis.Redis, experiment: Experiment, ids: SimulatedIds, visits: Visits
) -> ListsOfVisits:
    """Return the lists of each visit under both variants.

    The list of the user's own variant is the answer of the route, which records
    the exposure. The list of the other is the answer of a second app under a
    split that has everyone in that variant; it records nothing.
    """
    app, second_app = create_app(settings, client), create_app(settings.replace(exposures=False), client)
    service, second_service = app.extensions[EXTENSION], second_app.extensions[EXTENSION]
    second_service.live.refresh()
    everyone_in = {
        variant: replace(second_service.state(), experiment=Experiment(NAME, SALT, 100 * (variant == TEST)))
        for variant in VARIANTS
    }
    lists: dict[str, list[Ints]] = {variant: [] for variant in VARIANTS}
    http, post_rows = app.test_client(), ids.post_rows()
    try:
        for row, size in zip(visits.users.tolist(), visits.sizes.tolist(), strict=True):
            user = ids.users[row]
            assigned = experiment.variant_of(user)
            response = http.get(f"/users/{encode_id(user)}/recommendations?limit={size}")
            if response.status_code != 200:
                raise DemoError(f"serving answered user {user} with status {response.status_code}")
            other = CONTROL if assigned == TEST else TEST
            state = everyone_in[other]
            posts = {
                assigned: [row["post_id"] for row in response.get_json()["recommendations"]],
                other: [
                    row.post_id
                    for row in second_service.recommend(state, state.assign(user), size, None).recommendations
                ],
            }
            for variant in VARIANTS:
                rows = [post_rows[post] for post in posts[variant]]
                lists[variant].append(np.array(rows, dtype=np.int64))
    finally:
        service.live.stop()
        service.exposures.stop()
    return ListsOfVisits(lists[CONTROL], lists[TEST])


def _write_interactions(
    engine: sa.Engine,
    rng: np.random.Generator,
    impressions: Impressions,
    experiment: Experiment,
    ids: SimulatedIds,
) -> None:
    """Draw likes by the probabilities of each user's variant; append views and likes to feed_action."""
    users, user_index = np.unique(impressions.users, return_inverse=True)
    is_test = np.array([experiment.variant_of(ids.users[user]) == TEST for user in users])
    in_test = is_test[user_index]
    probabilities = np.where(in_test, impressions.in_test, impressions.in_control)
    size = impressions.users.size
    views = feed.Views(
        users=impressions.users,
        posts=np.where(in_test, impressions.test, impressions.control),
        times=impressions.times,
        dwell_seconds=rng.integers(_DWELL_SECONDS[0], _DWELL_SECONDS[1] + 1, size),
        probabilities=probabilities,
        liked=rng.random(size) < probabilities,
    )
    with engine.begin() as connection:
        feed.copy_feed(connection, [views], ids, new=False)
        connection.execute(sa.text(COUNTERS))


def _move_exposures(engine: sa.Engine, started: datetime, day: datetime) -> None:
    """Set the time of the exposures recorded since the replay started to the start of the replayed day."""
    with engine.begin() as connection:
        for table in ("exposures", "explored"):
            move = sa.text(f"UPDATE recs.{table} SET served_at = :day WHERE served_at >= :started")
            connection.execute(move, {"day": day, "started": started})


@contextmanager
def _log_warnings_only() -> Iterator[None]:
    """Suppress log records below WARNING: the nights of a replay log too many."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.setLevel(level)


MIN_VISIT_POSTS, MAX_VISIT_POSTS = 5, 15
"""Posts that a user views in a visit; a user has at most one visit a day."""

_MAX_START_SECONDS = 1_800
"""Latest start of a visit within its hour, so that it ends on the same day."""
_DWELL_SECONDS = (8, 50)
_PAUSE_SECONDS = 2


@dataclass(frozen=True)
class Visits:
    """Visits of a day, ordered by user; one entry per visit.

    Attributes
    ----------
    users
        Row indices.
    starts
        Seconds since 1970 UTC.
    sizes
        Maximum number of posts that the user views.
    """

    users: Ints
    starts: Ints
    sizes: Ints


class ListsOfVisits(NamedTuple):
    """Rows of the posts served on each visit, best first, under control and under test."""

    control: list[Ints]
    test: list[Ints]


@dataclass(frozen=True)
class Impressions:
    """Posts that users view, ordered by day, user and rank; one entry per impression.

    Attributes
    ----------
    users, days, ranks
        Row index of the user, day from 0, rank from 0.
    times
        Seconds since 1970 UTC.
    control, test
        Row indices of the posts at that rank of the list under control and under test.
    in_control, in_test
        True like probabilities of these posts.
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
    def concat(cls, days: list[Impressions]) -> Impressions:
        """Concatenate days in their order."""
        return cls(*(np.concatenate([getattr(day, field.name) for day in days]) for field in fields(cls)))


def draw_visits(rng: np.random.Generator, truth: GroundTruth, midnight: int) -> Visits:
    """Draw the visits of a day; their probability grows with the user's activity."""
    activity = truth.users.activity * len(truth.users.activity)
    users = np.flatnonzero(rng.random(len(activity)) < -np.expm1(-activity)).astype(np.int64)
    hours = rng.choice(24, users.size, p=HOUR_SHARES)
    seconds = rng.integers(_MAX_START_SECONDS, size=users.size)
    sizes = rng.integers(MIN_VISIT_POSTS, MAX_VISIT_POSTS + 1, users.size)
    return Visits(users, midnight + hours * 3_600 + seconds, sizes)


def build_impressions(
    truth: GroundTruth, visits: Visits, day: int, lists: ListsOfVisits, effect: float
) -> Impressions:
    """Return the impressions of a day under both variants.

    A visit ends where its shorter list ends. Test's like probabilities are
    scaled so that their sum is (1 + effect) times that of control's.
    """
    lengths = zip(visits.sizes, lists.control, lists.test, strict=True)
    sizes = np.array([min(int(size), len(a), len(b)) for size, a, b in lengths], dtype=np.int64)
    users = np.repeat(visits.users, sizes)
    ranks = np.arange(users.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    times = np.repeat(visits.starts, sizes) + ranks * (_DWELL_SECONDS[1] + _PAUSE_SECONDS)
    control, test = (
        np.concatenate([posts[:size] for posts, size in zip(of_visits, sizes, strict=True)] or [users])
        for of_visits in lists
    )
    hours = times % DAY // 3_600
    in_control, unscaled = (truth.probabilities(users, posts, hours) for posts in (control, test))
    in_test = scale_odds(unscaled, (1 + effect) * float(in_control.sum()))
    days = np.full(users.size, day, dtype=np.int64)
    return Impressions(users, days, ranks, times, control, test, in_control, in_test)


def scale_odds(probabilities: Floats, total: float) -> Floats:
    """Multiply all odds by one factor, such that the probabilities sum to `total`."""
    if probabilities.size == 0:
        return probabilities
    result: Floats = expit(logit(probabilities) + find_odds_shift(probabilities, total))
    return result


def find_odds_shift(probabilities: Floats, total: float) -> float:
    """Return what to add to all logits, such that the probabilities sum to `total`.

    Raises
    ------
    ValueError
        `total` is not between 0 and the number of probabilities.
    """
    if not 0 < total < probabilities.size:
        raise ValueError(f"{probabilities.size} probabilities cannot sum to {total:.3f}")
    logits = logit(probabilities)
    return float(brentq(lambda shift: float(expit(logits + shift).sum()) - total, -30, 30))
