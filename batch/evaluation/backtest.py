"""Backtest: build the lists of past nights as `run --as-of` would, and evaluate them on later likes.

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

import sqlalchemy as sa

from batch.evaluation import PRIMARY_METRIC
from batch.evaluation.choose_recipe import choose_recipe
from batch.evaluation.full_catalogue import CatalogueResult, RankedCase, measure_cases, rank_case
from batch.loading.history import read_likes
from batch.loading.pull import pull
from batch.loading.split import split_by_time
from batch.progress import track
from batch.training.dataset import open_dataset
from batch.training.fit import fit
from batch.variants import Variant
from contract.columns import INTERACTIONS, SCHEMA
from contract.errors import OvernightError, SourceError
from contract.settings import Settings

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
                split = split_by_time(
                    pulled.store, end, settings.night.history_fraction, settings.night.holdout_fraction
                )
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
                threads=settings.night.threads,
                max_users=max_users,
            )
            yield variant.name, case


def _summary(result: CatalogueResult) -> str:
    if not result.users["all"]:
        return f"no later likes: {result.insufficient_because}"
    values = (f"{name} {each.values[PRIMARY_METRIC]:.4f}" for name, each in result.rankers.items())
    return f"NDCG@10 of {result.users['all']} users: {', '.join(values)}"
