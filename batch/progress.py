"""Progress of the batch: a bar on a terminal, log lines elsewhere, and a record of every stage."""

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

LOG_INTERVAL_SECONDS = 10.0


@dataclass
class Stages:
    """Time, rate and memory of each stage: `rows` go into the run's manifest, and to the log at `level`."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    level: int = logging.INFO

    @contextmanager
    def stage(self, name: str, unit: str) -> Iterator[dict[str, Any]]:
        """Time one stage and log its rate.

        The caller fills the yielded row: under the key `unit` the number of
        units, and anything else to record.
        """
        row: dict[str, Any] = {"stage": name}
        started = time.perf_counter()
        yield row
        seconds = time.perf_counter() - started
        row |= {"seconds": round(seconds, 3), "peak_mib": peak_mib()}
        row[f"{unit}_per_second"] = rate(row[unit], seconds)
        self.rows.append(row)
        fields = ", ".join(f"{key} {value}" for key, value in row.items() if key != "stage")
        log.log(self.level, "%s: %s", name, fields)


def peak_mib() -> int:
    """Return the largest resident memory of this process so far, in MiB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes // 1024


def rate(count: int, seconds: float) -> int:
    """Return the units per second, rounded; 0 if no time passed."""
    return round(count / seconds) if seconds > 0 else 0


class TimedIterator(Iterator[T]):
    """Iterates over `source` and sums in `seconds` the time spent waiting for it."""

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
    """Yield the result of each step and show the progress.

    Parameters
    ----------
    steps
        Pairs of (units done in this step, its result).
    total
        Units of all steps.
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
        if now - logged >= LOG_INTERVAL_SECONDS and done < total:
            logged = now
            left = (now - started) / done * (total - done)
            speed = rate(done, now - started)
            log.info("%s: %d of %d %s, %d a second, %.0f s left", what, done, total, unit, speed, left)
        yield result
