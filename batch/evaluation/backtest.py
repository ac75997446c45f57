"""Builds the lists of past nights as `run --as-of` would, and judges them by what followed.

At each cutoff everything is gathered as of then, the model is fitted on all of
it, and the full catalogue is ranked for the users who liked something
afterwards: until the next cutoff, or until now after the last one, so that no
like is counted twice. Nothing is published, and Redis is not asked: posts that
operators blocked are ranked too. Parameters that `tune` keeps are used, also
where they were tuned on what came after a cutoff.

This differs from an evaluation on a holdout: there the model is the one that
was fitted before the holdout, here it is the one that would have gone live.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import sqlalchemy as sa

from batch.evaluation.choose_recipe import choose_recipe
from batch.evaluation.full_catalogue import CatalogueFigures, RankedCase, measure_cases, rank_case
from batch.loading.history import read_likes
from batch.loading.pull import pull
from batch.loading.split import split_by_time
from batch.progress import track
from batch.training.dataset import load_dataset_now
from batch.training.fit import fit
from batch.variants import Variant
from contract.columns import INTERACTIONS, SCHEMA
from contract.errors import OvernightError, SourceError
from contract.settings import Settings

log = logging.getLogger("batch")


@dataclass(frozen=True)
class PastNight:
    """One cutoff: what followed it ends at `until`; per variant its ranked case and what was measured."""

    cutoff: datetime
    until: datetime
    cases: dict[str, RankedCase]
    found: dict[str, CatalogueFigures]


def find_cutoffs(engine: sa.Engine, settings: Settings, count: int, clock: datetime) -> list[datetime]:
    """Return the cutoffs of `evaluate --cutoffs`: starts of the holdouts of nights that end at one another.

    Raises
    ------
    SourceError
        There is too little to part time so often.
    """
    with pull(engine, settings, clock) as pulled:
        end = pulled.latest
        if end is None:
            raise SourceError(f"{SCHEMA}.{INTERACTIONS} has no interactions up to now")
        found: list[datetime] = []
        for number in range(count):
            try:
                split = split_by_time(
                    pulled.store, end, settings.night.history_fraction, settings.night.holdout_fraction
                )
            except SourceError as error:
                if number == 0:
                    raise
                raise SourceError(f"only {number} of {count} cutoffs can be judged: {error}") from None
            end = split.holdout_start
            found.append(end)
    return found[::-1]


def backtest(
    engine: sa.Engine,
    settings: Settings,
    variants: Sequence[Variant],
    cutoffs: Sequence[datetime],
    clock: datetime,
    max_users: int,
) -> tuple[list[PastNight], dict[str, CatalogueFigures]]:
    """Judge the lists of nights as of past cutoffs.

    Parameters
    ----------
    cutoffs
        In any order.
    clock
        Now: where what followed the last cutoff ends.
    max_users
        How many users to judge at each cutoff.

    Returns
    -------
    The nights, earliest first, and per variant all of them pooled; intervals are over users.

    Raises
    ------
    OvernightError
        A night as of one of the cutoffs would fail; names the cutoff.
    """
    spans = list(pairwise([*sorted(set(cutoffs)), clock]))
    steps = ((1, night) for night in _nights(engine, settings, variants, spans, max_users))
    nights = list(track(steps, len(spans), "backtest", "cutoffs"))
    together = {
        variant.name: measure_cases([night.cases[variant.name] for night in nights], settings.night.seed)
        for variant in variants
    }
    return nights, together


def _nights(
    engine: sa.Engine,
    settings: Settings,
    variants: Sequence[Variant],
    spans: Sequence[tuple[datetime, datetime]],
    max_users: int,
) -> Iterator[PastNight]:
    for cutoff, until in spans:
        night = PastNight(cutoff, until, {}, {})
        try:
            for name, case in _rank(engine, settings, variants, cutoff, until, max_users):
                night.cases[name], night.found[name] = case, measure_cases([case], settings.night.seed)
                log.info("%s as of %s: %s", name, cutoff.isoformat(), _in_short(night.found[name]))
        except OvernightError as error:
            raise type(error)(f"as of {cutoff.isoformat()}: {error}") from None
        yield night


def _rank(
    engine: sa.Engine,
    settings: Settings,
    variants: Sequence[Variant],
    cutoff: datetime,
    until: datetime,
    max_users: int,
) -> Iterator[tuple[str, RankedCase]]:
    """Fit each variant on all that was known at the cutoff, and let it rank."""
    with load_dataset_now(engine, settings, cutoff, cutoff) as dataset:
        network, earlier, now = dataset.network, dataset.windows[-1].history, dataset.now
        likes = read_likes(now.store, until, len(network.users))
        for variant in variants:
            recipe = choose_recipe(variant, dataset, settings).recipe
            model = fit(variant, dataset, dataset.windows, recipe, settings)
            yield (
                variant.name,
                rank_case(model, network, earlier, now, likes, settings.night.threads, max_users),
            )


def _in_short(found: CatalogueFigures) -> str:
    if not found.users["all"]:
        return f"nothing followed: {found.cannot_judge}"
    figures = (f"{name} {measured.values['ndcg_at_10']:.4f}" for name, measured in found.rankers.items())
    return f"NDCG@10 of {found.users['all']} users: {', '.join(figures)}"
