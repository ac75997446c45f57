"""What pages about a user read from Redis and Postgres, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from batch.formatting import one_line
from batch.inspection.lists import (
    ServedList,
    compare_lists,
    find_id_kinds,
    find_list,
    find_user_run,
    read_experiment,
    read_manifest,
    read_texts,
    read_view_kinds,
    resolve_run,
)
from batch.inspection.user_profile import Interaction, count_interactions, read_interactions
from console.context import Console
from console.links import post_url
from console.tables import PAGE_ROWS, Arguments, Column, Table, absent_after, table_source
from contract.errors import StoreError
from contract.ids import Id, IdKinds, parse_id
from contract.manifest import parse_time

MAX_TEXT = 160
"""Characters of a post's text in a row."""

RANK = Column("rank", "Rank", "number")
POST, TOPIC, TEXT = Column("post_id", "Post", link="url"), Column("topic", "Topic"), Column("text", "Text")
LIST_COLUMNS = (
    RANK, POST, TOPIC, TEXT, Column("score", "Score", "number"), Column("blocked", "Blocked"),
    Column("gone", "Gone"), Column("probability", "Probability of an explored place", "number"),
)  # fmt: skip
COMPARISON_COLUMNS = (
    Column("rank_b", "Rank in b", "number"), Column("rank_a", "Rank in a", "number"),
    Column("change", "Change"), POST, TOPIC, TEXT,
    Column("score_b", "Score in b", "number"), Column("score_a", "Score in a", "number"),
)  # fmt: skip
INTERACTION_COLUMNS = (Column("happened_at", "Time", "time"), Column("action", "Action"), POST, TOPIC, TEXT)
TOPIC_COLUMNS = (TOPIC, Column("likes", "Likes", "number"))
BEFORE = ("before", "before_post", "before_action")
"""Query arguments: time, post and action of the interaction after which a page begins."""


@dataclass(frozen=True)
class UserList:
    """A user's list in a run.

    Attributes
    ----------
    served
        The list; its variant is the one that the user is assigned to.
    pinned
        Whether an operator has set that variant.
    cutoff
        Of the run: what happened later is in no feature.
    popular_by
        Column of users by which the run also has popular lists; None without.
    """

    served: ServedList
    pinned: bool
    cutoff: datetime | None
    popular_by: str | None

    def page(self, start: int) -> Sequence[Mapping[str, Any]]:
        """Return the posts of the page of the list that begins at a rank."""
        return self.served.posts[start - 1 : start - 1 + PAGE_ROWS]


def read_kinds(console: Console) -> IdKinds:
    """Return the kinds of ids; without Redis the last that were read, or those of the views.

    Raises
    ------
    StoreError
        They could never be read.
    """
    found = console.readings.read("id-kinds", lambda: find_id_kinds(console.stores))
    if found.value is None:
        of_views = console.readings.read("id-kinds-of-views", lambda: read_view_kinds(console.stores))
        if of_views.value is None:
            raise StoreError(found.error or "")
        return of_views.value
    return found.value


def parse_start(arguments: Arguments) -> int:
    """Return the rank at which a page begins, from 1; a wrong one begins at 1."""
    text = arguments.get("from", "")
    return max(int(text), 1) if text.isascii() and text.isdigit() and len(text) < 9 else 1


def parse_before(arguments: Arguments, kinds: IdKinds) -> Interaction | None:
    """Return the interaction after which a page begins; None for the first page.

    Raises
    ------
    ValueError
        The arguments name none.
    """
    time, post, action = (arguments.get(name, "") for name in BEFORE)
    if not time:
        return None
    at = datetime.fromisoformat(time)
    return Interaction(parse_id(post, kinds.posts), action, at if at.tzinfo else at.replace(tzinfo=UTC))


def read_user_list(console: Console, user_id: Id, run: str) -> UserList:
    """Read a user's list.

    Parameters
    ----------
    run
        A run id, or a variant for its live run; empty for the run that serves the user.

    Raises
    ------
    StoreError
        There is no such run (an UnknownRunError), no run is live, or a stored value is broken.
    """
    stores = console.stores
    variant, run_id = find_user_run(stores, user_id)
    if run:
        run_id = resolve_run(stores, run)
    manifest = read_manifest(stores, run_id)
    found = find_list(stores, user_id, variant, run_id, manifest)
    return UserList(
        served=replace(found, posts=[post | {"text": _shorten(post["text"])} for post in found.posts]),
        pinned=str(user_id) in read_experiment(stores).pins,
        cutoff=parse_time(manifest.get("cutoff")),
        popular_by=manifest.get("popular_by"),
    )


def list_table(found: UserList, run: str, start: int, at: datetime, *, count: int = PAGE_ROWS) -> Table:
    """Return the table of a page of a user's list, of at most `count` rows."""
    user_id = str(found.served.user_id)
    arguments = {"id": user_id} | ({"run": run} if run else {})
    rows = [{**post, "url": post_url(post["post_id"])} for post in found.page(start)[:count]]
    more = {**arguments, "from": str(start + count)} if found.page(start + count) else None
    return Table(
        "user-list",
        f"List of user {user_id} in run {found.served.run_id}",
        LIST_COLUMNS,
        rows,
        at,
        arguments | ({"from": str(start)} if start > 1 else {}),
        more,
    )


@table_source("user-list")
def read_list_table(console: Console, arguments: Arguments) -> Table:
    """Read a page of a user's list."""
    user_id, run = _parse_user(console, arguments), arguments.get("run", "")
    found = read_user_list(console, user_id, run)
    return list_table(found, run, parse_start(arguments), datetime.now(UTC))


def read_comparison(console: Console, user_id: Id, run_a: str, run_b: str) -> dict[str, Any]:
    """Compare a user's lists in two runs; the fields of `diff --json`, with text and topic of the posts.

    Raises
    ------
    StoreError
        As `compare_lists` does.
    """
    found = compare_lists(console.stores, user_id, run_a, run_b)
    texts = read_texts(console.stores, [row["post_id"] for row in found["changes"]])
    found["changes"] = [
        row | {"topic": text.get("topic"), "text": _shorten(text.get("text"))}
        for row, text in zip(found["changes"], texts, strict=True)
    ]
    return found


def comparison_table(found: Mapping[str, Any], names: tuple[str, str], start: int, at: datetime) -> Table:
    """Return the table of a page of a comparison; `names` are those of the runs in the address."""
    arguments = {"id": str(found["user_id"]), "a": names[0], "b": names[1]}
    changes = found["changes"]
    rows = [row | {"url": post_url(row["post_id"])} for row in changes[start - 1 : start - 1 + PAGE_ROWS]]
    more = {**arguments, "from": str(start + PAGE_ROWS)} if len(changes) >= start + PAGE_ROWS else None
    return Table(
        "user-comparison",
        f"Lists of user {found['user_id']} in {found['run_a']} (a) and {found['run_b']} (b)",
        COMPARISON_COLUMNS,
        rows,
        at,
        arguments | ({"from": str(start)} if start > 1 else {}),
        more,
    )


@table_source("user-comparison")
def read_comparison_table(console: Console, arguments: Arguments) -> Table:
    """Read a page of a comparison."""
    user_id, names = _parse_user(console, arguments), (arguments.get("a", ""), arguments.get("b", ""))
    found = read_comparison(console, user_id, *names)
    return comparison_table(found, names, parse_start(arguments), datetime.now(UTC))


@table_source("user-interactions")
def read_interaction_table(console: Console, arguments: Arguments) -> Table:
    """Read a page of a user's interactions, newest first."""
    return read_interaction_rows(console, arguments, PAGE_ROWS)


def read_interaction_rows(console: Console, arguments: Arguments, count: int) -> Table:
    """Read at most `count` of a user's interactions, newest first; the files of the table have PAGE_ROWS."""
    user_id = _parse_user(console, arguments)
    try:
        before = parse_before(arguments, read_kinds(console))
    except ValueError as error:
        raise LookupError(str(error)) from None
    with absent_after(before):
        found = read_interactions(console.stores, user_id, count + 1, before)
    rows = [
        {**vars(each), "text": _shorten(each.text), "url": post_url(each.post_id)} for each in found[:count]
    ]
    base, more = {"id": str(user_id)}, None
    if len(found) > count:
        last = found[count - 1]
        cursor = last.happened_at.isoformat(), str(last.post_id), last.action
        more = base | dict(zip(BEFORE, cursor, strict=True))
    given = {name: arguments[name] for name in BEFORE if name in arguments}
    return Table(
        "user-interactions", f"What user {user_id} did", INTERACTION_COLUMNS, rows, datetime.now(UTC),
        base | given, more,
    )  # fmt: skip


@table_source("user-topics")
def read_topic_table(console: Console, arguments: Arguments) -> Table:
    """Read how many posts of each topic a user likes."""
    user_id = _parse_user(console, arguments)
    counts = count_interactions(console.stores, user_id)
    rows = [{"topic": topic, "likes": likes} for topic, likes in counts.topics]
    return Table(
        "user-topics", f"Likes of user {user_id} by topic", TOPIC_COLUMNS, rows, datetime.now(UTC),
        {"id": str(user_id)},
    )  # fmt: skip


def _parse_user(console: Console, arguments: Arguments) -> Id:
    """Return the user of a table's address; a LookupError if it is not an id."""
    try:
        return parse_id(arguments.get("id", ""), read_kinds(console).users)
    except ValueError as error:
        raise LookupError(str(error)) from None


def _shorten(text: str | None) -> str | None:
    return None if text is None else one_line(text, MAX_TEXT)
