"""The command that tells what a user gets now."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from batch import formatting, redis_client
from batch.commands.options import json_option
from batch.inspection.lists import compared, served
from contract.keys import Keys
from contract.settings import Settings

LONGEST_TEXT = 60


@click.command(epilog="Example: python -m batch lookup 200 --limit 5")
@click.argument("user_id", metavar="USER", type=int)
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many posts, best first."
)
@json_option
@click.pass_obj
def lookup(settings: Settings, user_id: int, limit: int, as_json: bool) -> None:
    """Show what a user gets now: from which run, and the posts with score, topic and text."""
    with redis_client.connected(settings) as client:
        found = served(client, Keys(settings.stores.key_prefix), user_id)
    record = found.record(datetime.now(UTC))
    record |= {"posts": found.posts[:limit], "posts_in_list": len(found.posts)}
    click.echo(formatting.as_json(record) if as_json else _format_list(record))


def _format_list(record: dict[str, Any]) -> str:
    posts, rest = record["posts"], record["posts_in_list"] - len(record["posts"])
    why = f": {record['why']}" if record["why"] else ""
    rows = [
        [
            post["rank"],
            post["post_id"],
            post["score"],
            post["topic"],
            formatting.one_line(post["text"] or "", LONGEST_TEXT),
            "blocked" if post["blocked"] else "",
        ]
        for post in posts
    ]
    return "\n".join(
        [
            f"user {record['user_id']}: variant {record['variant']}, run {record['run_id']}, "
            f"live since {record['published_at'].isoformat(timespec='seconds')} "
            f"({_age(record['age_seconds'])} ago)",
            f"source {record['source']}{why}",
            f"score {record['score_kind']}: {record['score_meaning']}",
            f"key {record['key']}",
            formatting.table(["rank", "post", "score", "topic", "text", ""], rows),
            *([f"and {rest} more; --limit {record['posts_in_list']} shows all"] if rest else []),
        ]
    )


def _age(seconds: int) -> str:
    """Say a length of time in its two largest units."""
    days, hours, minutes = seconds // 86_400, seconds // 3_600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"


@click.command(epilog="Example: python -m batch diff 200 20261121T030000Z-control control")
@click.argument("user_id", metavar="USER", type=int)
@click.argument("run_a", metavar="RUN_A")
@click.argument("run_b", metavar="RUN_B")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many posts; JSON has all."
)
@json_option
@click.pass_obj
def diff(settings: Settings, user_id: int, run_a: str, run_b: str, limit: int, as_json: bool) -> None:
    """Compare a user's lists in two runs: what came in, went out, moved.

    A run is named by its id, or by control or test: the one that is live.
    """
    with redis_client.connected(settings) as client:
        found = compared(client, Keys(settings.stores.key_prefix), user_id, run_a, run_b)
    click.echo(formatting.as_json(found) if as_json else _format_difference(found, limit))


def _format_difference(found: dict[str, Any], limit: int) -> str:
    rows = [
        [row["rank_b"], row["rank_a"], row["post_id"], row["change"], row["score_b"], row["score_a"]]
        for row in found["changes"]
    ]
    rest = len(rows) - limit
    return "\n".join(
        [
            f"user {found['user_id']}",
            f"a: {found['run_a']}, {found['source_a']}, score {found['score_kind_a']}",
            f"b: {found['run_b']}, {found['source_b']}, score {found['score_kind_b']}",
            *_other_kinds(found),
            f"overlap of the first 5: {found['overlap_at_5']}, of all: {found['overlap']}",
            formatting.table(["rank b", "rank a", "post", "change", "score b", "score a"], rows[:limit]),
            *([f"and {rest} more; --limit {len(rows)} shows all"] if rest > 0 else []),
        ]
    )


def _other_kinds(found: dict[str, Any]) -> list[str]:
    """Warn where the scores of the two lists have no common unit."""
    if found["score_kind_a"] == found["score_kind_b"]:
        return []
    return ["the scores are of different kinds: compare ranks, not scores"]
