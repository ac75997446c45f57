"""Posts: what is this post, who gets it, and take it out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from flask import Blueprint, abort, render_template, request

from batch.context import Stores
from batch.inspection.posts import DayCounts
from batch.publishing import blocking
from batch.reports.charts import Axis, Chart, TimeAxis
from console.actions import Action, Arguments, Field, ImpossibleError, Outcome, Preview, register
from console.content.post_tables import (
    MAX_QUERY,
    VIEWS,
    FirstFives,
    block_table,
    parse_view,
    read_blocks,
    read_day_table,
    read_first_fives,
    read_post,
    read_post_table,
    read_similar_table,
    read_stored_post,
)
from console.content.user_tables import read_kinds
from console.context import Console, Visitor, current_console
from console.links import parse_written_id, post_url, user_url
from console.pages.users import parse_or_refuse
from console.tables import Table
from contract.errors import EXIT_USAGE, OvernightError
from contract.experiment import VARIANTS
from contract.ids import Id, quote_id

blueprint = Blueprint("posts", __name__)

CHART_WIDTH = 640


@blueprint.get("/posts")
@blueprint.get("/posts/<post_id>")
def post(post_id: str | None = None) -> str | tuple[str, int]:
    """Show a post; without one, the newest, the most liked or the blocked ones, a page of 50."""
    text = request.args.get("id", "") if post_id is None else post_id
    return _show_post(text) if text else _show_list()


# The list has an endpoint of its own, which the navigation names.
blueprint.add_url_rule("/posts", "posts", post, methods=["GET"])


def _show_list() -> str:
    console, arguments = current_console(), request.args.to_dict()
    show = parse_view(arguments)
    try:
        page = console.readings.read(
            ("posts", *sorted(arguments.items())), lambda: read_post_table(console, arguments)
        )
    except LookupError:
        abort(404, "A page begins after a post: follow the links.")
    return render_template(
        "posts.html", page=page, show=show, views=VIEWS, arguments=arguments, max_query=MAX_QUERY
    )


def _show_post(text: str) -> str | tuple[str, int]:
    console = current_console()
    post_id = parse_or_refuse(text, read_kinds(console).posts, "post")
    read, given = console.readings.read, {"id": str(post_id)}
    stored = read(("stored-post", post_id), lambda: read_stored_post(console, post_id))
    row = read(("post", post_id), lambda: read_post(console, post_id))
    blocks = read(("post-blocks", post_id), lambda: read_blocks(console, post_id))
    similar = {
        variant: read(
            ("post-similar", post_id, variant),
            partial(read_similar_table, console, given | {"variant": variant}),
        )
        for variant in VARIANTS
    }
    # The slowest is last: what Postgres stops makes it fail for the rest of the request.
    heads = read(("post-first-fives", post_id), lambda: read_first_fives(console, post_id))
    days = read(("post-days", post_id), lambda: read_day_table(console, given))
    known = row.value or row.error or blocks.value or (stored.value and stored.value.text)
    page = render_template(
        "post.html",
        post_id=post_id,
        stored=stored,
        row=row,
        blocks=blocks,
        story=block_table(post_id, blocks.value or [], blocks.at or datetime.now(UTC)),
        in_force=next((each for each in blocks.value or [] if each.unblocked_at is None), None),
        heads=heads,
        describe_head=describe_head,
        days=days,
        chart=_draw_days(days.value) if days.value else "",
        similar=similar,
        user_url=user_url,
    )
    return page if known else (page, 404)


def describe_head(head: FirstFives) -> str:
    """Return in how many first fives of a run a post is."""
    if head.fewest is None:
        return f"{head.variant}: no count; nights of this release keep it"
    if head.lists is None:
        return f"{head.variant}: in at most {head.fewest:,} of {head.users:,} first fives"
    return f"{head.variant}: in {head.lists:,} of {head.users:,} first fives"


def _draw_days(table: Table) -> str:
    """Draw the days of a post; nothing if there are fewer than two."""
    rows = [DayCounts(**row) for row in reversed(table.rows)]
    times = [datetime.fromisoformat(str(row.day)).replace(tzinfo=UTC).timestamp() for row in rows]
    if len(rows) < 2:
        return ""
    views, likes = sum(row.views for row in rows), sum(row.likes for row in rows)
    chart = Chart(
        "days", "Views and likes by day",
        f"{views:,} views and {likes:,} likes from {rows[0].day} to {rows[-1].day}.",
        TimeAxis("day, UTC", times[0], times[-1]),
        Axis("actions", max(max(row.views, row.likes) for row in rows)),
        CHART_WIDTH,
    )  # fmt: skip
    return chart.lines(
        {
            "views": [(time, row.views) for time, row in zip(times, rows, strict=True)],
            "likes": [(time, row.likes) for time, row in zip(times, rows, strict=True)],
        }
    )


class NotAPostError(OvernightError):
    """Raised when an action names no post."""

    exit_code = EXIT_USAGE


def _parse_post(console: Console, arguments: Arguments) -> Id:
    try:
        return parse_written_id(arguments.get("post", ""), read_kinds(console).posts)
    except ValueError as error:
        raise NotAPostError(f"the post {error}; nothing was changed; give the id of a post") from None


ASK = Preview(
    "Block a post", (), "Go on", fields=(Field("post", "Id of the post", required=True),), ask_first=True
)


def _soon(console: Console) -> str:
    seconds = console.settings.serving.state_refresh_seconds
    return f"within {seconds:g} s (OVERNIGHT_STATE_REFRESH_SECONDS)"


def preview_block(console: Console, arguments: Arguments) -> Preview:
    """Say what a block changes, and for how many lists."""
    if not arguments.get("post"):
        return ASK
    post_id = _parse_post(console, arguments)
    name = quote_id(post_id)
    found = _find_block(console, post_id)
    heads = [f"{describe_head(head)} ({head.run_id})" for head in read_first_fives(console, post_id)]
    if found:
        changes = [
            f"Nothing in Postgres: post {name} is blocked already, since "
            f"{found.blocked_at:%Y-%m-%d %H:%M} UTC by {found.blocked_by}: {found.reason or 'no reason'}.",
            "It is written to Redis again, in case Redis has lost it.",
        ]
    else:
        changes = [
            f"No answer of serving has post {name} any more, {_soon(console)}. "
            "The posts after it in each list move up.",
            "The next night and refresh leave it out of every list.",
        ]
    return Preview(
        f"Block post {name}",
        changes,
        "Block the post",
        stays=("recs.posts, and what users did with the post", "all other posts"),
        notes=[*_describe_text(console, post_id), *heads],
        back=post_url(post_id),
    )


def preview_unblock(console: Console, arguments: Arguments) -> Preview:
    """Say what the end of a block changes."""
    post_id = _parse_post(console, arguments)
    name = quote_id(post_id)
    found = _find_block(console, post_id)
    if found is None and not read_stored_post(console, post_id).blocked:
        raise ImpossibleError(f"post {name} is not blocked")
    changes = [
        f"Serving answers with post {name} again, {_soon(console)}, from lists that still have it.",
        "The next night and refresh rank it as any other post.",
    ]
    notes = [] if found is None else [
        f"Blocked since {found.blocked_at:%Y-%m-%d %H:%M} UTC by {found.blocked_by}: "
        f"{found.reason or 'no reason'}"
    ]  # fmt: skip
    return Preview(
        f"Unblock post {name}",
        changes,
        "Unblock the post",
        stays=("lists as they are stored", "all other posts"),
        notes=[*notes, *_describe_text(console, post_id)],
        back=post_url(post_id),
    )


def _find_block(console: Console, post_id: Id) -> blocking.Block | None:
    return next((each for each in read_blocks(console, post_id) if each.unblocked_at is None), None)


def _describe_text(console: Console, post_id: Id) -> Sequence[str]:
    found = read_post(console, post_id)
    if found is None:
        return ["recs.posts has no such post: is the id right?"]
    return [f"Its text: {' '.join((found.text or 'none').split())[:200]}"]


def perform_block(
    console: Console, stores: Stores, _visitor: Visitor, arguments: Arguments, reason: str
) -> Outcome:
    """Block a post."""
    post_id = _parse_post(console, arguments)
    found, new = blocking.block(stores, post_id, reason)
    name = quote_id(post_id)
    sentence = (
        f"Post {name} is blocked: no answer has it {_soon(console)}."
        if new
        else f"Post {name} was blocked already by {found.blocked_by}; Redis has it too."
    )
    return Outcome(sentence, post_url(post_id))


def perform_unblock(
    console: Console, stores: Stores, _visitor: Visitor, arguments: Arguments, reason: str
) -> Outcome:
    """End the block of a post."""
    kind = read_kinds(console).posts
    post_id = _parse_post(console, arguments)
    ended = blocking.unblock(stores, post_id, kind, reason)
    name = quote_id(post_id)
    sentence = (
        f"Post {name} was not blocked."
        if ended is None
        else f"Post {name} is no longer blocked: lists that have it show it {_soon(console)}."
    )
    return Outcome(sentence, post_url(post_id))


register(Action("block", preview_block, perform_block, ["post"]))
register(Action("unblock", preview_unblock, perform_unblock, ["post"]))
