"""The console with rights to read only, in Redis and in Postgres, as the files in deploy/ give them."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from console.context import EXTENSION
from console.jobs import EXPLAIN, REPORT
from contract.codec import decode_list
from contract.keys import Keys
from contract.settings import Settings
from demo.console_pages import example_pages
from demo.postgres import find_programs
from tests.support.batch import make_engine, wait_until
from tests.support.console import SAME_ORIGIN, find_table_files, open_console
from tests.support.operators import LiveNetwork

pytest_plugins = ("tests.support.operators_fixtures",)

DEPLOY = Path(__file__).parents[2] / "deploy"
NOT_READ = re.compile("Not read: (?!serving at)")
"""Serving does not run here."""

FORM = re.compile(r'<form method="post"[^>]* action="([^"?]*)')
READING_FORMS = {"/why", "/experiment", "/experiment/report"}
"""Where jobs are started that only read."""

ACTIONS = (
    "start-night", "stop-job", "refresh", "roll-back", "block", "unblock", "split", "pin", "unpin", "doctor",
    "webhook",
)  # fmt: skip

PASSWORD = "REDIS_CONSOLE_PASSWORD"
ROLE = "overnight_console"

SQL_WRITES = [
    "UPDATE recs.runs SET state = 'live'", "DELETE FROM recs.run_changes", "TRUNCATE recs.experiments",
    "INSERT INTO recs.ledger_version VALUES (99)", "CREATE TABLE recs.mine (a int)", "DROP TABLE recs.runs",
    "CREATE TABLE public.mine (a int)", "ALTER TABLE recs.runs ADD COLUMN mine int",
    "CREATE ROLE mine", "COPY recs.runs TO PROGRAM 'cat'",
]  # fmt: skip
REDIS_REFUSED = [
    "SET recs:live:control x", "DEL recs:blocked", "UNLINK recs:posts", "SADD recs:blocked 1", "FLUSHALL",
    "HSET recs:posts 1 {}", "EXPIRE recs:posts 1", "XADD recs:exposures * a b", "GETDEL recs:help",
    "XTRIM recs:exposures MAXLEN 0", "RENAME recs:posts recs:x", "EVAL 'return 1' 0", "PUBLISH x y", "SCAN 0",
    "KEYS *", "HSCAN recs:posts 0", "HGETALL recs:posts", "INFO", "CONFIG GET requirepass", "MONITOR",
    "ACL LIST", "CLIENT LIST", "SHUTDOWN", "GET other:key", "XRANGE recs:exposures - +", "DBSIZE",
]  # fmt: skip


@pytest.fixture
def reader(night: LiveNetwork) -> Iterator[Settings]:
    """Settings of that night with the console's own users, made from the files that are shipped."""
    (line,) = [
        line
        for line in (DEPLOY / "redis-users.acl").read_text().splitlines()
        if line.startswith("user console ")
    ]
    night.client.execute_command("ACL", "SETUSER", *line.split()[1:])
    database = sa.make_url(night.database_url)
    _run_script(database)
    _run_script(database)  # it may be run again
    yield night.settings.replace(
        redis_url=night.redis_url.replace("redis://", f"redis://console:{PASSWORD}@"),
        database_url=database.set(username=ROLE, password="hush").render_as_string(hide_password=False),
    )
    night.client.execute_command("ACL", "DELUSER", "console")
    with make_engine(night.database_url).begin() as connection:
        connection.execute(sa.text(f"DROP OWNED BY {ROLE}"))
        connection.execute(sa.text(f"DROP ROLE {ROLE}"))


def _run_script(database: sa.URL) -> None:
    user = database.username or "postgres"
    variables = ["ON_ERROR_STOP=1", "password=hush", f"batch={user}"]
    options = [f"--set={variable}" for variable in variables]
    with (DEPLOY / "console-role.sql").open() as script:
        done = subprocess.run(
            [
                find_programs() / "psql",
                *options,
                database.set(drivername="postgresql").render_as_string(hide_password=False),
            ],
            stdin=script,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_page_opens_with_these_rights_and_draws_no_form_that_changes_anything(
    night: LiveNetwork, reader: Settings
) -> None:
    night.client.execute_command("ACL", "LOG", "RESET")
    with open_console(reader, read_only=True, local_operator="") as client:
        files: set[str] = set()
        for name, path in example_pages(night.client, Keys()).items():
            answer = client.get(path)
            assert answer.status_code == 200, (name, answer.text)
            assert NOT_READ.search(answer.text) is None, (name, answer.text)
            assert set(FORM.findall(answer.text)) <= READING_FORMS, name
            assert "/actions/" not in answer.text, name
            files |= find_table_files(answer.text)
        assert {path: client.get(path).status_code for path in files} == dict.fromkeys(files, 200)
        for name in ACTIONS:
            assert client.get(f"/actions/{name}").status_code == 404
            assert client.post(f"/actions/{name}", headers=SAME_ORIGIN).status_code == 404
    assert night.client.acl_log() == []  # nothing was asked for that it has no right to


def test_a_viewer_is_shown_no_action_and_may_do_none(night: LiveNetwork) -> None:
    with open_console(night.settings, local_operator="") as client:
        for name, path in example_pages(night.client, Keys()).items():
            page = client.get(path).text
            assert set(FORM.findall(page)) <= READING_FORMS, name
            assert "/actions/" not in page, name
        for name in ACTIONS:
            assert client.get(f"/actions/{name}").status_code == 403
            assert client.post(f"/actions/{name}", headers=SAME_ORIGIN).status_code == 403
    with open_console(night.settings) as client:  # what viewers lack is there for an operator
        assert "/actions/" in client.get("/").text
        assert {client.get(f"/actions/{name}").status_code for name in ACTIONS} <= {200, 400, 409, 422, 503}


def test_jobs_that_only_read_work_with_these_rights(night: LiveNetwork, reader: Settings) -> None:
    night.client.execute_command("ACL", "LOG", "RESET")
    user = example_pages(night.client, Keys())["user"].removeprefix("/users/")
    run_id = night.run_of("control")
    ranked: Any = night.client.get(Keys().user(run_id, int(user)))
    with open_console(reader, read_only=True, local_operator="") as client:
        jobs = client.application.extensions[EXTENSION].jobs
        asked = {"run": run_id, "user": user, "posts": [str(post) for post, _ in decode_list(ranked)[:3]]}
        for kind, arguments in ((EXPLAIN, asked), (REPORT, {"options": []})):
            started = jobs.start(kind, arguments, "anna")
            wait_until(lambda job_id=started.job_id: not jobs.find(job_id).running)
            ended = jobs.find(started.job_id)
            assert (ended.exit_code, ended.output is None) == (0, False), ended.log
    assert night.client.acl_log() == []


def test_the_servers_refuse_whatever_else_the_console_asks(night: LiveNetwork, reader: Settings) -> None:
    with redis.Redis.from_url(reader.stores.redis_url, decode_responses=True) as client:
        assert client.get(Keys().live("control")) == night.run_of("control")
        for command in REDIS_REFUSED:
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*shlex.split(command))
    engine = make_engine(reader.stores.database_url)
    for writable in ("off", "on"):  # the role may end its read-only transactions; its rights stay
        for statement in SQL_WRITES:
            with engine.connect() as connection:
                connection.execute(sa.text(f"SET default_transaction_read_only = {writable}"))
                connection.commit()
                with pytest.raises(
                    sa.exc.DBAPIError, match=r"read-only transaction|permission denied|must be owner"
                ):
                    connection.execute(sa.text(statement))
    with make_engine(night.database_url).begin() as connection:  # a table of a later release
        connection.execute(sa.text("CREATE TABLE recs.later AS SELECT 1 AS value"))
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT value FROM recs.later")) == 1
        assert connection.scalar(sa.text("SELECT count(*) FROM recs.interactions"))
    with make_engine(night.database_url).begin() as connection:
        connection.execute(sa.text("DROP TABLE recs.later"))
