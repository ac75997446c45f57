"""Postgres: the three views, the rights of the role, our own tables and their version."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from batch.doctor.finding import Finding, fail, ok, warn
from batch.experiment import history
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

WHO = sa.text("SELECT current_user, current_database(), current_setting('server_version')")
MAY_MAKE = sa.text("""
    SELECT has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE')
    FROM pg_namespace WHERE nspname = :schema
""")
OURS = sa.text("""
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


def examined(connection: sa.Connection) -> list[Finding]:
    """Examine a database that answers."""
    role, database, version = connection.execute(WHO).one()
    return [
        ok("postgres", f"PostgreSQL {version}, database {database}, role {role}"),
        views(connection),
        rights(connection, role),
        tables_version(connection),
    ]


def views(connection: sa.Connection) -> Finding:
    """Look for the three views, their columns, types, and the right to read them."""
    try:
        found = check_views(connection)
    except SourceError as error:
        told, _, mend = str(error).partition("; ")
        return fail("views", told, mend)
    features = [f"{len(columns)} columns of {name}" for name, columns in vars(found).items()]
    return ok("views", ", ".join(features))


def rights(connection: sa.Connection, role: str) -> Finding:
    """See whether the role owns our tables, and may make those that are missing."""
    names = [table.name for table in OWN_TABLES]
    found = connection.execute(OURS, {"schema": SCHEMA, "names": names}).all()
    useless = sorted(row.relname for row in found if not row.owned and not row.usable)
    if useless:
        return fail(
            "rights",
            f"{role} neither owns nor may change {SCHEMA}.{useless[0]}",
            f"ALTER TABLE {SCHEMA}.{useless[0]} OWNER TO {role}",
        )
    if not connection.scalar(MAY_MAKE, {"schema": SCHEMA}):
        told = f"{role} may not make tables in the schema {SCHEMA}"
        missing = sorted(set(names) - {row.relname for row in found})
        if missing:
            return fail("rights", f"{told}, and {missing[0]} is missing", GRANT.format(role=role))
        return warn("rights", f"{told}; all that are needed today are there", GRANT.format(role=role))
    return ok("rights", f"{role} may read the views, and has {len(found)} tables of its own")


def tables_version(connection: sa.Connection) -> Finding:
    """See whether our tables have the columns that this program writes."""
    found = {}
    for table in OWN_TABLES:
        there = set(connection.scalars(COLUMNS, {"table": f"{SCHEMA}.{table.name}"}))
        found[table.name] = sorted({column.name for column in table.columns} - there) if there else None
    lacking = {name: absent for name, absent in found.items() if absent}
    if lacking:
        name, absent = next(iter(lacking.items()))
        return fail(
            "tables",
            f"{SCHEMA}.{name} lacks the column {', '.join(absent)}: it is of another version",
            "run `python -m batch runs` with this version, which brings older tables up to date",
        )
    newest = _version(connection) if found[versions.name] == [] else 0
    if newest > VERSION:
        return fail("tables", f"the ledger is of version {newest}, this program knows {VERSION}", "update it")
    missing = [name for name, absent in found.items() if absent is None]
    told = f"; still to be made: {', '.join(missing)}" if missing else ""
    return ok("tables", f"as this version wants them{told}")


def _version(connection: sa.Connection) -> int:
    """Return the version of the ledger's tables; 0 where the role may not read it, which `rights` tells."""
    if not connection.scalar(MAY_READ, {"table": f"{SCHEMA}.{versions.name}"}):
        return 0
    return int(connection.scalar(sa.select(sa.func.max(versions.c.version))) or 0)


READABLE = sa.text("""
    SELECT CASE WHEN to_regclass(:name) IS NULL THEN false ELSE has_table_privilege(:name, 'SELECT') END
""")
# As JSON, since a column that one version has another may lack.
ENTERED = sa.text(f"""
    SELECT to_jsonb(entered) - 'manifest' AS fields FROM {SCHEMA}.{runs.name} entered
    WHERE key_prefix = :prefix ORDER BY run_id
""")


@dataclass(frozen=True)
class Entered:
    """A run as the ledger has it.

    Attributes
    ----------
    cutoff
        When the last interaction happened that the run knows; None until it is built.
    removed
        Its keys and model are gone, or being removed.
    """

    run_id: str
    variant: str
    state: str
    started_at: datetime
    cutoff: datetime | None
    removed: bool


def entered(connection: sa.Connection, key_prefix: str) -> dict[str, Entered]:
    """Return every run under a key prefix by its id; none where there is no ledger that can be read."""
    name = {"name": f"{SCHEMA}.{runs.name}"}
    if not connection.scalar(READABLE, name):
        return {}
    found = (row.fields for row in connection.execute(ENTERED, {"prefix": key_prefix}))
    return {
        fields["run_id"]: Entered(
            fields["run_id"],
            fields["variant"],
            fields["state"],
            datetime.fromisoformat(fields["started_at"]),
            datetime.fromisoformat(cutoff) if (cutoff := fields.get("cutoff")) else None,
            fields.get("removed_at") is not None,
        )
        for fields in found
    }


def split_in_force(connection: sa.Connection, key_prefix: str) -> Experiment | None:
    """Return the split of the users that is recorded; None where none is, or none that can be read."""
    if not connection.scalar(READABLE, {"name": f"{SCHEMA}.{experiments.name}"}):
        return None
    found = history.in_force(connection, key_prefix)
    return found.experiment if found else None


def live_of(ledger: dict[str, Entered], variant: str) -> list[str]:
    """Return the runs of a variant that the ledger calls live; there should be one at most."""
    return [run.run_id for run in ledger.values() if run.variant == variant and run.state == State.LIVE]
