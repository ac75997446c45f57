"""`python -m batch rollback`."""

from __future__ import annotations

import sys

import click

from batch.loading import source
from batch.publishing import store
from batch.publishing.rollback import RolledBack, roll_back
from batch.runs import ledger
from contract.codec import encode_object
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.settings import Settings

EXAMPLE = """\b
Example:
  python -m batch rollback control --reason 'the topics view was empty last night'"""


@click.command(epilog=EXAMPLE)
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
    with source.connected(settings, f"overnight {who}") as engine, store.connected(settings) as client:
        ledger.create(engine)
        done = roll_back(engine, client, Keys(settings.key_prefix), variant, reason, who)
    click.echo(encode_object(vars(done)) if as_json else _told(done))


def _told(done: RolledBack) -> str:
    lines = [f"{done.variant} serves {done.good} again; {done.bad} is rolled back and never chosen again"]
    lines += [
        f"{run_id} is being built and may go live after this; stop it if it would be as bad"
        for run_id in done.building
    ]
    return "\n".join(lines)
