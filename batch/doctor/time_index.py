"""Check that an index lets a refresh find the interactions since the night.

The plan of the refresh's own query shows which tables and columns the view
`recs.interactions` takes its time from; the catalog tells how large those
tables are and which indexes they have. The query is explained, not executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ProgrammingError

from batch.doctor.finding import Finding, fail, ok, warn
from batch.doctor.postgres_checks import LedgerRow
from batch.loading.interactions_query import interactions_since
from batch.refresh.stale_users import LATE
from batch.runs.ledger import State
from contract.columns import HAPPENED_AT, INTERACTIONS, SCHEMA

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
