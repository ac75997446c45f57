"""A night of more interactions than fit into the memory it may use."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

from batch.loading import interaction_store, pull
from tests.support.batch import execute, make_network, query, start_batch
from tests.support.batch_live import wait_for_exit

USERS, POSTS, INTERACTIONS = 5_000, 300, 3_000_000
ROWS_BATCH = 250_000
LIMIT_MIB = 500
"""More than the night's libraries and arrays take beside the store, which has 64."""
ARROW_BYTES = 8 + 8 + 8 + 8
"""What a row takes as it comes from Postgres: two ids, a time, an action and where it begins."""

PEAK = """
    SELECT max((stage ->> 'peak_mib')::float)
    FROM recs.runs, jsonb_array_elements(manifest::jsonb -> 'stages') stage
    WHERE run_id = (SELECT max(run_id) FROM recs.runs)
"""


def limit_memory() -> None:
    """Let this process take few rows at a time, and let the kernel refuse it more memory than `LIMIT_MIB`."""
    pull.CHUNK_ROWS = interaction_store.PART_ROWS = ROWS_BATCH
    limit = _data_bytes() + LIMIT_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _data_bytes() -> int:
    """Return the size of this process's private writable memory, which RLIMIT_DATA bounds."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line)
    return int(line.split()[1]) * 1024


def test_a_night_of_more_interactions_than_fit_into_memory_needs_little_more_than_one_of_few(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    make_network(database_url, USERS, POSTS, interactions=20_000)
    servers: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    settings = {"OVERNIGHT_STORE_MEMORY_MIB": "64", "OVERNIGHT_TRAINING_ROWS": "10000"}
    peaks = []
    for more in (0, INTERACTIONS):
        execute(
            database_url,
            f"""
            INSERT INTO recs.interactions
            SELECT 1 + abs(hashint4(i)) % {USERS}, 101 + abs(hashint4(-i)) % {POSTS},
                   CASE WHEN hashint4(i * 7) % 10 = 0 THEN 'like' ELSE 'view' END,
                   timestamptz '2021-10-01Z' + i * interval '0.6 seconds'
            FROM generate_series(1, {more}) i
            """,
        )
        run = ("run", "--variant", "control", "--limit-users", "500", "--force")
        with start_batch(*run, prepare=limit_memory, **servers, **settings) as process:
            done = wait_for_exit(process)
        assert done.returncode == 0, done.stderr
        peaks.append(query(database_url, PEAK)[0][0])
    few, many = peaks
    assert INTERACTIONS * ARROW_BYTES > 64 * 2**20  # all at once they would not fit
    assert (many - few) * 2**20 < INTERACTIONS * ARROW_BYTES, peaks
