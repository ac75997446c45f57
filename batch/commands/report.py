"""The command that finds a run's report."""

from __future__ import annotations

import webbrowser

import click

from batch.loading import source
from batch.reporting.page import report_path
from batch.runs import ledger
from contract.errors import OvernightError
from contract.settings import Settings


@click.command(epilog="Example: python -m batch report 20261122T030000Z-control")
@click.argument("run_id", metavar="RUN")
@click.option("--open", "in_browser", is_flag=True, help="Open it in a browser as well.")
@click.pass_obj
def report(settings: Settings, run_id: str, in_browser: bool) -> None:
    """Print where a run's report is: one HTML file to look at, written by the run beside its model."""
    with source.connected(settings) as engine:
        ledger.create(engine)
        found = ledger.find(engine, run_id)
    if found is None:
        raise OvernightError(f"there is no run {run_id}; `python -m batch runs` lists them")
    path = report_path(settings, run_id)
    if not path.is_file():
        raise OvernightError(
            f"{run_id} is {found[0].state} and has no report at {path}; a run that failed has none, one no "
            "longer kept has none any more, one made elsewhere has it in the OVERNIGHT_MODEL_DIR there"
        )
    click.echo(path)
    if in_browser and not webbrowser.open(path.as_uri()):
        raise OvernightError("no browser could be started; open the file yourself, or set BROWSER")
