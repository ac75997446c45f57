"""An alert: its event, what it contains, and its delivery to the webhook."""

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
from batch.alerts.webhook import call_with_deadline
from batch.runs import freshness
from batch.signals import InterruptedRunError
from contract.errors import EXIT_FAILED, LockedError, OvernightError, RefusedError
from contract.logs import redact
from contract.settings import Settings

log = logging.getLogger(__name__)

QUERY_SECONDS = 4.0
"""Deadline for the queries to Postgres and Redis; either may be the cause of the alert."""

DELIVERY_SECONDS = 11.0
"""Deadline for the delivery. An alert takes at most QUERY_SECONDS + DELIVERY_SECONDS."""

MAX_REASON_LENGTH = 1_000


class Event(StrEnum):
    """What happened; the value is `event` in the alert's JSON."""

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
    Event.RUN_LOCKED: "a night was skipped because another run holds the lock",
    Event.RUN_LATE: "a night is late",
    Event.RUN_RECOVERED: "a run is live again after a late night",
    Event.REFRESH_FAILED: "the refresh keeps failing",
    Event.REFRESH_RECOVERED: "the refresh works again",
    Event.TEST: "this is a test alert",
}

RUNBOOK = "docs/operations.md"

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
"""Event -> the heading in the runbook that says what to do."""


@dataclass(frozen=True)
class Process:
    """A process on this host whose runs an alert names: its id and its start (timezone-aware)."""

    pid: int
    started_at: datetime


@dataclass(frozen=True)
class Alert:
    """What happened.

    Attributes
    ----------
    reason
        Why, in a sentence; secrets in it are replaced by *** when it is sent.
    exit_code
        Exit code of the process; negative if a signal ended it.
    variants
        Variants that the process was to build.
    process
        The process that failed, if one did.
    """

    event: Event
    reason: str
    exit_code: int | None = None
    variants: Sequence[str] = ()
    process: Process | None = None


@contextmanager
def alert_on_failure(settings: Settings, variants: Sequence[str]) -> Iterator[None]:
    """Send an alert when the block fails or its run is refused, and re-raise the error.

    A lock that is held sends no alert: a run started by hand has not failed by it.
    """
    process = Process(os.getpid(), datetime.now(UTC))
    try:
        yield
    except LockedError:
        raise
    except BaseException as error:
        event = Event.RUN_REFUSED if isinstance(error, RefusedError) else Event.RUN_FAILED
        code = error.exit_code if isinstance(error, OvernightError) else EXIT_FAILED
        send(settings, Alert(event, _describe_error(error), code, variants, process))
        raise


def send(settings: Settings, alert: Alert) -> None:
    """Send an alert if a webhook is set; a failed delivery is logged, never raised."""
    if not settings.schedule.webhook_url:
        return
    try:
        deliver(settings, alert)
    except OvernightError as error:
        log.warning("the alert %s was not delivered: %s", alert.event, error)
    else:
        host = webhook.host_of(settings.schedule.webhook_url)
        log.info("the alert %s was delivered to %s", alert.event, host)


def deliver(settings: Settings, alert: Alert) -> None:
    """Send an alert to the webhook of the settings within QUERY_SECONDS + DELIVERY_SECONDS.

    Raises
    ------
    OvernightError
        It was not delivered, or not in time.
    """
    body = _make_body(settings, alert)
    (outcome,) = call_with_deadline(
        DELIVERY_SECONDS, lambda: webhook.post(settings.schedule.webhook_url, body)
    )
    if isinstance(outcome, OvernightError):
        raise outcome


def _make_body(settings: Settings, alert: Alert) -> dict[str, Any]:
    now = datetime.now(UTC)
    run_ids, live = call_with_deadline(
        QUERY_SECONDS, lambda: _read_run_ids(settings, alert.process), lambda: _read_live(settings, now)
    )
    body = {
        "id": str(uuid.uuid4()),
        "event": str(alert.event),
        "at": now.isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "variants": list(alert.variants),
        "run_ids": run_ids if isinstance(run_ids, list) else [],
        "reason": redact(" ".join(alert.reason.split()), settings.secrets())[:MAX_REASON_LENGTH],
        "exit_code": alert.exit_code,
        "live": live if isinstance(live, dict) else None,
        "what_to_do": f"{RUNBOOK}, section '{SECTIONS[alert.event]}'",
    }
    return body | {"text": _format_text(alert.event, body)}


def _read_run_ids(settings: Settings, process: Process | None) -> list[str]:
    if process is None:
        return []
    with postgres.connected(settings) as engine:
        return freshness.unpublished(engine, settings.stores.key_prefix, process.pid, process.started_at)


def _read_live(settings: Settings, now: datetime) -> dict[str, Any]:
    with redis_client.connected(settings) as client:
        return freshness.live_now(client, settings.stores.key_prefix, now)


def _format_text(event: Event, body: dict[str, Any]) -> str:
    """Describe an alert in plain sentences, for a chat that shows nothing else."""
    runs = f" ({', '.join(body['run_ids'])})" if body["run_ids"] else ""
    code = f" with exit code {body['exit_code']}" if body["exit_code"] is not None else ""
    return (
        f"Overnight on {body['host']}: {SENTENCES[event]}{runs}{code}: {body['reason'].rstrip('.')}. "
        f"{_format_live(body['live'])} What to do: {body['what_to_do']}."
    )


def _format_live(live: dict[str, Any] | None) -> str:
    if live is None:
        return "What is served is unknown: Redis did not answer."
    if not live:
        return "Nothing is served."
    return f"Served: {'; '.join(_format_run(**run) for run in live.values())}."


def _format_run(run_id: str, age_seconds: int | None) -> str:
    return run_id if age_seconds is None else f"{run_id}, {age_seconds / 3600:.1f} h old"


def _describe_error(error: BaseException) -> str:
    """Return the message of an error; an unexpected one is named with its type."""
    expected = isinstance(error, (OvernightError, InterruptedRunError))
    return str(error) if expected else f"{type(error).__name__}: {error}"
