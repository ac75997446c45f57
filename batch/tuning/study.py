"""The search for parameters: optuna proposes, a journal in a file remembers, a budget ends it."""

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
    """How well parameters rank.

    Attributes
    ----------
    value
        Mean NDCG@10 over the users judged; the higher the better.
    difference, standard_error
        Value less that of the defaults, and its standard error, paired by user.
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
    """Minutes and trials; whichever is spent first ends the search.

    A trial that would not end in time, going by the longest so far, is not begun.
    """

    minutes: float
    trials: int | None = None
    clock: Callable[[], float] = time.monotonic
    done: int = field(default=0, init=False)
    _longest: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._started = self._last = self.clock()

    def allows_another(self) -> bool:
        """Tell whether one more trial fits."""
        few_enough = self.trials is None or self.done < self.trials
        return few_enough and self.seconds_left >= max(self._longest, 1e-9)

    def note_trial(self) -> None:
        """Count a trial that has just ended."""
        now = self.clock()
        self.done += 1
        self._longest = max(self._longest, now - self._last)
        self._last = now

    @property
    def seconds_left(self) -> float:
        """How much of the minutes is left."""
        return self._started + self.minutes * 60 - self.clock()

    @property
    def expected_trials(self) -> int | None:
        """How many trials there will be in all, going by those done; None before the first."""
        if self.done == 0:
            return self.trials
        mean = max((self._last - self._started) / self.done, 1e-9)
        in_time = self.done + max(int(self.seconds_left / mean), 0)
        return in_time if self.trials is None else min(in_time, self.trials)


class Study:
    """The trials of one variant on one case, kept in a file: a later search goes on with them."""

    def __init__(self, journal: Path, name: str, seed: int) -> None:
        """Open the study of this name, or begin it.

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
                names = {found.study_name for found in storage.get_all_studies()}
                self._study = optuna.create_study(
                    study_name=name, storage=storage, direction="maximize", load_if_exists=True
                )
        except (ValueError, KeyError, TypeError) as error:  # what optuna raises for lines it did not write
            raise ModelError(f"{journal} is broken ({error}); delete it to begin afresh") from None
        self.others = names - {name}
        # The sampler does not remember: the same seed again would propose the same trials again.
        self._study.sampler = optuna.samplers.TPESampler(seed=seed + len(self._study.trials))
        self._journal = journal

    @property
    def complete(self) -> list[FrozenTrial]:
        """The trials that came to an end."""
        found: list[FrozenTrial] = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return found

    @property
    def best(self) -> tuple[Parameters, TrialScore]:
        """The best parameters so far and their score, equal ones the earlier trial; there must be a trial."""
        trial = max(self.complete, key=lambda trial: (trial.value, -trial.number))
        return round_parameters(trial.params), TrialScore(trial.value or 0.0, **trial.user_attrs)

    def add(self, parameters: Mapping[str, Any], score: TrialScore) -> None:
        """Add a trial that was made elsewhere."""
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
        """Have these parameters tried next."""
        with _readable_errors(self._journal):
            self._study.enqueue_trial(dict(parameters))

    def search(self, score: Callable[[Parameters], TrialScore], budget: Budget, what: str) -> None:
        """Try parameters until the budget is spent; each trial is kept as soon as it ends.

        Parameters
        ----------
        score
            Scores parameters.
        what
            Name of the work, for the bar or the log.
        """
        with tqdm(desc=what, unit=" trials", leave=False, disable=not sys.stderr.isatty()) as bar:
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
                budget.note_trial()
                self._show(bar, budget, what, scored.value)

    def _show(self, bar: tqdm[Any], budget: Budget, what: str, value: float) -> None:
        best, left = self.best[1].value, max(budget.seconds_left, 0) / 60
        if bar.disable:
            of = f"{budget.done} of {budget.expected_trials}"
            log.info("%s: trial %s: NDCG@10 %.5f, best %.5f, %.1f min left", what, of, value, best, left)
        else:
            bar.total = budget.expected_trials
            bar.set_postfix_str(f"best NDCG@10 {best:.5f}, {left:.1f} min left", refresh=False)
            bar.update()


def round_parameters(parameters: Mapping[str, Any]) -> Parameters:
    """Round what is not whole to four digits: what is tried is what a person reads in the file."""
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in sorted(parameters.items())
    }


def _trial_attributes(score: TrialScore) -> dict[str, float]:
    """Return what a trial keeps in addition to its value."""
    return {"difference": score.difference, "standard_error": score.standard_error}


def _distribution(span: Range) -> BaseDistribution:
    if span.whole:
        return IntDistribution(int(span.low), int(span.high), log=span.log)
    return FloatDistribution(span.low, span.high, log=span.log)


DISTRIBUTIONS = {name: _distribution(span) for name, span in TUNABLE.items()}


@contextmanager
def _readable_errors(journal: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror}; free space or set OVERNIGHT_MODEL_DIR"
        raise ModelError(f"cannot keep trials in {journal}: {reason}") from None
