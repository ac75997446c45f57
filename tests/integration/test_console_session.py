"""What Postgres holds the console's pages to: time, and in a read-only console no writes."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from psycopg2 import extensions

from batch.runs import ledger
from console.stores import STATEMENT_SECONDS, limit_replies, open_stores
from contract.errors import SourceError
from contract.settings import Settings
from tests.support.batch import execute


@pytest.mark.parametrize("read_only", [True, False])
def test_statements_are_limited_and_a_read_only_console_writes_nothing(
    database_url: str, read_only: bool
) -> None:
    execute(database_url, "CREATE SCHEMA recs")
    settings = Settings.of(database_url=database_url).replace(read_only=read_only)
    stores = open_stores(settings)
    limit_replies()  # as the console's process does: the driver then waits in another way
    try:
        with stores.engine.connect() as connection:
            limit = connection.execute(sa.text("SHOW statement_timeout")).scalar_one()
            assert limit == f"{STATEMENT_SECONDS}s"
            with pytest.raises(sa.exc.OperationalError, match="statement timeout"):
                connection.execute(sa.text("SET LOCAL statement_timeout = 50; SELECT pg_sleep(60)"))
        if read_only:
            with pytest.raises(SourceError, match="read-only transaction"), stores.readable_errors():
                ledger.create(stores.engine)
        else:
            ledger.create(stores.engine)
            with stores.engine.begin() as connection:
                assert connection.execute(sa.text("SELECT count(*) FROM recs.runs")).scalar_one() == 0
    finally:
        extensions.set_wait_callback(None)
        stores.engine.dispose()
