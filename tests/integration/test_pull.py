"""Reading interactions from Postgres: once per night, in one snapshot, with any options in DATABASE_URL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import sqlalchemy as sa

from batch.context import Stores
from batch.loading import arrow_reader, interaction_store, pull
from batch.loading.arrow_reader import read_batches
from batch.postgres import open_engine, snapshot
from batch.publishing.write import Writing
from contract.errors import SourceError
from contract.settings import Settings
from tests.support.batch import (
    FIRST_DAY,
    execute,
    live_lists,
    live_run,
    make_network,
    query,
    run_here,
)
from tests.support.evaluation import pull_database

PASSWORD = "p@ss w/rd'\\\"%: 名"


@pytest.fixture
def servers(database_url: str, redis_url: str, tmp_path: Path) -> dict[str, Any]:
    """A small network: its servers and model folder."""
    make_network(database_url)
    return {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path / "models"}


class Statements:
    """The statements that a database executes from now on, from the log of Postgres."""

    def __init__(self, database_url: str) -> None:
        name = sa.make_url(database_url).database
        execute(database_url, f"ALTER DATABASE {name} SET log_statement = 'all'")
        self._url = database_url
        self._log = Path(query(database_url, "SHOW data_directory")[0][0]) / "log"
        self._start = self._log.stat().st_size

    def reads(self) -> list[str]:
        """Return the statements that read interactions, one line each."""
        return [line for line in self._lines() if re.search(r"\b(FROM|JOIN) recs\.interactions\b", line)]

    def _lines(self) -> Iterator[str]:
        with self._log.open("rb") as file:
            file.seek(self._start)
            text = file.read().decode()
        # A line that begins with a tab continues the statement.
        for line in re.sub(r"\n\t\s*", " ", text).splitlines():
            if re.search(r"LOG: +(statement|execute [^:]*):", line) and ": EXPLAIN" not in line:
                yield line.partition("LOG:")[2]


def test_a_night_reads_interactions_once_and_a_refresh_only_what_is_new(servers: dict[str, Any]) -> None:
    statements = Statements(servers["database_url"])
    assert run_here("run", **servers).returncode == 0
    full_read, *caught_up = statements.reads()
    assert "WHERE" not in full_read
    assert len(caught_up) == 1  # the refresh at the end of a night
    execute(servers["database_url"], "INSERT INTO recs.interactions VALUES (7, 101, 'like', now())")
    assert run_here("refresh", **servers).returncode == 0
    *_, refreshed = reads = statements.reads()
    assert len(reads) == 3
    for read in (caught_up[0], refreshed):
        assert re.search(r"FROM recs\.interactions WHERE happened_at > timestamp with time zone '", read)


def test_a_pull_does_not_see_commits_between_its_reads(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_network(database_url)
    before = pull_database(database_url)
    copy_interactions = pull.copy_interactions

    def copy_later(*arguments: Any) -> Any:
        execute(
            database_url,
            "INSERT INTO recs.users VALUES (61, 30, 'Omsk', false)",
            f"INSERT INTO recs.posts VALUES (141, 'sport', 'goal', '{FIRST_DAY.isoformat()}')",
            f"INSERT INTO recs.interactions SELECT 61, 141, 'like', '{FIRST_DAY.isoformat()}'",
            "INSERT INTO recs.interactions SELECT * FROM recs.interactions",
        )
        return copy_interactions(*arguments)

    monkeypatch.setattr(pull, "copy_interactions", copy_later)
    after = pull_database(database_url)
    assert (len(after.network.users), len(after.network.posts)) == (60, 40)
    assert after.store.interactions == before.store.interactions
    assert after.left_out == before.left_out == dict.fromkeys(before.left_out, 0)
    monkeypatch.undo()
    assert pull_database(database_url).store.interactions > before.store.interactions * 2


def test_a_lost_connection_during_the_read_is_a_one_line_error(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_network(database_url, interactions=200_000)
    monkeypatch.setattr(arrow_reader, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(pull, "CHUNK_ROWS", 1_000)

    def lose_connection(chunks: Iterator[tuple[int, Any]], *_: Any) -> Iterator[Any]:
        for _rows, chunk in chunks:
            execute(
                database_url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND query LIKE 'COPY%'",
            )
            yield chunk

    monkeypatch.setattr(pull, "track", lose_connection)
    with pytest.raises(SourceError) as raised:
        pull_database(database_url)
    assert "\n" not in str(raised.value)
    assert "; " in str(raised.value)


@pytest.fixture
def with_password(database_url: str) -> Iterator[str]:
    """URL of the database for a role whose password has all characters that need quoting."""
    role, folder = "with_password", Path(query(database_url, "SHOW data_directory")[0][0])
    access, escaped = folder / "pg_hba.conf", PASSWORD.replace("'", "''")
    before = access.read_text()
    access.write_text(f"local all {role} scram-sha-256\n{before}")
    execute(
        database_url,
        "SELECT pg_reload_conf()",
        f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{escaped}'",
    )
    yield database_url.replace("postgres:@", f"{role}:{quote(PASSWORD, safe='')}@")
    access.write_text(before)
    execute(database_url, "SELECT pg_reload_conf()", f"DROP ROLE {role}")


def test_any_password_works_and_a_wrong_one_is_an_error_that_does_not_show_it(
    database_url: str, with_password: str
) -> None:
    make_network(database_url)
    assert pull_database(with_password).store.interactions == pull_database(database_url).store.interactions
    with pytest.raises(SourceError, match="password authentication failed") as raised:
        pull_database(with_password.replace(quote(PASSWORD, safe=""), "wr0ng%40"))
    assert "wr0ng" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        "host={socket}",
        "host={dead}&host={socket}",
        "host={dead},{socket}&port=5432,5432",
        "host={dead},{socket},{dead}&connect_timeout=2&application_name=mine",
        "host={socket}&sslmode=prefer&options=-c%20search_path%3Dpublic%20-c%20DateStyle%3DGerman",
        "host={socket}&target_session_attrs=read-write&keepalives_idle=30",
    ],
)
def test_the_pull_uses_the_options_of_the_url(database_url: str, options: str, tmp_path: Path) -> None:
    make_network(database_url)
    expected = pull_database(database_url)
    there, _, socket = database_url.partition("?host=")
    given = options.format(socket=socket, dead=quote(str(tmp_path), safe=""))
    found = pull_database(f"{there}?{given}")
    assert found.store.interactions == expected.store.interactions
    assert found.latest == expected.latest


def test_a_like_during_the_night_does_not_refuse_the_run_and_is_left_out_of_the_lists(
    servers: dict[str, Any], redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    liked: list[int] = []
    runs: list[str] = []
    write = Writing.write

    def write_and_like(writing: Writing, stores: Stores, run_id: str, *rest: Any) -> Any:
        written = write(writing, stores, run_id, *rest)
        if run_id in runs:  # the refresh at the end of the night
            return written
        runs.append(run_id)
        post_id, _ = json.loads(str(stores.redis.get(stores.keys.user(run_id, 7))))[0]
        liked.append(post_id)
        execute(
            servers["database_url"], f"INSERT INTO recs.interactions VALUES (7, {post_id}, 'like', now())"
        )
        return written

    monkeypatch.setattr(Writing, "write", write_and_like)
    done = run_here("run", **servers)
    assert done.returncode == 0, done.stderr
    assert len(liked) == 2
    for variant in ("control", "test"):
        lists = live_lists(redis_client, variant)
        assert not {post for post, _ in lists[7]} & set(liked)
        run_id = str(live_run(redis_client, variant))
        ((manifest,),) = query(
            servers["database_url"], f"SELECT manifest FROM recs.runs WHERE run_id = '{run_id}'"
        )
        assert (manifest["caught_up"]["users"], manifest["caught_up"]["new_users"]) == (1, 0)
        assert json.loads(str(redis_client.get(f"recs:run:{run_id}:manifest")))["caught_up"]["users"] == 1
        shown = run_here("show", run_id, **servers).stdout
        assert "1 users acted while the night ran; their lists are up to date" in shown
    (record, _) = json.loads(run_here("refresh", "--json", **servers).stdout)
    assert record["users"] == 0


def test_variants_share_one_file_which_is_removed_with_the_last_of_their_runs(
    servers: dict[str, Any],
) -> None:
    stores = servers["model_dir"].parent / "stores"
    keep = {"OVERNIGHT_STORE_DIR": str(stores), "OVERNIGHT_KEEP_RUNS": "1"}
    keep["OVERNIGHT_PRUNE_AFTER_MINUTES"] = "0"
    assert run_here("run", **servers, **keep).returncode == 0
    files = sorted(stores.glob("*/*"))
    assert [file.name for file in files] == [interaction_store.FILE] * 2
    assert len({file.stat().st_ino for file in files}) == 1
    assert run_here("run", "--variant", "control", **servers, **keep).returncode == 0
    kept = sorted(run for (run,) in query(servers["database_url"], "SELECT run_id FROM recs.runs"))[1:]
    assert sorted(folder.name for folder in stores.iterdir()) == kept
    for folder in stores.iterdir():
        (file,) = folder.iterdir()
        assert file.stat().st_nlink == 1


def test_without_hard_links_the_second_variant_gets_a_copy(
    servers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(interaction_store.os, "link", refuse)
    assert run_here("run", **servers).returncode == 0
    one, other = servers["model_dir"].glob(f"*/{interaction_store.FILE}")
    assert one.stat().st_ino != other.stat().st_ino
    assert one.read_bytes() == other.read_bytes()
    execute(servers["database_url"], "INSERT INTO recs.interactions VALUES (7, 101, 'like', now())")
    assert run_here("refresh", **servers).returncode == 0


def test_session_options_of_the_url_apply_and_the_time_zone_is_utc(database_url: str) -> None:
    options = "-c statement_timeout=12345 -c timezone=Asia/Tokyo"
    url = sa.make_url(database_url).update_query_dict({"options": options})
    settings = Settings.of(database_url=url.render_as_string(hide_password=False))
    statement = "SELECT current_setting('statement_timeout') || ' ' || current_setting('timezone') AS found"
    with snapshot(open_engine(settings)) as connection:
        assert connection.scalar(sa.text(statement)) == "12345ms UTC"
        with read_batches(connection, settings, statement) as batches:
            assert [batch.column("found").to_pylist() for batch in batches] == [["12345ms UTC"]]
