"""Post texts for answers: all in memory, or an LRU cache of them."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from contract.codec import decode_object
from contract.ids import Id


class Post(NamedTuple):
    """Text and topic of a post; empty if the network has none."""

    text: str
    topic: str


NO_TEXT = Post(text="", topic="")

ReadPosts = Callable[[Sequence[Id]], Mapping[Id, Post]]
"""Reads posts from Redis. Posts that Redis does not have may be missing from the result."""


class Texts:
    """Post texts of one run. Thread-safe.

    Parameters
    ----------
    permanent
        Posts that are never dropped: every post of the network, or the
        popular ones, which are served when Redis does not answer.
    cache_size
        Maximum number of further posts to keep, by last use; 0 if `permanent` has every post.
    """

    def __init__(self, permanent: Mapping[Id, Post], cache_size: int = 0) -> None:
        self._permanent = permanent
        self._cache_size = cache_size
        self._cache: OrderedDict[Id, Post] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, post_ids: Iterable[Id], read: ReadPosts) -> list[Post]:
        """Return the posts in the order given, after at most one `read` of those not in memory."""
        wanted = list(post_ids)
        if not self._cache_size:
            return [self._permanent.get(post_id, NO_TEXT) for post_id in wanted]
        with self._lock:
            found = {post_id: post for post_id in wanted if (post := self._find(post_id)) is not None}
        missing = [post_id for post_id in wanted if post_id not in found]
        if missing:
            fresh = read(missing)
            found |= fresh
            self._add(fresh)
        return [found.get(post_id, NO_TEXT) for post_id in wanted]

    def __len__(self) -> int:
        """Return the number of posts in memory."""
        return len(self._permanent) + len(self._cache)

    def _find(self, post_id: Id) -> Post | None:
        if post_id in self._cache:
            self._cache.move_to_end(post_id)
            return self._cache[post_id]
        return self._permanent.get(post_id)

    def _add(self, posts: Mapping[Id, Post]) -> None:
        with self._lock:
            self._cache.update(posts)
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)


def decode_post(value: str | bytes) -> Post:
    """Decode a post as stored by the batch; lone surrogates, which UTF-8 cannot encode, become `?`.

    Raises
    ------
    ValueError
        If the value is not a JSON object.
    """
    fields = decode_object(value)
    return Post(_to_utf8(fields.get("text")), sys.intern(_to_utf8(fields.get("topic"))))


def _to_utf8(value: object) -> str:
    return "" if value is None else str(value).encode(errors="replace").decode()
