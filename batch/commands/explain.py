"""The command that takes a score apart."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click
from threadpoolctl import threadpool_limits

from batch import formatting, postgres, redis_client
from batch.commands.options import json_option
from batch.inspection import lists
from batch.inspection.explain import Asked, Explained, explained, standing
from batch.runs import ledger
from batch.signals import signals_raise
from contract.keys import Keys
from contract.settings import Settings

SMALLEST_DIFFERENCE = 0.001
"""Served scores have three decimals."""


@click.command(epilog="Example: python -m batch explain 200 191 --run test")
@click.argument("user_id", metavar="USER", type=int)
@click.argument("post_id", metavar="POST", type=int)
@click.option(
    "--run",
    "run_name",
    metavar="RUN",
    help="A run's id, or control or test for the live one. Default: the run that the user gets.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="How many features, largest first.",
)
@json_option
@click.pass_obj
def explain(
    settings: Settings, user_id: int, post_id: int, run_name: str | None, limit: int, as_json: bool
) -> None:
    """Take a score apart: why a user gets a post, or does not.

    The score is the dot product of user and post, a base value and what each
    feature adds, all in one unit; the first lines say what a score of this run
    is. Features are those of the run's cutoff, as the model sees them: counts
    are logarithms, log(1 + count). It reads the run's store, and from Postgres
    what was logged since its cutoff.
    """
    record, found = _explained(settings, user_id, post_id, run_name)
    click.echo(formatting.as_json(record) if as_json else _as_text(record, found, limit))


def _explained(
    settings: Settings, user_id: int, post_id: int, run_name: str | None
) -> tuple[dict[str, Any], Explained]:
    keys, who = Keys(settings.stores.key_prefix), f"overnight {ledger.actor('batch explain')}"
    with (
        # As in a night, so that the factors come out the same.
        threadpool_limits(1, user_api="blas"),
        postgres.connected(settings, who) as engine,
        signals_raise(engine),
        redis_client.connected(settings) as client,
    ):
        if run_name is None:
            _, run_id = lists.run_for(client, keys, user_id)
        else:
            run_id = lists.run_named(client, keys, run_name)
        manifest = lists.manifest_of(client, keys, run_id)
        cutoff = datetime.fromisoformat(manifest["cutoff"])
        found = explained(engine, settings, manifest, user_id, post_id)
        blocked = bool(client.sismember(keys.blocked, str(post_id)))
        ranked = lists.list_at(client, keys.user(run_id, user_id))
    asked = Asked(post_id, found.score, blocked, found.known, found.liked_at)
    stands = standing(ranked, manifest["top_n"], cutoff, asked)
    named = {"user_id": user_id, "post_id": post_id, "run_id": run_id, "cutoff": cutoff}
    return {**named, **vars(found), "blocked": blocked, **vars(stands)}, found


def _as_text(record: dict[str, Any], found: Explained, limit: int) -> str:
    shown, rest = found.contributions[:limit], found.contributions[limit:]
    rows = [[_short(part["value"]), part["feature"], _signed(part["contribution"])] for part in shown]
    if rest:
        rows.append(
            [None, f"{len(rest)} further features", _signed(sum(part["contribution"] for part in rest))]
        )
    rows.append([None, "base value: the forest's mean", _signed(found.base_value)])
    if found.dot_product is not None:
        rows.append([None, "dot product of user and post", _signed(found.dot_product)])
    rows.append([None, "score", _signed(found.score)])
    return "\n".join(
        [
            f"user {record['user_id']}, post {record['post_id']}, run {record['run_id']}, "
            f"features as of {record['cutoff'].isoformat(timespec='seconds')}",
            f"score {found.score_kind}: {found.score_meaning}",
            record["why"],
            *_changed(record),
            "",
            formatting.table(["value", "feature", "adds"], rows),
        ]
    )


def _changed(record: dict[str, Any]) -> list[str]:
    """Say so where the list holds another score: it was made from other data."""
    served = record["served_score"]
    if served is None or abs(served - record["score"]) <= SMALLEST_DIFFERENCE:
        return []
    return [
        f"the list has {served}, not {record['score']:.3f}: the data have changed since, "
        "or the list was refreshed"
    ]


def _short(value: float | str | None) -> str | None:
    return f"{value:.4g}" if isinstance(value, float) else value


def _signed(number: float) -> str:
    return f"{number:+.4f}"
