"""Reads the rows of a Postgres query by COPY, through a temporary file, in frames."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import pandas as pd
import sqlalchemy as sa

from contract import columns
from contract.errors import SourceError

ROWS_BATCH = 1_000_000
MEMORY_BYTES = 16 * 2**20


def copy_out(
    connection: sa.Connection, query: str, parameters: dict[str, Any], text: tuple[str, ...] = ()
) -> Iterator[pd.DataFrame]:
    """Yield a query's rows in frames of at most a million rows, in the query's order.

    COPY is several times as fast as fetching rows, and the rows are kept on
    disk, not in memory. Yields one empty frame if there are no rows.

    Parameters
    ----------
    query
        SQL with `%(name)s` for parameters.
    parameters
        Values by name, quoted by the driver.
    text
        Columns to read as text, even if they look like numbers.

    Raises
    ------
    SourceError
        The disk is full.
    """
    kinds = {columns.USER_ID: "Int64", columns.POST_ID: "Int64"} | dict.fromkeys(text, "str")
    try:  # around the whole block: closing the file on a full disk raises once more
        with tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES) as file:
            driver: Any = connection.connection.cursor()
            with driver as cursor:
                statement = cursor.mogrify(query, parameters).decode()
                cursor.copy_expert(f"COPY ({statement}) TO STDOUT WITH (FORMAT csv, HEADER true)", file)
            file.seek(0)
            yield from pd.read_csv(
                file, chunksize=ROWS_BATCH, dtype=kinds, keep_default_na=False, na_values=[""]
            )
    except OSError as error:
        reason = f"{error.strerror}; free space or set TMPDIR"
        raise SourceError(f"cannot keep rows in {tempfile.gettempdir()}: {reason}") from None
