"""Texts of posts, for answers that carry them: every post's in memory, or those used last."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from contract.codec import decode_object


class Post(NamedTuple):
    """What an answer with texts says of a post; empty where the network says nothing."""

    text: str
    topic: str


NO_TEXT = Post(text="", topic="")

Read = Callable[[Sequence[int]], Mapping[int, Post]]
"""Reads posts from Redis. One that is missing there is missing from the result."""


class Texts:
    """Texts as one run's answers need them. Threads may share it.

    Parameters
    ----------
    held
        Posts held for as long as this stands: every post of the network, or
        the popular ones, which are answered when Redis is away.
    most_recent
        How many further posts to hold, those used last; 0 when `held` is all there are.
    """

    def __init__(self, held: Mapping[int, Post], most_recent: int = 0) -> None:
        self._held = held
        self._most_recent = most_recent
        self._recent: OrderedDict[int, Post] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, post_ids: Iterable[int], read: Read) -> list[Post]:
        """Return the posts in the order given, after at most one `read` of those that are not in memory."""
        wanted = list(post_ids)
        if not self._most_recent:
            return [self._held.get(post_id, NO_TEXT) for post_id in wanted]
        with self._lock:
            found = {post_id: post for post_id in wanted if (post := self._known(post_id)) is not None}
        missing = [post_id for post_id in wanted if post_id not in found]
        if missing:
            fresh = read(missing)
            found |= fresh
            self._remember(fresh)
        return [found.get(post_id, NO_TEXT) for post_id in wanted]

    def __len__(self) -> int:
        """Return how many posts are held."""
        return len(self._held) + len(self._recent)

    def _known(self, post_id: int) -> Post | None:
        if post_id in self._recent:
            self._recent.move_to_end(post_id)
            return self._recent[post_id]
        return self._held.get(post_id)

    def _remember(self, posts: Mapping[int, Post]) -> None:
        with self._lock:
            self._recent.update(posts)
            while len(self._recent) > self._most_recent:
                self._recent.popitem(last=False)


def decode_post(value: str | bytes) -> Post:
    """Decode a post as the batch stores it, without the lone surrogates that UTF-8 cannot carry.

    Raises
    ------
    ValueError
        If this is no JSON object.
    """
    fields = decode_object(value)
    return Post(_sendable(fields.get("text")), sys.intern(_sendable(fields.get("topic"))))


def _sendable(value: object) -> str:
    return "" if value is None else str(value).encode(errors="replace").decode()
