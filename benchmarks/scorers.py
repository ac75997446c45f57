"""One scorer, measured in a process of its own, so that its peak memory is not that of others.

    python -m benchmarks.scorers SCORER CASE THREADS SAMPLE

prints one JSON object (see `Measurement`) and writes the scores of a sample of
the users (see `sample_users`) to a file, for the comparison.
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
NONE_BLOCKED = np.empty(0, dtype=np.int64)

SAMPLE_PAIRS = 300_000
"""Pairs that the slow scorers are measured on; their users are evenly spaced among all users."""

ROWS_BATCHES = (10_000, 50_000, 200_000)
"""Rows per batch of the slow scorers: each is tried, and the fastest counts."""


@dataclass(frozen=True)
class Measurement:
    """Time and memory of one scorer.

    Attributes
    ----------
    pairs
        Number of (user, post) pairs scored.
    seconds
        Time of scoring them; that of `overnight` includes exclusions and top-N.
    setup_seconds
        Time of the work done once per model; not in `seconds`.
    first_seconds
        From the loaded case to the first lists, with imports and compilation.
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
        """Nanoseconds per pair, without set-up."""
        return self.seconds / self.pairs * 1e9


def measure(
    scorer: str,
    case: Path,
    threads: int,
    sample: Path,
    *,
    python: str = sys.executable,
    compiled: Path | None = None,
) -> Measurement:
    """Run a scorer in a process of its own; `compiled` is Numba's cache folder."""
    environment = os.environ | ({"NUMBA_CACHE_DIR": str(compiled)} if compiled else {})
    ran = subprocess.run(
        [python, "-m", "benchmarks.scorers", scorer, str(case), str(threads), str(sample)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return Measurement(**json.loads(ran.stdout.splitlines()[-1]))


def sample_users(users: int, posts: int) -> np.ndarray:
    """Return the rows of the users whose scores are compared and on whom slow scorers are measured."""
    return np.linspace(0, users - 1, min(users, max(2, SAMPLE_PAIRS // posts))).astype(int)


def error(sample: Path, expected: Path) -> float:
    """Return the greatest difference from another scorer's scores: of all of them, or of those in lists."""
    scores: np.ndarray = np.load(expected)
    if sample.suffix == ".npy":
        return float(np.abs(np.load(sample) - scores).max())
    lists = np.load(sample)
    kept = np.where(lists["posts"] >= 0, lists["posts"], 0)
    return float(np.nanmax(np.abs(lists["scores"] - np.take_along_axis(scores, kept, axis=1))))


def overnight(case: Case, threads: int, sample: Path) -> Measurement:
    """Score all users, exclude their likes, select the best N; set-up is timed separately."""
    started = time.perf_counter()
    # Not imported above: the environment of lleaves has no Numba.
    from batch.executors.threads import ThreadExecutor
    from batch.features.factors import Factors
    from batch.scoring.score import CompiledModel, compile_model

    booster, tables = case.booster, case.tables
    factors = None if case.factors is None else Factors(*case.factors)

    def compile_case() -> CompiledModel:
        return compile_model(booster, tables, factors, case.likes, NONE_BLOCKED)

    executor = ThreadExecutor(threads, case.budget_mib)

    def score(users: int) -> tuple[np.ndarray, np.ndarray]:
        return compile_case().score(case.n, executor, users)

    users, posts = tables.users, tables.posts
    score(users=10)
    first = time.perf_counter() - started
    setup = _time(compile_case)
    started = time.perf_counter()
    best, scores = score(users)
    seconds = time.perf_counter() - started - setup
    chosen = sample_users(users, posts)
    np.savez(sample, posts=best[chosen], scores=scores[chosen])
    return Measurement(users * posts, seconds, setup, first, peak_mib())


def booster_predict(case: Case, threads: int, sample: Path) -> Measurement:
    """Assemble rows and let LightGBM predict them."""
    booster = case.booster
    return _by_rows(lambda rows: booster.predict(rows, raw_score=True, num_threads=threads), case, sample)


def lleaves_predict(case: Case, threads: int, sample: Path) -> Measurement:
    """Assemble rows and let the forest predict them, compiled by lleaves."""
    import lleaves

    model_file = sample.with_suffix(".txt")
    model_file.write_text(case.forest, encoding="utf-8")
    model = lleaves.Model(model_file=str(model_file))
    setup = _time(lambda: model.compile(raw_score=True))
    return _by_rows(lambda rows: model.predict(rows, n_jobs=threads), case, sample, setup)


def _by_rows(
    predict: Callable[[np.ndarray], object], case: Case, sample: Path, setup: float = 0.0
) -> Measurement:
    """Time the sample, with rows assembled batch by batch."""
    posts, tables = case.tables.posts, case.tables
    users = np.repeat(sample_users(tables.users, posts), posts)
    post_rows = np.tile(np.arange(posts), len(users) // posts)
    seconds = float("inf")
    for rows in ROWS_BATCHES:
        started = time.perf_counter()
        scores = []
        for start in range(0, len(users), rows):
            some = users[start : start + rows], post_rows[start : start + rows]
            found = np.asarray(predict(tables.rows(*some)))
            if case.factors is not None:
                found = found + np.einsum("pf,pf->p", case.factors[0][some[0]], case.factors[1][some[1]])
            scores.append(found)
        seconds = min(seconds, time.perf_counter() - started)
    np.save(sample, np.concatenate(scores).reshape(-1, posts))
    return Measurement(len(users), seconds, setup, setup, peak_mib())


def peak_mib() -> int:
    """Return the largest resident memory of this process; on Linux without that of its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        kilobytes = int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])
    else:
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes // 1024


def _time(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


SCORERS = {"overnight": overnight, "booster": booster_predict, "lleaves": lleaves_predict}
SAMPLES = {"overnight": "overnight.npz", "booster": "booster.npy", "lleaves": "lleaves.npy"}


def main() -> None:
    """Measure the scorer that the arguments name."""
    scorer, case, threads, sample = sys.argv[1:]
    print(json.dumps(asdict(SCORERS[scorer](Case.load(Path(case)), int(threads), Path(sample)))))


if __name__ == "__main__":
    main()
