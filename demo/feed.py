"""Views and likes of a simulated network, and their encoding for COPY.

The feed is drawn in blocks of consecutive users. A block depends only on the
seed and its number, and has an exact number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import sqlalchemy as sa

from contract.columns import LIKE_ACTION, VIEW_ACTION
from contract.ids import WHOLE_NUMBERS
from demo import network
from demo.ground_truth import HOUR_SHARES, GroundTruth
from demo.ids import SimulatedIds
from demo.population import DAY, DAYS, END, FIRST_POST_ID, FIRST_USER_ID, START, Floats, Ints

BLOCK_ROWS = 250_000
"""Approximate number of rows of a block; it bounds memory."""

_SESSION_VIEWS = 29
"""Mean number of views of a session."""
_DWELL_SECONDS = (8, 118)
"""Minimum and maximum time from a view to its like."""
_PAUSE_SECONDS = 2
"""Minimum time from the like of a view, or the time it would have had, to the next view."""


@dataclass(frozen=True)
class Views:
    """Views ordered by user, then time; one entry per view.

    Attributes
    ----------
    users, posts
        Row indices.
    times
        Seconds since 1970 UTC.
    dwell_seconds
        Time from the view to its like, if there is one.
    probabilities
        True probability of a like.
    """

    users: Ints
    posts: Ints
    times: Ints
    dwell_seconds: Ints
    probabilities: Floats
    liked: npt.NDArray[np.bool_]

    def shift(self, days: int) -> Views:
        """Return the views at the same hours of other days."""
        return replace(self, times=self.times + days * DAY)

    def take(self, rows: Ints) -> Views:
        """Return the views of the given rows, in their order."""
        return Views(
            users=self.users[rows],
            posts=self.posts[rows],
            times=self.times[rows],
            dwell_seconds=self.dwell_seconds[rows],
            probabilities=self.probabilities[rows],
            liked=self.liked[rows],
        )


def draw_feed(truth: GroundTruth, interactions: int, seed: int) -> Iterator[Views]:
    """Draw blocks of views; all views and likes together are `interactions` rows."""
    users = len(truth.users.activity)
    blocks = -(-interactions // BLOCK_ROWS)
    edges = np.linspace(0, users, blocks + 1).astype(np.int64)
    share_before = np.concatenate([[0.0], np.cumsum(truth.users.activity)])[edges]
    share_before[-1] = 1.0
    rows_before = np.round(share_before * interactions).astype(np.int64)
    for block in range(blocks):
        rows = int(rows_before[block + 1] - rows_before[block])
        if rows:
            rng = np.random.default_rng([seed, 3, block])
            yield _draw_block(rng, truth, int(edges[block]), int(edges[block + 1]), rows)


def _draw_block(rng: np.random.Generator, truth: GroundTruth, start: int, stop: int, rows: int) -> Views:
    """Draw exactly `rows` views and likes of the users in rows [start, stop)."""
    activity = truth.users.activity[start:stop]
    # A view is at least one row, so `rows` views are enough.
    counts = rng.multinomial(rows, activity / activity.sum())
    users = np.repeat(np.arange(start, stop), counts)
    dwell_seconds = rng.integers(_DWELL_SECONDS[0], _DWELL_SECONDS[1] + 1, rows)
    times = _draw_view_times(rng, users, truth.users.joined[users], dwell_seconds)
    existing = np.searchsorted(truth.posts.created, times, side="right")
    posts = (rng.random(rows) * existing).astype(np.int64)
    probabilities = truth.probabilities(users, posts, times % DAY // 3600)
    liked = rng.random(rows) < probabilities
    return _keep_rows(rng, Views(users, posts, times, dwell_seconds, probabilities, liked), rows)


def _draw_view_times(rng: np.random.Generator, users: Ints, joined: Ints, dwell_seconds: Ints) -> Ints:
    """Draw the time of each view, in sessions; the like of a view comes before the user's next view.

    Every session has a drawn end. Backwards from there, a view is as late as
    the end of its session and the user's next view allow:
    time[i] = min over j >= i of (end[j] - (offset[j] - offset[i])).
    """
    last = np.append(users[1:] != users[:-1], True)
    ends_session = last | (rng.random(len(users)) < 1 / _SESSION_VIEWS)
    session_users, first_day = users[ends_session], joined[ends_session]
    sessions = len(session_users)
    day = first_day + (rng.random(sessions) * (DAYS - first_day)).astype(np.int64)
    second = rng.choice(24, sessions, p=HOUR_SHARES) * 3600 + rng.integers(3600, size=sessions)
    ends = np.minimum(START + day * DAY + second, END - _DWELL_SECONDS[1])
    ends = ends[np.lexsort((ends, session_users))]

    offset = np.concatenate([[0], np.cumsum(dwell_seconds + _PAUSE_SECONDS)[:-1]])
    # Add more to later users than any time is, so that the minimum over j is within a user.
    user_shift = users * np.int64(END)
    latest = np.full(len(users), np.iinfo(np.int64).max)
    latest[ends_session] = ends - offset[ends_session] + user_shift[ends_session]
    times: Ints = np.minimum.accumulate(latest[::-1])[::-1] + offset - user_shift
    return times


def _keep_rows(rng: np.random.Generator, views: Views, rows: int) -> Views:
    """Drop random views so that the others and their likes are exactly `rows` rows."""
    order = rng.permutation(len(views.users))
    rows_used = np.cumsum(1 + views.liked[order])
    kept = int(np.searchsorted(rows_used, rows, side="right"))
    kept_views, others = order[:kept], order[kept:]
    if kept == 0 or rows_used[kept - 1] < rows:
        # One row is free but the next view needs two: use a view without a like instead.
        without_like = others[~views.liked[others]]
        last = without_like[0] if len(without_like) else others[0]
        views.liked[last] = False
        kept_views = np.append(kept_views, last)
    return views.take(np.sort(kept_views))


_ROW = np.dtype(
    [
        ("fields", ">i2"),
        ("user_size", ">i4"),
        ("user_id", ">i8"),
        ("post_size", ">i4"),
        ("post_id", ">i8"),
        ("action_size", ">i4"),
        ("action", "S4"),  # view and like have four letters
        ("time_size", ">i4"),
        ("time", ">i8"),
    ]
)
_POSTGRES_EPOCH = int(np.datetime64("2000-01-01", "s").astype(int))

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"

COPY_COLUMNS = ["user_id", "post_id", "action", "time"]


def copy_feed(
    connection: sa.Connection, blocks: Iterable[Views], ids: SimulatedIds, *, new: bool = True
) -> None:
    """Write views and likes into the table feed_action; `new` says that this transaction has created it."""
    if ids.kinds == WHOLE_NUMBERS:
        network.copy_binary(connection, network.FEED_ACTION, COPY_COLUMNS, encode_copy(blocks), new=new)
        return
    users, posts = pa.array(ids.users), pa.array(ids.posts)
    tables = (_make_table(views, users, posts) for views in blocks)
    network.copy_tables(connection, network.FEED_ACTION, COPY_COLUMNS, tables, new=new)


def _make_table(views: Views, users: pa.Array, posts: pa.Array) -> pa.Table:
    """Return the rows of feed_action, each like after its view."""
    likes = np.flatnonzero(views.liked)
    row_views = np.sort(np.concatenate([np.arange(len(views.users)), likes]), kind="stable")
    is_like = np.zeros(row_views.size, dtype=bool)
    is_like[1:] = row_views[1:] == row_views[:-1]
    times = views.times[row_views] + np.where(is_like, views.dwell_seconds[row_views], 0)
    columns = [
        users.take(views.users[row_views]),
        posts.take(views.posts[row_views]),
        pa.array(np.where(is_like, LIKE_ACTION, VIEW_ACTION)),
        pa.array(times, pa.timestamp("s", "UTC")),
    ]
    return pa.table(columns, names=COPY_COLUMNS)


def encode_copy(blocks: Iterable[Views]) -> Iterator[bytes]:
    """Encode blocks of views in Postgres's binary COPY format; one chunk per block."""
    yield _HEADER
    for views in blocks:
        yield _encode_rows(views).tobytes()
    yield _TRAILER


def _encode_rows(views: Views) -> npt.NDArray[np.void]:
    """Return the views as rows of type _ROW, each like after its view."""
    likes = np.flatnonzero(views.liked)
    view_rows = np.arange(len(views.users)) + np.cumsum(views.liked) - views.liked
    rows = np.empty(len(views.users) + len(likes), _ROW)
    rows["fields"] = len(COPY_COLUMNS)
    for size, length in (("user_size", 8), ("post_size", 8), ("action_size", 4), ("time_size", 8)):
        rows[size] = length
    for source, target, action, delay in (
        (slice(None), view_rows, b"view", 0),
        (likes, view_rows[likes] + 1, b"like", views.dwell_seconds[likes]),
    ):
        rows["user_id"][target] = views.users[source] + FIRST_USER_ID
        rows["post_id"][target] = views.posts[source] + FIRST_POST_ID
        rows["action"][target] = action
        rows["time"][target] = (views.times[source] + delay - _POSTGRES_EPOCH) * 1_000_000
    return rows
