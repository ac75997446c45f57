"""One way of scoring, measured in a process of its own, so that its peak memory is its own.

    python -m benchmarks.scorers WAY CASE THREADS SAMPLE

prints one JSON object (see `Measured`) and leaves the scores of a sample of the
users (see `sample_users`) in a file, for the comparison.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.case import Case

ROOT = Path(__file__).parents[1]
NO_BLOCK = np.empty(0, dtype=np.int64)

PAIRS_SAMPLED = 300_000
"""The slow ways are measured on so many pairs, of users that lie evenly among all."""

ROWS_AT_ONCE = (10_000, 50_000, 200_000)
"""How many rows they put together at a time: each is tried, and the fastest counts."""


@dataclass(frozen=True)
class Measured:
    """What one way took.

    Attributes
    ----------
    pairs
        How many (user, post) pairs were scored.
    seconds
        For scoring them; ours with exclusion and top-N.
    setup_seconds
        For what is made once a model, not in `seconds`.
    first_seconds
        From nothing but the case to the first lists, with imports and compilation.
    peak_mib
        Largest resident memory of the process, the case included.
    """

    pairs: int
    seconds: float
    setup_seconds: float
    first_seconds: float
    peak_mib: int

    @property
    def ns_per_pair(self) -> float:
        """Nanoseconds a pair, without setting up."""
        return self.seconds / self.pairs * 1e9


def measure(
    way: str,
    case: Path,
    threads: int,
    sample: Path,
    *,
    python: str = sys.executable,
    compiled: Path | None = None,
) -> Measured:
    """Run a way in a process of its own; what numba compiles is kept in the folder `compiled`."""
    environment = os.environ | ({"NUMBA_CACHE_DIR": str(compiled)} if compiled else {})
    ran = subprocess.run(
        [python, "-m", "benchmarks.scorers", way, str(case), str(threads), str(sample)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return Measured(**json.loads(ran.stdout.splitlines()[-1]))


def sample_users(users: int, posts: int) -> np.ndarray:
    """Choose the users whose scores are compared and whose pairs the slow ways are measured on."""
    return np.linspace(0, users - 1, min(users, max(2, PAIRS_SAMPLED // posts))).astype(int)


def error(sample: Path, expected: Path) -> float:
    """Compare a sample's scores with another way's: all of them, or those of the lists."""
    scores: np.ndarray = np.load(expected)
    if sample.suffix == ".npy":
        return float(np.abs(np.load(sample) - scores).max())
    lists = np.load(sample)
    kept = np.where(lists["posts"] >= 0, lists["posts"], 0)
    return float(np.nanmax(np.abs(lists["scores"] - np.take_along_axis(scores, kept, axis=1))))


def overnight(case: Case, threads: int, sample: Path) -> Measured:
    """Score all users, leave out their likes, pick the best N; setting up is timed apart."""
    started = time.perf_counter()
    # Not imported above, as the environment of lleaves has no numba.
    from batch.features.factors import Factors
    from batch.scoring.compile import prepare
    from batch.scoring.score import lists_of_all

    booster, tables = case.booster, case.tables
    factors = None if case.factors is None else Factors(*case.factors)

    def lists(users: int) -> list[np.ndarray]:
        chunks = lists_of_all(
            booster, tables, factors, case.likes, NO_BLOCK, case.n,
            users=users, budget_mib=case.budget_mib, threads=threads,
        )  # fmt: skip
        found = [(chunk.posts, chunk.scores) for _, chunk in chunks]
        return [np.concatenate(part) for part in zip(*found, strict=True)]

    users, posts = len(tables.user_ids), len(tables.post_ids)
    lists(users=10)
    first = time.perf_counter() - started
    setup = _seconds(lambda: prepare(booster, tables, None if factors is None else factors.posts, NO_BLOCK))
    started = time.perf_counter()
    best, scores = lists(users)
    seconds = time.perf_counter() - started - setup
    chosen = sample_users(users, posts)
    np.savez(sample, posts=best[chosen], scores=scores[chosen])
    return Measured(users * posts, seconds, setup, first, peak_mib())


def booster_predict(case: Case, threads: int, sample: Path) -> Measured:
    """Put rows together and let LightGBM predict them."""
    booster = case.booster
    return _by_rows(lambda rows: booster.predict(rows, raw_score=True, num_threads=threads), case, sample)


def lleaves_predict(case: Case, threads: int, sample: Path) -> Measured:
    """Do so with the forest compiled by lleaves."""
    import lleaves

    model_file = sample.with_suffix(".txt")
    model_file.write_text(case.forest, encoding="utf-8")
    model = lleaves.Model(model_file=str(model_file))
    setup = _seconds(lambda: model.compile(raw_score=True))
    return _by_rows(lambda rows: model.predict(rows, n_jobs=threads), case, sample, setup)


def _by_rows(
    predict: Callable[[np.ndarray], object], case: Case, sample: Path, setup: float = 0.0
) -> Measured:
    """Time the sample with rows put together a block at a time."""
    posts, tables = len(case.tables.post_ids), case.tables
    users = np.repeat(sample_users(len(tables.user_ids), posts), posts)
    places = np.tile(np.arange(posts), len(users) // posts)
    seconds = float("inf")
    for rows in ROWS_AT_ONCE:
        started = time.perf_counter()
        scores = []
        for start in range(0, len(users), rows):
            some = users[start : start + rows], places[start : start + rows]
            found = np.asarray(predict(tables.rows(*some)))
            if case.factors is not None:
                found = found + np.einsum("pf,pf->p", case.factors[0][some[0]], case.factors[1][some[1]])
            scores.append(found)
        seconds = min(seconds, time.perf_counter() - started)
    np.save(sample, np.concatenate(scores).reshape(-1, posts))
    return Measured(len(users), seconds, setup, setup, peak_mib())


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
SAMPLES = {"overnight": "overnight.npz", "booster": "booster.npy", "lleaves": "lleaves.npy"}


def main() -> None:
    """Measure the way that the arguments name."""
    way, case, threads, sample = sys.argv[1:]
    print(json.dumps(asdict(WAYS[way](Case.load(Path(case)), int(threads), Path(sample)))))


if __name__ == "__main__":
    main()
