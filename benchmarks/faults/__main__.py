"""Measure serving under faults: a Redis killed, emptied, paused, slow or moved under steady load.

The same faults run as a test, for a shorter time; here times are measured. Every
answer is checked; a wrong one ends the program with exit code 1. Faults of the
connection to Redis are measured over plain TCP and over TLS, through the same
proxy. `JSON` names a file for the rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.faults.environment import run_environment
from benchmarks.faults.faults import DIRECT_FAULTS, NO_FAULT, WORKER_KILLED, proxied_faults
from benchmarks.faults.report import COLUMNS, list_errors, make_row
from benchmarks.faults.run_fault import Fault, FaultResult, run_fault
from benchmarks.report import machine, print_head, print_row, save_rows

USERS = 2_000
CLIENTS, REQUESTS_PER_SECOND = 12, 240
FAULT_SECONDS, NORMAL_SECONDS = 10.0, 2.0
SLOW_SECONDS, TOO_SLOW_SECONDS = 0.02, 0.2
MAX_P99_MS, MAX_RECOVERY_SECONDS = 100, 3
MAX_ERRORS_SHOWN = 20


def main() -> None:
    """Measure, print a table, write JSON."""
    load = f"{CLIENTS} clients, {REQUESTS_PER_SECOND} requests/s, 2 workers"
    print(f"{machine()}; {load}; a fault lasts {FAULT_SECONDS:.0f} s")
    print(
        f"bounds: not 200 and wrong 0, p99 of the worst second {MAX_P99_MS} ms, "
        f"recovery {MAX_RECOVERY_SECONDS} s"
    )
    print_head(COLUMNS)
    direct = (NO_FAULT, *DIRECT_FAULTS)
    proxied = (NO_FAULT, WORKER_KILLED, *proxied_faults(SLOW_SECONDS, TOO_SLOW_SECONDS))
    measured = [*_measure(direct, "direct"), *_measure(proxied, "proxy"), *_measure(proxied, "TLS")]
    rows: list[dict[str, Any]] = [make_row(result, over) for result, over in measured]
    save_rows([{name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()}
               for row in rows])  # fmt: skip
    errors = [f"{result.fault.name}: {error}" for result, _ in measured for error in list_errors(result)]
    if errors:
        sys.exit("\n".join(["error: answers were wrong", *errors[:MAX_ERRORS_SHOWN]]))


def _measure(faults: Sequence[Fault], over: str) -> Iterator[tuple[FaultResult, str]]:
    """Run faults one after the other in one environment; print a row for each."""
    with run_environment(
        with_proxy=over != "direct",
        with_tls=over == "TLS",
        users=USERS,
        clients=CLIENTS,
        requests_per_second=REQUESTS_PER_SECOND,
    ) as environment:
        for fault in faults:
            result = run_fault(environment, fault, FAULT_SECONDS, NORMAL_SECONDS)
            print_row(COLUMNS, make_row(result, over))
            yield result, over


if __name__ == "__main__":
    main()
