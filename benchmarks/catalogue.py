"""Measures lists over the full catalogue as of a date, on the network in `DATABASE_URL`.

Everything learns from what happened up to the midnight (UTC) that starts the
day `SPLIT`; judged are the users with likes on both sides of it. All posts are
ranked for them, less those liked before, and a hit is a post liked later.
Beside our models stand random order, popularity, recency popularity and implicit
ALS (Hu, Koren & Volinsky, 2008). `JSON` names a file for the rows.

A network's counters stand at what they are now and would tell the future here:
likes are counted from the log instead, and views are taken as not known.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from batch.arrays import Float32s, Int32s
from batch.judging import MODEL
from batch.judging.backtest import read_likes
from batch.judging.bootstrap import Measured
from batch.judging.catalogue import CatalogueCase, measure_lists
from batch.judging.full_catalogue import RankedCase, measure_cases, rank_case
from batch.judging.metrics import DEPTH
from batch.learning.fit import fit
from batch.learning.gather import Gathered, gathered_now
from batch.loading.history import History
from batch.loading.source import explained, open_engine
from batch.variants import VARIANTS, Variant
from benchmarks.report import Columns, print_head, print_row, save_rows
from contract.settings import Settings

ALS_FACTORS = (8, 32, 128)
EVERY_ROW = 10**9
USERS_AT_A_TIME = 1_000
HITRATE = "hitrate_at_5"
COLUMNS: Columns = {
    "model": ("model", "<24"),
    HITRATE: (HITRATE, "13.4f"),
    "low": ("low", "7.4f"),
    "high": ("high", "7.4f"),
    "coverage_at_5": ("coverage@5", "10.4f"),
    "popularity_lift_at_5": ("popularity lift", "15.2f"),
}


def main() -> None:
    """Load, judge everything on the same users, print one table and write JSON."""
    settings, split = Settings.from_environment(), _split()
    engine = open_engine(settings, "benchmarks.catalogue")
    with (
        explained(settings),
        threadpool_limits(1, user_api="blas"),
        gathered_now(engine, settings, split, datetime.now(UTC)) as counted,
    ):
        gathered = without_counters(counted)
        ranked = {name: rank(variant, gathered, settings) for name, variant in VARIANTS.items()}
        case = next(iter(ranked.values())).case
        users, posts = case.users.size, len(gathered.network.posts)
        print(f"{users} users with likes before and after {split.isoformat()}, {posts} posts")
        print_head(COLUMNS)
        rows = []
        for name, found in judged(gathered, ranked, settings):
            low, high = found.interval(HITRATE)
            values = {key: found.values[key] for key in COLUMNS if key in found.values}
            rows.append({"model": name, "low": low, "high": high, "users": users} | values)
            print_row(COLUMNS, rows[-1])
    save_rows(rows)


def rank(variant: Variant, gathered: Gathered, settings: Settings) -> RankedCase:
    """Fit on everything up to the split, and rank for the users with likes before and after it."""
    network, now = gathered.network, gathered.now
    model = fit(variant, gathered, gathered.latest, settings, {})
    likes = read_likes(now.store, datetime.now(UTC), len(network.users))
    found = rank_case(model, network, gathered.at_holdout, now, likes, settings.threads, max_users=EVERY_ROW)
    warm = found.case.warm
    lists = {name: rows[warm] for name, rows in found.lists.items()}
    return replace(found, case=found.case.keep_users(warm), lists=lists)


def judged(
    gathered: Gathered, ranked: dict[str, RankedCase], settings: Settings
) -> Iterator[tuple[str, Measured]]:
    """Yield a name and what was measured, the simplest first."""
    first = next(iter(ranked.values()))
    simple = measure_cases([first], settings.seed).rankers
    yield from ((name, simple[name]) for name in simple if name != MODEL)
    for factors in ALS_FACTORS:
        lists = als(gathered.now, first.case, factors, settings.seed)
        yield f"implicit ALS, {factors}", measure_lists(first.case, lists, settings.seed)
    for name, found in ranked.items():
        yield name, measure_lists(found.case, found.lists[MODEL], settings.seed)


def without_counters(gathered: Gathered) -> Gathered:
    """Count likes from the log in every history, and take views as not known."""
    names = ("half_way", "at_history_end", "at_holdout", "now")
    return replace(gathered, **{name: _from_log(getattr(gathered, name)) for name in names})


def _from_log(history: History) -> History:
    likes = np.bincount(history.likes.posts, minlength=len(history.post_counts)).astype(np.float64)
    return replace(history, post_counts=history.post_counts.assign(likes=likes, views=0.0))


def als(history: History, case: CatalogueCase, factors: int, seed: int) -> Int32s:
    """Return each user's best posts by implicit ALS with the package's own defaults; -1 pads."""
    from implicit.als import AlternatingLeastSquares  # here, so that the rest can be tested without it

    likes = history.likes
    shape = (likes.starts.size - 1, len(history.post_counts))
    matrix = csr_matrix((np.ones(likes.posts.size, np.float32), likes.posts, likes.starts), shape=shape)
    model = AlternatingLeastSquares(factors=factors, random_state=seed, num_threads=1)
    model.fit(matrix, show_progress=False)
    return best(model.user_factors[case.users], model.item_factors, case)


def best(users: Float32s, posts: Float32s, case: CatalogueCase) -> Int32s:
    """Return (users, DEPTH) places of the posts with the highest products, less those not to be shown."""
    lists = np.full((len(users), DEPTH), -1, dtype=np.int32)
    for start in range(0, len(users), USERS_AT_A_TIME):
        stop = min(start + USERS_AT_A_TIME, len(users))
        scores = users[start:stop] @ posts.T
        liked = case.likes.of_users(start, stop)
        scores[liked.users, liked.posts] = -np.inf
        scores[:, case.hidden] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
        shown = np.isfinite(np.take_along_axis(scores, order, axis=1))
        lists[start:stop, : order.shape[1]] = np.where(shown, order, -1)
    return lists


def _split() -> datetime:
    try:
        return datetime.fromisoformat(os.environ.get("SPLIT", "")).replace(tzinfo=UTC)
    except ValueError:
        sys.exit("error: SPLIT must be a date like 2021-12-15")


if __name__ == "__main__":
    main()
