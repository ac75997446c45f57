"""Evaluation of the live models on labelled views from a file, which no training has seen."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import redis
import sqlalchemy as sa
from pandas.errors import ParserWarning

from batch.evaluation.evaluate import Evaluation, evaluate_rows
from batch.evaluation.scored_rows import score_rows
from batch.features.build import mean_like_rate
from batch.loading.examples import Examples
from batch.loading.history import count_history
from batch.loading.interaction_store import InteractionStore
from batch.loading.model_columns import check_model_columns
from batch.loading.network import Network, rows_of_nullable_ids
from batch.loading.pull import pull
from batch.loading.schema import check_views
from batch.postgres import snapshot
from batch.redis_client import live_run_id
from batch.training.model import load_model
from contract.columns import INTERACTIONS, LIKE_ACTION, POST_ID, SCHEMA, USER_ID, VIEW_ACTION
from contract.errors import OvernightError, StoreError
from contract.ids import MAX_LENGTH, Id, IdKind, IdKinds, parse_id
from contract.keys import Keys
from contract.manifest import Manifest
from contract.settings import Settings

log = logging.getLogger("batch")

TIMESTAMP, ACTION, TARGET = "timestamp", "action", "target"
COLUMNS = (TIMESTAMP, USER_ID, POST_ID, ACTION, TARGET)

INTEGER = r"-?\d{1,18}"
ID_NAMES = {
    IdKind.NUMBER: "a whole number",
    IdKind.UUID: "a uuid",
    IdKind.TEXT: f"text of 1 to {MAX_LENGTH} characters without control characters",
}
MAX_IDS_LOGGED = 5

LOGGED = """
    SELECT DISTINCT user_id, post_id FROM {pulled} JOIN users USING (user_row) JOIN posts USING (post_row)
    WHERE happened_at <= $cutoff AND user_id IN (SELECT unnest($users))
"""


class ViewsError(OvernightError):
    """Raised when a file of labelled views is invalid; names the file, the line and the reason."""


@dataclass(frozen=True)
class LiveRun:
    """A live run, its cutoff, and the kinds of its network's ids."""

    run_id: str
    variant: str
    cutoff: datetime
    ids: IdKinds


def read_views(path: Path) -> pd.DataFrame:
    """Read the rows with action `view`: `timestamp` (UTC), `user_id`, `post_id` (text), `target` (bool).

    The index has their rows in the file; `parse_ids` reads the ids.

    Raises
    ------
    ViewsError
        The file cannot be read, lacks a column, or has an invalid value.
    """
    try:
        with warnings.catch_warnings(action="error", category=ParserWarning):  # more fields than the header
            rows = pd.read_csv(
                path, dtype=str, keep_default_na=False, skip_blank_lines=False, index_col=False
            )
    except (OSError, EOFError, ValueError, ParserWarning) as error:
        # ValueError: pandas's own errors, and bytes that cannot be decoded
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ViewsError(f"{path} cannot be read: {reason}; give a CSV file, plain or .gz") from None
    rows.columns = rows.columns.str.strip()
    absent = [name for name in COLUMNS if name not in rows]
    if absent:
        raise ViewsError(f"{path} has no column {absent[0]}; its header must have " + ",".join(COLUMNS))
    rows = rows[(rows.fillna("") != "").any(axis=1)]  # without blank lines
    _check(
        path, rows[ACTION], rows[ACTION].isin([VIEW_ACTION, LIKE_ACTION]), f"{VIEW_ACTION} or {LIKE_ACTION}"
    )
    views = rows[rows[ACTION] == VIEW_ACTION]
    if views.empty:
        raise ViewsError(f"{path} has no row with action {VIEW_ACTION}; there is nothing to evaluate")
    _check(path, views[TARGET], views[TARGET].str.fullmatch("[01]"), "0 or 1")
    times = pd.to_datetime(views[TIMESTAMP], utc=True, errors="coerce", format="ISO8601")
    _check(path, views[TIMESTAMP], times.notna(), "a time like 2021-12-29T21:00:00")
    ids = {name: views[name] for name in (USER_ID, POST_ID)}
    return pd.DataFrame({TIMESTAMP: times, **ids, TARGET: views[TARGET] == "1"})


def parse_ids(path: Path, views: pd.DataFrame, kinds: IdKinds) -> pd.DataFrame:
    """Return the views of a file with their ids as the network has them.

    Raises
    ------
    ViewsError
        An id is of another kind.
    """
    columns = {USER_ID: kinds.users, POST_ID: kinds.posts}
    return views.assign(**{name: _parse_column(path, views[name], kind) for name, kind in columns.items()})


def _parse_column(path: Path, texts: pd.Series, kind: IdKind) -> pd.Series:
    if kind is IdKind.NUMBER:
        _check(path, texts, texts.str.fullmatch(INTEGER), ID_NAMES[kind])
        return texts.astype(np.int64)
    ids = texts.map({text: _parse(text, kind) for text in texts.unique()}).astype(object)
    _check(path, texts, ids.notna(), ID_NAMES[kind])
    return ids


def _parse(text: str, kind: IdKind) -> Id | None:
    try:
        return parse_id(text, kind)
    except ValueError:
        return None


def _check(path: Path, values: pd.Series, valid: pd.Series, expected: str) -> None:
    if not valid.all():
        row = int(valid.index[~valid][0])
        raise ViewsError(f"{path}, line {row + 2}: {values.name} {values[row]!r} is not {expected}")


def find_live_runs(client: redis.Redis, keys: Keys, variants: tuple[str, ...]) -> list[LiveRun]:
    """Return the live run of each variant that has one.

    Raises
    ------
    StoreError
        No variant has a live run.
    """
    runs = []
    for variant in variants:
        run_id = live_run_id(client, keys, variant)
        manifest = client.get(keys.manifest(run_id)) if run_id else None
        if run_id and manifest:
            read = Manifest.from_json(manifest)
            runs.append(LiveRun(run_id, variant, read.require_cutoff(), read.ids))
    if not runs:
        raise StoreError(f"no run of {' or '.join(variants)} is live; `python -m batch run` creates one")
    return runs


def evaluate_views(
    engine: sa.Engine, settings: Settings, runs: list[LiveRun], views: pd.DataFrame, clock: datetime
) -> dict[str, Evaluation]:
    """Evaluate each live run's model, loaded from its folder, with features as of its cutoff.

    Raises
    ------
    ModelError
        A model cannot be read, or the SQL views have other columns than it was trained with.
    ViewsError
        No view is of a known user and a known post.
    """
    evaluations = {}
    with snapshot(engine) as connection:
        columns = check_views(connection)
    for run in runs:
        check_model_columns(Path(settings.night.model_dir) / run.run_id, columns)
    with pull(engine, settings, clock) as pulled:
        network = pulled.network
        rows = select_known_rows(network, views)
        for run in runs:
            _warn_of_logged_views(pulled.store, run, views)
            model = load_model(Path(settings.night.model_dir) / run.run_id, network)
            history = count_history(pulled.store, network, run.cutoff, model.groupings)
            scored = score_rows(
                model,
                network,
                history,
                rows,
                base_rate=mean_like_rate(history.post_counts["likes"], history.post_counts["views"]),
                threads=settings.night.threads,
            )
            evaluations[run.variant] = evaluate_rows(scored, settings.night.seed, None)
    return evaluations


def select_known_rows(network: Network, views: pd.DataFrame) -> Examples:
    """Return the views of known users and posts as distinct examples; the log counts the others.

    Raises
    ------
    ViewsError
        There are no such views.
    """
    user, post = (
        rows_of_nullable_ids(network.users, views[USER_ID]),
        rows_of_nullable_ids(network.posts, views[POST_ID]),
    )
    for name, rows in ((USER_ID, user), (POST_ID, post)):
        unknown = views.loc[rows < 0, name]
        if len(unknown):
            ids = ", ".join(map(str, unknown.unique()[:MAX_IDS_LOGGED]))
            more = ", ..." if unknown.nunique() > MAX_IDS_LOGGED else ""
            log.warning(
                "left out %d views: the network does not know %d of their %ss (%s%s)",
                len(unknown), unknown.nunique(), name, ids, more,
            )  # fmt: skip
    known = (user >= 0) & (post >= 0)
    if not known.any():
        raise ViewsError(f"none of the {len(views)} views is of a user and a post that the network knows")
    liked = views[TARGET].to_numpy()[known]
    viewed, weights = np.ones(liked.size, dtype=bool), np.ones(liked.size, dtype=np.float32)
    return Examples(user[known], post[known], liked, viewed, weights).distinct()


def _warn_of_logged_views(store: InteractionStore, run: LiveRun, views: pd.DataFrame) -> None:
    """Log how many views were in the network when the model was trained: it may have learnt from them."""
    parameters = {"cutoff": run.cutoff, "users": views[USER_ID].unique().tolist()}
    pairs = pd.MultiIndex.from_frame(
        pd.DataFrame(store.arrays(LOGGED.format(pulled=store.pulled), parameters))
    )
    seen = int(pd.MultiIndex.from_frame(views[[USER_ID, POST_ID]]).isin(pairs).sum())
    if seen:
        log.warning(
            "%d of %d views are of pairs that %s.%s already had when %s was trained: the model may know them",
            seen, len(views), SCHEMA, INTERACTIONS, run.run_id,
        )  # fmt: skip
