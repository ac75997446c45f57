"""Tunes the forest's parameters on likes from before the holdout.

    |-------------- what the night's model learns from -------------|-- holdout --|
    |---- history ----|---- training labels ----|---- tuned on -----|

What lies after the start of the holdout is left out, as if the night were that
of then. Its last labels judge each trial, so that the holdout stays what it
was: labels that nothing was chosen by. The defaults and the best parameters
are both measured on it once, at the end.

    choose the recipe with the default parameters
    for each trial:
        fit, rank all known posts but those liked before, take NDCG@10 of the next likes
    keep the best if it is better than the defaults by more than one standard error, paired by user
    measure the defaults and the best on the holdout

NDCG@10 over the full catalogue is the first figure of `evaluate` and of the
gate. A log loss over views would not do: a model that learns from likes among
all posts gives no probability of a like of what is viewed.

The best of many trials on one period is best partly by luck: it overfits the
users of that period. A best within one standard error of the defaults is
therefore not kept. This does not remove the optimism of the maximum; the
figures on the holdout are free of it.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from threadpoolctl import threadpool_limits

from batch.evaluation.choose_recipe import choose_recipe, paired_difference
from batch.evaluation.full_catalogue import FIRST
from batch.progress import Stages
from batch.training.dataset import load_dataset_now
from batch.training.fit import PARAMETERS
from batch.training.parameters import TUNABLE, keep_parameters, parameters_file, parameters_for
from batch.training.recipe import Recipe
from batch.tuning.period import Period, ScoredModel, compare, compare_values
from batch.tuning.study import Budget, Parameters, Study, TrialScore
from batch.variants import Variant
from contract.settings import Settings

log = logging.getLogger("batch")

DEFAULTS: Parameters = {name: PARAMETERS[name] for name in TUNABLE}


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes
    ----------
    best
        The parameters kept; the defaults where no trial beats them by more than one standard error.
    measured
        What they were measured on, and how they stand beside the defaults.
    file
        Where they are kept for the next run; None where the defaults stay.
    """

    best: Parameters
    measured: dict[str, Any]
    file: Path | None


def tune(
    engine: sa.Engine,
    settings: Settings,
    variant: Variant,
    as_of: datetime | None,
    minutes: float,
    trials: int | None,
) -> Tuned:
    """Search for better parameters, keep them for the next run, and measure them on the holdout.

    Raises
    ------
    ModelError
        Too few users can be judged, before the holdout or on it; raised before the search.
    OvernightError
        The views cannot be learnt from, or the folder of models cannot be written.
    """
    now, stages, kept = datetime.now(UTC), Stages(), parameters_for(variant.name, settings)
    # One thread for linear algebra, as in the night: the same data must give the same study.
    with threadpool_limits(1, user_api="blas"), ExitStack() as stack:
        with stages.stage("load", "interactions") as stats:
            dataset = stack.enter_context(load_dataset_now(engine, settings, as_of, now))
            before_holdout = load_dataset_now(engine, settings, dataset.split.holdout_start, now)
            earlier = stack.enter_context(before_holdout)
            stats |= {"interactions": dataset.interactions}
        period, holdout = (
            Period.build(earlier, settings.night.seed),
            Period.build(dataset, settings.night.seed),
        )
        with stages.stage("choose", "recipes") as stats:
            choice = choose_recipe(variant, earlier, settings, {})
            stats |= {"recipes": len(choice.candidates), "users": choice.users}
        recipe = choice.recipe
        log.info("%s learns %s in all trials: %s", variant.name, recipe.name, choice.why)
        with stages.stage("judge_defaults", "users") as stats:
            default = period.score(variant, recipe, settings, {})
            of_defaults = default.lists.values[FIRST]
            stats |= {"users": of_defaults.size, FIRST: round(float(of_defaults.mean()), 6)}
        study = _open(variant, settings, _name(variant, recipe, period, default), holdout)
        if not study.complete:
            study.add(DEFAULTS, TrialScore(float(of_defaults.mean())))
            if kept:
                study.propose(DEFAULTS | kept)

        def score(parameters: Parameters) -> TrialScore:
            values = period.score(variant, recipe, settings, parameters).lists.values[FIRST]
            return TrialScore(float(values.mean()), *paired_difference(values, of_defaults))

        try:
            study.search(score, Budget(minutes, trials), f"tune {variant.name}")
        finally:  # whatever ends the search, what it found is kept
            found = _keep(variant, settings, study, _measure(study, period, recipe))
        if found.file is None:
            return found
        log.info("measuring the defaults and the best on the holdout")
        of_both = [
            holdout.score(variant, recipe, settings, parameters).lists for parameters in ({}, found.best)
        ]
        measured = holdout.record() | compare(of_both[0], of_both[1], settings.night.seed)
        return _keep(variant, settings, study, found.measured | {"holdout": measured})


def _open(variant: Variant, settings: Settings, name: str, holdout: Period) -> Study:
    """Open the study of this very data."""
    journal = Path(settings.night.model_dir) / "tuning" / f"{variant.name}.journal"
    study, cutoff = Study(journal, name, settings.night.seed), holdout.dataset.split.cutoff.isoformat()
    tried = len(study.complete)
    if tried:
        log.info("going on with the study of the data up to %s: %d trials so far", cutoff, tried)
        return study
    if study.others:
        log.info("earlier studies are of other data or by another figure: starting afresh")
    log.info("to go on with this study when newer data have come: --as-of %s", cutoff)
    return study


def _name(variant: Variant, recipe: Recipe, period: Period, default: ScoredModel) -> str:
    """Name the study by the figure, the recipe, the defaults' model and the users it is judged by."""
    parts = "\n".join((recipe.name, default.digest, period.digest()))
    return f"{variant.name}-{FIRST}-{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def _measure(study: Study, period: Period, recipe: Recipe) -> dict[str, Any]:
    score = study.best[1]
    figures = compare_values(score.value - score.difference, score.value)
    figures["standard_error"] = round(score.standard_error, 6)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "trials": len(study.complete),
        "recipe": recipe.name,
        "tuning": period.record() | {FIRST: figures},
        "holdout": None,
    }


def _keep(variant: Variant, settings: Settings, study: Study, measured: dict[str, Any]) -> Tuned:
    """Write the best parameters if they beat the defaults where they were tuned; the holdout has no say."""
    best, score = study.best
    if not score.beats_defaults:
        kept = parameters_file(variant.name, settings)
        if kept.exists():
            log.warning(
                "no trial beats the defaults by more than one standard error; %s stays and the next run uses "
                "it: delete it to go back to the defaults",
                kept,
            )
        return Tuned(DEFAULTS, measured, None)
    file = keep_parameters(variant.name, settings, best, measured)
    log.info("kept the best of %d trials in %s", measured["trials"], file)
    return Tuned(best, measured, file)
