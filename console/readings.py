"""What pages read from Postgres, Redis and serving: the value, its time, and the last one if that fails."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar, cast

from batch import postgres, redis_client
from console.stores import note_failure
from contract.errors import OvernightError
from contract.settings import Settings

T = TypeVar("T")

MAX_KEPT = 500
"""Values kept for the time when a server is down, of all pages together; the least recently used go first."""


@dataclass(frozen=True)
class Reading(Generic[T]):
    """What a page has read.

    Attributes
    ----------
    value
        None if it could never be read.
    at
        When the value was read; None without one.
    error
        Why it could not be read now, one line; None if it was. The value is then the last one read.
    """

    value: T | None
    at: datetime | None
    error: str | None = None


class Readings:
    """Reads values by functions and keeps the last value of each key."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: OrderedDict[Hashable, Reading[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, key: Hashable, function: Callable[[], T]) -> Reading[T]:
        """Call the function; if that raises an OvernightError, return the last value and the error.

        Errors of Postgres and Redis become an OvernightError without secrets. Anything else is a bug and is
        raised.

        Parameters
        ----------
        key
            Names what is read: the same key, the same function with the same arguments.
        """
        try:
            with postgres.readable_errors(self._settings), redis_client.readable_errors(self._settings):
                reading = Reading(function(), datetime.now(UTC))
        except OvernightError as error:
            note_failure(error)
            with self._lock:
                kept = self._kept.get(key, Reading(None, None))
            return cast("Reading[T]", replace(kept, error=str(error)))
        with self._lock:
            self._kept[key] = reading
            self._kept.move_to_end(key)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return reading
