"""Operators at the console: forms that act once, jobs, rollback, and the log of it all."""

from __future__ import annotations

import csv
import io
import re
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from html import unescape
from threading import Event
from typing import Any

import pytest
from flask.testing import FlaskClient

from batch.context import Stores
from batch.postgres import open_engine
from batch.runs import ledger, lock
from console import actions, tables
from console.actions import Action, Outcome, Preview
from console.context import EXTENSION, Console
from console.jobs import REPORT, Jobs
from console.pages.doctor import WORST_FIRST
from console.tables import Table, TableSource
from contract.errors import StoreError
from tests.support.batch import execute, query
from tests.support.console import SAME_ORIGIN, keep_earlier_run, open_console
from tests.support.operators import LiveNetwork
from tests.support.scheduler import until

pytest_plugins = ("tests.support.operators_fixtures",)

WAITS = "import sys, time; print('at work', file=sys.stderr, flush=True); time.sleep(60)"
"""In place of the batch: a command that runs until it is stopped."""


@pytest.fixture
def client(spoilt: LiveNetwork) -> Iterator[FlaskClient]:
    with open_console(spoilt.settings) as found:
        yield found
        console_of(found).jobs.close()


def console_of(client: FlaskClient) -> Console:
    found: Console = client.application.extensions[EXTENSION]
    return found


def text_of(client: FlaskClient, url: str, status: int = 200) -> str:
    answer = client.get(url)
    assert answer.status_code == status, answer.text
    return unescape(answer.text)


def form_of(page: str) -> dict[str, str]:
    """Return the inputs of the page's form that acts."""
    form = page[page.index('<form method="post"') :]
    inputs = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', form)
    return dict(inputs)


def send(client: FlaskClient, name: str, form: dict[str, str], status: int = 200) -> str:
    answer = client.post(f"/actions/{name}", data=form, headers=SAME_ORIGIN)
    assert answer.status_code == status, answer.text
    return unescape(answer.text)


def act(client: FlaskClient, name: str, reason: str, **arguments: str) -> str:
    """Confirm an action as an operator does."""
    page = client.get(f"/actions/{name}", query_string=arguments)
    assert page.status_code == 200, page.text
    return send(client, name, form_of(unescape(page.text)) | {"reason": reason})


def test_a_form_acts_once_and_only_on_what_it_showed(
    client: FlaskClient, spoilt: LiveNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str, str]] = []
    state = {"count": 3}

    def preview(_: Console, arguments: Any) -> Preview:
        return Preview("Paint it", [f"{state['count']} walls change."], "Paint", back="/jobs")

    def perform(_: Console, stores: Stores, visitor: Any, arguments: Any, reason: str) -> Outcome:
        done.append((stores.actor, visitor.name, reason))
        if arguments["colour"] == "red":
            raise StoreError("Redis at host is down; start it")
        if arguments["colour"] == "black":
            raise ZeroDivisionError
        return Outcome("It was painted.", "/log")

    paint = Action("paint", preview, perform, ["colour"])
    monkeypatch.setitem(actions._actions, "paint", paint)
    # A link cannot bring inputs of the form with it, nor what the action does not have.
    link = "/actions/paint?colour=blue&reason=approved&token=t&fingerprint=f&coat=2"
    form = form_of(text_of(client, link))
    assert set(form) == {"token", "fingerprint", "colour"}
    assert "approved" not in client.get(link).text

    # No reason, one that is too long, a preview that has changed: nothing happens, and what was typed stays.
    assert "Say why" in send(client, "paint", form | {"reason": " \t"}, 409)
    assert "600 characters" in send(client, "paint", form | {"reason": "x" * 600}, 409)
    state["count"] = 4
    again = send(client, "paint", form | {"reason": "as agreed"}, 409)
    assert "has changed since you looked" in again
    assert "4 walls change." in again
    assert 'value="as agreed"' in again
    assert done == []

    form = form_of(again) | {"reason": "as\x1b agreed\r\n <b>"}
    assert "It was painted." in send(client, "paint", form | {"coat": "2"})
    recorded = query(spoilt.database_url, "SELECT arguments FROM recs.console_actions")
    assert recorded == [({"colour": "blue"},)]
    state["count"] = 5  # what it did changes the preview, as after a rollback
    for _ in range(2):
        assert "sent before" in send(client, "paint", form)
        assert "What it did: It was painted." in send(client, "paint", form)
    assert done == [(f"console by anna@{socket.gethostname()}", "anna", r"as\x1b agreed <b>")]
    with open_console(spoilt.settings) as restarted:
        assert "sent before" in send(restarted, "paint", form)

    # What fails is an outcome, and no page shows an operator a traceback.
    for colour, said in [
        ("red", "It was not done: Redis at host is down; start it"),
        ("black", "an unexpected ZeroDivisionError"),
    ]:
        failing = form_of(text_of(client, f"/actions/paint?colour={colour}")) | {"reason": "a test"}
        assert said in send(client, "paint", failing, 409)
        assert f"What it did: {said}" in send(client, "paint", failing).replace("It failed: ", "")
    # A console that died at work: the log says that nothing is known.
    execute(
        spoilt.database_url,
        "INSERT INTO recs.console_actions VALUES "
        "('tokentokentokentokentoken', 'recs', now(), 'ben', 'paint', '{}', 'r')",
    )
    died = send(client, "paint", form | {"token": "tokentokentokentokentoken"})
    assert "not known yet" in died
    log = text_of(client, "/log?kind=action")
    for line in ("paint", "colour blue", r"as\x1b agreed <b>", "It was painted.", "not known yet", "by anna"):
        assert line.replace("by anna", "anna") in log
    assert "&lt;b&gt;" in client.get("/log?kind=action").text
    assert len(done) == 3


def test_what_two_operators_confirm_at_once_is_done_once(
    client: FlaskClient, spoilt: LiveNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, begun, go = {"count": 3}, Event(), Event()

    def perform(*_: Any) -> Outcome:
        begun.set()
        assert go.wait(20)
        state["count"] += 1
        return Outcome("It was painted.", "/log")

    def preview(*_: Any) -> Preview:
        return Preview("Paint it", [f"{state['count']} walls change."], "Paint")

    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with open_console(spoilt.settings, local_operator="ben") as other, ThreadPoolExecutor() as threads:
        monkeypatch.setitem(actions._actions, "paint", Action("paint", preview, perform))
        forms = [form_of(text_of(each, "/actions/paint")) | {"reason": "r"} for each in (client, other)]
        first = threads.submit(send, client, "paint", forms[0])
        try:
            assert begun.wait(20)
            second = threads.submit(send, other, "paint", forms[1], 409)
            until(lambda: second.done() or query(spoilt.database_url, waits) == [(1,)])
        finally:
            go.set()
        assert "It was painted." in first.result()
        assert "has changed since you looked" in second.result()
        assert "4 walls change." in second.result()
    assert state == {"count": 4}


def test_an_emptied_redis_gets_blocks_and_split_by_a_refresh(
    client: FlaskClient, spoilt: LiveNetwork
) -> None:
    (post,) = query(spoilt.database_url, "SELECT post_id FROM recs.posts LIMIT 1")[0]
    act(client, "block", "rude", post=str(post))
    spoilt.client.flushall()
    page = text_of(client, "/actions/refresh")
    assert "a block of a post, or the split, it gets them again from Postgres" in page
    assert "No run is live, so no list can be refreshed" in page
    url = job_url(send(client, "refresh", form_of(page) | {"reason": "Redis was emptied"}))
    until(lambda: "Exit code" in text_of(client, url))
    assert "no run of control or test is live" in text_of(client, url)
    assert spoilt.client.smembers("recs:blocked") == {str(post)}
    assert spoilt.client.exists("recs:experiment")


def test_forms_of_others_and_of_nobody_are_refused(client: FlaskClient, spoilt: LiveNetwork) -> None:
    form = form_of(text_of(client, "/actions/doctor")) | {"reason": "r"}
    assert client.post("/actions/doctor", data=form).status_code == 403
    assert "OVERNIGHT_WEBHOOK_URL is empty" in text_of(client, "/actions/webhook", 409)
    assert "Try the webhook" not in text_of(client, "/jobs")
    assert "post 101 is not blocked. Nothing was changed." in text_of(
        client, "/actions/unblock?post=101", 409
    )
    unknown = text_of(client, "/actions/block?post=nobody", 409)
    assert unknown.lower().count("nothing was changed") == 1
    for broken in ({"token": ""}, {"token": "short"}, {"x": "a\0b"}, {"x": "y" * 3_000}):
        send(client, "doctor", form | broken, 400)
    assert client.get("/actions/unknown").status_code == 404
    with open_console(spoilt.settings, read_only=True) as reads:
        assert reads.get("/actions/doctor").status_code == 404
        assert reads.post("/actions/doctor", data=form, headers=SAME_ORIGIN).status_code == 404
        assert "/actions/" not in text_of(reads, "/jobs") + text_of(reads, "/doctor") + text_of(reads, "/log")
    with open_console(spoilt.settings, local_operator="") as viewer:
        assert viewer.get("/actions/doctor").status_code == 403
        assert viewer.post("/actions/doctor", data=form, headers=SAME_ORIGIN).status_code == 403
        assert "/actions/" not in text_of(viewer, "/jobs") + text_of(viewer, "/doctor")
    assert query(spoilt.database_url, "SELECT count(*) AS n FROM recs.console_jobs") == [(0,)]


def rows_of(client: FlaskClient, url: str) -> list[dict[str, Any]]:
    """Return the rows of a table's JSON."""
    answer = client.get(url)
    assert answer.json is not None, answer.text
    rows: list[dict[str, Any]] = answer.json["rows"]
    return rows


def use_program(client: FlaskClient, code: str) -> Jobs:
    """Let the console run a program in place of the batch."""
    console = console_of(client)
    jobs = Jobs(console.settings, console.stores, (sys.executable, "-c", code))
    client.application.extensions[EXTENSION] = replace(console, jobs=jobs)
    return jobs


def job_url(page: str) -> str:
    found = re.search(r'href="(/jobs/[^"]+)"', page)
    assert found is not None, page
    return found[1]


def test_a_job_is_seen_by_every_console_stopped_by_its_own_and_recorded(
    client: FlaskClient, spoilt: LiveNetwork
) -> None:
    jobs = use_program(client, WAITS)
    assert "Continue" in text_of(client, "/actions/start-night")
    preview = text_of(client, "/actions/start-night?variant=control")
    for line in (
        "A new run of control is built",
        "The last run of control began",
        "The next scheduled night is",
    ):
        assert line in preview
    form = form_of(text_of(client, "/actions/start-night?variant=all"))
    started = act(client, "start-night", "the data was late", variant="control")
    assert "The job “night” was started: python -m batch run --variant control." in started
    url = job_url(started)
    until(lambda: "at work" in text_of(client, url))
    # One night at a time, whatever its variant and whichever console started it.
    for variant in ("control", "test", "all"):
        refused = text_of(client, f"/actions/start-night?variant={variant}", 409)
        assert "a night runs already: anna started it at" in refused
    late = send(client, "start-night", form | {"reason": "once more"}, 409)
    assert "a night runs already: anna started it at" in late
    assert '<a href="/jobs">Go back</a>' in late
    for line in ("python -m batch run --variant control", "the data was late", "Stop it", "refresh"):
        assert line in text_of(client, url)

    jobs._flush(jobs._entries[url.rpartition("/")[2]])
    with open_console(spoilt.settings, local_operator="ben") as other:
        seen = text_of(other, url)
        assert "at work" in seen
        assert "Another console runs it" in seen
        assert text_of(other, "/jobs").count(url) == 1
        assert rows_of(other, "/tables/jobs.json") == []  # it has not ended
        (running,) = rows_of(other, "/tables/running-jobs.json")
        assert (running["url"], running["what"]) == (url, "variant control")
        assert running["job_id"] in url
        answer = other.get("/actions/stop-job", query_string={"job": url.rpartition("/")[2]})
        assert "of anna runs on" in unescape(answer.text)
        assert "a night runs already" in text_of(other, "/actions/start-night?variant=test", 409)

    stopped = act(client, "stop-job", "the wrong day", job=url.rpartition("/")[2])
    assert job_url(stopped) == url
    until(lambda: "Exit code" in text_of(client, url))
    until(lambda: query(spoilt.database_url, "SELECT ended_at FROM recs.console_jobs") != [(None,)])
    row = query(
        spoilt.database_url, "SELECT kind, actor, reason, exit_code, meaning, log FROM recs.console_jobs"
    )
    ended = ("night", "anna", "the data was late", -15, "stopped by anna", "at work")
    assert row == [ended]
    with open_console(spoilt.settings) as restarted:
        assert "stopped by anna" in text_of(restarted, url)
        assert "stopped by anna" in text_of(restarted, "/jobs")
        table = restarted.get("/tables/jobs.csv").text
        (line,) = csv.DictReader(io.StringIO(table))
        assert (line["meaning"], line["url"]) == (ended[4], url)
        assert "it has ended" not in restarted.get("/jobs/unknown").text
        assert restarted.get("/jobs/unknown").status_code == 404
        assert restarted.get("/jobs?before=x").status_code == 404

        # A console that dies leaves a job without an end; then it counts as lost.
        died = "UPDATE recs.console_jobs SET ended_at = NULL, seen_at = now() - interval '{} s'"
        execute(spoilt.database_url, died.format(5))
        assert "running" in text_of(restarted, url)
        execute(spoilt.database_url, died.format(500))
        assert "lost: the console that ran it ended" in text_of(restarted, url)
        assert "lost: the console" in text_of(restarted, "/log?kind=job")

        execute(spoilt.database_url, "UPDATE recs.console_jobs SET started_at = now() - interval '91 days'")
        act(restarted, "doctor", "each quarter")
        assert query(spoilt.database_url, "SELECT kind FROM recs.console_jobs") == [("doctor",)]
        console_of(restarted).jobs.close()


def test_a_report_stands_in_one_table(client: FlaskClient, spoilt: LiveNetwork) -> None:
    jobs = use_program(client, "import json; print(json.dumps({}))")
    report = jobs.start(REPORT, {"options": ["--days", "7 x"]}, "anna")
    until(lambda: [row["meaning"] for row in rows_of(client, "/tables/jobs.json")] == ["done"])
    assert rows_of(client, "/tables/held-jobs.json") == []
    page = text_of(client, "/jobs")
    assert page.count(report.job_id) == 1
    assert "--days '7 x'" in page
    with open_console(spoilt.settings, read_only=True) as reads:
        jobs = use_program(reads, "import json; print(json.dumps({}))")
        report = jobs.start(REPORT, {"options": []}, "anna")
        until(lambda: len(rows_of(reads, "/tables/held-jobs.json")) == 1)
        assert text_of(reads, "/jobs").count(report.job_id) == 1


def test_nothing_starts_while_another_process_holds_the_lock(
    client: FlaskClient, spoilt: LiveNetwork
) -> None:
    use_program(client, WAITS)
    engine = open_engine(spoilt.settings, "overnight batch run by ben@elsewhere pid 5")
    for name, purpose in (("start-night", lock.NIGHT), ("refresh", lock.REFRESH)):
        with lock.hold(engine, "recs", purpose):
            page = text_of(client, f"/actions/{name}?variant=all")
            assert "holds the lock: overnight batch run by ben@elsewhere pid 5" in page
            command = lock.COMMAND[purpose]
            held = f"The lock of a {command} is held by overnight batch run by ben@elsewhere pid 5"
            assert held in text_of(client, "/jobs")
            form = form_of(page) | {"reason": "r"}
            assert "It was not done: another" in send(client, name, form, 409)
    engine.dispose()
    assert query(spoilt.database_url, "SELECT count(*) FROM recs.console_jobs") == [(0,)]


def test_the_doctor_examines_on_a_click_only_and_its_findings_are_kept(
    client: FlaskClient, spoilt: LiveNetwork
) -> None:
    assert "Nothing has been examined yet" in text_of(client, "/doctor")
    assert client.get("/tables/doctor.json").status_code == 404
    spoilt.client.sadd("recs:blocked", "no-post <b>")
    url = job_url(act(client, "doctor", "each morning"))
    until(lambda: "Exit code" in text_of(client, url))
    assert "done" in text_of(client, url)
    until(lambda: query(spoilt.database_url, "SELECT ended_at FROM recs.console_jobs") != [(None,)])

    spoilt.client.config_resetstat()
    with open_console(spoilt.settings, read_only=True) as other:
        page = text_of(other, "/doctor")
        findings = other.get("/tables/doctor.json").json
    assert findings is not None
    statuses = [row["status"] for row in findings["rows"]]
    assert statuses == sorted(statuses, key=WORST_FIRST.index)
    assert "warn" in statuses
    assert "1 of 1 members are not post ids" in page
    assert "SREM recs:blocked MEMBER" in page
    assert "Copy</button> <span" in page
    called = {name.removeprefix("cmdstat_") for name in spoilt.client.info("commandstats")}
    assert not called & {"scan", "keys", "sscan", "hscan"}
    actor = query(spoilt.database_url, "SELECT actor, reason, exit_code FROM recs.console_jobs")
    assert actor == [("anna", "each morning", 0)]


def test_a_rollback_shows_both_runs_happens_once_and_bears_the_name(
    client: FlaskClient, spoilt: LiveNetwork
) -> None:
    live = spoilt.run_of("control")
    alone = client.get("/actions/roll-back", query_string={"run": live})
    assert "no earlier run is kept" in unescape(alone.text)
    assert "Roll back" not in text_of(client, f"/runs/{live}")
    earlier = keep_earlier_run(spoilt)
    assert "Roll back" in text_of(client, f"/runs/{live}")
    page = text_of(client, f"/actions/roll-back?run={live}")
    assert f"control serves {earlier} again, which was live from 2026-01-01 03:00:00 UTC" in page
    assert f"{live} is taken out of service" in page
    assert spoilt.run_of("control") == live  # only looked at
    building = ledger.start(console_of(client).stores, "control", datetime.now(UTC)).run_id
    form = form_of(page) | {"reason": "the topics were empty"}
    changed = send(client, "roll-back", form, 409)
    assert f"{building} is being built and may go live after this" in changed

    form = form_of(changed) | {"reason": "the topics were empty"}
    assert f"control serves {earlier} again" in send(client, "roll-back", form)
    assert "sent before" in send(client, "roll-back", form)
    assert spoilt.run_of("control") == earlier
    changes = query(
        spoilt.database_url,
        f"SELECT state, actor, reason FROM recs.run_changes WHERE run_id = '{live}' ORDER BY at DESC LIMIT 1",
    )
    host = socket.gethostname()
    assert changes == [
        ("rolled_back", f"console by anna@{host}", f"back to {earlier}: the topics were empty")
    ]
    # A page that was left open is about a run that is no longer live.
    assert f"{live} is not live, {earlier} is" in text_of(client, f"/actions/roll-back?run={live}", 409)
    log = text_of(client, "/log")
    for line in (
        "rolled back",
        "roll the run back",
        f'<a href="/runs/{live}">{live}</a>',
        "the topics were empty",
        f"console by anna@{host}",
    ):
        assert line in log


def test_the_log_holds_every_kind_of_change_and_pages_by_keyset(
    client: FlaskClient, spoilt: LiveNetwork
) -> None:
    execute(
        spoilt.database_url,
        "INSERT INTO recs.experiments (name, salt, percent_test, pins, set_at, actor) "
        """VALUES ('autumn', 's', 40, '{"5": "test", "6": "test"}', now() - interval '1 s', 'ben')""",
        "INSERT INTO recs.experiments (name, salt, percent_test, pins, set_at, actor) VALUES "
        """('autumn', 's', 40, '{"6": "control"}', now(), 'console by eva@host: two: reasons')""",
        "INSERT INTO recs.console_actions VALUES "
        """('t1', 'recs', now(), 'eva', 'pin', '{"user": "a/6", "variant": "control"}', 'r', 'x', false), """
        """('t2', 'recs', now(), 'eva', 'split', '{"percent": "40", "days": ""}', 'r', 'done', false), """
        """('t3', 'recs', now(), 'eva', 'start-night', '{"variant": "all"}', 'r', 'done', false)""",
        "INSERT INTO recs.blocked_posts VALUES ('recs', 'a/b', now(), 'ben', 'rude', now(), 'eva', 'mended')",
        "INSERT INTO recs.erasures VALUES (now(), 'ben', 'recs', 1, 6, 9, 1)",
        "INSERT INTO recs.blocked_posts SELECT 'other', n::text, now(), 'ben' FROM generate_series(1, 9) n",
        "INSERT INTO recs.blocked_posts SELECT 'recs', n::text, date_trunc('day', now()), 'ben' "
        "FROM generate_series(1, 120) n",
    )
    url: str | None = "/tables/log.json"
    seen: list[dict[str, Any]] = []
    arguments: dict[str, str] = {}
    pages = 0
    while url:
        page = client.get(url, query_string=arguments).json
        assert page is not None, client.get(url).text
        seen += page["rows"]
        pages += 1
        arguments = page["more"] or {}
        url = url if arguments else None
    count = "SELECT (SELECT count(*) FROM recs.run_changes) + (SELECT count(*) FROM recs.experiments)"
    total = query(spoilt.database_url, count)[0][0] + 121 + 1 + 1 + 3
    assert len(seen) == total
    assert pages == -(-total // 50)
    assert [row["at"] for row in seen] == sorted((row["at"] for row in seen), reverse=True)
    found = {(row["kind"], row["subject"], row["what"]) for row in seen}
    assert len(found) == total
    assert {
        ("split", "autumn", "40 % of users in test, 2 pins, user 5 pinned to test, user 6 pinned to test"),
        ("split", "autumn", "40 % of users in test, 1 pin, user 6 pinned to control, user 5 unpinned"),
        ("action", "a/6", "pin the user to control"),
        ("action", "split", "change the split: 40 % of users in test"),
        ("action", None, "start a night of all"),
        ("block", "a/b", "blocked"),
        ("unblock", "a/b", "served again"),
        ("erasure", "users", "1 user forgotten, with 6 lists"),
        ("run", spoilt.run_of("test"), "live"),
    } <= found
    by = {(row["actor"], row["reason"]) for row in seen if row["kind"] == "split"}
    assert ("console by eva@host", "two: reasons") in by
    assert ("ben", None) in by
    assert re.search(r'href="/users\?id=a(/|%2F)6">a/6<', text_of(client, "/log?kind=action"))
    # An audit gets all in one file.
    link = re.search(r'href="([^"]*)">CSV of up to 10,000 rows', text_of(client, "/log?kind=block"))
    assert link is not None
    assert len(list(csv.DictReader(io.StringIO(client.get(unescape(link[1])).text)))) == 121
    some = client.get("/tables/log.json?rows=60").json
    assert some is not None
    assert len(some["rows"]) == 60
    rest = client.get("/tables/log.json", query_string=some["more"]).json
    assert rest is not None
    assert [*some["rows"], *rest["rows"]] == seen[:120]
    assert client.get("/log?rows=10000").text.count("<tr>") == 51
    blocks = text_of(client, "/log?kind=block")
    assert "kind=block&before=" in blocks
    assert "served again" not in blocks
    assert re.search(r'href="/posts\?id=a(/|%2F)b"', blocks)
    rows = list(csv.DictReader(io.StringIO(client.get("/tables/log.csv?kind=unblock").text)))
    assert [(row["actor"], row["reason"]) for row in rows] == [("eva", "mended")]
    for wrong in (
        "/log?kind=x",
        "/log?before=x",
        "/log?before=2026-01-01~x",
        "/tables/log.csv?kind=x",
        *(f"/tables/log.csv?rows={rows}" for rows in ("", "0", "10001", "-1", "x", "٣")),
    ):
        assert client.get(wrong).status_code == 404
    # A ledger of before the console, and one that is not there yet.
    execute(spoilt.database_url, "DROP TABLE recs.console_jobs, recs.console_actions, recs.blocked_posts")
    assert "40 % of users in test" in text_of(client, "/log")
    assert "None." in text_of(client, "/jobs")
    assert "Nothing has been examined yet" in text_of(client, "/doctor")


def test_an_absent_table_is_404_and_a_bug_in_one_is_not(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> TableSource:
        def source(console: Console, arguments: Any) -> Table:
            raise error

        return source

    monkeypatch.setitem(tables._sources, "absent", fail(LookupError("x")))
    monkeypatch.setitem(tables._sources, "broken", fail(KeyError("x")))
    assert client.get("/tables/absent.csv").status_code == 404
    with pytest.raises(KeyError):
        client.get("/tables/broken.csv")
