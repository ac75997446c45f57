"""The feed: which posts of a person's list a page has, in which order.

The first page asks serving for the list, which is one exposure, and keeps it. Older pages are from the kept
list, so they go on where the page before ended, also if the list is made anew meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from batch.runs.tables import blocked_posts, has_table
from contract.ids import Id
from contract.score_kind import POPULAR
from demo.network_app import activity
from demo.network_app.context import NetworkApp, Visitor
from demo.network_app.freshness import Freshness, read_freshness
from demo.network_app.posts import Post, read_posts
from demo.network_app.reasons import find_reasons
from demo.network_app.serving import read_recommendations
from demo.network_app.shown_lists import ListChanges, ShownList, ShownLists, compare, keep_shown, read_shown

PAGE_POSTS = 10

_OTHERS = sa.text(
    "SELECT post_id FROM recs.posts WHERE post_id IN :posts AND author_id IS DISTINCT FROM :user"
).bindparams(sa.bindparam("posts", expanding=True))
_SEEN = sa.text("""
    SELECT post_id FROM feed_action WHERE user_id = :user AND action = 'view' AND post_id IN :posts
    UNION
    SELECT post_id FROM activity
    WHERE user_id = :user AND kind = 'view' AND post_id IN :posts
        AND visit IS DISTINCT FROM CAST(:visit AS uuid)
""").bindparams(sa.bindparam("posts", expanding=True))


@dataclass(frozen=True, order=True)
class Position:
    """Where a post is in the feed: unseen posts come first, then the order is that of the list."""

    seen: bool
    rank: int


@dataclass(frozen=True)
class FeedPage:
    """A page of the feed.

    Attributes
    ----------
    list_key
        Name of the list that the posts are from.
    reasons, badges
        Post -> why it is there, and what changed; without those that have none.
    last
        Position of the last post, after which the next page begins; None if there is no next page.
    """

    list_key: str
    posts: Sequence[Post]
    reasons: Mapping[Id, str]
    badges: Mapping[Id, str]
    last: Position | None


@dataclass(frozen=True)
class ListStatus:
    """What the strip says about a list.

    Attributes
    ----------
    freshness
        None if no run is live.
    shown
        The list that the page shows; None if it is not known any more.
    newer
        Whether the list was made anew since the page was loaded.
    changes
        What differs from the list before; None if there is none.
    """

    freshness: Freshness | None
    shown: ShownList | None
    before: ShownList | None
    newer: bool
    changes: ListChanges | None

    @property
    def why_popular(self) -> str:
        """Why the list is of popular posts, in sentences; empty if it is the person's own."""
        return "" if self.freshness is None else explain_popular(self.freshness, self.shown)


def explain_popular(fresh: Freshness, shown: ShownList | None) -> str:
    """Return why a person has popular posts, in sentences; empty if they have a list of their own.

    Parameters
    ----------
    shown
        The list that serving answered since it was made last; None if it was not asked.
    """
    if shown is not None and shown.served.source != POPULAR:
        return ""
    if shown is not None and shown.served.stale:
        return (
            "When the feed was loaded, serving could not read lists from Redis: popular posts meanwhile. "
            "Load it again in a moment; if Redis has lost its lists, the next night writes new ones."
        )
    if fresh.list_was_made:
        if shown is None:
            return ""
        return (
            "Popular posts: serving has no list of yours now. It is missing from Redis, or nothing of it is "
            "left to show; the next night writes lists."
        )
    if fresh.limited:
        scored = f"The last night made lists for {fresh.scored:,} of {fresh.known:,} people only"
        if shown is None and fresh.knew_person:
            return f"{scored}; the feed shows whether yours is one of them."
        return f"There is no list of yours: popular posts. {scored}, and refreshes make none for others."
    return "There is no list of yours yet: popular posts. The next refresh makes it."


def read_first_page(app: NetworkApp, visitor: Visitor) -> tuple[FeedPage, ListStatus]:
    """Ask serving for the list, keep it, and return its first page and its status.

    Raises
    ------
    ServingError
    """
    user_id = visitor.person.user_id
    with app.engine.connect() as connection:
        fresh = read_freshness(app, connection, user_id)  # before the list: it is then never said too new
    served = read_recommendations(app.config.serving_url, user_id, app.settings.night.top_n)
    with app.engine.begin() as connection:
        shown = keep_shown(connection, user_id, served, None if fresh is None else fresh.made_at)
    with app.engine.connect() as connection:
        page = _make_page(app, connection, visitor, shown, shown.last, after=None)
    return page, _make_status(fresh, shown, shown.last)


def read_older_page(app: NetworkApp, visitor: Visitor, list_key: str, after: Position) -> FeedPage | None:
    """Return the page after a position of a list; None if the list is no longer kept."""
    with app.engine.connect() as connection:
        shown = read_shown(connection, visitor.person.user_id)
        found = None if shown is None else shown.find(list_key)
        return None if found is None else _make_page(app, connection, visitor, shown, found, after=after)


def read_status(app: NetworkApp, visitor: Visitor, list_key: str) -> ListStatus:
    """Return the status of the list that a page shows, without asking serving."""
    user_id = visitor.person.user_id
    with app.engine.connect() as connection:
        shown = read_shown(connection, user_id)
        found = None if shown is None else shown.find(list_key)
        return _make_status(read_freshness(app, connection, user_id), shown, found)


def read_why_popular(connection: sa.Connection, fresh: Freshness, user_id: Id) -> str:
    """Return why a person has popular posts, by what serving answered last, without asking it."""
    shown = read_shown(connection, user_id)
    is_current = shown is not None and shown.last.made_at == fresh.made_at
    return explain_popular(fresh, shown.last if shown is not None and is_current else None)


def _make_status(fresh: Freshness | None, shown: ShownLists | None, found: ShownList | None) -> ListStatus:
    is_last = shown is not None and found == shown.last
    made_anew = fresh is not None and found is not None and found.made_at not in (None, fresh.made_at)
    return ListStatus(
        fresh,
        found,
        shown.before if shown is not None and is_last else None,
        made_anew or not is_last,
        compare(shown) if shown is not None and is_last else None,
    )


def _make_page(
    app: NetworkApp,
    connection: sa.Connection,
    visitor: Visitor,
    shown: ShownLists | None,
    from_list: ShownList,
    *,
    after: Position | None,
) -> FeedPage:
    positions = _order(app, connection, visitor, from_list)
    waiting = sorted(
        (position, post_id) for post_id, position in positions.items() if after is None or position > after
    )
    taken = waiting[:PAGE_POSTS]
    posts = list(read_posts(connection, [post_id for _, post_id in taken]).values())
    changes = compare(shown) if shown is not None and from_list == shown.last else None
    return FeedPage(
        from_list.key,
        posts,
        find_reasons(app, connection, visitor.person, from_list.served, posts),
        changes.badges if changes else {},
        taken[-1][0] if len(waiting) > len(taken) else None,
    )


def _order(
    app: NetworkApp, connection: sa.Connection, visitor: Visitor, from_list: ShownList
) -> dict[Id, Position]:
    """Return the posts that the feed may show: not the person's own, liked, blocked or deleted ones."""
    user_id, post_ids = visitor.person.user_id, from_list.post_ids
    if not post_ids:
        return {}
    arguments: dict[str, Any] = {"user": user_id, "posts": post_ids}
    others = {activity.plain_id(each) for each in connection.scalars(_OTHERS, arguments)}
    left_out = activity.liked_among(connection, user_id, post_ids) | _find_blocked(app, connection, post_ids)
    arguments["visit"] = visitor.visit
    seen = {activity.plain_id(each) for each in connection.scalars(_SEEN, arguments)}
    return {
        each.post_id: Position(each.post_id in seen, each.rank)
        for each in from_list.served.posts
        if each.post_id in others and each.post_id not in left_out
    }


def _find_blocked(app: NetworkApp, connection: sa.Connection, post_ids: Sequence[Id]) -> set[Id]:
    if not has_table(connection, blocked_posts):
        return set()
    columns, names = blocked_posts.c, {str(post_id): post_id for post_id in post_ids}
    query = sa.select(columns.post_id).where(
        columns.key_prefix == app.settings.stores.key_prefix,
        columns.unblocked_at.is_(None),
        columns.post_id.in_(names),
    )
    return {names[name] for name in connection.scalars(query)}
