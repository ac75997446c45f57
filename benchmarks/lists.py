"""Compares our lists with other people's recommenders, on the network in `DATABASE_URL`.

At each cutoff everything up to it is known, and everybody learns from that:

    for each cutoff:
        validation time = four fifths of the interactions before the cutoff
        for each of the others:
            fit up to the validation time with each of `BUDGET` points of its grid
            fit up to the cutoff with the point whose lists found most likes in between
        control and test: gather, fit and rank as a night as of the cutoff does
        judge all lists by the likes after the cutoff

Judged are warm users, with a like before the cutoff and a new one after it. All
posts known by the cutoff are ranked for them, less those they had liked. The
metrics are those of batch/evaluation/catalogue_case.py, with 95 % intervals over users.

Variables: `CUTOFFS`, times in UTC separated by commas, or how many cutoffs to
choose (1); `MODELS`, names separated by commas (all); `BUDGET`, points of each
grid to try (12); `NETWORK`, its name in the rows; `JSON`, a file for the rows.
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
from batch.evaluation.choose_recipe import choose_recipe
from batch.evaluation.full_catalogue import rank_by_model
from batch.evaluation.ranking_metrics import DEPTH
from batch.loading.history import History, count_histories, read_likes
from batch.loading.interaction_store import to_time
from batch.loading.network import Network
from batch.loading.post_groups import Groupings, by_topic
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
FACTORS_ALONE = "factors of {}"
ALL_OURS = frozenset({*OURS, *map(FACTORS_ALONE.format, OURS)})
NAMES = (RANDOM, *(each.name for each in RECOMMENDERS), *GRIDS, *OURS)

VALIDATION_SHARE = 0.8
"""Of the interactions before a cutoff; parameters are chosen by the likes after that."""

LAST_SHARE = 0.4
"""Chosen cutoffs cut the last part of the interactions evenly; one cutoff lies in its middle."""

MAX_USERS = 10_000
"""Judged at a cutoff, drawn at random where there are more."""

BUDGET = 12
"""Points of each grid to try, unless the variable says otherwise."""

USERS_BATCH = 500
FIRST = "ndcg_at_10"

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
    FIRST: ("ndcg@10", "8.4f"),
    "low": ("low", "7.4f"),
    "high": ("high", "7.4f"),
    "hitrate_at_5": ("hitrate@5", "9.4f"),
    "recall_at_20": ("recall@20", "9.4f"),
    "coverage_at_10": ("coverage@10", "11.4f"),
    "overlap_at_10": ("overlap@10", "10.3f"),
    "popularity_lift_at_10": ("lift@10", "8.2f"),
    "seconds": ("seconds", "8.0f"),
}
FIGURES = tuple(name for name in COLUMNS if name not in ("model", "low", "high", "seconds"))

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What the variables ask for; `network` is a name for the rows, `cutoffs` times or how many."""

    network: str
    cutoffs: tuple[datetime, ...] | int
    models: tuple[str, ...]
    budget: int

    @classmethod
    def from_environment(cls) -> Options:
        """Read the variables; a wrong one ends the program with one line."""
        models = [name.strip() for name in os.environ.get("MODELS", "").split(",") if name.strip()]
        if unknown := sorted(set(models) - set(NAMES)):
            sys.exit(f"error: MODELS has {', '.join(unknown)}; there are {', '.join(NAMES)}")
        return cls(
            Path(os.environ.get("NETWORK") or "simulated").name,
            read_cutoffs(os.environ.get("CUTOFFS") or "1"),
            tuple(name for name in NAMES if name in models or not models),
            _positive("BUDGET", os.environ.get("BUDGET") or str(BUDGET)),
        )


def read_cutoffs(text: str) -> tuple[datetime, ...] | int:
    """Read the variable `CUTOFFS`: times in UTC, or how many to choose; a wrong one ends the program."""
    if text.strip().isdigit():
        return _positive("CUTOFFS", text)
    try:
        times = [datetime.fromisoformat(part.strip()) for part in text.split(",")]
    except ValueError:
        sys.exit(f"error: CUTOFFS is {text!r}; give times like 2021-12-15T00:00:00, or how many to choose")
    return tuple(sorted({_in_utc(each) for each in times}))


def _in_utc(time: datetime) -> datetime:
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def _positive(name: str, text: str) -> int:
    if not text.strip().isdigit() or int(text) == 0:
        sys.exit(f"error: {name} is {text!r}, which is no number from 1 on")
    return int(text)


@dataclass(frozen=True)
class Stage:
    """A time up to which everything is known: what can be learnt from, and who is judged."""

    log: Log
    case: CatalogueCase


@dataclass(frozen=True)
class LeftOut:
    """A model that could not be judged, and why."""

    model: str
    reason: str


@dataclass(frozen=True)
class Result:
    """One model's lists.

    Attributes
    ----------
    scored
        The figures of its lists, for each cutoff.
    details
        `seconds` to fit and rank and, for the others, the parameters that were
        chosen, their NDCG@10 on the validation split, tries and seconds of all tries.
    """

    model: str
    scored: list[ScoredLists]
    details: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Judge every model at every cutoff, print a table for each and write the rows."""
    settings, options = Settings.from_environment(), Options.from_environment()
    check_json_file()
    engine = open_engine(settings, "benchmarks.lists")
    rows: list[Row] = []
    scored: dict[str, list[ScoredLists]] = {}
    with readable_errors(settings), threadpool_limits(1, user_api="blas"), start_worker() as worker:
        others = [each for each in (*RECOMMENDERS, *worker.recommenders()) if each.name in options.models]
        cutoffs = choose_cutoffs(engine, options.cutoffs)
        for cutoff in cutoffs:
            with pull(engine, settings, cutoff) as pulled:
                found = judge_cutoff(
                    without_counters(pulled),
                    cutoff,
                    others,
                    settings=settings,
                    options=options,
                    engine=engine,
                )
                table = Table(options.network, cutoff.isoformat(), settings.night.seed)
                for each in found:
                    table.add(each)
                    if isinstance(each, Result):
                        scored.setdefault(each.model, []).extend(each.scored)
                rows += table.finish()
                save_rows(rows)
        evaluated = max(map(len, scored.values()), default=0)
        if evaluated > 1:
            print(f"\nall {evaluated} cutoffs together: the models that were evaluated at each of them")
            table = Table(options.network, ALL_CUTOFFS, settings.night.seed)
            for model, parts in scored.items():
                if len(parts) == evaluated:
                    table.add(Result(model, parts))
            rows += table.finish()
    save_rows(rows)


def choose_cutoffs(engine: sa.Engine, cutoffs: tuple[datetime, ...] | int) -> tuple[datetime, ...]:
    """Return the cutoffs given, or so many times that cut the last LAST_SHARE of the log evenly.

    Raises
    ------
    SourceError
        There are no interactions to choose by.
    """
    if not isinstance(cutoffs, int):
        return cutoffs
    shares = [1 - LAST_SHARE * (1 - part / (cutoffs + 1)) for part in range(1, cutoffs + 1)]
    with engine.connect() as connection:
        times = connection.scalar(QUANTILES, {"shares": shares, "until": datetime.now(UTC)})
    if times is None:
        raise SourceError(f"{columns.SCHEMA}.{columns.INTERACTIONS} has no interactions up to now")
    return tuple(sorted({_in_utc(each) for each in times}))


def without_counters(pulled: PullResult) -> PullResult:
    """Leave the network's own counters of likes and views out: they stand at what they are now."""
    posts = pulled.network.posts.assign(**{columns.LIKE_COUNT: np.nan, columns.VIEW_COUNT: np.nan})
    return replace(pulled, network=Network(pulled.network.users, posts))


def judge_cutoff(
    pulled: PullResult,
    cutoff: datetime,
    others: list[Recommender],
    *,
    settings: Settings,
    options: Options,
    engine: sa.Engine,
) -> Iterator[Result | LeftOut]:
    """Yield a result for each model, or why there is none."""
    validation, test = make_stages(pulled, cutoff, settings.night.seed)
    users, posts = test.case.users.size, int(test.case.known.sum())
    start = f"{options.network}, {cutoff.isoformat()}"
    print(f"\n{start}: {users} users with likes before and after, {posts} posts")
    if users == 0:
        print("nobody can be evaluated at this cutoff; choose another")
        return
    if RANDOM in options.models:
        yield Result(RANDOM, [score_random(test.case)])
    for other in others:
        yield judge_other(other, validation, test, options.budget, settings.night.seed)
    ours = [name for name in OURS if name in options.models]
    try:
        dataset = load_dataset(pulled, settings, engine, cutoff) if ours else None
    except OvernightError as error:
        yield from (LeftOut(name, str(error)) for name in ours)
        return
    for name in ours:
        yield from judge_ours(name, dataset, test, settings)


def make_stages(pulled: PullResult, cutoff: datetime, seed: int) -> tuple[Stage, Stage]:
    """Return the validation stage, judged by likes up to the cutoff, and the stage as of the cutoff."""
    network, store = pulled.network, pulled.store
    until = store.scalar(VALIDATION_TIME, {"until": cutoff, "share": VALIDATION_SHARE})
    times = [to_time(until), cutoff]
    groupings = Groupings.of(**{columns.TOPIC: by_topic(network.posts)})
    stages = []
    histories = count_histories(store, network, times, groupings)
    for history, after in zip(histories, (cutoff, datetime.now(UTC)), strict=True):
        case = warm_case(network, history, after, seed)
        stages.append(Stage(read_log(store, network, history.cutoff), case))
    return stages[0], stages[1]


def warm_case(network: Network, history: History, until: datetime, seed: int) -> CatalogueCase:
    """Return whom to judge: users with a like by `history.cutoff` and a new one up to a later time."""
    likes = read_likes(history.store, until, len(network.users))
    case = build_case(network, history, likes, len(network.users), seed)
    return keep_some(case.keep_users(case.warm), MAX_USERS, seed)


def keep_some(case: CatalogueCase, max_users: int, seed: int) -> CatalogueCase:
    """Draw so many of the users where there are more."""
    if case.users.size <= max_users:
        return case
    keep = np.zeros(case.users.size, dtype=bool)
    keep[np.random.default_rng(seed).choice(case.users.size, max_users, replace=False)] = True
    return case.keep_users(keep)


def judge_other(
    other: Recommender, validation: Stage, test: Stage, budget: int, seed: int
) -> Result | LeftOut:
    """Choose parameters on the validation split, and judge what they give at the cutoff."""
    started, best, validation_ndcg = time.perf_counter(), None, None
    try:
        tries = other.tries(validation.log, budget, seed)
        best = tries[0]
        if len(tries) > 1 and validation.case.users.size:
            figures = [rank_and_score(other, validation, each, seed).values[FIRST].mean() for each in tries]
            best, validation_ndcg = tries[int(np.argmax(figures))], float(np.max(figures))
        tuned = time.perf_counter()
        scored = rank_and_score(other, test, best, seed)
    except UnavailableError as error:
        return LeftOut(other.name, str(error))
    except Exception as error:  # noqa: BLE001 - whatever another's package raises is its row of the table
        return LeftOut(other.name, f"{str(error) or type(error).__name__}; parameters {best}")
    details = {
        "parameters": best,
        "validation_ndcg": validation_ndcg,
        "tries": len(tries),
        "tuned_seconds": round(tuned - started, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return Result(other.name, [scored], details)


def rank_and_score(other: Recommender, stage: Stage, parameters: Parameters, seed: int) -> ScoredLists:
    """Fit with one point of the grid, and score the lists."""
    return score_lists(stage.case, rank(stage, other.fit(stage.log, parameters, seed)))


def rank(stage: Stage, scores: Scores) -> Int32s:
    """Return (users, DEPTH) rows of posts, best first, -1 where there are no more.

    Among equal scores the post with more likes comes first, then the lower row.
    """
    case = stage.case
    likes = np.bincount(stage.log.posts[stage.log.liked], minlength=case.popularity.size)
    by_likes = np.lexsort((np.arange(likes.size), -likes))
    order = by_likes[case.known[by_likes]].astype(np.int32)
    position = np.full(likes.size, -1)
    position[order] = np.arange(order.size)
    lists = np.full((case.users.size, DEPTH), -1, dtype=np.int32)
    for start in range(0, case.users.size, USERS_BATCH):
        stop = min(start + USERS_BATCH, case.users.size)
        liked = case.likes.of_users(start, stop)
        keys = sort_keys(scores(case.users[start:stop])[:, order])
        at = position[liked.posts]
        keys[liked.users[at >= 0], at[at >= 0]] = -1
        best = np.argpartition(keys, -min(DEPTH, order.size), axis=1)[:, -DEPTH:] if order.size else keys
        top = np.take_along_axis(keys, best, axis=1)
        columns_in_order = np.argsort(-top, axis=1)
        best = np.take_along_axis(best, columns_in_order, axis=1)
        shown = np.take_along_axis(top, columns_in_order, axis=1) >= 0
        lists[start:stop, : best.shape[1]] = np.where(shown, order[best], -1)
    return lists


def sort_keys(scores: Float32s) -> Int64s:
    """Return (users, posts) numbers from 0 on that sort as the scores do.

    Among equal scores the first column has the highest, and NaN sorts as -inf.
    The bits of a float32 sort as it does once those of negative numbers are
    turned; below them stands the column. No two keys of a user are equal, so
    that a partial sort gives one order only.
    """
    scores = np.where(np.isnan(scores), -np.inf, scores).astype(np.float32) + np.float32(0)  # no -0.0
    bits = scores.view(np.int32).astype(np.int64)
    bits = np.where(bits < 0, -(bits + 2**31), bits) + 2**31
    last = np.arange(scores.shape[1])[::-1]
    keys: npt.NDArray[np.int64] = (bits << 31) + last
    return keys


def judge_ours(name: str, dataset: Dataset, test: Stage, settings: Settings) -> Iterator[Result | LeftOut]:
    """Fit one of our models as the night as of the cutoff does; judge its lists, and its factors alone."""
    started = time.perf_counter()
    network, now = dataset.network, dataset.now
    try:
        recipe = choose_recipe(MODELS[name], dataset, settings).recipe
        model = fit(MODELS[name], dataset, windows=dataset.windows, recipe=recipe, settings=settings)
        lists = rank_by_model(model, network, now, test.case, settings.night.threads)
    except OvernightError as error:
        yield LeftOut(name, str(error))
        return
    details = {"seconds": round(time.perf_counter() - started, 1), "parameters": {"recipe": recipe.name}}
    factors = model.factors(network, now)
    if factors is not None:
        alone = rank(test, by_factors(factors.users, factors.posts))
        yield Result(FACTORS_ALONE.format(name), [score_lists(test.case, alone)])
    yield Result(name, [score_lists(test.case, lists)], details)


class Table:
    """The rows of one network and cutoff, printed as they come."""

    def __init__(self, network: str, cutoff: str, seed: int) -> None:
        self._start, self._seed = {"network": network, "cutoff": cutoff}, seed
        self._measured: dict[str, BootstrapResult] = {}
        self._rows: list[Row] = []

    def add(self, found: Result | LeftOut) -> None:
        """Measure a model and print its row; what is left out has a row of its own kind."""
        if not self._rows:
            print_head(COLUMNS)
        row: Row = self._start | {"model": found.model}
        self._rows.append(row)
        if isinstance(found, LeftOut):
            row["left_out"] = found.reason
            print(f"{found.model:<20} left out: {found.reason}", flush=True)
            return
        measured = summarise(found.scored, self._seed)
        self._measured[found.model] = measured
        low, high = measured.interval(FIRST)
        row |= {FIRST: measured.values[FIRST], "low": low, "high": high}
        row |= {figure: measured.values[figure] for figure in FIGURES}
        row["users"] = int(np.unique(np.concatenate([part.user_ids for part in found.scored])).size)
        row |= found.details
        print_row(COLUMNS, {"seconds": float("nan")} | row)

    def finish(self) -> list[Row]:
        """Print what was chosen for the others and ours less the best of them; return the rows."""
        for row in self._rows:
            if row.get("tries", 1) > 1:
                chosen = ", ".join(f"{name} {value}" for name, value in row["parameters"].items())
                print(f"{row['model']}: {chosen} ({row['tries']} tries, {row['tuned_seconds']:.0f} s)")
        others = [name for name in self._measured if name not in ALL_OURS]
        if not others:
            return self._rows
        best = max(others, key=lambda name: self._measured[name].values[FIRST])
        for row in self._rows:
            if row["model"] in ALL_OURS and row["model"] in self._measured:
                more, low, high = self._measured[row["model"]].minus(self._measured[best])[FIRST]
                row |= {"best_other": best, "minus_best": more}
                row |= {"minus_best_low": low, "minus_best_high": high}
                print(f"{row['model']} less {best}: {FIRST} {more:+.4f} [{low:+.4f}, {high:+.4f}]")
        return self._rows


if __name__ == "__main__":
    try:
        main()
    except OvernightError as error:
        sys.exit(f"error: {error}")
