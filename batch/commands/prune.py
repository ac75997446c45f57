"""`python -m batch prune`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from batch.layout import table
from batch.loading import source
from batch.publishing import store
from batch.publishing.prune import Removed, tidy
from batch.publishing.prune import prune as remove
from batch.runs import ledger, lock
from contract.codec import encode_object
from contract.settings import Settings

EXAMPLE = """\b
Example:
  python -m batch prune --dry-run"""


@click.command(epilog=EXAMPLE)
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
    with source.connected(settings, f"overnight {who}") as engine, store.connected(settings) as client:
        ledger.create(engine)
        if dry_run or (not yes and sys.stdin.isatty()):
            with lock.held(engine, settings.key_prefix):
                found = remove(engine, client, settings, dry_run=True)
            if found and not dry_run:
                click.echo(_told(found, "would be removed"), err=True)
                click.confirm("Remove them for good?", abort=True, err=True)
        if not dry_run:
            with lock.held(engine, settings.key_prefix):
                found = tidy(engine, client, settings, who)
    if as_json:
        click.echo(encode_object({"dry_run": dry_run, "runs": [asdict(run) for run in found]}))
    else:
        click.echo(_told(found, "would be removed" if dry_run else "removed"))


def _told(found: Sequence[Removed], done: str) -> str:
    if not found:
        return "there is nothing to remove"
    return f"{done}:\n" + table(["run", "why", "keys"], [[run.run_id, run.why, run.keys] for run in found])
