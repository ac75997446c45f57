"""Moves exposures from the Redis stream into `recs.exposures`, each exactly once.

Some entries at a time are copied in one transaction, together with the id of
the last of them, and removed from the stream once that is committed. A drain
that dies in between is gone on with after that id, so nothing comes twice.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from batch.runs.tables import drained, exposures
from contract.columns import SCHEMA
from contract.exposures import FIELD, Exposure, decode_exposures
from contract.keys import Keys
from contract.settings import Settings

log = logging.getLogger("batch")

ENTRIES_AT_A_TIME = 100
"""Up to 50,000 exposures a transaction."""

BEGINNING = "0-0"
COLUMNS = ("user_id", "variant", "run_id", "source", "served_at", "took_ms", "key_prefix")
COPY = f"COPY {SCHEMA}.{exposures.name} ({', '.join(COLUMNS)}) FROM STDIN WITH (FORMAT csv)"


@dataclass
class Drained:
    """How much was moved; `broken` entries could not be read, `removed` exposures were too old to keep."""

    exposures: int = 0
    entries: int = 0
    broken: int = 0
    removed: int = 0


def drain(engine: sa.Engine, client: redis.Redis, settings: Settings, now: datetime) -> Drained:
    """Move all exposures of the stream, then remove those that are too old; two may do it at once."""
    keys, done = Keys(settings.stores.key_prefix), Drained()
    if client.xlen(keys.exposures) >= settings.experiment.exposures_batches:
        log.warning(
            "%s is full, so exposures were lost: drain it more often, or raise OVERNIGHT_EXPOSURES_BATCHES",
            keys.exposures,
        )
    while _moved(engine, client, keys, now, done):
        pass
    if done.broken:
        log.warning("%s had %d entries that are no exposures; left out", keys.exposures, done.broken)
    oldest = now - timedelta(days=settings.experiment.exposures_keep_days)
    with engine.begin() as connection:
        ours = sa.delete(exposures).where(exposures.c.key_prefix == keys.prefix)
        gone = connection.execute(ours.where(exposures.c.served_at < oldest))
    done.removed = gone.rowcount
    return done


def _moved(engine: sa.Engine, client: redis.Redis, keys: Keys, now: datetime, done: Drained) -> bool:
    """Move some entries; tell whether there may be more."""
    with engine.begin() as connection:
        last = _last_id(connection, keys.prefix, now)
        entries: Any = client.xrange(keys.exposures, min=f"({last}", count=ENTRIES_AT_A_TIME)
        if entries:
            rows = list(_exposures(entries, done))
            _copy(connection, rows, keys.prefix)
            last = entries[-1][0]
            done.entries += len(entries)
            done.exposures += len(rows)
        _note(connection, keys.prefix, last, now)
    # Whatever is not after the last is in Postgres now, or was when a drain died before it came to this.
    removed = int(client.xtrim(keys.exposures, minid=_after(last), approximate=False))
    if removed > len(entries):
        log.warning(
            "%d entries of %s are not after the last that was moved, and removed: a drain died when it "
            "had moved them, or Redis was replaced by one whose clock is behind",
            removed - len(entries),
            keys.exposures,
        )
    return len(entries) == ENTRIES_AT_A_TIME


def _last_id(connection: sa.Connection, key_prefix: str, now: datetime) -> str:
    """Return up to which entry the stream is in Postgres, and keep other drains from going on meanwhile."""
    row = {"key_prefix": key_prefix, "last_id": BEGINNING, "at": now}
    connection.execute(insert(drained).values(row).on_conflict_do_nothing())
    query = sa.select(drained.c.last_id).where(drained.c.key_prefix == key_prefix).with_for_update()
    return str(connection.scalar(query))


def _note(connection: sa.Connection, key_prefix: str, last_id: str, now: datetime) -> None:
    change = {"last_id": last_id, "at": now}
    connection.execute(sa.update(drained).where(drained.c.key_prefix == key_prefix).values(change))


def _exposures(entries: Iterable[tuple[str, dict[str, str]]], done: Drained) -> Iterable[Exposure]:
    """Yield the exposures of entries; what is none is counted."""
    for _, fields in entries:
        try:
            yield from decode_exposures(fields.get(FIELD, ""))
        except ValueError:
            done.broken += 1


def _copy(connection: sa.Connection, rows: Iterable[Exposure], key_prefix: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerows(
        (*shared, datetime.fromtimestamp(at, UTC).isoformat(), took_ms, key_prefix)
        for *shared, at, took_ms in rows
    )
    file.seek(0)
    driver: Any = connection.connection.cursor()
    with driver as cursor:
        cursor.copy_expert(COPY, file)


def _after(entry_id: str) -> str:
    """Return the least id that is greater."""
    milliseconds, _, number = entry_id.partition("-")
    return f"{milliseconds}-{int(number) + 1}"
