"""The commands `evaluate` (holdout, folds, cutoffs, views from a file) and `backtest` (past nights)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa
from threadpoolctl import threadpool_limits

from batch import formatting, postgres, redis_client
from batch.commands.options import PastTime, chosen_variants, json_option, variant_option
from batch.evaluation import MODEL, PRIMARY_METRIC, PRIMARY_METRICS, RANKERS, render
from batch.evaluation.bootstrap import Difference
from batch.evaluation.evaluate import CATALOGUE_PREFIX, HITRATE, Evaluation, FlatMetrics, MetricDifference
from batch.evaluation.full_catalogue import MAX_USERS_OF_COMMANDS, CatalogueResult
from batch.evaluation.holdout import evaluate_holdout
from batch.evaluation.labelled_file import evaluate_views, find_live_runs, parse_ids, read_views
from batch.evaluation.learner import choose_recipe
from batch.evaluation.protocols import (
    CutoffEvaluation,
    PastNight,
    evaluate_cutoffs,
    evaluate_folds,
    find_cutoffs,
)
from batch.evaluation.protocols import backtest as evaluate_past_nights
from batch.runs import ledger
from batch.signals import signals_raise
from batch.training.dataset import open_dataset
from batch.training.fit import fit
from batch.variants import MODELS, Variant
from contract.keys import Keys
from contract.settings import Settings

CUTOFF_METRICS = (
    f"{CATALOGUE_PREFIX}users",
    *(f"{CATALOGUE_PREFIX}{metric}" for metric in PRIMARY_METRICS),
    *(f"{CATALOGUE_PREFIX}{ranker}_{PRIMARY_METRIC}" for ranker in RANKERS[1:]),
    "users", "views", HITRATE, f"random_{HITRATE}", f"popularity_{HITRATE}", "roc_auc",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """Variant -> its evaluation; where the rows came from; and each cutoff, if there are several."""

    evaluations: dict[str, Evaluation]
    source: str
    cutoffs: tuple[CutoffEvaluation, ...] = ()


@click.command(epilog="Example: python -m batch evaluate --variant control --folds 5")
@variant_option("Model to evaluate.")
@click.option(
    "--folds",
    type=click.IntRange(2, 100),
    help="Split the users; evaluate each fold by a model of the other folds.",
)
@click.option(
    "--cutoffs",
    type=click.IntRange(1, 100),
    help="Number of cutoffs; at each, models are trained on earlier data only.",
)
@click.option("--windows", type=click.IntRange(1, 100), hidden=True, help="The same as --cutoffs.")
@click.option(
    "--views",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Evaluate the live models on labelled views: CSV, plain or .gz, "
    "with the columns timestamp,user_id,post_id,action,target.",
)
@click.option(
    "--as-of", type=PastTime(), help="Cutoff: later data are ignored. Default: the last interaction."
)
@click.option("--json", "as_json", is_flag=True, help="Print {variant: {metric: value}}.")
@click.pass_obj
def evaluate(
    settings: Settings,
    *,
    variant: str,
    folds: int | None,
    cutoffs: int | None,
    windows: int | None,
    views: Path | None,
    as_of: datetime | None,
    as_json: bool,
) -> None:
    """Evaluate the models on labels they have not learnt from, with random order and popularity.

    By default on the night's holdout, the latest part of the views. The metrics over the full
    catalogue with likes left out come first: they describe the lists that users get. Those over what
    users viewed follow.
    """
    cutoffs = cutoffs or windows
    if sum(given is not None for given in (folds, cutoffs, views)) > 1:
        raise click.UsageError("--folds, --cutoffs and --views exclude each other; give one of them.")
    if views is not None and as_of is not None:
        raise click.UsageError("--views is evaluated as of the live runs' cutoffs; leave out --as-of.")
    names = chosen_variants(variant)
    chosen = [MODELS[name] for name in names]
    if views is not None:
        result = _on_file(settings, names, views)
    elif folds is not None:
        result = _on_folds(settings, chosen, folds, as_of)
    elif cutoffs is not None:
        result = _on_cutoffs(settings, chosen, cutoffs, as_of)
    else:
        result = _on_holdout(settings, chosen, as_of)
    formatting.echo(_as_json(result) if as_json else _as_text(result))


def _on_holdout(settings: Settings, variants: list[Variant], as_of: datetime | None) -> Result:
    with (
        open_engine(settings, "evaluate") as engine,
        open_dataset(engine, settings, as_of, datetime.now(UTC)) as dataset,
    ):
        evaluations = {}
        for each in variants:
            recipe = choose_recipe(each, dataset, settings).recipe
            model = fit(each, dataset, windows=dataset.training, recipe=recipe, settings=settings)
            holdout = evaluate_holdout(model, dataset, settings, MAX_USERS_OF_COMMANDS)
            evaluations[each.name] = holdout.metrics
    split = dataset.split
    source = f"time split, {split.holdout_start.isoformat()} to {split.cutoff.isoformat()}"
    return Result(evaluations, source)


def _on_folds(settings: Settings, variants: list[Variant], folds: int, as_of: datetime | None) -> Result:
    with (
        open_engine(settings, "evaluate") as engine,
        open_dataset(engine, settings, as_of, datetime.now(UTC)) as dataset,
    ):
        evaluations = {each.name: evaluate_folds(each, dataset, folds, settings) for each in variants}
    split = dataset.split
    source = f"{folds} folds by user, {split.history_end.isoformat()} to {split.cutoff.isoformat()}"
    return Result(evaluations, source)


def _on_cutoffs(settings: Settings, variants: list[Variant], count: int, as_of: datetime | None) -> Result:
    with open_engine(settings, "evaluate") as engine:
        cutoffs, evaluations = evaluate_cutoffs(
            engine,
            settings,
            variants,
            count,
            as_of=as_of,
            clock=datetime.now(UTC),
            max_users=MAX_USERS_OF_COMMANDS,
        )
    first, last = cutoffs[0].split.holdout_start, cutoffs[-1].split.cutoff
    source = f"{count} cutoffs, {first.isoformat()} to {last.isoformat()}"
    return Result(evaluations, source, tuple(cutoffs))


def _on_file(settings: Settings, names: tuple[str, ...], file: Path) -> Result:
    views = read_views(file)
    with open_engine(settings, "evaluate") as engine, redis_client.connected(settings) as client:
        runs = find_live_runs(client, Keys(settings.stores.key_prefix), names)
        views = parse_ids(file, views, runs[0].ids)
        evaluations = evaluate_views(engine, settings, runs, views, datetime.now(UTC))
    return Result(evaluations, f"{file} by " + ", ".join(run.run_id for run in runs))


@contextmanager
def open_engine(settings: Settings, command: str) -> Iterator[sa.Engine]:
    """Connect a command to Postgres; linear algebra uses one thread inside, as in a night.

    More threads sum in another order, so the metrics would differ from those of a night.
    """
    name = f"overnight {ledger.actor(f'batch {command}')}"
    with (
        threadpool_limits(1, user_api="blas"),
        postgres.connected(settings, name) as engine,
        signals_raise(engine),
    ):
        yield engine


def _as_text(result: Result) -> str:
    parts = []
    for name, evaluation in result.evaluations.items():
        if result.cutoffs:
            lines = [_cutoff_line(cutoff, name) for cutoff in result.cutoffs]
            parts.append(f"{name}, cutoff by cutoff\n{render.render_cutoffs(lines)}")
        parts.append(render.render_variant(name, evaluation, result.source))
    first, *others = result.evaluations
    baseline = result.evaluations[first]
    for name in others:
        evaluation = result.evaluations[name]
        differences = evaluation.differences(baseline)
        parts.append(render.render_differences(name, first, differences, evaluation.protocol))
    return "\n\n".join(parts)


def _cutoff_line(cutoff: CutoffEvaluation, name: str) -> render.CutoffLine:
    metrics = cutoff.holdouts[name].metrics
    return render.CutoffLine(
        cutoff.split.holdout_start.isoformat(timespec="seconds"),
        cutoff.split.cutoff.isoformat(timespec="seconds"),
        metrics.record() | {"users": metrics.users},
    )


def _as_json(result: Result) -> str:
    """Return {variant: {metric: value}}; variants after the first also have their difference to it."""
    first = next(iter(result.evaluations))
    metrics: dict[str, FlatMetrics] = {}
    for name, evaluation in result.evaluations.items():
        metrics[name] = evaluation.flatten(None if name == first else (first, result.evaluations[first]))
        for number, cutoff in enumerate(result.cutoffs, start=1):
            flat = cutoff.holdouts[name].metrics.flatten()
            metrics[name] |= {f"cutoff_{number}_{metric}": flat[metric] for metric in CUTOFF_METRICS}
    return json.dumps(metrics, indent=2)


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
    formatting.echo(
        formatting.as_json(_nights_as_record(nights, pooled)) if as_json else _nights_as_text(nights, pooled)
    )


def _nights_as_record(nights: list[PastNight], pooled: dict[str, CatalogueResult]) -> dict[str, Any]:
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


def _nights_as_text(nights: list[PastNight], pooled: dict[str, CatalogueResult]) -> str:
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
        parts.append(render.render_differences(name, first, differences, pooled[first].protocol))
    return "\n\n".join(parts)
