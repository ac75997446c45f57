"""The ledger's tables, their version, and the migration of older databases."""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, insert

from contract.columns import SCHEMA
from contract.errors import OvernightError
from contract.keys import Keys

VERSION = 6
"""Version of the tables below. A change to them raises it, and adds a step to `STEPS` if a table changes.

Versions 3 to 6 only added tables: experiments and exposures; erasures; explored; blocked_posts,
console_actions and console_jobs.
"""

STEPS = {2: f"ALTER TABLE {SCHEMA}.runs ADD COLUMN IF NOT EXISTS removed_at timestamptz"}
"""Version -> statement that migrates the tables from the version before; new tables are always created."""

MIGRATION_LOCK = sa.text("SELECT pg_advisory_xact_lock(hashtextextended('overnight ledger', 0))")


class State(StrEnum):
    """building -> built -> live -> retired, or failed, refused, rolled_back."""

    BUILDING = "building"
    BUILT = "built"
    LIVE = "live"
    RETIRED = "retired"
    FAILED = "failed"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"


tables = sa.MetaData(schema=SCHEMA)
time = sa.DateTime(timezone=True)
runs = sa.Table(
    "runs",
    tables,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("variant", sa.Text, nullable=False),
    sa.Column("key_prefix", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("cutoff", time),
    sa.Column("started_at", time, nullable=False),
    sa.Column("finished_at", time),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("manifest", JSONB),
    # When the removal of the run's keys and model began.
    sa.Column("removed_at", time),
)
changes = sa.Table(
    "run_changes",
    tables,
    sa.Column("run_id", sa.Text, sa.ForeignKey(runs.c.run_id), nullable=False, index=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("at", time, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
)
# One row per change of the split; the newest under a prefix applies.
experiments = sa.Table(
    "experiments",
    tables,
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("salt", sa.Text, nullable=False),
    sa.Column("percent_test", sa.Integer, nullable=False),
    # User id, as text -> variant.
    sa.Column("pins", JSONB, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("set_at", time, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("key_prefix", sa.Text, nullable=False, server_default=Keys().prefix),
    # Planned duration from when the split was set; null if it was not given.
    sa.Column("planned_days", sa.Integer),
)
# One row per answered first page of a feed; `variant` is the one whose list was served.
exposures = sa.Table(
    "exposures",
    tables,
    sa.Column("user_id", sa.BigInteger, nullable=False),
    sa.Column("variant", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("served_at", time, nullable=False),
    # From the request's arrival until its answer was ready; null if the release did not record it.
    sa.Column("took_ms", sa.REAL),
    sa.Column("key_prefix", sa.Text, nullable=False, server_default=Keys().prefix),
    # Rows arrive almost in order of time, so a BRIN index (a few bytes per block) is enough.
    sa.Index("exposures_served_at", "served_at", postgresql_using="brin"),
)
# One row per post in an explored place of an answered page, a first or a later one.
explored = sa.Table(
    "explored",
    tables,
    sa.Column("user_id", sa.BigInteger, nullable=False),
    # As text, whatever the kind of the network's ids.
    sa.Column("post_id", sa.Text, nullable=False),
    sa.Column("variant", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    # From 1; and the probability of the draw.
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("probability", sa.Double, nullable=False),
    sa.Column("served_at", time, nullable=False),
    sa.Column("key_prefix", sa.Text, nullable=False),
    sa.Index("explored_served_at", "served_at", postgresql_using="brin"),
)
# How much of a prefix's stream is in `exposures`: id of the last entry, written in the transaction of its
# rows, and the time of the last drain.
drained = sa.Table(
    "exposures_drained",
    tables,
    sa.Column("key_prefix", sa.Text, primary_key=True),
    sa.Column("last_id", sa.Text, nullable=False),
    sa.Column("at", time, nullable=False),
)
# One row each time users were forgotten: how much was removed, without the users' ids.
erasures = sa.Table(
    "erasures",
    tables,
    sa.Column("at", time, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("key_prefix", sa.Text, nullable=False),
    sa.Column("users", sa.Integer, nullable=False),
    sa.Column("lists", sa.Integer, nullable=False),
    sa.Column("exposures", sa.BigInteger, nullable=False),
    sa.Column("files", sa.Integer, nullable=False),
)
# One row per block of a post; the post is blocked while `unblocked_at` is null.
blocked_posts = sa.Table(
    "blocked_posts",
    tables,
    sa.Column("key_prefix", sa.Text, nullable=False),
    # As text, whatever the kind of the network's ids.
    sa.Column("post_id", sa.Text, nullable=False),
    sa.Column("blocked_at", time, nullable=False),
    sa.Column("blocked_by", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("unblocked_at", time),
    sa.Column("unblocked_by", sa.Text),
    sa.Column("unblock_reason", sa.Text),
)
sa.Index(
    "blocked_posts_in_force",
    blocked_posts.c.key_prefix,
    blocked_posts.c.post_id,
    unique=True,
    postgresql_where=blocked_posts.c.unblocked_at.is_(None),
)
sa.Index("blocked_posts_story", blocked_posts.c.key_prefix, blocked_posts.c.post_id)
# One row per confirmed action of the console. Its token comes from the form: a form sent twice acts once.
console_actions = sa.Table(
    "console_actions",
    tables,
    sa.Column("token", sa.Text, primary_key=True),
    sa.Column("key_prefix", sa.Text, nullable=False),
    sa.Column("at", time, nullable=False, index=True),
    # The name that signed in.
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("arguments", JSONB, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    # What it did, or why it failed; null while it runs, or if the console died then.
    sa.Column("outcome", sa.Text),
    sa.Column("failed", sa.Boolean),
)
# One row per command that the console ran as a child process and keeps.
console_jobs = sa.Table(
    "console_jobs",
    tables,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("key_prefix", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("arguments", JSONB, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    # The host of the console that runs it, and when that console last said that it runs.
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("seen_at", time, nullable=False, server_default=sa.func.now()),
    sa.Column("started_at", time, nullable=False, index=True),
    sa.Column("ended_at", time),
    # Null while it runs, and if it could not be started or its end was not seen; then `meaning` says so.
    sa.Column("exit_code", sa.Integer),
    sa.Column("meaning", sa.Text),
    # The last lines of its log; and what it printed, if it prints JSON.
    sa.Column("log", sa.Text),
    sa.Column("output", JSONB),
)
versions = sa.Table(
    "ledger_version",
    tables,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("since", time, nullable=False, server_default=sa.func.now()),
)


def create(engine: sa.Engine) -> None:
    """Create the ledger's missing tables, and migrate older ones.

    Raises
    ------
    OvernightError
        The tables are newer than this program.
    """
    if schema_version(engine) == VERSION:
        return
    with engine.begin() as connection:
        upgrade(connection)


def upgrade(connection: sa.Connection) -> None:
    """Create or migrate the tables in a transaction.

    Raises
    ------
    OvernightError
        The tables are newer than this program.
    """
    connection.execute(MIGRATION_LOCK)
    found = _version(connection)
    if found > VERSION:
        raise OvernightError(
            f"the ledger in {SCHEMA}.{runs.name} is of version {found}, this program knows {VERSION}; "
            "update the program"
        )
    tables.create_all(connection)
    for version in range(found + 1, VERSION + 1) if found else (VERSION,):
        if found and version in STEPS:
            connection.exec_driver_sql(STEPS[version])
        connection.execute(insert(versions).values(version=version).on_conflict_do_nothing())


def has_table(connection: sa.Connection, table: sa.Table) -> bool:
    """Return whether a table exists; a ledger of an older version lacks some."""
    return connection.scalar(sa.select(sa.func.to_regclass(f"{table.schema}.{table.name}"))) is not None


def schema_version(engine: sa.Engine) -> int:
    """Return the version of the ledger's tables; 0 if there are none."""
    with engine.connect() as connection:
        return _version(connection)


def _version(connection: sa.Connection) -> int:
    if not has_table(connection, runs):
        return 0
    if not has_table(connection, versions):
        return 1
    return int(connection.scalar(sa.select(sa.func.max(versions.c.version))) or 1)
