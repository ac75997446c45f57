"""`python -m batch lookup` and `diff`: the list a user is served, and the lists of two runs compared."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from batch import formatting
from batch.commands.options import json_option, parse_argument
from batch.context import Stores, open_stores
from batch.inspection.lists import compare_lists, find_id_kinds, find_served_list
from batch.runs import ledger
from batch.runs.pages import read_live_since
from contract.errors import OvernightError
from contract.ids import quote_id
from contract.settings import Settings

MAX_TEXT = 60
"""Characters of a post's text on its line."""


@click.command(epilog="Example: python -m batch lookup 200 --limit 5")
@click.argument("user", metavar="USER")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Number of posts, best first."
)
@json_option
@click.pass_obj
def lookup(settings: Settings, user: str, limit: int, as_json: bool) -> None:
    """Show the list a user is served now: its run, and the posts with score, topic and text."""
    with open_stores(settings, ledger.actor("batch lookup"), interactive=True) as stores:
        user_id = parse_argument(user, find_id_kinds(stores).users, "USER")
        found = find_served_list(stores, user_id)
        live_since = _find_live_since(stores, found.run_id)
    fields = found.as_dict(datetime.now(UTC))
    fields |= {"posts": found.posts[:limit], "posts_in_list": len(found.posts), "live_since": live_since}
    formatting.echo(formatting.as_json(fields) if as_json else _format_list(fields))


def _format_list(fields: dict[str, Any]) -> str:
    posts, rest = fields["posts"], fields["posts_in_list"] - len(fields["posts"])
    why = f": {fields['why']}" if fields["why"] else ""
    rows = [
        [
            post["rank"],
            post["post_id"],
            post["score"],
            post["topic"],
            formatting.one_line(post["text"] or "", MAX_TEXT),
            ", ".join(_notes(post)),
        ]
        for post in posts
    ]
    return "\n".join(
        [
            f"user {quote_id(fields['user_id'])}: variant {fields['variant']}, run {fields['run_id']}, "
            + _format_since(fields),
            f"source {fields['source']}{why}",
            f"score {fields['score_kind']}: {fields['score_meaning']}",
            f"key {fields['key']}",
            formatting.table(["rank", "post", "score", "topic", "text", ""], rows),
            *([f"and {rest} more; --limit {fields['posts_in_list']} shows all"] if rest else []),
        ]
    )


def _find_live_since(stores: Stores, run_id: str) -> datetime | None:
    """Return since when a run is live; None if Postgres does not say."""
    try:
        with stores.readable_errors():
            return read_live_since(stores.engine, stores.keys.prefix).get(run_id)
    except OvernightError:
        return None


def _format_since(fields: dict[str, Any]) -> str:
    """Return since when the run is live, and when it was published if that is another time or all we know."""
    published, since = fields["published_at"], fields["live_since"]
    first = f"published {published.isoformat(timespec='seconds')}"
    if since is None:
        return f"{first} ({_age(fields['age_seconds'])} ago)"
    age = _age(int((datetime.now(UTC) - since).total_seconds()))
    live = f"live since {since.isoformat(timespec='seconds')} ({age} ago)"
    return live if since == published else f"{live}, {first}"


def _notes(post: dict[str, Any]) -> list[str]:
    notes = [name for name in ("blocked", "gone") if post[name]]
    return [*notes, f"explored, 1 of {1 / post['probability']:.0f}"] if "probability" in post else notes


def _age(seconds: int) -> str:
    """Format a duration in its two largest units."""
    days, hours, minutes = seconds // 86_400, seconds // 3_600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"


@click.command(epilog="Example: python -m batch diff 200 20261121T030000Z-control control")
@click.argument("user", metavar="USER")
@click.argument("run_a", metavar="RUN_A")
@click.argument("run_b", metavar="RUN_B")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Number of posts. JSON has all.",
)
@json_option
@click.pass_obj
def diff(settings: Settings, user: str, run_a: str, run_b: str, *, limit: int, as_json: bool) -> None:
    """Compare a user's lists in two runs: which posts entered, left, or moved.

    A run is a run id, or control or test for the live run of that variant.
    """
    with open_stores(settings, ledger.actor("batch diff"), interactive=True) as stores:
        user_id = parse_argument(user, find_id_kinds(stores).users, "USER")
        found = compare_lists(stores, user_id, run_a, run_b)
    formatting.echo(formatting.as_json(found) if as_json else _format_difference(found, limit))


def _format_difference(found: dict[str, Any], limit: int) -> str:
    rows = [
        [row["rank_b"], row["rank_a"], row["post_id"], row["change"], row["score_b"], row["score_a"]]
        for row in found["changes"]
    ]
    rest = len(rows) - limit
    return "\n".join(
        [
            f"user {quote_id(found['user_id'])}",
            f"a: {found['run_a']}, {found['source_a']}, score {found['score_kind_a']}",
            f"b: {found['run_b']}, {found['source_b']}, score {found['score_kind_b']}",
            *_warn_units(found),
            f"overlap of the first 5: {found['overlap_at_5']}, of all: {found['overlap']}",
            formatting.table(["rank b", "rank a", "post", "change", "score b", "score a"], rows[:limit]),
            *([f"and {rest} more; --limit {len(rows)} shows all"] if rest > 0 else []),
        ]
    )


def _warn_units(found: dict[str, Any]) -> list[str]:
    """Return a warning if the scores of the two lists have different units."""
    if found["score_kind_a"] == found["score_kind_b"]:
        return []
    return ["the scores are of different kinds: compare ranks, not scores"]
