"""`python -m batch prune`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from batch import postgres, redis_client
from batch.formatting import table
from batch.publishing.go_live import RolledBack, roll_back
from batch.publishing.prune import Removed, tidy
from batch.publishing.prune import prune as remove
from batch.runs import ledger, lock
from contract.codec import encode_object
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.settings import Settings

PRUNE_EXAMPLE = """\b
Example:
  python -m batch prune --dry-run"""


@click.command(epilog=PRUNE_EXAMPLE)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask on a terminal either.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def prune(settings: Settings, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove the keys and models of runs that are not kept; every night does so too.

    What serves, the last OVERNIGHT_KEEP_RUNS runs of a variant, its newest
    refused run, and what was live within OVERNIGHT_PRUNE_AFTER_MINUTES stay.
    On a terminal it asks first; a script or cron is not asked.
    """
    who = ledger.actor("batch prune")
    with (
        postgres.connected(settings, f"overnight {who}") as engine,
        redis_client.connected(settings) as client,
    ):
        ledger.create(engine)
        if dry_run or (not yes and sys.stdin.isatty()):
            with lock.held(engine, settings.stores.key_prefix):
                found = remove(engine, client, settings, dry_run=True)
            if found and not dry_run:
                click.echo(_format_removed(found, "would be removed"), err=True)
                click.confirm("Remove them for good?", abort=True, err=True)
        if not dry_run:
            with lock.held(engine, settings.stores.key_prefix):
                found = tidy(engine, client, settings, who)
    if as_json:
        click.echo(encode_object({"dry_run": dry_run, "runs": [asdict(run) for run in found]}))
    else:
        click.echo(_format_removed(found, "would be removed" if dry_run else "removed"))


def _format_removed(found: Sequence[Removed], done: str) -> str:
    if not found:
        return "there is nothing to remove"
    return f"{done}:\n" + table(["run", "why", "keys"], [[run.run_id, run.why, run.keys] for run in found])


ROLLBACK_EXAMPLE = """\b
Example:
  python -m batch rollback control --reason 'the topics view was empty last night'"""


@click.command(epilog=ROLLBACK_EXAMPLE)
@click.argument("variant", type=click.Choice(VARIANTS))
@click.option("--reason", default="by hand", show_default=True, help="Why; the ledger keeps it.")
@click.option("--yes", is_flag=True, help="Do not ask on a terminal either.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def rollback(settings: Settings, variant: str, reason: str, yes: bool, as_json: bool) -> None:
    """Go back to the run that was live before; the one that is live is never chosen again.

    Takes effect at once, and does not wait for a night that is under way: that
    one may still go live afterwards. On a terminal it asks first; a script or
    cron is not asked.
    """
    if not yes and sys.stdin.isatty():
        click.confirm(f"Take the live run of {variant} out of service for good?", abort=True, err=True)
    who = ledger.actor("batch rollback")
    with (
        postgres.connected(settings, f"overnight {who}") as engine,
        redis_client.connected(settings) as client,
    ):
        ledger.create(engine)
        done = roll_back(engine, client, Keys(settings.stores.key_prefix), variant, reason, who)
    click.echo(encode_object(vars(done)) if as_json else _format_rollback(done))


def _format_rollback(done: RolledBack) -> str:
    lines = [f"{done.variant} serves {done.good} again; {done.bad} is rolled back and never chosen again"]
    lines += [
        f"{run_id} is being built and may go live after this; stop it if it would be as bad"
        for run_id in done.building
    ]
    return "\n".join(lines)
