"""`python -m batch run`."""

from __future__ import annotations

from datetime import datetime

import click

from batch.alerts.alert import alert_on_failure
from batch.commands import runs
from batch.commands.options import PastTime, chosen_variants, variant_option
from batch.context import Stores, open_stores
from batch.formatting import echo
from batch.gate.rules import describe_refusal
from batch.pipeline import NightOptions, run_night
from batch.redis_client import live_run_id
from batch.runs import ledger
from batch.runs.ledger import State
from batch.signals import signals_raise
from contract.errors import RefusedError
from contract.experiment import VARIANTS
from contract.manifest import Manifest
from contract.settings import Settings


@click.command(epilog="Example: python -m batch run --variant control")
@variant_option("Model to build.")
@click.option(
    "--as-of",
    type=PastTime(),
    help="Cutoff: everything later is ignored. The lists go live as usual; `backtest` evaluates past "
    "nights without publishing. Default: the last interaction.",
)
@click.option(
    "--limit-users", type=click.IntRange(min=1), help="Score at most this many users, lowest ids first."
)
@click.option("--force", is_flag=True, help="Publish even what the gate refuses; the run's record says so.")
@click.pass_obj
def run(
    settings: Settings, variant: str, as_of: datetime | None, limit_users: int | None, force: bool
) -> None:
    """Run the night: load, train, evaluate, score all users against all posts, publish."""
    variants = chosen_variants(variant)
    with (
        alert_on_failure(settings, variants),
        open_stores(settings, ledger.actor("batch run")) as stores,
        signals_raise(stores.engine),
    ):
        manifests = run_night(stores, variants, NightOptions(as_of, limit_users, force))
        for manifest in manifests:
            echo(runs.render_summary(manifest))
        _check_refusals(stores, manifests)


def _check_refusals(stores: Stores, manifests: list[Manifest]) -> None:
    """Make a night's refusals an error, after all variants are done.

    Raises
    ------
    RefusedError
        Names every run that is not live, the broken rules, and by how much.
    """
    refused = [manifest for manifest in manifests if manifest.state == State.REFUSED]
    if refused:
        reasons = "; ".join(f"{run.run_id} is refused: {describe_refusal(run.gate)}" for run in refused)
        served = "What served before is unchanged"
        if not any(live_run_id(stores.redis, stores.keys, name) for name in VARIANTS):
            served = "No run is live yet, and serving answers 503 until one is"
        raise RefusedError(f"{reasons}. {served}; see `show`, or publish with `run --force`")
