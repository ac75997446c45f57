"""The command that searches for better parameters."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from batch import postgres
from batch.commands.options import Number, PastTime, variant_option
from batch.formatting import table
from batch.runs import ledger
from batch.signals import signals_raise
from batch.tuning.tune import DEFAULTS, Tuned
from batch.tuning.tune import tune as search
from batch.variants import MODELS
from contract.experiment import CONTROL
from contract.settings import Settings


@click.command(epilog="Example: python -m batch tune --variant test --minutes 60")
@variant_option("Model to tune.", default=CONTROL)
@click.option(
    "--minutes",
    type=Number(min=0, min_open=True),
    default=30,
    show_default=True,
    help="How long to search, beyond loading and the last measurement.",
)
@click.option("--trials", type=click.IntRange(min=1), help="End after so many trials, if that comes first.")
@click.option(
    "--as-of", type=PastTime(), help="Cutoff: later data are ignored. Default: the last interaction."
)
@click.pass_obj
def tune(
    settings: Settings, variant: str, minutes: float, trials: int | None, as_of: datetime | None
) -> None:
    """Search for better parameters, which the next run uses. Goes on where it was stopped."""
    who = f"overnight {ledger.actor('batch tune')}"
    with postgres.connected(settings, who) as engine, signals_raise(engine):
        found = search(engine, settings, MODELS[variant], as_of, minutes, trials)
    click.echo(describe(variant, found))


def describe(variant: str, found: Tuned) -> str:
    """Describe the parameters beside the defaults, the figures of both, and what was kept."""
    measured = found.measured
    parts = [f"{variant}, recipe {measured['recipe']}: {measured['trials']} trials, the defaults among them"]
    if found.file is None:
        parts += [*_figures("tuned on", measured["tuning"]), ""]
        parts += ["no trial beats the defaults by more than one standard error; nothing is kept"]
        return "\n".join(parts)
    parameters = [[name, DEFAULTS[name], value] for name, value in found.best.items()]
    parts += ["", table(["parameter", "default", "tuned"], parameters)]
    parts += _figures("tuned on", measured["tuning"]) + _figures("holdout", measured["holdout"])
    parts += ["", f"kept in {found.file}; the next run uses them"]
    ndcg = measured["holdout"]["ndcg_at_10"]
    if ndcg["high"] < 0:
        parts += ["but on the holdout they are worse than the defaults: better delete that file"]
    elif ndcg["low"] <= 0:
        parts += ["but the holdout does not tell them from the defaults: the interval contains 0"]
    return "\n".join(parts)


def _figures(name: str, part: dict[str, Any]) -> list[str]:
    metrics = {metric: figure for metric, figure in part.items() if isinstance(figure, dict)}
    columns = list(next(iter(metrics.values())))
    figures = [[metric, *map(figure.get, columns)] for metric, figure in metrics.items()]
    head = f"{name}: {part['users']} users, {part['from']} to {part['until']}"
    return ["", head, table(["metric", *(column.replace("_", " ") for column in columns)], figures)]
