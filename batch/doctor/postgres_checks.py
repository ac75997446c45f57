"""Checks of Postgres: the three views, the role's rights, our tables and their version, the time index.

The time index lets a refresh find the interactions since the night. The plan of
the refresh's own query shows which tables and columns the view
`recs.interactions` takes its time from; the catalog has the size of those
tables and their indexes. The query is explained, not executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.exc import ProgrammingError

from batch.doctor.finding import Finding, fail, ok, warn
from batch.experiment.history import read_current_change
from batch.features import embedding_cache
from batch.loading import future_rows
from batch.loading.future_rows import LAST_DAY, describe_future_rows
from batch.loading.interactions_query import count_recent, interactions_since
from batch.loading.schema import Columns, check_views, find_unknown_columns
from batch.postgres_session import describe_hosts, transaction_pooling
from batch.publishing.blocking import read_blocked
from batch.refresh import stale_users
from batch.refresh.stale_users import LATE
from batch.runs import ledger, lock
from batch.runs.ledger import State, runs
from batch.runs.tables import VERSION, blocked_posts, experiments, schema_version, upgrade, versions
from contract.columns import HAPPENED_AT, INTERACTIONS, POST_ID, POSTS, SCHEMA, USER_ID, USERS
from contract.errors import SourceError
from contract.experiment import CONTROL, Experiment

OWN_TABLES = [
    table
    for tables in (ledger.runs.metadata, stale_users.tables, embedding_cache.metadata)
    for table in tables.tables.values()
]

LOCK_TIMEOUT = sa.text("SET LOCAL lock_timeout = '5s'")

SERVER = sa.text("SELECT current_user, current_database(), current_setting('server_version')")
MAY_CREATE = sa.text("""
    SELECT has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE')
    FROM pg_namespace WHERE nspname = :schema
""")
OWN_TABLE_RIGHTS = sa.text("""
    SELECT relname, pg_has_role(relowner, 'USAGE') AS owned,
           (SELECT bool_and(has_table_privilege(pg_class.oid, needed))
            FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS needed) AS usable
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = :schema AND relname = ANY(:names)
""")
COLUMNS = sa.text("""
    SELECT attname FROM pg_attribute
    WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped
""")
MAY_READ = sa.text("SELECT has_table_privilege(:table, 'SELECT')")
GRANT = f"as the schema's owner: GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {{role}}"


def check_database(connection: sa.Connection) -> list[Finding]:
    """Check a database that answers."""
    role, database, version = connection.execute(SERVER).one()
    hosts = describe_hosts(connection.engine.url)
    return [
        ok("postgres", f"PostgreSQL {version} at {hosts}, database {database}, role {role}"),
        check_sql_views(connection),
        check_rights(connection, role),
        check_tables(connection),
    ]


def check_sql_views(connection: sa.Connection) -> Finding:
    """Check that the three views exist with their columns and types, and can be read."""
    try:
        found = check_views(connection)
    except SourceError as error:
        reason, _, fix = str(error).partition("; ")
        return fail("views", reason, fix)
    counts = [f"{len(columns)} columns of {name}" for name, columns in vars(found).items()]
    return ok("views", ", ".join(counts))


def check_rights(connection: sa.Connection, role: str) -> Finding:
    """Check that the role can write our tables, and may create those that are missing."""
    names = [table.name for table in OWN_TABLES]
    found = connection.execute(OWN_TABLE_RIGHTS, {"schema": SCHEMA, "names": names}).all()
    unusable = sorted(row.relname for row in found if not row.owned and not row.usable)
    if unusable:
        return fail(
            "rights",
            f"{role} neither owns nor may write {SCHEMA}.{unusable[0]}",
            f"ALTER TABLE {SCHEMA}.{unusable[0]} OWNER TO {role}",
        )
    if not connection.scalar(MAY_CREATE, {"schema": SCHEMA}):
        reason = f"{role} may not create tables in the schema {SCHEMA}"
        missing = sorted(set(names) - {row.relname for row in found})
        if missing:
            return fail("rights", f"{reason}, and {missing[0]} is missing", GRANT.format(role=role))
        return warn("rights", f"{reason}; all tables needed today exist", GRANT.format(role=role))
    return ok("rights", f"{role} may read the views, and can write {len(found)} tables of ours")


def check_tables(connection: sa.Connection) -> Finding:
    """Check that our tables have the columns that this version writes."""
    absent_columns = {}
    for table in OWN_TABLES:
        existing = set(connection.scalars(COLUMNS, {"table": f"{SCHEMA}.{table.name}"}))
        absent_columns[table.name] = (
            sorted({column.name for column in table.columns} - existing) if existing else None
        )
    lacking = {name: absent for name, absent in absent_columns.items() if absent}
    if lacking:
        name, absent = next(iter(lacking.items()))
        return fail(
            "tables",
            f"{SCHEMA}.{name} lacks the column {', '.join(absent)}: another version created it",
            "run `python -m batch runs` with this version; it upgrades older tables",
        )
    newest = _read_version(connection) if absent_columns[versions.name] == [] else 0
    if newest > VERSION:
        return fail(
            "tables",
            f"the ledger is of version {newest}, this program of version {VERSION}",
            "update the program",
        )
    missing = [name for name, absent in absent_columns.items() if absent is None]
    later = f"; created when first needed: {', '.join(missing)}" if missing else ""
    return ok("tables", f"as this version needs them{later}")


def _read_version(connection: sa.Connection) -> int:
    """Return the version of the ledger's tables; 0 if the role may not read it, see `check_rights`."""
    if not connection.scalar(MAY_READ, {"table": f"{SCHEMA}.{versions.name}"}):
        return 0
    return int(connection.scalar(sa.select(sa.func.max(versions.c.version))) or 0)


def count_users_and_posts(connection: sa.Connection) -> dict[str, int]:
    """Return the numbers of distinct `users` and `posts` of the views."""
    return {name: int(connection.scalar(query) or 0) for name, query in COUNTS.items()}


def check_locks(engine: sa.Engine) -> Finding:
    """Check that a lock taken on one connection is seen and refused on another.

    Raises
    ------
    TransactionPoolingError
        It is not.
    """
    engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    name = {"name": f"overnight doctor:{uuid4()}"}
    with engine.connect() as one, engine.connect() as other:
        one.execute(lock.TRY, name)
        holder = other.execute(lock.HOLDER, name).first()
        held = holder is not None and not other.scalar(lock.TRY, name) and bool(one.scalar(lock.UNLOCK, name))
        if held and other.scalar(lock.TRY, name):
            other.execute(lock.UNLOCK, name)
            return ok("locks", "taken on one connection, refused on another; time zone UTC")
    raise transaction_pooling(engine.url)


def check_writes(engine: sa.Engine, key_prefix: str) -> Finding:
    """Write what a night writes, in a transaction that is rolled back.

    Raises
    ------
    OvernightError, DBAPIError
        As a night would.
    """
    run_id, change = f"doctor {uuid4()}", ledger.Change(datetime.now(UTC), "doctor")
    row = {"run_id": run_id, "variant": CONTROL, "key_prefix": key_prefix, "state": State.BUILDING}
    current = schema_version(engine) == VERSION
    with engine.connect() as connection, connection.begin() as transaction:
        connection.execute(LOCK_TIMEOUT)
        if not current:
            upgrade(connection)
        stale_users.tables.create_all(connection)
        embedding_cache.metadata.create_all(connection)
        connection.execute(sa.insert(runs).values(row | {"started_at": change.at, "actor": change.actor}))
        ledger.set_state(connection, run_id, State.FAILED, change)
        for table in OWN_TABLES:
            connection.execute(
                sa.insert(table).from_select(list(table.c), sa.select(table).where(sa.false()))
            )
            connection.execute(sa.delete(table).where(sa.false()))
        transaction.rollback()
    return ok("writes", f"what a night writes to {SCHEMA} was written, and rolled back")


COUNTS = {
    view: sa.text(f"SELECT count(DISTINCT {column}) FROM {SCHEMA}.{view}")
    for view, column in ((USERS, USER_ID), (POSTS, POST_ID))
}
READABLE = sa.text("""
    SELECT CASE WHEN to_regclass(:name) IS NULL THEN false ELSE has_table_privilege(:name, 'SELECT') END
""")
# Rows as JSON: tables of another version may lack a column.
LEDGER_ROWS = sa.text(f"""
    SELECT to_jsonb(run) - 'manifest' AS fields FROM {SCHEMA}.{runs.name} run
    WHERE key_prefix = :prefix ORDER BY run_id
""")


@dataclass(frozen=True)
class LedgerRow:
    """A run as the ledger records it.

    Attributes
    ----------
    cutoff
        Time of the last interaction that the run knows; None until it is built.
    removed
        Whether its keys and model are removed, or being removed.
    """

    run_id: str
    variant: str
    state: str
    cutoff: datetime | None
    removed: bool


def read_ledger_rows(connection: sa.Connection, key_prefix: str) -> dict[str, LedgerRow]:
    """Return every run under a key prefix by its id; empty if there is no readable ledger."""
    if not connection.scalar(READABLE, {"name": f"{SCHEMA}.{runs.name}"}):
        return {}
    found = (row.fields for row in connection.execute(LEDGER_ROWS, {"prefix": key_prefix}))
    return {
        fields["run_id"]: LedgerRow(
            run_id=fields["run_id"],
            variant=fields["variant"],
            state=fields["state"],
            cutoff=datetime.fromisoformat(cutoff) if (cutoff := fields.get("cutoff")) else None,
            removed=fields.get("removed_at") is not None,
        )
        for fields in found
    }


def read_recorded_split(connection: sa.Connection, key_prefix: str) -> Experiment | None:
    """Return the recorded split of the users; None if there is no readable one."""
    if not connection.scalar(READABLE, {"name": f"{SCHEMA}.{experiments.name}"}):
        return None
    found = read_current_change(connection, key_prefix)
    return found.experiment if found else None


def read_recorded_blocks(connection: sa.Connection, key_prefix: str) -> frozenset[str] | None:
    """Return the ids of the posts that are recorded as blocked, as text; None if they cannot be read."""
    if not connection.scalar(READABLE, {"name": f"{SCHEMA}.{blocked_posts.name}"}):
        return None
    return frozenset(read_blocked(connection, key_prefix))


def list_live(ledger: dict[str, LedgerRow], variant: str) -> list[str]:
    """Return the runs of a variant that the ledger records as live; at most one unless it is wrong."""
    return [row.run_id for row in ledger.values() if row.variant == variant and row.state == State.LIVE]


CHECK = "time index"
MIN_ROWS = 100_000
"""Smaller tables are read in well under a second, and need no index."""

VIEW = f"{SCHEMA}.{INTERACTIONS}"
CONDITIONS = ("Filter", "Join Filter", "Index Cond", "Recheck Cond")
NAME = r'(?:[\w$]+|"(?:[^"]|"")+")'
UNAFFECTED = "lists and serving are not affected; every refresh takes that long"

# Rows are estimated as the planner does, by the rows per page at the last ANALYZE; by 64 bytes a row without.
TABLE = sa.text("""
    SELECT format('%I.%I', nspname, c.relname) AS name,
           (pg_relation_size(c.oid)
            * CASE WHEN reltuples > 0 AND relpages > 0 THEN reltuples / relpages / block ELSE 1 / 64.0 END
           )::bigint AS rows,
           EXISTS (
               SELECT FROM pg_index JOIN pg_class index ON index.oid = indexrelid
               JOIN pg_am ON pg_am.oid = index.relam
               JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
               WHERE indrelid = c.oid AND indisvalid AND amname IN ('btree', 'brin') AND attname = :column
                 AND (indpred IS NULL OR index.relname = ANY(:used))
           ) AS indexed
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
         (SELECT current_setting('block_size')::integer AS block) AS server
    WHERE nspname = :schema AND c.relname = :relation
""")


@dataclass(frozen=True)
class Scan:
    """A table that the query reads by time.

    Attributes
    ----------
    column
        The column that is compared with the time, quoted if SQL needs it;
        None if the view computes the time.
    indexes
        Indexes that the plan uses for that column.
    """

    schema: str
    relation: str
    column: str | None
    indexes: tuple[str, ...] = ()


def check_time_index(
    connection: sa.Connection, ledger: dict[str, LedgerRow], now: datetime
) -> Iterator[Finding]:
    """Explain the query of the next refresh, and find each large table without an index for it.

    Parameters
    ----------
    ledger
        A refresh reads from the cutoffs of the live runs on; from now on without a live run.
    """
    cutoffs = [run.cutoff for run in ledger.values() if run.state == State.LIVE and run.cutoff]
    since = (min(cutoffs, default=now) - LATE).replace(microsecond=0)
    try:
        with connection.begin_nested():
            scans = read_plan(connection, since)
    except ProgrammingError as error:
        reason = str(error.orig).partition("\n")[0]
        found = f"Postgres cannot plan the query of a refresh: {reason}"
        yield fail(CHECK, found, f"let this role read {VIEW} and its tables; a night needs that too")
        return
    slow: dict[str, Finding] = {}
    fast = f"not needed: {VIEW} reads no table of more than {MIN_ROWS:,} rows by its time"
    for scan in scans:
        unquoted = None if scan.column is None else _unquote(scan.column)
        parameters = {"schema": scan.schema, "relation": scan.relation, "column": unquoted}
        table = connection.execute(TABLE, parameters | {"used": list(scan.indexes)}).one()
        if table.rows <= MIN_ROWS:
            continue
        if table.indexed or (scan.column is None and scan.indexes):
            fast = f"an index on the time of {table.name} finds the interactions since the night"
        else:
            slow[table.name] = _missing(table.name, table.rows, scan.column)
    yield from slow.values() or [ok(CHECK, fast)]


def check_ignored_columns(views: Columns, names: str) -> Iterator[Finding]:
    """Check that the views have the columns that OVERNIGHT_IGNORE_COLUMNS names."""
    for name in find_unknown_columns(views, names):
        found = f"OVERNIGHT_IGNORE_COLUMNS names {SCHEMA}.{name}, which does not exist"
        yield warn("ignored columns", found, "correct the name, or remove it")


def check_times(connection: sa.Connection, now: datetime) -> Finding:
    """Check that hardly any interaction lies in the future."""
    check = "times"
    try:
        with connection.begin_nested():
            future, last_day = count_recent(connection, now, now - LAST_DAY)
    except ProgrammingError as error:
        reason = str(error.orig).partition("\n")[0]
        return fail(
            check, f"Postgres cannot read {VIEW}: {reason}", f"let this role read {VIEW} and its tables"
        )
    if found := describe_future_rows(future, last_day):
        return warn(check, f"{found}. {future_rows.UNAFFECTED}", future_rows.FIX)
    return ok(check, f"{future:,} interactions lie in the future, {last_day:,} in the last 24 hours")


def _missing(table: str, rows: int, column: str | None) -> Finding:
    found = f"a refresh reads all of {table}, about {rows:,} rows"
    if column is None:
        return warn(
            CHECK,
            f"{found}: {VIEW} computes {HAPPENED_AT}, so no index can be used; {UNAFFECTED}",
            f"let {VIEW} return a timestamp column as {HAPPENED_AT}, without cast or function, "
            "and index that column",
        )
    return warn(
        CHECK,
        f"{found}: no index begins with {column}; {UNAFFECTED}",
        f"CREATE INDEX CONCURRENTLY ON {table} ({column})",
    )


def read_plan(connection: sa.Connection, since: datetime) -> list[Scan]:
    """Return the tables that the query for interactions since a time reads by that time.

    Parameters
    ----------
    since
        In whole seconds.
    """
    query = interactions_since(connection, since)
    plan: Any = connection.exec_driver_sql(f"EXPLAIN (VERBOSE, FORMAT JSON) {query}").scalar()
    return list(_scans(plan[0]["Plan"], f" > '{since.astimezone(UTC):%Y-%m-%d %H:%M:%S}"))


def _scans(node: dict[str, Any], comparison: str) -> Iterator[Scan]:
    """Yield the tables read by the nodes that have the comparison."""
    conditions = [node[name] for name in CONDITIONS if comparison in node.get(name, "")]
    if not conditions:
        for child in node.get("Plans", []):
            yield from _scans(child, comparison)
    elif "Relation Name" in node:
        column = re.search(rf"\({NAME}\.({NAME}){re.escape(comparison)}", conditions[0])
        indexes = tuple(each["Index Name"] for each in _nodes(node) if "Index Name" in each)
        yield Scan(node["Schema"], node["Relation Name"], column[1] if column else None, indexes)
    else:  # the time is computed by the nodes below
        for each in _nodes(node):
            if "Relation Name" in each:
                yield Scan(each["Schema"], each["Relation Name"], None)


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


def _unquote(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
