from __future__ import annotations

import numpy as np
import pytest

from demo import oracle


def test_hits_agree_with_a_count_by_hand() -> None:
    pairs = oracle.Pairs(
        users=np.array([1, 1, 1, 4, 4]),
        posts=np.array([0, 5, 7, 2, 3]),
        liked=np.array([False, False, True, True, False]),
        like_probability=np.array([0.1, 0.2, 0.5, 0.3, 0.4]),
        logit=np.zeros(5),
    )
    scores = np.array([1.0, 3.0, 2.0, 1.0, 1.0])
    # First of user 1 is post 5 (not liked), of user 4 post 2: scores tie, so the lower post.
    assert oracle.hits_at_k(pairs, scores, k=1) == pytest.approx((1, 0.2 + 0.3))
    both = (1 - 0.8 * 0.5) + (1 - 0.7 * 0.6)
    assert oracle.hits_at_k(pairs, scores, k=2) == pytest.approx((2, both))
