"""How old a person's list is, and what they did that it does not know yet. Asks Postgres alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from batch.experiment.history import read_current_change
from batch.formatting import format_count
from batch.inspection.user_profile import read_refreshed_at
from batch.runs.tables import State, changes, experiments, has_table, runs
from contract.experiment import NO_EXPERIMENT
from contract.ids import Id
from demo.network_app.context import NetworkApp

_ACTIONS = sa.text("""
    SELECT count(*) FILTER (WHERE kind = 'like') AS likes,
        count(*) FILTER (WHERE kind = 'unlike') AS unlikes, count(*) FILTER (WHERE kind = 'view') AS views
    FROM activity WHERE user_id = :user AND kind IN ('view', 'like', 'unlike') AND at > :since
""")
_REGISTERED = sa.text("SELECT created_at FROM account WHERE user_id = :user")


@dataclass(frozen=True)
class Freshness:
    """The list that a person is served, and what happened since.

    Attributes
    ----------
    variant, run_id
        The person's variant of the A/B test; the run that serves them, which is the other variant's if theirs
        has no live one.
    live_since
        When the run went live.
    refreshed_at
        When a refresh last made the person's list of this run; None if none did.
    knew_person
        Whether the person was there when the run's night began.
    scored, known
        How many people the run's night made lists for, and how many there were.
    likes, unlikes, views
        What the person did after `made_at`.
    """

    variant: str
    run_id: str
    live_since: datetime
    refreshed_at: datetime | None
    knew_person: bool
    scored: int
    known: int
    likes: int
    unlikes: int
    views: int

    @property
    def made_at(self) -> datetime:
        """When the list was made."""
        return self.refreshed_at or self.live_since

    @property
    def limited(self) -> bool:
        """Whether the night made lists for some people only; refreshes then make none for others."""
        return self.scored < self.known

    @property
    def list_was_made(self) -> bool:
        """Whether a list of the person was made. After a limited night only a refresh tells."""
        return self.refreshed_at is not None or (self.knew_person and not self.limited)

    @property
    def actions(self) -> int:
        """How many things the person did after `made_at` that models learn from."""
        return self.likes + self.unlikes + self.views

    def describe_actions(self) -> str:
        """Return what they were: `1 like, 3 views`."""
        counts = {"like": self.likes, "unlike": self.unlikes, "view": self.views}
        return ", ".join(format_count(count, noun) for noun, count in counts.items() if count)


def read_freshness(app: NetworkApp, connection: sa.Connection, user_id: Id) -> Freshness | None:
    """Return how old a person's list is; None if no run is live."""
    if not has_table(connection, runs):
        return None
    prefix = app.settings.stores.key_prefix
    live = {row.variant: row for row in connection.execute(_live_runs(prefix))}
    if not live:
        return None
    change = read_current_change(connection, prefix) if has_table(connection, experiments) else None
    variant = (NO_EXPERIMENT if change is None else change.experiment).variant_of(user_id)
    run = live.get(variant) or next(iter(live.values()))
    refreshed_at = read_refreshed_at(connection, run.run_id, user_id)
    acted = connection.execute(_ACTIONS, {"user": user_id, "since": refreshed_at or run.live_since}).one()
    registered_at = connection.scalar(_REGISTERED, {"user": user_id})
    knew_person = registered_at is None or registered_at < run.started_at
    scored, known = int(run.scored or 0), int(run.known or 0)
    return Freshness(variant, run.run_id, run.live_since, refreshed_at, knew_person, scored, known, *acted)


def read_start(connection: sa.Connection, run_id: str) -> datetime | None:
    """Return when a run began; None if there is none of this id."""
    if not has_table(connection, runs):
        return None
    started_at: datetime | None = connection.scalar(
        sa.select(runs.c.started_at).where(runs.c.run_id == run_id)
    )
    return started_at


def _live_runs(key_prefix: str) -> sa.Select[Any]:
    """Select the live run of each variant, and when it last went live."""
    went_live = (
        sa.select(sa.func.max(changes.c.at))
        .where(changes.c.run_id == runs.c.run_id, changes.c.state == State.LIVE)
        .scalar_subquery()
    )
    return sa.select(
        runs.c.variant,
        runs.c.run_id,
        runs.c.started_at,
        went_live.label("live_since"),
        runs.c.manifest["users"].astext.label("scored"),
        runs.c.manifest["users_of_network"].astext.label("known"),
    ).where(runs.c.key_prefix == key_prefix, runs.c.state == State.LIVE)
