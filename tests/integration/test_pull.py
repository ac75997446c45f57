"""How interactions get out of Postgres: one read a night, one snapshot, whatever DATABASE_URL asks for."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import sqlalchemy as sa

import batch.pipeline
from batch.loading import arrow_reader, interaction_store, pull
from batch.loading.arrow_reader import read_batches
from batch.loading.work_folder import PREFIX, remove_abandoned, work_folder
from batch.postgres import open_engine, snapshot
from contract.errors import SourceError
from contract.settings import Settings
from tests.support.batch_support import (
    FIRST_DAY,
    ROOT,
    execute,
    live_lists,
    live_run,
    make_network,
    query,
    run_here,
)
from tests.support.evaluation_support import pull_database

PASSWORD = "p@ss w/rd'\\\"%: 名"


@pytest.fixture
def places(database_url: str, redis_url: str, tmp_path: Path) -> dict[str, Any]:
    """A small network, and where its runs go."""
    make_network(database_url)
    return {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path / "models"}


class Statements:
    """What a Postgres is asked from now on, as its log has it."""

    def __init__(self, database_url: str) -> None:
        name = sa.make_url(database_url).database
        execute(database_url, f"ALTER DATABASE {name} SET log_statement = 'all'")
        self._url = database_url
        self._log = Path(query(database_url, "SHOW data_directory")[0][0]) / "log"
        self._from = self._log.stat().st_size

    def reads(self) -> list[str]:
        """Return the statements so far that read interactions, each in one line."""
        return [line for line in self._lines() if re.search(r"\b(FROM|JOIN) recs\.interactions\b", line)]

    def _lines(self) -> Iterator[str]:
        with self._log.open("rb") as file:
            file.seek(self._from)
            told = file.read().decode()
        # A statement goes on in the lines that begin with a tab.
        for line in re.sub(r"\n\t\s*", " ", told).splitlines():
            if re.search(r"LOG: +(statement|execute [^:]*):", line) and ": EXPLAIN" not in line:
                yield line.partition("LOG:")[2]


def test_a_night_reads_interactions_once_and_a_refresh_only_what_is_new(places: dict[str, Any]) -> None:
    statements = Statements(places["database_url"])
    assert run_here("run", **places).returncode == 0
    whole, *caught_up = statements.reads()
    assert "WHERE" not in whole
    assert len(caught_up) == 1  # the refresh that a night ends with
    execute(places["database_url"], "INSERT INTO recs.interactions VALUES (7, 101, 'like', now())")
    assert run_here("refresh", **places).returncode == 0
    *_, refreshed = reads = statements.reads()
    assert len(reads) == 3
    for read in (caught_up[0], refreshed):
        assert re.search(r"FROM recs\.interactions WHERE happened_at > timestamp with time zone '", read)


def test_what_is_committed_between_two_reads_of_a_pull_is_not_seen(
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


def test_a_connection_that_is_lost_while_rows_come_is_told_in_one_line(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_network(database_url, interactions=200_000)
    monkeypatch.setattr(arrow_reader, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(pull, "CHUNK_ROWS", 1_000)
    insert = pull._insert

    def lose_and_insert(*arguments: Any) -> Any:
        execute(
            database_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND query LIKE 'COPY%'",
        )
        return insert(*arguments)

    monkeypatch.setattr(pull, "_insert", lose_and_insert)
    with pytest.raises(SourceError) as raised:
        pull_database(database_url)
    assert "\n" not in str(raised.value)
    assert "; " in str(raised.value)


@pytest.fixture
def with_password(database_url: str) -> Iterator[str]:
    """The same database as a role that must give a password, which has every sign that needs quoting."""
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


def test_a_password_with_any_sign_is_taken_and_a_wrong_one_is_told_and_shown_nowhere(
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
def test_options_of_the_url_hold_for_the_pull(database_url: str, options: str, tmp_path: Path) -> None:
    make_network(database_url)
    expected = pull_database(database_url)
    there, _, socket = database_url.partition("?host=")
    given = options.format(socket=socket, dead=quote(str(tmp_path), safe=""))
    found = pull_database(f"{there}?{given}")
    assert found.store.interactions == expected.store.interactions
    assert found.latest == expected.latest


def test_a_like_that_comes_in_while_the_night_runs_refuses_nothing_and_is_out_of_the_lists(
    places: dict[str, Any], redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    liked: list[int] = []
    write_lists = batch.pipeline.write_lists

    def write_and_like(client: redis.Redis, keys: Any, run_id: str, *rest: Any) -> Any:
        written = write_lists(client, keys, run_id, *rest)
        post_id, _ = json.loads(str(client.get(keys.user(run_id, 7))))[0]
        liked.append(post_id)
        execute(places["database_url"], f"INSERT INTO recs.interactions VALUES (7, {post_id}, 'like', now())")
        return written

    monkeypatch.setattr(batch.pipeline, "write_lists", write_and_like)
    done = run_here("run", **places)
    assert done.returncode == 0, done.stderr
    assert len(liked) == 2
    for variant in ("control", "test"):
        lists = live_lists(redis_client, variant)
        assert not {post for post, _ in lists[7]} & set(liked)
        run_id = str(live_run(redis_client, variant))
        ((manifest,),) = query(
            places["database_url"], f"SELECT manifest FROM recs.runs WHERE run_id = '{run_id}'"
        )
        assert (manifest["caught_up"]["users"], manifest["caught_up"]["new_users"]) == (1, 0)
        assert json.loads(str(redis_client.get(f"recs:run:{run_id}:manifest")))["caught_up"]["users"] == 1
        shown = run_here("show", run_id, **places).stdout
        assert "1 users acted while the night ran, and have new lists" in shown
    (record, _) = json.loads(run_here("refresh", "--json", **places).stdout)
    assert record["users"] == 0


def test_variants_share_one_file_which_goes_with_the_last_of_their_runs(places: dict[str, Any]) -> None:
    stores = places["model_dir"].parent / "stores"
    keep = {"OVERNIGHT_STORE_DIR": str(stores), "OVERNIGHT_KEEP_RUNS": "1"}
    keep["OVERNIGHT_PRUNE_AFTER_MINUTES"] = "0"
    assert run_here("run", **places, **keep).returncode == 0
    files = sorted(stores.glob("*/*"))
    assert [file.name for file in files] == [interaction_store.FILE] * 2
    assert len({file.stat().st_ino for file in files}) == 1
    assert run_here("run", "--variant", "control", **places, **keep).returncode == 0
    kept = sorted(run for (run,) in query(places["database_url"], "SELECT run_id FROM recs.runs"))[1:]
    assert sorted(folder.name for folder in stores.iterdir()) == kept
    for folder in stores.iterdir():
        (file,) = folder.iterdir()
        assert file.stat().st_nlink == 1


def test_where_files_cannot_have_two_names_the_second_variant_gets_a_copy(
    places: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(interaction_store.os, "link", refuse)
    assert run_here("run", **places).returncode == 0
    one, other = places["model_dir"].glob(f"*/{interaction_store.FILE}")
    assert one.stat().st_ino != other.stat().st_ino
    assert one.read_bytes() == other.read_bytes()
    execute(places["database_url"], "INSERT INTO recs.interactions VALUES (7, 101, 'like', now())")
    assert run_here("refresh", **places).returncode == 0


HOLD = "import sys; from pathlib import Path; from batch.loading.work_folder import work_folder\n"
HOLD += (
    "with work_folder(Path(sys.argv[1])) as folder: (folder / 'rows').touch(); print(1, flush=True); input()"
)


def test_a_work_folder_goes_once_its_process_is_killed_and_not_before(tmp_path: Path) -> None:
    parent = tmp_path / "a run"
    command = [sys.executable, "-c", HOLD, str(parent)]
    with (
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        work_folder(tmp_path) as own,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        (folder,) = parent.glob(f"{PREFIX}*")
        remove_abandoned(tmp_path)
        assert folder.is_dir()
        assert own.is_dir()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        remove_abandoned(tmp_path)
        assert not folder.exists()
        assert own.is_dir()
    assert not own.exists()


def test_a_work_folder_whose_process_was_killed_before_it_took_the_lock_goes_too(tmp_path: Path) -> None:
    folder = tmp_path / f"{PREFIX}abc"
    folder.mkdir()
    os.utime(folder, (0, 0))
    remove_abandoned(tmp_path)
    assert not folder.exists()


def test_session_options_of_the_url_stay_and_the_time_zone_is_utc(database_url: str) -> None:
    options = "-c statement_timeout=12345 -c timezone=Asia/Tokyo"
    url = sa.make_url(database_url).update_query_dict({"options": options})
    settings = Settings.of(database_url=url.render_as_string(hide_password=False))
    asked = "SELECT current_setting('statement_timeout') || ' ' || current_setting('timezone') AS found"
    with snapshot(open_engine(settings)) as connection:
        assert connection.scalar(sa.text(asked)) == "12345ms UTC"
        with read_batches(connection, settings, asked) as batches:
            assert [batch.column("found").to_pylist() for batch in batches] == [["12345ms UTC"]]
