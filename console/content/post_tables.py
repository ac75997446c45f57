"""What pages about posts read from Postgres and Redis, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from flask import url_for

from batch.formatting import one_line
from batch.inspection.lists import describe_posts, find_members, read_list, read_stored_list, read_texts
from batch.inspection.posts import MAX_WHOLE_TEXT, Post, PostFilter, count_by_day, list_posts, read_posts
from batch.publishing.blocking import Block, decode_member, list_blocked, read_blocked, read_story
from batch.redis_client import live_run_id, live_run_ids
from batch.runs import ledger
from batch.runs.tables import State, blocked_posts, has_table, runs
from console.content.user_tables import read_kinds
from console.context import Console
from console.links import post_url
from console.tables import PAGE_ROWS, Arguments, Column, Table, absent_after, table_source
from contract.experiment import VARIANTS
from contract.ids import Id, parse_id

NEWEST, LIKED, BLOCKED = "newest", "liked", "blocked"
VIEWS = {NEWEST: "Newest", LIKED: "Most liked", BLOCKED: "Blocked"}
"""Lists of posts: argument `show` -> title."""

MAX_TEXT, MAX_SIMILAR_TEXT = 160, 80
"""Characters of a post's text in a row; of lists that stand side by side."""

MAX_QUERY = 200
"""Characters of a search."""

POST, TOPIC, TEXT = (
    Column("post_id", "Post", link="url"),
    Column("topic", "Topic"),
    Column("text", "Text", "words"),
)
BLOCK_COLUMNS = (
    Column("blocked_at", "Blocked", "time"), Column("blocked_by", "By"), Column("reason", "Reason"),
    Column("unblocked_at", "Unblocked", "time"), Column("unblocked_by", "By"),
    Column("unblock_reason", "Reason"),
)  # fmt: skip
LIST_COLUMNS = {
    NEWEST: (
        POST, Column("topic", "Topic", link="topic_url"), TEXT, Column("created_at", "Created", "time"),
        Column("likes", "Likes", "number"), Column("views", "Views", "number"), Column("blocked", "Blocked"),
    ),
    LIKED: (
        Column("rank", "Rank", "number"), POST, TOPIC, TEXT, Column("likes", "Likes", "number"),
        Column("blocked", "Blocked"),
    ),
    BLOCKED: (POST, TOPIC, TEXT, *BLOCK_COLUMNS[:3]),
}  # fmt: skip
OPTIONAL = ("topic", "text", "created_at", "likes", "views")
"""Columns that are shown if a post of the page has a value."""

DAY_COLUMNS = (
    Column("day", "Day (UTC)"),
    Column("views", "Views", "number"),
    Column("likes", "Likes", "number"),
)
SIMILAR_COLUMNS = (
    Column("rank", "Rank", "number"), POST, TOPIC, TEXT, Column("similarity", "Similarity", "number"),
    Column("note", "Note"),
)  # fmt: skip
FIRST_FIVE_COLUMNS = (
    Column("rank", "Rank", "number"), POST, TOPIC, TEXT, Column("lists", "Lists", "number"),
    Column("share", "Share of lists", "number"),
)  # fmt: skip


@dataclass(frozen=True)
class StoredPost:
    """What Redis has of a post: its text and topic, None without; whether serving leaves it out."""

    text: str | None
    topic: str | None
    blocked: bool
    gone: bool


@dataclass(frozen=True)
class FirstFives:
    """How many lists of a live run had a post in their first five, as the night wrote them.

    Attributes
    ----------
    lists
        None if the post is not among the posts that the manifest has.
    fewest
        Lists of the last of those posts: another post has at most as many. None if the manifest has none.
    users
        Lists of the run.
    """

    run_id: str
    variant: str
    cutoff: datetime | None
    lists: int | None
    fewest: int | None
    users: int


def read_stored_post(console: Console, post_id: Id) -> StoredPost:
    """Read what Redis has of a post."""
    stores = console.stores
    (found,) = read_texts(stores, [post_id])
    blocked, gone = (find_members(stores, key, [post_id]) for key in (stores.keys.blocked, stores.keys.gone))
    return StoredPost(found.get("text"), found.get("topic"), bool(blocked), bool(gone))


def read_post(console: Console, post_id: Id) -> Post | None:
    """Read a post's row of `recs.posts`; None if there is none."""
    return read_posts(console.stores, [post_id], MAX_WHOLE_TEXT).get(str(post_id))


def read_blocks(console: Console, post_id: Id) -> list[Block]:
    """Read the story of a post's blocks, newest first; empty without the table."""
    stores = console.stores
    with stores.engine.connect() as connection:
        if not has_table(connection, blocked_posts):
            return []
        return read_story(connection, stores.keys.prefix, post_id)


def read_first_fives(console: Console, post_id: Id) -> list[FirstFives]:
    """Read in how many first fives of each live run a post is, from two fields of the manifests."""
    found = []
    for run in _read_live_heads(console):
        heads = run.first_fives or []
        lists = {str(name): count for name, count in heads}
        found.append(
            FirstFives(
                run_id=run.run_id,
                variant=run.variant,
                cutoff=run.cutoff,
                lists=lists.get(str(post_id)),
                fewest=heads[-1][1] if heads else None,
                users=run.users,
            )
        )
    return found


def _read_live_heads(console: Console, run_id: str = "") -> list[sa.Row[Any]]:
    """Return what the manifests of the live runs, or that of one run, say about first fives."""
    stores = console.stores
    if not ledger.schema_version(stores.engine):
        return []
    chosen = runs.c.run_id == run_id if run_id else runs.c.state == State.LIVE
    query = sa.select(
        runs.c.run_id, runs.c.variant, runs.c.cutoff, runs.c.manifest["first_fives"].label("first_fives"),
        sa.func.coalesce(runs.c.manifest["users"].as_integer(), 0).label("users"),
    ).where(runs.c.key_prefix == stores.keys.prefix, chosen)  # fmt: skip
    with stores.engine.connect() as connection:
        return list(connection.execute(query.order_by(runs.c.variant).limit(len(VARIANTS))))


def parse_view(arguments: Arguments) -> str:
    """Return which list of posts is asked for; the newest if it is none of `VIEWS`."""
    show = arguments.get("show", NEWEST)
    return show if show in VIEWS else NEWEST


def clean_query(text: str) -> str:
    """Return what is searched for: one line of at most `MAX_QUERY` characters."""
    return " ".join(text.split())[:MAX_QUERY]


@table_source("posts")
def read_post_table(console: Console, arguments: Arguments) -> Table:
    """Read a page of a list of posts: `show`, and for the newest `q` and `topic`.

    Raises
    ------
    LookupError
        The page begins after what is no post or no time.
    """
    show = parse_view(arguments)
    given = {} if show == NEWEST else {"show": show}
    if show == NEWEST:
        given |= {name: value for name in ("q", "topic") if (value := clean_query(arguments.get(name, "")))}
    # The id of a post may have several spaces in a row.
    after = {name: value for name in ("after", "after_time") if (value := arguments.get(name, ""))}
    rows, more = {NEWEST: _read_newest, LIKED: _read_liked, BLOCKED: _read_blocked}[show](
        console, given, after
    )
    columns = [
        column for column in LIST_COLUMNS[show]
        if column.name not in OPTIONAL or any(row.get(column.name) is not None for row in rows)
    ]  # fmt: skip
    caption = {
        NEWEST: _describe_filter(given),
        LIKED: "Most liked posts at the last night: what users without a list get",
        BLOCKED: "Posts that are blocked now, the latest first",
    }[show]
    return Table(
        "posts",
        caption,
        columns,
        rows,
        datetime.now(UTC),
        given | after,
        None if more is None else given | more,
    )


def _describe_filter(given: Mapping[str, str]) -> str:
    words, topic = given.get("q", ""), given.get("topic", "")
    text = f'Newest posts with "{words}"' if words else "Newest posts"
    return f"{text} of topic {topic}" if topic else text


Rows = list[dict[str, Any]]
Page = tuple[Rows, dict[str, str] | None]


def _read_newest(console: Console, given: Mapping[str, str], after: Mapping[str, str]) -> Page:
    start = (after["after"], after.get("after_time")) if "after" in after else None
    chosen = PostFilter(given.get("q", ""), given.get("topic", ""))
    with absent_after(start):
        found = list_posts(console.stores, chosen, PAGE_ROWS + 1, start)
    shown = found[:PAGE_ROWS]
    rows = make_post_rows(console, shown)
    if len(found) <= PAGE_ROWS:
        return rows, None
    last = shown[-1]
    return rows, {"after": str(last.post_id)} | ({"after_time": last.position} if last.position else {})


def make_post_rows(console: Console, posts: Sequence[Post]) -> Rows:
    """Return posts as rows of the list of the newest."""
    blocked = find_blocked(console, [post.post_id for post in posts])
    return [_post_fields(post) | {"blocked": _mark(str(post.post_id) in blocked)} for post in posts]


def find_blocked(console: Console, post_ids: Sequence[Id]) -> Mapping[str, Block]:
    """Return those of the posts that are blocked, by id as text."""
    stores = console.stores
    with stores.engine.connect() as connection:
        return (
            read_blocked(connection, stores.keys.prefix, post_ids)
            if has_table(connection, blocked_posts)
            else {}
        )


def _post_fields(post: Post) -> dict[str, Any]:
    return _text_fields(post.post_id, vars(post)) | {
        "topic_url": url_for("posts.posts", topic=post.topic) if post.topic else None,
        "created_at": post.created_at,
        "likes": post.likes,
        "views": post.views,
    }


def _read_liked(console: Console, _given: Mapping[str, str], after: Mapping[str, str]) -> Page:
    stores = console.stores
    live = live_run_ids(stores.redis, stores.keys)
    ranked = read_list(stores, stores.keys.popular(max(live.values()))) if live else None
    text = after.get("after", "0")
    start = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    shown = (ranked or [])[start : start + PAGE_ROWS]
    post_ids = [post_id for post_id, _ in shown]
    blocked = find_members(stores, stores.keys.blocked, post_ids)
    texts = read_texts(stores, post_ids)
    rows = [
        {"rank": start + index, "likes": likes, "blocked": _mark(post_id in blocked)}
        | _text_fields(post_id, text)
        for index, ((post_id, likes), text) in enumerate(zip(shown, texts, strict=True), 1)
    ]
    more = start + PAGE_ROWS < len(ranked or [])
    return rows, {"after": str(start + PAGE_ROWS)} if more else None


def _read_blocked(console: Console, _given: Mapping[str, str], after: Mapping[str, str]) -> Page:
    stores = console.stores
    try:
        start = (datetime.fromisoformat(after["after_time"]), after["after"]) if len(after) > 1 else None
    except ValueError:
        raise LookupError("There is no such time.") from None
    with stores.engine.connect() as connection:
        if not has_table(connection, blocked_posts):
            return [], None
        found = list_blocked(connection, stores.keys.prefix, PAGE_ROWS + 1, start)
    shown = found[:PAGE_ROWS]
    rows = _with_texts(console, [vars(block) for block in shown])
    if len(found) <= PAGE_ROWS:
        return rows, None
    return rows, {"after": shown[-1].post_id, "after_time": shown[-1].blocked_at.isoformat()}


@table_source("post-days")
def read_day_table(console: Console, arguments: Arguments) -> Table:
    """Read views and likes of a post by day."""
    post_id = _parse_post(console, arguments)
    days = count_by_day(console.stores, post_id)
    rows = [vars(day) | {"day": day.day.isoformat()} for day in reversed(days)]
    caption = f"Views and likes of post {post_id} by day, newest first"
    return _table_of_post("post-days", caption, DAY_COLUMNS, rows, post_id)


@table_source("post-similar")
def read_similar_table(console: Console, arguments: Arguments) -> Table:
    """Read the posts most similar to a post by the live run of a `variant`."""
    post_id, stores = _parse_post(console, arguments), console.stores
    variant = arguments.get("variant", "")
    if variant not in VARIANTS:
        raise LookupError("There is no such variant.")
    run_id = live_run_id(stores.redis, stores.keys, variant)
    stored = None if run_id is None else read_stored_list(stores, stores.keys.post(run_id, post_id))
    rows = [
        {
            "rank": row["rank"],
            "similarity": row["score"],
            "note": ", ".join(name for name in ("blocked", "gone") if row[name]) or None,
        }
        | _text_fields(row["post_id"], row, MAX_SIMILAR_TEXT)
        for row in describe_posts(stores, stored)
    ]
    caption = f"{variant}: posts like {post_id}" + (f", run {run_id}" if run_id else ": no run is live")
    found = _table_of_post("post-similar", caption, SIMILAR_COLUMNS, rows, post_id)
    return Table(**vars(found) | {"arguments": {**found.arguments, "variant": variant}})


@table_source("post-blocks")
def read_block_table(console: Console, arguments: Arguments) -> Table:
    """Read the story of a post's blocks."""
    post_id = _parse_post(console, arguments)
    return block_table(post_id, read_blocks(console, post_id), datetime.now(UTC))


def block_table(post_id: Id, blocks: Sequence[Block], at: datetime) -> Table:
    """Return the table of a post's blocks, newest first."""
    rows = [vars(block) for block in blocks]
    return Table(
        "post-blocks",
        f"Blocks of post {post_id}, newest first",
        BLOCK_COLUMNS,
        rows,
        at,
        {"id": str(post_id)},
    )


@table_source("first-fives")
def read_first_five_table(console: Console, arguments: Arguments) -> Table:
    """Read the posts that most lists of a `run` have in their first five."""
    run_id = arguments.get("run", "")
    run = next(iter(_read_live_heads(console, run_id)), None) if run_id else None
    if run is None:
        raise LookupError("There is no such run.")
    rows = _with_texts(console, [
        {"post_id": name, "rank": rank, "lists": lists, "share": lists / max(run.users, 1)}
        for rank, (name, lists) in enumerate(run.first_fives or [], 1)
    ])  # fmt: skip
    caption = f"Posts in most first fives of {run_id}, as the night wrote its {run.users:,} lists"
    return Table("first-fives", caption, FIRST_FIVE_COLUMNS, rows, datetime.now(UTC), {"run": run_id})


def _table_of_post(name: str, caption: str, columns: Sequence[Column], rows: Rows, post_id: Id) -> Table:
    return Table(name, caption, columns, rows, datetime.now(UTC), {"id": str(post_id)})


def _parse_post(console: Console, arguments: Arguments) -> Id:
    """Return the post of a table's address; a LookupError if it is not an id."""
    try:
        return parse_id(arguments.get("id", ""), read_kinds(console).posts)
    except ValueError as error:
        raise LookupError(str(error)) from None


def _with_texts(console: Console, rows: Rows) -> Rows:
    """Add topic and text as `recs.posts` has them; a post that is gone has none."""
    kind = read_kinds(console).posts
    known = [row["post_id"] for row in rows if decode_member(str(row["post_id"]), kind) is not None]
    found = read_posts(console.stores, known)
    return [
        row | _text_fields(row["post_id"], vars(post) if (post := found.get(str(row["post_id"]))) else {})
        for row in rows
    ]


def _mark(blocked: bool) -> str | None:
    return "blocked" if blocked else None


def _text_fields(post_id: Id, text: Mapping[str, Any], max_text: int = MAX_TEXT) -> dict[str, Any]:
    return {
        "post_id": post_id,
        "url": post_url(post_id),
        "topic": text.get("topic"),
        "text": None if text.get("text") is None else one_line(str(text["text"]), max_text),
    }
