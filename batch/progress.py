"""Says where the night stands: a bar on a terminal, log lines elsewhere, and a record of every stage."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
log = logging.getLogger("batch")

LOG_EVERY_SECONDS = 10.0


@dataclass
class Stages:
    """What each stage of a run took; the record goes into the run's manifest, and to the log at `level`."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    level: int = logging.INFO

    @contextmanager
    def stage(self, name: str, unit: str) -> Iterator[dict[str, Any]]:
        """Time one stage and tell its rate.

        What the caller puts into the yielded row is recorded and logged with
        it; under the name of the unit, how many of them there were.
        """
        row: dict[str, Any] = {"stage": name}
        started = time.perf_counter()
        yield row
        seconds = time.perf_counter() - started
        row |= {"seconds": round(seconds, 3), "peak_mib": peak_mib()}
        row[f"{unit}_per_second"] = rate(row[unit], seconds)
        self.rows.append(row)
        told = ", ".join(f"{key} {value}" for key, value in row.items() if key != "stage")
        log.log(self.level, "%s: %s", name, told)


def peak_mib() -> int:
    """Return the largest resident memory of this process so far, in MiB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes // 1024


def rate(count: int, seconds: float) -> int:
    """Return how many a second, 0 where no time passed."""
    return round(count / seconds) if seconds > 0 else 0


class Waiting(Iterator[T]):
    """Passes on what comes, and adds up in `seconds` how long it was waited for."""

    def __init__(self, source: Iterable[T]) -> None:
        self.seconds = 0.0
        self._source = iter(source)

    def __next__(self) -> T:
        started = time.perf_counter()
        try:
            return next(self._source)
        finally:
            self.seconds += time.perf_counter() - started


def track(steps: Iterable[tuple[int, T]], total: int, what: str, unit: str) -> Iterator[T]:
    """Pass on each step's result and show how far it has come.

    Parameters
    ----------
    steps
        Pairs of (how many units this step did, its result).
    total
        Units in all.
    what, unit
        Name of the work, and of one unit, e.g. `score` and `users`.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=f" {unit}", leave=False) as bar:
            for count, result in steps:
                bar.update(count)
                yield result
        return
    started = logged = time.monotonic()
    done = 0
    for count, result in steps:
        done += count
        now = time.monotonic()
        if now - logged >= LOG_EVERY_SECONDS and done < total:
            logged = now
            left = (now - started) / done * (total - done)
            speed = rate(done, now - started)
            log.info("%s: %d of %d %s, %d a second, %.0f s left", what, done, total, unit, speed, left)
        yield result
