"""`python -m batch run`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from batch import postgres, redis_client
from batch.alerts.alert import alert_on_failure
from batch.commands import runs
from batch.commands.options import PastTime, chosen_variants, variant_option
from batch.gate import rules
from batch.pipeline import Night, run_night
from batch.runs import ledger
from batch.runs.ledger import State
from batch.signals import signals_raise
from contract.errors import RefusedError
from contract.settings import Settings


@click.command(epilog="Example: python -m batch run --variant control")
@variant_option("Model to build.")
@click.option(
    "--as-of",
    type=PastTime(),
    help="Cutoff: nothing later is seen, and the lists go live as any others do; `backtest` judges past "
    "nights without publishing. Default: the last interaction.",
)
@click.option("--limit-users", type=click.IntRange(min=1), help="Score only so many users, lowest ids first.")
@click.option("--force", is_flag=True, help="Publish even what the gate refuses; the run's record tells.")
@click.pass_obj
def run(
    settings: Settings, variant: str, as_of: datetime | None, limit_users: int | None, force: bool
) -> None:
    """Run the night: load, learn, judge, score all users against all posts, publish."""
    who = ledger.actor("batch run")
    variants = chosen_variants(variant)
    with (
        alert_on_failure(settings, variants),
        postgres.connected(settings, f"overnight {who}") as engine,
        signals_raise(engine),
        redis_client.connected(settings) as client,
    ):
        night = Night(settings, engine, client, who, as_of, limit_users, force)
        manifests = run_night(night, variants)
        for manifest in manifests:
            click.echo(runs.summary(manifest))
        _check_refusals(manifests)


def _check_refusals(manifests: list[dict[str, Any]]) -> None:
    """Make a night's refusals an error, once all of it is done.

    Raises
    ------
    RefusedError
        Names every run that did not go live, the broken rules, and by how much.
    """
    refused = [found for found in manifests if found["state"] == State.REFUSED]
    if refused:
        told = "; ".join(f"{found['run_id']} is refused: {rules.refusal(found['gate'])}" for found in refused)
        raise RefusedError(
            f"{told}. What served before is unchanged; see `show`, or publish with `run --force`"
        )
