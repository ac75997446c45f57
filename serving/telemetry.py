"""What every request leaves behind: an id in its answer, a count, and a line in the log where asked for."""

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

from serving.metrics import UNMATCHED
from serving.recommend import Answer
from serving.service import Service

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"

_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,64}")


_named: ContextVar[str | None] = ContextVar("request_id", default=None)


def id_of(environ: Mapping[str, Any]) -> str:
    """Return the id that a request brings, or a new one."""
    given = environ.get("HTTP_X_REQUEST_ID", "")
    return given if _WELL_FORMED.fullmatch(given) else f"{random.getrandbits(128):032x}"


@contextmanager
def named(request_id: str) -> Iterator[None]:
    """Let what is logged inside bear the id of a request that Flask does not know of."""
    token = _named.set(request_id)
    try:
        yield
    finally:
        _named.reset(token)


def request_id_now() -> str | None:
    """Return the id of the request that is being answered here, None outside of one."""
    found: str | None = g.get("request_id") if has_request_context() else _named.get()
    return found


def observe(app: Flask, service: Service, *, access_log: bool) -> None:
    """Count every request of `app` and name it, and note first pages; register before any other hook."""

    @app.before_request
    def begin() -> None:
        g.begun = time.perf_counter()
        g.request_id = id_of(request.environ)

    @app.after_request
    def end(response: Response) -> Response:
        seconds = time.perf_counter() - g.begun
        rule = request.url_rule
        route = rule.rule if rule else UNMATCHED
        answer: Answer | None = g.get("answer")
        source, variant = (answer.source, answer.run.variant) if answer else ("", "")
        service.metrics.count(route, response.status_code, source, variant, seconds)
        first_of: int | None = g.get("first_of")
        if answer and first_of is not None:
            service.note(first_of, answer, seconds)
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
    """One JSON object a record: time (UTC), level, logger, message, pid, and what belongs to the request.

    Line breaks in a message are escaped, so that no request can forge a line.
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
        if (request_id := request_id_now()) is not None:
            fields["request_id"] = request_id
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)
