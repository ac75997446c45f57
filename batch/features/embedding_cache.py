"""Vectors of texts in Postgres, kept by content: a night embeds only texts it has not seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, REAL, insert

from batch.arrays import Float32s
from contract.columns import SCHEMA

Vectors = dict[bytes, Float32s]

ROWS_AT_A_TIME = 1_000

tables = sa.MetaData(schema=SCHEMA)
text_vectors = sa.Table(
    "text_vectors",
    tables,
    sa.Column("encoder", sa.Text, primary_key=True),
    sa.Column("content_hash", BYTEA, primary_key=True),
    sa.Column("vector", ARRAY(REAL), nullable=False),
)


def content_hash(text: str) -> bytes:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).digest()


def create(engine: sa.Engine) -> None:
    """Make the table where it is missing."""
    tables.create_all(engine)


def stored(engine: sa.Engine, encoder: str, hashes: Iterable[bytes]) -> Vectors:
    """Return those of the vectors that are kept for an encoder."""
    query = sa.select(text_vectors.c.content_hash, text_vectors.c.vector).where(
        text_vectors.c.encoder == encoder, text_vectors.c.content_hash == sa.any_(_array(hashes))
    )
    with engine.connect() as connection:
        rows = connection.execution_options(yield_per=ROWS_AT_A_TIME).execute(query)
        return {bytes(key): np.array(vector, dtype=np.float32) for key, vector in rows}


def keep(engine: sa.Engine, encoder: str, vectors: Mapping[bytes, Float32s]) -> None:
    """Add vectors; one that another run has added meanwhile stays."""
    rows = [
        {"encoder": encoder, "content_hash": key, "vector": vectors[key].tolist()}
        for key in sorted(vectors)  # in one order, so that two runs that add the same never wait in a circle
    ]
    if rows:
        with engine.begin() as connection:
            connection.execute(insert(text_vectors).on_conflict_do_nothing(), rows)


def remove_others(engine: sa.Engine, hashes: Iterable[bytes]) -> int:
    """Remove the vectors, of every encoder, of texts other than these; return how many."""
    present = sa.func.unnest(_array(hashes)).column_valued("present")
    used = sa.select(sa.literal(1)).where(present == text_vectors.c.content_hash)
    with engine.begin() as connection:
        return connection.execute(sa.delete(text_vectors).where(~used.exists())).rowcount


def _array(hashes: Iterable[bytes]) -> sa.BindParameter[Any]:
    kind: Any = ARRAY(BYTEA)  # Any: its type says that it holds single values
    return sa.bindparam("hashes", list(hashes), type_=kind)
