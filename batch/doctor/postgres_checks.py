"""Checks of Postgres: the three views, the rights of the role, our own tables and their version."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from batch.doctor.finding import Finding, fail, ok, warn
from batch.experiment.history import read_current_change
from batch.features import embedding_cache
from batch.loading.schema import check_views
from batch.refresh import stale_users
from batch.runs import ledger
from batch.runs.ledger import State, runs
from batch.runs.tables import VERSION, experiments, versions
from contract.columns import SCHEMA
from contract.errors import SourceError
from contract.experiment import Experiment

OWN_TABLES = [
    table
    for tables in (ledger.runs.metadata, stale_users.tables, embedding_cache.metadata)
    for table in tables.tables.values()
]

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
    return [
        ok("postgres", f"PostgreSQL {version}, database {database}, role {role}"),
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


def list_live(ledger: dict[str, LedgerRow], variant: str) -> list[str]:
    """Return the runs of a variant that the ledger records as live; at most one unless it is wrong."""
    return [row.run_id for row in ledger.values() if row.variant == variant and row.state == State.LIVE]
