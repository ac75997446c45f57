"""Random lists for the tests of publishing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import redis

from batch.executors.threads import LocalContext, ThreadExecutor
from batch.ids import Ids
from batch.loading.likes import Likes
from batch.loading.network import Network
from batch.publishing.encode import ListEncoder
from batch.publishing.list_tasks import Listed, ListTarget, listed_of, write_lists
from batch.publishing.memory import SampledLists
from batch.publishing.sender import fenced
from batch.publishing.write import verify
from batch.publishing.written import Written
from batch.scoring.chunk import Lists
from batch.scoring.score import PART_USERS
from contract.ids import IdKind, IdKinds
from contract.keys import Keys

RUN_ID = "20261122T030000Z-control"


def random_lists(users: int, posts: int, n: int, seed: int = 1) -> Lists:
    """Return random lists of users: every seventh has n // 2 posts, every 50th none."""
    random = np.random.default_rng(seed)
    listed = random.integers(0, posts, (users, n)).astype(np.int32)
    scores = -np.sort(random.gamma(6, 0.3, (users, n)).astype(np.float32), axis=1)
    listed[6::7, n // 2 :] = -1
    listed[49::50] = -1
    scores[listed < 0] = np.nan
    return Lists(listed, scores, Likes.none(users))


def cut(listed: Listed, size: int) -> Iterator[Listed]:
    """Yield the lists in chunks of `size` owners."""
    for start in range(0, len(listed.owners), size):
        yield listed.rows(slice(start, start + size))


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


def sample_of(lists: Lists, network: Network, users: int | None = None) -> SampledLists:
    """Return lists of a network's first users as a sample of those of so many users; None for as many."""
    count = len(lists.posts)
    listed = listed_of(network.user_ids[:count], lists)
    return SampledLists(listed, ListEncoder(network.post_ids), count if users is None else users)


@dataclass
class WrittenLists:
    """Lists of users as they were written."""

    written: Written
    target: ListTarget
    ids: Ids

    def verify(self, client: redis.Redis, ids: Ids | None = None) -> None:
        """Read the lists of these users back, or of those who should have one."""
        verify(ThreadExecutor(2, 64, client), self.target, self.written, self.ids if ids is None else ids)


def write_users_lists(
    client: redis.Redis,
    keys: Keys,
    lists: Lists,
    network: Network,
    *,
    chunk: int = 16_384,
    between: Callable[[], object] = lambda: None,
) -> WrittenLists:
    """Write lists of a network's first users; `between` is called after each chunk is made."""
    listed = listed_of(network.user_ids[: len(lists.posts)], lists)

    def chunks() -> Iterator[Listed]:
        for each in cut(listed, chunk):
            yield each
            between()

    with fenced(client, keys, RUN_ID) as fence:
        target = ListTarget(
            keys.user(RUN_ID, 0).removesuffix("0"), fence, ListEncoder(network.post_ids), PART_USERS
        )
        written = write_lists(LocalContext(64, client), target, 0, chunks())
    return WrittenLists(written, target, listed.owners)
