"""Posts JSON to a webhook: a few tries, each with a time limit, and no word of the URL but its host."""

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
"""Between one try and the next."""

TOO_MANY_REQUESTS = 429


class DeliveryError(OvernightError):
    """Raised when a webhook does not take an alert; says which host and why."""


class _NoRedirect(HTTPRedirectHandler):
    """Takes a redirect for the error it is: urllib would follow it with a GET that carries nothing."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = build_opener(_NoRedirect)


def host_of(url: str) -> str:
    """Return the one part of a webhook's URL that is no secret."""
    return str(urlsplit(url).hostname)


def post(url: str, body: dict[str, Any]) -> None:
    """Post a JSON object; try again where that may help.

    Takes at most three tries of TRY_SECONDS and the pauses, unless the server
    answers byte by byte or its name is slow to resolve.

    Raises
    ------
    DeliveryError
        It was answered with an error, or not at all.
    """
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "overnight"}
    for pause in (*PAUSES_SECONDS, None):
        try:
            with _opener.open(Request(url, content, headers), timeout=TRY_SECONDS):
                return
        except HTTPError as error:
            reason, again = f"it answered {error.code}", error.code >= 500 or error.code == TOO_MANY_REQUESTS
            error.close()
        except (OSError, HTTPException) as error:  # the former holds URLError and timeouts
            reason, again = str(getattr(error, "reason", error) or type(error).__name__), True
        if pause is None or not again:
            break
        time.sleep(pause)
    raise DeliveryError(f"the webhook at {host_of(url)} did not take an alert: {reason}; {_advice(again)}")


def _advice(again: bool) -> str:
    return "check that it is up" if again else "check OVERNIGHT_WEBHOOK_URL"


def within(seconds: float, *asks: Callable[[], Any]) -> list[Any]:
    """Ask all at once; return each answer in order, or in its place the OvernightError that came of it.

    What has not answered in time is left to itself, in a thread that keeps no
    process from ending: not every wait for a name or a server can be given a
    timeout.
    """
    answers: list[Any] = [OvernightError(f"no answer within {seconds:g} s") for _ in asks]

    def ask_one(place: int) -> None:
        try:
            answers[place] = asks[place]()
        except OvernightError as error:
            answers[place] = error

    threads = [Thread(target=ask_one, args=(place,), daemon=True) for place in range(len(asks))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    return list(answers)
