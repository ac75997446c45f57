"""Writes a run aside under its own keys, checks it, and makes it live with one SET."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import redis

from batch.chunk import Lists
from batch.history import History
from batch.store import blocks
from batch.tables import Int64s
from contract import columns
from contract.codec import SCORE_DECIMALS, ListEncoder, encode_list, encode_object
from contract.errors import ModelError, StoreError
from contract.experiment import Experiment
from contract.keys import HELP_TEXT, Keys
from contract.settings import Settings

KEYS_AT_A_TIME = 1_000
READ_BACK_EVERY = 1_000
GREATEST_SCORE = 1e12


@dataclass
class Written:
    """What was written so far.

    Attributes
    ----------
    users, short, empty
        Lists written; of them shorter than N; of them with nothing left.
    value_bytes
        Size of all lists.
    checksum
        SHA-256 over `user_id<TAB>list<LF>` in the order of user ids: equal
        checksums mean equal lists.
    """

    users: int = 0
    short: int = 0
    empty: int = 0
    value_bytes: int = 0
    checksum: Any = field(default_factory=hashlib.sha256)
    samples: dict[str, str] = field(default_factory=dict)


def write_lists(
    client: redis.Redis, keys: Keys, run_id: str, chunks: Iterable[Lists], post_ids: Int64s
) -> Written:
    """Write every user's list; the live run is not touched.

    Raises
    ------
    ModelError
        A score is no number that JSON has a word for.
    """
    written, encoder = Written(), ListEncoder(post_ids.tolist())
    rows = (row for chunk in chunks for row in _rows(chunk, encoder))
    for block in blocks(rows, KEYS_AT_A_TIME):
        with client.pipeline(transaction=False) as pipe:
            for user_id, value, length, full in block:
                key = keys.user(run_id, user_id)
                pipe.set(key, value)
                if written.users % READ_BACK_EVERY == 0:
                    written.samples[key] = value
                written.users += 1
                written.short += length < full
                written.empty += length == 0
                written.value_bytes += len(value)
                written.checksum.update(f"{user_id}\t{value}\n".encode())
            pipe.execute()
    return written


def _rows(chunk: Lists, encoder: ListEncoder) -> Iterator[tuple[int, str, int, int]]:
    """Yield (user id, encoded list, its length, N) of each user."""
    for start in range(0, len(chunk.user_ids), KEYS_AT_A_TIME):
        block = slice(start, start + KEYS_AT_A_TIME)
        posts, listed = chunk.posts[block], chunk.posts[block] >= 0
        scores = np.where(listed, chunk.scores[block], 0).astype(np.float64)
        if not (np.abs(scores) < GREATEST_SCORE).all():
            raise ModelError("the model gives a score that is not finite; it is unusable")
        units = np.rint(scores * 10**SCORE_DECIMALS).astype(np.int64)
        rows = (chunk.user_ids[block], listed.sum(axis=1), posts, units)
        for user_id, length, places, of_places in zip(*(row.tolist() for row in rows), strict=True):
            yield user_id, encoder.encode(places[:length], of_places[:length]), length, posts.shape[1]


def begin(client: redis.Redis, keys: Keys, run_id: str) -> None:
    """Write the manifest that marks the run's keys as its own, before any other of them."""
    client.set(keys.manifest(run_id), encode_object({"run_id": run_id, "state": "building"}))


def popular_posts(
    likes: npt.NDArray[np.float64], post_ids: Int64s, blocked: npt.NDArray[np.int64], n: int
) -> list[tuple[int, float]]:
    """Return the n most liked posts with their likes, most first, ties to the lower id."""
    order = np.lexsort((post_ids, -likes))
    order = order[~np.isin(order, blocked)][:n]
    return [(int(post_ids[place]), float(likes[place])) for place in order]


def write_popular(
    client: redis.Redis,
    keys: Keys,
    run_id: str,
    history: History,
    post_ids: Int64s,
    blocked: npt.NDArray[np.int64],
    n: int,
) -> None:
    """Write the fallback for users without a list: the n most liked posts."""
    likes = history.post_counts["likes"].to_numpy(np.float64)
    client.set(keys.popular(run_id), encode_list(popular_posts(likes, post_ids, blocked, n)))


def write_texts(client: redis.Redis, keys: Keys, posts: pd.DataFrame) -> None:
    """Write text and topic of every post, for answers that carry them."""
    contents = posts[[columns.TEXT, columns.TOPIC]].astype(object)
    for block in blocks(contents.itertuples(), KEYS_AT_A_TIME):
        fields: dict[Any, Any] = {
            str(post_id): encode_object(
                {
                    "text": text if isinstance(text, str) else "",
                    "topic": topic if isinstance(topic, str) else None,
                }
            )
            for post_id, text, topic in block
        }
        client.hset(keys.posts, mapping=fields)


def remove_old_texts(client: redis.Redis, keys: Keys, posts: pd.DataFrame) -> None:
    """Remove the texts of posts that the network no longer has."""
    present = {str(post_id) for post_id in posts.index}
    gone = [post_id for post_id in client.hkeys(keys.posts) if post_id not in present]
    for block in blocks(gone, KEYS_AT_A_TIME):
        client.hdel(keys.posts, *block)


def write_lasting_keys(client: redis.Redis, keys: Keys, settings: Settings) -> None:
    """Write what outlives runs: the help text, and the experiment if none is stored."""
    client.set(keys.help, HELP_TEXT.format(prefix=keys.prefix))
    experiment = Experiment("default", settings.experiment_salt, settings.percent_test)
    client.set(keys.experiment, encode_object(experiment.to_fields()), nx=True)


def verify(client: redis.Redis, written: Written, expected_users: int) -> None:
    """Check that every user has a list and that a sample reads back as written.

    Raises
    ------
    StoreError
        Something is missing or differs; the run must not go live.
    """
    if written.users != expected_users:
        raise StoreError(f"{written.users} lists were written for {expected_users} users; run again")
    for block in blocks(written.samples, KEYS_AT_A_TIME):
        with client.pipeline(transaction=False) as pipe:
            for key in block:
                pipe.get(key)
            found = pipe.execute()
        for key, value in zip(block, found, strict=True):
            if value != written.samples[key]:
                raise StoreError(
                    f"{key} does not read back as written: is something else writing, or evicting?"
                )


def blocked_places(client: redis.Redis, keys: Keys, post_ids: Int64s) -> npt.NDArray[np.int64]:
    """Return the places of the posts that operators blocked; what is no post's id blocks nothing."""
    blocked = client.smembers(keys.blocked)
    return np.flatnonzero(np.isin(post_ids.astype(str), np.array(sorted(blocked), dtype=str)))
