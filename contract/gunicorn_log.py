"""Gunicorn's own log records, in the format of all others."""

from __future__ import annotations

from typing import Any

from gunicorn.glogging import Logger


class RootLogger(Logger):  # type: ignore[misc]
    """Sends gunicorn's own log records to the root logger."""

    def setup(self, cfg: Any) -> None:
        """Take gunicorn's handlers away."""
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True
