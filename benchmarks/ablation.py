"""Measure the effect of each part of our models and of their training on the lists.

For the network in `DATABASE_URL`:

    for each cutoff:
        load the dataset as in a night at the cutoff
        for control and test:
            base = the variant with the recipe that it chooses
            for each case: change one thing of the base, fit, rank all known posts
            evaluate all lists with the likes after the cutoff

Users, metrics and cutoffs are those of lists.py. Differences are paired by user.
The row names the other side of the difference: by default the base of the same
variant; for the base of `test`, the base of `control`. Intervals are over users.
They do not include the variation of a forest with its seed. `seconds` is the time
to fit and rank, without the choice of the recipe.

Variables: `CUTOFFS`, times in UTC separated by commas, or the number of cutoffs
to choose (1); `CASES`, separated by commas: names of cases, of variants, or both
as in `test without factors` (all; the cases they are compared with are added);
`NETWORK`, its name in the rows; `JSON`, a file for the rows.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from threadpoolctl import threadpool_limits

from batch.evaluation.bootstrap import BootstrapResult
from batch.evaluation.catalogue_case import CatalogueCase, ScoredLists, score_lists, summarise
from batch.evaluation.full_catalogue import rank_by_model
from batch.evaluation.learner import choose_recipe
from batch.loading.cohorts import CLUSTER
from batch.loading.examples import Examples
from batch.loading.network import Network
from batch.loading.pull import PullResult, pull
from batch.postgres import open_engine, readable_errors
from batch.training.dataset import Dataset, Window, load_dataset
from batch.training.fit import fit
from batch.training.model import Model
from batch.training.parameters import LIKED, RECIPES, Recipe
from batch.variants import MODELS, Variant
from benchmarks.lists import build_warm_case, choose_cutoffs, drop_counters, read_cutoffs
from benchmarks.report import ALL_CUTOFFS, Columns, check_json_file, print_head, print_row, save_rows
from contract import columns
from contract.columns import TOPIC
from contract.errors import OvernightError
from contract.experiment import CONTROL, TEST
from contract.settings import Settings

NDCG = "ndcg_at_10"
METRICS = ("recall_at_20", "coverage_at_10")
DIFFERENCE = ("difference", "difference_low", "difference_high")
COLUMNS: Columns = {
    "model": ("model", "<38"),
    "recipe": ("recipe", "<15"),
    NDCG: ("ndcg@10", "8.4f"),
    "low": ("low", "7.4f"),
    "high": ("high", "7.4f"),
    "difference": ("diff", "+8.4f"),
    "difference_low": ("low", "+8.4f"),
    "difference_high": ("high", "+8.4f"),
    "recall_at_20": ("recall@20", "9.4f"),
    "coverage_at_10": ("coverage@10", "11.4f"),
    "seconds": ("seconds", "8.1f"),
}

COUNTERS = ("post_likes", "post_views", "post_like_rate")
"""Prefixes of the features that count a post's actions over all time, decayed likes included."""

FADING = ("post_likes_fading",)
RECENCY = (*FADING, "post_recent_likes", "post_last_like", "post_trend", "user_recent", "user_days_since")

ALWAYS_PRESENT = (columns.TOPIC, columns.TEXT, columns.CREATED_AT, columns.LIKE_COUNT, columns.VIEW_COUNT)
"""Columns that every frame of posts has; a network may have additional ones."""

Row = dict[str, Any]
Name = tuple[str, str]
"""Variant and case."""


class MissingPartError(OvernightError):
    """Raised if a network does not have the part that a case changes."""


@dataclass(frozen=True)
class Setup:
    """Inputs of a fit; equal setups give the same model.

    Attributes
    ----------
    windows
        Number of windows of the labels; None: as many as in a night.
    with_user_columns, with_post_columns
        Whether the model may use the network's additional columns of users and of posts.
    """

    variant: Variant
    recipe: Recipe
    windows: int | None = None
    with_user_columns: bool = True
    with_post_columns: bool = True


Change = Callable[[Setup, Dataset], Setup]


@dataclass(frozen=True)
class Case:
    """One change to the base of a variant.

    Attributes
    ----------
    change
        Returns the changed setup; raises MissingPartError if the network does not have the part.
    base
        Name of the case to compare with.
    variants
        Variants that have the part.
    """

    name: str
    change: Change
    base: str = "base"
    variants: tuple[str, ...] = (CONTROL, TEST)


def change_nothing(setup: Setup, dataset: Dataset) -> Setup:
    """Return the setup itself."""
    return setup


def use_recipe(recipe: Recipe) -> Change:
    """Return a change to this recipe."""

    def change(setup: Setup, dataset: Dataset) -> Setup:
        if recipe.from_views and not dataset.with_views:
            raise MissingPartError("the views before the holdout are all liked or all not liked")
        return replace(setup, recipe=recipe)

    return change


def limit_windows(windows: int) -> Change:
    """Return a change to fewer windows with the same labels, so that features are older."""

    def change(setup: Setup, dataset: Dataset) -> Setup:
        if len(dataset.windows) <= windows:
            raise MissingPartError(f"this network has {len(dataset.windows)} windows")
        return replace(setup, windows=windows)

    return change


def leave_out(*prefixes: str) -> Change:
    """Return a change that leaves out the features with these prefixes."""

    def change(setup: Setup, dataset: Dataset) -> Setup:
        without = (*setup.variant.without, *prefixes)
        return replace(setup, variant=replace(setup.variant, without=without))

    return change


def leave_out_text(setup: Setup, dataset: Dataset) -> Setup:
    """Leave out the features of the words of texts."""
    if not dataset.text.features:
        raise MissingPartError("there are too few texts")
    return replace(setup, variant=replace(setup.variant, with_text=False))


def leave_out_embeddings(setup: Setup, dataset: Dataset) -> Setup:
    """Leave out the features of sentence embeddings."""
    if not dataset.embeddings.features:
        raise MissingPartError("there is no encoder, or too few texts")
    return replace(setup, variant=replace(setup.variant, with_embeddings=False))


def leave_out_user_columns(setup: Setup, dataset: Dataset) -> Setup:
    """Leave out the users' columns, in features, factors and cohorts."""
    _require_user_columns(dataset)
    return replace(setup, with_user_columns=False)


def leave_out_post_columns(setup: Setup, dataset: Dataset) -> Setup:
    """Leave out the network's additional columns of posts, and keep ALWAYS_PRESENT."""
    if dataset.network.posts.columns.isin(ALWAYS_PRESENT).all():
        raise MissingPartError("posts have no additional columns")
    return replace(setup, with_post_columns=False)


def leave_out_cohorts(setup: Setup, dataset: Dataset) -> Setup:
    """Leave out the features of users with the same attributes."""
    _require_user_columns(dataset)
    return replace(setup, variant=replace(setup.variant, with_cohorts=False))


def leave_out_factors(setup: Setup, dataset: Dataset) -> Setup:
    """Leave out the factors; the initial scores of the forest are 0."""
    return replace(setup, variant=replace(setup.variant, with_factors=False))


def leave_out_grouping(grouping: str) -> Change:
    """Return a change that leaves out the affinities by one grouping of the posts."""

    def change(setup: Setup, dataset: Dataset) -> Setup:
        if np.unique(dataset.now.groupings.of_post(grouping)).size < 2:
            raise MissingPartError(f"all posts are in one group by {grouping}")
        rest = tuple(name for name in setup.variant.groupings if name != grouping)
        return replace(setup, variant=replace(setup.variant, groupings=rest))

    return change


def _require_user_columns(dataset: Dataset) -> None:
    if dataset.network.users.columns.empty:
        raise MissingPartError("users have no columns")


CASES = (
    Case("base", change_nothing),
    *(Case(recipe.name, use_recipe(recipe)) for recipe in RECIPES.values()),
    Case("liked with 8 negatives", use_recipe(replace(LIKED, negatives_per_like=8)), base=LIKED.name),
    Case("one window", limit_windows(1)),
    Case("three windows", limit_windows(3)),
    Case("without fading likes", leave_out(*FADING)),
    Case("without recency", leave_out(*RECENCY)),
    Case("without counters of posts", leave_out(*COUNTERS)),
    Case("without columns of posts", leave_out_post_columns),
    Case("without text", leave_out_text),
    Case("without profile of users", leave_out_user_columns),
    Case("without affinity by topic", leave_out_grouping(TOPIC)),
    Case("without affinity by cluster", leave_out_grouping(CLUSTER), variants=(TEST,)),
    Case("without factors", leave_out_factors, variants=(TEST,)),
    Case("without people like the user", leave_out_cohorts, variants=(TEST,)),
    Case("without sentence embeddings", leave_out_embeddings, variants=(TEST,)),
)
BASE = CASES[0]


@dataclass(frozen=True)
class Options:
    """Values of the variables.

    Attributes
    ----------
    network
        Its name in the rows.
    cutoffs
        Times, or the number of cutoffs to choose.
    cases
        Variant -> its cases, in the order of CASES; variants without cases are not included.
    """

    network: str
    cutoffs: tuple[datetime, ...] | int
    cases: dict[str, tuple[Case, ...]]

    @classmethod
    def from_environment(cls) -> Options:
        """Read the variables; exit with one line if one is invalid."""
        wanted = {name.strip() for name in os.environ.get("CASES", "").split(",") if name.strip()}
        known = {name for variant in MODELS for case in CASES for name in _list_names(variant, case)}
        if unknown := sorted(wanted - known):
            names = ", ".join([*MODELS, *(case.name for case in CASES)])
            sys.exit(f"error: CASES has {', '.join(unknown)}; there are {names}")
        chosen = {variant: choose_cases(variant, wanted) for variant in MODELS}
        return cls(
            Path(os.environ.get("NETWORK") or "simulated").name,
            read_cutoffs(os.environ.get("CUTOFFS") or "1"),
            {variant: cases for variant, cases in chosen.items() if cases},
        )


def _list_names(variant: str, case: Case) -> set[str]:
    """Return the names that select a case of a variant; none if the variant lacks the part."""
    return {variant, case.name, f"{variant} {case.name}"} if variant in case.variants else set()


def choose_cases(variant: str, wanted: set[str]) -> tuple[Case, ...]:
    """Return the wanted cases (all if `wanted` is empty) and the cases they are compared with."""
    chosen = [case for case in CASES if variant in case.variants]
    chosen = [case for case in chosen if not wanted or _list_names(variant, case) & wanted]
    needed = {case.name for case in chosen} | {case.base for case in chosen}
    needed |= {BASE.name} if chosen else set()
    return tuple(case for case in CASES if case.name in needed)


@dataclass(frozen=True)
class Result:
    """The evaluated lists of one case of a variant.

    Attributes
    ----------
    recipe
        Name of the recipe; several, joined by "or", if cutoffs differ.
    scored
        The metrics of the lists, for each cutoff.
    seconds
        Time to fit and rank, the mean over cutoffs.
    """

    variant: str
    case: Case
    recipe: str
    scored: tuple[ScoredLists, ...]
    seconds: float


@dataclass(frozen=True)
class LeftOut:
    """A case that could not be evaluated, and the reason."""

    variant: str
    case: Case
    reason: str


def main() -> None:
    """Evaluate each case at each cutoff, print a table per cutoff and write the rows."""
    settings, options = Settings.from_environment(), Options.from_environment()
    check_json_file()
    engine = open_engine(settings, "benchmarks.ablation")
    rows: list[Row] = []
    results: dict[Name, list[Result]] = {}
    with readable_errors(settings), threadpool_limits(1, user_api="blas"):
        for cutoff in choose_cutoffs(engine, options.cutoffs):
            with pull(engine, settings, cutoff) as pulled:
                table = Table(options.network, cutoff.isoformat(), settings.night.seed)
                for result in evaluate_cutoff(drop_counters(pulled), cutoff, settings, options, engine):
                    table.add(result)
                    if isinstance(result, Result):
                        results.setdefault((result.variant, result.case.name), []).append(result)
                    save_rows([*rows, *table.rows])
                rows += table.rows
        evaluated = max(map(len, results.values()), default=0)
        if evaluated > 1:
            print(f"\nall {evaluated} cutoffs together: the cases that were evaluated at each of them")
            table = Table(options.network, ALL_CUTOFFS, settings.night.seed)
            for of_case in results.values():
                if len(of_case) == evaluated:
                    table.add(pool_cutoffs(of_case))
            rows += table.rows
    save_rows(rows)


def evaluate_cutoff(
    pulled: PullResult, cutoff: datetime, settings: Settings, options: Options, engine: sa.Engine
) -> Iterator[Result | LeftOut]:
    """Yield a result for each case of each variant, or the reason why there is none."""
    print(f"\n{options.network}, {cutoff.isoformat()}", end=": ", flush=True)
    try:
        dataset = load_dataset(pulled, settings, engine, cutoff)
    except OvernightError as error:
        print("no model can be fitted")
        yield from (LeftOut(variant, BASE, str(error)) for variant in options.cases)
        return
    catalogue = build_warm_case(dataset.network, dataset.now, datetime.now(UTC), settings.night.seed)
    print(
        f"{catalogue.users.size} users with likes before and after the cutoff, "
        f"{int(catalogue.known.sum())} posts"
    )
    if catalogue.users.size == 0:
        print("no user can be evaluated at this cutoff; choose another")
        return
    for variant, cases in options.cases.items():
        yield from evaluate_variant(MODELS[variant], cases, dataset, catalogue, settings)


def evaluate_variant(
    variant: Variant,
    cases: Sequence[Case],
    dataset: Dataset,
    catalogue: CatalogueCase,
    settings: Settings,
) -> Iterator[Result | LeftOut]:
    """Choose the recipe of a variant once, and evaluate its cases; fit equal setups once."""
    try:
        base = Setup(variant, choose_recipe(variant, dataset, settings).recipe)
    except OvernightError as error:
        yield LeftOut(variant.name, BASE, str(error))
        return
    scored: dict[Setup, tuple[ScoredLists, float]] = {}
    for case in cases:
        try:
            setup = case.change(base, dataset)
            if setup not in scored:
                scored[setup] = fit_and_rank(setup, dataset, catalogue, settings)
        except OvernightError as error:
            yield LeftOut(variant.name, case, str(error))
        else:
            lists, seconds = scored[setup]
            yield Result(variant.name, case, setup.recipe.name, (lists,), seconds)


def fit_and_rank(
    setup: Setup, dataset: Dataset, catalogue: CatalogueCase, settings: Settings
) -> tuple[ScoredLists, float]:
    """Fit and rank; return the metrics of the lists, and the seconds.

    Raises
    ------
    ModelError
        No model can be fitted to the examples.
    """
    started = time.perf_counter()
    dataset = replace(dataset, network=hide_columns(dataset.network, setup))
    model = fit_setup(setup, dataset, settings)
    lists = rank_by_model(model, dataset.network, dataset.now, catalogue, settings)
    return score_lists(catalogue, lists), round(time.perf_counter() - started, 1)


def fit_setup(setup: Setup, dataset: Dataset, settings: Settings) -> Model:
    """Fit on a dataset as of the cutoff, which has only the columns of the setup."""
    windows = dataset.windows
    if setup.windows is not None:
        windows = merge_windows(windows, setup.windows)
    return fit(setup.variant, dataset, windows=windows, recipe=setup.recipe, settings=settings)


def hide_columns(network: Network, setup: Setup) -> Network:
    """Return the network without the columns that a setup leaves out."""
    users = network.users if setup.with_user_columns else network.users.iloc[:, :0]
    posts = network.posts if setup.with_post_columns else network.posts[[*ALWAYS_PRESENT]]
    return Network(users, posts)


def merge_windows(windows: Sequence[Window], count: int) -> tuple[Window, ...]:
    """Merge consecutive windows into `count` groups of about equal size.

    The labels are the same. Features are as of the start of the merged window, so they are older.
    """
    bounds = [len(windows) * index // count for index in range(count + 1)]
    groups = [windows[start:stop] for start, stop in pairwise(bounds)]
    return tuple(
        replace(
            group[0],
            views=Examples.concatenate([window.views for window in group]),
            later_likes=group[-1].later_likes,
        )
        for group in groups
    )


def pool_cutoffs(results: Sequence[Result]) -> Result:
    """Return one result with the lists of one case at several cutoffs."""
    return replace(
        results[0],
        recipe=" or ".join(dict.fromkeys(result.recipe for result in results)),
        scored=tuple(lists for result in results for lists in result.scored),
        seconds=round(sum(result.seconds for result in results) / len(results), 1),
    )


class Table:
    """The rows of one network and cutoff; each is printed when it is added."""

    def __init__(self, network: str, cutoff: str, seed: int) -> None:
        self.rows: list[Row] = []
        self._subject, self._seed = {"network": network, "cutoff": cutoff}, seed
        self._metrics: dict[Name, BootstrapResult] = {}

    def add(self, result: Result | LeftOut) -> None:
        """Add and print the row of a case: its metrics, or the reason if it is left out."""
        if not self.rows:
            print_head(COLUMNS)
        name, model = (result.variant, result.case.name), f"{result.variant} {result.case.name}"
        row: Row = self._subject | {"case": result.case.name, "variant": result.variant}
        self.rows.append(row)
        if isinstance(result, LeftOut):
            row["left_out"] = result.reason
            print(f"{model:<38} left out: {result.reason}", flush=True)
            return
        metrics = self._metrics[name] = summarise(result.scored, self._seed)
        low, high = metrics.interval(NDCG)
        row |= {"recipe": result.recipe, NDCG: metrics.values[NDCG], "low": low, "high": high}
        row |= {"compared_with": None} | dict.fromkeys(DIFFERENCE)
        compared_with = (
            (CONTROL, BASE.name) if name == (TEST, BASE.name) else (result.variant, result.case.base)
        )
        if compared_with != name and compared_with in self._metrics:
            row["compared_with"] = " ".join(compared_with)
            row |= zip(DIFFERENCE, metrics.minus(self._metrics[compared_with])[NDCG], strict=True)
        row |= {metric: metrics.values[metric] for metric in METRICS}
        row["users"] = int(np.unique(np.concatenate([lists.user_ids for lists in result.scored])).size)
        row["seconds"] = result.seconds
        numbers = {key: float("nan") if row[key] is None else row[key] for key in row}
        print_row(COLUMNS, {"model": model} | numbers)


if __name__ == "__main__":
    try:
        main()
    except OvernightError as error:
        sys.exit(f"error: {error}")
