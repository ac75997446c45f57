"""Compare our lists with recommenders of other authors, on the network in `DATABASE_URL`.

All models learn from the interactions up to a cutoff:

    for each cutoff:
        validation time = when 4/5 of the interactions before the cutoff have happened
        for each recommender of another author:
            for each of `BUDGET` points of its grid:
                fit up to the validation time
                evaluate with the likes between the validation time and the cutoff
            fit up to the cutoff with the point of the highest NDCG@10
        for control and test:
            load the dataset, fit and rank as in a night at the cutoff
        evaluate all lists with the likes after the cutoff

Only warm users are evaluated: they have a like before the cutoff and a new like
after it. Their lists rank all posts known at the cutoff, without the posts that
the user had liked. The metrics are defined in batch/evaluation/catalogue_case.py;
their 95 % intervals are over users.

Variables: `CUTOFFS`, times in UTC separated by commas, or the number of cutoffs
to choose (1); `MODELS`, names separated by commas (all); `BUDGET`, number of grid
points to try for each recommender (12); `NETWORK`, its name in the rows; `JSON`,
a file for the rows.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from threadpoolctl import threadpool_limits

from batch.arrays import Float32s, Int32s, Int64s
from batch.evaluation.bootstrap import BootstrapResult
from batch.evaluation.catalogue_case import (
    CatalogueCase,
    ScoredLists,
    build_case,
    score_lists,
    score_random,
    summarise,
)
from batch.evaluation.full_catalogue import rank_by_model
from batch.evaluation.learner import choose_recipe
from batch.evaluation.ranking_metrics import DEPTH
from batch.loading.cohorts import Groupings, by_topic
from batch.loading.history import History, count_histories, read_likes
from batch.loading.interaction_store import to_time
from batch.loading.network import Network
from batch.loading.pull import PullResult, pull
from batch.postgres import open_engine, readable_errors
from batch.training.dataset import Dataset, load_dataset
from batch.training.fit import fit
from batch.variants import MODELS
from benchmarks.recommenders import (
    RECOMMENDERS,
    Log,
    Parameters,
    Recommender,
    Scores,
    UnavailableError,
    by_factors,
    read_log,
)
from benchmarks.report import ALL_CUTOFFS, Columns, check_json_file, print_head, print_row, save_rows
from benchmarks.worker_client import GRIDS, start_worker
from contract import columns
from contract.errors import OvernightError, SourceError
from contract.settings import Settings

RANDOM = "random"
OURS = tuple(MODELS)
FACTORS_ONLY = "factors of {}"
OUR_MODELS = frozenset({*OURS, *map(FACTORS_ONLY.format, OURS)})
NAMES = (RANDOM, *(each.name for each in RECOMMENDERS), *GRIDS, *OURS)

VALIDATION_SHARE = 0.8
"""Share of the interactions before a cutoff to fit on when choosing parameters; the rest validates them."""

LAST_SHARE = 0.4
"""Chosen cutoffs divide this last share of the interactions into equal parts."""

MAX_USERS = 10_000
"""Maximum number of users at a cutoff; more are sampled at random."""

BUDGET = 12
"""Default number of grid points to try for each recommender."""

USERS_BATCH = 500
NDCG = "ndcg_at_10"

QUANTILES = sa.text(f"""
    SELECT percentile_disc(CAST(:shares AS double precision[])) WITHIN GROUP (ORDER BY happened_at)
    FROM {columns.SCHEMA}.{columns.INTERACTIONS} WHERE happened_at <= :until
""")
VALIDATION_TIME = """
    SELECT coalesce(epoch_us(quantile_disc(happened_at, $share)), epoch_us($until::TIMESTAMP)) AS time
    FROM interactions WHERE happened_at <= $until
"""

COLUMNS: Columns = {
    "model": ("model", "<20"),
    NDCG: ("ndcg@10", "8.4f"),
    "low": ("low", "7.4f"),
    "high": ("high", "7.4f"),
    "hitrate_at_5": ("hitrate@5", "9.4f"),
    "recall_at_20": ("recall@20", "9.4f"),
    "coverage_at_10": ("coverage@10", "11.4f"),
    "overlap_at_10": ("overlap@10", "10.3f"),
    "popularity_lift_at_10": ("lift@10", "8.2f"),
    "seconds": ("seconds", "8.0f"),
}
METRICS = tuple(name for name in COLUMNS if name not in ("model", "low", "high", "seconds"))

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Values of the variables.

    Attributes
    ----------
    network
        Its name in the rows.
    cutoffs
        Times, or the number of cutoffs to choose.
    models
        Names of the models to compare, in the order of NAMES.
    budget
        Number of grid points to try for each recommender.
    """

    network: str
    cutoffs: tuple[datetime, ...] | int
    models: tuple[str, ...]
    budget: int

    @classmethod
    def from_environment(cls) -> Options:
        """Read the variables; exit with one line if one is invalid."""
        models = [name.strip() for name in os.environ.get("MODELS", "").split(",") if name.strip()]
        if unknown := sorted(set(models) - set(NAMES)):
            sys.exit(f"error: MODELS has {', '.join(unknown)}; there are {', '.join(NAMES)}")
        return cls(
            Path(os.environ.get("NETWORK") or "simulated").name,
            read_cutoffs(os.environ.get("CUTOFFS") or "1"),
            tuple(name for name in NAMES if name in models or not models),
            _read_positive("BUDGET", os.environ.get("BUDGET") or str(BUDGET)),
        )


def read_cutoffs(text: str) -> tuple[datetime, ...] | int:
    """Read the variable `CUTOFFS`: times in UTC, or a number of cutoffs; exit if it is invalid."""
    if text.strip().isdigit():
        return _read_positive("CUTOFFS", text)
    try:
        times = [datetime.fromisoformat(part.strip()) for part in text.split(",")]
    except ValueError:
        sys.exit(f"error: CUTOFFS is {text!r}; give times like 2021-12-15T00:00:00, or the number of cutoffs")
    return tuple(sorted({_in_utc(each) for each in times}))


def _in_utc(time: datetime) -> datetime:
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def _read_positive(name: str, text: str) -> int:
    if not text.strip().isdigit() or int(text) == 0:
        sys.exit(f"error: {name} is {text!r}; give a whole number of at least 1")
    return int(text)


@dataclass(frozen=True)
class EvaluationSplit:
    """The interactions up to a time, to fit on, and the users and later likes to evaluate with."""

    log: Log
    case: CatalogueCase


@dataclass(frozen=True)
class LeftOut:
    """A model that could not be evaluated, and the reason."""

    model: str
    reason: str


@dataclass(frozen=True)
class Result:
    """The evaluated lists of one model.

    Attributes
    ----------
    scored
        The metrics of its lists, for each cutoff.
    details
        `seconds` to fit and rank. For recommenders of other authors also the
        chosen parameters, their NDCG@10 on the validation split, the number of
        tries, and the seconds of all tries.
    """

    model: str
    scored: list[ScoredLists]
    details: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Evaluate each model at each cutoff, print a table per cutoff and write the rows."""
    settings, options = Settings.from_environment(), Options.from_environment()
    check_json_file()
    engine = open_engine(settings, "benchmarks.lists")
    rows: list[Row] = []
    scored: dict[str, list[ScoredLists]] = {}
    with readable_errors(settings), threadpool_limits(1, user_api="blas"), start_worker() as worker:
        recommenders = [
            each for each in (*RECOMMENDERS, *worker.recommenders()) if each.name in options.models
        ]
        cutoffs = choose_cutoffs(engine, options.cutoffs)
        for cutoff in cutoffs:
            with pull(engine, settings, cutoff) as pulled:
                results = evaluate_cutoff(
                    drop_counters(pulled),
                    cutoff,
                    recommenders,
                    settings=settings,
                    options=options,
                    engine=engine,
                )
                table = Table(options.network, cutoff.isoformat(), settings.night.seed)
                for result in results:
                    table.add(result)
                    if isinstance(result, Result):
                        scored.setdefault(result.model, []).extend(result.scored)
                rows += table.finish()
                save_rows(rows)
        evaluated = max(map(len, scored.values()), default=0)
        if evaluated > 1:
            print(f"\nall {evaluated} cutoffs together: the models that were evaluated at each of them")
            table = Table(options.network, ALL_CUTOFFS, settings.night.seed)
            for model, lists in scored.items():
                if len(lists) == evaluated:
                    table.add(Result(model, lists))
            rows += table.finish()
    save_rows(rows)


def choose_cutoffs(engine: sa.Engine, cutoffs: tuple[datetime, ...] | int) -> tuple[datetime, ...]:
    """Return the given cutoffs, or choose as many as the number says.

    Chosen cutoffs divide the last LAST_SHARE of the interactions evenly.

    Raises
    ------
    SourceError
        Cutoffs must be chosen and there are no interactions.
    """
    if not isinstance(cutoffs, int):
        return cutoffs
    shares = [1 - LAST_SHARE * (1 - part / (cutoffs + 1)) for part in range(1, cutoffs + 1)]
    with engine.connect() as connection:
        times = connection.scalar(QUANTILES, {"shares": shares, "until": datetime.now(UTC)})
    if times is None:
        raise SourceError(f"{columns.SCHEMA}.{columns.INTERACTIONS} has no interactions up to now")
    return tuple(sorted({_in_utc(each) for each in times}))


def drop_counters(pulled: PullResult) -> PullResult:
    """Set the network's own counters of likes and views to NaN.

    They have their current values, which include actions after the cutoff.
    """
    posts = pulled.network.posts.assign(**{columns.LIKE_COUNT: np.nan, columns.VIEW_COUNT: np.nan})
    return replace(pulled, network=Network(pulled.network.users, posts))


def evaluate_cutoff(
    pulled: PullResult,
    cutoff: datetime,
    recommenders: list[Recommender],
    *,
    settings: Settings,
    options: Options,
    engine: sa.Engine,
) -> Iterator[Result | LeftOut]:
    """Yield a result for each model, or the reason why there is none."""
    validation, test = make_splits(pulled, cutoff, settings.night.seed)
    users, posts = test.case.users.size, int(test.case.known.sum())
    subject = f"{options.network}, {cutoff.isoformat()}"
    print(f"\n{subject}: {users} users with likes before and after the cutoff, {posts} posts")
    if users == 0:
        print("no user can be evaluated at this cutoff; choose another")
        return
    if RANDOM in options.models:
        yield Result(RANDOM, [score_random(test.case)])
    for recommender in recommenders:
        yield evaluate_recommender(recommender, validation, test, options.budget, settings.night.seed)
    ours = [name for name in OURS if name in options.models]
    try:
        dataset = load_dataset(pulled, settings, engine, cutoff) if ours else None
    except OvernightError as error:
        yield from (LeftOut(name, str(error)) for name in ours)
        return
    for name in ours:
        yield from evaluate_model(name, dataset, test, settings)


def make_splits(pulled: PullResult, cutoff: datetime, seed: int) -> tuple[EvaluationSplit, EvaluationSplit]:
    """Return the validation split, which ends at the cutoff, and the split at the cutoff."""
    network, store = pulled.network, pulled.store
    until = store.scalar(VALIDATION_TIME, {"until": cutoff, "share": VALIDATION_SHARE})
    times = [to_time(until), cutoff]
    groupings = Groupings.of(**{columns.TOPIC: by_topic(network.posts)})
    splits = []
    histories = count_histories(store, network, times, groupings)
    for history, end in zip(histories, (cutoff, datetime.now(UTC)), strict=True):
        case = build_warm_case(network, history, end, seed)
        splits.append(EvaluationSplit(read_log(store, network, history.cutoff), case))
    return splits[0], splits[1]


def build_warm_case(network: Network, history: History, until: datetime, seed: int) -> CatalogueCase:
    """Return the case of users with a like up to `history.cutoff` and a new like up to `until`."""
    likes = read_likes(history.store, until, len(network.users))
    case = build_case(network, history, likes, len(network.users), seed)
    return sample_users(case.keep_users(case.warm), MAX_USERS, seed)


def sample_users(case: CatalogueCase, max_users: int, seed: int) -> CatalogueCase:
    """Draw at most `max_users` users at random."""
    if case.users.size <= max_users:
        return case
    keep = np.zeros(case.users.size, dtype=bool)
    keep[np.random.default_rng(seed).choice(case.users.size, max_users, replace=False)] = True
    return case.keep_users(keep)


def evaluate_recommender(
    recommender: Recommender, validation: EvaluationSplit, test: EvaluationSplit, budget: int, seed: int
) -> Result | LeftOut:
    """Choose parameters on the validation split, and evaluate them at the cutoff.

    An exception of the recommender does not end the benchmark: the result has its message.
    """
    started, best, validation_ndcg = time.perf_counter(), None, None
    try:
        points = recommender.choose_points(validation.log, budget, seed)
        best = points[0]
        if len(points) > 1 and validation.case.users.size:
            ndcgs = [
                rank_and_score(recommender, validation, point, seed).values[NDCG].mean() for point in points
            ]
            best, validation_ndcg = points[int(np.argmax(ndcgs))], float(np.max(ndcgs))
        tuned = time.perf_counter()
        scored = rank_and_score(recommender, test, best, seed)
    except UnavailableError as error:
        return LeftOut(recommender.name, str(error))
    except Exception as error:  # noqa: BLE001 - packages may raise anything
        return LeftOut(recommender.name, f"{str(error) or type(error).__name__}; parameters {best}")
    details = {
        "parameters": best,
        "validation_ndcg": validation_ndcg,
        "tries": len(points),
        "tuned_seconds": round(tuned - started, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return Result(recommender.name, [scored], details)


def rank_and_score(
    recommender: Recommender, split: EvaluationSplit, parameters: Parameters, seed: int
) -> ScoredLists:
    """Fit with one point of the grid, and compute the metrics of the lists."""
    return score_lists(split.case, rank(split, recommender.fit(split.log, parameters, seed)))


def rank(split: EvaluationSplit, scores: Scores) -> Int32s:
    """Return (users, DEPTH) rows of posts, best first; short lists are padded with -1.

    Posts with equal scores are sorted by their likes, descending, then by row.
    """
    case = split.case
    likes = np.bincount(split.log.posts[split.log.liked], minlength=case.popularity.size)
    by_likes = np.lexsort((np.arange(likes.size), -likes))
    order = by_likes[case.known[by_likes]].astype(np.int32)
    position = np.full(likes.size, -1)
    position[order] = np.arange(order.size)
    lists = np.full((case.users.size, DEPTH), -1, dtype=np.int32)
    for start in range(0, case.users.size, USERS_BATCH):
        stop = min(start + USERS_BATCH, case.users.size)
        liked = case.left_out.of_users(start, stop)
        keys = sort_keys(scores(case.users[start:stop])[:, order])
        liked_columns = position[liked.posts]
        known = liked_columns >= 0
        keys[liked.users[known], liked_columns[known]] = -1
        best = np.argpartition(keys, -min(DEPTH, order.size), axis=1)[:, -DEPTH:] if order.size else keys
        top = np.take_along_axis(keys, best, axis=1)
        columns_in_order = np.argsort(-top, axis=1)
        best = np.take_along_axis(best, columns_in_order, axis=1)
        allowed = np.take_along_axis(top, columns_in_order, axis=1) >= 0
        lists[start:stop, : best.shape[1]] = np.where(allowed, order[best], -1)
    return lists


def sort_keys(scores: Float32s) -> Int64s:
    """Return (users, posts) int64 keys >= 0 that sort in the order of the scores.

    The high bits of a key are those of the float32 score, the low 31 bits are the
    reversed column. A negative score becomes minus its magnitude bits, so that
    integers sort like floats. NaN sorts as -inf. Among equal scores, the first
    column has the highest key. The keys of a user differ, so a partial sort has
    only one result.
    """
    scores = np.where(np.isnan(scores), -np.inf, scores).astype(np.float32) + np.float32(0)  # no -0.0
    bits = scores.view(np.int32).astype(np.int64)
    bits = np.where(bits < 0, -(bits + 2**31), bits) + 2**31
    reversed_columns = np.arange(scores.shape[1])[::-1]
    keys: npt.NDArray[np.int64] = (bits << 31) + reversed_columns
    return keys


def evaluate_model(
    name: str, dataset: Dataset, test: EvaluationSplit, settings: Settings
) -> Iterator[Result | LeftOut]:
    """Fit one of our models as in a night at the cutoff, and evaluate its lists.

    If the model has factors, lists ranked by the factors only are evaluated too.
    """
    started = time.perf_counter()
    network, now = dataset.network, dataset.now
    try:
        recipe = choose_recipe(MODELS[name], dataset, settings).recipe
        model = fit(MODELS[name], dataset, windows=dataset.windows, recipe=recipe, settings=settings)
        lists = rank_by_model(model, network, now, test.case, settings)
    except OvernightError as error:
        yield LeftOut(name, str(error))
        return
    details = {"seconds": round(time.perf_counter() - started, 1), "parameters": {"recipe": recipe.name}}
    factors = model.factors(network, now)
    if factors is not None:
        factor_lists = rank(test, by_factors(factors.users, factors.posts))
        yield Result(FACTORS_ONLY.format(name), [score_lists(test.case, factor_lists)])
    yield Result(name, [score_lists(test.case, lists)], details)


class Table:
    """The rows of one network and cutoff; each is printed when it is added."""

    def __init__(self, network: str, cutoff: str, seed: int) -> None:
        self._subject, self._seed = {"network": network, "cutoff": cutoff}, seed
        self._metrics: dict[str, BootstrapResult] = {}
        self._rows: list[Row] = []

    def add(self, result: Result | LeftOut) -> None:
        """Add and print the row of a model: its metrics, or the reason if it is left out."""
        if not self._rows:
            print_head(COLUMNS)
        row: Row = self._subject | {"model": result.model}
        self._rows.append(row)
        if isinstance(result, LeftOut):
            row["left_out"] = result.reason
            print(f"{result.model:<20} left out: {result.reason}", flush=True)
            return
        metrics = self._metrics[result.model] = summarise(result.scored, self._seed)
        low, high = metrics.interval(NDCG)
        row |= {NDCG: metrics.values[NDCG], "low": low, "high": high}
        row |= {name: metrics.values[name] for name in METRICS}
        row["users"] = int(np.unique(np.concatenate([lists.user_ids for lists in result.scored])).size)
        row |= result.details
        print_row(COLUMNS, {"seconds": float("nan")} | row)

    def finish(self) -> list[Row]:
        """Print chosen parameters and differences, and return the rows.

        Differences are our models minus the best recommender of other authors.
        """
        for row in self._rows:
            if row.get("tries", 1) > 1:
                chosen = ", ".join(f"{name} {value}" for name, value in row["parameters"].items())
                print(f"{row['model']}: {chosen} ({row['tries']} tries, {row['tuned_seconds']:.0f} s)")
        others = [name for name in self._metrics if name not in OUR_MODELS]
        if not others:
            return self._rows
        best = max(others, key=lambda name: self._metrics[name].values[NDCG])
        for row in self._rows:
            if row["model"] in OUR_MODELS and row["model"] in self._metrics:
                difference, low, high = self._metrics[row["model"]].minus(self._metrics[best])[NDCG]
                row |= {"best_other": best, "minus_best": difference}
                row |= {"minus_best_low": low, "minus_best_high": high}
                print(f"{row['model']} minus {best}: {NDCG} {difference:+.4f} [{low:+.4f}, {high:+.4f}]")
        return self._rows


if __name__ == "__main__":
    try:
        main()
    except OvernightError as error:
        sys.exit(f"error: {error}")
