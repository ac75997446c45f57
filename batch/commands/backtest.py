"""The command that judges lists of past nights by what followed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click
from threadpoolctl import threadpool_limits

from batch import formatting, postgres
from batch.commands.options import PastTime, chosen_variants, json_option, variant_option
from batch.evaluation import MODEL, render
from batch.evaluation.backtest import PastNight, find_cutoffs
from batch.evaluation.backtest import backtest as judge_past_nights
from batch.evaluation.catalogue_case import PROTOCOL
from batch.evaluation.full_catalogue import MAX_USERS_OF_COMMANDS, CatalogueFigures
from batch.runs import ledger
from batch.signals import signals_raise
from batch.variants import MODELS
from contract.settings import Settings


@click.command(epilog="Example: python -m batch backtest --variant control --cutoffs 4")
@variant_option("Model to judge.")
@click.option(
    "--cutoffs",
    type=click.IntRange(1, 100),
    help="So many past nights, each from the start of a holdout to the next. Default: 1.",
)
@click.option("--at", type=PastTime(), multiple=True, help="Time of a past night; may be repeated.")
@json_option
@click.pass_obj
def backtest(
    settings: Settings, variant: str, cutoffs: int | None, at: tuple[datetime, ...], as_json: bool
) -> None:
    """Build lists as of past cutoffs, as `run --as-of` would, and judge them by what followed.

    What followed ends at the next cutoff, or now. Nothing is published and
    Redis is not written to.
    """
    if cutoffs is not None and at:
        raise click.UsageError("--cutoffs and --at both say which nights; give one of them.")
    chosen = [MODELS[name] for name in chosen_variants(variant)]
    who, clock = f"overnight {ledger.actor('batch backtest')}", datetime.now(UTC)
    with (
        threadpool_limits(1, user_api="blas"),  # as in a night, so that figures agree
        postgres.connected(settings, who) as engine,
        signals_raise(engine),
    ):
        when = list(at) or find_cutoffs(engine, settings, cutoffs or 1, clock)
        nights, together = judge_past_nights(engine, settings, chosen, when, clock, MAX_USERS_OF_COMMANDS)
    click.echo(formatting.as_json(_record(nights, together)) if as_json else _as_text(nights, together))


def _record(nights: list[PastNight], together: dict[str, CatalogueFigures]) -> dict[str, Any]:
    """Return {variant: {pooled, cutoffs, minus_VARIANT}}, each with what `CatalogueFigures.record` gives."""
    first = next(iter(together))
    found: dict[str, Any] = {}
    for name, figures in together.items():
        cutoffs = [
            {"cutoff": night.cutoff, "until": night.until, **night.found[name].record()} for night in nights
        ]
        found[name] = {"pooled": figures.record(), "cutoffs": cutoffs}
        if name != first:
            found[name][f"minus_{first}"] = figures.rankers[MODEL].minus(together[first].rankers[MODEL])
    return found


def _as_text(nights: list[PastNight], together: dict[str, CatalogueFigures]) -> str:
    """Render a table of the cutoffs, and the pooled figures, of each variant."""
    parts, first = [], next(iter(together))
    for name, figures in together.items():
        lines = [
            (
                night.cutoff.isoformat(timespec="seconds"),
                night.until.isoformat(timespec="seconds"),
                night.found[name].record(),
            )
            for night in nights
        ]
        parts.append(f"{name}, night by night\n{render.cutoffs(lines, viewed=False)}")
        parts.append("\n".join(render.full_catalogue(figures.record(), f"{name}, ")))
    silent = [night for night in nights if not night.found[first].users["all"]]
    parts += [
        f"nothing followed {night.cutoff.isoformat()}: {night.found[first].cannot_judge} until "
        f"{night.until.isoformat(timespec='seconds')}"
        for night in silent
    ]
    for name in list(together)[1:]:
        differences = together[name].rankers[MODEL].minus(together[first].rankers[MODEL])
        found = [("full_catalogue_", metric, values) for metric, values in differences.items()]
        parts.append(render.difference(name, first, found, PROTOCOL))
    return "\n\n".join(parts)
