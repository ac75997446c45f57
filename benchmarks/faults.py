"""Measures how serving bears faults: a Redis killed, emptied, paused, slow or moved under steady load.

The same faults, shorter, are a test; here the times count. Every answer is
checked; an answer that is wrong ends this with exit code 1. `JSON` names a file
for the rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.faults.environment import stage
from benchmarks.faults.faults import CALM, DIRECT, wired
from benchmarks.faults.report import COLUMNS, row_of, wrongs
from benchmarks.faults.run_fault import Befallen, Fault, befall
from benchmarks.report import machine, print_head, print_row, save_rows

USERS = 2_000
CLIENTS, REQUESTS_PER_SECOND = 12, 240
LASTS_SECONDS, CALM_SECONDS = 10.0, 2.0
SLOW_SECONDS, TOO_SLOW_SECONDS = 0.02, 0.2
P99_MS, RECOVERY_SECONDS = 100, 3


def main() -> None:
    """Measure, print a table, write JSON."""
    load = f"{CLIENTS} clients, {REQUESTS_PER_SECOND} requests/s, 2 workers"
    print(f"{machine()}; {load}; a fault lasts {LASTS_SECONDS:.0f} s")
    print(f"bounds: not 200 and wrong 0, p99 of the worst second {P99_MS} ms, recovery {RECOVERY_SECONDS} s")
    print_head(COLUMNS)
    direct, through_wire = (CALM, *DIRECT), (CALM, *wired(SLOW_SECONDS, TOO_SLOW_SECONDS))
    befallen = [*_measure(direct, wired=False), *_measure(through_wire, wired=True)]
    rows: list[dict[str, Any]] = [row_of(each) for each in befallen]
    save_rows([{name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()}
               for row in rows])  # fmt: skip
    complaints = [f"{each.fault.name}: {wrong}" for each in befallen for wrong in wrongs(each)]
    if complaints:
        sys.exit("\n".join(["error: answers were wrong", *complaints[:20]]))


def _measure(faults: Sequence[Fault], *, wired: bool) -> Iterator[Befallen]:
    """Let faults befall one stage, one after the other; print a row for each."""
    with stage(wired=wired, users=USERS, clients=CLIENTS, requests_per_second=REQUESTS_PER_SECOND) as servers:
        for fault in faults:
            befallen = befall(servers, fault, LASTS_SECONDS, CALM_SECONDS)
            print_row(COLUMNS, row_of(befallen))
            yield befallen


if __name__ == "__main__":
    main()
