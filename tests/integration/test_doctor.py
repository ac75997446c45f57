"""The checks of doctor: every problem is really created, and must be found together with its fix."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch.doctor import live_runs, postgres_checks
from batch.doctor.doctor import run_checks
from batch.doctor.finding import Finding, Status, worst_status
from batch.doctor.live_runs import LiveRuns
from batch.doctor.redis_checks import count_keys
from batch.runs import ledger
from contract.codec import decode_object, encode_object
from contract.keys import Keys
from contract.settings import Settings
from demo.postgres import make_engine
from tests.support.batch import execute, make_network, query, settled_memory
from tests.support.batch_live import dump
from tests.support.operators import LiveNetwork

pytest_plugins = ("tests.support.operators_fixtures",)

KEYS = Keys()
OLD = "20200101T000000Z-control"


def findings_of(settings: Settings, *, days_later: int = 0) -> list[Finding]:
    return run_checks(settings, datetime.now(UTC) + timedelta(days=days_later))


def problems(findings: list[Finding]) -> dict[str, Finding]:
    """Return check -> finding of all problems but one: the Redis of these tests has no persistence."""
    wrong = {found.check: found for found in findings if found.status is not Status.OK}
    return {check: found for check, found in wrong.items() if check != "redis persistence"}


def assert_found(findings: list[Finding], check: str, status: Status, text: str, fix: str) -> None:
    """Assert that a problem is found, with its fix."""
    found = problems(findings).get(check)
    assert found is not None, findings
    assert (found.status, text in found.found) == (status, True), found
    assert found.fix is not None
    assert fix in found.fix


def test_a_night_leaves_nothing_to_mend_and_doctor_changes_nothing(night: LiveNetwork) -> None:
    before = dump(night.redis_url), query(night.database_url, "SELECT * FROM recs.runs ORDER BY 1")
    record = night.run_json("doctor")
    assert [found for found in record["findings"] if found["status"] != "ok"] == [
        {
            "check": "redis persistence",
            "status": "warn",
            "found": "nothing is kept on disk: a restart loses every list until the next night",
            "mend": "CONFIG SET appendonly yes, or run `python -m batch run` after each restart",
        }
    ]
    assert record["status"] == "warn"
    assert before == (dump(night.redis_url), query(night.database_url, "SELECT * FROM recs.runs ORDER BY 1"))


def test_a_failed_check_is_told_by_table_exit_code_and_one_line(night: LiveNetwork) -> None:
    night.client.set(KEYS.live("control"), "latest")
    done = night.batch("doctor")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    (at,) = [row for row, line in enumerate(lines) if line.startswith("FAIL")]
    assert "recs:live:control is 'latest', which is not a run id" in lines[at]
    assert lines[at + 1].strip().startswith("-> python -m batch rollback control")
    assert done.stderr.splitlines()[-1].startswith("error: 1 of ")
    assert night.run_json("doctor", code=1)["status"] == "fail"


def _point_at_nothing(night: LiveNetwork) -> None:
    night.client.set(KEYS.live("control"), OLD)


def _point_at_the_other_variant(night: LiveNetwork) -> None:
    night.client.set(KEYS.live("control"), night.run_of("test"))


def _lose_the_pointer(night: LiveNetwork) -> None:
    night.client.delete(KEYS.live("control"))


def _lose_the_manifest(night: LiveNetwork) -> None:
    night.client.delete(KEYS.manifest(night.run_of("control")))


def _lose_a_list(night: LiveNetwork) -> None:
    night.client.delete(KEYS.user(night.run_of("test"), 7), KEYS.post(night.run_of("test"), 105))


def _leave_keys_of_an_unknown_run(night: LiveNetwork) -> None:
    night.client.set(KEYS.user(OLD, 1), "[]")


def _leave_a_strange_key(night: LiveNetwork) -> None:
    night.client.set(f"recs:run:{OLD}:notes", "mine")


def _break_the_experiment(night: LiveNetwork) -> None:
    night.client.set(KEYS.experiment, encode_object({"name": "a", "salt": "b", "percent_test": 120}))


def _set_an_experiment_by_hand(night: LiveNetwork) -> None:
    night.client.set(KEYS.experiment, encode_object({"name": "mine", "salt": "b", "percent_test": 20}))


def _lose_the_experiment(night: LiveNetwork) -> None:
    night.client.delete(KEYS.experiment)


def _leave_exposures_for_days(night: LiveNetwork) -> None:
    night.client.xadd(KEYS.exposures, {"served": "{}"}, id="1600000000000-0")


def _make_exposures_a_string(night: LiveNetwork) -> None:
    night.client.set(KEYS.exposures, "42")


def _serve_no_test(night: LiveNetwork) -> None:
    night.client.delete(*night.client.scan_iter(KEYS.run_pattern(night.run_of("test"))))
    night.client.delete(KEYS.live("test"))


def _block_a_word(night: LiveNetwork) -> None:
    night.client.sadd(KEYS.blocked, "101", "spam")


def _block_a_post(night: LiveNetwork) -> None:
    night.client.sadd(KEYS.blocked, "101")


def _make_blocked_a_string(night: LiveNetwork) -> None:
    night.client.set(KEYS.blocked, "101")


def _lose_texts(night: LiveNetwork) -> None:
    night.client.hdel(KEYS.posts, "101")


def _break_a_text(night: LiveNetwork) -> None:
    night.client.hset(KEYS.posts, "101", "words")


@pytest.mark.parametrize(
    ("spoil", "check", "status", "text", "fix"),
    [
        (_point_at_nothing, "live control", "fail", "has no keys of manifest or popular or user", "rollback"),
        (_point_at_the_other_variant, "live control", "fail", "a run of test", "rollback control"),
        (_lose_the_pointer, "live control", "fail", "recs:live:control is missing", "SET recs:live:control"),
        (_lose_the_manifest, "live control", "fail", "has no keys of manifest", "rollback control"),
        (_lose_a_list, "lists test", "fail", "1 user keys of", "batch run"),
        (_leave_keys_of_an_unknown_run, "orphan keys", "warn", "the ledger does not know", "UNLINK"),
        (_leave_a_strange_key, "orphan keys", "warn", ":notes and 0 more are not keys", "remove"),
        (_break_the_experiment, "experiment", "fail", "percent_test must be 0 to 100", "experiment set"),
        (_set_an_experiment_by_hand, "experiment", "warn",
         "recs:experiment holds mine: 20 % of users in test, salt 'b'; the recorded split is default: 50 %",
         "--percent-test 50"),
        (_lose_the_experiment, "experiment", "warn", "holds nothing: every user is in control", "refresh"),
        (_leave_exposures_for_days, "exposures", "warn", "1 batches wait", "experiment drain"),
        (_make_exposures_a_string, "recs:exposures", "fail", "is a string and must be a stream", "DEL"),
        (_serve_no_test, "experiment", "warn", "no run of test is live", "--variant test"),
        (_block_a_word, "blocked posts", "warn", "1 of 2 members are not post ids", "SREM recs:blocked"),
        (_block_a_post, "blocked posts", "warn", "1 posts are blocked in recs:blocked and", "batch block"),
        (_make_blocked_a_string, "recs:blocked", "fail", "is a string and must be a set", "DEL"),
        (_lose_texts, "texts", "fail", "recs:posts has 39 posts, the live run 40", "batch run"),
        (_break_a_text, "texts", "fail", "the text of post 101 cannot be read", "batch run"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_redis_is_named(
    night: LiveNetwork, *, spoil: Callable[[LiveNetwork], None], check: str, status: str, text: str, fix: str
) -> None:
    spoil(night)
    assert_found(findings_of(night.settings), check, Status(status), text, fix)


@pytest.mark.parametrize(
    ("statement", "check", "status", "text", "fix"),
    [
        ("UPDATE recs.runs SET state = 'retired'", "live test", "fail", "it is retired", "corrects the"),
        ("DELETE FROM recs.runs", "live test", "fail", "ledger has no such run", "DATABASE_URL"),
        (f"UPDATE recs.runs SET run_id = '{OLD}' WHERE variant = 'control'", "live control", "fail",
         f"the ledger says {OLD} is live", "corrects the ledger"),
        (f"INSERT INTO recs.runs (run_id, variant, key_prefix, state, started_at, actor) "
         f"VALUES ('{OLD}', 'control', 'recs', 'building', now(), 'x')",
         "lock", "warn", "no process holds the lock", "batch run"),
        ("ALTER TABLE recs.posts RENAME TO articles", "views", "fail",
         "the view recs.posts is missing", "README"),
        ("ALTER TABLE recs.interactions ALTER happened_at TYPE date", "views", "fail",
         "recs.interactions.happened_at is of type date", "cast it"),
        ("INSERT INTO recs.blocked_posts VALUES ('recs', '101', now(), 'x')", "blocked posts", "fail",
         "serving may show 1 posts that are blocked in Postgres", "python -m batch block"),
        ("INSERT INTO recs.ledger_version VALUES (99)", "tables", "fail", "is of version 99", "update"),
        ("ALTER TABLE recs.runs DROP COLUMN finished_at", "tables", "fail", "lacks the column finished_at",
         "batch runs"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_postgres_is_named(
    spoilt: LiveNetwork, *, statement: str, check: str, status: str, text: str, fix: str
) -> None:
    execute(
        spoilt.database_url,
        "ALTER TABLE recs.run_changes DROP CONSTRAINT run_changes_run_id_fkey",
        statement,
    )
    assert_found(findings_of(spoilt.settings), check, Status(status), text, fix)


def test_keys_of_a_failed_run_are_orphans_and_those_of_a_refused_one_are_not(spoilt: LiveNetwork) -> None:
    enter = "INSERT INTO recs.runs (run_id, variant, key_prefix, state, started_at, actor) VALUES"
    failed, refused = OLD, OLD.replace("2020", "2021")
    for run_id, state in ((failed, "failed"), (refused, "refused")):
        execute(spoilt.database_url, f"{enter} ('{run_id}', 'control', 'recs', '{state}', now(), 'x')")
        spoilt.client.set(KEYS.manifest(run_id), "{}")
        spoilt.client.set(KEYS.user(run_id, 1), "[]")
    found = [finding for finding in findings_of(spoilt.settings) if finding.check == "orphan keys"]
    assert [finding.found for finding in found] == [f"2 keys of {failed}, which the ledger records as failed"]


def test_a_role_without_its_rights_is_told_which(spoilt: LiveNetwork) -> None:
    url = sa.make_url(spoilt.database_url).set(username="doctored", password="x")
    settings = spoilt.settings.replace(database_url=url.render_as_string(hide_password=False))
    execute(
        spoilt.database_url,
        "CREATE ROLE doctored LOGIN PASSWORD 'x'",
        "GRANT USAGE ON SCHEMA recs TO doctored",
        "GRANT SELECT ON recs.users, recs.posts TO doctored",
    )
    try:
        found = findings_of(settings)
        text = "no right to read recs.interactions"
        assert_found(found, "views", Status.FAIL, text, "GRANT SELECT ON recs.interactions")
        text = "doctored neither owns nor may write recs.blocked_posts"
        assert_found(found, "rights", Status.FAIL, text, "ALTER TABLE recs.blocked_posts OWNER TO doctored")
        execute(spoilt.database_url, "GRANT ALL ON ALL TABLES IN SCHEMA recs TO doctored")
        found = findings_of(settings)
        assert_found(
            found, "rights", Status.FAIL, "may not create tables in the schema recs", "GRANT USAGE, CREATE"
        )
    finally:
        execute(spoilt.database_url, "DROP OWNED BY doctored", "DROP ROLE doctored")


LEDGER = ", ".join(str(table) for table in ledger.runs.metadata.tables.values())


@pytest.mark.parametrize(
    ("statement", "text", "fix"),
    [
        (
            "ALTER DATABASE {database} SET default_transaction_read_only = on",
            "in a read-only transaction",
            "SET default_transaction_read_only = off",
        ),
        (
            f"DROP TABLE {LEDGER}; ALTER DATABASE {{database}} SET default_transaction_read_only = on",
            "cannot execute CREATE TABLE in a read-only transaction",
            "SET default_transaction_read_only = off",
        ),
        (
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE 'not on this day'; END$$; "
            "CREATE TRIGGER refuse BEFORE INSERT ON recs.run_changes FOR EACH ROW EXECUTE FUNCTION refuse()",
            "not on this day",
            "see the log of Postgres",
        ),
    ],
)
def test_what_a_night_cannot_write_is_found_with_the_error_of_the_night(
    spoilt: LiveNetwork, statement: str, text: str, fix: str
) -> None:
    execute(spoilt.database_url, statement.format(database=sa.make_url(spoilt.database_url).database))
    found = findings_of(spoilt.settings)
    assert_found(found, "writes", Status.FAIL, text, fix)
    done = spoilt.batch("run")
    assert done.returncode == 1
    finding = problems(found)["writes"]
    assert text in done.stderr
    assert f"; {finding.fix}" in done.stderr


def test_doctor_writes_nothing_where_no_night_has_run(database_url: str, spoilt: LiveNetwork) -> None:
    make_network(database_url)
    found = findings_of(spoilt.settings.replace(database_url=database_url))
    assert "writes" not in problems(found)
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'recs'"
    assert query(database_url, tables) == [(3,)]


MISSING_INDEX = "no index begins with"
FEED = """
    ALTER TABLE recs.interactions SET SCHEMA public;
    ALTER TABLE interactions RENAME TO "Feed of all";
    ALTER TABLE "Feed of all" RENAME happened_at TO "At";
    ALTER TABLE "Feed of all" ADD logged timestamp;
    UPDATE "Feed of all" SET logged = "At";
"""
VIEW = "CREATE OR REPLACE VIEW recs.interactions AS SELECT user_id, post_id, action, {time} FROM {source}"


@pytest.fixture
def over_a_feed(spoilt: LiveNetwork, monkeypatch: pytest.MonkeyPatch) -> LiveNetwork:
    """A network whose view lies over a table without indexes and with names that need quotes."""
    monkeypatch.setattr(postgres_checks, "MIN_ROWS", 100)
    execute(spoilt.database_url, FEED, VIEW.format(time='"At" AS happened_at', source='"Feed of all"'))
    return spoilt


def about_the_index(night: LiveNetwork) -> list[Finding]:
    return [finding for finding in findings_of(night.settings) if finding.check == postgres_checks.CHECK]


def test_a_time_without_an_index_is_told_with_the_statement_that_makes_one(over_a_feed: LiveNetwork) -> None:
    execute(over_a_feed.database_url, 'CREATE INDEX ON "Feed of all" (user_id, "At")')  # cannot find a time
    found = findings_of(over_a_feed.settings)
    text, statement = f'{MISSING_INDEX} "At"', 'CREATE INDEX CONCURRENTLY ON public."Feed of all" ("At")'
    assert_found(found, postgres_checks.CHECK, Status.WARN, text, statement)
    assert worst_status(found) is Status.WARN
    rows = query(over_a_feed.database_url, 'SELECT count(*) FROM "Feed of all"')[0][0]
    (finding,) = about_the_index(over_a_feed)
    estimated = int(finding.found.partition(" rows")[0].rpartition(" ")[2].replace(",", ""))
    assert 0.5 * rows < estimated < 2 * rows
    assert finding.fix is not None
    engine = make_engine(over_a_feed.database_url)
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(finding.fix)
    (finding,) = about_the_index(over_a_feed)
    assert (finding.status, "an index on the time" in finding.found) == (Status.OK, True)


@pytest.mark.parametrize(
    "statement",
    [
        'CREATE INDEX ON "Feed of all" ("At")',
        'CREATE INDEX ON "Feed of all" USING brin ("At")',
        'CREATE INDEX ON "Feed of all" ("At" DESC, user_id)',
        'DELETE FROM "Feed of all" WHERE user_id > 1; ANALYZE "Feed of all"',
    ],
)
def test_with_an_index_or_few_rows_there_is_nothing_to_make(over_a_feed: LiveNetwork, statement: str) -> None:
    execute(over_a_feed.database_url, statement)
    assert [finding.status for finding in about_the_index(over_a_feed)] == [Status.OK]


@pytest.mark.parametrize(
    "statement",
    [
        'CREATE INDEX ON "Feed of all" ("At") WHERE user_id = 1',
        'CREATE INDEX ON "Feed of all" USING hash ("At")',
        """CREATE INDEX on_time ON "Feed of all" ("At");
        UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'on_time'::regclass""",
    ],
)
def test_an_index_that_cannot_serve_is_none(over_a_feed: LiveNetwork, statement: str) -> None:
    execute(over_a_feed.database_url, statement)
    (finding,) = about_the_index(over_a_feed)
    assert (finding.status, MISSING_INDEX in finding.found) == (Status.WARN, True)


@pytest.mark.parametrize(
    "time",
    [
        "logged AT TIME ZONE 'UTC' AS happened_at",
        "logged::timestamptz AS happened_at",
        'coalesce("At", logged) AS happened_at',
        'max("At") OVER (PARTITION BY user_id) AS happened_at',
    ],
)
def test_a_time_that_the_view_computes_is_told_to_be_served_by_no_index(
    over_a_feed: LiveNetwork, time: str
) -> None:
    statement = VIEW.format(time=time, source='"Feed of all"')
    execute(over_a_feed.database_url, statement, 'CREATE INDEX ON "Feed of all" ("At")')
    found = findings_of(over_a_feed.settings)
    assert_found(
        found, postgres_checks.CHECK, Status.WARN, "computes happened_at", "without cast or function"
    )


def test_an_index_on_what_the_view_computes_serves(over_a_feed: LiveNetwork) -> None:
    statement = VIEW.format(time="logged AT TIME ZONE 'UTC' AS happened_at", source='"Feed of all"')
    index = """CREATE INDEX ON "Feed of all" ((logged AT TIME ZONE 'UTC'))"""
    execute(over_a_feed.database_url, statement, index, 'ANALYZE "Feed of all"')
    assert [finding.status for finding in about_the_index(over_a_feed)] == [Status.OK]


def test_each_table_under_the_view_has_its_own_statement(over_a_feed: LiveNetwork) -> None:
    execute(
        over_a_feed.database_url,
        'CREATE TABLE likes AS SELECT user_id, post_id, "At" AS at FROM "Feed of all"',
        VIEW.format(time='"At" AS happened_at', source='"Feed of all"')
        + " UNION ALL SELECT user_id, post_id, 'like', at FROM likes",
    )
    assert {finding.fix for finding in about_the_index(over_a_feed)} == {
        'CREATE INDEX CONCURRENTLY ON public."Feed of all" ("At")',
        "CREATE INDEX CONCURRENTLY ON public.likes (at)",
    }


def test_a_table_that_its_view_may_not_read_is_told_and_the_rest_is_checked(spoilt: LiveNetwork) -> None:
    url = sa.make_url(spoilt.database_url).set(username="explainer", password="x")
    settings = spoilt.settings.replace(database_url=url.render_as_string(hide_password=False))
    execute(
        spoilt.database_url,
        FEED,
        VIEW.format(time='"At" AS happened_at', source='"Feed of all"'),
        "ALTER VIEW recs.interactions SET (security_invoker = true)",
        "CREATE ROLE explainer LOGIN PASSWORD 'x'",
        "GRANT ALL ON SCHEMA recs TO explainer",
        "GRANT ALL ON ALL TABLES IN SCHEMA recs TO explainer",
    )
    try:
        found = findings_of(settings)
    finally:
        execute(spoilt.database_url, "DROP OWNED BY explainer", "DROP ROLE explainer")
    assert_found(found, postgres_checks.CHECK, Status.FAIL, "permission denied", "let this role read")
    assert "lock" in [finding.check for finding in found]


@contextmanager
def configured(night: LiveNetwork, **values: Any) -> Iterator[None]:
    """Set what Redis is configured with, and put it back."""
    before = {name: night.client.config_get(name)[name] for name in values}
    try:
        for name, value in values.items():
            night.client.config_set(name, value)
        yield
    finally:
        for name, value in before.items():
            night.client.config_set(name, value)


def test_a_policy_that_evicts_is_found_and_what_does_not_fit_any_more(night: LiveNetwork) -> None:
    used = settled_memory(night.client)
    policy = {"maxmemory-policy": "allkeys-lru"}
    with configured(night, **policy):
        text = "harmless only while maxmemory is 0"
        assert_found(findings_of(night.settings), "redis eviction", Status.WARN, text, "noeviction")
        with configured(night, maxmemory=4 * used):
            text = "evicts users' lists"
            assert_found(findings_of(night.settings), "redis eviction", Status.FAIL, text, "noeviction")
    with configured(night, maxmemory=used // 2, save="300 1"):
        found = findings_of(night.settings)
    assert_found(found, "memory for a night", Status.FAIL, "free of maxmemory", "raise maxmemory")
    assert "redis persistence" not in [finding.check for finding in found if finding.status is not Status.OK]


def test_a_replica_is_told_to_be_none_to_write_to(night: LiveNetwork) -> None:
    night.client.replicaof("127.0.0.1", 1)  # nobody is there
    try:
        assert_found(
            findings_of(night.settings),
            "redis role",
            Status.FAIL,
            "is a replica",
            "point REDIS_URL to the primary",
        )
    finally:
        night.client.replicaof("NO", "ONE")


def test_a_model_that_is_gone_or_damaged_is_named(night: LiveNetwork, tmp_path: Path) -> None:
    settings = night.settings.replace(model_dir=str(tmp_path))
    assert_found(findings_of(settings), "model control", Status.FAIL, "No such file", "OVERNIGHT_MODEL_DIR")
    copy, original = tmp_path / night.run_of("test"), night.model_dir / night.run_of("test")
    shutil.copytree(original, copy)
    assert "model test" not in problems(findings_of(settings))
    (copy / "model.txt").write_bytes((original / "model.txt").read_bytes()[:-100])
    assert_found(
        findings_of(settings), "model test", Status.FAIL, "model.txt is not what the run wrote", "night"
    )


def test_a_run_that_no_night_replaced_is_stale(night: LiveNetwork) -> None:
    found = findings_of(night.settings, days_later=2)
    assert_found(found, "age control", Status.WARN, "live for 48.", "check that the scheduler or cron is up")
    weekly = findings_of(night.settings.replace(nightly_cron="0 3 * * 0"), days_later=2)
    assert "age control" not in problems(weekly)


def test_before_the_first_night_doctor_names_what_is_to_be_made(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    settings = Settings.of(database_url=database_url, redis_url=redis_url, model_dir=str(tmp_path))
    found = findings_of(settings)
    assert_found(found, "views", Status.FAIL, "the schema recs is missing", "README")
    assert_found(found, "live", Status.WARN, "no run is live yet", "python -m batch run")


def test_what_cannot_be_reached_is_named_and_the_rest_is_checked(night: LiveNetwork) -> None:
    no_postgres = night.settings.replace(database_url="postgresql://u:s3cret@127.0.0.1:1/none")
    found = findings_of(no_postgres)
    assert_found(found, "postgres", Status.FAIL, "Postgres at 127.0.0.1", "check that it is up")
    assert "lists control" in [finding.check for finding in found]
    assert "s3cret" not in str(found)
    found = findings_of(night.settings.replace(redis_url="redis://127.0.0.1:1/0"))
    assert_found(found, "redis", Status.FAIL, "Redis at 127.0.0.1", "check that it is up")
    assert found[0].found.startswith("PostgreSQL")


def test_a_count_of_keys_that_is_cut_short_says_so_and_reports_no_missing_keys(night: LiveNetwork) -> None:
    whole, part = count_keys(night.client, KEYS), count_keys(night.client, KEYS, max_keys=10)
    manifest = decode_object(str(night.client.get(KEYS.manifest(night.run_of("control")))))
    counted = whole.runs[night.run_of("control")]
    assert (counted.user, counted.post) == (manifest["users"], manifest["similar_posts"])
    assert (whole.complete, part.complete) == (True, False)
    assert sum(run.total for run in part.runs.values()) == 10
    live = {"control": night.run_of("control")}
    findings = live_runs.check_pointers(LiveRuns(KEYS, live, {}, part), {})
    assert all("has no keys" not in finding.found for finding in findings)
