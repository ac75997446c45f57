"""A failed or refused run posts an alert; a webhook that fails changes nothing else."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from batch.alerts import alert
from batch.postgres import open_engine
from batch.runs import freshness, ledger, lock
from contract.codec import encode_object
from contract.columns import SCHEMA
from contract.errors import RefusedError
from contract.settings import Settings
from tests.support.batch import KEYS, ledger_stores, make_network, query, run_here
from tests.support.webhook import SECRET_PATH, Webhook

pytest_plugins = ("tests.support.webhook_fixtures",)

PASSWORD = "sw0rdfish"
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


Batch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def batch(database_url: str, redis_url: str, tmp_path: Path, hook: Webhook) -> Batch:
    """Run the command line on an empty database with a password, posting to the webhook."""
    url = sa.make_url(database_url).set(password=PASSWORD).render_as_string(hide_password=False)
    servers: dict[str, Any] = {"database_url": url, "redis_url": redis_url, "model_dir": tmp_path}

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_here(*arguments, **servers, **({"OVERNIGHT_WEBHOOK_URL": hook.url} | environment))

    return run


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """A database with an empty ledger."""
    engine = open_engine(Settings.of(database_url=database_url))
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema(SCHEMA))
    ledger.create(engine)
    yield engine
    engine.dispose()


def test_a_run_that_fails_posts_why_and_what_is_live(
    batch: Batch, hook: Webhook, redis_client: redis.Redis
) -> None:
    published = {
        "run_id": "20261121T030000Z-control",
        "published_at": (datetime.now(UTC) - timedelta(hours=5)).isoformat(),
    }
    redis_client.set(KEYS.live("control"), "20261121T030000Z-control")
    redis_client.set(KEYS.manifest("20261121T030000Z-control"), encode_object(published))
    redis_client.set(KEYS.live("test"), "20261121T031500Z-test")
    done = batch("run")
    assert done.returncode == 1
    (post,) = hook.posts
    assert post["event"] == "run_failed"
    assert post["exit_code"] == 1
    assert post["host"] == socket.gethostname()
    assert post["variants"] == ["control", "test"]
    assert post["reason"] in done.stderr
    assert "schema" in post["reason"]
    assert datetime.fromisoformat(post["at"]).utcoffset() == timedelta(0)
    assert post["live"]["control"]["run_id"] == "20261121T030000Z-control"
    assert 5 * 3600 <= post["live"]["control"]["age_seconds"] < 6 * 3600
    assert post["live"]["test"] == {"run_id": "20261121T031500Z-test", "age_seconds": None}
    for part in (post["reason"], "Served: 20261121T030000Z-control, 5.0 h old; 20261121T031500Z-test."):
        assert part in post["text"]


def test_no_secret_is_in_an_alert_or_the_log_of_one(
    batch: Batch, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(f"{hook.url} and {PASSWORD} and {SECRET_PATH}")

    monkeypatch.setattr("batch.commands.run.run_night", fail)
    done = batch("run", OVERNIGHT_LOG_LEVEL="DEBUG")
    assert hook.posts[0]["reason"] == "RuntimeError: *** and *** and ***"
    hook.answers = [404]
    done_again = batch("run", OVERNIGHT_LOG_LEVEL="DEBUG")
    for text in (json.dumps(hook.posts), done.stderr, done_again.stderr):
        assert PASSWORD not in text
        assert "hush" not in text
    assert "was delivered to 127.0.0.1" in done.stderr
    assert "it answered 404; check OVERNIGHT_WEBHOOK_URL" in done_again.stderr


def test_a_refused_run_has_its_own_event_and_is_named(
    batch: Batch, hook: Webhook, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RefusedError("users covered 0.41, at least 0.95 is asked for")

    make_network(database_url)
    monkeypatch.setattr("batch.training.dataset.load_dataset", refuse)
    assert batch("run", "--variant", "test").returncode == 3
    (post,) = hook.posts
    assert (post["event"], post["exit_code"], post["variants"]) == ("run_refused", 3, ["test"])
    assert "users covered 0.41" in post["reason"]
    assert [(run_id,) for run_id in post["run_ids"]] == query(database_url, "SELECT run_id FROM recs.runs")
    assert post["live"] == {}
    assert "Nothing is served." in post["text"]


def test_a_run_by_hand_that_finds_the_lock_held_posts_nothing(
    batch: Batch, hook: Webhook, engine: sa.Engine
) -> None:
    with lock.hold(engine, "recs"):
        assert batch("run").returncode == 4
    assert hook.posts == []


def test_without_a_webhook_a_run_fails_as_usual(batch: Batch, hook: Webhook) -> None:
    done = batch("run", OVERNIGHT_WEBHOOK_URL="")
    assert done.returncode == 1
    assert "the alert" not in done.stderr
    assert hook.posts == []


def test_a_webhook_that_is_slow_or_down_changes_no_exit_code(
    batch: Batch, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert, "TRY_SECONDS", 0.1)
    hook.may_answer.clear()
    slow = batch("run")
    assert slow.returncode == 1
    assert "the alert run_failed was not delivered: the webhook at 127.0.0.1 did not accept an" in slow.stderr
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/hook"
    down = batch("run", OVERNIGHT_WEBHOOK_URL=url)
    assert down.returncode == 1
    assert "Connection refused; check that it is up" in down.stderr
    assert down.stderr.splitlines()[-1].startswith("error: ")


def test_the_command_tries_the_webhook(batch: Batch, hook: Webhook) -> None:
    done = batch("alert")
    assert (done.returncode, done.stdout) == (0, "the alert test was delivered to 127.0.0.1\n")
    assert batch("alert", "--event", "run_late", "--reason", "late again").returncode == 0
    assert [(post["event"], post["reason"]) for post in hook.posts] == [
        ("test", "sent by hand"),
        ("run_late", "late again"),
    ]
    hook.answers = [403]
    refused = batch("alert")
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        "error: the webhook at 127.0.0.1 did not accept an alert: it answered 403"
    )
    off = batch("alert", OVERNIGHT_WEBHOOK_URL="")
    assert off.returncode == 2
    assert "OVERNIGHT_WEBHOOK_URL is empty" in off.stderr


def test_a_run_counts_as_fresh_when_it_first_went_live(engine: sa.Engine) -> None:
    def go_live(run: ledger.Run, hours: int) -> None:
        with engine.begin() as connection:
            change = ledger.Change(NOON + timedelta(hours=hours), "x")
            ledger.set_state(connection, run.run_id, ledger.State.LIVE, change)

    runs = [
        ledger.start(ledger_stores(engine, "x", prefix), "control", NOON - timedelta(hours=9 - number))
        for number, prefix in enumerate(("recs", "recs", "other"))
    ]
    assert freshness.latest_live(engine, "recs") == NOON - timedelta(hours=9)
    for hours, run in enumerate(runs):
        go_live(run, hours)
    assert freshness.latest_live(engine, "recs") == NOON + timedelta(hours=1)
    go_live(runs[0], 5)  # a rollback
    assert freshness.latest_live(engine, "recs") == NOON + timedelta(hours=1)
    assert freshness.latest_live(engine, "nobody") is None


def test_only_runs_of_the_process_that_are_not_live_are_named(engine: sa.Engine) -> None:
    host = socket.gethostname()
    for minutes, (who, state) in enumerate([
        (f"batch run by me@{host} pid 7", "failed"),
        (f"batch run by me@{host} pid 7", "live"),
        (f"batch run by me@{host} pid 77", "failed"),
        (f"batch run by me@other-{host} pid 7", "failed"),
        (f"batch run by me@{host} pid 7", "building"),
    ]):  # fmt: skip
        run = ledger.start(ledger_stores(engine, who), "test", NOON + timedelta(minutes=minutes))
        with engine.begin() as connection:
            ledger.set_state(connection, run.run_id, ledger.State(state), ledger.Change(NOON, "x"))
    first, last = "20261121T120000Z-test", "20261121T120400Z-test"
    assert freshness.unpublished(engine, "recs", 7, NOON) == [first, last]
    assert freshness.unpublished(engine, "recs", 7, NOON + timedelta(minutes=1)) == [last]
