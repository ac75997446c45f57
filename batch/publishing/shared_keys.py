"""Keys that a run writes besides its lists: the manifest's first version, popular posts, texts, help."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import redis

from batch.arrays import Float64s, Int64s
from batch.feed_rules.segments import Segments
from batch.ids import Ids
from batch.loading.history import History
from batch.loading.network import Network
from batch.publishing.blocking import decode_member
from batch.redis_client import blocks
from contract import columns
from contract.codec import encode_list, encode_object
from contract.ids import Id
from contract.keys import HELP_TEXT, Keys

KEYS_BATCH = 1_000


def write_first_manifest(client: redis.Redis, keys: Keys, run_id: str) -> None:
    """Write a manifest before any other key of a run: `prune` finds runs by their manifests."""
    client.set(keys.manifest(run_id), encode_object({"run_id": run_id, "state": "building"}))


def popular_posts(likes: Float64s, post_ids: Ids, excluded: Int64s, n: int) -> list[tuple[Id, float]]:
    """Return the n most liked posts with their likes, most first; the lower id wins ties.

    Parameters
    ----------
    likes, post_ids
        (posts,) number of likes, and ids, which ascend.
    excluded
        Rows of posts that are left out.
    """
    order = np.argsort(-likes, kind="stable")
    order = order[~np.isin(order, excluded)][:n]
    return list(zip(post_ids[order].tolist(), likes[order].tolist(), strict=True))


def write_popular(client: redis.Redis, key: str, history: History, excluded: Int64s, n: int) -> None:
    """Write the n most liked posts, which users without a list get.

    Parameters
    ----------
    excluded
        Rows of posts that are left out.
    """
    likes = history.post_counts["likes"].to_numpy(np.float64)
    post_ids = history.post_counts.index.to_numpy()
    client.set(key, encode_list(popular_posts(likes, post_ids, excluded, n)))


def encode_segments(segments: Segments, post_ids: Ids) -> dict[str, str]:
    """Return value of the attribute -> popular list of its users, as Redis has it."""
    ids = post_ids.tolist()
    return {
        value: encode_list((ids[row], likes) for row, likes in ranked) for value, ranked in segments.items()
    }


def write_segments(client: redis.Redis, key: str, encoded: dict[str, str]) -> None:
    """Write the popular lists of segments, if there are any."""
    if encoded:
        client.hset(key, mapping=dict(encoded.items()))


def write_texts(client: redis.Redis, keys: Keys, posts: pd.DataFrame) -> None:
    """Write text and topic of every post, for answers that include them."""
    for block in blocks(texts_of(posts), KEYS_BATCH):
        client.hset(keys.posts, mapping=dict(block))


def texts_of(posts: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield each post's id, and its text and topic as JSON."""
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
    for block in blocks(gone, KEYS_BATCH):
        client.hdel(keys.posts, *block)


def write_help(client: redis.Redis, keys: Keys) -> None:
    """Write a key that explains the keys."""
    client.set(keys.help, HELP_TEXT.format(prefix=keys.prefix))


def blocked_rows(client: redis.Redis, keys: Keys, network: Network) -> Int64s:
    """Return the rows of blocked posts; unknown ids are ignored."""
    kind = network.kinds.posts
    blocked = {decode_member(str(member), kind) for member in client.smembers(keys.blocked)}
    return np.flatnonzero([post_id in blocked for post_id in network.post_ids.tolist()])
