"""The log of requests: which page, by whom, how long; not what it was about."""

from __future__ import annotations

import logging
import time

from flask import Flask, Response, g, request

from console.context import current_visitor
from console.security import PUBLIC
from contract.settings import Settings

log = logging.getLogger(__name__)


def add_access_log(app: Flask, settings: Settings) -> None:
    """Log each request of a page with OVERNIGHT_ACCESS_LOG=on."""
    if settings.serving.access_log:
        app.before_request(_begin)
        app.after_request(_log_request)


def _begin() -> None:
    g.started = time.perf_counter()


def _log_request(answer: Response) -> Response:
    if request.endpoint not in PUBLIC:
        visitor = current_visitor()
        page = request.url_rule.rule if request.url_rule else "no page"
        milliseconds = (time.perf_counter() - g.started) * 1000
        log.info(
            "%s %s: %d in %.0f ms for %s",
            request.method, page, answer.status_code, milliseconds, visitor.name if visitor else "nobody",
        )  # fmt: skip
    return answer
