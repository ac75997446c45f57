"""Picks each user's best posts among those not liked and not blocked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from batch.likes import Likes
from batch.tables import Float32s, Int32s


def top_n(scores: Float32s, liked: Likes, blocked: npt.NDArray[np.int64], n: int) -> tuple[Int32s, Float32s]:
    """Pick each user's n best posts among those the user has not liked.

    Equal scores go to the lower post place, so the same scores always give
    the same lists.

    Parameters
    ----------
    scores
        (users, posts) float32 raw scores; overwritten.
    liked
        Row per user: places of posts to leave out.
    blocked
        Places of posts to leave out for everybody.
    n
        Longest list; a user with fewer posts left gets fewer (-1 pads).

    Returns
    -------
    (users, n) int32 post places, best first, and (users, n) float32 scores
    (NaN where -1 pads).
    """
    users, posts = scores.shape
    scores[liked.users, liked.posts] = -np.inf
    scores[:, blocked] = -np.inf
    best = np.full((users, n), -1, dtype=np.int32)
    best_scores = np.full((users, n), np.nan, dtype=np.float32)
    width = min(n, posts)
    for user, row in enumerate(scores):
        worst_kept = np.partition(row, posts - width)[posts - width]
        above = np.flatnonzero(row > worst_kept)
        level = np.flatnonzero(row == worst_kept)[: width - above.size]
        chosen = np.concatenate([above, level])
        chosen = chosen[np.isfinite(row[chosen])]
        chosen = chosen[np.lexsort((chosen, -row[chosen]))]
        best[user, : chosen.size] = chosen
        best_scores[user, : chosen.size] = row[chosen]
    return best, best_scores
