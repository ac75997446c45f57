"""Labelled views from a file, judged by the models now live: rows that no training has seen."""

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

from batch.evaluation.evaluate import Evaluation, evaluation
from batch.evaluation.scored_rows import judge
from batch.features.population import mean_like_rate
from batch.loading.examples import Examples
from batch.loading.history import count_history
from batch.loading.interaction_store import InteractionStore
from batch.loading.network import Network, rows_of_nullable_ids
from batch.loading.pull import pull
from batch.training.model import load_model
from contract.codec import decode_object
from contract.columns import INTERACTIONS, LIKE_ACTION, POST_ID, SCHEMA, USER_ID, VIEW_ACTION
from contract.errors import OvernightError, StoreError
from contract.keys import Keys
from contract.settings import Settings

log = logging.getLogger("batch")

TIMESTAMP, ACTION, TARGET = "timestamp", "action", "target"
COLUMNS = (TIMESTAMP, USER_ID, POST_ID, ACTION, TARGET)

WHOLE = r"-?\d{1,18}"
MOST_NAMED = 5

LOGGED = """
    SELECT DISTINCT user_id, post_id FROM interactions JOIN users USING (user_row) JOIN posts USING (post_row)
    WHERE happened_at <= $cutoff AND user_id IN (SELECT unnest($users))
"""


class ViewsError(OvernightError):
    """Raised when a file of labelled views cannot be used; names the file, the line and what is wrong."""


@dataclass(frozen=True)
class LiveRun:
    """A run that is live, and up to when it knows."""

    run_id: str
    variant: str
    cutoff: datetime


def read_views(path: Path) -> pd.DataFrame:
    """Read the rows with action `view`: `timestamp` (UTC), `user_id`, `post_id` and `target` (bool).

    Raises
    ------
    ViewsError
        The file cannot be read, lacks a column, or holds a value that is none.
    """
    try:
        with warnings.catch_warnings(action="error", category=ParserWarning):  # more fields than the header
            rows = pd.read_csv(
                path, dtype=str, keep_default_na=False, skip_blank_lines=False, index_col=False
            )
    except (OSError, EOFError, ValueError, ParserWarning) as error:
        # ValueError: pandas's own, and bytes that are no text
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ViewsError(f"{path} cannot be read: {reason}; give a CSV file, plain or .gz") from None
    rows.columns = rows.columns.str.strip()
    absent = [name for name in COLUMNS if name not in rows]
    if absent:
        raise ViewsError(f"{path} has no column {absent[0]}; its header must have " + ",".join(COLUMNS))
    rows = rows[(rows.fillna("") != "").any(axis=1)]  # blank lines say nothing
    _check(
        path, rows[ACTION], rows[ACTION].isin([VIEW_ACTION, LIKE_ACTION]), f"{VIEW_ACTION} or {LIKE_ACTION}"
    )
    views = rows[rows[ACTION] == VIEW_ACTION]
    if views.empty:
        raise ViewsError(f"{path} has no row with action {VIEW_ACTION}; there is nothing to judge")
    for name, pattern, wanted in (
        (USER_ID, WHOLE, "a whole number"),
        (POST_ID, WHOLE, "a whole number"),
        (TARGET, "[01]", "0 or 1"),
    ):
        _check(path, views[name], views[name].str.fullmatch(pattern), wanted)
    times = pd.to_datetime(views[TIMESTAMP], utc=True, errors="coerce", format="ISO8601")
    _check(path, views[TIMESTAMP], times.notna(), "a time like 2021-12-29T21:00:00")
    ids = {name: views[name].astype(np.int64) for name in (USER_ID, POST_ID)}
    return pd.DataFrame({TIMESTAMP: times, **ids, TARGET: views[TARGET] == "1"})


def _check(path: Path, values: pd.Series, fine: pd.Series, wanted: str) -> None:
    if not fine.all():
        row = int(fine.index[~fine][0])
        raise ViewsError(f"{path}, line {row + 2}: {values.name} {values[row]!r} is not {wanted}")


def live_runs(client: redis.Redis, keys: Keys, variants: tuple[str, ...]) -> list[LiveRun]:
    """Return the live run of each variant that has one.

    Raises
    ------
    StoreError
        None has.
    """
    found = []
    for variant in variants:
        run_id = client.get(keys.live(variant))
        manifest = client.get(keys.manifest(str(run_id))) if run_id else None
        if manifest:
            cutoff = datetime.fromisoformat(decode_object(manifest)["cutoff"])
            found.append(LiveRun(str(run_id), variant, cutoff))
    if not found:
        raise StoreError(f"no run of {' or '.join(variants)} is live; `python -m batch run` makes one")
    return found


def judge_views(
    engine: sa.Engine, settings: Settings, runs: list[LiveRun], views: pd.DataFrame, clock: datetime
) -> dict[str, Evaluation]:
    """Judge each live run's model, read back from its folder, with features as of its cutoff.

    Raises
    ------
    ModelError
        A model cannot be read.
    ViewsError
        No view is of a known user and a known post.
    """
    found = {}
    with pull(engine, settings, clock) as pulled:
        network = pulled.network
        rows = known_rows(network, views)
        for run in runs:
            _warn_of_logged(pulled.store, run, views)
            live = load_model(Path(settings.night.model_dir) / run.run_id, network)
            history = count_history(pulled.store, network, run.cutoff, live.groupings)
            like_rate = mean_like_rate(history.post_counts["likes"], history.post_counts["views"])
            judged = judge(live, network, history, rows, like_rate, settings.night.threads)
            found[run.variant] = evaluation(judged, settings.night.seed, None)
    return found


def known_rows(network: Network, views: pd.DataFrame) -> Examples:
    """Return the views of known users and posts as distinct examples; the others are counted in the log.

    Raises
    ------
    ViewsError
        There are none.
    """
    user, post = (
        rows_of_nullable_ids(network.users, views[USER_ID]),
        rows_of_nullable_ids(network.posts, views[POST_ID]),
    )
    for name, place in ((USER_ID, user), (POST_ID, post)):
        unknown = views.loc[place < 0, name]
        if len(unknown):
            named = ", ".join(map(str, unknown.unique()[:MOST_NAMED]))
            more = ", ..." if unknown.nunique() > MOST_NAMED else ""
            log.warning(
                "left out %d views: the network does not know %d of their %ss (%s%s)",
                len(unknown), unknown.nunique(), name, named, more,
            )  # fmt: skip
    known = (user >= 0) & (post >= 0)
    if not known.any():
        raise ViewsError(f"none of the {len(views)} views is of a user and a post that the network knows")
    liked = views[TARGET].to_numpy()[known]
    every = np.ones(liked.size, dtype=bool), np.ones(liked.size, dtype=np.float32)
    return Examples(user[known], post[known], liked, *every).distinct()


def _warn_of_logged(store: InteractionStore, run: LiveRun, views: pd.DataFrame) -> None:
    """Say how many views the network had logged when the model was trained: those it may have learnt from."""
    asked = {"cutoff": run.cutoff, "users": views[USER_ID].unique().tolist()}
    pairs = pd.MultiIndex.from_frame(pd.DataFrame(store.arrays(LOGGED, asked)))
    seen = int(pd.MultiIndex.from_frame(views[[USER_ID, POST_ID]]).isin(pairs).sum())
    if seen:
        log.warning(
            "%d of %d views are of pairs that %s.%s held already when %s was trained: not unseen",
            seen, len(views), SCHEMA, INTERACTIONS, run.run_id,
        )  # fmt: skip
