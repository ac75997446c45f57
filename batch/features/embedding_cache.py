"""Vectors of texts in Postgres, by hash of the text: a night embeds only new texts."""

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

ROWS_BATCH = 1_000

metadata = sa.MetaData(schema=SCHEMA)
text_vectors = sa.Table(
    "text_vectors",
    metadata,
    sa.Column("encoder", sa.Text, primary_key=True),
    sa.Column("content_hash", BYTEA, primary_key=True),
    sa.Column("vector", ARRAY(REAL), nullable=False),
)


def content_hash(text: str) -> bytes:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).digest()


def create_table(engine: sa.Engine) -> None:
    """Create the table if it is missing."""
    metadata.create_all(engine)


def load_vectors(engine: sa.Engine, encoder: str, hashes: Iterable[bytes]) -> Vectors:
    """Return the stored vectors of an encoder for these hashes, where there are any."""
    query = sa.select(text_vectors.c.content_hash, text_vectors.c.vector).where(
        text_vectors.c.encoder == encoder, text_vectors.c.content_hash == sa.any_(_array(hashes))
    )
    with engine.connect() as connection:
        rows = connection.execution_options(yield_per=ROWS_BATCH).execute(query)
        return {bytes(key): np.array(vector, dtype=np.float32) for key, vector in rows}


def store_vectors(engine: sa.Engine, encoder: str, vectors: Mapping[bytes, Float32s]) -> None:
    """Store vectors; those that another run has stored in the meantime stay."""
    rows = [
        {"encoder": encoder, "content_hash": key, "vector": vectors[key].tolist()}
        for key in sorted(vectors)  # always in this order, so that two runs cannot deadlock
    ]
    if rows:
        with engine.begin() as connection:
            connection.execute(insert(text_vectors).on_conflict_do_nothing(), rows)


def remove_unused(engine: sa.Engine, hashes: Iterable[bytes]) -> int:
    """Delete the vectors of all other texts, of every encoder; return how many."""
    present = sa.func.unnest(_array(hashes)).column_valued("present")
    used = sa.select(sa.literal(1)).where(present == text_vectors.c.content_hash)
    with engine.begin() as connection:
        return connection.execute(sa.delete(text_vectors).where(~used.exists())).rowcount


def _array(hashes: Iterable[bytes]) -> sa.BindParameter[Any]:
    kind: Any = ARRAY(BYTEA)  # Any: its type says that it holds single values
    return sa.bindparam("hashes", list(hashes), type_=kind)
