"""Tunes the forest's parameters on labels from before the holdout.

    |------------- what the night's model learns from --------------|-- holdout --|
    |---- history ----|---- training labels ----|---- tuned on -----|

All that lies after the start of the holdout is left out, as if the night were
that of then; on the last labels of that earlier night each trial is judged. So
the holdout stays what it was, labels that nothing was chosen by, and both the
defaults and the tuned parameters are measured on it once, at the end.

Trials are judged by log loss: it changes with every row's score, where a
ranking metric changes only when two posts of a user change places, so that
the same rows tell smaller differences apart.
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

from batch.learning.fit import PARAMETERS
from batch.learning.gather import Gathered, gathered_now
from batch.learning.parameters import TUNABLE, keep_parameters, parameters_file, parameters_for
from batch.progress import Stages
from batch.tuning.judgement import Judgement, beside, compare, judge
from batch.tuning.study import Budget, Parameters, Study
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
        The best parameters; the defaults where nothing tried beat them.
    measured
        What they were measured on, and how they stand beside the defaults.
    file
        Where they are kept for the next run; None where the defaults are best.
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
    OvernightError
        The views cannot be learnt from, or the folder of models cannot be written.
    """
    now, stages, kept = datetime.now(UTC), Stages(), parameters_for(variant.name, settings)
    # One thread for linear algebra, as in the night: the same data must give the same study.
    with threadpool_limits(1, user_api="blas"), ExitStack() as stack:
        with stages.stage("load", "interactions") as told:
            gathered = stack.enter_context(gathered_now(engine, settings, as_of, now))
            before_holdout = gathered_now(engine, settings, gathered.split.holdout_start, now)
            earlier = stack.enter_context(before_holdout)
            told |= {"interactions": gathered.interactions}
        with stages.stage("judge_defaults", "examples") as told:
            default = judge(variant, earlier, settings, {})
            told |= {
                "examples": sum(len(each.views) for each in earlier.training),
                "log_loss": round(default.log_loss, 6),
            }
        study = _open(variant, settings, default, gathered, kept)

        def loss(parameters: Parameters) -> float:
            return judge(variant, earlier, settings, parameters).log_loss

        try:
            study.search(loss, Budget(minutes, trials), f"tune {variant.name}")
        finally:  # whatever ends the search, what it found is kept
            found = _keep(variant, settings, study, _measured(study, earlier, default))
        if found.file is None:
            return found
        log.info("measuring the defaults and the best on the holdout")
        both = [judge(variant, gathered, settings, parameters) for parameters in ({}, found.best)]
        holdout = _period(gathered, len(both[0].rows)) | compare(*both)
        return _keep(variant, settings, study, found.measured | {"holdout": holdout})


def _open(
    variant: Variant, settings: Settings, default: Judgement, gathered: Gathered, kept: Parameters
) -> Study:
    """Open the study of this very data; the defaults' model and the rows it is judged on name it.

    A new one begins with the defaults, and with what an earlier tuning kept.
    """
    name = f"{variant.name}-{_digest(default)}"
    journal = Path(settings.model_dir) / "tuning" / f"{variant.name}.journal"
    study, cutoff = Study(journal, name, settings.seed), gathered.split.cutoff.isoformat()
    tried = len(study.complete)
    if tried:
        log.info("going on with the study of the data up to %s: %d trials so far", cutoff, tried)
        return study
    if study.others:
        log.info("the data are not those of an earlier study: starting afresh")
    log.info("to go on with this study when newer data have come: --as-of %s", cutoff)
    study.note(DEFAULTS, default.log_loss)
    if kept:
        study.propose(DEFAULTS | kept)
    return study


def _digest(judged: Judgement) -> str:
    rows = judged.rows
    parts = [judged.digest.encode(), *(part.tobytes() for part in (rows.users, rows.posts, rows.liked))]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _measured(study: Study, earlier: Gathered, default: Judgement) -> dict[str, Any]:
    tuning = _period(earlier, len(default.rows)) | {"log_loss": beside(default.log_loss, study.best[1])}
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return {"at": at, "trials": len(study.complete), "tuning": tuning, "holdout": None}


def _keep(variant: Variant, settings: Settings, study: Study, measured: dict[str, Any]) -> Tuned:
    """Write the best parameters if they beat the defaults where they were tuned; the holdout has no say."""
    best, _ = study.best
    if measured["tuning"]["log_loss"]["difference"] >= 0:
        kept = parameters_file(variant.name, settings)
        if kept.exists():
            log.warning("no trial beats the defaults; %s stays: delete it to go back to them", kept)
        return Tuned(DEFAULTS, measured, None)
    file = keep_parameters(variant.name, settings, best, measured)
    log.info("kept the best of %d trials in %s", measured["trials"], file)
    return Tuned(best, measured, file)


def _period(gathered: Gathered, rows: int) -> dict[str, Any]:
    return {
        "from": gathered.split.holdout_start.isoformat(),
        "until": gathered.split.cutoff.isoformat(),
        "rows": rows,
    }
