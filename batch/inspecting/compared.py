"""Two lists of one user side by side: what came in, what went out, what moved."""

from __future__ import annotations

from typing import Any

import redis

from batch.inspecting import stored
from batch.inspecting.stored import PERSONAL
from batch.judging.recipe_record import score_kind_of
from contract.codec import Ranked
from contract.keys import Keys

FIRST = 5
"""How many posts a feed shows at first: churn among them is what a user notices."""


def overlap(before: Ranked, after: Ranked, k: int | None = None) -> float:
    """Return which share of the first k posts of the longer list both have; 1 if both are empty."""
    posts, others = ({post_id for post_id, _ in ranked[:k]} for ranked in (before, after))
    return len(posts & others) / max(len(posts), len(others), 1) if posts or others else 1.0


def changes(before: Ranked, after: Ranked) -> list[dict[str, Any]]:
    """Return each post of either list, those of the second in its order, then those that went out.

    A row has `post_id`, `change` (`same`, `up`, `down`, `in`, `out`),
    `rank_a`, `rank_b`, `score_a` and `score_b`, None where a list has no such post.
    """
    was = {post_id: (rank, score) for rank, (post_id, score) in enumerate(before, start=1)}
    now = {post_id: (rank, score) for rank, (post_id, score) in enumerate(after, start=1)}
    rows = []
    for post_id in [*now, *(post_id for post_id in was if post_id not in now)]:
        rank_a, score_a = was.get(post_id, (None, None))
        rank_b, score_b = now.get(post_id, (None, None))
        rows.append(
            {
                "post_id": post_id,
                "change": _change(rank_a, rank_b),
                "rank_a": rank_a,
                "rank_b": rank_b,
                "score_a": score_a,
                "score_b": score_b,
            }
        )
    return rows


def compared(client: redis.Redis, keys: Keys, user_id: int, run_a: str, run_b: str) -> dict[str, Any]:
    """Compare what two runs have for a user; each is a run's id, or a variant for the run now live.

    Where `score_kind_a` is not `score_kind_b`, scores have no common unit: ranks compare, scores do not.

    Raises
    ------
    StoreError
        A run has no keys, or a list is broken.
    """
    runs = [stored.run_named(client, keys, name) for name in (run_a, run_b)]
    manifests = [stored.manifest_of(client, keys, run_id) for run_id in runs]
    (source_a, before), (source_b, after) = (stored.list_of(client, keys, run, user_id) for run in runs)
    kind_a, kind_b = (
        score_kind_of(manifest, personal=source == PERSONAL)[0]
        for manifest, source in zip(manifests, (source_a, source_b), strict=True)
    )
    return {
        "user_id": user_id,
        "run_a": runs[0],
        "run_b": runs[1],
        "source_a": source_a,
        "source_b": source_b,
        "score_kind_a": kind_a,
        "score_kind_b": kind_b,
        "overlap_at_5": round(overlap(before, after, FIRST), 4),
        "overlap": round(overlap(before, after), 4),
        "changes": changes(before, after),
    }


def _change(rank_a: int | None, rank_b: int | None) -> str:
    if rank_a is None or rank_b is None:
        return "in" if rank_a is None else "out"
    if rank_a == rank_b:
        return "same"
    return "up" if rank_b < rank_a else "down"
