"""What Redis holds of runs and lists, read for people: whatever is missing or broken is told in one line."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import redis

from contract.codec import Ranked, decode_list, decode_object
from contract.errors import StoreError
from contract.experiment import NO_EXPERIMENT, VARIANTS, Experiment
from contract.keys import Keys
from contract.run_id import parse_run_id

PERSONAL, POPULAR = "personal", "popular"


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
