"""The command that lists runs."""

from __future__ import annotations

from typing import Any

import click
import sqlalchemy as sa

from batch import layout
from batch.commands.options import json_option
from batch.loading import source
from batch.runs import ledger
from contract.score_kind import recipe_of
from contract.settings import Settings

RECORD = (
    "run_id", "variant", "key_prefix", "state", "cutoff", "started_at", "finished_at", "actor", "reason",
)  # fmt: skip


@click.command(epilog="Example: python -m batch runs --count 5")
@click.option(
    "--count", type=click.IntRange(min=1), default=20, show_default=True, help="How many, newest first."
)
@json_option
@click.pass_obj
def runs(settings: Settings, count: int, as_json: bool) -> None:
    """List the newest runs and their states."""
    with source.connected(settings) as engine:
        ledger.create(engine)
        found = ledger.newest(engine, count)
    if as_json:
        records = [of_row(row) | {"recipe": _recipe(row.manifest)} | _figures(row.manifest) for row in found]
        click.echo(layout.as_json(records))
    elif not found:
        click.echo("no runs yet; `python -m batch run` makes one")
    else:
        head = ["run", "state", "cutoff", "recipe", "ndcg@10", "hitrate@5", "started by", "reason"]
        rows = [
            [
                run.run_id,
                run.state,
                run.cutoff,
                _recipe(run.manifest),
                *_rounded(run.manifest),
                run.actor,
                run.reason,
            ]
            for run in found
        ]
        click.echo(layout.table(head, rows))


def of_row(row: sa.Row[Any]) -> dict[str, Any]:
    """Return a run of the ledger as a record, without its manifest."""
    return {name: getattr(row, name) for name in RECORD}


def _recipe(manifest: dict[str, Any] | None) -> str | None:
    """Return the recipe that a run learnt; None for a run that ended before it was written."""
    return recipe_of(manifest) if manifest else None


def _figures(manifest: dict[str, Any] | None) -> dict[str, float | None]:
    """Return the model's NDCG@10 over the full catalogue and its HitRate@5 over what was viewed.

    They are None for a run that ended before it was judged.
    """
    metrics = (manifest or {}).get("metrics", {})
    return {
        "ndcg_at_10": metrics.get("full_catalogue", {}).get("model", {}).get("ndcg_at_10"),
        "hitrate_at_5": metrics.get("model", {}).get("hitrate_at_5"),
    }


def _rounded(manifest: dict[str, Any] | None) -> list[float | None]:
    return [None if value is None else round(value, 4) for value in _figures(manifest).values()]
