"""One alert: what it carries, as far as that can be known in time, and its way to the webhook."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from batch import postgres, redis_client
from batch.alerts import webhook
from batch.alerts.webhook import within
from batch.runs import freshness
from batch.signals import InterruptedRunError
from contract.errors import EXIT_FAILED, LockedError, OvernightError, RefusedError
from contract.logs import redact
from contract.settings import Settings

log = logging.getLogger(__name__)

LOOK_SECONDS = 4.0
"""How long to ask Postgres and Redis for what goes into an alert: they may be what went wrong."""

DELIVERY_SECONDS = 11.0
"""How long to try to deliver. With LOOK_SECONDS, the longest that an alert keeps anybody waiting."""

LONGEST_REASON = 1_000


@dataclass(frozen=True)
class Job:
    """A process on this host whose runs an alert names: its id, and when it began (aware)."""

    pid: int
    began: datetime


@dataclass(frozen=True)
class Alert:
    """What happened.

    Attributes
    ----------
    reason
        Why, in a sentence; secrets are blotted out when it is sent.
    exit_code
        Of the job; negative where a signal ended it.
    variants
        What the job was to build.
    """

    event: Event
    reason: str
    exit_code: int | None = None
    variants: Sequence[str] = ()
    job: Job | None = None


@contextmanager
def sent_if_it_fails(settings: Settings, variants: Sequence[str]) -> Iterator[None]:
    """Send an alert when what is inside fails or is refused, and let the error go on.

    A lock that is held sends none: a run started by hand has not failed by it.
    """
    job = Job(os.getpid(), datetime.now(UTC))
    try:
        yield
    except LockedError:
        raise
    except BaseException as error:
        event = Event.RUN_REFUSED if isinstance(error, RefusedError) else Event.RUN_FAILED
        code = error.exit_code if isinstance(error, OvernightError) else EXIT_FAILED
        send(settings, Alert(event, _reason(error), code, variants, job))
        raise


def send(settings: Settings, alert: Alert) -> None:
    """Send an alert if there is a webhook; one that is not delivered is logged, never raised."""
    if not settings.schedule.webhook_url:
        return
    try:
        deliver(settings, alert)
    except OvernightError as error:
        log.warning("the alert %s was not delivered: %s", alert.event, error)
    else:
        log.info(
            "the alert %s was delivered to %s", alert.event, webhook.host_of(settings.schedule.webhook_url)
        )


def deliver(settings: Settings, alert: Alert) -> None:
    """Send an alert to the webhook, which there must be, in LOOK_SECONDS and DELIVERY_SECONDS.

    Raises
    ------
    OvernightError
        It was not delivered, or not in time.
    """
    body = _body(settings, alert)
    (outcome,) = within(DELIVERY_SECONDS, lambda: webhook.post(settings.schedule.webhook_url, body))
    if isinstance(outcome, OvernightError):
        raise outcome


def _body(settings: Settings, alert: Alert) -> dict[str, Any]:
    now = datetime.now(UTC)
    run_ids, live = within(LOOK_SECONDS, lambda: _run_ids(settings, alert.job), lambda: _live(settings, now))
    body = {
        "id": str(uuid.uuid4()),
        "event": str(alert.event),
        "at": now.isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "variants": list(alert.variants),
        "run_ids": run_ids if isinstance(run_ids, list) else [],
        "reason": redact(" ".join(alert.reason.split()), settings.secrets())[:LONGEST_REASON],
        "exit_code": alert.exit_code,
        "live": live if isinstance(live, dict) else None,
        "what_to_do": f"{RUNBOOK}, section '{SECTIONS[alert.event]}'",
    }
    return body | {"text": _text(alert.event, body)}


def _run_ids(settings: Settings, job: Job | None) -> list[str]:
    if job is None:
        return []
    with postgres.connected(settings) as engine:
        return freshness.unpublished(engine, settings.stores.key_prefix, job.pid, job.began)


def _live(settings: Settings, now: datetime) -> dict[str, Any]:
    with redis_client.connected(settings) as client:
        return freshness.live_now(client, settings.stores.key_prefix, now)


def _text(event: Event, body: dict[str, Any]) -> str:
    """Say an alert in plain sentences, for a chat that shows nothing else of it."""
    about = f" ({', '.join(body['run_ids'])})" if body["run_ids"] else ""
    code = f" with exit code {body['exit_code']}" if body["exit_code"] is not None else ""
    return (
        f"Overnight on {body['host']}: {SENTENCES[event]}{about}{code}: {body['reason'].rstrip('.')}. "
        f"{_served(body['live'])} What to do: {body['what_to_do']}."
    )


def _served(live: dict[str, Any] | None) -> str:
    if live is None:
        return "What is served cannot be told."
    if not live:
        return "Nothing is served."
    return f"Served: {'; '.join(_aged(**found) for found in live.values())}."


def _aged(run_id: str, age_seconds: int | None) -> str:
    return run_id if age_seconds is None else f"{run_id}, {age_seconds / 3600:.1f} h old"


def _reason(error: BaseException) -> str:
    """Say why a run ended; what is not expected is told with its type."""
    expected = isinstance(error, (OvernightError, InterruptedRunError))
    return str(error) if expected else f"{type(error).__name__}: {error}"


RUNBOOK = "docs/operations.md"


class Event(StrEnum):
    """What happened; the name stands in the alert as `event`."""

    RUN_FAILED = "run_failed"
    RUN_REFUSED = "run_refused"
    RUN_LOCKED = "run_locked"
    RUN_LATE = "run_late"
    RUN_RECOVERED = "run_recovered"
    REFRESH_FAILED = "refresh_failed"
    REFRESH_RECOVERED = "refresh_recovered"
    TEST = "test"


SENTENCES = {
    Event.RUN_FAILED: "a run failed",
    Event.RUN_REFUSED: "a run was refused before it went live",
    Event.RUN_LOCKED: "a night was left out because another run holds the lock",
    Event.RUN_LATE: "a night is late",
    Event.RUN_RECOVERED: "a run is live again after a night that was late",
    Event.REFRESH_FAILED: "the refresh keeps failing",
    Event.REFRESH_RECOVERED: "the refresh works again",
    Event.TEST: "this is a test alert",
}

SECTIONS = {
    Event.RUN_FAILED: "A run failed",
    Event.RUN_REFUSED: "A run was refused",
    Event.RUN_LOCKED: "The lock was held",
    Event.RUN_LATE: "A night is late",
    Event.RUN_RECOVERED: "A run is live again",
    Event.REFRESH_FAILED: "The refresh keeps failing",
    Event.REFRESH_RECOVERED: "The refresh works again",
    Event.TEST: "Try the webhook",
}
"""Event -> the heading in the runbook that tells what to type."""
