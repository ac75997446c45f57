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

Trials are scored on a `period`, which is the holdout of a dataset: models are
trained on the windows before it and rank the full catalogue for the users who,
in the period, liked a post that they had not liked before. All trials are
scored on the same users.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from threadpoolctl import threadpool_limits

from batch.evaluation import PRIMARY_METRIC
from batch.evaluation.catalogue_case import CatalogueCase, ScoredLists, build_case, score_lists, summarise
from batch.evaluation.full_catalogue import MIN_USERS, rank_by_model
from batch.evaluation.learner import choose_recipe, paired_difference
from batch.evaluation.ranking_metrics import round_or_none
from batch.ids import pack_ids
from batch.progress import Stages
from batch.training.dataset import Dataset, open_dataset
from batch.training.fit import PARAMETERS, fit
from batch.training.parameters import TUNABLE, Recipe, load_parameters, parameters_path, save_parameters
from batch.tuning.study import Budget, Parameters, Study, TrialScore
from batch.variants import Variant
from contract.errors import ModelError
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


MAX_USERS = 5_000
"""Users whose lists are scored, drawn at random if there are more, to limit the duration of a trial."""

COMPARED = ("ndcg_at_10", "hitrate_at_5", "recall_at_20", "coverage_at_10")
"""Metrics of the comparison, the primary metric first."""


@dataclass(frozen=True, eq=False)
class Period:
    """The holdout of a dataset, as a case of the full catalogue.

    Attributes
    ----------
    dataset
        Models are trained on its windows before the holdout.
    case
        The users to evaluate, with features as of the holdout's start.
    """

    dataset: Dataset
    case: CatalogueCase

    @classmethod
    def build(cls, dataset: Dataset, seed: int) -> Period:
        """Build the case, once for all trials.

        Raises
        ------
        ModelError
            There are fewer than `MIN_USERS` users to evaluate.
        """
        history, likes = dataset.at_holdout, dataset.now.likes
        case = build_case(dataset.network, history, likes, MAX_USERS, seed)
        if case.users.size < MIN_USERS:
            start, end = history.cutoff.isoformat(), dataset.split.cutoff.isoformat()
            raise ModelError(
                f"from {start} to {end} only {case.users.size} users liked a post that they had not liked "
                f"before, of {MIN_USERS} needed to compare parameters; no parameters were changed; wait for "
                "more interactions, or change OVERNIGHT_HOLDOUT_FRACTION"
            )
        return cls(dataset, case)

    def score(
        self, variant: Variant, recipe: Recipe, settings: Settings, parameters: Mapping[str, Any]
    ) -> ScoredModel:
        """Fit on the windows before the period, and score the lists of the users to evaluate.

        Raises
        ------
        ModelError
            All examples have the same label.
        """
        dataset = self.dataset
        model = fit(
            variant, dataset, windows=dataset.training, recipe=recipe, settings=settings, tuned=parameters
        )
        lists = rank_by_model(model, dataset.network, dataset.at_holdout, self.case, settings)
        return ScoredModel(model.digest, score_lists(self.case, lists))

    def record(self) -> dict[str, Any]:
        """Return the JSON object for a file of parameters: from and until (ISO 8601), number of users."""
        split = self.dataset.split
        return {
            "from": split.holdout_start.isoformat(),
            "until": split.cutoff.isoformat(),
            "users": int(self.case.users.size),
        }

    def digest(self) -> str:
        """Return the SHA-256 of the case: users, posts left out, likes to find, hidden posts."""
        case = self.case
        ids, left_out = pack_ids(case.user_ids), case.left_out
        parts = (ids, case.liked_later, case.hidden, left_out.starts, left_out.posts)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


@dataclass(frozen=True)
class ScoredModel:
    """The metrics of a model's lists in a period, and the model's digest."""

    digest: str
    lists: ScoredLists


def compare(default: ScoredLists, tuned: ScoredLists, seed: int) -> dict[str, dict[str, float | None]]:
    """Compare the lists of two models for the same users.

    Returns
    -------
    Metric -> `default`, `tuned` and `difference` (tuned minus default); `low`
    and `high`, the 95 % interval of the difference, paired by user. Coverage is
    one value for all lists together and has no interval.
    """
    of_default, of_tuned = summarise([default], seed), summarise([tuned], seed)
    differences = of_tuned.minus(of_default)
    comparison: dict[str, dict[str, float | None]] = {}
    for name in COMPARED:
        comparison[name] = compare_values(of_default.values[name], of_tuned.values[name])
        if name in differences:
            difference = differences[name]
            comparison[name] |= {"low": round_or_none(difference.low), "high": round_or_none(difference.high)}
    return comparison


def compare_values(default: float, tuned: float) -> dict[str, float | None]:
    """Return both values and their difference, tuned minus default, to six digits."""
    return {
        "default": round_or_none(default),
        "tuned": round_or_none(tuned),
        "difference": round_or_none(tuned - default),
    }
