"""Delivery of JSON to a webhook: three tries with a timeout each; errors show only the URL's host."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http.client import HTTPException
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from contract.errors import OvernightError

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
