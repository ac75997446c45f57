"""Random lists for the tests of publishing."""

from __future__ import annotations

import numpy as np

from batch.scoring.chunk import Lists


def random_lists(users: int, posts: int, n: int, seed: int = 1) -> Lists:
    """Return random lists of users 1, 2, ...: every seventh has n // 2 posts, every 50th none."""
    random = np.random.default_rng(seed)
    listed = random.integers(0, posts, (users, n)).astype(np.int32)
    scores = -np.sort(random.gamma(6, 0.3, (users, n)).astype(np.float32), axis=1)
    listed[6::7, n // 2 :] = -1
    listed[49::50] = -1
    scores[listed < 0] = np.nan
    return Lists(np.arange(1, users + 1), listed, scores)
