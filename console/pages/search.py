"""Search: a user, a post, a run, or posts with some words."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from batch.inspection.posts import MAX_WORDS, PostFilter, list_posts, read_posts
from batch.inspection.user_profile import read_user
from console.content.post_tables import LIST_COLUMNS, NEWEST, clean_query, make_post_rows
from console.content.run_tables import describe_state, find_run
from console.content.user_tables import read_kinds
from console.context import Console, current_console
from console.links import post_url, user_url
from console.readings import Reading
from console.tables import Arguments, Table, table_source
from contract.ids import parse_id

blueprint = Blueprint("search", __name__)

MAX_POSTS = 20
"""Posts with the words on the page; the page of posts has the others."""

MAX_SHOWN = 200


@dataclass(frozen=True)
class Hit:
    """What has exactly the id that was searched for: its kind, address, and some words about it."""

    kind: str
    title: str
    url: str
    about: str


@blueprint.get("/search")
def search() -> str | Response:
    """Show what a search finds; one exact hit without any other goes to its page at once."""
    console, given = current_console(), request.args.get("q", "")
    query = clean_query(given)
    if not query:
        return render_template("search.html", query="", hits=[], posts=None, max_words=MAX_WORDS)
    hits = _find_ids(console, given)
    # The slowest is last: what Postgres stops makes it fail for the rest of the request.
    posts = console.readings.read(("search-posts", query), lambda: read_hit_table(console, {"q": query}))
    found = [hit for reading in hits for hit in reading.value or []]
    complete = posts.error is None and all(reading.error is None for reading in hits)
    if len(found) == 1 and complete and posts.value and not posts.value.rows:
        return redirect(found[0].url)
    return render_template(
        "search.html", query=query, hits=found, posts=posts, max_words=MAX_WORDS,
        failed=[reading for reading in hits if reading.error],
    )  # fmt: skip


def _find_ids(console: Console, given: str) -> list[Reading[list[Hit]]]:
    """Find what has the id that is given: as it is, and if nothing has it, without blanks around it."""
    hits: list[Reading[list[Hit]]] = []
    for text in dict.fromkeys((given, given.strip())):
        hits = [
            console.readings.read(("search", name, text), partial(find, console, text))
            for name, find in FINDERS.items()
        ]
        if any(reading.value for reading in hits):
            break
    return hits


def find_users(console: Console, query: str) -> list[Hit]:
    """Return the user with that id, if there is one."""
    with suppress(ValueError):
        user_id = parse_id(query, read_kinds(console).users)
        if found := read_user(console.stores, user_id):
            about = ", ".join(
                f"{name} {value}" for name, value in list(found.items())[1:] if value is not None
            )
            return [Hit("user", str(user_id), user_url(user_id), about[:MAX_SHOWN])]
    return []


def find_posts(console: Console, query: str) -> list[Hit]:
    """Return the post with that id, if there is one."""
    with suppress(ValueError):
        post_id = parse_id(query, read_kinds(console).posts)
        if found := read_posts(console.stores, [post_id]).get(str(post_id)):
            words = " ".join((found.text or "").split())[:MAX_SHOWN]
            about = f"{found.topic}: {words}" if found.topic else words
            return [Hit("post", str(post_id), post_url(post_id), about)]
    return []


def find_runs(console: Console, query: str) -> list[Hit]:
    """Return the run with that id, if there is one."""
    found = find_run(console, query)
    if found is None:
        return []
    url = url_for("runs.run", run_id=found.row.run_id)
    return [Hit("run", found.row.run_id, url, f"{found.row.state}. {describe_state(found)}")]


FINDERS = {"users": find_users, "posts": find_posts, "runs": find_runs}


@table_source("search")
def read_hit_table(console: Console, arguments: Arguments) -> Table:
    """Read the newest posts that have all words of a search `q` in their text."""
    query = clean_query(arguments.get("q", ""))
    found = list_posts(console.stores, PostFilter(query), MAX_POSTS + 1) if query else []
    rows: list[dict[str, Any]] = make_post_rows(console, found[:MAX_POSTS])
    more = {"q": query} if len(found) > MAX_POSTS else None
    caption = f'Newest posts with "{query}"' + (f", the first {MAX_POSTS}" if more else "")
    return Table("search", caption, LIST_COLUMNS[NEWEST][:4], rows, datetime.now(UTC), {"q": query}, more)
