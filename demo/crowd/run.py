"""`crowd`: find the app of the running demo, let the people act, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path

import sqlalchemy as sa

from batch.context import Stores, open_stores
from batch.experiment.exposures import drain
from batch.experiment.history import read_changes
from batch.experiment.period import ExperimentError, find_split_period, limit_period
from batch.experiment.report import read_report
from batch.experiment.split import read_split
from batch.loading.schema import cast_id, check_views
from batch.postgres import snapshot
from batch.runs import ledger
from contract.codec import decode_object
from contract.columns import POST_ID, USER_ID
from contract.experiment import NO_EXPERIMENT
from contract.ids import Id, IdKinds
from contract.settings import Settings
from demo.crowd.browser import check_loopback
from demo.crowd.expected import ExpectedEffect, ListReader, calibrate
from demo.crowd.preferences import Chances, read_preferences
from demo.crowd.report import CrowdReport, Estimate, make_estimate
from demo.crowd.visits import Crowd, World, plan_visits
from demo.gunicorn import NETWORK_APP, http_get
from demo.network import id_type
from demo.network_app.tables import READ_IDENTITY
from demo.processes import ChildProcess, DemoError, DemoUsageError, Stopped, raise_on_signal

EXPOSURE_SECONDS = 12
"""Serving sends exposures within 10 seconds."""

NOT_RUNNING = "the demo does not run, so a crowd has no app; start it with `make demo` in another terminal"

PEOPLE = """
    SELECT {user_id} FROM recs.users
    WHERE NOT EXISTS (SELECT FROM account WHERE account.user_id = recs.users.user_id)
    ORDER BY md5(user_id::text || :seed), user_id LIMIT :size
"""
COMMUNITIES = "SELECT {post_id}, topic FROM recs.posts WHERE topic IS NOT NULL"
SEEN = """
    SELECT DISTINCT {user_id} AS person, {post_id} AS post FROM recs.interactions
    WHERE action = 'view' AND user_id = ANY(CAST(:users AS {id_type}[]))
"""
LAST_ACTIVITY = sa.text("SELECT coalesce(max(id), 0) FROM activity")
MADE_ANEW = sa.text("SELECT count(*) FROM recs.refreshed_users WHERE refreshed_at >= :since")
HAS_REFRESHED = sa.text("SELECT to_regclass('recs.refreshed_users') IS NOT NULL")
EXPOSED = sa.text("SELECT count(*) FROM recs.exposures WHERE key_prefix = :prefix AND served_at >= :since")


@dataclass(frozen=True)
class CrowdOptions:
    """Options of `crowd`.

    Attributes
    ----------
    url
        Base URL of the app, on this machine.
    size
        Number of people; at most all without an account take part.
    effect
        How much more people in test like what they see, relative: 0.3 is 30 % more likes per view.
    """

    url: str
    size: int
    seconds: float
    seed: int
    effect: float = 0.0


def find_app_url(folder: Path) -> str:
    """Return the base URL of the app that `up` runs on the network in a folder.

    Raises
    ------
    DemoUsageError
        None runs.
    """
    variables = ChildProcess(folder.resolve(), NETWORK_APP.name).read_environment()
    port = None if variables is None else variables.get("NETWORK_APP_PORT")
    if port is None:
        raise DemoUsageError(NOT_RUNNING)
    return f"http://127.0.0.1:{port}"


def run_crowd(settings: Settings, options: CrowdOptions) -> CrowdReport:
    """Let a crowd act until its time is over or a signal comes, and return its report.

    Raises
    ------
    DemoUsageError
        The URL is not that of the network's app over this database.
    DemoError
        The app does not answer, the network has nobody who could act, or no lists for the effect.
    """
    url = check_loopback(options.url)
    with open_stores(settings, ledger.actor("demo crowd"), interactive=True) as stores:
        _check_app(url, stores.engine)
        ledger.create(stores.engine)
        ledger.create(stores.engine)
        crowd, world, user_ids = _gather_crowd(stores, url, options)
        visits = plan_visits(f"{options.seed} visits", len(user_ids), options.seconds)
        started, ended_early = datetime.now(UTC), True
        with suppress(Stopped), raise_on_signal():
            crowd.act(visits)
            ended_early = False
        _wait_for_exposures(stores, started, crowd.done.visits)
        ended = datetime.now(UTC)
        with stores.engine.connect() as connection:
            has_refreshed = connection.scalar(HAS_REFRESHED)
            made_anew = connection.scalar(MADE_ANEW, {"since": started}) if has_refreshed else 0
        return CrowdReport(
            url=url,
            seed=options.seed,
            started_at=started,
            ended_at=ended,
            ended_early=ended_early,
            planned_visits=len(visits),
            size=len(user_ids),
            effect=options.effect,
            shift=world.chances.shift,
            true_effect=world.effect.relative,
            lists_made_anew=made_anew or 0,
            done=crowd.done,
            meter=crowd.meter,
            estimate=_estimate(stores, started, ended, world.effect.relative),
        )


def _check_app(url: str, engine: sa.Engine) -> None:
    """Check that the app over the database of the engine answers."""
    try:
        answer = http_get(f"{url}{NETWORK_APP.ready}")
    except (OSError, HTTPException, UnicodeDecodeError):
        raise DemoError(f"no app answers on {url}; start it with `make demo` in another terminal") from None
    try:
        found = decode_object(answer.body)
    except ValueError:
        found = {}
    with engine.connect() as connection:
        identity = connection.scalar(sa.text(READ_IDENTITY))
    if found.get("network") != identity:
        other = "the app of another network" if "network" in found else "not the network's app"
        raise DemoUsageError(
            f"what answers on {url} is {other}; nobody acted. Without --url, a crowd uses the running demo's"
        )


def _gather_crowd(stores: Stores, url: str, options: CrowdOptions) -> tuple[Crowd, World, Sequence[Id]]:
    with stores.engine.connect() as connection:
        kinds = check_views(connection).kinds
        query = sa.text(PEOPLE.format(user_id=cast_id(USER_ID, kinds.users)))
        parameters = {"seed": str(options.seed), "size": options.size}
        user_ids = list(connection.scalars(query, parameters))
        of_posts = sa.text(COMMUNITIES.format(post_id=cast_id(POST_ID, kinds.posts)))
        communities = {row.post_id: row.topic for row in connection.execute(of_posts)}
        seen = _read_seen(connection, kinds, user_ids)
        preferences = read_preferences(connection, options.seed)
        last = connection.scalar(LAST_ACTIVITY)
    if not user_ids:
        raise DemoError("the network has nobody without an account; load a network, and try again")
    # With the same seed on a network that went on, people decide anew about what they saw before.
    key = f"{options.seed} after {last}"
    lists = ListReader(stores.redis, stores.keys)
    chances = Chances(preferences, key, 0.0, communities)
    if options.effect:
        hour = datetime.now(UTC).hour
        try:
            shift = calibrate(lists, chances, seen, options.effect, hour)
        except ValueError:
            raise DemoError(
                f"likes per view in test cannot be {options.effect:+.0%} more than now; nothing was sent. "
                "Give another --effect, or run the night if there are no lists yet"
            ) from None
        chances = Chances(preferences, key, shift, communities)
    experiment = read_split(stores.redis, stores.keys).experiment or NO_EXPERIMENT
    world = World(url, kinds.posts, chances, ExpectedEffect(lists, chances, seen), communities)
    return Crowd(world, user_ids, [experiment.variant_of(user) for user in user_ids]), world, user_ids


def _read_seen(connection: sa.Connection, kinds: IdKinds, user_ids: Sequence[Id]) -> dict[Id, set[Id]]:
    """Return person -> posts that they saw so far."""
    seen: dict[Id, set[Id]] = {user_id: set() for user_id in user_ids}
    columns = {"user_id": cast_id(USER_ID, kinds.users), "post_id": cast_id(POST_ID, kinds.posts)}
    query = sa.text(SEEN.format(**columns, id_type=id_type(kinds.users)))
    for user_id, post_id in connection.execute(query, {"users": user_ids}):
        seen[user_id].add(post_id)
    return seen


def _wait_for_exposures(stores: Stores, since: datetime, count: int) -> None:
    """Move exposures to Postgres until those of so many visits are there, or serving must have sent them."""
    deadline = time.monotonic() + EXPOSURE_SECONDS
    parameters = {"prefix": stores.keys.prefix, "since": since}
    while True:
        drain(stores, datetime.now(UTC))
        with stores.engine.connect() as connection:
            exposed = connection.scalar(EXPOSED, parameters) or 0
        if exposed >= count or time.monotonic() > deadline:
            return
        time.sleep(0.5)


def _estimate(stores: Stores, since: datetime, until: datetime, truth: float | None) -> Estimate:
    """Read what `experiment report --from --until` says of this time."""
    try:
        with snapshot(stores.engine) as connection:
            split = find_split_period(read_changes(connection, stores.keys.prefix), None)
            period = limit_period(split, datetime.now(UTC), since=max(since, split.since), until=until)
            return make_estimate(read_report(connection, period, exposures_recorded=True), truth)
    except ExperimentError as error:
        return Estimate(None, None, None, f"{error}.")
