"""What Redis holds of runs and lists, read for people: whatever is missing or broken is told in one line."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import redis

from batch.evaluation.recipe_choice import score_kind_of
from batch.inspection import lists
from contract.codec import Ranked, decode_list, decode_object
from contract.errors import StoreError
from contract.experiment import NO_EXPERIMENT, VARIANTS, Experiment
from contract.keys import Keys
from contract.run_id import parse_run_id
from contract.score_kind import PERSONAL, POPULAR


def experiment_of(client: redis.Redis, keys: Keys) -> Experiment:
    """Return the stored split of the users; everyone is in control while none is stored.

    Raises
    ------
    StoreError
        What is stored is no experiment.
    """
    stored = client.get(keys.experiment)
    try:
        return Experiment.from_fields(decode_object(stored)) if stored else NO_EXPERIMENT
    except ValueError as error:
        mend = "python -m batch experiment set --percent-test PERCENT writes it anew"
        raise StoreError(f"{keys.experiment} is broken: {error}; {mend}") from None


def run_for(client: redis.Redis, keys: Keys, user_id: int) -> tuple[str, str]:
    """Return a user's variant and the run that serves them: the other variant's where theirs has none.

    Raises
    ------
    StoreError
        No run is live, or the experiment is broken.
    """
    variant = experiment_of(client, keys).variant_of(user_id)
    for name in sorted(VARIANTS, key=lambda name: name != variant):
        run_id = client.get(keys.live(name))
        if run_id:
            return variant, str(run_id)
    raise StoreError("no run is live; `python -m batch run` makes one")


def run_named(client: redis.Redis, keys: Keys, name: str) -> str:
    """Return a run's id as it is, and for `control` or `test` the id of the run that is live.

    Raises
    ------
    StoreError
        No run of the variant is live, or this is no run's name.
    """
    if name in VARIANTS:
        run_id = client.get(keys.live(name))
        if not run_id:
            raise StoreError(f"no run of {name} is live; `python -m batch runs` lists what there is")
        return str(run_id)
    try:
        parse_run_id(name)
    except ValueError as error:
        raise StoreError(f"{error}, nor a variant's; `python -m batch runs` lists them") from None
    return name


def manifest_of(client: redis.Redis, keys: Keys, run_id: str) -> dict[str, Any]:
    """Return a run's manifest.

    Raises
    ------
    StoreError
        The run has no keys, or its manifest is broken.
    """
    stored = client.get(keys.manifest(run_id))
    if not stored:
        raise StoreError(
            f"Redis has no keys of {run_id}: it is no longer kept, or never was; "
            "`python -m batch runs` lists the runs"
        )
    try:
        return decode_object(stored)
    except ValueError as error:
        raise StoreError(f"{keys.manifest(run_id)} is broken: {error}; run the night again") from None


def published_at(run_id: str, manifest: dict[str, Any]) -> datetime:
    """Return when a run went live; when it was begun if it never did."""
    try:
        moment = datetime.fromisoformat(str(manifest.get("published_at")))
    except ValueError:
        return parse_run_id(run_id)[0]
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def list_at(client: redis.Redis, key: str) -> Ranked | None:
    """Return the list under a key, None if there is none.

    Raises
    ------
    StoreError
        The list is broken.
    """
    stored = client.get(key)
    try:
        return None if stored is None else decode_list(stored)
    except ValueError as error:
        raise StoreError(f"{key} is broken: {error}; run the night again") from None


def list_of(client: redis.Redis, keys: Keys, run_id: str, user_id: int) -> tuple[str, Ranked]:
    """Return what a run has for a user, and its source: their own list, or without one the popular posts."""
    own = list_at(client, keys.user(run_id, user_id))
    if own:
        return PERSONAL, own
    return POPULAR, list_at(client, keys.popular(run_id)) or []


def texts_of(client: redis.Redis, keys: Keys, posts: list[int]) -> list[dict[str, Any]]:
    """Return the stored `text` and `topic` of posts, empty where there is nothing that can be read."""
    stored: Any = client.hmget(keys.posts, [str(post_id) for post_id in posts]) if posts else []
    return [_fields(value) for value in stored]


def blocked_among(client: redis.Redis, keys: Keys, posts: list[int]) -> set[int]:
    """Return those of the posts that operators blocked."""
    flags: Any = client.smismember(keys.blocked, [str(post_id) for post_id in posts]) if posts else []
    return {post_id for post_id, flag in zip(posts, flags, strict=True) if flag}


def _fields(stored: str | None) -> dict[str, Any]:
    try:
        return decode_object(stored) if stored else {}
    except ValueError:
        return {}


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
    runs = [lists.run_named(client, keys, name) for name in (run_a, run_b)]
    manifests = [lists.manifest_of(client, keys, run_id) for run_id in runs]
    (source_a, before), (source_b, after) = (lists.list_of(client, keys, run, user_id) for run in runs)
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
    variant, run_id = lists.run_for(client, keys, user_id)
    manifest = lists.manifest_of(client, keys, run_id)
    published_at = lists.published_at(run_id, manifest)
    key, why = keys.user(run_id, user_id), ""
    ranked = lists.list_at(client, key)
    blocked = lists.blocked_among(client, keys, [post_id for post_id, _ in ranked or []])
    if ranked is None:
        why = "the run has no list of this user"
    elif not ranked:
        why = "their list is empty: they liked everything"
    elif len(blocked) == len(ranked):
        why = "every post of their list is blocked"
    source = POPULAR if why else PERSONAL
    if why:
        key = keys.popular(run_id)
        ranked = lists.list_at(client, key)
        blocked = lists.blocked_among(client, keys, [post_id for post_id, _ in ranked or []])
    texts = lists.texts_of(client, keys, [post_id for post_id, _ in ranked or []])
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
