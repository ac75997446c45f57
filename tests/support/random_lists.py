"""Random lists for the tests of publishing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from batch.ids import Ids
from batch.loading.likes import Likes
from batch.loading.network import Network
from batch.scoring.chunk import Lists
from contract.ids import IdKind, IdKinds

RUN_ID = "20261122T030000Z-control"


def random_lists(users: int, posts: int, n: int, seed: int = 1) -> Lists:
    """Return random lists of the users of rows 0, 1, ...: every seventh has n // 2 posts, every 50th none."""
    random = np.random.default_rng(seed)
    listed = random.integers(0, posts, (users, n)).astype(np.int32)
    scores = -np.sort(random.gamma(6, 0.3, (users, n)).astype(np.float32), axis=1)
    listed[6::7, n // 2 :] = -1
    listed[49::50] = -1
    scores[listed < 0] = np.nan
    return Lists(np.arange(users), listed, scores, Likes.none(users))


def cut(lists: Lists, size: int) -> Iterator[Lists]:
    """Yield the lists in chunks of `size` users."""
    for start in range(0, len(lists.rows), size):
        block = slice(start, start + size)
        rows = lists.rows[block]
        yield Lists(rows, lists.posts[block], lists.scores[block], Likes.none(rows.size))


def network_of(users: int, posts: int, text: str = "", *, kind: IdKind = IdKind.NUMBER) -> Network:
    """Return a network of users 1, 2, ... and posts 1, 2, ... that all have the same text."""
    user_ids, post_ids = (
        sorted(f"{word}/{number}" for number in range(1, count + 1))
        if kind is IdKind.TEXT
        else np.arange(1, count + 1)
        for word, count in (("user", users), ("über", posts))
    )
    of_users = pd.DataFrame(index=pd.Index(user_ids, name="user_id"))
    of_posts = pd.DataFrame({"post_id": post_ids, "text": text, "topic": "sport"})
    return Network(of_users, of_posts.set_index("post_id"), kinds=IdKinds(kind, kind))


def ids_of(network: Network) -> dict[str, Ids]:
    """Return the arguments of `write_lists` for the lists of a network."""
    return {"user_ids": network.user_ids, "post_ids": network.post_ids}
