"""The command that tells what a user gets now."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from batch import layout
from batch.commands.options import json_option
from batch.inspecting.served import served
from batch.publishing import store
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
    with store.connected(settings) as client:
        found = served(client, Keys(settings.key_prefix), user_id)
    record = found.record(datetime.now(UTC))
    record |= {"posts": found.posts[:limit], "posts_in_list": len(found.posts)}
    click.echo(layout.as_json(record) if as_json else _as_text(record))


def _as_text(record: dict[str, Any]) -> str:
    posts, rest = record["posts"], record["posts_in_list"] - len(record["posts"])
    why = f": {record['why']}" if record["why"] else ""
    rows = [
        [
            post["rank"],
            post["post_id"],
            post["score"],
            post["topic"],
            layout.one_line(post["text"] or "", LONGEST_TEXT),
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
            layout.table(["rank", "post", "score", "topic", "text", ""], rows),
            *([f"and {rest} more; --limit {record['posts_in_list']} shows all"] if rest else []),
        ]
    )


def _age(seconds: int) -> str:
    """Say a length of time in its two largest units."""
    days, hours, minutes = seconds // 86_400, seconds // 3_600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"
