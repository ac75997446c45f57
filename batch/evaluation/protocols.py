"""Evaluation beyond the night's one split: folds of users, several cutoffs, and backtests of past nights.

A backtest builds the lists of past nights as `run --as-of` would:

    for each cutoff:
        load the data as of the cutoff, fit the model on all of it
        rank the full catalogue for the users who liked something afterwards

"Afterwards" ends at the next cutoff, or now for the last one, so no like is
counted twice. Nothing is published and Redis is not used, so posts that
operators blocked are ranked too. Parameters saved by `tune` are used, even if
they were tuned on data from after a cutoff.

An evaluation on a holdout differs: it uses the model that was fitted before the
holdout. A backtest uses the model that would have gone live.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import numpy as np
import sqlalchemy as sa
from sklearn.model_selection import GroupKFold

from batch.arrays import Int64s
from batch.evaluation import PRIMARY_METRIC
from batch.evaluation.evaluate import Evaluation, evaluate_rows
from batch.evaluation.full_catalogue import CatalogueResult, RankedCase, measure_cases, rank_case
from batch.evaluation.holdout import HoldoutEvaluation, compute_like_rate, evaluate_holdout, select_rows
from batch.evaluation.learner import choose_recipe
from batch.evaluation.scored_rows import ScoredRows, concat_rows, score_rows
from batch.loading.examples import Examples
from batch.loading.history import read_likes
from batch.loading.pull import pull
from batch.loading.split import TimeSplit
from batch.progress import track
from batch.training.dataset import Dataset, open_dataset, split_as_set
from batch.training.fit import fit
from batch.variants import Variant
from contract.columns import INTERACTIONS, SCHEMA
from contract.errors import OvernightError, SourceError
from contract.settings import Settings


@dataclass(frozen=True)
class CutoffEvaluation:
    """One cutoff: how time was split, and variant -> its evaluation on the holdout."""

    split: TimeSplit
    holdouts: dict[str, HoldoutEvaluation]


def evaluate_folds(variant: Variant, dataset: Dataset, folds: int, settings: Settings) -> Evaluation:
    """Evaluate each user's labels since the history's end by a model trained without that user's labels.

    All features are as of the history's end, so they contain no label. Folds
    are groups of users, so training has no label of an evaluated user.

    Raises
    ------
    OvernightError
        There are fewer users than folds.
    """
    since_end = [each for each in dataset.windows if each.history.cutoff >= dataset.split.history_end]
    examples = Examples.concatenate([each.views for each in since_end])
    rows, fold_of_user = select_rows(examples), assign_folds(examples.users, folds, settings.night.seed)
    fold_of_user = np.append(fold_of_user, np.full(len(dataset.network.users) - fold_of_user.size, -1))
    recipe = choose_recipe(variant, dataset, settings).recipe

    def score_fold(fold: int) -> ScoredRows:
        others = [each.keep_users(fold_of_user != fold) for each in dataset.windows]
        own = rows.select(fold_of_user[rows.users] == fold)
        model = fit(variant, dataset, windows=others, recipe=recipe, settings=settings)
        return score_rows(
            model,
            dataset.network,
            dataset.at_history_end,
            own,
            base_rate=compute_like_rate(others),
            threads=settings.night.threads,
        )

    steps = ((1, score_fold(fold)) for fold in range(folds))
    parts = list(track(steps, folds, f"folds of {variant.name}", "folds"))
    return evaluate_rows(concat_rows(parts), settings.night.seed, None)


def assign_folds(users: Int64s, folds: int, seed: int) -> Int64s:
    """Return the fold of each user row up to the highest, -1 for a user who is not in `users`.

    Raises
    ------
    OvernightError
        There are fewer users than folds.
    """
    distinct = np.unique(users)
    if distinct.size < folds:
        raise OvernightError(f"{distinct.size} users cannot be split into {folds} folds; ask for fewer folds")
    fold_of_user = np.full(int(distinct[-1]) + 1, -1, dtype=np.int64)
    split = GroupKFold(folds, shuffle=True, random_state=seed).split(distinct, groups=distinct)
    for fold, (_, own) in enumerate(split):
        fold_of_user[distinct[own]] = fold
    return fold_of_user


def evaluate_cutoffs(
    engine: sa.Engine,
    settings: Settings,
    variants: Sequence[Variant],
    count: int,
    *,
    as_of: datetime | None,
    clock: datetime,
    max_users: int,
) -> tuple[list[CutoffEvaluation], dict[str, Evaluation]]:
    """Evaluate at several cutoffs, each time by models of what came before it.

    The last cutoff is the start of the night's holdout. The cutoff before it is
    the start of the holdout of a night that ends there, and so on. So the
    holdout of a cutoff ends at the next cutoff.

    Parameters
    ----------
    max_users
        Maximum number of users for the full catalogue at each cutoff.

    Returns
    -------
    The cutoffs, earliest first, and per variant all cutoffs pooled; intervals are over users.

    Raises
    ------
    SourceError
        There is not enough data before so many cutoffs.
    """
    cutoffs = _evaluate_backwards(
        engine, settings, variants, count, as_of=as_of, clock=clock, max_users=max_users
    )
    evaluated = list(track(((1, each) for each in cutoffs), count, "cutoffs", "cutoffs"))[::-1]
    seed, pooled = settings.night.seed, {}
    for variant in variants:
        holdouts = [each.holdouts[variant.name] for each in evaluated]
        rows = concat_rows([each.rows for each in holdouts])
        pooled[variant.name] = evaluate_rows(
            rows, seed, measure_cases([each.ranked for each in holdouts], seed)
        )
    return evaluated, pooled


def _evaluate_backwards(
    engine: sa.Engine,
    settings: Settings,
    variants: Sequence[Variant],
    count: int,
    *,
    as_of: datetime | None,
    clock: datetime,
    max_users: int,
) -> Iterator[CutoffEvaluation]:
    """Yield the last cutoff first."""
    end = as_of
    for index in range(count):
        try:
            with open_dataset(engine, settings, end, clock) as dataset:
                holdouts = {
                    variant.name: _fit_and_evaluate(variant, dataset, settings, max_users)
                    for variant in variants
                }
        except OvernightError as error:
            if index == 0:
                raise
            raise SourceError(f"only {index} of {count} cutoffs can be evaluated: {error}") from None
        yield CutoffEvaluation(dataset.split, holdouts)
        end = dataset.split.holdout_start


def _fit_and_evaluate(
    variant: Variant, dataset: Dataset, settings: Settings, max_users: int
) -> HoldoutEvaluation:
    recipe = choose_recipe(variant, dataset, settings).recipe
    model = fit(variant, dataset, windows=dataset.training, recipe=recipe, settings=settings)
    return evaluate_holdout(model, dataset, settings, max_users)


log = logging.getLogger("batch")


@dataclass(frozen=True)
class PastNight:
    """One cutoff, evaluated on likes up to `until`: variant -> its lists, variant -> their metrics."""

    cutoff: datetime
    until: datetime
    cases: dict[str, RankedCase]
    results: dict[str, CatalogueResult]


def find_cutoffs(engine: sa.Engine, settings: Settings, count: int, clock: datetime) -> list[datetime]:
    """Return the cutoffs of `evaluate --cutoffs`, ascending.

    Raises
    ------
    SourceError
        There is too little data for so many cutoffs.
    """
    with pull(engine, settings, clock) as pulled:
        end = pulled.latest
        if end is None:
            raise SourceError(f"{SCHEMA}.{INTERACTIONS} has no interactions up to now")
        cutoffs: list[datetime] = []
        for index in range(count):
            try:
                split = split_as_set(pulled.store, end, settings)
            except SourceError as error:
                if index == 0:
                    raise
                raise SourceError(f"only {index} of {count} cutoffs can be evaluated: {error}") from None
            end = split.holdout_start
            cutoffs.append(end)
    return cutoffs[::-1]


def backtest(
    engine: sa.Engine,
    settings: Settings,
    variants: Sequence[Variant],
    cutoffs: Sequence[datetime],
    *,
    clock: datetime,
    max_users: int,
) -> tuple[list[PastNight], dict[str, CatalogueResult]]:
    """Evaluate the lists of nights as of past cutoffs.

    Parameters
    ----------
    cutoffs
        In any order.
    clock
        The current time: the end of the likes that the last cutoff is evaluated on.
    max_users
        Maximum number of users at each cutoff.

    Returns
    -------
    The nights, earliest first, and per variant all of them pooled; intervals are over users.

    Raises
    ------
    OvernightError
        A night as of one of the cutoffs would fail; the message names the cutoff.
    """
    spans = list(pairwise([*sorted(set(cutoffs)), clock]))
    steps = ((1, _run_night(engine, settings, variants, span, max_users)) for span in spans)
    nights = list(track(steps, len(spans), "backtest", "cutoffs"))
    pooled = {
        variant.name: measure_cases([night.cases[variant.name] for night in nights], settings.night.seed)
        for variant in variants
    }
    return nights, pooled


def _run_night(
    engine: sa.Engine,
    settings: Settings,
    variants: Sequence[Variant],
    span: tuple[datetime, datetime],
    max_users: int,
) -> PastNight:
    """Evaluate each variant on the likes of one span: from the cutoff until its end."""
    cutoff, until = span
    night = PastNight(cutoff, until, {}, {})
    try:
        for name, case in _rank(engine, settings, variants, span, max_users):
            night.cases[name], night.results[name] = case, measure_cases([case], settings.night.seed)
            log.info("%s as of %s: %s", name, cutoff.isoformat(), _summary(night.results[name]))
    except OvernightError as error:
        raise type(error)(f"as of {cutoff.isoformat()}: {error}") from None
    return night


def _rank(
    engine: sa.Engine,
    settings: Settings,
    variants: Sequence[Variant],
    span: tuple[datetime, datetime],
    max_users: int,
) -> Iterator[tuple[str, RankedCase]]:
    """Fit each variant on all data as of the cutoff, and yield its lists."""
    cutoff, until = span
    with open_dataset(engine, settings, cutoff, cutoff) as dataset:
        likes = read_likes(dataset.now.store, until, len(dataset.network.users))
        for variant in variants:
            recipe = choose_recipe(variant, dataset, settings).recipe
            model = fit(variant, dataset, windows=dataset.windows, recipe=recipe, settings=settings)
            case = rank_case(
                model,
                dataset.network,
                dataset.windows[-1].history,
                dataset.now,
                likes,
                settings=settings,
                max_users=max_users,
            )
            yield variant.name, case


def _summary(result: CatalogueResult) -> str:
    if not result.users["all"]:
        return f"no later likes: {result.insufficient_because}"
    values = (f"{name} {each.values[PRIMARY_METRIC]:.4f}" for name, each in result.rankers.items())
    return f"NDCG@10 of {result.users['all']} users: {', '.join(values)}"
