"""The command `tune`: search for better parameters."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from batch.commands.evaluate import open_engine
from batch.commands.options import Number, PastTime, variant_option
from batch.evaluation import PRIMARY_METRIC
from batch.formatting import echo, table
from batch.tuning.tune import DEFAULTS, TuningResult
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
    help="Duration of the search, without loading and the final measurement.",
)
@click.option("--trials", type=click.IntRange(min=1), help="End after this many trials, if that comes first.")
@click.option(
    "--as-of", type=PastTime(), help="Cutoff: later data are ignored. Default: the last interaction."
)
@click.pass_obj
def tune(
    settings: Settings, *, variant: str, minutes: float, trials: int | None, as_of: datetime | None
) -> None:
    """Search for better parameters, which the next run uses. Continues an interrupted search."""
    with open_engine(settings, "tune") as engine:
        result = search(engine, settings, MODELS[variant], as_of=as_of, minutes=minutes, trials=trials)
    echo(render_result(variant, result))


def render_result(variant: str, result: TuningResult) -> str:
    """Render the parameters with the defaults, the metrics of both, and what was saved."""
    measured = result.measured
    parts = [f"{variant}, recipe {measured['recipe']}: {measured['trials']} trials, including the defaults"]
    if result.file is None:
        parts += [*_render_metrics("tuned on", measured["tuning"]), ""]
        parts += ["no trial beats the defaults by more than one standard error; nothing is saved"]
        return "\n".join(parts)
    parameters = [[name, DEFAULTS[name], value] for name, value in result.best.items()]
    parts += ["", table(["parameter", "default", "tuned"], parameters)]
    parts += _render_metrics("tuned on", measured["tuning"])
    parts += _render_metrics("holdout", measured["holdout"])
    parts += ["", f"saved in {result.file}; the next run uses them"]
    ndcg = measured["holdout"][PRIMARY_METRIC]
    if ndcg["high"] < 0:
        parts += ["but on the holdout they are worse than the defaults: consider deleting that file"]
    elif ndcg["low"] <= 0:
        parts += ["but on the holdout they do not differ from the defaults: the interval contains 0"]
    return "\n".join(parts)


def _render_metrics(name: str, part: dict[str, Any]) -> list[str]:
    metrics = {metric: values for metric, values in part.items() if isinstance(values, dict)}
    columns = list(next(iter(metrics.values())))
    rows = [[metric, *map(values.get, columns)] for metric, values in metrics.items()]
    head = f"{name}: {part['users']} users, {part['from']} to {part['until']}"
    return ["", head, table(["metric", *(column.replace("_", " ") for column in columns)], rows)]
