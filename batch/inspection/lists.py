"""Read runs and lists from Redis for operators; a missing or broken value is a one-line error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batch.context import Stores
from batch.evaluation.recipe_choice import score_kind_of
from batch.loading.schema import check_views
from batch.postgres import snapshot
from batch.redis_client import live_run_id, live_run_ids
from contract.codec import Ranked, StoredList, decode_object, decode_stored_list
from contract.errors import StoreError
from contract.experiment import NO_EXPERIMENT, VARIANTS, Experiment
from contract.ids import Id, IdKinds
from contract.manifest import parse_time
from contract.run_id import parse_run_id
from contract.score_kind import PERSONAL, POPULAR

HEAD_POSTS = 5
"""How many posts a feed shows first; users notice changes among them."""


def read_experiment(stores: Stores) -> Experiment:
    """Return the split of the users in Redis; without one, all users are in control.

    Raises
    ------
    StoreError
        The stored value is not an experiment.
    """
    stored = stores.redis.get(stores.keys.experiment)
    try:
        return Experiment.from_fields(decode_object(stored)) if stored else NO_EXPERIMENT
    except ValueError as error:
        fix = "python -m batch experiment set --percent-test PERCENT rewrites it"
        raise StoreError(f"{stores.keys.experiment} is broken: {error}; {fix}") from None


def find_id_kinds(stores: Stores) -> IdKinds:
    """Return of what kinds the ids of users and posts are: those of the newest live run.

    If no run is live, the views say it.

    Raises
    ------
    SourceError
        No run is live, and the views cannot be read.
    StoreError
        The manifest of the live run is missing or broken.
    """
    live = live_run_ids(stores.redis, stores.keys)
    if live:
        newest = max(live.values())
        return id_kinds_of(newest, read_manifest(stores, newest))
    return read_view_kinds(stores)


def read_view_kinds(stores: Stores) -> IdKinds:
    """Return of what kinds the ids of users and posts are in the views.

    Raises
    ------
    SourceError
        The views cannot be read.
    """
    with snapshot(stores.engine) as connection:
        return check_views(connection).kinds


def find_user_run(stores: Stores, user_id: Id) -> tuple[str, str]:
    """Return a user's variant and the id of the run that serves them.

    That is the other variant's run if theirs has no live one.

    Raises
    ------
    StoreError
        No run is live, or the experiment is broken.
    """
    variant = read_experiment(stores).variant_of(user_id)
    live = live_run_ids(stores.redis, stores.keys)
    if not live:
        raise StoreError("no run is live; `python -m batch run` builds one")
    return variant, live.get(variant) or next(iter(live.values()))


class UnknownRunError(StoreError):
    """Raised when a name is that of no run, or of none whose keys Redis still has."""


def resolve_run(stores: Stores, name: str) -> str:
    """Return the run id that `name` stands for: a run id, or a variant for its live run.

    Raises
    ------
    StoreError
        The variant has no live run.
    UnknownRunError
        `name` is neither a run id nor a variant.
    """
    if name in VARIANTS:
        run_id = live_run_id(stores.redis, stores.keys, name)
        if run_id is None:
            raise StoreError(f"no run of {name} is live; `python -m batch runs` lists all runs")
        return run_id
    try:
        parse_run_id(name)
    except ValueError as error:
        raise UnknownRunError(f"{error}, and not a variant; `python -m batch runs` lists all runs") from None
    return name


def read_manifest(stores: Stores, run_id: str) -> dict[str, Any]:
    """Return a run's manifest.

    Raises
    ------
    StoreError
        The run's manifest is broken.
    UnknownRunError
        It has none in Redis.
    """
    key = stores.keys.manifest(run_id)
    stored = stores.redis.get(key)
    if not stored:
        raise UnknownRunError(
            f"Redis has no keys of {run_id}: it is no longer kept, or never existed; "
            "`python -m batch runs` lists all runs"
        )
    try:
        return decode_object(stored)
    except ValueError as error:
        raise StoreError(f"{key} is broken: {error}; run the night again") from None


def id_kinds_of(run_id: str, manifest: dict[str, Any]) -> IdKinds:
    """Return the kinds of a run's ids.

    Raises
    ------
    StoreError
        The manifest names kinds that do not exist.
    """
    try:
        return IdKinds.from_record(manifest.get("ids"))
    except ValueError as error:
        raise StoreError(f"the manifest of {run_id} is broken: {error}; run the night again") from None


def published_at(run_id: str, manifest: dict[str, Any]) -> datetime:
    """Return when a run went live, by its manifest; the start of the run if it never did."""
    return parse_time(manifest.get("published_at")) or parse_run_id(run_id)[0]


def read_list(stores: Stores, key: str) -> Ranked | None:
    """Return the posts of the list under a key, as `read_stored_list` does."""
    stored = read_stored_list(stores, key)
    return None if stored is None else stored.posts


def read_stored_list(stores: Stores, key: str) -> StoredList | None:
    """Return the list under a key; None if there is no such key.

    Raises
    ------
    StoreError
        The list is broken.
    """
    stored = stores.redis.get(key)
    try:
        return None if stored is None else decode_stored_list(stored)
    except ValueError as error:
        raise StoreError(f"{key} is broken: {error}; run the night again") from None


def read_user_list(stores: Stores, run_id: str, user_id: Id) -> tuple[str, Ranked]:
    """Return (source, list) of a user in a run: their own list, or the popular posts if they have none."""
    own = read_list(stores, stores.keys.user(run_id, user_id))
    if own:
        return PERSONAL, own
    return POPULAR, read_list(stores, stores.keys.popular(run_id)) or []


def read_texts(stores: Stores, post_ids: Sequence[Id]) -> list[dict[str, Any]]:
    """Return `text` and `topic` of each post; an empty dict if there is no readable text."""
    names = [str(post_id) for post_id in post_ids]
    stored: Any = stores.redis.hmget(stores.keys.posts, names) if names else []
    return [_decode_text(value) for value in stored]


def find_members(stores: Stores, key: str, post_ids: Sequence[Id]) -> set[Id]:
    """Return those of the posts that are in a set, such as the blocklist."""
    names = [str(post_id) for post_id in post_ids]
    flags: Any = stores.redis.smismember(key, names) if names else []
    return {post_id for post_id, flag in zip(post_ids, flags, strict=True) if flag}


def _decode_text(stored: str | None) -> dict[str, Any]:
    try:
        return decode_object(stored) if stored else {}
    except ValueError:
        return {}


def compute_overlap(before: Ranked, after: Ranked, k: int | None = None) -> float:
    """Return the share of the longer list's first k posts that both lists have; 1 if both are empty."""
    posts, others = ({post_id for post_id, _ in ranked[:k]} for ranked in (before, after))
    return len(posts & others) / max(len(posts), len(others), 1) if posts or others else 1.0


def list_changes(before: Ranked, after: Ranked) -> list[dict[str, Any]]:
    """Return a row per post of either list: those of `after` in its order, then those that dropped out.

    A row has `post_id`, `change` (`same`, `up`, `down`, `in`, `out`),
    `rank_a`, `rank_b`, `score_a` and `score_b`; None if the post is not in that list.
    """
    ranks_a = {post_id: (rank, score) for rank, (post_id, score) in enumerate(before, start=1)}
    ranks_b = {post_id: (rank, score) for rank, (post_id, score) in enumerate(after, start=1)}
    rows = []
    for post_id in [*ranks_b, *(post_id for post_id in ranks_a if post_id not in ranks_b)]:
        rank_a, score_a = ranks_a.get(post_id, (None, None))
        rank_b, score_b = ranks_b.get(post_id, (None, None))
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


def _change(rank_a: int | None, rank_b: int | None) -> str:
    if rank_a is None or rank_b is None:
        return "in" if rank_a is None else "out"
    if rank_a == rank_b:
        return "same"
    return "up" if rank_b < rank_a else "down"


def compare_lists(stores: Stores, user_id: Id, run_a: str, run_b: str) -> dict[str, Any]:
    """Compare a user's lists in two runs; each is a run id, or a variant for its live run.

    If `score_kind_a` and `score_kind_b` differ, scores have different units:
    compare ranks only. The keys are the fields of `diff --json`.

    Raises
    ------
    StoreError
        A run has no keys, a list is broken, or the runs name users or posts by ids of different kinds.
    """
    runs = [resolve_run(stores, name) for name in (run_a, run_b)]
    manifests = [read_manifest(stores, run_id) for run_id in runs]
    kinds_a, kinds_b = (id_kinds_of(*each) for each in zip(runs, manifests, strict=True))
    if kinds_a != kinds_b:
        both = (f"{kinds.users} of users and {kinds.posts} of posts" for kinds in (kinds_a, kinds_b))
        raise StoreError(
            f"the lists of {' and '.join(runs)} cannot be compared: their ids are of different kinds "
            f"({'; '.join(both)}); compare runs with ids of one kind"
        )
    (source_a, before), (source_b, after) = (read_user_list(stores, run_id, user_id) for run_id in runs)
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
        "overlap_at_5": round(compute_overlap(before, after, HEAD_POSTS), 4),
        "overlap": round(compute_overlap(before, after), 4),
        "changes": list_changes(before, after),
    }


def describe_posts(stores: Stores, stored: StoredList | None) -> list[dict[str, Any]]:
    """Return the posts of a list as `ServedList` has them; empty without a list."""
    if stored is None:
        return []
    post_ids = [post_id for post_id, _ in stored.posts]
    blocked, gone = (find_members(stores, key, post_ids) for key in (stores.keys.blocked, stores.keys.gone))
    rows = []
    for index, (post_id, score) in enumerate(stored.posts):
        row = {"rank": index + 1, "post_id": post_id, "score": score}
        if index in stored.probabilities:
            row["probability"] = stored.probabilities[index]
        rows.append(row)
    return [
        row
        | {"topic": text.get("topic"), "text": text.get("text")}
        | {"blocked": row["post_id"] in blocked, "gone": row["post_id"] in gone}
        for row, text in zip(rows, read_texts(stores, post_ids), strict=True)
    ]


@dataclass(frozen=True)
class ServedList:
    """The list that serving takes a user's recommendations from.

    Attributes
    ----------
    variant
        The user's; the run may be of the other variant.
    source, why
        `personal`, or `popular` and the reason.
    score_kind, score_meaning
        The kind of the scores, the run's recipe or `likes`, and what they mean.
    key
        Redis key of the list.
    published_at
        When the run first went live, by its manifest.
    posts
        Best first: `rank` (from 1), `post_id`, `score`, `topic`, `text`, `blocked` and `gone`: serving
        leaves out posts that are blocked or gone from the view. A post in an explored place has the
        `probability` of its draw.
    """

    user_id: Id
    variant: str
    run_id: str
    source: str
    why: str
    score_kind: str
    score_meaning: str
    key: str
    published_at: datetime
    posts: list[dict[str, Any]]

    def as_dict(self, now: datetime) -> dict[str, Any]:
        """Return all fields and the age of the run."""
        return {**vars(self), "age_seconds": round((now - self.published_at).total_seconds())}


def find_served_list(stores: Stores, user_id: Id) -> ServedList:
    """Look up the list that a user is served from.

    Raises
    ------
    StoreError
        No run is live, or a stored value is broken.
    """
    variant, run_id = find_user_run(stores, user_id)
    return find_list(stores, user_id, variant, run_id, read_manifest(stores, run_id))


def find_list(stores: Stores, user_id: Id, variant: str, run_id: str, manifest: dict[str, Any]) -> ServedList:
    """Look up the list that a user of a variant gets, or would get, from a run.

    Raises
    ------
    StoreError
        A stored value is broken.
    """
    key, why = stores.keys.user(run_id, user_id), ""
    stored = read_stored_list(stores, key)
    posts = describe_posts(stores, stored)
    if stored is None:
        why = "the run has no list of this user"
    elif not posts:
        why = "their list is empty: they liked every post"
    elif all(post["blocked"] for post in posts):
        why = "every post of their list is blocked"
    elif all(post["blocked"] or post["gone"] for post in posts):
        why = "every post of their list is blocked or gone"
    source = POPULAR if why else PERSONAL
    if why:
        key = stores.keys.popular(run_id)
        posts = describe_posts(stores, read_stored_list(stores, key))
        if by := manifest.get("popular_by"):
            why += f"; with {by} in the request they get what is popular with their {by}"
    score_kind, score_meaning = score_kind_of(manifest, personal=source == PERSONAL)
    return ServedList(
        user_id=user_id,
        variant=variant,
        run_id=run_id,
        source=source,
        why=why,
        score_kind=score_kind,
        score_meaning=score_meaning,
        key=key,
        published_at=published_at(run_id, manifest),
        posts=posts,
    )
