"""A few users, from light to heavy: who they are, what they liked, and what this run gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import redis

from batch.arrays import Int64s
from batch.learning.gather import Gathered
from batch.loading.likes import Likes
from contract import columns
from contract.codec import decode_list
from contract.keys import Keys

HOW_MANY = 5
POSTS_SHOWN = 5
MOST_COLUMNS = 12
LETTERS = 90


@dataclass(frozen=True)
class ShownPost:
    """A post as a person recognises it; `score` is None for one that was liked."""

    post_id: int
    topic: str
    words: str
    score: float | None = None


@dataclass(frozen=True)
class Portrait:
    """One user.

    Attributes
    ----------
    profile
        Column -> value, as far as they are known.
    topics
        (topic, likes), most liked first.
    likes, liked
        How many posts they liked up to the cutoff, and some of those.
    gets
        The head of their list.
    """

    user_id: int
    profile: dict[str, str]
    topics: list[tuple[str, int]]
    likes: int
    liked: list[ShownPost]
    gets: list[ShownPost]


def portraits(client: redis.Redis, keys: Keys, run_id: str, gathered: Gathered, users: int) -> list[Portrait]:
    """Describe some of the first `users` users, whose lists the run has written."""
    network, likes = gathered.network, gathered.now.likes
    topics = network.posts[columns.TOPIC].reset_index(drop=True)
    found = []
    for place in chosen(likes, users):
        user_id, liked = int(network.users.index[place]), likes.of(int(place))
        some = liked[np.linspace(0, liked.size - 1, min(POSTS_SHOWN, liked.size)).astype(np.int64)]
        counts = topics[liked].value_counts()
        ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
        stored = client.get(keys.user(run_id, user_id))
        listed = decode_list(stored)[:POSTS_SHOWN] if stored else []
        found.append(
            Portrait(
                user_id=user_id,
                profile=_profile(network.users.iloc[place]),
                topics=[(str(topic), int(count)) for topic, count in ranked[:POSTS_SHOWN]],
                likes=int(liked.size),
                liked=[_shown(network.posts, int(post_id)) for post_id in network.posts.index[some]],
                gets=[_shown(network.posts, post_id, score) for post_id, score in listed],
            )
        )
    return found


def chosen(likes: Likes, users: int) -> Int64s:
    """Choose users by their number of likes, evenly from few to many; anybody if none of them has one."""
    counts = np.diff(likes.starts[: users + 1])
    who = np.flatnonzero(counts) if counts.any() else np.arange(users)
    ordered = who[np.argsort(counts[who], kind="stable")]
    many = min(HOW_MANY, ordered.size)
    return ordered[((np.arange(many) + 0.5) * ordered.size / max(many, 1)).astype(np.int64)]


def _profile(user: pd.Series[Any]) -> dict[str, str]:
    known = user[user.notna()][:MOST_COLUMNS]
    return {
        str(name): f"{value:g}" if isinstance(value, float) else str(value) for name, value in known.items()
    }


def _shown(posts: pd.DataFrame, post_id: int, score: float | None = None) -> ShownPost:
    post = posts.loc[post_id]
    topic, text = (str(post[name]) if post.notna()[name] else "" for name in (columns.TOPIC, columns.TEXT))
    words = " ".join(text.split())
    return ShownPost(post_id, topic, words if len(words) <= LETTERS else f"{words[:LETTERS]}…", score)
