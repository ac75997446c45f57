"""What network the database holds: noted last, so that an interrupted load does not count.

The note is the comment on the schema `recs`. Loading drops that schema and
makes it anew, so a note never outlives the network that it is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from contract import columns
from contract.codec import decode_object, encode_object

SIMULATED = "simulated"
READ_NOTE = sa.text("SELECT obj_description(to_regnamespace(:schema), 'pg_namespace')")


@dataclass(frozen=True)
class Loaded:
    """A network that was loaded to the end.

    Attributes
    ----------
    source
        `simulated`, or the folder that it came from.
    size
        In words, for people.
    at
        When the load ended, by this machine's clock, to the second.
    """

    source: str
    size: str
    at: datetime


def loaded(engine: sa.Engine) -> Loaded | None:
    """Return what network is there, if one was loaded to the end."""
    with engine.connect() as connection:
        note = connection.scalar(READ_NOTE, {"schema": columns.SCHEMA})
    return None if note is None else decode(note)


def note_loaded(engine: sa.Engine, source: str) -> Loaded:
    """Note that the network is there, and count what it holds."""
    with engine.begin() as connection:
        users, posts, rows = (
            connection.scalar(sa.text(f"SELECT count(*) FROM {columns.SCHEMA}.{relation}"))
            for relation in (columns.USERS, columns.POSTS, columns.INTERACTIONS)
        )
        size = f"{users:,} users, {posts:,} posts, {rows:,} interactions"
        network = Loaded(source, size, at=datetime.now(UTC).replace(microsecond=0))
        connection.exec_driver_sql(f"COMMENT ON SCHEMA {columns.SCHEMA} IS %s", (encode(network),))
    return network


def encode(network: Loaded) -> str:
    """Write it down."""
    return encode_object({"source": network.source, "size": network.size, "at": network.at.isoformat()})


def decode(note: str) -> Loaded | None:
    """Read what `encode` wrote; None if it is something else."""
    try:
        fields = decode_object(note)
        return Loaded(fields["source"], fields["size"], datetime.fromisoformat(fields["at"]))
    except (KeyError, ValueError):
        return None


def source_of(network: Path | None) -> str:
    """Name the network of a folder, or the simulated one."""
    return SIMULATED if network is None else str(network.resolve())
