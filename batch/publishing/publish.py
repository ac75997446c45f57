"""Writes a run aside under its own keys, checks it, and makes it live with one SET."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import redis

from batch.arrays import Float32s, Int32s, Int64s
from batch.loading.history import History
from batch.publishing.store import blocks
from batch.scoring.chunk import Lists
from batch.similarity.similar import Neighbours
from contract import columns
from contract.codec import SCORE_DECIMALS, ListEncoder, encode_list, encode_object
from contract.errors import ModelError, StoreError
from contract.experiment import Experiment
from contract.keys import HELP_TEXT, Keys
from contract.settings import Settings

KEYS_AT_A_TIME = 1_000
READ_BACK_EVERY = 1_000
GREATEST_SCORE = 1e12

Listed = tuple[Int64s, Int32s, Float32s]
"""Whose lists they are (ids), the posts listed (places, -1 pads) and their scores."""


@dataclass
class Written:
    """What was written so far.

    Attributes
    ----------
    lists, short, empty
        Lists written; of them shorter than N; of them with nothing in them.
    value_bytes
        Size of all lists.
    checksum
        SHA-256 over `id<TAB>list<LF>` in the order of the users' or posts'
        ids: equal checksums mean equal lists.
    """

    lists: int = 0
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
    listed = ((chunk.user_ids, chunk.posts, chunk.scores) for chunk in chunks)
    return _write(client, partial(keys.user, run_id), listed, post_ids)


def write_similar(
    client: redis.Redis, keys: Keys, run_id: str, chunks: Iterable[Neighbours], post_ids: Int64s
) -> Written:
    """Write every post's list of similar posts; one that has none gets an empty list."""
    listed = ((chunk.post_ids, chunk.posts, chunk.similarities) for chunk in chunks)
    return _write(client, partial(keys.post, run_id), listed, post_ids)


def _write(
    client: redis.Redis, key_of: Callable[[int], str], chunks: Iterable[Listed], post_ids: Int64s
) -> Written:
    written, encoder = Written(), ListEncoder(post_ids.tolist())
    rows = (row for chunk in chunks for row in _rows(*chunk, encoder))
    for block in blocks(rows, KEYS_AT_A_TIME):
        with client.pipeline(transaction=False) as pipe:
            for whose, value, length, full in block:
                key = key_of(whose)
                pipe.set(key, value)
                if written.lists % READ_BACK_EVERY == 0:
                    written.samples[key] = value
                written.lists += 1
                written.short += length < full
                written.empty += length == 0
                written.value_bytes += len(value)
                written.checksum.update(f"{whose}\t{value}\n".encode())
            pipe.execute()
    return written


def _rows(
    ids: Int64s, posts: Int32s, scores: Float32s, encoder: ListEncoder
) -> Iterator[tuple[int, str, int, int]]:
    """Yield (whose id, encoded list, its length, N) of each list."""
    for start in range(0, len(ids), KEYS_AT_A_TIME):
        block = slice(start, start + KEYS_AT_A_TIME)
        listed = posts[block] >= 0
        known = np.where(listed, scores[block], 0).astype(np.float64)
        if not (np.abs(known) < GREATEST_SCORE).all():
            raise ModelError("the model gives a score that is not finite; it is unusable")
        units = np.rint(known * 10**SCORE_DECIMALS).astype(np.int64)
        rows = (ids[block], listed.sum(axis=1), posts[block], units)
        for whose, length, places, of_places in zip(*(row.tolist() for row in rows), strict=True):
            yield whose, encoder.encode(places[:length], of_places[:length]), length, posts.shape[1]


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


def verify(client: redis.Redis, written: Written, expected: int) -> None:
    """Check that every user, or post, has a list and that a sample reads back as written.

    Raises
    ------
    StoreError
        Something is missing or differs; the run must not go live.
    """
    if written.lists != expected:
        raise StoreError(f"{written.lists} lists were written, {expected} were due; run again")
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
