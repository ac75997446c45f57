"""The experiment's page in the console and its actions, over a network without a night."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from flask.testing import FlaskClient

from batch.context import Stores
from batch.experiment.history import read_changes, variant_sql
from batch.experiment.moves import Moves, count_moves
from batch.experiment.render import render_page
from batch.experiment.split import MAX_PINS, change_split, edit_split, read_split, write_split
from batch.postgres import open_engine
from batch.runs import ledger
from console import job_records
from console.jobs import REPORT, JobRecord, Jobs
from contract.experiment import CONTROL, TEST, Experiment
from contract.ids import IdKind, IdKinds
from contract.settings import Settings
from tests.integration.test_experiment_report import fill
from tests.support.batch import change_ids, execute, make_network, query, run_here
from tests.support.console import SAME_ORIGIN, confirm, open_console, read_form

SPLIT = Experiment("first", "pepper", 50)


@pytest.fixture
def stores(database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> Iterator[Stores]:
    settings = Settings.of(database_url=database_url, redis_url=redis_url, model_dir=str(tmp_path))
    engine = open_engine(settings)
    yield Stores(settings, engine, redis_client, "somebody")
    engine.dispose()


@pytest.fixture
def client(stores: Stores) -> Iterator[FlaskClient]:
    with open_console(stores.settings) as client:
        yield client


def set_split(stores: Stores, split: Experiment = SPLIT, days: int | None = 14) -> None:
    execute(stores.settings.stores.database_url, "CREATE SCHEMA IF NOT EXISTS recs")
    ledger.create(stores.engine)
    change_split(stores, datetime.now(UTC), lambda _: split, days)


def in_force(stores: Stores) -> Experiment:
    """Return the recorded split, which must be that of Redis too."""
    with stores.engine.connect() as connection:
        recorded = read_changes(connection, stores.keys.prefix)[0].experiment
    assert read_split(stores.redis, stores.keys).experiment == recorded
    return recorded


def history(client: FlaskClient, **arguments: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = client.get("/tables/split-changes.json", query_string=arguments).json["rows"]
    return rows


def read_page(client: FlaskClient, **arguments: str) -> str:
    answer = client.get("/experiment", query_string=arguments)
    assert answer.status_code == 200
    return unescape(answer.text)


def test_before_the_first_night_the_page_says_that_there_is_nothing(
    stores: Stores, client: FlaskClient
) -> None:
    make_network(stores.settings.stores.database_url, users=10, posts=5, interactions=20)
    page = read_page(client)
    assert "No split is recorded yet" in page
    assert "No report has been made yet" in page
    assert history(client) == []
    assert client.get("/experiment/report.json").status_code == 404
    assert client.get("/experiment/variant.sql").status_code == 404
    assert client.get("/tables/experiment-metrics.json").status_code == 404
    for path in ("/tables/split-changes.csv", "/experiment"):
        assert client.get(f"{path}?before=yesterday").status_code == 404
        assert client.get(f"{path}?before=2022-01-01").status_code == 200


def keep_report(stores: Stores, output: dict[str, Any], options: list[str], at: datetime) -> None:
    record = JobRecord("-".join(["job", *options]), REPORT, "bert", at, arguments={"options": options})
    job_records.insert_start(stores, record)
    job_records.record_end(stores, replace(record, ended_at=at, exit_code=0, meaning="done", output=output))


def make_report(stores: Stores, *options: str) -> dict[str, Any]:
    """Run `experiment report --json` with rights to read only."""
    url = sa.make_url(stores.settings.stores.database_url)
    role, password = f"reader_{url.database}", "secret"
    with stores.engine.begin() as connection:
        for statement in (
            f"CREATE ROLE {role} LOGIN PASSWORD '{password}'",
            f"GRANT USAGE ON SCHEMA recs TO {role}",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA recs TO {role}",
        ):
            connection.exec_driver_sql(statement)
    reading = url.set(username=role, password=password).render_as_string(hide_password=False)
    try:
        done = run_here(
            "experiment", "report", "--json", *options,
            database_url=reading, redis_url="redis://127.0.0.1:1", model_dir=Path("unused"),
        )  # fmt: skip
    finally:
        with stores.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role}")
            connection.exec_driver_sql(f"DROP ROLE {role}")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_a_kept_report_is_shown_with_its_age_its_health_its_figures_and_their_files(
    stores: Stores, client: FlaskClient
) -> None:
    fill(stores.settings.stores.database_url)
    write_split(stores.redis, stores.keys, replace(SPLIT, percent_test=10))
    report = make_report(stores, "--days", "14")
    made = datetime(2022, 2, 1, tzinfo=UTC)
    keep_report(stores, report, [], made)
    page = read_page(client)
    assert report["verdict"]["sentence"] in page
    assert f'<time datetime="{made.isoformat()}">' in page
    assert "by bert" in page
    assert "Redis has first: 10 % of users in test, salt 'pepper', and serving uses that" in page
    assert f"{report['sample_ratio']['control']:,} users in control" in page
    assert page.count("<svg") == 2
    assert "This report is of another experiment" not in page
    assert "The split was changed after this report" not in page
    assert client.get("/experiment/report.json").json == report
    alone = client.get("/experiment/report")
    assert alone.text == render_page(report)
    assert "sandbox" in alone.headers["Content-Security-Policy"]

    metrics = client.get("/tables/experiment-metrics.json").json["rows"]
    assert [(row["metric"], row["difference_low"]) for row in metrics] == [
        (each["metric"], each["absolute"]["low"]) for each in report["metrics"]
    ]
    days = list(csv.DictReader(io.StringIO(client.get("/tables/experiment-days.csv").text)))
    assert [row["day"] for row in days] == [each["day"] for each in report["by_day"]]
    assert [float(row["difference"]) for row in days] == pytest.approx(
        [each["difference"]["value"] for each in report["by_day"]]
    )
    guardrails = client.get("/tables/experiment-guardrails.json").json["rows"]
    assert [row["test"] for row in guardrails if row["guardrail"] == "popular_share"] == [
        report["guard_rails"]["test"]["popular_share"]
    ]
    assert client.get("/tables/experiment-explored.json").json["rows"] == []

    many = [report["by_day"][0] | {"day": f"2022-{1 + day // 28:02}-{1 + day % 28:02}"} for day in range(336)]
    keep_report(stores, report | {"by_day": many}, ["--until", "2022-01-09T00:00:00"], made)
    long = read_page(client, until="2022-01-09T00:00:00")
    assert "These are the last 60 of 336 days; the files have all." in long
    assert len(long) < 100_000
    rows = client.get("/tables/experiment-days.json?until=2022-01-09T00:00:00").json["rows"]
    assert len(rows) == 336

    for day, gone in enumerate(("by_day", "sample_ratio", "verdict", "period"), 20):
        other = {name: value for name, value in report.items() if name != gone}
        keep_report(stores, other, ["--until", f"2022-01-{day}T00:00:00"], made)
        page = read_page(client, until=f"2022-01-{day}T00:00:00")
        assert ("was made by another release" in page, "No report" in page) == (True, False)
        assert "Every change of the split" in page
        alone = client.get(f"/experiment/report?until=2022-01-{day}T00:00:00")
        assert (alone.status_code, "made by another release" in alone.text) == (404, True), gone
    assert client.get("/tables/experiment-days.csv?until=2022-01-20T00:00:00").status_code == 404

    options = {"until": "2022-01-10T00:00:00", "min-effect": "0.1"}
    assert "No report with these options has been made yet" in read_page(client, **options)
    keep_report(stores, report, ["--until", options["until"], "--min-effect", "0.1"], made)
    assert report["verdict"]["sentence"] in read_page(client, **options)
    assert 'value="2022-01-10T00:00:00"' in read_page(client, **options)
    assert client.get("/tables/experiment-days.csv?min-effect=7").status_code == 404
    wrong = client.get("/experiment?min-effect=7")
    assert (wrong.status_code, "7.0 is not in the range" in wrong.text) == (400, True)

    set_split(stores, replace(SPLIT, percent_test=20))
    assert "The split was changed after this report" in read_page(client)
    set_split(stores, Experiment("second", "salt", 20))
    assert "This report is of another experiment than the one in force" in read_page(client)


def test_everybody_may_ask_for_a_report_and_its_end_is_said(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_split(stores)
    started: list[tuple[Any, ...]] = []
    running = JobRecord("job-1", REPORT, "local", datetime.now(UTC), log="reading")
    failed = replace(running, ended_at=running.started_at, exit_code=1, meaning="failed", log="error: <lost>")
    jobs = [running, failed, failed]
    monkeypatch.setattr(Jobs, "start", lambda _, *arguments: started.append(arguments))
    monkeypatch.setattr(Jobs, "latest", lambda *_: jobs.pop(0))
    with open_console(stores.settings, read_only=True, local_operator="") as reader:
        form = {"from": "2022-01-05T00:00:00", "until": "", "min-effect": "0.05"}
        answer = reader.post("/experiment", data=form, headers=SAME_ORIGIN)
        assert answer.status_code == 303
        assert answer.location == "/experiment?from=2022-01-05T00:00:00"
        assert started == [(REPORT, {"options": ["--from", "2022-01-05T00:00:00"]}, "local")]
        page = read_page(reader, **{"from": "2022-01-05T00:00:00"})
        assert "A report is being made since" in page
        assert 'hx-trigger="look from:body"' in page
        assert "/actions/" not in page
        page = reader.get("/experiment").text
        assert escape("error: <lost>") in page
        assert "hx-trigger" not in page
        refused = reader.post("/experiment", data=form | {"min-effect": "x"}, headers=SAME_ORIGIN)
        assert (refused.status_code, len(started)) == (400, 1)
        assert reader.get("/actions/split").status_code == 404


def test_a_split_is_changed_as_its_preview_says_once_and_with_its_reason(
    stores: Stores, client: FlaskClient
) -> None:
    make_network(stores.settings.stores.database_url, users=200, posts=5, interactions=20)
    set_split(stores, replace(SPLIT, pins={"7": TEST, "8": CONTROL}))
    asked, form = read_form(client, "split")
    assert 'name="percent" value="50"' in asked
    assert "fingerprint" not in form.values
    wrong, _ = read_form(client, "split", percent="110")
    assert "Percentage: &#39;110&#39; is not a whole number from 0 to 100" in wrong

    said, form = read_form(client, "split", **form.values | {"percent": "10"})
    users = [row[0] for row in query(stores.settings.stores.database_url, "SELECT user_id FROM recs.users")]
    wanted = edit_split(SPLIT, percent_test=10)
    moving = [
        user for user in users if user not in (7, 8) and SPLIT.variant_of(user) != wanted.variant_of(user)
    ]
    assert "The same experiment: 40 % of users go to control, the others stay." in said
    assert f"Of the users there are now that are not pinned (198), {len(moving)} go to control and 0" in said
    assert "2 pinned users, in their variant whatever the split is" in said
    pinned = replace(SPLIT, pins={"7": TEST, "8": CONTROL})
    anew = edit_split(pinned, salt="salt", percent_test=30)
    pairs = [(pinned.variant_of(user), anew.variant_of(user)) for user in users]
    with stores.engine.connect() as connection:
        moves = Moves(pairs.count((CONTROL, TEST)), pairs.count((TEST, CONTROL)))
        assert count_moves(connection, pinned, anew) == (moves, 198)
        assert count_moves(connection, pinned, anew, max_users=197) is None
    sent = form.values | {"reason": "too many complaints"}
    empty = client.post(form.action, data=sent | {"reason": " "}, headers=SAME_ORIGIN)
    assert (empty.status_code, in_force(stores).percent_test) == (409, 50)
    answers = [client.post(form.action, data=sent, headers=SAME_ORIGIN) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert "Serving follows within" in answers[0].text
    assert "acts only once" in answers[1].text
    assert in_force(stores) == replace(wanted, pins={"7": TEST, "8": CONTROL})
    newest, _ = history(client)
    assert newest["actor"].startswith("console by anna@")
    assert newest["actor"].endswith(": too many complaints")
    assert (newest["percent_test"], newest["planned_days"], newest["pinned"]) == (10, 14, 2)
    assert newest["actor"] in read_page(client)

    statement = """
        INSERT INTO recs.experiments (name, salt, percent_test, set_at, actor)
        SELECT 'early', 'salt', number, '2022-01-01'::timestamptz + number * interval '1 microsecond', 'me'
        FROM generate_series(1, 99) AS number
    """
    execute(stores.settings.stores.database_url, statement)
    first = client.get("/tables/split-changes.json").json
    second = client.get("/tables/split-changes.json", query_string=first["more"]).json
    third = client.get("/tables/split-changes.json", query_string=second["more"]).json
    percents = [row["percent_test"] for page in (first, second, third) for row in page["rows"]]
    assert (percents, third["more"]) == ([10, 50, *range(99, 0, -1)], None)
    assert 'rel="next"' in read_page(client, **first["more"])


def test_what_was_changed_since_the_preview_is_asked_again(stores: Stores, client: FlaskClient) -> None:
    make_network(stores.settings.stores.database_url, users=20, posts=5, interactions=20)
    set_split(stores)
    _, form = read_form(client, "split", percent="10")
    set_split(stores, replace(SPLIT, percent_test=30))
    answer = client.post(form.action, data=form.values | {"reason": "why"}, headers=SAME_ORIGIN)
    assert answer.status_code == 409
    assert "This has changed since you looked" in answer.text
    assert "20 % of users go to control" in answer.text
    assert in_force(stores).percent_test == 30

    again = confirm(client, "split", "Redis was emptied", percent="30", name="", salt="", days="")
    assert "Nothing was to be recorded; written to Redis again" in again.text
    done = confirm(client, "split", "the next one", percent="50", name="second", salt="salt", days="7")
    assert done.status_code == 200
    assert in_force(stores) == Experiment("second", "salt", 50)
    said, _ = read_form(client, "split", percent="20", salt="third")
    assert "A new experiment begins: exposures and likes under second do not count for it." in said
    assert "40 % of users go to control and 10 % of users go to test" in said


def test_a_user_is_pinned_and_unpinned_and_nobody_else_moves(stores: Stores, client: FlaskClient) -> None:
    make_network(stores.settings.stores.database_url, users=200, posts=5, interactions=20)
    set_split(stores)
    moved = next(user for user in range(1, 200) if SPLIT.variant_of(user) == CONTROL)
    said, _ = read_form(client, "pin", user=str(moved), variant=TEST)
    assert f"User {moved} moves from control to test." in said
    assert "does not have this user" not in said
    done = confirm(client, "pin", "a tester", user=str(moved), variant=TEST)
    assert f'href="/users/{moved}"' in done.text
    assert in_force(stores) == replace(SPLIT, pins={str(moved): TEST})
    assert "is pinned to test already" in read_form(client, "pin", user=str(moved), variant=TEST)[0]
    assert "recs.users does not have this user now" in read_form(client, "pin", user="999", variant=TEST)[0]
    for arguments, problem in (
        ({"user": "somebody", "variant": TEST}, "must be a whole number"),
        ({"user": "7", "variant": "best"}, "is not one of control, test"),
    ):
        text, form = read_form(client, "pin", **arguments)
        assert problem in text
        assert "fingerprint" not in form.values

    (row,) = client.get("/tables/pins.json").json["rows"]
    assert row == {"user_id": str(moved), "variant": TEST, "by_rule": CONTROL}
    assert f'href="/actions/unpin?user={moved}"' in read_page(client)
    said, _ = read_form(client, "unpin", user=str(moved))
    assert f"User {moved} moves from test to control." in said
    assert "is not pinned" in read_form(client, "unpin", user=str(moved + 1))[0]
    confirm(client, "unpin", "tested", user=str(moved))
    assert in_force(stores) == SPLIT
    assert [row["pinned"] for row in history(client)] == [0, 1, 0]


def test_many_pins_are_shown_page_by_page_and_no_more_than_the_maximum_are_taken(
    stores: Stores, client: FlaskClient
) -> None:
    make_network(stores.settings.stores.database_url, users=20, posts=5, interactions=20)
    pins = {str(user): TEST for user in range(1, MAX_PINS + 1)}
    set_split(stores, replace(SPLIT, pins=pins))
    found: list[str] = []
    arguments: dict[str, str] | None = {}
    while arguments is not None:
        answer = client.get("/tables/pins.json", query_string=arguments).json
        found += [row["user_id"] for row in answer["rows"]]
        arguments = answer["more"]
    assert found == list(pins)
    page = read_page(client, after="50")
    assert "It is long, as many users are pinned" in page
    assert 'href="?after=100#pins"' in page
    assert client.get("/experiment/variant.sql").text == variant_sql("user_id", in_force(stores)) + "\n"
    text, form = read_form(client, "pin", user="5000", variant=TEST)
    assert f"{MAX_PINS} users are pinned, the maximum; nothing was changed" in text
    assert "fingerprint" not in form.values
    assert "is pinned to" not in text


def test_ids_of_text_are_pinned_and_shown_as_text(stores: Stores, client: FlaskClient) -> None:
    make_network(stores.settings.stores.database_url, users=20, posts=5, interactions=20)
    change_ids(stores.settings.stores.database_url, IdKinds(IdKind.TEXT, IdKind.TEXT))
    set_split(stores, replace(SPLIT, pins={"42": TEST}))
    user = "<b>o'neill/1%</b> "
    done = confirm(client, "pin", "a <tester>", user=user, variant=CONTROL)
    assert done.status_code == 200
    page = client.get("/experiment").text
    assert escape(user) in page.replace("&#39;", "&#x27;")
    assert user not in page
    assert "a <tester>" not in page
    assert "CASE" in client.get("/experiment/variant.sql").text
    confirm(client, "unpin", "over", user=user)
    confirm(client, "unpin", "of another kind of ids", user="42")
    assert in_force(stores) == SPLIT


def test_what_cannot_be_read_is_said_and_the_rest_is_shown(stores: Stores, client: FlaskClient) -> None:
    set_split(stores)
    assert "Redis has the recorded split" in read_page(client)
    stores.redis.rename(stores.keys.experiment, "else")
    stores.redis.sadd(stores.keys.experiment, "x")
    assert "(the key is not a string), and serving keeps the split it had" in read_page(client)
    with stores.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE recs.experiments SET percent_test = 900")
    page = read_page(client)
    assert "recs.experiments has a row that is not a split" in page
    assert "The figures are those of" in page
