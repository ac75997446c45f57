"""Posts that left the network or came back to it since the nights of the live runs.

Serving leaves posts that are gone out of every answer.

Posts of the live runs are those that their nights knew, and those that refreshes
have added since: all posts with a text in Redis. A night removes the texts of
posts that are gone, and the live run of a variant that it did not build may still
have such a post in its lists. So a post that is gone stays in the set until it is
back in the view, or until a night has replaced all live runs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from batch.context import Stores
from batch.files import read_post_ids
from batch.ids import Ids, rows_of_ids
from batch.publishing import go_live
from batch.redis_client import blocks, live_run_ids
from contract.columns import CREATED_AT
from contract.ids import IdKind

if TYPE_CHECKING:
    from batch.loading.network import Network

log = logging.getLogger("batch")

MAX_GONE_SHARE = 0.1
"""More posts than this share of those known are not taken for gone: the view may be wrong."""

ALWAYS_GONE = 10
"""Posts that are taken for gone even if they are a large share of a small network."""

MEMBERS_BATCH = 1_000


@dataclass(frozen=True)
class GonePosts:
    """Posts that are gone, as members of the set, and the number of posts that the live runs know."""

    members: set[str]
    known: int

    @property
    def too_many(self) -> bool:
        """Whether so many are gone that the view may be wrong."""
        return len(self.members) > max_gone(self.known)


def max_gone(known: int) -> float:
    """Return how many of the `known` posts are taken for gone: more may mean a wrong view."""
    return max(ALWAYS_GONE, MAX_GONE_SHARE * known)


def find_gone_posts(stores: Stores, present: Ids, kind: IdKind) -> GonePosts:
    """Find the posts of the live runs of all variants that the network no longer has.

    None is found by a night whose ids of posts were of another kind.

    Parameters
    ----------
    present
        (posts,) ids of the posts in the view, ascending.
    kind
        Kind of these ids.
    """
    client, keys = stores.redis, stores.keys
    members = {str(post_id) for post_id in present.tolist()}
    with_text = client.hkeys(keys.posts)
    known = len(with_text)
    gone = {str(each) for each in (*with_text, *client.smembers(keys.gone)) if each not in members}
    for run_id in live_run_ids(client, keys).values():
        manifest = go_live.read_manifest(client, keys, run_id)
        of_night = read_post_ids(Path(stores.settings.night.model_dir) / run_id)
        if of_night is not None and manifest is not None and manifest.ids.posts == kind:
            gone |= set(map(str, of_night[rows_of_ids(present, of_night) < 0].tolist()))
            known = max(known, of_night.size)
    return GonePosts(gone, known)


def find_returned_posts(network: Network, of_night: Ids | None, since: datetime) -> Ids:
    """Find posts that are older than `since` or of unknown age, and that a run's night did not have.

    Parameters
    ----------
    of_night
        From `read_post_ids`; None if it cannot be read, then no post is found.

    Returns
    -------
    Ids
        (posts,) ids, ascending.
    """
    if of_night is None:
        return network.post_ids[:0]
    created = network.posts[CREATED_AT]
    old = (created.isna() | (created <= since)).to_numpy(bool)
    return network.post_ids[old & (rows_of_ids(of_night, network.post_ids) < 0)]


def write_gone_posts(stores: Stores, found: GonePosts) -> int:
    """Make the set in Redis that of the posts that are gone; return their number.

    If they are too many, the set stays as it is, with a warning that the refresh changed nothing.
    """
    client, key = stores.redis, stores.keys.gone
    written = {str(each) for each in client.smembers(key)}
    if found.too_many:
        log.warning(
            "%d of %d posts of the live runs are not in recs.posts any more, more than %.0f %%; the refresh "
            "changes nothing, and answers still have them; check the view, or if they are deleted: "
            "python -m batch run",
            len(found.members), found.known, 100 * MAX_GONE_SHARE,
        )  # fmt: skip
        return len(written)
    for block in blocks(sorted(found.members - written), MEMBERS_BATCH):
        client.sadd(key, *block)
    for block in blocks(sorted(written - found.members), MEMBERS_BATCH):
        client.srem(key, *block)
    if found.members - written:
        log.info("%d posts are gone from the network and are not served any more", len(found.members))
    return len(found.members)


def clear_gone_posts(stores: Stores, run_ids: set[str]) -> None:
    """Empty the set if all live runs are among those of a night: they were built without these posts."""
    if set(live_run_ids(stores.redis, stores.keys).values()) <= run_ids:
        stores.redis.delete(stores.keys.gone)
