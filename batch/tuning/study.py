"""The search for parameters: optuna proposes them, a journal file keeps the trials, a budget ends it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from tqdm import tqdm

from batch.training.parameters import TUNABLE, Range
from contract.errors import ModelError

log = logging.getLogger("batch")

Parameters = dict[str, Any]


@dataclass(frozen=True)
class TrialScore:
    """The score of one set of parameters.

    Attributes
    ----------
    value
        Mean NDCG@10 over the users; higher is better.
    difference, standard_error
        Value minus that of the defaults, and its standard error, paired by user.
    """

    value: float
    difference: float = 0.0
    standard_error: float = 0.0

    @property
    def beats_defaults(self) -> bool:
        """Whether the difference is more than one standard error."""
        return self.difference > self.standard_error


@dataclass
class Budget:
    """A limit of minutes and of trials; the search ends when one of them is reached.

    A trial is not started if the longest trial so far would not fit into the time left.
    """

    minutes: float
    trials: int | None = None
    clock: Callable[[], float] = time.monotonic
    completed: int = field(default=0, init=False)
    _longest: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._started = self._last = self.clock()

    def allows_another(self) -> bool:
        """Return whether one more trial fits."""
        trials_left = self.trials is None or self.completed < self.trials
        return trials_left and self.seconds_left >= max(self._longest, 1e-9)

    def record_trial(self) -> None:
        """Count a trial that has just ended."""
        now = self.clock()
        self.completed += 1
        self._longest = max(self._longest, now - self._last)
        self._last = now

    @property
    def seconds_left(self) -> float:
        """Time left."""
        return self._started + self.minutes * 60 - self.clock()

    @property
    def expected_trials(self) -> int | None:
        """Expected total of trials by the mean duration so far; the limit (or None) before the first."""
        if self.completed == 0:
            return self.trials
        mean = max((self._last - self._started) / self.completed, 1e-9)
        in_time = self.completed + max(int(self.seconds_left / mean), 0)
        return in_time if self.trials is None else min(in_time, self.trials)


class Study:
    """The trials of one variant on one case, kept in a file so that a later search continues with them."""

    def __init__(self, journal: Path, name: str, seed: int) -> None:
        """Open the study of this name, or create it.

        Raises
        ------
        ModelError
            The journal cannot be read or written.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            with _readable_errors(journal):
                journal.parent.mkdir(parents=True, exist_ok=True)
                storage = JournalStorage(JournalFileBackend(str(journal)))
                names = {each.study_name for each in storage.get_all_studies()}
                self._study = optuna.create_study(
                    study_name=name, storage=storage, direction="maximize", load_if_exists=True
                )
        except (ValueError, KeyError, TypeError) as error:  # what optuna raises for an invalid journal
            raise ModelError(f"{journal} is broken ({error}); delete it to start a new study") from None
        self.other_names = names - {name}
        # The sampler has no memory: the same seed would propose the same trials again.
        self._study.sampler = optuna.samplers.TPESampler(seed=seed + len(self._study.trials))
        self._journal = journal

    @property
    def completed(self) -> list[FrozenTrial]:
        """The trials that have a score."""
        trials: list[FrozenTrial] = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return trials

    @property
    def best(self) -> tuple[Parameters, TrialScore]:
        """The parameters with the highest score, of equal ones the earliest; needs a completed trial."""
        trial = max(self.completed, key=lambda trial: (trial.value, -trial.number))
        return round_parameters(trial.params), TrialScore(trial.value or 0.0, **trial.user_attrs)

    def add(self, parameters: Mapping[str, Any], score: TrialScore) -> None:
        """Add a trial with a known score."""
        with _readable_errors(self._journal):
            self._study.add_trial(
                create_trial(
                    params=dict(parameters),
                    distributions=DISTRIBUTIONS,
                    value=score.value,
                    user_attrs=_trial_attributes(score),
                )
            )

    def propose(self, parameters: Mapping[str, Any]) -> None:
        """Try these parameters next."""
        with _readable_errors(self._journal):
            self._study.enqueue_trial(dict(parameters))

    def search(self, score: Callable[[Parameters], TrialScore], budget: Budget, title: str) -> None:
        """Try parameters until the budget is used up; each trial is stored as soon as it ends.

        Parameters
        ----------
        score
            Scores parameters.
        title
            Shown in the progress bar or the log.
        """
        with tqdm(desc=title, unit=" trials", leave=False, disable=not sys.stderr.isatty()) as bar:
            while budget.allows_another():
                with _readable_errors(self._journal):
                    trial = self._study.ask(DISTRIBUTIONS)
                try:
                    scored = score(round_parameters(trial.params))
                except BaseException:
                    self._study.tell(trial, state=TrialState.FAIL)
                    raise
                with _readable_errors(self._journal):
                    for name, number in _trial_attributes(scored).items():
                        trial.set_user_attr(name, number)
                    self._study.tell(trial, scored.value)
                budget.record_trial()
                self._show(bar, budget, title, scored.value)

    def _show(self, bar: tqdm[Any], budget: Budget, title: str, value: float) -> None:
        best, left = self.best[1].value, max(budget.seconds_left, 0) / 60
        if bar.disable:
            count = f"{budget.completed} of {budget.expected_trials}"
            log.info("%s: trial %s: NDCG@10 %.5f, best %.5f, %.1f min left", title, count, value, best, left)
        else:
            bar.total = budget.expected_trials
            bar.set_postfix_str(f"best NDCG@10 {best:.5f}, {left:.1f} min left", refresh=False)
            bar.update()


def round_parameters(parameters: Mapping[str, Any]) -> Parameters:
    """Round floats to four digits, so that the file shows exactly what was tried."""
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in sorted(parameters.items())
    }


def _trial_attributes(score: TrialScore) -> dict[str, float]:
    """Return what a trial stores in addition to its value."""
    return {"difference": score.difference, "standard_error": score.standard_error}


def _distribution(values: Range) -> BaseDistribution:
    if values.integer:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


DISTRIBUTIONS = {name: _distribution(values) for name, values in TUNABLE.items()}


@contextmanager
def _readable_errors(journal: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror}; free space or set OVERNIGHT_MODEL_DIR"
        raise ModelError(f"cannot store trials in {journal}: {reason}") from None
