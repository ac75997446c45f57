"""An alert: its event, what it contains, and its delivery to the webhook.

Delivery makes three tries with a timeout each; errors show only the URL's host.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from http.client import HTTPException
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from batch import postgres, redis_client
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
        host = host_of(settings.schedule.webhook_url)
        log.info("the alert %s was delivered to %s", alert.event, host)


def deliver(settings: Settings, alert: Alert) -> None:
    """Send an alert to the webhook of the settings within QUERY_SECONDS + DELIVERY_SECONDS.

    Raises
    ------
    OvernightError
        It was not delivered, or not in time.
    """
    body = _make_body(settings, alert)
    (outcome,) = call_with_deadline(DELIVERY_SECONDS, lambda: post(settings.schedule.webhook_url, body))
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


TRY_SECONDS = 3.0
PAUSES_SECONDS = (0.5, 1.0)
"""Pauses between tries."""

TOO_MANY_REQUESTS = 429


class DeliveryError(OvernightError):
    """Raised when a webhook does not accept an alert; names its host and the reason."""


class _NoRedirect(HTTPRedirectHandler):
    """Treats a redirect as an error: urllib would follow it with a GET without the body."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = build_opener(_NoRedirect)


def host_of(url: str) -> str:
    """Return the host, the only part of a webhook's URL that is not secret."""
    return str(urlsplit(url).hostname)


def post(url: str, body: dict[str, Any]) -> None:
    """Post a JSON object; retry after timeouts, connection errors, status 429 and 5xx.

    Takes at most three times TRY_SECONDS plus the pauses, unless the server
    sends its answer byte by byte or its name resolves slowly.

    Raises
    ------
    DeliveryError
        The last answer was an error, or there was none.
    """
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "overnight"}
    for pause in (*PAUSES_SECONDS, None):
        try:
            with _opener.open(Request(url, content, headers), timeout=TRY_SECONDS):
                return
        except HTTPError as error:
            reason, retry = f"it answered {error.code}", error.code >= 500 or error.code == TOO_MANY_REQUESTS
            error.close()
        except (OSError, HTTPException) as error:  # OSError includes URLError and timeouts
            reason, retry = str(getattr(error, "reason", error) or type(error).__name__), True
        if pause is None or not retry:
            break
        time.sleep(pause)
    advice = "check that it is up" if retry else "check OVERNIGHT_WEBHOOK_URL"
    raise DeliveryError(f"the webhook at {host_of(url)} did not accept an alert: {reason}; {advice}")


def call_with_deadline(seconds: float, *calls: Callable[[], Any]) -> list[Any]:
    """Run calls in parallel with a hard deadline; return each result, or the OvernightError in its place.

    A call that misses the deadline is abandoned in a daemon thread, because not
    every wait for a name or a server accepts a timeout.
    """
    results: list[Any] = [OvernightError(f"no answer within {seconds:g} s") for _ in calls]

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except OvernightError as error:
            results[index] = error

    threads = [Thread(target=run, args=(index,), daemon=True) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    return list(results)
