"""What an alert contains, and how it is delivered to a webhook."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime

import pytest

from batch.alerts import alert
from batch.alerts.alert import (
    RUNBOOK,
    SECTIONS,
    SENTENCES,
    Alert,
    Event,
    Process,
    call_with_deadline,
    deliver,
)
from contract.errors import OvernightError, SettingsError
from contract.settings import Settings
from tests.support.batch import ROOT
from tests.support.webhook import SECRET_PATH, Webhook

pytest_plugins = ("tests.support.webhook_fixtures",)

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_an_alert_is_posted_while_postgres_and_redis_are_unreachable(hook: Webhook) -> None:
    unreachable = {
        "database_url": "postgresql://postgres@127.0.0.1:1/none",
        "redis_url": "redis://127.0.0.1:1/0",
    }
    alert_of_process = Alert(Event.RUN_FAILED, "why", process=Process(7, NOON))
    deliver(Settings.of(webhook_url=hook.url, **unreachable), alert_of_process)
    (post,) = hook.posts
    assert (post["live"], post["run_ids"]) == (None, [])
    assert "What is served is unknown: Redis did not answer." in post["text"]


def test_a_webhook_that_fails_briefly_is_tried_again(hook: Webhook) -> None:
    hook.answers = [500, 429]
    alert.post(hook.url, {"event": "x"})
    assert hook.events == ["x", "x", "x"]


@pytest.mark.parametrize(
    ("answers", "tries"), [([503] * 9, 3), ([400, 200], 1), ([302, 200], 1), ([307, 200], 1)]
)
def test_a_webhook_that_does_not_accept_an_alert_is_named(
    answers: list[int], tries: int, hook: Webhook
) -> None:
    hook.answers = list(answers)
    with pytest.raises(OvernightError, match=f"webhook at 127.0.0.1 did not .*: it answered {answers[0]};"):
        alert.post(hook.url, {"event": "x"})
    assert hook.events == ["x"] * tries


def test_calls_end_at_the_deadline() -> None:
    never = threading.Event()
    late, quick, failed = call_with_deadline(0.05, never.wait, lambda: "yes", _fail)
    never.set()
    assert isinstance(late, OvernightError)
    assert str(late) == "no answer within 0.05 s"
    assert quick == "yes"
    assert str(failed) == "no"


def _fail() -> None:
    raise OvernightError("no")


def test_all_tries_fit_in_the_deadline() -> None:
    tries = (len(alert.PAUSES_SECONDS) + 1) * alert.TRY_SECONDS + sum(alert.PAUSES_SECONDS)
    assert tries <= alert.DELIVERY_SECONDS
    assert alert.QUERY_SECONDS + alert.DELIVERY_SECONDS <= 15


@pytest.mark.parametrize(
    "url",
    ["ftp://host/secret-path", "file:///secret-path", "https:///secret-path", "https://me:secret-path@host/",
     "https://host/secret-path here", "https://höst/secret-path", "https://host:x/secret-path"],
)  # fmt: skip
def test_a_webhook_that_cannot_be_posted_to_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^OVERNIGHT_WEBHOOK_URL=\*\*\*: ") as refused:
        Settings.from_environment({"OVERNIGHT_WEBHOOK_URL": url})
    assert "secret" not in str(refused.value)


def test_a_webhook_is_in_no_repr_and_a_short_path_is_not_redacted() -> None:
    assert SECRET_PATH not in repr(Settings.of(webhook_url=f"https://host/{SECRET_PATH}"))
    assert Settings.of(webhook_url="https://host/in").secrets() == ["https://host/in"]
    assert Settings().secrets() == []


def test_every_event_has_a_sentence_and_a_section_in_the_runbook() -> None:
    headings = re.findall(r"^#+ (.*)$", (ROOT / RUNBOOK).read_text(), re.MULTILINE)
    assert set(SENTENCES) == set(SECTIONS) == set(Event)
    assert set(SECTIONS.values()) <= set(headings)
