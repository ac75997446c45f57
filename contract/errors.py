"""Errors that are shown to a person, with their exit codes."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_LOCKED = 4


class OvernightError(Exception):
    """Raised when something outside the program is wrong and a person can fix it.

    The message is one line: what happened, and what to do.
    """

    exit_code = EXIT_FAILED


class SettingsError(OvernightError):
    """Raised when an environment variable has an invalid value."""

    exit_code = EXIT_USAGE


class SourceError(OvernightError):
    """Raised when Postgres, or one of the three views, cannot be read."""


class StoreError(OvernightError):
    """Raised when Redis cannot be read or written."""


class DaskError(OvernightError):
    """Raised when the Dask cluster cannot be reached, refuses us, or has no worker left that can work."""


class InteractionStoreError(OvernightError):
    """Raised when the local copy of the interactions cannot be written or read."""


class ModelError(OvernightError):
    """Raised when a model cannot be trained, saved or read."""


class RefusedError(OvernightError):
    """Raised when the gate refuses to make a finished run live."""

    exit_code = EXIT_REFUSED


class LockedError(OvernightError):
    """Raised when another run holds the lock. The message says which run, and since when."""

    exit_code = EXIT_LOCKED
