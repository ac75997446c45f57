"""Tunes the forest's parameters on likes from before the holdout.

    |------------- the night's model is trained on this ------------|-- holdout --|
    |---- history ----|---- training labels ----|-- tuning period --|

    drop everything after the start of the holdout, as in a night as of that time
    choose the recipe with the default parameters
    for each trial:
        fit, rank all known posts without earlier likes, take NDCG@10 of the later likes
    save the best if it beats the defaults by more than one standard error, paired by user
    measure the defaults and the best on the holdout

The holdout is used once, at the end, and chooses nothing.

NDCG@10 over the full catalogue is the primary metric of `evaluate` and of the
gate. A log loss over views is no alternative: a model that learns from likes
among all posts gives no probability of a like given a view.

The best of many trials is best partly by chance: it overfits the users of the
tuning period. So a best trial within one standard error of the defaults is not
saved. This does not remove the optimism of the maximum; the metrics on the
holdout are free of it.
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

from batch.evaluation import PRIMARY_METRIC
from batch.evaluation.choose_recipe import choose_recipe, paired_difference
from batch.progress import Stages
from batch.training.dataset import open_dataset
from batch.training.fit import PARAMETERS
from batch.training.parameters import TUNABLE, load_parameters, parameters_path, save_parameters
from batch.training.recipe import Recipe
from batch.tuning.period import Period, ScoredModel, compare, compare_values
from batch.tuning.study import Budget, Parameters, Study, TrialScore
from batch.variants import Variant
from contract.settings import Settings

log = logging.getLogger("batch")

DEFAULTS: Parameters = {name: PARAMETERS[name] for name in TUNABLE}


@dataclass(frozen=True)
class TuningResult:
    """The result of a search.

    Attributes
    ----------
    best
        The saved parameters; the defaults if no trial beats them by more than one standard error.
    measured
        What they were measured on, and their metrics compared with those of the defaults.
    file
        Where they are saved for the next run; None if the defaults stay.
    """

    best: Parameters
    measured: dict[str, Any]
    file: Path | None


def tune(
    engine: sa.Engine,
    settings: Settings,
    variant: Variant,
    *,
    as_of: datetime | None,
    minutes: float,
    trials: int | None,
) -> TuningResult:
    """Search for better parameters, save them for the next run, and measure them on the holdout.

    Raises
    ------
    ModelError
        Too few users can be evaluated, before or on the holdout; raised before the search.
    OvernightError
        The data cannot be used for training, or the folder of models cannot be written.
    """
    now, stages, saved = datetime.now(UTC), Stages(), load_parameters(variant.name, settings)
    # One thread for linear algebra, as in the night: the same data must give the same study.
    with threadpool_limits(1, user_api="blas"), ExitStack() as stack:
        with stages.stage("load", "interactions") as stats:
            dataset = stack.enter_context(open_dataset(engine, settings, as_of, now))
            before_holdout = open_dataset(engine, settings, dataset.split.holdout_start, now)
            earlier = stack.enter_context(before_holdout)
            stats |= {"interactions": dataset.interactions}
        period = Period.build(earlier, settings.night.seed)
        holdout = Period.build(dataset, settings.night.seed)
        with stages.stage("choose", "recipes") as stats:
            choice = choose_recipe(variant, earlier, settings, {})
            stats |= {"recipes": len(choice.candidates), "users": choice.users}
        recipe = choice.recipe
        log.info("%s learns %s in all trials: %s", variant.name, recipe.name, choice.why)
        with stages.stage("judge_defaults", "users") as stats:
            default = period.score(variant, recipe, settings, {})
            of_defaults = default.lists.values[PRIMARY_METRIC]
            stats |= {"users": of_defaults.size, PRIMARY_METRIC: round(float(of_defaults.mean()), 6)}
        study = _open_study(variant, settings, _study_name(variant, recipe, period, default), holdout)
        if not study.completed:
            study.add(DEFAULTS, TrialScore(float(of_defaults.mean())))
            if saved:
                study.propose(DEFAULTS | saved)

        def score(parameters: Parameters) -> TrialScore:
            values = period.score(variant, recipe, settings, parameters).lists.values[PRIMARY_METRIC]
            return TrialScore(float(values.mean()), *paired_difference(values, of_defaults))

        try:
            study.search(score, Budget(minutes, trials), f"tune {variant.name}")
        finally:  # an interrupted search saves its best trial, too
            result = _save_best(variant, settings, study, _measure(study, period, recipe))
        if result.file is None:
            return result
        log.info("measuring the defaults and the best on the holdout")
        of_both = [
            holdout.score(variant, recipe, settings, parameters).lists for parameters in ({}, result.best)
        ]
        measured = holdout.record() | compare(of_both[0], of_both[1], settings.night.seed)
        return _save_best(variant, settings, study, result.measured | {"holdout": measured})


def _open_study(variant: Variant, settings: Settings, name: str, holdout: Period) -> Study:
    """Open the study of exactly these data."""
    journal = Path(settings.night.model_dir) / "tuning" / f"{variant.name}.journal"
    study, cutoff = Study(journal, name, settings.night.seed), holdout.dataset.split.cutoff.isoformat()
    completed = len(study.completed)
    if completed:
        log.info("continuing the study of the data up to %s: %d trials so far", cutoff, completed)
        return study
    if study.other_names:
        log.info("earlier studies are of other data or by another metric: starting a new study")
    log.info("to continue this study when there are newer data: --as-of %s", cutoff)
    return study


def _study_name(variant: Variant, recipe: Recipe, period: Period, default: ScoredModel) -> str:
    """Name the study by the metric and a hash of recipe, defaults' model and period."""
    parts = "\n".join((recipe.name, default.digest, period.digest()))
    return f"{variant.name}-{PRIMARY_METRIC}-{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def _measure(study: Study, period: Period, recipe: Recipe) -> dict[str, Any]:
    score = study.best[1]
    comparison = compare_values(score.value - score.difference, score.value)
    comparison["standard_error"] = round(score.standard_error, 6)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "trials": len(study.completed),
        "recipe": recipe.name,
        "tuning": period.record() | {PRIMARY_METRIC: comparison},
        "holdout": None,
    }


def _save_best(variant: Variant, settings: Settings, study: Study, measured: dict[str, Any]) -> TuningResult:
    """Save the best parameters if they beat the defaults in the tuning period."""
    best, score = study.best
    if not score.beats_defaults:
        path = parameters_path(variant.name, settings)
        if path.exists():
            log.warning(
                "no trial beats the defaults by more than one standard error; %s is unchanged and the next "
                "run uses it: delete it to go back to the defaults",
                path,
            )
        return TuningResult(DEFAULTS, measured, None)
    file = save_parameters(variant.name, settings, best, measured)
    log.info("saved the best of %d trials in %s", measured["trials"], file)
    return TuningResult(best, measured, file)
