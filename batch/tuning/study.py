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

from batch.learning.parameters import TUNABLE, Range
from contract.errors import ModelError

log = logging.getLogger("batch")

Parameters = dict[str, Any]


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
    """The trials of one variant on one set of rows, kept in a file: a later search goes on with them."""

    def __init__(self, journal: Path, name: str, seed: int) -> None:
        """Open the study of this name, or begin it.

        Raises
        ------
        ModelError
            The journal cannot be read or written.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            with _explained(journal):
                journal.parent.mkdir(parents=True, exist_ok=True)
                storage = JournalStorage(JournalFileBackend(str(journal)))
                names = {found.study_name for found in storage.get_all_studies()}
                self._study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
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
    def best(self) -> tuple[Parameters, float]:
        """The best parameters so far, and their value; there must be a trial."""
        trial = min(self.complete, key=lambda trial: (trial.value, trial.number))
        return legible(trial.params), float(trial.value or 0.0)

    def note(self, parameters: Mapping[str, Any], value: float) -> None:
        """Enter a trial that was made elsewhere."""
        with _explained(self._journal):
            self._study.add_trial(
                create_trial(params=dict(parameters), distributions=DISTRIBUTIONS, value=value)
            )

    def propose(self, parameters: Mapping[str, Any]) -> None:
        """Have these parameters tried next."""
        with _explained(self._journal):
            self._study.enqueue_trial(dict(parameters))

    def search(self, judge: Callable[[Parameters], float], budget: Budget, what: str) -> None:
        """Try parameters until the budget is spent; each trial is kept as soon as it ends.

        Parameters
        ----------
        judge
            Gives the value of parameters; the lower the better.
        what
            Name of the work, for the bar or the log.
        """
        with tqdm(desc=what, unit=" trials", leave=False, disable=not sys.stderr.isatty()) as bar:
            while budget.allows_another():
                with _explained(self._journal):
                    trial = self._study.ask(DISTRIBUTIONS)
                try:
                    value = judge(legible(trial.params))
                except BaseException:
                    self._study.tell(trial, state=TrialState.FAIL)
                    raise
                with _explained(self._journal):
                    self._study.tell(trial, value)
                budget.note_trial()
                self._show(bar, budget, what, value)

    def _show(self, bar: tqdm[Any], budget: Budget, what: str, value: float) -> None:
        best, left = self.best[1], max(budget.seconds_left, 0) / 60
        if bar.disable:
            of = f"{budget.done} of {budget.expected_trials}"
            log.info("%s: trial %s: %.5f, best %.5f, %.1f min left", what, of, value, best, left)
        else:
            bar.total = budget.expected_trials
            bar.set_postfix_str(f"best {best:.5f}, {left:.1f} min left", refresh=False)
            bar.update()


def legible(parameters: Mapping[str, Any]) -> Parameters:
    """Round what is not whole to four digits: what is tried is what a person reads in the file."""
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in sorted(parameters.items())
    }


def _distribution(span: Range) -> BaseDistribution:
    if span.whole:
        return IntDistribution(int(span.low), int(span.high), log=span.log)
    return FloatDistribution(span.low, span.high, log=span.log)


DISTRIBUTIONS = {name: _distribution(span) for name, span in TUNABLE.items()}


@contextmanager
def _explained(journal: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror}; free space or set OVERNIGHT_MODEL_DIR"
        raise ModelError(f"cannot keep trials in {journal}: {reason}") from None
