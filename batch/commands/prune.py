"""`python -m batch prune`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from batch.context import open_stores
from batch.formatting import echo, table
from batch.publishing.go_live import RolledBack, roll_back
from batch.publishing.prune import Removed, clean_up
from batch.publishing.prune import prune as remove
from batch.runs import ledger, lock
from contract.codec import encode_object
from contract.experiment import VARIANTS
from contract.settings import Settings

PRUNE_EXAMPLE = """\b
Example:
  python -m batch prune --dry-run"""


@click.command(epilog=PRUNE_EXAMPLE)
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask, even on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def prune(settings: Settings, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove the keys and models of runs that are not kept; every night does so too.

    These are kept: the live run, the last OVERNIGHT_KEEP_RUNS runs of a variant, its newest refused run,
    and runs that were live within OVERNIGHT_PRUNE_AFTER_MINUTES. On a terminal it asks first; in a script
    or cron it does not.
    """
    with open_stores(settings, ledger.actor("batch prune")) as stores:
        ledger.create(stores.engine)
        if dry_run or (not yes and sys.stdin.isatty()):
            with lock.hold(stores.engine, stores.keys.prefix):
                found = remove(stores, dry_run=True)
            if found and not dry_run:
                echo(_format_removed(found, "would be removed"), err=True)
                click.confirm("Remove them for good?", abort=True, err=True)
        if not dry_run:
            with lock.hold(stores.engine, stores.keys.prefix):
                found = clean_up(stores)
    if as_json:
        echo(encode_object({"dry_run": dry_run, "runs": [asdict(run) for run in found]}))
    else:
        echo(_format_removed(found, "would be removed" if dry_run else "removed"))


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
@click.option("--yes", is_flag=True, help="Do not ask, even on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def rollback(settings: Settings, variant: str, reason: str, yes: bool, as_json: bool) -> None:
    """Make the previous run live again; the bad run is never chosen again.

    It takes effect at once and does not wait for a running night, which may go live afterwards. On a
    terminal it asks first; in a script or cron it does not.
    """
    if not yes and sys.stdin.isatty():
        click.confirm(f"Take the live run of {variant} out of service for good?", abort=True, err=True)
    with open_stores(settings, ledger.actor("batch rollback"), interactive=True) as stores:
        ledger.create(stores.engine)
        done = roll_back(stores, variant, reason=reason)
    echo(encode_object(vars(done)) if as_json else _format_rollback(done))


def _format_rollback(done: RolledBack) -> str:
    lines = [f"{done.variant} serves {done.good} again; {done.bad} is rolled back and never chosen again"]
    lines += [
        f"{run_id} is being built and may go live after this; stop it if it would be as bad"
        for run_id in done.building
    ]
    return "\n".join(lines)
