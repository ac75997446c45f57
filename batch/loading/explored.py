"""Posts that were served in explored places, and the weights of the views that they led to.

A list shows what a model ranked high, so what its users view tells little about other posts. A post in an
explored place was drawn with a known probability p. Its view counts 1/p times: on average, as if every post
of the pool had been shown (inverse propensity weighting, Horvitz and Thompson, 1952; for recommendations
Schnabel et al., 2016). Weights are truncated (Ionides, 2008), see MAX_WEIGHT.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import sqlalchemy as sa

from batch.arrays import Bools, Float32s, Int64s
from batch.loading.copy import copy_out
from batch.loading.network import Network
from contract.columns import POST_ID, SCHEMA, USER_ID

MAX_WEIGHT = 10.0
"""1/p is the size of the pool, often thousands, and a few such views would outweigh all others.

With this bound a tenth of the places, explored, weighs at most about as much as the other nine tenths.
"""

VIEWED_WITHIN = timedelta(days=1)
"""A view up to this long after the post was served counts as a view of the explored place."""

TABLE = f"{SCHEMA}.explored"
SERVED = f"""
    SELECT {USER_ID}::text AS {USER_ID}, {POST_ID}, probability,
           (extract(epoch FROM served_at) * 1000000)::bigint AS served_at
    FROM {TABLE} WHERE key_prefix = %(key_prefix)s AND served_at <= %(until)s ORDER BY served_at
"""


@dataclass(frozen=True)
class ExploredPlaces:
    """Posts served in explored places, in order of time.

    Attributes
    ----------
    users, posts
        (rows,) int64 rows in the network's frames.
    served_at
        (rows,) int64 microseconds since 1970, UTC.
    probabilities
        (rows,) of the draws, above 0.
    """

    users: Int64s
    posts: Int64s
    served_at: Int64s
    probabilities: np.ndarray[tuple[int], np.dtype[np.float64]]

    def __len__(self) -> int:
        return self.users.size

    def weights(self, users: Int64s, posts: Int64s, viewed_at: Int64s, viewed: Bools) -> Float32s:
        """Return (rows,) the weights of examples: 1 unless the row is a view of an explored place.

        Parameters
        ----------
        users, posts
            (rows,) of the examples.
        viewed_at
            (rows,) times, as `served_at`. The last time that the post was served by then counts.
        viewed
            (rows,) whether the example is a view.
        """
        weights = np.ones(users.size, np.float32)
        width = int(max(posts.max(initial=0), self.posts.max(initial=0))) + 1
        pairs, explored = users * width + posts, self.users * width + self.posts
        rows = np.flatnonzero(viewed & np.isin(pairs, explored))
        views = pd.DataFrame({"row": rows, "pair": pairs[rows], "time": viewed_at[rows]})
        served = pd.DataFrame({"pair": explored, "time": self.served_at, "weight": 1 / self.probabilities})
        found = pd.merge_asof(
            views.sort_values("time"), served, on="time", by="pair",
            tolerance=VIEWED_WITHIN // timedelta(microseconds=1),
        ).dropna()  # fmt: skip
        weights[found["row"]] = np.minimum(found["weight"], MAX_WEIGHT)
        return weights


def read_explored(
    engine: sa.Engine, key_prefix: str, network: Network, until: datetime
) -> ExploredPlaces | None:
    """Read what was served in explored places up to a time; None if nothing was.

    Rows of users and posts that the network does not have are left out.
    """
    with engine.connect() as connection:
        if not connection.scalar(sa.text("SELECT to_regclass(:table) IS NOT NULL"), {"table": TABLE}):
            return None
        parameters = {"key_prefix": key_prefix, "until": until}
        rows = pd.concat(copy_out(connection, SERVED, parameters, text=(USER_ID, POST_ID)), ignore_index=True)
    if rows.empty:
        return None
    users, posts = (
        pd.Index(frame.index.astype(str)).get_indexer(rows[name])
        for frame, name in ((network.users, USER_ID), (network.posts, POST_ID))
    )
    known = (users >= 0) & (posts >= 0) & (rows["probability"] > 0).to_numpy()
    if not known.any():
        return None
    return ExploredPlaces(
        users[known].astype(np.int64),
        posts[known].astype(np.int64),
        rows["served_at"].to_numpy(np.int64)[known],
        rows["probability"].to_numpy(np.float64)[known],
    )
