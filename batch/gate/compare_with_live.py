"""A run beside the one that is live: metrics on the same held-out rows, and the lists of the same users.

The live run's own model has trained on what is now held out. So a run keeps a
second model, fit before its holdout, and that one is asked about tonight's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import redis
import sqlalchemy as sa

from batch.arrays import Int64s
from batch.evaluation import MODEL, PRIMARY_METRIC
from batch.evaluation.bootstrap import Difference
from batch.evaluation.catalogue_case import measure_lists
from batch.evaluation.evaluate import compare_scores
from batch.evaluation.full_catalogue import MIN_USERS, RankedCase, rank_by_model
from batch.evaluation.scored_rows import ScoredRows
from batch.features.build import select_profile_columns
from batch.features.encode import ColumnEncoder
from batch.gate.inputs import BesideLive
from batch.gate.liked_check import lists_of
from batch.gate.list_stats import FIRST
from batch.loading.history import History, regroup
from batch.loading.network import Network
from batch.runs import ledger
from batch.training.dataset import Dataset
from batch.training.model import Model, load_model
from contract.errors import ModelError
from contract.keys import Keys
from contract.settings import Settings

JUDGED_MODEL = "judged"
"""Folder, in a run's own, of the model that was fit before the holdout."""

MOST_USERS = 5_000
"""Users whose lists are compared, drawn at random where there are more."""


class NotComparableError(Exception):
    """Raised when the live run's model cannot be asked about tonight's holdout; says why."""


@dataclass(frozen=True)
class Live:
    """The run of a variant that is live, as the ledger knows it."""

    run_id: str
    manifest: dict[str, Any]


def find_live(engine: sa.Engine, client: redis.Redis, keys: Keys, variant: str) -> Live | None:
    """Return the run that serves; None for none, or one of another ledger: that tells of another network."""
    run_id = client.get(keys.live(variant))
    found = ledger.find(engine, str(run_id)) if run_id else None
    return Live(found[0].run_id, found[0].manifest) if found and found[0].manifest else None


def beside_live(
    client: redis.Redis,
    settings: Settings,
    live: Live,
    run_id: str,
    dataset: Dataset,
    rows: ScoredRows,
    ranked: RankedCase,
    users: int,
) -> BesideLive:
    """Compare a written run with the live one.

    Parameters
    ----------
    rows
        The holdout as the model that was fit before it scores it.
    ranked
        The lists of that model over the full catalogue.
    users
        How many of the network's users have a list.
    """
    differences, ndcg, why_not, why_no_ndcg = None, None, "", ""
    try:
        model = _live_model(settings, live, dataset)
        history = _history(model, dataset)
    except NotComparableError as error:
        why_not = why_no_ndcg = str(error)
    else:
        try:
            differences = _viewed_differences(model, history, dataset, rows, settings)
        except NotComparableError as error:
            why_not = str(error)
        try:
            ndcg = _ndcg_difference(model, history, dataset, ranked, settings)
        except NotComparableError as error:
            why_no_ndcg = str(error)
    heads = _first_fives(client, Keys(settings.stores.key_prefix), (run_id, live.run_id), _drawn(
        dataset.network.users.index.to_numpy(np.int64)[:users], settings.night.seed
    ))  # fmt: skip
    shared = [len(now & then) / max(len(now), len(then)) for now, then in heads]
    return BesideLive(
        run_id=live.run_id,
        users_of_network=int(live.manifest["users_of_network"]),
        users=len(heads),
        overlap=float(np.mean(shared)) if shared else 0.0,
        posts_in_first=len(set().union(*(now for now, _ in heads))),
        posts_in_its_first=len(set().union(*(then for _, then in heads))),
        differences=differences,
        why_not=why_not,
        ndcg_at_10=ndcg,
        why_no_ndcg=why_no_ndcg,
    )


def _live_model(settings: Settings, live: Live, dataset: Dataset) -> Model:
    """Return the live run's model that was fit before its own holdout."""
    if datetime.fromisoformat(live.manifest["metrics"]["holdout"]["from"]) > dataset.split.holdout_start:
        raise NotComparableError("its model learnt from rows that are held out now")
    folder = Path(settings.night.model_dir) / live.run_id / JUDGED_MODEL
    if not folder.is_dir():
        raise NotComparableError("it kept no model that was fit before its holdout")
    try:
        model = load_model(folder, dataset.network)
    except ModelError as error:
        raise NotComparableError(str(error)) from None
    _check_columns(model, dataset.network)
    return model


def _viewed_differences(
    model: Model, history: History, dataset: Dataset, rows: ScoredRows, settings: Settings
) -> dict[str, Difference]:
    """Return by metric: tonight's model less the live run's, on the same viewed rows."""
    if not (rows.log_odds and model.recipe.from_views):
        raise NotComparableError("not both learn what is liked if viewed, which viewed rows judge")
    if not rows.rows.liked.any():
        raise NotComparableError(f"none of the {len(rows.rows)} held-out rows is liked")
    try:
        scores = model.scores(dataset.network, history, rows.rows, settings.night.threads)
    except ModelError:
        raise NotComparableError("its model was made from other features") from None
    return compare_scores(rows, scores, settings.night.seed)


def _ndcg_difference(
    model: Model, history: History, dataset: Dataset, ranked: RankedCase, settings: Settings
) -> Difference:
    """Return NDCG@10 over the full catalogue: tonight's model less the live run's, for the same users."""
    case = ranked.case
    if case.users.size < MIN_USERS:
        raise NotComparableError(f"{case.users.size} users can be judged, of {MIN_USERS} needed")
    try:
        lists = rank_by_model(model, dataset.network, history, case, settings.night.threads)
    except ModelError:
        raise NotComparableError("its model was made from other features") from None
    tonight = measure_lists(case, ranked.lists[MODEL], settings.night.seed)
    return tonight.minus(measure_lists(case, lists, settings.night.seed))[PRIMARY_METRIC]


def _check_columns(model: Model, network: Network) -> None:
    """Make sure that the views still have every column that the model knows, of the same kind.

    Raises
    ------
    NotComparableError
        One is gone, or was a number and is a category now, or the other way round.
    """
    for encoder, frame in zip((model.users, model.posts), select_profile_columns(network), strict=True):
        changed = _changed_column(encoder, frame)
        if changed:
            raise NotComparableError(f"the {encoder.kind}s' column {changed} is not what it was")
    absent = set(model.variant.groupings) - set(model.groupings.names)
    if absent:
        raise NotComparableError("its model groups the posts in another way")


def _changed_column(encoder: ColumnEncoder, frame: pd.DataFrame) -> str | None:
    for column, categories in encoder.categories.items():
        if column not in frame or (frame[column].dtype == np.float64) != (categories is None):
            return column
    return None


def _history(model: Model, dataset: Dataset) -> History:
    """Return what was known when the holdout began, counted by the model's own groups of posts."""
    known, groupings = dataset.at_holdout, model.groupings
    alike = groupings.names == known.groupings.names and groupings.sizes == known.groupings.sizes
    if alike and np.array_equal(groupings.groups, known.groupings.groups):
        return known
    return regroup(known, groupings)


def _drawn(user_ids: Int64s, seed: int) -> list[int]:
    if user_ids.size > MOST_USERS:
        user_ids = np.random.default_rng(seed).choice(user_ids, MOST_USERS, replace=False)
    drawn: list[int] = user_ids.tolist()
    return drawn


def _first_fives(
    client: redis.Redis, keys: Keys, runs: tuple[str, str], user_ids: list[int]
) -> list[tuple[set[int], set[int]]]:
    """Return the first five posts of each user in two runs, for users who have some in both."""
    now, then = (
        {user: {post for post, _ in ranked[:FIRST]} for user, ranked in lists_of(client, keys, run, user_ids)}
        for run in runs
    )
    return [(now[user], then[user]) for user in now if now[user] and then.get(user)]
