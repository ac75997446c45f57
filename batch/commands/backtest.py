"""The command `backtest`: evaluate the lists of past nights on later likes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from batch import formatting
from batch.commands.evaluate import open_engine
from batch.commands.options import PastTime, chosen_variants, json_option, variant_option
from batch.evaluation import MODEL, render
from batch.evaluation.backtest import PastNight, find_cutoffs
from batch.evaluation.backtest import backtest as evaluate_past_nights
from batch.evaluation.bootstrap import Difference
from batch.evaluation.catalogue_case import PROTOCOL
from batch.evaluation.evaluate import CATALOGUE_PREFIX, MetricDifference
from batch.evaluation.full_catalogue import MAX_USERS_OF_COMMANDS, CatalogueResult
from batch.variants import MODELS
from contract.settings import Settings


@click.command(epilog="Example: python -m batch backtest --variant control --cutoffs 4")
@variant_option("Model to evaluate.")
@click.option(
    "--cutoffs",
    type=click.IntRange(1, 100),
    help="Number of past nights, each from the start of a holdout to the next. Default: 1.",
)
@click.option("--at", type=PastTime(), multiple=True, help="A night as of this time; may be repeated.")
@json_option
@click.pass_obj
def backtest(
    settings: Settings, *, variant: str, cutoffs: int | None, at: tuple[datetime, ...], as_json: bool
) -> None:
    """Build lists as of past cutoffs, as `run --as-of` would, and evaluate them on later likes.

    The later likes end at the next cutoff, or now. Nothing is published, and Redis is not used.
    """
    if cutoffs is not None and at:
        raise click.UsageError("--cutoffs and --at exclude each other; give one of them.")
    chosen = [MODELS[name] for name in chosen_variants(variant)]
    clock = datetime.now(UTC)
    with open_engine(settings, "backtest") as engine:
        times = list(at) or find_cutoffs(engine, settings, cutoffs or 1, clock)
        nights, pooled = evaluate_past_nights(
            engine, settings, chosen, times, clock=clock, max_users=MAX_USERS_OF_COMMANDS
        )
    click.echo(formatting.as_json(_record(nights, pooled)) if as_json else _as_text(nights, pooled))


def _record(nights: list[PastNight], pooled: dict[str, CatalogueResult]) -> dict[str, Any]:
    """Return {variant: {pooled, cutoffs, minus_VARIANT}}, each as `CatalogueResult.record` gives it."""
    first = next(iter(pooled))
    record: dict[str, Any] = {}
    for name, result in pooled.items():
        cutoffs = [
            {"cutoff": night.cutoff, "until": night.until, **night.results[name].record()} for night in nights
        ]
        record[name] = {"pooled": result.record(), "cutoffs": cutoffs}
        if name != first:
            record[name][f"minus_{first}"] = _differences(pooled, name, first)
    return record


def _differences(pooled: dict[str, CatalogueResult], name: str, first: str) -> dict[str, Difference]:
    return pooled[name].rankers[MODEL].minus(pooled[first].rankers[MODEL])


def _as_text(nights: list[PastNight], pooled: dict[str, CatalogueResult]) -> str:
    """Render a table of the cutoffs, and the pooled metrics, of each variant."""
    parts, first = [], next(iter(pooled))
    for name, result in pooled.items():
        lines = [
            render.CutoffLine(
                night.cutoff.isoformat(timespec="seconds"),
                night.until.isoformat(timespec="seconds"),
                night.results[name].record(),
            )
            for night in nights
        ]
        parts.append(f"{name}, night by night\n{render.render_cutoffs(lines, viewed=False)}")
        parts.append("\n".join(render.render_catalogue(result.record(), f"{name}, ")))
    for night in nights:
        result = night.results[first]
        if not result.users["all"]:
            parts.append(
                f"no likes to evaluate after {night.cutoff.isoformat()}: {result.insufficient_because} until "
                f"{night.until.isoformat(timespec='seconds')}"
            )
    for name in list(pooled)[1:]:
        differences = [
            MetricDifference(CATALOGUE_PREFIX, metric, difference)
            for metric, difference in _differences(pooled, name, first).items()
        ]
        parts.append(render.render_differences(name, first, differences, PROTOCOL))
    return "\n\n".join(parts)
