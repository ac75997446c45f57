"""What a user gets now, as serving decides it: whose run, which list, and what is kept out of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import redis

from batch.inspecting import stored
from batch.inspecting.stored import PERSONAL, POPULAR
from batch.judging.recipe_record import score_kind_of
from contract.keys import Keys


@dataclass(frozen=True)
class Served:
    """The list that a user's recommendations are taken from.

    Attributes
    ----------
    variant
        The user's; the run may be of the other one.
    source, why
        `personal`, or `popular` and why.
    score_kind, score_meaning
        What kind the scores are: the run's recipe or `likes`; and what they mean.
    key
        Where the list is.
    published_at
        When the run went live.
    posts
        Best first: `rank` (from 1), `post_id`, `score`, `topic`, `text` and `blocked`, which is left out.
    """

    user_id: int
    variant: str
    run_id: str
    source: str
    why: str
    score_kind: str
    score_meaning: str
    key: str
    published_at: datetime
    posts: list[dict[str, Any]]

    def record(self, now: datetime) -> dict[str, Any]:
        """Return all of it, and how old the run is."""
        return {**vars(self), "age_seconds": round((now - self.published_at).total_seconds())}


def served(client: redis.Redis, keys: Keys, user_id: int) -> Served:
    """Look up what a user gets.

    Raises
    ------
    StoreError
        No run is live, or what is stored is broken.
    """
    variant, run_id = stored.run_for(client, keys, user_id)
    manifest = stored.manifest_of(client, keys, run_id)
    published_at = stored.published_at(run_id, manifest)
    key, why = keys.user(run_id, user_id), ""
    ranked = stored.list_at(client, key)
    blocked = stored.blocked_among(client, keys, [post_id for post_id, _ in ranked or []])
    if ranked is None:
        why = "the run has no list of this user"
    elif not ranked:
        why = "their list is empty: they liked everything"
    elif len(blocked) == len(ranked):
        why = "every post of their list is blocked"
    source = POPULAR if why else PERSONAL
    if why:
        key = keys.popular(run_id)
        ranked = stored.list_at(client, key)
        blocked = stored.blocked_among(client, keys, [post_id for post_id, _ in ranked or []])
    texts = stored.texts_of(client, keys, [post_id for post_id, _ in ranked or []])
    posts = [
        {
            "rank": rank,
            "post_id": post_id,
            "score": score,
            "topic": fields.get("topic"),
            "text": fields.get("text"),
            "blocked": post_id in blocked,
        }
        for rank, ((post_id, score), fields) in enumerate(zip(ranked or [], texts, strict=True), start=1)
    ]
    kind = score_kind_of(manifest, personal=source == PERSONAL)
    return Served(user_id, variant, run_id, source, why, *kind, key, published_at, posts)
