"""Waits so long and no longer, whatever a call out of this process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Thread
from typing import Any

from contract.errors import OvernightError


def within(seconds: float, *asks: Callable[[], Any]) -> list[Any]:
    """Ask all at once; return each answer in order, or in its place the OvernightError that came of it.

    What has not answered in time is left to itself, in a thread that keeps no
    process from ending: not every wait for a name or a server can be given a
    timeout.
    """
    answers: list[Any] = [OvernightError(f"no answer within {seconds:g} s") for _ in asks]

    def ask_one(place: int) -> None:
        try:
            answers[place] = asks[place]()
        except OvernightError as error:
            answers[place] = error

    threads = [Thread(target=ask_one, args=(place,), daemon=True) for place in range(len(asks))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    return list(answers)
