"""Ranking metrics by the viewed-only protocol: a user's viewed posts are ranked, those liked are relevant.

Rows are distinct (user, post) pairs. Equal scores rank the lower post first.
hitrate@k: share of users with a liked post among their first k. precision@k:
liked posts among the first k, divided by k. recall@k and NDCG@k (binary gain,
log2 discount; Järvelin & Kekäläinen, 2002): mean over the users who liked
anything, as neither is defined for the others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import log_loss, roc_auc_score

Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

K = 5
RANKING = (f"hitrate_at_{K}", f"precision_at_{K}", f"recall_at_{K}", f"ndcg_at_{K}")
SMALLEST_PROBABILITY = 1e-6


def ranking_metrics(
    users: Places, posts: Places, liked: Flags, scores: Floats, k: int = K
) -> dict[str, float]:
    """Return the four ranking metrics; NaN where no user can tell one.

    Parameters
    ----------
    users, posts, liked, scores
        (rows,) each; (user, post) pairs distinct, in any order.
    """
    order = np.lexsort((posts, -scores, users))
    users, liked = users[order], liked[order]
    _, first, user = np.unique(users, return_index=True, return_inverse=True)
    rank = np.arange(users.size) - first[user]
    count = first.size
    discount = 1 / np.log2(np.arange(users.size + 1) + 2)
    hits = np.bincount(user, weights=liked & (rank < k), minlength=count)
    relevant = np.bincount(user, weights=liked, minlength=count)
    gain = np.bincount(user, weights=np.where(liked & (rank < k), discount[rank], 0), minlength=count)
    best_gain = np.concatenate([[0.0], np.cumsum(discount[:k])])[np.minimum(relevant, k).astype(np.int64)]
    liking = relevant > 0
    return {
        f"hitrate_at_{k}": _mean(hits > 0),
        f"precision_at_{k}": _mean(hits / k),
        f"recall_at_{k}": _mean(hits[liking] / relevant[liking]),
        f"ndcg_at_{k}": _mean(gain[liking] / best_gain[liking]),
    }


def probability_metrics(liked: Flags, scores: Floats, probabilities: Floats | None) -> dict[str, float]:
    """Return ROC AUC of the scores, and log loss of the probabilities (natural logarithm).

    NaN where the labels are all alike, or where there are no probabilities.
    """
    if liked.size == 0 or liked.all() or not liked.any():
        return {"roc_auc": float("nan"), "log_loss": float("nan")}
    loss = float("nan")
    if probabilities is not None:
        clipped = np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
        loss = float(log_loss(liked, clipped))
    return {"roc_auc": float(roc_auc_score(liked, scores)), "log_loss": loss}


def _mean(values: npt.NDArray[np.bool_] | Floats) -> float:
    return float(values.mean()) if values.size else float("nan")
