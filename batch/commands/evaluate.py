"""The command that judges the models: by time, folds of users, several cutoffs, or views from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import sqlalchemy as sa
from threadpoolctl import threadpool_limits

from batch import postgres, redis_client
from batch.commands.options import PastTime, chosen_variants, variant_option
from batch.evaluation import FIRST_FIGURES, RANKERS, render
from batch.evaluation.choose_recipe import choose_recipe
from batch.evaluation.evaluate import HITRATE, Evaluation, Figures, evaluated
from batch.evaluation.full_catalogue import MAX_USERS_OF_COMMANDS
from batch.evaluation.labelled_file import judge_views, live_runs, read_views
from batch.evaluation.protocols import JudgedCutoff, by_cutoffs, by_folds
from batch.runs import ledger
from batch.signals import signals_raise
from batch.training.dataset import load_dataset_now
from batch.training.fit import fit
from batch.variants import MODELS, Variant
from contract.keys import Keys
from contract.settings import Settings

OF_CUTOFF = (
    "full_catalogue_users",
    *(f"full_catalogue_{metric}" for metric in FIRST_FIGURES),
    *(f"full_catalogue_{ranker}_{FIRST_FIGURES[0]}" for ranker in RANKERS[1:]),
    "users", "views", HITRATE, f"random_{HITRATE}", f"popularity_{HITRATE}", "roc_auc",
)  # fmt: skip


@click.command(epilog="Example: python -m batch evaluate --variant control --folds 5")
@variant_option("Model to judge.")
@click.option(
    "--folds", type=click.IntRange(2, 100), help="Part the users; judge each part by the rest's model."
)
@click.option(
    "--cutoffs",
    type=click.IntRange(1, 100),
    help="So many cutoffs, each judged by models of what came before.",
)
@click.option("--windows", type=click.IntRange(1, 100), hidden=True, help="The same as --cutoffs.")
@click.option(
    "--views",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Judge the live models on labelled views: CSV, plain or .gz, "
    "with the columns timestamp,user_id,post_id,action,target.",
)
@click.option(
    "--as-of", type=PastTime(), help="Cutoff: later data are ignored. Default: the last interaction."
)
@click.option("--json", "as_json", is_flag=True, help="Print {variant: {metric: value}}.")
@click.pass_obj
def evaluate(
    settings: Settings,
    variant: str,
    folds: int | None,
    cutoffs: int | None,
    windows: int | None,
    views: Path | None,
    as_of: datetime | None,
    as_json: bool,
) -> None:
    """Judge the models on labels they have not learnt from, beside random order and popularity.

    By default on the night's holdout: the latest part of the views. First
    come the figures over the full catalogue with likes left out, which are
    those of the lists that users get; then those over what users viewed.
    """
    cutoffs = cutoffs or windows
    if sum(given is not None for given in (folds, cutoffs, views)) > 1:
        raise click.UsageError("--folds, --cutoffs and --views are three ways to judge; give one of them.")
    if views is not None and as_of is not None:
        raise click.UsageError("--views is judged as of the live runs' cutoffs; leave out --as-of.")
    names = chosen_variants(variant)
    chosen = [MODELS[name] for name in names]
    rolling: list[JudgedCutoff] = []
    if views is not None:
        found, told = _on_file(settings, names, views)
    elif folds is not None:
        found, told = _on_folds(settings, chosen, folds, as_of)
    elif cutoffs is not None:
        found, told, rolling = _on_cutoffs(settings, chosen, cutoffs, as_of)
    else:
        found, told = _on_holdout(settings, chosen, as_of)
    click.echo(_as_json(found, rolling) if as_json else _as_text(found, rolling, told))


def _on_holdout(
    settings: Settings, variants: list[Variant], as_of: datetime | None
) -> tuple[dict[str, Evaluation], str]:
    with _batch(settings) as engine, load_dataset_now(engine, settings, as_of, datetime.now(UTC)) as dataset:
        found = {}
        for each in variants:
            recipe = choose_recipe(each, dataset, settings).recipe
            model = fit(each, dataset, dataset.training, recipe, settings)
            found[each.name] = evaluated(model, dataset, settings.night.threads, MAX_USERS_OF_COMMANDS)
    split = dataset.split
    return found, f"time split, {split.holdout_start.isoformat()} to {split.cutoff.isoformat()}"


def _on_folds(
    settings: Settings, variants: list[Variant], folds: int, as_of: datetime | None
) -> tuple[dict[str, Evaluation], str]:
    with _batch(settings) as engine, load_dataset_now(engine, settings, as_of, datetime.now(UTC)) as dataset:
        found = {each.name: by_folds(each, dataset, folds, settings) for each in variants}
    split = dataset.split
    when = f"{split.history_end.isoformat()} to {split.cutoff.isoformat()}"
    return found, f"{folds} folds by user, {when}"


def _on_cutoffs(
    settings: Settings, variants: list[Variant], count: int, as_of: datetime | None
) -> tuple[dict[str, Evaluation], str, list[JudgedCutoff]]:
    with _batch(settings) as engine:
        rolling, found = by_cutoffs(
            engine, settings, variants, count, as_of, datetime.now(UTC), MAX_USERS_OF_COMMANDS
        )
    first, last = rolling[0].split.holdout_start, rolling[-1].split.cutoff
    return found, f"{count} cutoffs, {first.isoformat()} to {last.isoformat()}", rolling


def _on_file(settings: Settings, names: tuple[str, ...], file: Path) -> tuple[dict[str, Evaluation], str]:
    views = read_views(file)
    with _batch(settings) as engine, redis_client.connected(settings) as client:
        runs = live_runs(client, Keys(settings.stores.key_prefix), names)
        found = judge_views(engine, settings, runs, views, datetime.now(UTC))
    return found, f"{file} by " + ", ".join(run.run_id for run in runs)


@contextmanager
def _batch(settings: Settings) -> Iterator[sa.Engine]:
    """Lend an engine; linear algebra runs on one thread inside, as in a night, so that figures agree."""
    who = f"overnight {ledger.actor('batch evaluate')}"
    with (
        threadpool_limits(1, user_api="blas"),
        postgres.connected(settings, who) as engine,
        signals_raise(engine),
    ):
        yield engine


def _as_text(found: dict[str, Evaluation], rolling: list[JudgedCutoff], told: str) -> str:
    parts = []
    for name, each in found.items():
        if rolling:
            lines = [
                (
                    cutoff.split.holdout_start.isoformat(timespec="seconds"),
                    cutoff.split.cutoff.isoformat(timespec="seconds"),
                    cutoff.found[name].record() | {"users": cutoff.found[name].users},
                )
                for cutoff in rolling
            ]
            parts.append(f"{name}, cutoff by cutoff\n{render.cutoffs(lines)}")
        parts.append(render.of_variant(name, each, told))
    first = next(iter(found))
    parts += [
        render.difference(name, first, found[name].differences(found[first]), found[name].protocol)
        for name in found
        if name != first
    ]
    return "\n\n".join(parts)


def _as_json(found: dict[str, Evaluation], rolling: list[JudgedCutoff]) -> str:
    """Return {variant: {metric: value}}; variants after the first also have their difference to it."""
    first = next(iter(found))
    figures: dict[str, Figures] = {}
    for name, each in found.items():
        figures[name] = each.flat(None if name == first else (first, found[first]))
        for number, cutoff in enumerate(rolling, start=1):
            flat = cutoff.found[name].flat()
            figures[name] |= {f"cutoff_{number}_{metric}": flat[metric] for metric in OF_CUTOFF}
    return json.dumps(figures, indent=2)
