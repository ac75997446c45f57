"""`python -m batch refresh`."""

from __future__ import annotations

import json
import logging

import click

from batch.commands.options import chosen_variants, variant_option
from batch.context import open_stores
from batch.formatting import echo, table
from batch.refresh.refresh import NothingLiveError
from batch.refresh.refresh import refresh as refresh_live_runs
from batch.runs import ledger
from batch.signals import signals_raise
from contract.settings import Settings

log = logging.getLogger("batch")

SHOWN = ("variant", "run_id", "users", "new_users", "new_posts", "refreshed_users")
HEAD = ("variant", "run", "users", "of them new", "new posts", "users since the night")


@click.command(epilog="Example: python -m batch refresh --variant control --json")
@variant_option("Whose live run.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, an object per run, with stages.")
@click.option(
    "--quiet",
    is_flag=True,
    help="Print nothing and exit 0 if nothing changed or no run is live: for schedules.",
)
@click.pass_obj
def refresh(settings: Settings, variant: str, as_json: bool, quiet: bool) -> None:
    """Score users who acted since the night and new users, and write their lists into the live runs.

    Posts that they liked since are left out, and new posts are scored too. The lists of other users do
    not change.
    """
    with (
        open_stores(settings, ledger.actor("batch refresh")) as stores,
        signals_raise(stores.engine),
    ):
        log.log(logging.DEBUG if quiet else logging.INFO, "%s", stores.describe())
        try:
            done = refresh_live_runs(stores, chosen_variants(variant))
        except NothingLiveError:
            if not quiet:
                raise
            return
    if quiet:
        done = [record for record in done if record["users"]]
    if as_json:
        echo(json.dumps(done))
    elif done:
        echo(table(HEAD, [[record[name] for name in SHOWN] for record in done]))
