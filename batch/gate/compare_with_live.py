"""Compare a run with the live run of its variant: metrics on the same held-out rows, lists of the same users.

The live run's own model was trained on rows that are held out now. So every run keeps a second model,
fit before its holdout; tonight's holdout is scored with the live run's second model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from batch.context import Stores
from batch.evaluation import MODEL, PRIMARY_METRIC
from batch.evaluation.bootstrap import Difference
from batch.evaluation.catalogue_case import measure_lists
from batch.evaluation.evaluate import compare_scores
from batch.evaluation.full_catalogue import MIN_USERS, RankedCase, rank_by_model
from batch.evaluation.holdout import HoldoutEvaluation
from batch.evaluation.learner import HOLDOUT_MODEL
from batch.evaluation.scored_rows import ScoredRows
from batch.features.build import select_profile_columns
from batch.features.tables import ColumnEncoder
from batch.gate.inputs import LiveComparison
from batch.ids import Ids
from batch.loading.history import History, regroup
from batch.loading.network import Network
from batch.redis_client import blocks, live_run_id
from batch.runs import ledger
from batch.training.dataset import Dataset
from batch.training.model import Model, load_model
from contract.codec import LIST_HEAD, StoredList, decode_stored_list
from contract.errors import ModelError
from contract.ids import Id
from contract.manifest import Manifest
from contract.settings import Settings

MAX_USERS = 5_000
"""Users whose lists are compared; above it, a random sample."""

KEYS_BATCH = 1_000


class NotComparableError(Exception):
    """Raised when the live run's model cannot score tonight's holdout; the message is the reason."""


@dataclass(frozen=True)
class LiveRun:
    """The live run of a variant, and its manifest from the ledger."""

    run_id: str
    manifest: Manifest


def find_live(stores: Stores, variant: str) -> LiveRun | None:
    """Return the live run of a variant; None if there is none, or if it belongs to another ledger."""
    run_id = live_run_id(stores.redis, stores.keys, variant)
    found = ledger.find(stores.engine, run_id) if run_id else None
    if found is None or not found[0].manifest:
        return None
    return LiveRun(found[0].run_id, Manifest.from_record(found[0].manifest))


def compare_with_live(
    stores: Stores, live: LiveRun, run_id: str, dataset: Dataset, *, holdout: HoldoutEvaluation, users: int
) -> LiveComparison:
    """Compare a written run with the live run.

    Parameters
    ----------
    holdout
        Evaluation of tonight's model that was fit before the holdout.
    users
        Number of the network's users, from the first, that have a list.
    """
    settings, differences, ndcg = stores.settings, None, None
    not_comparable = ndcg_not_comparable = ""
    other_ids = _describe_other_ids(live, dataset.network)
    try:
        if other_ids:
            raise NotComparableError(other_ids)
        model = _load_live_model(settings, live, dataset)
        history = _regroup(model, dataset)
    except NotComparableError as error:
        not_comparable = ndcg_not_comparable = str(error)
    else:
        try:
            differences = _viewed_differences(model, history, dataset, holdout.rows, settings)
        except NotComparableError as error:
            not_comparable = str(error)
        try:
            ndcg = _ndcg_difference(model, history, dataset, holdout.ranked, settings)
        except NotComparableError as error:
            ndcg_not_comparable = str(error)
    sampled = [] if other_ids else _sample(dataset.network.user_ids[:users], settings.night.seed)
    heads = _read_heads(stores, run_id, live.run_id, sampled)
    shares = [len(now & then) / max(len(now), len(then)) for now, then in heads]
    return LiveComparison(
        run_id=live.run_id,
        users_of_network=live.manifest.users_of_network,
        users=len(heads),
        overlap=float(np.mean(shares)) if shares else 0.0,
        head_posts=len(set().union(*(now for now, _ in heads))),
        live_head_posts=len(set().union(*(then for _, then in heads))),
        differences=differences,
        not_comparable_because=not_comparable,
        lists_not_comparable_because=other_ids,
        ndcg_at_10=ndcg,
        ndcg_not_comparable_because=ndcg_not_comparable,
    )


def _describe_other_ids(live: LiveRun, network: Network) -> str:
    """Return why no list and no model of the live run can be compared; empty if they can."""
    if live.manifest.ids == network.kinds:
        return ""
    (before, now) = (
        f"{kinds.users} for users and {kinds.posts} for posts" for kinds in (live.manifest.ids, network.kinds)
    )
    return f"its ids are of another kind: {before}, tonight's are {now}"


def _load_live_model(settings: Settings, live: LiveRun, dataset: Dataset) -> Model:
    """Return the live run's model that was fit before its own holdout."""
    if datetime.fromisoformat(live.manifest.metrics["holdout"]["from"]) > dataset.split.holdout_start:
        raise NotComparableError("its model was trained on rows that are held out now")
    folder = Path(settings.night.model_dir) / live.run_id / HOLDOUT_MODEL
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
    """Return metric -> tonight's model minus the live run's, on the same viewed rows."""
    if not (rows.log_odds and model.recipe.from_views):
        raise NotComparableError(
            "one of the two models does not learn what is liked if viewed, which viewed rows measure"
        )
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
    """Return NDCG@10 over the full catalogue: tonight's model minus the live run's, for the same users."""
    case = ranked.case
    if case.users.size < MIN_USERS:
        raise NotComparableError(f"{case.users.size} users can be evaluated, of {MIN_USERS} needed")
    try:
        lists = rank_by_model(model, dataset.network, history, case, settings)
    except ModelError:
        raise NotComparableError("its model was made from other features") from None
    tonight = measure_lists(case, ranked.lists[MODEL], settings.night.seed)
    return tonight.minus(measure_lists(case, lists, settings.night.seed))[PRIMARY_METRIC]


def _check_columns(model: Model, network: Network) -> None:
    """Check that the SQL views still have every column that the model knows, of the same type.

    Raises
    ------
    NotComparableError
        A column is missing, or was numeric and is categorical now, or the reverse.
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


def _regroup(model: Model, dataset: Dataset) -> History:
    """Return the history at the start of the holdout, counted by the model's own groups of posts."""
    known, groupings = dataset.at_holdout, model.groupings
    same = groupings.names == known.groupings.names and groupings.sizes == known.groupings.sizes
    if same and np.array_equal(groupings.groups, known.groupings.groups):
        return known
    return regroup(known, groupings)


def _sample(user_ids: Ids, seed: int) -> list[Id]:
    if user_ids.size > MAX_USERS:
        user_ids = np.random.default_rng(seed).choice(user_ids, MAX_USERS, replace=False)
    sampled: list[Id] = user_ids.tolist()
    return sampled


def _read_heads(
    stores: Stores, run_id: str, live_run_id: str, user_ids: list[Id]
) -> list[tuple[set[Id], set[Id]]]:
    """Return (head in the run, head in the live run) of each user whose lists are not empty in both.

    Posts in explored places are not in a head: they are drawn anew each night.
    """
    now, then = (
        {user: _head(stored) for user, stored in read_lists(stores, run, user_ids)}
        for run in (run_id, live_run_id)
    )
    return [(now[user], then[user]) for user in now if now[user] and then.get(user)]


def _head(stored: StoredList) -> set[Id]:
    ranked = (post for index, (post, _) in enumerate(stored.posts) if index not in stored.probabilities)
    return set(islice(ranked, LIST_HEAD))


def read_lists(stores: Stores, run_id: str, user_ids: Iterable[Id]) -> Iterator[tuple[Id, StoredList]]:
    """Yield (user id, list) of each user that has a list in a run, read from Redis."""
    for block in blocks(user_ids, KEYS_BATCH):
        with stores.redis.pipeline(transaction=False) as pipe:
            for user_id in block:
                pipe.get(stores.keys.user(run_id, user_id))
            for user_id, value in zip(block, pipe.execute(), strict=True):
                if value is not None:
                    yield user_id, decode_stored_list(value)
