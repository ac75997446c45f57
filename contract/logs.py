"""Logging for every process: one line per event on stderr, secrets blotted out."""

from __future__ import annotations

import logging
import sys
from urllib.parse import unquote

from contract.settings import SHOWN_SECRET, Settings

LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Redact(logging.Formatter):
    """Formats a record, then replaces every known secret, tracebacks included."""

    def __init__(self, secrets: list[str]) -> None:
        super().__init__(LINE)
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record), self._secrets)


def redact(text: str, secrets: list[str]) -> str:
    """Replace each secret, as written in the URL and decoded, by asterisks."""
    for secret in secrets:
        for form in {secret, unquote(secret)}:
            text = text.replace(form, SHOWN_SECRET)
    return text


def configure_logging(settings: Settings) -> None:
    """Send all loggers to stderr at the level of the settings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redact(settings.secrets()))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
