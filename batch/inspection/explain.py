"""The model's score of one pair, in its parts.

score = dot product of the factors + the forest's base value + a contribution
of each feature. The base value is the forest's mean over what it was trained
on; contributions are SHAP values as LightGBM works them out (Lundberg et al.,
2020): together they are the forest's score exactly.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import sqlalchemy as sa

from batch.features.tables import Feature, Kind
from batch.loading.combined_store import CombinedStore, read_recent
from batch.loading.interaction_store import open_store
from batch.loading.network import Network, load_network
from batch.loading.work_folder import store_folder, work_folder
from batch.postgres import snapshot
from batch.refresh.stale_users import LATE
from batch.training.model import Model, load_model
from batch.training.model_files import POSTS
from batch.training.refresh_state import load_refresh_state
from contract.codec import Ranked
from contract.columns import INTERACTIONS, LIKE_ACTION, SCHEMA
from contract.errors import ModelError, SourceError
from contract.settings import Settings

TOLERANCE = 1e-5

LIKED = sa.text(f"""
    SELECT min(happened_at) FROM {SCHEMA}.{INTERACTIONS}
    WHERE user_id = :user_id AND post_id = :post_id AND action = '{LIKE_ACTION}'
""")


@dataclass(frozen=True)
class Explained:
    """A score in its parts, all in the score's unit.

    Attributes
    ----------
    score
        dot_product + base_value + all contributions.
    dot_product
        Of the factors; None for a model without.
    contributions
        `feature`, `kind`, `value` (a category's word; None if unknown) and
        `contribution` of every feature, largest first, whatever its sign.
    known
        Whether the run knew the post.
    liked_at
        When the user first liked the post, be it since the run; None if never.
    score_kind, score_meaning
        The recipe of the model, and what its scores mean.
    """

    score: float
    dot_product: float | None
    base_value: float
    contributions: list[dict[str, Any]]
    known: bool
    liked_at: datetime | None
    score_kind: str
    score_meaning: str


def explained(
    engine: sa.Engine, settings: Settings, manifest: dict[str, Any], user_id: int, post_id: int
) -> Explained:
    """Score one pair by a saved model, with features as of its run's cutoff.

    Reads the store of the run's night, and from Postgres users, posts and what
    was logged since.

    Parameters
    ----------
    manifest
        Of the run.

    Raises
    ------
    InteractionStoreError, ModelError
        The run's store or model is not there, or cannot be used.
    SourceError
        The network knows no such user or post.
    """
    run_id, cutoff = manifest["run_id"], datetime.fromisoformat(manifest["cutoff"])
    folder, clock = Path(settings.night.model_dir) / run_id, datetime.now(UTC)
    known = _posts_known(folder)
    with ExitStack() as stack:
        work = stack.enter_context(work_folder(store_folder(settings)))
        with snapshot(engine) as connection:
            network = load_network(connection, clock)
            user = _find(network.users.index, "user", user_id)
            _find(network.posts.index, "post", post_id)
            liked_at = connection.scalar(LIKED, {"user_id": user_id, "post_id": post_id})
            recent = stack.enter_context(read_recent(connection, settings, cutoff - LATE, clock, work))
        # The posts that the run knew, no newer ones: those would move the factors of all.
        posts = network.posts[network.posts.index.isin([*known, post_id])]
        network = Network(network.users.iloc[[user]], posts)
        model, state = load_model(folder, network), load_refresh_state(folder)
        night = stack.enter_context(closing(open_store(settings, manifest, recent.store.options)))
        combined = CombinedStore(night, cutoff - LATE, recent)
        counts = combined.post_counts(posts, cutoff)
        history = stack.enter_context(combined.history(network, cutoff, model.groupings, counts))
        tables = model.tables(network, history, state.population)
        factors = state.factors(model, network, history, changed=set())
    pair = np.array([0]), np.array([_find(posts.index, "post", post_id)])
    dot = None if factors is None else float(factors.dot(*pair)[0])
    row = tables.rows(*pair)
    *parts, base = _parts(model, row, settings.night.threads)
    found: list[dict[str, Any]] = [
        {
            "feature": feature.name,
            "kind": str(feature.kind),
            "value": _value(model, feature, number),
            "contribution": part,
        }
        for feature, number, part in zip(tables.columns, row[0].tolist(), parts, strict=True)
    ]
    found.sort(key=lambda part: -abs(part["contribution"]))
    return Explained(
        score=sum(parts) + base + (dot or 0.0),
        dot_product=dot,
        base_value=base,
        contributions=found,
        known=post_id in known,
        liked_at=liked_at,
        score_kind=model.recipe.name,
        score_meaning=model.recipe.score_meaning,
    )


def _parts(model: Model, row: np.ndarray, threads: int) -> list[float]:
    """Return each feature's contribution and then the base value.

    Raises
    ------
    ModelError
        They do not add up to the forest's score.
    """
    found = model.booster.predict(row, pred_contrib=True, num_threads=threads)
    parts: list[float] = np.asarray(found, np.float64)[0].tolist()
    forest = float(np.asarray(model.booster.predict(row, raw_score=True, num_threads=threads))[0])
    if abs(sum(parts) - forest) > TOLERANCE:
        raise ModelError(f"the contributions add up to {sum(parts):.6f}, but the forest says {forest:.6f}")
    return parts


def _value(model: Model, feature: Feature, number: float) -> float | str | None:
    if np.isnan(number):
        return None
    if not feature.categorical:
        return number
    encoder = model.users if feature.kind is Kind.USER else model.posts
    words = encoder.categories[feature.name.removeprefix(f"{feature.kind}_")] or ()
    return words[int(number)]


def _posts_known(folder: Path) -> set[int]:
    try:
        # Opened here: numpy leaves a damaged file open.
        with (folder / POSTS).open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return set(kept["post_ids"].tolist())
    except FileNotFoundError:
        raise ModelError(
            f"there is no model in {folder}, and only the run's own can tell; ask where the night runs, with "
            "its OVERNIGHT_MODEL_DIR, and of a run that is kept"
        ) from None
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the model in {folder} cannot be used: {reason}; run the night again") from None


def _find(index: Any, what: str, wanted: int) -> int:
    """Return the place of an id in an ascending index."""
    place = int(index.searchsorted(wanted))
    if place == len(index) or index[place] != wanted:
        raise SourceError(f"the network knows no {what} {wanted}; check the id")
    return place


@dataclass(frozen=True)
class Asked:
    """The post that is asked about.

    Attributes
    ----------
    score
        The model's, of the user and the post.
    blocked
        Operators blocked it.
    known
        The run knew it.
    liked_at
        When the user liked it; None if they did not.
    """

    post_id: int
    score: float
    blocked: bool
    known: bool
    liked_at: datetime | None


@dataclass(frozen=True)
class Standing:
    """A post's rank (from 1) and score in a list, None where it is not there, and why, in words."""

    rank: int | None
    served_score: float | None
    why: str


def standing(ranked: Ranked | None, top_n: int, cutoff: datetime, post: Asked) -> Standing:
    """Tell where a post stands.

    Parameters
    ----------
    ranked
        The user's list in the run; None if there is none.
    top_n, cutoff
        The run's. A list shorter than its top N holds every post that could be shown.
    """
    for rank, (listed, score) in enumerate(ranked or [], start=1):
        if listed == post.post_id:
            told = [f"rank {rank} of {len(ranked or [])}, score {score}", *_kept_out(post, cutoff)]
            return Standing(rank, score, "; ".join(told))
    return Standing(None, None, "; ".join(["not in the list", *_why_not(ranked, top_n, cutoff, post)]))


def _why_not(ranked: Ranked | None, top_n: int, cutoff: datetime, post: Asked) -> list[str]:
    if ranked is None:
        return ["the run has no list of this user, who gets the popular posts"]
    if reasons := _kept_out(post, cutoff):
        return reasons
    if not post.known:
        return ["the post is newer than the run"]
    if len(ranked) < top_n:
        return ["every post left for this user is in it: this one was blocked, or liked, when it was made"]
    return [f"the last of its {len(ranked)} posts has {ranked[-1][1]}, this one {post.score:.3f}"]


def _kept_out(post: Asked, cutoff: datetime) -> list[str]:
    reasons = []
    if post.liked_at is not None:
        when = "since the run" if post.liked_at > cutoff else "before the run"
        reasons.append(f"liked at {post.liked_at.isoformat(timespec='seconds')}, {when}")
    if post.blocked:
        reasons.append("blocked by operators")
    return reasons
