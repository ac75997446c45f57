"""Similar posts of several posts, each by a request to serving, a few at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from contract.ids import Id
from demo.network_app.serving import ServedList, ServingError, read_similar

SIMILAR = "similar"
"""Source of an answer that has similar posts."""

MAX_REQUESTS = 5
"""Requests at the same time."""


def is_similar(served: ServedList) -> bool:
    """Return whether posts are similar ones; a post that the night did not know yet has popular ones."""
    return served.source == SIMILAR


def read_similar_of_each(
    serving_url: str, user_id: Id, post_ids: Sequence[Id], limit: int
) -> tuple[dict[Id, list[Id]], ServingError | None]:
    """Return the similar posts of each post that has some, and the error of the last post that failed."""
    if not post_ids:
        return {}, None

    def read(post_id: Id) -> ServedList | ServingError:
        try:
            return read_similar(serving_url, post_id, user_id, limit)
        except ServingError as error:
            return error

    similar, failure = {}, None
    with ThreadPoolExecutor(min(MAX_REQUESTS, len(post_ids))) as pool:
        for post_id, answer in zip(post_ids, pool.map(read, post_ids), strict=True):
            if isinstance(answer, ServingError):
                failure = answer
            elif is_similar(answer):
                similar[post_id] = [listed.post_id for listed in answer.posts]
    return similar, failure
