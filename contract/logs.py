"""Logging for every process: one line per event on stderr, with secrets redacted."""

from __future__ import annotations

import json
import logging
import re
import sys
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from contract.settings import MIN_SECRET_LENGTH, SHOWN_SECRET, Settings
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


MIN_WORD_LENGTH = 4
"""A shorter secret may be a word of a message."""

_AS_PASSWORD = r"(?<=:){0}(?=@)|(?i:(?<=password=)|(?<=password='))(?:{0})(?!\w)"
_NO_LETTER_BEFORE = r"(?:(?<!\w)|(?<=\\[bfnrt])|(?<=\\u[0-9a-fA-F]{4}))"
"""What an escape of JSON ends with counts as no letter."""


def redact(text: str, secrets: list[str]) -> str:
    """Replace each secret by asterisks: as written in the URL, URL-decoded, and JSON-escaped.

    A short secret may be part of other words. Replaced everywhere, it would make messages unreadable, and
    the gaps would show what it is; inside a word nobody can tell it from the word. So a secret of fewer
    than MIN_SECRET_LENGTH characters is replaced where it is a word of its own, and one of fewer than
    MIN_WORD_LENGTH only where a password is written: in a URL (`:SECRET@`) and after `password=`.
    """
    for pattern in _patterns(tuple(secrets)):
        text = re.sub(pattern, SHOWN_SECRET, text)
    return text


@lru_cache
def _patterns(secrets: tuple[str, ...]) -> tuple[str, ...]:
    forms = [form for secret in secrets for form in (secret, unquote(secret)) if form]
    patterns = [
        _pattern(escaped, len(form))
        for form in forms
        for escaped in (form, json.dumps(form)[1:-1], json.dumps(form, ensure_ascii=False)[1:-1])
    ]
    return tuple(dict.fromkeys(patterns))


def _pattern(escaped: str, length: int) -> str:
    """Return a regular expression for a secret of a length, as it is escaped."""
    secret = re.escape(escaped)
    if length >= MIN_SECRET_LENGTH:
        return secret
    if length < MIN_WORD_LENGTH:
        return _AS_PASSWORD.format(secret)
    before = _NO_LETTER_BEFORE if re.match(r"\w", escaped) else ""
    return before + secret + (r"(?!\w)" if re.search(r"\w$", escaped) else "")


def configure_logging(settings: Settings, formatter: logging.Formatter | None = None) -> None:
    """Send all loggers to stderr at the level of the settings; without a formatter, as plain text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redact(formatter or _PlainLines(), settings.secrets()))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
