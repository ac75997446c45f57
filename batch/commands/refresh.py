"""`python -m batch refresh`."""

from __future__ import annotations

import json

import click

from batch import postgres, redis_client
from batch.commands.options import chosen_variants, variant_option
from batch.formatting import table
from batch.refresh.refresh import NothingLiveError, Refresh
from batch.refresh.refresh import refresh as refresh_live_runs
from batch.runs import ledger
from batch.signals import signals_raise
from contract.settings import Settings

SHOWN = ("variant", "run_id", "users", "new_users", "new_posts", "refreshed_users")
HEAD = ("variant", "run", "users", "of them new", "new posts", "users since the night")


@click.command(epilog="Example: python -m batch refresh --variant control --json")
@variant_option("Whose live run.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, an object per run, with stages.")
@click.option(
    "--quiet",
    is_flag=True,
    help="Say nothing if nothing changed or no run is live yet, and exit 0: for schedules.",
)
@click.pass_obj
def refresh(settings: Settings, variant: str, as_json: bool, quiet: bool) -> None:
    """Write the lists of users who acted since the night, and of new users, anew into the live runs.

    What they liked since is left out of their lists, and new posts are scored
    for them too. The lists of all others stay as they are.
    """
    who = ledger.actor("batch refresh")
    with (
        postgres.connected(settings, f"overnight {who}") as engine,
        signals_raise(engine),
        redis_client.connected(settings) as client,
    ):
        try:
            done = refresh_live_runs(Refresh(settings, engine, client), chosen_variants(variant))
        except NothingLiveError:
            if not quiet:
                raise
            return
    if quiet:
        done = [record for record in done if record["users"]]
    if as_json:
        click.echo(json.dumps(done))
    elif done:
        click.echo(table(HEAD, [[record[name] for name in SHOWN] for record in done]))
