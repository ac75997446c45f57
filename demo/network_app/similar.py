"""Similar posts of several posts, each by a request to serving, a few at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from contract.ids import Id
from demo.network_app.context import NetworkApp
from demo.network_app.serving import ServedList, ServingError, read_similar

SIMILAR = "similar"
"""Source of an answer that has similar posts; a post that the night did not know yet has popular ones."""

SIMILAR_POSTS = 20
"""Posts that are asked for."""

MAX_REQUESTS = 5
"""Requests at the same time."""

KEPT_SECONDS = 60
MAX_KEPT = 2_000


class SimilarPosts:
    """Posts similar to others, remembered for a minute; one for all visitors."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, Id, Id], tuple[float, tuple[Id, ...]]] = {}
        self._pool = ThreadPoolExecutor(MAX_REQUESTS, thread_name_prefix="similar")

    def find(self, app: NetworkApp, user_id: Id, post_ids: Sequence[Id]) -> list[tuple[Id, ...] | None]:
        """Return the posts similar to each of the posts: empty if there is no list.

        None if serving does not answer, or cannot read lists.
        """
        return list(self._pool.map(lambda post_id: self._find_one(app, user_id, post_id), post_ids))

    def _find_one(self, app: NetworkApp, user_id: Id, post_id: Id) -> tuple[Id, ...] | None:
        question = (app.config.serving_url, user_id, post_id)
        kept = self._kept.get(question)
        if kept is not None and kept[0] > time.monotonic():
            return kept[1]
        try:
            limit = min(SIMILAR_POSTS, app.settings.night.top_n)
            served = read_similar(app.config.serving_url, post_id, user_id, limit)
        except ServingError:
            return None
        if served.stale and served.source != SIMILAR:
            return None  # there may be a list
        similar = select_similar(served)
        with self._lock:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[question] = (time.monotonic() + KEPT_SECONDS, similar)
        return similar


similar_posts = SimilarPosts()


def select_similar(served: ServedList) -> tuple[Id, ...]:
    """Return the similar posts of an answer; none if it has popular ones."""
    return tuple(each.post_id for each in served.posts) if served.source == SIMILAR else ()
