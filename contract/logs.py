"""Logging for every process: one line per event on stderr, with secrets redacted."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any
from urllib.parse import unquote

from contract.settings import SHOWN_SECRET, Settings
from contract.text import escape_controls, escape_line

LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _PlainLines(logging.Formatter):
    """Formats a record as a line, followed by the traceback of an exception; shows control characters.

    A message cannot forge a line: its line breaks are shown too.
    """

    def __init__(self) -> None:
        super().__init__(LINE)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line."""
        return escape_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return the traceback."""
        return escape_controls(super().formatException(ei))


class _Redact(logging.Formatter):
    """Formats a record with another formatter, then redacts every known secret, also in tracebacks."""

    def __init__(self, formatter: logging.Formatter, secrets: list[str]) -> None:
        super().__init__()
        self._formatter = formatter
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return redact(self._formatter.format(record), self._secrets)


def redact(text: str, secrets: list[str]) -> str:
    """Replace each secret by asterisks: as written in the URL, URL-decoded, and JSON-escaped."""
    for secret in secrets:
        for form in (secret, unquote(secret)):
            for escaped in (form, json.dumps(form)[1:-1], json.dumps(form, ensure_ascii=False)[1:-1]):
                text = text.replace(escaped, SHOWN_SECRET)
    return text


def configure_logging(settings: Settings, formatter: logging.Formatter | None = None) -> None:
    """Send all loggers to stderr at the level of the settings; without a formatter, as plain text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redact(formatter or _PlainLines(), settings.secrets()))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
