"""Telemetry of requests: request ids, metrics, exposures, and the access log."""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, g, has_request_context, request

from contract.text import escape_json
from serving.handlers import Page
from serving.metrics import UNMATCHED
from serving.recommend import Answer
from serving.service import Service

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"

_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def request_id_of(environ: Mapping[str, Any]) -> str:
    """Return the id that the request carries, or a new one if it has no valid id."""
    given = environ.get("HTTP_X_REQUEST_ID", "")
    return given if _VALID_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


@contextmanager
def with_request_id(request_id: str) -> Iterator[None]:
    """Add the id to log records written inside, for a request outside of Flask."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


def current_request_id() -> str | None:
    """Return the id of the current request; None outside of a request."""
    found: str | None = g.get("request_id") if has_request_context() else _request_id.get()
    return found


def add_telemetry(app: Flask, service: Service, *, access_log: bool) -> None:
    """Give every request of `app` an id, count it, and record its exposure; register before other hooks."""

    @app.before_request
    def begin() -> None:
        g.started = time.perf_counter()
        g.request_id = request_id_of(request.environ)

    @app.after_request
    def end(response: Response) -> Response:
        seconds = time.perf_counter() - g.started
        rule = request.url_rule
        route = rule.rule if rule else UNMATCHED
        answer: Answer | None = g.get("answer")
        source, variant = (answer.source, answer.run.variant) if answer else ("", "")
        service.metrics.count(route, response.status_code, source, variant, seconds)
        page: Page | None = g.get("page")
        if page:
            service.record_exposure(page.user_id, page.answer, seconds, first_page=page.first_page)
        response.headers[REQUEST_ID] = g.request_id
        if access_log:
            fields = {
                "method": request.method,
                "path": request.path,
                "status": response.status_code,
                "ms": round(seconds * 1000, 2),
                "source": source,
                "variant": variant,
            }
            log.info("request", extra={"fields": fields})
        return response


class JsonLines(logging.Formatter):
    """Formats a record as a JSON object: time (UTC), level, logger, message, pid, and the request id.

    JSON escapes line breaks, so a request cannot forge a log line. Control characters are escaped too.
    `extra={"fields": {...}}` adds fields; an exception adds its traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        if (request_id := current_request_id()) is not None:
            fields["request_id"] = request_id
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return escape_json(json.dumps(fields, ensure_ascii=False, default=str))
