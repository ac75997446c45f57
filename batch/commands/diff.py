"""The command that compares what two runs have for a user."""

from __future__ import annotations

from typing import Any

import click

from batch import layout
from batch.commands.options import json_option
from batch.inspecting.compared import compared
from batch.publishing import store
from contract.keys import Keys
from contract.settings import Settings


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
    with store.connected(settings) as client:
        found = compared(client, Keys(settings.key_prefix), user_id, run_a, run_b)
    click.echo(layout.as_json(found) if as_json else _as_text(found, limit))


def _as_text(found: dict[str, Any], limit: int) -> str:
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
            layout.table(["rank b", "rank a", "post", "change", "score b", "score a"], rows[:limit]),
            *([f"and {rest} more; --limit {len(rows)} shows all"] if rest > 0 else []),
        ]
    )


def _other_kinds(found: dict[str, Any]) -> list[str]:
    """Warn where the scores of the two lists have no common unit."""
    if found["score_kind_a"] == found["score_kind_b"]:
        return []
    return ["the scores are of different kinds: compare ranks, not scores"]
