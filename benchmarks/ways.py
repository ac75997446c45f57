"""One way of scoring, measured in a process of its own, so that its peak memory is its own.

    python -m benchmarks.ways WAY MODEL USERS POSTS THREADS SAMPLE

prints one JSON object: ns_per_pair, setup_seconds, peak_mib, and where it left
its scores of the sample (see `sample_users`) for the comparison.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lightgbm as lgb
import numpy as np

from batch.tables import FeatureTables
from benchmarks.network import make_likes, make_tables

N = 100
BUDGET_MIB = 256
ROWS_AT_ONCE = 200_000
NO_BLOCK = np.empty(0, dtype=np.int64)


def sample_users(users: int, posts: int) -> np.ndarray:
    """Choose the users whose pairs the slow ways are measured on, about 300,000 pairs."""
    return np.linspace(0, users - 1, max(2, 300_000 // posts)).astype(int)


def overnight(booster: lgb.Booster, tables: FeatureTables, threads: int, sample: Path) -> dict[str, float]:
    """Score all users, leave out their likes, pick the best N; setting up is timed apart."""
    # Not imported above, as the environment of lleaves has no numba.
    from batch.post_side import prepare
    from batch.score import lists_of_all

    posts = len(tables.post_ids)
    likes = make_likes(tables)

    def lists(users: int) -> list[np.ndarray]:
        chunks = lists_of_all(
            booster, tables, None, likes, NO_BLOCK, N, users=users, budget_mib=BUDGET_MIB, threads=threads
        )
        found = [(chunk.posts, chunk.scores) for _, chunk in chunks]
        return [np.concatenate(part) for part in zip(*found, strict=True)]

    users = len(tables.user_ids)
    lists(users=10)  # compiles, or reads what was compiled before
    setup = _seconds(lambda: prepare(booster, tables, None, NO_BLOCK))
    started = time.perf_counter()
    best, scores = lists(users)
    seconds = time.perf_counter() - started - setup
    chosen = sample_users(users, posts)
    np.savez(sample, posts=best[chosen], scores=scores[chosen])
    return {"ns_per_pair": seconds / users / posts * 1e9, "setup_seconds": setup}


def booster_predict(
    booster: lgb.Booster, tables: FeatureTables, threads: int, sample: Path
) -> dict[str, float]:
    """Put rows together and let LightGBM predict them, for a sample of the users."""
    return _by_rows(lambda rows: booster.predict(rows, raw_score=True, num_threads=threads), tables, sample)


def lleaves_predict(
    booster: lgb.Booster, tables: FeatureTables, threads: int, sample: Path
) -> dict[str, float]:
    """Do so with the forest compiled by lleaves."""
    import lleaves

    model_file = sample.with_suffix(".model.txt")
    booster.save_model(model_file)
    model = lleaves.Model(model_file=str(model_file))
    started = time.perf_counter()
    model.compile(raw_score=True)
    setup = time.perf_counter() - started
    found = _by_rows(lambda rows: model.predict(rows, n_jobs=threads), tables, sample)
    return found | {"setup_seconds": setup}


def _by_rows(
    predict: Callable[[np.ndarray], object], tables: FeatureTables, sample: Path
) -> dict[str, float]:
    posts = len(tables.post_ids)
    users = sample_users(len(tables.user_ids), posts)
    each = max(1, ROWS_AT_ONCE // posts)
    scores = []
    started = time.perf_counter()
    for start in range(0, len(users), each):
        some = users[start : start + each]
        rows = tables.rows(np.repeat(some, posts), np.tile(np.arange(posts), len(some)))
        scores.append(np.asarray(predict(rows)).reshape(-1, posts))
    seconds = time.perf_counter() - started
    np.save(sample, np.concatenate(scores))
    return {"ns_per_pair": seconds / len(users) / posts * 1e9, "setup_seconds": 0.0}


def peak_mib() -> int:
    """Return the largest resident memory of this process; where /proc tells, without its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        kilobytes = int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])
    else:
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes // 1024


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


WAYS = {"overnight": overnight, "booster": booster_predict, "lleaves": lleaves_predict}


def main() -> None:
    """Measure the way that the arguments name."""
    way, model, users, posts, threads, sample = sys.argv[1:]
    tables = make_tables(int(users), int(posts))
    found = WAYS[way](lgb.Booster(model_file=model), tables, int(threads), Path(sample))
    print(json.dumps(found | {"peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()
