"""A simulated network lived through day by day: serving answers, users like, the night learns.

All of it is real, on real servers, but the users and the calendar. The network's days lie in
2021 and 2022; what serving notes today about a replayed day is moved to that
day once it is in Postgres.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta

import click
import numpy as np
import numpy.typing as npt
import redis
import sqlalchemy as sa
from scipy.optimize import brentq
from scipy.special import expit, logit

from batch.experiment.exposures import drain
from batch.experiment.split import change
from batch.pipeline import Night, run_night
from batch.runs import ledger
from contract.experiment import CONTROL, TEST, VARIANTS, Experiment
from contract.settings import Settings
from demo import feed, network
from demo.ground_truth import HOUR_SHARES, Tastes, draw_tastes
from demo.population import DAY, END, FIRST_POST_ID, FIRST_USER_ID, Floats, Ints
from demo.processes import DemoError
from demo.simulate import COUNTERS, simulate
from serving.app import EXTENSION, create_app

NAME = "replay"
SALT = "replay"
PERCENT_TEST = 50
ACTOR = "demo experiment"
HISTORY = 30
"""Views and likes per user of the time before the experiment."""

TRAINING_ROWS = 20_000
"""Of a night: as a replay has many, each is made a short one."""

FIRST_MIDNIGHT = (END // DAY + 1) * DAY
KEEP_DAYS = 3_650
"""Of exposures: replayed days are years ago, and must not be taken for outdated."""


@dataclass(frozen=True)
class Network:
    """How big the replay is, and how test's users differ."""

    users: int
    posts: int
    days: int
    seed: int
    effect: float


def first_day() -> datetime:
    """Return when the experiment begins."""
    return datetime.fromtimestamp(FIRST_MIDNIGHT, UTC)


def replay(settings: Settings, client: redis.Redis, wanted: Network) -> Shown:
    """Simulate a network, begin an experiment on it, and live through its days.

    Interactions, exposures and runs are in Postgres afterwards, as a network's
    would be. Returned is what a network does not know: every true probability.
    """
    simulate(settings.stores.database_url, wanted.users, wanted.posts, wanted.users * HISTORY, wanted.seed)
    tastes = draw_tastes(wanted.seed, wanted.users, wanted.posts)
    settings = settings.replace(
        exposures=True, exposures_keep_days=KEEP_DAYS, training_rows=TRAINING_ROWS, threads=1
    )
    engine = network.engine_of(settings.stores.database_url)
    experiment = Experiment(NAME, SALT, PERCENT_TEST)
    ledger.create(engine)
    change(engine, client, settings, first_day(), ACTOR, lambda _: experiment, wanted.days)
    days = []
    begun = datetime.now(UTC)
    with _quiet():
        click.echo("==> The night before", err=True)
        _night(settings, engine, client)
        for day in range(wanted.days):
            click.echo(f"==> Day {day + 1} of {wanted.days}, and its night", err=True)
            rng = np.random.default_rng([wanted.seed, 6, day])
            visits = draw_visits(rng, tastes, FIRST_MIDNIGHT + day * DAY)
            shown = show(tastes, visits, day, _served(settings, client, experiment, visits), wanted.effect)
            _note(engine, rng, shown, experiment)
            days.append(shown)
            if day < wanted.days - 1:
                _night(settings, engine, client)
            drain(engine, client, settings, datetime.now(UTC))
            _move_exposures(engine, begun, first_day() + timedelta(days=day))
    return Shown.together(days)


def _night(settings: Settings, engine: sa.Engine, client: redis.Redis) -> None:
    """Run the night of both variants; one that the gate refuses leaves what was live, as ever."""
    run_night(Night(settings, engine, client, ACTOR), VARIANTS)


def _served(
    settings: Settings, client: redis.Redis, experiment: Experiment, visits: Visits
) -> tuple[list[Ints], list[Ints]]:
    """Return for each visit the places of the posts of control's list and of test's.

    The list of the user's own variant is what the route answers, which notes
    the exposure; that of the other is what it would answer under a split that
    has everybody there.
    """
    app, aside = create_app(settings, client), create_app(settings.replace(exposures=False), client)
    service, other = app.extensions[EXTENSION], aside.extensions[EXTENSION]
    other.live.refresh()
    everybody = {
        variant: replace(other.state(), experiment=Experiment(NAME, SALT, 100 * (variant == TEST)))
        for variant in VARIANTS
    }
    lists: dict[str, list[Ints]] = {variant: [] for variant in VARIANTS}
    web = app.test_client()
    try:
        for user, size in zip((visits.users + FIRST_USER_ID).tolist(), visits.sizes.tolist(), strict=True):
            assigned = experiment.variant_of(user)
            response = web.get(f"/users/{user}/recommendations?limit={size}")
            if response.status_code != 200:
                raise DemoError(f"serving answered user {user} with status {response.status_code}")
            answered = [row["post_id"] for row in response.get_json()["recommendations"]]
            unasked = CONTROL if assigned == TEST else TEST
            state = everybody[unasked]
            would = other.recommend(state, state.assign(user), size, None).recommendations
            for variant, posts in ((assigned, answered), (unasked, [each.post_id for each in would])):
                lists[variant].append(np.array(posts, dtype=np.int64) - FIRST_POST_ID)
    finally:
        service.live.stop()
        service.exposures.stop()
    return lists[CONTROL], lists[TEST]


def _note(engine: sa.Engine, rng: np.random.Generator, shown: Shown, experiment: Experiment) -> None:
    """Let users like by their variant's probabilities, and write views and likes where a network would."""
    ids, place = np.unique(shown.users, return_inverse=True)
    in_test = np.array([experiment.variant_of(int(user) + FIRST_USER_ID) == TEST for user in ids])[place]
    probabilities = np.where(in_test, shown.in_test, shown.in_control)
    views = feed.Views(
        users=shown.users,
        posts=np.where(in_test, shown.test, shown.control),
        times=shown.times,
        dwell=dwell(rng, shown.users.size),
        probabilities=probabilities,
        liked=rng.random(shown.users.size) < probabilities,
    )
    with engine.begin() as connection:
        rows = feed.to_copy([views])
        network.copy_binary(connection, network.FEED_ACTION, feed.COPY_COLUMNS, rows, new=False)
        connection.execute(sa.text(COUNTERS))


def _move_exposures(engine: sa.Engine, begun: datetime, day: datetime) -> None:
    """Let what was noted since the replay began have happened at the begin of the replayed day."""
    move = sa.text("UPDATE recs.exposures SET served_at = :day WHERE served_at >= :begun")
    with engine.begin() as connection:
        connection.execute(move, {"day": day, "begun": begun})


@contextmanager
def _quiet() -> Iterator[None]:
    """Let only warnings through: a replay has more nights than anybody wants to read about."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.setLevel(level)


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
