"""Evaluation beyond the night's one split: k folds grouped by user, and rolling windows of time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import sqlalchemy as sa
from sklearn.model_selection import GroupKFold

from batch.judging.catalogue import MOST_USERS, full_catalogue
from batch.judging.evaluate import holdout_rows, judged
from batch.judging.evaluation import Evaluation, evaluation
from batch.judging.judged import Judged, judge, pooled
from batch.judging.metrics import Places
from batch.learning.fit import fit
from batch.learning.gather import Gathered, gathered_now
from batch.loading.split import Split
from batch.progress import track
from batch.variants import Variant
from contract.errors import OvernightError, SourceError
from contract.settings import Settings


@dataclass(frozen=True)
class Window:
    """One window of time: how it was cut, and per variant what was judged and found in it."""

    split: Split
    judged: dict[str, Judged]
    found: dict[str, Evaluation]


def by_folds(variant: Variant, gathered: Gathered, folds: int, settings: Settings) -> Evaluation:
    """Judge each user's labels since the history's end by a model that never saw a label of theirs.

    Features are as of the history's end throughout, so no label is in them;
    folds part users, so none of a judged user's labels is in the training.

    Raises
    ------
    OvernightError
        There are fewer users than folds.
    """
    examples = gathered.latest
    rows, fold_of_user = holdout_rows(examples), folds_of_users(examples.users, folds, settings.seed)

    def judge_fold(fold: int) -> Judged:
        others = examples.where(fold_of_user[examples.users] != fold)
        own = rows.where(fold_of_user[rows.users] == fold)
        model, like_rate = fit(variant, gathered, others, settings), float(others.liked.mean())
        return judge(model, gathered.network, gathered.at_history_end, own, like_rate, settings.threads)

    steps = ((1, judge_fold(fold)) for fold in range(folds))
    parts = list(track(steps, folds, f"folds of {variant.name}", "folds"))
    # Lists of different folds are of different users already; pooling keeps them apart all the same.
    return evaluation(pooled(parts), settings.seed, None)


def folds_of_users(users: Places, folds: int, seed: int) -> Places:
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


def by_windows(
    engine: sa.Engine,
    settings: Settings,
    variants: Sequence[Variant],
    count: int,
    as_of: datetime | None,
    clock: datetime,
) -> tuple[list[Window], dict[str, Evaluation]]:
    """Judge windows that follow each other without a gap, each by models of what came before it.

    The last window is the night's holdout. The one before ends where that
    begins, and is the holdout of a night with that cutoff; and so on back.

    Returns
    -------
    The windows, earliest first, and per variant the rows of all of them pooled.

    Raises
    ------
    SourceError
        There is too little to learn from before so many windows.
    """
    steps = ((1, window) for window in _windows(engine, settings, variants, count, as_of, clock))
    found = list(track(steps, count, "windows", "windows"))[::-1]
    together = {
        variant.name: evaluation(pooled([each.judged[variant.name] for each in found]), settings.seed, None)
        for variant in variants
    }
    return found, together


def _windows(
    engine: sa.Engine,
    settings: Settings,
    variants: Sequence[Variant],
    count: int,
    as_of: datetime | None,
    clock: datetime,
) -> Iterator[Window]:
    end = as_of
    for place in range(count):
        try:
            with gathered_now(engine, settings, end, clock) as gathered:
                window = Window(gathered.split, {}, {})
                for variant in variants:
                    _judge_window(window, variant, gathered, settings)
        except OvernightError as error:
            if place == 0:
                raise
            raise SourceError(f"only {place} of {count} windows can be judged: {error}") from None
        yield window
        end = gathered.split.holdout_start


def _judge_window(window: Window, variant: Variant, gathered: Gathered, settings: Settings) -> None:
    model = fit(variant, gathered, gathered.training, settings)
    rows = judged(model, gathered, settings.threads)
    catalogue = full_catalogue(
        model, gathered.network, gathered.at_holdout, gathered.holdout, settings.threads, MOST_USERS
    )
    window.judged[variant.name] = rows
    window.found[variant.name] = evaluation(rows, settings.seed, catalogue)
