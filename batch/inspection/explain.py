"""Explain the model's scores of one user and some posts.

score = dot product of the factors + the forest's base value + one contribution per feature

The base value is the forest's mean over its training data. The contributions
are LightGBM's SHAP values (Lundberg et al., 2020): with the base value they
add up to the forest's score exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import sqlalchemy as sa

from batch.arrays import Float32s
from batch.context import Stores
from batch.features.tables import Feature, Kind
from batch.files import POSTS, read_post_ids, read_user_ids, store_folder, work_folder
from batch.ids import unpack_ids
from batch.inspection.user_profile import find_refreshed_at
from batch.loading.combined_store import (
    CombinedStore,
    RecentInteractions,
    fingerprints,
    read_older,
    read_recent,
)
from batch.loading.history import History
from batch.loading.interaction_store import InteractionStore, open_store
from batch.loading.model_columns import check_model_columns
from batch.loading.network import Network, load_network
from batch.loading.schema import check_views
from batch.postgres import snapshot
from batch.refresh.gone_posts import find_returned_posts
from batch.refresh.stale_users import LATE
from batch.training.model import Model, load_model
from batch.training.refresh_state import load_refresh_state
from contract.codec import StoredList
from contract.columns import CREATED_AT, INTERACTIONS, LIKE_ACTION, SCHEMA, UNLIKE_ACTION
from contract.errors import ModelError, SourceError
from contract.ids import Id
from contract.manifest import Manifest
from contract.settings import LEAVE_OUT_VIEWED, Settings

TOLERANCE = 1e-5
"""Largest difference between the sum of the contributions and the forest's score."""

LIKED = sa.text(f"""
    SELECT min(happened_at) FILTER (WHERE action = '{LIKE_ACTION}' AND happened_at > undone_at)
    FROM (
        SELECT action, happened_at, coalesce(max(happened_at) FILTER (
            WHERE action = '{UNLIKE_ACTION}' AND happened_at <= :now
        ) OVER (), '-infinity') AS undone_at
        FROM {SCHEMA}.{INTERACTIONS} WHERE user_id = :user_id AND post_id = :post_id
    ) AS actions
""")


@dataclass(frozen=True)
class Explanation:
    """The parts of a score, all in the score's unit.

    Attributes
    ----------
    score
        dot_product + base_value + all contributions.
    dot_product
        Of the factors; None for a model without factors.
    contributions
        `feature`, `kind`, `value` (a category's name; None if unknown) and
        `contribution` of every feature, largest absolute value first.
    as_of
        What the features know: everything up to the run's cutoff, or, if a refresh wrote the user's list
        since, up to the last interaction before that.
    known
        Whether the post was there when the list was made.
    liked_at
        When the user first liked the post, also after the run; None if never, or if the like was taken back.
    left_out_as
        `own` or `viewed` if lists leave the post out for that and not for a like; else None.
    score_kind, score_meaning
        The model's recipe, and what its scores mean.
    """

    score: float
    dot_product: float | None
    base_value: float
    contributions: list[dict[str, Any]]
    as_of: datetime
    known: bool
    liked_at: datetime | None
    left_out_as: str | None
    score_kind: str
    score_meaning: str


def explain(
    stores: Stores, manifest: dict[str, Any], user_id: Id, post_ids: Sequence[Id]
) -> list[Explanation | SourceError]:
    """Score one user and some posts by the saved model of a run, with the features that the user's list has.

    They are as of the run's cutoff, or as of the refresh that wrote the list last. Reads the interaction
    store of the run's night, and from Postgres users, posts and the interactions since, once for all posts.

    Parameters
    ----------
    manifest
        Of the run.

    Returns
    -------
    One for each post, in their order; the error of a post that the network does not have.

    Raises
    ------
    InteractionStoreError, ModelError
        The run's store or model is missing, or cannot be used.
    SourceError
        The network has no such user.
    """
    run_id, cutoff = manifest["run_id"], datetime.fromisoformat(manifest["cutoff"])
    settings, now = stores.settings, datetime.now(UTC)
    folder = Path(settings.night.model_dir) / run_id
    known = _read_known_posts(folder)
    refreshed_at = find_refreshed_at(stores, run_id, user_id)
    found: dict[Id, Explanation | SourceError] = {}
    with ExitStack() as stack:
        work = stack.enter_context(work_folder(store_folder(settings)))
        with snapshot(stores.engine) as connection:
            check_model_columns(folder, check_views(connection))
            network = load_network(connection, now)
            user = _find_row(network.users.index, "user", user_id)
            for post_id in post_ids:
                try:
                    _check_post(stores, network, known, post_id)
                except SourceError as error:
                    found[post_id] = error
            liked_at = {
                post_id: connection.scalar(LIKED, {"user_id": user_id, "post_id": post_id, "now": now})
                for post_id in post_ids
            }
            since, until = cutoff - LATE, refreshed_at or now
            recent = stack.enter_context(read_recent(connection, settings, since, until, work))
            network = replace(network, users=network.users.iloc[[user]])
            older = None
            if refreshed_at is not None:
                posts = network.posts
                known = set(posts.index[~(posts[CREATED_AT] > pd.Timestamp(refreshed_at))])
                read = _read_older(connection, settings, recent, network, folder)
                older = stack.enter_context(read)
        store = open_store(settings, Manifest.from_record(manifest), recent.store.options)
        night = stack.enter_context(closing(store))
        combined = CombinedStore(night, since, recent, older)
        as_of = cutoff if refreshed_at is None else combined.cutoff
        changed: set[Id] = set()
        if refreshed_at is not None:
            before, after = fingerprints(night, since, cutoff), fingerprints(recent.store, since, until)
            changed = {user_id} if before.get(user_id) != after.get(user_id) else changed
        there = [post_id for post_id in post_ids if post_id not in found]
        inputs = _ExplainInputs(settings, folder, network, combined, as_of, known, liked_at, changed)
        # A post that came after the list would change the factors of all posts: it is scored apart.
        passes = [[post_id for post_id in there if post_id in known]]
        passes += [[post_id] for post_id in there if post_id not in known]
        for together in filter(None, passes):
            found |= zip(together, _explain_together(inputs, together), strict=True)
    return [found[post_id] for post_id in post_ids]


def _read_older(
    connection: sa.Connection,
    settings: Settings,
    recent: RecentInteractions,
    network: Network,
    folder: Path,
) -> AbstractContextManager[InteractionStore | None]:
    """Read the older interactions of the only user that the run's night did not know, as a refresh does."""
    users, of_night = network.users.index.tolist(), read_post_ids(folder)
    is_new = not set(users) <= set(read_user_ids(folder).tolist())
    return read_older(
        connection,
        settings,
        recent,
        unknown=users if is_new else [],
        known=[] if is_new else users,
        returned=find_returned_posts(network, of_night, recent.since),
    )


@dataclass(frozen=True)
class _ExplainInputs:
    """What the scores of a user's posts are explained from; `network` has this user only.

    Attributes
    ----------
    as_of
        As in `Explanation`.
    known
        Posts that were there when the list was made.
    changed
        The user, if their actions differ from those that the night knew.
    """

    settings: Settings
    folder: Path
    network: Network
    combined: CombinedStore
    as_of: datetime
    known: set[Id]
    liked_at: Mapping[Id, datetime | None]
    changed: set[Id]


def _explain_together(inputs: _ExplainInputs, post_ids: list[Id]) -> list[Explanation]:
    """Explain the scores of posts in one pass, over the posts that were there and these."""
    settings, folder, cutoff = inputs.settings, inputs.folder, inputs.as_of
    everything = inputs.network.posts
    posts = everything[everything.index.isin([*inputs.known, *post_ids])]
    network = replace(inputs.network, posts=posts)
    model, state = load_model(folder, network), load_refresh_state(folder)
    of_user = inputs.combined.history(
        network,
        cutoff,
        model.groupings,
        inputs.combined.post_counts(posts, cutoff),
        leave_out_viewed=settings.feed.leave_out == LEAVE_OUT_VIEWED,
    )
    post_rows = np.array([_find_row(posts.index, "post", post_id) for post_id in post_ids])
    user_rows = np.zeros_like(post_rows)
    with of_user as history:
        left_out_as = [_left_out_as(history, row) for row in post_rows.tolist()]
        tables = model.tables(network, history, state.population)
        factors = state.factors(model, network, history, inputs.changed)
    dots = [None] * len(post_ids) if factors is None else factors.dot(user_rows, post_rows).tolist()
    features = tables.rows(user_rows, post_rows)
    found = []
    for index, parts in enumerate(_predict_contributions(model, features, settings.night.threads)):
        *contributions, base = parts
        rows: list[dict[str, Any]] = [
            {
                "feature": feature.name,
                "kind": str(feature.kind),
                "value": _feature_value(model, feature, number),
                "contribution": contribution,
            }
            for feature, number, contribution in zip(
                tables.columns, features[index].tolist(), contributions, strict=True
            )
        ]
        rows.sort(key=lambda row: -abs(row["contribution"]))
        found.append(
            Explanation(
                score=sum(contributions) + base + (dots[index] or 0.0),
                dot_product=dots[index],
                base_value=base,
                contributions=rows,
                as_of=inputs.as_of,
                known=post_ids[index] in inputs.known,
                liked_at=inputs.liked_at[post_ids[index]],
                left_out_as=left_out_as[index],
                score_kind=model.recipe.name,
                score_meaning=model.recipe.score_meaning,
            )
        )
    return found


def _left_out_as(history: History, post: int) -> str | None:
    """Return why lists of the only user leave out a post that they did not like; None if they do not."""
    if post in history.excluded.of(0):
        return None
    if history.own is not None and post in history.own.of(0):
        return "own"
    return "viewed" if post in history.left_out.of_rows(np.array([0])).of(0) else None


def _predict_contributions(model: Model, features: Float32s, threads: int) -> list[list[float]]:
    """Return, for each row of features, the contribution of each feature, then the base value.

    Raises
    ------
    ModelError
        They do not add up to the forest's score.
    """
    predicted = np.asarray(
        model.booster.predict(features, pred_contrib=True, num_threads=threads), np.float64
    ).reshape(len(features), -1)
    forest = np.asarray(model.booster.predict(features, raw_score=True, num_threads=threads), np.float64)
    for total, score in zip(predicted.sum(axis=1).tolist(), forest.tolist(), strict=True):
        if abs(total - score) > TOLERANCE:
            raise ModelError(
                f"the contributions add up to {total:.6f}, but the forest's score is {score:.6f}"
            )
    parts: list[list[float]] = predicted.tolist()
    return parts


def _feature_value(model: Model, feature: Feature, number: float) -> float | str | None:
    if np.isnan(number):
        return None
    if not feature.categorical:
        return number
    encoder = model.users if feature.kind is Kind.USER else model.posts
    categories = encoder.categories[feature.name.removeprefix(f"{feature.kind}_")] or ()
    return categories[int(number)]


def _read_known_posts(folder: Path) -> set[Id]:
    try:
        # Opened here, since np.load does not close a damaged file.
        with (folder / POSTS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return set(unpack_ids(arrays["post_ids"]).tolist())
    except FileNotFoundError:
        raise ModelError(
            f"there is no model in {folder}; run this command on the host of the night, with its "
            "OVERNIGHT_MODEL_DIR, for a run that is still kept"
        ) from None
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the model in {folder} cannot be used: {reason}; run the night again") from None


def _check_post(stores: Stores, network: Network, known: set[Id], post_id: Id) -> None:
    """Raise a SourceError if the network has no such post, or no longer has it."""
    gone = post_id in known or stores.redis.hexists(stores.keys.posts, str(post_id))
    if gone and post_id not in network.posts.index:
        raise SourceError(
            f"post {post_id} is no longer in recs.posts, so its score cannot be explained; "
            "a refresh leaves it out of all answers"
        )
    _find_row(network.posts.index, "post", post_id)


def _find_row(index: Any, what: str, wanted: Id) -> int:
    """Return the row of an id in an ascending index."""
    row = int(index.searchsorted(wanted))
    if row == len(index) or index[row] != wanted:
        raise SourceError(f"the network has no {what} {wanted}; check the id")
    return row


@dataclass(frozen=True)
class PostInQuestion:
    """The post whose position is to be explained.

    Attributes
    ----------
    score
        The model's score for the user and the post.
    blocked
        Whether it is on the blocklist.
    known
        Whether it was there when the list was made.
    liked_at
        When the user liked it; None if they did not.
    left_out_as
        As in `Explanation`.
    """

    post_id: Id
    score: float
    blocked: bool
    known: bool
    liked_at: datetime | None
    left_out_as: str | None = None


@dataclass(frozen=True)
class ListPosition:
    """A post's rank (from 1) and score in a list, None if it is not in it, and the reason in words."""

    rank: int | None
    served_score: float | None
    why: str


def find_position(
    stored: StoredList | None, top_n: int, cutoff: datetime, post: PostInQuestion
) -> ListPosition:
    """Find a post's position in a list, and explain it.

    Parameters
    ----------
    stored
        The user's list in the run; None if there is none.
    top_n, cutoff
        Of the run. A list shorter than `top_n` holds every post that may be shown.
    """
    ranked, probabilities = stored or StoredList([])
    for index, (listed, score) in enumerate(ranked):
        if listed == post.post_id:
            parts = [f"rank {index + 1} of {len(ranked)}, score {score}"]
            if index in probabilities:
                parts.append(f"drawn for an explored place, 1 of {1 / probabilities[index]:.0f} posts")
            parts += _list_exclusions(post, cutoff)
            return ListPosition(index + 1, score, "; ".join(parts))
    why = ["not in the list", *_list_reasons(stored, top_n, cutoff, post)]
    return ListPosition(None, None, "; ".join(why))


def _list_reasons(stored: StoredList | None, top_n: int, cutoff: datetime, post: PostInQuestion) -> list[str]:
    """Return why a post is not in a list."""
    if stored is None:
        return ["the run has no list of this user, who gets the popular posts"]
    if reasons := _list_exclusions(post, cutoff):
        return reasons
    if not post.known:
        return ["the post was not in recs.posts when the list was made"]
    if len(stored.posts) < top_n:
        return [
            "the list holds all posts left for this user: this one was blocked or left out when it was made"
        ]
    last = [score for index, (_, score) in enumerate(stored.posts) if index not in stored.probabilities][-1]
    return [f"the last of its {len(stored.posts)} posts has {last}, this one {post.score:.3f}"]


def _list_exclusions(post: PostInQuestion, cutoff: datetime) -> list[str]:
    reasons = []
    if post.liked_at is not None:
        when = "after the run" if post.liked_at > cutoff else "before the run"
        reasons.append(f"liked at {post.liked_at.isoformat(timespec='seconds')}, {when}")
    if post.left_out_as is not None:
        reasons.append({"own": "the user's own post", "viewed": "viewed"}[post.left_out_as])
    if post.blocked:
        reasons.append("blocked by operators")
    return reasons
