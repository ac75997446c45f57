"""A few users as examples: what they liked, and what the run recommends them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from batch.arrays import Int64s
from batch.context import Stores
from batch.loading.likes import Likes
from batch.training.dataset import Dataset
from contract import columns
from contract.codec import decode_list
from contract.ids import Id

EXAMPLE_USERS = 5
EXAMPLE_POSTS = 5
MAX_COLUMNS = 12
MAX_CHARACTERS = 90
"""Of a post's text."""


@dataclass(frozen=True)
class PostExample:
    """A post as people recognise it; `score` is None for a liked post."""

    post_id: Id
    topic: str
    words: str
    score: float | None = None


@dataclass(frozen=True)
class UserExample:
    """One user.

    Attributes
    ----------
    profile
        Column -> value, for the values that are not null.
    topics
        (topic, likes), most liked first.
    likes, liked
        The number of posts they liked up to the cutoff, and some of them.
    recommended
        The first posts of their list.
    """

    user_id: Id
    profile: dict[str, str]
    topics: list[tuple[str, int]]
    likes: int
    liked: list[PostExample]
    recommended: list[PostExample]


def read_user_examples(stores: Stores, run_id: str, dataset: Dataset, users: int) -> list[UserExample]:
    """Describe some of the first `users` users, those whose lists the run has written."""
    network, likes = dataset.network, dataset.now.likes
    topics = network.posts[columns.TOPIC].reset_index(drop=True)
    examples = []
    rows = choose_users(likes, users)
    for row, user_id in zip(rows.tolist(), network.users.index[rows].tolist(), strict=True):
        liked = likes.of(row)
        some = liked[np.linspace(0, liked.size - 1, min(EXAMPLE_POSTS, liked.size)).astype(np.int64)]
        counts = topics[liked].value_counts()
        ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
        stored = stores.redis.get(stores.keys.user(run_id, user_id))
        listed = decode_list(stored)[:EXAMPLE_POSTS] if stored else []
        examples.append(
            UserExample(
                user_id=user_id,
                profile=_describe_profile(network.users.iloc[row]),
                topics=[(str(topic), int(count)) for topic, count in ranked[:EXAMPLE_POSTS]],
                likes=int(liked.size),
                liked=[_describe_post(network.posts, each) for each in network.posts.index[some].tolist()],
                recommended=[_describe_post(network.posts, post_id, score) for post_id, score in listed],
            )
        )
    return examples


def choose_users(likes: Likes, users: int) -> Int64s:
    """Choose rows among the first `users`, evenly from few to many likes; any rows if nobody liked a post."""
    counts = np.diff(likes.starts[: users + 1])
    rows = np.flatnonzero(counts) if counts.any() else np.arange(users)
    ordered = rows[np.argsort(counts[rows], kind="stable")]
    size = min(EXAMPLE_USERS, ordered.size)
    return ordered[((np.arange(size) + 0.5) * ordered.size / max(size, 1)).astype(np.int64)]


def _describe_profile(user: pd.Series[Any]) -> dict[str, str]:
    known = user[user.notna()][:MAX_COLUMNS]
    return {
        str(name): f"{value:g}" if isinstance(value, float) else str(value) for name, value in known.items()
    }


def _describe_post(posts: pd.DataFrame, post_id: Id, score: float | None = None) -> PostExample:
    post = posts.loc[post_id]
    topic, text = (str(post[name]) if post.notna()[name] else "" for name in (columns.TOPIC, columns.TEXT))
    words = " ".join(text.split())
    if len(words) > MAX_CHARACTERS:
        words = f"{words[:MAX_CHARACTERS]}…"
    return PostExample(post_id, topic, words, score)
