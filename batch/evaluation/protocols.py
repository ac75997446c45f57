"""Evaluation beyond the night's one split: k folds grouped by user, and several cutoffs in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import sqlalchemy as sa
from sklearn.model_selection import GroupKFold

from batch.arrays import Int64s
from batch.evaluation.choose_recipe import choose_recipe
from batch.evaluation.evaluate import (
    Evaluation,
    evaluation,
    holdout_rows,
    judged,
    rank_holdout,
    share_of_likes,
)
from batch.evaluation.full_catalogue import RankedCase, measure_cases
from batch.evaluation.scored_rows import ScoredRows, judge, pooled
from batch.loading.examples import Examples
from batch.loading.split import TimeSplit
from batch.progress import track
from batch.training.dataset import Dataset, load_dataset_now
from batch.training.fit import fit
from batch.variants import Variant
from contract.errors import OvernightError, SourceError
from contract.settings import Settings


@dataclass(frozen=True)
class JudgedCutoff:
    """One cutoff: how time was cut, and per variant the scored rows, the ranked case, and their figures."""

    split: TimeSplit
    rows: dict[str, ScoredRows]
    cases: dict[str, RankedCase]
    found: dict[str, Evaluation]


def by_folds(variant: Variant, dataset: Dataset, folds: int, settings: Settings) -> Evaluation:
    """Judge each user's labels since the history's end by a model that never saw a label of theirs.

    Features are as of the history's end throughout, so no label is in them;
    folds part users, so none of a judged user's labels is in the training.

    Raises
    ------
    OvernightError
        There are fewer users than folds.
    """
    since_end = [each for each in dataset.windows if each.history.cutoff >= dataset.split.history_end]
    examples = Examples.concatenate([each.views for each in since_end])
    rows, fold_of_user = holdout_rows(examples), folds_of_users(examples.users, folds, settings.night.seed)
    fold_of_user = np.append(fold_of_user, np.full(len(dataset.network.users) - fold_of_user.size, -1))
    recipe = choose_recipe(variant, dataset, settings).recipe

    def judge_fold(fold: int) -> ScoredRows:
        others = [each.keep_users(fold_of_user != fold) for each in dataset.windows]
        own = rows.select(fold_of_user[rows.users] == fold)
        model = fit(variant, dataset, others, recipe, settings)
        like_rate = share_of_likes(others)
        return judge(model, dataset.network, dataset.at_history_end, own, like_rate, settings.night.threads)

    steps = ((1, judge_fold(fold)) for fold in range(folds))
    parts = list(track(steps, folds, f"folds of {variant.name}", "folds"))
    # Lists of different folds are of different users already; pooling keeps them apart all the same.
    return evaluation(pooled(parts), settings.night.seed, None)


def folds_of_users(users: Int64s, folds: int, seed: int) -> Int64s:
    """Return the fold of each user place up to the highest, -1 for one without a row.

    Raises
    ------
    OvernightError
        There are fewer users than folds.
    """
    distinct = np.unique(users)
    if distinct.size < folds:
        raise OvernightError(f"{distinct.size} users cannot be parted into {folds} folds; ask for fewer")
    found = np.full(int(distinct[-1]) + 1, -1, dtype=np.int64)
    cut = GroupKFold(folds, shuffle=True, random_state=seed).split(distinct, groups=distinct)
    for fold, (_, own) in enumerate(cut):
        found[distinct[own]] = fold
    return found


def by_cutoffs(
    engine: sa.Engine,
    settings: Settings,
    variants: Sequence[Variant],
    count: int,
    as_of: datetime | None,
    clock: datetime,
    max_users: int,
) -> tuple[list[JudgedCutoff], dict[str, Evaluation]]:
    """Judge at several cutoffs, each time by models of what came before it.

    The last cutoff is the start of the night's holdout. The one before is the
    start of the holdout of a night that ends there; and so on back. So what
    follows a cutoff ends where the next one is.

    Parameters
    ----------
    max_users
        How many users to judge over the full catalogue at each cutoff.

    Returns
    -------
    The cutoffs, earliest first, and per variant all of them pooled; intervals are over users.

    Raises
    ------
    SourceError
        There is too little to learn from before so many cutoffs.
    """
    steps = ((1, each) for each in _cutoffs(engine, settings, variants, count, as_of, clock, max_users))
    found = list(track(steps, count, "cutoffs", "cutoffs"))[::-1]
    together = {
        variant.name: evaluation(
            pooled([each.rows[variant.name] for each in found]),
            settings.night.seed,
            measure_cases([each.cases[variant.name] for each in found], settings.night.seed),
        )
        for variant in variants
    }
    return found, together


def _cutoffs(
    engine: sa.Engine,
    settings: Settings,
    variants: Sequence[Variant],
    count: int,
    as_of: datetime | None,
    clock: datetime,
    max_users: int,
) -> Iterator[JudgedCutoff]:
    end = as_of
    for index in range(count):
        try:
            with load_dataset_now(engine, settings, end, clock) as dataset:
                judged_cutoff = JudgedCutoff(dataset.split, {}, {}, {})
                for variant in variants:
                    _judge_cutoff(judged_cutoff, variant, dataset, settings, max_users)
        except OvernightError as error:
            if index == 0:
                raise
            raise SourceError(f"only {index} of {count} cutoffs can be judged: {error}") from None
        yield judged_cutoff
        end = dataset.split.holdout_start


def _judge_cutoff(
    into: JudgedCutoff, variant: Variant, dataset: Dataset, settings: Settings, max_users: int
) -> None:
    recipe = choose_recipe(variant, dataset, settings).recipe
    model = fit(variant, dataset, dataset.training, recipe, settings)
    rows = judged(model, dataset, settings.night.threads)
    case = rank_holdout(model, dataset, settings.night.threads, max_users)
    into.rows[variant.name], into.cases[variant.name] = rows, case
    into.found[variant.name] = evaluation(
        rows, settings.night.seed, measure_cases([case], settings.night.seed)
    )
