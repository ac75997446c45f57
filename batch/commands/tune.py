"""The command that searches for better parameters."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from batch.commands.moment import Moment
from batch.commands.number import Number
from batch.interrupt import signals_raise
from batch.layout import table
from batch.loading import source
from batch.runs import ledger
from batch.tuning.tune import DEFAULTS, Tuned
from batch.tuning.tune import tune as search
from batch.variants import VARIANTS
from contract.experiment import CONTROL
from contract.settings import Settings


@click.command(epilog="Example: python -m batch tune --variant test --minutes 60")
@click.option(
    "--variant", type=click.Choice([*VARIANTS]), default=CONTROL, show_default=True, help="Model to tune."
)
@click.option(
    "--minutes",
    type=Number(min=0, min_open=True),
    default=30,
    show_default=True,
    help="How long to search, beyond loading and the last measurement.",
)
@click.option("--trials", type=click.IntRange(min=1), help="End after so many trials, if that comes first.")
@click.option("--as-of", type=Moment(), help="Cutoff: nothing later is seen. Default: the last interaction.")
@click.pass_obj
def tune(
    settings: Settings, variant: str, minutes: float, trials: int | None, as_of: datetime | None
) -> None:
    """Search for better parameters, which the next run uses. Goes on where it was stopped."""
    who = f"overnight {ledger.actor('batch tune')}"
    with source.connected(settings, who) as engine, signals_raise(engine):
        found = search(engine, settings, VARIANTS[variant], as_of, minutes, trials)
    click.echo(told(variant, found))


def told(variant: str, found: Tuned) -> str:
    """Tell the parameters beside the defaults, how both measure, and what comes of it."""
    measured = found.measured
    parts = [f"{variant}: {measured['trials']} trials, the defaults among them"]
    if found.file is None:
        return f"{parts[0]}; none beats the defaults, nothing is kept"
    parameters = [[name, DEFAULTS[name], value] for name, value in found.best.items()]
    parts += ["", table(["parameter", "default", "tuned"], parameters)]
    parts += _figures("tuned on", measured["tuning"]) + _figures("holdout", measured["holdout"])
    parts += ["", f"kept in {found.file}; the next run uses them"]
    loss = measured["holdout"]["log_loss"]
    if loss["difference"] > loss["standard_error"]:
        parts += ["but on the holdout they are worse than the defaults: better delete that file"]
    return "\n".join(parts)


def _figures(name: str, part: dict[str, Any]) -> list[str]:
    figures = [
        [metric, *(figure.get(column) for column in ("default", "tuned", "difference", "standard_error"))]
        for metric, figure in part.items()
        if isinstance(figure, dict)
    ]
    head = f"{name}: {part['rows']} rows, {part['from']} to {part['until']}"
    return ["", head, table(["metric", "default", "tuned", "difference", "its error"], figures)]
