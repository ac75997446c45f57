"""Random lists for the tests of publishing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from batch.scoring.chunk import Lists

RUN_ID = "20261122T030000Z-control"


def random_lists(users: int, posts: int, n: int, seed: int = 1) -> Lists:
    """Return random lists of users 1, 2, ...: every seventh has n // 2 posts, every 50th none."""
    random = np.random.default_rng(seed)
    listed = random.integers(0, posts, (users, n)).astype(np.int32)
    scores = -np.sort(random.gamma(6, 0.3, (users, n)).astype(np.float32), axis=1)
    listed[6::7, n // 2 :] = -1
    listed[49::50] = -1
    scores[listed < 0] = np.nan
    return Lists(np.arange(1, users + 1), listed, scores)


def cut(lists: Lists, size: int) -> Iterator[Lists]:
    """Yield the lists in chunks of `size` users."""
    for start in range(0, len(lists.user_ids), size):
        block = slice(start, start + size)
        yield Lists(lists.user_ids[block], lists.posts[block], lists.scores[block])


def posts_frame(posts: int, text: str = "") -> pd.DataFrame:
    """Return posts 1, 2, ... that all have the same text."""
    frame = pd.DataFrame({"post_id": np.arange(1, posts + 1), "text": text, "topic": "sport"})
    return frame.set_index("post_id")
