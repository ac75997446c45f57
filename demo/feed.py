"""What the users of a simulated network do: sessions of views, some followed by a like.

The feed is drawn block by block, a block being neighbouring users; each block
depends on the seed and its number alone and holds an exact number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from demo.ground_truth import HOUR_SHARES, Tastes
from demo.population import DAY, DAYS, END, FIRST_POST_ID, FIRST_USER_ID, START, Floats, Ints

BLOCK_ROWS = 250_000
"""About how many rows a block has; it bounds the memory."""

_SESSION_VIEWS = 29
_DWELL_SECONDS = (8, 118)
"""Shortest and longest time from a view to its like."""
_PAUSE_SECONDS = 2
"""Least time from a like, or from where it would have been, to the next view."""


@dataclass(frozen=True)
class Views:
    """Views ordered by user, then time; users and posts are places, times seconds UTC."""

    users: Ints
    posts: Ints
    times: Ints
    dwell: Ints
    probabilities: Floats
    liked: npt.NDArray[np.bool_]

    def take(self, chosen: Ints) -> Views:
        """Return some of the views, in the order given."""
        return Views(
            self.users[chosen],
            self.posts[chosen],
            self.times[chosen],
            self.dwell[chosen],
            self.probabilities[chosen],
            self.liked[chosen],
        )


def draw_feed(tastes: Tastes, interactions: int, seed: int) -> Iterator[Views]:
    """Draw blocks whose views and likes together number `interactions`."""
    users = len(tastes.users.activity)
    blocks = -(-interactions // BLOCK_ROWS)
    edges = np.linspace(0, users, blocks + 1).astype(np.int64)
    share_before = np.concatenate([[0.0], np.cumsum(tastes.users.activity)])[edges]
    share_before[-1] = 1.0
    rows_before = np.round(share_before * interactions).astype(np.int64)
    for block in range(blocks):
        rows = int(rows_before[block + 1] - rows_before[block])
        if rows:
            rng = np.random.default_rng([seed, 3, block])
            yield _draw_block(rng, tastes, int(edges[block]), int(edges[block + 1]), rows)


def _draw_block(rng: np.random.Generator, tastes: Tastes, first: int, last: int, rows: int) -> Views:
    """Draw exactly `rows` views and likes of the users from `first` up to `last`, itself left out."""
    activity = tastes.users.activity[first:last]
    # As many views as rows are always enough, since a view is at least one row.
    counts = rng.multinomial(rows, activity / activity.sum())
    users = np.repeat(np.arange(first, last), counts)
    dwell = rng.integers(_DWELL_SECONDS[0], _DWELL_SECONDS[1] + 1, rows)
    times = _view_times(rng, users, tastes.users.joined[users], dwell)
    existing = np.searchsorted(tastes.posts.created, times, side="right")
    posts = (rng.random(rows) * existing).astype(np.int64)
    probabilities = tastes.probabilities(users, posts, times % DAY // 3600)
    liked = rng.random(rows) < probabilities
    return _keep_rows(rng, Views(users, posts, times, dwell, probabilities, liked), rows)


def _view_times(rng: np.random.Generator, users: Ints, joined: Ints, dwell: Ints) -> Ints:
    """Place each view in a session, so that a user's like always comes before their next view.

    Every session has a time at which it should end. Going backwards, a view
    takes place as late as that allows and as the user's next view allows:
    time[i] = min over j >= i of (end[j] - (offset[j] - offset[i])).
    """
    last = np.append(users[1:] != users[:-1], True)
    ends_session = last | (rng.random(len(users)) < 1 / _SESSION_VIEWS)
    owner, first_day = users[ends_session], joined[ends_session]
    sessions = len(owner)
    day = first_day + (rng.random(sessions) * (DAYS - first_day)).astype(np.int64)
    second = rng.choice(24, sessions, p=HOUR_SHARES) * 3600 + rng.integers(3600, size=sessions)
    ends = np.minimum(START + day * DAY + second, END - _DWELL_SECONDS[1])
    ends = ends[np.lexsort((ends, owner))]

    offset = np.concatenate([[0], np.cumsum(dwell + _PAUSE_SECONDS)[:-1]])
    # Lifts a user's moments above those of all users before, so that the minimum stays within a user.
    apart = users * np.int64(END)
    latest = np.full(len(users), np.iinfo(np.int64).max)
    latest[ends_session] = ends - offset[ends_session] + apart[ends_session]
    times: Ints = np.minimum.accumulate(latest[::-1])[::-1] + offset - apart
    return times


def _keep_rows(rng: np.random.Generator, views: Views, rows: int) -> Views:
    """Drop views at random until the rest and their likes are exactly `rows` rows."""
    order = rng.permutation(len(views.users))
    used = np.cumsum(1 + views.liked[order])
    kept = int(np.searchsorted(used, rows, side="right"))
    chosen = order[:kept]
    if kept == 0 or used[kept - 1] < rows:
        # One row is left but the next view takes two: take a view without a like in its place.
        unliked = order[kept:][~views.liked[order[kept:]]]
        one = unliked[0] if len(unliked) else order[kept]
        views.liked[one] = False
        chosen = np.append(chosen, one)
    return views.take(np.sort(chosen))


_ROW = np.dtype(
    [
        ("fields", ">i2"),
        ("user_size", ">i4"),
        ("user_id", ">i8"),
        ("post_size", ">i4"),
        ("post_id", ">i8"),
        ("action_size", ">i4"),
        ("action", "S4"),  # both actions, view and like, have four letters
        ("time_size", ">i4"),
        ("time", ">i8"),
    ]
)
_POSTGRES_EPOCH = int(np.datetime64("2000-01-01", "s").astype(int))

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"

COPY_COLUMNS = ["user_id", "post_id", "action", "time"]


def to_copy(blocks: Iterable[Views]) -> Iterator[bytes]:
    """Encode the feed in Postgres's binary COPY format, block after block."""
    yield _HEADER
    for views in blocks:
        yield _rows(views).tobytes()
    yield _TRAILER


def _rows(views: Views) -> npt.NDArray[np.void]:
    """Return the views, each liked one followed by its like, as rows of type _ROW."""
    likes = np.flatnonzero(views.liked)
    place = np.arange(len(views.users)) + np.cumsum(views.liked) - views.liked
    rows = np.empty(len(views.users) + len(likes), _ROW)
    rows["fields"] = len(COPY_COLUMNS)
    for size, length in (("user_size", 8), ("post_size", 8), ("action_size", 4), ("time_size", 8)):
        rows[size] = length
    for chosen, at, action, delay in (
        (slice(None), place, b"view", 0),
        (likes, place[likes] + 1, b"like", views.dwell[likes]),
    ):
        rows["user_id"][at] = views.users[chosen] + FIRST_USER_ID
        rows["post_id"][at] = views.posts[chosen] + FIRST_POST_ID
        rows["action"][at] = action
        rows["time"][at] = (views.times[chosen] + delay - _POSTGRES_EPOCH) * 1_000_000
    return rows
