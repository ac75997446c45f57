"""Move exposures from the Redis stream into `recs.exposures`, each exactly once.

Posts in explored places, of first and later pages, go to `recs.explored` in the same transaction. Later pages
are no rows of `recs.exposures`.

```
repeat
    in one transaction: lock the row of this prefix and read the id of the last entry copied,
                        copy the next entries, store the id of the last one
    after the commit:   remove the stream's entries up to that id
until a batch is not full
```

If a drain dies in between, the next one continues after the stored id, so that
no exposure is copied twice.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import sqlalchemy as sa
from psycopg2.extensions import encodings
from sqlalchemy.dialects.postgresql import insert

from batch.context import Stores
from batch.runs.tables import drained, erasures, explored, exposures
from batch.runs.user_ids import find_user_ids, take_user_ids, user_id_cast
from contract.columns import SCHEMA, USER_ID, USERS
from contract.exposures import FIELD, Exposure, decode_exposures
from contract.ids import Id
from contract.score_kind import PERSONAL

log = logging.getLogger("batch")

ENTRY_BATCH = 100
"""Stream entries per transaction, up to 50,000 exposures."""

FIRST_ID = "0-0"
COLUMNS = ("user_id", "variant", "run_id", "source", "served_at", "took_ms", "key_prefix")
EXPLORED_COLUMNS = (
    "user_id", "variant", "run_id", "post_id", "place", "probability", "served_at", "key_prefix",
)  # fmt: skip
COPY = f"COPY {SCHEMA}.{{table}} ({{columns}}) FROM STDIN WITH (FORMAT csv)"

DELETE_LATE = f"""
    DELETE FROM {SCHEMA}.{{table}} AS e
    WHERE EXISTS (SELECT FROM {SCHEMA}.{erasures.name} WHERE at > :since)
      AND e.key_prefix = :prefix AND e.served_at > :since {{personal}}
      AND NOT EXISTS (SELECT FROM {SCHEMA}.{USERS} AS u WHERE u.{USER_ID}{{cast}} = e.user_id{{cast}})
"""
OF_OWN_LIST = {exposures: f"AND e.source = '{PERSONAL}'", explored: ""}
"""Condition that a row is of a list of the user's own; explored places are in no other lists."""


@dataclass
class Drained:
    """Counts of a drain: `broken` entries could not be decoded, `removed` exposures were past their age.

    Exposures are first pages.
    """

    exposures: int = 0
    entries: int = 0
    broken: int = 0
    removed: int = 0


def drain(stores: Stores, now: datetime) -> Drained:
    """Move all exposures of the stream, then delete those older than the setting allows.

    Several drains may run at the same time.
    """
    key, settings, done = stores.keys.exposures, stores.settings.experiment, Drained()
    if stores.redis.xlen(key) >= settings.exposures_batches:
        log.warning(
            "%s is full: the oldest exposures were lost; recommendations are not affected; drain it more "
            "often, or raise OVERNIGHT_EXPOSURES_BATCHES",
            key,
        )
    while _move_batch(stores, now, done):
        pass
    if done.broken:
        log.warning("%s had %d entries that cannot be decoded; they were skipped", key, done.broken)
    oldest = now - timedelta(days=settings.exposures_keep_days)
    with stores.engine.begin() as connection:
        for table in (explored, exposures):
            ours = sa.delete(table).where(table.c.key_prefix == stores.keys.prefix)
            done.removed = connection.execute(ours.where(table.c.served_at < oldest)).rowcount
    return done


def _move_batch(stores: Stores, now: datetime, done: Drained) -> bool:
    """Move one batch of entries and add it to `done`; return whether there may be more."""
    key, prefix = stores.keys.exposures, stores.keys.prefix
    with stores.engine.begin() as connection:
        last_id = _lock_last_id(connection, prefix, now)
        entries: Any = stores.redis.xrange(key, min=f"({last_id}", count=ENTRY_BATCH)
        if entries:
            rows = _keep_storable(connection, _decode_entries(entries, done))
            first_pages = [row for row in rows if row.first_page]
            take_user_ids(connection, exposures, (row.user_id for row in first_pages))
            _copy(connection, exposures, COLUMNS, _exposure_rows(first_pages, prefix))
            if any(row.explored for row in rows):
                take_user_ids(connection, explored, (row.user_id for row in rows if row.explored))
                _copy(connection, explored, EXPLORED_COLUMNS, _explored_rows(rows, prefix))
            last_id = entries[-1][0]
            done.entries += len(entries)
            done.exposures += len(first_pages)
        _store_last_id(connection, prefix, last_id, now)
    # All entries up to the last id are in Postgres now, or were when an earlier drain died before this line.
    removed = int(stores.redis.xtrim(key, minid=_next_id(last_id), approximate=False))
    if removed > len(entries):
        log.warning(
            "%d entries of %s have ids up to the last one moved, and were removed: an earlier drain moved "
            "them and died, or Redis was replaced by a server whose clock is behind",
            removed - len(entries),
            key,
        )
    return len(entries) == ENTRY_BATCH


def _lock_last_id(connection: sa.Connection, key_prefix: str, now: datetime) -> str:
    """Return the id of the last entry in Postgres; other drains wait until the transaction ends."""
    row = {"key_prefix": key_prefix, "last_id": FIRST_ID, "at": now}
    connection.execute(insert(drained).values(row).on_conflict_do_nothing())
    query = sa.select(drained.c.last_id).where(drained.c.key_prefix == key_prefix).with_for_update()
    return str(connection.scalar(query))


def _store_last_id(connection: sa.Connection, key_prefix: str, last_id: str, now: datetime) -> None:
    change = {"last_id": last_id, "at": now}
    connection.execute(sa.update(drained).where(drained.c.key_prefix == key_prefix).values(change))


def _decode_entries(entries: Iterable[tuple[str, dict[str, str]]], done: Drained) -> Iterable[Exposure]:
    """Yield the exposures of entries; count those that cannot be decoded in `done.broken`."""
    for _, fields in entries:
        try:
            yield from decode_exposures(fields.get(FIELD, ""))
        except ValueError:
            done.broken += 1


def _keep_storable(connection: sa.Connection, rows: Iterable[Exposure]) -> list[Exposure]:
    """Return the exposures whose ids the database's encoding has: anyone can ask for any user id."""
    driver: Any = connection.connection.driver_connection
    names = {driver.encoding, driver.info.parameter_status("server_encoding")}
    codecs = [encodings[name] for name in names - {"SQL_ASCII"}]
    return [
        row
        for row in rows
        if all(_has_bytes(each, codecs) for each in (row.user_id, *(post.post_id for post in row.explored)))
    ]


def _has_bytes(text: Id, codecs: Sequence[str]) -> bool:
    if isinstance(text, int):
        return True
    try:
        return all(text.encode(codec) for codec in codecs)
    except UnicodeEncodeError:
        return False


def _exposure_rows(rows: Iterable[Exposure], key_prefix: str) -> Iterator[tuple[Any, ...]]:
    for each in rows:
        yield (*each[:4], _format_time(each.served_at), each.took_ms, key_prefix)


def _explored_rows(rows: Iterable[Exposure], key_prefix: str) -> Iterator[tuple[Any, ...]]:
    for each in rows:
        for post in each.explored:
            yield (each.user_id, each.variant, each.run_id, *post, _format_time(each.served_at), key_prefix)


def _format_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _copy(
    connection: sa.Connection, table: sa.Table, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]
) -> None:
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    file.seek(0)
    driver: Any = connection.connection.cursor()
    with driver as cursor:
        cursor.copy_expert(COPY.format(table=table.name, columns=", ".join(columns)), file)


def count_exposures(stores: Stores, user_ids: Sequence[Id]) -> int:
    """Count the exposures of users, in the stream and in Postgres. Later pages are none."""
    wanted, last_id, found = set(user_ids), FIRST_ID, 0
    while entries := cast(Any, stores.redis.xrange(stores.keys.exposures, f"({last_id}", count=ENTRY_BATCH)):
        rows = _decode_entries(entries, Drained())
        found += sum(row.first_page and row.user_id in wanted for row in rows)
        last_id = entries[-1][0]
    query = sa.select(sa.func.count()).select_from(exposures)
    with stores.engine.connect() as connection:
        ours = find_user_ids(connection, exposures).is_one_of(user_ids)
        return found + int(connection.scalar(query.where(ours)) or 0)


def remove_exposures(stores: Stores, user_ids: Sequence[Id], now: datetime) -> int:
    """Drain the stream, then delete the exposures of users, under any key prefix; return their number."""
    drain(stores, now)
    with stores.engine.begin() as connection:
        for table in (explored, exposures):
            ours = find_user_ids(connection, table).is_one_of(user_ids)
            removed = connection.execute(sa.delete(table).where(ours)).rowcount
    return removed


def remove_late_exposures(stores: Stores, since: datetime) -> int:
    """Delete the exposures since a time of users who are not in `recs.users` any more; return their number.

    Nothing is looked for unless a user was forgotten since then. Serving sends exposures with a delay, so
    some arrive after their user was forgotten. Only answers from a
    list of the user's own count: an id that never was a user's has none.
    """
    with stores.engine.begin() as connection:
        parameters, cast = {"prefix": stores.keys.prefix, "since": since}, user_id_cast(connection)
        for table in (explored, exposures):
            late = DELETE_LATE.format(table=table.name, personal=OF_OWN_LIST[table], cast=cast)
            removed = connection.execute(sa.text(late), parameters).rowcount
    return removed


def _next_id(entry_id: str) -> str:
    """Return the smallest stream id after `entry_id`."""
    milliseconds, _, number = entry_id.partition("-")
    return f"{milliseconds}-{int(number) + 1}"
