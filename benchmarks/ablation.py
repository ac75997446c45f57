"""Measures what each part of our models, and of the way they learn, pays in the lists.

Works on the network in `DATABASE_URL`. At each cutoff:

    gather what was known, as a night as of the cutoff does
    for control and test:
        base = the variant with the recipe that it chooses
        for each case: change one thing of the base, fit, rank all known posts
        judge all lists by the likes after the cutoff

Users, metrics and cutoffs are those of lists.py. A difference is paired by user
and its row names what it is a difference to: the base of the variant, and for
the base of `test` that of `control`. Its interval is over users; it does not
hold how much a forest changes with its seed. `seconds` are those to fit and
rank, without the choice of the recipe.

Variables: `CUTOFFS`, times in UTC separated by commas, or how many cutoffs to
choose (1); `CASES`, names of cases or of variants, or both as in
`test without factors`, separated by commas (all; what they are compared with
is measured too); `NETWORK`, its name in the rows; `JSON`, a file for the rows.
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
from batch.evaluation.choose_recipe import choose_recipe
from batch.evaluation.full_catalogue import rank_by_model
from batch.loading.examples import Examples
from batch.loading.network import Network
from batch.loading.post_groups import CLUSTER
from batch.loading.pull import PullResult, pull
from batch.postgres import open_engine, readable_errors
from batch.training.dataset import Dataset, Window, load_dataset
from batch.training.fit import fit
from batch.training.model import Model
from batch.training.recipe import LIKED, RECIPES, Recipe
from batch.variants import MODELS, Variant
from benchmarks.lists import choose_cutoffs, read_cutoffs, warm_case, without_counters
from benchmarks.report import ALL_CUTOFFS, Columns, check_json_file, print_head, print_row, save_rows
from contract import columns
from contract.columns import TOPIC
from contract.errors import OvernightError
from contract.experiment import CONTROL, TEST
from contract.settings import Settings

FIRST = "ndcg_at_10"
FIGURES = ("recall_at_20", "coverage_at_10")
DIFFERENCE = ("difference", "difference_low", "difference_high")
COLUMNS: Columns = {
    "model": ("model", "<38"),
    "recipe": ("recipe", "<15"),
    FIRST: ("ndcg@10", "8.4f"),
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
"""Starts of names of features: what is counted of a post over all time, its fading likes too."""

FADING = ("post_likes_fading",)
RECENCY = (*FADING, "post_recent_likes", "post_last_like", "post_trend", "user_recent", "user_days_since")

ALWAYS_THERE = (columns.TOPIC, columns.TEXT, columns.CREATED_AT, columns.LIKE_COUNT, columns.VIEW_COUNT)
"""Columns that every frame of posts has; the others are the network's own."""

Row = dict[str, Any]
Name = tuple[str, str]
"""Variant and case."""


class MissingPartError(OvernightError):
    """Raised where a network lacks what a case would change."""


@dataclass(frozen=True)
class Setup:
    """How one model is made; equal setups make the same model.

    Attributes
    ----------
    windows
        How many windows the labels are cut into; None for as many as a night has.
    with_user_columns, with_post_columns
        Whether the network's own columns of users and of posts are known.
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
        Returns the changed setup; raises MissingPartError where the network has nothing to change.
    base
        The case that it is compared with.
    variants
        Those that have the part.
    """

    name: str
    change: Change
    base: str = "base"
    variants: tuple[str, ...] = (CONTROL, TEST)


def keep(setup: Setup, dataset: Dataset) -> Setup:
    """Change nothing."""
    return setup


def learn(recipe: Recipe) -> Change:
    """Learn by a recipe, whichever is chosen."""

    def change(setup: Setup, dataset: Dataset) -> Setup:
        if recipe.from_views and not dataset.with_views:
            raise MissingPartError("before the holdout there are no views of both kinds, liked and not")
        return replace(setup, recipe=recipe)

    return change


def cut_into(windows: int) -> Change:
    """Cut the same labels into fewer windows, so that features are as of earlier times."""

    def change(setup: Setup, dataset: Dataset) -> Setup:
        if len(dataset.windows) <= windows:
            raise MissingPartError(f"this network has {len(dataset.windows)} windows")
        return replace(setup, windows=windows)

    return change


def leave_out(*starts: str) -> Change:
    """Leave out the features whose names start with one of these."""

    def change(setup: Setup, dataset: Dataset) -> Setup:
        without = (*setup.variant.without, *starts)
        return replace(setup, variant=replace(setup.variant, without=without))

    return change


def leave_out_text(setup: Setup, dataset: Dataset) -> Setup:
    """Leave out what the words of texts give."""
    if not dataset.text.features:
        raise MissingPartError("there are too few texts")
    return replace(setup, variant=replace(setup.variant, with_text=False))


def leave_out_embeddings(setup: Setup, dataset: Dataset) -> Setup:
    """Leave out what the sentences of texts give."""
    if not dataset.embeddings.features:
        raise MissingPartError("there is no encoder, or too few texts")
    return replace(setup, variant=replace(setup.variant, with_embeddings=False))


def leave_out_user_columns(setup: Setup, dataset: Dataset) -> Setup:
    """Leave out the profile: as features, and where factors and people like the user take it."""
    _require_user_columns(dataset)
    return replace(setup, with_user_columns=False)


def leave_out_post_columns(setup: Setup, dataset: Dataset) -> Setup:
    """Leave out the network's own columns of posts; topic, text and time of creation stay."""
    if dataset.network.posts.columns.isin(ALWAYS_THERE).all():
        raise MissingPartError("posts have no columns of the network's own")
    return replace(setup, with_post_columns=False)


def leave_out_people(setup: Setup, dataset: Dataset) -> Setup:
    """Leave out what people with the same attributes like."""
    _require_user_columns(dataset)
    return replace(setup, variant=replace(setup.variant, with_cohorts=False))


def leave_out_factors(setup: Setup, dataset: Dataset) -> Setup:
    """Leave out the factors: the forest starts from 0."""
    return replace(setup, variant=replace(setup.variant, with_factors=False))


def leave_out_grouping(grouping: str) -> Change:
    """Leave out the affinities by one grouping of the posts."""

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
    Case("base", keep),
    *(Case(recipe.name, learn(recipe)) for recipe in RECIPES.values()),
    Case("liked with 8 negatives", learn(replace(LIKED, negatives_per_like=8)), base=LIKED.name),
    Case("one window", cut_into(1)),
    Case("three windows", cut_into(3)),
    Case("without fading likes", leave_out(*FADING)),
    Case("without recency", leave_out(*RECENCY)),
    Case("without counters of posts", leave_out(*COUNTERS)),
    Case("without columns of posts", leave_out_post_columns),
    Case("without text", leave_out_text),
    Case("without profile of users", leave_out_user_columns),
    Case("without affinity by topic", leave_out_grouping(TOPIC)),
    Case("without affinity by cluster", leave_out_grouping(CLUSTER), variants=(TEST,)),
    Case("without factors", leave_out_factors, variants=(TEST,)),
    Case("without people like the user", leave_out_people, variants=(TEST,)),
    Case("without sentence embeddings", leave_out_embeddings, variants=(TEST,)),
)
BASE = CASES[0]


@dataclass(frozen=True)
class Options:
    """What the variables ask for.

    Attributes
    ----------
    network
        Its name in the rows.
    cutoffs
        Times, or how many to choose.
    cases
        Variant -> its cases, in the order of CASES; a variant with none is not among them.
    """

    network: str
    cutoffs: tuple[datetime, ...] | int
    cases: dict[str, tuple[Case, ...]]

    @classmethod
    def from_environment(cls) -> Options:
        """Read the variables; a wrong one ends the program with one line."""
        wanted = {name.strip() for name in os.environ.get("CASES", "").split(",") if name.strip()}
        known = {name for variant in MODELS for case in CASES for name in _names(variant, case)}
        if unknown := sorted(wanted - known):
            names = ", ".join([*MODELS, *(case.name for case in CASES)])
            sys.exit(f"error: CASES has {', '.join(unknown)}; there are {names}")
        chosen = {variant: choose_cases(variant, wanted) for variant in MODELS}
        return cls(
            Path(os.environ.get("NETWORK") or "simulated").name,
            read_cutoffs(os.environ.get("CUTOFFS") or "1"),
            {variant: cases for variant, cases in chosen.items() if cases},
        )


def _names(variant: str, case: Case) -> set[str]:
    """Return what names a case of a variant; nothing does where the variant lacks the part."""
    return {variant, case.name, f"{variant} {case.name}"} if variant in case.variants else set()


def choose_cases(variant: str, wanted: set[str]) -> tuple[Case, ...]:
    """Return the cases asked for (all if nothing is), and those that they are compared with."""
    asked = [case for case in CASES if variant in case.variants]
    asked = [case for case in asked if not wanted or _names(variant, case) & wanted]
    needed = {case.name for case in asked} | {case.base for case in asked}
    needed |= {BASE.name} if asked else set()
    return tuple(case for case in CASES if case.name in needed)


@dataclass(frozen=True)
class Result:
    """The lists of one case of a variant.

    Attributes
    ----------
    recipe
        Name of what was learnt; several if cutoffs differ.
    scored
        The figures of the lists, for each cutoff.
    seconds
        To fit and rank, the mean over cutoffs.
    """

    variant: str
    case: Case
    recipe: str
    scored: tuple[ScoredLists, ...]
    seconds: float


@dataclass(frozen=True)
class LeftOut:
    """A case that could not be evaluated, and why."""

    variant: str
    case: Case
    reason: str


def main() -> None:
    """Measure every case at every cutoff, print a table for each and write the rows."""
    settings, options = Settings.from_environment(), Options.from_environment()
    check_json_file()
    engine = open_engine(settings, "benchmarks.ablation")
    rows: list[Row] = []
    results: dict[Name, list[Result]] = {}
    with readable_errors(settings), threadpool_limits(1, user_api="blas"):
        for cutoff in choose_cutoffs(engine, options.cutoffs):
            with pull(engine, settings, cutoff) as pulled:
                table = Table(options.network, cutoff.isoformat(), settings.night.seed)
                for found in judge_cutoff(without_counters(pulled), cutoff, settings, options, engine):
                    table.add(found)
                    if isinstance(found, Result):
                        results.setdefault((found.variant, found.case.name), []).append(found)
                    save_rows([*rows, *table.rows])
                rows += table.rows
        evaluated = max(map(len, results.values()), default=0)
        if evaluated > 1:
            print(f"\nall {evaluated} cutoffs together: the cases that were evaluated at each of them")
            table = Table(options.network, ALL_CUTOFFS, settings.night.seed)
            for parts in results.values():
                if len(parts) == evaluated:
                    table.add(pool(parts))
            rows += table.rows
    save_rows(rows)


def judge_cutoff(
    pulled: PullResult, cutoff: datetime, settings: Settings, options: Options, engine: sa.Engine
) -> Iterator[Result | LeftOut]:
    """Yield a result for each case of each variant, or why there is none."""
    print(f"\n{options.network}, {cutoff.isoformat()}", end=": ", flush=True)
    try:
        dataset = load_dataset(pulled, settings, engine, cutoff)
    except OvernightError as error:
        print("nothing can be learnt")
        yield from (LeftOut(variant, BASE, str(error)) for variant in options.cases)
        return
    catalogue = warm_case(dataset.network, dataset.now, datetime.now(UTC), settings.night.seed)
    print(f"{catalogue.users.size} users with likes before and after, {int(catalogue.known.sum())} posts")
    if catalogue.users.size == 0:
        print("nobody can be evaluated at this cutoff; choose another")
        return
    for variant, cases in options.cases.items():
        yield from judge_variant(MODELS[variant], cases, dataset, catalogue, settings)


def judge_variant(
    variant: Variant,
    cases: Sequence[Case],
    dataset: Dataset,
    catalogue: CatalogueCase,
    settings: Settings,
) -> Iterator[Result | LeftOut]:
    """Choose the recipe of a variant once, and judge its cases; equal setups are fitted once."""
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
    """Fit, rank and score the lists; return them and the seconds.

    Raises
    ------
    ModelError
        Nothing can be learnt from the examples.
    """
    started = time.perf_counter()
    dataset = replace(dataset, network=hide_columns(dataset.network, setup))
    model = fit_setup(setup, dataset, settings)
    lists = rank_by_model(model, dataset.network, dataset.now, catalogue, settings.night.threads)
    return score_lists(catalogue, lists), round(time.perf_counter() - started, 1)


def fit_setup(setup: Setup, dataset: Dataset, settings: Settings) -> Model:
    """Fit on all that was known at the cutoff; `gathered` has the columns that the setup knows."""
    windows = dataset.windows
    if setup.windows is not None:
        windows = merge_windows(windows, setup.windows)
    return fit(setup.variant, dataset, windows=windows, recipe=setup.recipe, settings=settings)


def hide_columns(network: Network, setup: Setup) -> Network:
    """Return the network without the columns that a setup does not know."""
    users = network.users if setup.with_user_columns else network.users.iloc[:, :0]
    posts = network.posts if setup.with_post_columns else network.posts[[*ALWAYS_THERE]]
    return Network(users, posts)


def merge_windows(windows: Sequence[Window], count: int) -> tuple[Window, ...]:
    """Put consecutive windows together, about as many into each; all labels stay, features are staler."""
    bounds = [len(windows) * index // count for index in range(count + 1)]
    parts = [windows[start:stop] for start, stop in pairwise(bounds)]
    return tuple(
        replace(
            part[0],
            views=Examples.concatenate([window.views for window in part]),
            later_likes=part[-1].later_likes,
        )
        for part in parts
    )


def pool(parts: Sequence[Result]) -> Result:
    """Put the lists of one case at several cutoffs together."""
    return replace(
        parts[0],
        recipe=" or ".join(dict.fromkeys(part.recipe for part in parts)),
        scored=tuple(lists for part in parts for lists in part.scored),
        seconds=round(sum(part.seconds for part in parts) / len(parts), 1),
    )


class Table:
    """The rows of one network and cutoff, printed as they come."""

    def __init__(self, network: str, cutoff: str, seed: int) -> None:
        self.rows: list[Row] = []
        self._start, self._seed = {"network": network, "cutoff": cutoff}, seed
        self._measured: dict[Name, BootstrapResult] = {}

    def add(self, found: Result | LeftOut) -> None:
        """Measure a case and print its row; what is left out has a row of its own kind."""
        if not self.rows:
            print_head(COLUMNS)
        name, model = (found.variant, found.case.name), f"{found.variant} {found.case.name}"
        row: Row = self._start | {"case": found.case.name, "variant": found.variant}
        self.rows.append(row)
        if isinstance(found, LeftOut):
            row["left_out"] = found.reason
            print(f"{model:<38} left out: {found.reason}", flush=True)
            return
        measured = self._measured[name] = summarise(found.scored, self._seed)
        low, high = measured.interval(FIRST)
        row |= {"recipe": found.recipe, FIRST: measured.values[FIRST], "low": low, "high": high}
        row |= {"compared_with": None} | dict.fromkeys(DIFFERENCE)
        compared_with = (
            (CONTROL, BASE.name) if name == (TEST, BASE.name) else (found.variant, found.case.base)
        )
        if compared_with != name and compared_with in self._measured:
            row["compared_with"] = " ".join(compared_with)
            row |= zip(DIFFERENCE, measured.minus(self._measured[compared_with])[FIRST], strict=True)
        row |= {figure: measured.values[figure] for figure in FIGURES}
        row["users"] = int(np.unique(np.concatenate([part.user_ids for part in found.scored])).size)
        row["seconds"] = found.seconds
        shown = {key: float("nan") if row[key] is None else row[key] for key in row}
        print_row(COLUMNS, {"model": model} | shown)


if __name__ == "__main__":
    try:
        main()
    except OvernightError as error:
        sys.exit(f"error: {error}")
