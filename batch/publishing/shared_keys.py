"""What a run writes beside its lists: its mark, the fallback, the texts, and what outlives it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import redis

from batch.arrays import Float64s, Int64s
from batch.loading.history import History
from batch.redis_client import blocks
from contract import columns
from contract.codec import encode_list, encode_object
from contract.keys import HELP_TEXT, Keys

KEYS_AT_A_TIME = 1_000


def begin(client: redis.Redis, keys: Keys, run_id: str) -> None:
    """Write the manifest that marks the run's keys as its own, before any other of them."""
    client.set(keys.manifest(run_id), encode_object({"run_id": run_id, "state": "building"}))


def popular_posts(likes: Float64s, post_ids: Int64s, blocked: Int64s, n: int) -> list[tuple[int, float]]:
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
    blocked: Int64s,
    n: int,
) -> None:
    """Write the fallback for users without a list: the n most liked posts."""
    likes = history.post_counts["likes"].to_numpy(np.float64)
    client.set(keys.popular(run_id), encode_list(popular_posts(likes, post_ids, blocked, n)))


def write_texts(client: redis.Redis, keys: Keys, posts: pd.DataFrame) -> None:
    """Write text and topic of every post, for answers that carry them."""
    for block in blocks(texts_of(posts), KEYS_AT_A_TIME):
        client.hset(keys.posts, mapping=dict(block))


def texts_of(posts: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield each post's id and, encoded, its text and topic."""
    contents = posts[[columns.TEXT, columns.TOPIC]].astype(object)
    for post_id, text, topic in contents.itertuples():
        fields = {
            "text": text if isinstance(text, str) else "",
            "topic": topic if isinstance(topic, str) else None,
        }
        yield str(post_id), encode_object(fields)


def remove_old_texts(client: redis.Redis, keys: Keys, posts: pd.DataFrame) -> None:
    """Remove the texts of posts that the network no longer has."""
    present = {str(post_id) for post_id in posts.index}
    gone = [post_id for post_id in client.hkeys(keys.posts) if post_id not in present]
    for block in blocks(gone, KEYS_AT_A_TIME):
        client.hdel(keys.posts, *block)


def write_help(client: redis.Redis, keys: Keys) -> None:
    """Write what the keys are, for whoever finds them."""
    client.set(keys.help, HELP_TEXT.format(prefix=keys.prefix))


def blocked_places(client: redis.Redis, keys: Keys, post_ids: Int64s) -> Int64s:
    """Return the places of the posts that operators blocked; what is no post's id blocks nothing."""
    blocked = client.smembers(keys.blocked)
    return np.flatnonzero(np.isin(post_ids.astype(str), np.array(sorted(blocked), dtype=str)))
