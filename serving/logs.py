"""Logs as lines of JSON, so that a machine can search them by request."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from serving.observe import request_id_now


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
