"""One base for every error a person is meant to read, with its exit code."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_LOCKED = 4


class OvernightError(Exception):
    """Raised when something outside the program is wrong and a person can mend it.

    The message is one line: what is wrong, and what to do.
    """

    exit_code = EXIT_FAILED


class SettingsError(OvernightError):
    """Raised when an environment variable holds a value that cannot be used."""

    exit_code = EXIT_USAGE


class SourceError(OvernightError):
    """Raised when Postgres or one of the three views cannot give what is needed."""


class StoreError(OvernightError):
    """Raised when Redis cannot take or give what is needed."""


class InteractionStoreError(OvernightError):
    """Raised when the night's copy of the interactions on disk cannot be written or read."""


class ModelError(OvernightError):
    """Raised when a model cannot be trained, saved or read."""


class RefusedError(OvernightError):
    """Raised when the gate keeps a finished run from going live."""

    exit_code = EXIT_REFUSED


class LockedError(OvernightError):
    """Raised when another run holds the lock; says who and since when."""

    exit_code = EXIT_LOCKED
